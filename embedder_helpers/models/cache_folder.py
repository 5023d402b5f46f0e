"""The files in a folder of hidden states: their names, sizes and last use; a summary for people.

What is in the files is left to `shard_file`.
"""

import contextlib
import functools
import logging
import re
import time
from pathlib import Path

import pandas as pd

from embedder_helpers.errors import InputError
from embedder_helpers.models.gemma import HiddenStateSpec
from embedder_helpers.models.shard_file import SUFFIX, ShardFile

logger = logging.getLogger(__name__)

NAME = re.compile(rf"k(\d+)-(rms|learned|none)-[0-9a-f]{{16}}{re.escape(SUFFIX)}")


def spec_prefix(spec: HiddenStateSpec) -> str:
    """With what the names of a spec's files begin."""
    return f"k{spec.cutoff:02d}-{spec.norm}"


def spec_files(model_folder: Path, spec: HiddenStateSpec) -> list[Path]:
    """The paths of a spec's files."""
    return sorted(model_folder.glob(f"{spec_prefix(spec)}-*{SUFFIX}"))


def state_files(folder: Path) -> list[Path]:
    """Files of hidden states of all models, the least recently used first."""
    paths = folder.glob(f"*/k*{SUFFIX}")  # files and folders of the user's may be among them
    paths = (path for path in paths if NAME.fullmatch(path.name) and path.is_file())
    return sorted(paths, key=lambda path: (_last_used(path), path))


def file_size(path: Path) -> int:
    """Bytes of a file; 0 if another process has just deleted it."""
    with contextlib.suppress(OSError):
        return path.stat().st_size
    return 0


def _last_used(path: Path) -> float:
    with contextlib.suppress(OSError):
        return path.stat().st_mtime
    return 0.0


def used_bytes(folder: Path) -> int:
    """Bytes of all files of hidden states."""
    return sum(map(file_size, state_files(folder)))


def summary(folder: Path) -> pd.DataFrame:
    """A row per spec: model, cutoff, norm, texts, gigabytes, and when it was last used."""
    groups: dict[tuple[str, str, str], list[Path]] = {}
    for path in state_files(folder):
        cutoff, norm = NAME.fullmatch(path.name).groups()
        groups.setdefault((path.parent.name, cutoff, norm), []).append(path)
    rows = []
    for (model, cutoff, norm), paths in groups.items():
        used = max(map(_last_used, paths))
        texts = {key for path in paths for key in _keys_of(path)}
        size = sum(map(file_size, paths)) / 1e9
        shown = time.strftime("%Y-%m-%d %H:%M", time.localtime(used))
        rows.append((model, int(cutoff), norm, len(texts), size, shown))
    columns = ("model", "cutoff", "norm", "texts", "gigabytes", "last used")
    return pd.DataFrame(rows, columns=columns)


def _keys_of(path: Path) -> list[bytes]:
    try:
        return ShardFile(path).keys
    except (OSError, ValueError):
        return []


def clear(folder: Path, model: str | None = None) -> int:
    """Delete the hidden states of one model, as `summary` names it, or of all.

    Returns:
        The number of bytes that were freed.

    Raises:
        InputError: there are none of this model.
    """
    paths = [path for path in state_files(folder) if model in (None, path.parent.name)]
    if model and not paths:
        raise InputError(
            f"{folder} contains no hidden states of {model!r}: "
            "`python -m embedder_helpers states` lists the names"
        )
    paths += [] if model else _old_files(folder)
    size = sum(map(file_size, paths))
    for path in paths:
        path.unlink(missing_ok=True)
    return size


def _old_files(folder: Path) -> list[Path]:
    """Those of versions before 0.7.0, which kept a file per spec and an index beside it."""
    paths = [
        path for suffix in ("states", "index") for path in folder.glob(f"*/k[0-9][0-9]-*.{suffix}")
    ]
    return [path for path in paths if path.is_file()]


@functools.cache  # once in a process
def log_old_files(folder: Path) -> None:
    """Say how much room files of earlier versions take, and how to delete them."""
    if size := sum(map(file_size, _old_files(folder))):
        logger.info(
            "hidden states: %.2f GB of an earlier version in %s are not read any more; `python -m "
            "embedder_helpers states --clear` deletes them, and all others",
            size / 1e9,
            folder,
        )

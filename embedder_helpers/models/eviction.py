"""Room for hidden states in a folder, made by deleting the files that were least recently used.

What another living process reads (`use_marks`) is not deleted, and counts as taken. What another
one has yet to write is not known: processes that begin at once may exceed the limit together.
"""

import logging
import shutil
from collections import Counter
from collections.abc import Collection, Mapping
from pathlib import Path

from tqdm import tqdm

from embedder_helpers.errors import InputError
from embedder_helpers.models.cache_folder import file_size, state_files, used_bytes
from embedder_helpers.models.use_marks import name_in_marks, names_in_use

logger = logging.getLogger(__name__)

RESERVE = 2 * 10**9  # bytes of the disk that are left free; where less is free,
SMALL_DISK = 10  # one part in so many may be used, which is enough for tiny models


def capacity(folder: Path, limit: float) -> float:
    """Bytes that hidden states can take beside those that other processes read.

    Args:
        folder: of hidden states.
        limit: bytes that they may take in total; the disk is another limit.
    """
    return _total(folder, limit) - sum(map(file_size, _kept(folder)))


def _total(folder: Path, limit: float) -> float:
    free = shutil.disk_usage(folder).free
    return min(limit, max(free - RESERVE, free // SMALL_DISK) + used_bytes(folder))


def _size(count: float) -> str:
    return tqdm.format_sizeof(count, "B")


def _kept(folder: Path) -> set[Path]:
    """Files that other processes read."""
    names = names_in_use(folder)
    return {path for path in state_files(folder) if name_in_marks(path) in names}


def make_room(
    folder: Path, limit: float, needed: int, useful: Mapping[Path, int], last: Collection[Path]
) -> None:
    """Delete files, the least recently used first, until what is wanted fits.

    First those in which nothing is wanted; then those with the least that is, which is computed
    again.

    Args:
        folder: of hidden states.
        limit: bytes that they may take in total.
        needed: bytes of all that is wanted.
        useful: bytes of it in each file that has some.
        last: files to delete after others in which nothing is wanted.

    Raises:
        InputError: it does not fit.
    """
    kept, total = _kept(folder), _total(folder, limit)
    taken = sum(file_size(path) - useful.get(path, 0) for path in kept)
    if needed + taken > total:
        beside, wait = "", ""
        if kept:
            beside = f" beside the {_size(taken)} that other processes read"
            wait = "wait until they have ended, "
        raise InputError(
            f"hidden states need {_size(needed)}, but {folder} has room for "
            f"{_size(max(0, total - taken))}{beside}: {wait}set states_dir to a larger disk, "
            "raise states_gigabytes, or lower max_train_texts"
        )
    used, new, deleted = used_bytes(folder), needed - sum(useful.values()), Counter[str]()
    for path in sorted(state_files(folder), key=lambda path: useful.get(path, path in last)):
        if used + new <= total:
            break
        if path in kept:
            continue
        used -= file_size(path)
        new += useful.get(path, 0)
        path.unlink(missing_ok=True)
        deleted[name_in_marks(path).rpartition("-")[0]] += 1
    for name, count in deleted.items():
        logger.info("hidden states: %s deleted to make room (files: %d)", name, count)
    if used_bytes(folder) + new > total:
        raise InputError(
            f"another process fills {folder} while room is made there for hidden states: start "
            "again when it has ended, or set states_dir to another folder"
        )

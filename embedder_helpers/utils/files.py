"""Files and folders: atomic writes, writable folders, checksums, and what the package carries.

What the files hold is left to the modules that read and write them.
"""

import functools
import hashlib
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from embedder_helpers.errors import InputError

PACKAGE = Path(__file__).resolve().parent.parent


def package_path(in_wheel: str, in_clone: str) -> Path:
    """A folder that a wheel has inside the package and a clone has beside it.

    Args:
        in_wheel: path relative to the package.
        in_clone: path relative to the clone.
    """
    inside = PACKAGE / in_wheel
    return inside if inside.is_dir() else PACKAGE.parent / in_clone


def writable_folder(path: str | Path, setting: str = "--out (in the notebook: OUT)") -> Path:
    """Make a folder if it does not exist, and check that it can be written.

    Args:
        path: path of the folder.
        setting: option or argument by which the user chooses another folder, for the message.

    Raises:
        InputError: it cannot be made or written.
    """
    folder = Path(path)
    probe = folder / f".write-test-{os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.write_text("")
        probe.unlink()
    except OSError as error:
        raise InputError(
            f"the folder {folder} cannot be written ({error.strerror}): "
            f"choose another with {setting}"
        ) from None
    return folder


def atomic_write(path: Path, save: Callable[[Path], Any]) -> Path:
    """Write a file elsewhere first, then rename it, so that it is complete or does not exist.

    Args:
        path: path of the file; its folder must exist.
        save: function that writes a file of the same name in another folder.

    Returns:
        The path.
    """
    with tempfile.TemporaryDirectory(suffix=".part", dir=path.parent) as folder:
        part = Path(folder) / path.name
        save(part)
        part.replace(path)
    return path


def file_digest(path: Path) -> bytes:
    """SHA-256 of a file's content, computed once as long as its size and time do not change."""
    return _file_digest(path, path.stat().st_size, path.stat().st_mtime_ns)


@functools.cache
def _file_digest(path: Path, size: int, modified: int) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def path_exists(path: Path) -> bool:
    """Whether a file or folder exists; False, not an error, for a name too long to be one."""
    try:
        return path.exists()
    except OSError:
        return False

"""Files and folders: paths that people give, atomic writes, digests, and what the package carries.

What the files hold is left to the modules that read and write them.
"""

import contextlib
import errno
import functools
import hashlib
import os
import shutil
import stat
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from embedder_helpers.errors import MAX_VALUE, InputError, shorten, show
from embedder_helpers.utils.replacing import replace_file

OUT = "--out (in the notebook: OUT)"
STREAMS = ("/dev/stdout", "/dev/stderr")

PACKAGE = Path(__file__).resolve().parent.parent


def package_path(in_wheel: str, in_clone: str) -> Path:
    """A folder that a wheel has inside the package and a clone has beside it.

    Args:
        in_wheel: path relative to the package.
        in_clone: path relative to the clone.
    """
    inside = PACKAGE / in_wheel
    return inside if inside.is_dir() else PACKAGE.parent / in_clone


def as_path(path: str | Path) -> Path:
    """A path that a person gave, in which `~` is the home folder.

    Raises:
        InputError: nothing can have this path: it is too long, or holds a letter that no path can.
    """
    try:
        expanded = Path(os.path.expanduser(path))
        with contextlib.suppress(FileNotFoundError, NotADirectoryError, PermissionError):
            expanded.stat()
    except (OSError, ValueError, TypeError) as error:
        if getattr(error, "errno", None) == errno.EINVAL:  # on Windows, of a handle `hf://…`
            return expanded
        reason = getattr(error, "strerror", None) or error
        shown = show(str(path) if isinstance(path, Path) else path)
        raise InputError(f"{shown} cannot be the path of a file or folder: {reason}") from None
    return expanded


def path_exists(path: Path) -> bool:
    """Whether a file or folder exists; False, not an error, for what cannot be a path."""
    try:
        return path.exists()
    except (OSError, ValueError):
        return False


def writable_folder(path: str | Path, setting: str = OUT) -> Path:
    """Make a folder if it does not exist, and check that it can be written.

    Args:
        path: path of the folder; `~` is the home folder.
        setting: option or argument by which the user chooses another folder, for the message.

    Raises:
        InputError: it cannot be made or written.
    """
    folder = as_path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as probe:
            probe.write(b"1")  # a full disk still makes empty files
    except OSError as error:
        raise unwritable(folder, error, setting) from None
    return folder


def writable_file(path: str | Path, suffix: str, setting: str) -> Path:
    """Check that a file, a link to one, or a device can be written.

    Args:
        path: path of the file; `~` is the home folder, and the file's is made.
        suffix: what the name must end in, except a device's.
        setting: option by which the user chooses another file, for the message.

    Raises:
        InputError: it is a folder, its name ends otherwise, or its folder cannot be written.
    """
    file = as_path(path)
    if file.is_dir():
        raise InputError(f"{setting} {show(str(path))} is a folder: give the name of a file")
    if _is_device(file):
        return file
    if file.suffix.lower() != suffix:
        raise InputError(f"{setting} is {show(str(path))}, but its name must end in {suffix}")
    writable_folder(_target(file).parent, setting)
    return file


def atomic_write(path: Path, save: Callable[[Path], Any]) -> Path:
    """Write a file elsewhere first, then rename it, so that it is complete or does not exist.

    A link is followed and a device written to; neither is replaced.

    Args:
        path: path of the file; its folder must exist.
        save: function that writes a file of the same name in another folder.

    Returns:
        The path.

    Raises:
        InputError: the disk or the folder does not allow it.
    """
    if _is_device(path):
        with tempfile.TemporaryDirectory() as folder:
            save(part := Path(folder) / path.name)
            with part.open("rb") as source, path.open("ab") as device:
                shutil.copyfileobj(source, device)
        return path
    try:
        replace_file(_target(path), save)
    except InputError:
        raise
    except Exception as error:
        if disk_error := find_disk_error(error):
            raise unwritable(path.parent, disk_error, file=path.name) from None
        raise
    return path


def _is_device(path: Path) -> bool:
    """Whether a path is neither a file nor a folder, but a device, a pipe or an output stream."""
    is_stream = str(path) in STREAMS  # may lead to a file
    return path.exists() and (is_stream or not (path.is_file() or path.is_dir()))


def _target(path: Path) -> Path:
    """What a link leads to, which need not exist; the path itself if it is none."""
    return Path(os.path.realpath(path)) if path.is_symlink() else path


def find_disk_error(error: BaseException | None) -> OSError | None:
    """The operating system's error behind one that a library raised; None if there is none."""
    while error is not None and not isinstance(error, OSError):
        error = error.__cause__ or error.__context__
    return error


def unwritable(folder: Path, error: OSError, setting: str = OUT, file: str = "") -> InputError:
    """The error for a folder that cannot be written, to be raised.

    Args:
        folder: path of the folder.
        error: what the operating system said.
        setting: option or argument by which the user chooses another folder.
        file: name of the file that was written, if it was a certain one.
    """
    reason = os.strerror(error.errno) if error.errno else type(error).__name__
    reason = f"{shorten(file, MAX_VALUE)}: {reason}" if file else reason
    return InputError(
        f"the folder {shorten(str(folder), 2 * MAX_VALUE)} cannot be written ({reason}): "
        f"choose another with {setting}"
    )


def read_bounded(path: Path, max_bytes: int) -> bytes:
    """The content of a regular file, which may be a stranger's.

    Raises:
        OSError: it does not exist, cannot be read, or is a pipe, a device or a folder.
        ValueError: it is larger than `max_bytes`.
    """
    # Opening a pipe would wait for a writer; Windows would translate the ends of lines.
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    with open(path, "rb", opener=lambda name, _: os.open(name, flags)) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError("it is not a regular file")
        content = file.read(max_bytes + 1)
    if len(content) > max_bytes:
        raise ValueError(f"it is larger than {max_bytes} bytes")
    return content


def file_digest(path: Path) -> bytes:
    """SHA-256 of a file's content, computed once as long as the file seems unchanged."""
    now = path.stat()
    return _file_digest(path, now.st_ino, now.st_size, now.st_mtime_ns)


@functools.cache
def _file_digest(path: Path, inode: int, size: int, modified: int) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()

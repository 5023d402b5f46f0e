"""Atomic replacement: whenever a process is killed, the old file or folder is there, or the new.

The new one is written in a work folder beside the old one, which, if a folder, is moved in there:

    .saving-…/lock        locked as long as the process lives
    .saving-…/new/NAME    what is written; after it was renamed to NAME, the rest is waste
    .saving-…/old/NAME    what NAME was

Of processes that replace the same one at once, the last wins.
"""

import contextlib
import errno
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

PREFIX = ".saving-"
LOCK, NEW, OLD = "lock", "new", "old"
WAIT = 10  # seconds, for another process between its two renames


def replace_file(file: Path, write: Callable[[Path], Any]) -> None:
    """Write a file elsewhere first, then put it in the place of the one there is.

    Args:
        file: path of the file, which need not exist; its folder must.
        write: function that writes the file of a path.

    Raises:
        OSError: the folder cannot be written.
    """
    _finish_leftovers(file)
    with _work_folder(file.parent) as work:
        new = work / NEW / file.name
        new.parent.mkdir(parents=True)
        write(new)
        new.replace(file)


def replace_folder(folder: Path, write: Callable[[Path], Any]) -> None:
    """Write a folder elsewhere first, then put it in the place of the one there is.

    Args:
        folder: path of the folder, which need not exist; its parent must.
        write: function that writes the content into an empty folder.

    Raises:
        OSError: the parent cannot be written.
    """
    finish_interrupted(folder)
    with _work_folder(folder.parent) as work:
        new, old = work / NEW / folder.name, work / OLD / folder.name
        new.mkdir(parents=True)
        old.parent.mkdir()
        write(new)
        _swap(new, folder, old)


@contextlib.contextmanager
def _work_folder(parent: Path) -> Iterator[Path]:
    """A work folder, locked where the file system can lock files."""
    work, lock = _locked_folder(parent)
    try:
        yield work
    finally:
        _clean(work, parent)
        _remove(work, lock)


def _locked_folder(parent: Path) -> tuple[Path, Any]:
    while True:
        work = Path(tempfile.mkdtemp(prefix=PREFIX, dir=parent))
        lock = _lock_of(work)
        try:
            lock.acquire(timeout=1)  # older versions try for ever what a file system cannot do
            is_ours = (work / LOCK).is_file()
        except (OSError, NotImplementedError):
            is_ours = work.is_dir()
        if is_ours:
            return work, lock
        # Another process took it for a killed one's, because it was not locked yet.
        lock.release()


def _lock_of(work: Path) -> Any:
    import filelock  # only here, so that what needs no file replaced imports without it

    return filelock.FileLock(work / LOCK)


def _swap(new: Path, folder: Path, old: Path) -> None:
    """Move the folder away, and the new one to its place, until no other process comes between."""
    while True:
        shutil.rmtree(old, ignore_errors=True)
        with contextlib.suppress(FileNotFoundError):
            folder.rename(old)
        try:
            new.rename(folder)
            return
        except OSError as error:
            if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
                raise


def finish_interrupted(folder: Path) -> None:
    """Finish what processes that were killed left beside a folder: put it back, remove the rest.

    What belongs to a process that lives, and what may not be written here, stays as it is.
    """
    _finish_leftovers(folder)
    with contextlib.suppress(OSError):  # versions before 0.5.0 moved a folder beside itself
        old = folder.with_name(f".{folder.name}.old")
        if old.is_dir() and not folder.exists():
            old.rename(folder)
        elif old.is_dir() and not old.is_symlink():
            shutil.rmtree(old, ignore_errors=True)


def _finish_leftovers(path: Path) -> None:
    with contextlib.suppress(OSError):
        for work in path.parent.glob(f"{PREFIX}*"):
            with contextlib.suppress(OSError):
                _finish(work, path)


def _finish(work: Path, path: Path) -> None:
    """Finish what one process left, unless it lives."""
    if work.is_symlink() or not (work / LOCK).is_file():
        work.rmdir()  # if it is empty; a process that lives makes another
        return
    is_moved = (work / OLD / path.name).exists() and not path.exists()
    lock = _lock_of(work)
    try:
        lock.acquire(timeout=WAIT if is_moved else 0)
    except (OSError, NotImplementedError):  # it lives, or the file system cannot say that it does
        if is_moved:
            (work / OLD / path.name).rename(path)
        return
    try:
        _clean(work, path.parent)
    finally:
        _remove(work, lock)


def _clean(work: Path, parent: Path) -> None:
    """Put back a folder that was moved away and not replaced; delete what is not needed any more.

    The work folder's lock must be held.
    """
    for old in (work / OLD).glob("*"):
        if (work / NEW / old.name).exists() and not (parent / old.name).exists():
            old.rename(parent / old.name)
    for name in (OLD, NEW):
        shutil.rmtree(work / name, ignore_errors=True)


def _remove(work: Path, lock: Any) -> None:
    """Remove a work folder that was cleaned, and release its lock.

    The lock's file goes first, so that a process that waits for it sees that the folder is gone;
    Windows deletes no file that is open, so it goes after the release there.
    """
    for release in (lambda: None, lock.release):
        release()
        with contextlib.suppress(OSError):
            (work / LOCK).unlink(missing_ok=True)
            work.rmdir()

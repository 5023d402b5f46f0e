"""Atomic replacement: whenever a process is killed, the old file or folder is there, or the new.

The new one is written in a work folder beside the old one, which, if a folder, is moved in there:

    .saving-PROCESS-…/new/NAME    what is written; after it was renamed to NAME, the rest is waste
    .saving-PROCESS-…/old/NAME    what NAME was

A work folder is that of a killed process if PROCESS, a name as of `processes`, does not live here
any more; of a process that nobody can look up here, if it is a day old. There are no locks. Of
processes that replace the same one at once, the last wins.
"""

import contextlib
import errno
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

PREFIX = ".saving-"
NEW, OLD = "new", "old"
WAIT = 10  # seconds, for another process between its two renames
LOST_SECONDS = 24 * 3600  # more than any file takes to write


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
        new.parent.mkdir()
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
    from embedder_helpers.utils.processes import own_name  # what replaces no file needs no psutil

    work = Path(tempfile.mkdtemp(prefix=f"{PREFIX}{own_name()}-", dir=parent))
    try:
        yield work
    finally:
        _clean(work, parent)


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


def remove_leftovers(folder: Path) -> None:
    """Finish what processes that were killed left in a folder, whatever they replaced there."""
    with contextlib.suppress(OSError):
        for work in folder.glob(f"{PREFIX}*"):
            with contextlib.suppress(OSError):
                if not work.is_symlink() and not _is_alive(work):
                    _clean(work, folder)


def _finish_leftovers(path: Path) -> None:
    with contextlib.suppress(OSError):
        for work in path.parent.glob(f"{PREFIX}*"):
            with contextlib.suppress(OSError):
                if not work.is_symlink():
                    _finish(work, path)


def _finish(work: Path, path: Path) -> None:
    """Finish what one process left, unless it lives."""
    if not _is_alive(work):
        _clean(work, path.parent)
        return
    old, end = work / OLD / path.name, time.monotonic() + WAIT
    while old.exists() and not path.exists():
        if time.monotonic() > end:  # it stands still, or was killed on another machine
            old.rename(path)
            return
        time.sleep(WAIT / 100)


def _is_alive(work: Path) -> bool:
    from embedder_helpers.utils.processes import is_alive

    is_known_alive = None
    with contextlib.suppress(ValueError):  # of a version before 0.7.0
        is_known_alive = is_alive(work.name.removeprefix(PREFIX).rpartition("-")[0])
    if is_known_alive is None:
        return work.stat().st_mtime > time.time() - LOST_SECONDS
    return is_known_alive


def _clean(work: Path, parent: Path) -> None:
    """Put back a folder that was moved away and not replaced, and delete the rest.

    Two processes may do so for a third one: of each step only one has an effect.
    """
    for old in (work / OLD).glob("*"):
        if (work / NEW / old.name).exists() and not (parent / old.name).exists():
            old.rename(parent / old.name)
    shutil.rmtree(work / NEW, ignore_errors=True)  # first: without it, nothing is put back
    shutil.rmtree(work, ignore_errors=True)

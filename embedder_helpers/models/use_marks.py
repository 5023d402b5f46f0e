"""Marks by which processes say which files of a shared folder they read, so that none deletes them.

A mark is a file in the folder, and names files of the folders in it. It counts as long as the
process that wrote it lives: on this machine that is looked up; one on another machine touches its
mark every minute. The processes of a sweep have marks that one of them can remove for all.
"""

import atexit
import contextlib
import functools
import json
import os
import threading
import time
import uuid
from collections.abc import Iterable
from pathlib import Path

from embedder_helpers.errors import InputError
from embedder_helpers.utils import processes
from embedder_helpers.utils.files import atomic_write
from embedder_helpers.utils.replacing import remove_leftovers

PREFIX = "in-use-"
TOUCH_SECONDS = 60
LOST_SECONDS = 15 * 60  # without a touch, after which another machine's process counts as dead

_sweep = "alone"  # that this process works for


def join_sweep(name: str) -> None:
    """Make the marks that this process will have those of a sweep, named without dashes."""
    global _sweep
    _sweep = name


def remove_marks(folder: Path, sweep: str) -> None:
    """Say that no process of a sweep reads any file of a folder; each may mark files again."""
    for path in folder.glob(f"{PREFIX}{sweep}-*.json"):
        path.unlink(missing_ok=True)


def own_mark(folder: Path) -> "UseMark":
    """This process's mark in a folder, by whatever path."""
    return _own_mark(folder.resolve())


def end_use(folder: Path) -> None:
    """Remove this process's mark in a folder, and all that dead processes left there."""
    own_mark(folder).remove()
    names_in_use(folder)
    for model_folder in folder.glob("*/"):
        remove_leftovers(model_folder)


@functools.cache
def _own_mark(folder: Path) -> "UseMark":
    return UseMark(folder)


def name_in_marks(path: Path) -> str:
    """The name of a file in marks."""
    return f"{path.parent.name}/{path.name}"


class UseMark:
    """A process's mark in a folder; it is written when it names files, and removed at the end.

    Args:
        folder: that has the folders of the files.
    """

    def __init__(self, folder: Path):
        self.path = folder / f"{PREFIX}{_sweep}-{uuid.uuid4().hex}.json"
        self._names, self._is_written, self._is_touched = frozenset(), False, False
        atexit.register(self.remove)

    def add(self, paths: Iterable[Path]) -> None:
        """Say that this process reads some more files."""
        if self._is_written and not self.path.exists():  # removed for all processes of the sweep
            self._names = frozenset()
        self._write(self._names.union(map(name_in_marks, paths)))

    def replace(self, paths: Iterable[Path]) -> None:
        """Say that it reads these files, and no others any more."""
        self._write(frozenset(map(name_in_marks, paths)))

    def remove(self) -> None:
        """Say that it reads none."""
        self.path.unlink(missing_ok=True)
        self._names = frozenset()

    def _write(self, names: frozenset[str]) -> None:
        if names == self._names and (self.path.exists() or not names):
            return
        if not self._is_touched:
            threading.Thread(target=_keep_touching, args=[self.path], daemon=True).start()
            self._is_touched = True
        self._names = names
        text = json.dumps({"process": processes.own_name(), "files": sorted(names)})
        with contextlib.suppress(InputError):  # the disk is full, and what is there can be read
            atomic_write(self.path, lambda part: part.write_text(text, encoding="utf-8"))
            self._is_written = True


def names_in_use(folder: Path) -> set[str]:
    """The files that other living processes read, each as `name_in_marks` has it.

    Marks of dead processes are removed.
    """
    names: set[str] = set()
    for path in folder.glob(f"{PREFIX}*.json"):
        if path.name == own_mark(folder).path.name:
            continue
        # A mark that was just removed, or is none.
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
            mark = json.loads(path.read_text(encoding="utf-8"))
            if _is_alive(mark["process"], path):
                names.update(mark["files"])
            else:
                path.unlink()
    return names


def _is_alive(process: str, path: Path) -> bool:
    is_alive = processes.is_alive(process)
    if is_alive is None:
        return path.stat().st_mtime > time.time() - LOST_SECONDS
    return is_alive


def _keep_touching(path: Path) -> None:
    """Touch a file every minute, for other machines."""
    while True:
        time.sleep(TOUCH_SECONDS)
        with contextlib.suppress(OSError):
            os.utime(path)

"""Marks by which processes say which files of a shared folder they read, so that none deletes them.

A mark is a file beside those it names. It counts as long as the process that wrote it lives: on
this machine that is looked up; one on another machine touches its mark every minute.
"""

import atexit
import contextlib
import functools
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterable
from pathlib import Path

import psutil

from embedder_helpers.errors import InputError
from embedder_helpers.utils.files import atomic_write

PREFIX = "in-use-"
PROCESSES = Path("/proc/self/ns/pid")  # on Linux, tells apart containers of one name
TOUCH_SECONDS = 60
LOST_SECONDS = 15 * 60  # without a touch, after which another machine's process counts as dead


@functools.cache
def own_mark(folder: Path) -> "UseMark":
    """This process's mark in a folder."""
    return UseMark(folder)


class UseMark:
    """A process's mark in a folder; it is written when it names files, and removed at the end.

    Args:
        folder: of the files.
    """

    def __init__(self, folder: Path):
        process = psutil.Process()
        owner = f"{socket.gethostname()}-{process.pid}-{uuid.uuid4().hex[:8]}"
        self.path = folder / f"{PREFIX}{owner}.json"
        self._started = process.create_time()
        self._folder, self._names, self._is_touched = folder, frozenset(), False
        atexit.register(self.remove)

    def add(self, paths: Iterable[Path]) -> None:
        """Say that this process reads some more files."""
        self._write(self._names | self._relative(paths))

    def replace(self, paths: Iterable[Path]) -> None:
        """Say that it reads these files, and no others any more."""
        self._write(self._relative(paths))

    def remove(self) -> None:
        """Say that it reads none."""
        self.path.unlink(missing_ok=True)
        self._names = frozenset()

    def _relative(self, paths: Iterable[Path]) -> frozenset[str]:
        return frozenset(path.relative_to(self._folder).as_posix() for path in paths)

    def _write(self, names: frozenset[str]) -> None:
        if names == self._names and (self.path.exists() or not names):
            return
        if not self._is_touched:
            threading.Thread(target=_keep_touching, args=[self.path], daemon=True).start()
            self._is_touched = True
        self._names = names
        content = {"machine": _machine(), "pid": os.getpid(), "started": self._started}
        text = json.dumps(content | {"files": sorted(names)})
        with contextlib.suppress(InputError):  # the disk is full, and what is there can be read
            atomic_write(self.path, lambda part: part.write_text(text, encoding="utf-8"))


def names_in_use(folder: Path) -> set[str]:
    """The files that other living processes read, relative to the folder, with slashes.

    Marks of dead processes are removed.
    """
    names: set[str] = set()
    for path in folder.glob(f"{PREFIX}*.json"):
        if path == own_mark(folder).path:
            continue
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):  # just removed
            mark = json.loads(path.read_text(encoding="utf-8"))
            if _is_alive(mark, path):
                names.update(mark["files"])
            else:
                path.unlink()
    return names


def _is_alive(mark: dict, path: Path) -> bool:
    if mark["machine"] != _machine():
        return path.stat().st_mtime > time.time() - LOST_SECONDS
    with contextlib.suppress(psutil.Error):
        return abs(psutil.Process(mark["pid"]).create_time() - mark["started"]) < 1
    return False


def _machine() -> str:
    """Among whose processes a number is unique."""
    processes = os.readlink(PROCESSES) if PROCESSES.is_symlink() else ""
    return f"{socket.gethostname()} {processes}"


def _keep_touching(path: Path) -> None:
    """Touch a file every minute, for other machines."""
    while True:
        time.sleep(TOUCH_SECONDS)
        with contextlib.suppress(OSError):
            os.utime(path)

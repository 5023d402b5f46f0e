"""What a process does to the files of its working directory, as numbered events."""

import itertools
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

CHANGES = ("os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.link", "os.truncate", "os.utime")
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT


def before_change(number: int, act: Callable[[], Any]) -> None:
    """Act once, before this process changes its files for the `number`-th time, from 1.

    If the function returns False, it is called again before the next change.
    """
    count, is_done = itertools.count(1), False

    def listen(path: object) -> None:
        nonlocal is_done
        if _is_inside(path) and next(count) >= number and not is_done:
            is_done = True  # what it does itself does not count
            is_done = act() is not False

    _listen(listen)


def count_changes(path: Path) -> None:
    """Write at the end of this file, from now on, a byte for each change."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    _listen(lambda changed: _is_inside(changed) and os.write(descriptor, b"."))


def die() -> None:
    """End this process as an accident does: at once, nothing is tidied up."""
    os.kill(os.getpid(), signal.SIGKILL)


def _listen(listen: Callable[[object], None]) -> None:
    def hook(event: str, arguments: tuple) -> None:
        if event in CHANGES or (event == "open" and (arguments[2] or 0) & WRITES):
            listen(arguments[0])

    sys.addaudithook(hook)


def _is_inside(path: object) -> bool:
    if isinstance(path, int):  # a descriptor
        return False
    path = os.fsdecode(path)
    return not path.startswith("/") or path.startswith(os.getcwd())

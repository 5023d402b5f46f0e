"""Names of processes, by which others see whether one that left something on a disk still lives.

Nothing is locked, because file systems that machines share often cannot lock across them.
"""

import contextlib
import hashlib
import os
import socket
from pathlib import Path

import psutil

NAMESPACE = Path("/proc/self/ns/pid")  # on Linux, tells apart containers of one host name
BOOT = Path("/proc/sys/kernel/random/boot_id")  # on Linux, another one after each start


def own_name() -> str:
    """This process's name, of letters, digits and dashes: machine, its start, number, own start."""
    process = psutil.Process()
    return f"{_machine()}-{_boot()}-{process.pid}-{round(100 * process.create_time())}"


def is_alive(name: str) -> bool | None:
    """Whether the process of a name lives; None: it is another machine's, where nobody can look.

    Raises:
        ValueError: it is no such name.
    """
    machine, boot, number, started = name.split("-")
    if machine != _machine():
        return None
    if boot != _boot():  # the machine was started again, and numbers too
        return False
    with contextlib.suppress(psutil.Error):
        return abs(psutil.Process(int(number)).create_time() - int(started) / 100) < 1
    return False


def _machine() -> str:
    """Among whose processes a number is unique."""
    namespace = os.readlink(NAMESPACE) if NAMESPACE.is_symlink() else ""
    return _digest(f"{socket.gethostname()} {namespace}")


def _boot() -> str:
    return _digest(BOOT.read_text()) if BOOT.exists() else "0"


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=4).hexdigest()

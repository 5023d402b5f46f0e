"""Small disks, for tests of full ones: in memory, seen by one process and its children alone."""

import ctypes
import os
import subprocess
import sys
from pathlib import Path

CLONE_NEWNS = 0x00020000


def can_mount() -> bool:
    """Whether this process may mount disks."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return False
    probe = "import small_disk; small_disk.mount('/mnt', 'size=64k')"
    path = {"PYTHONPATH": str(Path(__file__).parent)}
    return (
        subprocess.run([sys.executable, "-c", probe], env=path, capture_output=True).returncode == 0
    )


def mount(folder: str, options: str) -> None:
    """Mount a new disk on a folder; it is gone when this process and its children have ended."""
    if ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWNS):
        raise OSError(ctypes.get_errno(), "unshare")
    _run("mount", "--make-rprivate", "/")
    _run("mount", "-t", "tmpfs", "-o", options, "small", folder)


def remount(folder: str, options: str) -> None:
    """Change the options of a disk."""
    _run("mount", "-o", f"remount,{options}", folder)


def make_read_only(folder: str) -> bool:
    """Returns False if that is not possible now, since a file is open."""
    try:
        remount(folder, "ro")
    except subprocess.CalledProcessError:
        return False
    return True


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True)

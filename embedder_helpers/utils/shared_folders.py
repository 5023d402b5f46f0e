"""Which processes, perhaps on other machines, see the same folder: one leaves a file, others look.

A file is `.seen-by-PROCESS-TOKEN`, with a name as of `processes`. Processes that were killed leave
theirs; the next one to leave a file removes them.
"""

import contextlib
import time
from pathlib import Path

from embedder_helpers.utils.processes import is_alive, own_name

PREFIX = ".seen-by-"
LOST_SECONDS = 24 * 3600  # after which a file of a machine where nobody can look up is removed


def leave_file(folder: Path, token: str) -> None:
    """Leave a file, for others that have the folder to see.

    Args:
        folder: an existing folder.
        token: letters and digits.

    Raises:
        OSError: the folder cannot be written.
    """
    for file in folder.glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError, ValueError):
            lives = is_alive(file.name.removeprefix(PREFIX).rpartition("-")[0])
            if lives is False or time.time() > file.stat().st_mtime + LOST_SECONDS:
                file.unlink()
    (folder / f"{PREFIX}{own_name()}-{token}").touch()


def sees_file(folder: Path, token: str) -> bool:
    """Whether a process with this token has left a file there."""
    return any(folder.glob(f"{PREFIX}*-{token}"))


def remove_file(folder: Path, token: str) -> None:
    """Remove what a process with this token has left."""
    for file in folder.glob(f"{PREFIX}*-{token}"):
        file.unlink(missing_ok=True)

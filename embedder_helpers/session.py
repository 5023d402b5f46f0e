"""The session: when it ends, whether there is time for more, and what an earlier one left.

A Kaggle session ends after its hours, whatever runs, and an interactive one keeps nothing then. So
a sweep stops in time, and the next session finds its results among its inputs.
"""

import math
import shutil
import time
from collections.abc import Iterable
from pathlib import Path

import psutil

from embedder_helpers import platform
from embedder_helpers.config import InputError

HOURS = {"kaggle": 12.0}  # of a CPU or GPU session; elsewhere nothing is known
RESERVE = 600  # seconds for the table, the figures and saving the notebook
SLACK = 1.3  # how much longer than reckoned an experiment may take


def end(hours: float | None = None) -> float:
    """When to have finished, in seconds since 1970; infinite where no limit is known.

    Args:
        hours: from now on; None: what the platform leaves of its session.

    Raises:
        InputError: hours that are no number above zero.
    """
    if hours is not None:
        if isinstance(hours, bool) or not isinstance(hours, (int, float)) or not hours > 0:
            raise InputError(f"hours is {hours!r}, but must be a number above 0, or null")
        return time.time() + 3600 * hours
    limit = HOURS.get(platform.name(), math.inf)
    return _start() + 3600 * limit - RESERVE


def _start() -> float:
    """When the machine's first process began: a session is a container of its own."""
    return psutil.Process(1).create_time() if psutil.pid_exists(1) else time.time()


def has_time(until: float, seconds: float) -> bool:
    """Whether work that was reckoned to take so many seconds can be finished."""
    return time.time() + SLACK * seconds <= until


def bring(paths: Iterable[Path]) -> int:
    """Copies result files that an earlier session left among Kaggle's inputs.

    Args:
        paths: where results will be; the name of a file tells all that determines it.

    Returns:
        How many were found.
    """
    missing = {path.name: path for path in paths if not path.exists()}
    if platform.name() != "kaggle" or not missing:
        return 0
    count = 0
    for found in platform.KAGGLE_INPUTS.rglob("*.json"):
        if path := missing.pop(found.name, None):
            part = path.with_name(f"{path.name}.part")
            shutil.copyfile(found, part)
            part.replace(path)
            count += 1
    return count

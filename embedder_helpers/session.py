"""The session: when it ends, whether there is time for more, and what an earlier one left.

A Kaggle session ends after its hours, whatever runs, and an interactive one keeps nothing then. So
a sweep stops in time, and the next session finds its results among its inputs.
"""

import contextlib
import math
import shutil
import time
from collections.abc import Iterable
from pathlib import Path

import psutil

from embedder_helpers import platform
from embedder_helpers.config import InputError
from embedder_helpers.result import embedder_folder, read_result, write_result

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
            raise InputError(f"hours is {hours!r}, but must be a number above 0")
        return time.time() + 3600 * hours
    if platform.name() not in HOURS:
        return math.inf
    limit = 3600 * HOURS[platform.name()]
    return _start(limit) + limit - RESERVE


def _start(limit: float) -> float:
    """When the machine's first process began, for a session is a container of its own.

    Now, where that cannot be read, or is longer ago than a session can be.
    """
    with contextlib.suppress(psutil.Error):
        started = psutil.Process(1).create_time()
        if started > time.time() - limit:
            return started
    return time.time()


def has_time(until: float, seconds: float) -> bool:
    """Whether work that was reckoned to take so many seconds can be finished."""
    return time.time() + SLACK * seconds <= until


def bring(paths: Iterable[Path]) -> int:
    """Copies results, and embedders, that an earlier session left among Kaggle's inputs.

    Args:
        paths: of results that are missing; the name of a file tells all that determines it.

    Returns:
        How many were found.
    """
    missing = {path.name: path for path in paths}
    if platform.name() != "kaggle" or not missing:
        return 0
    count = len(missing)
    for found in platform.KAGGLE_INPUTS.rglob("*.json"):
        if found.name in missing and (result := read_result(found)):
            path = missing.pop(found.name)
            _bring_embedder(embedder_folder(found), embedder_folder(path))
            write_result(result, path)
            if not missing:
                break
    return count - len(missing)


def _bring_embedder(there: Path, here: Path) -> None:
    """Copies a saved embedder, if there is one and none is here."""
    if here.exists() or not (there / "embedder.json").is_file():
        return
    part = here.with_name(f".{here.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    shutil.copytree(there, part)
    part.replace(here)

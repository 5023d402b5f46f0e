"""The session: its deadline, whether more work fits it, and results of an earlier session.

A Kaggle session ends after a fixed number of hours, and an interactive one then loses its files. So
a sweep stops in time, and the next session restores its results from among its inputs.
"""

import contextlib
import math
import shutil
import time
from collections.abc import Iterable
from functools import partial
from pathlib import Path

import psutil

from embedder_helpers.errors import InputError, show
from embedder_helpers.models.saving import save_folder
from embedder_helpers.results.predictions import read_predictions, write_predictions
from embedder_helpers.results.result import embedder_folder, read_result, write_result
from embedder_helpers.utils import environment

SESSION_HOURS = {"kaggle": 12.0}  # of a CPU or GPU session; other platforms publish no limit
RESERVE = 600  # seconds for the table, the figures and saving the notebook
SLACK = 1.3  # factor by which an experiment may exceed its estimate


def deadline(hours: float | None = None) -> float:
    """The time to finish by, in seconds since 1970; infinite without a known limit.

    Args:
        hours: from now; None: those that the platform's session has left.

    Raises:
        InputError: hours that are not a number above zero.
    """
    if hours is not None:
        if isinstance(hours, bool) or not isinstance(hours, (int, float)) or not hours > 0:
            raise InputError(f"hours is {show(hours)}, but must be a number above 0")
        return time.time() + 3600 * hours
    if environment.platform_name() not in SESSION_HOURS:
        return math.inf
    limit = 3600 * SESSION_HOURS[environment.platform_name()]
    return _session_start(limit) + limit - RESERVE


def _session_start(limit: float) -> float:
    """The start of the machine's first process, since each session runs in a container of its own.

    Now, if it cannot be read or is longer ago than a session can last.
    """
    with contextlib.suppress(psutil.Error):
        started = psutil.Process(1).create_time()
        if started > time.time() - limit:
            return started
    return time.time()


def fits_deadline(until: float, seconds: float) -> bool:
    """Whether work of an estimated duration can be finished in time."""
    return time.time() + SLACK * seconds <= until


def restore_results(paths: Iterable[Path]) -> int:
    """Copy results, embedders and predictions of an earlier session from among Kaggle's inputs.

    Args:
        paths: of missing results; a result file's name identifies all that determines it.

    Returns:
        The number of results restored.
    """
    missing = {path.name: path for path in paths}
    if environment.platform_name() != "kaggle" or not missing:
        return 0
    count = len(missing)
    for source in environment.KAGGLE_INPUTS.rglob("*.json"):
        if source.name in missing and (result := read_result(source)):
            path = missing.pop(source.name)
            _restore_embedder(embedder_folder(source), embedder_folder(path))
            if predictions := read_predictions(source):
                write_predictions(predictions, path)
            write_result(result, path)
            if not missing:
                break
    return count - len(missing)


def _restore_embedder(source: Path, target: Path) -> None:
    """Copy a saved embedder, if there is one and the target does not exist."""
    if target.exists() or not (source / "embedder.json").is_file():
        return
    save_folder(target, partial(shutil.copytree, source, dirs_exist_ok=True))

"""Many experiments in one run: planned together, one pass through Gemma for all, every result kept.

A finished result is read, not computed again; a failing experiment is reported and the rest goes
on; a sweep that was killed continues where it stopped.
"""

import importlib.util
import logging
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from embedder_helpers.config import Experiment
from embedder_helpers.errors import InputError
from embedder_helpers.experiments import session
from embedder_helpers.experiments.plan import Outcome, Plan, Status, plan_all
from embedder_helpers.models import use_marks
from embedder_helpers.results import tables
from embedder_helpers.results.result import Result, read_result
from embedder_helpers.utils import environment
from embedder_helpers.utils.files import as_path, writable_folder

logger = logging.getLogger(__name__)

LOCAL = "local"  # a Ray of this machine's own
INSTALL_RAY = 'pip install "ray>=2.40"'


class SweepResults(NamedTuple):
    """The results of a sweep, and the reason for each experiment or table that was not finished."""

    results: list[Result]
    failed: dict[str, str]


def run_experiments(
    experiments: Sequence[Experiment],
    out: str | Path = "results",
    hours: float | None = None,
    cluster: str | None = None,
    cpus_per_worker: int | None = None,
) -> SweepResults:
    """Run experiments, skipping those whose result file exists.

    Gemma's hidden states are computed first, in one pass for all experiments that read them; then
    each embedder is trained and scored, and its result written. `results.csv` in the folder is a
    table of all results there. An experiment that could not be finished in time, at the pace so
    far, is not started.

    Args:
        experiments: to run; all are checked before the first one starts.
        out: folder for the result files.
        hours: time limit; None: as long as the platform's session lasts.
        cluster: address of a Ray cluster, or `local` for a Ray of this machine's own; None:
            RAY_ADDRESS, or `local` if there are several GPUs, or else this process alone.
        cpus_per_worker: CPUs of each process of a cluster without GPUs; None: a machine's.

    Raises:
        InputError: an invalid input; or no experiment could be finished.
    """
    folder = writable_folder(out)
    until = session.deadline(hours)
    plans = plan_all(experiments, folder)
    todo = _unfinished(plans)
    if restored := session.restore_results(plan.path for plan in todo):
        logger.info(
            "%d results of an earlier session restored from %s", restored, environment.KAGGLE_INPUTS
        )
        todo = _unfinished(todo)
    logger.info(
        "%d experiments, %d of them finished in %s", len(plans), len(plans) - len(todo), folder
    )
    for note in dict.fromkeys(
        f"{plan.task.name}: {note}" for plan in todo for note in plan.task.notes
    ):
        logger.info("  note: %s", note)
    outcomes: dict[str, Outcome] = {}
    if todo:
        outcomes = _run_all(experiments, plans, todo, folder, until, cluster, cpus_per_worker)
    else:  # what a process left that was killed after its last experiment
        states = {plan.experiment.states_dir or environment.states_folder() for plan in plans}
        for path in states:
            use_marks.end_use(as_path(path))
    results = _collect(plans, outcomes)
    try:
        tables.write_csv(folder)
    except InputError as error:  # the results are finished, and may have taken hours
        results.failed[tables.CSV_FILE] = str(error)
    return results


def _run_all(
    experiments: Sequence[Experiment],
    plans: Sequence[Plan],
    todo: Sequence[Plan],
    folder: Path,
    until: float,
    cluster: str | None,
    cpus_per_worker: int | None,
) -> dict[str, Outcome]:
    """Run what is to do, here or on a cluster; returns the outcomes by name."""
    address = cluster or os.environ.get("RAY_ADDRESS")
    if not address and len(todo) > 1 and environment.count_gpus() > 1:
        address = LOCAL
    if address and not importlib.util.find_spec("ray"):
        if address != LOCAL:
            raise InputError(f"to use the cluster {address}, install Ray: {INSTALL_RAY}")
        logger.warning("only one of several GPUs is used: for all of them, %s", INSTALL_RAY)
        address = None
    if not address:
        from embedder_helpers.experiments.executor import run_all  # imports Keras

        return run_all(plans, todo, until)
    from embedder_helpers.experiments.cluster import run_on_cluster

    address = None if address == LOCAL else address
    with environment.hidden_gpus():
        return run_on_cluster(experiments, plans, todo, folder, until, address, cpus_per_worker)


def _collect(plans: Sequence[Plan], outcomes: dict[str, Outcome]) -> SweepResults:
    """Read the results; raises InputError if there are none where some were expected."""
    results = [result for plan in plans if (result := read_result(plan.path))]
    unfinished = {plan.path.stem for plan in _unfinished(plans)}
    failed = {name: outcome for name, outcome in outcomes.items() if name in unfinished}
    if skipped := sum(outcome.status is Status.SKIPPED for outcome in failed.values()):
        logger.info(
            "stopped before the deadline, with %d experiments left: run this again to continue, "
            "finished results are kept. On Kaggle, save a version, then add its output to the next "
            "session (Add Input, Your Work).",
            skipped,
        )
    if failed and not results:
        raise InputError(next(iter(failed.values())).reason)
    return SweepResults(results, {name: outcome.reason for name, outcome in failed.items()})


def _unfinished(plans: Iterable[Plan]) -> list[Plan]:
    return [plan for plan in plans if not plan.is_finished()]

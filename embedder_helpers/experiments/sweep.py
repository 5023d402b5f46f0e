"""Many experiments in one run: planned together, one pass through Gemma for all, every result kept.

A finished result is read, not computed again; a failing experiment is reported and the rest goes
on; a sweep that was killed continues where it stopped.
"""

import contextlib
import gc
import logging
import traceback
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from embedder_helpers.config import Experiment, InputError
from embedder_helpers.data.tasks import Task
from embedder_helpers.experiments import session
from embedder_helpers.experiments.cluster import Worker, start_workers
from embedder_helpers.experiments.plan import Plan, Status, Subset, plan_experiment
from embedder_helpers.experiments.run import run_experiment
from embedder_helpers.results import tables
from embedder_helpers.results.result import Result, embedder_folder, read_result, write_result
from embedder_helpers.utils import environment, progress
from embedder_helpers.utils.files import writable_folder

if TYPE_CHECKING:  # these import Keras, which takes seconds
    from embedder_helpers.experiments.schedule import ExperimentBatch
    from embedder_helpers.models.hidden_states import HiddenStateCache

logger = logging.getLogger(__name__)

# What an experiment takes besides its forward passes, in operations that take as long on a CPU.
SCORING_WORK = 5e10
TRAINING_WORK = 1e12  # most of it is spent on building the training graph


class Outcome(NamedTuple):
    """How one experiment ended, and why if it was not finished."""

    status: Status
    reason: str = ""


SKIPPED = Outcome(Status.SKIPPED, "skipped for lack of time (HOURS, or --hours)")


class SweepResults(NamedTuple):
    """The results of a sweep, and the reason for each experiment that was not finished."""

    results: list[Result]
    failed: dict[str, str]


def run_experiments(
    experiments: Sequence[Experiment], out: str | Path = "results", hours: float | None = None
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

    Raises:
        InputError: an invalid input; or no experiment could be finished.
    """
    folder = writable_folder(out)
    until = session.deadline(hours)
    plans = _plan_all(experiments, folder)
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
        with start_workers(experiments, folder, until, len(todo)) as worker:
            outcomes = _run_all(plans, todo, until, worker)
    tables.write_csv(folder)
    return _collect(plans, outcomes)


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


def run_worker(
    experiments: Sequence[Experiment], folder: Path, until: float, worker: Worker
) -> None:
    """Do the part of a sweep that another process started this one for.

    Args:
        experiments: of the sweep.
        folder: for the results.
        until: deadline in seconds since 1970.
        worker: this process.
    """
    plans = _plan_all(experiments, folder)
    _run_all(plans, _unfinished(plans), until, worker)


def _plan_all(experiments: Sequence[Experiment], folder: Path) -> list[Plan]:
    """A plan for each distinct result; each task is loaded once."""
    tasks: dict[tuple, Task] = {}
    plans: dict[Path, Plan] = {}
    for experiment in experiments:
        key = tuple(experiment.task_settings().values())
        plan = plan_experiment(experiment, folder, tasks.get(key))
        tasks[key] = plan.task
        other = plans.get(plan.path)
        if other is None or _saves_more(experiment, other.experiment):
            plans[plan.path] = plan
    return list(plans.values())


def _saves_more(experiment: Experiment, other: Experiment) -> bool:
    order = (False, True, "with_gemma")
    return order.index(experiment.save_embedder) > order.index(other.save_embedder)


def _unfinished(plans: Iterable[Plan]) -> list[Plan]:
    return [plan for plan in plans if not plan.is_finished()]


def _run_all(
    plans: Sequence[Plan], todo: Sequence[Plan], until: float, worker: Worker
) -> dict[str, Outcome]:
    """Run what is to do, batch by batch; returns the outcomes of experiments not finished."""
    from embedder_helpers.experiments.schedule import schedule

    batches = schedule(plans, {plan.path for plan in todo})
    # Where processes wait for one another's last experiment, Gemma should not wait for RoBERTa's.
    batches.sort(key=lambda batch: worker.count > 1 and batch.gemma is None)
    for batch in batches:
        if batch.wanted and worker.number == 0:
            logger.info(batch.describe())
    forward_work = [_forward_work(batch) / worker.count for batch in batches]
    work = sum(_experiment_work(plan) for batch in batches for plan in batch.plans) / worker.count
    skipped: list[str] = []
    with progress.overall_progress(sum(forward_work) + work, "sweep") as bar:
        for batch, batch_work in zip(batches, forward_work, strict=True):
            if skipped and worker.count > 1:  # another process may still read this batch's states
                skipped += [plan.path.stem for plan in batch.plans]
            else:
                skipped += _run_batch(batch, batch_work, bar, until, worker)
    failures = {name: Outcome(Status.FAILED, why) for name, why in worker.failures.items()}
    return failures | dict.fromkeys(skipped, SKIPPED)


def _run_batch(
    batch: "ExperimentBatch", work: float, bar: Any, until: float, worker: Worker
) -> list[str]:
    """Compute hidden states, then run the batch's experiments; returns the names of the skipped."""
    skipped: list[str] = []
    computed = _in_time(bar, work * worker.count, until)  # all of it, should the others die
    if computed:
        _compute_hidden_states(batch, work, bar, worker)
    for plan in worker.claim(batch.plans):
        name, plan_work, before = plan.path.stem, _experiment_work(plan), bar.n
        bar.total = max(bar.total, bar.n + plan_work)  # others may have left more than an even part
        if not computed or not _in_time(bar, plan_work, until):
            skipped.append(name)
            continue
        logger.info(name)
        try:
            _run_one(plan, batch.cache)
            bar.update(max(0, before + plan_work - bar.n))
        except Exception as error:
            reason = _log_failure(error, plan)
            worker.record_failure(name, reason, everywhere=isinstance(error, InputError))
            bar.total -= max(0, before + plan_work - bar.n)
    return skipped


def _in_time(bar: Any, work: float, until: float) -> bool:
    """Whether work fits the deadline at the pace so far; the first work has no pace yet."""
    pace = bar.format_dict["elapsed"] / bar.n if bar.n else 0.0  # seconds per operation
    return session.fits_deadline(until, pace * work)


def _compute_hidden_states(batch: "ExperimentBatch", work: float, bar: Any, worker: Worker) -> None:
    """Compute what is missing; work that was not needed is taken off the bar's total.

    If this fails, the experiments that need the missing hidden states report why.
    """
    before = bar.n
    try:
        batch.compute_missing(worker.number, worker.count)
    except Exception as error:
        if worker.number > 0:
            raise  # this process is of no use; the first one does its work
        logger.warning("computing hidden states ended early: %s", _reason(error))
    bar.total -= max(0, before + work - bar.n)


def _run_one(plan: Plan, cache: "HiddenStateCache") -> None:
    """Run an experiment and write its result; earlier models are freed first."""
    # Not Keras's clear_session, which under TensorFlow 2.20 breaks the tokenizers of all embedders
    # in the process, and frees nothing more.
    gc.collect()
    embedder, result = run_experiment(plan, cache)
    write_result(result, plan.path)
    if mode := plan.experiment.save_embedder:
        folder = embedder.save(embedder_folder(plan.path), mode == "with_gemma", result.as_stored())
        logger.info("  embedder saved in %s", folder)
    _traceback_file(plan).unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # written again at the end, where an error is reported
        tables.write_csv(plan.path.parent)
    logger.info(
        "  %s: accuracy %.3f, macro F1 %.3f (%.0f s)",
        tables.embedder_name(result),
        result.scores["accuracy"],
        result.scores["f1"],
        result.seconds["total"],
    )


def _log_failure(error: Exception, plan: Plan) -> str:
    """Log why an experiment failed; the traceback of a bug is kept beside the results."""
    logger.error("  FAILED: %s", _reason(error))
    if not isinstance(error, InputError):
        with contextlib.suppress(OSError):  # the disk may be what failed
            _traceback_file(plan).write_text("".join(traceback.format_exception(error)))
    return _reason(error)


def _reason(error: Exception) -> str:
    return str(error) if isinstance(error, InputError) else f"{type(error).__name__}: {error}"


def _traceback_file(plan: Plan) -> Path:
    return plan.path.with_suffix(".traceback.txt")


def _forward_work(batch: "ExperimentBatch") -> float:
    """Approximate operations of a batch's missing hidden states, for the bar."""
    missing = batch.missing()
    if not missing:
        return 0.0
    deepest = max(spec.cutoff for spec in missing)
    tokens = batch.ids.lengths @ np.any(list(missing.values()), axis=0)
    return progress.forward_flops(tokens, deepest, batch.gemma.preset.width)


def _experiment_work(plan: Plan) -> float:
    """Approximate operations of an experiment, for the bar, at four letters a token."""
    preset, epochs = plan.presets.get("slm_preset"), plan.experiment.epochs
    if not preset:
        return SCORING_WORK
    # A training step costs three forward passes.
    passes = {Subset.TRAIN: 3 * epochs, Subset.VALIDATION: epochs}
    letters = {subset: sum(map(len, plan.texts(subset))) for subset in plan.rows}
    tokens = sum(passes.get(subset, 1) * count / 4 for subset, count in letters.items())
    start = TRAINING_WORK if epochs else SCORING_WORK
    return start + progress.forward_flops(tokens, preset.num_layers, preset.width)

"""Many experiments in one run: planned together, one pass through Gemma for all, every result kept.

A finished result is read, not computed again; a failing experiment is reported and the rest goes
on; a sweep that was killed continues where it stopped.
"""

import contextlib
import itertools
import logging
import traceback
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from embedder_helpers.config import Experiment
from embedder_helpers.data.tasks import Task
from embedder_helpers.errors import MAX_MESSAGE, InputError, redact, shorten
from embedder_helpers.experiments import session
from embedder_helpers.experiments.cluster import Worker, start_workers
from embedder_helpers.experiments.plan import Plan, Status, Subset, plan_experiment
from embedder_helpers.experiments.run import run_experiment
from embedder_helpers.results import tables
from embedder_helpers.results.formats import write_text
from embedder_helpers.results.result import Result, embedder_folder, read_result, write_result
from embedder_helpers.utils import environment, progress
from embedder_helpers.utils.files import writable_folder
from embedder_helpers.utils.keras_state import own_keras_state

if TYPE_CHECKING:  # these import Keras, which takes seconds
    from embedder_helpers.experiments.reuse import ReusableModels
    from embedder_helpers.experiments.schedule import ExperimentBatch
    from embedder_helpers.models.hidden_states import HiddenStateCache

logger = logging.getLogger(__name__)


class Outcome(NamedTuple):
    """How one experiment ended, and why if it was not finished."""

    status: Status
    reason: str = ""


SKIPPED = Outcome(Status.SKIPPED, "skipped for lack of time (HOURS, or --hours)")


class SweepResults(NamedTuple):
    """The results of a sweep, and the reason for each experiment or table that was not finished."""

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
    results = _collect(plans, outcomes)
    try:
        tables.write_csv(folder)
    except InputError as error:  # the results are finished, and may have taken hours
        results.failed[tables.CSV_FILE] = str(error)
    return results


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


@own_keras_state()
def _run_all(
    plans: Sequence[Plan], todo: Sequence[Plan], until: float, worker: Worker
) -> dict[str, Outcome]:
    """Run what is to do, batch by batch; returns the outcomes of experiments not finished."""
    from embedder_helpers.experiments.reuse import ReusableModels
    from embedder_helpers.experiments.schedule import schedule

    models = ReusableModels()
    batches = schedule(plans, {plan.path for plan in todo})
    # Where processes wait for one another's last experiment, Gemma should not wait for RoBERTa's.
    batches.sort(key=lambda batch: worker.count > 1 and batch.gemma is None)
    for batch in batches:
        if batch.wanted and worker.number == 0:
            logger.info(batch.describe())
    forward_work = [_forward_work(batch) / worker.count for batch in batches]
    work = _total_work(batches, worker.count) | {progress.FORWARD: sum(forward_work)}
    work[progress.BUILDING] += sum(operations > 0 for operations in forward_work)
    skipped: list[str] = []
    paces = _expected_paces(batches)
    with progress.overall_progress(work, paces, "sweep") as overall:
        for batch, batch_work in zip(batches, forward_work, strict=True):
            if skipped and worker.count > 1:  # another process may still read this batch's states
                skipped += [plan.path.stem for plan in batch.plans]
            else:
                skipped += _run_batch(batch, batch_work, overall, until, worker, models)
    failures = {name: Outcome(Status.FAILED, why) for name, why in worker.failures.items()}
    return failures | dict.fromkeys(skipped, SKIPPED)


def _run_batch(
    batch: "ExperimentBatch",
    forward_work: float,
    overall: progress.OverallProgress,
    until: float,
    worker: Worker,
    models: "ReusableModels",
) -> list[str]:
    """Compute hidden states, then run the batch's experiments; returns the names of the skipped."""
    from embedder_helpers.experiments.reuse import by_architecture

    skipped: list[str] = []
    if forward_work:
        models.release()  # Gemma's batches follow from the memory that is free
    else:
        models.release_unless_read(batch.plans)
    # All of it, should other processes die.
    computed = _in_time(overall, {progress.FORWARD: forward_work * worker.count}, until)
    if computed:
        loading = {progress.BUILDING: float(forward_work > 0)}  # takes about as long
        with overall.task({progress.FORWARD: forward_work} | loading, has_pace=False):
            _compute_hidden_states(batch, worker)
    for plan in worker.claim(by_architecture(batch.plans)):
        name, work = plan.path.stem, _experiment_work(plan)
        if _is_trained(plan) and not models.has_classifier(plan):
            work[progress.BUILDING] = 1
        if not computed or not _in_time(overall, work, until):
            skipped.append(name)
            continue
        logger.info(name)
        try:
            writable_folder(plan.path.parent)  # a disk may have become full since the last one
            with overall.task(work):
                _run_one(plan, batch.cache, models)
        except Exception as error:
            reason = _log_failure(error, plan)
            worker.record_failure(name, reason, everywhere=isinstance(error, InputError))
    return skipped


def _in_time(overall: progress.OverallProgress, work: Mapping[str, float], until: float) -> bool:
    """Whether work fits the deadline at the paces measured so far, or expected."""
    return session.fits_deadline(until, overall.seconds(work))


def _compute_hidden_states(batch: "ExperimentBatch", worker: Worker) -> None:
    """Compute what is missing; experiments that need what could not be computed report why."""
    try:
        batch.compute_missing(worker.number, worker.count)
    except Exception as error:
        if worker.number > 0:
            raise  # this process is of no use; the first one does its work
        logger.warning("computing hidden states ended early: %s", _reason(error))


def _run_one(plan: Plan, cache: "HiddenStateCache", models: "ReusableModels") -> None:
    """Run an experiment and write its result."""
    embedder, result = run_experiment(plan, cache, models)
    write_result(result, plan.path)
    if mode := plan.experiment.save_embedder:
        folder = embedder.save(embedder_folder(plan.path), mode == "with_gemma", result.as_stored())
        logger.info("  embedder saved in %s", folder)
    with contextlib.suppress(OSError, InputError):  # the result is finished whatever they do
        _traceback_file(plan).unlink(missing_ok=True)
        tables.write_csv(plan.path.parent)  # again at the end, where an error is reported
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
        text = redact("".join(traceback.format_exception(error)))
        with contextlib.suppress(InputError):  # the disk may be what failed
            write_text(_traceback_file(plan), text)
    return _reason(error)


def _reason(error: Exception) -> str:
    """What went wrong, on one line, bounded and without secrets."""
    text = str(error) if isinstance(error, InputError) else f"{type(error).__name__}: {error}"
    text = redact(text).encode(errors="backslashreplace").decode()  # half of a surrogate pair
    return shorten(" ".join(text.split()), MAX_MESSAGE)


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


def _experiment_work(plan: Plan) -> dict[str, float]:
    """Approximate work of an experiment by kind, at four letters a token."""
    work = {progress.SCORING: 1.0}
    preset, epochs = plan.presets.get("slm_preset"), plan.experiment.epochs
    if not preset:
        return work
    letters = {subset: sum(map(len, plan.texts(subset))) for subset in plan.rows}

    def operations(passes: dict[Subset, int]) -> float:
        tokens = sum(letters.get(subset, 0) / 4 * count for subset, count in passes.items())
        return progress.forward_flops(tokens, preset.num_layers, preset.width)

    # A training step costs three forward passes.
    trained = {Subset.TRAIN: 3 * epochs, Subset.VALIDATION: epochs}
    work[progress.TRAINING] = operations(trained)
    work[progress.EMBEDDING] = operations({Subset.PROTOCOL_TRAIN: 1, Subset.EVAL: 1})
    return work


def _total_work(batches: Sequence["ExperimentBatch"], num_workers: int) -> dict[str, float]:
    """Work of all experiments by kind; this process's even part of it if there are several.

    A classifier is built where the architecture, or the task's number of classes, changes.
    """
    from embedder_helpers.experiments.reuse import by_architecture, classifier_key

    total: Counter[str] = Counter()
    plans = [plan for batch in batches for plan in by_architecture(batch.plans)]
    for plan in plans:
        total.update(_experiment_work(plan))
    work = {kind: units / num_workers for kind, units in total.items()}
    keys = [classifier_key(plan) for plan in plans if _is_trained(plan)]
    return work | {progress.BUILDING: float(sum(1 for _ in itertools.groupby(keys)))}


def _is_trained(plan: Plan) -> bool:
    return "slm_preset" in plan.presets and plan.experiment.epochs > 0


def _expected_paces(batches: Sequence["ExperimentBatch"]) -> dict[str, float]:
    """Seconds per unit of each kind of work, for when none is measured yet."""
    from embedder_helpers.experiments.estimate import STEP_SECONDS, expected_paces

    gemma = next((batch.gemma for batch in batches if batch.gemma), None)
    paces = expected_paces(gemma.preset, gemma.dtype) if gemma else expected_paces()
    plans = [plan for batch in batches for plan in batch.plans]
    if trained := sum(_experiment_work(plan).get(progress.TRAINING, 0.0) for plan in plans):
        paces[progress.TRAINING] += STEP_SECONDS * sum(map(_count_steps, plans)) / trained
    return paces


def _count_steps(plan: Plan) -> int:
    experiment = plan.experiment
    texts = len(plan.rows[Subset.TRAIN]) if _is_trained(plan) else 0
    return experiment.epochs * -(-texts // experiment.batch_size)

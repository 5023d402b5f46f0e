"""What a process runs of a sweep: shards of hidden states, and experiments, with what they share.

A process alone goes through all of it in order (`run_all`); of several, each does what it is told.
"""

import contextlib
import itertools
import logging
import traceback
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from embedder_helpers.errors import InputError, reason_of, redact
from embedder_helpers.experiments import session
from embedder_helpers.experiments.plan import NO_TIME, Outcome, Plan, Status, Subset
from embedder_helpers.experiments.reuse import ReusableModels, by_architecture, classifier_key
from embedder_helpers.experiments.run import run_experiment
from embedder_helpers.experiments.schedule import ExperimentBatch, schedule
from embedder_helpers.models.hidden_states import HiddenStateCache
from embedder_helpers.models.use_marks import end_use
from embedder_helpers.results import tables
from embedder_helpers.results.formats import write_text
from embedder_helpers.results.result import embedder_folder, write_result
from embedder_helpers.utils import progress
from embedder_helpers.utils.files import writable_folder
from embedder_helpers.utils.keras_state import own_keras_state

logger = logging.getLogger(__name__)

FINISHED = Outcome(Status.FINISHED)


class Executor:
    """Runs parts of a sweep, in any order within a batch, and knows how long they take.

    Args:
        batches: from `schedule`.
        until: deadline in seconds since 1970.
        overall: progress of the run.

    Attributes:
        batches: of plans, in order; those of a batch read hidden states that fit the disk together.
    """

    def __init__(
        self,
        batches: Sequence[ExperimentBatch],
        until: float,
        overall: progress.OverallProgress,
    ):
        self.batches = batches
        self._until, self._overall = until, overall
        self._models = ReusableModels()

    def prepare(self, batch: ExperimentBatch) -> list[np.ndarray] | None:
        """Make room for a batch's hidden states; the shards that are missing, None for no time."""
        shards = batch.prepare()
        if not shards:
            self._models.release_unless_read(batch.plans)
            return []
        self._models.release()  # Gemma's batches follow from the memory that is free
        loading = {progress.BUILDING: 1.0}  # takes about as long
        work = {progress.FORWARD: sum(batch.forward_work(shard) for shard in shards)} | loading
        return shards if self._in_time(work) else None

    def compute_shard(self, batch: ExperimentBatch, shard: np.ndarray) -> None:
        """Compute the hidden states of a shard that are missing.

        Raises:
            InputError: hidden states that are not finite, or do not fit the memory or the disk.
        """
        with self._overall.task({progress.FORWARD: batch.forward_work(shard)}, has_pace=False):
            batch.compute_shard(shard)

    def run(self, batch: ExperimentBatch, plan: Plan) -> Outcome:
        """Run an experiment and write its result, unless it has one, or there is no time for it."""
        work = experiment_work(plan)
        if is_trained(plan) and not self._models.has_classifier(plan):
            work[progress.BUILDING] = 1
        if not self._in_time(work):
            return NO_TIME
        if batch.gemma:
            batch.gemma.unload()
        try:
            if plan.is_finished():  # by another run, or by a process that died after it
                return FINISHED
            logger.info(plan.path.stem)
            writable_folder(plan.path.parent)  # a disk may have become full since the last one
            with self._overall.task(work):
                _run_one(plan, batch.cache, self._models)
        except Exception as error:
            return Outcome(Status.FAILED, _log_failure(error, plan))
        return FINISHED

    def _in_time(self, work: Mapping[str, float]) -> bool:
        """Whether work fits the deadline at the paces measured so far, or expected."""
        return session.fits_deadline(self._until, self._overall.seconds(work))


@contextlib.contextmanager
def make_executor(
    plans: Sequence[Plan],
    todo: Collection[Path],
    until: float,
    capacity: float | None = None,
) -> Iterator[Executor]:
    """An executor, whose bar is shown inside the context.

    Args:
        plans: of the sweep.
        todo: paths of the results that are missing.
        until: deadline in seconds since 1970.
        capacity: bytes of hidden states that fit the disk; None: as many as do.
    """
    batches = schedule(plans, todo, capacity)
    work, paces = _total_work(batches), _expected_paces(batches)
    try:
        with progress.overall_progress(work, paces, "sweep") as overall:
            yield Executor(batches, until, overall)
    finally:
        for folder in {batch.cache.folder for batch in batches}:
            end_use(folder)


@own_keras_state()
def run_all(plans: Sequence[Plan], todo: Sequence[Plan], until: float) -> dict[str, Outcome]:
    """Run what is to do in this process, batch by batch; returns the outcomes by name.

    Args:
        plans: of the sweep.
        todo: those without a result.
        until: deadline in seconds since 1970.
    """
    outcomes: dict[str, Outcome] = {}
    with make_executor(plans, {plan.path for plan in todo}, until) as executor:
        for batch in executor.batches:
            is_computed = _compute_states(executor, batch)
            for plan in by_architecture(batch.plans):
                outcome = executor.run(batch, plan) if is_computed else NO_TIME
                outcomes[plan.path.stem] = outcome
    return outcomes


def _compute_states(executor: Executor, batch: ExperimentBatch) -> bool:
    """Compute a batch's hidden states, as far as possible; returns whether there is time to.

    Experiments that need what could not be computed report why.
    """
    if batch.wanted:
        logger.info(batch.describe())
    try:
        shards = executor.prepare(batch)
        for shard in shards or ():
            executor.compute_shard(batch, shard)
        return shards is not None
    except Exception as error:
        logger.warning("computing hidden states ended early: %s", reason_of(error))
        return True


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
    logger.error("  FAILED: %s", reason_of(error))
    if not isinstance(error, InputError):
        text = redact("".join(traceback.format_exception(error)))
        with contextlib.suppress(InputError):  # the disk may be what failed
            write_text(_traceback_file(plan), text)
    return reason_of(error)


def _traceback_file(plan: Plan) -> Path:
    return plan.path.with_suffix(".traceback.txt")


def experiment_work(plan: Plan) -> dict[str, float]:
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


def _total_work(batches: Sequence[ExperimentBatch]) -> dict[str, float]:
    """Work of all experiments by kind.

    A classifier is built where the architecture, or the task's number of classes, changes.
    """
    plans = [plan for batch in batches for plan in by_architecture(batch.plans)]
    total: Counter[str] = Counter()
    for plan in plans:
        total.update(experiment_work(plan))
    keys = [classifier_key(plan) for plan in plans if is_trained(plan)]
    forward = [batch.forward_work() for batch in batches]
    building = sum(1 for _ in itertools.groupby(keys)) + sum(work > 0 for work in forward)
    return dict(total) | {progress.FORWARD: sum(forward), progress.BUILDING: float(building)}


def is_trained(plan: Plan) -> bool:
    """Whether RoBERTa is trained."""
    return "slm_preset" in plan.presets and plan.experiment.epochs > 0


def _expected_paces(batches: Sequence[ExperimentBatch]) -> dict[str, float]:
    """Seconds per unit of each kind of work, for when none is measured yet."""
    from embedder_helpers.experiments.estimate import STEP_SECONDS, expected_paces

    gemma = next((batch.gemma for batch in batches if batch.gemma), None)
    paces = expected_paces(gemma.preset, gemma.dtype) if gemma else expected_paces()
    plans = [plan for batch in batches for plan in batch.plans]
    if trained := sum(experiment_work(plan).get(progress.TRAINING, 0.0) for plan in plans):
        paces[progress.TRAINING] += STEP_SECONDS * sum(map(_count_steps, plans)) / trained
    return paces


def _count_steps(plan: Plan) -> int:
    experiment = plan.experiment
    texts = len(plan.rows[Subset.TRAIN]) if is_trained(plan) else 0
    return experiment.epochs * -(-texts // experiment.batch_size)

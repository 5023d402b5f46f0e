"""The Plan: an experiment whose inputs were all found and checked before any long work."""

import functools
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum, StrEnum
from pathlib import Path
from typing import NamedTuple

import numpy as np

from embedder_helpers.config import Experiment, stored_experiment
from embedder_helpers.data.files import SPLIT_SEED
from embedder_helpers.data.labels import stratified_sample
from embedder_helpers.data.tasks import Split, Task, load_task
from embedder_helpers.errors import InputError, show_list
from embedder_helpers.experiments import protocol, tracking
from embedder_helpers.models import saving
from embedder_helpers.models.presets import Preset, find_presets
from embedder_helpers.results.result import Result, embedder_folder, read_result, result_name
from embedder_helpers.utils.replacing import finish_interrupted

logger = logging.getLogger(__name__)


class Subset(StrEnum):
    """The subsets of a task's texts that an experiment reads; values are those of result files."""

    PROTOCOL_TRAIN = "drawn"  # train texts that the protocol's ten runs sample
    EVAL = "scored"  # texts of the scored split
    TRAIN = "fit"  # texts that the embedder, its projection or a probe is fitted to
    VALIDATION = "watched"  # texts that training is validated on


class Status(Enum):
    """How an experiment of a sweep ended."""

    FINISHED = "finished"
    SKIPPED = "skipped"  # for lack of time
    FAILED = "failed"


class Outcome(NamedTuple):
    """How one experiment ended, and why if it was not finished."""

    status: Status
    reason: str = ""


NO_TIME = Outcome(Status.SKIPPED, "skipped for lack of time (HOURS, or --hours)")


@dataclass(frozen=True)
class Plan:
    """An experiment whose inputs were all found and checked, and where its result goes.

    Attributes:
        experiment: what to run.
        task: its data.
        presets: by their setting.
        inputs: fingerprints of data and presets.
        rows: of each subset, in the split it belongs to; `TRAIN` and `VALIDATION` only where
            something is fitted or selected.
        path: of the result file; None if no result is wanted.
    """

    experiment: Experiment
    task: Task
    presets: dict[str, Preset]
    inputs: dict[str, str]
    rows: dict[Subset, np.ndarray]
    path: Path | None

    def is_finished(self) -> bool:
        """Whether the result exists, and the embedder too if it is to be saved, undamaged.

        The embedder's files are read, a second per gigabyte, once in a process.

        Raises:
            InputError: the embedder cannot be saved, since something else has its name.
        """
        folder, is_wanted = embedder_folder(self.path), bool(self.experiment.save_embedder)
        if is_wanted:
            finish_interrupted(folder)
        result = read_result(self.path)
        is_finished = result is not None and self._is_own(result)
        is_finished = is_finished and (not is_wanted or self._is_saved(folder, result))
        if is_wanted and not is_finished:
            saving.check_replaceable(folder)
        return is_finished

    def _is_own(self, result: Result) -> bool:
        """Whether a result is this experiment's, and not that of a file that was renamed."""
        experiment = stored_experiment(result.experiment)
        name = result_name(experiment, self.task, result.num_layers, result.inputs)
        if name != self.path.name:
            _warn_of_damage(f"{self.path} holds the result of another experiment")
        return name == self.path.name

    def _is_saved(self, folder: Path, result: Result) -> bool:
        """Whether a folder holds the embedder of the result, with its Gemma if that is wanted."""
        if not folder.exists():
            return False
        try:
            manifest = saving.read_manifest(folder)
        except InputError as error:
            _warn_of_damage(str(error))
            return False
        saved, stored = manifest.result or {}, result.as_stored()
        if any(saved.get(key) != stored[key] for key in ("inputs", "cutoffs", "experiments")):
            _warn_of_damage(f"{folder} holds the embedder of another result")
            return False
        needs_gemma = self.experiment.save_embedder == "with_gemma" and "llm_preset" in self.presets
        return manifest.contains_gemma or not needs_gemma

    def split(self, subset: Subset) -> Split:
        """The split that a subset's rows belong to."""
        train, validation = self.task.train, self.task.validation
        if self.experiment.train_split == "validation":
            train, validation = validation, train
        return {
            Subset.TRAIN: train,
            Subset.VALIDATION: validation,
            Subset.PROTOCOL_TRAIN: self.task.train,
            Subset.EVAL: protocol.eval_split(self.task, self.experiment.scored_split),
        }[subset]

    def labels(self, subset: Subset) -> np.ndarray:
        """Labels `(rows,)` of a subset."""
        return self.split(subset).labels[self.rows[subset]]

    def eval_duplicates(self) -> np.ndarray:
        """`(rows,)` whether the train split, without its held-out rows, has an EVAL text too."""
        task, rows = self.task, self.rows[Subset.EVAL]
        if self.experiment.scored_split == "test":
            return task.test_duplicates[rows]
        return task.validation_duplicates[rows]

    def texts(self, *subsets: Subset) -> list[str]:
        """The texts of some subsets, concatenated; default: of all."""
        return [
            text
            for subset in subsets or self.rows
            for text in self.split(subset).texts(self.rows[subset])
        ]


@functools.cache  # once in a process
def _warn_of_damage(reason: str) -> None:
    logger.warning("an experiment is run again, since %s", reason)


def plan_all(experiments: Sequence[Experiment], folder: Path) -> list[Plan]:
    """A plan for each distinct result; each task is loaded once.

    Args:
        experiments: to plan.
        folder: for the results.

    Raises:
        InputError: a preset, data or a tracker that cannot be used.
    """
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


def plan_experiment(experiment: Experiment, folder: Path | None, task: Task | None = None) -> Plan:
    """Find and check everything an experiment reads.

    Args:
        experiment: to plan.
        folder: for the result file; None if no result is wanted.
        task: of the experiment, if it was loaded already.

    Raises:
        InputError: a preset, data or a tracker that cannot be used.
    """
    tracking.check_tracker(experiment)
    presets = find_presets(experiment)
    task = task or load_task(experiment)
    inputs = {"task": task.fingerprint}
    inputs |= {role: preset.fingerprint for role, preset in presets.items()}
    num_layers = presets["llm_preset"].num_layers if "llm_preset" in presets else None
    path = folder and folder / result_name(experiment, task, num_layers, inputs)
    return Plan(experiment, task, presets, inputs, select_rows(experiment, task), path)


def select_rows(experiment: Experiment, task: Task) -> dict[Subset, np.ndarray]:
    """The rows of each subset; only texts in one of them are ever encoded.

    Raises:
        InputError: no validation text would be left to score or to validate training on, or a label
            would not be trained on.
    """
    sampled, evaluated = protocol.protocol_rows(task, experiment.scored_split)
    rows = {Subset.PROTOCOL_TRAIN: sampled, Subset.EVAL: evaluated}
    if not experiment.needs_training_data():
        return rows
    # A label that train lacks (some of MTEB's own splits have one) cannot be learned or validated.
    train = task.training_rows
    validation = np.flatnonzero(np.isin(task.validation.labels, task.classes))
    train_labels, validation_labels = task.train.labels, task.validation.labels
    if not len(validation):
        raise InputError(
            f"{task.name} has no text to validate training on: give a validation file, or a second "
            "training text for a label"
        )
    if experiment.train_split == "validation":
        train, validation = validation, train
        train_labels, validation_labels = validation_labels, train_labels
        # As many texts of the train split are validated on as there are to learn from.
        validation = _subsample(validation, validation_labels, len(train))
    train_classes = np.unique(train_labels[train])
    unseen = np.setdiff1d(task.classes, train_classes).tolist()
    if unseen and task.source != "mteb":  # whose splits are what they are; a note names the labels
        labels = f"label(s) {show_list(unseen)}"
        fault = f"that of {task.name} has no text of {labels}: add one of each"
        if len(task.training_rows) < len(task.train):
            fault = (
                f"for lack of a validation file a tenth of train is held out as that of {task.name}"
                f", too few for {labels}: give such a file"
            )
        raise InputError(f"train_split is 'validation', but {fault}, or train on the train split")
    most = experiment.max_train_texts
    if most is not None:
        if most < len(train_classes):
            raise InputError(
                f"max_train_texts is {most}, but must be at least {len(train_classes)}, so that "
                f"each label of {task.name} is trained on"
            )
        train = _subsample(train, train_labels, most, take_one=True)
        validation = _subsample(validation, validation_labels, most)
    return rows | {Subset.TRAIN: train, Subset.VALIDATION: validation}


def _subsample(
    rows: np.ndarray, labels: np.ndarray, count: int, *, take_one: bool = False
) -> np.ndarray:
    """At most `count` of the rows, stratified by label; the same ones for every seed."""
    return rows[stratified_sample(labels[rows], count, SPLIT_SEED, take_one=take_one)]

"""The Plan: an experiment whose inputs were all found and checked before any long work."""

from dataclasses import dataclass
from enum import Enum, StrEnum
from pathlib import Path

import numpy as np

from embedder_helpers.config import Experiment
from embedder_helpers.data.files import SPLIT_SEED, stratified_sample
from embedder_helpers.data.tasks import Split, Task, load_task
from embedder_helpers.experiments import protocol, tracking
from embedder_helpers.models.presets import Preset, find_presets
from embedder_helpers.results.result import embedder_folder, read_result, result_name


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
        """Whether the result exists, and the embedder too if it is to be saved."""
        wanted, kind = self.experiment.save_embedder, self.experiment.kind
        folder, names = embedder_folder(self.path), ["embedder.json"] if wanted else []
        names += ["gemma"] if wanted == "with_gemma" and kind != "roberta_only" else []
        is_saved = all((folder / name).exists() for name in names)
        return is_saved and read_result(self.path) is not None

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
        InputError: no validation text would be left to score.
    """
    sampled, evaluated = protocol.protocol_rows(task, experiment.scored_split)
    rows = {Subset.PROTOCOL_TRAIN: sampled, Subset.EVAL: evaluated}
    if not experiment.needs_training_data():
        return rows
    # A label that train lacks (some of MTEB's own splits have one) cannot be learned or validated.
    train = task.training_rows
    validation = np.flatnonzero(np.isin(task.validation.labels, task.classes))
    train_labels, validation_labels = task.train.labels, task.validation.labels
    if experiment.train_split == "validation":
        train, validation = validation, train
        train_labels, validation_labels = validation_labels, train_labels
        # As many texts of the train split are validated on as there are to learn from.
        validation = _subsample(validation, validation_labels, len(train))
    if experiment.max_train_texts is not None:
        train = _subsample(train, train_labels, experiment.max_train_texts)
        validation = _subsample(validation, validation_labels, experiment.max_train_texts)
    return rows | {Subset.TRAIN: train, Subset.VALIDATION: validation}


def _subsample(rows: np.ndarray, labels: np.ndarray, count: int) -> np.ndarray:
    """At most `count` of the rows, stratified by label; the same ones for every seed."""
    return rows[stratified_sample(labels[rows], count, SPLIT_SEED)]

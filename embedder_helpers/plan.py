"""The Plan: an experiment whose every input was found and checked, before anything long starts."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from embedder_helpers import protocol, tracking
from embedder_helpers.config import Experiment, InputError
from embedder_helpers.local import SPLIT_SEED, stratified_rows
from embedder_helpers.presets import Preset, find_presets
from embedder_helpers.result import embedder_folder, read_result, result_name
from embedder_helpers.tasks import Split, Task, task_of


@dataclass(frozen=True)
class Plan:
    """An experiment whose every input was found and checked, and where its result goes.

    Attributes:
        experiment: what to run.
        task: its data.
        presets: by key of the Experiment.
        inputs: fingerprints of data and presets.
        rows: of each part: `drawn` and `scored` for the protocol, and `fit` and `watched` where
            something is trained or chosen.
        path: of the result file; None where no result is wanted.
    """

    experiment: Experiment
    task: Task
    presets: dict[str, Preset]
    inputs: dict[str, str]
    rows: dict[str, np.ndarray]
    path: Path | None

    def finished(self) -> bool:
        """Whether the result is there, and the embedder too if it is to be saved."""
        wanted, kind = self.experiment.save_embedder, self.experiment.kind
        folder, names = embedder_folder(self.path), ["embedder.json"] if wanted else []
        names += ["gemma"] if wanted == "with_gemma" and kind != "roberta_only" else []
        saved = all((folder / name).exists() for name in names)
        return saved and read_result(self.path) is not None

    def split(self, part: str) -> Split:
        """The split that a part's rows belong to."""
        train, validation = self.task.train, self.task.validation
        if self.experiment.train_split == "validation":
            train, validation = validation, train
        scored = scored_split(self.experiment, self.task)
        splits = {"fit": train, "watched": validation, "drawn": self.task.train, "scored": scored}
        return splits[part]

    def labels(self, part: str) -> np.ndarray:
        """The labels of a part's rows."""
        return self.split(part).labels[self.rows[part]]

    def repeated(self) -> np.ndarray:
        """`(scored,)` whether train has a scored text too, beside the texts held out of it."""
        task, rows = self.task, self.rows["scored"]
        if self.experiment.scored_split == "test":
            return task.repeated_test[rows]
        return task.repeated_validation[rows]

    def texts(self, *parts: str) -> list[str]:
        """The texts of some parts, end to end; default: of all."""
        return [
            text for part in parts or self.rows for text in self.split(part).texts(self.rows[part])
        ]


def plan(experiment: Experiment, folder: Path | None, task: Task | None = None) -> Plan:
    """Finds and checks all that an experiment reads.

    Args:
        experiment: what to plan.
        folder: for the result file; None where no result is wanted.
        task: the experiment's, if it was loaded already.

    Raises:
        InputError: a preset, data or a tracker that cannot be used.
    """
    tracking.check(experiment)
    presets = find_presets(experiment)
    task = task or task_of(experiment)
    inputs = {"task": task.fingerprint} | {
        role: preset.fingerprint for role, preset in presets.items()
    }
    path = folder and folder / result_name(experiment, task, presets, inputs)
    return Plan(experiment, task, presets, inputs, rows_of(experiment, task), path)


def with_baselines(experiment: Experiment) -> list[Experiment]:
    """A hybrid, then RoBERTa alone and Gemma alone likewise; another kind stays alone."""
    if experiment.kind != "hybrid":
        return [experiment]
    layer_pooling = "mean" if experiment.layer_pooling == "learned" else experiment.layer_pooling
    return [
        experiment,
        dataclasses.replace(experiment, kind="roberta_only"),
        dataclasses.replace(experiment, kind="gemma_only", layer_pooling=layer_pooling),
    ]


def scored_split(experiment: Experiment, task: Task) -> Split:
    """The split that scores are of."""
    return task.test if experiment.scored_split == "test" else task.validation


def rows_of(experiment: Experiment, task: Task) -> dict[str, np.ndarray]:
    """The rows of each split that this experiment reads; a text not needed is not encoded.

    Raises:
        InputError: no validation text would be left to score.
    """
    draws = protocol.draw_rows(task.train.labels.tolist(), task.samples_per_label)
    drawn = np.unique(np.concatenate(draws))
    rows = {"drawn": drawn, "scored": np.arange(len(scored_split(experiment, task)))}
    if experiment.scored_split == "validation":
        # Where validation was held out of train, the protocol must not score what it drew.
        rows["scored"] = np.flatnonzero(~np.isin(task.held_out(), drawn))
        if not len(rows["scored"]):
            raise InputError(
                f"scored_split is 'validation', but {task.name} has none and the protocol draws "
                "every text held out of train: lower samples_per_label, or give a validation file"
            )
    if not experiment.reads_training_texts():
        return rows
    # A label that train lacks (some of MTEB's own splits have one) cannot be learned or watched.
    fit, watched = task.training_rows, np.flatnonzero(np.isin(task.validation.labels, task.classes))
    fit_labels, watched_labels = task.train.labels, task.validation.labels
    if experiment.train_split == "validation":
        fit, watched, fit_labels, watched_labels = watched, fit, watched_labels, fit_labels
        # As many texts of train are watched as there are to learn from.
        watched = _some(watched, watched_labels, len(fit))
    if experiment.max_train_texts is not None:
        fit = _some(fit, fit_labels, experiment.max_train_texts)
        watched = _some(watched, watched_labels, experiment.max_train_texts)
    return rows | {"fit": fit, "watched": watched}


def _some(rows: np.ndarray, labels: np.ndarray, count: int) -> np.ndarray:
    """At most `count` of the rows, drawn by label; the same ones for every seed."""
    return rows[stratified_rows(labels[rows], count, SPLIT_SEED)]

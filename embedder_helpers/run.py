"""One experiment, from text to a result and its file."""

import dataclasses
import hashlib
import json
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from embedder_helpers import __version__, platform, protocol
from embedder_helpers.config import Experiment, cutoffs
from embedder_helpers.local import SPLIT_SEED, stratified_rows
from embedder_helpers.presets import Preset, find_presets
from embedder_helpers.tasks import Split, Task, task_of
from embedder_helpers.tokens import Ragged

if TYPE_CHECKING:  # both bring in Keras, seconds that a mistake should not wait for
    from embedder_helpers.embedder import Embedder
    from embedder_helpers.states import Store

# Keys that say where an input is; its fingerprint says what it is.
PLACES = ("task", "task_data", "text_column", "label_column", "llm_preset", "slm_preset")


@dataclass(frozen=True)
class Result:
    """What one experiment gave; its file holds these fields as JSON.

    Attributes:
        experiment: every key of the Experiment.
        task: the task's name, its splits' sizes and notes on its data.
        cutoffs: counted from the bottom; empty for RoBERTa alone.
        blocks: of the whole Gemma; None for RoBERTa alone.
        scores: the protocol's means, by MTEB's names.
        experiments: the protocol's single experiments.
        head: metrics of the classification head on the test split; None where none was trained.
        floor: metrics of always answering the commonest label.
        history: loss and accuracy of each training epoch.
        truncated: different texts that were cut at `max_tokens`.
        seconds: wall-clock time by part (load, tokenise, states, train, embed, score) and in all.
        versions: of Python and the packages.
        device: what it was computed on, and the precision of training.
        inputs: fingerprints of data and presets.
        projection: of a closed-form start: `explained`, the share of the variance of RoBERTa's
            embeddings on held-out tokens, and the `penalty` chosen; else None.
    """

    experiment: dict[str, Any]
    task: dict[str, Any]
    cutoffs: list[int]
    blocks: int | None
    scores: dict[str, float | None]
    experiments: list[dict[str, float | None]]
    head: dict[str, float | None] | None
    floor: dict[str, float | None]
    history: list[dict[str, float]]
    truncated: int
    seconds: dict[str, float]
    versions: dict[str, str]
    device: list[str]
    inputs: dict[str, str]
    projection: dict[str, float] | None = None


@dataclass(frozen=True)
class Plan:
    """An experiment whose every input was found and checked, and where its result goes.

    Attributes:
        experiment: what to run.
        task: its data.
        presets: by key of the Experiment.
        inputs: fingerprints of data and presets.
        rows: of each part: `drawn` and `test` for the protocol, and `fit` and `watched` where
            something is trained.
        path: of the result file.
    """

    experiment: Experiment
    task: Task
    presets: dict[str, Preset]
    inputs: dict[str, str]
    rows: dict[str, np.ndarray]
    path: Path

    def split(self, part: str) -> Split:
        """The split that a part's rows belong to."""
        train, validation = self.task.train, self.task.validation
        if self.experiment.train_split == "validation":
            train, validation = validation, train
        splits = {"fit": train, "watched": validation, "drawn": self.task.train}
        return splits.get(part, self.task.test)

    def texts(self, *parts: str) -> list[str]:
        """The texts of some parts, end to end; default: of all."""
        return [
            text for part in parts or self.rows for text in self.split(part).texts(self.rows[part])
        ]


def plan(experiment: Experiment, folder: Path, task: Task | None = None) -> Plan:
    """Finds and checks all that an experiment reads.

    Args:
        experiment: what to plan.
        folder: for the result file.
        task: the experiment's, if it was loaded already.

    Raises:
        InputError: a preset or data that cannot be used.
    """
    presets = find_presets(experiment)
    task = task or task_of(experiment)
    inputs = {"task": task.fingerprint} | {
        role: preset.fingerprint for role, preset in presets.items()
    }
    path = folder / result_name(experiment, task, presets, inputs)
    return Plan(experiment, task, presets, inputs, _rows(experiment, task), path)


def run(plan: Plan, store: "Store") -> Result:
    """Text → token ids → states → trained → embeddings → scores.

    Args:
        plan: of the experiment.
        store: where Gemma's states are, or go to.

    Raises:
        InputError: states that do not fit or are not finite; a training that diverged.
    """
    from embedder_helpers.embedder import build_embedder

    task = plan.task
    clock = _Clock()
    embedder = build_embedder(plan.experiment, plan.presets)
    clock.stop("load")

    cut: dict[str, bool] = {}
    learned = _learn(plan, embedder, store, cut, clock) if "fit" in plan.rows else _Learned()
    texts = plan.texts("drawn", "test")
    drawn, test = np.split(_embed(embedder, texts, store, cut), [len(plan.rows["drawn"])])
    clock.stop("embed")
    scores = protocol.score(
        drawn,
        task.train.labels,
        test,
        task.test.labels,
        samples_per_label=task.samples_per_label,
        rows=plan.rows["drawn"],
    )
    clock.stop("score")

    return Result(
        **_given(plan),
        scores=scores.mean,
        experiments=list(scores.experiments),
        head=_head_metrics(learned.head, test, task) if learned.head else None,
        floor=protocol.floor(task.train.labels, task.test.labels),
        history=learned.history,
        truncated=sum(cut.values()),
        seconds=clock.total(),
        versions=platform.versions(),
        device=[*platform.devices(), f"trained in {platform.training_dtype()}"],
        projection=learned.projection,
    )


def _given(plan: Plan) -> dict[str, Any]:
    """The fields of a Result that tell what went in."""
    experiment, task, preset = plan.experiment, plan.task, plan.presets.get("llm_preset")
    return {
        "experiment": experiment.as_dict(),
        "task": {
            "name": task.name,
            "samples_per_label": task.samples_per_label,
            "labels": len(task.classes),
            "texts": {name: len(part) for name, part in plan.rows.items()},
            "notes": list(task.notes),
        },
        "cutoffs": list(cutoffs(experiment.llm_layers, preset.blocks)) if preset else [],
        "blocks": preset.blocks if preset else None,
        "inputs": plan.inputs,
    }


class _Learned(NamedTuple):
    """What training left beside the embedder's weights."""

    head: Any = None
    history: list[dict[str, float]] = []
    projection: dict[str, float] | None = None


def _learn(
    plan: Plan, embedder: "Embedder", store: "Store", cut: dict[str, bool], clock: "_Clock"
) -> _Learned:
    """Starts the projection and trains the embedder's model, in place, as far as is asked."""
    texts = plan.texts("fit") + (plan.texts("watched") if "watched" in plan.rows else [])
    ids = _tokenise(embedder, texts, cut)
    clock.stop("tokenise")
    inputs = store.states(embedder.gemma, ids, embedder.depths) if embedder.gemma else ids
    clock.stop("states")
    rows, projection = range(len(plan.rows["fit"])), None
    if embedder.gemma and plan.experiment.projection_start == "ridge":
        found = embedder.start_projection(texts[: len(rows)], ids.select(rows), inputs.select(rows))
        projection = {"explained": found.explained, "penalty": found.penalty}
        platform.say(f"  projection: explains {found.explained:.0%} of RoBERTa's embeddings")
        clock.stop("projection")
    if not plan.experiment.epochs:
        return _Learned(projection=projection)
    head, history = _train(plan, embedder, inputs)
    clock.stop("train")
    return _Learned(head, history, projection)


def _train(plan: Plan, embedder: "Embedder", inputs: Any) -> tuple[Any, list[dict[str, float]]]:
    """Trains the embedder's model in place; gives the head and the history."""
    from embedder_helpers import training

    count = len(plan.rows["fit"])
    parts = {"fit": range(count), "watched": range(count, len(inputs))}
    fit, watched = (
        (
            inputs.select(rows),
            np.searchsorted(plan.task.classes, plan.split(part).labels[plan.rows[part]]),
        )
        for part, rows in parts.items()
    )
    classifier = training.add_head(embedder.model, len(plan.task.classes))
    # A training step costs about three forward passes.
    passes = embedder.forward_work(3 * fit[0].lengths) + embedder.forward_work(watched[0].lengths)
    work = plan.experiment.epochs * passes
    history = training.fit(classifier, fit, watched, plan.experiment, work)
    return classifier.get_layer("head"), history


def _embed(
    embedder: "Embedder", texts: list[str], store: "Store", cut: dict[str, bool]
) -> np.ndarray:
    """Embeddings `(texts, width)`, a chunk at a time; a text that is there twice costs once.

    A chunk's states come from the store if all are there; else they are computed and not kept.
    """
    from embedder_helpers.embedder import CHUNK

    different = list(dict.fromkeys(texts))
    embeddings = np.empty((len(different), embedder.width), "float32")
    for start in range(0, len(different), CHUNK):
        ids = _tokenise(embedder, different[start : start + CHUNK], cut)
        inputs = None
        if embedder.gemma:
            inputs = store.find(embedder.gemma.preset, ids, embedder.depths)
        if inputs is None:
            inputs = embedder.inputs(ids)
        embeddings[start : start + CHUNK] = embedder.embed(inputs)
    if embedder.gemma:
        embedder.gemma.unload()
    row = {text: place for place, text in enumerate(different)}
    return embeddings[[row[text] for text in texts]]


def _tokenise(embedder: "Embedder", texts: list[str], cut: dict[str, bool]) -> Ragged:
    """Token ids; notes of each text whether it was cut."""
    ids, truncated = embedder.tokenise(texts)
    cut.update(zip(texts, truncated.tolist(), strict=True))
    return ids


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


def result_name(experiment: Experiment, task: Task, presets: dict, inputs: dict[str, str]) -> str:
    """A file name that a person can read, ending in a key of all that determines the result."""
    parts = [task.name, experiment.kind]
    # Where data and presets lie does not matter: `inputs` tells their content.
    settings = {
        name: value for name, value in experiment.determining().items() if name not in PLACES
    }
    settings["samples_per_label"] = task.samples_per_label
    if "llm_preset" in presets:
        found = cutoffs(experiment.llm_layers, presets["llm_preset"].blocks)
        parts.append("k" + "+".join(map(str, found)))
        settings["llm_layers"] = found  # 10 and -9 of 18 are one cutoff
    if experiment.kind != "gemma_only":
        parts.append(f"seed{experiment.seed}" if experiment.epochs else "untrained")
    content = json.dumps([settings, inputs, __version__], sort_keys=True).encode()
    return "-".join([*parts, hashlib.sha256(content).hexdigest()[:8]]) + ".json"


def read_result(path: Path) -> Result | None:
    """The result in a file; None if there is no file, or one that is not a whole result."""
    try:
        return Result(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def write_result(result: Result, path: Path) -> None:
    """Writes the file under another name first, so that it is whole or not there."""
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    part.write_text(json.dumps(dataclasses.asdict(result), indent=1) + "\n", encoding="utf-8")
    part.replace(path)


def _rows(experiment: Experiment, task: Task) -> dict[str, np.ndarray]:
    """The rows of each split that this experiment reads; a text not needed is not encoded."""
    draws = protocol.draw_rows(task.train.labels.tolist(), task.samples_per_label)
    rows = {"drawn": np.unique(np.concatenate(draws)), "test": np.arange(len(task.test))}
    starts = experiment.kind == "hybrid" and experiment.projection_start == "ridge"
    if experiment.kind == "gemma_only" or not (experiment.epochs or starts):
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
    return rows | {"fit": fit} | ({"watched": watched} if experiment.epochs else {})


def _some(rows: np.ndarray, labels: np.ndarray, count: int) -> np.ndarray:
    """At most `count` of the rows, drawn by label; the same ones for every seed."""
    return rows[stratified_rows(labels[rows], count, SPLIT_SEED)]


def _head_metrics(head: Any, embeddings: np.ndarray, task: Task) -> dict[str, float | None]:
    """The trained head's metrics on the test split."""
    kernel, bias = head.get_weights()
    answers = task.classes[(embeddings @ kernel + bias).argmax(-1)]
    return protocol.metrics(task.test.labels.tolist(), answers.tolist())


class _Clock:
    """Seconds by part."""

    def __init__(self):
        self.seconds: dict[str, float] = {}
        self._last = self._start = time.perf_counter()

    def stop(self, part: str) -> None:
        now = time.perf_counter()
        self.seconds[part] = round(now - self._last, 2)
        self._last = now

    def total(self) -> dict[str, float]:
        return self.seconds | {"total": round(time.perf_counter() - self._start, 2)}

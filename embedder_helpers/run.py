"""One experiment, from text to a result file. A result that is there is read, not computed."""

import dataclasses
import hashlib
import json
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from embedder_helpers import __version__, platform, protocol
from embedder_helpers.config import Experiment, cutoffs
from embedder_helpers.tasks import Task, stratified_rows, task_of


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
        truncated: texts that were cut at `max_tokens`.
        seconds: wall-clock time by part (load, prepare, train, embed, score) and in all.
        versions: of Python and the packages.
        device: what it was computed on.
        inputs: fingerprints of data and presets.
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


def run(experiment: Experiment, out: str | Path = "results") -> Result:
    """Runs an experiment and writes its result file, or reads the file if it is there.

    Args:
        experiment: what to run.
        out: the folder for the result file.

    Raises:
        InputError: anything the person can mend, before any long work.
    """
    folder = platform.writable_folder(out)
    task = task_of(experiment)
    from embedder_helpers.embedder import find_presets  # Keras comes in here, seconds later

    presets = find_presets(experiment)
    inputs = {"task": task.fingerprint} | {
        role: preset.fingerprint for role, preset in presets.items()
    }
    path = folder / result_name(experiment, task, presets, inputs)
    if found := read_result(path):
        print(f"{path.name}: found, not computed again")
        return found
    print(f"{path.name}: running")
    for note in task.notes:
        print(f"  note: {note}")
    result = _run(experiment, task, inputs)
    write_result(result, path)
    return result


def with_baselines(experiment: Experiment) -> list[Experiment]:
    """A hybrid, then RoBERTa alone and Gemma alone likewise; another kind stays alone."""
    if experiment.kind != "hybrid":
        return [experiment]
    kinds = ("hybrid", "roberta_only", "gemma_only")
    return [dataclasses.replace(experiment, kind=kind) for kind in kinds]


def result_name(experiment: Experiment, task: Task, presets: dict, inputs: dict[str, str]) -> str:
    """A file name that a person can read, ending in a key of all that determines the result."""
    parts = [task.name, experiment.kind]
    if "llm_preset" in presets:
        found = cutoffs(experiment.llm_layers, presets["llm_preset"].blocks)
        parts.append("k" + "+".join(map(str, found)))
    if experiment.kind != "gemma_only":
        parts.append(f"seed{experiment.seed}" if experiment.epochs else "untrained")
    determining = [experiment.determining(), inputs, __version__]
    content = json.dumps(determining, sort_keys=True).encode()
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


def _run(experiment: Experiment, task: Task, inputs: dict[str, str]) -> Result:
    """Text → prepared → trained → embeddings → scores."""
    from embedder_helpers.embedder import build_embedder

    clock = _Clock()
    embedder = build_embedder(experiment)
    clock.stop("load")

    rows = _rows(experiment, task, trained=embedder.model is not None)
    splits = {"fit": task.train, "drawn": task.train, "watched": task.validation, "test": task.test}
    if experiment.train_split == "validation":
        splits |= {"fit": task.validation, "watched": task.train}
    prepared = _prepare(embedder, {name: splits[name].texts(rows[name]) for name in rows})
    clock.stop("prepare")

    history, head = [], None
    if embedder.model is not None and experiment.epochs:
        labels = {name: splits[name].labels[rows[name]] for name in rows}
        history, head = _train(embedder.model, experiment, task.classes, prepared, labels)
        clock.stop("train")

    train_embeddings = embedder.embed(prepared["drawn"])
    test_embeddings = embedder.embed(prepared["test"])
    clock.stop("embed")
    scores = protocol.score(
        train_embeddings,
        task.train.labels,
        test_embeddings,
        task.test.labels,
        samples_per_label=task.samples_per_label,
        rows=rows["drawn"],
    )
    clock.stop("score")

    gemma = embedder.gemma
    return Result(
        experiment=experiment.as_dict(),
        task={
            "name": task.name,
            "samples_per_label": task.samples_per_label,
            "labels": len(task.classes),
            "texts": {name: len(part) for name, part in rows.items()},
            "notes": list(task.notes),
        },
        cutoffs=list(gemma.cutoffs) if gemma else [],
        blocks=gemma.blocks if gemma else None,
        scores=scores.mean,
        experiments=list(scores.experiments),
        head=head,
        floor=protocol.floor(task.train.labels, task.test.labels),
        history=history,
        truncated=embedder.truncated,
        seconds=clock.total(),
        versions=platform.versions(),
        device=platform.devices(),
        inputs=inputs,
    )


def _rows(experiment: Experiment, task: Task, *, trained: bool) -> dict[str, np.ndarray]:
    """The rows of each split that this experiment reads; a text not needed is not encoded."""
    draws = protocol.draw_rows(task.train.labels.tolist(), task.samples_per_label)
    rows = {"drawn": np.unique(np.concatenate(draws)), "test": np.arange(len(task.test))}
    if not trained or not experiment.epochs:
        return rows
    # A label that train lacks (some of MTEB's own splits have one) cannot be learned or watched.
    fit, watched = task.training_rows, np.flatnonzero(np.isin(task.validation.labels, task.classes))
    fit_labels, watched_labels = task.train.labels, task.validation.labels
    if experiment.train_split == "validation":
        fit, watched, fit_labels, watched_labels = watched, fit, watched_labels, fit_labels
        # As many texts of train are watched as there are to learn from.
        watched = _some(watched, watched_labels, len(fit), experiment.seed)
    if experiment.max_train_texts is not None:
        fit = _some(fit, fit_labels, experiment.max_train_texts, experiment.seed)
    return rows | {"fit": fit, "watched": watched}


def _some(rows: np.ndarray, labels: np.ndarray, count: int, seed: int) -> np.ndarray:
    """At most `count` of the rows, drawn by label."""
    return rows[stratified_rows(labels[rows], count, seed)]


def _prepare(embedder: Any, texts: dict[str, list[str]]) -> dict[str, Any]:
    """Each part prepared, every different text once."""
    places: dict[str, int] = {}
    for part in texts.values():
        for text in part:
            places.setdefault(text, len(places))
    prepared = embedder.prepare(list(places))
    return {name: prepared.select([places[text] for text in part]) for name, part in texts.items()}


def _train(
    model: Any,
    experiment: Experiment,
    classes: np.ndarray,
    prepared: dict[str, Any],
    labels: dict[str, np.ndarray],
) -> tuple[list[dict[str, float]], dict[str, float | None]]:
    """Trains the model in place; gives the history and the head's metrics on the test split."""
    from embedder_helpers import training
    from embedder_helpers.embedder import predict

    classifier = training.add_head(model, len(classes))
    fit, watched = (
        (prepared[name], np.searchsorted(classes, labels[name])) for name in ("fit", "watched")
    )
    history = training.fit(classifier, fit, watched, experiment)
    answers = np.empty(len(labels["test"]), "int64")
    for rows, logits in predict(classifier, prepared["test"], "head"):
        answers[rows] = logits.argmax(-1)
    return history, protocol.metrics(labels["test"].tolist(), classes[answers].tolist())

"""One experiment, from text to a result file. A result that is there is read, not computed."""

import dataclasses
import hashlib
import json
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from embedder_helpers import __version__, platform, protocol
from embedder_helpers.config import Experiment, cutoffs
from embedder_helpers.local import SPLIT_SEED, stratified_rows
from embedder_helpers.presets import Preset, find_presets
from embedder_helpers.tasks import Task, task_of

# Keys that say where an input is; its fingerprint says what it is.
PLACES = ("task", "task_data", "text_column", "label_column", "llm_preset", "slm_preset")
CHUNK = 2048  # texts whose states are held at a time when nothing is trained on them


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


@dataclass(frozen=True)
class Plan:
    """An experiment whose every input was found and checked, and where its result goes."""

    experiment: Experiment
    task: Task
    presets: dict[str, Preset]
    inputs: dict[str, str]
    path: Path


def run(experiment: Experiment, out: str | Path = "results") -> Result:
    """Runs an experiment and writes its result file, or reads the file if it is there.

    Args:
        experiment: what to run.
        out: the folder for the result file.

    Raises:
        InputError: anything the person can mend, before any long work.
    """
    return run_all([experiment], out)[0]


def run_all(experiments: Sequence[Experiment], out: str | Path = "results") -> list[Result]:
    """Runs experiments one after the other; all are checked before the first one starts."""
    folder = platform.writable_folder(out)
    plans = [_plan(experiment, folder) for experiment in experiments]
    return [_read_or_run(plan) for plan in plans]


def _plan(experiment: Experiment, folder: Path) -> Plan:
    presets = find_presets(experiment)
    task = task_of(experiment)
    inputs = {"task": task.fingerprint} | {
        role: preset.fingerprint for role, preset in presets.items()
    }
    path = folder / result_name(experiment, task, presets, inputs)
    return Plan(experiment, task, presets, inputs, path)


def _read_or_run(plan: Plan) -> Result:
    if found := read_result(plan.path):
        print(f"{plan.path.name}: found, not computed again")
        return found
    print(f"{plan.path.name}: running")
    for note in plan.task.notes:
        print(f"  note: {note}")
    result = _run(plan)
    write_result(result, plan.path)
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


def _run(plan: Plan) -> Result:
    """Text → prepared → trained → embeddings → scores."""
    from embedder_helpers.embedder import build_embedder  # Keras comes in here, seconds later

    experiment, task = plan.experiment, plan.task
    clock = _Clock()
    embedder = build_embedder(experiment, plan.presets)
    clock.stop("load")

    rows = _rows(experiment, task)
    splits = {"fit": task.train, "watched": task.validation}
    if experiment.train_split == "validation":
        splits = {"fit": task.validation, "watched": task.train}
    splits |= {"drawn": task.train, "test": task.test}
    texts = {name: splits[name].texts(rows[name]) for name in rows}
    trained_on = {name: texts[name] for name in ("fit", "watched") if name in texts}
    prepared, places = _prepare(embedder, trained_on)
    clock.stop("prepare")

    head, history = None, []
    if trained_on:
        labels = {name: splits[name].labels[rows[name]] for name in trained_on}
        head, history = _train(embedder.model, experiment, task.classes, prepared, labels)
        clock.stop("train")

    embeddings = _embed(embedder, [*texts["drawn"], *texts["test"]], prepared["all"], places)
    drawn, test = np.split(embeddings, [len(texts["drawn"])])
    clock.stop("embed")
    scores = protocol.score(
        drawn,
        task.train.labels,
        test,
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
        head=_head_metrics(head, test, task) if head else None,
        floor=protocol.floor(task.train.labels, task.test.labels),
        history=history,
        truncated=embedder.truncated,
        seconds=clock.total(),
        versions=platform.versions(),
        device=platform.devices(),
        inputs=plan.inputs,
    )


def _rows(experiment: Experiment, task: Task) -> dict[str, np.ndarray]:
    """The rows of each split that this experiment reads; a text not needed is not encoded."""
    draws = protocol.draw_rows(task.train.labels.tolist(), task.samples_per_label)
    rows = {"drawn": np.unique(np.concatenate(draws)), "test": np.arange(len(task.test))}
    if experiment.kind == "gemma_only" or not experiment.epochs:
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


def _prepare(embedder: Any, parts: dict[str, list[str]]) -> tuple[dict[str, Any], dict[str, int]]:
    """Each part prepared, and `all` of their texts, every different one once; their places."""
    places: dict[str, int] = {}
    for part in parts.values():
        for text in part:
            places.setdefault(text, len(places))
    everything = embedder.prepare(list(places))
    prepared = {
        name: everything.select([places[text] for text in part]) for name, part in parts.items()
    }
    return prepared | {"all": everything}, places


def _embed(embedder: Any, texts: list[str], prepared: Any, places: dict[str, int]) -> np.ndarray:
    """Embeddings of texts: from what is prepared, the others a chunk at a time.

    Chunks bound the memory: a large test split's states are never held together.
    """
    different = list(dict.fromkeys(texts))
    known = [text for text in different if text in places]
    new = [text for text in different if text not in places]
    found = [embedder.embed(prepared.select([places[text] for text in known]))]
    for start in range(0, len(new), CHUNK):
        found.append(embedder.embed(embedder.prepare(new[start : start + CHUNK])))
    embeddings = np.concatenate(found)
    row_of = {text: row for row, text in enumerate([*known, *new])}
    return embeddings[[row_of[text] for text in texts]]


def _train(
    model: Any,
    experiment: Experiment,
    classes: np.ndarray,
    prepared: dict[str, Any],
    labels: dict[str, np.ndarray],
) -> tuple[Any, list[dict[str, float]]]:
    """Trains the model in place; gives the head and the history."""
    from embedder_helpers import training

    classifier = training.add_head(model, len(classes))
    fit, watched = (
        (prepared[name], np.searchsorted(classes, labels[name])) for name in ("fit", "watched")
    )
    history = training.fit(classifier, fit, watched, experiment)
    return classifier.get_layer("head"), history


def _head_metrics(head: Any, embeddings: np.ndarray, task: Task) -> dict[str, float | None]:
    """The trained head's metrics on the test split."""
    kernel, bias = head.get_weights()
    answers = task.classes[(embeddings @ kernel + bias).argmax(-1)]
    return protocol.metrics(task.test.labels.tolist(), answers.tolist())

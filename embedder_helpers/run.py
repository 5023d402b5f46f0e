"""One experiment, from text to a result."""

import dataclasses
import time
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from embedder_helpers import platform, protocol
from embedder_helpers.config import SPLIT_KEYS, Experiment, cutoffs
from embedder_helpers.plan import Plan
from embedder_helpers.result import Result
from embedder_helpers.shapes import parameters

if TYPE_CHECKING:  # both bring in Keras, seconds that a mistake should not wait for
    from embedder_helpers.embedder import Embedder
    from embedder_helpers.head import Head
    from embedder_helpers.states import Store
    from embedder_helpers.tokens import Tokens


def train_and_score(plan: Plan, store: "Store") -> tuple["Embedder", Result]:
    """Text → token ids → states → trained → embeddings → scores.

    Args:
        plan: of the experiment.
        store: where Gemma's states are, or go to.

    Returns:
        The embedder, with its head if one was trained, and the result.

    Raises:
        InputError: states that do not fit or are not finite; a training that diverged.
    """
    from embedder_helpers.embedder import build_embedder

    clock, cut, asked = _Clock(), {}, plan.experiment
    plan.repeated()  # a text that cannot be read is told before anything long starts
    plan, choice = _with_cutoff(plan, store)
    if choice:
        clock.stop("choose")
    embedder = build_embedder(plan.experiment, plan.presets)
    clock.stop("load")

    learned = _learn(plan, embedder, store, cut, clock) if "fit" in plan.rows else _Learned()
    embedder.head = learned.head
    embeddings = _embed(embedder, plan.texts("drawn", "scored"), store, cut)
    drawn, scored = np.split(embeddings, [len(plan.rows["drawn"])])
    clock.stop("embed")
    scores = _scores(plan, drawn, scored, learned.head)
    clock.stop("score")

    given = _given(plan, asked)
    return embedder, Result(
        **given,
        **scores,
        history=learned.history,
        truncated=sum(cut.values()),
        seconds=clock.total(),
        versions=platform.versions(),
        device=[*platform.devices(), f"trained in {platform.training_dtype()}"],
        projection=learned.projection,
        choice=choice,
        parameters=parameters(plan.experiment, max(given["cutoffs"], default=None)),
    )


def train(plan: Plan, store: "Store") -> "Embedder":
    """The same without a look at the texts that are scored: the embedder alone.

    Raises:
        InputError: as `train_and_score` does.
    """
    from embedder_helpers.embedder import build_embedder

    plan, _ = _with_cutoff(plan, store)
    embedder = build_embedder(plan.experiment, plan.presets)
    if "fit" in plan.rows:
        embedder.head = _learn(plan, embedder, store, {}, _Clock()).head
    return embedder


def _given(plan: Plan, asked: Experiment) -> dict[str, Any]:
    """The fields of a Result that tell what went in; a chosen cutoff is the plan's own."""
    experiment, task, preset = plan.experiment, plan.task, plan.presets.get("llm_preset")
    return {
        "experiment": asked.as_dict(),
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


def _with_cutoff(plan: Plan, store: "Store") -> tuple[Plan, dict[str, float] | None]:
    """The plan with its cutoff and, where that was to be chosen, what it was chosen by."""
    if not plan.experiment.chooses():
        return plan, None
    choice = _choose(plan, store)
    best = int(max(choice, key=choice.get))
    one = dataclasses.replace(plan.experiment, llm_layers=best)
    return dataclasses.replace(plan, experiment=one), choice


# Choices made in this process: seeds, fusions and projections share them.
_CHOICES: dict[tuple, dict[str, float]] = {}


def _choose(plan: Plan, store: "Store") -> dict[str, float]:
    """How well a linear classifier reads the states behind each cutoff, by its number."""
    keys = ("pooling", "final_norm", "max_tokens", *SPLIT_KEYS)
    inputs = plan.inputs["task"], plan.inputs["llm_preset"]
    same = (*inputs, *(getattr(plan.experiment, name) for name in keys))
    if same not in _CHOICES:
        _CHOICES[same] = _choose_anew(plan, store)
    return _CHOICES[same]


def _choose_anew(plan: Plan, store: "Store") -> dict[str, float]:
    from embedder_helpers.embedder import build_embedder
    from embedder_helpers.gemma import depths
    from embedder_helpers.probe import choose_cutoff

    one = dataclasses.replace(
        plan.experiment, kind="gemma_only", llm_layers=1, layer_pooling="mean", probe=False
    )
    reader = build_embedder(one, plan.presets)
    tokens = reader.tokenise(plan.texts("fit", "watched"))
    labels = np.concatenate([plan.labels("fit"), plan.labels("watched")])
    every = depths(plan.experiment, plan.presets["llm_preset"].blocks)
    return choose_cutoff(reader, store, tokens, labels, every)


class _Learned(NamedTuple):
    """What training left beside the embedder's weights.

    Attributes:
        head: None where none was trained.
        history: of the epochs.
        projection: of a closed-form start.
    """

    head: "Head | None" = None
    history: list[dict[str, float]] = []
    projection: dict[str, float] | None = None


def _learn(
    plan: Plan, embedder: "Embedder", store: "Store", cut: dict[str, bool], clock: "_Clock"
) -> _Learned:
    """Starts the projection and trains the embedder's model, in place, as far as is asked."""
    from embedder_helpers import probe

    experiment, count = plan.experiment, len(plan.rows["fit"])
    if experiment.kind == "gemma_only" and not experiment.probe:
        return _Learned()  # a cutoff was chosen, and that is all
    texts = plan.texts("fit", "watched")
    tokens = _tokenise(embedder, texts, cut)
    clock.stop("tokenise")
    states = store.states(embedder.gemma, tokens.gemma, embedder.depths) if embedder.gemma else None
    clock.stop("states")
    if experiment.kind == "gemma_only":
        embeddings = np.split(embedder.embed(states), [count])
        labels = plan.labels("fit"), plan.labels("watched")
        return _Learned(probe.fit_probe(*zip(embeddings, labels, strict=True)))

    projection, rows = None, range(count)
    if embedder.gemma:
        embedder.standard.adapt(states.select(rows))
    if embedder.gemma and experiment.start() == "ridge":
        found = embedder.start_projection(texts[:count], tokens.select(rows), states.select(rows))
        projection = {"explained": found.explained, "penalty": found.penalty}
        platform.say(f"  projection: explains {found.explained:.0%} of RoBERTa's embeddings")
        clock.stop("projection")
    if not experiment.epochs:
        return _Learned(projection=projection)
    head, history = _train(plan, embedder, embedder.inputs(tokens, states))
    clock.stop("train")
    return _Learned(head, history, projection)


def _train(plan: Plan, embedder: "Embedder", inputs: Any) -> tuple["Head", list[dict[str, float]]]:
    """Trains the embedder's model in place; gives the head and the history."""
    from embedder_helpers import tracking, training
    from embedder_helpers.head import Head

    count, classes = len(plan.rows["fit"]), plan.task.classes
    parts = {"fit": range(count), "watched": range(count, len(inputs))}
    fit, watched = (
        (inputs.select(rows), np.searchsorted(classes, plan.labels(part)))
        for part, rows in parts.items()
    )
    classifier = training.add_head(embedder.model, len(classes))
    # A training step costs about three forward passes.
    passes = embedder.forward_work(3 * fit[0].lengths) + embedder.forward_work(watched[0].lengths)
    work = plan.experiment.epochs * passes
    with tracking.trackers(plan.experiment, plan.path) as told:
        history = training.fit(
            classifier, fit, watched, plan.experiment, embedder.longest, work, told
        )
    return Head(*classifier.get_layer("head").get_weights(), classes), history


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
        tokens = _tokenise(embedder, different[start : start + CHUNK], cut)
        states = None
        if embedder.gemma:
            states = store.find(embedder.gemma.preset, tokens.gemma, embedder.depths)
        if states is None:
            states = embedder.states(tokens)
        embeddings[start : start + CHUNK] = embedder.embed(embedder.inputs(tokens, states))
    if embedder.gemma:
        embedder.gemma.unload()
    row = {text: place for place, text in enumerate(different)}
    return embeddings[[row[text] for text in texts]]


def _tokenise(embedder: "Embedder", texts: list[str], cut: dict[str, bool]) -> "Tokens":
    """Token ids; notes of each text whether it was cut."""
    tokens = embedder.tokenise(texts)
    cut.update(zip(texts, tokens.truncated.tolist(), strict=True))
    return tokens


def _scores(
    plan: Plan,
    drawn: np.ndarray,
    scored: np.ndarray,
    head: "Head | None",
) -> dict[str, Any]:
    """The fields of a Result that tell how good the embeddings are."""
    task, labels = plan.task, plan.labels("scored")
    answers = protocol.answers(
        drawn,
        task.train.labels,
        scored,
        samples_per_label=task.samples_per_label,
        rows=plan.rows["drawn"],
    )
    head_answers = head.predict(scored) if head else None

    def told(kept: np.ndarray) -> dict[str, Any]:
        scores = protocol.Scores.of(labels[kept], [answer[kept] for answer in answers])
        return {
            "scores": scores.mean,
            "experiments": list(scores.experiments),
            "head": protocol.metrics(labels[kept], head_answers[kept]) if head else None,
        }

    repeated, unrepeated = plan.repeated(), None
    if repeated.any():
        unrepeated = {"texts": int(repeated.sum())}
        unrepeated |= {} if repeated.all() else told(~repeated)
    floor = protocol.floor(task.train.labels, labels)
    return told(np.full(len(labels), True)) | {"floor": floor, "unrepeated": unrepeated}


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

"""One experiment, from texts to a result.

Keras is imported inside functions: it takes seconds that an invalid input should not wait for.
"""

import dataclasses
import itertools
import logging
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from embedder_helpers.config import FROZEN, Experiment, gemma_only, resolve_cutoffs, settings
from embedder_helpers.errors import InputError
from embedder_helpers.experiments import protocol
from embedder_helpers.experiments.plan import Plan, Subset
from embedder_helpers.models.controls import StatesControl
from embedder_helpers.results.predictions import Predictions, label_positions, write_predictions
from embedder_helpers.results.result import Result
from embedder_helpers.utils import environment
from embedder_helpers.utils.keras_state import own_keras_state

if TYPE_CHECKING:
    from embedder_helpers.experiments.probe import LayerScores
    from embedder_helpers.experiments.reuse import ReusableModels
    from embedder_helpers.models.embedder import Embedder, Head
    from embedder_helpers.models.hidden_states import HiddenStateCache
    from embedder_helpers.models.tokenization import TokenizedTexts

logger = logging.getLogger(__name__)


def run_experiment(
    plan: Plan, cache: "HiddenStateCache", models: "ReusableModels | None" = None
) -> tuple["Embedder", Result]:
    """Train and score an embedder.

    Texts → token ids → hidden states → training → embeddings → scores.

    Args:
        plan: of the experiment.
        cache: of Gemma's hidden states.
        models: of the experiment before, to use them again; the embedder is then valid until they
            are used next. None: build new ones.

    Returns:
        The embedder, with its head if one was trained, and the result.

    Raises:
        InputError: hidden states that do not fit the disk or are not finite; a training that
            diverged or ran out of memory.
    """
    from embedder_helpers.experiments.reuse import ReusableModels

    models = models or ReusableModels()
    stopwatch, truncated, requested = _Stopwatch(), {}, plan.experiment
    plan.eval_duplicates()  # reads the texts, so an invalid one is reported before any long work
    plan, selection = _resolve_layer(plan, cache)
    if selection:
        stopwatch.stop("choose")
    embedder = models.build_embedder(plan.experiment, plan.presets)
    stopwatch.stop("load")

    control = StatesControl(plan.experiment)
    outcome = _fit_embedder(plan, embedder, cache, control, truncated, stopwatch, models)
    embedder.head = outcome.head
    subsets = [Subset.PROTOCOL_TRAIN, Subset.EVAL]
    keeps_predictions = plan.path and plan.experiment.save_predictions and outcome.head
    if keeps_predictions:
        subsets.append(Subset.VALIDATION)
    embeddings = _embed(embedder, plan.texts(*subsets), cache, control, truncated)
    ends = np.cumsum([len(plan.rows[subset]) for subset in subsets])
    protocol_train, evaluated, *validation = np.split(embeddings, ends[:-1])
    stopwatch.stop("embed")
    scores = _score(plan, protocol_train, evaluated, outcome.head)
    if keeps_predictions:
        write_predictions(_predict(plan, outcome.head, evaluated, *validation), plan.path)
    stopwatch.stop("score")

    return embedder, Result(
        **_describe_inputs(plan, requested),
        **scores,
        history=outcome.history,
        truncated=sum(truncated.values()),
        seconds=stopwatch.total(),
        versions=environment.package_versions(*embedder.packages),
        device=embedder.devices(),
        projection=outcome.projection,
        **selection,
        parameters=embedder.count_parameters(),
        license=embedder.license,
    )


@own_keras_state()
def train_embedder(plan: Plan, cache: "HiddenStateCache") -> "Embedder":
    """Train an embedder without reading the texts that would be scored.

    Raises:
        InputError: as `run_experiment` does.
    """
    from embedder_helpers.experiments.reuse import ReusableModels

    models = ReusableModels()
    plan, _ = _resolve_layer(plan, cache)
    embedder = models.build_embedder(plan.experiment, plan.presets)
    control = StatesControl(plan.experiment)
    outcome = _fit_embedder(plan, embedder, cache, control, {}, _Stopwatch(), models)
    embedder.head = outcome.head
    return embedder


def _describe_inputs(plan: Plan, requested: Experiment) -> dict[str, Any]:
    """The fields of a Result that describe its inputs; cutoffs are those that were selected."""
    experiment, task, preset = plan.experiment, plan.task, plan.presets.get("llm_preset")
    num_layers = preset.num_layers if preset else None
    return {
        "experiment": requested.as_dict(),
        "task": {
            "name": task.name,
            "source": task.source,
            "path": task.path,
            "samples_per_label": task.samples_per_label,
            "labels": len(task.classes),
            "texts": {subset.value: len(rows) for subset, rows in plan.rows.items()},
            "notes": list(task.notes),
        },
        "cutoffs": list(resolve_cutoffs(experiment.llm_layers, num_layers)) if preset else [],
        "num_layers": num_layers,
        "inputs": plan.inputs,
    }


# === The cutoff ===

# Scores of cutoffs, computed in this process: seeds, fusions and projections share them.
_LAYER_SCORES: dict[tuple, "LayerScores"] = {}


def _resolve_layer(plan: Plan, cache: "HiddenStateCache") -> tuple[Plan, dict[str, Any]]:
    """The plan with a cutoff if it is to be selected, and a Result's fields that say by what."""
    if not plan.experiment.selects_layer():
        return plan, {}
    reader = dataclasses.replace(
        gemma_only(plan.experiment), llm_layers="auto", layer_pooling="mean", probe=False
    )
    known = settings()
    key = (
        plan.inputs["task"],
        plan.inputs["llm_preset"],
        *((k, v) for k, v in reader.relevant_settings().items() if not known[k].fingerprinted),
    )
    if key not in _LAYER_SCORES:
        _LAYER_SCORES[key] = _score_layers(plan, reader, cache)
    scores, is_cheapest = _LAYER_SCORES[key], plan.experiment.llm_layers == "cheapest"
    cutoff = scores.cheapest() if is_cheapest else scores.best
    logger.info(
        "  cutoff %d of %d selected: a linear classifier's accuracy is %.3f",
        cutoff,
        len(scores.accuracies),
        scores.accuracies[cutoff],
    )
    fields = {"layer_selection": _by_name(scores.accuracies)}
    if is_cheapest:
        fields["layer_p_values"] = _by_name(scores.p_values)
    experiment = dataclasses.replace(plan.experiment, llm_layers=cutoff)
    return dataclasses.replace(plan, experiment=experiment), fields


def _by_name(values: Mapping[int, float]) -> dict[str, float]:
    return {str(cutoff): value for cutoff, value in values.items()}


def _score_layers(plan: Plan, reader: Experiment, cache: "HiddenStateCache") -> "LayerScores":
    """How well a linear classifier reads the hidden states at each cutoff."""
    from embedder_helpers.experiments import probe
    from embedder_helpers.models.architectures import build_embedder
    from embedder_helpers.models.gemma import hidden_state_specs

    embedder = build_embedder(dataclasses.replace(reader, llm_layers=1), plan.presets)
    subsets = Subset.TRAIN, Subset.VALIDATION
    tokens = embedder.tokenize(plan.texts(*subsets))
    labels = np.concatenate([plan.labels(subset) for subset in subsets])
    specs = hidden_state_specs(plan.experiment, plan.presets["llm_preset"].num_layers)
    return probe.score_layers(embedder, cache, tokens, labels, specs)


# === Training ===


class _TrainingOutcome(NamedTuple):
    """What training leaves besides the embedder's weights.

    Attributes:
        head: None if none was trained.
        history: of the epochs.
        projection: of a closed-form initialization.
    """

    head: "Head | None" = None
    history: list[dict[str, float]] = []
    projection: dict[str, float] | None = None


def _fit_embedder(
    plan: Plan,
    embedder: "Embedder",
    cache: "HiddenStateCache",
    control: StatesControl,
    truncated: dict[str, bool],
    stopwatch: "_Stopwatch",
    models: "ReusableModels",
) -> _TrainingOutcome:
    """Initialize the projection and train the embedder's model in place, as far as required."""
    from embedder_helpers.experiments import probe

    experiment = plan.experiment
    is_frozen = experiment.kind in FROZEN
    if Subset.TRAIN not in plan.rows or (is_frozen and not experiment.probe):
        return _TrainingOutcome()
    count = len(plan.rows[Subset.TRAIN])
    texts = plan.texts(Subset.TRAIN, Subset.VALIDATION)
    tokens = _tokenize(embedder, texts, truncated)
    stopwatch.stop("tokenise")
    states = None
    if embedder.gemma:
        states = cache.get_or_compute(embedder.gemma, tokens.gemma, embedder.specs)
        control.fit(states.select(range(count)))
        states = control.replace(states)
    stopwatch.stop("states")
    if is_frozen:
        inputs = embedder.prepare_inputs(tokens, states)
        embeddings = np.split(embedder.embed(inputs), [count])
        labels = plan.labels(Subset.TRAIN), plan.labels(Subset.VALIDATION)
        return _TrainingOutcome(probe.fit_probe(*zip(embeddings, labels, strict=True)))

    projection, train = None, range(count)
    if embedder.gemma:
        embedder.standardize.adapt(states.select(train))
    if embedder.gemma and experiment.projection_init() == "ridge":
        ridge_map = embedder.initialize_projection(tokens.select(train), states.select(train))
        projection = {"explained": ridge_map.explained, "penalty": ridge_map.penalty}
        logger.info(
            "  projection: explains %.0f%% of the variance of RoBERTa's embeddings",
            100 * ridge_map.explained,
        )
        stopwatch.stop("projection")
    if not experiment.epochs:
        return _TrainingOutcome(projection=projection)
    inputs = embedder.prepare_inputs(tokens, states)
    head, history = _train_model(plan, embedder, inputs, models)
    stopwatch.stop("train")
    return _TrainingOutcome(head, history, projection)


def _train_model(
    plan: Plan, embedder: "Embedder", inputs: Any, models: "ReusableModels"
) -> tuple["Head", list[dict[str, float]]]:
    """Train the embedder's model in place; returns the head and the history.

    Raises:
        InputError: memory ran out, or the training diverged.
    """
    from embedder_helpers.experiments import tracking, training
    from embedder_helpers.models.embedder import Head

    count, classes = len(plan.rows[Subset.TRAIN]), plan.task.classes
    subsets = {Subset.TRAIN: range(count), Subset.VALIDATION: range(count, len(inputs))}
    train, validation = (
        (inputs.select(rows), np.searchsorted(classes, plan.labels(subset)))
        for subset, rows in subsets.items()
    )
    experiment = plan.experiment
    classifier = models.build_classifier(embedder, len(classes), experiment.clip_norm)
    # A training step costs about three forward passes.
    passes = embedder.forward_flops(3 * train[0].lengths)
    passes += embedder.forward_flops(validation[0].lengths)
    options = experiment, embedder.longest, experiment.epochs * passes
    try:
        with tracking.tracking_callbacks(experiment, plan.path) as callbacks:
            history = training.train_classifier(classifier, train, validation, *options, callbacks)
    except Exception as error:
        if not environment.is_out_of_memory(error):
            raise
        raise InputError(
            f"memory ran out in training with batch_size {experiment.batch_size} and max_tokens "
            f"{experiment.max_tokens}: lower batch_size, or max_tokens"
        ) from None
    return Head(*classifier.get_layer("head").get_weights(), classes), history


# === Embeddings and scores ===


def _embed(
    embedder: "Embedder",
    texts: list[str],
    cache: "HiddenStateCache",
    control: StatesControl,
    truncated: dict[str, bool],
) -> np.ndarray:
    """Embeddings `(texts, width)`, a chunk at a time; each distinct text is embedded once.

    A chunk's hidden states come from the cache if it holds all of them; else they are computed and
    not stored.
    """
    from embedder_helpers.models import embedder as embedder_module

    distinct = list(dict.fromkeys(texts))
    embeddings = np.empty((len(distinct), embedder.width), "float32")
    starts = list(range(0, len(distinct), embedder_module.CHUNK))
    if len(starts) > 1 and len(distinct) - starts[-1] == 1:
        starts.pop()  # a text that is alone could not be dealt another one's states
    try:
        for start, end in itertools.pairwise([*starts, len(distinct)]):
            tokens = _tokenize(embedder, distinct[start:end], truncated)
            states = None
            if embedder.gemma:
                states = cache.lookup(embedder.gemma, tokens.gemma, embedder.specs)
            if states is None:
                states = embedder.hidden_states(tokens)
            inputs = embedder.prepare_inputs(tokens, control.replace(states))
            embeddings[start:end] = embedder.embed(inputs)
    finally:
        if embedder.gemma:
            embedder.gemma.unload()
    row = {text: i for i, text in enumerate(distinct)}
    return embeddings[[row[text] for text in texts]]


def _tokenize(
    embedder: "Embedder", texts: list[str], truncated: dict[str, bool]
) -> "TokenizedTexts":
    """Tokenize, and record for each text whether it was truncated."""
    tokens = embedder.tokenize(texts)
    truncated.update(zip(texts, tokens.truncated.tolist(), strict=True))
    return tokens


def _score(
    plan: Plan, protocol_train: np.ndarray, evaluated: np.ndarray, head: "Head | None"
) -> dict[str, Any]:
    """The fields of a Result that hold scores."""
    task, labels = plan.task, plan.labels(Subset.EVAL)
    predictions = protocol.predict(
        protocol_train,
        task.train.labels,
        evaluated,
        samples_per_label=task.samples_per_label,
        rows=plan.rows[Subset.PROTOCOL_TRAIN],
    )
    head_predictions = head.predict(evaluated) if head else None

    def metrics_of(mask: np.ndarray) -> tuple[protocol.Scores, dict[str, Any] | None]:
        scores = protocol.Scores.from_predictions(labels[mask], [run[mask] for run in predictions])
        return scores, protocol.metrics(labels[mask], head_predictions[mask]) if head else None

    scores, head_scores = metrics_of(np.full(len(labels), True))
    duplicates, deduplicated = plan.eval_duplicates(), None
    if duplicates.any():
        deduplicated = {"texts": int(duplicates.sum())}
    if duplicates.any() and not duplicates.all():
        kept, head_kept = metrics_of(~duplicates)
        deduplicated |= {"scores": kept.mean, "experiments": list(kept.experiments)}
        deduplicated |= {"head": head_kept}
    return {
        "scores": scores.mean,
        "scores_per_experiment": list(scores.experiments),
        "head": head_scores,
        "majority_baseline": protocol.majority_baseline(task.train.labels, labels),
        "deduplicated": deduplicated,
    }


def _predict(
    plan: Plan, head: "Head", evaluated: np.ndarray, validation: np.ndarray
) -> Predictions:
    """What the head says of the embeddings of the scored texts, and of the validation texts."""
    return Predictions(
        head.classes,
        label_positions(head.classes, plan.labels(Subset.EVAL)),
        head.logits(evaluated).astype("float32"),
        label_positions(head.classes, plan.labels(Subset.VALIDATION)),
        head.logits(validation).astype("float32"),
    )


class _Stopwatch:
    """Seconds by step."""

    def __init__(self):
        self.seconds: dict[str, float] = {}
        self._last = self._start = time.perf_counter()

    def stop(self, step: str) -> None:
        now = time.perf_counter()
        self.seconds[step] = round(now - self._last, 2)
        self._last = now

    def total(self) -> dict[str, float]:
        return self.seconds | {"total": round(time.perf_counter() - self._start, 2)}

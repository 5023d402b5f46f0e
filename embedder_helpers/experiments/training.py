"""Training: the embedder's model under a classification head.

Two learning rates: RoBERTa is pretrained and learns slowly; projection and head are new. Compiling
a training step takes longer than an epoch of a small task, so `build_classifier` does it once, and
`train_classifier` can train the same classifier for any number of experiments.
"""

import logging
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from embedder_helpers.config import Experiment
from embedder_helpers.errors import InputError
from embedder_helpers.experiments.losses import supervised_contrastive
from embedder_helpers.models.batching import (
    ModelInputs,
    paired_batches,
    training_batches,
)
from embedder_helpers.models.layers import NEW_LAYERS, initialize
from embedder_helpers.models.text_model import TextModel, padded_length
from embedder_helpers.utils import progress

logger = logging.getLogger(__name__)

WEIGHT_DECAY = 0.01
HEAD_DROPOUT = 0.1
HEAD_LAYERS = ("head_dropout", "head")


class TwoRateAdamW(keras.optimizers.AdamW):
    """AdamW (Loshchilov & Hutter 2019) with another learning rate for new layers.

    Both rates are variables, so that one compiled step serves every schedule and experiment.

    Attributes:
        rate_factor: how many times the rate of pretrained layers that of the NEW_LAYERS is.
    """

    def __init__(self, clip_norm: float | None = None):
        super().__init__(0.0, weight_decay=WEIGHT_DECAY, global_clipnorm=clip_norm)

    def build(self, variables):
        """Record which variables belong to new layers; a backend's own variables have no path."""
        super().build(variables)
        self.rate_factor = self.add_variable((), "ones", name="rate_factor")
        self._is_new = [v.path.split("/")[0].startswith(NEW_LAYERS) for v in variables]

    def update_step(self, gradient, variable, learning_rate):
        """Keras's step, at the variable's own rate."""
        if self._is_new[self._get_variable_index(variable)]:
            learning_rate = learning_rate * ops.cast(self.rate_factor, learning_rate.dtype)
        super().update_step(gradient, variable, learning_rate)

    def _all_reduce_sum_gradients(self, grads_and_vars):
        """Nothing, since there is one replica.

        Keras's own sum on TensorFlow registers a gradient for good, and so keeps the whole graph
        and its variables in memory after the model is gone.
        """
        return grads_and_vars


class Classifier(TextModel):
    """An embedder's model under a classification head: `(logits, embeddings)` of a batch.

    The loss is the cross-entropy of the logits plus the contrastive loss of the embeddings, times
    its weight. That and the temperature are variables, so that one compiled step serves them all.

    Attributes:
        contrastive_weight: 0 for cross-entropy alone.
        contrastive_temperature: temperature of the contrastive loss.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.contrastive_weight = keras.Variable(0.0, trainable=False, name="contrastive_weight")
        self.contrastive_temperature = keras.Variable(
            1.0, trainable=False, name="contrastive_temperature"
        )

    def compute_loss(
        self, x=None, y=None, y_pred=None, sample_weight=None, training=True
    ):  # Keras's names
        """The loss of a batch, a number."""
        logits, embeddings = y_pred
        cross_entropy = super().compute_loss(x, y, logits, sample_weight, training)
        contrastive = supervised_contrastive(
            y, embeddings, self.contrastive_temperature, sample_weight
        )
        return cross_entropy + self.contrastive_weight * contrastive

    def compute_metrics(self, x, y, y_pred, sample_weight=None):
        """Metrics of the logits, by names before which Keras 3.13 puts that of the output."""
        metrics = super().compute_metrics(x, y, y_pred[0], sample_weight)
        return {name.removeprefix("head_"): value for name, value in metrics.items()}


def shuffled_rows(
    lengths: np.ndarray,
    labels: np.ndarray,
    batch_size: int,
    generator: np.random.Generator,
    is_paired: bool = False,
) -> list[np.ndarray]:
    """Rows of shuffled batches of texts of similar length; see `shuffled_batches`."""
    if is_paired:
        return paired_batches(lengths, labels, batch_size, generator)
    return training_batches(lengths, batch_size, generator)


def shuffled_batches(
    inputs: ModelInputs,
    labels: np.ndarray,
    batch_size: int,
    longest: int,
    generator: np.random.Generator,
    is_paired: bool = False,
) -> Iterator[tuple[dict[str, np.ndarray], np.ndarray]]:
    """Batches of texts of similar length, padded to the longest one, in random order.

    Args:
        inputs: token ids or hidden states, memory-mapped or not.
        labels: `(texts,)` class numbers.
        batch_size: texts per batch.
        longest: positions of the longest bucket, to which texts are padded if shapes are compiled.
        generator: of the order.
        is_paired: whether a label in a batch has two texts or more there.

    Yields:
        Model inputs and class numbers.
    """
    for rows in shuffled_rows(inputs.lengths, labels, batch_size, generator, is_paired):
        length = padded_length(inputs.lengths[rows], longest)
        yield inputs.batch(rows, length, len(rows)), labels[rows].astype("int32")


class EpochLogger(keras.callbacks.Callback):
    """Advances a progress bar with every step, and logs the metrics of every epoch."""

    def __init__(self, bar: Any):
        super().__init__()
        self.bar = bar

    def on_train_batch_end(self, batch, logs=None):
        """Advance the bar."""
        self.bar.update(1)

    def on_epoch_end(self, epoch, logs=None):
        """Log the epoch's metrics."""
        metrics = ", ".join(f"{name} {value:.3f}" for name, value in (logs or {}).items())
        logger.info("  epoch %d of %d: %s", epoch + 1, self.params["epochs"], metrics)


def build_classifier(
    model: keras.Model, classes: int, clip_norm: float | None = None
) -> Classifier:
    """The model with a classification head: dropout and a dense layer that returns logits.

    The head's initial weights are small, as BERT's are (Devlin et al. 2019): the few large
    dimensions of an embedding would otherwise cause large, wrong logits, and the first steps would
    destroy what RoBERTa has learned.

    Args:
        model: of an embedder.
        classes: number of classes.
        clip_norm: as in the Experiment.

    Returns:
        A compiled model, which `train_classifier` can train any number of times.
    """
    embedding = keras.layers.Dropout(HEAD_DROPOUT, name="head_dropout")(model.output)
    small = keras.initializers.TruncatedNormal(stddev=0.02)
    logits = keras.layers.Dense(classes, kernel_initializer=small, name="head")(embedding)
    classifier = Classifier(model.input, [logits, model.output])
    optimizer = TwoRateAdamW(clip_norm)
    if any(layer.compute_dtype == "float16" for layer in classifier.layers):
        # Small gradients vanish in float16; a step whose gradients overflow is skipped.
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
    # A step that creates variables, of the optimizer or of a metric, would be traced twice.
    optimizer.build(classifier.trainable_variables)
    classifier.compile(
        optimizer=optimizer,
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=[keras.metrics.SparseCategoricalAccuracy(name="accuracy")],
        # On TensorFlow XLA would compile the whole step for every bucket, longer than an epoch; JAX
        # without it would run each operation by itself.
        jit_compile=keras.config.backend() == "jax",
    )
    return classifier


def train_classifier(
    classifier: Classifier,
    train: tuple[ModelInputs, np.ndarray],
    validation: tuple[ModelInputs, np.ndarray],
    experiment: Experiment,
    longest: int,
    work: float = 0.0,
    callbacks: Sequence[keras.callbacks.Callback] = (),
) -> list[dict[str, float]]:
    """Train the classifier in place, with a new head and a new optimizer.

    Without `patience` it keeps the weights of the last epoch. With `patience`, training stops after
    that many epochs without a better one, and the weights of the best epoch are restored: that of
    the highest validation accuracy, the first among equals.

    Args:
        classifier: returned by `build_classifier`.
        train: model inputs and their class numbers.
        validation: likewise; never trained on.
        experiment: objective, epochs, batch size, learning rates and seed.
        longest: positions of the classifier's longest input.
        work: operations in all, for the progress bar.
        callbacks: further callbacks, called at each epoch and training step.

    Returns:
        Loss and accuracy on both splits for each epoch.

    Raises:
        InputError: the loss is not finite, on one of the splits.
    """
    _reset(classifier, experiment)
    generator = np.random.default_rng(experiment.seed)
    steps_per_epoch = -(-len(train[1]) // experiment.batch_size)
    steps = steps_per_epoch * experiment.epochs
    rates = (learning_rate(step, steps, experiment) for step in range(steps))
    class_weights = _class_weights(train[1]) if experiment.class_weights else None
    history: list[dict[str, float]] = []
    with progress.progress_bar(steps, "training", "step", {progress.TRAINING: work}) as bar:
        listeners = keras.callbacks.CallbackList(
            [*_early_stopping(experiment), EpochLogger(bar), *callbacks],
            model=classifier, epochs=experiment.epochs, steps=steps_per_epoch, verbose=0,
        )  # fmt: skip
        listeners.on_train_begin()
        for epoch in range(experiment.epochs):
            listeners.on_epoch_begin(epoch)
            is_paired = experiment.objective == "contrastive"
            batches = shuffled_batches(*train, experiment.batch_size, longest, generator, is_paired)
            metrics = _train_epoch(classifier, batches, rates, class_weights, listeners)
            fixed_order = np.random.default_rng(experiment.seed)
            batches = shuffled_batches(*validation, experiment.batch_size, longest, fixed_order)
            validated = _evaluate(classifier, batches)
            metrics |= {f"val_{name}": value for name, value in validated.items()}
            history.append(metrics)
            listeners.on_epoch_end(epoch, metrics)
            is_finite = np.isfinite(list(metrics.values())).all()
            if classifier.stop_training or not is_finite:
                break
        listeners.on_train_end(metrics)
    if not is_finite:
        raise InputError(
            f"training diverged in epoch {len(history)}: the loss is not finite; lower "
            "learning_rate or projection_learning_rate"
        )
    return history


def _reset(classifier: Classifier, experiment: Experiment) -> None:
    """Give the classifier its objective, a new head and optimizer, without building them again."""
    weight, temperature = 0.0, 1.0  # a temperature that is not used must not overflow either
    if experiment.objective == "contrastive":
        weight, temperature = experiment.contrastive_weight, experiment.contrastive_temperature
    classifier.contrastive_weight.assign(weight)
    classifier.contrastive_temperature.assign(temperature)
    initialize([classifier.get_layer(name) for name in HEAD_LAYERS], experiment.seed)
    if keras.config.backend() == "torch":  # Keras's dropout draws from its global generator
        import torch

        torch.manual_seed(experiment.seed)
    optimizer = classifier.optimizer
    for variable in optimizer.variables:
        variable.assign(ops.zeros(variable.shape, variable.dtype))
    if isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
        optimizer.dynamic_scale.assign(optimizer.initial_scale)
        optimizer = optimizer.inner_optimizer
    optimizer.rate_factor.assign(experiment.projection_learning_rate / experiment.learning_rate)
    classifier.stop_training = False


def learning_rate(step: int, steps: int, experiment: Experiment) -> float:
    """RoBERTa's learning rate at a step, counted from 0: it rises, then falls to 0 as a cosine."""
    warmup = min(round(experiment.warmup * steps), steps - 1)  # at least one step is left to fall
    if step < warmup:
        return experiment.learning_rate * step / warmup
    fallen = (step - warmup) / (steps - warmup)
    return experiment.learning_rate * (1 + math.cos(math.pi * fallen)) / 2


def _train_epoch(
    classifier: Classifier,
    batches: Iterable[tuple[dict[str, np.ndarray], np.ndarray]],
    rates: Iterator[float],
    class_weights: np.ndarray | None,
    listeners: keras.callbacks.CallbackList,
) -> dict[str, float]:
    """Train on each batch, at the next of the rates; returns loss and accuracy over all texts.

    Not `fit`, which keeps its data sets, and with them open files, for the life of the process.
    """
    metrics, sizes = [], []
    for number, ((inputs, labels), rate) in enumerate(zip(batches, rates, strict=False)):
        listeners.on_train_batch_begin(number)
        classifier.optimizer.learning_rate = rate
        classifier.reset_metrics()  # before Keras 3.14, train_on_batch adds to the metrics
        weights = _text_weights(labels, class_weights)
        metrics.append(classifier.train_on_batch(inputs, labels, weights, return_dict=True))
        sizes.append(len(labels))
        listeners.on_train_batch_end(number, metrics[-1])
        if classifier.stop_training or not np.isfinite(metrics[-1]["loss"]):
            break
    return _mean(metrics, sizes)


def _evaluate(
    classifier: Classifier, batches: Iterable[tuple[dict[str, np.ndarray], np.ndarray]]
) -> dict[str, float]:
    """Loss and accuracy over all texts."""
    metrics, sizes = [], []
    for inputs, labels in batches:
        classifier.reset_metrics()
        weights = _text_weights(labels, None)
        metrics.append(classifier.test_on_batch(inputs, labels, weights, return_dict=True))
        sizes.append(len(labels))
    return _mean(metrics, sizes)


def _mean(metrics: Sequence[Mapping[str, Any]], sizes: Sequence[int]) -> dict[str, float]:
    """Means over the texts of batches of these sizes."""
    return {
        name: float(np.average([float(one[name]) for one in metrics], weights=sizes))
        for name in metrics[0]
    }


def _early_stopping(experiment: Experiment) -> list[keras.callbacks.Callback]:
    if experiment.patience is None:
        return []
    return [
        keras.callbacks.EarlyStopping(
            "val_accuracy", mode="max", patience=experiment.patience, restore_best_weights=True
        )
    ]


def _class_weights(labels: np.ndarray) -> np.ndarray:
    """Class weights inversely proportional to frequency, with a mean of 1 over the texts."""
    counts = np.bincount(labels)
    return len(labels) / len(counts) / np.maximum(counts, 1)


def _text_weights(labels: np.ndarray, class_weights: np.ndarray | None) -> np.ndarray:
    """Each text's weight in the loss, `(texts,)`; without class weights 1."""
    weights = np.ones(len(labels)) if class_weights is None else class_weights[labels]
    return weights.astype("float32")

"""Training: the embedder's model under a classification head, with Keras's `fit`.

Two learning rates: RoBERTa is pretrained and learns slowly; projection and head are new.
"""

import logging
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from embedder_helpers.config import Experiment, InputError
from embedder_helpers.models.batching import ModelInputs, bucket_length, training_batches
from embedder_helpers.utils import progress

logger = logging.getLogger(__name__)

WEIGHT_DECAY = 0.01
HEAD_DROPOUT = 0.1
# Layers that are not pretrained.
NEW_LAYERS = ("layer_pooling", "projection", "head")


class TwoRateAdamW(keras.optimizers.AdamW):
    """AdamW (Loshchilov & Hutter 2019) with a higher learning rate for new layers.

    Args:
        learning_rate: of pretrained layers.
        new_rate: factor by which the rate of the layers in NEW_LAYERS is higher.
    """

    def __init__(self, learning_rate: Any, new_rate: float, **kwargs):
        super().__init__(learning_rate, weight_decay=WEIGHT_DECAY, **kwargs)
        self.new_rate = new_rate

    def build(self, variables):
        """Record which variables belong to new layers; a backend's own variables have no path."""
        super().build(variables)
        self._is_new = [v.path.split("/")[0].startswith(NEW_LAYERS) for v in variables]

    def update_step(self, gradient, variable, learning_rate):
        """Keras's step, at the variable's own rate."""
        is_new = self._is_new[self._get_variable_index(variable)]
        super().update_step(gradient, variable, learning_rate * (self.new_rate if is_new else 1.0))


class TrainingBatches(keras.utils.PyDataset):
    """Batches of texts of similar length, shuffled every epoch, padded to their bucket.

    Args:
        inputs: token ids or hidden states, memory-mapped or not.
        labels: `(texts,)` class numbers.
        experiment: batch size, and seed of the shuffles.
        longest: positions of the longest bucket.
    """

    def __init__(
        self, inputs: ModelInputs, labels: np.ndarray, experiment: Experiment, longest: int
    ):
        super().__init__()
        self.inputs = inputs
        self.labels = labels
        self.batch_size = experiment.batch_size
        self.longest = longest
        self.generator = np.random.default_rng(experiment.seed)
        self.shortest = 0
        self.on_epoch_end()
        lengths = {self._length(rows) for rows in self.batches}
        # Keras expects the shapes of the first epoch's first two batches from then on: if all
        # batches have the same length, no later one may be shorter.
        self.shortest = max(lengths) if len(lengths) == 1 else 0

    def on_epoch_end(self):
        """Shuffle."""
        batches = training_batches(self.inputs.lengths, self.batch_size, self.generator)
        # Unless the first two batches differ in length, Keras assumes that all have theirs.
        lengths = [self._length(rows) for rows in batches]
        other = next((i for i, length in enumerate(lengths) if length != lengths[0]), 0)
        batches.insert(1, batches.pop(other))
        self.batches = batches

    def _length(self, rows):
        return max(self.shortest, bucket_length(self.inputs.lengths[rows].max(), self.longest))

    def __len__(self):
        return len(self.batches)

    def __getitem__(self, index):
        rows = self.batches[index]
        return self.inputs.batch(rows, self._length(rows), len(rows)), self.labels[rows]


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


def add_head(model: keras.Model, classes: int) -> keras.Model:
    """The model with a classification head: dropout and a dense layer that returns logits.

    The head's initial weights are small, as BERT's are (Devlin et al. 2019): the few large
    dimensions of an embedding would otherwise cause large, wrong logits, and the first steps would
    destroy what RoBERTa has learned.
    """
    embedding = keras.layers.Dropout(HEAD_DROPOUT, name="head_dropout")(model.output)
    small = keras.initializers.TruncatedNormal(stddev=0.02)
    logits = keras.layers.Dense(classes, kernel_initializer=small, name="head")(embedding)
    return keras.Model(model.input, logits)


def train_classifier(
    classifier: keras.Model,
    train: tuple[ModelInputs, np.ndarray],
    validation: tuple[ModelInputs, np.ndarray],
    experiment: Experiment,
    longest: int,
    work: float = 0.0,
    callbacks: Sequence[keras.callbacks.Callback] = (),
) -> list[dict[str, float]]:
    """Train the classifier in place.

    Without `patience` it keeps the weights of the last epoch. With `patience`, training stops after
    that many epochs without a better one, and the weights of the best epoch are restored: that of
    the highest validation accuracy, the first among equals.

    Args:
        classifier: returned by `add_head`.
        train: model inputs and their class numbers.
        validation: likewise; never trained on.
        experiment: epochs, batch size, learning rates and seed.
        longest: positions of the classifier's longest input.
        work: operations in all, for the progress bar.
        callbacks: further callbacks for `fit`.

    Returns:
        Loss and accuracy on both splits for each epoch.

    Raises:
        InputError: the loss is not finite.
    """
    batches = TrainingBatches(*train, experiment, longest)
    steps = len(batches) * experiment.epochs
    _compile(classifier, experiment, steps)
    with progress.progress_bar(steps, "training", "step", work=work) as bar:
        own = [*_early_stopping(experiment), keras.callbacks.TerminateOnNaN(), EpochLogger(bar)]
        history = classifier.fit(
            batches,
            validation_data=TrainingBatches(*validation, experiment, longest),
            epochs=experiment.epochs,
            class_weight=_class_weights(train[1]) if experiment.class_weights else None,
            callbacks=[*own, *callbacks],
            shuffle=False,  # TrainingBatches shuffles
            verbose=0,
        ).history
    if not np.isfinite(history["loss"]).all():
        raise InputError(
            f"training diverged in epoch {len(history['loss'])}: the loss is not finite; lower "
            "learning_rate or projection_learning_rate"
        )
    epochs = zip(*history.values(), strict=True)
    return [dict(zip(history, map(float, epoch), strict=True)) for epoch in epochs]


def _early_stopping(experiment: Experiment) -> list[keras.callbacks.Callback]:
    if experiment.patience is None:
        return []
    return [
        keras.callbacks.EarlyStopping(
            "val_accuracy", mode="max", patience=experiment.patience, restore_best_weights=True
        )
    ]


def _class_weights(labels: np.ndarray) -> dict[int, float]:
    """Class weights inversely proportional to frequency, with a mean of 1 over the texts."""
    counts = np.bincount(labels)
    return {label: len(labels) / len(counts) / count for label, count in enumerate(counts) if count}


def _compile(classifier: keras.Model, experiment: Experiment, steps: int) -> None:
    """Set the loss, and the optimizer with learning rates that rise, then fall to 0."""
    warmup = min(round(experiment.warmup * steps), steps - 1)  # at least one step is left to fall
    peak = {"warmup_target": experiment.learning_rate, "warmup_steps": warmup} if warmup else {}
    rate = keras.optimizers.schedules.CosineDecay(
        0.0 if warmup else experiment.learning_rate, decay_steps=steps - warmup, **peak
    )
    new_rate = experiment.projection_learning_rate / experiment.learning_rate
    optimizer = TwoRateAdamW(rate, new_rate, global_clipnorm=experiment.clip_norm)
    if any(layer.compute_dtype == "float16" for layer in classifier.layers):
        # Small gradients vanish in float16; a step whose gradients overflow is skipped.
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
    classifier.compile(
        optimizer=optimizer,
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
        jit_compile=False,  # XLA compiles the whole step for every bucket: longer than an epoch
    )

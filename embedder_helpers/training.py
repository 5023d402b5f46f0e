"""Training: the embedder's model under a classification head, with Keras's `fit`.

Two learning rates: RoBERTa is pretrained and learns slowly; projection and head start from nothing.
"""

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from embedder_helpers import platform
from embedder_helpers.config import Experiment, InputError
from embedder_helpers.fusion import Inputs
from embedder_helpers.tokens import bucket, training_batches

WEIGHT_DECAY = 0.01
HEAD_DROPOUT = 0.1
# Layers that start from nothing; every other layer is pretrained.
NEW_LAYERS = ("layer_pooling", "projection", "head")


class TwoRateAdamW(keras.optimizers.AdamW):
    """AdamW (Loshchilov & Hutter 2019) whose new layers learn at a multiple of the rate.

    Args:
        new_rate: how many times the rate the layers named in NEW_LAYERS learn at.
    """

    def __init__(self, learning_rate: Any, new_rate: float, **kwargs):
        super().__init__(learning_rate, weight_decay=WEIGHT_DECAY, **kwargs)
        self.new_rate = new_rate

    def build(self, variables):
        """Notes which variables belong to new layers; a backend's own variables have no path."""
        super().build(variables)
        self._is_new = [one.path.split("/")[0].startswith(NEW_LAYERS) for one in variables]

    def update_step(self, gradient, variable, learning_rate):
        """Keras's step, at the variable's own rate."""
        is_new = self._is_new[self._get_variable_index(variable)]
        super().update_step(gradient, variable, learning_rate * (self.new_rate if is_new else 1.0))


class Batches(keras.utils.PyDataset):
    """Batches of texts of like length, shuffled anew each epoch, padded to their bucket.

    Args:
        prepared: token ids, or states, memory-mapped or not.
        labels: `(texts,)` class numbers.
        experiment: batch size and seed of the shuffles.
        longest: positions of the longest bucket.
    """

    def __init__(self, prepared: Inputs, labels: np.ndarray, experiment: Experiment, longest: int):
        super().__init__()
        self.prepared = prepared
        self.labels = labels
        self.batch_size = experiment.batch_size
        self.longest = longest
        self.generator = np.random.default_rng(experiment.seed)
        self.shortest = 0
        self.on_epoch_end()
        lengths = {self._length(rows) for rows in self.batches}
        # Keras holds on to the shapes of the first epoch's first two batches: where all had one
        # length, no later batch may be shorter.
        self.shortest = max(lengths) if len(lengths) == 1 else 0

    def on_epoch_end(self):
        """Shuffles."""
        batches = training_batches(self.prepared.lengths, self.batch_size, self.generator)
        # Unless the first two batches differ in length, Keras takes theirs for that of all.
        lengths = [self._length(rows) for rows in batches]
        other = next((i for i, length in enumerate(lengths) if length != lengths[0]), 0)
        batches.insert(1, batches.pop(other))
        self.batches = batches

    def _length(self, rows):
        return max(self.shortest, bucket(self.prepared.lengths[rows].max(), self.longest))

    def __len__(self):
        return len(self.batches)

    def __getitem__(self, index):
        rows = self.batches[index]
        return self.prepared.batch(rows, self._length(rows), len(rows)), self.labels[rows]


class Progress(keras.callbacks.Callback):
    """Moves a progress bar with every step, and says how each epoch went."""

    def __init__(self, bar: Any):
        super().__init__()
        self.bar = bar

    def on_train_batch_end(self, batch, logs=None):
        """One step."""
        self.bar.update(1)

    def on_epoch_end(self, epoch, logs=None):
        """One line."""
        found = ", ".join(f"{name} {value:.3f}" for name, value in (logs or {}).items())
        platform.say(f"  epoch {epoch + 1} of {self.params['epochs']}: {found}")


def add_head(model: keras.Model, classes: int) -> keras.Model:
    """The model with a classification head: dropout and a dense layer that gives logits.

    The head starts small, as BERT's does (Devlin et al. 2019): an embedding's few large dimensions
    would else give large, wrong logits, and the first steps would spoil what RoBERTa knows.
    """
    dropped = keras.layers.Dropout(HEAD_DROPOUT, name="head_dropout")(model.output)
    small = keras.initializers.TruncatedNormal(stddev=0.02)
    logits = keras.layers.Dense(classes, kernel_initializer=small, name="head")(dropped)
    return keras.Model(model.input, logits)


def fit(
    classifier: keras.Model,
    train: tuple[Inputs, np.ndarray],
    validation: tuple[Inputs, np.ndarray],
    experiment: Experiment,
    longest: int,
    work: float = 0.0,
    told: Sequence[keras.callbacks.Callback] = (),
) -> list[dict[str, float]]:
    """Trains the classifier in place.

    Without `patience` it is left as it is after its last epoch. With it, training ends after so
    many epochs without a better one, and the best epoch's weights come back: that of the highest
    validation accuracy, among equals the first.

    Args:
        classifier: of `add_head`.
        train: prepared texts and their class numbers.
        validation: likewise; watched, never trained on.
        experiment: epochs, batch size, learning rates and seed.
        longest: positions of the classifier's longest input.
        work: operations in all, for the progress bar.
        told: of each epoch too.

    Returns:
        Loss and accuracy on both splits for each epoch.

    Raises:
        InputError: the loss is not finite.
    """
    batches = Batches(*train, experiment, longest)
    steps = len(batches) * experiment.epochs
    _compile(classifier, experiment, steps)
    with platform.progress(steps, "training", "step", work=work) as bar:
        ours = [*_stopping(experiment), keras.callbacks.TerminateOnNaN(), Progress(bar)]
        history = classifier.fit(
            batches,
            validation_data=Batches(*validation, experiment, longest),
            epochs=experiment.epochs,
            class_weight=_class_weights(train[1]) if experiment.class_weights else None,
            callbacks=[*ours, *told],
            shuffle=False,  # Batches shuffles
            verbose=0,
        ).history
    if not np.isfinite(history["loss"]).all():
        raise InputError(
            f"training diverged in epoch {len(history['loss'])}: the loss is not finite; lower "
            "learning_rate or projection_learning_rate"
        )
    epochs = zip(*history.values(), strict=True)
    return [dict(zip(history, map(float, epoch), strict=True)) for epoch in epochs]


def _stopping(experiment: Experiment) -> list[keras.callbacks.Callback]:
    """Early stopping, where it is asked for."""
    if experiment.patience is None:
        return []
    return [
        keras.callbacks.EarlyStopping(
            "val_accuracy", mode="max", patience=experiment.patience, restore_best_weights=True
        )
    ]


def _class_weights(labels: np.ndarray) -> dict[int, float]:
    """Weights under which every class counts alike, and a text 1 on average."""
    counts = np.bincount(labels)
    return {label: len(labels) / len(counts) / count for label, count in enumerate(counts) if count}


def _compile(classifier: keras.Model, experiment: Experiment, steps: int) -> None:
    """Gives the classifier its loss, and its optimizer with rates that rise, then fall to 0."""
    warmup = min(round(experiment.warmup * steps), steps - 1)  # one is left to fall
    peak = {"warmup_target": experiment.learning_rate, "warmup_steps": warmup} if warmup else {}
    rate = keras.optimizers.schedules.CosineDecay(
        0.0 if warmup else experiment.learning_rate, decay_steps=steps - warmup, **peak
    )
    new_rate = experiment.projection_learning_rate / experiment.learning_rate
    optimizer = TwoRateAdamW(rate, new_rate, global_clipnorm=experiment.clip_norm)
    if any(layer.compute_dtype == "float16" for layer in classifier.layers):
        # Small gradients vanish in float16; a step whose gradients overflow is left out.
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
    classifier.compile(
        optimizer=optimizer,
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
        jit_compile=False,  # XLA compiles the whole step for every bucket: longer than an epoch
    )

"""Training: the embedder's model under a classification head, with Keras's `fit`.

Two learning rates: RoBERTa is pretrained and learns slowly; projection and head start from nothing.
"""

import sys
from typing import Any

import keras
import numpy as np

from embedder_helpers.config import Experiment
from embedder_helpers.tokens import Ragged, bucket, training_batches

WEIGHT_DECAY = 0.01
HEAD_DROPOUT = 0.1
# Layers that start from nothing; every other layer is pretrained.
NEW_LAYERS = ("projection", "head")


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
        prepared: token ids or states.
        labels: `(texts,)` class numbers.
        batch_size: texts a batch.
        seed: of the shuffles.
    """

    def __init__(self, prepared: Ragged, labels: np.ndarray, batch_size: int, seed: int):
        super().__init__()
        self.prepared = prepared
        self.labels = labels
        self.batch_size = batch_size
        self.generator = np.random.default_rng(seed)
        self.on_epoch_end()

    def on_epoch_end(self):
        """Shuffles."""
        batches = training_batches(self.prepared.lengths, self.batch_size, self.generator)
        # Keras takes the shapes of the first two batches for those of all, unless they differ.
        lengths = [self._length(rows) for rows in batches]
        other = next((i for i, length in enumerate(lengths) if length != lengths[0]), 0)
        batches.insert(1, batches.pop(other))
        self.batches = batches

    def _length(self, rows):
        return bucket(self.prepared.lengths[rows].max())

    def __len__(self):
        return len(self.batches)

    def __getitem__(self, index):
        rows = self.batches[index]
        values, mask = self.prepared.padded(rows, self._length(rows), len(rows))
        return {"inputs": values, "mask": mask}, self.labels[rows]


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
    train: tuple[Ragged, np.ndarray],
    validation: tuple[Ragged, np.ndarray],
    experiment: Experiment,
) -> list[dict[str, float]]:
    """Trains the classifier in place and leaves it as it was after its best epoch.

    The best epoch has the highest validation accuracy; among equals, the first.

    Args:
        classifier: of `add_head`.
        train: prepared texts and their class numbers.
        validation: likewise; watched, never trained on.
        experiment: epochs, batch size, learning rates and seed.

    Returns:
        Loss and accuracy on both splits for each epoch.
    """
    batches = Batches(*train, experiment.batch_size, experiment.seed)
    rate = keras.optimizers.schedules.PolynomialDecay(
        experiment.learning_rate,
        decay_steps=len(batches) * experiment.epochs,
        end_learning_rate=0.0,
    )
    new_rate = experiment.projection_learning_rate / experiment.learning_rate
    classifier.compile(
        optimizer=TwoRateAdamW(rate, new_rate),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
        jit_compile=False,  # XLA compiles the whole step for every bucket: longer than an epoch
    )
    best = keras.callbacks.EarlyStopping(
        "val_accuracy", mode="max", patience=experiment.epochs, restore_best_weights=True
    )
    history = classifier.fit(
        batches,
        validation_data=Batches(*validation, 4 * experiment.batch_size, experiment.seed),
        epochs=experiment.epochs,
        callbacks=[best],
        shuffle=False,  # Batches shuffles
        verbose=1 if sys.stdout.isatty() else 2,
    )
    names = history.history
    return [
        dict(zip(names, map(float, epoch), strict=True))
        for epoch in zip(*names.values(), strict=True)
    ]

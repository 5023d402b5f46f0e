"""A Keras model of texts that is compiled once, for any number and length of them."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import keras
import numpy as np

from embedder_helpers.models.batching import bucket_length, inference_batches, sorted_batches

FORWARD_TOKENS = 4096  # per batch of a forward pass
LABELS = ((None,), "int32")  # shape and dtype of a batch's class numbers
TEXT_WEIGHTS = ((None,), "float32")  # and of its texts' weights


def tokens_input(name: str) -> keras.KerasTensor:
    """Input `(texts, tokens)` of token ids, or of a mask."""
    return keras.Input((None,), dtype="int32", name=name)


def is_traced_once() -> bool:
    """Whether one compiled function serves batches of every shape, so that padding is waste."""
    return keras.config.backend() != "jax"


def padded_length(lengths: np.ndarray, longest: int) -> int:
    """Positions of a batch in training: those of its longest text, or of its bucket if compiled.

    Args:
        lengths: `(texts,)` number of tokens of each text of the batch.
        longest: positions of the longest bucket.
    """
    length = int(lengths.max())
    return length if is_traced_once() else bucket_length(length, longest)


def forward_batches(
    lengths: np.ndarray, longest: int, batch_size: int | None = None
) -> Iterator[tuple[np.ndarray, int, int]]:
    """Batches of a forward pass, with as few shapes or as little padding as the backend likes.

    Args:
        lengths: `(texts,)` number of tokens of each text.
        longest: positions of the longest bucket.
        batch_size: upper limit of the number of texts; None: no limit.

    Yields:
        Rows, padded length and padded number of texts.
    """
    if is_traced_once():
        return sorted_batches(lengths, FORWARD_TOKENS, batch_size)
    return inference_batches(lengths, FORWARD_TOKENS, longest, batch_size)


class TextModel(keras.Model):
    """A functional model with inputs `(texts, tokens, …)`, traced once per purpose on TensorFlow.

    Keras itself traces a function for the shape of the first batch, and again for other shapes
    until it has relaxed every dimension that differs, so that later batches, or experiments, may
    still cost a trace. XLA is not used: it compiles anew for every shape. Other backends run
    Keras's own functions as they choose.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        if keras.config.backend() == "tensorflow":
            self.jit_compile = False

    def make_train_function(self, force=False):
        """Trace a step on inputs, labels and weights of the texts."""
        if keras.config.backend() != "tensorflow":
            return super().make_train_function(force)
        if self.train_function is None or force:
            self.train_function = self._trace(self.train_step, LABELS, TEXT_WEIGHTS)

    def make_test_function(self, force=False):
        """Trace the evaluation of a batch, as in training."""
        if keras.config.backend() != "tensorflow":
            return super().make_test_function(force)
        if self.test_function is None or force:
            self.test_function = self._trace(self.test_step, LABELS, TEXT_WEIGHTS)

    def make_predict_function(self, force=False):
        """Trace a forward pass."""
        if keras.config.backend() != "tensorflow":
            return super().make_predict_function(force)
        if self.predict_function is None or force:
            self.predict_function = self._trace(self.predict_step)

    def _trace(
        self, step: Callable[[tuple], Any], *others: tuple[tuple, str]
    ) -> Callable[[Iterable], Any]:
        """A function of batches, as Keras calls it, that runs a step on the next one of them.

        Args:
            step: function of a tuple: inputs, and what else a batch has.
            others: shape and dtype of everything else.
        """
        import tensorflow as tf

        inputs = {
            name: tf.TensorSpec((None, None, *tensor.shape[2:]), tensor.dtype)
            for name, tensor in self.input.items()
        }
        batch = (inputs, *(tf.TensorSpec(*other) for other in others))
        traced = tf.function(step, input_signature=[batch], autograph=False)
        return lambda batches: traced(next(iter(batches)))

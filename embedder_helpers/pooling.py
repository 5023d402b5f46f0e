"""Poolings: how the states of several cutoffs become one, and token states one embedding."""

from typing import Any

import keras
from keras import ops


def pool(states: Any, mask: Any, pooling: str) -> Any:
    """One embedding per text. Padding never counts.

    Args:
        states: `(texts, tokens, width)`.
        mask: `(texts, tokens)`, 1 for tokens and 0 for padding, which stands on the right.
        pooling: `mean`, `max`, `first` or `last` over the tokens.

    Returns:
        `(texts, width)`.
    """
    if pooling == "first":
        return states[:, 0]
    real = ops.expand_dims(ops.cast(mask, states.dtype), -1)  # (texts, tokens, 1)
    if pooling == "mean":
        return ops.sum(states * real, 1) / ops.maximum(ops.sum(real, 1), 1)
    if pooling == "max":
        return ops.max(ops.where(real > 0, states, ops.full_like(states, -1e9)), 1)
    # last: the token whose right neighbour is padding, or the end of the batch
    following = ops.pad(real[:, 1:], [(0, 0), (0, 1), (0, 0)])
    return ops.sum(states * real * (1 - following), 1)


class LayerPooling(keras.layers.Layer):
    """One state per token from those of several cutoffs.

    `learned` is a softmax-weighted mean whose weights are trained and start equal (as in ELMo,
    Peters et al. 2018, section 3.2, without its scale).

    Args:
        layer_pooling: `mean`, `max` or `learned`.
    """

    def __init__(self, layer_pooling: str, **kwargs):
        super().__init__(**kwargs)
        self.layer_pooling = layer_pooling

    def build(self, shape):
        """A logit per cutoff, where they are learned."""
        if self.layer_pooling == "learned":
            self.logits = self.add_weight(shape=(shape[-2],), initializer="zeros", name="logits")

    def call(self, states):
        """`(texts, tokens, cutoffs, width)` to `(texts, tokens, width)`."""
        if self.layer_pooling == "max":
            return ops.max(states, -2)
        if self.layer_pooling == "mean":
            return ops.mean(states, -2)
        weights = ops.reshape(ops.softmax(self.logits), (-1, 1))
        return ops.sum(states * ops.cast(weights, states.dtype), -2)

    def get_config(self):
        """What `from_config` needs."""
        return {**super().get_config(), "layer_pooling": self.layer_pooling}

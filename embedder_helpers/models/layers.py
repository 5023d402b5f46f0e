"""Layers between Gemma's hidden states, RoBERTa, and the embedding of a text.

In the order in which they are applied: `Standardize` and `LayerPooling` prepare the hidden states
for the projection, `Gate` and `fuse_embeddings` turn projected hidden states into RoBERTa's input
embeddings, and `pool` pools the last hidden states of the tokens into one embedding, beside which
`fuse_late` puts Gemma's own.

Of the fusions, `replace` uses projected hidden states in place of token embeddings, as the original
study did. `add` adds to each token's embedding the projected hidden state of the Gemma token in
which it ends, as Bergner et al. 2024 (Think Big, Generate Quick: LLM-to-SLM) add an LLM's
representation to a small model's. `prepend` puts all projected hidden states before the text's own
tokens.
"""

import random
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import keras
import numpy as np
from keras import ops

from embedder_helpers.config import FUSION_NAMES
from embedder_helpers.errors import InputError
from embedder_helpers.models.batching import EMPTY, MultiLayerStates, RaggedArray

CHUNK = 64  # texts whose hidden states are read at a time
# Names of layers that are not pretrained begin with one of these.
NEW_LAYERS = ("standardise", "layer_pooling", "projection", "late", "head")
GATE_RATE = 30  # factor on a gate's weight, so that few training steps can move it far from 0


def initialize(layers: Iterable[keras.layers.Layer], seed: int) -> None:
    """Set layers to the state that training starts from, whatever they were used for before.

    New layers get initial weights, and every dropout its random state; pretrained weights stay. A
    layer's draws depend on the seed and its name alone, so that two models have in common what
    their layers have in common.
    """
    for layer in _flatten(layers):
        # Keras draws the seeds of initializers from here. Its own set_random_seed would reset
        # TensorFlow too, which in 2.20 invalidates the tables of all existing tokenizers.
        random.seed(f"{seed} {layer.name}")
        for variable in layer.variables:
            if variable.name == "seed_generator_state":
                variable.assign([random.getrandbits(31), 0])
        if layer.weights and layer.name.startswith(NEW_LAYERS):
            layer.set_weights(_fresh_copy(layer).get_weights())


def _flatten(layers: Iterable[keras.layers.Layer]) -> Iterator[keras.layers.Layer]:
    """The layers, and in place of a model its layers."""
    for layer in layers:
        if isinstance(layer, keras.Model):
            yield from _flatten(layer.layers)
        else:
            yield layer


def _fresh_copy(layer: keras.layers.Layer) -> keras.layers.Layer:
    copy = type(layer).from_config(layer.get_config())
    copy.build_from_config(layer.get_build_config())
    return copy


class Standardize(keras.layers.Layer):
    """Scale every dimension of the hidden states to mean 0 and deviation 1 over training tokens.

    Five of the 640 dimensions of Gemma 3 270M's normed hidden states hold 77 to 95 % of their
    energy and hardly vary (massive activations: Sun et al. 2024): an optimizer step on the weights
    of these dimensions would move every token alike.
    """

    def build(self, shape):
        """Create a mean and a deviation per dimension, and per cutoff if there are several."""
        for name, initializer in (("mean", "zeros"), ("deviation", "ones")):
            weight = self.add_weight(shape[2:], initializer, trainable=False, name=name)
            setattr(self, name, weight)

    def call(self, states):
        """`(texts, tokens, …, width)` to the same shape."""
        return (states - self.mean) / self.deviation

    def adapt(self, states: RaggedArray | MultiLayerStates) -> None:
        """Set mean and deviation to those of hidden states, read once, a chunk at a time."""
        count, sums, squares = 0, 0.0, 0.0
        for start in range(0, len(states), CHUNK):
            rows = range(start, min(start + CHUNK, len(states)))
            values = np.concatenate([states.text(row) for row in rows]).astype("float64")
            count, sums = count + len(values), sums + values.sum(0)
            squares = squares + np.square(values).sum(0)
        mean = sums / count
        variance = squares / count - np.square(mean)
        self.mean.assign(mean)
        self.deviation.assign(np.sqrt(np.maximum(variance, 1e-6 * variance.mean()) + 1e-12))


class LayerPooling(keras.layers.Layer):
    """Pool the hidden states of several cutoffs into one per token.

    `learned` is a softmax-weighted mean whose weights are trained and start equal (as in ELMo,
    Peters et al. 2018, section 3.2, without its scale).

    Args:
        layer_pooling: `mean`, `max` or `learned`, as in the Experiment.
    """

    def __init__(self, layer_pooling: str, **kwargs):
        super().__init__(**kwargs)
        self.layer_pooling = layer_pooling

    def build(self, shape):
        """Create a logit per cutoff if weights are learned."""
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
        """The arguments of `from_config`."""
        return {**super().get_config(), "layer_pooling": self.layer_pooling}


class Gate(keras.layers.Layer):
    """A trained factor that starts at 0, so that a hybrid starts as RoBERTa alone."""

    def build(self, shape):
        """Create the factor, a single number."""
        self.scale = self.add_weight(shape=(), initializer="zeros", name="scale")

    def call(self, projected):
        """`(texts, positions, width)` to the same shape."""
        return projected * ops.cast(GATE_RATE * self.scale, projected.dtype)


def add(projected: Any, own: Any, tokens: Any) -> Any:
    """Each token's own embedding plus the hidden state it is aligned with."""
    return own + projected


def prepend(projected: Any, own: Any, tokens: Any) -> Any:
    """Hidden states where no token is, token embeddings elsewhere."""
    # Not `==`, which is False for any two of Keras's symbolic tensors.
    return ops.where(ops.expand_dims(ops.equal(tokens, EMPTY), -1), projected, own)


# How fusions other than `replace` combine projected hidden states with token embeddings.
FUSION_FUNCTIONS: dict[str, Callable[[Any, Any, Any], Any]] = {"add": add, "prepend": prepend}

BUILTIN_FUSIONS = tuple(FUSION_NAMES)


def register_fusion(name: str, function: Callable[[Any, Any, Any], Any]) -> None:
    """Add a fusion to this process; hidden states are aligned with tokens, as for `add`.

    Args:
        name: value of the setting `fusion`.
        function: it takes the arguments of `fuse_embeddings` except `fusion`.

    Raises:
        InputError: the name of a built-in fusion, whose results would get mixed up with others.
    """
    if name in BUILTIN_FUSIONS:
        raise InputError(f"fusion {name!r} is built in: register another name")
    FUSION_FUNCTIONS[name] = function
    if name not in FUSION_NAMES:
        FUSION_NAMES.append(name)


def fuse_embeddings(fusion: str, projected: Any, own: Any, tokens: Any) -> Any:
    """RoBERTa's input embeddings `(texts, positions, width)` of fusions other than `replace`.

    Args:
        fusion: `add`, `prepend` or a registered one.
        projected: projected hidden states, `(texts, positions, width)`.
        own: RoBERTa's token embeddings, of the same shape.
        tokens: `(texts, positions)` token ids; EMPTY where only a hidden state is used.
    """
    return FUSION_FUNCTIONS[fusion](projected, own, tokens)


def pool(states: Any, mask: Any, pooling: str) -> Any:
    """Pool the last hidden states of the tokens into one embedding per text; padding is ignored.

    Args:
        states: hidden states `(texts, tokens, width)`.
        mask: `(texts, tokens)`, 1 for tokens and 0 for padding, which must be on the right.
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
    # last: the token whose right neighbor is padding, or the end of the batch
    following = ops.pad(real[:, 1:], [(0, 0), (0, 1), (0, 0)])
    return ops.sum(states * real * (1 - following), 1)


def fuse_late(pooled: Any, states: Any, mask: Any, width: int) -> Any:
    """RoBERTa's embedding with Gemma's beside it: `(texts, 2 * width)`.

    Gemma's is the mean of its standardized hidden states through a layer norm and a dense layer;
    of `add`, and of registered fusions, the mean over RoBERTa's tokens of the state that each is
    aligned with. What the projection cannot carry through RoBERTa reaches the classifier this way.

    Args:
        pooled: RoBERTa's embeddings, `(texts, width)`.
        states: standardized hidden states, `(texts, tokens, llm_width)`.
        mask: `(texts, tokens)`, 1 where there is a hidden state.
        width: width of RoBERTa's embeddings.
    """
    norm = keras.layers.LayerNormalization(dtype="float32", name="late_norm")
    dense = keras.layers.Dense(width, dtype="float32", name="late_dense")
    gemma = dense(norm(pool(ops.cast(states, "float32"), mask, "mean")))
    return ops.concatenate([pooled, gemma], -1)

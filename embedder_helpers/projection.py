"""The feed-forward projection from Gemma's state space into RoBERTa's, and its start.

The start is in closed form: the ridge regression from Gemma's state at the token that ends each
RoBERTa token to that token's own RoBERTa embedding. So projected states lie among vectors that
RoBERTa has seen before the first training step.
"""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import keras
import numpy as np

from embedder_helpers.config import Experiment
from embedder_helpers.fusion import Gate
from embedder_helpers.tokens import Ragged, Stacked

PENALTIES = tuple(10.0**power for power in range(-6, 2))  # of the states' mean variance
HELD_OUT = 10  # every tenth chunk of texts chooses the penalty
CHUNK = 64  # texts


def build_projection(
    experiment: Experiment, llm_width: int, slm_width: int, dtype: str = "float32"
) -> keras.Model:
    """Layers that map `(texts, tokens, llm_width)` to `(texts, tokens, slm_width)`.

    Args:
        experiment: its `projection` is `linear`, one dense layer, or `mlp`, which adds a branch
            with a hidden layer of RoBERTa's width and GELU; the branch starts at zero, so an MLP
            starts as linear. A closed-form start that is added to RoBERTa's own embeddings stands
            behind a closed gate.
        llm_width: width of Gemma's states.
        slm_width: width of RoBERTa's embeddings.
        dtype: dtype or dtype policy of the layers.
    """

    def dense(name, start="glorot_uniform", **more):
        name = f"projection_{name}"
        return keras.layers.Dense(
            slm_width, kernel_initializer=start, dtype=dtype, name=name, **more
        )

    states = keras.Input((None, llm_width))
    start = "zeros" if experiment.start() == "zero" else "glorot_uniform"
    projected = dense("linear", start)(states)
    if experiment.projection == "mlp":
        hidden = dense("hidden", activation="gelu")(states)
        projected = projected + dense("branch", "zeros")(hidden)
    if experiment.fusion == "add" and experiment.start() == "ridge":
        projected = Gate(dtype=dtype, name="projection_gate")(projected)
    return keras.Model(states, projected, name="projection")


class Standardise(keras.layers.Layer):
    """Gives every dimension of the states mean 0 and deviation 1 over the training tokens.

    Five of the 640 dimensions of Gemma 3 270M's normed states hold 77 to 95 % of their energy and
    hardly vary (massive activations: Sun et al. 2024): a step of the optimizer on these dimensions'
    weights moves every token alike.
    """

    def build(self, shape):
        """A mean and a deviation per dimension, and per cutoff where there are several."""
        for name, start in (("mean", "zeros"), ("deviation", "ones")):
            weight = self.add_weight(shape[2:], start, trainable=False, name=name)
            setattr(self, name, weight)

    def call(self, states):
        """`(texts, tokens, …, width)`, the same shape."""
        return (states - self.mean) / self.deviation

    def adapt(self, states: Ragged | Stacked) -> None:
        """Takes the figures from states, read once, a few texts at a time."""
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


class Ridge(NamedTuple):
    """A linear map with its quality.

    Attributes:
        kernel: `(llm_width, slm_width)`.
        bias: `(slm_width,)`.
        penalty: that was chosen, as a multiple of the states' mean variance.
        explained: share of the embeddings' variance that it explains on held-out tokens.
    """

    kernel: np.ndarray
    bias: np.ndarray
    penalty: float
    explained: float


class Moments:
    """Sums over pairs of states `(tokens, n)` and embeddings `(tokens, m)`, added chunk by chunk.

    They are all that a regression needs, so the pairs themselves are never held: memory is
    `(n + m)²` numbers, and a token costs `(n + m)²` multiplications.
    """

    def __init__(self):
        self.count, self.sums, self.products = 0, 0.0, 0.0

    def add(self, states: np.ndarray, embeddings: np.ndarray) -> None:
        """Adds pairs, one per row."""
        # Means are subtracted later, which would cost float32 its last digits.
        both = np.concatenate([states, embeddings], 1).astype("float64")
        self.count += len(both)
        self.sums = self.sums + both.sum(0)
        self.products = self.products + both.T @ both

    def __add__(self, other: "Moments") -> "Moments":
        total = Moments()
        total.count = self.count + other.count
        total.sums, total.products = self.sums + other.sums, self.products + other.products
        return total

    def mean(self) -> np.ndarray:
        """`(n + m,)`."""
        return self.sums / self.count

    def around(self, center: np.ndarray) -> np.ndarray:
        """Mean products of the deviations from a center, `(n + m, n + m)`."""
        moment = self.products / self.count
        cross = np.outer(self.mean(), center)
        return moment - cross - cross.T + np.outer(center, center)


def ridge(pairs: Iterable[tuple[np.ndarray, np.ndarray]]) -> Ridge:
    """The ridge regression from states to embeddings (Hoerl & Kennard 1970), in one pass.

    The penalty with the least error on every tenth chunk is chosen; then all chunks count.

    Args:
        pairs: chunks of states `(tokens, n)` and embeddings `(tokens, m)`; two at least.
    """
    seen, held = Moments(), Moments()
    width = 0
    for number, (states, embeddings) in enumerate(pairs):
        (held if number % HELD_OUT == 0 else seen).add(states, embeddings)
        width = states.shape[1]
    center = seen.mean()
    moments = held.around(center)
    variance = np.trace(moments[width:, width:])
    kernels = _kernels(seen.around(center), width)
    errors = {
        penalty: variance
        - 2 * np.sum(kernel * moments[:width, width:])
        + np.sum(kernel * (moments[:width, :width] @ kernel))
        for penalty, kernel in kernels.items()
    }
    best = min(errors, key=errors.get)
    every = seen + held
    center = every.mean()
    kernel = _kernels(every.around(center), width, (best,))[best]
    bias = center[width:] - center[:width] @ kernel
    return Ridge(kernel, bias, best, 1 - float(errors[best] / variance))


def _kernels(
    moments: np.ndarray, width: int, penalties: Iterable[float] = PENALTIES
) -> dict[float, np.ndarray]:
    """The regression's kernel `(n, m)` for each penalty, of one eigendecomposition."""
    values, vectors = np.linalg.eigh(moments[:width, :width])
    right = vectors.T @ moments[:width, width:]
    scale = values.mean()
    return {
        penalty: vectors @ (right / (np.maximum(values, 0) + penalty * scale)[:, None])
        for penalty in penalties
    }


def aligned_pairs(
    states: Ragged | Stacked,
    places: Ragged,
    ids: Ragged,
    table: np.ndarray,
    read: Callable[[np.ndarray], np.ndarray],
) -> Iterable[tuple[np.ndarray, np.ndarray]]:
    """Chunks of states and the embeddings they should become, for `ridge`.

    Args:
        states: Gemma's states of texts.
        places: for each RoBERTa token, the Gemma token of the same text that ends it.
        ids: RoBERTa's token ids.
        table: RoBERTa's token embeddings `(vocabulary, width)`.
        read: what the projection is given of states `(tokens, …)`: `(tokens, llm_width)`.
    """
    size = max(1, min(CHUNK, len(ids) // HELD_OUT))
    for start in range(0, len(ids), size):
        rows = range(start, min(start + size, len(ids)))
        found = [states.text(row)[places.text(row)] for row in rows]
        tokens = np.concatenate([ids.text(row) for row in rows])
        yield read(np.concatenate(found)), table[tokens]


def start_at(projection: keras.Model, found: Ridge) -> None:
    """Sets the projection to a regression's map."""
    projection.get_layer("projection_linear").set_weights([found.kernel, found.bias])

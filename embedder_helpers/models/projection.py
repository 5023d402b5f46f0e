"""The projection from Gemma's hidden states to RoBERTa's embeddings, and its initialization.

It is initialized in closed form, by the ridge regression from Gemma's hidden state at the token in
which each RoBERTa token ends to that token's own RoBERTa embedding. So projected hidden states
resemble vectors that RoBERTa knows, before the first training step.
"""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import keras
import numpy as np

from embedder_helpers.config import Experiment
from embedder_helpers.models.batching import MultiLayerStates, RaggedArray
from embedder_helpers.models.layers import Gate

PENALTIES = tuple(10.0**power for power in range(-6, 2))  # times the hidden states' mean variance
HELD_OUT = 10  # every tenth chunk of texts is held out, to select the penalty
CHUNK = 64  # texts


def build_projection(
    experiment: Experiment, llm_width: int, slm_width: int, dtype: str = "float32"
) -> keras.Model:
    """Build layers that map `(texts, tokens, llm_width)` to `(texts, tokens, slm_width)`.

    Args:
        experiment: settings; `projection` is `linear`, one dense layer, or `mlp`, which adds a
            branch with a hidden layer of RoBERTa's width and GELU; the branch starts at zero, so
            that an MLP starts as a linear projection. One that is initialized in closed form and
            added to RoBERTa's own embeddings is followed by a gate that starts closed.
        llm_width: width of Gemma's hidden states.
        slm_width: width of RoBERTa's embeddings.
        dtype: dtype or dtype policy of the layers.
    """

    def dense(name, initializer="glorot_uniform", **options):
        return keras.layers.Dense(
            slm_width,
            kernel_initializer=initializer,
            dtype=dtype,
            name=f"projection_{name}",
            **options,
        )

    states = keras.Input((None, llm_width))
    initializer = "zeros" if experiment.projection_init() == "zero" else "glorot_uniform"
    projected = dense("linear", initializer)(states)
    if experiment.projection == "mlp":
        hidden = dense("hidden", activation="gelu")(states)
        projected = projected + dense("branch", "zeros")(hidden)
    if experiment.fusion == "add" and experiment.projection_init() == "ridge":
        projected = Gate(dtype=dtype, name="projection_gate")(projected)
    return keras.Model(states, projected, name="projection")


class RidgeMap(NamedTuple):
    """A linear map fitted by ridge regression.

    Attributes:
        kernel: `(llm_width, slm_width)`.
        bias: `(slm_width,)`.
        penalty: selected penalty, as a multiple of the hidden states' mean variance.
        explained: fraction of the embeddings' variance that it explains on held-out tokens.
    """

    kernel: np.ndarray
    bias: np.ndarray
    penalty: float
    explained: float


class Moments:
    """Sums over pairs of hidden states `(tokens, n)` and embeddings `(tokens, m)`.

    A regression needs no more, so that the pairs themselves are not held: memory is `(n + m)²`
    numbers, and a token costs `(n + m)²` multiplications.
    """

    def __init__(self):
        self.count, self.sums, self.products = 0, 0.0, 0.0

    def add(self, states: np.ndarray, embeddings: np.ndarray) -> None:
        """Add pairs, one per row."""
        # In float32, subtracting the means afterwards would leave few exact digits.
        pairs = np.concatenate([states, embeddings], 1).astype("float64")
        self.count += len(pairs)
        self.sums = self.sums + pairs.sum(0)
        self.products = self.products + pairs.T @ pairs

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


def fit_ridge(pairs: Iterable[tuple[np.ndarray, np.ndarray]]) -> RidgeMap:
    """Fit the ridge regression from hidden states to embeddings (Hoerl & Kennard 1970) in one pass.

    The penalty is the one with the least error on every tenth chunk; the map is then fitted to all
    chunks.

    Args:
        pairs: chunks of hidden states `(tokens, n)` and embeddings `(tokens, m)`; at least two.
    """
    fitted, held_out = Moments(), Moments()
    width = 0
    for number, (states, embeddings) in enumerate(pairs):
        (held_out if number % HELD_OUT == 0 else fitted).add(states, embeddings)
        width = states.shape[1]
    center = fitted.mean()
    moments = held_out.around(center)
    variance = np.trace(moments[width:, width:])
    errors = {
        penalty: variance
        - 2 * np.sum(kernel * moments[:width, width:])
        + np.sum(kernel * (moments[:width, :width] @ kernel))
        for penalty, kernel in _kernels(fitted.around(center), width).items()
    }
    penalty = min(errors, key=errors.get)
    total = fitted + held_out
    center = total.mean()
    kernel = _kernels(total.around(center), width, (penalty,))[penalty]
    bias = center[width:] - center[:width] @ kernel
    return RidgeMap(kernel, bias, penalty, 1 - float(errors[penalty] / variance))


def _kernels(
    moments: np.ndarray, width: int, penalties: Iterable[float] = PENALTIES
) -> dict[float, np.ndarray]:
    """The regression's kernel `(n, m)` for each penalty, from one eigendecomposition."""
    values, vectors = np.linalg.eigh(moments[:width, :width])
    right = vectors.T @ moments[:width, width:]
    scale = values.mean()
    return {
        penalty: vectors @ (right / (np.maximum(values, 0) + penalty * scale)[:, None])
        for penalty in penalties
    }


def aligned_pairs(
    states: RaggedArray | MultiLayerStates,
    alignment: RaggedArray,
    tokens: RaggedArray,
    embedding_table: np.ndarray,
    transform: Callable[[np.ndarray], np.ndarray],
) -> Iterable[tuple[np.ndarray, np.ndarray]]:
    """Pair hidden states with the embeddings that they should be mapped to, for `fit_ridge`.

    Args:
        states: Gemma's hidden states.
        alignment: index of each RoBERTa token's Gemma token (`align_tokens`).
        tokens: RoBERTa's token ids.
        embedding_table: RoBERTa's token embeddings `(vocabulary, slm_width)`.
        transform: function from hidden states `(tokens, …)` to the projection's input
            `(tokens, llm_width)`.

    Yields:
        Chunks of transformed hidden states `(tokens, llm_width)` and embeddings
        `(tokens, slm_width)`, one row for each RoBERTa token.
    """
    size = max(1, min(CHUNK, len(tokens) // HELD_OUT))
    for start in range(0, len(tokens), size):
        rows = range(start, min(start + size, len(tokens)))
        aligned = [states.text(row)[alignment.text(row)] for row in rows]
        ids = np.concatenate([tokens.text(row) for row in rows])
        yield transform(np.concatenate(aligned)), embedding_table[ids]


def set_projection(projection: keras.Model, ridge_map: RidgeMap) -> None:
    """Set a projection's weights to those of a regression."""
    projection.get_layer("projection_linear").set_weights([ridge_map.kernel, ridge_map.bias])

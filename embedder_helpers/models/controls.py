"""Controls: hidden states without what Gemma knows of a text, to tell knowledge from capacity.

A hybrid has more weights than RoBERTa alone, and might be better for that alone. A control has the
same weights and reads as many hidden states, but these say less (Hewitt & Liang 2019, "Designing
and Interpreting Probes with Control Tasks"; Voita & Titov 2020, "Information-Theoretic Probing with
Minimum Description Length", section 3.2, for random weights). Those of random weights come from
`layer_weights`; the others, which are made here, from the true ones.
"""

from typing import Any

import numpy as np

from embedder_helpers.config import Experiment
from embedder_helpers.errors import InputError
from embedder_helpers.models.batching import MultiLayerStates, RaggedArray, from_lengths

MAX_TOKENS = 50_000  # about as many are enough for mean and covariance, or drawn at a time


class StatesControl:
    """Replaces hidden states as an experiment's `llm_control` says, if at all.

    Draws are independent between calls and the same in every run of an experiment. Memory: the
    hidden states that are replaced, once more.

    Args:
        experiment: settings: the control and the seed.
    """

    def __init__(self, experiment: Experiment):
        self._control = experiment.llm_control
        self._generator = np.random.default_rng(experiment.seed)
        self._noises: list[_Noise] = []

    def fit(self, states: RaggedArray | MultiLayerStates) -> None:
        """Estimate mean and covariance of training texts' hidden states, at each cutoff."""
        if self._control == "noise":
            self._noises = [_Noise(layer) for layer in _layers(states)]

    def replace(self, states: Any) -> Any:
        """Hidden states of the same lengths for the same texts; None and unchanged ones as is.

        Shuffled ones are those of another text of the call, repeated or cut to the text's length.

        Raises:
            InputError: shuffled, but there is no other text.
        """
        if states is None or self._control not in ("shuffled", "noise"):
            return states
        layers = _layers(states)
        if self._control == "shuffled":
            others = _others(len(states), self._generator)
            layers = [_deal(layer, others) for layer in layers]
        else:
            pairs = zip(self._noises, layers, strict=True)
            layers = [noise.draw(layer, self._generator) for noise, layer in pairs]
        return layers[0] if len(layers) == 1 else MultiLayerStates(tuple(layers))


class _Noise:
    """Normal noise of the mean and covariance of hidden states `(tokens, width)`."""

    def __init__(self, states: RaggedArray):
        stride = -(-int(states.lengths.sum()) // MAX_TOKENS)
        texts = range(0, len(states), stride)
        values = np.concatenate([states.text(row) for row in texts]).astype("float64")
        self._mean = values.mean(0)
        values -= self._mean
        covariance = values.T @ values / len(values)
        variances, vectors = np.linalg.eigh(covariance)
        self._factor = (vectors * np.sqrt(np.maximum(variances, 0))).astype("float32")

    def draw(self, states: RaggedArray, generator: np.random.Generator) -> RaggedArray:
        noise = np.empty((int(states.lengths.sum()), len(self._mean)), states.values.dtype)
        for start in range(0, len(noise), MAX_TOKENS):
            part = noise[start : start + MAX_TOKENS]
            draws = generator.standard_normal(part.shape, "float32")
            part[:] = draws @ self._factor.T + self._mean.astype("float32")
        return from_lengths(noise, states.lengths)


def _layers(states: RaggedArray | MultiLayerStates) -> list[RaggedArray]:
    return list(states.layers) if isinstance(states, MultiLayerStates) else [states]


def _others(count: int, generator: np.random.Generator) -> np.ndarray:
    """`(count,)` another text for each one, and each text for one."""
    if count == 1:
        raise InputError(
            "llm_control is 'shuffled', but there is a single text: give two or more, so that each "
            "can have another one's hidden states"
        )
    order = generator.permutation(count)
    others = np.empty(count, int)
    others[order] = np.roll(order, 1)
    return others


def _deal(states: RaggedArray, others: np.ndarray) -> RaggedArray:
    """Give each text the hidden states of another one."""
    shape = states.values.shape[1:]
    dealt = [
        np.resize(states.text(other), (length, *shape))
        for other, length in zip(others, states.lengths.tolist(), strict=True)
    ]
    return from_lengths(np.concatenate(dealt), states.lengths)

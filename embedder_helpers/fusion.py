"""Fusions: how Gemma's projected states and RoBERTa's own token embeddings become one input.

`replace` puts projected states in the place of token embeddings, as the original study did. `add`
adds to each token's embedding the projected state of the Gemma token in which it ends, as Bergner
et al. 2024 (Think Big, Generate Quick: LLM-to-SLM) add an LLM's representation to a small model's.
`prepend` lets all projected states stand as tokens in front of the text's own.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from keras import ops

from embedder_helpers.tokens import Ragged, Stacked, end_to_end

NONE = -1  # no state, or no token, stands at a position
GATE_RATE = 30  # steps of another weight that one of a gate is worth: its way is as much longer


@dataclass(frozen=True)
class Fused:
    """Texts whose positions hold a Gemma state, a RoBERTa token, or both; used as a Ragged is.

    Attributes:
        states: Gemma's, text by text.
        places: for each position, which of its text's states it holds, or NONE.
        tokens: for each position, RoBERTa's token id, or NONE.
    """

    states: Ragged | Stacked
    places: Ragged
    tokens: Ragged

    @property
    def lengths(self) -> np.ndarray:
        """`(texts,)` positions of each text."""
        return self.tokens.lengths

    def __len__(self) -> int:
        return len(self.lengths)

    def select(self, rows: Sequence[int]) -> "Fused":
        """Some texts, in the order asked for; the values are shared, not copied."""
        return Fused(self.states.select(rows), self.places.select(rows), self.tokens.select(rows))

    def batch(self, rows: Sequence[int], length: int, texts: int) -> dict[str, np.ndarray]:
        """States `(texts, length, …)`, zero where there is none, tokens and mask."""
        first = self.states.text(rows[0])
        values = np.zeros((texts, length, *first.shape[1:]), first.dtype)
        for text, row in enumerate(rows):
            places = self.places.text(row)
            held = np.flatnonzero(places != NONE)
            values[text, held] = self.states.text(row)[places[held]]
        tokens, mask = self.tokens.padded(rows, length, texts)
        return {"inputs": values, "tokens": tokens, "mask": mask}


# What an embedder's model reads, text by text: token ids, states, or both.
Inputs = Ragged | Stacked | Fused


def fused(fusion: str, states: Ragged | Stacked, places: Ragged, tokens: Ragged) -> Fused:
    """Texts prepared for `add` or `prepend`.

    Args:
        fusion: which of them.
        states: Gemma's.
        places: for each RoBERTa token, the Gemma token in which it ends, of `tokens.align`.
        tokens: RoBERTa's ids.
    """
    if fusion == "add":
        return Fused(states, places, tokens)
    held, ids = [], []
    for row, count in enumerate(states.lengths):
        own = tokens.text(row)
        held += [np.arange(count), np.full(len(own), NONE)]
        ids += [np.full(count, NONE), own]
    lengths = states.lengths + tokens.lengths
    return Fused(states, *(end_to_end(np.concatenate(one), lengths) for one in (held, ids)))


class Gate(keras.layers.Layer):
    """A trained factor that starts at 0, so that training starts at RoBERTa alone."""

    def build(self, shape):
        """One number."""
        self.scale = self.add_weight(shape=(), initializer="zeros", name="scale")

    def call(self, projected):
        """`(texts, positions, width)`, the same shape."""
        return projected * ops.cast(GATE_RATE * self.scale, projected.dtype)


def fuse(fusion: str, projected: Any, own: Any, tokens: Any) -> Any:
    """RoBERTa's input embeddings `(texts, positions, width)`.

    Args:
        fusion: `add` or `prepend`.
        projected: states in RoBERTa's space, `(texts, positions, width)`.
        own: RoBERTa's token embeddings, likewise.
        tokens: `(texts, positions)` ids, or NONE where a state stands alone.
    """
    if fusion == "add":
        return own + projected
    # `==` of Keras's symbolic tensors is Python's: always False.
    return ops.where(ops.expand_dims(ops.equal(tokens, NONE), -1), projected, own)

"""Poolings: how token states become one embedding. Padding never counts."""

from typing import Any

from keras import ops


def pool(states: Any, mask: Any, pooling: str) -> Any:
    """One embedding per text.

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


def pool_layers(states: list[Any], layer_pooling: str) -> Any:
    """One state per token from those of several cutoffs, each `(texts, tokens, width)`."""
    if len(states) == 1:
        return states[0]
    stacked = ops.stack(states)
    return ops.mean(stacked, 0) if layer_pooling == "mean" else ops.max(stacked, 0)

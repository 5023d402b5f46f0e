"""The supervised contrastive loss as a double loop over the texts, in NumPy alone."""

import math
from collections.abc import Sequence

import numpy as np


def brute_force(
    labels: Sequence[int],
    embeddings: np.ndarray,
    temperature: float = 0.1,
    weights: Sequence[float] | None = None,
) -> float:
    """Equation 2 of Khosla et al. 2020, term by term, as a mean over the texts that have one."""
    lengths = np.linalg.norm(embeddings, axis=1, keepdims=True)
    unit = np.asarray(embeddings, "float64") / np.where(lengths > 0, lengths, 1)
    losses = []
    for i in range(len(labels)):
        others = [a for a in range(len(labels)) if a != i]
        positives = [p for p in others if labels[p] == labels[i]]
        if positives:
            total = sum(math.exp(unit[i] @ unit[a] / temperature) for a in others)
            terms = [math.exp(unit[i] @ unit[p] / temperature) / total for p in positives]
            weight = 1 if weights is None else weights[i]
            losses.append(-weight * sum(map(math.log, terms)) / len(positives))
    return sum(losses) / len(losses) if losses else 0.0

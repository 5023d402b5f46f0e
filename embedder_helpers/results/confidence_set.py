"""Which of several embedders cannot be told from the best: a model confidence set.

The embedder with the highest score is seldom the only one that could be the best. The model
confidence set (Hansen, Lunde & Nason 2011, "The Model Confidence Set", Econometrica 79, section
3.1.2, statistic T_max) starts with all, tests whether they are equal, removes the worst if they are
not, and repeats. What is left contains the best with the probability asked for, although all of
them were looked at.
"""

import numpy as np

DRAWS = 10_000  # bootstrap samples: a p-value of 0.05 is then known to 0.002
ROUNDING = 1e-12  # of the largest score, which is no difference
MAX_COUNTS = 10_000_000  # that are held in memory at a time, 160 MB with their copy


def confidence_set(
    scores: np.ndarray, level: float = 0.95, *, draws: int = DRAWS, seed: int = 0
) -> np.ndarray:
    """Whether each embedder is among those that cannot be told from the best.

    Args:
        scores: scores `(embedders, cases)`, higher is better; a case is what they are paired on,
            such as a test text, or a seed and run of the protocol.
        level: probability with which the set contains the best.
        draws: bootstrap samples of the cases.
        seed: of the bootstrap.

    Returns:
        `(embedders,)` of bool, at least one of them true.
    """
    return elimination_p_values(scores, draws=draws, seed=seed) > 1 - level


def elimination_p_values(scores: np.ndarray, *, draws: int = DRAWS, seed: int = 0) -> np.ndarray:
    """The p-value of each embedder: it is in every confidence set of a level below 1 - p.

    Costs `draws · embedders · cases` multiplications, once.

    Args:
        scores: as in `confidence_set`.
        draws: as in `confidence_set`.
        seed: of the bootstrap.

    Returns:
        `(embedders,)` p-values, the best embedder's 1.
    """
    scores = np.asarray(scores, float)
    embedders, cases = scores.shape
    means = scores.mean(1)
    resampled = _resampled_means(scores, draws, seed) - means[:, None]  # (embedders, draws)
    scale = np.abs(scores).max()
    p_values, left, highest = np.ones(embedders), list(range(embedders)), 0.0
    while len(left) > 1:
        # How far each is below the mean of those left, in standard errors.
        behind = means[left].mean() - means[left]
        noise = resampled[left].mean(0) - resampled[left]
        errors = noise.std(1)
        if max(errors.max(), np.abs(behind).max()) <= ROUNDING * scale:
            break  # the same scores in every case
        errors = np.maximum(errors, ROUNDING * scale)
        observed = behind / errors
        p_value = float(((noise / errors[:, None]).max(0) >= observed.max()).mean())
        highest = max(highest, p_value)  # no embedder may outlive one removed later
        worst = left.pop(int(observed.argmax()))
        p_values[worst] = highest
    return p_values


def _resampled_means(scores: np.ndarray, draws: int, seed: int) -> np.ndarray:
    """`(embedders, draws)` mean scores of bootstrap samples of the cases."""
    cases = scores.shape[1]
    generator, shares = np.random.default_rng(seed), np.full(cases, 1 / cases)
    size = max(1, MAX_COUNTS // cases)
    means = [
        scores @ generator.multinomial(cases, shares, min(size, draws - start)).T / cases
        for start in range(0, draws, size)
    ]
    return np.concatenate(means, axis=1)

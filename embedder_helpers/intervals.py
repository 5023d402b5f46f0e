"""Intervals: how sure a mean over seeds and draws is, and whether one embedder beats another.

A score is a number per seed of the training and per draw of the protocol. Both are chance, and
every seed is scored on the same draws, so neither alone tells how far the mean could have come out
otherwise. What the choice of the test texts adds is not in here.
"""

from typing import NamedTuple

import numpy as np
from scipy import stats

LEVEL = 0.95


class Interval(NamedTuple):
    """A mean and the ends of its 95 % interval; NaN where a single score tells nothing of them."""

    mean: float
    low: float
    high: float

    def told(self, signed: bool = False) -> str:
        """`0.917 [0.905, 0.929]`, or with signs; the mean alone where nothing tells the ends."""
        form = "{:+.3f}" if signed else "{:.3f}"
        mean, low, high = map(form.format, self)
        return mean if np.isnan(self.low) else f"{mean} [{low}, {high}]"


def interval(scores: np.ndarray) -> Interval:
    """The 95 % interval of the mean of scores over two crossed sources of chance.

    The variance of the mean is that of the seeds' means, plus that of the draws' means, minus that
    of single scores, which both hold (Cameron, Gelbach & Miller 2011, section 2.1), and at least
    the larger of the first two. Student's t takes the degrees of freedom of the fewer of the two.

    Args:
        scores: `(seeds, draws)`; one of either leaves the other alone to tell.
    """
    scores = np.asarray(scores, float)
    by_seed, by_draw = _variance(scores.mean(1)), _variance(scores.mean(0))
    variance = max(by_seed, by_draw, by_seed + by_draw - _variance(scores.ravel()))
    several = [count for count in scores.shape if count > 1]
    if not several:
        return Interval(float(scores.mean()), np.nan, np.nan)
    half = stats.t.ppf((1 + LEVEL) / 2, min(several) - 1) * np.sqrt(variance)
    return Interval(float(scores.mean()), float(scores.mean() - half), float(scores.mean() + half))


def paired(first: np.ndarray, second: np.ndarray) -> Interval:
    """The interval of how far the first embedder's scores lie above the second's.

    Args:
        first: `(seeds, draws)`.
        second: of the same seeds and draws, in the same order; one seed stands for all where
            nothing was trained.
    """
    return interval(np.asarray(first, float) - np.asarray(second, float))


def _variance(scores: np.ndarray) -> float:
    """Of the mean of independent scores; nothing where there is one."""
    return float(scores.var(ddof=1) / len(scores)) if len(scores) > 1 else 0.0

"""95 % confidence intervals of mean scores, and of differences between two embedders.

A score belongs to a training seed and to a run of the protocol. Both are random, and every seed is
scored on the same runs, so their variances have to be combined. The variance due to the choice of
the test texts is not included.
"""

from typing import NamedTuple

import numpy as np
from scipy import stats

LEVEL = 0.95


class Interval(NamedTuple):
    """A mean and the ends of its 95 % CI; these are NaN where a CI cannot be computed."""

    mean: float
    low: float
    high: float

    def to_string(self, signed: bool = False) -> str:
        """`0.917 [0.905, 0.929]`, with signs if asked for; the mean alone without a CI."""
        form = "{:+.3f}" if signed else "{:.3f}"
        mean, low, high = map(form.format, self)
        return mean if np.isnan(self.low) else f"{mean} [{low}, {high}]"


def mean_interval(scores: np.ndarray) -> Interval:
    """The 95 % CI of the mean of scores over two crossed random factors.

    The variance of the mean is that of the seeds' means plus that of the runs' means, minus that of
    the single scores, which both contain (Cameron, Gelbach & Miller 2011, section 2.1), and at
    least the larger of the first two. Student's t has the degrees of freedom of the smaller factor.

    Args:
        scores: scores `(seeds, runs)`; if one dimension is 1, the CI is that over the other.
    """
    scores = np.asarray(scores, float)
    mean = float(scores.mean())
    sizes = [size for size in scores.shape if size > 1]
    if not sizes:
        return Interval(mean, np.nan, np.nan)
    over_seeds = _variance_of_mean(scores.mean(1))
    over_runs = _variance_of_mean(scores.mean(0))
    combined = over_seeds + over_runs - _variance_of_mean(scores.ravel())
    variance = max(over_seeds, over_runs, combined)
    half_width = float(stats.t.ppf((1 + LEVEL) / 2, min(sizes) - 1) * np.sqrt(variance))
    return Interval(mean, mean - half_width, mean + half_width)


def paired_interval(first: np.ndarray, second: np.ndarray) -> Interval:
    """The 95 % CI of the mean difference between two embedders, first minus second.

    Args:
        first: scores `(seeds, runs)`.
        second: scores of the same seeds and runs, in the same order; an embedder that does not
            depend on the seed has a single row, which is compared with every row of the other.
    """
    return mean_interval(np.asarray(first, float) - np.asarray(second, float))


def _variance_of_mean(scores: np.ndarray) -> float:
    """The variance of the mean of independent scores; 0 for a single score."""
    return float(scores.var(ddof=1) / len(scores)) if len(scores) > 1 else 0.0

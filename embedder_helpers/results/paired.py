"""Two classifiers compared text by text: the interval of their difference, what would settle it.

A difference has two sources of chance: the seeds of the training, and the texts that happened to be
in the test split. All seeds are scored on the same texts, so the two are crossed. The pigeonhole
bootstrap (Owen 2007, "The pigeonhole bootstrap", Annals of Applied Statistics 1) resamples both,
but its percentiles are too narrow for few seeds: three seeds that differ much are covered in 74 of
100 simulations instead of 95. So the interval here is Student's, with the variance that the
bootstrap estimates, corrected for small numbers.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

from embedder_helpers.results.intervals import LEVEL, Interval

POWER = 0.8  # how often as many seeds or texts as are asked for would settle the question
MOST_SEEDS = 100  # that it makes sense to ask for
MOST_TIMES_TEXTS = 100


class Components(NamedTuple):
    """Variances of a value that belongs to a seed and a text.

    Attributes:
        seeds: between seeds, whatever the text.
        texts: between texts, whatever the seed.
        rest: of what is left.
    """

    seeds: float
    texts: float
    rest: float

    def of_mean(self, seeds: int, texts: int) -> float:
        """The variance of the mean over so many seeds and texts."""
        return self.seeds / seeds + self.texts / texts + self.rest / (seeds * texts)

    def quantiles(self, seeds: int, texts: int) -> tuple[float, float]:
        """Student's quantiles of the interval's end and of POWER, by Satterthwaite's freedom."""
        rest = self.rest / (seeds * texts)
        by_seeds, by_texts = self.seeds / seeds + rest, self.texts / texts + rest
        factors = (by_seeds, seeds - 1), (by_texts, texts - 1)
        freedom = _freedom(factors) if by_seeds or by_texts else np.inf
        return tuple(float(stats.t.ppf(level, freedom)) for level in ((1 + LEVEL) / 2, POWER))

    def settled_size(self, seeds: int, texts: int) -> float:
        """The difference that so many seeds and texts settle as often as POWER says."""
        return sum(self.quantiles(seeds, texts)) * float(np.sqrt(self.of_mean(seeds, texts)))


class Needed(NamedTuple):
    """What would settle a difference of the size that was found, four times in five.

    Attributes:
        seeds: number of seeds on the same texts; None if MOST_SEEDS are too few.
        texts: number of test texts with the same seeds; None if it has to be seeds.
        smallest: the smallest difference that the present seeds and texts would settle as often.
    """

    seeds: int | None
    texts: int | None
    smallest: float


def crossed_interval(values: np.ndarray) -> Interval:
    """The 95 % CI of the mean over seeds and texts, both of which are random.

    The variance of the mean is that of the seeds' means plus that of the texts' means, minus what
    both contain, and at least the larger of the two. The degrees of freedom are between those of
    the two, by their shares of the variance (Satterthwaite 1946, "An approximate distribution of
    estimates of variance components", Biometrics Bulletin 2).

    Args:
        values: `(seeds, texts)`, such as the difference of two classifiers that are right (1) or
            wrong (0). With a single seed the interval is that over texts.
    """
    values = np.asarray(values, float)
    mean = float(values.mean())
    factors = [
        (means.var(ddof=1) / len(means), len(means) - 1)
        for means in (values.mean(1), values.mean(0))
        if len(means) > 1
    ]
    if not factors:
        return Interval(mean, np.nan, np.nan)
    total = sum(variance for variance, _ in factors)
    if total == 0:
        return Interval(mean, mean, mean)
    in_both = variance_components(values).rest / values.size if len(factors) > 1 else 0.0
    variance = max(total - in_both, *(variance for variance, _ in factors), 0.0)
    half_width = float(stats.t.ppf((1 + LEVEL) / 2, _freedom(factors)) * np.sqrt(variance))
    return Interval(mean, mean - half_width, mean + half_width)


def _freedom(factors: Sequence[tuple[float, int]]) -> float:
    """Satterthwaite's degrees of freedom of a sum of variances, each with its own."""
    total = sum(variance for variance, _ in factors)
    return total**2 / sum(variance**2 / freedom for variance, freedom in factors)


def variance_components(values: np.ndarray) -> Components:
    """Variances of seeds, texts and the rest, by the analysis of variance; none is below 0.

    Args:
        values: `(seeds, texts)`, at least two of each.
    """
    values = np.asarray(values, float)
    seeds, texts = values.shape
    of_seed, of_text = values.mean(1), values.mean(0)
    residuals = values - of_seed[:, None] - of_text + values.mean()
    rest = float((residuals**2).sum() / ((seeds - 1) * (texts - 1)))
    between_seeds = float(of_seed.var(ddof=1)) - rest / texts
    between_texts = float(of_text.var(ddof=1)) - rest / seeds
    return Components(max(between_seeds, 0.0), max(between_texts, 0.0), rest)


def needed_to_settle(differences: np.ndarray) -> Needed | None:
    """About how many seeds, or test texts, would settle a difference of the size that was found.

    By the quantiles of Student's t, as the interval that will be computed then, to about 2 % of the
    texts.

    Args:
        differences: `(seeds, texts)`.

    Returns:
        None with a single seed or text, from which nothing can be said.
    """
    differences = np.asarray(differences, float)
    seeds, texts = differences.shape
    if min(seeds, texts) < 2:
        return None
    parts, size = variance_components(differences), abs(float(differences.mean()))
    more_seeds = range(seeds + 1, MOST_SEEDS + 1)
    more_texts = np.unique(np.geomspace(texts + 1, MOST_TIMES_TEXTS * texts, 300).astype(int))
    interval = crossed_interval(differences)
    of_interval, of_power = parts.quantiles(seeds, texts)
    return Needed(
        next((n for n in more_seeds if parts.settled_size(n, texts) <= size), None),
        next((int(n) for n in more_texts if parts.settled_size(seeds, n) <= size), None),
        (interval.high - interval.mean) * (1 + of_power / of_interval),
    )


def macro_f1_values(labels: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """`(texts,)` values whose mean is the macro F1, and varies as it does from sample to sample.

    A label's F1 is a ratio of means over texts, twice the hits to those that have the label plus
    those that are given it. Each text's value is its influence on the ratio (the delta method), so
    that `crossed_interval` gives the interval of a macro F1 too.

    Args:
        labels: `(texts,)` true labels.
        predicted: `(texts,)` predicted ones.
    """
    present = np.union1d(labels, predicted)
    has, given = (np.equal.outer(values, present).astype(float) for values in (labels, predicted))
    hits, either = has * given, has + given  # (texts, labels)
    f1 = 2 * hits.sum(0) / either.sum(0)
    return f1.mean() + ((2 * hits - f1 * either) / either.mean(0)).mean(1)

"""Two classifiers compared text by text: the interval of their difference, what would settle it.

A difference has two sources of chance: the seeds of the training, and the texts that happened to be
in the test split. All seeds are scored on the same texts, so the two are crossed. The pigeonhole
bootstrap (Owen 2007, "The pigeonhole bootstrap", Annals of Applied Statistics 1) resamples both,
but its percentiles are too narrow for few seeds: three seeds that differ much are covered in 74 of
100 simulations instead of 95. So the interval here is Student's, with the variance that the
bootstrap estimates, corrected for small numbers.
"""

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
    freedom = total**2 / sum(variance**2 / freedom for variance, freedom in factors)
    half_width = float(stats.t.ppf((1 + LEVEL) / 2, freedom) * np.sqrt(variance))
    return Interval(mean, mean - half_width, mean + half_width)


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

    By normal quantiles, so that it is a little short for very few seeds.

    Args:
        differences: `(seeds, texts)`.

    Returns:
        None with a single seed or text, from which nothing can be said.
    """
    differences = np.asarray(differences, float)
    seeds, texts = differences.shape
    if min(seeds, texts) < 2:
        return None
    parts = variance_components(differences)
    of_interval = float(stats.norm.ppf((1 + LEVEL) / 2))
    errors = of_interval + float(stats.norm.ppf(POWER))
    allowed = (abs(float(differences.mean())) / errors) ** 2  # variance of the mean
    enough = (n for n in range(seeds + 1, MOST_SEEDS + 1) if parts.of_mean(n, texts) <= allowed)
    left = allowed - parts.seeds / seeds  # for what depends on the texts
    more_texts = None
    if left > 0:
        more_texts = int(np.ceil((parts.texts + parts.rest / seeds) / left))
        if not texts < more_texts <= MOST_TIMES_TEXTS * texts:
            more_texts = None
    interval = crossed_interval(differences)
    smallest = errors / of_interval * (interval.high - interval.mean)
    return Needed(next(enough, None), more_texts, smallest)


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

"""Texts that only one of two classifiers gets right, and whether there are more on one side.

McNemar's exact test (McNemar 1947; exact by the binomial distribution): if the two were equally
good, a text that only one of them gets right would be the first's as often as the second's.
"""

from typing import NamedTuple

import numpy as np
from scipy import stats


class Disagreement(NamedTuple):
    """Where two classifiers differ.

    Attributes:
        only_first: `(texts,)` of bool, texts that only the first gets right.
        only_second: `(texts,)` of bool, texts that only the second gets right.
        p_value: of McNemar's exact test, two-sided; 1 if they never differ.
    """

    only_first: np.ndarray
    only_second: np.ndarray
    p_value: float


def disagreement(first: np.ndarray, second: np.ndarray) -> Disagreement:
    """Compare two classifiers text by text.

    A classifier that was trained with several seeds gets a text right if most of its seeds do. Half
    of them is not most: seeds of one text are not independent, so each text counts once.

    Args:
        first: `(seeds, texts)` or `(texts,)` of bool, whether the label was right.
        second: the same of the other classifier, which may have another number of seeds.
    """
    first, second = (np.atleast_2d(right).mean(0) > 0.5 for right in (first, second))
    only_first, only_second = first & ~second, second & ~first
    differing = int(only_first.sum() + only_second.sum())
    if not differing:
        return Disagreement(only_first, only_second, 1.0)
    p_value = stats.binomtest(int(only_first.sum()), differing).pvalue
    return Disagreement(only_first, only_second, float(p_value))

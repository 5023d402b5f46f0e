"""McNemar's exact test, against the sum over all outcomes and against statsmodels."""

from math import comb

import numpy as np
import pytest
from statsmodels.stats.contingency_tables import mcnemar

from embedder_helpers.results.disagreement import disagreement


def made(both, only_first, only_second, neither):
    """Whether each text is right, by the numbers of texts of each kind."""
    sizes = [both, only_first, only_second, neither]
    patterns = [True, True, False, False], [True, False, True, False]
    return tuple(np.repeat(pattern, sizes) for pattern in patterns)


@pytest.mark.parametrize(("b", "c"), [(0, 5), (3, 9), (10, 10), (1, 0), (40, 21)])
def test_the_p_value_sums_the_outcomes_that_are_no_likelier(b, c):
    n = b + c
    chances = [comb(n, k) / 2**n for k in range(n + 1)]
    expected = sum(chance for chance in chances if chance <= chances[b] * (1 + 1e-9))
    assert disagreement(*made(50, b, c, 4)).p_value == pytest.approx(expected)


@pytest.mark.parametrize(("b", "c"), [(3, 9), (12, 4)])
def test_the_p_value_is_statsmodels(b, c):
    expected = mcnemar([[50, b], [c, 4]], exact=True).pvalue
    assert disagreement(*made(50, b, c, 4)).p_value == pytest.approx(expected)


def test_classifiers_that_never_differ_have_a_p_value_of_one():
    found = disagreement(*made(3, 0, 0, 2))
    assert found.p_value == 1 and not found.only_first.any() and not found.only_second.any()


def test_a_text_belongs_to_those_whose_seeds_mostly_get_it_right():
    first = np.array([[1, 1, 0, 1], [1, 0, 0, 0], [1, 1, 0, 0]], bool)
    second = np.array([[1, 0, 1, 1], [0, 0, 1, 0]], bool)
    found = disagreement(first, second)
    assert found.only_first.tolist() == [True, True, False, False]
    assert found.only_second.tolist() == [False, False, True, False]

import numpy as np
import pytest
from scipy import stats

from embedder_helpers.intervals import Interval, interval, paired

GENERATOR = np.random.default_rng(0)


def clustered(errors, of):
    """Variance of a mean under one way of clustering, by the sandwich formula, term by term."""
    groups = sorted(set(of))
    total = sum(
        sum(e for e, group in zip(errors, of, strict=True) if group == one) ** 2 for one in groups
    )
    return total / len(errors) ** 2 * len(groups) / (len(groups) - 1)


def test_scores_of_one_draw_have_students_interval_over_seeds():
    scores = GENERATOR.normal(size=5)
    expected = stats.t.interval(0.95, 4, scores.mean(), stats.sem(scores))
    assert interval(scores[:, None])[1:] == pytest.approx(expected)


def test_scores_of_one_seed_have_students_interval_over_draws():
    scores = GENERATOR.normal(size=10)
    expected = stats.t.interval(0.95, 9, scores.mean(), stats.sem(scores))
    assert interval(scores[None])[1:] == pytest.approx(expected)


def test_seeds_and_draws_together_have_the_two_way_clustered_variance():
    scores = GENERATOR.normal(size=(4, 6)) + np.array([[-3, 0, 2, 4]]).T
    scores += [[-4, -2, 0, 1, 3, 5]]
    errors = (scores - scores.mean()).ravel().tolist()
    seeds, draws = np.indices(scores.shape).reshape(2, -1).tolist()
    variance = clustered(errors, seeds) + clustered(errors, draws)
    variance -= clustered(errors, range(24))
    half = (interval(scores).high - interval(scores).low) / 2
    assert half == pytest.approx(stats.t.ppf(0.975, 3) * variance**0.5)


@pytest.mark.parametrize("shares", [(1, 1, 1), (1, 0, 1), (0.2, 1, 0.5), (0, 0, 1)])
def test_the_interval_holds_the_true_mean_at_least_as_often_as_it_says(shares):
    generator = np.random.default_rng(1)
    seed, draw, single = shares
    held = 0
    for _ in range(1000):
        scores = seed * generator.normal(size=(5, 1)) + draw * generator.normal(size=(1, 10))
        found = interval(scores + single * generator.normal(size=(5, 10)))
        held += found.low < 0 < found.high
    assert held >= 935  # 950, less two standard deviations of the count


def test_a_single_score_has_no_interval():
    found = interval([[0.5]])
    assert found.mean == 0.5 and np.isnan(found.low) and np.isnan(found.high)
    assert found.told() == "0.500"


def test_what_both_embedders_share_does_not_widen_a_paired_interval():
    shared = 5 * GENERATOR.normal(size=(5, 10))
    first = shared + 1 + 0.01 * GENERATOR.normal(size=(5, 10))
    found = paired(first, shared)
    assert 0.95 < found.low < 1 < found.high < 1.05


def test_one_row_of_an_embedder_without_training_is_paired_with_every_seed():
    first, second = GENERATOR.normal(size=(3, 10)), GENERATOR.normal(size=(1, 10))
    assert paired(first, second) == paired(first, np.repeat(second, 3, 0))


def test_intervals_are_told_in_thousandths():
    assert Interval(0.9171, 0.905, 0.929).told() == "0.917 [0.905, 0.929]"
    assert Interval(0.0124, -0.004, 0.02).told(signed=True) == "+0.012 [-0.004, +0.020]"

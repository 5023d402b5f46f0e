import numpy as np
import pytest
from scipy import stats

from embedder_helpers.results.intervals import Interval, mean_interval, paired_interval

GENERATOR = np.random.default_rng(0)


def clustered_variance(errors, clusters):
    """Variance of a mean with one-way clustering, by the sandwich formula, term by term."""
    labels = sorted(set(clusters))
    pairs = list(zip(errors, clusters, strict=True))
    total = sum(sum(error for error, of in pairs if of == label) ** 2 for label in labels)
    return total / len(errors) ** 2 * len(labels) / (len(labels) - 1)


def test_scores_of_a_single_run_have_students_interval_over_seeds():
    scores = GENERATOR.normal(size=5)
    expected = stats.t.interval(0.95, 4, scores.mean(), stats.sem(scores))
    assert mean_interval(scores[:, None])[1:] == pytest.approx(expected)


def test_scores_of_a_single_seed_have_students_interval_over_runs():
    scores = GENERATOR.normal(size=10)
    expected = stats.t.interval(0.95, 9, scores.mean(), stats.sem(scores))
    assert mean_interval(scores[None])[1:] == pytest.approx(expected)


def test_seeds_and_runs_together_have_the_two_way_clustered_variance():
    scores = GENERATOR.normal(size=(4, 6)) + np.array([[-3, 0, 2, 4]]).T
    scores += [[-4, -2, 0, 1, 3, 5]]
    errors = (scores - scores.mean()).ravel().tolist()
    seeds, runs = np.indices(scores.shape).reshape(2, -1).tolist()
    variance = clustered_variance(errors, seeds) + clustered_variance(errors, runs)
    variance -= clustered_variance(errors, range(24))
    interval = mean_interval(scores)
    expected = stats.t.ppf(0.975, 3) * variance**0.5
    assert (interval.high - interval.low) / 2 == pytest.approx(expected)


@pytest.mark.parametrize("scales", [(1, 1, 1), (1, 0, 1), (0.2, 1, 0.5), (0, 0, 1)])
def test_the_interval_covers_the_true_mean_at_least_as_often_as_stated(scales):
    generator = np.random.default_rng(1)
    of_seed, of_run, of_score = scales
    covered = 0
    for _ in range(1000):
        effects = of_seed * generator.normal(size=(5, 1)) + of_run * generator.normal(size=(1, 10))
        interval = mean_interval(effects + of_score * generator.normal(size=(5, 10)))
        covered += interval.low < 0 < interval.high
    assert covered >= 935  # 950, less two standard deviations of the count


def test_a_single_score_has_no_interval():
    interval = mean_interval([[0.5]])
    assert interval.mean == 0.5 and np.isnan(interval.low) and np.isnan(interval.high)
    assert interval.to_string() == "0.500"


def test_common_variation_of_both_embedders_does_not_widen_a_paired_interval():
    common = 5 * GENERATOR.normal(size=(5, 10))
    first = common + 1 + 0.01 * GENERATOR.normal(size=(5, 10))
    interval = paired_interval(first, common)
    assert 0.95 < interval.low < 1 < interval.high < 1.05


def test_a_single_row_without_seed_is_paired_with_every_seed():
    first, second = GENERATOR.normal(size=(3, 10)), GENERATOR.normal(size=(1, 10))
    assert paired_interval(first, second) == paired_interval(first, np.repeat(second, 3, 0))


def test_intervals_are_written_with_three_decimals():
    assert Interval(0.9171, 0.905, 0.929).to_string() == "0.917 [0.905, 0.929]"
    assert Interval(0.0124, -0.004, 0.02).to_string(signed=True) == "+0.012 [-0.004, +0.020]"

"""Crossed intervals, against loops, a brute-force bootstrap and simulated coverage."""

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import f1_score

from embedder_helpers.results.paired import (
    Components,
    crossed_interval,
    macro_f1_values,
    needed_to_settle,
    variance_components,
)


def made(seeds, texts, scales, mean=0.0, seed=0):
    """Values with standard deviations between seeds, between texts, and of the rest."""
    generator = np.random.default_rng(seed)
    of_seed, of_text, rest = scales
    values = mean + rest * generator.normal(size=(seeds, texts))
    values += of_seed * generator.normal(size=(seeds, 1))
    return values + of_text * generator.normal(size=(1, texts))


def half_width(interval):
    return (interval.high - interval.low) / 2


def slow_components(values):
    """The analysis of variance, sum by sum."""
    seeds, texts = len(values), len(values[0])
    mean = sum(map(sum, values)) / (seeds * texts)
    rows = [sum(row) / texts for row in values]
    columns = [sum(row[t] for row in values) / seeds for t in range(texts)]
    rest = sum(
        (values[s][t] - rows[s] - columns[t] + mean) ** 2
        for s in range(seeds)
        for t in range(texts)
    ) / ((seeds - 1) * (texts - 1))
    between_rows = sum((row - mean) ** 2 for row in rows) / (seeds - 1)
    between_columns = sum((column - mean) ** 2 for column in columns) / (texts - 1)
    return between_rows - rest / texts, between_columns - rest / seeds, rest


def pigeonhole_bootstrap(values, draws, seed):
    """Owen (2007), one sample of seeds and texts at a time."""
    generator = np.random.default_rng(seed)
    seeds, texts = values.shape
    means = []
    for _ in range(draws):
        rows = [generator.integers(seeds) for _ in range(seeds)]
        columns = [generator.integers(texts) for _ in range(texts)]
        means.append(values[np.ix_(rows, columns)].mean())
    return np.array(means)


def test_components_are_those_of_the_analysis_of_variance():
    values = made(4, 7, (2, 3, 1))
    np.testing.assert_allclose(variance_components(values), slow_components(values.tolist()))


def test_the_interval_is_the_sum_of_the_components_with_satterthwaites_freedom():
    values = made(4, 30, (1, 2, 1))
    of_seed, of_text, rest = slow_components(values.tolist())
    rows, columns = of_seed / 4 + rest / 120, of_text / 30 + rest / 120
    freedom = (rows + columns) ** 2 / (rows**2 / 3 + columns**2 / 29)
    expected = stats.t.ppf(0.975, freedom) * np.sqrt(of_seed / 4 + of_text / 30 + rest / 120)
    assert half_width(crossed_interval(values)) == pytest.approx(expected)
    assert crossed_interval(values).mean == pytest.approx(values.mean())


def test_with_many_seeds_the_interval_is_that_of_the_pigeonhole_bootstrap():
    values = made(60, 80, (1, 1, 0.5))
    low, high = np.quantile(pigeonhole_bootstrap(values, 4000, 3), [0.025, 0.975])
    interval = crossed_interval(values)
    assert interval.low == pytest.approx(low, abs=0.1 * half_width(interval))
    assert interval.high == pytest.approx(high, abs=0.1 * half_width(interval))


def test_a_single_seed_has_students_interval_over_texts():
    values = made(1, 40, (0, 1, 1))
    expected = stats.t.interval(0.95, 39, values.mean(), stats.sem(values[0]))
    assert crossed_interval(values)[1:] == pytest.approx(expected)


def test_a_single_value_has_no_interval_and_equal_ones_have_a_point():
    assert np.isnan(crossed_interval([[1.0]]).low)
    assert crossed_interval(np.full((3, 5), 0.2))[1:] == pytest.approx((0.2, 0.2))


@pytest.mark.parametrize("seeds", [3, 5])
@pytest.mark.parametrize(
    "scales", [(0, 1, 1), (0, 0, 1), (0.1, 1, 1), (0.05, 0, 1), (1, 1, 1), (1, 0, 0)]
)
def test_the_interval_covers_the_true_mean_about_as_often_as_it_says(seeds, scales):
    trials = 500
    covered = 0
    for trial in range(trials):
        interval = crossed_interval(made(seeds, 200, scales, seed=trial))
        covered += interval.low <= 0 <= interval.high
    assert 0.9 < covered / trials  # 0.95, less what the estimated degrees of freedom cost


def test_the_interval_covers_the_true_difference_of_right_and_wrong_answers():
    generator, trials, covered = np.random.default_rng(0), 500, 0
    for _ in range(trials):
        hard = generator.normal(0, 2, 300)  # differences of -1, 0 and 1 in three seeds
        chances = stats.norm.cdf(hard + generator.normal(0, 0.05, (3, 1)))
        first, second = generator.random((2, 3, 300)) < chances
        interval = crossed_interval(first.astype(float) - second)
        covered += interval.low <= 0 <= interval.high
    assert covered / trials > 0.93


def test_percentiles_of_the_bootstrap_would_miss_more_often_with_three_seeds():
    trials, missed, ours = 100, 0, 0
    for trial in range(trials):
        values = made(3, 50, (1, 1, 1), seed=trial)
        low, high = np.quantile(pigeonhole_bootstrap(values, 200, trial), [0.025, 0.975])
        missed += not low < 0 < high
        interval = crossed_interval(values)
        ours += not interval.low < 0 < interval.high
    assert missed > 15 > ours


# === What would settle it ===


def share_settled(seeds, texts, scales, mean, trials=300):
    settled = 0
    for trial in range(trials):
        interval = crossed_interval(made(seeds, texts, scales, mean, seed=trial))
        settled += interval.low > 0
    return settled / trials


def settled_by(values):
    needed = needed_to_settle(values)
    assert needed is not None
    return needed


def test_as_many_seeds_as_are_asked_for_settle_it_four_times_in_five():
    scales, mean = (0.3, 0.5, 1), 0.15
    values = made(20, 400, scales, seed=1)  # enough to know the components
    asked = settled_by(values + mean - values.mean()).seeds
    assert asked > 20
    assert share_settled(asked, 400, scales, mean) == pytest.approx(0.8, abs=0.12)


def test_as_many_texts_as_are_asked_for_settle_it_four_times_in_five():
    scales, mean = (0, 1, 1), 0.1
    values = made(5, 400, scales, seed=2)
    values += mean - values.mean()
    asked = settled_by(values).texts
    assert asked > 400
    assert share_settled(5, asked, scales, mean) == pytest.approx(0.8, abs=0.1)


def test_few_seeds_settle_it_as_often_as_is_said_with_student_s_quantiles():
    # The components are known here, so that only the quantiles are tested.
    scales, mean = (0.1, 0.5, 1), 0.15
    parts = Components(*(scale**2 for scale in scales))
    asked = next(n for n in range(2, 100) if parts.settled_size(n, 400) <= mean)
    assert 4 <= asked <= 12
    assert share_settled(asked, 400, scales, mean, trials=1000) == pytest.approx(0.8, abs=0.06)


def test_texts_do_not_settle_what_seeds_leave_open():
    values = made(4, 2000, (1, 0.1, 0.1))
    needed = settled_by(values + 0.6 - values.mean())
    assert needed.texts is None and needed.seeds > 4


def test_nothing_settles_a_difference_of_zero():
    values = made(4, 50, (1, 1, 1))
    needed = settled_by(values - values.mean())
    assert needed.seeds is None and needed.texts is None and needed.smallest > 0


def test_the_smallest_difference_is_settled_four_times_in_five():
    scales = (0.02, 1, 1)
    smallest = settled_by(made(10, 400, scales)).smallest
    assert share_settled(10, 400, scales, smallest) == pytest.approx(0.8, abs=0.12)


def test_a_single_seed_does_not_say_what_is_needed():
    assert needed_to_settle(made(1, 50, (1, 1, 1))) is None


# === Macro F1 ===


def drawn_labels(generator, texts):
    labels = generator.choice(4, texts, p=[0.5, 0.3, 0.15, 0.05])
    predicted = np.where(generator.random(texts) < 0.7, labels, generator.integers(0, 4, texts))
    return labels, predicted


def test_the_mean_of_the_values_is_sklearns_macro_f1():
    labels, predicted = drawn_labels(np.random.default_rng(0), 300)
    expected = f1_score(labels, predicted, average="macro")
    assert macro_f1_values(labels, predicted).mean() == pytest.approx(expected)


def test_a_label_that_no_training_text_has_counts_as_sklearn_counts_it():
    labels, predicted = np.array([0, 1, -1, 1]), np.array([0, 1, 1, 0])
    expected = f1_score(labels, predicted, average="macro")
    assert macro_f1_values(labels, predicted).mean() == pytest.approx(expected)


def test_the_values_vary_as_macro_f1_does_from_sample_to_sample():
    generator = np.random.default_rng(1)
    scores, errors = [], []
    for _ in range(400):
        labels, predicted = drawn_labels(generator, 400)
        scores.append(f1_score(labels, predicted, average="macro"))
        errors.append(stats.sem(macro_f1_values(labels, predicted)))
    assert np.mean(errors) == pytest.approx(np.std(scores), rel=0.1)

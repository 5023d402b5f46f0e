"""Model confidence sets, against a slow version written from the paper and by simulation."""

import numpy as np
import pytest

from embedder_helpers.results.confidence_set import confidence_set, elimination_p_values


def made_scores(means, cases=200, common=1.0, seed=0):
    """Scores of embedders with these true means, which all cases' difficulty shifts alike."""
    generator = np.random.default_rng(seed)
    difficulty = generator.normal(0, common, cases)
    return np.array(means)[:, None] + difficulty + generator.normal(0, 1, (len(means), cases))


def slow_p_values(scores, draws, seed):
    """The procedure of Hansen, Lunde & Nason (2011), one bootstrap sample at a time."""
    embedders, cases = scores.shape
    generator = np.random.default_rng(seed)
    samples = [
        np.repeat(np.arange(cases), generator.multinomial(cases, np.full(cases, 1 / cases)))
        for _ in range(draws)
    ]
    losses = -scores
    left, p_values, running = list(range(embedders)), {}, 0.0
    while len(left) > 1:
        relative = losses[left] - losses[left].mean(0)
        means = relative.mean(1)
        resampled = np.array([relative[:, rows].mean(1) for rows in samples])
        deviation = np.sqrt(((resampled - resampled.mean(0)) ** 2).mean(0))
        statistic = (means / deviation).max()
        drawn = ((resampled - means) / deviation).max(1)
        running = max(running, (drawn >= statistic).mean())
        worst = left[int((means / deviation).argmax())]
        p_values[worst] = running
        left.remove(worst)
    p_values[left[0]] = 1.0
    return np.array([p_values[i] for i in range(embedders)])


@pytest.mark.parametrize("means", [(0, 0, 0), (0.5, 0.3, 0.0, -0.2), (1.0, 0.0)])
def test_p_values_are_those_of_the_procedure_in_the_paper(means):
    scores = made_scores(means, cases=60)
    expected = slow_p_values(scores, draws=300, seed=5)
    np.testing.assert_allclose(elimination_p_values(scores, draws=300, seed=5), expected)


def test_the_best_is_in_the_set_and_clearly_worse_ones_are_not():
    scores = made_scores((0.0, 1.0, 1.02, -1.0))
    assert confidence_set(scores).tolist() == [False, True, True, False]


def test_equal_scores_are_all_in_the_set():
    assert confidence_set(np.ones((3, 10))).all()
    assert confidence_set(np.zeros((3, 10))).all()


@pytest.mark.parametrize("same", [2, 3, 5, 6, 7, 10])
def test_embedders_that_are_the_same_in_every_case_stay_together(same):
    right = np.random.default_rng(same).integers(0, 2, 41).astype(float)
    assert confidence_set(np.tile(right, (same, 1))).all()
    worse = np.minimum(right, np.arange(41) % 2)
    assert confidence_set(np.vstack([worse, np.tile(right, (same, 1))])).tolist() == [
        False, *[True] * same,
    ]  # fmt: skip


def test_a_constant_difference_decides():
    scores = np.stack([np.arange(10.0), np.arange(10.0) + 1])
    assert confidence_set(scores).tolist() == [False, True]


def test_a_single_embedder_is_its_own_set():
    assert confidence_set(np.zeros((1, 5))).tolist() == [True]


@pytest.mark.parametrize("means", [np.zeros(18), np.r_[0.3, np.zeros(17)]])
def test_the_set_contains_the_best_as_often_as_it_promises(means):
    trials, best = 200, int(np.argmax(means))
    covered = sum(
        bool(confidence_set(made_scores(means, 100, seed=trial), 0.9, draws=500)[best])
        for trial in range(trials)
    )
    assert covered / trials > 0.9 - 2 * np.sqrt(0.9 * 0.1 / trials)


def test_many_cases_are_resampled_in_parts_with_the_same_p_values(monkeypatch):
    scores = made_scores([0.0, 0.2, 0.3], cases=50)
    whole = elimination_p_values(scores, draws=500)
    monkeypatch.setattr("embedder_helpers.results.confidence_set.MAX_COUNTS", 50 * 7)
    np.testing.assert_allclose(elimination_p_values(scores, draws=500), whole)

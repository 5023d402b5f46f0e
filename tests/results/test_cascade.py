"""Cascades, against brute force."""

import numpy as np
import pytest
from scipy.special import log_softmax

from embedder_helpers.results.cascade import cascade_curve, confidence, fit_temperature


@pytest.fixture
def generator():
    return np.random.default_rng(4)


def made_logits(generator, texts=4000, labels=3):
    logits = generator.normal(0, 2, (texts, labels))
    chances = np.exp(log_softmax(logits, axis=1))
    drawn = [generator.choice(labels, p=row) for row in chances]
    return logits, np.array(drawn)


@pytest.mark.parametrize("factor", [0.25, 1.0, 8.0])
def test_the_temperature_undoes_a_factor(generator, factor):
    logits, labels = made_logits(generator)
    assert fit_temperature(logits * factor, labels) == pytest.approx(factor, rel=0.1)


def test_no_temperature_of_a_grid_makes_the_labels_likelier(generator):
    logits, labels = made_logits(generator, texts=200)
    logits *= 3

    def loss(temperature):
        return -log_softmax(logits / temperature, axis=1)[np.arange(len(labels)), labels].mean()

    best = fit_temperature(logits, labels)
    assert loss(best) <= min(map(loss, np.geomspace(0.05, 50, 400))) + 1e-6


def test_a_calibrated_confidence_is_the_share_of_right_labels(generator):
    logits, labels = made_logits(generator)
    sure = confidence(logits * 5, fit_temperature(logits * 5, labels))
    right = logits.argmax(1) == labels
    assert sure.mean() == pytest.approx(right.mean(), abs=0.02)


def test_the_curve_is_that_of_trying_every_threshold(generator):
    sure = generator.integers(0, 6, 60) / 6
    cheap, expensive = generator.random((2, 60)) < [[0.6], [0.8]]
    curve = cascade_curve(sure, cheap, expensive)
    assert curve["share"].iloc[[0, -1]].tolist() == [0, 1]
    alone = [cheap.mean(), expensive.mean()]
    assert curve["accuracy"].iloc[[0, -1]].tolist() == pytest.approx(alone)
    assert len(curve) == len(set(sure)) + 1
    for row in curve.itertuples():
        goes_on = sure < row.threshold
        assert row.share == pytest.approx(goes_on.mean())
        assert row.accuracy == pytest.approx(np.where(goes_on, expensive, cheap).mean())

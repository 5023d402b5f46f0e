"""The supervised contrastive loss, compared with a double loop over the texts in NumPy."""

import math

import keras
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from keras import ops
from reference_contrastive import brute_force

from embedder_helpers.experiments.losses import supervised_contrastive

WIDTH = 4


def loss_of(labels, embeddings, temperature=0.1, weights=None):
    """The loss as a Python number."""
    labels = np.array(labels, "int32")
    weights = np.ones(len(labels)) if weights is None else weights
    arrays = [np.asarray(array, "float32") for array in (embeddings, temperature, weights)]
    return float(supervised_contrastive(labels, *map(ops.convert_to_tensor, arrays)))


def random_embeddings(count, seed=0):
    return np.random.default_rng(seed).normal(size=(count, WIDTH)).astype("float32")


@given(
    labels=st.lists(st.integers(0, 3), min_size=1, max_size=12),
    temperature=st.floats(0.05, 5),
    seed=st.integers(0, 99),
    is_weighted=st.booleans(),
)
def test_the_loss_is_equation_2_of_the_paper(labels, temperature, seed, is_weighted):
    embeddings = random_embeddings(len(labels), seed)
    weights = np.random.default_rng(seed).uniform(0.1, 3, len(labels)) if is_weighted else None
    given = labels, embeddings, temperature, weights
    assert loss_of(*given) == pytest.approx(brute_force(*given), rel=1e-4, abs=1e-5)


def test_the_length_of_an_embedding_does_not_matter():
    labels, embeddings = [0, 1, 0, 1, 1], random_embeddings(5)
    scaled = embeddings * np.array([[1], [1e-3], [7], [1e3], [0.5]], "float32")
    assert loss_of(labels, scaled) == pytest.approx(loss_of(labels, embeddings), rel=1e-4)


def test_texts_without_another_of_their_label_are_compared_with_but_have_no_loss_of_their_own():
    embeddings, labels = random_embeddings(4), [0, 0, 1, 2]
    with_others = loss_of(labels, embeddings, 1)
    assert with_others == pytest.approx(brute_force(labels, embeddings, 1), rel=1e-4)
    assert abs(loss_of(labels[:2], embeddings[:2], 1)) < 1e-6 < with_others


def test_classes_that_lie_together_have_less_loss_than_classes_that_are_mixed():
    embeddings = np.repeat(np.eye(2, WIDTH), 3, axis=0)
    assert loss_of([0, 0, 0, 1, 1, 1], embeddings) < loss_of([0, 1, 0, 1, 0, 1], embeddings) - 1


@pytest.mark.parametrize("temperature", [1e-3, 1e3])
def test_an_extreme_temperature_gives_a_finite_loss(temperature):
    assert math.isfinite(loss_of([0, 0, 1, 1], random_embeddings(4), temperature))


def gradient_of(labels, embeddings, temperature=0.1):
    """The gradient with respect to the identity that the embeddings are multiplied by.

    On every backend the way to it is a step of gradient descent at a rate of 1.
    """
    dense = keras.layers.Dense(WIDTH, use_bias=False, kernel_initializer="identity")
    model = keras.Sequential([keras.Input((WIDTH,)), dense])
    weights = ops.ones(len(labels))
    model.compile(
        keras.optimizers.SGD(1.0),
        lambda labels, output: supervised_contrastive(labels, output, temperature, weights),
    )
    model.train_on_batch(embeddings, np.array(labels, "int32"))
    return np.eye(WIDTH) - ops.convert_to_numpy(dense.kernel)


def test_the_gradient_is_that_of_differences():
    labels, embeddings = [0, 1, 0, 1, 1, 2], random_embeddings(6)
    differences = np.zeros((WIDTH, WIDTH))
    for place in np.ndindex(WIDTH, WIDTH):
        small = np.zeros((WIDTH, WIDTH))
        small[place] = 1e-5
        above, below = (
            brute_force(labels, embeddings.astype("float64") @ (np.eye(WIDTH) + step), 0.5)
            for step in (small, -small)
        )
        differences[place] = (above - below) / 2e-5
    gradient = gradient_of(labels, embeddings, 0.5)
    np.testing.assert_allclose(gradient, differences, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("labels", [[0], [0, 1, 2]])
def test_without_any_pair_of_a_label_loss_and_gradient_are_0(labels):
    embeddings = random_embeddings(len(labels))
    assert loss_of(labels, embeddings) == 0
    assert not gradient_of(labels, embeddings).any()


def test_an_embedding_of_zeros_is_as_far_from_all_and_has_a_finite_gradient():
    labels, embeddings = [0, 0, 1, 1], random_embeddings(4)
    embeddings[2] = 0
    assert loss_of(labels, embeddings) == pytest.approx(brute_force(labels, embeddings), rel=1e-4)
    assert np.isfinite(gradient_of(labels, embeddings)).all()

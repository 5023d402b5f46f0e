import numpy as np
import pytest
from keras import ops

from embedder_helpers.pooling import pool, pool_layers

STATES = np.array([[[1.0, -5.0], [3.0, -1.0], [9.0, 9.0]], [[2.0, 4.0], [6.0, 0.0], [1.0, 2.0]]])
MASK = np.array([[1, 1, 0], [1, 1, 1]])

EXPECTED = {
    "mean": [[2.0, -3.0], [3.0, 2.0]],
    "max": [[3.0, -1.0], [6.0, 4.0]],
    "first": [[1.0, -5.0], [2.0, 4.0]],
    "last": [[3.0, -1.0], [1.0, 2.0]],
}


@pytest.mark.parametrize("pooling", EXPECTED)
def test_padding_never_counts(pooling):
    pooled = ops.convert_to_numpy(pool(ops.convert_to_tensor(STATES), MASK, pooling))
    np.testing.assert_allclose(pooled, EXPECTED[pooling])


@pytest.mark.parametrize("pooling", EXPECTED)
def test_one_token_is_its_own_embedding(pooling):
    states = ops.convert_to_tensor(STATES[:, :1])
    pooled = ops.convert_to_numpy(pool(states, np.array([[1], [1]]), pooling))
    np.testing.assert_allclose(pooled, STATES[:, 0])


def test_several_cutoffs_become_their_mean_or_maximum():
    layers = [ops.convert_to_tensor(STATES), ops.convert_to_tensor(-STATES)]
    np.testing.assert_allclose(ops.convert_to_numpy(pool_layers(layers, "mean")), 0)
    np.testing.assert_allclose(ops.convert_to_numpy(pool_layers(layers, "max")), abs(STATES))

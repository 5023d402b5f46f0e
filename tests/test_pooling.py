import numpy as np
import pytest
from keras import ops

from embedder_helpers.pooling import LayerPooling, pool

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


# (texts, tokens, cutoffs, width)
SEVERAL = np.random.default_rng(1).normal(size=(2, 3, 4, 5)).astype("float32")


@pytest.mark.parametrize(
    ("layer_pooling", "expected"), [("mean", SEVERAL.mean(2)), ("max", SEVERAL.max(2))]
)
def test_several_cutoffs_become_their_mean_or_maximum(layer_pooling, expected):
    found = ops.convert_to_numpy(LayerPooling(layer_pooling)(SEVERAL))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_learned_weights_start_as_the_mean():
    found = ops.convert_to_numpy(LayerPooling("learned")(SEVERAL))
    np.testing.assert_allclose(found, SEVERAL.mean(2), rtol=1e-5, atol=1e-6)


def test_learned_weights_are_a_softmax_over_the_cutoffs():
    layer = LayerPooling("learned")
    layer.build(SEVERAL.shape)
    shares = np.array([0.1, 0.2, 0.3, 0.4], "float32")
    layer.logits.assign(np.log(shares) + 7)
    expected = np.einsum("tkcw,c->tkw", SEVERAL, shares)
    np.testing.assert_allclose(ops.convert_to_numpy(layer(SEVERAL)), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("layer_pooling", "count"), [("mean", 0), ("max", 0), ("learned", 4)])
def test_only_learned_weights_are_trained_one_for_each_cutoff(layer_pooling, count):
    layer = LayerPooling(layer_pooling)
    layer.build(SEVERAL.shape)
    assert sum(int(np.prod(one.shape)) for one in layer.trainable_variables) == count


@pytest.mark.parametrize("layer_pooling", ["mean", "max", "learned"])
def test_a_layer_pooling_is_made_again_from_its_config(layer_pooling):
    layer = LayerPooling(layer_pooling, name="layer_pooling")
    again = LayerPooling.from_config(layer.get_config())
    assert (again.name, again.layer_pooling) == ("layer_pooling", layer_pooling)
    np.testing.assert_array_equal(
        ops.convert_to_numpy(again(SEVERAL)), ops.convert_to_numpy(layer(SEVERAL))
    )

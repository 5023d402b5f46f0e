import numpy as np
import pytest
from keras import ops

from embedder_helpers.models.batching import EMPTY, MultiLayerStates, from_lengths
from embedder_helpers.models.layers import (
    GATE_RATE,
    Gate,
    LayerPooling,
    Standardize,
    fuse_embeddings,
    pool,
)

# Standardization


def adapted(states):
    layer = Standardize()
    layer.build((None, None, *states.text(0).shape[1:]))
    layer.adapt(states)
    return layer


@pytest.fixture
def states():
    """Hidden states of 150 texts, more than a chunk; one dimension is large and hardly varies."""
    generator = np.random.default_rng(0)
    lengths = generator.integers(1, 9, size=150)
    values = generator.normal(size=(lengths.sum(), 6)) * [1, 2, 3, 0.1, 0.5, 1]
    values[:, 5] += 50
    return from_lengths(values.astype("float16"), lengths)


def test_standardized_hidden_states_have_mean_0_and_deviation_1_in_every_dimension(states):
    values = states.values[None].astype("float32")
    standardized = ops.convert_to_numpy(adapted(states)(values))[0]
    np.testing.assert_allclose(standardized.mean(0), 0, atol=1e-3)
    np.testing.assert_allclose(standardized.std(0), 1, atol=1e-3)


def test_each_cutoff_is_standardized_by_its_own_mean_and_deviation(states):
    several = MultiLayerStates((states, from_lengths(2 * states.values, states.lengths)))
    values = np.stack([layer.values for layer in several.layers], 1)[None].astype("float32")
    standardized = ops.convert_to_numpy(adapted(several)(values))[0]
    np.testing.assert_allclose(standardized[:, 0], standardized[:, 1], atol=1e-3)
    np.testing.assert_allclose(standardized.std(0), 1, atol=1e-3)


def test_a_constant_dimension_stays_finite(states):
    states.values[:, 2] = 7
    values = states.values[None].astype("float32")
    standardized = ops.convert_to_numpy(adapted(states)(values))
    assert np.isfinite(standardized).all() and abs(standardized[..., 2]).max() < 1e-3


def test_hidden_states_are_unchanged_before_the_layer_is_adapted():
    values = np.random.default_rng(0).normal(size=(2, 3, 6)).astype("float32")
    np.testing.assert_array_equal(Standardize()(values), values)


# Layer pooling


# (texts, tokens, cutoffs, width)
SEVERAL = np.random.default_rng(1).normal(size=(2, 3, 4, 5)).astype("float32")


@pytest.mark.parametrize(
    ("layer_pooling", "expected"),
    [("mean", SEVERAL.mean(2)), ("max", SEVERAL.max(2)), ("learned", SEVERAL.mean(2))],
)
def test_several_cutoffs_are_pooled_by_mean_maximum_or_weights_that_start_equal(
    layer_pooling, expected
):
    pooled = ops.convert_to_numpy(LayerPooling(layer_pooling)(SEVERAL))
    np.testing.assert_allclose(pooled, expected, rtol=1e-5, atol=1e-6)


def test_learned_weights_are_a_softmax_over_the_cutoffs():
    layer = LayerPooling("learned")
    layer.build(SEVERAL.shape)
    weights = np.array([0.1, 0.2, 0.3, 0.4], "float32")
    layer.logits.assign(np.log(weights) + 7)
    expected = np.einsum("tkcw,c->tkw", SEVERAL, weights)
    np.testing.assert_allclose(ops.convert_to_numpy(layer(SEVERAL)), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("layer_pooling", "count"), [("mean", 0), ("max", 0), ("learned", 4)])
def test_only_learned_pooling_has_a_trained_weight_for_each_cutoff(layer_pooling, count):
    layer = LayerPooling(layer_pooling)
    layer.build(SEVERAL.shape)
    assert sum(int(np.prod(weight.shape)) for weight in layer.trainable_variables) == count


@pytest.mark.parametrize("layer_pooling", ["mean", "max", "learned"])
def test_a_layer_pooling_is_rebuilt_from_its_config(layer_pooling):
    layer = LayerPooling(layer_pooling, name="layer_pooling")
    rebuilt = LayerPooling.from_config(layer.get_config())
    assert (rebuilt.name, rebuilt.layer_pooling) == ("layer_pooling", layer_pooling)
    np.testing.assert_array_equal(
        ops.convert_to_numpy(rebuilt(SEVERAL)), ops.convert_to_numpy(layer(SEVERAL))
    )


# Fusion


def test_a_gate_is_closed_at_first_and_then_a_factor():
    gate, projected = Gate(), np.ones((1, 2, 3), "float32")
    assert not ops.convert_to_numpy(gate(projected)).any()
    gate.scale.assign(0.5 / GATE_RATE)
    np.testing.assert_allclose(ops.convert_to_numpy(gate(projected)), 0.5)


@pytest.mark.parametrize("fusion, expected", [("add", [11, 22, 33]), ("prepend", [1, 20, 30])])
def test_projected_and_own_embeddings_become_one_input(fusion, expected):
    projected, tokens = np.array([[[1.0], [2.0], [3.0]]]), np.array([[EMPTY, 0, 5]])
    fused = ops.convert_to_numpy(fuse_embeddings(fusion, projected, 10 * projected, tokens))
    assert fused.ravel().tolist() == expected


# Pooling over tokens


STATES = np.array([[[1.0, -5.0], [3.0, -1.0], [9.0, 9.0]], [[2.0, 4.0], [6.0, 0.0], [1.0, 2.0]]])
MASK = np.array([[1, 1, 0], [1, 1, 1]])

EXPECTED = {
    "mean": [[2.0, -3.0], [3.0, 2.0]],
    "max": [[3.0, -1.0], [6.0, 4.0]],
    "first": [[1.0, -5.0], [2.0, 4.0]],
    "last": [[3.0, -1.0], [1.0, 2.0]],
}


@pytest.mark.parametrize("pooling", EXPECTED)
def test_pooling_ignores_padding(pooling):
    pooled = ops.convert_to_numpy(pool(ops.convert_to_tensor(STATES), MASK, pooling))
    np.testing.assert_allclose(pooled, EXPECTED[pooling])


@pytest.mark.parametrize("pooling", EXPECTED)
def test_a_single_token_is_the_texts_embedding(pooling):
    states = ops.convert_to_tensor(STATES[:, :1])
    pooled = ops.convert_to_numpy(pool(states, np.array([[1], [1]]), pooling))
    np.testing.assert_allclose(pooled, STATES[:, 0])

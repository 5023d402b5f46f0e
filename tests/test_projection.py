import numpy as np
import pytest

from embedder_helpers.projection import build_projection


@pytest.mark.parametrize("projection, dense_layers", [("linear", 1), ("mlp", 2)])
def test_states_come_out_in_robertas_width(projection, dense_layers):
    layers = build_projection(projection, 6, 4)
    assert layers.predict_on_batch(np.ones((2, 3, 6))).shape == (2, 3, 4)
    assert len(layers.layers) == dense_layers


def test_linear_is_linear_and_mlp_is_not():
    states = np.random.default_rng(0).normal(size=(1, 3, 6)).astype("float32")
    for projection, is_linear in (("linear", True), ("mlp", False)):
        layers = build_projection(projection, 6, 4)
        once, twice = layers.predict_on_batch(states), layers.predict_on_batch(2 * states)
        assert np.allclose(twice, 2 * once, atol=1e-5) is is_linear

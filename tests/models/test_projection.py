import numpy as np
import pytest
from sklearn.linear_model import Ridge

from embedder_helpers.config import Experiment
from embedder_helpers.models import projection as projection_module
from embedder_helpers.models.batching import from_lengths
from embedder_helpers.models.layers import GATE_RATE
from embedder_helpers.models.projection import (
    HELD_OUT,
    PENALTIES,
    aligned_pairs,
    fit_ridge,
    set_projection,
)


@pytest.fixture
def generator():
    return np.random.default_rng(0)


def build_projection(projection, **keys):
    """A projection from width 6 to width 4."""
    return projection_module.build_projection(Experiment(projection=projection, **keys), 6, 4)


@pytest.mark.parametrize("projection, dense_layers", [("linear", 1), ("mlp", 3)])
def test_a_projection_maps_to_robertas_width(projection, dense_layers):
    layers = build_projection(projection)
    assert layers.predict_on_batch(np.ones((2, 3, 6))).shape == (2, 3, 4)
    assert sum("projection_" in layer.name for layer in layers.layers) == dense_layers


@pytest.mark.parametrize(
    "projection, trained, is_linear",
    [("linear", False, True), ("mlp", False, True), ("mlp", True, False)],
)
def test_an_mlp_is_linear_until_its_branch_is_trained(projection, trained, is_linear, generator):
    layers = build_projection(projection)
    if trained:
        branch = layers.get_layer("projection_branch")
        branch.set_weights([generator.normal(size=one.shape) for one in branch.get_weights()])
    states = generator.normal(size=(1, 3, 6)).astype("float32")
    single, double = layers.predict_on_batch(states), layers.predict_on_batch(2 * states)
    assert np.allclose(double, 2 * single, atol=1e-5) is is_linear


# The closed-form initialization


def chunks(generator, noise=0.5):
    """Hidden states of different scales, far from zero, and noisy embeddings that follow them."""
    scales = np.logspace(-2, 1, 6)
    kernel = generator.normal(size=(6, 4)) / scales[:, None]
    for _ in range(40):
        states = 3 + generator.normal(size=(25, 6)) * scales
        embeddings = (states - 3) @ kernel + noise * generator.normal(size=(25, 4))
        yield states.astype("float32"), embeddings.astype("float32")


def concatenated(pairs):
    return (np.concatenate(part).astype("float64") for part in zip(*pairs, strict=True))


def sklearn_ridge(pairs, penalty):
    """scikit-learn's ridge regression, whose penalty is for a sum over rows, not their mean."""
    states, embeddings = concatenated(pairs)
    return Ridge(penalty * states.var(0).mean() * len(states)).fit(states, embeddings)


@pytest.mark.parametrize("noise", [0.5, 20.0])
def test_the_regression_equals_scikit_learns(noise, generator):
    pairs = list(chunks(generator, noise))
    ridge_map = fit_ridge(pairs)
    states, _ = concatenated(pairs)
    expected = sklearn_ridge(pairs, ridge_map.penalty).predict(states)
    difference = states @ ridge_map.kernel + ridge_map.bias - expected
    assert np.abs(difference).max() < 1e-2 * expected.std()


def test_the_penalty_has_the_least_error_on_held_out_chunks_and_explains_their_variance(generator):
    pairs = list(chunks(generator, noise=20.0))
    held_out, fitted = pairs[::HELD_OUT], [one for i, one in enumerate(pairs) if i % HELD_OUT]
    states, embeddings = concatenated(held_out)
    errors = {
        penalty: np.square(sklearn_ridge(fitted, penalty).predict(states) - embeddings).sum()
        for penalty in PENALTIES
    }
    ridge_map = fit_ridge(pairs)
    _, fitted_embeddings = concatenated(fitted)
    variance = np.square(embeddings - fitted_embeddings.mean(0)).sum()
    assert ridge_map.penalty == min(errors, key=errors.get)
    assert ridge_map.explained == pytest.approx(1 - min(errors.values()) / variance, abs=1e-3)


def test_unrelated_hidden_states_explain_nothing(generator):
    pairs = [(states, generator.normal(size=(25, 4))) for states, _ in chunks(generator)]
    assert abs(fit_ridge(pairs).explained) < 0.05


@pytest.mark.parametrize("projection", ["linear", "mlp"])
@pytest.mark.parametrize("fusion", ["replace", "add"])
def test_an_initialized_projection_is_the_regression_behind_a_closed_gate_if_added(
    fusion, projection, generator
):
    pairs = list(chunks(generator))
    layers = build_projection(projection, fusion=fusion, projection_start="ridge")
    ridge_map, states = fit_ridge(pairs), pairs[0][0]
    set_projection(layers, ridge_map)
    if fusion == "add":
        assert not layers.predict_on_batch(states[None]).any()
        layers.get_layer("projection_gate").scale.assign(1 / GATE_RATE)
    expected = states @ ridge_map.kernel + ridge_map.bias
    projected = layers.predict_on_batch(states[None])[0]
    np.testing.assert_allclose(projected, expected, rtol=1e-4, atol=1e-3 * np.abs(expected).max())


@pytest.mark.parametrize("projection", ["linear", "mlp"])
def test_a_projection_initialized_with_zero_can_be_trained(projection, generator):
    layers = build_projection(projection, fusion="add", projection_start="zero")
    states = generator.normal(size=(8, 3, 6)).astype("float32")
    assert not layers.predict_on_batch(states).any()
    layers.compile("sgd", "mse")
    layers.fit(states, np.ones((8, 3, 4)), verbose=0)
    assert layers.get_layer("projection_linear").get_weights()[0].any()


@pytest.mark.parametrize(
    "keys",
    [{"fusion": "replace"}, {"fusion": "prepend"}, {"fusion": "add", "projection_start": "random"}],
)
def test_a_projection_that_does_not_start_at_nothing_has_no_gate(keys):
    layers = build_projection("linear", **keys)
    assert "projection_gate" not in [layer.name for layer in layers.layers]
    assert layers.predict_on_batch(np.ones((1, 1, 6))).any()


def test_each_token_is_paired_with_the_hidden_state_of_the_token_in_which_it_ends():
    states = from_lengths(np.arange(10.0)[:, None], [4, 6])
    alignment = from_lengths(np.array([0, 3, 1]), [2, 1])
    tokens = from_lengths(np.array([5, 6, 7]), [2, 1])
    table = np.arange(20.0)[:, None] * 10
    pairs = list(aligned_pairs(states, alignment, tokens, table, lambda values: -values))
    aligned, embeddings = (part.ravel().tolist() for part in concatenated(pairs))
    assert aligned == [0, -3, -5]
    assert embeddings == [50, 60, 70]

import numpy as np
import pytest
from keras import ops
from sklearn.linear_model import Ridge as PeerRidge

from embedder_helpers import projection as projection_module
from embedder_helpers.config import Experiment
from embedder_helpers.fusion import GATE_RATE
from embedder_helpers.projection import (
    HELD_OUT,
    PENALTIES,
    Standardise,
    aligned_pairs,
    ridge,
    start_at,
)
from embedder_helpers.tokens import Stacked, end_to_end


@pytest.fixture
def generator():
    return np.random.default_rng(0)


def build_projection(projection, **keys):
    """Of states 6 wide into a space 4 wide."""
    return projection_module.build_projection(Experiment(projection=projection, **keys), 6, 4)


@pytest.mark.parametrize("projection, dense_layers", [("linear", 1), ("mlp", 3)])
def test_states_come_out_in_robertas_width(projection, dense_layers):
    layers = build_projection(projection)
    assert layers.predict_on_batch(np.ones((2, 3, 6))).shape == (2, 3, 4)
    assert sum("projection_" in layer.name for layer in layers.layers) == dense_layers


@pytest.mark.parametrize(
    "projection, trained, is_linear",
    [("linear", False, True), ("mlp", False, True), ("mlp", True, False)],
)
def test_an_mlp_is_linear_until_its_branch_has_learned(projection, trained, is_linear, generator):
    layers = build_projection(projection)
    if trained:
        branch = layers.get_layer("projection_branch")
        branch.set_weights([generator.normal(size=one.shape) for one in branch.get_weights()])
    states = generator.normal(size=(1, 3, 6)).astype("float32")
    once, twice = layers.predict_on_batch(states), layers.predict_on_batch(2 * states)
    assert np.allclose(twice, 2 * once, atol=1e-5) is is_linear


def chunks(generator, noise=0.5):
    """States whose scales differ, away from zero, and embeddings that follow them with noise."""
    scales = np.logspace(-2, 1, 6)
    kernel = generator.normal(size=(6, 4)) / scales[:, None]
    for _ in range(40):
        states = 3 + generator.normal(size=(25, 6)) * scales
        embeddings = (states - 3) @ kernel + noise * generator.normal(size=(25, 4))
        yield states.astype("float32"), embeddings.astype("float32")


def joined(pairs):
    return (np.concatenate(part).astype("float64") for part in zip(*pairs, strict=True))


def peer(pairs, penalty):
    """scikit-learn's ridge, whose penalty stands beside a sum over rows, not their mean."""
    states, embeddings = joined(pairs)
    return PeerRidge(penalty * states.var(0).mean() * len(states)).fit(states, embeddings)


@pytest.mark.parametrize("noise", [0.5, 20.0])
def test_the_regression_is_that_of_scikit_learn(noise, generator):
    pairs = list(chunks(generator, noise))
    found = ridge(pairs)
    states, _ = joined(pairs)
    expected = peer(pairs, found.penalty).predict(states)
    difference = states @ found.kernel + found.bias - expected
    assert np.abs(difference).max() < 1e-2 * expected.std()


def test_the_penalty_has_the_least_error_on_held_out_chunks_and_tells_what_it_explains(generator):
    pairs = list(chunks(generator, noise=20.0))
    held, seen = pairs[::HELD_OUT], [one for i, one in enumerate(pairs) if i % HELD_OUT]
    states, embeddings = joined(held)
    errors = {
        penalty: np.square(peer(seen, penalty).predict(states) - embeddings).sum()
        for penalty in PENALTIES
    }
    found = ridge(pairs)
    _, others = joined(seen)
    variance = np.square(embeddings - others.mean(0)).sum()
    assert found.penalty == min(errors, key=errors.get)
    assert found.explained == pytest.approx(1 - min(errors.values()) / variance, abs=1e-3)


def test_states_that_tell_nothing_explain_nothing(generator):
    pairs = [(states, generator.normal(size=(25, 4))) for states, _ in chunks(generator)]
    assert abs(ridge(pairs).explained) < 0.05


@pytest.mark.parametrize("projection", ["linear", "mlp"])
def test_a_projection_starts_as_the_regression(projection, generator):
    pairs = list(chunks(generator))
    found, layers = ridge(pairs), build_projection(projection)
    start_at(layers, found)
    states = pairs[0][0]
    expected = states @ found.kernel + found.bias
    given = layers.predict_on_batch(states[None])[0]
    np.testing.assert_allclose(given, expected, rtol=1e-4, atol=1e-3 * np.abs(expected).max())


@pytest.mark.parametrize("projection", ["linear", "mlp"])
def test_a_regression_that_is_added_stands_behind_a_gate_that_starts_closed(projection, generator):
    pairs = list(chunks(generator))
    layers = build_projection(projection, fusion="add", projection_start="ridge")
    found, states = ridge(pairs), pairs[0][0]
    start_at(layers, found)
    assert not layers.predict_on_batch(states[None]).any()
    layers.get_layer("projection_gate").scale.assign(1 / GATE_RATE)
    expected = states @ found.kernel + found.bias
    given = layers.predict_on_batch(states[None])[0]
    np.testing.assert_allclose(given, expected, rtol=1e-4, atol=1e-3 * np.abs(expected).max())


@pytest.mark.parametrize("projection", ["linear", "mlp"])
def test_a_projection_that_starts_at_zero_gives_zero_and_can_learn(projection, generator):
    layers = build_projection(projection, fusion="add", projection_start="zero")
    states = generator.normal(size=(8, 3, 6)).astype("float32")
    assert not layers.predict_on_batch(states).any()
    layers.compile("sgd", "mse")
    layers.fit(states, np.ones((8, 3, 4)), verbose=0)
    assert layers.get_layer("projection_linear").get_weights()[0].any()


@pytest.mark.parametrize(
    "keys", [{}, {"fusion": "prepend"}, {"fusion": "add", "projection_start": "random"}]
)
def test_what_does_not_start_as_nothing_has_no_gate(keys):
    layers = build_projection("linear", **keys)
    assert "projection_gate" not in [layer.name for layer in layers.layers]
    assert layers.predict_on_batch(np.ones((1, 1, 6))).any()


def test_pairs_hold_the_state_of_the_token_where_each_token_ends():
    states = end_to_end(np.arange(10.0)[:, None], [4, 6])
    places, ids = end_to_end(np.array([0, 3, 1]), [2, 1]), end_to_end(np.array([5, 6, 7]), [2, 1])
    table = np.arange(20.0)[:, None] * 10
    found = list(aligned_pairs(states, places, ids, table, lambda read: read))
    assert np.concatenate([one for one, _ in found]).ravel().tolist() == [0, 3, 5]
    assert np.concatenate([one for _, one in found]).ravel().tolist() == [50, 60, 70]


def standard(states):
    """A layer that has read states."""
    layer = Standardise()
    layer.build((None, None, *states.text(0).shape[1:]))
    layer.adapt(states)
    return layer


@pytest.fixture
def states(generator):
    """Of 150 texts, more than are read at a time; one dimension is large and hardly varies."""
    lengths = generator.integers(1, 9, size=150)
    values = generator.normal(size=(lengths.sum(), 6)) * [1, 2, 3, 0.1, 0.5, 1]
    values[:, 5] += 50
    return end_to_end(values.astype("float16"), lengths)


def test_standardised_states_have_mean_0_and_deviation_1_in_every_dimension(states):
    found = ops.convert_to_numpy(standard(states)(states.values[None].astype("float32")))[0]
    np.testing.assert_allclose(found.mean(0), 0, atol=1e-3)
    np.testing.assert_allclose(found.std(0), 1, atol=1e-3)


def test_the_states_of_each_cutoff_are_standardised_by_their_own_figures(states):
    several = Stacked((states, end_to_end(2 * states.values, states.lengths)))
    given = np.stack([layer.values for layer in several.layers], 1)[None].astype("float32")
    found = ops.convert_to_numpy(standard(several)(given))[0]
    np.testing.assert_allclose(found[:, 0], found[:, 1], atol=1e-3)
    np.testing.assert_allclose(found.std(0), 1, atol=1e-3)


def test_a_dimension_that_never_varies_stays_finite(states):
    states.values[:, 2] = 7
    found = ops.convert_to_numpy(standard(states)(states.values[None].astype("float32")))
    assert np.isfinite(found).all() and abs(found[..., 2]).max() < 1e-3


def test_states_are_left_as_they_are_until_figures_were_taken():
    values = np.random.default_rng(0).normal(size=(2, 3, 6)).astype("float32")
    np.testing.assert_array_equal(Standardise()(values), values)

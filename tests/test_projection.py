import numpy as np
import pytest
from sklearn.linear_model import Ridge as PeerRidge

from embedder_helpers import projection as projection_module
from embedder_helpers.config import Experiment
from embedder_helpers.projection import HELD_OUT, PENALTIES, aligned_pairs, ridge, start_at
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
    layers.get_layer("projection_gate").scale.assign(1.0)
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
    assert layers.get_layer("projection_linear").kernel.numpy().any()


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
    found = list(aligned_pairs(states, places, ids, table, "mean"))
    assert np.concatenate([one for one, _ in found]).ravel().tolist() == [0, 3, 5]
    assert np.concatenate([one for _, one in found]).ravel().tolist() == [50, 60, 70]


@pytest.mark.parametrize("layer_pooling, expected", [("mean", 1.0), ("max", 2.0), ("learned", 1.0)])
def test_several_cutoffs_are_pooled_as_the_model_pools_them_at_first(layer_pooling, expected):
    low, high = (end_to_end(np.full((2, 3), value), [1, 1]) for value in (0.0, 2.0))
    places = ids = end_to_end(np.array([0, 0]), [1, 1])
    pairs = aligned_pairs(Stacked((low, high)), places, ids, np.zeros((1, 2)), layer_pooling)
    assert all((states == expected).all() and states.shape == (1, 3) for states, _ in pairs)

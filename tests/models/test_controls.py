"""Controls: hidden states that say less of a text than the true ones, but look like them."""

import numpy as np
import pytest

from embedder_helpers.config import Experiment
from embedder_helpers.errors import InputError
from embedder_helpers.models.batching import MultiLayerStates, from_lengths
from embedder_helpers.models.controls import StatesControl

LENGTHS = np.array([3, 1, 4, 2, 5, 3, 1, 2])


def made_states(seed=0, lengths=LENGTHS, width=3):
    """Correlated hidden states, of another mean in each dimension."""
    generator = np.random.default_rng(seed)
    values = generator.normal(size=(lengths.sum(), width)) @ generator.normal(size=(width, width))
    return from_lengths((values + np.arange(width)).astype("float32"), lengths)


def control(name, **settings):
    return StatesControl(Experiment(llm_control=name, **settings))


def texts(states):
    return [states.text(row) for row in range(len(states))]


@pytest.mark.parametrize("name", [None, "random_weights"])
def test_without_a_control_of_states_they_are_the_same_object(name):
    states = made_states()
    assert control(name).replace(states) is states
    assert control("shuffled").replace(None) is None


@pytest.mark.parametrize("name", ["shuffled", "noise"])
@pytest.mark.parametrize("layers", [1, 3])
def test_replaced_states_have_the_texts_lengths_and_another_content(name, layers):
    states = made_states()
    if layers > 1:
        states = MultiLayerStates(tuple(made_states(seed) for seed in range(layers)))
    one = control(name)
    one.fit(states)
    replaced = one.replace(states)
    assert type(replaced) is type(states)
    np.testing.assert_array_equal(replaced.lengths, LENGTHS)
    for new, old in zip(texts(replaced), texts(states), strict=True):
        assert new.shape == old.shape and new.dtype == old.dtype
        assert not np.array_equal(new, old)


def test_shuffled_states_are_those_of_one_other_text_at_every_cutoff():
    # A text's states are its number, at the second cutoff its number plus 100.
    numbers = np.repeat(np.arange(len(LENGTHS)), LENGTHS)[:, None].astype("float32")
    layers = from_lengths(numbers, LENGTHS), from_lengths(numbers + 100, LENGTHS)
    first, second = control("shuffled").replace(MultiLayerStates(layers)).layers
    given = [set(text.ravel().tolist()) for text in texts(first)]
    assert all(len(one) == 1 for one in given)
    others = [int(one.pop()) for one in given]
    assert sorted(others) == list(range(len(LENGTHS)))
    assert all(own != other for own, other in enumerate(others))
    np.testing.assert_array_equal(second.values, first.values + 100)


def test_noise_has_the_mean_and_covariance_of_the_training_states_and_nothing_of_the_text():
    lengths = np.full(4000, 5)
    train, others = made_states(1, lengths), made_states(2, lengths)
    one = control("noise")
    one.fit(train)
    noise = one.replace(others).values
    np.testing.assert_allclose(noise.mean(0), train.values.mean(0), atol=0.05)
    scale = np.abs(np.cov(train.values.T)).max()
    np.testing.assert_allclose(np.cov(noise.T), np.cov(train.values.T), atol=0.05 * scale)
    correlation = np.corrcoef(noise.T, others.values.T)[:3, 3:]
    assert np.abs(correlation).max() < 0.03


@pytest.mark.parametrize("name", ["shuffled", "noise"])
def test_draws_repeat_with_the_seed_and_differ_between_calls_and_seeds(name):
    def draws(seed):
        one = control(name, seed=seed)
        one.fit(made_states())
        return [one.replace(made_states()).values for _ in range(2)]

    (first, second), again, other = draws(1), draws(1), draws(2)
    np.testing.assert_array_equal(first, again[0])
    np.testing.assert_array_equal(second, again[1])
    assert not np.array_equal(first, second) and not np.array_equal(first, other[0])


@pytest.mark.parametrize("name", ["shuffled", "noise"])
def test_gemma_alone_has_no_control_of_its_states(name):
    with pytest.raises(InputError, match=f"llm_control is '{name}', but gemma_only"):
        Experiment(kind="gemma_only", llm_control=name)


def test_a_control_is_not_saved_as_an_embedder():
    with pytest.raises(InputError, match="a control is to be measured"):
        Experiment(llm_control="noise", save_embedder=True)


def test_noise_that_is_drawn_in_parts_is_the_same(monkeypatch):
    whole, in_parts = (control("noise") for _ in range(2))
    whole.fit(made_states())
    in_parts.fit(made_states())
    expected = whole.replace(made_states())
    monkeypatch.setattr("embedder_helpers.models.controls.MAX_TOKENS", 4)
    np.testing.assert_allclose(in_parts.replace(made_states()).values, expected.values, atol=1e-5)


def test_a_single_text_cannot_have_the_states_of_another_one():
    control = StatesControl(Experiment(llm_control="shuffled"))
    with pytest.raises(InputError, match="a single text"):
        control.replace(from_lengths(np.ones((3, 2), "float32"), np.array([3])))

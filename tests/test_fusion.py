"""Fusions: what stands at each position, and what RoBERTa is fed with."""

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import ops

from embedder_helpers import embedder as embedder_module
from embedder_helpers.config import Experiment, InputError
from embedder_helpers.embedder import build_embedder
from embedder_helpers.fusion import GATE_RATE, NONE, Fused, Gate, fuse, fused
from embedder_helpers.presets import find_preset, find_presets
from embedder_helpers.roberta import encode_embeddings, load_roberta
from embedder_helpers.tokens import align, bucket, end_to_end, stacked

TEXTS = [
    "It works.",
    "I wish the clasp were stronger.",
    "Had the pump been oiled in autumn, the mill by the river would still be running today.",
    "No.",
]
FUSIONS = ("replace", "add", "prepend")


def hybrid(fusion, **keys):
    return build_embedder(Experiment(fusion=fusion, **{"llm_layers": 2, **keys}))


def inputs_of(embedder, texts=TEXTS):
    tokens = embedder.tokenise(texts)
    return embedder.inputs(tokens, embedder.states(tokens))


# What stands at each position


@st.composite
def texts(draw):
    """Fused texts, and rows to ask for; some states of one cutoff, some of two."""
    lengths = draw(st.lists(st.integers(1, 9), min_size=1, max_size=6))
    positions = draw(st.lists(st.integers(1, 12), min_size=len(lengths), max_size=len(lengths)))
    places, tokens = [], []
    for length, count in zip(lengths, positions, strict=True):
        places += draw(st.lists(st.integers(NONE, length - 1), min_size=count, max_size=count))
        tokens += draw(st.lists(st.integers(NONE, 99), min_size=count, max_size=count))
    numbers = np.arange(2.0 * sum(lengths)).reshape(-1, 2) + 1
    layers = [end_to_end(sign * numbers, lengths) for sign in draw(st.sampled_from([[1], [1, -1]]))]
    whole = Fused(
        stacked(layers),
        end_to_end(np.array(places), positions),
        end_to_end(np.array(tokens), positions),
    )
    rows = draw(st.lists(st.integers(0, len(lengths) - 1), min_size=1, max_size=8))
    return whole, rows


@settings(deadline=None)
@given(texts(), st.integers(0, 3), st.integers(0, 2))
def test_a_batch_holds_each_positions_state_token_and_mask(case, more_length, more_texts):
    whole, rows = case
    length, count = int(whole.lengths[rows].max()) + more_length, len(rows) + more_texts
    batch = whole.batch(rows, length, count)
    assert len(batch["inputs"]) == len(batch["tokens"]) == len(batch["mask"]) == count
    for text in range(count):
        held = whole.tokens.text(rows[text]) if text < len(rows) else []
        for position in range(length):
            real, state, token = position < len(held), 0, 0
            if real:
                place, token = whole.places.text(rows[text])[position], held[position]
                state = 0 if place == NONE else whole.states.text(rows[text])[place]
            assert (batch["inputs"][text, position] == state).all()
            assert batch["tokens"][text, position] == token
            assert batch["mask"][text, position] == real


@settings(deadline=None)
@given(texts())
def test_selected_texts_make_the_batch_that_they_would_have_made(case):
    whole, rows = case
    chosen = whole.select(rows)
    assert len(chosen) == len(rows) and chosen.lengths.tolist() == whole.lengths[rows].tolist()
    length = int(chosen.lengths.max())
    found = chosen.batch(range(len(rows)), length, len(rows))
    for name, expected in whole.batch(rows, length, len(rows)).items():
        np.testing.assert_array_equal(found[name], expected)


def test_prepended_states_stand_in_their_order_before_the_texts_own_tokens():
    states = end_to_end(np.arange(5.0)[:, None], [2, 3])
    places, tokens = end_to_end(np.zeros(3, int), [2, 1]), end_to_end(np.array([7, 8, 9]), [2, 1])
    found = fused("prepend", states, places, tokens)
    assert found.lengths.tolist() == [4, 4]
    assert found.places.text(0).tolist() == [0, 1, NONE, NONE]
    assert found.tokens.text(0).tolist() == [NONE, NONE, 7, 8]
    assert found.places.text(1).tolist() == [0, 1, 2, NONE]
    assert found.tokens.text(1).tolist() == [NONE, NONE, NONE, 9]


def test_added_states_stand_where_the_tokens_are():
    states = end_to_end(np.arange(5.0)[:, None], [2, 3])
    places, tokens = end_to_end(np.array([0, 1, 2]), [2, 1]), end_to_end(np.arange(3), [2, 1])
    found = fused("add", states, places, tokens)
    assert found.states is states and found.places is places and found.tokens is tokens


@pytest.mark.parametrize("fusion, expected", [("add", [11, 22, 33]), ("prepend", [1, 20, 30])])
def test_projected_and_own_embeddings_become_one_input(fusion, expected):
    projected = np.array([[[1.0], [2.0], [3.0]]])
    own, tokens = 10 * projected, np.array([[NONE, 0, 5]])
    assert ops.convert_to_numpy(fuse(fusion, projected, own, tokens)).ravel().tolist() == expected


def test_a_gate_is_closed_at_first_and_then_a_factor():
    gate = Gate()
    assert not ops.convert_to_numpy(gate(np.ones((1, 2, 3), "float32"))).any()
    gate.scale.assign(0.5 / GATE_RATE)
    np.testing.assert_allclose(ops.convert_to_numpy(gate(np.ones((1, 2, 3), "float32"))), 0.5)


# Added states


@pytest.fixture(scope="module")
def closed():
    """States added behind a closed gate, their projection in closed form."""
    embedder = hybrid("add", projection_start="ridge")
    tokens = embedder.tokenise(TEXTS)
    embedder.start_projection(TEXTS, tokens, embedder.states(tokens))
    return embedder


@pytest.fixture
def opened(closed):
    """The same with its gate open."""
    gate = closed.projection.get_layer("projection_gate").scale
    gate.assign(1 / GATE_RATE)
    yield closed
    gate.assign(0.0)


@pytest.mark.parametrize("projection", ["linear", "mlp"])
@pytest.mark.parametrize("llm_layers", [2, (1, 2)])
def test_a_hybrid_that_adds_nothing_yet_is_roberta_alone(tiny_embedders, projection, llm_layers):
    embedder = hybrid("add", projection=projection, llm_layers=llm_layers)
    expected = tiny_embedders["roberta_only"].encode(TEXTS)
    np.testing.assert_allclose(embedder.encode(TEXTS), expected, atol=1e-6)


def test_a_hybrid_behind_a_closed_gate_is_roberta_alone(tiny_embedders, closed):
    expected = tiny_embedders["roberta_only"].encode(TEXTS)
    np.testing.assert_allclose(closed.encode(TEXTS), expected, atol=1e-6)


def input_embeddings(embedder, batch):
    """What RoBERTa is fed with, `(texts, positions, width)`."""
    fed = []
    with pytest.MonkeyPatch.context() as patch:
        # A layer's input is seen where the model is run layer by layer.
        layer = embedder.model.get_layer("position_embedding")
        call = layer.call
        patch.setattr(layer, "call", lambda given, **keys: (fed.append(given), call(given))[1])
        embedder.model(batch)
    return ops.convert_to_numpy(fed[0])


def test_behind_an_open_gate_each_token_is_its_own_embedding_and_its_states(opened):
    tokens = opened.tokenise(TEXTS)
    states = opened.states(tokens)
    ids = (opened.gemma.tokenizer, tokens.gemma), (opened.tokenizer, tokens.roberta)
    places = align(*ids)
    table = keras.ops.convert_to_numpy(opened.roberta.token_embedding.embeddings)
    kernel, bias = opened.projection.get_layer("projection_linear").get_weights()
    rows, length = range(len(TEXTS)), bucket(tokens.roberta.lengths.max())
    found = input_embeddings(opened, opened.inputs(tokens, states).batch(rows, length, len(TEXTS)))
    for row in rows:
        for position, token in enumerate(tokens.roberta.text(row)):
            state = states.text(row)[places.text(row)[position]].astype("float32")
            expected = table[token] + state @ kernel + bias
            np.testing.assert_allclose(found[row, position], expected, atol=1e-4)
            assert abs(found[row, position] - table[token]).max() > 1e-3


def test_an_open_gate_changes_the_embeddings(tiny_embedders, opened):
    alone = tiny_embedders["roberta_only"].encode(TEXTS)
    assert abs(opened.encode(TEXTS) - alone).max(1).min() > 1e-2


def test_added_states_of_several_cutoffs_are_pooled_by_learned_weights():
    several = hybrid("add", llm_layers=(1, 2), layer_pooling="learned", projection_start="random")
    batch = inputs_of(several).batch([1, 0], 16, 2)
    assert batch["inputs"].shape == (2, 16, 2, 96) and batch["tokens"].shape == (2, 16)
    one = hybrid("add", llm_layers=2, projection_start="random")
    one.projection.set_weights(several.projection.get_weights())
    mean, expected = several.encode(TEXTS), one.encode(TEXTS)
    assert abs(mean - expected).max() > 1e-2
    several.model.get_layer("layer_pooling").logits.assign([-20.0, 20.0])
    np.testing.assert_allclose(several.encode(TEXTS), expected, atol=1e-4)


# States in front


@pytest.fixture(scope="module")
def prepended():
    return hybrid("prepend")


def test_a_prepended_text_has_a_state_a_gemma_token_and_then_its_own_tokens(prepended):
    tokens = prepended.tokenise(TEXTS)
    states = prepended.states(tokens)
    length = bucket((tokens.gemma.lengths + tokens.roberta.lengths).max())
    batch = prepended.inputs(tokens, states).batch(range(len(TEXTS)), length, len(TEXTS))
    for row in range(len(TEXTS)):
        first, own = states.text(row), tokens.roberta.text(row)
        rest = length - len(first) - len(own)
        np.testing.assert_array_equal(batch["inputs"][row, : len(first)], first)
        assert not batch["inputs"][row, len(first) :].any()
        ids = [NONE] * len(first) + own.tolist() + [0] * rest
        assert batch["tokens"][row].tolist() == ids
        assert batch["mask"][row].tolist() == [1] * (length - rest) + [0] * rest


def test_a_prepended_texts_embedding_is_that_of_both_sequences_end_to_end(prepended):
    roberta, _ = load_roberta(find_preset("slm_preset", "tiny_roberta"))
    tokens = prepended.tokenise(TEXTS)
    states = prepended.states(tokens)
    expected = []
    for row in range(len(TEXTS)):
        projected = prepended.projection(states.text(row)[None].astype("float32"))
        own = roberta.token_embedding(tokens.roberta.text(row)[None])
        both = keras.ops.concatenate([projected, own], 1)
        out = encode_embeddings(roberta, both, np.ones(both.shape[:2], "int32"))
        expected.append(ops.convert_to_numpy(out)[0].mean(0))
    np.testing.assert_allclose(prepended.encode(TEXTS), expected, atol=1e-4)


def test_a_prepended_text_may_be_twice_as_long_as_the_limit():
    embedder = hybrid("prepend", max_tokens=20)
    assert embedder.longest == 40
    assert inputs_of(embedder).lengths.max() == 40
    assert np.isfinite(embedder.encode(TEXTS)).all()


def test_prepended_states_need_half_of_robertas_positions():
    assert find_presets(Experiment(fusion="prepend", max_tokens=256))
    with pytest.raises(InputError, match="has 512 positions, half of them .* use at most 256"):
        find_presets(Experiment(fusion="prepend", max_tokens=257))


def test_roberta_alone_has_all_its_positions_whatever_the_fusion():
    assert find_presets(Experiment(kind="roberta_only", fusion="prepend", max_tokens=512))


# All of them


@pytest.fixture(scope="module", params=FUSIONS)
def random_start(request):
    return hybrid(request.param, projection_start="random")


def test_no_fusion_lets_order_company_or_padding_change_an_embedding(random_start, monkeypatch):
    together = random_start.encode(TEXTS)
    np.testing.assert_allclose(random_start.encode(TEXTS[::-1])[::-1], together, atol=1e-4)
    alone = np.concatenate([random_start.encode([text]) for text in TEXTS])
    np.testing.assert_allclose(alone, together, atol=1e-4)
    monkeypatch.setattr(embedder_module, "EMBEDDING_TOKENS", 64)
    monkeypatch.setattr("embedder_helpers.tokens.BUCKETS", (64, 128))
    np.testing.assert_allclose(random_start.encode(TEXTS), together, atol=1e-4)


def test_every_fusion_tells_texts_apart(random_start):
    embeddings = random_start.encode(TEXTS)
    distances = np.linalg.norm(embeddings[:, None] - embeddings[None], axis=-1)
    assert distances[~np.eye(len(TEXTS), dtype=bool)].min() > 1e-3


def test_states_are_left_out_in_training_only():
    embedder = hybrid("replace", state_dropout=0.9)
    batch = inputs_of(embedder).batch([1, 2], 32, 2)
    still = [ops.convert_to_numpy(embedder.model(batch, training=False)) for _ in range(2)]
    np.testing.assert_allclose(*still, atol=1e-5)
    plain = ops.convert_to_numpy(hybrid("replace").model(batch, training=False))
    np.testing.assert_allclose(still[0], plain, atol=1e-4)
    layer = embedder.model.get_layer("state_dropout")
    left = ops.convert_to_numpy(layer(np.ones((1, 50, 96), "float32"), training=True)) == 0
    assert 0.85 < left.mean() < 0.95

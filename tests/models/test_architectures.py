import keras
import numpy as np
import pytest
from keras import ops

from embedder_helpers.config import Experiment
from embedder_helpers.errors import InputError
from embedder_helpers.models.architectures import architecture, build_embedder
from embedder_helpers.models.batching import EMPTY, bucket_length
from embedder_helpers.models.embedder import Head
from embedder_helpers.models.gemma import HiddenStateSpec
from embedder_helpers.models.layers import GATE_RATE
from embedder_helpers.models.presets import find_preset, find_presets
from embedder_helpers.models.roberta import encode_embeddings, load_roberta
from embedder_helpers.models.tokenization import align_tokens, tokenize

# Few lengths, because each bucket costs a compilation.
TEXTS = [
    "I wish the clasp were stronger.",
    "It works as well as it can, she said.",
    "Had the pump been oiled in autumn!",
]


def hybrid(**keys):
    plain = {"llm_layers": 1, "fusion": "replace", "late_fusion": False}
    return build_embedder(Experiment(**plain | keys))


def hidden_states(embedder):
    tokens = embedder.tokenize(TEXTS)
    return tokens, embedder.hidden_states(tokens)


def batch_of(embedder, rows=(0, 1, 2)):
    inputs = embedder.prepare_inputs(*hidden_states(embedder))
    return inputs.batch(rows, bucket_length(inputs.lengths.max()), len(rows))


# Building


@pytest.mark.parametrize("llm_layers", [19, -19])
def test_a_cutoff_beyond_the_model_is_an_error_before_weights_are_loaded(llm_layers):
    with pytest.raises(InputError, match=f"llm_layers is {llm_layers}, but .* 18"):
        build_embedder(Experiment(llm_layers=llm_layers))


@pytest.mark.parametrize(
    "keys, message",
    [
        ({"max_tokens": 513}, "max_tokens is 513, .* 512 positions"),
        ({"max_tokens": 257, "fusion": "prepend"}, "max_tokens is 257, .* use at most 256"),
    ],
)
def test_more_tokens_than_roberta_has_positions_is_an_error_before_weights_are_loaded(
    keys, message
):
    with pytest.raises(InputError, match=message):
        build_embedder(Experiment(**keys))


@pytest.mark.parametrize(
    "keys",
    [
        {"max_tokens": 256, "fusion": "prepend"},
        {"max_tokens": 512, "fusion": "prepend", "kind": "roberta_only"},
    ],
)
def test_only_prepended_hidden_states_need_half_of_robertas_positions(keys):
    assert find_presets(Experiment(**keys))


def test_a_seed_determines_the_projection():
    first, same, other = (
        hybrid(seed=seed, projection="mlp", projection_start="random").projection.get_weights()
        for seed in (1, 1, 2)
    )
    for weight, again in zip(first, same, strict=True):
        np.testing.assert_array_equal(weight, again)
    assert not np.allclose(first[0], other[0], atol=1e-2)


@pytest.mark.parametrize("kind", ["hybrid", "roberta_only"])
def test_mixed_float16_gives_nearly_the_same_embeddings_in_float32(
    tiny_embedders, kind, monkeypatch
):
    monkeypatch.setattr(
        "embedder_helpers.utils.environment.training_dtype", lambda: "mixed_float16"
    )
    half = build_embedder(tiny_embedders[kind].experiment).encode(TEXTS)
    expected = tiny_embedders[kind].encode(TEXTS)
    assert half.dtype == "float32"
    np.testing.assert_allclose(half, expected, atol=0.03)
    assert (half != expected).any()


# Tokens and hidden states


@pytest.mark.parametrize("kind", ["hybrid", "gemma_only"])
def test_hidden_states_in_float16_are_the_models_inputs(tiny_embedders, kind):
    embedder = tiny_embedders[kind]
    tokens, states = hidden_states(embedder)
    assert embedder.prepare_inputs(tokens, states) is states
    assert states.values.shape == (tokens.gemma.lengths.sum(), 96)
    assert states.values.dtype == "float16"


def test_a_hybrid_that_replaces_token_embeddings_reads_no_tokens_of_roberta(tiny_embedders):
    assert tiny_embedders["hybrid"].tokenize(TEXTS).roberta is None


def test_the_inputs_of_roberta_alone_are_the_token_ids(tiny_embedders):
    embedder = tiny_embedders["roberta_only"]
    tokens, states = hidden_states(embedder)
    assert tokens.gemma is None and states is None
    assert embedder.prepare_inputs(tokens, states) is tokens.roberta


def test_longer_texts_are_truncated_and_reported():
    embedder = build_embedder(Experiment(kind="roberta_only", max_tokens=12))
    tokens = embedder.tokenize(["A very long sentence that goes on and on. " * 5, "Short."])
    assert tokens.truncated.tolist() == [True, False]
    assert tokens.roberta.lengths[0] == 12


def test_a_text_is_reported_as_truncated_if_either_model_truncates_it():
    embedder = hybrid(fusion="add", max_tokens=8)
    texts = [" ".join(["mill"] * count) for count in range(1, 12)]
    gemma = [len(ids) > 7 for ids in embedder.gemma.tokenizer(texts)]
    roberta = [len(ids) > 6 for ids in embedder.tokenizer(texts)]
    assert gemma != roberta
    expected = [any(pair) for pair in zip(gemma, roberta, strict=True)]
    assert embedder.tokenize(texts).truncated.tolist() == expected


# Several cutoffs


@pytest.mark.parametrize("layer_pooling", ["mean", "max"])
def test_gemma_alone_pools_several_cutoffs_after_their_norms(layer_pooling):
    embedder = build_embedder(
        Experiment(kind="gemma_only", llm_layers=(4, 1, 3), layer_pooling=layer_pooling)
    )
    ids = embedder.tokenize(TEXTS).gemma
    layers = embedder.gemma.hidden_states(
        ids, [HiddenStateSpec(cutoff, "rms") for cutoff in (1, 3, 4)]
    )
    values = np.stack([layer.values.astype("float32") for layer in layers.layers])
    pooled = getattr(values, layer_pooling)(0)
    expected = [text.mean(0) for text in np.split(pooled, ids.lengths.cumsum()[:-1])]
    np.testing.assert_allclose(embedder.encode(TEXTS), expected, rtol=1e-3, atol=1e-4)


def test_raw_and_normed_hidden_states_are_pooled_together():
    experiment = Experiment(kind="gemma_only", llm_layers=(17, 18), final_norm="last")
    assert np.isfinite(build_embedder(experiment).encode(TEXTS)).all()


@pytest.fixture(scope="module")
def several():
    """Untrained hybrids of three cutoffs, by how these are pooled."""
    return {
        layer_pooling: hybrid(llm_layers=(1, 3, 4), layer_pooling=layer_pooling)
        for layer_pooling in ("mean", "max", "learned")
    }


def test_a_hybrid_with_learned_pooling_starts_as_the_one_with_the_mean(several):
    embeddings = {name: embedder.encode(TEXTS) for name, embedder in several.items()}
    assert np.isfinite(embeddings["max"]).all()
    np.testing.assert_allclose(embeddings["learned"], embeddings["mean"], atol=1e-4)
    assert abs(embeddings["max"] - embeddings["mean"]).max() > 1e-2


@pytest.mark.parametrize("layer_pooling", ["mean", "max", "learned"])
def test_the_projection_reads_standardized_hidden_states_pooled_over_the_cutoffs(
    several, layer_pooling
):
    embedder = several[layer_pooling]
    _, states = hidden_states(embedder)
    embedder.standardize.adapt(states)
    values = np.concatenate([states.text(row) for row in range(len(TEXTS))]).astype("float32")
    standardized = (values - values.mean(0)) / values.std(0)
    expected = standardized.max(1) if layer_pooling == "max" else standardized.mean(1)
    projection_input = ops.convert_to_numpy(embedder.projection_input(values[None]))[0]
    np.testing.assert_allclose(projection_input, expected, atol=1e-2)


# The initialization of the projection


def test_an_initialized_projection_is_nearer_to_robertas_embeddings_than_a_random_one():
    embedder = hybrid()
    tokens, states = hidden_states(embedder)
    roberta_ids, _ = tokenize(embedder.tokenizer, TEXTS, 256, end=True)
    table = ops.convert_to_numpy(embedder.roberta.token_embedding.embeddings)
    alignment = align_tokens(
        TEXTS, (embedder.gemma.tokenizer, tokens.gemma), (embedder.tokenizer, roberta_ids)
    )
    aligned = np.concatenate([states.text(row)[alignment.text(row)] for row in range(len(TEXTS))])

    def distance():
        projected = embedder.projection(embedder.projection_input(aligned[None]))
        return np.square(ops.convert_to_numpy(projected)[0] - table[roberta_ids.values]).mean()

    before = distance()
    ridge_map = embedder.initialize_projection(tokens, states)
    assert distance() < before / 10
    assert ridge_map.kernel.shape == (96, 128)


# Fusion: hidden states added to token embeddings


@pytest.fixture(scope="module")
def zero():
    """A hybrid that adds nothing yet: its projection starts at zero."""
    return with_head(hybrid(fusion="add", projection="mlp", llm_layers=(1, 2)), ["a", "b", "c"])


@pytest.fixture(scope="module")
def learned():
    """A hybrid that adds hidden states of two cutoffs, pooled by learned weights."""
    keys = dict(llm_layers=(1, 2), layer_pooling="learned", projection_start="random")
    return with_head(hybrid(fusion="add", **keys), [0, 1])


def with_head(embedder, labels):
    """The embedder with a head of random weights."""
    kernel = np.random.default_rng(0).normal(size=(embedder.width, len(labels)))
    embedder.head = Head(kernel, np.zeros(len(labels)), np.array(labels))
    return embedder


@pytest.fixture(scope="module")
def closed():
    """A hybrid that adds hidden states behind a closed gate, its projection in closed form."""
    embedder = hybrid(fusion="add", projection_start="ridge")
    embedder.initialize_projection(*hidden_states(embedder))
    return embedder


@pytest.fixture
def opened(closed):
    """The same with its gate open."""
    gate = closed.projection.get_layer("projection_gate").scale
    gate.assign(1 / GATE_RATE)
    yield closed
    gate.assign(0.0)


def test_a_hybrid_that_adds_nothing_yet_equals_roberta_alone(tiny_embedders, zero):
    expected = tiny_embedders["roberta_only"].encode(TEXTS)
    np.testing.assert_allclose(zero.encode(TEXTS), expected, atol=1e-6)


def test_a_hybrid_with_a_closed_gate_equals_roberta_alone(tiny_embedders, closed):
    expected = tiny_embedders["roberta_only"].encode(TEXTS)
    np.testing.assert_allclose(closed.encode(TEXTS), expected, atol=1e-6)


def test_an_open_gate_changes_the_embeddings(tiny_embedders, opened):
    without = tiny_embedders["roberta_only"].encode(TEXTS)
    assert abs(opened.encode(TEXTS) - without).max(1).min() > 1e-2


def input_embeddings(embedder, batch):
    """RoBERTa's input embeddings `(texts, positions, width)`."""
    inputs = []
    with pytest.MonkeyPatch.context() as patch:
        # A layer's input can be recorded where the model is run layer by layer.
        layer = embedder.model.get_layer("position_embedding")
        call = layer.call
        patch.setattr(layer, "call", lambda value, **keys: (inputs.append(value), call(value))[1])
        embedder.model(batch)
    return ops.convert_to_numpy(inputs[0])


def test_with_an_open_gate_each_token_is_its_own_embedding_plus_a_projected_hidden_state(opened):
    tokens, states = hidden_states(opened)
    alignment = align_tokens(
        TEXTS, (opened.gemma.tokenizer, tokens.gemma), (opened.tokenizer, tokens.roberta)
    )
    table = ops.convert_to_numpy(opened.roberta.token_embedding.embeddings)
    kernel, bias = opened.projection.get_layer("projection_linear").get_weights()
    embeddings = input_embeddings(opened, batch_of(opened))
    for row in range(len(TEXTS)):
        ids = tokens.roberta.text(row)
        projected = states.text(row)[alignment.text(row)].astype("float32") @ kernel + bias
        difference = embeddings[row, : len(ids)] - table[ids]
        np.testing.assert_allclose(difference, projected, atol=1e-4)
        assert abs(difference).max(1).min() > 1e-3


def test_added_hidden_states_of_several_cutoffs_are_pooled_by_learned_weights(learned):
    batch = batch_of(learned)
    assert batch["inputs"].shape[2:] == (2, 96) and batch["tokens"].ndim == 2
    last = hybrid(fusion="add", llm_layers=2, projection_start="random")
    last.projection.set_weights(learned.projection.get_weights())
    expected = last.encode(TEXTS)
    assert abs(learned.encode(TEXTS) - expected).max() > 1e-2
    logits = learned.model.get_layer("layer_pooling").logits
    logits.assign([-20.0, 20.0])
    np.testing.assert_allclose(learned.encode(TEXTS), expected, atol=1e-4)
    logits.assign([0.0, 0.0])


def test_gemmas_effect_on_a_prediction_is_measured_against_the_same_roberta_without_it(
    tiny_embedders, learned
):
    predictions = learned.predict(TEXTS)
    without = learned.head.probabilities(tiny_embedders["roberta_only"].encode(TEXTS))
    moved = predictions["moved_by_gemma"]
    np.testing.assert_allclose(moved, np.abs(without[:, 1] - predictions["p(1)"]), 1e-4)
    assert predictions["label_without_gemma"].tolist() == without.argmax(-1).tolist()
    assert moved.between(0, 1).all() and moved.max() > 0


def test_a_gemma_that_adds_nothing_moves_no_prediction(zero):
    predictions = zero.predict(TEXTS)
    np.testing.assert_allclose(predictions["moved_by_gemma"], 0, atol=1e-5)
    assert list(predictions)[2:5] == ["p(a)", "p(b)", "p(c)"]
    assert (predictions["label"] == predictions["label_without_gemma"]).all()


# Fusion: hidden states before the tokens


@pytest.fixture(scope="module")
def prepended():
    return hybrid(fusion="prepend", state_dropout=0.9)


def test_a_prepended_text_has_a_hidden_state_per_gemma_token_and_then_its_own_tokens(prepended):
    tokens, states = hidden_states(prepended)
    batch = batch_of(prepended)
    length = batch["mask"].shape[1]
    for row in range(len(TEXTS)):
        first, own = states.text(row), tokens.roberta.text(row)
        padding = length - len(first) - len(own)
        np.testing.assert_array_equal(batch["inputs"][row, : len(first)], first)
        assert not batch["inputs"][row, len(first) :].any()
        ids = [EMPTY] * len(first) + own.tolist() + [0] * padding
        assert batch["tokens"][row].tolist() == ids
        assert batch["mask"][row].tolist() == [1] * (length - padding) + [0] * padding


def test_a_prepended_texts_embedding_is_that_of_both_sequences_concatenated(prepended):
    roberta, _ = load_roberta(find_preset("slm_preset", "tiny_roberta"))
    tokens, states = hidden_states(prepended)
    expected = []
    for row in range(len(TEXTS)):
        projected = prepended.projection(states.text(row)[None].astype("float32"))
        own = roberta.token_embedding(tokens.roberta.text(row)[None])
        both = keras.ops.concatenate([projected, own], 1)
        output = encode_embeddings(roberta, both, np.ones(both.shape[:2], "int32"))
        expected.append(ops.convert_to_numpy(output)[0].mean(0))
    np.testing.assert_allclose(prepended.encode(TEXTS), expected, atol=1e-4)


def test_a_prepended_text_may_be_twice_as_long_as_the_limit():
    embedder = hybrid(fusion="prepend", max_tokens=9)
    inputs = embedder.prepare_inputs(*hidden_states(embedder))
    assert embedder.longest == inputs.lengths.max() == 18
    assert np.isfinite(embedder.encode(TEXTS)).all()


def test_hidden_states_are_dropped_in_training_only(prepended):
    batch = batch_of(prepended)
    outputs = [ops.convert_to_numpy(prepended.model(batch, training=False)) for _ in range(2)]
    np.testing.assert_allclose(*outputs, atol=1e-5)
    layer = prepended.model.get_layer("state_dropout")
    dropped = ops.convert_to_numpy(layer(np.ones((1, 50, 96), "float32"), training=True)) == 0
    assert 0.85 < dropped.mean() < 0.95


# Late fusion: Gemma's own embedding beside RoBERTa's


LATE = {
    "replace": {},
    "add": {"fusion": "add"},
    "prepend": {"fusion": "prepend"},
    "mean": {"llm_layers": (1, 3)},
    "max": {"llm_layers": (1, 3), "layer_pooling": "max"},
    "learned": {"llm_layers": (1, 3), "layer_pooling": "learned", "fusion": "add"},
}


@pytest.fixture(scope="module", params=LATE)
def late(request):
    """A hybrid with late fusion as if trained, and the same one without late fusion."""
    settings = {"projection_start": "random"} | LATE[request.param]
    embedders = [hybrid(late_fusion=late_fusion, **settings) for late_fusion in (True, False)]
    for embedder in embedders:
        embedder.standardize.adapt(hidden_states(embedder)[1])
    randomize(embedders[0], "late_norm", "late_dense")
    if settings.get("layer_pooling") == "learned":
        for embedder in embedders:
            embedder.model.get_layer("layer_pooling").logits.assign([1.0, -0.5])
    return embedders


def randomize(embedder, *names):
    generator = np.random.default_rng(0)
    for name in names:
        layer = embedder.model.get_layer(name)
        layer.set_weights([generator.normal(size=weight.shape) for weight in layer.get_weights()])


def gemmas_embeddings(embedder):
    """Gemma's embeddings, from its hidden states and the weights of the layers, in NumPy."""
    tokens, states = hidden_states(embedder)
    texts = [states.text(row).astype("float64") for row in range(len(TEXTS))]
    values = np.concatenate(texts)
    if embedder.fusion == "add":  # a hidden state at each token of RoBERTa
        models = (embedder.gemma.tokenizer, tokens.gemma), (embedder.tokenizer, tokens.roberta)
        alignment = align_tokens(TEXTS, *models)
        texts = [text[alignment.text(row)] for row, text in enumerate(texts)]
    if values.ndim == 3:  # several cutoffs
        weights = [0.5, 0.5]
        if embedder.experiment.layer_pooling == "learned":
            weights = np.exp([1.0, -0.5]) / np.exp([1.0, -0.5]).sum()
        pool = lambda text: np.einsum("tcw,c->tw", text, weights)  # noqa: E731
        if embedder.experiment.layer_pooling == "max":
            pool = lambda text: text.max(1)  # noqa: E731
    else:
        pool = np.asarray
    means = [pool((text - values.mean(0)) / values.std(0)).mean(0) for text in texts]
    scale, shift = embedder.model.get_layer("late_norm").get_weights()
    kernel, bias = embedder.model.get_layer("late_dense").get_weights()
    centered = means - np.mean(means, 1, keepdims=True)
    normed = centered / np.sqrt(np.square(centered).mean(1, keepdims=True) + 1e-3)
    return (normed * scale + shift) @ kernel + bias


def test_gemmas_embedding_is_the_normed_mean_of_its_hidden_states_through_a_dense_layer(late):
    embeddings = late[0].encode(TEXTS)
    assert embeddings.shape == (len(TEXTS), late[0].width) == (3, 256)
    expected = gemmas_embeddings(late[0])
    np.testing.assert_allclose(embeddings[:, 128:], expected, rtol=1e-2, atol=2e-2)


def test_late_fusion_changes_neither_robertas_embedding_nor_any_initial_weight(late):
    np.testing.assert_allclose(late[0].encode(TEXTS)[:, :128], late[1].encode(TEXTS), atol=1e-5)
    for one, other in zip(*(embedder.projection.get_weights() for embedder in late), strict=True):
        np.testing.assert_array_equal(one, other)


def test_neither_padding_nor_prepends_own_tokens_are_part_of_gemmas_embedding(late):
    batch, alone = batch_of(late[0]), batch_of(late[0], [0])
    outputs = [ops.convert_to_numpy(late[0].model(one))[0] for one in (batch, alone)]
    np.testing.assert_allclose(*outputs, atol=1e-4)
    length = batch["mask"].shape[1]
    padded = {
        name: np.pad(array, [(0, 0), (0, 40), *[(0, 0)] * (array.ndim - 2)])
        for name, array in batch.items()
    }
    padded["inputs"][:, length:] = 100  # what is masked may be anything
    outputs = [ops.convert_to_numpy(late[0].model(one)) for one in (batch, padded)]
    np.testing.assert_allclose(*outputs, atol=1e-4)


@pytest.mark.parametrize("settings", [{}, {"fusion": "prepend", "llm_layers": (1, 2)}])
def test_a_prediction_without_gemma_has_an_average_hidden_state_beside_roberta(
    tiny_embedders, settings
):
    embedder = with_head(hybrid(late_fusion=True, **settings), ["a", "b", "c"])
    randomize(embedder, "late_norm", "late_dense")
    _, shift = embedder.model.get_layer("late_norm").get_weights()
    kernel, bias = embedder.model.get_layer("late_dense").get_weights()
    roberta = tiny_embedders["roberta_only"].encode(TEXTS)
    average = np.repeat([shift @ kernel + bias], len(TEXTS), 0)
    expected = embedder.head.probabilities(np.concatenate([roberta, average], 1))
    predictions = embedder.predict(TEXTS)
    columns = ["text", "label", "p(a)", "p(b)", "p(c)", "label_without_gemma", "moved_by_gemma"]
    assert list(predictions) == columns
    labels = embedder.head.classes[expected.argmax(-1)].tolist()
    assert predictions["label_without_gemma"].tolist() == labels
    moved = np.abs(predictions[columns[2:5]].to_numpy() - expected).sum(-1) / 2
    np.testing.assert_allclose(predictions["moved_by_gemma"], moved, atol=1e-3)


def test_late_fusion_is_another_architecture():
    presets = find_presets(Experiment())
    one, other = (architecture(Experiment(late_fusion=late), presets) for late in (True, False))
    assert one != other

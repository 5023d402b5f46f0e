import keras
import numpy as np
import pandas as pd
import pytest
from keras import ops

from embedder_helpers.config import Experiment, InputError
from embedder_helpers.embedder import build_embedder
from embedder_helpers.gemma import Depth
from embedder_helpers.presets import find_presets
from embedder_helpers.tokens import align, tokenise

KINDS = ("hybrid", "gemma_only", "roberta_only")
TEXTS = [
    "It works.",
    "I wish the clasp were stronger.",
    "Had the pump been oiled in autumn, the mill by the river would still be running today.",
    "She said she would repair the clasp, and she did so the same afternoon.",
    "No.",
]


@pytest.mark.parametrize("kind", KINDS)
def test_encode_gives_a_float32_embedding_a_text(tiny_embedders, kind):
    embeddings = tiny_embedders[kind].encode(TEXTS)
    width = 96 if kind == "gemma_only" else 128
    assert embeddings.shape == (len(TEXTS), width) and embeddings.dtype == "float32"
    assert np.isfinite(embeddings).all()


@pytest.mark.parametrize("kind", KINDS)
def test_neither_order_nor_company_changes_an_embedding(tiny_embedders, kind):
    embedder = tiny_embedders[kind]
    together = embedder.encode(TEXTS)
    np.testing.assert_allclose(embedder.encode(TEXTS[::-1])[::-1], together, atol=1e-4)
    alone = np.concatenate([embedder.encode([text]) for text in TEXTS])
    np.testing.assert_allclose(alone, together, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_neither_batch_size_nor_padding_changes_an_embedding(tiny_embedders, kind, monkeypatch):
    together = tiny_embedders[kind].encode(TEXTS)
    monkeypatch.setattr("embedder_helpers.gemma.CPU_TOKENS", 64)
    monkeypatch.setattr("embedder_helpers.embedder.EMBEDDING_TOKENS", 64)
    monkeypatch.setattr("embedder_helpers.tokens.BUCKETS", (64, 128))
    np.testing.assert_allclose(tiny_embedders[kind].encode(TEXTS), together, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_different_texts_have_different_embeddings(tiny_embedders, kind):
    embeddings = tiny_embedders[kind].encode(TEXTS)
    distances = np.linalg.norm(embeddings[:, None] - embeddings[None], axis=-1)
    assert distances[~np.eye(len(TEXTS), dtype=bool)].min() > 1e-3


@pytest.mark.parametrize(
    "text, fault", [(None, "None"), (float("nan"), "NaN"), (7, "int"), ("  ", "empty")]
)
def test_a_text_that_is_none_is_named_by_its_row(tiny_embedders, text, fault):
    with pytest.raises(InputError, match=rf"encode: .*{fault}.* row 2"):
        tiny_embedders["roberta_only"].encode(["Fine.", text])


def test_one_text_has_one_embedding(tiny_embedders):
    alone = tiny_embedders["roberta_only"].encode("Fine.")
    np.testing.assert_array_equal(alone, tiny_embedders["roberta_only"].encode(["Fine."])[0])


@pytest.mark.parametrize("kind", KINDS)
def test_no_more_texts_than_the_batch_size_are_computed_at_a_time(
    tiny_embedders, kind, monkeypatch
):
    embedder, sizes = tiny_embedders[kind], []
    predict = embedder.model.predict_on_batch
    monkeypatch.setattr(
        embedder.model,
        "predict_on_batch",
        lambda batch: sizes.append(len(batch["mask"])) or predict(batch),
    )
    embeddings = embedder.encode(TEXTS, batch_size=1)
    assert sizes == [1] * len(TEXTS)
    np.testing.assert_allclose(embeddings, embedder.encode(TEXTS), atol=1e-4)


@pytest.mark.parametrize("table", [pd.DataFrame({"text": TEXTS}), {"text": TEXTS}])
def test_a_table_is_not_taken_for_the_names_of_its_columns(tiny_embedders, table):
    with pytest.raises(InputError, match="give one of its columns"):
        tiny_embedders["roberta_only"].encode(table)
    column = tiny_embedders["roberta_only"].encode(pd.Series(TEXTS), batch_size=np.int64(4))
    assert column.shape == (len(TEXTS), 128)


@pytest.mark.parametrize("batch_size", [0, -1, 1.5, True, "8"])
def test_an_impossible_batch_size_is_told(tiny_embedders, batch_size):
    with pytest.raises(InputError, match=f"batch_size is {batch_size!r}"):
        tiny_embedders["roberta_only"].encode(TEXTS, batch_size=batch_size)


def test_normalized_embeddings_have_length_one_and_their_direction(tiny_embedders):
    plain = tiny_embedders["roberta_only"].encode(TEXTS)
    unit = tiny_embedders["roberta_only"].encode(TEXTS, normalize_embeddings=True)
    np.testing.assert_allclose(unit, plain / np.linalg.norm(plain, axis=1, keepdims=True), 1e-5)


def test_embeddings_may_be_a_tensor_of_the_backend(tiny_embedders):
    tensor = tiny_embedders["roberta_only"].encode(TEXTS, convert_to_numpy=False)
    assert keras.ops.is_tensor(tensor) and tensor.shape == (len(TEXTS), 128)


def test_a_bar_is_shown_unless_it_is_not_wanted(tiny_embedders, monkeypatch, capsys):
    monkeypatch.setattr("embedder_helpers.platform.DELAY", 0)
    for shown in (True, False):
        tiny_embedders["roberta_only"].encode(TEXTS, show_progress_bar=shown)
        assert ("embedding" in capsys.readouterr().out) == shown


def test_texts_over_the_limit_are_cut_and_told():
    embedder = build_embedder(Experiment(kind="roberta_only", max_tokens=12))
    long = "A very long sentence that goes on and on, far beyond the limit that was set. " * 5
    tokens = embedder.tokenise([long, "Short."])
    assert tokens.truncated.tolist() == [True, False]
    assert tokens.roberta.lengths[0] == 12


def test_a_text_is_told_as_cut_where_either_of_two_models_cuts_it():
    embedder = build_embedder(Experiment(fusion="add", llm_layers=1, max_tokens=8))
    texts = [" ".join(["mill"] * count) for count in range(1, 12)]
    tokens = embedder.tokenise(texts)
    gemma, roberta = (
        [len(one) > most for one in embedder_tokenizer(texts)]
        for embedder_tokenizer, most in ((embedder.gemma.tokenizer, 7), (embedder.tokenizer, 6))
    )
    assert gemma != roberta
    assert tokens.truncated.tolist() == [any(one) for one in zip(gemma, roberta, strict=True)]


@pytest.mark.parametrize("kind", KINDS)
def test_encode_is_tokenise_then_states_then_inputs_then_embed(tiny_embedders, kind):
    embedder = tiny_embedders[kind]
    tokens = embedder.tokenise(TEXTS)
    found = embedder.embed(embedder.inputs(tokens, embedder.states(tokens)))
    np.testing.assert_allclose(found, embedder.encode(TEXTS), atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_texts_encoded_a_chunk_at_a_time_are_those_encoded_at_once(
    tiny_embedders, kind, monkeypatch
):
    at_once = tiny_embedders[kind].encode(TEXTS)
    monkeypatch.setattr("embedder_helpers.embedder.CHUNK", 2)
    np.testing.assert_allclose(tiny_embedders[kind].encode(TEXTS), at_once, atol=1e-4)


@pytest.mark.parametrize("kind", ["hybrid", "gemma_only"])
def test_gemmas_states_are_the_models_inputs_in_float16(tiny_embedders, kind):
    tokens = tiny_embedders[kind].tokenise(TEXTS)
    states = tiny_embedders[kind].states(tokens)
    assert tiny_embedders[kind].inputs(tokens, states) is states
    assert states.values.shape == (tokens.gemma.lengths.sum(), 96)
    assert states.values.dtype == "float16"


def test_a_hybrid_that_puts_states_in_their_place_reads_no_tokens_of_roberta(tiny_embedders):
    assert tiny_embedders["hybrid"].tokenise(TEXTS).roberta is None


def test_the_inputs_of_roberta_alone_are_the_token_ids(tiny_embedders):
    tokens = tiny_embedders["roberta_only"].tokenise(TEXTS)
    assert tokens.gemma is None and tiny_embedders["roberta_only"].states(tokens) is None
    assert tiny_embedders["roberta_only"].inputs(tokens, None) is tokens.roberta


@pytest.mark.parametrize("layer_pooling", ["mean", "max"])
def test_gemma_alone_pools_several_cutoffs_behind_their_norms(layer_pooling):
    embedder = build_embedder(
        Experiment(kind="gemma_only", llm_layers=(4, 1, 3), layer_pooling=layer_pooling)
    )
    ids = embedder.tokenise(TEXTS[:2]).gemma
    norms = [embedder.gemma.states(ids, [Depth(cutoff, "rms")]) for cutoff in (1, 3, 4)]
    pooled = getattr(np.stack([states.values.astype("float32") for states in norms]), layer_pooling)
    expected = [text.mean(0) for text in np.split(pooled(0), ids.lengths.cumsum()[:-1])]
    np.testing.assert_allclose(embedder.encode(TEXTS[:2]), expected, rtol=1e-3, atol=1e-4)


@pytest.fixture(scope="module")
def pooled_hybrids():
    """Embeddings of untrained hybrids on three cutoffs, by how these are pooled."""
    return {
        layer_pooling: build_embedder(
            Experiment(llm_layers=(1, 3, 4), layer_pooling=layer_pooling)
        ).encode(TEXTS[:2])
        for layer_pooling in ("mean", "max", "learned")
    }


@pytest.mark.parametrize("layer_pooling", ["mean", "max", "learned"])
def test_a_hybrid_takes_several_cutoffs(pooled_hybrids, layer_pooling):
    embeddings = pooled_hybrids[layer_pooling]
    assert embeddings.shape == (2, 128) and np.isfinite(embeddings).all()


def test_a_hybrid_with_learned_pooling_starts_as_the_one_with_the_mean(pooled_hybrids):
    np.testing.assert_allclose(pooled_hybrids["learned"], pooled_hybrids["mean"], atol=1e-4)
    assert abs(pooled_hybrids["max"] - pooled_hybrids["mean"]).max() > 1e-2


@pytest.mark.parametrize("kind", ["hybrid", "roberta_only"])
def test_a_model_in_float16_gives_nearly_the_same_embeddings_in_float32(
    tiny_embedders, kind, monkeypatch
):
    monkeypatch.setattr("embedder_helpers.platform.training_dtype", lambda: "mixed_float16")
    half = build_embedder(Experiment(kind=kind, llm_layers=4))
    found, expected = half.encode(TEXTS[:2]), tiny_embedders[kind].encode(TEXTS[:2])
    assert found.dtype == "float32"
    np.testing.assert_allclose(found, expected, atol=0.03)
    assert (found != expected).any()


def test_raw_and_normed_states_are_pooled_together():
    asked = Experiment(kind="gemma_only", llm_layers=(17, 18), final_norm="last")
    assert np.isfinite(build_embedder(asked).encode(TEXTS[:1])).all()


def test_a_seed_makes_the_same_projection_again():
    first, again, other = (
        build_embedder(Experiment(llm_layers=1, seed=seed)).encode(TEXTS[:2]) for seed in (1, 1, 2)
    )
    np.testing.assert_allclose(first, again, atol=1e-5)
    assert not np.allclose(first, other, atol=1e-2)


def test_a_started_projection_gives_vectors_nearer_to_robertas_embeddings_than_a_random_one():
    embedder = build_embedder(Experiment(llm_layers=1))
    tokens = embedder.tokenise(TEXTS)
    states = embedder.states(tokens)
    slm_ids, _ = tokenise(embedder.tokenizer, TEXTS, 256, end=True)
    table = keras.ops.convert_to_numpy(embedder.roberta.token_embedding.embeddings)

    def read(values):
        return embedder.reader.predict_on_batch(values)

    def distance():
        places = align((embedder.gemma.tokenizer, tokens.gemma), (embedder.tokenizer, slm_ids))
        found = [
            embedder.projection.predict_on_batch(read(states.text(row)[places.text(row)][None]))[0]
            for row in range(len(TEXTS))
        ]
        return np.square(np.concatenate(found) - table[slm_ids.values]).mean()

    before = distance()
    found = embedder.start_projection(TEXTS, tokens, states)
    assert distance() < before / 10
    assert found.kernel.shape == (states.values.shape[1], table.shape[1])


@pytest.mark.parametrize("layer_pooling", ["mean", "max", "learned"])
def test_the_projection_reads_standardised_states_pooled_over_the_cutoffs(layer_pooling):
    embedder = build_embedder(Experiment(llm_layers=[1, 3], layer_pooling=layer_pooling))
    states = embedder.states(embedder.tokenise(TEXTS))
    embedder.standard.adapt(states)
    every = np.concatenate([states.text(row) for row in range(len(TEXTS))]).astype("float32")
    standard = (every - every.mean(0)) / every.std(0)
    expected = standard.max(1) if layer_pooling == "max" else standard.mean(1)
    found = ops.convert_to_numpy(embedder.reader(every[None]))[0]
    np.testing.assert_allclose(found, expected, atol=1e-2)


@pytest.mark.parametrize("layers", [19, -19])
def test_a_cutoff_beyond_the_model_is_an_error_before_weights_are_loaded(layers):
    with pytest.raises(InputError, match=f"llm_layers is {layers}, but this Gemma has 18 blocks"):
        find_presets(Experiment(llm_layers=layers))


def test_more_tokens_than_roberta_has_positions_is_an_error():
    with pytest.raises(InputError, match="max_tokens is 513, but tiny_roberta has 512 positions"):
        find_presets(Experiment(max_tokens=513))


@pytest.mark.real
@pytest.mark.parametrize("kind", KINDS)
def test_real_embeddings_do_not_depend_on_their_batch(real_presets, kind):
    experiment = Experiment(
        kind=kind,
        llm_layers=10,
        llm_preset=str(real_presets / "gemma3_270m"),
        slm_preset=str(real_presets / "roberta_6l_384"),
    )
    embedder = build_embedder(experiment)
    together = embedder.encode(TEXTS)
    alone = np.concatenate([embedder.encode([text]) for text in TEXTS])
    np.testing.assert_allclose(alone, together, atol=1e-4)

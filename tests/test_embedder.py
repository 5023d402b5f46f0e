import numpy as np
import pytest

from embedder_helpers.config import Experiment, InputError
from embedder_helpers.embedder import build_embedder
from embedder_helpers.presets import find_presets

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
    assert embeddings.shape == (len(TEXTS), 64) and embeddings.dtype == "float32"
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
    monkeypatch.setattr("embedder_helpers.embedder.ROBERTA_TOKENS", 64)
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


def test_one_text_is_not_taken_for_a_list_of_letters(tiny_embedders):
    with pytest.raises(InputError, match="put the one text into a list"):
        tiny_embedders["roberta_only"].encode("Fine.")


def test_texts_over_the_limit_are_cut_and_counted():
    embedder = build_embedder(Experiment(kind="roberta_only", max_tokens=12))
    long = "A very long sentence that goes on and on, far beyond the limit that was set. " * 5
    embedder.encode([long, "Short."])
    assert embedder.truncated == 1


def test_a_seed_makes_the_same_projection_again():
    first, again, other = (
        build_embedder(Experiment(llm_layers=1, seed=seed)).encode(TEXTS[:2]) for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(first, again)
    assert not np.allclose(first, other)


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

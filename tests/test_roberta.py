import subprocess
from pathlib import Path

import keras
import numpy as np
import pytest

from embedder_helpers.presets import find_preset
from embedder_helpers.roberta import encode_embeddings, load_roberta

TINY = find_preset("slm_preset", "tiny_roberta")
MASK = np.array([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])


def model_on_embeddings(roberta, width):
    embeddings = keras.Input((None, width))
    mask = keras.Input((None,), dtype="int32")
    return keras.Model([embeddings, mask], encode_embeddings(roberta, embeddings, mask))


def test_roberta_fed_with_its_own_embeddings_is_roberta():
    roberta, tokenizer = load_roberta(TINY)
    ids = np.array([[0, 11, 12, 13, 2], [0, 14, 2, 1, 1]])
    model = model_on_embeddings(roberta, TINY.width)
    embeddings = keras.ops.convert_to_numpy(roberta.token_embedding(ids))
    found = model.predict_on_batch([embeddings, MASK])
    expected = roberta.predict_on_batch({"token_ids": ids, "padding_mask": MASK})
    np.testing.assert_allclose(found[MASK > 0], expected[MASK > 0], atol=1e-5)


def test_what_stands_in_the_padding_changes_nothing():
    roberta, _ = load_roberta(TINY)
    model = model_on_embeddings(roberta, TINY.width)
    embeddings = np.random.default_rng(0).normal(size=(2, 5, TINY.width)).astype("float32")
    other = embeddings.copy()
    other[1, 3:] = 7.0
    found, again = (model.predict_on_batch([one, MASK]) for one in (embeddings, other))
    np.testing.assert_allclose(found[MASK > 0], again[MASK > 0], atol=1e-6)


@pytest.mark.real
def test_states_equal_hugging_faces_on_the_same_embeddings(
    real_presets, reference_python, tmp_path
):
    preset = find_preset("slm_preset", str(real_presets / "roberta_6l_384"))
    roberta, tokenizer = load_roberta(preset)
    ids = np.array([[0, *map(int, tokenizer("I wish the clasp were stronger.")), 2]])
    embeddings = keras.ops.convert_to_numpy(roberta.token_embedding(ids))
    np.save(tmp_path / "embeddings.npy", embeddings)
    source = real_presets / "work" / "hf_roberta_6l_384"
    script = Path(__file__).parent / "reference_roberta.py"
    paths = [tmp_path / "embeddings.npy", tmp_path / "states.npy"]
    subprocess.run([reference_python, script, source, *paths], check=True)
    model = model_on_embeddings(roberta, preset.width)
    found = model.predict_on_batch([embeddings, np.ones_like(ids)])
    expected = np.load(paths[1])
    assert np.linalg.norm(found - expected) / np.linalg.norm(expected) < 1e-5
    whole = roberta.predict_on_batch({"token_ids": ids, "padding_mask": np.ones_like(ids)})
    np.testing.assert_allclose(found, whole, atol=1e-5)

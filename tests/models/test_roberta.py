import shutil
import subprocess
from pathlib import Path

import h5py
import keras
import numpy as np
import pytest

from embedder_helpers.builtin import BUILTIN_FOLDER
from embedder_helpers.errors import InputError
from embedder_helpers.models.preset_files import hdf5_datasets
from embedder_helpers.models.presets import find_preset
from embedder_helpers.models.roberta import encode_embeddings, load_roberta

MASK = np.array([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])


@pytest.fixture(scope="module")
def roberta():
    return load_roberta(find_preset("slm_preset", "tiny_roberta"))[0]


@pytest.fixture(scope="module")
def encoder(roberta):
    return embeddings_model(roberta, roberta.hidden_dim)


def embeddings_model(roberta, width):
    """A model of embeddings and mask."""
    embeddings = keras.Input((None, width))
    mask = keras.Input((None,), dtype="int32")
    return keras.Model([embeddings, mask], encode_embeddings(roberta, embeddings, mask))


def test_roberta_on_its_own_token_embeddings_is_roberta(roberta, encoder):
    ids = np.array([[0, 11, 12, 13, 2], [0, 14, 2, 1, 1]])
    embeddings = keras.ops.convert_to_numpy(roberta.token_embedding(ids))
    states = encoder.predict_on_batch([embeddings, MASK])
    expected = roberta.predict_on_batch({"token_ids": ids, "padding_mask": MASK})
    np.testing.assert_allclose(states[MASK > 0], expected[MASK > 0], atol=1e-5)


def test_embeddings_of_padding_change_nothing(roberta, encoder):
    generator = np.random.default_rng(0)
    embeddings = generator.normal(size=(2, 5, roberta.hidden_dim)).astype("float32")
    changed = embeddings.copy()
    changed[1, 3:] = 7.0
    states, expected = (encoder.predict_on_batch([one, MASK]) for one in (changed, embeddings))
    np.testing.assert_allclose(states[MASK > 0], expected[MASK > 0], atol=1e-6)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_an_error_that_names_their_folder(tmp_path, value):
    folder = shutil.copytree(BUILTIN_FOLDER / "tiny_roberta", tmp_path / "roberta")
    with h5py.File(folder / "model.weights.h5", "r+") as file:
        list(hdf5_datasets(file).values())[-1][...] = value
    with pytest.raises(InputError, match="roberta.*not finite"):
        load_roberta(find_preset("slm_preset", str(folder)))


@pytest.mark.real
def test_hidden_states_equal_those_of_hugging_face_on_the_same_embeddings(
    real_presets, reference_python, tmp_path
):
    preset = find_preset("slm_preset", str(real_presets / "roberta_6l_384"))
    roberta, tokenizer = load_roberta(preset)
    ids = np.array([[0, *map(int, tokenizer("I wish the clasp were stronger.")), 2]])
    embeddings = keras.ops.convert_to_numpy(roberta.token_embedding(ids))
    np.save(tmp_path / "embeddings.npy", embeddings)
    source = real_presets / "work" / "hf_roberta_6l_384"
    script = Path(__file__).parent.parent / "support" / "reference_roberta.py"
    paths = [tmp_path / "embeddings.npy", tmp_path / "states.npy"]
    subprocess.run([reference_python, script, source, *paths], check=True)
    model = embeddings_model(roberta, preset.width)
    states = model.predict_on_batch([embeddings, np.ones_like(ids)])
    expected = np.load(paths[1])
    assert np.linalg.norm(states - expected) / np.linalg.norm(expected) < 1e-5
    whole = roberta.predict_on_batch({"token_ids": ids, "padding_mask": np.ones_like(ids)})
    np.testing.assert_allclose(states, whole, atol=1e-5)

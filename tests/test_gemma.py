import functools
import json
import subprocess
from pathlib import Path

import keras
import keras_hub
import numpy as np
import pytest

from embedder_helpers.config import InputError
from embedder_helpers.gemma import Gemma
from embedder_helpers.presets import find_preset

# Of different lengths in one bucket: each bucket costs a compilation.
TEXTS = ["I wish the clasp were stronger.", "It works well enough.", "Had the pump been oiled!"]
TINY = find_preset("llm_preset", "tiny_gemma")


@functools.cache  # every Gemma compiles anew
def gemma(layers, norm="rms", layer_pooling="mean", preset=TINY):
    return Gemma(preset, layers, layer_pooling, norm)


def whole_model_states(preset, text_ids, cutoff):
    """Raw states behind a block, from keras-hub's own model, one text at a time."""
    backbone = keras_hub.models.Backbone.from_preset(preset.handle, dtype="float32")
    output = backbone.get_layer(f"decoder_block_{cutoff - 1}").output
    model = keras.Model(backbone.input, output)
    return [
        model.predict_on_batch({"token_ids": ids[None], "padding_mask": np.ones_like(ids[None])})[0]
        for ids in text_ids
    ]


def relative_error(found, expected):
    return np.linalg.norm(found - expected) / np.linalg.norm(expected)


@pytest.mark.parametrize("cutoff", [1, 7, 18])
def test_states_are_those_of_the_whole_model(cutoff):
    cut = gemma(cutoff, norm="none")
    ids, _ = cut.tokenise(TEXTS, 64)
    states = cut.states(ids)
    expected = whole_model_states(TINY, [ids.text(row) for row in range(len(TEXTS))], cutoff)
    for row, one in enumerate(expected):
        assert relative_error(states.text(row), one) < 1e-5


def test_only_the_blocks_up_to_the_deepest_cutoff_are_loaded():
    cut = gemma((2, 5))
    assert len(cut.backbone.transformer_layers) == 5


def test_layer_number_minus_one_is_the_last_block():
    ids, _ = gemma(-1).tokenise(TEXTS, 64)
    np.testing.assert_array_equal(gemma(-1).states(ids).values, gemma(18).states(ids).values)


def test_blocks_of_one_kind_share_one_compiled_function():
    cut = gemma(18)
    functions = {id(step.__closure__[0].cell_contents) for step in cut._steps}
    assert len(cut._steps) == 18 and len(functions) == 1


def test_rms_norm_gives_states_of_unit_mean_square():
    ids, _ = gemma(3).tokenise(TEXTS, 64)
    states = gemma(3).states(ids).values
    np.testing.assert_allclose((states**2).mean(-1), 1, rtol=1e-3)


def test_learned_norm_is_the_whole_models_output():
    cut = gemma(18, norm="learned")
    ids, _ = cut.tokenise(TEXTS[:1], 64)
    backbone = keras_hub.models.Backbone.from_preset(TINY.handle, dtype="float32")
    row = ids.text(0)[None]
    expected = backbone.predict_on_batch({"token_ids": row, "padding_mask": np.ones_like(row)})[0]
    assert relative_error(cut.states(ids).values, expected) < 1e-5


def test_last_norms_the_last_block_only_as_the_original_study_did():
    ids, _ = gemma(1).tokenise(TEXTS, 64)

    def states(layers, norm):
        return gemma(layers, norm).states(ids).values

    np.testing.assert_array_equal(states(18, "last"), states(18, "learned"))
    np.testing.assert_array_equal(states(17, "last"), states(17, "none"))


def test_several_cutoffs_are_pooled_behind_their_norms():
    ids, _ = gemma(1).tokenise(TEXTS, 64)
    four, nine = gemma(4).states(ids).values, gemma(9).states(ids).values
    both = gemma((9, 4), layer_pooling="max").states(ids).values
    np.testing.assert_allclose(both, np.maximum(four, nine), rtol=1e-5, atol=1e-6)


def test_long_texts_are_cut_and_counted():
    ids, truncated = gemma(1).tokenise([TEXTS[2] * 20, TEXTS[1]], 16)
    assert truncated.tolist() == [True, False]
    assert ids.lengths[0] == 16


def test_states_that_are_not_finite_are_refused():
    cut = Gemma(TINY, 2, "mean", "none")
    ids, _ = cut.tokenise(TEXTS, 64)
    cut.backbone.token_embedding.embeddings.assign(
        np.full(cut.backbone.token_embedding.embeddings.shape, np.nan)
    )
    with pytest.raises(InputError, match="not finite behind block 2"):
        cut.states(ids)


@pytest.mark.parametrize("family", ["gemma2", "gemma3"])
def test_gemma_2_and_3_give_the_states_of_their_whole_model(family, tmp_path):
    shape = dict(
        vocabulary_size=1000, num_layers=7, num_query_heads=2, num_key_value_heads=1,
        hidden_dim=16, intermediate_dim=32, head_dim=8, use_post_ffw_norm=True,
        use_post_attention_norm=True, use_sliding_window_attention=True, sliding_window_size=4,
    )  # fmt: skip
    models = keras_hub.models
    tokenizer = models.Tokenizer.from_preset(TINY.handle)
    if family == "gemma2":
        backbone = models.GemmaBackbone(**shape, attention_logit_soft_cap=50.0)
    else:
        backbone = models.Gemma3Backbone(**shape, image_size=None)
    backbone.save_to_preset(str(tmp_path))
    tokenizer.save_to_preset(str(tmp_path))
    preset = find_preset("llm_preset", str(tmp_path))
    cut = gemma(7, norm="none", preset=preset)
    ids, _ = cut.tokenise(TEXTS, 64)
    states = cut.states(ids)
    expected = whole_model_states(preset, [ids.text(row) for row in range(len(TEXTS))], 7)
    for row, one in enumerate(expected):
        assert relative_error(states.text(row), one) < 1e-5


@pytest.mark.real
def test_states_at_every_cutoff_equal_hugging_faces(real_presets, reference_python, tmp_path):
    preset = find_preset("llm_preset", str(real_presets / "gemma3_270m"))
    source = real_presets / "work" / "hf_gemma3_270m"
    cut = Gemma(preset, tuple(range(1, 19)), "mean", "none")
    ids, _ = cut.tokenise(TEXTS, 64)
    rows = [ids.text(row).tolist() for row in range(len(TEXTS))]
    script = Path(__file__).parent / "reference_gemma.py"
    output = tmp_path / "states.npz"
    subprocess.run([reference_python, script, source, json.dumps(rows), output], check=True)
    expected = np.load(output)
    for row in range(len(rows)):
        tokens = ids.text(row)[None]
        for cutoff, states in enumerate(cut.cut_states(tokens, np.ones_like(tokens)), 1):
            found = keras.ops.convert_to_numpy(states)[0]
            assert relative_error(found, expected[f"{row}_{cutoff}"]) < 1e-3

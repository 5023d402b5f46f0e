import functools
import json
import subprocess
from pathlib import Path

import keras
import keras_hub
import numpy as np
import pytest
from keras import ops
from made_presets import write_gemma

from embedder_helpers import gemma as gemma_module
from embedder_helpers.config import Experiment, InputError
from embedder_helpers.gemma import Depth, Gemma, depths
from embedder_helpers.presets import find_preset
from embedder_helpers.tokens import Ragged, Stacked, end_to_end

# Of different lengths in one bucket: each bucket costs a compilation.
TEXTS = [
    "I wish the clasp were stronger.",
    "It works as well as it can.",
    "Had the pump been oiled!",
]
TINY = find_preset("llm_preset", "tiny_gemma")
RAW = [Depth(cutoff, "none") for cutoff in range(1, 19)]
RMS = [Depth(cutoff, "rms") for cutoff in range(1, 19)]
FAMILIES = ("gemma2", "gemma3")


@functools.cache
def gemma():
    """One model for all tests that do not ask how it is loaded."""
    return Gemma(TINY)


@functools.cache
def token_ids():
    return gemma().tokenise(TEXTS, 64)[0]


@functools.cache
def raw_states():
    """The raw states of all 18 cutoffs, of one walk."""
    return gemma().states(token_ids(), RAW).layers


def whole_model_states(preset, ids):
    """Raw states behind each block and the normed output, texts end to end, from keras-hub."""
    backbone = keras_hub.models.Backbone.from_preset(preset.handle, dtype="float32")
    outputs = [*(layer.output for layer in backbone.transformer_layers), backbone.output]
    model = keras.Model(backbone.input, outputs)
    rows = [ids.text(row)[None] for row in range(len(ids))]
    texts = [model({"token_ids": row, "padding_mask": np.ones_like(row)}) for row in rows]
    texts = [map(ops.convert_to_numpy, text) for text in texts]
    return [np.concatenate(states, 1)[0] for states in zip(*texts, strict=True)]


@functools.cache
def expected_states():
    return whole_model_states(TINY, token_ids())


def relative_error(found, expected):
    return np.linalg.norm(found - expected) / np.linalg.norm(expected)


def root_mean_square_normed(states):
    return states / np.sqrt((states**2).mean(-1, keepdims=True) + 1e-6)


@pytest.mark.parametrize("cutoff", range(1, 19))
def test_raw_states_are_those_of_the_whole_model(cutoff):
    found = raw_states()[cutoff - 1].values
    assert found.dtype == "float32"
    assert relative_error(found, expected_states()[cutoff - 1]) < 1e-5


def test_normed_states_are_those_of_the_whole_model_in_float16():
    found = gemma().states(token_ids(), RMS).layers
    for layer, raw in zip(found, expected_states()[:18], strict=True):
        assert layer.values.dtype == "float16"
        assert relative_error(layer.values, root_mean_square_normed(raw)) < 1e-3


def test_the_learned_norm_gives_the_whole_models_output():
    found = gemma().states(token_ids(), [Depth(18, "learned")])
    assert relative_error(found.values, expected_states()[18]) < 1e-3


@pytest.mark.parametrize("norm", ["none", "rms"])
def test_one_walk_to_all_cutoffs_gives_what_a_walk_to_each_gives(norm):
    asked = [Depth(cutoff, norm) for cutoff in range(1, 19)]
    together = gemma().states(token_ids(), asked)
    for layer, depth in zip(together.layers, asked, strict=True):
        alone = gemma().states(token_ids(), [depth])
        np.testing.assert_array_equal(layer.values, alone.values)


def test_one_depth_gives_one_ragged_and_several_are_stacked_as_asked_for():
    one = gemma().states(token_ids(), [Depth(3, "rms")])
    several = gemma().states(token_ids(), [Depth(3, "rms"), Depth(1, "rms")])
    assert isinstance(one, Ragged) and isinstance(several, Stacked)
    np.testing.assert_array_equal(several.layers[0].values, one.values)


def test_a_walk_yields_every_text_once_a_depth_the_shallowest_first(monkeypatch):
    monkeypatch.setattr(gemma_module, "CPU_TOKENS", 16)  # a batch a text
    found = list(gemma().walk(token_ids(), [Depth(2, "rms"), Depth(1, "rms")]))
    assert [depth.cutoff for depth, _, _ in found] == [1, 2] * len(TEXTS)
    assert [rows.tolist() for _, rows, _ in found[::2]] == [[0], [1], [2]]
    assert [len(values) for _, _, values in found[::2]] == token_ids().lengths.tolist()


def test_a_walk_that_goes_on_from_raw_states_gives_what_one_from_the_text_gives():
    ((_, rows, values),) = gemma().walk(token_ids(), [RAW[17]], start=(7, raw_states()[6]))
    assert rows.tolist() == [0, 1, 2]
    assert relative_error(values, raw_states()[17].values) < 1e-6


def test_raw_states_are_normed_without_passing_a_block():
    cut = Gemma(TINY)
    ((_, _, values),) = cut.walk(token_ids(), [RMS[6]], start=(7, raw_states()[6]))
    assert relative_error(values, root_mean_square_normed(raw_states()[6].values)) < 1e-3
    assert cut.block_passes == 0


def test_block_passes_are_counted_by_text_up_to_the_deepest_cutoff():
    cut = Gemma(TINY)
    cut.states(token_ids(), [Depth(2, "rms"), Depth(5, "rms"), Depth(5, "none")])
    assert cut.block_passes == len(TEXTS) * 5
    list(cut.walk(token_ids(), [Depth(4, "rms")], start=(3, raw_states()[2])))
    assert cut.block_passes == len(TEXTS) * (5 + 1)


@pytest.fixture
def loaded_blocks(monkeypatch):
    """How many blocks each backbone had that was loaded during a test."""
    counts = []

    def load(kind, *arguments, **options):
        found = load_preset(kind, *arguments, **options)
        if kind is keras_hub.models.Backbone:
            counts.append(len(found.transformer_layers))
        return found

    load_preset = gemma_module.load_preset
    monkeypatch.setattr(gemma_module, "load_preset", load)
    return counts


def test_only_the_blocks_up_to_the_deepest_cutoff_are_loaded(loaded_blocks):
    Gemma(TINY).states(token_ids(), [Depth(5, "rms"), Depth(2, "rms")])
    assert loaded_blocks == [5]


def test_weights_are_loaded_by_the_first_walk_and_kept_for_the_next(loaded_blocks):
    cut = Gemma(TINY)
    assert loaded_blocks == []
    for cutoff in (3, 2, 3):
        cut.states(token_ids(), [Depth(cutoff, "rms")])
    assert loaded_blocks == [3]


def test_an_unloaded_model_loads_again_to_the_same_states(loaded_blocks):
    cut = Gemma(TINY)
    first = cut.states(token_ids(), [Depth(2, "rms")])
    cut.unload()
    again = cut.states(token_ids(), [Depth(2, "rms")])
    np.testing.assert_array_equal(again.values, first.values)
    assert loaded_blocks == [2, 2]


def test_blocks_of_one_kind_share_one_compiled_function():
    raw_states()
    assert len(gemma()._functions) == 18
    assert len(set(map(id, gemma()._functions))) == 1


def test_a_second_model_of_the_same_kind_compiles_nothing():
    raw_states()
    function = gemma()._functions[0]
    before = compilations(function)
    again = Gemma(TINY)
    again.states(token_ids(), [Depth(4, "none")])
    assert set(again._functions) == {function}
    assert compilations(function) == before


def compilations(function):
    """How often a function was compiled, by its backend."""
    if keras.config.backend() == "tensorflow":
        return function.experimental_get_tracing_count()
    return function._cache_size() if keras.config.backend() == "jax" else 0


def test_long_texts_are_cut_and_counted():
    ids, truncated = gemma().tokenise([TEXTS[2] * 20, TEXTS[1]], 16)
    assert truncated.tolist() == [True, False]
    assert ids.lengths[0] == 16


@pytest.mark.parametrize(("norm", "dtype"), [("none", "float32"), ("rms", "float16")])
def test_states_that_are_not_finite_are_refused(norm, dtype):
    damaged = end_to_end(np.full_like(raw_states()[0].values, np.nan), token_ids().lengths)
    with pytest.raises(InputError, match=f"behind block 2 are not finite in {dtype}.*{norm}"):
        list(gemma().walk(token_ids(), [Depth(2, norm)], start=(1, damaged)))


@pytest.mark.parametrize(
    ("llm_layers", "final_norm", "expected"),
    [
        (-1, "rms", [(18, "rms")]),
        ((10, -15), "none", [(4, "none"), (10, "none")]),
        (18, "learned", [(18, "learned")]),
    ],
)
def test_the_depths_of_an_experiment_rise_with_its_norm_behind_each(
    llm_layers, final_norm, expected
):
    asked = Experiment(llm_layers=llm_layers, final_norm=final_norm)
    assert depths(asked, 18) == tuple(expected)


def test_last_norms_the_last_block_only_as_the_original_study_did():
    asked = Experiment(llm_layers=(17, 18), final_norm="last")
    assert depths(asked, 18) == ((17, "none"), (18, "learned"))


@pytest.fixture(scope="module", params=FAMILIES)
def family_preset(request, tmp_path_factory):
    """A tiny Gemma 2 or 3 whose last block begins the pattern of its kinds anew."""
    return write_gemma(request.param, 7, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def family_gemma(family_preset):
    return Gemma(family_preset)


@pytest.fixture(scope="module")
def family_states(family_gemma):
    return family_gemma.states(token_ids(), RAW[:7]).layers


def test_gemma_2_and_3_give_the_states_of_their_whole_model(family_preset, family_states):
    expected = whole_model_states(family_preset, token_ids())
    for layer, one in zip(family_states, expected[:7], strict=True):
        assert relative_error(layer.values, one) < 1e-5


def test_gemma_2_and_3_compile_one_function_for_each_kind_of_block(family_gemma, family_states):
    assert len(family_gemma._functions) == 7
    assert len(set(map(id, family_gemma._functions))) == 2


def test_streamed_blocks_give_the_states_of_resident_ones(family_preset, family_states):
    streamed = Gemma(family_preset, stream_blocks=True).states(token_ids(), RAW[:7])
    for layer, resident in zip(streamed.layers, family_states, strict=True):
        np.testing.assert_array_equal(layer.values, resident.values)


def test_streamed_blocks_of_gemma_1_give_the_states_of_resident_ones():
    streamed = Gemma(TINY, stream_blocks=True).states(token_ids(), [RAW[17]])
    np.testing.assert_array_equal(streamed.values, raw_states()[17].values)


@pytest.mark.real
def test_states_at_every_cutoff_equal_hugging_faces(real_presets, reference_python, tmp_path):
    preset = find_preset("llm_preset", str(real_presets / "gemma3_270m"))
    source = real_presets / "work" / "hf_gemma3_270m"
    whole = Gemma(preset)
    ids, _ = whole.tokenise(TEXTS, 64)
    rows = [ids.text(row).tolist() for row in range(len(TEXTS))]
    script = Path(__file__).parent / "reference_gemma.py"
    output = tmp_path / "states.npz"
    subprocess.run([reference_python, script, source, json.dumps(rows), output], check=True)
    expected = np.load(output)
    for cutoff, layer in enumerate(whole.states(ids, RAW).layers, 1):
        for row in range(len(rows)):
            assert relative_error(layer.text(row), expected[f"{row}_{cutoff}"]) < 1e-3

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
from shared_gemma import TEXTS, TINY, shared_gemma, token_ids, two_texts_per_batch

from embedder_helpers.config import Experiment, InputError
from embedder_helpers.models import gemma as gemma_module
from embedder_helpers.models.batching import MultiLayerStates, RaggedArray, from_lengths
from embedder_helpers.models.gemma import Gemma, HiddenStateSpec, hidden_state_specs
from embedder_helpers.models.presets import find_preset

RAW = [HiddenStateSpec(cutoff, "none") for cutoff in range(1, 19)]
RMS = [HiddenStateSpec(cutoff, "rms") for cutoff in range(1, 19)]


@pytest.fixture(scope="module", autouse=True)
def small_batches():
    with two_texts_per_batch():
        yield


@functools.cache
def raw_states():
    """The raw hidden states after each of the 18 layers, of one forward pass."""
    return shared_gemma().hidden_states(token_ids(), RAW).layers


def reference_states(preset, ids):
    """keras-hub's raw hidden states after each layer and its output, one text after another."""
    backbone = keras_hub.models.Backbone.from_preset(preset.handle, dtype="float32")
    outputs = [*(layer.output for layer in backbone.transformer_layers), backbone.output]
    model = keras.Model(backbone.input, outputs)
    rows = [ids.text(row)[None] for row in range(len(ids))]
    texts = [model({"token_ids": row, "padding_mask": np.ones_like(row)}) for row in rows]
    texts = [map(ops.convert_to_numpy, text) for text in texts]
    return [np.concatenate(states, 1)[0] for states in zip(*texts, strict=True)]


@functools.cache
def expected_states():
    return reference_states(TINY, token_ids())


def relative_error(states, expected):
    return np.linalg.norm(states - expected) / np.linalg.norm(expected)


def rms_norm(states):
    return states / np.sqrt((states**2).mean(-1, keepdims=True) + 1e-6)


# Hidden states


@pytest.mark.parametrize("cutoff", range(1, 19))
def test_raw_hidden_states_equal_those_of_keras_hub(cutoff):
    states = raw_states()[cutoff - 1].values
    assert states.dtype == "float32"
    assert relative_error(states, expected_states()[cutoff - 1]) < 1e-5


def test_normed_hidden_states_are_the_normed_raw_ones_in_float16():
    layers = shared_gemma().hidden_states(token_ids(), RMS).layers
    for layer, raw in zip(layers, expected_states()[:18], strict=True):
        assert layer.values.dtype == "float16"
        assert relative_error(layer.values, rms_norm(raw)) < 1e-3


def test_the_learned_norm_after_the_last_layer_gives_the_models_output():
    states = shared_gemma().hidden_states(token_ids(), [HiddenStateSpec(18, "learned")])
    assert relative_error(states.values, expected_states()[18]) < 1e-3


@pytest.mark.parametrize("specs", [RAW, RMS], ids=["raw", "rms"])
def test_one_forward_pass_for_all_cutoffs_equals_one_for_each(specs):
    together = shared_gemma().hidden_states(token_ids(), specs)
    for layer, spec in zip(together.layers, specs, strict=True):
        alone = shared_gemma().hidden_states(token_ids(), [spec])
        np.testing.assert_array_equal(layer.values, alone.values)


def test_one_spec_gives_a_ragged_array_and_several_are_stacked_in_the_order_given():
    single = shared_gemma().hidden_states(token_ids(), [RMS[2]])
    several = shared_gemma().hidden_states(token_ids(), [RMS[2], RMS[0]])
    assert isinstance(single, RaggedArray) and isinstance(several, MultiLayerStates)
    np.testing.assert_array_equal(several.layers[0].values, single.values)


def test_the_batch_size_limits_the_texts_per_batch():
    batches = list(shared_gemma().forward_layers(token_ids(), [RMS[0]], batch_size=1))
    assert [len(rows) for _, rows, _ in batches] == [1] * len(TEXTS)


# Forward passes


def test_a_forward_pass_yields_each_batch_once_per_spec_the_smallest_cutoff_first():
    batches = list(shared_gemma().forward_layers(token_ids(), [RMS[1], RMS[0]]))
    assert [spec.cutoff for spec, _, _ in batches] == [1, 2] * 3
    assert [rows.tolist() for _, rows, _ in batches[::2]] == [[0, 1], [2, 3], [4, 5]]
    lengths = [len(states) for _, _, states in batches[::2]]
    assert lengths == token_ids().lengths.reshape(3, 2).sum(1).tolist()


def test_a_forward_pass_resumes_from_raw_hidden_states():
    resume_from = 7, raw_states()[6]
    for _, rows, states in shared_gemma().forward_layers(token_ids(), [RAW[17]], resume_from):
        expected = np.concatenate([raw_states()[17].text(row) for row in rows])
        assert relative_error(states, expected) < 1e-6


def test_raw_hidden_states_are_normed_without_passing_a_layer():
    gemma = shared_gemma()
    before = gemma.layer_passes
    for _, rows, states in gemma.forward_layers(token_ids(), [RMS[6]], (7, raw_states()[6])):
        raw = np.concatenate([raw_states()[6].text(row) for row in rows])
        assert relative_error(states, rms_norm(raw)) < 1e-3
    assert gemma.layer_passes == before


def test_layer_passes_are_counted_per_text_up_to_the_largest_cutoff():
    gemma = shared_gemma()
    before = gemma.layer_passes
    gemma.hidden_states(token_ids(), [RMS[1], RMS[4], RAW[4]])
    assert gemma.layer_passes - before == len(TEXTS) * 5
    list(gemma.forward_layers(token_ids(), [RMS[3]], resume_from=(3, raw_states()[2])))
    assert gemma.layer_passes - before == len(TEXTS) * (5 + 1)


@pytest.mark.parametrize(("norm", "dtype"), [("none", "float32"), ("rms", "float16")])
def test_hidden_states_that_are_not_finite_are_an_error(norm, dtype):
    damaged = from_lengths(np.full_like(raw_states()[0].values, np.nan), token_ids().lengths)
    batches = shared_gemma().forward_layers(token_ids(), [HiddenStateSpec(2, norm)], (1, damaged))
    with pytest.raises(InputError, match=f"layer 2 .*{dtype}.*{norm}.*final_norm: rms"):
        list(batches)


# Weights


@pytest.fixture
def loaded_layers(monkeypatch):
    """The number of layers of each backbone that is loaded during a test."""
    counts = []
    from_preset = gemma_module.from_preset

    def counting(model_class, *arguments, **options):
        model = from_preset(model_class, *arguments, **options)
        if model_class is keras_hub.models.Backbone:
            counts.append(len(model.transformer_layers))
        return model

    monkeypatch.setattr(gemma_module, "from_preset", counting)
    return counts


def test_weights_up_to_the_largest_cutoff_are_loaded_once_until_unloaded(loaded_layers):
    gemma = Gemma(TINY)
    assert loaded_layers == []
    first = gemma.hidden_states(token_ids(), [RMS[2], RMS[1]])
    gemma.hidden_states(token_ids(), [RMS[1]])
    assert loaded_layers == [3]
    gemma.unload()
    again = gemma.hidden_states(token_ids(), [RMS[2]])
    assert loaded_layers == [3, 3]
    np.testing.assert_array_equal(again.values, first.layers[0].values)


def test_layers_of_one_kind_share_one_compiled_function():
    functions = shared_gemma()._functions
    assert len(functions) == 18 and len(set(map(id, functions))) == 1


def test_a_second_model_of_the_same_kind_compiles_nothing():
    raw_states()
    function = shared_gemma()._functions[0]
    before = compilations(function)
    gemma = Gemma(TINY)
    gemma.hidden_states(token_ids(), [RAW[3]])
    assert set(gemma._functions) == {function}
    assert compilations(function) == before


def compilations(function):
    """How often a function was compiled, by its backend."""
    if keras.config.backend() == "tensorflow":
        return function.experimental_get_tracing_count()
    return function._cache_size() if keras.config.backend() == "jax" else 0


# Tokens and specs


def test_long_texts_are_truncated_and_reported():
    ids, truncated = shared_gemma().tokenize([TEXTS[2] * 20, TEXTS[1]], 16)
    assert truncated.tolist() == [True, False]
    assert ids.lengths[0] == 16


@pytest.mark.parametrize(
    ("llm_layers", "final_norm", "expected"),
    [
        (-1, "rms", [(18, "rms")]),
        ((10, -15), "none", [(4, "none"), (10, "none")]),
        (18, "learned", [(18, "learned")]),
    ],
)
def test_an_experiment_reads_its_cutoffs_in_order_through_its_norm(
    llm_layers, final_norm, expected
):
    experiment = Experiment(llm_layers=llm_layers, final_norm=final_norm)
    assert hidden_state_specs(experiment, 18) == tuple(expected)


def test_final_norm_last_norms_after_the_last_layer_only_as_the_original_study_did():
    experiment = Experiment(llm_layers=(17, 18), final_norm="last")
    assert hidden_state_specs(experiment, 18) == ((17, "none"), (18, "learned"))


# Gemma 2 and 3


@pytest.fixture(scope="module", params=["gemma2", "gemma3"])
def family_preset(request, tmp_path_factory):
    """A tiny Gemma 2 or 3 whose last layer repeats the pattern of its kinds of layers."""
    return write_gemma(request.param, 7, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def family_gemma(family_preset):
    return Gemma(family_preset)


@pytest.fixture(scope="module")
def family_states(family_gemma):
    return family_gemma.hidden_states(token_ids(), RAW[:7]).layers


def test_gemma_2_and_3_give_the_hidden_states_of_keras_hub(family_preset, family_states):
    expected = reference_states(family_preset, token_ids())
    for layer, values in zip(family_states, expected[:7], strict=True):
        assert relative_error(layer.values, values) < 1e-5


def test_gemma_2_and_3_compile_one_function_per_kind_of_layer(family_gemma, family_states):
    assert len(family_gemma._functions) == 7
    assert len(set(map(id, family_gemma._functions))) == 2


def test_streamed_gemma_2_and_3_give_the_same_hidden_states(family_preset, family_states):
    streamed = Gemma(family_preset, stream_blocks=True).hidden_states(token_ids(), RAW[:7])
    for layer, expected in zip(streamed.layers, family_states, strict=True):
        np.testing.assert_array_equal(layer.values, expected.values)


@pytest.mark.real
def test_hidden_states_at_every_cutoff_equal_those_of_hugging_face(
    real_presets, reference_python, tmp_path
):
    preset = find_preset("llm_preset", str(real_presets / "gemma3_270m"))
    source = real_presets / "work" / "hf_gemma3_270m"
    gemma = Gemma(preset)
    ids, _ = gemma.tokenize(TEXTS[:3], 64)
    rows = [ids.text(row).tolist() for row in range(len(ids))]
    script = Path(__file__).parent.parent / "support" / "reference_gemma.py"
    output = tmp_path / "states.npz"
    subprocess.run([reference_python, script, source, json.dumps(rows), output], check=True)
    expected = np.load(output)
    for cutoff, layer in enumerate(gemma.hidden_states(ids, RAW).layers, 1):
        for row in range(len(rows)):
            assert relative_error(layer.text(row), expected[f"{row}_{cutoff}"]) < 1e-3

import functools
import json
import logging
import shutil
import subprocess
from pathlib import Path

import h5py
import keras
import keras_hub
import numpy as np
import pytest
from keras import ops
from made_presets import write_gemma
from shared_gemma import TEXTS, TINY, shared_gemma, token_ids, two_texts_per_batch

from embedder_helpers.config import Experiment
from embedder_helpers.errors import InputError
from embedder_helpers.models import gemma as gemma_module
from embedder_helpers.models import layer_weights
from embedder_helpers.models.batching import MultiLayerStates, RaggedArray, from_lengths
from embedder_helpers.models.decoder_layer import layer_kind
from embedder_helpers.models.gemma import Gemma, HiddenStateSpec, hidden_state_specs
from embedder_helpers.models.layer_weights import FileWeights
from embedder_helpers.models.presets import find_preset
from embedder_helpers.models.shapes import forward_bytes_per_token
from embedder_helpers.utils import environment

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
def read_layers(monkeypatch):
    """The index of each layer whose weights are read during a test."""
    indices = []
    read_layer = FileWeights.read_layer

    def recording(weights, index):
        indices.append(index)
        return read_layer(weights, index)

    monkeypatch.setattr(FileWeights, "read_layer", recording)
    return indices


def test_each_layer_up_to_the_largest_cutoff_is_read_once_until_unloaded(read_layers):
    gemma = Gemma(TINY, dtype="float32")
    assert read_layers == []
    first = gemma.hidden_states(token_ids(), [RMS[2], RMS[1]])
    gemma.hidden_states(token_ids(), [RMS[1]])
    assert read_layers == [0, 1, 2]
    gemma.hidden_states(token_ids(), [RMS[3]])
    assert read_layers == [0, 1, 2, 3]
    gemma.unload()
    again = gemma.hidden_states(token_ids(), [RMS[2]])
    assert read_layers == [0, 1, 2, 3, 0, 1, 2]
    np.testing.assert_array_equal(again.values, first.layers[0].values)


def test_a_preset_that_cannot_be_read_layer_by_layer_is_loaded_by_keras_hub(monkeypatch):
    def refuse(preset):
        raise InputError("another layout")

    monkeypatch.setattr(layer_weights, "FileWeights", refuse)
    states = Gemma(TINY, dtype="float32").hidden_states(token_ids(), [RAW[0], RAW[4]])
    np.testing.assert_array_equal(states.layers[0].values, raw_states()[0].values)
    np.testing.assert_array_equal(states.layers[1].values, raw_states()[4].values)


def test_all_layers_of_gemma_1_are_of_one_kind():
    kinds = {layer_kind(shared_gemma()._weights.shape, index) for index in range(18)}
    assert len(kinds) == 1


def test_a_second_model_of_the_same_kind_compiles_nothing():
    raw_states()
    function = gemma_module._layer_function(layer_kind(shared_gemma()._weights.shape, 0), "float32")
    before = compilations(function)
    Gemma(TINY, dtype="float32").hidden_states(token_ids(), [RAW[3]])
    assert compilations(function) == before > 0


def compilations(function):
    """How often a function was compiled, by its backend."""
    if keras.config.backend() == "tensorflow":
        return function.experimental_get_tracing_count()
    return function._cache_size() if keras.config.backend() == "jax" else 1


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
    return Gemma(family_preset, dtype="float32")


@pytest.fixture(scope="module")
def family_states(family_gemma):
    return family_gemma.hidden_states(token_ids(), RAW[:7]).layers


def test_gemma_2_and_3_give_the_hidden_states_of_keras_hub(family_preset, family_states):
    expected = reference_states(family_preset, token_ids())
    for layer, values in zip(family_states, expected[:7], strict=True):
        assert relative_error(layer.values, values) < 1e-5


def test_gemma_2_and_3_have_two_kinds_of_layers(family_gemma, family_states):
    kinds = {layer_kind(family_gemma._weights.shape, index) for index in range(7)}
    assert len(kinds) == 2


def test_streamed_gemma_2_and_3_give_the_same_hidden_states(family_preset, family_states):
    streamed = Gemma(family_preset, True, "float32").hidden_states(token_ids(), RAW[:7])
    for layer, expected in zip(streamed.layers, family_states, strict=True):
        np.testing.assert_array_equal(layer.values, expected.values)


# Half precision


def cosines(states, expected):
    """The cosine of each token's hidden states to those expected."""
    states, expected = states.astype("float64"), expected.astype("float64")
    norms = np.linalg.norm(states, axis=-1) * np.linalg.norm(expected, axis=-1)
    return (states * expected).sum(-1) / norms


# Bfloat16 keeps 8 significant bits and float16 keeps 11.
@pytest.mark.parametrize(("dtype", "least"), [("bfloat16", 0.9999), ("float16", 0.99999)])
def test_half_precision_keeps_the_direction_of_every_tokens_hidden_states(dtype, least):
    states = Gemma(TINY, dtype=dtype).hidden_states(token_ids(), RAW)
    for layer, expected in zip(states.layers, raw_states(), strict=True):
        assert cosines(layer.values, expected.values).min() > least
        assert not np.array_equal(layer.values, expected.values)


def test_gemma_2_and_3_in_float16_keep_the_direction_too(family_preset, family_states):
    states = Gemma(family_preset, dtype="float16").hidden_states(token_ids(), RAW[:7])
    for layer, expected in zip(states.layers, family_states, strict=True):
        assert cosines(layer.values, expected.values).min() > 0.999


def test_streamed_half_precision_gives_the_same_hidden_states():
    kept, streamed = (
        Gemma(TINY, stream, "bfloat16").hidden_states(token_ids(), [RAW[5]])
        for stream in (False, True)
    )
    np.testing.assert_array_equal(kept.values, streamed.values)


def test_half_precision_does_not_depend_on_the_batches_computed_before(monkeypatch):
    """A first batch must not decide on the graph of all later ones."""
    monkeypatch.setattr(gemma_module, "UNCOMPILED_TOKENS", 96)
    ids = shared_gemma().tokenize([text * (i % 3 + 1) for i, text in enumerate(TEXTS)], 64)[0]
    outputs = []
    for first in (ids, ids.select([3])):
        gemma_module._layer_function.cache_clear()
        gemma = Gemma(TINY, dtype="bfloat16")
        gemma.hidden_states(first, [RAW[0]])
        outputs.append(gemma.hidden_states(ids, [RAW[4]]).values)
    np.testing.assert_array_equal(*outputs)


def test_auto_is_what_the_device_multiplies_faster(monkeypatch):
    monkeypatch.setattr(environment, "half_dtype", lambda: "bfloat16")
    assert Gemma(TINY).dtype == "bfloat16"
    monkeypatch.setattr(environment, "half_dtype", lambda: None)
    assert Gemma(TINY).dtype == "float32"


@pytest.fixture
def overflowing_preset(tmp_path):
    """The built-in Gemma, with feed-forward weights in its third layer that float16 cannot hold."""
    folder = tmp_path / "overflowing"
    shutil.copytree(TINY.handle, folder)
    with h5py.File(folder / "model.weights.h5", "r+") as file:
        layer = file["layers/gemma_decoder_block_2"]
        layer["gating_ffw_2/vars/0"][...] *= 1e6
        layer["ffw_linear/vars/0"][...] /= 1e6
    return find_preset("llm_preset", str(folder))


def test_what_overflows_float16_is_computed_again_in_float32_and_counted(
    overflowing_preset, caplog
):
    caplog.set_level(logging.INFO, logger="embedder_helpers")
    gemma = Gemma(overflowing_preset, dtype="float16")
    states = gemma.hidden_states(token_ids(), RAW)
    for layer, expected in zip(states.layers, raw_states(), strict=True):
        assert cosines(layer.values, expected.values).min() > 0.9999
    assert gemma.float32_passes == len(TEXTS)
    assert f"float16 overflowed in {len(TEXTS)} of {18 * len(TEXTS)} passes" in caplog.text


# Memory


class ResourceExhaustedError(Exception):
    """As TensorFlow's."""


@pytest.fixture
def small_device(monkeypatch):
    """Runs out of memory if more than one text passes a layer at a time; lists the failures."""
    layer_function, failures = gemma_module._layer_function, []

    def limited(kind, dtype):
        def function(weights, states, mask):
            if len(mask) > 1:
                failures.append(len(mask))
                raise ResourceExhaustedError
            return layer_function(kind, dtype)(weights, states, mask)

        return function

    monkeypatch.setattr(gemma_module, "_layer_function", limited)
    return failures


def test_a_batch_that_exceeds_the_memory_is_halved_and_reported_once(small_device, caplog):
    caplog.set_level(logging.INFO, logger="embedder_helpers")
    gemma = Gemma(TINY, dtype="float32")
    states = gemma.hidden_states(token_ids(), [RAW[1], RAW[4]])
    for layer, expected in zip(states.layers, (raw_states()[1], raw_states()[4]), strict=True):
        assert relative_error(layer.values, expected.values) < 1e-6
    assert small_device == [2]  # later batches are halved from the start
    assert caplog.text.count("halved") == 1


def test_batches_of_any_number_of_texts_are_halved_without_empty_parts(small_device, monkeypatch):
    monkeypatch.setattr(gemma_module, "CPU_TOKENS", 7 * 16)
    ids = token_ids().select([0, 1, 2, 3, 4, 5, 0, 1, 2])  # seven texts, then two
    states = Gemma(TINY, dtype="float32").hidden_states(ids, [RAW[1]])
    expected = raw_states()[1].select([0, 1, 2, 3, 4, 5, 0, 1, 2])
    for row in range(len(ids)):
        assert relative_error(states.text(row), expected.text(row)) < 1e-6
    assert 0 not in small_device


def test_no_texts_have_no_hidden_states():
    states = Gemma(TINY, dtype="float32").hidden_states(token_ids().select([]), [RAW[1]])
    assert len(states) == 0


def test_one_text_that_exceeds_the_memory_is_an_error_with_advice(monkeypatch):
    def function(weights, states, mask):
        raise ResourceExhaustedError

    monkeypatch.setattr(gemma_module, "_layer_function", lambda kind, dtype: function)
    with pytest.raises(InputError, match="memory ran out.*stream_blocks: true.*max_tokens"):
        Gemma(TINY, dtype="float32").hidden_states(token_ids(), [RAW[1]])


def test_other_errors_of_a_layer_are_not_hidden(monkeypatch):
    def function(weights, states, mask):
        raise ValueError("a bug")

    monkeypatch.setattr(gemma_module, "_layer_function", lambda kind, dtype: function)
    with pytest.raises(ValueError, match="a bug"):
        Gemma(TINY, dtype="float32").hidden_states(token_ids(), [RAW[1]])


def test_batches_are_smaller_where_less_memory_is_free(monkeypatch):
    monkeypatch.setattr(gemma_module, "CPU_TOKENS", 1024)
    gemma = shared_gemma()
    lengths = np.full(100, 64)

    def largest_batch():
        return max(len(rows) for rows, _, _ in gemma._batches(lengths, 1, None))

    monkeypatch.setattr(gemma_module, "MEMORY_FRACTION", 1.0)
    needed = 1024 * forward_bytes_per_token(gemma._weights.shape, 64, is_compiled=True)
    for room, expected in ((2 * needed, 16), (needed, 16), (needed / 2, 8), (0, 1)):
        monkeypatch.setattr(environment, "free_memory", lambda room=room: room)
        assert largest_batch() == expected


@pytest.mark.real
def test_hidden_states_at_every_cutoff_equal_those_of_hugging_face(
    real_presets, reference_python, tmp_path
):
    preset = find_preset("llm_preset", str(real_presets / "gemma3_270m"))
    source = real_presets / "work" / "hf_gemma3_270m"
    gemma = Gemma(preset, dtype="float32")
    ids, _ = gemma.tokenize(TEXTS[:3], 64)
    rows = [ids.text(row).tolist() for row in range(len(ids))]
    script = Path(__file__).parent.parent / "support" / "reference_gemma.py"
    output = tmp_path / "states.npz"
    subprocess.run([reference_python, script, source, json.dumps(rows), output], check=True)
    expected = np.load(output)
    for cutoff, layer in enumerate(gemma.hidden_states(ids, RAW).layers, 1):
        for row in range(len(rows)):
            assert relative_error(layer.text(row), expected[f"{row}_{cutoff}"]) < 1e-3


# Products in bfloat16 round their results too on a CPU: on average far less than one in a thousand,
# at the worst of some thousand tokens not quite.
@pytest.mark.real
@pytest.mark.parametrize(
    ("dtype", "least", "least_mean"), [("float16", 0.9999, 0.99999), ("bfloat16", 0.999, 0.9999)]
)
def test_half_precision_keeps_the_direction_of_real_hidden_states(
    real_presets, shared_folder, dtype, least, least_mean
):
    preset = find_preset("llm_preset", str(real_presets / "gemma3_270m"))
    lines = (shared_folder / "data/amazon_counterfactual/test.jsonl").read_text().splitlines()
    exact, half = Gemma(preset, dtype="float32"), Gemma(preset, dtype=dtype)
    ids, _ = exact.tokenize([json.loads(line)["text"] for line in lines[:48]], 64)
    expected = exact.hidden_states(ids, RAW).layers
    for layer, other in zip(half.hidden_states(ids, RAW).layers, expected, strict=True):
        values = cosines(layer.values, other.values)
        assert values.min() > least and values.mean() > least_mean
    assert half.float32_passes == 0

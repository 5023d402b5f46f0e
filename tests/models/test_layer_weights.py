import dataclasses
import functools
import gc
import json
import shutil
import weakref

import h5py
import keras_hub
import numpy as np
import pytest
from shared_gemma import TINY, shared_gemma, token_ids, two_texts_per_batch

from embedder_helpers.builtin import BUILTIN_FOLDER
from embedder_helpers.errors import InputError
from embedder_helpers.models import gemma as gemma_module
from embedder_helpers.models import layer_weights, presets
from embedder_helpers.models.gemma import Gemma, HiddenStateSpec
from embedder_helpers.models.hidden_states import HiddenStateCache
from embedder_helpers.models.layer_weights import SHARDS_FILE, WEIGHTS_FILE, FileWeights


@pytest.fixture(scope="module", autouse=True)
def small_batches():
    """Three batches, of which two pass a streamed layer before the next one is read."""
    with two_texts_per_batch(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(gemma_module, "STREAMED_BATCHES", 2)
        yield


@functools.cache
def layers():
    """The decoder layers as keras-hub loads them."""
    backbone = keras_hub.models.Backbone.from_preset(TINY.handle, dtype="float32")
    return backbone.transformer_layers


@functools.cache
def weights():
    return FileWeights(TINY)


def assert_equal(stored, layer):
    """Weights by path, and a layer of keras-hub's."""
    expected = dict(layer_weights._variables(layer))
    assert list(stored) and set(stored) == set(expected)
    for name, array in stored.items():
        np.testing.assert_array_equal(array.astype("float32"), np.asarray(expected[name].value))


@pytest.fixture
def preset_copy(tmp_path):
    """A copy of the built-in preset, and the path of its weights, to be damaged."""
    folder = tmp_path / "copy"
    shutil.copytree(TINY.handle, folder)
    preset = dataclasses.replace(TINY, name=str(folder), handle=str(folder))
    return preset, folder / WEIGHTS_FILE


def change_layers(path, change):
    """Change the group of a file's layers."""
    with h5py.File(path, "r+") as file:
        change(file["layers"])


def fifth_layer(groups):
    return next(name for name in groups if name.endswith("decoder_block_4"))


def datasets(group):
    """The weights in a group, by their path in it."""
    found = {}

    def visit(name, item):
        if isinstance(item, h5py.Dataset):
            found[name] = item

    group.visititems(visit)
    return found


# What is read


@pytest.mark.parametrize("index", range(18))
def test_a_layers_weights_are_those_that_keras_hub_loads(index):
    assert_equal(weights().read_layer(index), layers()[index])


def test_the_table_and_the_final_norm_are_those_that_keras_hub_loads():
    backbone = keras_hub.models.Backbone.from_preset(TINY.handle, num_layers=1, dtype="float32")
    table = np.asarray(backbone.token_embedding.embeddings.value)
    np.testing.assert_array_equal(weights().table.astype("float32"), table)
    np.testing.assert_array_equal(weights().final_norm, np.asarray(backbone.layer_norm.scale.value))


def test_the_table_stays_in_the_file():
    assert isinstance(weights().table, np.memmap)


def test_a_compressed_table_is_read(preset_copy):
    preset, path = preset_copy

    def compress(groups):
        table = groups["reversible_embedding/vars"]
        values = table["0"][()]
        del table["0"]
        table.create_dataset("0", data=values, compression="gzip", compression_opts=1)

    change_layers(path, compress)
    np.testing.assert_array_equal(FileWeights(preset).table, weights().table)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_weights_keep_the_dtype_they_are_stored_in(tmp_path, dtype):
    half = keras_hub.models.Backbone.from_preset(TINY.handle, num_layers=3, dtype=dtype)
    half.save_to_preset(str(tmp_path))
    preset = dataclasses.replace(TINY, handle=str(tmp_path), num_layers=3)
    stored = FileWeights(preset)
    expected = dict(layer_weights._variables(half.transformer_layers[2]))
    for name, array in stored.read_layer(2).items():
        assert array.dtype.name == dtype
        np.testing.assert_array_equal(array, np.asarray(expected[name].value))
    assert stored.table.dtype.name == dtype


def test_weights_in_several_files_are_read(tmp_path):
    backbone = keras_hub.models.Backbone.from_preset(TINY.handle, dtype="float32")
    backbone.save_to_preset(str(tmp_path), max_shard_size=0.003)  # gigabytes
    assert len(list(tmp_path.glob("model_*.weights.h5"))) > 1
    preset = dataclasses.replace(TINY, handle=str(tmp_path))
    for index in (0, 9, 17):
        assert_equal(FileWeights(preset).read_layer(index), layers()[index])


def test_weights_of_a_preset_on_kaggle_are_downloaded(monkeypatch):
    handle = "kaggle://keras/gemma/keras/gemma_far"
    preset = dataclasses.replace(TINY, name="gemma_far", handle=handle)
    requests = []

    def download(role, name, handle, file="config.json"):
        requests.append((handle, file))
        return BUILTIN_FOLDER / "tiny_gemma" / file

    monkeypatch.setattr(presets, "kaggle_file", download)
    stored = FileWeights(preset)
    assert ("keras/gemma/keras/gemma_far", WEIGHTS_FILE) in requests
    assert_equal(stored.read_layer(2), layers()[2])


# Streamed forward passes


def test_streamed_hidden_states_equal_those_of_the_model_in_memory():
    specs = [HiddenStateSpec(1, "none"), HiddenStateSpec(7, "rms"), HiddenStateSpec(18, "learned")]
    streamed, expected = (
        shared_gemma(stream_blocks).hidden_states(token_ids(), specs)
        for stream_blocks in (True, False)
    )
    for layer, other in zip(streamed.layers, expected.layers, strict=True):
        np.testing.assert_array_equal(layer.values, other.values)


def test_a_streamed_forward_pass_resumes_from_raw_hidden_states():
    gemma, spec = shared_gemma(True), HiddenStateSpec(6, "rms")
    raw = gemma.hidden_states(token_ids(), [HiddenStateSpec(4, "none")])
    expected = gemma.hidden_states(token_ids(), [spec])
    for _, rows, states in gemma.forward_layers(token_ids(), [spec], (4, raw)):
        np.testing.assert_array_equal(states, np.concatenate([expected.text(row) for row in rows]))


@pytest.fixture(scope="module")
def layer_reads():
    """Layers that a streaming Gemma reads, and how many weights of others are alive then."""
    gemma, reads, alive, references = Gemma(TINY, True, "float32"), [], [], []
    read = gemma._read_layer

    def recording(index, dtype):
        gc.collect()
        alive.append(sum(reference() is not None for reference in references))
        tensors = read(index, dtype)
        reads.append(index)
        references.extend(map(weakref.ref, tensors.values()))
        return tensors

    gemma._read_layer = recording
    gemma.hidden_states(token_ids(), [HiddenStateSpec(3, "rms")])
    return reads, alive


def test_a_layer_is_read_once_for_several_batches(layer_reads):
    reads, _ = layer_reads
    assert reads == [0, 1, 2] * 2  # three batches are two chunks


def test_a_layers_weights_are_freed_before_the_next_ones_are_read(layer_reads):
    _, alive = layer_reads
    assert alive == [0] * 6


# What cannot be read


def test_a_hugging_face_model_is_an_error_before_anything_is_loaded(monkeypatch):
    name = "hf://google/gemma-2b"
    preset = dataclasses.replace(TINY, name=name, handle=name)
    monkeypatch.setattr(gemma_module, "from_preset", lambda *_, **__: pytest.fail("is loaded"))
    with pytest.raises(InputError, match=f"{name}.*save_to_preset.*stream_blocks: false"):
        Gemma(preset, True)


def test_weights_in_several_files_without_an_index_are_an_error(preset_copy):
    preset, path = preset_copy
    path.rename(path.with_name("model_00000.weights.h5"))
    with pytest.raises(InputError, match=f"has no file {WEIGHTS_FILE}"):
        FileWeights(preset)


def test_a_truncated_file_is_an_error(preset_copy):
    preset, path = preset_copy
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(InputError, match="stream_blocks: false"):
        FileWeights(preset)


def test_other_names_of_layers_are_an_error(preset_copy):
    preset, path = preset_copy

    def rename(groups):
        for name in list(groups):
            if "decoder_block" in name:
                groups.move(name, name.replace("decoder_block", "layer"))

    change_layers(path, rename)
    with pytest.raises(InputError, match="0 of 18 layers.*stream_blocks: false.*save_to_preset"):
        FileWeights(preset)


def drop_layer(groups):
    del groups[fifth_layer(groups)]


def test_a_missing_layer_is_an_error(preset_copy):
    preset, path = preset_copy
    change_layers(path, drop_layer)
    with pytest.raises(InputError, match="17 of 18 layers"):
        FileWeights(preset)


def widen_weight(layer):
    name, weight = next(iter(datasets(layer).items()))
    wider = np.zeros((*weight.shape[:-1], weight.shape[-1] + 1), "float32")
    del layer[name]
    layer[name] = wider


def drop_weight(layer):
    del layer[next(iter(datasets(layer)))]


def quantize_weight(layer):
    """As Keras stores a quantized matrix: with a scale beside it."""
    layer["ffw_linear/vars"]["1"] = np.ones(4, "float32")


@pytest.mark.parametrize("damage", [widen_weight, drop_weight, quantize_weight])
def test_other_weights_than_expected_are_an_error_naming_their_layer(preset_copy, damage):
    preset, path = preset_copy
    change_layers(path, lambda groups: damage(groups[fifth_layer(groups)]))
    with pytest.raises(InputError, match="layer 5 .*stream_blocks: false"):
        FileWeights(preset)


@pytest.mark.parametrize("name", ["../other.weights.h5", "/etc/passwd", "config.json", 7, ["a", 1]])
def test_an_index_that_names_something_else_than_weights_is_an_error(preset_copy, name):
    preset, path = preset_copy
    path.rename(path.with_name("model_00000.weights.h5"))
    index = {"weight_map": {"/layers": name, "/more": "model_00000.weights.h5"}}
    path.with_name(SHARDS_FILE).write_text(json.dumps(index))
    with pytest.raises(InputError, match="copy|use a complete preset|stream_blocks: false"):
        FileWeights(preset)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"weight_map": 3}', "[" * 100_000])
def test_an_index_that_is_damaged_is_an_error(preset_copy, text):
    preset, path = preset_copy
    path.rename(path.with_name("model_00000.weights.h5"))
    path.with_name(SHARDS_FILE).write_text(text)
    with pytest.raises(InputError, match=f"has no file {WEIGHTS_FILE}"):
        FileWeights(preset)


def store_whole_numbers(layer):
    name, weight = next(iter(datasets(layer).items()))
    values = weight[()].astype("int32")
    del layer[name]
    layer[name] = values


def link_out(layer):
    name = next(iter(datasets(layer)))
    del layer[name]
    layer[name] = h5py.ExternalLink("/somewhere/else.h5", "/x")


def describe_only(layer):
    name, weight = next(iter(datasets(layer).items()))
    shape = (10**9, *weight.shape)
    del layer[name]
    layer.create_dataset(name, shape, "float32")


@pytest.mark.parametrize("damage", [store_whole_numbers, link_out, describe_only])
def test_weights_of_a_stranger_are_an_error(preset_copy, damage):
    preset, path = preset_copy
    change_layers(path, lambda groups: damage(groups[fifth_layer(groups)]))
    with pytest.raises(InputError, match="save the preset again|copy the whole preset"):
        FileWeights(preset)


def test_weights_that_are_not_finite_are_an_error_that_names_the_preset(preset_copy):
    preset, path = preset_copy

    def damage(layer):
        next(iter(datasets(layer).values()))[0] = np.nan

    change_layers(path, lambda groups: damage(groups[fifth_layer(groups)]))
    with pytest.raises(InputError, match=f"'{preset.name}'.*not finite"):
        Gemma(preset, True, "float32").hidden_states(token_ids(), [HiddenStateSpec(5, "rms")])


# Random weights


@functools.cache
def random_preset():
    return dataclasses.replace(TINY, random_weights=True)


def test_random_weights_have_the_shapes_and_scales_of_the_stored_ones_and_nothing_else():
    random = layer_weights.open_weights(random_preset(), 2, stream_blocks=False)
    arrays, stored = random.read_layer(1), weights().read_layer(1)
    assert arrays.keys() == stored.keys()
    for name, array in arrays.items():
        expected = stored[name].astype("float32")
        assert array.shape == expected.shape
        if array.size > 1000:
            assert array.mean() == pytest.approx(expected.mean(), abs=0.1 * float(expected.std()))
            assert array.std() == pytest.approx(expected.std(), rel=0.1)
            assert abs(np.corrcoef(array.ravel(), expected.ravel())[0, 1]) < 0.1


def test_random_weights_are_the_same_at_every_reading_and_differ_between_layers():
    random = layer_weights.open_weights(random_preset(), 2, stream_blocks=True)
    first, again, other = random.read_layer(0), random.read_layer(0), random.read_layer(1)
    for name in first:
        np.testing.assert_array_equal(first[name], again[name])
        assert not np.array_equal(first[name], other[name])


def test_random_embeddings_belong_to_their_tokens():
    table = layer_weights.open_weights(random_preset(), 1, stream_blocks=False).table
    tokens = np.array([[5, 9, 5], [7, 9, 0]])
    values = table[tokens]
    assert values.shape == (2, 3, TINY.width) and values.dtype == np.float32
    np.testing.assert_array_equal(values[0, 0], values[0, 2])
    np.testing.assert_array_equal(values[0, 1], values[1, 1])
    np.testing.assert_array_equal(table[np.array([7])][0], values[1, 0])
    assert not np.array_equal(values[0, 0], values[0, 1])


def test_a_gemma_with_random_weights_has_hidden_states_of_its_own(tmp_path):
    ids = token_ids()
    spec = HiddenStateSpec(2, "rms")
    random, true = Gemma(random_preset()), Gemma(TINY)
    states = random.hidden_states(ids, [spec])
    assert np.isfinite(states.values).all()
    assert not np.allclose(states.values, true.hidden_states(ids, [spec]).values, atol=0.1)
    cache = HiddenStateCache(tmp_path)
    cache.get_or_compute(true, ids, [spec])
    assert cache.lookup(random, ids, [spec]) is None
    np.testing.assert_array_equal(cache.get_or_compute(random, ids, [spec]).text(1), states.text(1))

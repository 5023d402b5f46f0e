import dataclasses
import functools
import gc
import shutil
import weakref

import h5py
import keras_hub
import numpy as np
import pytest
from made_presets import write_gemma

from embedder_helpers import gemma as gemma_module
from embedder_helpers import presets
from embedder_helpers.config import InputError
from embedder_helpers.gemma import Depth, Gemma
from embedder_helpers.presets import find_preset
from embedder_helpers.streaming import WEIGHTS, block_reader

TINY = find_preset("llm_preset", "tiny_gemma")
# All of one bucket, because every bucket costs a compilation.
TEXTS = [f"Day {i} was {'wet' if i % 2 else 'dry'}." for i in range(8, 14)]
DEPTHS = [Depth(1, "none"), Depth(7, "rms"), Depth(18, "learned")]


@pytest.fixture(scope="module", autouse=True)
def two_texts_a_batch():
    """Small batches and small chunks of them, so that a walk over few texts has several."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gemma_module, "CPU_TOKENS", 2 * 16)
        patch.setattr(gemma_module, "GPU_TOKENS", 2 * 16)
        patch.setattr(gemma_module, "STREAMED_BATCHES", 2)
        yield


@functools.cache
def backbone():
    return keras_hub.models.Backbone.from_preset(TINY.handle, dtype="float32")


@functools.cache
def reader():
    return block_reader(TINY, backbone().transformer_layers[0])


@functools.cache
def gemma(stream_blocks):
    return Gemma(TINY, stream_blocks)


@functools.cache
def ids():
    return gemma(False).tokenise(TEXTS, 64)[0]


@pytest.fixture
def copied(tmp_path):
    """A copy of the tiny preset and the path of its weights, to be damaged."""
    folder = tmp_path / "copied"
    shutil.copytree(TINY.handle, folder)
    return dataclasses.replace(TINY, name=str(folder), handle=str(folder)), folder / WEIGHTS


def change(path, action):
    """Opens a file of weights and changes the group of its layers."""
    with h5py.File(path, "r+") as file:
        action(file["layers"])


def values(weights):
    return [np.asarray(weight) for weight in weights]


# What is read


@pytest.mark.parametrize("index", range(18))
def test_a_blocks_weights_are_those_of_the_loaded_model(index):
    block = backbone().transformer_layers[index]
    expected = values(block.variables)
    found = values(reader()(index))
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)


def test_any_block_will_do_to_tell_the_order_of_weights():
    last = block_reader(TINY, backbone().transformer_layers[17])
    for one, other in zip(values(last(3)), values(reader()(3)), strict=True):
        np.testing.assert_array_equal(one, other)


def test_streamed_states_are_those_of_the_model_in_memory():
    found, expected = (gemma(stream).states(ids(), DEPTHS) for stream in (True, False))
    for one, other in zip(found.layers, expected.layers, strict=True):
        np.testing.assert_array_equal(one.values, other.values)


def test_a_streamed_walk_goes_on_from_raw_states():
    raw = gemma(True).states(ids(), [Depth(4, "none")])
    expected = gemma(True).states(ids(), [Depth(6, "rms")])
    for _, rows, states in gemma(True).walk(ids(), [Depth(6, "rms")], (4, raw)):
        np.testing.assert_array_equal(states, np.concatenate([expected.text(row) for row in rows]))


@pytest.mark.parametrize("family", ["gemma2", "gemma3"])
def test_streamed_blocks_of_several_kinds_give_the_states_of_the_model_in_memory(family, tmp_path):
    # Nine blocks, so that the pattern of kinds begins anew; texts are longer than the window.
    preset = write_gemma(family, 9, tmp_path)
    wanted = [Depth(cutoff, "none") for cutoff in (1, 5, 6, 7, 9)]
    few = ids().select([0, 1])
    found, expected = (Gemma(preset, stream).states(few, wanted) for stream in (True, False))
    for one, other in zip(found.layers, expected.layers, strict=True):
        np.testing.assert_array_equal(one.values, other.values)


# How much is in memory


@pytest.fixture
def watched(monkeypatch):
    """A streaming Gemma; blocks that were read, and how many of their weights then were alive."""
    model, read, alive, known = Gemma(TINY, True), [], [], []
    model._load(18)
    weights = model._weights

    def watching(block):
        gc.collect()
        alive.append(sum(reference() is not None for reference in known))
        found = weights(block)
        read.append(block)
        known.extend(map(weakref.ref, found))
        return found

    monkeypatch.setattr(model, "_weights", watching)
    return model, read, alive


def test_each_block_is_read_once_for_several_batches(watched):
    model, read, _ = watched
    model.states(ids(), [Depth(5, "rms")])
    # Three batches are two chunks.
    assert read == [0, 1, 2, 3, 4] * 2


def test_a_block_is_freed_before_the_next_one_is_read(watched):
    model, _, alive = watched
    model.states(ids(), [Depth(5, "rms")])
    assert alive == [0] * 10


def test_the_blocks_that_are_loaded_with_the_model_are_freed():
    kind = type(backbone().transformer_layers[0])

    def blocks():
        gc.collect()
        return [one for one in gc.get_objects() if isinstance(one, kind)]

    gemma(True).states(ids(), [Depth(1, "rms")])  # what is compiled keeps a block of its own
    before = len(blocks())
    model = Gemma(TINY, True)
    model._load(18)
    assert len(blocks()) == before


# What cannot be read


def test_a_hugging_face_model_is_refused_before_anything_is_loaded(monkeypatch):
    far = dataclasses.replace(TINY, name="hf://google/gemma-2b", handle="hf://google/gemma-2b")
    monkeypatch.setattr(gemma_module, "load_preset", lambda *_, **__: pytest.fail("is loaded"))
    with pytest.raises(InputError, match="hf://google/gemma-2b.*save_to_preset.*stream_blocks"):
        Gemma(far, True)


def test_a_preset_without_its_one_file_of_weights_is_refused(copied):
    preset, path = copied
    path.rename(path.with_name("model_00000.weights.h5"))
    with pytest.raises(InputError, match=f"no file {WEIGHTS}.*stream_blocks: false"):
        block_reader(preset, backbone().transformer_layers[0])


def test_a_file_that_is_cut_off_is_refused(copied):
    preset, path = copied
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(InputError, match="stream_blocks: false"):
        block_reader(preset, backbone().transformer_layers[0])


def test_other_names_of_blocks_are_refused(copied):
    preset, path = copied

    def rename(layers):
        for name in list(layers):
            if "decoder_block" in name:
                layers.move(name, name.replace("decoder_block", "layer"))

    change(path, rename)
    with pytest.raises(InputError, match="names 0 of 18 blocks.*stream_blocks: false.*anew"):
        block_reader(preset, backbone().transformer_layers[0])


def test_a_file_that_lacks_a_block_is_refused(copied):
    preset, path = copied

    def drop(layers):
        del layers[next(name for name in layers if name.endswith("decoder_block_4"))]

    change(path, drop)
    with pytest.raises(InputError, match="names 17 of 18 blocks"):
        block_reader(preset, backbone().transformer_layers[0])


def datasets(group):
    """The weights in a group, by their place."""
    found = {}
    group.visititems(
        lambda name, one: found.update({name: one}) if isinstance(one, h5py.Dataset) else None
    )
    return found


def widen(block):
    place, weight = next(iter(datasets(block).items()))
    wider = np.zeros((*weight.shape[:-1], weight.shape[-1] + 1), "float32")
    del block[place]
    block[place] = wider


def drop(block):
    del block[next(iter(datasets(block)))]


@pytest.mark.parametrize("harm", [widen, drop])
def test_a_weight_of_another_shape_or_none_is_refused_with_its_block(copied, harm):
    preset, path = copied

    def harmed(layers):
        harm(layers[next(name for name in layers if name.endswith("decoder_block_4"))])

    change(path, harmed)
    read = block_reader(preset, backbone().transformer_layers[0])
    read(3)
    with pytest.raises(InputError, match="block 5 holds other weights.*stream_blocks: false"):
        read(4)


def test_half_precision_weights_are_read_as_float32(copied):
    preset, path = copied

    def halve(layers):
        block = layers[next(name for name in layers if name.endswith("decoder_block_4"))]
        for place, weight in datasets(block).items():
            half = weight[()].astype("float16")
            del block[place]
            block[place] = half

    change(path, halve)
    found = values(block_reader(preset, backbone().transformer_layers[0])(4))
    for one, other in zip(found, values(reader()(4)), strict=True):
        assert one.dtype == "float32"
        np.testing.assert_array_equal(one, other.astype("float16").astype("float32"))


def test_bfloat16_weights_are_read_as_float32(tmp_path):
    half = keras_hub.models.Backbone.from_preset(TINY.handle, num_layers=3, dtype="bfloat16")
    half.save_to_preset(str(tmp_path))
    preset = dataclasses.replace(TINY, handle=str(tmp_path), blocks=3)
    found = values(block_reader(preset, backbone().transformer_layers[0])(2))
    for one, variable in zip(found, half.transformer_layers[2].variables, strict=True):
        assert one.dtype == "float32"
        np.testing.assert_array_equal(one, np.asarray(variable.value).astype("float32"))


def test_kagglehub_gives_the_file_of_a_preset_that_is_far(monkeypatch, tmp_path):
    far = dataclasses.replace(TINY, name="gemma_far", handle="kaggle://keras/gemma/keras/gemma_far")
    asked = []

    def fetched(role, name, handle, file):
        asked.append((handle, file))
        return presets.BUILTIN_FOLDER / "tiny_gemma" / file

    monkeypatch.setattr(presets, "_from_kaggle", fetched)
    read = block_reader(far, backbone().transformer_layers[0])
    assert asked == [("keras/gemma/keras/gemma_far", WEIGHTS)]
    for one, other in zip(values(read(2)), values(reader()(2)), strict=True):
        np.testing.assert_array_equal(one, other)

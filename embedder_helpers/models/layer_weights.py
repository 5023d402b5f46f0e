"""A Gemma's weights, read from its preset's files one layer at a time.

So no more of a model is in memory than is computed with: no second copy, no random initialization,
and of the embedding table, which is mapped into memory, only the rows of tokens that occur.
"""

import gc
import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import h5py
import keras
import numpy as np

from embedder_helpers.errors import InputError, show
from embedder_helpers.models.decoder_layer import stored_shapes
from embedder_helpers.models.preset_files import hdf5_datasets, stored_dtype
from embedder_helpers.models.presets import Preset, from_preset, preset_file
from embedder_helpers.models.shapes import read_shape
from embedder_helpers.utils.json_files import read_json

logger = logging.getLogger(__name__)

WEIGHTS_FILE = "model.weights.h5"
SHARDS_FILE = "model.weights.json"  # which of several files holds a weight
SHARD_NAME = re.compile(r"\w+\.weights\.h5")
ROOTS = ("layers", "_layer_checkpoint_dependencies")  # the group of all layers; before Keras 3.3
FLOATS = ("bfloat16", "float16", "float32", "float64")
RANDOM_SEED = 33  # of random weights: one draw, which all experiments share
LAYER_NAME = re.compile(r"\w*decoder_block(?:_(\d+))?/")


class GemmaWeights(Protocol):
    """Where a Gemma's weights are.

    Attributes:
        shape: the model in keras-hub's terms, with its `class_name`.
        num_layers: number of layers that can be read.
        table: embeddings of all tokens, `(vocabulary, width)` in the stored dtype.
        final_norm: scale of the norm after the last layer, `(width,)`.
    """

    shape: dict[str, Any]
    num_layers: int
    table: np.ndarray
    final_norm: np.ndarray

    def read_layer(self, index: int) -> dict[str, np.ndarray]:
        """A layer's weights as they are stored, by path, as `decoder_layer.stored_shapes`."""


def open_weights(preset: Preset, num_layers: int, stream_blocks: bool) -> GemmaWeights:
    """Open a preset's weights, to be read one layer at a time.

    A preset that is not in Keras's format or has an unknown layout is loaded as a whole by
    keras-hub, unless layers are to be streamed.

    Args:
        preset: of a Gemma.
        num_layers: number of layers that will be read.
        stream_blocks: whether the model may be larger than the memory.

    Raises:
        InputError: layers cannot be streamed; the preset cannot be loaded.
    """
    weights = _open_stored_weights(preset, num_layers, stream_blocks)
    return RandomWeights(weights) if preset.random_weights else weights


def _open_stored_weights(preset: Preset, num_layers: int, stream_blocks: bool) -> GemmaWeights:
    if stream_blocks:
        return FileWeights(preset)
    if not preset.handle.startswith("hf://"):
        try:
            return FileWeights(preset)
        except InputError as error:
            logger.info("the whole model is loaded at once: %s", error)
    return BackboneWeights(preset, num_layers)


class FileWeights:
    """The weights of a preset in Keras's format; see `GemmaWeights`.

    Raises:
        InputError: the preset's weights are in another format or layout, incomplete or damaged.
    """

    def __init__(self, preset: Preset):
        self._preset = preset
        self._files = _dataset_files(preset)
        self.shape = read_shape("llm_preset", preset.handle)
        self.num_layers = preset.num_layers
        self._layers = self._layer_paths()
        width = preset.width
        self.table = self._map(self._only_one((self.shape["vocabulary_size"], width)))
        self.final_norm = self._read(self._only_one((width,))).astype("float32")

    def read_layer(self, index: int) -> dict[str, np.ndarray]:
        """A layer's weights as they are stored, by path."""
        return {name: self._read(path) for name, path in self._layers[index].items()}

    def _layer_paths(self) -> list[dict[str, str]]:
        """Each layer's datasets by the weights' names; checks that all exist in their shapes."""
        groups = {int(match[1] or 0): match[0] for path in self._files if (match := _layer(path))}
        if sorted(groups) != list(range(self._preset.num_layers)):
            reason = f"its files name {len(groups)} of {self._preset.num_layers} layers"
            raise _unreadable(self._preset, reason)
        layers, shapes = [], stored_shapes(self.shape)
        for number in range(len(groups)):
            paths = {name: f"{groups[number]}{name}/vars/0" for name in shapes}
            stored = {path for path in self._files if path.startswith(groups[number])}
            # Exactly these: a quantized layer has further ones, and a model of other options.
            is_known = stored == set(paths.values())
            if not is_known or any(self._files[paths[n]][1] != shapes[n] for n in shapes):
                raise _unreadable(self._preset, f"layer {number + 1} holds other weights")
            layers.append(paths)
        return layers

    def _only_one(self, shape: tuple[int, ...]) -> str:
        """The path of the one dataset of a shape that is in no layer."""
        paths = [path for path, (_, s) in self._files.items() if s == shape and not _layer(path)]
        if len(paths) != 1:
            reason = f"{len(paths)} weights outside its layers have the shape {shape}"
            raise _unreadable(self._preset, reason)
        return paths[0]

    def _read(self, path: str) -> np.ndarray:
        try:
            with h5py.File(self._files[path][0]) as file:
                dataset = _root(file)[path]
                return dataset[()].view(stored_dtype(dataset))
        except (OSError, KeyError):
            raise _unreadable(self._preset, f"{path} is damaged") from None

    def _map(self, path: str) -> np.ndarray:
        """A dataset mapped into memory; read, if it is compressed or in chunks."""
        with h5py.File(self._files[path][0]) as file:
            dataset = _root(file)[path]
            offset, dtype = dataset.id.get_offset(), stored_dtype(dataset)
        if offset is None:
            return self._read(path)
        try:
            return np.memmap(self._files[path][0], dtype, "r", offset, self._files[path][1])
        except ValueError:  # beyond the end of the file
            raise _unreadable(self._preset, f"{path} is damaged") from None


class BackboneWeights:
    """The weights of a preset that keras-hub loads, or converts, as a whole; see `GemmaWeights`.

    They stay in the host's memory in float32.

    Raises:
        InputError: the preset cannot be loaded.
    """

    def __init__(self, preset: Preset, num_layers: int):
        import keras_hub

        with keras.device("cpu:0"):  # it is only read from
            backbone = from_preset(
                keras_hub.models.Backbone,
                "llm_preset",
                preset,
                num_layers=num_layers,
                dtype="float32",
            )
        self.num_layers = num_layers
        self.shape = {"class_name": type(backbone).__name__, **backbone.get_config()}
        self.table = keras.ops.convert_to_numpy(backbone.token_embedding.embeddings)
        self.final_norm = keras.ops.convert_to_numpy(backbone.layer_norm.scale)
        self._layers = [
            {path: keras.ops.convert_to_numpy(variable) for path, variable in _variables(layer)}
            for layer in backbone.transformer_layers
        ]
        del backbone
        gc.collect()  # Keras models hold reference cycles

    def read_layer(self, index: int) -> dict[str, np.ndarray]:
        """A layer's weights by path."""
        return self._layers[index]


class RandomWeights:
    """Random weights in place of a Gemma's; see `GemmaWeights`.

    Each array is replaced by normal draws of its own mean and standard deviation, the same ones at
    every reading: what is left of the model is its shape, and the scale of its weights.

    Args:
        weights: those to replace.
    """

    def __init__(self, weights: GemmaWeights):
        self._weights = weights
        self.shape, self.num_layers = weights.shape, weights.num_layers
        self.table = RandomTable(weights.table)
        self.final_norm = _draw_like(weights.final_norm, (RANDOM_SEED,))

    def read_layer(self, index: int) -> dict[str, np.ndarray]:
        """A layer's random weights by path."""
        stored = sorted(self._weights.read_layer(index).items())
        return {
            name: _draw_like(array, (RANDOM_SEED, index + 1, number))
            for number, (name, array) in enumerate(stored)
        }


class RandomTable:
    """A random embedding for each token, drawn when it is read: few of a vocabulary occur.

    Args:
        table: `(vocabulary, width)` embeddings to replace.
    """

    def __init__(self, table: np.ndarray):
        self.shape = table.shape
        rows = np.linspace(0, len(table) - 1, min(len(table), 4096)).astype(int)  # enough to tell
        sample = table[rows].astype("float32")
        self._mean, self._deviation = sample.mean(), sample.std()

    def __getitem__(self, tokens: np.ndarray) -> np.ndarray:
        """Embeddings `(…, width)` float32 of token ids."""
        distinct, places = np.unique(tokens, return_inverse=True)
        draws = [
            np.random.default_rng((RANDOM_SEED, 0, token)).standard_normal(self.shape[1], "float32")
            for token in distinct.tolist()
        ]
        values = self._mean + self._deviation * np.stack(draws)
        return values[places].reshape(*np.shape(tokens), -1)


def _draw_like(array: np.ndarray, seed: tuple[int, ...]) -> np.ndarray:
    """Normal draws of an array's shape, mean and standard deviation, in float32."""
    values = np.asarray(array, "float32")
    draws = np.random.default_rng(seed).standard_normal(values.shape, "float32")
    return values.mean() + values.std() * draws


def _dataset_files(preset: Preset) -> dict[str, tuple[Path, tuple[int, ...]]]:
    """The file and the shape of each weight, by its path below the group of layers.

    Whole numbers, the states of Keras's random generators, are left out.
    """
    datasets: dict[str, tuple[Path, tuple[int, ...]]] = {}
    for path in _weight_files(preset):
        try:
            with h5py.File(path) as file:
                for name, dataset in hdf5_datasets(file).items():
                    root, _, rest = name.partition("/")
                    if root in ROOTS and stored_dtype(dataset).name in FLOATS:
                        datasets[rest] = path, dataset.shape
        except (OSError, KeyError, RuntimeError):
            raise _unreadable(preset, f"{path.name} is damaged or has an older layout") from None
    return datasets


def _weight_files(preset: Preset) -> list[Path]:
    try:
        return [preset_file("llm_preset", preset, WEIGHTS_FILE)]
    except InputError as error:
        try:
            index = read_json(preset_file("llm_preset", preset, SHARDS_FILE))
            names = {name for names in index["weight_map"].values() for name in _as_list(names)}
            is_valid = all(SHARD_NAME.fullmatch(name) for name in names)
        except (InputError, OSError, ValueError, KeyError, TypeError, AttributeError):
            raise error from None
    if not is_valid:  # perhaps a file outside of the preset
        raise _unreadable(preset, f"{SHARDS_FILE} names something else than its files of weights")
    return [preset_file("llm_preset", preset, name) for name in sorted(names)]


def _as_list(names: str | list[str]) -> list[str]:
    return [names] if isinstance(names, str) else names


def _root(file: h5py.File) -> h5py.Group:
    return next(file[root] for root in ROOTS if root in file)


def _layer(path: str) -> re.Match | None:
    """The decoder layer that a dataset belongs to: `…_block`, `…_block_1`, …"""
    return LAYER_NAME.match(path)


def _variables(layer: keras.layers.Layer, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The weight of each sublayer of a decoder layer, by its path in files that Keras writes."""
    children = vars(layer) | vars(layer).get("_modules", {})  # where torch keeps them
    for name, child in children.items():
        if isinstance(child, keras.layers.Layer):
            own: dict[str, Any] = {}
            child.save_own_variables(own)
            if len(own) > 1:
                raise InputError("the preset of Gemma is quantized: use the one it was made from")
            yield from ((f"{prefix}{name}", variable) for variable in own.values())
            yield from _variables(child, f"{prefix}{name}/")


def _unreadable(preset: Preset, reason: str) -> InputError:
    return InputError(
        f"single layers of llm_preset {show(preset.name)} cannot be read ({reason}): set "
        "stream_blocks: false, or save the preset again with this keras-hub's save_to_preset"
    )

"""Weights of single decoder layers, read from a Keras preset's file when they are needed.

For models that are larger than the memory: at most one layer is held at a time.
"""

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import keras
import ml_dtypes
import numpy as np
from keras import ops

from embedder_helpers.config import InputError
from embedder_helpers.models.presets import Preset, preset_file

WEIGHTS_FILE = "model.weights.h5"


def check_streamable(preset: Preset) -> None:
    """Check, before anything is loaded, that a preset's layers can be read one by one.

    Raises:
        InputError: the preset is not in Keras's format with all weights in one file.
    """
    _layer_groups(preset)


def layer_reader(preset: Preset, layer: keras.layers.Layer) -> Callable[[int], list[Any]]:
    """A function that reads a layer's weights as float32, in the order of its variables.

    Args:
        preset: a preset that `check_streamable` accepts.
        layer: any decoder layer of the model, for the order and the shapes of the weights.

    Returns:
        A function of the layer's index, from 0; it raises InputError where the file holds other
        weights than expected.

    Raises:
        InputError: see `check_streamable`.
    """
    file_path, groups = _layer_groups(preset)
    names = {id(variable): name for name, variable in _variable_paths(layer)}
    order = [names[id(variable)] for variable in layer.variables]
    shapes = [tuple(variable.shape) for variable in layer.variables]

    def read(index: int) -> list[Any]:
        with h5py.File(file_path) as file:
            group = file["layers"][groups[index]]
            weights = [_read_float32(group[name]) if name in group else None for name in order]
        if [getattr(weight, "shape", None) for weight in weights] != shapes:
            raise _unreadable(preset, f"layer {index + 1} holds other weights than expected")
        return [ops.convert_to_tensor(weight) for weight in weights]

    return read


def _read_float32(dataset: h5py.Dataset) -> np.ndarray:
    """A weight's values; Keras stores bfloat16 as two bytes, a type that HDF5 has no name for."""
    values = dataset[()]
    if dataset.attrs.get("dtype") == "bfloat16":
        values = values.view(ml_dtypes.bfloat16)
    return values.astype("float32")


def _layer_groups(preset: Preset) -> tuple[Path, list[str]]:
    """The file, and its groups of the decoder layers in order: `…_block`, `…_block_1`, …"""
    path = preset_file("llm_preset", preset, WEIGHTS_FILE)
    try:
        with h5py.File(path) as file:
            names = [re.fullmatch(r"\w*decoder_block(?:_(\d+))?", name) for name in file["layers"]]
    except (OSError, KeyError):
        raise _unreadable(preset, f"{path.name} is damaged or has an older layout") from None
    numbered = {int(match[1] or 0): match[0] for match in names if match}
    if sorted(numbered) != list(range(preset.num_layers)):
        reason = f"{path.name} names {len(numbered)} of {preset.num_layers} layers"
        raise _unreadable(preset, reason)
    return path, [numbered[number] for number in range(preset.num_layers)]


def _variable_paths(layer: keras.layers.Layer, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Each variable of a layer and its sublayers, with its path in files that Keras writes."""
    own: dict[str, Any] = {}
    layer.save_own_variables(own)
    yield from ((f"{prefix}vars/{number}", variable) for number, variable in own.items())
    for name, child in vars(layer).items():
        if isinstance(child, keras.layers.Layer):
            yield from _variable_paths(child, f"{prefix}{name}/")


def _unreadable(preset: Preset, reason: str) -> InputError:
    return InputError(
        f"stream_blocks cannot read single layers of {preset.name!r} ({reason}): set "
        "stream_blocks: false, or save the preset again with this keras-hub's save_to_preset"
    )

"""Weights of single blocks, read from a Keras preset's file when they are needed.

For models larger than the device: no more than one block of them is in memory at a time.
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
from embedder_helpers.presets import Preset, preset_file

WEIGHTS = "model.weights.h5"


def check_streamable(preset: Preset) -> None:
    """Tells, before anything is loaded, a preset whose blocks cannot be read one by one.

    Raises:
        InputError: it is not in Keras's format, with its weights in one file.
    """
    _block_groups(preset)


def block_reader(preset: Preset, block: keras.layers.Layer) -> Callable[[int], list[Any]]:
    """A function that reads a block's weights as float32, in the order of the layer's variables.

    Args:
        preset: one that `check_streamable` accepts.
        block: any block of the model, for the order and the shapes.

    Raises:
        InputError: a block does not hold these weights.
    """
    path, groups = _block_groups(preset)
    places = {id(variable): place for place, variable in _places(block)}
    order = [places[id(variable)] for variable in block.variables]
    shapes = [tuple(variable.shape) for variable in block.variables]

    def read(index: int) -> list[Any]:
        with h5py.File(path) as file:
            found = file["layers"][groups[index]]
            weights = [_float32(found[place]) if place in found else None for place in order]
        if [getattr(weight, "shape", None) for weight in weights] != shapes:
            raise _unreadable(preset, f"block {index + 1} holds other weights than expected")
        return [ops.convert_to_tensor(weight) for weight in weights]

    return read


def _float32(dataset: h5py.Dataset) -> np.ndarray:
    """Values; Keras stores bfloat16 as two bytes that HDF5 has no name for."""
    values = dataset[()]
    if dataset.attrs.get("dtype") == "bfloat16":
        values = values.view(ml_dtypes.bfloat16)
    return values.astype("float32")


def _block_groups(preset: Preset) -> tuple[Path, list[str]]:
    """The file, and the names of the blocks in it from the bottom up: `…_block`, `…_block_1`, …"""
    path = preset_file("llm_preset", preset, WEIGHTS)
    try:
        with h5py.File(path) as file:
            names = [re.fullmatch(r"\w*decoder_block(?:_(\d+))?", name) for name in file["layers"]]
    except (OSError, KeyError):
        raise _unreadable(preset, f"{path.name} is damaged or of an older layout") from None
    numbered = {int(match[1] or 0): match[0] for match in names if match}
    if sorted(numbered) != list(range(preset.blocks)):
        raise _unreadable(preset, f"{path.name} names {len(numbered)} of {preset.blocks} blocks")
    return path, [numbered[number] for number in range(preset.blocks)]


def _places(layer: keras.layers.Layer, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Each variable of a layer and its sublayers, with its place as Keras's files spell it."""
    own: dict[str, Any] = {}
    layer.save_own_variables(own)
    yield from ((f"{prefix}vars/{number}", variable) for number, variable in own.items())
    for name, child in vars(layer).items():
        if isinstance(child, keras.layers.Layer):
            yield from _places(child, f"{prefix}{name}/")


def _unreadable(preset: Preset, reason: str) -> InputError:
    return InputError(
        f"stream_blocks cannot read single blocks of {preset.name!r} ({reason}): set "
        "stream_blocks: false, or save the preset anew with this keras-hub's save_to_preset"
    )

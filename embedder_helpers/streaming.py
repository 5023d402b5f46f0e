"""Weights of single blocks, read from a Keras preset's file when they are needed.

For models larger than the device: no more than one block of them is in memory at a time.
"""

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import keras
from keras import ops

from embedder_helpers.config import InputError
from embedder_helpers.presets import Preset, preset_file

WEIGHTS = "model.weights.h5"


def block_reader(preset: Preset, block: keras.layers.Layer) -> Callable[[int], list[Any]]:
    """A function that reads a block's weights, in the order of the layer's variables.

    Args:
        preset: in Keras's format, with its weights in one file.
        block: any block of the model, for the order and the shapes.

    Raises:
        InputError: the preset is of another format.
    """
    path = preset_file("llm_preset", preset, WEIGHTS)
    places = {id(variable): place for place, variable in _places(block)}
    order = [places[id(variable)] for variable in block.variables]
    shapes = [tuple(variable.shape) for variable in block.variables]
    groups = _block_groups(path, preset)

    def read(index: int) -> list[Any]:
        with h5py.File(path) as file:
            found = file["layers"][groups[index]]
            weights = [found[place][()] if place in found else None for place in order]
        if [getattr(weight, "shape", None) for weight in weights] != shapes:
            raise _unreadable(preset, f"block {index + 1} holds other weights than expected")
        return [ops.convert_to_tensor(weight, "float32") for weight in weights]

    return read


def _block_groups(path: Path, preset: Preset) -> list[str]:
    """The names of the blocks in the file, from the bottom up: `…_block`, `…_block_1`, …"""
    with h5py.File(path) as file:
        names = [re.fullmatch(r"\w*decoder_block(?:_(\d+))?", name) for name in file["layers"]]
    numbered = {int(match[1] or 0): match[0] for match in names if match}
    if sorted(numbered) != list(range(preset.blocks)):
        raise _unreadable(preset, f"{path.name} names {len(numbered)} of {preset.blocks} blocks")
    return [numbered[number] for number in range(preset.blocks)]


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

"""Write a Keras preset of Gemma 2B's shape with random weights, to measure memory and speed on.

usage: python benchmarks/gemma_2b_shape.py FOLDER [--layers N]

The folder holds what keras-hub's `save_to_preset` writes, with weights in bfloat16: 5.0 GB for all
18 layers. Weights are written a few megabytes at a time, so this needs little memory. The tokenizer
is that of the built-in `tiny_gemma`, whose ids are below 4096; the hidden states mean nothing.
"""

import argparse
import json
import math
import sys
import tempfile
import zlib
from pathlib import Path

import h5py
import ml_dtypes
import numpy as np
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from embedder_helpers.builtin import BUILTIN_FOLDER
from embedder_helpers.models.shapes import KNOWN_SHAPES

SHAPE = KNOWN_SHAPES["gemma_2b_en"]
# A small model, whose file is the pattern. No two axes of its weights have the same length for
# different reasons, so that each length stands for one of the real shape.
PATTERN = {
    "vocabulary_size": 7, "num_query_heads": 2, "num_key_value_heads": 1, "hidden_dim": 3,
    "intermediate_dim": 10, "head_dim": 4,
}  # fmt: skip
STD = 0.02  # of all weights
WEIGHTS_AT_ONCE = 1 << 22


def main() -> None:
    """Write the preset that the command line asks for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, metavar="FOLDER")
    parser.add_argument("--layers", type=int, default=SHAPE["num_layers"])
    options = parser.parse_args()
    if options.folder.exists():
        parser.error(f"{options.folder} exists: delete it, or choose another folder")
    write_preset(options.folder, SHAPE | {"num_layers": options.layers})


def write_preset(folder: Path, shape: dict) -> None:
    """Write a preset elsewhere first, then rename it, so that it is complete or does not exist.

    Args:
        folder: folder of the preset, which must not exist.
        shape: arguments of keras-hub's GemmaBackbone: those of `PATTERN`, and `num_layers`.
    """
    import keras_hub

    folder = folder.resolve()
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(suffix=".part", dir=folder.parent) as part:
        preset = Path(part) / folder.name
        small = PATTERN | {"num_layers": shape["num_layers"]}
        keras_hub.models.GemmaBackbone(**small, dtype="bfloat16").save_to_preset(str(preset))
        tokenizer = keras_hub.models.Tokenizer.from_preset(str(BUILTIN_FOLDER / "tiny_gemma"))
        tokenizer.save_to_preset(str(preset))
        dimensions = {name: shape[name] for name in PATTERN}
        count = enlarge_weights(preset / "model.weights.h5", dimensions)
        edit_json(preset / "config.json", lambda config: config["config"].update(dimensions))
        edit_json(preset / "metadata.json", lambda data: data.update(parameter_count=count))
        preset.rename(folder)


def enlarge_weights(path: Path, dimensions: dict[str, int]) -> int:
    """Replace the weights of a file of `PATTERN`'s shape by random ones of another shape.

    Args:
        path: file that Keras wrote.
        dimensions: the new shape.

    Returns:
        The number of weights.
    """
    lengths = {PATTERN[name]: length for name, length in dimensions.items()}
    # keras-hub's intermediate_dim is that of gate and value together.
    lengths[PATTERN["intermediate_dim"] // 2] = dimensions["intermediate_dim"] // 2
    with h5py.File(path, "r+") as file:
        names: list[str] = []
        file.visititems(lambda name, item: names.append(name) if hasattr(item, "shape") else None)
        shapes = {name: [lengths[length] for length in file[name].shape] for name in names}
        count = sum(map(math.prod, shapes.values()))
        with tqdm(total=2 * count, desc=path.name, unit="B", unit_scale=True) as bar:
            for name, shape in shapes.items():
                del file[name]
                # Keras writes bfloat16 as two bytes, a type that HDF5 has no name for.
                dataset = file.create_dataset(name, shape, ml_dtypes.bfloat16)
                dataset.attrs["dtype"] = "bfloat16"
                for rows, values in random_parts(name, shape):
                    dataset[rows] = values
                    bar.update(values.nbytes)
    return count


def random_parts(name: str, shape: list[int]):
    """A weight's random values, some rows at a time: a slice of its first axis, and the values.

    The seed is the weight's name, so that presets of fewer layers have the same first layers.
    """
    generator = np.random.default_rng(zlib.crc32(name.encode()))
    rows = max(1, WEIGHTS_AT_ONCE // math.prod(shape[1:]))
    for start in range(0, shape[0], rows):
        part = slice(start, min(start + rows, shape[0]))
        values = generator.standard_normal((part.stop - part.start, *shape[1:]), "float32")
        yield part, (STD * values).astype(ml_dtypes.bfloat16)


def edit_json(path: Path, edit) -> None:
    """Change the content of a JSON file in place."""
    content = json.loads(path.read_text(encoding="utf-8"))
    edit(content)
    path.write_text(json.dumps(content, indent=4), encoding="utf-8")


if __name__ == "__main__":
    main()

"""Speed of Gemma's forward pass, relative to the CPU's peak, PyTorch and the original method.

usage: python benchmarks/forward_pass.py --llm presets/gemma3_270m \
           --data data/amazon_counterfactual [--texts 512] [--before CHECKOUT] \
           [--torch-python PYTHON --torch-model FOLDER]

CHECKOUT: the folder of an earlier version of this project. PYTHON: an interpreter with torch and
transformers. FOLDER: the same Gemma in Hugging Face's format (config.json, model.safetensors).
"""

import sys
import tempfile
from pathlib import Path

import h5py
import numpy as np
from side_by_side import (
    Peer,
    alternate,
    load_texts,
    matmul_flops,
    padding_fraction,
    parse_options,
    print_table,
    rate,
    ratio,
    timed,
)

from embedder_helpers.models.batching import sorted_batches
from embedder_helpers.models.gemma import CPU_TOKENS, Gemma, HiddenStateSpec
from embedder_helpers.models.hidden_states import HiddenStateCache
from embedder_helpers.models.presets import find_preset, from_preset, preset_file

EPOCHS = 3
SLICE = 32  # texts that the original method is measured on: one batch


def main() -> None:
    """Measure and print."""
    options = parse_options(__doc__, "llm", texts=512)
    preset = find_preset("llm_preset", options.llm)
    gemma = Gemma(preset)
    all_ids, _ = gemma.tokenize(load_texts(options.data), 512)
    ids, longest = all_ids.select(range(options.texts)), int(all_ids.lengths.max())
    print(
        f"{preset.name}, {preset.num_layers} layers; {options.texts} texts of {options.data}, "
        f"{ids.lengths.sum()} tokens; the longest of all texts has {longest}"
    )
    # One model per dtype, which stays loaded; a sweep unloads its own.
    loaded = {dtype: Gemma(preset, dtype=dtype) for dtype in ("float32", "bfloat16")}
    shapes = product_shapes(preset)
    flops = 2 * sum(map(np.prod, shapes)) * preset.num_layers * int(ids.lengths.sum())
    seconds = measure(options, gemma, loaded, ids, longest, shapes, flops)
    rows = sweep_rows(options, gemma, ids, longest, seconds)
    for dtype, one in loaded.items():
        rows += dtype_rows(dtype, one, ids, flops, seconds)
    print_table(rows + comparison_rows(seconds))


def measure(options, gemma, loaded, ids, longest, shapes, flops) -> dict[str, list[float]]:
    """Seconds of every run; of `peak`, those that `flops` take at the peak of matrix products."""
    last = [HiddenStateSpec(gemma.preset.num_layers, "rms")]
    tokens = int(ids.lengths.sum())
    runs = {
        "sweep": timed(lambda: sweep(gemma, ids)),
        "original": original_method(gemma.preset, ids, longest),
    }
    for dtype, one in loaded.items():
        runs[f"forward {dtype}"] = timed(lambda one=one: list(one.forward_layers(ids, last)))
        runs[f"peak {dtype}"] = peak_run(dtype, flops)
        runs[f"products {dtype}"] = layer_products(dtype, shapes, gemma.preset, tokens)
        if options.torch_python:
            runs[f"torch {dtype}"] = torch_peer(options, ids, dtype)
    if options.before:
        runs["before"] = earlier_peer(options, ids)
    return alternate(**runs)


def sweep_rows(options, gemma, ids, longest, seconds) -> list[tuple[str, str]]:
    """Quantities and values of a sweep over all cutoffs."""
    layers, tokens = gemma.preset.num_layers, int(ids.lengths.sum())
    passes = gemma.layer_passes / len(ids) / (1 + len(seconds["sweep"]))
    # The original method repeats a text's forward pass for every cutoff and epoch.
    original = [one * options.texts / SLICE * layers * EPOCHS for one in seconds["original"]]
    return [
        ("texts, and their tokens", f"{len(ids)}, {tokens}"),
        (f"layers that a text passes in an {layers}-cutoff sweep (counted)", f"{passes:g}"),
        (
            f"Gemma's part of an {layers}-cutoff hybrid sweep, {EPOCHS} epochs, in {gemma.dtype}: "
            f"speed relative to the original method (float32, all {layers} layers, padded to the "
            f"longest text, {longest} tokens, in every epoch and for every cutoff; measured on "
            f"{SLICE} texts)",
            ratio(original, seconds["sweep"]),
        ),
        (
            f"useful tokens per second of that sweep, all {layers} cutoffs normalized, checked and "
            "written, loading of the weights included",
            rate(tokens, seconds["sweep"]),
        ),
    ]


def dtype_rows(dtype, gemma, ids, flops, seconds) -> list[tuple[str, str]]:
    """Quantities and values of the forward pass in one dtype."""
    tokens, peak = int(ids.lengths.sum()), seconds[f"peak {dtype}"]
    forward = seconds[f"forward {dtype}"]
    computed = sum(length * texts for _, length, texts in gemma._batches(ids.lengths, 1, None))
    return [
        (f"{dtype}: useful tokens per second, last layer only", rate(tokens, forward)),
        (f"{dtype}: padding, fraction of the tokens computed", padding_fraction(tokens, computed)),
        (f"{dtype}: peak of matrix products, GFLOP per second", rate(flops / 1e9, peak)),
        (
            f"{dtype}: model FLOPs utilization, padding not counted: fraction of that peak",
            ratio(peak, forward),
        ),
        (
            f"{dtype}: the layers' products alone, without padding, attention and norms: fraction "
            "of that peak",
            ratio(peak, seconds[f"products {dtype}"]),
        ),
    ]


def comparison_rows(seconds) -> list[tuple[str, str]]:
    """Speeds relative to one another."""
    single, half = seconds["forward float32"], seconds["forward bfloat16"]
    rows = [("speed in bfloat16 relative to float32", ratio(single, half))]
    if "before" in seconds:
        rows += [
            ("speed in bfloat16 relative to the earlier version", ratio(seconds["before"], half)),
            ("speed in float32 relative to the earlier version", ratio(seconds["before"], single)),
        ]
    if "torch float32" in seconds:
        torch_single, torch_half = seconds["torch float32"], seconds["torch bfloat16"]
        rows += [
            ("speed in float32 relative to transformers (torch)", ratio(torch_single, single)),
            ("speed in bfloat16 relative to transformers (torch)", ratio(torch_half, half)),
            ("torch's speed in bfloat16 relative to float32", ratio(torch_single, torch_half)),
        ]
    return rows


def sweep(gemma, ids) -> None:
    """Compute hidden states after every layer, normalize, check and write them."""
    specs = [HiddenStateSpec(k, "rms") for k in range(1, gemma.preset.num_layers + 1)]
    with tempfile.TemporaryDirectory() as folder:
        every_text = {spec: np.ones(len(ids), bool) for spec in specs}
        HiddenStateCache(folder).compute_missing(gemma, ids, every_text)


def product_shapes(preset) -> list[tuple[int, ...]]:
    """Shapes of the weights that a token is multiplied with in a layer."""
    shapes = []

    def record(name, item):
        if isinstance(item, h5py.Dataset) and item.ndim > 1:
            shapes.append(item.shape)

    with h5py.File(preset_file("llm_preset", preset, "model.weights.h5")) as file:
        layer = next(name for name in file["layers"] if name.endswith("decoder_block"))
        file["layers"][layer].visititems(record)
    return shapes


def peak_run(dtype: str, flops: float):
    """A run that returns the seconds that `flops` take at the peak of matrix products."""
    peak = matmul_flops(dtype)
    return lambda: flops / peak()


def layer_products(dtype: str, shapes, preset, tokens: int):
    """A run of the layers' matrix products only, scaled from one full batch to all tokens.

    The time of a forward pass without attention scores, norms, activations and padding.
    """
    import tensorflow as tf

    width = preset.width
    weights = [tf.cast(tf.random.normal((width, int(np.prod(s)) // width)), dtype) for s in shapes]
    states = tf.cast(tf.random.normal((CPU_TOKENS, width)), dtype)
    # As in the forward pass: XLA for float32, TensorFlow's kernels for half precision.
    product = tf.function(
        lambda states: sum(tf.reduce_max(states @ weight) for weight in weights),
        jit_compile=dtype == "float32",
    )

    def run() -> None:
        for _ in range(preset.num_layers):
            product(states).numpy()

    batch = timed(run)
    return lambda: batch() * tokens / CPU_TOKENS


def original_method(preset, ids, longest):
    """keras-hub's complete model, compiled as Keras does, on a batch padded to the longest text."""
    import keras_hub

    backbone = from_preset(keras_hub.models.Backbone, "llm_preset", preset, dtype="float32")
    tokens, mask = ids.pad(range(SLICE), longest, SLICE)
    inputs = {"token_ids": tokens, "padding_mask": mask}
    return timed(lambda: backbone.predict_on_batch(inputs))


def torch_peer(options, ids, dtype: str):
    """Hugging Face's model on the same texts, with as little padding as can be."""
    arrays = {}
    for i, (rows, length, texts) in enumerate(sorted_batches(ids.lengths, CPU_TOKENS)):
        arrays[f"ids{i}"], arrays[f"mask{i}"] = ids.pad(rows, length, texts)
    script = Path(__file__).parent / "torch_peer.py"
    batches = save_arrays(arrays)
    return Peer(options.torch_python, script, "encode", options.torch_model, batches, dtype)


def earlier_peer(options, ids):
    """The forward pass of an earlier checkout on the same texts."""
    values = np.concatenate([ids.text(row) for row in range(len(ids))])
    file = save_arrays({"values": values, "lengths": ids.lengths})
    script = Path(__file__).parent / "gemma_peer.py"
    return Peer(sys.executable, script, options.llm, file, checkout=options.before)


def save_arrays(arrays) -> Path:
    """The path of a temporary file with the arrays, for another process."""
    path = Path(tempfile.mkdtemp()) / "arrays.npz"
    np.savez(path, **arrays)
    return path


if __name__ == "__main__":
    main()

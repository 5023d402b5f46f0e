"""Speed of Gemma's forward pass, relative to the CPU's peak, PyTorch and the original method.

usage: python benchmarks/forward_pass.py --llm presets/gemma3_270m \
           --data data/amazon_counterfactual [--texts 512] \
           [--torch-python PYTHON --torch-model FOLDER]
"""

import tempfile
from pathlib import Path

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

from embedder_helpers.models.batching import inference_batches
from embedder_helpers.models.gemma import CPU_TOKENS, Gemma, HiddenStateSpec
from embedder_helpers.models.hidden_states import HiddenStateCache
from embedder_helpers.models.presets import find_preset, from_preset

EPOCHS = 3
SLICE = 32  # texts that the original method is measured on: one batch


def main() -> None:
    """Measure and print."""
    options = parse_options(__doc__, "llm", texts=512)
    preset = find_preset("llm_preset", options.llm)
    gemma, loaded = Gemma(preset), Gemma(preset)  # a sweep unloads the weights
    all_ids, _ = gemma.tokenize(load_texts(options.data), 512)
    ids, longest = all_ids.select(range(options.texts)), int(all_ids.lengths.max())
    tokens = int(ids.lengths.sum())
    print(
        f"{preset.name}, {preset.num_layers} layers; {options.texts} texts of {options.data}, "
        f"{tokens} tokens; the longest of all texts has {longest}"
    )
    flops = 2 * layer_weights(loaded) * preset.num_layers * tokens
    seconds = measure(options, gemma, loaded, ids, longest, flops)
    print_table(figures(options.texts, gemma, ids, longest, flops, seconds))


def measure(options, gemma, loaded, ids, longest, flops) -> dict[str, list[float]]:
    """Seconds of every run; of `peak`, those that `flops` take at the peak of matrix products."""
    last = [HiddenStateSpec(gemma.preset.num_layers, "rms")]
    peak = matmul_flops()
    runs = {
        "forward": timed(lambda: list(loaded.forward_layers(ids, last))),
        "sweep": timed(lambda: sweep(gemma, ids)),
        "original": original_method(gemma.preset, ids, longest),
        "peak": lambda: flops / peak(),
        "products": layer_products(loaded, int(ids.lengths.sum())),
    }
    if options.torch_python:
        runs["torch"] = torch_peer(options, ids)
    return alternate(**runs)


def figures(count, gemma, ids, longest, flops, seconds) -> list[tuple[str, str]]:
    """Quantities and values."""
    layers, tokens = gemma.preset.num_layers, int(ids.lengths.sum())
    passes = gemma.layer_passes / len(ids) / (1 + len(seconds["sweep"]))
    # The original method repeats a text's forward pass for every cutoff and epoch.
    original = [one * count / SLICE * layers * EPOCHS for one in seconds["original"]]
    computed = sum(
        length * texts for _, length, texts in inference_batches(ids.lengths, CPU_TOKENS)
    )
    rows = [
        (f"layers that a text passes in an {layers}-cutoff sweep (counted)", f"{passes:g}"),
        (
            f"Gemma's part of an {layers}-cutoff hybrid sweep, {EPOCHS} epochs: speed relative to "
            f"the original method (all {layers} layers, padded to the longest text, {longest} "
            f"tokens, in every epoch and for every cutoff; measured on {SLICE} texts)",
            ratio(original, seconds["sweep"]),
        ),
        ("peak of matrix products, GFLOP per second", rate(flops / 1e9, seconds["peak"])),
        (
            "model FLOPs utilization, padding not counted: fraction of that peak",
            ratio(seconds["peak"], seconds["forward"]),
        ),
        ("padding, fraction of the tokens computed", padding_fraction(tokens, computed)),
        (
            "the layers' products alone, without padding, attention and norms: fraction of the "
            "peak",
            ratio(seconds["peak"], seconds["products"]),
        ),
        (
            "useful tokens per second, hidden states of the last layer only",
            rate(tokens, seconds["forward"]),
        ),
        (
            f"the same, all {layers} cutoffs normalized, checked and written, loading of the "
            "weights included",
            rate(tokens, seconds["sweep"]),
        ),
    ]
    if "torch" in seconds:
        speed = ratio(seconds["torch"], seconds["forward"])
        rows.append(("speed relative to transformers (torch), same batches", speed))
    return rows


def sweep(gemma, ids) -> None:
    """Compute hidden states after every layer, normalize, check and write them."""
    specs = [HiddenStateSpec(k, "rms") for k in range(1, gemma.preset.num_layers + 1)]
    with tempfile.TemporaryDirectory() as folder:
        every_text = {spec: np.ones(len(ids), bool) for spec in specs}
        HiddenStateCache(folder).compute_missing(gemma, ids, every_text)


def layer_weights(gemma: Gemma) -> int:
    """The number of weights that a token is multiplied with in a layer."""
    gemma._load(gemma.preset.num_layers)
    return int(sum(np.prod(weight.shape) for weight in gemma._weights(0) if len(weight.shape) > 1))


def layer_products(gemma: Gemma, tokens: int):
    """A run of the layers' matrix products only, scaled from one full batch to all tokens.

    The time of a forward pass without attention scores, norms, activations and padding.
    """
    import tensorflow as tf

    width = gemma.preset.width
    weights = [tf.reshape(one, (width, -1)) for one in gemma._weights(0) if len(one.shape) > 1]
    states = tf.random.normal((CPU_TOKENS, width))
    product = tf.function(
        lambda states: sum(tf.reduce_sum(states @ weight) for weight in weights), jit_compile=True
    )

    def run() -> None:
        for _ in range(gemma.preset.num_layers):
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


def torch_peer(options, ids):
    """Hugging Face's model on the same batches, padded to their longest text."""
    arrays = {}
    for i, (rows, _, _) in enumerate(inference_batches(ids.lengths, CPU_TOKENS)):
        arrays[f"ids{i}"], arrays[f"mask{i}"] = ids.pad(
            rows, int(ids.lengths[rows].max()), len(rows)
        )
    path = Path(tempfile.mkdtemp()) / "batches.npz"
    np.savez(path, **arrays)
    script = Path(__file__).parent / "torch_peer.py"
    return Peer(options.torch_python, script, "encode", options.torch_model, path)


if __name__ == "__main__":
    main()

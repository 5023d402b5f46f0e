"""The walk through Gemma: its speed beside the machine's peak, torch and the original study's way.

usage: python benchmarks/walk.py --llm presets/gemma3_270m --data data/amazon_counterfactual \
           [--torch-python PYTHON --torch-model FOLDER] [--texts 512]
"""

import tempfile
from pathlib import Path

import numpy as np
from side_by_side import Peer, alternate, matmul_flops, options, print_table, ratio, texts, timed

from embedder_helpers import gemma as gemma_module
from embedder_helpers.gemma import Depth, Gemma
from embedder_helpers.presets import find_preset, load_preset
from embedder_helpers.states import Store
from embedder_helpers.tokens import inference_batches

EPOCHS = 3


def main() -> None:
    """Prints the figures."""
    asked = options(__doc__, "llm", texts=512)
    preset = find_preset("llm_preset", asked.llm)
    gemma, loaded = Gemma(preset), Gemma(preset)  # a sweep lets go of the weights it loaded
    everything, _ = gemma.tokenise(texts(asked.data), 512)
    ids, longest = everything.select(range(asked.texts)), int(everything.lengths.max())
    print(
        f"{preset.name}, {preset.blocks} blocks; {asked.texts} texts of {asked.data}, "
        f"{ids.lengths.sum()} tokens; the longest text of all has {longest}"
    )
    flops = 2 * block_weights(loaded) * preset.blocks * int(ids.lengths.sum())
    last = [Depth(preset.blocks, "rms")]
    peak = matmul_flops()
    runs = {
        "walk": timed(lambda: list(loaded.walk(ids, last))),
        "sweep": timed(lambda: sweep(gemma, ids)),
        "original": original_way(preset, ids, longest),
        "peak": lambda: flops / peak(),
        "products": block_products(loaded, int(ids.lengths.sum())),
    }
    if asked.torch_python:
        runs["torch"] = torch_peer(asked, ids)
    seconds = alternate(**runs)
    passes = gemma.block_passes / len(ids) / (1 + len(seconds["sweep"]))
    print_table(figures(asked.texts, preset.blocks, longest, ids, seconds, flops, passes))


def sweep(gemma, ids) -> None:
    """States behind every block, normed, checked and written."""
    wanted = {Depth(k, "rms"): np.ones(len(ids), bool) for k in range(1, gemma.preset.blocks + 1)}
    with tempfile.TemporaryDirectory() as folder:
        Store(folder).fill(gemma, ids, wanted)


def figures(count, blocks, longest, ids, seconds, flops, passes) -> list[tuple[str, str]]:
    """Names and values of what was measured."""
    rows = [
        (f"block-passes of a {blocks}-cutoff sweep, a text", f"{passes:g}"),
        ("useful tokens a second, last block only", rate(ids, seconds["walk"])),
        (
            f"useful tokens a second, {blocks} cutoffs normed, checked and written",
            rate(ids, seconds["sweep"]),
        ),
        ("share of the matrix-product peak", ratio(seconds["peak"], seconds["walk"])),
        (
            "the same of the blocks' own products alone, without padding",
            ratio(seconds["peak"], seconds["products"]),
        ),
        ("padding, share of the tokens computed", f"{padding(ids):.2f}"),
        ("matrix-product peak, GFLOP a second", rate_of(flops / 1e9, seconds["peak"])),
    ]
    if "torch" in seconds:
        speed = ratio(seconds["torch"], seconds["walk"])
        rows.append(("speed against transformers (torch), same batches", speed))
    # A text costs the original way this much for every cutoff and epoch; measured on a slice.
    original = [one * count / SLICE * blocks * EPOCHS for one in seconds["original"]]
    name = (
        f"Gemma's part of an {blocks}-cutoff hybrid sweep, {EPOCHS} epochs, against the original "
        f"way (all {blocks} blocks, padded to {longest}, every epoch and cutoff; from {SLICE} "
        "texts)"
    )
    return [*rows, (name, ratio(original, seconds["sweep"]))]


SLICE = 32  # texts that the original way is measured on: one batch


def block_weights(gemma: Gemma) -> int:
    """Weights that a token is multiplied with in a block."""
    gemma._load(gemma.preset.blocks)
    return int(sum(np.prod(weight.shape) for weight in gemma._weights(0) if len(weight.shape) > 1))


def block_products(gemma: Gemma, tokens: int):
    """A run of nothing but the blocks' matrix products, on so many tokens in whole batches.

    It is what a walk without attention scores, norms, activations and padding would take.
    """
    import tensorflow as tf

    width, most = gemma.preset.width, gemma_module.CPU_TOKENS
    weights = [tf.reshape(one, (width, -1)) for one in gemma._weights(0) if len(one.shape) > 1]
    states = tf.random.normal((most, width))
    product = tf.function(
        lambda states: sum(tf.reduce_sum(states @ weight) for weight in weights), jit_compile=True
    )

    def run() -> None:
        for _ in range(gemma.preset.blocks):
            product(states).numpy()

    one_batch = timed(run)
    return lambda: one_batch() * tokens / most


def padding(ids) -> float:
    """Share of the tokens computed that are padding."""
    batches = inference_batches(ids.lengths, gemma_module.CPU_TOKENS)
    return 1 - ids.lengths.sum() / sum(length * texts for _, length, texts in batches)


def original_way(preset, ids, longest):
    """keras-hub's whole model, compiled as Keras does, on a batch padded to the longest text."""
    import keras_hub

    backbone = load_preset(keras_hub.models.Backbone, "llm_preset", preset, dtype="float32")
    tokens, mask = ids.padded(range(SLICE), longest, SLICE)
    inputs = {"token_ids": tokens, "padding_mask": mask}
    return timed(lambda: backbone.predict_on_batch(inputs))


def torch_peer(asked, ids):
    """Hugging Face's model on the same batches of texts of like length, padded to their longest."""
    found = {}
    for i, (rows, _, _) in enumerate(inference_batches(ids.lengths, gemma_module.CPU_TOKENS)):
        tokens, mask = ids.padded(rows, int(ids.lengths[rows].max()), len(rows))
        found |= {f"ids{i}": tokens, f"mask{i}": mask}
    path = Path(tempfile.mkdtemp()) / "batches.npz"
    np.savez(path, **found)
    script = Path(__file__).parent / "torch_peer.py"
    return Peer(asked.torch_python, script, "encode", asked.torch_model, path)


def rate(ids, seconds) -> str:
    """Tokens a second: median, lowest and highest."""
    return rate_of(int(ids.lengths.sum()), seconds)


def rate_of(amount: float, seconds) -> str:
    rates = sorted(amount / one for one in seconds)
    return f"{np.median(rates):.0f} ({rates[0]:.0f} … {rates[-1]:.0f})"


if __name__ == "__main__":
    main()

"""The walk through Gemma: its speed beside the machine's peak, torch and the original study's way.

usage: python benchmarks/walk.py --llm presets/gemma3_270m --data data/amazon_counterfactual \
           [--torch-python PYTHON --torch-model FOLDER] [--texts 512]
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np
from side_by_side import Peer, alternate, matmul_flops, print_table, ratio, texts, timed

from embedder_helpers import gemma as gemma_module
from embedder_helpers.gemma import Depth, Gemma
from embedder_helpers.presets import find_preset, load_preset
from embedder_helpers.states import Store
from embedder_helpers.tokens import inference_batches

EPOCHS = 3


def main() -> None:
    """Prints the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--llm", required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--torch-python")
    parser.add_argument("--torch-model")
    parser.add_argument("--texts", type=int, default=512)
    options = parser.parse_args()

    preset = find_preset("llm_preset", options.llm)
    gemma = Gemma(preset)
    everything, _ = gemma.tokenise(texts(options.data), 512)
    ids = everything.select(range(options.texts))
    print(
        f"{preset.name}, {preset.blocks} blocks; {options.texts} texts of {options.data}, "
        f"{ids.lengths.sum()} tokens; the longest text of all has {everything.lengths.max()}"
    )
    all_depths = [Depth(block, "rms") for block in range(1, preset.blocks + 1)]
    flops = 2 * block_weights(gemma) * preset.blocks * int(ids.lengths.sum())

    def sweep():
        with tempfile.TemporaryDirectory() as folder:
            store = Store(folder)
            store.fill(gemma, ids, {depth: np.ones(len(ids), bool) for depth in all_depths})

    runs = {
        "walk": timed(lambda: list(gemma.walk(ids, all_depths[-1:]))),
        "sweep": timed(sweep),
        "original": original_way(preset, ids, int(everything.lengths.max())),
        "peak": (lambda peak: lambda: flops / peak())(matmul_flops()),
    }
    if options.torch_python:
        runs["torch"] = torch_peer(options, ids)
    passes = gemma.block_passes
    seconds = alternate(**runs)
    walked = (gemma.block_passes - passes) / len(ids) / (2 * (1 + len(seconds["walk"])))

    rows = [
        ("block-passes of an 18-cutoff sweep, a text", f"{walked:g}"),
        ("useful tokens a second, last block only", rate(ids, seconds["walk"])),
        (
            "useful tokens a second, 18 cutoffs normed, checked and written",
            rate(ids, seconds["sweep"]),
        ),
        ("share of the matrix-product peak", ratio(seconds["peak"], seconds["walk"])),
        ("matrix-product peak, GFLOP a second", rate_of(flops / 1e9, seconds["peak"])),
    ]
    if "torch" in seconds:
        rows.append(
            (
                "speed against transformers (torch), same batches",
                ratio(seconds["torch"], seconds["walk"]),
            )
        )
    # A text costs the original way this much for every cutoff and epoch; measured on a slice.
    slices = options.texts / SLICE
    original = [one * slices * preset.blocks * EPOCHS for one in seconds["original"]]
    rows.append(
        (
            f"Gemma's part of an 18-cutoff hybrid sweep, {EPOCHS} epochs, against the original way "
            f"(all {preset.blocks} blocks, padded to {everything.lengths.max()}, every epoch and "
            f"cutoff; from {SLICE} texts)",
            ratio(original, seconds["sweep"]),
        )
    )
    print_table(rows)


SLICE = 32  # texts that the original way is measured on: one batch


def block_weights(gemma: Gemma) -> int:
    """Weights that a token is multiplied with in a block."""
    gemma._load(1)
    return int(sum(np.prod(weight.shape) for weight in gemma._weights(0) if len(weight.shape) > 1))


def original_way(preset, ids, longest):
    """keras-hub's whole model, compiled as Keras does, on a batch padded to the longest text."""
    import keras_hub

    backbone = load_preset(keras_hub.models.Backbone, "llm_preset", preset, dtype="float32")
    tokens, mask = ids.padded(range(SLICE), longest, SLICE)
    inputs = {"token_ids": tokens, "padding_mask": mask}
    return timed(lambda: backbone.predict_on_batch(inputs))


def torch_peer(options, ids):
    """Hugging Face's model on the same batches of texts of like length, padded to their longest."""
    found = {}
    for i, (rows, _, _) in enumerate(inference_batches(ids.lengths, gemma_module.CPU_TOKENS)):
        tokens, mask = ids.padded(rows, int(ids.lengths[rows].max()), len(rows))
        found |= {f"ids{i}": tokens, f"mask{i}": mask}
    path = Path(tempfile.mkdtemp()) / "batches.npz"
    np.savez(path, **found)
    script = Path(__file__).parent / "torch_peer.py"
    return Peer(options.torch_python, script, "encode", options.torch_model, path)


def rate(ids, seconds) -> str:
    """Tokens a second: median, lowest and highest."""
    return rate_of(int(ids.lengths.sum()), seconds)


def rate_of(amount: float, seconds) -> str:
    rates = sorted(amount / one for one in seconds)
    return f"{np.median(rates):.0f} ({rates[0]:.0f} … {rates[-1]:.0f})"


if __name__ == "__main__":
    main()

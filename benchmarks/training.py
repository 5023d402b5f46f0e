"""An epoch of hybrid training on stored states, beside torch on the same batches.

usage: python benchmarks/training.py --llm presets/gemma3_270m --slm presets/roberta_6l_384 \
           --data data/amazon_counterfactual [--texts 512] \
           [--torch-python PYTHON --torch-model FOLDER]
"""

import tempfile
import time
from pathlib import Path

import keras
import numpy as np
from side_by_side import Peer, alternate, options, print_table, ratio, texts, timed

from embedder_helpers import training
from embedder_helpers.config import Experiment
from embedder_helpers.embedder import build_embedder
from embedder_helpers.states import Store


def main() -> None:
    """Prints the figures."""
    asked = options(__doc__, "llm", "slm", texts=512)

    experiment = Experiment(llm_preset=asked.llm, slm_preset=asked.slm, llm_layers=4)
    embedder = build_embedder(experiment)
    ids = embedder.tokenise(texts(asked.data, asked.texts)).gemma
    with tempfile.TemporaryDirectory() as folder:
        states = Store(folder).states(embedder.gemma, ids, embedder.depths)
        labels = np.arange(len(ids)) % 2
        batches = training.Batches(states, labels, experiment, embedder.longest)
        print(f"{len(ids)} texts, {ids.lengths.sum()} tokens, {len(batches)} batches an epoch")
        runs = {
            "keras": keras_epoch(embedder, batches),
            "input": timed(lambda: list(all_of(batches))),
        }
        if asked.torch_python:
            runs["torch"] = torch_peer(asked, batches)
        seconds = alternate(**runs)
    rows = [
        ("seconds an epoch", ", ".join(f"{one:.1f}" for one in seconds["keras"])),
        ("padding, share of the tokens computed", f"{padding(batches):.3f}"),
        ("making the batches, share of the epoch", ratio(seconds["input"], seconds["keras"])),
    ]
    if "torch" in seconds:
        rows.append(
            ("speed against torch, same batches", ratio(seconds["torch"], seconds["keras"]))
        )
    print_table(rows)


def all_of(batches):
    """Every batch of an epoch, read from the states on disk."""
    return (batches[i] for i in range(len(batches)))


def keras_epoch(embedder, batches):
    """An epoch as `training.fit` runs it, without its validation."""
    classifier = training.add_head(embedder.model, 2)
    classifier.compile(
        optimizer=training.TwoRateAdamW(5e-5, 20.0),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        jit_compile=False,
    )
    frozen = Frozen(batches)

    def run() -> float:
        start = time.perf_counter()
        classifier.fit(frozen, epochs=1, shuffle=False, verbose=0)
        return time.perf_counter() - start

    return run


class Frozen(keras.utils.PyDataset):
    """The same batches every epoch, as the peer has them."""

    def __init__(self, batches):
        super().__init__()
        self.batches = batches

    def __len__(self):
        return len(self.batches)

    def __getitem__(self, index):
        return self.batches[index]


def padding(batches) -> float:
    """Share of the tokens computed that are padding."""
    masks = [inputs["mask"] for inputs, _ in all_of(batches)]
    return 1 - sum(mask.sum() for mask in masks) / sum(mask.size for mask in masks)


def torch_peer(asked, batches):
    """Hugging Face's RoBERTa on the same batches."""
    found = {}
    for i, (inputs, labels) in enumerate(all_of(batches)):
        found |= {f"inputs{i}": inputs["inputs"], f"mask{i}": inputs["mask"], f"labels{i}": labels}
    path = Path(tempfile.mkdtemp()) / "batches.npz"
    np.savez(path, **found)
    script = Path(__file__).parent / "torch_peer.py"
    return Peer(asked.torch_python, script, "train", asked.torch_model, path)


if __name__ == "__main__":
    main()

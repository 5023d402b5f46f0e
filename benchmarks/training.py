"""An epoch of hybrid training on cached hidden states, compared with PyTorch on the same batches.

usage: python benchmarks/training.py --llm presets/gemma3_270m --slm presets/roberta_6l_384 \
           --data data/amazon_counterfactual [--texts 512] \
           [--torch-python PYTHON --torch-model FOLDER]
"""

import tempfile
from pathlib import Path

import keras
import numpy as np
from side_by_side import (
    Peer,
    alternate,
    load_texts,
    padding_fraction,
    parse_options,
    print_table,
    ratio,
    timed,
)

from embedder_helpers.config import Experiment
from embedder_helpers.experiments import training
from embedder_helpers.models.architectures import build_embedder
from embedder_helpers.models.hidden_states import HiddenStateCache


def main() -> None:
    """Measure and print."""
    options = parse_options(__doc__, "llm", "slm", texts=512)
    experiment = Experiment(llm_preset=options.llm, slm_preset=options.slm, llm_layers=4)
    embedder = build_embedder(experiment)
    ids = embedder.tokenize(load_texts(options.data, options.texts)).gemma
    with tempfile.TemporaryDirectory() as folder:
        cache = HiddenStateCache(folder)
        states = cache.get_or_compute(embedder.gemma, ids, embedder.specs)
        labels = np.arange(len(ids)) % 2
        batches = training.TrainingBatches(states, labels, experiment, embedder.longest)
        print(f"{len(ids)} texts, {ids.lengths.sum()} tokens, {len(batches)} batches per epoch")
        runs = {
            "keras": keras_epoch(embedder, batches),
            "input": timed(lambda: list(epoch(batches))),
        }
        if options.torch_python:
            runs["torch"] = torch_peer(options, batches)
        seconds = alternate(**runs)
        masks = [inputs["mask"] for inputs, _ in epoch(batches)]
    useful, computed = (
        sum(values) for values in ([m.sum() for m in masks], [m.size for m in masks])
    )
    rows = [
        (
            f"seconds per epoch of {len(batches)} batches",
            ", ".join(f"{one:.1f}" for one in seconds["keras"]),
        ),
        (
            "making the batches from the hidden states on disk, fraction of the epoch",
            ratio(seconds["input"], seconds["keras"]),
        ),
        ("padding, fraction of the tokens computed", padding_fraction(useful, computed)),
    ]
    if "torch" in seconds:
        speed = ratio(seconds["torch"], seconds["keras"])
        rows.append(("speed relative to torch, same batches", speed))
    print_table(rows)


def epoch(batches):
    """Every batch of an epoch, read from the hidden states on disk."""
    return (batches[i] for i in range(len(batches)))


def keras_epoch(embedder, batches):
    """An epoch as `training.train_classifier` runs it, without validation."""
    classifier = training.add_head(embedder.model, 2)
    classifier.compile(
        optimizer=training.TwoRateAdamW(5e-5, 20.0),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        jit_compile=False,
    )
    fixed = FixedBatches(batches)
    return timed(lambda: classifier.fit(fixed, epochs=1, shuffle=False, verbose=0))


class FixedBatches(keras.utils.PyDataset):
    """The same batches in every epoch, as in the PyTorch run."""

    def __init__(self, batches):
        super().__init__()
        self.batches = batches

    def __len__(self):
        return len(self.batches)

    def __getitem__(self, index):
        return self.batches[index]


def torch_peer(options, batches):
    """Hugging Face's RoBERTa on the same batches."""
    arrays = {}
    for i, (inputs, labels) in enumerate(epoch(batches)):
        arrays |= {f"inputs{i}": inputs["inputs"], f"mask{i}": inputs["mask"], f"labels{i}": labels}
    path = Path(tempfile.mkdtemp()) / "batches.npz"
    np.savez(path, **arrays)
    script = Path(__file__).parent / "torch_peer.py"
    return Peer(options.torch_python, script, "train", options.torch_model, path)


if __name__ == "__main__":
    main()

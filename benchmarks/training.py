"""An epoch of hybrid training on cached hidden states, and what an experiment costs beyond epochs.

usage: python benchmarks/training.py --llm presets/gemma3_270m --slm presets/roberta_6l_384 \
           --data data/amazon_counterfactual [--texts 512] [--before CHECKOUT] \
           [--torch-python PYTHON --torch-model FOLDER]

CHECKOUT: the folder of an earlier version of this project. PYTHON: an interpreter with torch and
transformers. FOLDER: the same RoBERTa in Hugging Face's format (config.json, model.safetensors).
"""

import argparse
import dataclasses
import json
import logging
import sys
import tempfile
from functools import partial
from pathlib import Path

import numpy as np
from side_by_side import (
    Peer,
    alternate,
    load_texts,
    padding_fraction,
    parse_options,
    print_table,
    ratio,
    run_process,
    timed,
)

import embedder_helpers as eh
from embedder_helpers.config import Experiment
from embedder_helpers.experiments import training
from embedder_helpers.models.architectures import build_embedder
from embedder_helpers.models.hidden_states import HiddenStateCache

BATCH_SIZE = 32
SEEDS = (33, 34, 35)  # of the experiments, which run one after another
EPOCHS = 2  # of which the second one builds and compiles nothing
# What the peer trains too, where an earlier version has the setting.
PLAIN = {"fusion": "replace", "late_fusion": False, "objective": "cross_entropy"}


def main() -> None:
    """Measure and print."""
    options = parse_options(__doc__, "llm", "slm", texts=512)
    if options.run:
        print(json.dumps(run_experiments(options, Path(options.run))))
        return
    print_table(epoch_rows(options) + experiment_rows(options))


def experiment_of(options: argparse.Namespace, **settings) -> Experiment:
    known = [one.name for one in dataclasses.fields(Experiment)]
    return Experiment(
        llm_preset=options.llm,
        slm_preset=options.slm,
        llm_layers=4,
        batch_size=BATCH_SIZE,
        **{name: value for name, value in PLAIN.items() if name in known},
        **settings,
    )


# === An epoch ===


def epoch_rows(options: argparse.Namespace) -> list[tuple[str, str]]:
    """Quantities and values of an epoch on the same batches here and in torch."""
    embedder = build_embedder(experiment_of(options))
    ids = embedder.tokenize(load_texts(options.data, options.texts)).gemma
    with tempfile.TemporaryDirectory() as folder:
        states = HiddenStateCache(folder).get_or_compute(embedder.gemma, ids, embedder.specs)
        labels = np.arange(len(ids)) % 2
        batches = partial(same_batches, states, labels, embedder.longest)
        runs = {
            "keras": keras_epoch(embedder, batches),
            "input": timed(lambda: list(batches())),
        }
        if options.torch_python:
            runs["torch"] = torch_peer(options, batches())
        seconds = alternate(**runs)
        masks = [inputs["mask"] for inputs, _ in batches()]
    useful, computed = sum(mask.sum() for mask in masks), sum(mask.size for mask in masks)
    rows = [
        ("texts, and their tokens", f"{len(ids)}, {ids.lengths.sum()}"),
        (
            f"seconds per epoch of {len(masks)} batches",
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
    return rows


def same_batches(states, labels, longest: int):
    """The batches of an epoch, read from the hidden states on disk; the same in every epoch."""
    generator = np.random.default_rng(0)
    return training.shuffled_batches(states, labels, BATCH_SIZE, longest, generator)


def keras_epoch(embedder, batches):
    """An epoch as `training.train_classifier` runs it, without validation."""
    classifier = training.build_classifier(embedder.model, 2)
    classifier.optimizer.learning_rate = 5e-5

    def epoch() -> None:
        for inputs, labels in batches():
            classifier.train_on_batch(inputs, labels, np.ones(len(labels), "float32"))

    return timed(epoch)


def torch_peer(options: argparse.Namespace, batches):
    """Hugging Face's RoBERTa on the same batches."""
    arrays = {}
    for i, (inputs, labels) in enumerate(batches):
        arrays |= {f"inputs{i}": inputs["inputs"], f"mask{i}": inputs["mask"], f"labels{i}": labels}
    path = Path(tempfile.mkdtemp()) / "batches.npz"
    np.savez(path, **arrays)
    script = Path(__file__).parent / "torch_peer.py"
    return Peer(options.torch_python, script, "train", options.torch_model, path)


# === Experiments that follow one another ===


def experiment_rows(options: argparse.Namespace) -> list[tuple[str, str]]:
    """Seconds of each experiment beyond its epochs, here and in the earlier version."""
    rows = []
    for version, checkout in {"": None, " in the earlier version": options.before}.items():
        if version and not checkout:
            continue
        with tempfile.TemporaryDirectory() as folder:
            experiments = run_process(*sys.argv, "--run", folder, checkout=checkout)
        beyond = [one["seconds"] - EPOCHS * one["epoch"] for one in experiments]
        rows += [
            (
                f"seconds beyond its epochs of the first, second and third experiment of an "
                f"architecture{version}: building, initializing and compiling the model",
                ", ".join(f"{one:.1f}" for one in beyond),
            ),
            (
                f"seconds of an epoch with its validation there{version}",
                ", ".join(f"{one['epoch']:.1f}" for one in experiments),
            ),
        ]
    return rows


def run_experiments(options: argparse.Namespace, folder: Path) -> list[dict[str, float]]:
    """Run a sweep over seeds.

    Returns:
        For each experiment, `seconds` of building and training the model, without Gemma's forward
        pass and the closed-form projection, and those of its second `epoch`.
    """
    experiments = [
        experiment_of(
            options, task=options.data.name, task_data=str(options.data), seed=seed, epochs=EPOCHS,
            max_train_texts=options.texts, states_dir=str(folder / "states"),
        )
        for seed in SEEDS
    ]  # fmt: skip
    epoch_ends = EpochEnds()
    results, failed = eh.run_experiments(experiments, folder)
    if failed:
        raise SystemExit(f"an experiment failed: {failed}")
    epochs = np.diff(np.reshape(epoch_ends.times, (len(SEEDS), EPOCHS)))[:, -1]
    steps = "load", "train"
    seconds = [sum(result.seconds.get(step, 0) for step in steps) for result in results]
    return [{"seconds": s, "epoch": e} for s, e in zip(seconds, epochs.tolist(), strict=True)]


class EpochEnds(logging.Handler):
    """The times at which epochs of trainings ended, as they are logged."""

    def __init__(self):
        super().__init__()
        self.times: list[float] = []
        logger = logging.getLogger(training.__name__)
        logger.setLevel(logging.INFO)
        logger.addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        if "epoch %d of" in record.msg:
            self.times.append(record.created)


if __name__ == "__main__":
    main()

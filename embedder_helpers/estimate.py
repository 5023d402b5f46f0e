"""The estimate: what a sweep will take of memory, disk and time, from the models' shapes alone.

No model is loaded. Counts of weights are exact; tokens are reckoned from letters, and time from the
share of its peak that a device is taken to reach. What is measured stands in docs/performance.md.
"""

import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import psutil

from embedder_helpers.config import DATA_KEYS, Experiment
from embedder_helpers.gemma import Depth, depths
from embedder_helpers.plan import Plan, rows_of
from embedder_helpers.shapes import shape_of, weights_of
from embedder_helpers.tasks import Task, task_of

LETTERS = 4.2  # a token, of English
PADDING = 1.15  # tokens computed for one of text
SHARE = 0.5  # of a device's peak, in float32
HALF_SHARE = 0.25  # of a tensor core's, which small batches keep less busy


class Device(NamedTuple):
    """What a device does at its peak, in operations a second, and its memory in bytes.

    Gemma is walked in float32; training takes tensor cores where there are any (0: none).
    """

    float32: float
    float16: float
    memory: float

    def training(self) -> float:
        """Operations a second that training is taken to reach."""
        return HALF_SHARE * self.float16 if self.float16 else SHARE * self.float32


# By NVIDIA's data sheets (P100 for PCIe, A100 40 GB).
GPUS = {
    "P100": Device(9.3e12, 0, 16e9),
    "T4": Device(8.1e12, 65e12, 16e9),
    "L4": Device(30.3e12, 121e12, 24e9),
    "A100": Device(19.5e12, 312e12, 40e9),
}


def operations(shape: dict[str, Any], tokens: float, blocks: int, context: float) -> float:
    """Of tokens through blocks: two a weight, and attention over so many tokens of context."""
    heads = shape.get("num_query_heads") or shape["num_heads"]
    attention = 4 * context * heads * shape.get("head_dim", shape["hidden_dim"] // heads)
    return tokens * blocks * (2.0 * weights_of(shape).block + attention)


def estimate(experiments: Sequence[Experiment], device: Device) -> pd.DataFrame:
    """A row for each walk through a Gemma, then for training and for embedding, then the sum.

    `memory GB` is what a device must hold at once, `disk GB` what states take, `TFLOP` are 10^12
    floating-point operations, and `hours` what they take.

    Raises:
        InputError: data or a shape that cannot be had.
    """
    tasks: dict[tuple, Task] = {}
    walks: dict[tuple, _Walk] = {}
    training = _Part("training", device.training())
    embedding = _Part("embedding", SHARE * device.float32)
    different = {repr((_data(one), one.determining())): one for one in experiments}
    for experiment in different.values():
        same = _data(experiment)
        task = tasks[same] = tasks.get(same) or task_of(experiment)
        one = Plan(experiment, task, {}, {}, rows_of(experiment, task), Path())
        texts = {part: one.texts(part) for part in one.rows}
        if experiment.kind != "roberta_only":
            key = experiment.llm_preset, experiment.max_tokens, experiment.stream_blocks
            shape = shape_of("llm_preset", experiment.llm_preset)
            walks.setdefault(key, _Walk(shape)).add(experiment, texts)
        if experiment.kind != "gemma_only":
            shape = shape_of("slm_preset", experiment.slm_preset)
            _add_roberta(experiment, shape, texts, training, embedding)
    parts = [walk.part(f"{key[0]}, one walk", device, key[2]) for key, walk in walks.items()]
    rows = [part.row() for part in [*parts, training, embedding] if part.operations]
    sums = {name: sum(row[name] for row in rows) for name in ("disk GB", "TFLOP", "hours")}
    most = max(row["memory GB"] for row in rows)
    return pd.DataFrame([*rows, {"part": "all", "memory GB": most} | sums])


@dataclasses.dataclass
class _Part:
    """What a part of a sweep takes, at so many operations a second."""

    name: str
    pace: float
    memory: float = 0.0
    disk: float = 0.0
    operations: float = 0.0

    def row(self) -> dict[str, Any]:
        hours = self.operations / self.pace / 3600
        sizes = {"memory GB": self.memory / 1e9, "disk GB": self.disk / 1e9}
        return {"part": self.name} | sizes | {"TFLOP": self.operations / 1e12, "hours": hours}


class _Walk:
    """The texts and cutoffs that experiments want of one Gemma."""

    def __init__(self, shape: dict[str, Any]):
        self.shape = shape
        self.tokens: dict[str, float] = {}
        self.depths: set[Depth] = set()
        self.limit = np.inf

    def add(self, experiment: Experiment, texts: dict[str, list[str]]) -> None:
        for part in texts.values():
            self.tokens |= {text: _tokens(text, experiment) for text in part}
        self.depths |= set(depths(experiment, self.shape["num_layers"]))
        if experiment.states_gigabytes:
            self.limit = 1e9 * experiment.states_gigabytes

    def part(self, name: str, device: Device, streamed: bool) -> _Part:
        deepest, tokens = max(self.depths).cutoff, sum(self.tokens.values())
        each = sum(np.dtype(depth.dtype).itemsize for depth in self.depths)
        weights = weights_of(self.shape)
        blocks = 1 if streamed else deepest
        context = tokens / len(self.tokens)
        return _Part(
            name,
            SHARE * device.float32,
            memory=4.0 * (weights.embedding + blocks * weights.block),
            disk=min(self.limit, each * self.shape["hidden_dim"] * tokens),
            operations=PADDING * operations(self.shape, tokens, deepest, context),
        )


def _add_roberta(
    experiment: Experiment,
    shape: dict[str, Any],
    texts: dict[str, list[str]],
    training: _Part,
    embedding: _Part,
) -> None:
    """Adds an experiment's training and embedding passes."""
    twice = 1 + (experiment.kind == "hybrid" and experiment.fusion == "prepend")
    blocks, width = shape["num_layers"], shape["hidden_dim"]
    weights = weights_of(shape).embedding + blocks * weights_of(shape).block

    def passes(*parts: str) -> float:
        counts = [twice * _tokens(text, experiment) for part in parts for text in texts[part]]
        return PADDING * operations(shape, sum(counts), blocks, float(np.mean(counts)))

    embedding.operations += passes("drawn", "scored")
    embedding.memory = max(embedding.memory, 4.0 * weights)
    if not experiment.epochs:
        return
    # A step costs three forward passes; weights, gradients and AdamW's two moments are kept, and
    # of a batch as long as can be about 16 activations a width, in float32.
    training.operations += experiment.epochs * (3 * passes("fit") + passes("watched"))
    batch = experiment.batch_size * experiment.max_tokens * twice
    memory = 16.0 * weights + 64.0 * width * blocks * batch
    training.memory = max(training.memory, memory)


def _data(experiment: Experiment) -> tuple:
    return tuple(getattr(experiment, name) for name in DATA_KEYS)


def _tokens(text: str, experiment: Experiment) -> float:
    return min(len(text) / LETTERS + 2, experiment.max_tokens)


def here(seconds: float = 1.0) -> Device:
    """This machine's CPU, by the matrix products that NumPy does in about a second."""
    one = np.random.default_rng(0).standard_normal((1024, 1024), "float32")
    count, start = 0, time.perf_counter()
    while (spent := time.perf_counter() - start) < seconds:
        one @ one
        count += 1
    pace = 2.0 * 1024**3 * count / spent
    return Device(pace, 0, psutil.virtual_memory().total)

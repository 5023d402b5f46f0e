"""The estimate: memory, disk and time of a sweep, from the models' shapes alone.

No model is loaded. Counts of weights are exact; tokens are estimated from letters, and time from
the fraction of its peak that a device is assumed to reach. docs/performance.md has measurements.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import psutil

from embedder_helpers.config import Experiment
from embedder_helpers.data.tasks import Task, load_task
from embedder_helpers.experiments.plan import Plan, Subset, select_rows
from embedder_helpers.models.gemma import HiddenStateSpec, hidden_state_specs
from embedder_helpers.models.shapes import count_weights, preset_shape

LETTERS_PER_TOKEN = 4.2  # of English
PADDING = 1.15  # tokens computed per token of text
FLOAT32_UTILIZATION = 0.5  # of a device's peak in float32
FLOAT16_UTILIZATION = 0.25  # of the tensor cores' peak, which small batches keep less busy


class Device(NamedTuple):
    """A device's peak operations per second, and its memory in bytes.

    Gemma's hidden states are computed in float32; training uses tensor cores if there are any
    (`float16` is 0 if not).
    """

    float32: float
    float16: float
    memory: float

    def training(self) -> float:
        """Operations per second that training is assumed to reach."""
        if self.float16:
            return FLOAT16_UTILIZATION * self.float16
        return FLOAT32_UTILIZATION * self.float32


# From NVIDIA's data sheets (P100 for PCIe, A100 40 GB).
GPUS = {
    "P100": Device(9.3e12, 0, 16e9),
    "T4": Device(8.1e12, 65e12, 16e9),
    "L4": Device(30.3e12, 121e12, 24e9),
    "A100": Device(19.5e12, 312e12, 40e9),
}


def measure_cpu(seconds: float = 1.0) -> Device:
    """This machine's CPU, measured by the matrix products of NumPy in about a second."""
    matrix = np.random.default_rng(0).standard_normal((1024, 1024), "float32")
    count, start = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - start) < seconds:
        matrix @ matrix
        count += 1
    return Device(2.0 * 1024**3 * count / elapsed, 0, psutil.virtual_memory().total)


def describe_device(device: Device) -> str:
    """Memory, speed, and the fraction of it that is assumed to be reached."""
    training = FLOAT16_UTILIZATION if device.float16 else FLOAT32_UTILIZATION
    peak = "the tensor cores' peak" if device.float16 else "it"
    return (
        f"{device.memory / 1e9:.0f} GB of memory, {device.float32 / 1e12:.2g} TFLOP/s in float32; "
        f"Gemma is assumed to reach {FLOAT32_UTILIZATION:.0%} of that, training {training:.0%} of "
        f"{peak}"
    )


def forward_operations(
    shape: dict[str, Any], tokens: float, num_layers: int, context: float
) -> float:
    """Operations of tokens through layers: two per weight, and attention over `context` tokens."""
    heads = shape.get("num_query_heads") or shape["num_heads"]
    attention = 4 * context * heads * shape.get("head_dim", shape["hidden_dim"] // heads)
    return tokens * num_layers * (2.0 * count_weights(shape).layer + attention)


def estimate_cost(experiments: Sequence[Experiment], device: Device) -> pd.DataFrame:
    """A row for each Gemma's forward pass, for training, for embedding, and for all of them.

    `memory GB` is what the device must hold at once, `disk GB` the size of the hidden states,
    `TFLOP` 10^12 floating-point operations, and `hours` the time that they take.

    Raises:
        InputError: data or a model's shape that cannot be loaded.
    """
    tasks: dict[tuple, Task] = {}
    forward_passes: dict[tuple, _ForwardPass] = {}
    training = _Part("training", device.training())
    embedding = _Part("embedding", FLOAT32_UTILIZATION * device.float32)
    distinct = {repr((one.task_settings(), one.relevant_settings())): one for one in experiments}
    for experiment in distinct.values():
        key = tuple(experiment.task_settings().values())
        task = tasks[key] = tasks.get(key) or load_task(experiment)
        plan = Plan(experiment, task, {}, {}, select_rows(experiment, task), Path())
        texts = {subset: plan.texts(subset) for subset in plan.rows}
        if experiment.kind != "roberta_only":
            key = experiment.llm_preset, experiment.max_tokens, experiment.stream_blocks
            shape = preset_shape("llm_preset", experiment.llm_preset)
            forward_passes.setdefault(key, _ForwardPass(shape)).add(experiment, texts)
        if experiment.kind != "gemma_only":
            shape = preset_shape("slm_preset", experiment.slm_preset)
            _add_roberta(experiment, shape, texts, training, embedding)
    parts = [
        forward_pass.part(f"{name}, one forward pass", device, is_streamed)
        for (name, _, is_streamed), forward_pass in forward_passes.items()
    ]
    rows = [part.row() for part in [*parts, training, embedding] if part.operations]
    sums = {name: sum(row[name] for row in rows) for name in ("disk GB", "TFLOP", "hours")}
    memory = max(row["memory GB"] for row in rows)
    return pd.DataFrame([*rows, {"part": "all", "memory GB": memory} | sums])


@dataclass
class _Part:
    """The cost of a part of a sweep, at a number of operations per second."""

    name: str
    speed: float
    memory: float = 0.0
    disk: float = 0.0
    operations: float = 0.0

    def row(self) -> dict[str, Any]:
        hours = self.operations / self.speed / 3600
        sizes = {"memory GB": self.memory / 1e9, "disk GB": self.disk / 1e9}
        return {"part": self.name} | sizes | {"TFLOP": self.operations / 1e12, "hours": hours}


class _ForwardPass:
    """The texts and cutoffs that experiments read of a Gemma."""

    def __init__(self, shape: dict[str, Any]):
        self.shape = shape
        self.tokens: dict[str, float] = {}
        self.specs: set[HiddenStateSpec] = set()
        self.limit = np.inf

    def add(self, experiment: Experiment, texts: dict[Subset, list[str]]) -> None:
        for subset in texts.values():
            self.tokens |= {text: _estimate_tokens(text, experiment) for text in subset}
        self.specs |= set(hidden_state_specs(experiment, self.shape["num_layers"]))
        if experiment.states_gigabytes:
            self.limit = 1e9 * experiment.states_gigabytes

    def part(self, name: str, device: Device, is_streamed: bool) -> _Part:
        deepest, tokens = max(self.specs).cutoff, sum(self.tokens.values())
        value_bytes = sum(np.dtype(spec.dtype).itemsize for spec in self.specs)
        weights = count_weights(self.shape)
        layers_in_memory = 1 if is_streamed else deepest
        context = tokens / len(self.tokens)
        return _Part(
            name,
            FLOAT32_UTILIZATION * device.float32,
            memory=4.0 * (weights.embedding + layers_in_memory * weights.layer),
            disk=min(self.limit, value_bytes * self.shape["hidden_dim"] * tokens),
            operations=PADDING * forward_operations(self.shape, tokens, deepest, context),
        )


def _add_roberta(
    experiment: Experiment,
    shape: dict[str, Any],
    texts: dict[Subset, list[str]],
    training: _Part,
    embedding: _Part,
) -> None:
    """Add an experiment's training, and its forward passes of RoBERTa."""
    positions = 2 if experiment.kind == "hybrid" and experiment.fusion == "prepend" else 1
    num_layers, width = shape["num_layers"], shape["hidden_dim"]
    weights = count_weights(shape).embedding + num_layers * count_weights(shape).layer

    def forward(*subsets: Subset) -> float:
        tokens = [
            positions * _estimate_tokens(text, experiment)
            for subset in subsets
            for text in texts[subset]
        ]
        context = float(np.mean(tokens))
        return PADDING * forward_operations(shape, sum(tokens), num_layers, context)

    embedding.operations += forward(Subset.PROTOCOL_TRAIN, Subset.EVAL)
    embedding.memory = max(embedding.memory, 4.0 * weights)
    if not experiment.epochs:
        return
    # A step costs three forward passes. Memory holds weights, gradients and AdamW's two moments,
    # and about 16 activations per width of the longest possible batch, in float32.
    epoch = 3 * forward(Subset.TRAIN) + forward(Subset.VALIDATION)
    training.operations += experiment.epochs * epoch
    batch_tokens = experiment.batch_size * experiment.max_tokens * positions
    memory = 16.0 * weights + 64.0 * width * num_layers * batch_tokens
    training.memory = max(training.memory, memory)


def _estimate_tokens(text: str, experiment: Experiment) -> float:
    return min(len(text) / LETTERS_PER_TOKEN + 2, experiment.max_tokens)

"""The estimate: memory, disk and time of a sweep, from the models' shapes alone.

No model is loaded. Counts of weights are exact; tokens are estimated from letters, and time from
the fraction of its peak that a device is assumed to reach. docs/performance.md has measurements.
"""

import contextlib
import functools
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import psutil

from embedder_helpers.config import Experiment
from embedder_helpers.data.tasks import Task, load_task
from embedder_helpers.errors import InputError
from embedder_helpers.experiments.plan import Plan, Subset, select_rows
from embedder_helpers.experiments.training import shuffled_rows
from embedder_helpers.models.batching import bucket_length, inference_batches, sorted_batches
from embedder_helpers.models.gemma import (
    STREAMED_BATCHES,
    HiddenStateSpec,
    bytes_per_token,
    hidden_state_specs,
    token_budget,
)
from embedder_helpers.models.presets import Preset
from embedder_helpers.models.shapes import (
    count_weights,
    llm_weight_bytes,
    preset_shape,
    training_bytes,
)
from embedder_helpers.models.sharding import divide
from embedder_helpers.models.text_model import forward_batches, padded_length
from embedder_helpers.utils import environment, progress

# Gemma 3's and RoBERTa's tokenizers on AmazonCounterfactual and Emotion: 4.6 … 5.1, and 1.5 … 3.
LETTERS_PER_TOKEN, MORE_TOKENS = 4.7, 2

# Fractions of a GPU's peak on paper that NVIDIA's own TensorFlow figures for BERT on a T4 reach,
# 2.2 … 2.4 TFLOP/s in float32, 7.5 … 9.4 in float16. This project has measured no GPU.
GPU_FLOAT32, GPU_HALF = 0.3, 0.13
# Fractions of the matrix products measured on this device. A T4's reach 24 TFLOP/s in float16, for
# which its power of 70 W suffices. CPUs: docs/performance.md.
PRODUCTS_OF_GPU = 0.35
PRODUCTS_OF_CPU, PRODUCTS_OF_CPU_HALF, PRODUCTS_OF_CPU_TRAINING = 0.8, 0.51, 0.6
# Measured on two cores of an AMD EPYC.
BUILDING_SECONDS = 8.0  # to build a classifier and trace its training step, once per architecture
COMPILING_SECONDS = 1.0  # for XLA to compile Gemma's layers for one shape of a batch
STEP_SECONDS = 0.05  # of a training step, however small
SCORING_SECONDS = 2.0  # to load and score one embedder
PROCESS_BYTES = 1.6e9  # what Python, TensorFlow and Keras take of a CPU's memory


class Device(NamedTuple):
    """Operations per second that a device is assumed to reach, padding counted, and its memory.

    Attributes:
        float32: operations per second of Gemma's forward pass in float32.
        half: the same in half precision; 0 if that is not faster.
        half_dtype: what `llm_dtype: auto` chooses, `float16` or `bfloat16`; "" for float32.
        training: operations per second of training and embedding.
        memory: bytes that can be used.
        count: devices of this kind in the machine.
        is_cpu: whether it is a CPU.
    """

    float32: float
    half: float
    half_dtype: str
    training: float
    memory: float
    count: int = 1
    is_cpu: bool = False

    def llm_dtype(self, llm_dtype: str) -> str:
        """The setting `llm_dtype`, `auto` resolved."""
        return (self.half_dtype or "float32") if llm_dtype == "auto" else llm_dtype

    def forward_speed(self, dtype: str) -> float:
        """Operations per second of Gemma's forward pass in a dtype."""
        # GPUs multiply float16 as fast as bfloat16.
        fast = (self.half_dtype,) if self.is_cpu else (self.half_dtype, "float16")
        return self.half if self.half and dtype in fast else self.float32


def _gpu(float32: float, half: float, half_dtype: str, memory: float, count: int = 1) -> Device:
    """A GPU of these peaks on paper; training uses its tensor cores."""
    half *= GPU_HALF
    return Device(GPU_FLOAT32 * float32, half, half_dtype, half, memory, count)


# Peaks from NVIDIA's data sheets. Kaggle's machine has two T4s, of 15,095 MB that can be used each.
GPUS = {
    "T4": _gpu(8.1e12, 65e12, "float16", 15.095e9, count=2),
    "L4": _gpu(30.3e12, 121e12, "bfloat16", 24e9),
    "A100": _gpu(19.5e12, 312e12, "bfloat16", 40e9),
}


def measure_device() -> Device:
    """The device that Keras computes on, measured by matrix products in less than a second."""
    half_dtype, is_cpu = environment.half_dtype() or "", environment.on_cpu()
    float32 = _measure_products("float32")
    half = _measure_products(half_dtype) if half_dtype else 0.0
    if is_cpu:
        return Device(
            float32=PRODUCTS_OF_CPU * float32,
            half=PRODUCTS_OF_CPU_HALF * half,
            half_dtype=half_dtype,
            training=PRODUCTS_OF_CPU_TRAINING * float32,
            memory=psutil.virtual_memory().total,
            is_cpu=True,
        )
    float32, half = PRODUCTS_OF_GPU * float32, PRODUCTS_OF_GPU * half
    count = max(1, environment.count_gpus())
    memory = environment.free_memory()
    return Device(float32, half, half_dtype, half or float32, memory, count)


@functools.cache
def _measure_products(dtype: str, seconds: float = 0.3) -> float:
    """Operations per second of the fastest of many matrix products in a dtype.

    The fastest, because other programs slow some of them down.
    """
    from keras import ops

    size = 2048
    matrix = ops.ones((size, size), dtype)
    times, end = [], time.perf_counter() + seconds
    while len(times) < 3 or time.perf_counter() < end:
        start = time.perf_counter()
        ops.convert_to_numpy(ops.matmul(matrix, matrix)[:1, :1])  # waits for the result
        times.append(time.perf_counter() - start)
    return 2.0 * size**3 / min(times)


def expected_paces(preset: Preset | None = None, dtype: str = "float32") -> dict[str, float]:
    """Seconds per unit of work by kind, as the progress bar counts it, before any is measured.

    Args:
        preset: the Gemma of the sweep; None: there is none.
        dtype: of its matrix products.
    """
    device = measure_device()
    paces = {
        progress.TRAINING: 1 / device.training,
        progress.EMBEDDING: 1 / device.training,
        progress.BUILDING: BUILDING_SECONDS,
        progress.SCORING: SCORING_SECONDS,
    }
    if preset is None:
        return paces
    operations = progress.forward_flops(1, 1, preset.width)
    with contextlib.suppress(InputError):  # a Hugging Face model, whose shape is not known
        operations = forward_operations(preset_shape("llm_preset", preset.handle), 1, 1, 0)
    counted = progress.forward_flops(1, 1, preset.width)
    return paces | {progress.FORWARD: operations / counted / device.forward_speed(dtype)}


def describe_device(device: Device) -> str:
    """Memory, and the speeds that are assumed."""
    dtype = device.llm_dtype("auto")
    return (
        f"{device.memory / 1e9:.1f} GB of memory; Gemma is assumed to reach "
        f"{device.forward_speed(dtype) / 1e12:.2g} TFLOP/s in {dtype}, training "
        f"{device.training / 1e12:.2g}"
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
    `TFLOP` 10^12 floating-point operations, padding included, `hours` the time on one device, and
    `hours, n GPUs` that of a machine with several.

    Raises:
        InputError: data or a model's shape that cannot be loaded.
    """
    parts = sweep_parts(experiments, device)
    rows = [part.row(device.count) for part in parts]
    total = {"part": "all", "memory GB": max(row["memory GB"] for row in rows)}
    sums = {name: sum(row[name] for row in rows) for name in rows[0] if name not in total}
    return pd.DataFrame([*rows, total | sums])


def memory_advice(experiments: Sequence[Experiment], device: Device) -> list[str]:
    """A sentence for each part of a sweep that does not fit the device's memory."""
    return [
        f"{part.name} needs {part.memory / 1e9:.1f} GB of the device's "
        f"{device.memory / 1e9:.1f} GB: {part.advice}"
        for part in sweep_parts(experiments, device)
        if part.memory > device.memory
    ]


@dataclass
class Part:
    """The cost of a part of a sweep.

    Attributes:
        name: first column of the table.
        speed: operations per second.
        advice: what to do if the memory does not suffice.
        start: seconds that every device spends, however many there are.
        seconds: seconds besides the operations, which devices share.
        memory: bytes.
        disk: bytes.
        operations: number of operations.
        is_forward: whether it is a forward pass through Gemma.
        shards: number of pieces that the forward pass can be divided into.
    """

    name: str
    speed: float
    advice: str = ""
    start: float = 0.0
    seconds: float = 0.0
    memory: float = 0.0
    disk: float = 0.0
    operations: float = 0.0
    is_forward: bool = False
    shards: int = 1

    @property
    def shared_seconds(self) -> float:
        """Seconds of what devices share, on one of them."""
        return self.operations / self.speed + self.seconds

    def is_needed(self) -> bool:
        """Whether there is anything to do."""
        return bool(self.operations or self.seconds)

    def row(self, count: int) -> dict[str, Any]:
        """The row of the table, for this number of devices."""
        shared = self.shared_seconds
        row = {"part": self.name, "memory GB": self.memory / 1e9, "disk GB": self.disk / 1e9}
        row |= {"TFLOP": self.operations / 1e12, "hours": (shared + self.start) / 3600}
        if count > 1:
            row[f"hours, {count} GPUs"] = (shared / count + self.start) / 3600
        return row


def sweep_parts(
    experiments: Sequence[Experiment], device: Device, tasks: dict[tuple, Task] | None = None
) -> list[Part]:
    """The parts of a sweep: each Gemma's forward pass, training, and embedding and scoring.

    Args:
        experiments: of the sweep.
        device: to estimate for.
        tasks: that were loaded before, to which those loaded now are added.

    Raises:
        InputError: data or a model's shape that cannot be loaded.
    """
    tasks = {} if tasks is None else tasks
    forward_passes: dict[tuple, _ForwardPass] = {}
    roberta = _Roberta(device)
    distinct = {repr((one.task_settings(), one.relevant_settings())): one for one in experiments}
    for experiment in distinct.values():
        key = tuple(experiment.task_settings().values())
        task = tasks[key] = tasks.get(key) or load_task(experiment)
        plan = Plan(experiment, task, {}, {}, select_rows(experiment, task), Path())
        if experiment.kind != "roberta_only":
            dtype = device.llm_dtype(experiment.llm_dtype)
            key = experiment.llm_preset, experiment.max_tokens, experiment.stream_blocks, dtype
            forward_passes.setdefault(key, _ForwardPass(*key)).add(plan)
        if experiment.kind != "gemma_only":
            roberta.add(plan)
        roberta.embedding.seconds += SCORING_SECONDS
    parts = [forward_pass.part(device) for forward_pass in forward_passes.values()]
    return parts + [part for part in (roberta.training, roberta.embedding) if part.is_needed()]


class _ForwardPass:
    """The texts and cutoffs that experiments read of a Gemma."""

    def __init__(self, preset: str, max_tokens: int, is_streamed: bool, dtype: str):
        self.preset = preset
        self.shape = preset_shape("llm_preset", preset)
        self.is_streamed = is_streamed
        self.dtype = dtype
        self.tokens: dict[str, int] = {}
        self.specs: set[HiddenStateSpec] = set()
        self.limit = np.inf

    def add(self, plan: Plan) -> None:
        experiment = plan.experiment
        self.tokens |= {text: _count_tokens(text, experiment) for text in plan.texts()}
        self.specs |= set(hidden_state_specs(experiment, self.shape["num_layers"]))
        if experiment.states_gigabytes:
            self.limit = 1e9 * experiment.states_gigabytes

    def part(self, device: Device) -> Part:
        deepest, lengths = max(self.specs).cutoff, np.array([*self.tokens.values()])
        # As models.gemma chooses them: compiled for few shapes, except in half precision on a CPU.
        is_compiled = not device.is_cpu or self.dtype == "float32"
        longest = bucket_length(int(lengths.max()))
        chunk_size = STREAMED_BATCHES if self.is_streamed else 1
        token_bytes = bytes_per_token(self.shape, longest, is_compiled, chunk_size)
        weights = llm_weight_bytes(self.shape, deepest, self.dtype, self.is_streamed)
        process = PROCESS_BYTES if device.is_cpu else 0.0
        free = device.memory - weights - process
        budget = token_budget(token_bytes, longest, free, device.is_cpu, is_compiled)
        batches = [*(inference_batches if is_compiled else sorted_batches)(lengths, budget)]
        shapes = {(length, texts) for _, length, texts in batches} if is_compiled else ()
        operations = sum(
            forward_operations(self.shape, texts * length, deepest, length)
            for _, length, texts in batches
        )
        value_bytes = sum(np.dtype(spec.dtype).itemsize for spec in self.specs)
        tokens = min(budget, int(lengths.sum()))
        return Part(
            f"{self.preset}, one forward pass, {self.dtype}",
            device.forward_speed(self.dtype),
            advice=("lower max_tokens" if self.is_streamed else "set stream_blocks: true")
            + ", or llm_layers",
            start=COMPILING_SECONDS * len(shapes),
            memory=process + weights + tokens * token_bytes,
            disk=min(self.limit, value_bytes * self.shape["hidden_dim"] * lengths.sum()),
            operations=operations,
            is_forward=True,
            shards=len(divide(lengths, lengths > 0)),
        )


class _Roberta:
    """Training and embedding of the experiments that have a RoBERTa.

    The contrastive loss, a product per pair of texts in a batch, and late fusion, a dense layer per
    text, cost less than a thousandth of RoBERTa's layers, and are not counted.
    """

    def __init__(self, device: Device):
        self.process = PROCESS_BYTES if device.is_cpu else 0.0
        # Mixed precision keeps activations in two bytes.
        self.value_bytes = 4 if device.is_cpu or not device.half else 2
        self.training = Part("training", device.training, "lower batch_size, or max_tokens")
        self.embedding = Part("embedding and scoring", device.training, "lower max_tokens")
        self.architectures: set[tuple] = set()

    def add(self, plan: Plan) -> None:
        experiment = plan.experiment
        shape = preset_shape("slm_preset", experiment.slm_preset)
        positions = 2 if experiment.kind == "hybrid" and experiment.fusion == "prepend" else 1
        longest = positions * experiment.max_tokens

        def lengths(*subsets: Subset) -> np.ndarray:
            texts = plan.texts(*subsets)
            return np.array([positions * _count_tokens(text, experiment) for text in texts])

        def operations(batches: Iterable[tuple[int, int]]) -> float:
            """Of a forward pass of batches, each of a length and a number of texts."""
            num_layers = shape["num_layers"]
            return sum(
                forward_operations(shape, count * length, num_layers, length)
                for length, count in batches
            )

        def shuffled(subset: Subset, is_paired: bool = False) -> list[tuple[int, int]]:
            """Batches as `training.shuffled_batches` makes them."""
            counts, labels = lengths(subset), plan.labels(subset)
            generator = np.random.default_rng(experiment.seed)
            batches = shuffled_rows(counts, labels, experiment.batch_size, generator, is_paired)
            return [(padded_length(counts[rows], longest), len(rows)) for rows in batches]

        embedded = lengths(Subset.PROTOCOL_TRAIN, Subset.EVAL)
        batches = forward_batches(embedded, longest)
        self.embedding.operations += operations((length, count) for _, length, count in batches)
        weights = count_weights(shape).embedding + shape["num_layers"] * count_weights(shape).layer
        self.embedding.memory = max(self.embedding.memory, self.process + 4.0 * weights)
        if not experiment.epochs:
            return
        train = shuffled(Subset.TRAIN, experiment.objective == "contrastive")
        # A training step costs three forward passes.
        epoch = 3 * operations(train) + operations(shuffled(Subset.VALIDATION))
        self.training.operations += experiment.epochs * epoch
        # The longest texts may be in a batch of the most texts in another epoch.
        length, count = map(max, zip(*train, strict=True))
        step = training_bytes(shape, count * length, length, self.value_bytes)
        self.training.memory = max(self.training.memory, self.process + step)
        self._add_building(experiment, len(plan.task.classes))

    def _add_building(self, experiment: Experiment, num_classes: int) -> None:
        """Experiments that differ in nothing that shapes the model share a classifier."""
        names = ["kind", "slm_preset", "pooling"]
        if experiment.kind == "hybrid":
            names += ["llm_preset", "fusion", "projection", "state_dropout", "layer_pooling"]
            names += ["final_norm", "late_fusion"]
        several = len(experiment.llm_layers) if isinstance(experiment.llm_layers, tuple) else 1
        values = [getattr(experiment, name) for name in names]
        self.architectures.add((*values, several, num_classes, experiment.clip_norm))
        self.training.start = BUILDING_SECONDS * len(self.architectures)


def _count_tokens(text: str, experiment: Experiment) -> int:
    return int(min(len(text) / LETTERS_PER_TOKEN + MORE_TOKENS, experiment.max_tokens))

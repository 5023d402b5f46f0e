"""Shared by the benchmarks: texts of a task, alternating runs, the CPU's peak of matrix products.

Every figure is a ratio of runs that alternate on one machine: median, lowest and highest.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

ROUNDS = 3


def parse_options(description: str, *models: str, texts: int) -> argparse.Namespace:
    """Parse a benchmark's command line.

    Args:
        description: its docstring.
        models: names of the options for presets.
        texts: default number of texts.
    """
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for model in models:
        parser.add_argument(f"--{model}", required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--torch-python")
    parser.add_argument("--torch-model")
    parser.add_argument("--texts", type=int, default=texts)
    return parser.parse_args()


def load_texts(data: Path, count: int | None = None, seed: int = 0) -> list[str]:
    """Training texts of a task in jsonl files, in random order."""
    lines = (data / "train.jsonl").read_text(encoding="utf-8").splitlines()
    texts = [json.loads(line)["text"] for line in lines]
    order = np.random.default_rng(seed).permutation(len(texts))
    return [texts[row] for row in order[:count]]


def alternate(**runs: Callable[[], float]) -> dict[str, list[float]]:
    """Seconds of each run, measured in turns after one warm-up each."""
    for run in runs.values():
        run()
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(ROUNDS):
        for name, run in runs.items():
            seconds[name].append(run())
    return seconds


def timed(function: Callable[[], object]) -> Callable[[], float]:
    """The function as a run that returns its seconds."""

    def run() -> float:
        start = time.perf_counter()
        function()
        return time.perf_counter() - start

    return run


def ratio(numerator: list[float], denominator: list[float]) -> str:
    """Ratio of two runs' seconds, round by round: median, lowest and highest."""
    return spread([a / b for a, b in zip(numerator, denominator, strict=True)], 2)


def rate(amount: float, seconds: list[float]) -> str:
    """An amount per second: median, lowest and highest."""
    return spread([amount / one for one in seconds], 0)


def spread(values: list[float], digits: int) -> str:
    """Median, lowest and highest."""
    low, middle, high = (f"{f(values):.{digits}f}" for f in (min, np.median, max))
    return f"{middle} ({low} … {high})"


def padding_fraction(useful: int, computed: int) -> str:
    """The fraction of the computed tokens that are padding."""
    return f"{1 - useful / computed:.2f}"


def matmul_flops() -> Callable[[], float]:
    """A run that returns the floating-point operations per second of a float32 matrix product.

    The better of NumPy's and TensorFlow's, at sizes like those of a layer.
    """
    import tensorflow as tf

    matrix = np.random.default_rng(0).normal(size=(2048, 2048)).astype("float32")
    tensor = tf.constant(matrix)
    operations = 2 * 2048**3

    def run() -> float:
        numpy_seconds = timed(lambda: matrix @ matrix)()
        tensorflow_seconds = timed(lambda: tf.matmul(tensor, tensor).numpy())()
        return operations / min(numpy_seconds, tensorflow_seconds)

    return run


class Peer:
    """Another program, in a process of its own, that runs once per call."""

    def __init__(self, *command: object):
        self.process = subprocess.Popen(
            [str(part) for part in command],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        )  # fmt: skip

    def __call__(self) -> float:
        self.process.stdin.write("run\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"PyTorch failed: run {' '.join(self.process.args)} to see why")
        return float(line)

    def close(self) -> None:
        """End the process."""
        self.process.stdin.close()
        self.process.wait()


def print_table(rows: list[tuple[str, str]]) -> None:
    """Print quantities and values as Markdown."""
    print("\n| quantity | measured |\n|---|---|")
    for name, value in rows:
        print(f"| {name} | {value} |")

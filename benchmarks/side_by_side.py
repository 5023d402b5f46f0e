"""Shared by the benchmarks: texts of a task, alternating runs, the CPU's peak of matrix products.

Every ratio is of runs that alternate on one machine: median, lowest and highest.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
# A process measures the package of this checkout, or of the one that its parent names.
CHECKOUT = "BENCHMARK_CHECKOUT"
sys.path.insert(0, os.environ.get(CHECKOUT, str(ROOT)))

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
    parser.add_argument("--before", type=Path)
    parser.add_argument("--run", help=argparse.SUPPRESS)
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


def matmul_flops(dtype: str = "float32") -> Callable[[], float]:
    """A run that returns the floating-point operations per second of a matrix product.

    TensorFlow's or, in float32, NumPy's if it is faster, at sizes like those of a layer.
    """
    import tensorflow as tf

    matrix = np.random.default_rng(0).normal(size=(2048, 2048)).astype("float32")
    tensor = tf.cast(matrix, dtype)
    operations = 2 * 2048**3

    def run() -> float:
        seconds = [timed(lambda: tf.reduce_max(tf.matmul(tensor, tensor)).numpy())()]
        if dtype == "float32":
            seconds.append(timed(lambda: matrix @ matrix)())
        return operations / min(seconds)

    return run


def run_process(script: str, *arguments: object, checkout: Path | None = None) -> dict:
    """Run a benchmark's script in a process of its own; returns its last line, which is JSON.

    Args:
        script: path of the script.
        arguments: of its command line.
        checkout: folder of another version of this project, to be measured instead of this one.
    """
    done = subprocess.run(
        [sys.executable, script, *map(str, arguments)],
        env=environment_of(checkout), stdout=subprocess.PIPE, text=True, check=True,
    )  # fmt: skip
    return json.loads(done.stdout.splitlines()[-1])


def environment_of(checkout: Path | None) -> dict[str, str]:
    """Environment variables for a process that measures another checkout's package."""
    if checkout is None:
        return dict(os.environ)
    folder = checkout.resolve()
    if not (folder / "embedder_helpers").is_dir():
        raise SystemExit(f"--before {checkout} is no checkout: it has no folder embedder_helpers")
    return os.environ | {CHECKOUT: str(folder)}


class Peer:
    """Another program, in a process of its own, that runs once per call."""

    def __init__(self, *command: object, checkout: Path | None = None):
        self.process = subprocess.Popen(
            [str(part) for part in command], env=environment_of(checkout),
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        )  # fmt: skip

    def __call__(self) -> float:
        self.process.stdin.write("run\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"a process failed: run {' '.join(self.process.args)} to see why")
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

"""What the benchmarks share: real texts, alternating runs, the machine's matrix-product peak.

Every figure is a ratio of runs that alternate on one machine, with the lowest and highest of them.
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


def options(about: str, *models: str, texts: int) -> argparse.Namespace:
    """What a benchmark is asked for on the command line.

    Args:
        about: its docstring.
        models: names of the options that give presets.
        texts: how many texts it reads unless told.
    """
    parser = argparse.ArgumentParser(
        description=about, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for model in models:
        parser.add_argument(f"--{model}", required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--torch-python")
    parser.add_argument("--torch-model")
    parser.add_argument("--texts", type=int, default=texts)
    return parser.parse_args()


def texts(data: Path, count: int | None = None, seed: int = 0) -> list[str]:
    """Training texts of a task in jsonl files, in a random order."""
    lines = (data / "train.jsonl").read_text(encoding="utf-8").splitlines()
    found = [json.loads(line)["text"] for line in lines]
    order = np.random.default_rng(seed).permutation(len(found))
    return [found[row] for row in order[:count]]


def alternate(**runs: Callable[[], float]) -> dict[str, list[float]]:
    """Seconds of each run, after one to warm up, in turns."""
    for run in runs.values():
        run()
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(ROUNDS):
        for name, run in runs.items():
            seconds[name].append(run())
    return seconds


def timed(function: Callable[[], object]) -> Callable[[], float]:
    """The function as a run that gives its seconds."""

    def run() -> float:
        start = time.perf_counter()
        function()
        return time.perf_counter() - start

    return run


def ratio(slow: list[float], fast: list[float]) -> str:
    """How many times longer the first takes: median of the rounds, lowest and highest."""
    ratios = sorted(one / other for one, other in zip(slow, fast, strict=True))
    return f"{np.median(ratios):.2f} ({ratios[0]:.2f} … {ratios[-1]:.2f})"


def matmul_flops() -> Callable[[], float]:
    """A run that gives the floating-point operations per second of a float32 matrix product.

    The better of NumPy's and TensorFlow's, at sizes like those of a block.
    """
    import tensorflow as tf

    left = np.random.default_rng(0).normal(size=(2048, 2048)).astype("float32")
    tensor = tf.constant(left)
    operations = 2 * 2048**3

    def run() -> float:
        numpy_seconds = timed(lambda: left @ left)()
        tensorflow_seconds = timed(lambda: tf.matmul(tensor, tensor).numpy())()
        return operations / min(numpy_seconds, tensorflow_seconds)

    return run


class Peer:
    """Another program, in a process of its own, that runs once each time it is asked."""

    def __init__(self, *command: object):
        self.process = subprocess.Popen(
            [str(part) for part in command],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        )  # fmt: skip

    def __call__(self) -> float:
        self.process.stdin.write("go\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"the peer died: run {' '.join(self.process.args)} to see why")
        return float(line)

    def close(self) -> None:
        """Ends it."""
        self.process.stdin.close()
        self.process.wait()


def print_table(rows: list[tuple[str, str]]) -> None:
    """Figures, as Markdown."""
    print("\n| figure | measured |\n|---|---|")
    for name, value in rows:
        print(f"| {name} | {value} |")

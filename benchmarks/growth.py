"""Time and memory of the walk as the texts grow and as the cut grows, each run in its own process.

usage: python benchmarks/growth.py --llm presets/gemma3_270m --data data/amazon_counterfactual
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from side_by_side import texts

TEXTS = (64, 256, 1024)
CUTOFFS = (6, 12, 18)


def main() -> None:
    """Prints the figures, or in a process of its own measures one run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--llm", required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(options, **json.loads(options.one))))
        return
    print("| run | seconds for 1000 tokens; peak memory |\n|---|---|")
    for count in TEXTS:
        tell(options, count=count, cutoff=CUTOFFS[0], stream=False)
    for stream in (False, True):
        for cutoff in CUTOFFS:
            tell(options, count=TEXTS[1], cutoff=cutoff, stream=stream)


def tell(options: argparse.Namespace, count: int, cutoff: int, stream: bool) -> None:
    """Prints a row as soon as it is measured."""
    one = apart(options, count=count, cutoff=cutoff, stream=stream)
    words = "streamed" if stream else "resident"
    print(f"| {count} texts, k = {cutoff}, {words} | {told(one)} |", flush=True)


def apart(options: argparse.Namespace, **keys) -> dict:
    """One run in a process of its own."""
    command = [sys.executable, __file__, "--llm", options.llm, "--data", options.data]
    found = subprocess.run(
        [*command, "--one", json.dumps(keys)], capture_output=True, text=True, check=True
    )
    return json.loads(found.stdout.splitlines()[-1])


def told(one: dict) -> str:
    return (
        f"{one['seconds'] / one['tokens'] * 1000:.2f}; {one['peak']:.0f} MB in all, weights and "
        f"states of the walk {one['walk']:.0f} MB"
    )


def measure(options: argparse.Namespace, count: int, cutoff: int, stream: bool) -> dict:
    """Seconds of a second walk, when all is compiled; memory of the process and of the walk."""
    from embedder_helpers.gemma import Depth, Gemma
    from embedder_helpers.presets import find_preset
    from embedder_helpers.states import Store

    gemma = Gemma(find_preset("llm_preset", options.llm), stream)
    ids, _ = gemma.tokenise(texts(options.data, count), 256)
    before = resident()
    with tempfile.TemporaryDirectory() as folder:
        for number in range(2):
            store = Store(Path(folder) / str(number))
            start = time.perf_counter()
            store.fill(gemma, ids, {Depth(cutoff, "rms"): np.ones(len(ids), bool)})
            seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {
        "seconds": seconds, "tokens": int(ids.lengths.sum()), "peak": peak, "walk": peak - before,
    }  # fmt: skip


def resident() -> float:
    """Megabytes of memory that the process holds."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


if __name__ == "__main__":
    main()

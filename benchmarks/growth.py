"""Time and memory of Gemma's forward pass as texts and layers grow, each run in its own process.

usage: python benchmarks/growth.py --llm presets/gemma3_270m --data data/amazon_counterfactual
"""

import argparse
import json
import resource
import tempfile
from pathlib import Path

import numpy as np
from side_by_side import load_texts, run_process, timed

TEXTS = (64, 256, 1024)
CUTOFFS = (6, 12, 18)


def main() -> None:
    """Measure and print; with --run, measure a single run."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--llm", required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--run", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.run:
        print(json.dumps(measure(options, **json.loads(options.run))))
        return
    print("| texts | cutoff | layers | seconds per 1000 tokens, loading included | peak memory |")
    print("|---|---|---|---|---|")
    for count in TEXTS:
        print_row(options, count=count, cutoff=CUTOFFS[0], stream=False)
    for stream in (False, True):
        for cutoff in CUTOFFS:
            print_row(options, count=TEXTS[1], cutoff=cutoff, stream=stream)


def print_row(options: argparse.Namespace, count: int, cutoff: int, stream: bool) -> None:
    """Measure a run in a process of its own, and print its row."""
    run = json.dumps({"count": count, "cutoff": cutoff, "stream": stream})
    measured = run_process(__file__, "--llm", options.llm, "--data", options.data, "--run", run)
    seconds = measured["seconds"] / measured["tokens"] * 1000
    layers = "streamed" if stream else "in memory"
    row = f"| {count} | {cutoff} | {layers} | {seconds:.2f} | {measured['gigabytes']:.2f} GB |"
    print(row, flush=True)


def measure(options: argparse.Namespace, count: int, cutoff: int, stream: bool) -> dict:
    """Seconds of a second forward pass, when all is compiled, and peak memory of the process."""
    from embedder_helpers.models.gemma import Gemma, HiddenStateSpec
    from embedder_helpers.models.hidden_states import HiddenStateCache
    from embedder_helpers.models.presets import find_preset

    gemma = Gemma(find_preset("llm_preset", options.llm), stream)
    ids, _ = gemma.tokenize(load_texts(options.data, count), 256)
    every_text = {HiddenStateSpec(cutoff, "rms"): np.ones(len(ids), bool)}
    with tempfile.TemporaryDirectory() as folder:

        def run(name: str) -> None:
            HiddenStateCache(Path(folder) / name).compute_missing(gemma, ids, every_text)

        run("compiles")
        seconds = timed(lambda: run("timed"))()
    gigabytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    return {"seconds": seconds, "tokens": int(ids.lengths.sum()), "gigabytes": gigabytes}


if __name__ == "__main__":
    main()

"""Memory and loading time of a large Gemma, kept in memory or streamed, each in its own process.

usage: python benchmarks/memory.py --llm FOLDER --data data/amazon_counterfactual [--texts 128] \
           [--cutoffs 18 10] [--dtype auto] [--before CHECKOUT [--before-cutoffs 10]]

FOLDER: a Keras preset, such as `benchmarks/gemma_2b_shape.py` writes. CHECKOUT: the folder of an
earlier version of this project, measured in the same way; version 0.3 needs 18 GB for Gemma 2B at
cutoff 18 and 14.5 GB at cutoff 10. Linux only.
"""

import argparse
import inspect
import json
import re
from collections import deque
from pathlib import Path

from side_by_side import load_texts, run_process, timed

MAX_TOKENS = 256


def main() -> None:
    """Measure and print; with --run, measure a single case."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--llm", required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--texts", type=int, default=128)
    parser.add_argument("--cutoffs", type=int, nargs="+", default=[18, 10])
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--before", type=Path)
    parser.add_argument("--before-cutoffs", type=int, nargs="*", default=[10])
    parser.add_argument("--run", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.run:
        print(json.dumps(measure(options, **json.loads(options.run))))
        return
    print(f"{options.llm}, {options.texts} texts of {options.data}\n")
    print(
        "| version | layers | cutoff | dtype | weights | peak memory | peak / weights "
        "| seconds to load: first, again | tokens per second |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for stream in (False, True):
        for cutoff in options.cutoffs:
            now = print_row(options, cutoff, stream)
            if options.before and cutoff in options.before_cutoffs:
                print_ratios(now, print_row(options, cutoff, stream, options.before))


def print_row(
    options: argparse.Namespace, cutoff: int, stream: bool, checkout: Path | None = None
) -> dict:
    """Measure a case in a process of its own, print its row, and return what was measured."""
    run = json.dumps({"cutoff": cutoff, "stream": stream})
    arguments = ["--llm", options.llm, "--data", options.data, "--texts", options.texts]
    arguments += ["--dtype", options.dtype, "--run", run]
    case = run_process(__file__, *arguments, checkout=checkout)
    version, layers = "earlier" if checkout else "this", "streamed" if stream else "in memory"
    print(
        f"| {version} | {layers} | {cutoff} | {case['dtype']} | {case['weights'] / 1e9:.2f} GB "
        f"| {case['peak'] / 1e9:.2f} GB | {case['peak'] / case['weights']:.2f} "
        f"| {case['load']:.1f}, {case['load_again']:.1f} | {case['speed']:.0f} |",
        flush=True,
    )
    return case


def print_ratios(now: dict, before: dict) -> None:
    """Print a row with the ratios of this version to an earlier one, of speeds and of memory."""
    print(
        f"| this relative to earlier | | | | {now['weights'] / before['weights']:.2f} "
        f"| {now['peak'] / before['peak']:.2f} | "
        f"| {before['load'] / now['load']:.1f}, {before['load_again'] / now['load_again']:.1f} "
        f"times as fast | {now['speed'] / before['speed']:.2f} |",
        flush=True,
    )


def measure(options: argparse.Namespace, cutoff: int, stream: bool) -> dict:
    """Measure a case.

    Returns:
        `dtype`: of the forward pass; `weights`: bytes of the embedding table and the kept layers in
        it; `peak`: peak of the process's memory in bytes, less what it held after the imports;
        `load`: seconds until a short text has passed the first layer, compilation included;
        `load_again`: the same after the weights were unloaded, so without compilation and with the
        file in the page cache; `speed`: tokens per second of a second forward pass.
    """
    from embedder_helpers.models.gemma import Gemma, HiddenStateSpec
    from embedder_helpers.models.presets import find_preset
    from embedder_helpers.models.shapes import count_weights, preset_shape

    start_backend()
    after_imports = memory_bytes("VmRSS")
    has_dtype = "dtype" in inspect.signature(Gemma).parameters
    dtype = {"dtype": options.dtype} if has_dtype else {}
    gemma = Gemma(find_preset("llm_preset", options.llm), stream, **dtype)
    ids, _ = gemma.tokenize(load_texts(options.data, options.texts), MAX_TOKENS)
    shortest = ids.select([int(ids.lengths.argmin())])
    specs = [HiddenStateSpec(k, "rms") for k in sorted({1, cutoff})]

    load = timed(lambda: next(gemma.forward_layers(shortest, specs)))
    forward = timed(lambda: deque(gemma.forward_layers(ids, specs), maxlen=0))
    seconds = load(), forward(), forward()
    peak = memory_bytes("VmHWM") - after_imports
    gemma.unload()

    count = count_weights(preset_shape("llm_preset", options.llm))
    dtype = getattr(gemma, "dtype", "float32")
    return {
        "dtype": dtype,
        "weights": (4 if dtype == "float32" else 2) * (count.embedding + cutoff * count.layer),
        "peak": peak,
        "load": seconds[0],
        "load_again": load(),
        "speed": int(ids.lengths.sum()) / seconds[2],
    }


def start_backend() -> None:
    """Import and initialize what a forward pass needs besides the model."""
    import keras
    import keras_hub  # noqa: F401

    keras.ops.convert_to_numpy(keras.ops.ones(1))


def memory_bytes(field: str) -> int:
    """The process's memory that is resident now (VmRSS) or was at most (VmHWM)."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return 1024 * int(re.search(rf"{field}:\s+(\d+) kB", status)[1])


if __name__ == "__main__":
    main()

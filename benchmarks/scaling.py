"""What a second worker gains, and what the driver of a cluster costs.

usage: python benchmarks/scaling.py --llm presets/gemma3_270m --slm presets/roberta_6l_384 \
           --data data/amazon_counterfactual [--texts 512]

Workers have one CPU each, one thread each. The ideal for two is two independent programs at the
same time, which is what the machine's memory and caches allow.
"""

import argparse
import functools
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
from side_by_side import parse_options, print_table, ratio, spread

IDLE_EXPERIMENTS = 1000
ROUNDS = 3


def main() -> None:
    """Measure and print; with --run, measure one part and print it as JSON."""
    options = parse_options(__doc__, "llm", "slm", texts=512)
    if options.run:
        part, workers = options.run.split()
        print(json.dumps(PARTS[part](options, int(workers))))
        return
    rows = []
    for part in ("forward", "experiments"):
        seconds = {"one": [], "two": [], "independent": []}
        for _ in range(ROUNDS):
            seconds["one"].append(measure(options, f"{part} 1"))
            seconds["two"].append(measure(options, f"{part} 2"))
            seconds["independent"].append(at_once(options, f"{part} 1"))
        rows += [
            (f"{part}: one worker's seconds / two workers'", ratio(seconds["one"], seconds["two"])),
            (
                "the same for two independent programs, each with all of it: ideal",
                spread(
                    [
                        2 * a / b
                        for a, b in zip(seconds["one"], seconds["independent"], strict=True)
                    ],
                    2,
                ),
            ),
        ]
    per_experiment, early, late = run(options, "idle 2")
    rows += [
        (
            f"driver: seconds per experiment, of {IDLE_EXPERIMENTS} that do nothing",
            f"{per_experiment:.4f}",
        ),
        ("driver: memory after 100 of them and after all", f"{early:.0f} MB, {late:.0f} MB"),
    ]
    print_table(rows)


def run(options: argparse.Namespace, part: str) -> list[float]:
    """A part in a process of its own."""
    return json.loads(start(options, part).communicate()[0].splitlines()[-1])


def measure(options: argparse.Namespace, part: str) -> float:
    """Seconds of a part."""
    return run(options, part)[0]


def at_once(options: argparse.Namespace, part: str) -> float:
    """Seconds until two programs that do the same at the same time have both ended."""
    programs = [start(options, part) for _ in range(2)]
    return max(json.loads(one.communicate()[0].splitlines()[-1])[0] for one in programs)


def start(options: argparse.Namespace, part: str) -> subprocess.Popen:
    command = [sys.executable, __file__, "--llm", options.llm, "--slm", options.slm]
    command += ["--data", options.data, "--texts", options.texts, "--run", part]
    return subprocess.Popen(
        list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )


def on_workers(function):
    """The function of options and folder as a part that runs with so many workers."""

    @functools.wraps(function)
    def part(options: argparse.Namespace, workers: int) -> list[float]:
        import ray

        os.environ["OMP_NUM_THREADS"] = "1"
        os.environ["RAY_DISABLE_IMPORT_WARNING"] = "1"
        root = str(Path(__file__).resolve().parent.parent)
        os.environ["PYTHONPATH"] = root
        ray.init(
            "local", num_cpus=workers, num_gpus=0, include_dashboard=False, log_to_driver=False
        )
        with tempfile.TemporaryDirectory() as folder:
            return function(options, Path(folder))

    return part


def experiments_of(options: argparse.Namespace, folder: Path, **settings) -> list:
    from embedder_helpers.config import Experiment

    return [
        Experiment(
            llm_preset=options.llm, slm_preset=options.slm, task=options.data.name,
            task_data=str(options.data), max_train_texts=options.texts, epochs=1,
            states_dir=str(folder / "states"), seed=seed, **settings,
        )
        for seed in (33, 34, 35, 36)
    ]  # fmt: skip


def sweep(experiments: list, folder: Path) -> None:
    from embedder_helpers.experiments.sweep import run_experiments

    _, failed = run_experiments(experiments, folder / "out", cluster="local", cpus_per_worker=1)
    if failed:
        raise SystemExit(f"an experiment failed: {failed}")


@on_workers
def forward(options: argparse.Namespace, folder: Path) -> list[float]:
    """Seconds of a walk through Gemma, shared by all workers: log lines say when it is done."""
    begun = time.perf_counter()
    sweep(experiments_of(options, folder, kind="gemma_only", llm_layers=12)[:1], folder)
    return [time.perf_counter() - begun]


@on_workers
def training(options: argparse.Namespace, folder: Path) -> list[float]:
    """Seconds of four trainings of RoBERTa alone, which needs no hidden states."""
    begun = time.perf_counter()
    sweep(experiments_of(options, folder, kind="roberta_only"), folder)
    return [time.perf_counter() - begun]


@on_workers
def idle(options: argparse.Namespace, folder: Path) -> list[float]:
    """Seconds per experiment that does nothing, and the driver's megabytes early and at the end."""
    from embedder_helpers.experiments import cluster, remote
    from embedder_helpers.experiments.plan import Outcome, Status
    from embedder_helpers.experiments.site import Site

    class Idle(remote.RemoteExecutor):
        """Does nothing."""

        def batches(self, site):
            return [(False, [(name, 0) for name in site[1]])]

        def run(self, site, batch, name):
            return Outcome(Status.FINISHED), None

    cluster.RemoteExecutor = Idle
    names = [f"experiment-{number}" for number in range(IDLE_EXPERIMENTS)]
    arguments = ([], str(folder), "token", time.time() + 3600)
    workers = cluster._start_workers(arguments, 1)
    process, memory = psutil.Process(), []

    def seconds(count: int) -> float:
        site = Site(names[:count], names[:count], 0.0)
        for worker in workers:
            worker.sites = cluster.deque([site])
        begun = time.perf_counter()
        cluster._Driver(workers, folder, count).run()
        memory.append(process.memory_info().rss / 1e6)
        return time.perf_counter() - begun

    seconds(100)  # the processes start
    return [seconds(IDLE_EXPERIMENTS) / IDLE_EXPERIMENTS, *memory]


PARTS = {"forward": forward, "experiments": training, "idle": idle}

if __name__ == "__main__":
    main()

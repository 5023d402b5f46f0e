"""What a second worker gains, and what the driver of a cluster costs.

usage: python benchmarks/scaling.py --llm presets/gemma3_270m --slm presets/roberta_6l_384 \
           --data data/amazon_counterfactual [--texts 256]

Workers have one thread each, one worker is pinned to one core. Seconds are those of the work, from
when it is first handed out; starting the processes is not counted, loading or building a model is.
The ideal for two is two independent programs at the same time, on a core each, which is what the
machine's memory and caches allow.
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
    options = parse_options(__doc__, "llm", "slm", texts=256)
    if options.run:
        part, *cores = options.run.split()
        os.sched_setaffinity(0, map(int, cores))  # also of all processes that this one starts
        print(json.dumps(PARTS[part](options, len(cores))))
        return
    rows = []
    for part in ("forward", "experiments"):
        seconds = {"one": [], "two": [], "independent": []}
        for _ in range(ROUNDS):
            seconds["one"].append(measure(options, f"{part} 0"))
            seconds["two"].append(measure(options, f"{part} 0 1"))
            seconds["independent"].append(at_once(options, part))
            print(part, {name: values[-1] for name, values in seconds.items()}, file=sys.stderr)
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
    per_experiment, early, late = run(options, "idle 0 1")
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
    programs = [start(options, f"{part} {core}") for core in range(2)]
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
            task_data=str(options.data), epochs=1,
            states_dir=str(folder / "states"), seed=seed, **settings,
        )
        for seed in (33, 34, 35, 36)
    ]  # fmt: skip


def seconds_of(method: str, experiments: list, folder: Path) -> float:
    """Seconds from the first piece of work of a kind that is handed out to the end of the last."""
    from embedder_helpers.experiments import cluster
    from embedder_helpers.experiments.sweep import run_experiments

    times = []

    class Timed(cluster.Site):
        """Notes when pieces of work begin and end."""

        def next_job(self, model):
            job = super().next_job(model)
            if job and job.method == method:
                times.append(time.perf_counter())
            return job

        def end(self, job, answer):
            if job.method == method:
                times.append(time.perf_counter())
            super().end(job, answer)

    cluster.Site = Timed
    _, failed = run_experiments(experiments, folder / "out", cluster="local", cpus_per_worker=1)
    if failed:
        raise SystemExit(f"an experiment failed: {failed}")
    return times[-1] - times[0]


@on_workers
def forward(options: argparse.Namespace, folder: Path) -> list[float]:
    """Seconds of a walk through Gemma, of several shards of texts, that all workers share."""
    settings = dict(kind="gemma_only", probe=True, max_train_texts=8 * options.texts)
    experiments = experiments_of(options, folder, llm_layers=12, **settings)
    return [seconds_of("compute_shard", experiments[:1], folder)]


@on_workers
def training(options: argparse.Namespace, folder: Path) -> list[float]:
    """Seconds of four trainings of RoBERTa alone, which needs no hidden states."""
    settings = dict(kind="roberta_only", max_train_texts=options.texts)
    return [seconds_of("run", experiments_of(options, folder, **settings), folder)]


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
            return Outcome(Status.FINISHED), {}

    cluster.RemoteExecutor = Idle
    names = [f"experiment-{number}" for number in range(IDLE_EXPERIMENTS)]
    arguments = ([], os.getcwd(), str(folder), "token", time.time() + 3600)
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

"""How long a sweep takes on so many processes, and what keeps more of them from being faster."""

import heapq
from collections.abc import Sequence

import pandas as pd

from embedder_helpers.config import Experiment
from embedder_helpers.data.tasks import Task
from embedder_helpers.experiments.estimate import Device, Part, sweep_parts

# Measured on two cores of an AMD EPYC: docs/performance.md.
START_SECONDS = 20.0  # until a process of a cluster has imported TensorFlow and planned
DRIVER_SECONDS = 0.002  # of the driver for an experiment, one after another


def estimate_workers(
    experiments: Sequence[Experiment], device: Device, counts: Sequence[int]
) -> pd.DataFrame:
    """A row per number of processes, each with a device of its own.

    The forward pass is divided into shards, and every experiment runs in one process, the longest
    first, each time in the one that is free first (Graham 1969, Bounds on multiprocessing timing
    anomalies, SIAM J. Appl. Math. 17). Every process starts, and builds a model, by itself; one
    driver hands everything out.

    Returns:
        `workers`, `hours`, `efficiency` (the hours of one process divided by `workers` times these)
        and `bottleneck`, what takes most of the time that more processes would not shorten.

    Raises:
        InputError: data or a model's shape that cannot be loaded.
    """
    tasks: dict[tuple, Task] = {}
    distinct = {repr((one.task_settings(), one.relevant_settings())): one for one in experiments}
    parts = sweep_parts(list(distinct.values()), device, tasks)
    walks = [part for part in parts if part.is_forward]
    alone = [
        sum(
            part.shared_seconds for part in sweep_parts([one], device, tasks) if not part.is_forward
        )
        for one in distinct.values()
    ]
    building = sum(part.start for part in parts if not part.is_forward)
    one = _parallel_seconds(walks, alone, 1) + building
    rows = []
    for count in counts:
        fixed = {
            "starting the processes": START_SECONDS if count > 1 else 0.0,
            "building models": building / max(1, min(count, len(alone))) if count > 1 else building,
            "the driver": DRIVER_SECONDS * len(alone) if count > 1 else 0.0,
            "loading Gemma": sum(part.start for part in walks),
            "the longest experiment": max(alone, default=0.0),
        }
        walk = sum(part.shared_seconds / min(count, part.shards) for part in walks)
        run = max(_makespan(alone, count), fixed["the driver"])
        start = fixed["starting the processes"] + fixed["building models"] + fixed["loading Gemma"]
        seconds = start + walk + run
        bottleneck = max(fixed, key=fixed.get)
        rows.append(
            {
                "workers": count,
                "hours": seconds / 3600,
                "efficiency": one / (count * seconds),
                "bottleneck": bottleneck if count > 1 else "-",
            }
        )
    return pd.DataFrame(rows)


def _parallel_seconds(walks: Sequence[Part], alone: Sequence[float], count: int) -> float:
    walk = sum(part.shared_seconds / count + part.start for part in walks)
    return walk + sum(alone) / count


def _makespan(seconds: Sequence[float], count: int) -> float:
    """When the last of some experiments ends, if each begins on the process that is free first."""
    ends = [0.0] * count
    for one in sorted(seconds, reverse=True):
        heapq.heapreplace(ends, ends[0] + one)
    return max(ends)

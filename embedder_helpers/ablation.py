"""The ablation: each embedder beside the one before it, and what the keys between them changed."""

from collections.abc import Sequence
from typing import NamedTuple

import pandas as pd

from embedder_helpers.comparison import COLUMNS, cell, groups, lead, mean
from embedder_helpers.config import make_experiment
from embedder_helpers.report import KIND_NAMES
from embedder_helpers.result import Result


class Step(NamedTuple):
    """One embedder of an ablation.

    Attributes:
        task: its task's name.
        change: the keys in which it differs from the embedder before it, in words.
        results: its results, by seed.
        before: the results of the embedder before it; empty for a task's first.
    """

    task: str
    change: str
    results: list[Result]
    before: list[Result]


def steps(results: Sequence[Result]) -> list[Step]:
    """The steps of each task, in the order of the results, which is that of the sweep's config."""
    found: list[Step] = []
    last: dict[str, list[Result]] = {}
    for (task, _), group in groups(results).items():
        before = last.get(task, [])
        found.append(Step(task, _change(group[0], before[0] if before else None), group, before))
        last[task] = group
    return sorted(found, key=lambda step: list(last).index(step.task))


def _change(result: Result, before: Result | None) -> str:
    """`epochs 3, batch_size 32`: what is new, the kind first if that is."""
    kind = KIND_NAMES[result.experiment["kind"]]
    if before is None:
        return kind
    old, new = (make_experiment(one.experiment).determining() for one in (before, result))
    changed = [
        f"{key} {value}"
        for key, value in new.items()
        if key not in ("kind", "seed") and old.get(key, ...) != value
    ]
    return ", ".join(changed if old["kind"] == new["kind"] else [kind, *changed])


def step_table(results: Sequence[Result]) -> pd.DataFrame:
    """A row per step: its scores, and under `gain` how far they lie above the step before it.

    Means over seeds with 95 % intervals; gains are paired over the seeds that both have and the
    protocol's draws. A single seed has no interval.

    Args:
        results: of a sweep in which every experiment keeps what the ones before it changed; one
            that comes twice counts where it came first.
    """
    rows = []
    for task, change, group, before in steps(results):
        row = {"task": task, "step": change, "seeds": len(group)}
        for column in COLUMNS:
            gain = lead(group, before, column) if before else None
            row |= {column: cell(mean(group, column)), f"{column} gain": cell(gain, signed=True)}
        rows.append(row)
    return pd.DataFrame(rows)

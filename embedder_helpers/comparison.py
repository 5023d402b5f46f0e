"""The comparison: results that differ in their seed alone become one row, with its intervals.

And for each hybrid, by how much it lies above the others on the same seeds and draws.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from embedder_helpers.config import make_experiment
from embedder_helpers.intervals import Interval, interval, paired
from embedder_helpers.report import as_markdown, names, of_validation
from embedder_helpers.result import Result

# Columns of the comparison, and the metric and the part of a result that each shows.
COLUMNS = {
    "accuracy": ("accuracy", "experiments"),
    "F1": ("f1", "experiments"),
    "head accuracy": ("accuracy", "head"),
    "head F1": ("f1", "head"),
}


def as_text(results: Sequence[Result]) -> str:
    """Both tables as Markdown, and again without repeated texts; empty for a single seed."""
    if all(len(group) == 1 for group in groups(results).values()):
        return ""
    text = _tables(results, unrepeated=False)
    repeated = {
        f"{one.unrepeated['texts']} of {one.task['texts']['scored']} scored texts of "
        f"{one.task['name']}": one.task["name"]
        for one in results
        if one.unrepeated
    }
    if repeated:
        some = [one for one in results if one.task["name"] in repeated.values()]
        text += f"Without {', '.join(repeated)}, which the train split has too:\n\n"
        text += _tables(some, unrepeated=True)
    return text


def _tables(results: Sequence[Result], unrepeated: bool) -> str:
    text = as_markdown(comparison(results, unrepeated=unrepeated)) + "\n"
    leads = differences(results, unrepeated=unrepeated)
    if len(leads):
        text += "By how much a hybrid lies above the others, paired over seeds and draws:\n\n"
        text += as_markdown(leads) + "\n"
    return text


def groups(results: Sequence[Result]) -> dict[tuple[str, str], list[Result]]:
    """Results by task and name; those of a group differ in their seed and are sorted by it."""
    found: dict[tuple[str, str], list[Result]] = {}
    for result, name in zip(results, names(results), strict=True):
        found.setdefault((result.task["name"], name), []).append(result)
    return {
        same: sorted(group, key=lambda one: one.experiment["seed"]) for same, group in found.items()
    }


def scores(results: Sequence[Result], column: str, *, unrepeated: bool = False) -> Any:
    """The scores `(seeds, draws)` of one embedder, head scores `(seeds, 1)`; None if it has none.

    Args:
        results: of one embedder, by seed.
        column: of COLUMNS.
        unrepeated: leave out scored texts that train has too.
    """
    metric, part = COLUMNS[column]
    found = []
    for result in results:
        given = result.unrepeated if unrepeated and result.unrepeated else vars(result)
        singles = given.get(part) if part == "experiments" else [given.get(part)]
        if singles in (None, [None]):
            return None
        found.append([one[metric] for one in singles])
    return np.array(found)


def mean(results: Sequence[Result], column: str, *, unrepeated: bool = False) -> Interval | None:
    """The mean of one embedder's scores with its interval, which one trained seed cannot tell."""
    found = scores(results, column, unrepeated=unrepeated)
    return None if found is None else _unless_one_seed(results, interval(found))


def _unless_one_seed(results: Sequence[Result], found: Interval) -> Interval:
    if _seeded(results) and len(results) == 1:
        return Interval(found.mean, np.nan, np.nan)
    return found


def _seeded(results: Sequence[Result]) -> bool:
    """Whether another seed would have given other results: Gemma alone has none to give."""
    return "seed" in make_experiment(results[0].experiment).determining()


def comparison(results: Sequence[Result], *, unrepeated: bool = False) -> pd.DataFrame:
    """A row per task and embedder: mean and 95 % interval of each score.

    Args:
        results: of any tasks.
        unrepeated: of the scored texts that train does not have too.
    """
    rows = []
    for (task, name), group in groups(results).items():
        found = {column: mean(group, column, unrepeated=unrepeated) for column in COLUMNS}
        told = {column: cell(one) for column, one in found.items()}
        rows.append({"task": task, "embedder": name, "seeds": len(group)} | told)
    return pd.DataFrame(rows)


def differences(results: Sequence[Result], *, unrepeated: bool = False) -> pd.DataFrame:
    """By how much each hybrid lies above each embedder without Gemma or without RoBERTa.

    Paired over seeds and draws; only seeds that both have count. A whole interval above zero means
    that the hybrid is better, as far as seeds and draws go.
    """
    found = groups(results)
    rows = []
    for (task, name), hybrids in found.items():
        if hybrids[0].experiment["kind"] != "hybrid":
            continue
        for (other_task, other), alone in found.items():
            if other_task == task and comparable(hybrids[0], alone[0]):
                one, _ = _same_seeds(hybrids, alone)
                row = {"task": task, "hybrid": name, "above": other, "seeds": len(one)}
                for column in COLUMNS:
                    above = lead(hybrids, alone, column, unrepeated=unrepeated)
                    row[column] = cell(above, signed=True)
                rows.append(row)
    return pd.DataFrame(rows)


def cell(found: Interval | None, signed: bool = False) -> str:
    """An interval in a table; `-` where there is none."""
    return "-" if found is None else found.told(signed)


def lead(
    first: Sequence[Result], second: Sequence[Result], column: str, *, unrepeated: bool = False
) -> Interval | None:
    """How far the first embedder's scores lie above the second's, paired over seeds and draws.

    Args:
        first: results of one embedder; only seeds that both have count.
        second: of another, on the same task.
        column: of COLUMNS.
        unrepeated: leave out scored texts that train has too.

    Returns:
        The mean difference with its interval; None where no seed is common, or one has no score.
    """
    first, second = _same_seeds(first, second)
    if not first:
        return None
    one, two = (scores(group, column, unrepeated=unrepeated) for group in (first, second))
    if one is None or two is None:
        return None
    seeded = [group for group in (first, second) if _seeded(group)]
    return _unless_one_seed(max(seeded or [first], key=len), paired(one, two))


def comparable(hybrid: Result, other: Result) -> bool:
    """Whether the other is RoBERTa alone, or Gemma alone at a like cutoff or with a probe.

    Of the same texts and draws.

    Args:
        hybrid: or any embedder that is to be seen beside those.
        other: of any kind.
    """

    def scored(result: Result) -> tuple:
        draws = result.task.get("samples_per_label")
        return result.inputs["task"], of_validation(result), draws

    kind, probe = other.experiment["kind"], other.experiment.get("probe")
    chosen = other.experiment["llm_layers"] == "auto"
    like = kind == "gemma_only" and (probe or chosen or other.cutoffs == hybrid.cutoffs)
    return (like or kind == "roberta_only") and scored(hybrid) == scored(other)


def _same_seeds(
    first: Sequence[Result], second: Sequence[Result]
) -> tuple[list[Result], list[Result]]:
    """Those whose seeds both have; one result that no seed decides stands beside all seeds."""
    if not (_seeded(first) and _seeded(second)):
        one, two = (group if _seeded(group) else group[:1] for group in (first, second))
        return list(one), list(two)
    seeds = {one.experiment["seed"] for one in first} & {one.experiment["seed"] for one in second}
    one, two = (
        [result for result in group if result.experiment["seed"] in seeds]
        for group in (first, second)
    )
    return one, two

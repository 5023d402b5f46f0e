"""Comparison of embedders: mean scores over seeds with 95 % CIs, paired differences, ablations.

Results that differ in their seed only become one row. A hybrid is compared with the others on equal
seeds and equal runs of the protocol.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from embedder_helpers.results.data_sets import data_key, data_labels, local_data, without_empty_data
from embedder_helpers.results.formats import escape_markdown, to_markdown
from embedder_helpers.results.intervals import Interval, mean_interval, paired_interval
from embedder_helpers.results.naming import (
    KIND_NAMES,
    display_names,
    is_validation_score,
    relevant_settings,
)
from embedder_helpers.results.result import Result

# Columns of the comparison: the metric, and the part of a result file that each one shows.
COLUMNS = {
    "accuracy": ("accuracy", "experiments"),
    "macro F1": ("f1", "experiments"),
    "head accuracy": ("accuracy", "head"),
    "head macro F1": ("f1", "head"),
}


# === Scores ===


def group_by_seed(results: Sequence[Result]) -> dict[tuple[str, str], list[Result]]:
    """Results by label of their data and name, sorted by seed, in which alone a group differs.

    Of results with one seed, which are copies, the last one counts.
    """
    groups: dict[tuple[str, str], dict[int, Result]] = {}
    labeled = zip(results, data_labels(results), display_names(results), strict=True)
    for result, label, name in labeled:
        groups.setdefault((label, name), {})[_seed(result)] = result
    return {key: sorted(group.values(), key=_seed) for key, group in groups.items()}


def score_matrix(
    results: Sequence[Result], column: str, *, deduplicated: bool = False
) -> np.ndarray | None:
    """The scores `(seeds, runs)` of one embedder, `(seeds, 1)` for the head; None without any.

    Args:
        results: results of one embedder, by seed.
        column: name of a column in COLUMNS.
        deduplicated: whether to exclude evaluation texts that the train split contains too.
    """
    metric, part = COLUMNS[column]
    rows = []
    for result in results:
        scores = {"experiments": result.scores_per_experiment, "head": result.head}
        if deduplicated and result.deduplicated:
            scores = result.deduplicated
        if scores.get(part) is None:
            return None
        runs = scores[part] if part == "experiments" else [scores[part]]
        rows.append([run[metric] for run in runs])
    return np.array(rows)


def score_interval(
    results: Sequence[Result], column: str, *, deduplicated: bool = False
) -> Interval | None:
    """The mean of one embedder's scores with its 95 % CI; None without scores.

    An embedder that depends on the seed has no CI if there is a single one. The arguments are those
    of `score_matrix`.
    """
    scores = score_matrix(results, column, deduplicated=deduplicated)
    return None if scores is None else _unless_single_seed(results, mean_interval(scores))


def _unless_single_seed(results: Sequence[Result], interval: Interval) -> Interval:
    if _depends_on_seed(results) and len(results) == 1:
        return Interval(interval.mean, np.nan, np.nan)
    return interval


def _depends_on_seed(results: Sequence[Result]) -> bool:
    """Whether the scores depend on the seed; in Gemma alone, nothing is random."""
    return "seed" in relevant_settings(results[0])


def _seed(result: Result) -> int:
    return result.experiment["seed"]


def format_interval(interval: Interval | None, signed: bool = False) -> str:
    """An interval as a table shows it; `-` for None."""
    return "-" if interval is None else interval.to_string(signed)


# === Comparisons ===


def format_comparison(results: Sequence[Result]) -> str:
    """Scores and differences in Markdown, with and without duplicates; empty for single seeds."""
    if all(len(group) == 1 for group in group_by_seed(results).values()):
        return ""
    text = _format_tables(results, deduplicated=False)
    if any(result.deduplicated for result in results):
        counts = dict.fromkeys(
            f"{result.deduplicated['texts']} of {result.task['texts']['scored']} evaluation texts "
            f"of {escape_markdown(label)}"
            for result, label in zip(results, data_labels(results), strict=True)
            if result.deduplicated
        )
        text += f"Without {', '.join(counts)} that the train split contains too:\n\n"
        text += _format_tables(results, deduplicated=True)
    return text


def _format_tables(results: Sequence[Result], deduplicated: bool) -> str:
    text = to_markdown(comparison_table(results, deduplicated=deduplicated)) + "\n"
    differences = difference_table(results, deduplicated=deduplicated)
    if len(differences):
        text += "Hybrid minus other embedder, paired over seeds and runs of the protocol:\n\n"
        text += to_markdown(differences) + "\n"
    return text


def comparison_table(results: Sequence[Result], *, deduplicated: bool = False) -> pd.DataFrame:
    """A row per data set and embedder: the mean and 95 % CI of each score.

    Args:
        results: results of any tasks.
        deduplicated: whether to exclude evaluation texts that the train split contains too, and
            data sets that have none.
    """
    rows = []
    for (task, name), group in _compared_groups(results, deduplicated).items():
        row = {"task": task, "data": local_data(group[0]), "embedder": name, "seeds": len(group)}
        for column in COLUMNS:
            row[column] = format_interval(score_interval(group, column, deduplicated=deduplicated))
        rows.append(row)
    return without_empty_data(pd.DataFrame(rows))


def difference_table(results: Sequence[Result], *, deduplicated: bool = False) -> pd.DataFrame:
    """A row per hybrid and comparable embedder: the hybrid's score minus the other's.

    Differences are paired over the seeds that both have and the runs of the protocol. A 95 % CI
    that lies entirely above zero means that the hybrid is better, up to the choice of test texts.
    The arguments are those of `comparison_table`.
    """
    groups = _compared_groups(results, deduplicated)
    rows = []
    for (task, name), hybrid in groups.items():
        if hybrid[0].experiment["kind"] != "hybrid":
            continue
        same_task = {key: group for key, group in groups.items() if key[0] == task}
        for (_, other_name), other in _baselines(hybrid[0], same_task).items():
            row = {
                "task": task,
                "data": local_data(hybrid[0]),
                "hybrid": name,
                "compared with": other_name,
                "seeds": len(_paired_results(hybrid, other)[0]),
            }
            for column in COLUMNS:
                difference = paired_difference(hybrid, other, column, deduplicated=deduplicated)
                row[column] = format_interval(difference, signed=True)
            rows.append(row)
    return without_empty_data(pd.DataFrame(rows))


def _baselines(
    hybrid: Result, groups: dict[tuple[str, str], list[Result]]
) -> dict[tuple[str, str], list[Result]]:
    """The groups that a hybrid is compared with, of those of its task.

    A probe of Gemma at other cutoffs is one only if there is no Gemma alone at the hybrid's own.
    """
    comparable = {key: group for key, group in groups.items() if is_comparable(hybrid, group[0])}
    if not any(group[0].cutoffs == hybrid.cutoffs for group in comparable.values()):
        return comparable
    return {
        key: group
        for key, group in comparable.items()
        if group[0].cutoffs in ([], hybrid.cutoffs) or group[0].selects_layer()
    }


def _compared_groups(
    results: Sequence[Result], deduplicated: bool
) -> dict[tuple[str, str], list[Result]]:
    """The groups of all data sets, or of those with duplicates, with the same labels and names."""
    keys = {data_key(result) for result in results if result.deduplicated or not deduplicated}
    groups = group_by_seed(results)
    return {key: group for key, group in groups.items() if data_key(group[0]) in keys}


def paired_difference(
    first: Sequence[Result], second: Sequence[Result], column: str, *, deduplicated: bool = False
) -> Interval | None:
    """The mean difference between two embedders' scores, first minus second, with its 95 % CI.

    It is paired over the seeds that both have and the runs of the protocol.

    Args:
        first: results of one embedder.
        second: results of another one on the same task.
        column: name of a column in COLUMNS.
        deduplicated: whether to exclude evaluation texts that the train split contains too.

    Returns:
        None if the two have no seed in common, or one of them has no such score.
    """
    first, second = _paired_results(first, second)
    if not first:
        return None
    first_scores = score_matrix(first, column, deduplicated=deduplicated)
    second_scores = score_matrix(second, column, deduplicated=deduplicated)
    if first_scores is None or second_scores is None:
        return None
    seeded = [group for group in (first, second) if _depends_on_seed(group)]
    interval = paired_interval(first_scores, second_scores)
    return _unless_single_seed(max(seeded or [first], key=len), interval)


def is_comparable(hybrid: Result, other: Result) -> bool:
    """Whether the other is a baseline of the hybrid, scored on the same texts by the same runs.

    Baselines are RoBERTa alone, ready encoders, and Gemma alone with equal cutoffs, a selected
    one, or a probe.

    Args:
        hybrid: result of a hybrid, or of any embedder to compare with the baselines.
        other: result of any kind.
    """
    kind, selected = other.experiment["kind"], other.selects_layer()
    if kind == "hybrid" or _evaluation(hybrid) != _evaluation(other):
        return False
    probe = other.experiment.get("probe", False)
    has_no_cutoff = kind in ("roberta_only", "encoder_only")
    return has_no_cutoff or probe or selected or other.cutoffs == hybrid.cutoffs


def _evaluation(result: Result) -> tuple:
    """The texts and the sample size that the scores depend on."""
    sample_size = result.task.get("samples_per_label")
    return result.inputs["task"], is_validation_score(result), sample_size


def _paired_results(
    first: Sequence[Result], second: Sequence[Result]
) -> tuple[list[Result], list[Result]]:
    """The results of common seeds; one that does not depend on the seed is paired with all."""
    if _depends_on_seed(first) and _depends_on_seed(second):
        seeds = set(map(_seed, first)) & set(map(_seed, second))
        first = [result for result in first if _seed(result) in seeds]
        second = [result for result in second if _seed(result) in seeds]
        return first, second
    return _one_if_seedless(first), _one_if_seedless(second)


def _one_if_seedless(results: Sequence[Result]) -> list[Result]:
    return list(results if _depends_on_seed(results) else results[:1])


# === Ablations ===


class AblationStep(NamedTuple):
    """One embedder of an ablation.

    Attributes:
        task: label of the data.
        change: settings that differ from the previous step: `epochs 3, batch_size 32`.
        results: results of this step, by seed.
        previous: results of the previous step; empty for a task's first one.
    """

    task: str
    change: str
    results: list[Result]
    previous: list[Result]


def ablation_steps(results: Sequence[Result]) -> list[AblationStep]:
    """The steps of each data set, in the order of the results: that of the sweep's config."""
    steps: list[AblationStep] = []
    latest: dict[str, list[Result]] = {}
    for (task, _), group in group_by_seed(results).items():
        previous = latest.get(task, [])
        steps.append(AblationStep(task, _describe_change(group, previous), group, previous))
        latest[task] = group
    return sorted(steps, key=lambda step: list(latest).index(step.task))


def _describe_change(results: Sequence[Result], previous: Sequence[Result]) -> str:
    """The settings that differ, after the kind if that differs."""
    kind = KIND_NAMES[results[0].experiment["kind"]]
    if not previous:
        return kind
    old, new = relevant_settings(previous[0]), relevant_settings(results[0])
    changes = [
        f"{name} {value}"
        for name, value in new.items()
        if name not in ("kind", "seed", "task", "task_data") and old.get(name, ...) != value
    ]
    return ", ".join(changes if old["kind"] == new["kind"] else [kind, *changes])


def ablation_table(results: Sequence[Result]) -> pd.DataFrame:
    """A row per step: its scores, and as `gain` the difference from the previous step.

    Scores are means over seeds with 95 % CIs; gains are paired over the seeds that both steps have
    and the runs of the protocol. A single seed has no CI.

    Args:
        results: results of a sweep in which every experiment keeps the changes of those before it;
            a duplicate counts where it came first.
    """
    rows = []
    for step in ablation_steps(results):
        data, seeds = local_data(step.results[0]), len(step.results)
        row = {"task": step.task, "data": data, "step": step.change, "seeds": seeds}
        for column in COLUMNS:
            row[column] = format_interval(score_interval(step.results, column))
            gain = paired_difference(step.results, step.previous, column) if step.previous else None
            row[f"{column} gain"] = format_interval(gain, signed=True)
        rows.append(row)
    return without_empty_data(pd.DataFrame(rows))

"""Figures: scores of each embedder, and curves over the cutoff."""

import itertools
import math
import re
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from embedder_helpers.ablation import steps
from embedder_helpers.comparison import COLUMNS, groups, mean, scores
from embedder_helpers.leaderboard import leaderboard, original_study, ours
from embedder_helpers.report import KIND_NAMES, of_validation
from embedder_helpers.result import Result

COLORS = {"hybrid": "#c50", "gemma_only": "#136", "roberta_only": "#383"}
STYLES = ("-", "--", "-.", ":")
METRICS = {"accuracy": "accuracy", "f1": "macro F1"}


def plot_layers(results: Sequence[Result], path: str | Path | None = None) -> Any:
    """Accuracy and F1 over the cutoff, with the baselines, the floor and the published curve.

    Lines are means over seeds and draws, and bands their 95 % intervals; one seed of what was
    trained has none. Several cutoffs pooled into one have no place on the axis and are left out.

    Args:
        results: of one or more tasks; each task is a row of panels.
        path: where to save the figure, if anywhere.

    Returns:
        The matplotlib figure.
    """
    from matplotlib.ticker import MultipleLocator

    found = dict(sorted(_by_task(results).items()))
    figure, panels = _panels(list(found), [3.6] * len(found), sharex=True)
    published = original_study()
    if any(map(of_validation, results)):
        published = published.iloc[:0]
    for task, row in zip(found, panels, strict=True):
        for metric, panel in zip(METRICS, row, strict=True):
            _curves(panel, found[task], metric)
            _published(panel, published[published["task"] == task], metric)
            panel.grid(alpha=0.3)
    for panel in panels[-1]:
        panel.set_xlabel("cutoff: Gemma's blocks 1 … k")
        panel.xaxis.set_major_locator(MultipleLocator(2, offset=1))
    return _finished(figure, panels, path)


def _curves(panel: Any, found: dict[str, list[Result]], metric: str) -> None:
    """Our scores of one task: a line over cutoffs for each kind, a level for RoBERTa alone."""
    column, bounded = {"accuracy": "accuracy", "f1": "F1"}[metric], False
    for kind in ("hybrid", "gemma_only"):
        color = COLORS[kind]
        for (label, curve), style in zip(_by_cutoff(found, kind).items(), itertools.cycle(STYLES)):
            means, low, high = zip(*(mean(group, column) for group in curve.values()), strict=True)
            panel.plot(list(curve), means, style, marker="o", ms=4, color=color, label=label)
            # Its edge shows an interval that stands alone.
            panel.fill_between(list(curve), low, high, color=color, alpha=0.15, lw=2)
            bounded |= any(map(math.isfinite, low))
    for name, group in found.items():
        if group[0].experiment["kind"] == "roberta_only":
            style = "-" if group[0].history else "--"
            level = mean(group, column).mean
            panel.axhline(level, color=COLORS["roberta_only"], ls=style, label=name)
    floor = next(iter(found.values()))[0].floor[metric]
    panel.axhline(floor, color="#777", ls=":", label="floor: the commonest label")
    if bounded:
        panel.fill_between([], [], color="#777", alpha=0.3, label="95 % interval")


def _by_cutoff(found: dict[str, list[Result]], kind: str) -> dict[str, dict[int, list[Result]]]:
    """The results of a kind by their name without its cutoff, then by the cutoff, in order."""
    curves: dict[str, dict[int, dict[int, Result]]] = {}
    for name, group in sorted(found.items(), key=lambda one: one[1][0].cutoffs):
        if group[0].experiment["kind"] == kind and len(group[0].cutoffs) == 1:
            curve = curves.setdefault(re.sub(r" \[.*?\]", "", name, count=1), {})
            # A chosen cutoff and the same one given are the same result: a seed counts once.
            seeds = curve.setdefault(group[0].cutoffs[0], {})
            seeds |= {one.experiment["seed"]: one for one in group}
    return {
        label: {cutoff: list(seeds.values()) for cutoff, seeds in curve.items()}
        for label, curve in curves.items()
    }


def _published(panel: Any, frame: pd.DataFrame, metric: str) -> None:
    """The original study's hybrid and RoBERTa alone, in grey."""
    hybrid = frame[frame["kind"] == "hybrid"]
    if len(hybrid):
        panel.plot(
            hybrid["llm_layers"], hybrid[metric], ".-", lw=0.8, color="#aaa",
            label="original study (Gemma 2B, RoBERTa-base): hybrid",
        )  # fmt: skip
        alone = frame.loc[frame["kind"] == "roberta_only", metric].iloc[0]
        panel.axhline(alone, color="#aaa", lw=0.8, ls="-.", label="original study: RoBERTa only")


def plot(results: Sequence[Result], path: str | Path | None = None) -> Any:
    """Accuracy and F1 of each embedder with its single draws, 95 % intervals, floor and head score.

    Args:
        results: of one or more tasks; each task is a row of panels.
        path: where to save the figure, if anywhere.

    Returns:
        The matplotlib figure.
    """
    return _plot(_by_task(results), path)


def _by_task(results: Sequence[Result]) -> dict[str, dict[str, list[Result]]]:
    """The groups of the comparison, by task and then by name."""
    found: dict[str, dict[str, list[Result]]] = {}
    for (task, name), group in groups(results).items():
        found.setdefault(task, {})[name] = group
    return found


def plot_leaderboard(results: Sequence[Result], path: str | Path | None = None) -> Any:
    """Accuracy and F1 against parameters: the leaderboard's models, and ours by their kind.

    Args:
        results: of any tasks; each task that the leaderboard has is a row of panels.
        path: where to save the figure, if anywhere.

    Returns:
        The matplotlib figure; None where no result has a place.
    """
    board, own = leaderboard(), ours(results)
    tasks = sorted(set(own["task"]) & set(board["task"])) if len(own) else []
    if not tasks:
        return None
    figure, panels = _panels(tasks, [3.6] * len(tasks), sharex=True)
    for task, row in zip(tasks, panels, strict=True):
        for metric, panel in zip(METRICS, row, strict=True):
            _models(panel, board[board["task"] == task], metric)
            for kind, color in COLORS.items():
                some = own[(own["task"] == task) & (own["kind"] == kind)]
                some = some.dropna(subset="parameters")
                label = f"ours: {KIND_NAMES[kind]}"
                panel.plot(some["parameters"], some[metric], "D", ms=7, color=color, label=label)
            panel.set_xscale("log")
            panel.grid(alpha=0.3)
    for panel in panels[-1]:
        panel.set_xlabel("parameters")
    return _finished(figure, panels, path)


def _models(panel: Any, board: pd.DataFrame, metric: str) -> None:
    """The leaderboard's models of one task, by whether they were trained on it."""
    for trained, mark, color, label in (
        ("yes", "o", "#555", "leaderboard: trained on the task"),
        ("unknown", ".", "#999", "leaderboard: not known"),
        ("no", "x", "#bbb", "leaderboard: not trained on it"),
    ):
        some = board[board["trained_on_task"] == trained].dropna(subset=["parameters", metric])
        panel.plot(some["parameters"], some[metric], mark, ms=5, color=color, label=label)


def plot_steps(results: Sequence[Result], path: str | Path | None = None) -> Any:
    """The same of an ablation: a row per step, which says what it changed.

    Args:
        results: of an ablation, in its order; each task is a row of panels.
        path: where to save the figure, if anywhere.

    Returns:
        The matplotlib figure.
    """
    by_task: dict[str, dict[str, list[Result]]] = {}
    for step in steps(results):
        found = by_task.setdefault(step.task, {})
        words = textwrap.wrap(f"{len(found) + 1}. {step.change}", 44)
        found["\n".join(words)] = step.results
    return _plot(by_task, path)


def _plot(by_task: dict[str, dict[str, list[Result]]], path: str | Path | None) -> Any:
    """A row of panels per task, and in each a row per embedder, by its name."""
    lines = [sum(name.count("\n") + 1 for name in found) for found in by_task.values()]
    rows = [len(found) for found in by_task.values()]
    heights = [0.8 + 0.26 * row + 0.16 * line for row, line in zip(rows, lines, strict=True)]
    figure, panels = _panels(list(by_task), heights, sharey="row")
    for found, row in zip(by_task.values(), panels, strict=True):
        for metric, panel in zip(("accuracy", "F1"), row, strict=True):
            _panel(panel, found, metric)
    return _finished(figure, panels, path)


def _panel(panel: Any, found: dict[str, list[Result]], metric: str) -> None:
    """One metric: a dot for the protocol mean, ticks for its experiments, a cross for the head."""
    for place, group in enumerate(found.values()):
        single = scores(group, metric)
        label = "single draw" if place == 0 else None
        panel.plot(single.ravel(), [place] * single.size, "|", color="#9ab", ms=9, label=label)
    for column, mark, color, label in (
        (metric, "o", "#136", "protocol, 95 % interval"),
        (f"head {metric}", "x", "#c50", "head, 95 % interval of several seeds"),
    ):
        places, means = [], []
        for place, group in enumerate(found.values()):
            if one := mean(group, column):
                panel.plot(one[1:], [place, place], color=color, lw=2)
                places.append(place)
                means.append(one.mean)
        panel.plot(means, places, mark, color=color, label=label)
    first = next(iter(found.values()))[0]
    panel.axvline(first.floor[COLUMNS[metric][0]], color="#777", ls=":", label="floor")
    panel.set_yticks(range(len(found)), list(found), fontsize=9)
    panel.set_ylim(len(found) - 0.5, -0.5)
    panel.grid(axis="x", alpha=0.3)


def _panels(tasks: Sequence[str], heights: Sequence[float], **shared: Any) -> tuple[Any, Any]:
    """A figure, and `(tasks, 2)` titled panels: a row per task of so many inches, its metrics."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, sum(heights) + 0.6), layout="constrained")
    panels = figure.subplots(len(tasks), 2, squeeze=False, height_ratios=heights, **shared)
    for task, row in zip(tasks, panels, strict=True):
        for (metric, words), panel in zip(METRICS.items(), row, strict=True):
            title = f"{task}: {words}" if metric == "accuracy" else words
            panel.set_title(title, loc="left", size=10)
            panel.spines[["top", "right"]].set_visible(False)
    return figure, panels


def _finished(figure: Any, panels: Any, path: str | Path | None) -> Any:
    """The figure with one legend for all its panels, saved if asked for."""
    found = [panel.get_legend_handles_labels() for panel in panels[:, 0]]
    lines = {label: line for pair in found for line, label in zip(*pair, strict=True)}
    figure.legend(
        lines.values(), lines.keys(), loc="outside upper center", ncols=4, frameon=False, fontsize=8
    )
    if path:
        figure.savefig(path, dpi=150)
    return figure

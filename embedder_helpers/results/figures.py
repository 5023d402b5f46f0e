"""Figures of results: scores, curves over the cutoff, the leaderboard, ablations."""

import functools
import re
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from embedder_helpers.errors import shorten
from embedder_helpers.results.comparison import (
    COLUMNS,
    ablation_steps,
    group_by_seed,
    is_comparable,
    paired_difference,
    score_interval,
    score_matrix,
)
from embedder_helpers.results.intervals import Interval
from embedder_helpers.results.leaderboard import (
    MAX_SMALL,
    SMALL,
    benchmark,
    load_leaderboard,
    load_original_study,
    our_models,
    uses_mteb_protocol,
)
from embedder_helpers.results.naming import KIND_NAMES, is_validation_score
from embedder_helpers.results.result import Result
from embedder_helpers.utils.files import atomic_write

if TYPE_CHECKING:  # imported by the functions that draw, so that a sweep does not wait for it
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLORS = {
    "hybrid": "#c50",
    "gemma_only": "#136",
    "roberta_only": "#383",
    "encoder_only": "#849",
}
STYLES = ("-", "--", "-.", ":")
METRICS = ("accuracy", "macro F1")
DIFFERENCE_TITLE = "accuracy, hybrid − RoBERTa only, points"
PANEL_WIDTH = 5  # inches
MAJORITY_LABEL = "majority-class baseline"
NAME_WIDTH = 46  # characters of a line beside the axis
TITLE_WIDTH = 46  # characters of a line above a panel
LEGEND_WIDTH = 145  # characters of a line of the legend
MAX_NAME = 200  # characters of a name
DPI = 150
MAX_PIXELS = 30_000  # of the height; Matplotlib draws at most 65,535

# Results by label of their data and name.
GroupsByTask = dict[str, dict[str, list[Result]]]
# Line styles by family and name.
LineStyles = dict[tuple[str, str], str]


# === Scores ===


def plot_scores(results: Sequence[Result], path: str | Path | None = None) -> "Figure":
    """Plot accuracy and macro F1 of each embedder: single runs, means with 95 % CIs, head scores.

    Args:
        results: results of one or more tasks; each task is a row of panels.
        path: file to save the figure to; None: do not save it.
    """
    return _plot_groups(_by_task(results), path)


def plot_ablation(results: Sequence[Result], path: str | Path | None = None) -> "Figure":
    """Plot the steps of an ablation like `plot_scores`, each named by what it changed.

    Args:
        results: results of an ablation, in its order; each task is a row of panels.
        path: file to save the figure to; None: do not save it.
    """
    by_task: GroupsByTask = {}
    for step in ablation_steps(results):
        steps = by_task.setdefault(step.task, {})
        steps[f"{len(steps) + 1}. {step.change}"] = step.results
    return _plot_groups(by_task, path)


def _by_task(results: Sequence[Result]) -> GroupsByTask:
    by_task: GroupsByTask = {}
    for (task, name), group in group_by_seed(results).items():
        by_task.setdefault(task, {})[name] = group
    return by_task


def _plot_groups(by_task: GroupsByTask, path: str | Path | None) -> "Figure":
    """A row of panels per data set; in each, a row per embedder."""
    names = [[wrap(name, NAME_WIDTH) for name in groups] for groups in by_task.values()]
    heights = [0.8 + sum(0.42 + 0.16 * name.count("\n") for name in of_task) for of_task in names]
    figure, panels = _make_panels(list(by_task), heights, sharey="row")
    for groups, of_task, row in zip(by_task.values(), names, panels, strict=True):
        for metric, panel in zip(METRICS, row, strict=True):
            _draw_scores(panel, groups, metric)
            panel.set_yticks(range(len(groups)), of_task, fontsize=9)
    return _finish(figure, panels, path)


def _draw_scores(panel: "Axes", groups: dict[str, list[Result]], metric: str) -> None:
    """One metric: ticks for single runs, a dot for their mean, a cross for the head."""
    for height, group in enumerate(groups.values()):
        scores = score_matrix(group, metric).ravel()
        label = "single run" if height == 0 else None
        panel.plot(scores, [height] * len(scores), "|", color="#9ab", ms=9, label=label)
    for column, offset, marker, color, label in (
        (metric, 0, "o", "#136", "mean of the protocol's runs, 95 % CI"),
        # Below the protocol's, whose interval it would else cover.
        (f"head {metric}", 0.25, "x", "#c50", "head, 95 % CI over seeds"),
    ):
        intervals = [score_interval(group, column) for group in groups.values()]
        known = {i + offset: interval for i, interval in enumerate(intervals) if interval}
        for height, interval in known.items():
            panel.plot(interval[1:], [height, height], color=color, lw=2)
        means = [interval.mean for interval in known.values()]
        panel.plot(means, list(known), marker, color=color, label=label)
    panel.axvline(_majority_score(groups, metric), color="#777", ls=":", label=MAJORITY_LABEL)
    panel.set_ylim(len(groups) - 0.5, -0.5)
    panel.grid(axis="x", alpha=0.3)


def _majority_score(groups: dict[str, list[Result]], metric: str) -> float:
    first = next(iter(groups.values()))[0]
    return first.majority_baseline[COLUMNS[metric][0]]


# === Curves over the cutoff ===


def plot_layers(results: Sequence[Result], path: str | Path | None = None) -> "Figure":
    """Plot accuracy and macro F1 over the cutoff, with baselines and the original study's curve.

    Lines are means over seeds and runs of the protocol, bands their 95 % CIs; a trained embedder
    with a single seed has no band. Embedders that pool several cutoffs are left out. Where there
    are hybrids and one trained RoBERTa alone, a third panel has their paired difference in
    accuracy, which the others are too coarse to show.

    Args:
        results: results of one or more tasks; each task is a row of panels.
        path: file to save the figure to; None: do not save it.
    """
    from matplotlib.ticker import MultipleLocator

    by_task = dict(sorted(_by_task(results).items()))
    differences = {task: _differences(groups) for task, groups in by_task.items()}
    titles = METRICS + (DIFFERENCE_TITLE,) * any(differences.values())
    figure, panels = _make_panels(list(by_task), [3.6] * len(by_task), titles, sharex=True)
    study = load_original_study()
    if any(map(is_validation_score, results)):  # the original study's scores are of the test split
        study = study.iloc[:0]
    styles: LineStyles = {}
    for (task, groups), row in zip(by_task.items(), panels, strict=True):
        first = next(iter(groups.values()))[0]
        is_mteb = all(uses_mteb_protocol(group[0]) for group in groups.values())
        name = first.task["name"] if is_mteb else None
        for metric, panel in zip(METRICS, row[:2], strict=True):
            has_bands = _draw_curves(panel, groups, metric, styles)
            _draw_levels(panel, groups, metric, styles)
            if has_bands:
                panel.fill_between([], [], color="#777", alpha=0.3, label="95 % CI")
            _draw_original_study(panel, study[study["task"] == name], metric)
            panel.grid(alpha=0.3)
        for panel in row[2:]:
            _draw_differences(panel, differences[task], styles)
    for panel in panels[-1]:
        panel.set_xlabel("cutoff k (layers kept)")
        panel.xaxis.set_major_locator(MultipleLocator(2, offset=1))
    return _finish(figure, panels, path)


def _line_style(styles: LineStyles, family: str, name: str, cycle: Sequence[str]) -> str:
    """A name's line style, the next of its family's when it is new: the same in every panel."""
    used = sum(other == family for other, _ in styles)
    return styles.setdefault((family, name), cycle[used % len(cycle)])


def _draw_curves(
    panel: "Axes", groups: dict[str, list[Result]], metric: str, styles: LineStyles
) -> bool:
    """A line over the cutoffs for each kind and settings; returns whether any has a band."""
    has_bands = False
    for kind in ("hybrid", "gemma_only"):
        color, curves = COLORS[kind], _by_cutoff(groups, kind)
        for name, curve in curves.items():
            cutoffs, style = list(curve), _line_style(styles, kind, name, STYLES)
            intervals = [score_interval(group, metric) for group in curve.values()]
            means, low, high = zip(*intervals, strict=True)
            panel.plot(cutoffs, means, style, marker="o", ms=4, color=color, label=name)
            panel.fill_between(cutoffs, low, high, color=color, alpha=0.15, lw=0)
            known = [ends for ends in zip(cutoffs, low, high, strict=True) if ends[1] <= ends[2]]
            if 0 < len(known) < max(len(cutoffs), 2):  # a band needs two cutoffs side by side
                panel.vlines(*zip(*known, strict=True), color=color, alpha=0.5, lw=2)
            has_bands |= bool(known)
    return has_bands


def _by_cutoff(groups: dict[str, list[Result]], kind: str) -> dict[str, dict[int, list[Result]]]:
    """The results of a kind by their name without the cutoff, then by cutoff in ascending order."""
    curves: dict[str, dict[int, dict[int, Result]]] = {}
    for name, group in sorted(groups.items(), key=lambda item: item[1][0].cutoffs):
        first = group[0]
        if first.experiment["kind"] == kind and len(first.cutoffs) == 1:
            curve = curves.setdefault(re.sub(r" \[.*?\]", "", name, count=1), {})
            # A cutoff gives the same result whether selected or set: a seed counts once.
            by_seed = curve.setdefault(first.cutoffs[0], {})
            by_seed |= {result.experiment["seed"]: result for result in group}
    return {
        name: {cutoff: list(by_seed.values()) for cutoff, by_seed in curve.items()}
        for name, curve in curves.items()
    }


def _differences(groups: dict[str, list[Result]]) -> dict[str, dict[int, Interval]]:
    """By the hybrids' names without the cutoff, then by cutoff, accuracy minus RoBERTa alone's."""
    alone = [
        group for group in groups.values()
        if group[0].experiment["kind"] == "roberta_only" and group[0].history
    ]  # fmt: skip
    if len(alone) != 1:
        return {}
    found: dict[str, dict[int, Interval]] = {}
    for name, curve in _by_cutoff(groups, "hybrid").items():
        for cutoff, hybrids in curve.items():
            difference = paired_difference(hybrids, alone[0], "accuracy")
            if difference and is_comparable(hybrids[0], alone[0][0]):
                found.setdefault(name, {})[cutoff] = difference
    return found


def _draw_differences(
    panel: "Axes", differences: dict[str, dict[int, Interval]], styles: LineStyles
) -> None:
    """The curves of `_differences` in points, with 95 % CIs, and RoBERTa alone as zero."""
    if not differences:
        panel.text(0.5, 0.5, "no pair to compare", transform=panel.transAxes, ha="center")
        panel.set_yticks([])
        return
    for name, curve in differences.items():
        mean, low, high = 100 * np.array(list(curve.values())).T
        panel.errorbar(
            list(curve), mean, (mean - low, high - mean), fmt="o", ms=4, capsize=3,
            ls=styles["hybrid", name], lw=1, elinewidth=1.5, color=COLORS["hybrid"],
        )  # fmt: skip
    panel.axhline(0, color=COLORS["roberta_only"])
    panel.grid(alpha=0.3)


def _draw_levels(
    panel: "Axes", groups: dict[str, list[Result]], metric: str, styles: LineStyles
) -> None:
    """Horizontal lines: RoBERTa alone, ready encoders, and the majority-class baseline."""
    for name, group in groups.items():
        kind = group[0].experiment["kind"]
        if kind in ("roberta_only", "encoder_only"):
            family, cycle = ("trained", "- -.") if group[0].history else ("untrained", "-- :")
            style = _line_style(styles, f"{kind} {family}", name, cycle.split())
            level = score_interval(group, metric).mean
            panel.axhline(level, color=COLORS[kind], ls=style, label=name)
    panel.axhline(_majority_score(groups, metric), color="#777", ls=":", label=MAJORITY_LABEL)


def _draw_original_study(panel: "Axes", study: pd.DataFrame, metric: str) -> None:
    """The original study's hybrid and RoBERTa alone, in gray."""
    column, hybrid = COLUMNS[metric][0], study[study["kind"] == "hybrid"]
    if hybrid.empty:
        return
    label = "original study (Gemma 2B, RoBERTa-base): hybrid"
    panel.plot(hybrid["llm_layers"], hybrid[column], ".-", lw=0.8, color="#aaa", label=label)
    level = study.loc[study["kind"] == "roberta_only", column].iloc[0]
    panel.axhline(level, color="#aaa", lw=0.8, ls="-.", label="original study: RoBERTa only")


# === Leaderboard ===


def plot_leaderboard(results: Sequence[Result], path: str | Path | None = None) -> "Figure | None":
    """Plot accuracy and macro F1 over the number of parameters: MTEB's leaderboard, and our models.

    Models that were trained on the task, or not, have other dots. Lines show the best score of all
    models, that of small ones, and the size of these.

    Args:
        results: results of any tasks; each task that the leaderboard has is a row of panels.
        path: file to save the figure to; None: do not save it.

    Returns:
        The figure; None if no result is comparable with the leaderboard.
    """
    board, ours = load_leaderboard(), our_models(results)
    ranked = ours[ours["task"].isin(board["task"])] if len(ours) else ours
    if ranked.empty:
        return None
    tasks = dict(sorted(zip(ranked["label"], ranked["task"], strict=True)))
    figure, panels = _make_panels(list(tasks), [3.6] * len(tasks), sharex=True)
    for (label, task), row in zip(tasks.items(), panels, strict=True):
        row[1].set_title(benchmark(task), loc="right", size=10)
        for metric, panel in zip(METRICS, row, strict=True):
            panel.set_xscale("log")
            _draw_board(panel, board[board["task"] == task], metric)
            _draw_ours(panel, ranked[ranked["label"] == label], metric)
            panel.grid(alpha=0.3)
    for panel in panels[-1]:
        panel.set_xlabel("parameters")
    return _finish(figure, panels, path)


def _draw_board(panel: "Axes", board: pd.DataFrame, metric: str) -> None:
    """The leaderboard's models of one task by training and size, and the best score of a group.

    The best of all may be of unknown size, and then has a line but no dot.
    """
    metric = COLUMNS[metric][0]
    for trained, marker, color, label in (
        ("no", "x", "#bbb", "leaderboard: not trained on the task"),
        ("unknown", ".", "#999", "leaderboard: training data unknown"),
        ("yes", "o", "#555", "leaderboard: trained on the task"),
    ):
        models = board[board["trained_on_task"] == trained].dropna(subset=["parameters", metric])
        panel.plot(models["parameters"], models[metric], marker, ms=4, color=color, label=label)
    small = board[board["parameters"] <= MAX_SMALL]
    for models, style, label in ((board, "-", "best of all"), (small, "--", f"best up to {SMALL}")):
        panel.axhline(models[metric].max(), color="#333", lw=0.8, ls=style, label=label)
    panel.axvline(MAX_SMALL, color="#777", lw=0.8, ls=":", label=f"{SMALL} parameters")


def _draw_ours(panel: "Axes", ours: pd.DataFrame, metric: str) -> None:
    metric = COLUMNS[metric][0]
    for kind, color in COLORS.items():
        models = ours[ours["kind"] == kind].dropna(subset="parameters")
        label = f"ours: {KIND_NAMES[kind]}"
        panel.plot(models["parameters"], models[metric], "D", ms=7, color=color, label=label)


# === Layout ===


def _make_panels(
    tasks: Sequence[str],
    heights: Sequence[float],
    titles: Sequence[str] = METRICS,
    **shared: Any,
) -> tuple["Figure", np.ndarray]:
    """A figure and its `(tasks, titles)` panels: one row per task, with its height in inches."""
    from matplotlib.figure import Figure

    size = PANEL_WIDTH * len(titles), sum(heights) + 0.6
    figure = Figure(figsize=size, layout="constrained")
    shape = len(tasks), len(titles)
    panels = figure.subplots(*shape, squeeze=False, height_ratios=heights, **shared)
    for task, row in zip(tasks, panels, strict=True):
        title = wrap(f"{task}: {titles[0]}", TITLE_WIDTH)
        for text, panel in zip((title, *titles[1:]), row, strict=True):
            panel.set_title(text, loc="left", size=10)
            panel.spines[["top", "right"]].set_visible(False)
    return figure, panels


def _finish(figure: "Figure", panels: np.ndarray, path: str | Path | None) -> "Figure":
    """The figure with one legend for all panels; saved if there is a path."""
    legends = [panel.get_legend_handles_labels() for panel in panels[:, 0]]
    handles = {label: handle for legend in legends for handle, label in zip(*legend, strict=True)}
    labels = [wrap(label, LEGEND_WIDTH) for label in handles]
    figure.legend(
        handles.values(), labels, loc="outside upper center",
        ncols=_legend_columns(labels), frameon=False, fontsize=8,
    )  # fmt: skip
    if path:
        save(figure, Path(path))
    return figure


def save(figure: "Figure", path: Path) -> Path:
    """Write a figure to a file, atomically; a very high one has fewer dots per inch."""
    dpi = min(DPI, MAX_PIXELS / figure.get_figheight())
    return atomic_write(path, lambda part: figure.savefig(part, dpi=dpi))


def wrap(text: str, width: int) -> str:
    """Text as Matplotlib draws it literally, in lines that end at commas where possible.

    Every text that is not ours is drawn through this: it is cut if it is too long, characters that
    the font lacks are spelled `\\u4e2d`, and `$` is a letter, not the start of a formula.
    """
    text = "".join(
        letter if letter in _glyphs() else letter.encode("unicode_escape").decode()
        for letter in " ".join(text.split())
    )
    parts = [
        part.replace(" ", "\N{NO-BREAK SPACE}") if len(part) < width else part
        for part in shorten(text, MAX_NAME).split(", ")
    ]
    lines = textwrap.fill(", ".join(parts), width, break_on_hyphens=False)
    return lines.replace("\N{NO-BREAK SPACE}", " ").replace("$", r"\$")


@functools.cache
def _glyphs() -> frozenset[str]:
    """The letters that Matplotlib's font has."""
    from matplotlib.font_manager import FontProperties, findfont, get_font

    letters = map(chr, get_font(findfont(FontProperties())).get_charmap())
    return frozenset(filter(str.isprintable, letters))


def _legend_columns(labels: Sequence[str]) -> int:
    """As many columns as fit the figure's width, at most four."""
    for count in (4, 3, 2):
        columns = np.array_split(labels, count)
        if sum(max(map(len, column), default=0) + 8 for column in columns) <= LEGEND_WIDTH:
            return count
    return 1

"""Figures of a verdict: the learning curve, the controls, cost beside score, the cascade.

Accuracies are in percent and differences in points of it. A figure that the verdict has no numbers
for is None.
"""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from embedder_helpers.results.contenders import CONTROL_NAMES, KIND_NAMES
from embedder_helpers.results.figures import COLORS, NAME_WIDTH, save, wrap
from embedder_helpers.results.findings import HEAD
from embedder_helpers.results.verdict import Verdict
from embedder_helpers.results.wording import percent
from embedder_helpers.utils.files import writable_folder

if TYPE_CHECKING:  # imported by the functions that draw
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH, HEIGHT = 7.0, 4.6  # inches
TITLE_WIDTH = 75  # characters of a line above a panel
ENCODER_COLOR, CONTROL_COLOR, GRAY = "#727", "#888", "#777"
BY_NAME = {KIND_NAMES[kind]: color for kind, color in COLORS.items()} | {
    KIND_NAMES["encoder_only"]: ENCODER_COLOR
}


def plot_learning_curve(verdict: Verdict, path: str | Path | None = None) -> "Figure | None":
    """Plot accuracy, and its difference to RoBERTa alone, over the number of training texts.

    Args:
        verdict: of `assemble`.
        path: file to save the figure to; None: do not save it.

    Returns:
        The figure; None with fewer than two numbers of training texts.
    """
    curve = verdict.learning_curve.dropna(subset="training texts")
    sizes = curve.drop_duplicates("texts per label")
    if len(sizes) < 2:
        return None
    figure, (scores, differences) = _make_figure(
        verdict, "how much does the LLM help with few training texts?", panels=2
    )
    for name, rows in curve.groupby("kind", sort=False):
        texts, color = rows["training texts"], BY_NAME[name]
        ends = rows["accuracy low"], rows["accuracy high"]
        _draw_band(scores, texts, rows["accuracy"], ends, color, name)
        known = rows["difference"].notna()
        if known.any() and name == KIND_NAMES["hybrid"]:
            ends = rows["low"], rows["high"]
            _draw_band(differences, texts, rows["difference"], ends, color, name)
    differences.axhline(0, color=COLORS["roberta_only"], label=KIND_NAMES["roberta_only"])
    scores.set_ylabel(f"accuracy{_of(verdict)}, %")
    differences.set_ylabel("hybrid minus RoBERTa alone, points")
    names = [
        f"{texts:,.0f}\n({label if label == 'all' else f'{label:,}'})"
        for texts, label in zip(sizes["training texts"], sizes["texts per label"], strict=True)
    ]
    for panel in (scores, differences):
        panel.set_xscale("log")
        panel.set_xticks(sizes["training texts"], names)
        panel.minorticks_off()
        panel.fill_between([], [], color=GRAY, alpha=0.3, label="95 % CI")
        panel.set_xlabel("training texts (per label)")
    return _finish(figure, path)


def _draw_band(panel: "Axes", x, means, ends, color: str, label: str) -> None:
    """A line with its 95 % band; bars at the points show it where there is one point only."""
    low, high = (100 * np.asarray(end, float) for end in ends)
    means = 100 * np.asarray(means, float)
    panel.plot(x, means, "o-", color=color, ms=4, label=label)
    panel.fill_between(x, low, high, color=color, alpha=0.15, lw=0)
    if len(means) == 1:
        panel.vlines(x, low, high, color=color)


def plot_controls(verdict: Verdict, path: str | Path | None = None) -> "Figure | None":
    """Plot what hybrid and controls gain over RoBERTa alone, with 95 % intervals.

    The arguments are those of `plot_learning_curve`.

    Returns:
        The figure; None without controls.
    """
    if not verdict.controls:
        return None
    gains = {"hybrid": verdict.difference}
    gains |= {
        f"hybrid, {CONTROL_NAMES[name]}": control.gain for name, control in verdict.controls.items()
    }
    figure, (panel,) = _make_figure(
        verdict, "is the gain knowledge or capacity?", height=1.7 + 0.45 * len(gains)
    )
    for height, gain in enumerate(gains.values()):
        color = CONTROL_COLOR if height else COLORS["hybrid"]
        mean, low, high = (100 * value for value in gain)
        panel.plot([low, high], [height, height], color=color, lw=2)
        panel.plot(mean, height, "o", color=color)
        panel.annotate(
            f"{mean:+.1f}".replace("-", "\N{MINUS SIGN}"), (mean, height), (0, 6),
            textcoords="offset points", ha="center", fontsize=8, color=color,
            bbox={"fc": "white", "ec": "none", "pad": 0.5},
        )  # fmt: skip
    panel.axvline(0, color=COLORS["roberta_only"], ls="--", label="RoBERTa alone")
    if verdict.difference.mean > 0:
        half = 50 * verdict.difference.mean
        panel.axvline(half, color=GRAY, ls=":", label="half of the hybrid's gain")
    panel.set_yticks(range(len(gains)), [wrap(name, NAME_WIDTH) for name in gains])
    panel.set_ylim(len(gains) - 0.5, -0.6)
    panel.set_xlabel(f"accuracy{_of(verdict)} minus RoBERTa alone's, points (95 % CI)")
    return _finish(figure, path)


def plot_cost(verdict: Verdict, path: str | Path | None = None) -> "Figure | None":
    """Plot the validation accuracy of each cutoff over its cost, with the frontier.

    On the frontier are the cutoffs than which none is both faster and better; a single one has no
    line. The cheapest cutoff that cannot be told from the best is marked. The arguments are those
    of `plot_learning_curve`.

    Returns:
        The figure; None without a measured cost, or validation accuracies of two cutoffs.
    """
    layers = verdict.layers
    if layers is None:
        return None
    layers = layers.dropna(subset=["ms_per_text", "accuracy"])
    if len(layers) < 2:
        return None
    figure, (panel,) = _make_figure(verdict, "what does a text cost at each cutoff?")
    frontier = layers[layers["frontier"]].sort_values("ms_per_text")
    if len(frontier) > 1:
        panel.step(
            frontier["ms_per_text"], 100 * frontier["accuracy"], where="post",
            color=GRAY, lw=1, label="frontier: none is faster and better",
        )  # fmt: skip
    in_set = layers["cutoff"].isin(verdict.layer_set or [])
    gemma = layers["cutoff"] > 0
    for is_drawn, fill, label in (
        (
            gemma & in_set,
            COLORS["hybrid"],
            "cutoff (layers kept) that cannot be told from the best",
        ),
        (gemma & ~in_set, "white", "other cutoff" if in_set.any() else "cutoff (layers kept)"),
    ):
        rows = layers[is_drawn]
        if len(rows):
            _draw_dots(panel, rows, fill, COLORS["hybrid"], label)
    if not gemma.all():
        color = COLORS["roberta_only"]
        _draw_dots(panel, layers[~gemma], color, color, KIND_NAMES["roberta_only"])
    elif verdict.cost:  # whose score is not comparable with a probe's
        time, color = verdict.cost.roberta, COLORS["roberta_only"]
        panel.axvline(time, color=color, ls="--", lw=1, label="time of RoBERTa alone")
    for row in layers[gemma].itertuples():
        panel.annotate(
            f"{row.cutoff}", (row.ms_per_text, 100 * row.accuracy),
            (0, -20 if row.cutoff == verdict.cheapest else -13),
            textcoords="offset points", ha="center", fontsize=8,
        )  # fmt: skip
    cheapest = layers[layers["cutoff"] == verdict.cheapest] if verdict.cheapest else layers[:0]
    if len(cheapest):
        label = f"the cheapest of these: layer {verdict.cheapest}"
        panel.plot(
            cheapest["ms_per_text"], 100 * cheapest["accuracy"], "o", ms=15, mfc="none",
            mec="#000", mew=1.5, ls="", label=label,
        )  # fmt: skip
    cost = verdict.cost
    where = f", {cost.batch} texts at once on {cost.device}" if cost and cost.device else ""
    panel.set_xlabel(wrap(f"milliseconds for a text{where}", TITLE_WIDTH))
    whose = "linear probe" if verdict.layers_by == "linear probe" else "head"
    panel.set_ylabel(f"validation accuracy of the {whose}, %")
    panel.margins(y=0.12)
    panel.set_xlim(left=0)
    return _finish(figure, path)


def _draw_dots(panel: "Axes", rows, fill: str, color: str, label: str) -> None:
    panel.plot(
        rows["ms_per_text"], 100 * rows["accuracy"], "o", mfc=fill, mec=color, ls="", label=label
    )


def plot_cascade(verdict: Verdict, path: str | Path | None = None) -> "Figure | None":
    """Plot the cascade's accuracy over the share of texts that reach Gemma.

    The arguments are those of `plot_learning_curve`.

    Returns:
        The figure; None without a cascade.
    """
    cascade = verdict.cascade
    if cascade is None:
        return None
    figure, (panel,) = _make_figure(verdict, "which texts need Gemma?")
    curve = cascade.curve
    first, last = 100 * curve["accuracy"].iloc[[0, -1]]
    panel.axhline(last, color=COLORS["hybrid"], ls="--", lw=1, label="hybrid, for every text")
    panel.axhline(first, color=COLORS["roberta_only"], ls="--", lw=1, label="RoBERTa alone")
    panel.plot(
        100 * curve["share"], 100 * curve["accuracy"], color="#136",
        label="cascade: the texts that RoBERTa is least sure of go on",
    )  # fmt: skip
    panel.plot(
        100 * cascade.share, 100 * cascade.accuracy, "o", color="#136",
        label=f"threshold {cascade.threshold:.3g}, chosen on validation texts: "
        f"{percent(cascade.share)} go on",
    )  # fmt: skip
    panel.set_xlabel("share of the texts that reach Gemma, %")
    panel.set_ylabel("accuracy of the head, %")
    panel.set_xlim(-2, 102)
    return _finish(figure, path)


FIGURES: dict[str, Callable[..., "Figure | None"]] = {
    "learning_curve": plot_learning_curve,
    "controls": plot_controls,
    "cost": plot_cost,
    "cascade": plot_cascade,
}


def write_figures(verdict: Verdict, folder: str | Path) -> list[Path]:
    """Write every figure that the verdict has numbers for, as PNG.

    The others are removed, because an earlier verdict's would contradict the page.

    Args:
        verdict: of `assemble`.
        folder: for `learning_curve.png`, `controls.png`, `cost.png` and `cascade.png`; created if
            it does not exist.

    Returns:
        The files.

    Raises:
        InputError: the folder cannot be written.
    """
    folder = writable_folder(folder)
    written = []
    for name, plot in FIGURES.items():
        path = folder / f"{name}.png"
        if plot(verdict, path):
            written.append(path)
        else:
            path.unlink(missing_ok=True)
    return written


# === Layout ===


def _make_figure(
    verdict: Verdict, question: str, *, panels: int = 1, height: float = HEIGHT
) -> "tuple[Figure, list[Axes]]":
    from matplotlib.figure import Figure

    width = WIDTH if panels == 1 else 1.5 * WIDTH
    figure = Figure(figsize=(width, height), layout="constrained")
    made = list(figure.subplots(1, panels, squeeze=False)[0])
    title = wrap(f"{verdict.task}: {question}", TITLE_WIDTH)
    # From the figure's edge, whatever labels need.
    figure.suptitle(title, x=0.01, ha="left", size=10)
    for panel in made:
        panel.spines[["top", "right"]].set_visible(False)
        panel.grid(alpha=0.3)
    return figure, made


def _finish(figure: "Figure", path: str | Path | None) -> "Figure":
    """The figure with one legend below its panels, where it covers nothing; saved to a path."""
    legends = [panel.get_legend_handles_labels() for panel in figure.axes]
    handles = {label: handle for legend in legends for handle, label in zip(*legend, strict=True)}
    columns = 2 if len(figure.axes) == 1 else len(handles)
    figure.legend(
        handles.values(), handles, loc="outside lower center",
        ncols=columns, frameon=False, fontsize=8,
    )  # fmt: skip
    if path:
        save(figure, Path(path))
    return figure


def _of(verdict: Verdict) -> str:
    return " of the head" if verdict.score == HEAD else " of MTEB's protocol"

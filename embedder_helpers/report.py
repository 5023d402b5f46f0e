"""The report: results as a table and a figure that a person reads."""

import itertools
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from embedder_helpers import presets
from embedder_helpers.config import InputError, make_experiment
from embedder_helpers.run import Result, read_result

# The table that the original study published (Gemma 2B and RoBERTa-base; one run each).
ORIGINAL = Path(__file__).resolve().parent.parent / "results" / "reference" / "original_study.csv"
KIND_NAMES = {"hybrid": "hybrid", "gemma_only": "Gemma only", "roberta_only": "RoBERTa only"}
STYLES = ("-", "--", "-.", ":")
METRICS = {"accuracy": "accuracy", "f1": "macro F1"}
FIGURE = "scores.png"
LAYERS = "layers.png"
TABLE = "table.md"
CSV = "results.csv"


def table(results: Sequence[Result]) -> pd.DataFrame:
    """One row per result.

    `accuracy` and `F1` (macro) are protocol scores; `head …` those of the classification head,
    empty where none was trained; `floor …` those of always answering the commonest label. `cutoff`
    counts Gemma's blocks from the bottom, `layer number` from the top, -1 being the last. Other
    keys in which results of one kind differ have columns of their own.
    """
    keys = _differing(results)
    return pd.DataFrame([_row(result) | _settings(result, keys) for result in results])


def _differing(results: Sequence[Result]) -> list[str]:
    """Keys, beside those the table always tells, in which results of a kind and task differ."""
    found: dict[tuple[str, str, str], set] = {}
    for result in results:
        for key, value in _determining(result).items():
            if (key, value) != ("epochs", 0):  # the embedder's name says `untrained`
                alike = (result.experiment["kind"], result.task["name"], key)
                found.setdefault(alike, set()).add(value)
    differing = {key for (_, _, key), values in found.items() if len(values) > 1}
    return [key for key in results[0].experiment if key in differing - {"llm_layers", "task_data"}]


def _settings(result: Result, keys: Sequence[str]) -> dict[str, Any]:
    determining = _determining(result)
    return {key: determining.get(key, "-") for key in keys}


def _determining(result: Result) -> dict[str, Any]:
    return make_experiment(result.experiment).determining()


def _row(result: Result) -> dict[str, Any]:
    head = result.head or {}
    return {
        "embedder": embedder_name(result),
        "cutoff": _listed(result.cutoffs),
        "layer number": _listed(_layer_numbers(result)),
        "task": result.task["name"],
        "accuracy": result.scores["accuracy"],
        "F1": result.scores["f1"],
        "head accuracy": head.get("accuracy"),
        "head F1": head.get("f1"),
        "floor accuracy": result.floor["accuracy"],
        "floor F1": result.floor["f1"],
        "texts cut": result.truncated,
        "seconds": result.seconds["total"],
    }


def embedder_name(result: Result) -> str:
    """`hybrid [1-10]`, `Gemma only [1-10]`, `RoBERTa only`, with `untrained` where it is."""
    kind, epochs = result.experiment["kind"], result.experiment["epochs"]
    name = KIND_NAMES[kind]
    if result.cutoffs:
        spans = [f"1-{cutoff}" if cutoff > 1 else "1" for cutoff in result.cutoffs]
        name += f" [{', '.join(spans)}]"
    return name if epochs or kind == "gemma_only" else f"{name}, untrained"


def _listed(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers)) or "-"


def as_text(results: Sequence[Result]) -> str:
    """The table as Markdown, with the notes that a reader of the scores should know."""
    told = "".join(f"* {note}\n" for note in notes(results))
    return f"{as_markdown(table(results))}\n{told}"


def as_markdown(frame: pd.DataFrame) -> str:
    """A table whose columns are aligned in plain text too."""
    cells = [list(frame.columns)]
    cells += [
        [_cell(name, value) for name, value in row.items()] for row in frame.to_dict("records")
    ]
    widths = [max(len(row[column]) for row in cells) for column in range(len(cells[0]))]
    lines = ["| " + " | ".join(map(str.ljust, row, widths)) + " |" for row in cells]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join([*lines, ""])


def _cell(name: str, value: Any) -> str:
    if value is None or value != value:
        return "-"
    if isinstance(value, float):
        return f"{value:.0f}" if name == "seconds" else f"{value:.3f}"
    return str(value)


def notes(results: Sequence[Result]) -> list[str]:
    """What a reader of the scores should know: of the models, the protocol and the data."""
    found = []
    used = {result.experiment[key] for result in results for key in result.inputs if key != "task"}
    if used & set(presets.BUILTIN):
        found.append(
            "The built-in tiny models have random weights and have read nothing: "
            "these figures show the machinery, not the method."
        )
    found.append(
        "accuracy and F1 (macro): mean of 10 logistic regressions on small draws of train, as MTEB "
        "does; head: the classifier that was trained; floor: always the commonest label."
    )
    for result in results:
        for note in result.task["notes"]:
            found.append(f"{result.task['name']}: {note}.")
    return list(dict.fromkeys(found))


def long_table(results: Sequence[Result]) -> pd.DataFrame:
    """A row per result with all that tells it apart: scores first, then every other key.

    `llm_layers` are cutoffs counted from the bottom, joined by `+` where several are pooled;
    `val_accuracy` is the head's on the validation split after the best epoch.
    """
    return pd.DataFrame([_long_row(result) for result in results])


def _long_row(result: Result) -> dict[str, Any]:
    experiment, head = result.experiment, result.head or {}
    row = {
        "task": result.task["name"],
        "kind": experiment["kind"],
        "llm_layers": "+".join(map(str, result.cutoffs)),
        "pooling": experiment["pooling"],
        "seed": experiment["seed"],
        "accuracy": result.scores["accuracy"],
        "f1": result.scores["f1"],
        "head_accuracy": head.get("accuracy"),
        "head_f1": head.get("f1"),
        "val_accuracy": max((epoch["val_accuracy"] for epoch in result.history), default=None),
        "floor_accuracy": result.floor["accuracy"],
        "floor_f1": result.floor["f1"],
        "seconds": result.seconds["total"],
        "layer_number": "+".join(map(str, _layer_numbers(result))),
    }
    others = {key: value for key, value in experiment.items() if key not in row}
    return row | others | {"device": ", ".join(result.device)} | result.versions


def _layer_numbers(result: Result) -> list[int]:
    return [cutoff - result.blocks - 1 for cutoff in result.cutoffs]


def write_csv(folder: str | Path) -> None:
    """Writes the long table of all results in a folder; whole or not at all."""
    if results := _results(folder):
        part = Path(folder) / f"{CSV}.{os.getpid()}.part"
        long_table(results).to_csv(part, index=False)
        part.replace(Path(folder) / CSV)


def layer_table(results: Sequence[Result]) -> pd.DataFrame:
    """The original study's table: a row per embedder, accuracy and F1 of each task beside it.

    Scores are protocol scores; those of several seeds are averaged, and `seeds` tells how many.
    RoBERTa alone comes first, then Gemma alone and the hybrids, the deepest cutoff first.
    """
    apart = _apart(results)
    rows: dict[tuple, dict[tuple[str, str], list]] = {}
    for result in sorted(results, key=_from_the_top):
        name = ", ".join([embedder_name(result), *_told(result, apart)])
        scores = rows.setdefault((name, _listed(_layer_numbers(result))), {})
        for metric, words in (("accuracy", "accuracy"), ("f1", "F1")):
            cell = scores.setdefault((result.task["name"], words), [])
            cell.append(result.scores[metric])
    tasks = list(dict.fromkeys(result.task["name"] for result in results))
    frame = pd.DataFrame(
        [
            {"embedder": name, "layer number": numbers, "seeds": max(map(len, scores.values()))}
            | {
                f"{task} {words}": sum(found) / len(found) if found else None
                for task in sorted(tasks)
                for words in ("accuracy", "F1")
                for found in [scores.get((task, words), [])]
            }
            for (name, numbers), scores in rows.items()
        ]
    )
    return frame if (frame["seeds"] > 1).any() else frame.drop(columns="seeds")


def _apart(results: Sequence[Result]) -> list[str]:
    """Keys, beside seed and task, that tell results of one embedder and task apart."""
    return [key for key in _differing(results) if key not in ("seed", "task")]


def _told(result: Result, keys: Sequence[str]) -> list[str]:
    """These keys and their values, in words, where they determine the result."""
    return [f"{key} {value}" for key, value in _settings(result, keys).items() if value != "-"]


def _from_the_top(result: Result) -> tuple:
    task, kind, trained, found = _place(result)
    return kind, trained, len(found), [-cutoff for cutoff in found], task


def plot_layers(results: Sequence[Result], path: str | Path | None = None) -> Any:
    """Accuracy and F1 over the cutoff, with the baselines, the floor and the published curve.

    Lines are means over seeds and bands reach from the lowest to the highest seed. Several cutoffs
    pooled into one have no place on the axis and are left out.

    Args:
        results: of one or more tasks; each task is a row of panels.
        path: where to save the figure, if anywhere.

    Returns:
        The matplotlib figure.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MultipleLocator

    frame = long_table(results)
    frame["trained"] = [bool(result.history) for result in results]
    frame["told"] = [", ".join(_told(result, _apart(results))) for result in results]
    tasks = sorted(frame["task"].unique())
    figure = Figure(figsize=(10, 3.6 * len(tasks) + 0.6), layout="constrained")
    panels = figure.subplots(len(tasks), 2, squeeze=False, sharex=True)
    published = pd.read_csv(ORIGINAL) if ORIGINAL.exists() else frame.iloc[:0]
    for task, row in zip(tasks, panels, strict=True):
        for (metric, words), panel in zip(METRICS.items(), row, strict=True):
            ours = frame[frame["task"] == task]
            theirs = published[published["task"] == task]
            _curves(panel, ours, metric)
            _published(panel, theirs, metric)
            panel.set_title(
                f"{task}: {words}" if metric == "accuracy" else words, loc="left", size=10
            )
            panel.grid(alpha=0.3)
            panel.spines[["top", "right"]].set_visible(False)
    for panel in panels[-1]:
        panel.set_xlabel("cutoff: Gemma's blocks 1 … k")
        panel.xaxis.set_major_locator(MultipleLocator(2, offset=1))
    found = [panel.get_legend_handles_labels() for panel in panels[:, 0]]
    lines = {label: line for pair in found for line, label in zip(*pair, strict=True)}
    figure.legend(
        lines.values(), lines.keys(), loc="outside upper center", ncols=4, frameon=False, fontsize=8
    )
    if path:
        figure.savefig(path, dpi=150)
    return figure


def _curves(panel: Any, frame: pd.DataFrame, metric: str) -> None:
    """Our scores of one task: a line over cutoffs for each kind, a level for RoBERTa alone."""
    for kind, color in (("hybrid", "#c50"), ("gemma_only", "#136")):
        single = frame[(frame["kind"] == kind) & frame["llm_layers"].str.fullmatch(r"\d+")]
        for (told, group), style in zip(single.groupby("told"), itertools.cycle(STYLES)):
            scores = group.groupby(group["llm_layers"].astype(int))[metric]
            label = ", ".join(filter(None, [KIND_NAMES[kind], told]))
            panel.plot(scores.mean(), style, marker="o", ms=4, color=color, label=label)
            lowest, highest = scores.min(), scores.max()
            panel.fill_between(lowest.index, lowest, highest, color=color, alpha=0.15)
    roberta = frame[frame["kind"] == "roberta_only"]
    for (trained, told), group in roberta.groupby(["trained", "told"]):
        label = ", ".join(filter(None, ["RoBERTa only", "" if trained else "untrained", told]))
        panel.axhline(group[metric].mean(), color="#383", ls="-" if trained else "--", label=label)
    floor = "floor_accuracy" if metric == "accuracy" else "floor_f1"
    panel.axhline(frame[floor].iloc[0], color="#777", ls=":", label="floor: the commonest label")


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
    """Accuracy and F1 of each result with its single protocol experiments, floor and head score.

    Args:
        results: of one or more tasks; each task is a row of panels.
        path: where to save the figure, if anywhere.

    Returns:
        The matplotlib figure.
    """
    from matplotlib.figure import Figure

    tasks = list(dict.fromkeys(result.task["name"] for result in results))
    by_task = {task: [one for one in results if one.task["name"] == task] for task in tasks}
    heights = [0.8 + 0.42 * len(found) for found in by_task.values()]
    figure = Figure(figsize=(9.5, sum(heights) + 0.5), layout="constrained")
    panels = figure.subplots(len(tasks), 2, squeeze=False, height_ratios=heights, sharey="row")
    for (task, found), row in zip(by_task.items(), panels, strict=True):
        for (metric, words), panel in zip(METRICS.items(), row, strict=True):
            _panel(panel, found, metric)
            panel.set_title(
                f"{task}: {words}" if metric == "accuracy" else words, loc="left", size=10
            )
    handles, labels = panels[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper right", ncols=4, frameon=False, fontsize=8)
    if path:
        figure.savefig(path, dpi=150)
    return figure


def _panel(panel: Any, results: Sequence[Result], metric: str) -> None:
    """One metric: a dot for the protocol mean, ticks for its experiments, a cross for the head."""
    places = range(len(results))
    for place, result in zip(places, results, strict=True):
        single = [one[metric] for one in result.experiments]
        label = "single draw" if place == 0 else None
        panel.plot(single, [place] * len(single), "|", color="#9ab", ms=9, label=label)
    panel.plot([one.scores[metric] for one in results], places, "o", color="#136", label="protocol")
    heads = [one.head[metric] if one.head else None for one in results]
    panel.plot(heads, places, "x", color="#c50", label="head")
    panel.axvline(results[0].floor[metric], color="#777", ls=":", label="floor")
    panel.set_yticks(places, [embedder_name(one) for one in results], fontsize=9)
    panel.set_ylim(len(results) - 0.5, -0.5)
    panel.grid(axis="x", alpha=0.3)
    panel.spines[["top", "right"]].set_visible(False)


def publish(results: Sequence[Result], out: str | Path) -> None:
    """Prints the table; writes it and the figures into a folder.

    Where results have several cutoffs, the layer table and the curves over the cutoff are added.
    """
    folder = Path(out)
    text = as_text(results)
    files = [folder / TABLE, folder / FIGURE]
    plot(results, folder / FIGURE)
    (folder / LAYERS).unlink(missing_ok=True)  # of other results
    if len({tuple(result.cutoffs) for result in results if result.cutoffs}) > 2:
        text = as_markdown(layer_table(results)) + "\n" + text
        plot_layers(results, folder / LAYERS)
        files.append(folder / LAYERS)
    print(text)
    (folder / TABLE).write_text(text, encoding="utf-8")
    print("table and figures: " + ", ".join(map(str, files)))


def load_results(folder: str | Path) -> list[Result]:
    """The results in a folder, by task, kind and cutoff: RoBERTa alone, Gemma alone, hybrids.

    Raises:
        InputError: it holds none.
    """
    if results := _results(folder):
        return results
    raise InputError(f"{folder} holds no results: run an experiment with --out {folder} first")


def _results(folder: str | Path) -> list[Result]:
    results = [
        result for path in sorted(Path(folder).glob("*.json")) if (result := read_result(path))
    ]
    return sorted(results, key=_place)


def _place(result: Result) -> tuple:
    kind = ("roberta_only", "gemma_only", "hybrid").index(result.experiment["kind"])
    return result.task["name"], kind, bool(result.history), result.cutoffs

"""The report: results as a table and a figure that a person reads."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from embedder_helpers import presets
from embedder_helpers.config import InputError, make_experiment
from embedder_helpers.run import Result, read_result

KIND_NAMES = {"hybrid": "hybrid", "gemma_only": "Gemma only", "roberta_only": "RoBERTa only"}
FIGURE = "scores.png"
TABLE = "table.md"


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
        "layer number": _listed([cutoff - result.blocks - 1 for cutoff in result.cutoffs]),
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
    frame = table(results)
    cells = [list(frame.columns)]
    cells += [
        [_cell(name, value) for name, value in row.items()] for row in frame.to_dict("records")
    ]
    widths = [max(len(row[column]) for row in cells) for column in range(len(cells[0]))]
    lines = ["| " + " | ".join(map(str.ljust, row, widths)) + " |" for row in cells]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join([*lines, "", *(f"* {note}" for note in notes(results)), ""])


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
        for metric, words, panel in zip(
            ("accuracy", "f1"), ("accuracy", "macro F1"), row, strict=True
        ):
            _panel(panel, found, metric)
            panel.set_title(
                f"{task}: {words}" if metric == "accuracy" else words, loc="left", size=10
            )
    panels[0, 1].legend(
        loc="lower left", bbox_to_anchor=(0, 1.12), ncols=4, frameon=False, fontsize=8
    )
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
    """Prints the table; writes it and the figure into a folder."""
    text = as_text(results)
    print(text)
    folder = Path(out)
    (folder / TABLE).write_text(text, encoding="utf-8")
    plot(results, folder / FIGURE)
    print(f"table and figure: {folder / TABLE}, {folder / FIGURE}")


def load_results(folder: str | Path) -> list[Result]:
    """The results in a folder, by task, kind and cutoff: RoBERTa alone, Gemma alone, hybrids.

    Raises:
        InputError: it holds none.
    """
    paths = sorted(Path(folder).glob("*.json"))
    results = [result for path in paths if (result := read_result(path))]
    if not results:
        raise InputError(f"{folder} holds no results: run an experiment with --out {folder} first")
    return sorted(results, key=_place)


def _place(result: Result) -> tuple:
    kind = ("roberta_only", "gemma_only", "hybrid").index(result.experiment["kind"])
    return result.task["name"], kind, bool(result.history), result.cutoffs

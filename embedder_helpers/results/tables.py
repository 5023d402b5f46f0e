"""Tables of results as people read them, and the result files of a folder."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from embedder_helpers.builtin import BUILTIN_PRESETS
from embedder_helpers.errors import InputError
from embedder_helpers.results.naming import (
    differing_settings,
    display_names,
    embedder_name,
    is_validation_score,
    setting_values,
)
from embedder_helpers.results.result import Result, read_result
from embedder_helpers.utils.files import atomic_write

SCORES_FIGURE = "scores.png"
LAYERS_FIGURE = "layers.png"
TABLE_FILE = "table.md"
CSV_FILE = "results.csv"


# === Result files ===


def load_results(folder: str | Path) -> list[Result]:
    """Load the results of a folder: by task; RoBERTa alone, Gemma alone, hybrids; by cutoff.

    Args:
        folder: folder of result files, or of folders of result files.

    Raises:
        InputError: it contains none.
    """
    return sorted(find_results(folder).values(), key=_sort_key)


def find_results(folder: str | Path) -> dict[str, Result]:
    """The results in a folder, or else in the folders below it, by file name.

    Raises:
        InputError: it contains none.
    """
    if results := _read_folder(folder, "*.json") or _read_folder(folder, "*/**/*.json"):
        return results
    raise InputError(f"{folder} contains no results: run an experiment with --out {folder} first")


def _read_folder(folder: str | Path, pattern: str) -> dict[str, Result]:
    paths = sorted(Path(folder).glob(pattern))
    return {path.name: result for path in paths if (result := read_result(path))}


def _sort_key(result: Result) -> tuple:
    kind = ("roberta_only", "gemma_only", "hybrid").index(result.experiment["kind"])
    trained, num_pooled = bool(result.history), len(result.cutoffs)
    return result.task["name"], kind, trained, num_pooled, result.cutoffs


def write_csv(folder: str | Path) -> None:
    """Write the long table of all results in a folder, atomically; nothing if it has none."""
    if results := _read_folder(folder, "*.json"):
        table = long_table(sorted(results.values(), key=_sort_key))
        atomic_write(Path(folder) / CSV_FILE, lambda part: table.to_csv(part, index=False))


# === Tables ===


def check_results(results: Sequence[Result]) -> None:
    """Raise InputError if there are no results."""
    if not results:
        raise InputError("there are no results: run an experiment first")


def results_table(results: Sequence[Result]) -> pd.DataFrame:
    """A table with one row per result.

    `accuracy` and `macro F1` are protocol scores; `head …` those of the classification head, empty
    without one; `majority …` those of the majority-class baseline. `cutoff` is the number of kept
    Gemma layers; `layer number` counts the last of them from the top, -1 being Gemma's last layer.
    Other settings in which results of one kind differ have columns of their own.

    Raises:
        InputError: there are no results.
    """
    check_results(results)
    settings = differing_settings(results)
    return pd.DataFrame([_row(result) | setting_values(result, settings) for result in results])


def _row(result: Result) -> dict[str, Any]:
    head = result.head or {}
    return {
        "embedder": embedder_name(result),
        "cutoff": _join(result.cutoffs),
        "layer number": _join(_layer_numbers(result)),
        "task": result.task["name"],
        "accuracy": result.scores["accuracy"],
        "macro F1": result.scores["f1"],
        "head accuracy": head.get("accuracy"),
        "head macro F1": head.get("f1"),
        "majority accuracy": result.majority_baseline["accuracy"],
        "majority macro F1": result.majority_baseline["f1"],
        "truncated texts": result.truncated,
        "seconds": result.seconds["total"],
    }


def _join(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers)) or "-"


def _layer_numbers(result: Result) -> list[int]:
    return [cutoff - result.num_layers - 1 for cutoff in result.cutoffs]


def layer_table(results: Sequence[Result]) -> pd.DataFrame:
    """The original study's table: a row per embedder with the scores of each task.

    Scores are protocol scores, averaged over seeds; `seeds` is their number, if any has several.
    RoBERTa alone comes first, then Gemma alone and the hybrids, the largest cutoff first.

    Raises:
        InputError: there are no results.
    """
    check_results(results)
    metrics = {"accuracy": "accuracy", "macro F1": "f1"}
    groups: dict[tuple[str, str], dict[str, list[Result]]] = {}
    named = zip(results, display_names(results), strict=True)
    for result, name in sorted(named, key=lambda pair: _largest_cutoff_first(pair[0])):
        by_task = groups.setdefault((name, _join(_layer_numbers(result))), {})
        by_task.setdefault(result.task["name"], []).append(result)
    tasks = sorted({result.task["name"] for result in results})
    rows = []
    for (name, layer_number), by_task in groups.items():
        row = {"embedder": name, "layer number": layer_number}
        row["seeds"] = max(map(len, by_task.values()))
        for task in tasks:
            for column, metric in metrics.items():
                scores = [result.scores[metric] for result in by_task.get(task, [])]
                row[f"{task} {column}"] = sum(scores) / len(scores) if scores else None
        rows.append(row)
    table = pd.DataFrame(rows)
    return table if (table["seeds"] > 1).any() else table.drop(columns="seeds")


def _largest_cutoff_first(result: Result) -> tuple:
    task, *key, cutoffs = _sort_key(result)
    return *key, [-cutoff for cutoff in cutoffs], task


def has_layer_curve(results: Sequence[Result]) -> bool:
    """Whether the results of some task and kind have at least three single cutoffs."""
    cutoffs: dict[tuple[str, str], set] = {}
    for result in results:
        if len(result.cutoffs) == 1:
            group = result.task["name"], result.experiment["kind"]
            cutoffs.setdefault(group, set()).add(result.cutoffs[0])
    return any(len(distinct) > 2 for distinct in cutoffs.values())


def long_table(results: Sequence[Result]) -> pd.DataFrame:
    """A row per result with every setting, for further analysis; scores come first.

    `llm_layers` are cutoffs, joined by `+` if several are pooled; `val_accuracy` is the head's on
    the validation split, with the weights that were kept; `projection_explained` the fraction of
    the variance of RoBERTa's embeddings that a closed-form initialization explains on held-out
    tokens; `duplicate_texts` the number of evaluation texts that the train split contains too.
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
        "val_accuracy": _validation_accuracy(result),
        "majority_accuracy": result.majority_baseline["accuracy"],
        "majority_f1": result.majority_baseline["f1"],
        "seconds": result.seconds["total"],
        "layer_number": "+".join(map(str, _layer_numbers(result))),
        "projection_explained": (result.projection or {}).get("explained"),
        "cutoff_selected": experiment["llm_layers"] == "auto",
        "duplicate_texts": (result.deduplicated or {}).get("texts", 0),
    }
    others = {name: value for name, value in experiment.items() if name not in row}
    return row | others | {"device": ", ".join(result.device)} | result.versions


def _validation_accuracy(result: Result) -> float | None:
    """The head's validation accuracy after the last epoch, or the best if that epoch was kept."""
    accuracies = [epoch["val_accuracy"] for epoch in result.history]
    if accuracies and result.experiment.get("patience", "best") is None:
        return accuracies[-1]
    return max(accuracies, default=None)


# === Text ===


def format_results(results: Sequence[Result]) -> str:
    """The results table in Markdown, followed by notes on how to read it."""
    notes = "".join(f"* {note}\n" for note in reading_notes(results))
    return f"{to_markdown(results_table(results))}\n{notes}"


def reading_notes(results: Sequence[Result]) -> list[str]:
    """What a reader of the scores should know of the models, the protocol and the data."""
    notes = []
    presets = [(result, key) for result in results for key in result.inputs if key != "task"]
    if any(result.experiment[key] in BUILTIN_PRESETS for result, key in presets):
        notes.append(
            "The built-in models are tiny and were pretrained on four million words: these scores "
            "show how the method behaves, not how good it is."
        )
    notes.append(
        "accuracy, macro F1: means over ten runs of MTEB's protocol, each a logistic regression on "
        "a few training texts per label; head: the classifier fitted to all training texts; "
        "majority: the majority-class baseline, which always predicts the most frequent label."
    )
    if any(map(is_validation_score, results)):
        notes.append(
            "validation: scores on the validation split, which also selects the epoch, the cutoff "
            "(if `auto`) and the probe's penalty: use them to choose settings, not as final scores."
        )
    for result in results:
        notes += [f"{result.task['name']}: {note}." for note in _data_notes(result)]
    return list(dict.fromkeys(notes))


def _data_notes(result: Result) -> list[str]:
    notes = result.task["notes"]
    if duplicates := (result.deduplicated or {}).get("texts"):
        total = result.task["texts"]["scored"]
        return [f"the train split also contains {duplicates} of {total} evaluation texts", *notes]
    return notes


def to_markdown(table: pd.DataFrame) -> str:
    """A Markdown table with aligned columns."""
    rows = [list(table.columns)]
    for record in table.to_dict("records"):
        rows.append([_format_cell(name, value) for name, value in record.items()])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["| " + " | ".join(map(str.ljust, row, widths)) + " |" for row in rows]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join([*lines, ""])


def _format_cell(name: str, value: Any) -> str:
    if value is None or value != value:
        return "-"
    if name == "parameters":
        return f"{value / 1e6:.1f} M"
    if name.endswith("rate"):
        return f"{value:g}" if isinstance(value, float) else str(value)
    if isinstance(value, float):
        return f"{value:.0f}" if name == "seconds" else f"{value:.3f}"
    return " ".join(str(value).split()).replace("|", "\\|")

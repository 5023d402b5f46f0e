"""Tables of results as people read them, and the result files of a folder."""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from embedder_helpers.builtin import BUILTIN_PRESETS
from embedder_helpers.errors import InputError
from embedder_helpers.results.comparison import format_interval, group_by_seed, score_interval
from embedder_helpers.results.data_sets import (
    data_key,
    data_labels,
    data_source,
    describe_local_data,
    local_data,
    local_path,
    without_empty_data,
)
from embedder_helpers.results.formats import escape_markdown, one_line, to_csv, to_markdown
from embedder_helpers.results.naming import (
    differing_settings,
    embedder_name,
    is_validation_score,
    setting_values,
)
from embedder_helpers.results.result import Result, read_result
from embedder_helpers.utils.files import as_path

SCORES_FIGURE = "scores.png"
LAYERS_FIGURE = "layers.png"
TABLE_FILE = "table.md"
CSV_FILE = "results.csv"
EMBEDDER_FILE = "embedder.json"  # of a saved embedder's folder
MAX_NOTES = 12  # on one data set
MAX_NOTE = 500  # letters


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
    results: dict[str, Result] = {}
    root, seen = str(as_path(folder)), set()
    for parent, folders, names in os.walk(root, followlinks=True):
        if (real := os.path.realpath(parent)) in seen:  # a link to a folder that holds it
            folders.clear()
            continue
        seen.add(real)
        if parent != root and EMBEDDER_FILE in names:  # it and the folders in it hold no results
            folders.clear()
            continue
        results |= _read_files(parent, names)
        if results and parent == root:
            break
        folders[:] = sorted(name for name in folders if name[0] != ".")
    if results:
        return results
    shown = one_line(str(folder))
    raise InputError(f"{shown} contains no results: run an experiment with --out {shown} first")


def _read_files(folder: str | Path, names: Iterable[str]) -> dict[str, Result]:
    """The results among the files of a folder, by file name."""
    names = sorted(name for name in names if name.endswith(".json") and name[0] != ".")
    return {name: result for name in names if (result := read_result(Path(folder, name)))}


def _sort_key(result: Result) -> tuple:
    kind = ("roberta_only", "gemma_only", "hybrid").index(result.experiment["kind"])
    trained, num_pooled = bool(result.history), len(result.cutoffs)
    return data_key(result), kind, trained, num_pooled, result.cutoffs


def write_csv(folder: str | Path) -> None:
    """Write the long table of all results in a folder, atomically; nothing if it has none."""
    if results := _read_files(folder, os.listdir(folder)):
        to_csv(long_table(sorted(results.values(), key=_sort_key)), Path(folder) / CSV_FILE)


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
    `data`, if any are local, is the fingerprint and path of local data. Other settings in which
    results of one kind differ have columns of their own.

    Raises:
        InputError: there are no results.
    """
    check_results(results)
    settings = differing_settings(results)
    return without_empty_data(
        pd.DataFrame(
            _row(result, label) | setting_values(result, settings)
            for result, label in zip(results, data_labels(results), strict=True)
        )
    )


def _row(result: Result, label: str) -> dict[str, Any]:
    head = result.head or {}
    return {
        "embedder": embedder_name(result),
        "cutoff": _join(result.cutoffs),
        "layer number": _join(_layer_numbers(result)),
        "task": label,
        "data": local_data(result),
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

    Scores are means over seeds and runs of the protocol. If an embedder has several seeds, `seeds`
    is their number, and scores are texts with their 95 % CI: `0.937 [0.930, 0.944]`. RoBERTa alone
    comes first, then Gemma alone and the hybrids, the largest cutoff first.

    Raises:
        InputError: there are no results.
    """
    check_results(results)
    groups: dict[tuple[str, str], dict[str, list[Result]]] = {}
    for (label, name), group in group_by_seed(sorted(results, key=_largest_cutoff_first)).items():
        key = name, _join(_layer_numbers(group[0]))
        groups.setdefault(key, {})[label] = group
    labels = sorted(set(data_labels(results)))
    has_seeds = any(len(group) > 1 for by_label in groups.values() for group in by_label.values())
    rows = []
    for (name, layer_number), by_label in groups.items():
        row = {"embedder": name, "layer number": layer_number}
        row["seeds"] = max(map(len, by_label.values()))
        for label in labels:
            for column in ("accuracy", "macro F1"):
                score = score_interval(by_label[label], column) if label in by_label else None
                if has_seeds:
                    row[f"{label} {column}"] = format_interval(score)
                else:
                    row[f"{label} {column}"] = score.mean if score else None
        rows.append(row)
    table = pd.DataFrame(rows)
    return table if has_seeds else table.drop(columns="seeds")


def _largest_cutoff_first(result: Result) -> tuple:
    data, *key, cutoffs = _sort_key(result)
    return *key, [-cutoff for cutoff in cutoffs], data


def has_layer_curve(results: Sequence[Result]) -> bool:
    """Whether the results of some data and kind have at least three single cutoffs."""
    cutoffs: dict[tuple, set] = {}
    for result in results:
        if len(result.cutoffs) == 1:
            group = data_key(result), result.experiment["kind"]
            cutoffs.setdefault(group, set()).add(result.cutoffs[0])
    return any(len(distinct) > 2 for distinct in cutoffs.values())


def long_table(results: Sequence[Result]) -> pd.DataFrame:
    """A row per result with every setting, for further analysis; scores come first.

    `task`, `samples_per_label` and `llm_layers` are what was used, whatever the experiment asked
    for; `task_source`, `task_path` and the fingerprints say what the names of data and presets
    stand for. `llm_layers` are cutoffs, joined by `+` if several are pooled; `val_accuracy` is the
    head's on the validation split, with the weights that were kept; `projection_explained` the
    fraction of the variance of RoBERTa's embeddings that a closed-form initialization explains on
    held-out tokens; `duplicate_texts` the number of evaluation texts that the train split contains
    too.
    """
    return pd.DataFrame([_long_row(result) for result in results])


def _long_row(result: Result) -> dict[str, Any]:
    experiment, head = result.experiment, result.head or {}
    row = {
        "task": data_key(result)[0],
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
        "cutoff_selected": result.selects_layer(),
        "duplicate_texts": (result.deduplicated or {}).get("texts", 0),
        "task_source": data_source(result),
        "task_path": local_path(result),
        "samples_per_label": result.task.get("samples_per_label"),
    }
    inputs = ("task", "llm_preset", "slm_preset")
    row |= {f"{name}_fingerprint": result.inputs.get(name) for name in inputs}
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
    notes = "".join(f"* {escape_markdown(note, MAX_NOTE)}\n" for note in reading_notes(results))
    return f"{to_markdown(results_table(results))}\n{notes}"


def reading_notes(results: Sequence[Result]) -> list[str]:
    """What a reader of the scores should know of the models, the protocol and the data.

    Sentences of plain text, on at most `MAX_NOTES` facts of each data set.
    """
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
            "validation: scores on the validation split, which also selects the epoch, an "
            "automatic cutoff and the probe's penalty: use them to choose settings, not as final "
            "scores."
        )
    by_label: dict[str, dict[str, None]] = {}
    for result, label in zip(results, data_labels(results), strict=True):
        by_label.setdefault(label, {}).update(dict.fromkeys(data_notes(result)))
    for label, facts in by_label.items():
        notes += [f"{label}: {fact}." for fact in list(facts)[:MAX_NOTES]]
        if len(facts) > MAX_NOTES:
            notes.append(f"{label}: {len(facts) - MAX_NOTES} more notes are in the result files.")
    return notes


def data_notes(result: Result) -> list[str]:
    """What a reader of a result's scores should know of its data."""
    notes = [describe_local_data(result)]
    if duplicates := (result.deduplicated or {}).get("texts"):
        total = result.task["texts"]["scored"]
        notes.append(f"the train split also contains {duplicates} of {total} evaluation texts")
    return [note for note in [*notes, *result.task["notes"]] if note]

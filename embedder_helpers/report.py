"""The report: results as tables that a person reads, with their figures beside them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from embedder_helpers import platform, presets
from embedder_helpers.config import InputError, make_experiment
from embedder_helpers.result import Result, read_result

ORIGINS = {"task": "data", "llm_preset": "Gemma", "slm_preset": "RoBERTa"}
KIND_NAMES = {"hybrid": "hybrid", "gemma_only": "Gemma only", "roberta_only": "RoBERTa only"}
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
    known = {"llm_layers", "task_data", "scored_split"}  # by the name, or of no matter
    return [key for key in results[0].experiment if key in differing - known]


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
    """`hybrid [1-10]`, `Gemma only [1-10, chosen]`, `RoBERTa only, untrained`, as it is.

    Scores of the validation split are marked `validation`.
    """
    kind, epochs = result.experiment["kind"], result.experiment["epochs"]
    name = KIND_NAMES[kind]
    if result.cutoffs:
        spans = [f"1-{cutoff}" if cutoff > 1 else "1" for cutoff in result.cutoffs]
        chosen = ", chosen" if result.experiment["llm_layers"] == "auto" else ""
        name += f" [{', '.join(spans)}{chosen}]"
    name += "" if epochs or kind == "gemma_only" else ", untrained"
    return f"{name}, validation" if of_validation(result) else name


def of_validation(result: Result) -> bool:
    """Whether its scores are of the validation split."""
    return result.experiment.get("scored_split") == "validation"


def names(results: Sequence[Result]) -> list[str]:
    """What to call each result: its embedder, and what tells it from the others but the seed.

    Results that share task and name differ in their seed alone.
    """
    keys = _apart(results)
    found = []
    for result in results:
        alike = [one for one in results if one.task["name"] == result.task["name"]]
        words = [embedder_name(result), *_told(result, keys), *_origin(result, alike)]
        found.append(", ".join(words))
    return found


def _origin(result: Result, results: Sequence[Result]) -> list[str]:
    """Version, draws, data and models of a result, where not all of the results have the same."""

    def origin(one: Result) -> dict[str, Any]:
        inputs = {ORIGINS[key]: content[:8] for key, content in one.inputs.items()}
        draws = one.task.get("samples_per_label")
        return {"version": one.versions.get("embedder_helpers"), "draws": draws} | inputs

    others = [origin(one) for one in results]
    return [
        f"{what} {value}"
        for what, value in origin(result).items()
        if any(other.get(what, value) != value for other in others)
    ]


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
    if name == "parameters":
        return f"{value / 1e6:.1f} M"
    if name.endswith("rate"):
        return f"{value:g}" if isinstance(value, float) else str(value)
    if isinstance(value, float):
        return f"{value:.0f}" if name == "seconds" else f"{value:.3f}"
    return " ".join(str(value).split()).replace("|", "\\|")


def notes(results: Sequence[Result]) -> list[str]:
    """What a reader of the scores should know: of the models, the protocol and the data."""
    found = []
    used = {result.experiment[key] for result in results for key in result.inputs if key != "task"}
    if used & set(presets.BUILTIN):
        found.append(
            "The built-in models are tiny and have read four million words: these figures show how "
            "the method behaves, not how good it is."
        )
    found.append(
        "accuracy and F1 (macro): mean of 10 logistic regressions on small draws of train, as MTEB "
        "does; head: the classifier that was trained; floor: always the commonest label."
    )
    if any(map(of_validation, results)):
        found.append(
            "validation: scores of the split by which the epoch, a chosen cutoff and a probe's "
            "penalty were taken too; good for choosing settings, too good to quote."
        )
    for result in results:
        if repeated := (result.unrepeated or {}).get("texts"):
            found.append(
                f"{result.task['name']}: {repeated} of {result.task['texts']['scored']} scored "
                "texts stand in the train split too."
            )
        for note in result.task["notes"]:
            found.append(f"{result.task['name']}: {note}.")
    return list(dict.fromkeys(found))


def long_table(results: Sequence[Result]) -> pd.DataFrame:
    """A row per result with all that tells it apart: scores first, then every other key.

    `llm_layers` are cutoffs counted from the bottom, joined by `+` where several are pooled;
    `val_accuracy` is the head's on the validation split with the weights that were kept;
    `projection_explained` the share of the variance of RoBERTa's embeddings that a closed-form
    start explains on held-out tokens; `repeated_texts` the scored texts that train has too.
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
        "val_accuracy": _validated(result),
        "floor_accuracy": result.floor["accuracy"],
        "floor_f1": result.floor["f1"],
        "seconds": result.seconds["total"],
        "layer_number": "+".join(map(str, _layer_numbers(result))),
        "projection_explained": (result.projection or {}).get("explained"),
        "cutoff_chosen": experiment["llm_layers"] == "auto",
        "repeated_texts": (result.unrepeated or {}).get("texts", 0),
    }
    others = {key: value for key, value in experiment.items() if key not in row}
    return row | others | {"device": ", ".join(result.device)} | result.versions


def _validated(result: Result) -> float | None:
    """The head's validation accuracy after the last epoch, or the best where that was kept."""
    accuracies = [epoch["val_accuracy"] for epoch in result.history]
    if accuracies and result.experiment.get("patience", "best") is None:
        return accuracies[-1]
    return max(accuracies, default=None)


def _layer_numbers(result: Result) -> list[int]:
    return [cutoff - result.blocks - 1 for cutoff in result.cutoffs]


def write_csv(folder: str | Path) -> None:
    """Writes the long table of all results in a folder; whole or not at all."""
    if found := _results(folder, "*.json"):
        frame = long_table(sorted(found.values(), key=_place))
        platform.write_whole(Path(folder) / CSV, lambda part: frame.to_csv(part, index=False))


def layer_table(results: Sequence[Result]) -> pd.DataFrame:
    """The original study's table: a row per embedder, accuracy and F1 of each task beside it.

    Scores are protocol scores; those of several seeds are averaged, and `seeds` tells how many.
    RoBERTa alone comes first, then Gemma alone and the hybrids, the deepest cutoff first.
    """
    rows: dict[tuple, dict[tuple[str, str], list]] = {}
    named = zip(results, names(results), strict=True)
    for result, name in sorted(named, key=lambda one: _from_the_top(one[0])):
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


def has_curve(results: Sequence[Result]) -> bool:
    """Whether the results of some task and kind have three single cutoffs at least."""
    found: dict[tuple[str, str], set] = {}
    for result in results:
        if len(result.cutoffs) == 1:
            same = result.task["name"], result.experiment["kind"]
            found.setdefault(same, set()).add(result.cutoffs[0])
    return any(len(cutoffs) > 2 for cutoffs in found.values())


def _apart(results: Sequence[Result]) -> list[str]:
    """Keys, beside seed and task, that tell results of one embedder and task apart."""
    return [key for key in _differing(results) if key not in ("seed", "task")]


def _told(result: Result, keys: Sequence[str]) -> list[str]:
    """These keys and their values, in words, where they determine the result."""
    return [f"{key} {value}" for key, value in _settings(result, keys).items() if value != "-"]


def _from_the_top(result: Result) -> tuple:
    task, kind, trained, pooled, found = _place(result)
    return kind, trained, pooled, [-cutoff for cutoff in found], task


def load_results(folder: str | Path) -> list[Result]:
    """The results of `results_in`, by task, kind and cutoff: RoBERTa alone, Gemma alone, hybrids.

    Raises:
        InputError: there are none.
    """
    return sorted(results_in(folder).values(), key=_place)


def results_in(folder: str | Path) -> dict[str, Result]:
    """The results in a folder, or else below it, by the names of their files.

    Raises:
        InputError: there are none.
    """
    if results := _results(folder, "*.json") or _results(folder, "*/**/*.json"):
        return results
    raise InputError(f"{folder} holds no results: run an experiment with --out {folder} first")


def _results(folder: str | Path, pattern: str) -> dict[str, Result]:
    paths = {path.name: path for path in sorted(Path(folder).glob(pattern))}
    return {name: result for name, path in paths.items() if (result := read_result(path))}


def _place(result: Result) -> tuple:
    kind = ("roberta_only", "gemma_only", "hybrid").index(result.experiment["kind"])
    pooled = len(result.cutoffs)  # several cutoffs pooled come after single ones
    return result.task["name"], kind, bool(result.history), pooled, result.cutoffs

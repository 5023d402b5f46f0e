"""MTEB's leaderboard: the ranks that our embedders would have; and the original study's table.

Scores of other models on the original study's two tasks (test split, English) are stored in
`results/reference/leaderboard.csv`. They come from the public results repository of the
leaderboard, in the month and at the commit of each row (`~1`: the commit before, if the file was
removed). Some are self-reported. `trained_on_task` is what a model's own metadata say; `unknown` if
they say nothing, or if a score far above those of similar models makes them doubtful.
`tools/refresh_leaderboard.py` updates the file.
"""

import datetime
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from embedder_helpers.errors import InputError, shorten, show
from embedder_helpers.results.comparison import group_by_seed, score_interval
from embedder_helpers.results.data_sets import local_data, mteb_task, without_empty_data
from embedder_helpers.results.naming import is_validation_score
from embedder_helpers.results.result import Result
from embedder_helpers.utils.files import package_path

REFERENCE = package_path("reference", "results/reference")
LEADERBOARD_FILE = REFERENCE / "leaderboard.csv"
SOURCE = "github.com/embeddings-benchmark/results"  # CC0
# A commit may consist of digits only, or of digits and an e, and be read as a number.
TYPES = {
    "model": "str", "parameters": "Int64", "task": "str", "accuracy": "float64", "f1": "float64",
    "trained_on_task": "str", "self_reported": "bool", "mteb_version": "str", "commit": "str",
    "read": "str",
}  # fmt: skip
MAX_BYTES = 2**24  # of the file: some 100 a row
MAX_NAME = 200  # letters


def load_leaderboard(path: Path = LEADERBOARD_FILE) -> pd.DataFrame:
    """A row per model and task: model, parameters, task, accuracy, f1, trained_on_task, …

    Raises:
        InputError: the file cannot be read, or holds something else.
    """
    try:
        if not path.is_file() or path.stat().st_size > MAX_BYTES:  # not one without an end
            raise ValueError("it is no file, or too large")
        board = pd.read_csv(path, dtype=TYPES, usecols=list(TYPES), index_col=False)
        board = board[list(TYPES)]
        _check_board(board)
    except (OSError, ValueError, TypeError, OverflowError) as error:
        reason = " ".join(str(error).split())
        raise InputError(
            f"{show(str(path))} is not a file of leaderboard scores ({shorten(reason, 200)}): "
            "write it again with tools/refresh_leaderboard.py, or take that of the repository"
        ) from None
    return board


def _check_board(board: pd.DataFrame) -> None:
    """Raises ValueError if a row cannot be one of scores."""
    conditions = {
        "model": board["model"].map(_is_name) & ~board.duplicated(["task", "model"]),
        "task": board["task"].notna(),
        "parameters": board["parameters"].isna() | (board["parameters"] >= 0),
        "accuracy": board["accuracy"].between(0, 1),
        "f1": board["f1"].isna() | board["f1"].between(0, 1),
        "trained_on_task": board["trained_on_task"].isin(["yes", "no", "unknown"]),
        "commit": board["commit"].notna(),
        "read": board["read"].str.fullmatch(r"[12]\d{3}-(0[1-9]|1[0-2])").eq(True),
    }
    if board.empty:
        raise ValueError("it has no rows")
    for column, is_valid in conditions.items():
        if not is_valid.all():
            row = int(is_valid.argmin())
            raise ValueError(f"row {row + 1}: {column} is {show(board[column].tolist()[row])}")


def _is_name(model: Any) -> bool:
    return isinstance(model, str) and model.isprintable() and len(model) <= MAX_NAME


def last_updated(path: Path = LEADERBOARD_FILE) -> str:
    """The month of the latest update: `November 2026`."""
    return f"{datetime.date.fromisoformat(load_leaderboard(path)['read'].max() + '-01'):%B %Y}"


def describe_leaderboard(path: Path = LEADERBOARD_FILE) -> str:
    """Source and date of the scores and the number of models of each task, as lines of text."""
    board = load_leaderboard(path)
    newest = board[board["read"] == board["read"].max()]
    lines = [f"{path}: scores on MTEB's leaderboard, as of {last_updated(path)}"]
    lines += [f"from {SOURCE} (CC0), commit {', '.join(newest['commit'].value_counts().index)}"]
    for task, rows in board.groupby("task"):
        counts = rows["trained_on_task"].value_counts()
        trained = ", ".join(f"{value} {counts.get(value, 0)}" for value in ("yes", "no", "unknown"))
        lines.append(f"{task}: {len(rows)} models (trained on the task: {trained})")
    if older := len(board) - len(newest):
        lines.append(f"{older} rows are older: the repository no longer has them")
    return "\n".join(lines)


def load_original_study() -> pd.DataFrame:
    """A row per task, kind and cutoff (`llm_layers`) of the original study: accuracy, f1."""
    return pd.read_csv(REFERENCE / "original_study.csv")


def uses_mteb_protocol(result: Result) -> bool:
    """Whether a result is on a task of MTEB's, with as many texts per label in each run."""
    if (task := mteb_task(result)) is None:
        return False
    return result.task.get("samples_per_label", task.samples_per_label) == task.samples_per_label


def our_models(results: Sequence[Result]) -> pd.DataFrame:
    """A row per task of MTEB's and embedder: mean test scores, and number of parameters.

    Columns are those of the leaderboard, and `low` and `high`, the 95 % CI of the accuracy; `label`
    and `data` say which data it is of. Trained embedders have `trained_on_task: yes`.
    """
    rows = []
    for (label, name), group in _test_groups(results).items():
        first = group[0]
        accuracy, f1 = score_interval(group, "accuracy"), score_interval(group, "macro F1")
        rows.append(
            {
                "task": first.task["name"],
                "label": label,
                "data": local_data(first),
                "model": name,
                "kind": first.experiment["kind"],
                "parameters": first.parameters,
                "seeds": len(group),
                "accuracy": accuracy.mean,
                "low": accuracy.low,
                "high": accuracy.high,
                "f1": f1.mean,
                "trained_on_task": "yes" if first.history else "no",
            }
        )
    return pd.DataFrame(rows)


def _test_groups(results: Sequence[Result]) -> dict[tuple[str, str], list[Result]]:
    """Results that MTEB's can be compared with, on its tasks' test splits, by label and name."""
    # Grouped before others are left out, so that labels and names are those of other tables.
    return {
        key: group
        for key, group in group_by_seed(results).items()
        if uses_mteb_protocol(group[0]) and not is_validation_score(group[0])
    }


def leaderboard_ranks(results: Sequence[Result]) -> pd.DataFrame:
    """The rank that each embedder would have by accuracy, among the models of its task.

    `rank 95 % CI` are the ranks at the ends of the accuracy's CI. `rank among comparable` counts
    only models known to be trained on the task or, for an untrained embedder, known not to be.
    `next better` is the model one rank above. Tasks that are not on the leaderboard are left out.
    """
    board, rows = load_leaderboard(), []
    for ours in our_models(results).itertuples():
        models = board[board["task"] == ours.task]
        if models.empty:
            continue
        accuracies = models["accuracy"]
        comparable = accuracies[models["trained_on_task"] == ours.trained_on_task]
        better = models[accuracies > ours.accuracy].sort_values("accuracy")
        rows.append(
            {
                "task": ours.label,
                "data": ours.data,
                "embedder": ours.model,
                "seeds": ours.seeds,
                "parameters": ours.parameters,
                "accuracy": ours.accuracy,
                "macro F1": ours.f1,
                "rank": _format_rank(ours.accuracy, accuracies),
                "rank 95 % CI": _format_ranks(ours.high, ours.low, accuracies),
                "rank among comparable": _format_rank(ours.accuracy, comparable),
                "rank by macro F1": _format_rank(ours.f1, models["f1"].dropna()),
                "next better": better["model"].iloc[0] if len(better) else "-",
            }
        )
    if not rows:
        return pd.DataFrame()
    table = pd.DataFrame(rows).sort_values(["task", "accuracy"], ascending=[True, False])
    return without_empty_data(table)


def _format_rank(score: float, others: pd.Series) -> str:
    return f"{_rank(score, others)} of {len(others) + 1}"


def _format_ranks(high: float, low: float, others: pd.Series) -> str:
    return "-" if math.isnan(low) else f"{_rank(high, others)} … {_rank(low, others)}"


def _rank(score: float, others: pd.Series) -> int:
    return 1 + int((others > score).sum())


def original_study_table(results: Sequence[Result]) -> pd.DataFrame:
    """A row per embedder that the original study has too: its scores, ours, and ours minus its.

    Embedders match by task, kind and cutoff; RoBERTa alone only if trained, Gemma alone only with
    all layers. The models need not be the same: the result files have the names of ours.
    """
    study = load_original_study()
    rows = []
    for (label, name), group in _test_groups(results).items():
        first = group[0]
        published = _published_scores(study[study["task"] == first.task["name"]], first)
        if published is None:
            continue
        cutoff = published["llm_layers"]
        row = {"task": label, "data": local_data(first), "embedder": name}
        row["cutoff"] = "-" if pd.isna(cutoff) else int(cutoff)
        for column, metric in (("accuracy", "accuracy"), ("macro F1", "f1")):
            original, ours = float(published[metric]), score_interval(group, column).mean
            row |= {f"original {column}": original, f"our {column}": ours}
            row |= {f"{column} difference": ours - original}
        rows.append(row)
    return without_empty_data(pd.DataFrame(rows))


def _published_scores(study: pd.DataFrame, result: Result) -> pd.Series | None:
    """The original study's row for an embedder; None if it has none."""
    kind, cutoffs = result.experiment["kind"], result.cutoffs
    if kind == "gemma_only":
        comparable = cutoffs == [result.num_layers]
    else:
        comparable = result.history and len(cutoffs) < 2
    rows = study[study["kind"] == kind]
    if kind == "hybrid":
        rows = rows[rows["llm_layers"].isin(cutoffs)]
    return rows.iloc[0] if comparable and len(rows) else None

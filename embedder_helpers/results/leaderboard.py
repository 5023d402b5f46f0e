"""MTEB's leaderboard: the ranks that our embedders would have; and the original study's table.

Scores of other models on the 12 English classification tasks (test split) are stored in
`results/reference/leaderboard.csv`, a row per model and task. They come from the public results
repository of the leaderboard, at the commit of each row. `read` is the month of that commit, or
that of the reading where a file was read alone. A file that was removed is read at the commit
before (`~1`). Some scores are self-reported. `trained_on_task` is what a model's own metadata say,
`no` being no proof; `unknown` if they say nothing, or, on the original study's two tasks, if a
score far above those of similar models makes a `no` doubtful. `tools/refresh_leaderboard.py`
updates the file.
"""

import datetime
import math
from collections.abc import Iterable, Sequence
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
# On the first version of MTEB's English benchmark only; the others are on the second one too.
FIRST_VERSION_TASKS = {
    "AmazonPolarityClassification", "AmazonReviewsClassification", "EmotionClassification",
    "MTOPIntentClassification",
}  # fmt: skip
MAX_SMALL = 400_000_000  # parameters of a small model; Gemma 3 270M and RoBERTa-base have 392 M
SMALL = f"{MAX_SMALL // 10**6} M"
RANK, SMALL_RANK, ALIKE_RANK = "rank", f"rank up to {SMALL}", "rank trained alike"
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


def benchmark(task: str) -> str:
    """The benchmark whose leaderboard shows a task today."""
    return f"MTEB(eng, {'v1' if task in FIRST_VERSION_TASKS else 'v2'})"


def last_updated(path: Path = LEADERBOARD_FILE) -> str:
    """The month that most scores are of: `August 2026`."""
    month = load_leaderboard(path)["read"].mode().iloc[-1]
    return f"{datetime.date.fromisoformat(month + '-01'):%B %Y}"


def describe_leaderboard(path: Path = LEADERBOARD_FILE) -> str:
    """Source and date of the scores and the number of models of each task, as lines of text."""
    board = load_leaderboard(path)
    commit = board["commit"].mode().iloc[-1]
    lines = [f"{path}: scores on MTEB's leaderboard, as of {last_updated(path)}"]
    lines += [f"from {SOURCE} (CC0), commit {commit}"]
    for task, rows in board.groupby("task"):
        counts = rows["trained_on_task"].value_counts()
        trained = ", ".join(f"{value} {counts.get(value, 0)}" for value in ("yes", "no", "unknown"))
        lines.append(
            f"{task}, {benchmark(task)}: {len(rows)} models (trained on the task: {trained})"
        )
    if others := int((board["commit"] != commit).sum()):
        lines.append(f"{others} rows are of other commits, most of files that were removed since")
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
    """The rank by accuracy that each embedder would have, and the best models of the leaderboard.

    A row per embedder, and per model that is the best of a group (`best of 290`), by accuracy. An
    embedder's `9 of 291 [4, 12]` is its rank, the number of models including itself, and the ranks
    at the ends of its accuracy's 95 % CI. The groups are all models, those known to have at most
    `MAX_SMALL` parameters, and those known to be trained on the task or, for an untrained embedder,
    known not to be. Tasks that are not on the leaderboard are left out.
    """
    board, ours, rows = load_leaderboard(), our_models(results), []
    for (label, task), embedders in ours.groupby(["label", "task"]) if len(ours) else ():
        models = board[board["task"] == task]
        if models.empty:
            continue
        ranked = [_rank_embedder(embedder, models) for embedder in embedders.itertuples()]
        ranked += _best_models(models, sorted(set(embedders["trained_on_task"])))
        start = {"task": label, "benchmark": benchmark(task), "data": None}
        rows += [start | row for row in sorted(ranked, key=lambda row: -row["accuracy"])]
    table = pd.DataFrame(rows)
    if rows:  # whole numbers beside missing ones
        table["parameters"] = pd.Series([row["parameters"] for row in rows], dtype=object)
    return without_empty_data(table)


def _ranked_groups(models: pd.DataFrame, trained_on_task: str) -> dict[str, pd.DataFrame]:
    """The models of one task that an embedder is ranked among, by name of the rank."""
    return {
        RANK: models,
        SMALL_RANK: models[models["parameters"] <= MAX_SMALL],
        ALIKE_RANK: models[models["trained_on_task"] == trained_on_task],
    }


def _rank_embedder(ours: Any, models: pd.DataFrame) -> dict[str, Any]:
    """The scores and ranks of a row of `our_models` among the models of its task."""
    is_small = ours.parameters and ours.parameters <= MAX_SMALL
    ranks = {
        name: _format_rank(ours, group["accuracy"]) if is_small or name != SMALL_RANK else "-"
        for name, group in _ranked_groups(models, ours.trained_on_task).items()
    }
    scores = {"accuracy": ours.accuracy, "macro F1": ours.f1}
    first = {"data": ours.data, "embedder": ours.model, "parameters": ours.parameters}
    return first | scores | ranks


def _format_rank(ours: Any, others: pd.Series) -> str:
    """`9 of 291 [4, 12]`, without brackets if the accuracy has no CI."""
    rank, best, worst = (
        1 + int((others > score).sum()) for score in (ours.accuracy, ours.high, ours.low)
    )
    ends = "" if math.isnan(ours.low) else f" [{best}, {worst}]"
    return f"{rank} of {len(others) + 1}{ends}"


def _best_models(models: pd.DataFrame, kinds_of_training: Iterable[str]) -> list[dict[str, Any]]:
    """A row per model that has the best accuracy of a group; `-` in the columns of the others."""
    rows: dict[str, dict[str, Any]] = {}
    for trained in kinds_of_training:
        for name, group in _ranked_groups(models, trained).items():
            if group.empty:
                continue
            best = group.loc[group["accuracy"].idxmax()]
            size = math.nan if pd.isna(best["parameters"]) else int(best["parameters"])
            row = {"embedder": best["model"], "parameters": size}
            row |= {"accuracy": best["accuracy"], "macro F1": best["f1"]}
            row |= dict.fromkeys((RANK, SMALL_RANK, ALIKE_RANK), "-")
            which = {"yes": " trained", "no": " untrained"}[trained] if name == ALIKE_RANK else ""
            rows.setdefault(best["model"], row)[name] = f"best of {len(group)}{which}"
    return list(rows.values())


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

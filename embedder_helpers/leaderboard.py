"""The leaderboard: the place our embedders would take on it, and the original study point by point.

Scores of other models on the original study's two tasks (test split, English) are carried in
`results/reference/leaderboard.csv`, read from the public results repository of MTEB's leaderboard
in the month and at the commit in each row (`~1`: the one before, where the file was removed). Some
are self-reported. `trained_on_task` is what a model's own metadata say; `unknown` where they say
nothing, or where a score far above those of like models makes them doubtful. `refresh` reads them
anew.
"""

import datetime
import math
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from embedder_helpers.comparison import groups, mean
from embedder_helpers.config import carried
from embedder_helpers.report import of_validation
from embedder_helpers.result import Result
from embedder_helpers.tasks import MTEB_TASKS

REFERENCE = carried("reference", "results/reference")
FIGURES = REFERENCE / "leaderboard.csv"
SOURCE = "github.com/embeddings-benchmark/results"  # CC0
# A commit of digits alone, or with an e among them, is no number.
TYPES = {"parameters": "Int64", "mteb_version": "str", "commit": "str", "read": "str"}


def leaderboard(path: Path = FIGURES) -> pd.DataFrame:
    """A row per model and task: model, parameters, task, accuracy, f1, trained_on_task, …"""
    return pd.read_csv(path, dtype=TYPES)


def as_of(path: Path = FIGURES) -> str:
    """The month in which the figures were last read, in words: `November 2026`."""
    return f"{datetime.date.fromisoformat(leaderboard(path)['read'].max() + '-01'):%B %Y}"


def told(path: Path = FIGURES) -> str:
    """What the figures are from, and how many models each task has, in lines."""
    board = leaderboard(path)
    newest = board[board["read"] == board["read"].max()]
    lines = [f"{path}: scores on MTEB's leaderboard, as of {as_of(path)}"]
    lines += [f"from {SOURCE} (CC0), commit {', '.join(newest['commit'].value_counts().index)}"]
    for task, rows in board.groupby("task"):
        trained = rows["trained_on_task"].value_counts()
        split = ", ".join(f"{word} {trained.get(word, 0)}" for word in ("yes", "no", "unknown"))
        lines.append(f"{task}: {len(rows)} models (trained on the task: {split})")
    if older := len(board) - len(newest):
        lines.append(f"{older} rows are older: the repository no longer has them")
    return "\n".join(lines)


def original_study() -> pd.DataFrame:
    """A row per task, kind and cutoff (`llm_layers`) of the original study: accuracy, f1."""
    return pd.read_csv(REFERENCE / "original_study.csv")


def with_mtebs_draws(result: Result) -> bool:
    """Whether the protocol drew as many texts of each label as MTEB does on this task."""
    name = result.task["name"]
    draws = MTEB_TASKS[name].draws if name in MTEB_TASKS else None
    return draws is None or result.task.get("samples_per_label", draws) == draws


def ours(results: Sequence[Result]) -> pd.DataFrame:
    """A row per task and embedder: means over seeds and draws on the test split, and parameters.

    `low` and `high` are the accuracy's 95 % interval. Those that were trained, on the task, are
    `trained_on_task: yes`.
    """
    rows = []
    for (task, name), group in _tested(results).items():
        accuracy, f1 = mean(group, "accuracy"), mean(group, "F1")
        rows.append(
            {"task": task, "model": name, "kind": group[0].experiment["kind"]}
            | {"parameters": group[0].parameters, "seeds": len(group)}
            | {"accuracy": accuracy.mean, "low": accuracy.low, "high": accuracy.high}
            | {"f1": f1.mean}
            | {"trained_on_task": "yes" if group[0].history else "no"}
        )
    return pd.DataFrame(rows)


def _tested(results: Sequence[Result]) -> dict[tuple[str, str], list[Result]]:
    """Groups of results by task and name, of the test split and with MTEB's own draws."""
    tested = [one for one in results if not of_validation(one) and with_mtebs_draws(one)]
    return groups(tested) if tested else {}


def places(results: Sequence[Result]) -> pd.DataFrame:
    """The place that each of our embedders would take among the models of its task, by accuracy.

    `within` tells the places that its 95 % interval spans. `among alike` counts only models known
    to be trained on the task or, for an untrained embedder, known not to be. `next above` is the
    model just above. Tasks without figures are left out.
    """
    board, rows = leaderboard(), []
    for one in ours(results).itertuples():
        models = board[board["task"] == one.task]
        if models.empty:
            continue
        accuracies = models["accuracy"]
        alike = models.loc[models["trained_on_task"] == one.trained_on_task, "accuracy"]
        above = models[accuracies > one.accuracy].sort_values("accuracy")
        within = [1 + int((accuracies > edge).sum()) for edge in (one.high, one.low)]
        rows.append(
            {"task": one.task, "embedder": one.model, "seeds": one.seeds}
            | {"parameters": one.parameters, "accuracy": one.accuracy, "F1": one.f1}
            | {"place": _place(one.accuracy, accuracies)}
            | {"within": "-" if math.isnan(one.low) else "{} … {}".format(*within)}
            | {"among alike": _place(one.accuracy, alike)}
            | {"place by F1": _place(one.f1, models["f1"].dropna())}
            | {"next above": above["model"].iloc[0] if len(above) else "-"}
        )
    frame = pd.DataFrame(rows)
    return frame.sort_values(["task", "accuracy"], ascending=[True, False]) if rows else frame


def _place(score: float, others: pd.Series) -> str:
    return f"{int((others > score).sum()) + 1} of {len(others) + 1}"


def against_original(results: Sequence[Result]) -> pd.DataFrame:
    """The original study's table, point by point: its scores, ours, and by how much ours are above.

    A row for each task, kind and cutoff that both have; RoBERTa alone counts when trained, Gemma
    alone when whole. The models need not be the same: the result files tell ours.
    """
    rows = []
    published = original_study().fillna({"llm_layers": 0})
    for (task, name), group in _tested(results).items():
        first = group[0]
        kind, several = first.experiment["kind"], len(first.cutoffs) > 1
        cutoff = max(first.cutoffs, default=0)
        if kind == "gemma_only" and cutoff == first.blocks:
            cutoff = 0  # the original study names no cutoff here
        same = published[
            (published["task"] == task)
            & (published["kind"] == kind)
            & (published["llm_layers"] == cutoff)
        ]
        if same.empty or several or (kind != "gemma_only" and not first.history):
            continue
        row = {"task": task, "embedder": name, "cutoff": cutoff or "-"}
        for column, metric in (("accuracy", "accuracy"), ("F1", "f1")):
            our, their = mean(group, column).mean, float(same[metric].iloc[0])
            row |= {f"original {column}": their, f"our {column}": our}
            row |= {f"{column} above": our - their}
        rows.append(row)
    return pd.DataFrame(rows)

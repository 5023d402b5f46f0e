"""The leaderboard: the place our embedders would take on it, and the original study point by point.

MTEB's leaderboard figures (test split, English) are carried in `results/reference/leaderboard.csv`:
of 95 models on the original study's two tasks, read in November 2026 from the public results
repository, `embeddings-benchmark/results` (CC0), at the commit in each row. `trained_on_task` is
what a model's own metadata say; `unknown` where they say nothing, or where a score far above those
of like models makes them doubtful.
"""

from collections.abc import Sequence

import pandas as pd

from embedder_helpers.comparison import groups, mean
from embedder_helpers.config import InputError, carried, make_experiment
from embedder_helpers.report import of_validation
from embedder_helpers.result import Result
from embedder_helpers.shapes import shape_of, weights_of

REFERENCE = carried("reference", "results/reference")
READ = "November 2026"  # when the leaderboard's figures were taken


def leaderboard() -> pd.DataFrame:
    """A row per model and task: model, parameters, task, accuracy, f1, trained_on_task, …"""
    return pd.read_csv(REFERENCE / "leaderboard.csv", dtype={"parameters": "Int64"})


def original_study() -> pd.DataFrame:
    """A row per task, kind and cutoff (`llm_layers`) of the original study: accuracy, f1."""
    return pd.read_csv(REFERENCE / "original_study.csv")


def ours(results: Sequence[Result]) -> pd.DataFrame:
    """A row per task and embedder: means over seeds and draws on the test split, and parameters.

    Those that were trained, on the task, are `trained_on_task: yes`.
    """
    rows = []
    for (task, name), group in _tested(results).items():
        scores = {column: mean(group, column).mean for column in ("accuracy", "F1")}
        rows.append(
            {"task": task, "model": name, "kind": group[0].experiment["kind"]}
            | {"parameters": parameters(group[0]), "seeds": len(group)}
            | {"accuracy": scores["accuracy"], "f1": scores["F1"]}
            | {"trained_on_task": "yes" if group[0].history else "no"}
        )
    return pd.DataFrame(rows)


def _tested(results: Sequence[Result]) -> dict[tuple[str, str], list[Result]]:
    """Groups of results by task and name, of the test split."""
    tested = [one for one in results if not of_validation(one)]
    return groups(tested) if tested else {}


def parameters(result: Result) -> int | None:
    """Weights that a text passes: those of the cut Gemma and of RoBERTa, embeddings included.

    The projection's are left out, below a hundredth. None where a preset cannot be reached.
    """
    experiment, total = make_experiment(result.experiment), 0
    for role in ("llm_preset", "slm_preset"):
        if role not in result.inputs:
            continue
        try:
            shape = shape_of(role, getattr(experiment, role))
        except InputError:
            return None
        blocks = max(result.cutoffs) if role == "llm_preset" else shape["num_layers"]
        total += weights_of(shape).embedding + blocks * weights_of(shape).block
    return total


def places(results: Sequence[Result]) -> pd.DataFrame:
    """The place that each of our embedders would take on its task's leaderboard, by accuracy.

    `among alike` counts only models that were trained on the task or, for an untrained embedder,
    were not; `next above` is the model just above. Tasks without leaderboard figures are left out.
    """
    board, rows = leaderboard(), []
    for one in ours(results).itertuples():
        models = board[board["task"] == one.task]
        if models.empty:
            continue
        alike = models[models["trained_on_task"] == one.trained_on_task]
        above = models[models["accuracy"] > one.accuracy].sort_values("accuracy")
        rows.append(
            {"task": one.task, "embedder": one.model, "seeds": one.seeds}
            | {"parameters": one.parameters, "accuracy": one.accuracy, "F1": one.f1}
            | {"place": _place(one.accuracy, models["accuracy"])}
            | {"among alike": _place(one.accuracy, alike["accuracy"])}
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

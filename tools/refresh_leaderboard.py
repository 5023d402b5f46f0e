"""Read the leaderboard's scores again, from MTEB's public results repository.

    python tools/refresh_leaderboard.py                   # downloads it, or updates the download
    python tools/refresh_leaderboard.py --clone FOLDER    # reads a clone of it, without network

Needs requirements-reference.txt: MTEB downloads the repository, some 100,000 files, into its own
cache folder, and reads it. A row that the repository no longer has is kept as it is, with its month
and commit, so that no embedder gains a rank because a file was removed.
"""

import argparse
import datetime
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from embedder_helpers.errors import InputError
from embedder_helpers.results.leaderboard import (
    LEADERBOARD_FILE,
    describe_leaderboard,
    load_leaderboard,
    load_original_study,
)
from embedder_helpers.utils.files import atomic_write, writable_folder

SELF_REPORTED = "external"  # the repository's name for the revision of scores from model cards
Row = dict[str, Any]


def refresh(clone: Path | None = None, out: Path = LEADERBOARD_FILE) -> Path:
    """Write the repository's rows, and those of the present file that the repository lacks.

    Args:
        clone: work tree of the results repository; None: download it, or update the download.
        out: the CSV file.

    Returns:
        The file.

    Raises:
        InputError: the file cannot be written; the clone contains no results of the tasks.
        ValueError: a file of the repository is damaged.
        subprocess.CalledProcessError: git failed; it says why on standard error.
    """
    if out.is_dir():
        raise InputError(f"--out {out} is a folder: give the name of a CSV file")
    writable_folder(out.parent, "--out")
    if clone is None:
        import mteb

        clone = mteb.ResultCache().download_from_remote()
    present = load_leaderboard()
    rows = {(row["task"], row["model"]): row for row in present.to_dict("records")}
    rows |= {(row["task"], row["model"]): row for row in read_repository(clone, rows)}
    board = pd.DataFrame(list(rows.values()), columns=present.columns)
    board = board.astype({"parameters": "Int64"})
    board = board.sort_values(["task", "accuracy", "model"], ascending=[True, False, True])
    return atomic_write(out, partial(board.to_csv, index=False))


def read_repository(clone: Path, present: Mapping[tuple[str, str], Row]) -> list[Row]:
    """A row for each task and model with an English score on the test split.

    Of several revisions the one that MTEB's leaderboard shows is read.
    """
    import mteb

    tasks = sorted(load_original_study()["task"].unique())
    with tempfile.TemporaryDirectory() as folder:
        cache = mteb.ResultCache(folder)  # MTEB's own folder may hold other results of this machine
        cache.remote_repo_path.symlink_to(clone.resolve())
        results = cache.load_results(tasks=tasks, require_model_meta=False)
    for model in results:
        model.task_results = [task for task in model if english_scores(task.scores.get("test", []))]
    rows = [
        _row(model, task, present.get((task.task_name, model.model_name), {}))
        for model in results.join_revisions()
        for task in model
    ]
    if not rows:
        raise InputError(
            f"{clone} contains no results of {' or '.join(tasks)}: choose another clone"
        )
    commit = ["git", "-C", clone, "rev-parse", "--short=12", "HEAD"]
    # In a git hook, GIT_DIR and the like name the repository of the hook.
    environment = {name: value for name, value in os.environ.items() if name[:4] != "GIT_"}
    done = subprocess.run(commit, check=True, stdout=subprocess.PIPE, text=True, env=environment)
    now = {"commit": done.stdout.strip(), "read": f"{datetime.date.today():%Y-%m}"}
    return [row | now for row in rows]


def english_scores(subsets: Sequence[Mapping[str, Any]]) -> tuple[float, float] | None:
    """Accuracy and macro F1 of the English subset, or of a task's only one; None if missing."""
    by_name = {subset["hf_subset"]: subset for subset in subsets}
    scores = by_name.get("en") or by_name.get("default") or {}
    accuracy, f1 = scores.get("accuracy", scores.get("main_score")), scores.get("f1")
    if accuracy is None or not 0 <= accuracy <= 100:
        return None
    scale = 100 if accuracy > 1 else 1  # model cards report percentages
    return round(accuracy / scale, 6), round(math.nan if f1 is None else f1 / scale, 6)


def trained_on_task(task: str, datasets: Collection[str] | None, present: str | None) -> str:
    """`yes`, `no` or `unknown`: what the metadata say, else the present row.

    A present `unknown` may be there to doubt a `no`, and is kept against it; not against a `yes`.
    """
    if datasets is None:
        return present or "unknown"
    if any(name.split(".")[0] == task for name in datasets):  # `.v2` is the same data
        return "yes"
    return "unknown" if present == "unknown" else "no"


def _row(model: Any, task: Any, present: Row) -> Row:
    """The row of a ModelResult's TaskResult; `present` is its row in the present file."""
    metadata = _metadata(model)
    datasets = getattr(metadata, "training_datasets", None)
    accuracy, f1 = english_scores(task.scores["test"])
    trained = trained_on_task(task.task_name, datasets, present.get("trained_on_task"))
    version = task.mteb_version or ""
    return {
        "model": model.model_name,
        "parameters": getattr(metadata, "n_parameters", None) or present.get("parameters"),
        "task": task.task_name,
        "accuracy": accuracy,
        "f1": f1,
        "trained_on_task": trained,
        "self_reported": model.model_revision == SELF_REPORTED,
        "mteb_version": version if version[:1].isdigit() else None,
    }


def _metadata(model: Any) -> Any:
    """MTEB's metadata of a model, newer than those stored beside its scores, which are the rest."""
    import mteb

    try:
        return mteb.get_model_meta(model.model_name)
    except KeyError:
        return model.model_meta


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--clone", type=Path, help="read this clone instead of downloading")
    parser.add_argument("--out", type=Path, default=LEADERBOARD_FILE, help="the file to write")
    options = parser.parse_args(arguments)
    try:
        print(describe_leaderboard(refresh(options.clone, options.out)))
    except ModuleNotFoundError as error:
        sys.exit(f"error: {error}: install requirements-reference.txt")
    except (ValueError, OSError, subprocess.CalledProcessError) as error:
        sys.exit(f"error: {error}; {options.out} is unchanged")


if __name__ == "__main__":
    main()

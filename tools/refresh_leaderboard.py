"""Read the leaderboard's scores again, from MTEB's public results repository.

    python tools/refresh_leaderboard.py                   # downloads it, or updates the download
    python tools/refresh_leaderboard.py --clone FOLDER    # reads a clone of it, without network

Needs requirements-reference.txt: MTEB downloads the repository, some 100,000 files, into its own
cache folder, and reads it: the 12 English classification tasks, the test split, in a minute. A row
that the repository no longer has is kept as it is, with its month and commit, so that no embedder
gains a rank because a file was removed.

Anybody may propose files of the repository. What is read are files of its newest commit, not of the
work tree, where links lead elsewhere; those that are too large, damaged or implausible are left out
and counted.
"""

import argparse
import json
import logging
import math
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import pandas as pd

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from embedder_helpers.data.mteb import MTEB_TASKS
from embedder_helpers.errors import InputError, show, show_list
from embedder_helpers.results.leaderboard import (
    LEADERBOARD_FILE,
    describe_leaderboard,
    load_leaderboard,
)
from embedder_helpers.utils.files import atomic_write, writable_file
from embedder_helpers.utils.json_files import parse_json

logger = logging.getLogger(__name__)

META_FILE = "model_meta.json"
MAX_BYTES = 2**20  # of a file
MAX_FILES = 10_000  # that are read
MAX_OUTPUT = 2**28  # bytes of a list of the repository's files: some 15 million
RESULT_KEYS = (
    "task_name", "mteb_dataset_name", "dataset_revision", "mteb_version", "evaluation_time",
)  # fmt: skip
MODEL_NAME = re.compile(r"\w[\w.-]{0,99}/\w[\w.-]{0,99}", re.ASCII)
FOLDER = re.compile(r"\w[\w.+-]{0,200}", re.ASCII)  # of a model, or of its revision
VERSION = re.compile(r"\d[\w.+-]{0,30}", re.ASCII)
MAX_PARAMETERS = 10**15
SELF_REPORTED = "external"  # the repository's name for the revision of scores from model cards
MISSPELLED = {"AmazonReviewClassification": "AmazonReviewsClassification"}  # in some metadata
Row = dict[str, Any]


def refresh(clone: Path | None = None, out: Path = LEADERBOARD_FILE) -> Path:
    """Write the repository's rows, and those of the present file that the repository lacks.

    Args:
        clone: clone of the results repository; None: download it, or update the download.
        out: the CSV file.

    Returns:
        The file.

    Raises:
        InputError: the file cannot be written; the clone contains no results of the tasks.
        subprocess.CalledProcessError: git cannot download; it says why on standard error.
    """
    out = writable_file(out, ".csv", "--out")
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

    Raises:
        InputError: the clone contains no results of the tasks.
    """
    import mteb

    tasks = sorted(MTEB_TASKS)
    with tempfile.TemporaryDirectory() as folder:
        cache = mteb.ResultCache(folder)  # MTEB's own folder may hold other results of this machine
        left_out = _extract(clone, tasks, cache.remote_results_path)
        results = cache.load_results(tasks=tasks, require_model_meta=False)
    rows = [
        _row(model, task, present.get((task.task_name, model.model_name), {}))
        for model in results.join_revisions()
        for task in model
        if MODEL_NAME.fullmatch(model.model_name)
    ]
    if left_out:
        logger.warning("%d files left out: %s", len(left_out), show_list(left_out))
    if not rows:
        raise InputError(
            f"{show(str(clone))} contains no results of MTEB's English classification tasks: "
            "choose another clone"
        )
    commit, month = _newest_commit(clone)
    return [row | {"commit": commit, "read": month} for row in rows]


def _extract(clone: Path, tasks: Sequence[str], folder: Path) -> list[str]:
    """Write the tasks' files and the metadata of their models, as MTEB reads them.

    Returns:
        Paths of the files that are left out because they are damaged.
    """
    from mteb.results import TaskResult

    scores, metas, left_out = {}, {}, []
    for path, size, blob in _tree(clone):
        if len(path.parts) != 4 or not all(map(FOLDER.fullmatch, path.parts[1:3])):
            continue
        if path.name in {f"{task}.json" for task in tasks}:
            scores[path] = size, blob
        elif path.name == META_FILE:
            metas[path] = size, blob
    read = {path.parent for path in scores}
    files = scores | {path: entry for path, entry in metas.items() if path.parent in read}
    if len(files) > MAX_FILES:
        raise InputError(f"{show(str(clone))} has {len(files)} results: choose another clone")
    for path, (size, blob) in files.items():
        target = folder.joinpath(*path.parts[1:])
        try:
            if size > MAX_BYTES:
                raise ValueError("too large")
            content = _git(clone, "cat-file", "blob", blob).decode()
            clean = _clean_meta(content) if path in metas else _clean_scores(content)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(json.dumps(clean), encoding="utf-8")
            if path in scores:
                result = TaskResult.from_disk(target)
                if result.task_name != path.stem:
                    raise ValueError("scores of another task")
                if not english_scores(result.scores.get("test", [])):
                    target.unlink()
        except Exception:  # whatever a stranger's values make MTEB raise
            target.unlink(missing_ok=True)
            left_out.append(str(path))
    return left_out


def _newest_commit(clone: Path) -> tuple[str, str]:
    """Hash and month of the newest commit, which may be older than today if the clone is."""
    text = _git(clone, "rev-list", "--max-count=1", "--format=%H %cs", "HEAD").decode()
    commit, date = text.split()[-2:]
    return commit[:12], date[:7]


def _tree(clone: Path) -> Iterator[tuple[PurePosixPath, int, str]]:
    """Path, bytes and name of each regular file of the newest commit's results; links are none."""
    listing = _git(clone, "ls-tree", "-r", "-l", "-z", "--full-tree", "HEAD", "--", "results")
    for entry in listing.decode(errors="replace").split("\0"):
        match = re.fullmatch(r"100\d+ blob (\w+) +(\d+)\t(.*)", entry, re.DOTALL)
        if match:
            yield PurePosixPath(match[3]), int(match[2]), match[1]


def _git(clone: Path, *arguments: str) -> bytes:
    """What git prints about a clone, at most `MAX_OUTPUT` bytes; nothing if it is no clone.

    It reads objects only: no hook, no filter and no command that the clone's settings name is run.
    """
    # In a git hook, GIT_DIR and the like name the repository of the hook.
    environment = {name: value for name, value in os.environ.items() if name[:4] != "GIT_"}
    environment["GIT_CEILING_DIRECTORIES"] = str(clone.resolve().parent)  # no repository around it
    environment["GIT_NO_LAZY_FETCH"] = "1"  # from where a partial clone says
    command = ["git", "-C", str(clone), *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as process:
        output = process.stdout.read(MAX_OUTPUT)
        process.kill()  # unless it is done
    if len(output) == MAX_OUTPUT:
        raise InputError(f"{show(str(clone))} is too large to be one of results: choose another")
    return output


def _clean_scores(content: str) -> dict[str, Any]:
    """A result file without what is not read, which may be anything.

    Raises:
        Exception: it is damaged.
    """
    # Scores that are not read may be no numbers.
    result = json.loads(content, parse_constant=lambda name: None)
    version = result.get("mteb_version")
    if version is not None and not VERSION.fullmatch(version):
        raise ValueError("no version")
    # Before MTEB 1.11, splits were keys of the file itself.
    splits, clean = result.get("scores", result), {k: result[k] for k in RESULT_KEYS if k in result}
    test = {"test": splits["test"]} if "test" in splits else {}
    return clean | ({"scores": {"test": [], **test}} if "scores" in result else test)


def _clean_meta(content: str) -> dict[str, Any]:
    """What is read of a model's metadata.

    Raises:
        Exception: it is damaged, or of an experiment with other settings.
    """
    meta = parse_json(content)
    if not MODEL_NAME.fullmatch(meta["name"]) or meta.get("experiment_kwargs"):
        raise ValueError("no model of its own")
    datasets, parameters = meta.get("training_datasets"), meta.get("n_parameters")
    if datasets is not None and not all(isinstance(name, str) for name in datasets):
        raise ValueError("no names of data sets")
    return {
        "name": meta["name"],
        "revision": None if meta["revision"] is None else str(meta["revision"])[:100],
        "training_datasets": None if datasets is None else list(datasets),
        "n_parameters": parameters if _is_count(parameters) else None,
    }


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 < value <= MAX_PARAMETERS


def english_scores(subsets: Sequence[Mapping[str, Any]]) -> tuple[float, float] | None:
    """Accuracy and macro F1 of the English subset, or of a task's only one; None if missing."""
    by_name = {subset["hf_subset"]: subset for subset in subsets}
    scores = by_name.get("en") or by_name.get("default") or {}
    accuracy, f1 = scores.get("accuracy", scores.get("main_score")), scores.get("f1")
    if not _is_score(accuracy):
        return None
    scale = 100 if accuracy > 1 else 1  # model cards report percentages
    f1 = f1 / scale if _is_score(f1) else math.nan
    return round(accuracy / scale, 6), round(f1, 6) if f1 <= 1 else math.nan


def _is_score(value: Any) -> bool:
    return type(value) in (int, float) and 0 <= value <= 100


def trained_on_task(task: str, datasets: Collection[str] | None, present: str | None) -> str:
    """`yes`, `no` or `unknown`: what the metadata say, else the present row.

    A present `unknown` may be there to doubt a `no`, and is kept against it; not against a `yes`.
    """
    if datasets is None:
        return present or "unknown"
    names = {name.split(".")[0] for name in datasets}  # `.v2` is the same data
    if task in {MISSPELLED.get(name, name) for name in names}:
        return "yes"
    return "unknown" if present == "unknown" else "no"


def _row(model: Any, task: Any, present: Row) -> Row:
    """The row of a ModelResult's TaskResult; `present` is its row in the present file."""
    parameters, datasets = _metadata(model)
    accuracy, f1 = english_scores(task.scores["test"])
    trained = trained_on_task(task.task_name, datasets, present.get("trained_on_task"))
    version = task.mteb_version or ""
    return {
        "model": model.model_name,
        "parameters": parameters if _is_count(parameters) else present.get("parameters"),
        "task": task.task_name,
        "accuracy": accuracy,
        "f1": f1,
        "trained_on_task": trained,
        "self_reported": model.model_revision == SELF_REPORTED,
        "mteb_version": version if version[:1].isdigit() else None,
    }


def _metadata(model: Any) -> tuple[Any, Collection[str] | None]:
    """Number of parameters and training data of a model, those of what it is adapted from included.

    MTEB's metadata are newer than those stored beside the scores, which are read for other models.
    """
    import mteb

    try:
        meta = mteb.get_model_meta(model.model_name)
        return meta.n_parameters, meta.get_training_datasets()
    except KeyError:
        meta = model.model_meta
        return getattr(meta, "n_parameters", None), getattr(meta, "training_datasets", None)


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

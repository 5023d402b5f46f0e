"""The refresh: the leaderboard's figures read anew from MTEB's public results repository.

Git fetches the two tasks' files and the models' metadata alone, some thousand small files of a
repository that is far larger. A model has one row per task; a row that the repository no longer has
stays as it was, with its month and commit, so that a place is not won by a file's removal. Tried on
a repository made in that layout, not yet on the public one.
"""

import datetime
import json
import math
import os
import re
import subprocess
import tempfile
from collections.abc import Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from embedder_helpers.config import InputError
from embedder_helpers.leaderboard import FIGURES, SOURCE, as_of, leaderboard, original_study
from embedder_helpers.platform import writable_folder, write_whole

URL = f"https://{SOURCE}"
SELF_REPORTED = "external"  # the repository's name for a revision whose scores are a model card's
Row = dict[str, Any]


def refresh(url: str = URL, out: str | Path = FIGURES) -> Path:
    """Reads the figures of the repository as it is now, and writes them with the carried ones.

    Args:
        url: of the repository, a mirror or a clone of it; never told, since it may hold a token.
        out: the file; that which the package reads, if not named.

    Returns:
        The file.

    Raises:
        InputError: it cannot be written; there is no git, no network, or nothing to read. The
            carried figures are as they were.
    """
    out = Path(out)
    if out.is_dir():
        raise InputError(f"--out: {out} is a folder: name a file in it")
    writable_folder(out.parent, "--out")
    carried = leaderboard()
    rows = {(row["task"], row["model"]): row for row in carried.to_dict("records")}
    rows |= {(row["task"], row["model"]): row for row in _anew(url, rows)}
    frame = pd.DataFrame(list(rows.values()), columns=carried.columns)
    frame = frame.astype({"parameters": "Int64"})
    frame = frame.sort_values(["task", "accuracy", "model"], ascending=[True, False, True])
    return write_whole(out, partial(frame.to_csv, index=False))


def _anew(url: str, carried: Mapping[tuple[str, str], Row]) -> list[Row]:
    """The rows of the repository at an address, with its commit and the month."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        try:
            commit = _fetch(url, Path(folder))
            rows = _rows(Path(folder), carried)
        except InputError as error:
            place = SOURCE if url == URL else "the address given with --from"
            raise InputError(
                f"the leaderboard's figures cannot be read from {place}: {error}; "
                f"those of {as_of()} stay in use"
            ) from None
    now = {"commit": commit, "read": f"{datetime.date.today():%Y-%m}"}
    return [row | now for row in rows]


def _fetch(url: str, folder: Path) -> str:
    """Checks the wanted files out into an empty folder; gives the commit, in twelve digits.

    The patterns are written by hand: `git sparse-checkout` takes other options in git before 2.35.
    """
    shallow = ("--depth=1", "--filter=blob:none", "--no-checkout", "-c", "core.sparseCheckout=true")
    _git("clone", "--quiet", *shallow, "-c", "core.sparseCheckoutCone=false", "--", url, folder)
    names = [f"/results/*/*/{name}.json\n" for name in (*_tasks(), "model_meta")]
    (folder / ".git" / "info").mkdir(exist_ok=True)
    (folder / ".git" / "info" / "sparse-checkout").write_text("".join(names))
    _git("-C", folder, "checkout", "--quiet")
    return _git("-C", folder, "rev-parse", "HEAD")[:12]


def _git(*arguments: str | Path) -> str:
    """What git prints; of a failure its own words are dropped, since they may hold the address."""
    # In a git hook these name the repository that the hook is of, which must be left alone.
    others = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE")
    environment = {key: value for key, value in os.environ.items() if key not in others}
    environment |= {"GIT_TERMINAL_PROMPT": "0"}  # a wrong address shall fail, not ask who one is
    environment |= {"GIT_HTTP_LOW_SPEED_LIMIT": "1000", "GIT_HTTP_LOW_SPEED_TIME": "60"}
    command = ["git", *map(str, arguments)]
    try:
        done = subprocess.run(
            command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True
        )
    except FileNotFoundError:
        raise InputError("git is not installed") from None
    if done.returncode:
        raise InputError("git cannot fetch it (check the network and the address)")
    return done.stdout.strip()


def _tasks() -> list[str]:
    return sorted(original_study()["task"].unique())


def _rows(root: Path, carried: Mapping[tuple[str, str], Row]) -> list[Row]:
    """A row per task and model of a repository.

    Of several revisions the one run by the newest MTEB counts, as on the leaderboard; of others
    alike, one that is not self-reported, then the first by name. What its metadata do not say,
    those of another revision may.

    Raises:
        InputError: there is none.
    """
    rows = []
    for folder in sorted(root.glob("results/*")):
        model = folder.name.replace("__", "/", 1)
        metas = {path.parent.name: _json(path) for path in sorted(folder.glob("*/model_meta.json"))}
        for task in _tasks():
            runs = [_run(path) for path in sorted(folder.glob(f"*/{task}.json"))]
            if best := max(filter(None, runs), key=_rank, default=None):
                said = [metas.get(best["revision"], {}), *metas.values()]
                facts = _facts(said, task, carried.get((task, model), {}))
                rows.append({"model": model, "task": task} | best | facts)
    if not rows:
        raise InputError("it holds no results of " + " or ".join(_tasks()))
    return rows


def _run(path: Path) -> Row | None:
    """What a task's file says of the English test split; None where it says nothing.

    Before MTEB 1.11 a file had its splits at the top, subsets by name below them, or, of a task
    that has one alone, its scores. Scores of model cards are in percent.
    """
    file, revision = _json(path), path.parent.name
    try:
        scores = _scores(file.get("scores", file)["test"])
        found = [scores.get("accuracy", scores.get("main_score")), scores.get("f1", math.nan)]
        accuracy, f1 = (round(one / (100 if found[0] > 1 else 1), 6) for one in found)
    except (AttributeError, KeyError, TypeError):  # another split, another shape, or no score
        return None
    if not 0 <= accuracy <= 1:
        return None
    return {
        "accuracy": accuracy,
        "f1": f1,
        "self_reported": revision == SELF_REPORTED,
        "mteb_version": file.get("mteb_version"),
        "revision": revision,
    }


def _scores(test: Any) -> Row:
    """The English scores of a split; KeyError where it has none."""
    if isinstance(test, list):
        test = {one["hf_subset"]: one for one in test}
    elif "accuracy" in test:
        return test
    return test["en"] if "en" in test else test["default"]


def _rank(run: Row) -> tuple:
    version = re.findall(r"\d+", str(run["mteb_version"]))
    return [int(number) for number in version], not run["self_reported"]


def _facts(said: Sequence[Row], task: str, before: Row) -> Row:
    """Parameters, and whether it was trained on the task, by metadata or else as it was carried."""
    parameters = _first(said, "n_parameters", int, float)
    parameters = int(parameters) if parameters else before.get("parameters")
    datasets = _first(said, "training_datasets", list, dict)
    trained = _trained(task, datasets, before.get("trained_on_task"))
    return {"parameters": parameters, "trained_on_task": trained}


def _first(metas: Sequence[Row], key: str, *types: type) -> Any:
    """The first that metadata say of something, in one of these types."""
    return next((one[key] for one in metas if isinstance(one.get(key), types)), None)


def _trained(task: str, datasets: Collection[str] | None, carried: str | None) -> str:
    """`yes`, `no` or `unknown`, by metadata, or else as it was carried.

    A carried `unknown` stands against a `no`, which it may be there to doubt; not against a `yes`.
    """
    if datasets is None:
        return carried or "unknown"
    if any(str(name).split(".")[0] == task for name in datasets):  # `.v2` is the same data
        return "yes"
    return "unknown" if carried == "unknown" else "no"


def _json(path: Path) -> Row:
    """What a file holds; nothing where it is damaged."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}

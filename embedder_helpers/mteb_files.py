"""Results as MTEB keeps its own: `<org>__<model>/<revision>/<Task>.json` and `model_meta.json`.

What `mteb` reads back (`mteb.ResultCache`). Its public results repository has the same layout, but
takes only models that `mteb` itself can load. Each trained embedder is a model of its own: its
revision is the key of all that determines its result.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from embedder_helpers import platform
from embedder_helpers.config import InputError
from embedder_helpers.leaderboard import with_mtebs_draws
from embedder_helpers.report import of_validation
from embedder_helpers.result import Result
from embedder_helpers.tasks import MTEB_TASKS

MTEB = "2.26.24"  # whose protocol and files these are


def write_mteb(results: Mapping[str, Result], folder: str | Path, org: str) -> list[Path]:
    """Writes the results on MTEB's tasks with MTEB's draws; others are left out.

    Args:
        results: by the names of their files, which end in the key.
        folder: gets the folders of models, as `results` of an `mteb` cache has.
        org: before the models' names; on a hub, the account.

    Returns:
        The task files.

    Raises:
        InputError: an org that no hub would take; none of the results is on an MTEB task; the
            folder cannot be written.
    """
    if not re.fullmatch(r"[\w.-]+", org):
        raise InputError(f"--org is {org!r}, but may hold letters, digits, `-`, `_` and `.` only")
    ours = {
        name: one
        for name, one in results.items()
        if one.task["name"] in MTEB_TASKS and with_mtebs_draws(one)
    }
    if not ours:
        known = ", ".join(dict.fromkeys(one.task["name"] for one in results.values()))
        raise InputError(f"no result is on a task of MTEB's: they are on {known}")
    folder, files = platform.writable_folder(folder), []
    for name, result in ours.items():
        model, revision = model_name(result), name.removesuffix(".json").split("-")[-1]
        place = folder / f"{org}__{model}" / revision
        place.mkdir(parents=True, exist_ok=True)
        _write(place / "model_meta.json", model_meta(f"{org}/{model}", revision, result))
        files.append(place / f"{result.task['name']}.json")
        _write(files[-1], task_result(result))
    return files


def model_name(result: Result) -> str:
    """`gemma3_270m-k10-roberta_6l_384-add-seed33`: parts that a hub's address may hold."""
    experiment, words = result.experiment, []
    for role in ("llm_preset", "slm_preset"):
        if role in result.inputs:
            # A Kaggle model ends in its version, which is no name.
            words.append([part for part in Path(experiment[role]).parts if not part.isdigit()][-1])
            if role == "llm_preset":
                words.append("k" + "+".join(map(str, result.cutoffs)))
    if experiment["kind"] == "hybrid":
        words.append(experiment["fusion"])
    if experiment["kind"] != "gemma_only":
        words.append(f"seed{experiment['seed']}" if result.history else "untrained")
    return re.sub(r"[^\w.-]+", ".", "-".join(words))


def task_result(result: Result) -> dict[str, Any]:
    """The fields of an `mteb.results.TaskResult`.

    Of texts that were read from files, the revision is `local`: nobody can vouch for it.
    """
    source = MTEB_TASKS[result.task["name"]]
    split = "validation" if of_validation(result) else "test"
    scores = {
        "scores_per_experiment": result.experiments,
        **result.scores,
        "main_score": result.scores["accuracy"],
        "hf_subset": source.subset or "default",
        "languages": ["eng-Latn"],
    }
    return {
        "dataset_revision": "local" if result.experiment["task_data"] else source.revision,
        "task_name": result.task["name"],
        "mteb_version": MTEB,
        "scores": {split: [scores]},
        "evaluation_time": result.seconds["total"],
        "kg_co2_emissions": None,
    }


def model_meta(name: str, revision: str, result: Result | None) -> dict[str, Any]:
    """The fields of an `mteb.models.ModelMeta`; without a result, less is known.

    A trained embedder says that it was trained on its task, as MTEB asks; of an untrained one it
    is not known what its models have read.
    """
    trained = result is not None and result.history
    return {
        "name": name,
        "revision": revision,
        "n_parameters": result.parameters if result else None,
        "max_tokens": result.experiment["max_tokens"] if result else None,
        "framework": [],
        "training_datasets": [result.task["name"]] if trained else None,
        "modalities": ["text"],
        "model_type": ["dense"],
        "loader": None,
        "release_date": None,
        "languages": ["eng-Latn"],
        "memory_usage_mb": None,
        "embed_dim": None,
        "license": None,
        "open_weights": None,
        "public_training_code": None,
        "public_training_data": None,
        "similarity_fn_name": "cosine",
        "use_instructions": False,
    }


def _write(path: Path, content: dict[str, Any]) -> None:
    text = json.dumps(content, indent=2) + "\n"
    platform.write_whole(path, lambda part: part.write_text(text, encoding="utf-8"))

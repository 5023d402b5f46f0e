"""Results in MTEB's own format: `<org>__<model>/<revision>/<Task>.json` and `model_meta.json`.

`mteb.ResultCache` reads them. MTEB's public results repository has the same layout, but accepts
only models that `mteb` itself can load. Each trained embedder is a model of its own, whose revision
is the hash of all that determines its result.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from embedder_helpers.data.tasks import MTEB_TASKS
from embedder_helpers.errors import InputError
from embedder_helpers.results.leaderboard import uses_mteb_protocol
from embedder_helpers.results.result import Result
from embedder_helpers.results.tables import is_validation_score
from embedder_helpers.utils.files import atomic_write, writable_folder

MTEB_VERSION = "2.26.24"  # whose protocol and format these are


def write_mteb_results(results: Mapping[str, Result], folder: str | Path, org: str) -> list[Path]:
    """Write results on MTEB's tasks, sampled as MTEB does; others are left out.

    Args:
        results: results by their file names, which end in the hash.
        folder: parent folder of the models' folders, such as `results` in an `mteb` cache.
        org: prefix of the models' names: on a hub, the account.

    Returns:
        The files of task results.

    Raises:
        InputError: an org that no hub allows; no result is on an MTEB task; the folder cannot be
            written.
    """
    if not re.fullmatch(r"[\w.-]+", org):
        raise InputError(
            f"--org is {org!r}, but may contain only letters, digits, `-`, `_` and `.`"
        )
    on_mteb_tasks = {
        name: result
        for name, result in results.items()
        if result.task["name"] in MTEB_TASKS and uses_mteb_protocol(result)
    }
    if not on_mteb_tasks:
        tasks = ", ".join(dict.fromkeys(result.task["name"] for result in results.values()))
        raise InputError(
            "no result is on a task of MTEB with its samples per label: they are on " + tasks
        )
    folder, files = writable_folder(folder), []
    for file_name, result in on_mteb_tasks.items():
        model, revision = model_name(result), file_name.removesuffix(".json").split("-")[-1]
        target = folder / f"{org}__{model}" / revision
        target.mkdir(parents=True, exist_ok=True)
        _write(target / "model_meta.json", model_meta(f"{org}/{model}", revision, result))
        files.append(target / f"{result.task['name']}.json")
        _write(files[-1], task_result(result))
    return files


def model_name(result: Result) -> str:
    """`gemma3_270m-k10-roberta_6l_384-add-seed33`: parts that a hub's address may hold."""
    experiment, parts = result.experiment, []
    for role in ("llm_preset", "slm_preset"):
        if role in result.inputs:
            # A Kaggle handle ends in its version, which is not a name.
            path = Path(experiment[role]).parts
            parts.append([part for part in path if not part.isdigit()][-1])
            if role == "llm_preset":
                parts.append("k" + "+".join(map(str, result.cutoffs)))
    if experiment["kind"] == "hybrid":
        parts.append(experiment["fusion"])
    if experiment["kind"] != "gemma_only":
        parts.append(f"seed{experiment['seed']}" if result.history else "untrained")
    return re.sub(r"[^\w.-]+", ".", "-".join(parts))


def task_result(result: Result) -> dict[str, Any]:
    """The fields of an `mteb.results.TaskResult`.

    Texts read from local files have the revision `local`, since theirs is unknown.
    """
    source = MTEB_TASKS[result.task["name"]]
    split = "validation" if is_validation_score(result) else "test"
    scores = {
        "scores_per_experiment": result.scores_per_experiment,
        **result.scores,
        "main_score": result.scores["accuracy"],
        "hf_subset": source.subset or "default",
        "languages": ["eng-Latn"],
    }
    return {
        "dataset_revision": "local" if result.experiment["task_data"] else source.revision,
        "task_name": result.task["name"],
        "mteb_version": MTEB_VERSION,
        "scores": {split: [scores]},
        "evaluation_time": result.seconds["total"],
        "kg_co2_emissions": None,
    }


def model_meta(name: str, revision: str, result: Result | None) -> dict[str, Any]:
    """The fields of an `mteb.models.ModelMeta`; without a result, fewer are known.

    A trained embedder names its task under `training_datasets`, as MTEB requires; for an untrained
    one this is unknown, as its models' pretraining data may hold the task.
    """
    is_trained = result is not None and result.history
    return {
        "name": name,
        "revision": revision,
        "n_parameters": result.parameters if result else None,
        "max_tokens": result.experiment["max_tokens"] if result else None,
        "framework": [],
        "training_datasets": [result.task["name"]] if is_trained else None,
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
    atomic_write(path, lambda part: part.write_text(text, encoding="utf-8"))

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

from embedder_helpers.config import WITH_ROBERTA
from embedder_helpers.errors import InputError, show, show_list
from embedder_helpers.results.data_sets import (
    data_key,
    data_revision,
    is_english,
    mteb_task,
)
from embedder_helpers.results.formats import write_text
from embedder_helpers.results.leaderboard import uses_mteb_protocol
from embedder_helpers.results.naming import is_validation_score, relevant_settings
from embedder_helpers.results.result import Result, preset_label
from embedder_helpers.utils.files import writable_folder

MTEB_VERSION = "2.26.24"  # whose protocol and format these are
MAX_NAME = 96  # letters of a model's name on Hugging Face, its account included


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
    if not re.fullmatch(rf"[\w.-]{{1,{MAX_NAME}}}", org, re.ASCII):
        raise InputError(
            f"--org is {show(org)}, but may contain only letters, digits, `-`, `_` and `.`"
        )
    on_mteb_tasks = {name: one for name, one in results.items() if uses_mteb_protocol(one)}
    if not on_mteb_tasks:
        names = dict.fromkeys(data_key(result)[0] for result in results.values())
        raise InputError(
            "no result is on a task of MTEB with its samples per label: they are on "
            + show_list(names)
        )
    folder, files = writable_folder(folder), []
    for file_name, result in on_mteb_tasks.items():
        model, revision = model_name(result), file_name.removesuffix(".json").split("-")[-1]
        target = writable_folder(folder / f"{org}__{model}" / revision)
        _write(target / "model_meta.json", model_meta(f"{org}/{model}", revision, result))
        files.append(target / f"{result.task['name']}.json")
        _write(files[-1], task_result(result))
    return files


def model_name(result: Result) -> str:
    """`gemma3_270m-k10-roberta_6l_384-add-late-contrastive-seed33`: what a hub's address may hold.

    The loss is named unless it is cross-entropy alone, as it was before there were others.
    """
    experiment, settings, parts = result.experiment, relevant_settings(result), []
    for role in ("llm_preset", "slm_preset", "encoder_preset"):
        if role in result.inputs:
            parts.append(preset_label(experiment[role]))
            if role == "llm_preset":
                parts.append("k" + "+".join(map(str, result.cutoffs)))
    if experiment["kind"] == "hybrid":
        parts += [experiment["fusion"], *["late"] * settings["late_fusion"]]
    if settings.get("objective") == "contrastive":
        parts.append("contrastive")
    if experiment["kind"] in WITH_ROBERTA:
        parts.append(f"seed{experiment['seed']}" if result.history else "untrained")
    return re.sub(r"[^\w.-]+", ".", "-".join(parts), flags=re.ASCII)[:MAX_NAME]


def task_result(result: Result) -> dict[str, Any]:
    """The fields of an `mteb.results.TaskResult`.

    The result must be one that `mteb_task` knows. Texts read from local files have the revision
    `local`, since theirs is unknown.
    """
    source = mteb_task(result)
    split = "validation" if is_validation_score(result) else "test"
    scores = {
        "scores_per_experiment": result.scores_per_experiment,
        **result.scores,
        "main_score": result.scores["accuracy"],
        "hf_subset": source.subset or "default",
        "languages": ["eng-Latn"],
    }
    return {
        "dataset_revision": data_revision(result),
        "task_name": result.task["name"],
        "mteb_version": MTEB_VERSION,
        "scores": {split: [scores]},
        "evaluation_time": result.seconds["total"],
        "kg_co2_emissions": None,
    }


def model_meta(name: str, revision: str, result: Result | None) -> dict[str, Any]:
    """The fields of an `mteb.models.ModelMeta`; without a result, fewer are known.

    An embedder trained on a task of MTEB's names it under `training_datasets`, as MTEB requires.
    For others this is unknown: MTEB has no name for local files, which may hold one of its tasks,
    as may the pretraining data of an untrained embedder's models.
    """
    is_trained = result is not None and result.history and mteb_task(result)
    knows_language = result is None or is_english(result)
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
        "languages": ["eng-Latn"] if knows_language else None,
        "memory_usage_mb": None,
        "embed_dim": None,
        "license": result.license if result else None,
        "open_weights": None,
        "public_training_code": None,
        "public_training_data": None,
        "similarity_fn_name": "cosine",
        "use_instructions": False,
    }


def _write(path: Path, content: dict[str, Any]) -> None:
    write_text(path, json.dumps(content, indent=2) + "\n")

"""The model card of a saved embedder: the README.md of a hub.

Written from `embedder.json` and the results beside it alone; what they do not hold is said to be
unknown. `model_card.md` is its template, `description` has its sentences on the embedder; uploading
is left to `publish`.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from string import Template
from typing import Any

import pandas as pd
from huggingface_hub import EvalResult, ModelCardData

from embedder_helpers.builtin import BUILTIN_PRESETS
from embedder_helpers.config import settings, stored_experiment
from embedder_helpers.models.saving import Manifest
from embedder_helpers.results import comparison
from embedder_helpers.results.data_sets import (
    data_revision,
    data_source,
    is_english,
    mteb_task,
)
from embedder_helpers.results.formats import (
    escape_markdown,
    markdown_block,
    markdown_code,
    to_markdown,
)
from embedder_helpers.results.leaderboard import uses_mteb_protocol
from embedder_helpers.results.naming import is_validation_score
from embedder_helpers.results.result import Result
from embedder_helpers.sharing.description import (
    describe_data,
    describe_embedder,
    describe_gemma_source,
)
from embedder_helpers.sharing.licenses import (
    GEMMA,
    GEMMA_TERMS,
    LICENSES,
    OTHER,
    REPOSITORY,
    license_of,
    part_license,
)

TEMPLATE = Path(__file__).with_suffix(".md")  # for string.Template; Jinja is not required
MAX_NOTES = 12

# How to download the folder from each hub: the client, and its call; `{name}` is `owner/model`.
DOWNLOADS = {
    "hf": ("huggingface_hub", 'snapshot_download("{name}")'),
    "kaggle": ("kagglehub", 'model_download("{name}/keras/default")'),
}

SUBSETS = {"fit": "training", "watched": "validation", "scored": "evaluation"}

GEMMA_NOTICE = (
    f"Gemma is provided under and subject to the Gemma Terms of Use found at {GEMMA_TERMS}. This "
    "embedder computes with Gemma, and what was trained here learned from Gemma's hidden states: "
    "everyone who uses it must have accepted these terms."
)


def model_card(manifest: Manifest, results: Sequence[Result], hub: str, name: str) -> str:
    """The card in Markdown, after YAML metadata for Hugging Face.

    Args:
        manifest: manifest of the embedder, free of private paths.
        results: results to show beside the embedder's own, free of private paths too; those that
            cannot be compared with it are left out.
        hub: `hf` or `kaggle`.
        name: name `owner/model` on the hub.
    """
    result = saved_result(manifest.result)
    client, download = DOWNLOADS[hub]
    before, with_result, without, after = re.split("<!--.*-->", TEMPLATE.read_text("utf-8"))
    template = Template(before + (with_result if result else without) + after)
    predict = 'predictions = embedder.predict(["One text."])  # labels and their probabilities\n'
    text = template.substitute(
        _result_values(result, comparable_results(result, results)) if result else {},
        title=name.split("/")[1],
        about=describe_embedder(manifest, result),
        repository=REPOSITORY,
        client=client,
        download=download.format(name=name),
        width=manifest.width,
        predict=predict if manifest.classes else "",
        gemma=describe_gemma_source(manifest),
        parts=_parts(manifest),
        max_tokens=manifest.experiment["max_tokens"],
        limitations=_bullets(_limitations(manifest, result)),
    )
    text = re.sub("\n{3,}", "\n\n", text.strip()) + "\n"  # where a value is empty
    return f"---\n{_metadata(manifest, result, name)}\n---\n\n{text}" if hub == "hf" else text


def saved_result(fields: Mapping[str, Any] | None) -> Result | None:
    """The Result of a saved embedder's result fields; None without any, or of a later version.

    Raises:
        InputError: they are damaged.
    """
    try:
        return None if fields is None else Result.from_stored(fields)
    except TypeError:
        return None


def comparable_results(result: Result, results: Sequence[Result]) -> list[Result]:
    """The results that a card shows: comparable baselines, and the embedder's own for each seed."""
    every = [other for other in results if other != result] + [result]
    groups = comparison.group_by_seed(every).values()
    seeds = next(group for group in groups if result in group)
    baselines = [
        other for other in every if other not in seeds and comparison.is_comparable(result, other)
    ]
    return [*baselines, *seeds]


def _metadata(manifest: Manifest, result: Result | None, name: str) -> str:
    """The YAML that Hugging Face reads; scores in hundredths, as MTEB shows them.

    The library is this package, since the hub would suggest Keras's own `load_model`, which cannot
    read the folder. A base model can be named only where its address on the hub is known.
    """
    handles = [manifest.experiment[role] for role in manifest.presets]
    hf_handles = [handle for handle in handles if handle.startswith("hf://")]
    base_models = [handle.removeprefix("hf://") for handle in hf_handles]
    metadata = ModelCardData(
        license=license_of(manifest),
        language=["en"] if result and is_english(result) else None,
        library_name="embedder_helpers",
        tags=["keras", "keras-hub", "sentence-embedding", "text-classification"],
        base_model=base_models or None,
        base_model_relation="finetune" if base_models else None,  # two would be taken for a merge
    )
    if metadata.license == OTHER:
        metadata.license_name = "see-the-card"
    if result and (source := mteb_task(result)):
        metadata.datasets = [source.path]
        if uses_mteb_protocol(result):
            revision = data_revision(result)
            metadata.model_name = name.split("/")[1]
            metadata.eval_results = [
                EvalResult(
                    task_type="Classification",
                    dataset_type=source.path,
                    dataset_name=f"MTEB {result.task['name']}",
                    dataset_config=source.subset or "default",
                    dataset_split=_split(result),
                    # The revision of local files is unknown.
                    dataset_revision=None if revision == "local" else revision,
                    metric_type=metric,
                    metric_value=round(100 * result.scores[metric], 3),
                )
                for metric in ("accuracy", "f1")
            ]
    return metadata.to_yaml()


def _split(result: Result) -> str:
    return "validation" if is_validation_score(result) else "test"


# === Scores, data and settings ===


def _result_values(result: Result, results: Sequence[Result]) -> dict[str, Any]:
    """The template's values that a result has; `results` are shown beside it."""
    experiment, texts = stored_experiment(result.experiment), result.task["texts"]
    differences = comparison.difference_table(results)
    notes, values = result.task["notes"], experiment.relevant_settings()
    known = settings()
    values = {name: value for name, value in values.items() if not known[name].fingerprinted}
    samples = values["samples_per_label"] = result.task.get("samples_per_label")
    return {
        "task": describe_data(result),
        "split": _split(result),
        "runs": len(result.scores_per_experiment),
        "samples": samples,
        "comparison": _table(comparison.comparison_table(results), "task", "data"),
        "differences": _table(differences, "task", "data", "hybrid")
        if len(differences)
        else "No hybrid and baseline were compared.",
        "seed": experiment.seed,
        "own_scores": _format_scores(result.scores, result.head),
        "majority_baseline": _format_scores(result.majority_baseline),
        "notes": _bullets(_notes(result)),
        "source": _data_origin(result),
        "fingerprint": markdown_code(result.inputs["task"]),
        "sizes": ", ".join(
            f"{texts[key]} {subset} texts" for key, subset in SUBSETS.items() if key in texts
        ),
        "data_notes": "".join(f" {escape_markdown(note)}." for note in notes[:MAX_NOTES]),
        "settings": markdown_block(_as_yaml(values), "yaml"),
        "device": escape_markdown(", ".join(result.device)),
        "seconds": round(result.seconds["total"]),
        "versions": escape_markdown(
            ", ".join(f"{name} {version}" for name, version in result.versions.items()), 1000
        ),
    }


def _as_yaml(values: Mapping[str, Any]) -> str:
    """Settings as lines of YAML, which reads what JSON writes."""
    return "".join(
        f"{name}: {json.dumps(value, ensure_ascii=False)}\n" for name, value in values.items()
    )


def _data_origin(result: Result) -> str:
    """Where the texts came from."""
    if data_source(result) != "local":
        return {"mteb": "on Hugging Face"}.get(data_source(result), "built in, with SHA-256")
    if mteb_task(result):
        return "read from local files that were not compared with MTEB's, with SHA-256"
    return "with SHA-256"


def _table(frame: pd.DataFrame, *dropped: str) -> str:
    """A table as Markdown, without score columns that are empty."""
    empty = [name for name in comparison.COLUMNS if (frame[name] == "-").all()]
    return to_markdown(frame.drop(columns=[*dropped, *empty], errors="ignore")).strip()


def _notes(result: Result) -> Iterator[str]:
    """What a reader of some embedders' scores should know."""
    if is_validation_score(result):
        yield (
            "Settings such as the cutoff were selected on these texts too: the scores are good for "
            "selection, but too optimistic to quote."
        )
    if duplicates := result.deduplicated:
        scores, head = duplicates.get("scores"), duplicates.get("head")
        without = f"; without them: {_format_scores(scores, head)}" if scores else ""
        count = result.task["texts"]["scored"]
        yield (
            f"{duplicates['texts']} of the {count} evaluation texts are duplicates of training "
            f"texts{without}."
        )


def _format_scores(scores: Mapping[str, float], head: Mapping[str, float] | None = None) -> str:
    text = f"accuracy {scores['accuracy']:.3f} and macro F1 {scores['f1']:.3f}"
    return f"{text} (head: {_format_scores(head)})" if head else text


# === Licenses and limitations ===


def _parts(manifest: Manifest) -> str:
    rows = []
    for role, preset in manifest.presets.items():
        is_gemma, name = role == "llm_preset", preset["name"]
        version, handle = preset["fingerprint"], manifest.experiment[role]
        place = "yes" if manifest.contains_gemma or not is_gemma else "no"
        if place == "no" and handle != name:  # an address that the uploader gave
            place = f"no: loaded from {handle}, which was not compared with it"
        rows.append(
            {
                "part": "Gemma" if is_gemma else "RoBERTa",
                "model": name,
                "version": version if "@" in version else f"SHA-256 {version[:16]}…",
                "in the folder": place,
                "license": LICENSES[part_license(role, preset)],
            }
        )
    table = to_markdown(pd.DataFrame(rows), markup=["license"]).strip()
    return f"{table}\n\n{GEMMA_NOTICE}" if license_of(manifest) == GEMMA else table


def _limitations(manifest: Manifest, result: Result | None) -> Iterator[str]:
    """Those that not every embedder has."""
    if any(preset["name"] in BUILTIN_PRESETS for preset in manifest.presets.values()):
        yield (
            "`tiny_gemma` and `tiny_roberta` are this project's own tiny models, pretrained on "
            "four million words: they show how the method behaves, not how good it is."
        )
    if result:
        yield f"Number of the task's texts that were truncated: {result.truncated}."
    if result and result.history:
        yield (
            f"It was trained on {describe_data(result)}, which it is scored on: compare it with "
            "models that were too, and expect lower scores on other tasks."
        )
    if manifest.classes:
        yield "The head's class probabilities are not calibrated."


def _bullets(lines: Iterable[str]) -> str:
    return "\n".join(f"* {line}" for line in lines)

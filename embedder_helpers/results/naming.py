"""Names of results in tables and figures: the embedder, and what distinguishes it from others."""

from collections.abc import Sequence
from typing import Any

from embedder_helpers.config import settings, stored_experiment
from embedder_helpers.results.data_sets import data_key, short_fingerprint
from embedder_helpers.results.result import Result

KIND_NAMES = {"hybrid": "hybrid", "gemma_only": "Gemma only", "roberta_only": "RoBERTa only"}
MODEL_NAMES = {"llm_preset": "Gemma", "slm_preset": "RoBERTa"}


def embedder_name(result: Result) -> str:
    """The embedder: `hybrid [1-10]`, `Gemma only [1-10, selected]`, `RoBERTa only, untrained`.

    The brackets hold Gemma's layers. Scores on the validation split are marked `validation`.
    """
    kind, epochs = result.experiment["kind"], result.experiment["epochs"]
    name = KIND_NAMES[kind]
    if result.cutoffs:
        layers = [f"1-{cutoff}" if cutoff > 1 else "1" for cutoff in result.cutoffs]
        selected = ["selected"] if result.selects_layer() else []
        name += f" [{', '.join(layers + selected)}]"
    if kind != "gemma_only" and not epochs:
        name += ", untrained"
    return f"{name}, validation" if is_validation_score(result) else name


def is_validation_score(result: Result) -> bool:
    """Whether the scores are of the validation split."""
    return result.experiment.get("scored_split") == "validation"


def display_names(results: Sequence[Result]) -> list[str]:
    """A name for each result: its embedder, and all that distinguishes it but the seed.

    Results of the same data that have equal names differ in their seed only.
    """
    settings = [name for name in differing_settings(results) if name != "seed"]
    names = []
    for result in results:
        others = [other for other in results if data_key(other) == data_key(result)]
        distinctions = [
            f"{name} {value}"
            for name, value in setting_values(result, settings).items()
            if value != "-"
        ]
        distinctions += _differing_origin(result, others)
        names.append(", ".join([embedder_name(result), *distinctions]))
    return names


def differing_settings(results: Sequence[Result]) -> list[str]:
    """The settings that differ between results of a kind and data set and are not in the name."""
    values: dict[tuple, set] = {}
    for result in results:
        for name, value in relevant_settings(result).items():
            if (name, value) != ("epochs", 0):  # the name says `untrained`
                group = result.experiment["kind"], data_key(result), name
                values.setdefault(group, set()).add(value)
    differing = {name for (_, _, name), different in values.items() if len(different) > 1}
    # The first two are part of the name; the content of the data counts, not its path.
    differing -= {"llm_layers", "scored_split", "task", "task_data"}
    return [name for name in settings() if name in differing]


def setting_values(result: Result, names: Sequence[str]) -> dict[str, Any]:
    """The values of some settings; `-` for those that do not affect the result."""
    relevant = relevant_settings(result)
    return {name: relevant.get(name, "-") for name in names}


def relevant_settings(result: Result) -> dict[str, Any]:
    """The settings that affect a result."""
    return stored_experiment(result.experiment).relevant_settings()


def _differing_origin(result: Result, others: Sequence[Result]) -> list[str]:
    """Version, sample size and models of a result, as far as they differ from the others'."""
    origins = [_origin(other) for other in others]
    return [
        f"{name} {_format_origin(name, value)}"
        for name, value in _origin(result).items()
        if any(origin.get(name, value) != value for origin in origins)
    ]


def _origin(result: Result) -> dict[str, Any]:
    return {
        "version": result.versions.get("embedder_helpers"),
        "texts per label": result.task.get("samples_per_label"),
    } | {MODEL_NAMES[name]: value for name, value in result.inputs.items() if name in MODEL_NAMES}


def _format_origin(name: str, value: Any) -> Any:
    if value is None:
        return "unknown"
    return short_fingerprint(value) if name in MODEL_NAMES.values() else value

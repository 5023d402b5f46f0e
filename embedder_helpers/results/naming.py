"""Names of results in tables and figures: the embedder, and what distinguishes it from others."""

from collections.abc import Sequence
from typing import Any

from embedder_helpers.config import settings, stored_experiment
from embedder_helpers.results.result import Result

KIND_NAMES = {"hybrid": "hybrid", "gemma_only": "Gemma only", "roberta_only": "RoBERTa only"}
INPUT_NAMES = {"task": "data", "llm_preset": "Gemma", "slm_preset": "RoBERTa"}


def embedder_name(result: Result) -> str:
    """The embedder: `hybrid [1-10]`, `Gemma only [1-10, selected]`, `RoBERTa only, untrained`.

    The brackets hold Gemma's layers. Scores on the validation split are marked `validation`.
    """
    kind, epochs = result.experiment["kind"], result.experiment["epochs"]
    name = KIND_NAMES[kind]
    if result.cutoffs:
        layers = [f"1-{cutoff}" if cutoff > 1 else "1" for cutoff in result.cutoffs]
        selected = ["selected"] if result.experiment["llm_layers"] == "auto" else []
        name += f" [{', '.join(layers + selected)}]"
    if kind != "gemma_only" and not epochs:
        name += ", untrained"
    return f"{name}, validation" if is_validation_score(result) else name


def is_validation_score(result: Result) -> bool:
    """Whether the scores are of the validation split."""
    return result.experiment.get("scored_split") == "validation"


def display_names(results: Sequence[Result]) -> list[str]:
    """A name for each result: its embedder, and all that distinguishes it but the seed.

    Results of a task that have equal names differ in their seed only.
    """
    settings = [name for name in differing_settings(results) if name not in ("seed", "task")]
    names = []
    for result in results:
        of_task = [other for other in results if other.task["name"] == result.task["name"]]
        distinctions = [
            f"{name} {value}"
            for name, value in setting_values(result, settings).items()
            if value != "-"
        ]
        distinctions += _differing_origin(result, of_task)
        names.append(", ".join([embedder_name(result), *distinctions]))
    return names


def differing_settings(results: Sequence[Result]) -> list[str]:
    """The settings that differ between results of a kind and task and are not part of the name."""
    values: dict[tuple[str, str, str], set] = {}
    for result in results:
        for name, value in relevant_settings(result).items():
            if (name, value) != ("epochs", 0):  # the name says `untrained`
                group = result.experiment["kind"], result.task["name"], name
                values.setdefault(group, set()).add(value)
    differing = {name for (_, _, name), different in values.items() if len(different) > 1}
    # The first and last are part of the name; the content of `task_data` counts, not its path.
    differing -= {"llm_layers", "task_data", "scored_split"}
    return [name for name in settings() if name in differing]


def setting_values(result: Result, names: Sequence[str]) -> dict[str, Any]:
    """The values of some settings; `-` for those that do not affect the result."""
    relevant = relevant_settings(result)
    return {name: relevant.get(name, "-") for name in names}


def relevant_settings(result: Result) -> dict[str, Any]:
    """The settings that affect a result."""
    return stored_experiment(result.experiment).relevant_settings()


def _differing_origin(result: Result, others: Sequence[Result]) -> list[str]:
    """Version, sample size, data and models of a result, as far as they differ from the others'."""
    origins = [_origin(other) for other in others]
    return [
        f"{name} {'unknown' if value is None else value}"
        for name, value in _origin(result).items()
        if any(origin.get(name, value) != value for origin in origins)
    ]


def _origin(result: Result) -> dict[str, Any]:
    return {
        "version": result.versions.get("embedder_helpers"),
        "texts per label": result.task.get("samples_per_label"),
    } | {INPUT_NAMES[name]: fingerprint[:8] for name, fingerprint in result.inputs.items()}

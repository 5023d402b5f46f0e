"""The Result: what one experiment measured, and the file that keeps it."""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from embedder_helpers import __version__
from embedder_helpers.config import Experiment, resolve_cutoffs, settings
from embedder_helpers.data.tasks import Task
from embedder_helpers.utils.files import atomic_write

# Fields that files spell otherwise, since the first ones were written.
STORED_NAMES = {
    "num_layers": "blocks",
    "scores_per_experiment": "experiments",
    "majority_baseline": "floor",
    "layer_selection": "choice",
    "deduplicated": "unrepeated",
}


@dataclass(frozen=True)
class Result:
    """What one experiment measured; its file holds these fields as JSON, by `STORED_NAMES`.

    Attributes:
        experiment: all settings of the Experiment.
        task: the task's name, the sizes of its subsets and notes on its data.
        cutoffs: numbers of kept Gemma layers; empty for RoBERTa alone.
        num_layers: number of the complete Gemma's layers; None for RoBERTa alone.
        scores: means over the protocol's runs on the evaluation split, by MTEB's names.
        scores_per_experiment: scores of each of the protocol's ten runs.
        head: metrics of the classification head on the evaluation split; None without a head.
        majority_baseline: metrics of always predicting the most frequent label.
        history: loss and accuracy of each training epoch.
        truncated: number of distinct texts that were truncated at `max_tokens`.
        seconds: wall-clock time by step (choose, load, tokenise, states, projection, train, embed,
            score) and in total.
        versions: versions of Python and the packages.
        device: devices it was computed on, and the precision of training.
        inputs: fingerprints of data and presets.
        projection: fit of a closed-form initialization: `explained`, the explained fraction of the
            variance of RoBERTa's embeddings on held-out tokens, and the selected `penalty`; None
            for other initializations.
        layer_selection: cross-validated accuracy of a linear classifier at each cutoff; None unless
            `llm_layers` is `auto`.
        deduplicated: scores without the evaluation texts that the train split contains too:
            `texts`, their number, and `scores`, `experiments` and `head` of the rest, if there is
            any; None without such texts.
        parameters: number of weights that a text passes, of the truncated Gemma and of RoBERTa,
            embeddings included and the projection excluded; None if they cannot be counted.
    """

    experiment: dict[str, Any]
    task: dict[str, Any]
    cutoffs: list[int]
    num_layers: int | None
    scores: dict[str, float | None]
    scores_per_experiment: list[dict[str, float | None]]
    head: dict[str, float | None] | None
    majority_baseline: dict[str, float | None]
    history: list[dict[str, float]]
    truncated: int
    seconds: dict[str, float]
    versions: dict[str, str]
    device: list[str]
    inputs: dict[str, str]
    projection: dict[str, float] | None = None
    layer_selection: dict[str, float] | None = None
    deduplicated: dict[str, Any] | None = None
    parameters: int | None = None

    def as_stored(self) -> dict[str, Any]:
        """The fields as a file spells them."""
        values = dataclasses.asdict(self)
        return {STORED_NAMES.get(name, name): value for name, value in values.items()}

    @classmethod
    def from_stored(cls, values: Mapping[str, Any]) -> "Result":
        """The result of a file's fields; raises TypeError if they are not those of a result."""
        names = {stored: name for name, stored in STORED_NAMES.items()}
        return cls(**{names.get(name, name): value for name, value in values.items()})


def result_name(
    experiment: Experiment, task: Task, num_layers: int | None, inputs: Mapping[str, str]
) -> str:
    """A readable file name, ending in a hash of all that determines the result.

    Args:
        experiment: settings; those that name inputs are left out, as `inputs` has their content.
        task: task of the experiment.
        num_layers: number of the complete Gemma's layers; None for RoBERTa alone.
        inputs: fingerprints of data and presets.
    """
    parts = [task.name, experiment.kind]
    known = settings()
    relevant = {
        name: value
        for name, value in experiment.relevant_settings().items()
        if not known[name].fingerprinted
    }
    relevant["samples_per_label"] = task.samples_per_label
    if experiment.selects_layer():
        parts.append("kauto")
    elif num_layers is not None:
        cutoffs = resolve_cutoffs(experiment.llm_layers, num_layers)
        parts.append("k" + "+".join(map(str, cutoffs)))
        relevant["llm_layers"] = cutoffs  # 10 and -9 of 18 are the same cutoff
    if experiment.kind != "gemma_only":
        parts.append(f"seed{experiment.seed}" if experiment.epochs else "untrained")
    content = json.dumps([relevant, dict(inputs), __version__], sort_keys=True).encode()
    return "-".join([*parts, hashlib.sha256(content).hexdigest()[:8]]) + ".json"


def embedder_folder(path: Path) -> Path:
    """The folder in which the embedder of a result file is saved."""
    return path.with_name(f"embedder-{path.stem}")


def read_result(path: Path) -> Result | None:
    """Read a result file; None if it is missing or not a complete result."""
    try:
        return Result.from_stored(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, AttributeError):
        return None


def write_result(result: Result, path: Path) -> None:
    """Write a result file atomically."""
    content = json.dumps(result.as_stored(), indent=1) + "\n"
    atomic_write(path, lambda part: part.write_text(content, encoding="utf-8"))

"""The Result: what one experiment gave, and the file that keeps it."""

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from embedder_helpers import __version__
from embedder_helpers.config import Experiment, cutoffs
from embedder_helpers.platform import write_whole
from embedder_helpers.presets import Preset
from embedder_helpers.tasks import Task

# Keys that say where an input is; its fingerprint says what it is.
PLACES = ("task", "task_data", "text_column", "label_column", "llm_preset", "slm_preset")


@dataclass(frozen=True)
class Result:
    """What one experiment gave; its file holds these fields as JSON.

    Attributes:
        experiment: every key of the Experiment.
        task: the task's name, its splits' sizes and notes on its data.
        cutoffs: counted from the bottom; empty for RoBERTa alone.
        blocks: of the whole Gemma; None for RoBERTa alone.
        scores: the protocol's means on the scored split, by MTEB's names.
        experiments: the protocol's single experiments.
        head: metrics of the classification head on the scored split; None where none was trained.
        floor: metrics of always answering the commonest label.
        history: loss and accuracy of each training epoch.
        truncated: different texts that were cut at `max_tokens`.
        seconds: wall-clock time by part (choose, load, tokenise, states, projection, train, embed,
            score) and in all.
        versions: of Python and the packages.
        device: what it was computed on, and the precision of training.
        inputs: fingerprints of data and presets.
        projection: of a closed-form start: `explained`, the share of the variance of RoBERTa's
            embeddings on held-out tokens, and the `penalty` chosen; else None.
        choice: of an automatic cutoff: the share of texts that a linear classifier labels rightly
            at each; else None.
        unrepeated: the same without scored texts that the train split has too: `texts` that are
            left out and, unless that is all, `scores`, `experiments` and `head`; None where train
            has none of them.
        parameters: weights that a text passes, of the cut Gemma and of RoBERTa, embeddings
            included and the projection's not; None where they cannot be counted.
    """

    experiment: dict[str, Any]
    task: dict[str, Any]
    cutoffs: list[int]
    blocks: int | None
    scores: dict[str, float | None]
    experiments: list[dict[str, float | None]]
    head: dict[str, float | None] | None
    floor: dict[str, float | None]
    history: list[dict[str, float]]
    truncated: int
    seconds: dict[str, float]
    versions: dict[str, str]
    device: list[str]
    inputs: dict[str, str]
    projection: dict[str, float] | None = None
    choice: dict[str, float] | None = None
    unrepeated: dict[str, Any] | None = None
    parameters: int | None = None


def result_name(
    experiment: Experiment, task: Task, presets: dict[str, Preset], inputs: dict[str, str]
) -> str:
    """A file name that a person can read, ending in a key of all that determines the result."""
    parts = [task.name, experiment.kind]
    # Where data and presets lie does not matter: `inputs` tells their content.
    settings = {
        name: value for name, value in experiment.determining().items() if name not in PLACES
    }
    settings["samples_per_label"] = task.samples_per_label
    if experiment.chooses():
        parts.append("kauto")
    elif "llm_preset" in presets:
        found = cutoffs(experiment.llm_layers, presets["llm_preset"].blocks)
        parts.append("k" + "+".join(map(str, found)))
        settings["llm_layers"] = found  # 10 and -9 of 18 are one cutoff
    if experiment.kind != "gemma_only":
        parts.append(f"seed{experiment.seed}" if experiment.epochs else "untrained")
    content = json.dumps([settings, inputs, __version__], sort_keys=True).encode()
    return "-".join([*parts, hashlib.sha256(content).hexdigest()[:8]]) + ".json"


def embedder_folder(path: Path) -> Path:
    """Where the embedder of a result is saved, if that is asked for."""
    return path.with_name(f"embedder-{path.stem}")


def read_result(path: Path) -> Result | None:
    """The result in a file; None if there is no file, or one that is not a whole result."""
    try:
        return Result(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def write_result(result: Result, path: Path) -> None:
    """Writes the file, whole or not at all."""
    content = json.dumps(dataclasses.asdict(result), indent=1) + "\n"
    write_whole(path, lambda part: part.write_text(content, encoding="utf-8"))

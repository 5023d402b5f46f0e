"""The Result: what one experiment measured, and the file that keeps it."""

import dataclasses
import functools
import hashlib
import json
import logging
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NotRequired, TypedDict

from embedder_helpers.config import Experiment, resolve_cutoffs, settings, stored_experiment
from embedder_helpers.data.tasks import Task
from embedder_helpers.errors import InputError, shorten, show
from embedder_helpers.setting_rules import SELECTED
from embedder_helpers.utils.json_files import CHECKSUM, check_checksum, read_json, write_json
from embedder_helpers.utils.stored_values import between, check_fields, check_settings, having

logger = logging.getLogger(__name__)

# The version since which experiments give the same figures; part of every result's name. A change
# that alters figures sets it to its own version, so that nothing older is taken for a new result.
FIGURES_SINCE = "0.6.0"

MAX_BYTES = 2**24  # of a result file
MAX_NAME = 60  # letters of a task's name in the name of a file
MAX_STEM = 120  # letters of the readable part of it; systems allow 255 bytes for the whole
FILE_NAME = re.compile(r".+-[0-9a-f]{8}\.json")

# Fields that files spell otherwise, since the first ones were written.
STORED_NAMES = {
    "num_layers": "blocks",
    "scores_per_experiment": "experiments",
    "majority_baseline": "floor",
    "layer_selection": "choice",
    "deduplicated": "unrepeated",
}

# Settings that every version's results have; newer ones are missing in older files.
EVER_PRESENT = (
    "task", "task_data", "text_column", "label_column", "samples_per_label", "kind", "llm_preset",
    "llm_layers", "layer_pooling", "final_norm", "fusion", "projection", "slm_preset", "pooling",
    "max_tokens", "seed", "epochs", "batch_size", "learning_rate", "projection_learning_rate",
    "train_split", "max_train_texts",
)  # fmt: skip

Count = Annotated[int, between(0)]
Score = Annotated[float, between(0, 1 + 1e-9)]  # a mean may be rounded up
Seconds = Annotated[float, between(0, 1e12)]
Metrics = Annotated[dict[str, Score | None], having("accuracy", "f1")]


class TaskFields(TypedDict):
    """What a result says about its task; older files lack some of it."""

    name: str
    source: NotRequired[str]
    path: NotRequired[str | None]
    samples_per_label: NotRequired[Count]
    labels: NotRequired[Count]
    texts: dict[str, Count]
    notes: list[str]


class DeduplicatedFields(TypedDict):
    """The number of duplicates, and the scores without them, unless all texts are duplicates."""

    texts: Count
    scores: NotRequired[Metrics]
    experiments: NotRequired[list[Metrics]]
    head: NotRequired[Metrics | None]


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
            `llm_layers` is `auto` or `cheapest`.
        layer_p_values: p-value of each cutoff in the model confidence set of these classifiers;
            those above 0.05 cannot be told from the best. None unless `llm_layers` is `cheapest`.
        deduplicated: scores without the evaluation texts that the train split contains too:
            `texts`, their number, and `scores`, `experiments` and `head` of the rest, if there is
            any; None without such texts.
        parameters: number of weights that a text passes, of the truncated Gemma, of RoBERTa and
            between them, embeddings included; None if they cannot be counted. Results of versions
            before 0.6.0 leave out those between them, less than a hundredth.
    """

    experiment: dict[str, Any]
    task: TaskFields
    cutoffs: list[Annotated[int, between(1)]]
    num_layers: Count | None
    scores: Metrics
    scores_per_experiment: list[Metrics]
    head: Metrics | None
    majority_baseline: Metrics
    history: list[Annotated[dict[str, float], having("val_accuracy")]]
    truncated: Count
    seconds: Annotated[dict[str, Seconds], having("total")]
    versions: dict[str, str]
    device: list[str]
    inputs: Annotated[dict[str, str], having("task")]
    projection: dict[str, float] | None = None
    layer_selection: dict[str, Score] | None = None
    layer_p_values: dict[str, Score] | None = None
    deduplicated: DeduplicatedFields | None = None
    parameters: Count | None = None

    def selects_layer(self) -> bool:
        """Whether the cutoff was selected by the hidden states."""
        return self.experiment.get("llm_layers") in SELECTED

    def as_stored(self) -> dict[str, Any]:
        """The fields as a file spells them."""
        values = dataclasses.asdict(self)
        return {STORED_NAMES.get(name, name): value for name, value in values.items()}

    @classmethod
    def from_stored(cls, values: Mapping[str, Any]) -> "Result":
        """The result of the fields that a saved embedder holds, each of them checked.

        Raises:
            TypeError: a field or setting that this version does not know; a later one may.
            InputError: a missing field, or a value that no result has.
        """
        try:
            return cls._from_fields(values)
        except ValueError as error:
            raise InputError(
                f"the result in embedder.json is damaged ({error}): run its experiment again"
            ) from None

    @classmethod
    def _from_fields(cls, values: Mapping[str, Any]) -> "Result":
        """The result of a file's fields; a ValueError where `from_stored` raises InputError."""
        names = {stored: name for name, stored in STORED_NAMES.items()}
        values = {names.get(name, name): value for name, value in values.items()}
        check_fields(values, cls)
        check_settings(values["experiment"], EVER_PRESENT, "experiment")
        result = cls(**values)
        result._check_consistency()
        return result

    def _check_consistency(self) -> None:
        """Raise ValueError if fields contradict one another."""
        most = self.num_layers or 0
        is_ascending = self.cutoffs == sorted(set(self.cutoffs))
        reads_gemma = self.experiment["kind"] != "roberta_only"
        if not is_ascending or any(cutoff > most for cutoff in self.cutoffs):
            raise ValueError(f"cutoffs is {show(self.cutoffs)}, of {most} layers")
        if reads_gemma != bool(self.cutoffs):
            raise ValueError(f"cutoffs is {show(self.cutoffs)} for {self.experiment['kind']}")
        layers = stored_experiment(self.experiment).llm_layers
        if reads_gemma and layers not in SELECTED:
            if resolve_cutoffs(layers, most) != tuple(self.cutoffs):
                raise ValueError(f"cutoffs is {show(self.cutoffs)}, but llm_layers {show(layers)}")
        _check_means("scores", self.scores, self.scores_per_experiment)
        if duplicates := self.deduplicated:
            if "scored" not in self.task["texts"]:
                raise ValueError("task.texts.scored is missing")
            if duplicates.keys() & {"scores", "experiments"}:
                _check_means(
                    "deduplicated.scores",
                    duplicates.get("scores", {}),
                    duplicates.get("experiments", []),
                )


def _check_means(where: str, means: Metrics, runs: Sequence[Metrics]) -> None:
    """Raise ValueError unless scores are the means of those of the runs."""
    if not means or not runs or any(run.keys() != means.keys() for run in runs):
        raise ValueError(f"{where} has other metrics than its runs")
    for name, value in means.items():
        values = [run[name] for run in runs]
        if value is None or None in values:
            is_mean = value is None and set(values) == {None}
        else:
            is_mean = math.isclose(math.fsum(values) / len(values), value, abs_tol=1e-9)
        if not is_mean:
            raise ValueError(f"{where}.{name} is not the mean of the runs")


def result_name(
    experiment: Experiment, task: Task, num_layers: int | None, inputs: Mapping[str, str]
) -> str:
    """A readable file name, ending in a hash of all that determines the result.

    It has at most about 130 letters, digits and `+_-`, whatever the task is called, so that every
    system allows it, also with what is put before and after it.

    Args:
        experiment: settings; those that name inputs are left out, as `inputs` has their content.
        task: task of the experiment.
        num_layers: number of the complete Gemma's layers; None for RoBERTa alone.
        inputs: fingerprints of data and presets.
    """
    parts = [re.sub(r"[^A-Za-z0-9_]+", "-", task.name).strip("-")[:MAX_NAME] or "task"]
    parts.append(experiment.kind)
    known = settings()
    relevant = {
        name: value
        for name, value in experiment.relevant_settings().items()
        if not known[name].fingerprinted
    }
    relevant |= {"task": task.name, "samples_per_label": task.samples_per_label}
    if experiment.selects_layer():
        parts.append(f"k{experiment.llm_layers}")
    elif num_layers is not None:
        cutoffs = resolve_cutoffs(experiment.llm_layers, num_layers)
        parts.append("k" + "+".join(map(str, cutoffs)))
        relevant["llm_layers"] = cutoffs  # 10 and -9 of 18 are the same cutoff
    if experiment.kind != "gemma_only" and not experiment.epochs:
        parts.append("untrained")
    elif experiment.kind != "gemma_only" or "seed" in relevant:
        parts.append(f"seed{experiment.seed}")
    content = json.dumps([relevant, dict(inputs), FIGURES_SINCE], sort_keys=True).encode()
    stem = "-".join(parts)[:MAX_STEM].rstrip("+-")
    return f"{stem}-{hashlib.sha256(content).hexdigest()[:8]}.json"


def embedder_folder(path: Path) -> Path:
    """The folder in which the embedder of a result file is saved."""
    return path.with_name(f"embedder-{path.stem}")


def read_result(path: Path) -> Result | None:
    """Read a result file; None if it is missing, or is no complete and undamaged result.

    A damaged one is logged, once in a process, and one that a later version wrote. Other JSON
    files, which a folder may hold as well, are not.
    """
    values, remedy = None, "run the experiment again, or delete it"
    try:
        values = read_json(path, MAX_BYTES)
        fields = check_checksum(values)
        if CHECKSUM in values:  # and so as it was written
            remedy = "a later version wrote it, so update embedder_helpers"
        return Result._from_fields(fields)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        reason = error.strerror or str(error)
    except (ValueError, TypeError) as error:
        reason = str(error)
    if FILE_NAME.fullmatch(path.name) or (isinstance(values, dict) and "scores" in values):
        _warn_of_uncounted(path, shorten(reason, 300), remedy)
    return None


@functools.cache  # once in a process
def _warn_of_uncounted(path: Path, reason: str, remedy: str) -> None:
    logger.warning("%s is not counted, since it cannot be read (%s): %s", path, reason, remedy)


def write_result(result: Result, path: Path) -> None:
    """Write a result file atomically, with a checksum."""
    write_json(path, result.as_stored())

"""The MTEB classification protocol: logistic regressions on small balanced samples of train.

Bit-equal to mteb 2's own evaluator on the same float64 embeddings. `evaluate` scores any encoder.
Source: Muennighoff et al. 2023, MTEB, section 3.2; mteb 2.26, AbsTaskClassification.
"""

import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.exceptions import ConvergenceWarning, UndefinedMetricWarning
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    f1_score,
    precision_score,
    recall_score,
)
from threadpoolctl import threadpool_limits

from embedder_helpers.config import Experiment
from embedder_helpers.data.files import as_list
from embedder_helpers.data.labels import as_scalar
from embedder_helpers.data.tasks import Split, Task, load_task
from embedder_helpers.errors import InputError

NUM_EXPERIMENTS = 10  # runs of the protocol
SEED = 42


@dataclass(frozen=True)
class Scores:
    """The scores of the protocol's runs, and their means.

    Attributes:
        experiments: a dictionary per run, by MTEB's names: accuracy, f1 (macro), f1_weighted,
            precision, recall, precision_weighted, recall_weighted, and with two labels ap and
            ap_weighted (None otherwise).
    """

    experiments: tuple[dict[str, float | None], ...]

    @classmethod
    def from_predictions(cls, labels: Sequence[Any], predictions: Sequence[np.ndarray]) -> "Scores":
        """Score the predictions of each run."""
        labels = _as_python(labels)
        return cls(tuple(metrics(labels, predicted) for predicted in predictions))

    @property
    def mean(self) -> dict[str, float | None]:
        """The plain mean of each metric over the runs."""
        return {
            name: None if value is None else float(np.mean([run[name] for run in self.experiments]))
            for name, value in self.experiments[0].items()
        }

    @property
    def accuracy(self) -> float:
        """Mean accuracy, MTEB's main score."""
        return self.mean["accuracy"]

    @property
    def f1(self) -> float:
        """Mean macro F1."""
        return self.mean["f1"]


def evaluate(encoder: Any, task: Task | Experiment | str, *, split: str | None = None) -> Scores:
    """Score any encoder of texts by the protocol.

    Of the train split only the texts that the protocol samples are encoded, and each distinct text
    is encoded once.

    Args:
        encoder: an object whose `encode(texts)` returns embeddings `(texts, width)` of a list of
            strings, such as a sentence-transformers model or an embedder.
        task: a `Task`, or what `load_task` takes: a name, a path or an Experiment.
        split: the split to score, `test` or `validation`; None: the Experiment's `scored_split`,
            or test.

    Returns:
        The scores: `accuracy` and `f1` (macro) are means of the ten runs in `experiments`.

    Raises:
        InputError: a task or split that cannot be used; no `encode`, or one that does not return
            a finite embedding for each text.
    """
    split = split or (task.scored_split if isinstance(task, Experiment) else "test")
    task = task if isinstance(task, Task) else load_task(task)
    evaluated = eval_split(task, split)
    sampled, scored = protocol_rows(task, split)
    embeddings = _encode(encoder, [*task.train.texts(sampled), *evaluated.texts(scored)])
    train_embeddings, eval_embeddings = np.split(embeddings, [len(sampled)])
    return score_embeddings(
        train_embeddings,
        task.train.labels,
        eval_embeddings,
        evaluated.labels[scored],
        samples_per_label=task.samples_per_label,
        rows=sampled,
    )


def eval_split(task: Task, split: str) -> Split:
    """The split that is scored, `test` or `validation`."""
    if split not in ("test", "validation"):
        raise InputError(f"split is {split!r}, but must be test or validation")
    return task.test if split == "test" else task.validation


def protocol_rows(task: Task, split: str) -> tuple[np.ndarray, np.ndarray]:
    """The rows of train that the protocol samples, and the rows of a split that it scores.

    Raises:
        InputError: no validation text would be left to score.
    """
    samples = sample_indices(task.train.labels.tolist(), task.samples_per_label)
    sampled = np.unique(np.concatenate(samples))
    if split == "test":
        return sampled, np.arange(len(task.test))
    # Where validation was held out of train, the protocol must not score what it sampled.
    scored = np.flatnonzero(~np.isin(task.held_out_rows(), sampled))
    if not len(scored):
        raise InputError(
            f"scored_split (in `evaluate`: split) is 'validation', but {task.name} has no such "
            "split, and no text held out of train is left that the protocol does not sample: lower "
            "samples_per_label, or give a validation file"
        )
    return sampled, scored


def sample_indices(
    labels: Sequence[Any],
    samples_per_label: int,
    experiments: int = NUM_EXPERIMENTS,
    seed: int = SEED,
) -> list[list[int]]:
    """The rows of train that each run samples, in the order in which it samples them.

    Every run shuffles the previous run's order with a new generator of the same seed, so by the
    same permutation, and goes through it, taking a row while its label has been taken fewer than
    `samples_per_label` times.
    """
    permutation = np.arange(len(labels))
    np.random.RandomState(seed).shuffle(permutation)
    counts = Counter(labels)
    size = sum(min(count, samples_per_label) for count in counts.values())
    order, samples = permutation, []
    for _ in range(experiments):
        taken: Counter = Counter()
        rows = []
        for row in order.tolist():
            if taken[labels[row]] < samples_per_label:
                taken[labels[row]] += 1
                rows.append(row)
                if len(rows) == size:  # no later row can be taken
                    break
        samples.append(rows)
        order = order[permutation]  # the same shuffle, applied to the previous order
    return samples


def score_embeddings(
    train_embeddings: np.ndarray,
    train_labels: Sequence[Any],
    test_embeddings: np.ndarray,
    test_labels: Sequence[Any],
    **options: Any,
) -> Scores:
    """Score embeddings as MTEB does; the arguments are those of `predict`, and test labels.

    Raises:
        InputError: as `predict` does; a number of test labels that does not fit.
    """
    if len(test_embeddings) != len(test_labels):
        raise InputError(
            f"test_embeddings has {len(test_embeddings)} rows, but test_labels {len(test_labels)}"
        )
    predictions = predict(train_embeddings, train_labels, test_embeddings, **options)
    return Scores.from_predictions(test_labels, predictions)


def predict(
    train_embeddings: np.ndarray,
    train_labels: Sequence[Any],
    test_embeddings: np.ndarray,
    *,
    samples_per_label: int,
    experiments: int = NUM_EXPERIMENTS,
    seed: int = SEED,
    rows: np.ndarray | None = None,
) -> list[np.ndarray]:
    """The labels `(m,)` that each run's classifier predicts for the test texts.

    Args:
        train_embeddings: `(n, width)`, in the order of the train split, which the samples depend
            on.
        train_labels: `(n,)` integers or strings, of the whole train split.
        test_embeddings: `(m, width)`.
        samples_per_label: texts of each label that a run samples; of a rarer label, all.
        experiments: number of runs.
        seed: of the samples and of the classifier.
        rows: the train rows that `train_embeddings` holds, ascending, if not all of them; those
            that the runs sample are enough.

    Raises:
        InputError: shapes that do not fit, embeddings that are not finite, a sampled row without
            an embedding.
    """
    train_labels = _as_python(train_labels)
    rows = np.arange(len(train_labels)) if rows is None else np.asarray(rows)
    train = _validate_embeddings(train_embeddings, len(rows), "train_embeddings")
    test = _validate_embeddings(test_embeddings, len(test_embeddings), "test_embeddings")
    if train.shape[1] != test.shape[1]:
        raise InputError(
            f"train_embeddings have width {train.shape[1]}, but test_embeddings {test.shape[1]}"
        )
    predictions = []
    for sample in sample_indices(train_labels, samples_per_label, experiments, seed):
        positions = np.searchsorted(rows, sample)
        if not np.array_equal(rows[np.minimum(positions, len(rows) - 1)], sample):
            raise InputError(
                "rows lacks train rows that the protocol samples: use the union of sample_indices"
            )
        classifier = LogisticRegression(max_iter=100, random_state=seed)
        # More threads slow down regressions as small as these, 20 times if the cores are busy.
        with threadpool_limits(1), warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # common and part of the protocol
            classifier.fit(train[positions], [train_labels[row] for row in sample])
        predictions.append(classifier.predict(test))
    return predictions


def metrics(labels: Sequence[Any], predicted: Sequence[Any]) -> dict[str, float | None]:
    """MTEB's metrics, by its names.

    `ap` is of hard predictions, as in MTEB; it is None unless there are two labels and one is 1.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UndefinedMetricWarning)
        values = {
            "accuracy": accuracy_score(labels, predicted),
            "f1": f1_score(labels, predicted, average="macro"),
            "f1_weighted": f1_score(labels, predicted, average="weighted"),
            "precision": precision_score(labels, predicted, average="macro"),
            "precision_weighted": precision_score(labels, predicted, average="weighted"),
            "recall": recall_score(labels, predicted, average="macro"),
            "recall_weighted": recall_score(labels, predicted, average="weighted"),
            "ap": None,
            "ap_weighted": None,
        }
        if len(set(labels)) == 2 and 1 in set(labels):
            values["ap"] = average_precision_score(labels, predicted, average="macro")
            values["ap_weighted"] = average_precision_score(labels, predicted, average="weighted")
    return {name: None if value is None else float(value) for name, value in values.items()}


def majority_baseline(
    train_labels: Sequence[Any], test_labels: Sequence[Any]
) -> dict[str, float | None]:
    """The metrics of always predicting the train split's most common label."""
    most_frequent = Counter(_as_python(train_labels)).most_common(1)[0][0]
    return metrics(_as_python(test_labels), [most_frequent] * len(test_labels))


def _encode(encoder: Any, texts: Sequence[str]) -> np.ndarray:
    """Embeddings `(texts, width)` float64; each distinct text is encoded once."""
    if not hasattr(encoder, "encode"):
        raise InputError(
            f"encoder is a {type(encoder).__name__}, but must be an object with `encode(texts)`"
        )
    distinct = list(dict.fromkeys(texts))
    options = {}
    if not all(text.strip() for text in distinct):  # as some of MTEB's are
        from embedder_helpers.models.embedder import Embedder

        if isinstance(encoder, Embedder):
            options = {"allow_empty": True}
    embeddings = encoder.encode(distinct, **options)
    try:
        embeddings = np.asarray(embeddings, "float64")
    except (TypeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise InputError(
            f"encoder.encode(texts) returned a {type(embeddings).__name__} that is no array of "
            f"numbers ({reason}): return a list, a NumPy array or a tensor on the CPU"
        ) from None
    embeddings = _validate_embeddings(embeddings, len(distinct), "encoder.encode(texts)")
    row = {text: i for i, text in enumerate(distinct)}
    return embeddings[[row[text] for text in texts]]


def _as_python(labels: Sequence[Any]) -> list[Any]:
    """Labels as Python values; an array of mixed types would turn them all into strings."""
    return list(map(as_scalar, as_list(labels, "labels")))


def _validate_embeddings(embeddings: np.ndarray, count: int, name: str) -> np.ndarray:
    """The embeddings in float64, so that every version of scikit-learn fits alike."""
    embeddings = np.asarray(embeddings, "float64")
    if count == 0:
        raise InputError(f"{name} is empty")
    if embeddings.ndim != 2 or len(embeddings) != count:
        raise InputError(f"{name} has shape {embeddings.shape}, but must be ({count}, width)")
    if not np.isfinite(embeddings).all():
        bad = np.flatnonzero(~np.isfinite(embeddings).all(1))
        raise InputError(
            f"{name} holds NaN or infinite values in {len(bad)} rows, first row {bad[0]}"
        )
    return embeddings

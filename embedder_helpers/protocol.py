"""The MTEB classification protocol: logistic regressions on small balanced draws of train.

Bit-equal to mteb 2's own evaluator on the same float64 embeddings.
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

from embedder_helpers.config import InputError

EXPERIMENTS = 10
SEED = 42


@dataclass(frozen=True)
class Scores:
    """What the protocol gives.

    Attributes:
        experiments: one dictionary a draw, by MTEB's names: accuracy, f1 (macro), f1_weighted,
            precision, recall, precision_weighted, recall_weighted, and with two labels ap and
            ap_weighted (None otherwise).
    """

    experiments: tuple[dict[str, float | None], ...]

    @classmethod
    def of(cls, labels: Sequence[Any], answers: Sequence[np.ndarray]) -> "Scores":
        """The scores of each experiment's answers."""
        labels = _plain(labels)
        return cls(tuple(metrics(labels, answer) for answer in answers))

    @property
    def mean(self) -> dict[str, float | None]:
        """The plain mean of each metric over the experiments."""
        return {
            name: None if value is None else float(np.mean([one[name] for one in self.experiments]))
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


def draw_rows(
    labels: Sequence[Any], samples_per_label: int, experiments: int = EXPERIMENTS, seed: int = SEED
) -> list[list[int]]:
    """The train rows that each experiment draws, in the order of its walk.

    Every experiment shuffles the previous order with a new generator of the same seed, so by the
    same permutation, walks it, and takes a row while its label has been taken fewer than
    `samples_per_label` times.
    """
    permutation = np.arange(len(labels))
    np.random.RandomState(seed).shuffle(permutation)
    counts = Counter(labels)
    wanted = sum(min(count, samples_per_label) for count in counts.values())
    order, draws = permutation, []
    for _ in range(experiments):
        taken: Counter = Counter()
        rows = []
        for row in order.tolist():
            if taken[labels[row]] < samples_per_label:
                taken[labels[row]] += 1
                rows.append(row)
                if len(rows) == wanted:  # nothing is taken from the rest of the walk
                    break
        draws.append(rows)
        order = order[permutation]  # the same shuffle, applied to the previous order
    return draws


def score(
    train_embeddings: np.ndarray,
    train_labels: Sequence[Any],
    test_embeddings: np.ndarray,
    test_labels: Sequence[Any],
    **keys: Any,
) -> Scores:
    """Scores embeddings as MTEB does; the arguments are those of `answers`, with test labels.

    Raises:
        InputError: as `answers`; test labels that do not fit.
    """
    if len(test_embeddings) != len(test_labels):
        raise InputError(
            f"test_embeddings has {len(test_embeddings)} rows, but test_labels {len(test_labels)}"
        )
    found = answers(train_embeddings, train_labels, test_embeddings, **keys)
    return Scores.of(test_labels, found)


def answers(
    train_embeddings: np.ndarray,
    train_labels: Sequence[Any],
    test_embeddings: np.ndarray,
    *,
    samples_per_label: int,
    experiments: int = EXPERIMENTS,
    seed: int = SEED,
    rows: np.ndarray | None = None,
) -> list[np.ndarray]:
    """The labels `(m,)` that each experiment's classifier gives the test texts.

    Args:
        train_embeddings: `(n, width)`, in the order of the train split, which decides the draws.
        train_labels: `(n,)` integers or strings, of the whole train split.
        test_embeddings: `(m, width)`.
        samples_per_label: texts of each label that an experiment draws; rarer labels give all.
        experiments: how many.
        seed: of the draws and of the classifier.
        rows: the train rows that `train_embeddings` holds, rising, where it does not hold all; the
            drawn rows are enough.

    Raises:
        InputError: shapes that do not fit, embeddings that are not finite, a drawn row without an
            embedding.
    """
    train_labels = _plain(train_labels)
    rows = np.arange(len(train_labels)) if rows is None else np.asarray(rows)
    train = _checked(train_embeddings, len(rows), "train_embeddings")
    test = _checked(test_embeddings, len(test_embeddings), "test_embeddings")
    if train.shape[1] != test.shape[1]:
        raise InputError(
            f"train_embeddings have width {train.shape[1]}, but test_embeddings {test.shape[1]}"
        )
    draws = draw_rows(train_labels, samples_per_label, experiments, seed)
    found = []
    for draw in draws:
        places = np.searchsorted(rows, draw)
        if not np.array_equal(rows[np.minimum(places, len(rows) - 1)], draw):
            raise InputError("rows lacks train rows that the protocol draws: use draw_rows' union")
        classifier = LogisticRegression(max_iter=100, random_state=seed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # common and part of the protocol
            classifier.fit(train[places], [train_labels[row] for row in draw])
        found.append(classifier.predict(test))
    return found


def metrics(labels: Sequence[Any], predicted: Sequence[Any]) -> dict[str, float | None]:
    """MTEB's metrics, by its names.

    `ap` stands for hard predictions, as in MTEB; it is None unless the labels are two and one is 1.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UndefinedMetricWarning)
        found = {
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
            found["ap"] = average_precision_score(labels, predicted, average="macro")
            found["ap_weighted"] = average_precision_score(labels, predicted, average="weighted")
    return {name: None if value is None else float(value) for name, value in found.items()}


def floor(train_labels: Sequence[Any], test_labels: Sequence[Any]) -> dict[str, float | None]:
    """The metrics of always answering the train split's commonest label."""
    commonest = Counter(_plain(train_labels)).most_common(1)[0][0]
    return metrics(_plain(test_labels), [commonest] * len(test_labels))


def _plain(labels: Sequence[Any]) -> list[Any]:
    return np.asarray(labels).tolist()


def _checked(embeddings: np.ndarray, count: int, name: str) -> np.ndarray:
    """float64, so that every version of scikit-learn fits alike."""
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

"""What a trained classifier says of each text: a file beside the result, for questions after it.

Which texts only one of two classifiers gets right, and whether a cascade pays, cannot be told from
scores.
"""

import io
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy.special import softmax

from embedder_helpers.utils.files import atomic_write, read_bounded, writable_folder

FOLDER = "predictions"
MAX_BYTES = 2**30


class Predictions(NamedTuple):
    """The head's logits of the texts that were scored, and of those training was validated on.

    Attributes:
        classes: `(classes,)` labels, integers or strings, in the order of the logits.
        labels: `(texts,)` true labels of the scored texts, as positions in `classes`; -1 is a label
            that no training text has.
        logits: `(texts, classes)` float32.
        validation_labels: `(validation texts,)` likewise.
        validation_logits: `(validation texts, classes)` likewise.
    """

    classes: np.ndarray
    labels: np.ndarray
    logits: np.ndarray
    validation_labels: np.ndarray
    validation_logits: np.ndarray

    @property
    def predicted(self) -> np.ndarray:
        """`(texts,)` predicted labels, as positions in `classes`."""
        return self.logits.argmax(1)

    @property
    def right(self) -> np.ndarray:
        """`(texts,)` of bool, whether the predicted label is the true one."""
        return self.predicted == self.labels

    @property
    def probabilities(self) -> np.ndarray:
        """`(texts, classes)`, not calibrated."""
        return softmax(self.logits.astype("float64"), axis=1)


def label_positions(classes: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """`(texts,)` positions of labels in the sorted classes; -1 where they are not among them."""
    positions = np.searchsorted(classes, labels)
    is_known = classes[np.minimum(positions, len(classes) - 1)] == labels
    return np.where(is_known, positions, -1)


def predictions_path(result_path: Path) -> Path:
    """The file of the predictions that belong to a result file."""
    return result_path.parent / FOLDER / f"{result_path.stem}.npz"


def write_predictions(predictions: Predictions, result_path: Path) -> None:
    """Write predictions beside the result file to come, completely or not at all.

    Raises:
        InputError: the folder cannot be written; the disk is full.
    """
    path = predictions_path(result_path)
    writable_folder(path.parent)
    atomic_write(path, lambda part: np.savez_compressed(part, **predictions._asdict()))


def read_predictions(result_path: Path) -> Predictions | None:
    """The predictions that belong to a result file; None if they are missing or damaged."""
    try:  # each array's checksum is compared when it is read
        with np.load(io.BytesIO(read_bounded(predictions_path(result_path), MAX_BYTES))) as file:
            predictions = Predictions(**dict(file))
    except Exception:  # a damaged archive may raise anything
        return None
    return predictions if _fits(predictions) else None


def _fits(predictions: Predictions) -> bool:
    """Whether shapes and types fit one another."""
    width = len(predictions.classes)
    pairs = (
        (predictions.labels, predictions.logits),
        (predictions.validation_labels, predictions.validation_logits),
    )
    return all(
        logits.shape == (len(labels), width)
        and labels.dtype.kind == "i"
        and logits.dtype == "float32"
        and np.isfinite(logits).all()
        and (-1 <= labels).all()
        and (labels < width).all()
        for labels, logits in pairs
    )

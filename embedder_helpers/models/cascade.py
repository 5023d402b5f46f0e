"""A cascade: a cheap classifier answers where it is sure, one with Gemma where it is not.

Only texts of which the cheap one is not sure pass through Gemma. "Sure" means what it says once the
cheap one's probabilities are calibrated by a temperature (Guo et al. 2017, "On Calibration of
Modern Neural Networks", section 4.2), which `results.cascade` fits to validation texts and which
is given here.
"""

import math
from collections.abc import Sequence
from numbers import Real
from typing import Any, NamedTuple, Protocol

import numpy as np
from scipy.special import softmax

from embedder_helpers.config import Experiment
from embedder_helpers.errors import InputError, show, show_list


class Classifier(Protocol):
    """What a cascade reads of an embedder, whose module imports this one.

    Attributes:
        experiment: its settings.
        gemma: its Gemma; None if it has none.
        head: its linear classifier; None if it has none.
    """

    experiment: Experiment
    gemma: Any
    head: Any

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """Embeddings `(texts, width)`."""


class CheapClassifier(NamedTuple):
    """A classifier without Gemma that answers first.

    Attributes:
        embedder: embedder with a head of the same classes, in any order.
        temperature: by which its logits are divided.
    """

    embedder: Classifier
    temperature: float

    def probabilities(self, texts: Sequence[str], classes: np.ndarray) -> np.ndarray:
        """Calibrated probabilities `(texts, classes)` float64 of these classes, in their order."""
        head = self.embedder.head
        logits = head.logits(self.embedder.encode(texts)).astype("float64")  # as thresholds are
        found = softmax(logits / self.temperature, axis=-1)
        own = head.classes.tolist()
        return found[:, [own.index(label) for label in classes.tolist()]]


def check_cheap(
    expensive: Classifier, cheap: Classifier, temperature: float = 1.0
) -> CheapClassifier:
    """A classifier that can answer before another one.

    Raises:
        InputError: one of the two is no classifier; the cheap one is not RoBERTa alone; the
            other has no Gemma; other labels; a temperature that is no positive number.
    """
    if expensive.gemma is None or cheap.experiment.kind != "roberta_only":
        kinds = cheap.experiment.kind, expensive.experiment.kind
        raise InputError(
            f"{show(kinds[0])} cannot answer before {show(kinds[1])}: attach RoBERTa alone, which "
            "is cheap, to a hybrid"
        )
    for name, embedder in (("the hybrid", expensive), ("the cheap embedder", cheap)):
        if embedder.head is None:
            raise InputError(f"{name} has no classifier: train it with epochs of 1 or more")
    own, others = cheap.head.classes.tolist(), expensive.head.classes.tolist()
    if set(own) != set(others):
        raise InputError(
            f"the cheap classifier's labels are {show_list(own, 5)}, but the hybrid's are "
            f"{show_list(others, 5)}: train both on the same task"
        )
    if not (_is_number(temperature) and temperature > 0):
        raise InputError(f"temperature is {show(temperature)}, but must be a number above 0")
    return CheapClassifier(cheap, float(temperature))


def check_threshold(threshold: float) -> None:
    """Raises InputError if the argument `cascade` of `predict` is no probability."""
    is_probability = _is_number(threshold) and 0 <= threshold <= 1
    if not (is_probability or (isinstance(threshold, float) and threshold == math.inf)):
        raise InputError(
            f"cascade is {show(threshold)}, but must be a probability from 0 to 1, or infinite, so "
            "that all texts go on"
        )


def answer(
    expensive: Classifier, cheap: CheapClassifier | None, texts: Sequence[str], threshold: float
) -> dict[str, Any]:
    """Classify texts by the cheap classifier where it is sure, else by the expensive one.

    Args:
        expensive: embedder with a head.
        cheap: the classifier attached to it; None if there is none.
        texts: texts.
        threshold: calibrated probability of its label, from 0 to 1, at which the cheap one is sure.

    Returns:
        `probabilities` `(texts, classes)` of who answered, of which only the cheap one's are
        calibrated; `answered_by` `(texts,)`, the kind of who did; `confidence` `(texts,)`, the
        cheap one's calibrated probability of its label.

    Raises:
        InputError: nothing is attached; a threshold that is no probability; an invalid text.
    """
    if cheap is None:
        raise InputError(
            "no cheap classifier is attached, which a cascade needs: attach RoBERTa alone, trained "
            "on the same task, with hybrid.attach(roberta, temperature)"
        )
    check_threshold(threshold)
    probabilities = cheap.probabilities(texts, expensive.head.classes)
    confidence = probabilities.max(-1)
    unsure = np.flatnonzero(confidence < threshold)
    if len(unsure):
        embeddings = expensive.encode([texts[row] for row in unsure])
        probabilities[unsure] = expensive.head.probabilities(embeddings)
    kinds = cheap.embedder.experiment.kind, expensive.experiment.kind
    answered_by = np.where(confidence < threshold, *kinds[::-1]).astype(object)
    return {
        "probabilities": probabilities,
        "answered_by": answered_by,
        "confidence": confidence,
    }


def _is_number(value: Any) -> bool:
    is_real = isinstance(value, Real | np.floating) and not isinstance(value, bool)
    return is_real and math.isfinite(value)

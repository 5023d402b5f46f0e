"""What a cascade of RoBERTa alone and a hybrid gives and costs, from their predictions."""

from typing import NamedTuple

import numpy as np
import pandas as pd

from embedder_helpers.results.cascade import cascade_curve, confidence, fit_temperature
from embedder_helpers.results.contenders import Contender, paired_predictions
from embedder_helpers.results.intervals import Interval
from embedder_helpers.results.layer_findings import Cost
from embedder_helpers.results.paired import crossed_interval


class Cascade(NamedTuple):
    """RoBERTa alone answers where it is sure, the hybrid where it is not.

    Attributes:
        curve: of the scored texts, the mean over seeds: `threshold` of RoBERTa's calibrated
            confidence, below which a text goes on, `share` of texts that go on, `accuracy`.
        threshold: the lowest with which the cascade is as good as the hybrid on validation texts.
        share: of the scored texts that go on at that threshold.
        accuracy: of the cascade on the scored texts at that threshold.
        gain: that accuracy minus RoBERTa's.
        ahead: that accuracy minus the hybrid's.
        milliseconds: for a text, on average; None without measured cost.
    """

    curve: pd.DataFrame
    threshold: float
    share: float
    accuracy: float
    gain: Interval
    ahead: Interval
    milliseconds: float | None


def find_cascade(hybrid: Contender, roberta: Contender, cost: Cost | None) -> Cascade | None:
    """The cascade of the seeds that both have, its threshold chosen on validation texts."""
    pairs = paired_predictions(hybrid, roberta)
    if not pairs or not all((other.validation_labels >= 0).any() for _, other in pairs):
        return None
    validation, scored = [], []
    for one, other in pairs:
        known = other.validation_labels >= 0
        logits, labels = other.validation_logits[known], other.validation_labels[known]
        temperature = fit_temperature(logits, labels)
        right = one.validation_logits[known].argmax(1) == labels
        validation.append((confidence(logits, temperature), logits.argmax(1) == labels, right))
        scored.append((confidence(other.logits, temperature), other.right, one.right))
    # All seeds at one threshold: the curve of all their texts is the mean of their curves.
    chosen = cascade_curve(*map(np.concatenate, zip(*validation, strict=True)))
    curve = cascade_curve(*map(np.concatenate, zip(*scored, strict=True)))
    as_good = chosen["accuracy"] >= chosen["accuracy"].iloc[-1] - 1e-9
    threshold = float(chosen.loc[as_good, "threshold"].iloc[0])
    sure, cheap, expensive = map(np.stack, zip(*scored, strict=True))
    goes_on = sure < threshold
    right = np.where(goes_on, expensive, cheap).astype(float)  # (seeds, texts)
    gain, ahead = (crossed_interval(right - other) for other in (cheap, expensive))
    if len(pairs) == 1:
        gain, ahead = (Interval(one.mean, np.nan, np.nan) for one in (gain, ahead))
    share = float(goes_on.mean())
    milliseconds = cost.roberta + share * cost.hybrid if cost else None
    return Cascade(curve, threshold, share, float(right.mean()), gain, ahead, milliseconds)

"""Where a hybrid and RoBERTa alone differ: text by text, and label by label."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from embedder_helpers.errors import InputError
from embedder_helpers.results.contenders import Contender, paired_predictions
from embedder_helpers.results.disagreement import Disagreement, disagreement
from embedder_helpers.results.intervals import Interval
from embedder_helpers.results.paired import crossed_interval

UNTRAINED_LABEL = "(no training text has it)"


def _right(hybrid: Contender, roberta: Contender) -> tuple[np.ndarray, np.ndarray] | None:
    """`(seeds, texts)` whether each is right, by the seeds that both have."""
    pairs = paired_predictions(hybrid, roberta)
    if not pairs:
        return None
    ours, theirs = zip(*((one.right, other.right) for one, other in pairs), strict=True)
    return np.stack(ours), np.stack(theirs)


def find_disagreement(hybrid: Contender, roberta: Contender) -> Disagreement | None:
    """Texts that only one gets right by most seeds; None without predictions."""
    right = _right(hybrid, roberta)
    return disagreement(*right) if right else None


def _true_labels(contender: Contender) -> np.ndarray:
    """`(texts,)` of object: true labels."""
    said = next(iter(contender.predictions.values()))
    labels = said.classes.astype(object)[said.labels]
    labels[said.labels < 0] = UNTRAINED_LABEL
    return labels


def label_table(hybrid: Contender, roberta: Contender) -> pd.DataFrame | None:
    """A row per label, the one with the largest difference first."""
    right = _right(hybrid, roberta)
    if right is None:
        return None
    ours, theirs = right
    labels, differing = _true_labels(hybrid), disagreement(ours, theirs)
    rows = []
    for label in dict.fromkeys(labels):
        of_label = labels == label
        differences = ours[:, of_label].astype(float) - theirs[:, of_label]
        interval = crossed_interval(differences)
        # Texts that are all alike, or a single one, do not say how others would differ.
        if len(ours) == 1 or not differences.mean(0).std():
            interval = Interval(interval.mean, np.nan, np.nan)
        rows.append(
            {
                "label": label,
                "texts": int(of_label.sum()),
                "hybrid recall": ours[:, of_label].mean(),
                "RoBERTa recall": theirs[:, of_label].mean(),
                "difference": interval.mean,
                "low": interval.low,
                "high": interval.high,
                "only hybrid": int(differing.only_first[of_label].sum()),
                "only RoBERTa": int(differing.only_second[of_label].sum()),
            }
        )
    return pd.DataFrame(rows).sort_values(
        "difference", ascending=False, kind="stable", ignore_index=True
    )


def scored_table(
    hybrid: Contender, roberta: Contender, texts: Sequence[str] | None
) -> pd.DataFrame | None:
    """A row per scored text, in the order of the data.

    Columns: `text` (its number, if texts are not given), `label`, `hybrid` and `RoBERTa`, the
    shares of their seeds that are right, `hybrid says` and `RoBERTa says`, the label that most of
    their seeds predict, and `only`, which of them alone is right by most seeds, or empty.
    """
    pairs = paired_predictions(hybrid, roberta)
    if not pairs:
        return None
    ours, theirs = _right(hybrid, roberta)
    if texts is not None and len(texts) != ours.shape[1]:
        raise InputError(
            f"there are {len(texts)} texts, but {ours.shape[1]} were scored: give the texts of the "
            "split that was scored, all of them and in their order"
        )
    differing = disagreement(ours, theirs)
    only = np.where(differing.only_first, "hybrid", np.where(differing.only_second, "RoBERTa", ""))
    return pd.DataFrame(
        {
            "text": list(texts) if texts is not None else range(ours.shape[1]),
            "label": _true_labels(hybrid),
            "hybrid": ours.mean(0),
            "RoBERTa": theirs.mean(0),
            "hybrid says": _most_said([one for one, _ in pairs], ours.mean(0) > 0.5),
            "RoBERTa says": _most_said([other for _, other in pairs], theirs.mean(0) > 0.5),
            "only": only,
        }
    )


def _most_said(predictions: Sequence, is_right: np.ndarray) -> np.ndarray:
    """`(texts,)` the label that most seeds predict; where they are not right, the wrong one."""
    classes = predictions[0].classes
    counts = sum(np.equal.outer(said.predicted, np.arange(len(classes))) for said in predictions)
    counts, labels = np.asarray(counts, int), predictions[0].labels
    rows = np.flatnonzero(~is_right & (labels >= 0))
    counts[rows, labels[rows]] = -1  # the true label may be said as often as another
    return classes.astype(object)[counts.argmax(1)]

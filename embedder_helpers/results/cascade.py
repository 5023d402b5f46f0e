"""A cascade: a cheap classifier answers where it is sure, an expensive one where it is not.

The cheap one's probabilities are calibrated by a temperature first (Guo et al. 2017, "On
Calibration of Modern Neural Networks", section 4.2), so that "sure" means what it says. What the
cascade costs is the share of texts that reach the expensive one (Viola & Jones 2001 for the idea).
"""

import numpy as np
import pandas as pd
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax

MAX_LOG_TEMPERATURE = 5.0  # temperatures from 1/148 to 148


def fit_temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """The temperature by which logits are to be divided: the one under which labels are likeliest.

    Args:
        logits: `(texts, labels)` of texts that were not trained on.
        labels: `(texts,)` true labels, as columns of the logits.
    """
    logits = np.asarray(logits, float)

    def loss(log_temperature: float) -> float:
        log_probabilities = log_softmax(logits / np.exp(log_temperature), axis=1)
        return -float(log_probabilities[np.arange(len(labels)), labels].mean())

    bounds = (-MAX_LOG_TEMPERATURE, MAX_LOG_TEMPERATURE)
    return float(np.exp(minimize_scalar(loss, bounds=bounds, method="bounded").x))


def confidence(logits: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    """`(texts,)` calibrated probability of the label that is predicted.

    Args:
        logits: `(texts, labels)`.
        temperature: of `fit_temperature`.
    """
    return softmax(np.asarray(logits, float) / temperature, axis=1).max(1)


def cascade_curve(
    sure: np.ndarray, cheap_right: np.ndarray, expensive_right: np.ndarray
) -> pd.DataFrame:
    """Accuracy of the cascade at every threshold that changes it.

    Args:
        sure: `(texts,)` the cheap classifier's confidence.
        cheap_right: `(texts,)` of bool, whether its label is right.
        expensive_right: the same of the expensive one.

    Returns:
        Columns `threshold` (texts below it go on), `share` of texts that reach the expensive one,
        from 0 to 1, and `accuracy`.
    """
    sure = np.asarray(sure, float)
    order = np.argsort(sure, kind="stable")
    gains = np.asarray(expensive_right, float)[order] - np.asarray(cheap_right, float)[order]
    right = np.sum(cheap_right) + np.concatenate([[0.0], np.cumsum(gains)])
    ranked = sure[order]
    # Texts of equal confidence go on together.
    passed = np.flatnonzero(np.r_[True, np.diff(ranked) > 0, True])
    thresholds = np.r_[ranked, np.inf][passed]
    return pd.DataFrame(
        {
            "threshold": thresholds,
            "share": passed / len(sure),
            "accuracy": right[passed] / len(sure),
        }
    )

"""Linear probes: what can be read off Gemma's states without RoBERTa.

They choose a cutoff before anything is trained, and tell what Gemma alone is worth as a classifier.
They see the training and the validation split, never the test split.
"""

import warnings
from collections.abc import Sequence

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression, RidgeClassifier
from sklearn.model_selection import StratifiedKFold, cross_val_score
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from embedder_helpers import platform
from embedder_helpers.embedder import GemmaOnly
from embedder_helpers.gemma import Depth
from embedder_helpers.head import Head
from embedder_helpers.states import Store
from embedder_helpers.tokens import Tokens

FOLDS = 5
SEED = 42  # of the folds, so that every seed of an experiment chooses alike
INVERSE_PENALTIES = (0.001, 0.01, 0.1)
STEPS = 300  # of the solver


def choose_cutoff(
    reader: GemmaOnly, store: Store, tokens: Tokens, labels: np.ndarray, depths: Sequence[Depth]
) -> dict[str, float]:
    """For each cutoff, by its number, the share of texts that a linear classifier labels rightly.

    A ridge classifier is scored by cross-validation over all the texts, because a validation split
    alone is often too small to tell neighbouring cutoffs apart. Beside reading the states it costs
    about a second a cutoff for 4000 texts of width 640.

    Args:
        reader: pools states at any one depth.
        store: where the states are, or go to.
        tokens: of the texts.
        labels: `(texts,)`.
        depths: to choose from.
    """
    store.fill(reader.gemma, tokens.gemma, dict.fromkeys(depths, np.ones(len(labels), bool)))
    smallest = np.unique(labels, return_counts=True)[1].min()
    folds = StratifiedKFold(max(2, min(FOLDS, smallest)), shuffle=True, random_state=SEED)
    found = {}
    for depth in depths:
        embeddings = reader.embed(store.states(reader.gemma, tokens.gemma, [depth]))
        scores = cross_val_score(RidgeClassifier(), embeddings, labels, cv=folds)
        found[str(depth.cutoff)] = float(scores.mean())
    best = max(found, key=found.get)
    told = f"{best} of {len(found)} chosen: a linear classifier gets {found[best]:.3f}"
    platform.say(f"  cutoff {told}")
    return found


def fit_probe(fit: tuple[np.ndarray, np.ndarray], watched: tuple[np.ndarray, np.ndarray]) -> Head:
    """A logistic regression on standardised embeddings.

    Of several penalties the one that labels the most watched texts rightly is taken; of equals, the
    strongest.

    Args:
        fit: embeddings `(texts, width)` and labels to learn from.
        watched: likewise, to choose the penalty by.
    """
    found = {}
    for inverse_penalty in INVERSE_PENALTIES:
        regression = LogisticRegression(C=inverse_penalty, max_iter=STEPS)
        classifier = make_pipeline(StandardScaler(), regression)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            classifier.fit(*fit)
        found.setdefault(classifier.score(*watched), classifier)
    return _head(found[max(found)])


def _head(classifier: Pipeline) -> Head:
    """The classifier as one linear map, its standardisation multiplied in."""
    scaler, regression = (step for _, step in classifier.steps)
    kernel, bias = regression.coef_.T / scaler.scale_[:, None], regression.intercept_
    bias = bias - scaler.mean_ @ kernel
    if len(regression.classes_) == 2:  # it keeps the second label's logit; the first's is 0
        kernel, bias = (np.concatenate([0 * one, one], -1) for one in (kernel, bias))
    return Head(kernel, bias, regression.classes_)

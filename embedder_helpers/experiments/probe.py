"""Linear probes: what a linear classifier reads from Gemma's hidden states, without RoBERTa.

They select a layer before any training, and measure Gemma alone as a classifier. They read the
training and the validation split, never the test split.
"""

import functools
import logging
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression, RidgeClassifier
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from embedder_helpers.models.architectures import GemmaOnly
from embedder_helpers.models.embedder import Head
from embedder_helpers.models.gemma import HiddenStateSpec
from embedder_helpers.models.hidden_states import HiddenStateCache
from embedder_helpers.models.tokenization import TokenizedTexts
from embedder_helpers.results.confidence_set import elimination_p_values

logger = logging.getLogger(__name__)

FOLDS = 5
SEED = 42  # of the folds, so that every seed of an experiment selects the same layer
INVERSE_PENALTIES = (0.001, 0.01, 0.1)
MAX_ITERATIONS = 300  # of the solver


@dataclass(frozen=True)
class LayerScores:
    """How well linear classifiers read the hidden states at each cutoff.

    Attributes:
        accuracies: cross-validated accuracy by cutoff, the mean over the folds.
        right: `(cutoffs, texts)` of bool, whether a text's label was right when it was held out.
    """

    accuracies: dict[int, float]
    right: np.ndarray

    @property
    def best(self) -> int:
        """The cutoff of the highest accuracy, the first among equals."""
        return max(self.accuracies, key=self.accuracies.get)

    @functools.cached_property
    def p_values(self) -> dict[int, float]:
        """The p-value of each cutoff in the model confidence set, paired over the texts."""
        values = elimination_p_values(self.right)
        return dict(zip(self.accuracies, values.tolist(), strict=True))

    def cheapest(self, level: float = 0.95) -> int:
        """The smallest cutoff that cannot be told from the best."""
        return min(cutoff for cutoff, value in self.p_values.items() if value > 1 - level)


def score_layers(
    embedder: GemmaOnly,
    cache: HiddenStateCache,
    tokens: TokenizedTexts,
    labels: np.ndarray,
    specs: Sequence[HiddenStateSpec],
) -> LayerScores:
    """How well a linear classifier reads the hidden states at each cutoff.

    A ridge classifier is cross-validated over all the texts, because a validation split alone is
    often too small to distinguish neighboring cutoffs. Besides reading the hidden states it takes
    about a second per cutoff for 4000 texts of width 640.

    Args:
        embedder: pools the hidden states of any one cutoff.
        cache: of hidden states; those that are missing are computed.
        tokens: of the texts.
        labels: `(texts,)`.
        specs: the hidden states to compare, one for each cutoff.
    """
    all_texts = np.ones(len(labels), bool)
    cache.compute_missing(embedder.gemma, tokens.gemma, dict.fromkeys(specs, all_texts))
    rarest = np.unique(labels, return_counts=True)[1].min()
    folds = StratifiedKFold(max(2, min(FOLDS, rarest)), shuffle=True, random_state=SEED)
    parts = [rows for _, rows in folds.split(labels, labels)]
    accuracies, right = {}, []
    for spec in specs:
        states = cache.get_or_compute(embedder.gemma, tokens.gemma, [spec])
        embeddings = embedder.embed(states)
        predicted = cross_val_predict(RidgeClassifier(), embeddings, labels, cv=folds)
        right.append(predicted == labels)
        accuracies[spec.cutoff] = float(np.mean([right[-1][rows].mean() for rows in parts]))
    return LayerScores(accuracies, np.array(right))


def fit_probe(
    train: tuple[np.ndarray, np.ndarray], validation: tuple[np.ndarray, np.ndarray]
) -> Head:
    """Fit a logistic regression to standardized embeddings.

    Of several penalties, that with the highest validation accuracy is selected; among equals, the
    strongest.

    Args:
        train: embeddings `(texts, width)` and labels to fit.
        validation: likewise, to select the penalty by.
    """
    classifiers: dict[float, Pipeline] = {}
    for inverse_penalty in INVERSE_PENALTIES:
        regression = LogisticRegression(C=inverse_penalty, max_iter=MAX_ITERATIONS)
        classifier = make_pipeline(StandardScaler(), regression)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            classifier.fit(*train)
        classifiers.setdefault(classifier.score(*validation), classifier)
    return _head(classifiers[max(classifiers)])


def _head(classifier: Pipeline) -> Head:
    """The classifier as a single linear map, with the standardization folded in."""
    scaler, regression = (step for _, step in classifier.steps)
    kernel, bias = regression.coef_.T / scaler.scale_[:, None], regression.intercept_
    bias = bias - scaler.mean_ @ kernel
    if len(regression.classes_) == 2:  # it has the second label's logit only; the first's is 0
        kernel, bias = (np.concatenate([0 * logit, logit], -1) for logit in (kernel, bias))
    return Head(kernel, bias, regression.classes_)

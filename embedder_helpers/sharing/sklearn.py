"""A scikit-learn transformer from texts to embeddings, for pipelines and cross-validation."""

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils.validation import check_is_fitted

from embedder_helpers.config import Experiment
from embedder_helpers.data.files import as_list
from embedder_helpers.data.tasks import task_from_arrays
from embedder_helpers.errors import InputError
from embedder_helpers.experiments.plan import plan_experiment
from embedder_helpers.experiments.run import train_embedder
from embedder_helpers.models.architectures import load_embedder
from embedder_helpers.models.embedder import Embedder
from embedder_helpers.models.hidden_states import HiddenStateCache
from embedder_helpers.models.saving import MANIFEST_FILE
from embedder_helpers.utils import environment
from embedder_helpers.utils.files import as_path


class TextEmbedder(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):
    """Embeddings of texts as features.

    Args:
        source: folder of a saved embedder, which `fit` loads and does not change; or an
            Experiment, which `fit` trains on its texts and labels, a tenth of them held out for
            validation; the Experiment's own task and splits are ignored. In a cross-validation on
            texts that a saved embedder was trained on, it has seen the test folds: give an
            Experiment there.
        batch_size: argument of `Embedder.encode`.
        normalize_embeddings: argument of `Embedder.encode`.

    Attributes:
        embedder_: embedder that was loaded or trained.
    """

    def __init__(
        self,
        source: str | Path | Experiment,
        batch_size: int | None = None,
        normalize_embeddings: bool = False,
    ):
        self.source = source
        self.batch_size = batch_size
        self.normalize_embeddings = normalize_embeddings

    def fit(self, X: Sequence[str], y: Sequence[Any] | None = None) -> "TextEmbedder":  # noqa: N803
        """Load the embedder, or train it.

        Raises:
            InputError: invalid texts, labels or folder; no labels to train on.
        """
        if isinstance(self.source, Experiment):
            self.embedder_ = _train(self.source, X, y)
        else:
            folder = as_path(self.source).resolve()
            self.embedder_ = _load(folder, _modified(folder))
        return self

    def transform(self, X: Sequence[str]) -> np.ndarray:  # noqa: N803
        """Encode texts as embeddings `(texts, width)` float32.

        Raises:
            InputError: as `Embedder.encode` does; a single text.
        """
        check_is_fitted(self)
        return self.embedder_.encode(
            as_list(X), self.batch_size, normalize_embeddings=self.normalize_embeddings
        )

    @property
    def _n_features_out(self) -> int:
        return self.embedder_.width

    def __getstate__(self) -> dict[str, Any]:
        if hasattr(self, "embedder_"):
            raise InputError(
                "a fitted TextEmbedder cannot be pickled, nor sent to another process (n_jobs): "
                "save its embedder with embedder_.save(folder), and use TextEmbedder(folder); or "
                "cross-validate a clone of it, which is not fitted"
            )
        return super().__getstate__()


def _train(experiment: Experiment, texts: Sequence[str], labels: Sequence[Any] | None) -> Embedder:
    if labels is None:
        raise InputError("training an Experiment needs labels: give fit the labels y too")
    folder = experiment.states_dir or environment.states_folder()
    cache = HiddenStateCache(folder, experiment.states_gigabytes)
    # There are no other splits to train on or to score, and no results folder for a tracker.
    experiment = dataclasses.replace(
        experiment, train_split="train", scored_split="test", tracking=None
    )
    plan = plan_experiment(experiment, None, task_from_arrays(texts, labels))
    return train_embedder(plan, cache)


def _modified(folder: Path) -> float:
    path = folder / MANIFEST_FILE
    return path.stat().st_mtime if path.is_file() else 0.0


@functools.lru_cache(maxsize=1)
def _load(folder: Path, modified: float) -> Embedder:
    """Load the embedder of a folder; the folds of a cross-validation share it."""
    return load_embedder(folder)

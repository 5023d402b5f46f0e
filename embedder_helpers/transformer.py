"""A transformer for scikit-learn: texts to embeddings, in a Pipeline or a cross-validation."""

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils.validation import check_is_fitted

from embedder_helpers import platform
from embedder_helpers.config import Experiment, InputError
from embedder_helpers.embedder import Embedder
from embedder_helpers.plan import plan
from embedder_helpers.run import train
from embedder_helpers.saved import load
from embedder_helpers.states import Store
from embedder_helpers.tasks import task_from


class TextEmbedder(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):
    """Embeddings of texts as features.

    Args:
        source: the folder of a saved embedder, which `fit` loads and leaves as it is; or an
            Experiment, which `fit` runs on the texts and labels it is given, a tenth of them held
            out to watch. A saved embedder that was trained on texts of a cross-validation has seen
            its test folds: give an Experiment there. Its task and its splits are not looked at.
        batch_size: as `encode` takes it.
        normalize_embeddings: likewise.

    Attributes:
        embedder_: that was loaded or trained.
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
        """Loads the embedder, or trains it.

        Raises:
            InputError: texts, labels or a folder that cannot be used; no labels to train on.
        """
        if isinstance(self.source, Experiment):
            self.embedder_ = _trained(self.source, X, y)
        else:
            folder = Path(self.source).resolve()
            self.embedder_ = _loaded(folder, _changed(folder))
        return self

    def transform(self, X: Sequence[str]) -> np.ndarray:  # noqa: N803
        """Embeddings `(texts, width)` float32."""
        check_is_fitted(self)
        return self.embedder_.encode(
            X, self.batch_size, normalize_embeddings=self.normalize_embeddings
        )

    @property
    def _n_features_out(self) -> int:
        return self.embedder_.width

    def __getstate__(self) -> dict[str, Any]:
        if hasattr(self, "embedder_"):
            raise InputError(
                "a fitted TextEmbedder is not pickled: keep its embedder with "
                "embedder_.save(folder), and make a TextEmbedder(folder) of that"
            )
        return super().__getstate__()


def _trained(
    experiment: Experiment, texts: Sequence[str], labels: Sequence[Any] | None
) -> Embedder:
    if labels is None:
        raise InputError("an Experiment is trained on labels: give fit the labels y too")
    store = Store(experiment.states_dir or platform.states_folder(), experiment.states_gigabytes)
    here = dict(train_split="train", scored_split="test", tracking=None)  # there are no others
    experiment = dataclasses.replace(experiment, **here)
    return train(plan(experiment, None, task_from(texts, labels)), store)


def _changed(folder: Path) -> float:
    path = folder / "embedder.json"
    return path.stat().st_mtime if path.is_file() else 0.0


@functools.lru_cache(maxsize=1)
def _loaded(folder: Path, changed: float) -> Embedder:
    """The embedder in a folder; the folds of a cross-validation share it."""
    return load(folder)

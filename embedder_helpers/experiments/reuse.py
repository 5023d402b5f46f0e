"""Models that experiments of a sweep share: built and compiled once for each architecture."""

import gc
from collections.abc import Sequence
from typing import Any

import numpy as np

from embedder_helpers.config import FROZEN, Experiment
from embedder_helpers.experiments.plan import Plan
from embedder_helpers.experiments.training import Classifier, build_classifier
from embedder_helpers.models.architectures import architecture, build_embedder
from embedder_helpers.models.embedder import Embedder
from embedder_helpers.models.presets import Preset


class ReusableModels:
    """The last embedder with a RoBERTa, for the next experiment of the same architecture.

    One is held, since with a classifier and its optimizer it takes four times RoBERTa's weights of
    the device's memory; so plans should run in the order of `by_architecture`. The pretrained
    weights, which training overwrites, are kept in the main memory.
    """

    def __init__(self):
        self.release()

    def release(self) -> None:
        """Free the models; embedders that were returned keep theirs."""
        self._architecture: tuple[Any, ...] | None = None
        self._embedder: Embedder | None = None
        self._pretrained: list[np.ndarray] = []
        self._classifier: Classifier | None = None
        self._classifier_options: tuple[Any, ...] = ()
        gc.collect()  # Keras models hold reference cycles

    def release_unless_read(self, plans: Sequence[Plan]) -> None:
        """Free the models if none of the plans has their architecture."""
        wanted = [architecture(plan.experiment, plan.presets) for plan in plans]
        if self._embedder and self._architecture not in wanted:
            self.release()

    def build_embedder(self, experiment: Experiment, presets: dict[str, Preset]) -> Embedder:
        """An embedder in the state in which `architectures.build_embedder` returns it.

        The embedder returned before must not be used any more, unless nothing trains its kind.

        Args:
            experiment: settings of the embedder.
            presets: result of `find_presets`.

        Raises:
            InputError: a preset cannot be used.
        """
        if experiment.kind in FROZEN:
            # Gemma alone costs next to nothing, and a ready encoder is read by one experiment.
            return build_embedder(experiment, presets)
        wanted = architecture(experiment, presets)
        if self._embedder and self._architecture == wanted:
            self._embedder.roberta.set_weights(self._pretrained)
            self._embedder.prepare(experiment, presets)
            return self._embedder
        self.release()
        embedder = build_embedder(experiment, presets)
        self._architecture, self._embedder = wanted, embedder
        self._pretrained = embedder.roberta.get_weights()
        return embedder

    def build_classifier(
        self, embedder: Embedder, classes: int, clip_norm: float | None
    ) -> Classifier:
        """A classifier for `train_classifier`; the arguments are those of `build_classifier`.

        Args:
            embedder: returned by `build_embedder`.
            classes: number of classes.
            clip_norm: as in the Experiment.
        """
        options = classes, clip_norm
        if self._classifier is None or self._classifier_options != options:
            self._classifier, self._classifier_options = None, ()
            gc.collect()  # of the one before, with its optimizer
            self._classifier = build_classifier(embedder.model, *options)
            self._classifier_options = options
        return self._classifier

    def has_classifier(self, plan: Plan) -> bool:
        """Whether the classifier that a plan trains is built already."""
        return classifier_key(plan) == (self._architecture, *self._classifier_options)


def classifier_key(plan: Plan) -> tuple[Any, ...]:
    """What plans that train have in common if they can share a classifier."""
    experiment = plan.experiment
    return architecture(experiment, plan.presets), len(plan.task.classes), experiment.clip_norm


def by_architecture(plans: Sequence[Plan]) -> list[Plan]:
    """The plans in an order in which those of one architecture, and classifier, are together."""
    keys = [classifier_key(plan) for plan in plans]
    architectures, classifiers = list(dict.fromkeys(k[0] for k in keys)), list(dict.fromkeys(keys))

    def place(number: int) -> tuple[int, int]:
        return architectures.index(keys[number][0]), classifiers.index(keys[number])

    return [plans[number] for number in sorted(range(len(plans)), key=place)]

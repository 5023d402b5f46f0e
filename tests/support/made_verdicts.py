"""Made-up results with predictions on disk, for tests of the verdict."""

import dataclasses

import numpy as np
from made_results import result

from embedder_helpers.results.predictions import Predictions, write_predictions
from embedder_helpers.results.result import write_result

CLASSES = np.array(["rain", "snow", "sun"])
SCORED, VALIDATION, FIT = 400, 200, 900
SEEDS = (1, 2, 3)


class MadeFolder:
    """A folder of results and predictions; `results` are those that were added.

    Every text is as hard for each embedder. A text is right where its number, drawn once for all
    embedders and shifted a little by the seed, is below the accuracy.
    """

    def __init__(self, path, scored=SCORED, noise=0.03):
        self.path, self.results = path, []
        generator = np.random.default_rng(0)
        self.hardness = generator.permutation(scored) / scored
        self.validation_hardness = generator.permutation(VALIDATION) / VALIDATION
        self.labels = generator.integers(0, 3, scored)
        self.validation_labels = generator.integers(0, 3, VALIDATION)
        self.noise = noise

    def add(self, kind="hybrid", accuracy=0.8, cutoff=8, seeds=SEEDS, **options):
        """Add an embedder whose head has an accuracy, by seed; returns its results.

        Options are settings, and `validation` (its accuracy there), `shift` (by which accuracies
        differ from seed to seed), `head` and `predictions` (whether there are any), `selection`
        and `p_values` by cutoff, `texts` (number of training texts).
        """
        validation = options.pop("validation", accuracy)
        shift = options.pop("shift", 0.0)
        has_head = options.pop("head", True)
        has_predictions = options.pop("predictions", has_head)
        fields = {
            "layer_selection": options.pop("selection", None),
            "layer_p_values": options.pop("p_values", None),
        }
        fit = options.pop("texts", FIT)
        cutoffs = (cutoff,) if kind in ("hybrid", "gemma_only") else ()
        made = []
        for i, seed in enumerate(seeds):
            one = result(kind, cutoffs, accuracy=accuracy - 0.05, seed=seed, **options)
            level = accuracy + shift * (i - (len(seeds) - 1) / 2)
            said = self.predict(level, validation, seed, kind)
            head = {"accuracy": float(said.right.mean()), "f1": 0.5} if has_head else None
            counts = {"scored": len(self.labels), "fit": fit}
            one = dataclasses.replace(one, head=head, task=one.task | {"texts": counts}, **fields)
            path = self.path / f"{kind}-{len(self.results)}.json"
            write_result(one, path)
            if has_predictions:
                write_predictions(said, path)
            self.results.append(one)
            made.append(one)
        return made

    def predict(self, accuracy, validation, seed, kind):
        generator = np.random.default_rng([seed, *kind.encode()])
        return Predictions(
            CLASSES,
            self.labels,
            self._logits(generator, self.labels, self.hardness, accuracy),
            self.validation_labels,
            self._logits(generator, self.validation_labels, self.validation_hardness, validation),
        )

    def _logits(self, generator, labels, hardness, accuracy):
        """Logits whose margin is the distance from the accuracy, so that the hard are unsure."""
        margins = accuracy - hardness + self.noise * generator.normal(size=len(labels))
        wrong = (labels + generator.integers(1, 3, len(labels))) % 3
        said = np.where(margins > 0, labels, wrong)
        return (5 * np.abs(margins)[:, None] * (said[:, None] == np.arange(3))).astype("float32")

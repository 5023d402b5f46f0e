"""The embedders that a verdict compares: results of one task with what each says of each text.

Results that differ in their seed only are one contender. Which hybrid speaks for the hybrids, where
there are several cutoffs, is chosen here, by validation texts alone.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from embedder_helpers.config import stored_experiment
from embedder_helpers.errors import InputError, show_list
from embedder_helpers.results.confidence_set import elimination_p_values
from embedder_helpers.results.data_sets import data_key, data_labels
from embedder_helpers.results.intervals import Interval
from embedder_helpers.results.naming import is_validation_score, relevant_settings
from embedder_helpers.results.paired import crossed_interval, macro_f1_values
from embedder_helpers.results.predictions import Predictions, read_predictions
from embedder_helpers.results.result import Result
from embedder_helpers.results.tables import find_results

KIND_NAMES = {
    "roberta_only": "RoBERTa alone",
    "gemma_only": "Gemma alone",
    "hybrid": "hybrid",
    "encoder_only": "ready encoder",
}
CONTROL_NAMES = {
    "random_weights": "random weights",
    "shuffled": "states of other texts",
    "noise": "noise",
}
WITHOUT_ROBERTA = ("gemma_only", "encoder_only")  # nothing is trained but a linear classifier
SELECTED = ("cheapest", "auto")  # of `llm_layers`, in the order they are preferred in
# Settings in which those that a verdict compares may differ.
NOT_THE_RECIPE = {"kind", "seed", "llm_layers", "llm_control", "task", "task_data"}
LEVEL = 0.95  # of the set of cutoffs that cannot be told from the best

Layers = tuple[int, ...] | str


@dataclass(frozen=True, eq=False)
class Contender:
    """One embedder with its seeds.

    Attributes:
        kind: of embedder.
        control: what takes the place of what Gemma knows; None: nothing does.
        texts_per_label: training texts of each label; None: all there are.
        layers: cutoffs, or how they were selected; empty without Gemma.
        results: by seed, in ascending order.
        predictions: by seed, of those results that have any.
    """

    kind: str
    control: str | None
    texts_per_label: int | None
    layers: Layers
    results: dict[int, Result]
    predictions: dict[int, Predictions]

    @property
    def name(self) -> str:
        """`RoBERTa alone`, `hybrid, random weights`."""
        control = [CONTROL_NAMES.get(self.control, self.control)] if self.control else []
        return ", ".join([KIND_NAMES.get(self.kind, self.kind), *control])

    @property
    def first(self) -> Result:
        """The result of the first seed."""
        return next(iter(self.results.values()))

    @property
    def cutoffs(self) -> list[int]:
        """The largest kept layer of each seed, without repetition; empty without Gemma."""
        return sorted({max(result.cutoffs) for result in self.results.values() if result.cutoffs})

    @property
    def is_seedless(self) -> bool:
        """Whether nothing in it is random, so that its one result goes with every seed.

        Training texts that are drawn are random.
        """
        is_fixed = self.kind in WITHOUT_ROBERTA and self.texts_per_label is None
        return is_fixed and len(self.results) == 1

    @cached_property
    def right(self) -> dict[int, np.ndarray]:
        """`(texts,)` by seed, whether the head's label is right."""
        return {seed: said.right for seed, said in self.predictions.items()}

    def accuracy(self) -> Interval | None:
        """The head's accuracy over seeds and texts; None without predictions."""
        return self._interval([said.right for said in self.predictions.values()])

    def macro_f1(self) -> Interval | None:
        """The head's macro F1 over seeds and texts; None without predictions."""
        return self._interval(
            [macro_f1_values(said.labels, said.predicted) for said in self.predictions.values()]
        )

    def _interval(self, rows: Sequence[np.ndarray]) -> Interval | None:
        """The interval of a share, which is from 0 to 1."""
        if not rows:
            return None
        return Interval(*np.clip(_interval_of(np.stack(rows), self.is_seedless), 0, 1).tolist())

    def validation_right(self) -> np.ndarray | None:
        """`(validation texts,)` share of seeds whose head is right; None if it is not known."""
        rows = [
            said.validation_logits.argmax(1) == said.validation_labels
            for said in self.predictions.values()
        ]
        is_known = rows and len(rows[0]) and len(set(map(len, rows))) == 1
        return np.mean(rows, axis=0) if is_known else None


def _interval_of(values: np.ndarray, is_seedless: bool) -> Interval:
    """The CI over seeds and texts; none if there is one seed where there should be more."""
    interval = crossed_interval(values)
    is_known = len(values) > 1 or is_seedless
    return interval if is_known else Interval(interval.mean, np.nan, np.nan)


# === Pairs ===


def paired_differences(first: Contender, second: Contender) -> np.ndarray | None:
    """`(seeds, texts)` first right minus second right: 1, 0 or -1, by the seeds both have.

    Returns:
        None if one of them has no predictions, or they have no seed in common.
    """
    pairs = list(_pairs(first, second, lambda contender: contender.right))
    return np.stack([one.astype(float) - other for one, other in pairs]) if pairs else None


def difference(first: Contender, second: Contender) -> Interval | None:
    """The difference of the heads' accuracies, first minus second, over seeds and texts."""
    differences = paired_differences(first, second)
    if differences is None:
        return None
    return _interval_of(differences, first.is_seedless and second.is_seedless)


def common_seeds(first: Contender, second: Contender) -> list[int]:
    """The seeds that both have; those of one if the other does not depend on them."""
    if first.is_seedless or second.is_seedless:
        return list((second if first.is_seedless else first).results)
    return [seed for seed in first.results if seed in second.results]


def _pairs(
    first: Contender, second: Contender, values: Callable[[Contender], Mapping[int, Any]]
) -> Any:
    ones, others = values(first), values(second)
    if not ones or not others:
        return
    for seed in common_seeds(first, second):
        one, other = (
            next(iter(of.values())) if contender.is_seedless else of.get(seed)
            for contender, of in ((first, ones), (second, others))
        )
        if one is not None and other is not None:
            yield one, other


def paired_predictions(
    first: Contender, second: Contender
) -> list[tuple[Predictions, Predictions]]:
    """The predictions of both for each seed that both have."""
    return list(_pairs(first, second, lambda contender: contender.predictions))


# === From results ===


def make_contenders(results: Sequence[Result], folder: str | Path) -> list[Contender]:
    """The contenders of one task, in the order of their first results.

    Args:
        results: of one task.
        folder: of their files, beside which the predictions are.

    Raises:
        InputError: there are none; several tasks or splits; two of one seed that differ in some
            other setting; predictions of different texts.
    """
    if not results:
        raise InputError("there are no results: run an experiment first")
    if len(set(map(data_key, results))) > 1:
        names = show_list(dict.fromkeys(data_labels(results)))
        raise InputError(f"a verdict is of one task, but the results are of {names}")
    if len(set(map(is_validation_score, results))) > 1:
        raise InputError("scored_split differs: a verdict is of one split, so leave some out")
    paths = _result_paths(folder)
    groups: dict[tuple, dict[int, Result]] = {}
    for result in results:
        group = groups.setdefault(_key(result), {})
        seed = result.experiment["seed"]
        _check_equal(group.get(seed, result), result)
        group[seed] = result
    for key, group in groups.items():
        _check_recipe(key, list(group.values()))
    contenders = [_make(key, group, paths) for key, group in groups.items()]
    _check_texts(contenders)
    return contenders


def _make(key: tuple, group: Mapping[int, Result], paths: Mapping[str, Path]) -> Contender:
    kind, control, texts_per_label, layers, _ = key
    by_seed = dict(sorted(group.items()))
    found = {seed: paths.get(_identity(result)) for seed, result in by_seed.items()}
    predictions = {seed: read_predictions(path) for seed, path in found.items() if path}
    known = {seed: said for seed, said in predictions.items() if said is not None}
    return Contender(kind, control, texts_per_label, layers, by_seed, known)


def _key(result: Result) -> tuple:
    """What the results of one contender have in common."""
    experiment = result.experiment
    kind, layers = experiment["kind"], experiment.get("llm_layers")
    has_gemma = bool(result.cutoffs)
    texts_per_label = experiment.get("train_texts_per_label")
    if kind in WITHOUT_ROBERTA and not stored_experiment(experiment).needs_training_data():
        texts_per_label = None  # it is not fitted to any
    return (
        kind,
        experiment.get("llm_control") if has_gemma else None,
        texts_per_label,
        layers if layers in SELECTED and has_gemma else tuple(result.cutoffs),
        experiment.get("probe") if kind in WITHOUT_ROBERTA else None,
    )


def _result_paths(folder: str | Path) -> dict[str, Path]:
    """The result files of a folder by what tells their results apart; none if there are none."""
    try:
        found = find_results(folder)
    except InputError:
        return {}
    names = {path.name: path for path in sorted(Path(folder).rglob("*.json"), reverse=True)}
    return {_identity(result): names[name] for name, result in found.items() if name in names}


def _identity(result: Result) -> str:
    values = [result.experiment, result.inputs, result.cutoffs]
    return json.dumps(values, sort_keys=True)


def _check_equal(one: Result, other: Result) -> None:
    """Raise InputError if two results of a seed are of different settings."""
    first, second = relevant_settings(one), relevant_settings(other)
    _raise_if_different({name for name in first if first[name] != second.get(name)}, one)


def _check_recipe(key: tuple, group: Sequence[Result]) -> None:
    """Raise InputError if the results of a contender differ in more than their seeds."""
    values: dict[str, set] = {}
    for result in group:
        for name, value in relevant_settings(result).items():
            values.setdefault(name, set()).add(value)
    _raise_if_different({name for name, several in values.items() if len(several) > 1}, group[0])


def _raise_if_different(names: set[str], result: Result) -> None:
    names -= NOT_THE_RECIPE
    if names:
        kind = KIND_NAMES.get(result.experiment["kind"], result.experiment["kind"])
        raise InputError(
            f"results of {kind} differ in {', '.join(sorted(names))}: a verdict is of one recipe, "
            "so give it the results of one"
        )


def _check_texts(contenders: Sequence[Contender]) -> None:
    """Raise InputError if predictions are of different texts."""
    every = [said for contender in contenders for said in contender.predictions.values()]
    truths = [said.classes[said.labels] for said in every]  # -1 has no label, and is compared below
    for said, truth in zip(every, truths, strict=True):
        is_same = len(truth) == len(truths[0])
        if is_same:
            known = (said.labels >= 0) & (every[0].labels >= 0)
            is_same = np.array_equal(truth[known], truths[0][known])
        if not is_same:
            raise InputError(
                "predictions are of different texts: delete the folder `predictions` and run the "
                "experiments again"
            )


# === Choosing ===


def select(
    contenders: Sequence[Contender],
    kind: str,
    *,
    control: str | None = None,
    texts_per_label: int | None = None,
    like: Contender | None = None,
) -> Contender | None:
    """The contender of a kind that speaks for it; None if there is none.

    Args:
        contenders: of one task.
        kind: of embedder.
        control: of the contender.
        texts_per_label: of the contender.
        like: another contender, whose cutoffs are preferred. None: the cutoff is chosen by
            `choose_by_validation`.
    """
    candidates = [
        contender
        for contender in contenders
        if (contender.kind, contender.control, contender.texts_per_label)
        == (kind, control, texts_per_label)
    ]
    candidates.sort(key=lambda contender: not contender.predictions)  # those with a head first
    for is_preferred in (
        lambda contender: like and contender.layers == like.layers,
        lambda contender: like and contender.cutoffs == like.cutoffs,
    ):
        if preferred := list(filter(is_preferred, candidates)):
            return preferred[0]
    return choose_by_validation(candidates) if candidates else None


def choose_by_validation(candidates: Sequence[Contender]) -> Contender:
    """One of several contenders that differ in their cutoffs, chosen without the scored texts.

    The one that selected its cutoff itself, or else the cheapest of those that cannot be told from
    the best on the validation texts, or else the best by the last epoch's validation accuracy.
    """
    for selected in SELECTED:
        for candidate in candidates:
            if candidate.layers == selected:
                return candidate
    if len(candidates) == 1:
        return candidates[0]
    table = validation_table(candidates)
    if table is not None and len(table) == len(candidates):
        cheapest = table.loc[table["p_value"] > 1 - LEVEL, "cutoff"].min()
        return min(
            (candidate for candidate in candidates if max(candidate.cutoffs) == cheapest),
            key=lambda candidate: len(candidate.layers),
        )
    return max(candidates, key=_last_validation_accuracy)


def validation_table(hybrids: Sequence[Contender]) -> pd.DataFrame | None:
    """Accuracy on the validation texts by cutoff, and what tells cutoffs apart.

    Returns:
        Columns `cutoff`, `accuracy` and `p_value` in the model confidence set, paired over
        validation texts (a text's score is the share of seeds that get it right); None if no
        predictions are known, or not of the same texts.
    """
    rows = {hybrid: hybrid.validation_right() for hybrid in hybrids}
    known = {hybrid: right for hybrid, right in rows.items() if right is not None}
    if not known or len({len(right) for right in known.values()}) > 1:
        return None
    scores = np.stack(list(known.values()))
    return pd.DataFrame(
        {
            "cutoff": [max(hybrid.cutoffs) for hybrid in known],
            "accuracy": scores.mean(1),
            "p_value": elimination_p_values(scores),
        }
    ).sort_values("cutoff", ignore_index=True)


def _last_validation_accuracy(contender: Contender) -> float:
    accuracies = [
        result.history[-1]["val_accuracy"]
        for result in contender.results.values()
        if result.history
    ]
    return float(np.mean(accuracies)) if accuracies else 0.0

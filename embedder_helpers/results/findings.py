"""What a verdict rests on: the difference, its controls, the layer, the texts, and the cost.

Numbers only; `wording` puts them into a sentence. Every score is the accuracy of the head, the
classifier that was trained on all those training texts, unless some head is missing.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd

from embedder_helpers.errors import InputError
from embedder_helpers.results.cascade import cascade_curve, confidence, fit_temperature
from embedder_helpers.results.comparison import paired_difference, score_interval
from embedder_helpers.results.contenders import (
    CONTROL_NAMES,
    LEVEL,
    NOT_THE_RECIPE,
    Contender,
    common_seeds,
    difference,
    paired_differences,
    paired_predictions,
    select,
    validation_table,
)
from embedder_helpers.results.disagreement import Disagreement, disagreement
from embedder_helpers.results.intervals import Interval
from embedder_helpers.results.naming import relevant_settings
from embedder_helpers.results.paired import Needed, crossed_interval, needed_to_settle

HEAD, PROTOCOL = "head", "protocol"  # whose accuracy the score is
POINTS_PER_DOUBLING = 0.5  # of accuracy in percent, that twice the time for a text should give
UNTRAINED_LABEL = "(no training text has it)"


class Control(NamedTuple):
    """A hybrid whose Gemma knows nothing: what it gains is capacity.

    Attributes:
        gain: its accuracy minus that of RoBERTa alone.
        ahead: the hybrid's accuracy minus its.
    """

    gain: Interval
    ahead: Interval


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


class Cost(NamedTuple):
    """Milliseconds for a text in the largest batches that were measured.

    Attributes:
        roberta: of RoBERTa alone.
        hybrid: of the hybrid at its cutoff.
        batch: texts in a batch.
        device: that it was measured on.
    """

    roberta: float
    hybrid: float
    batch: int
    device: str

    @property
    def times(self) -> float:
        """How many times RoBERTa's time the hybrid takes."""
        return self.hybrid / self.roberta


@dataclass(frozen=True, eq=False, kw_only=True)
class Findings:
    """All numbers of a verdict. Accuracies and differences are fractions, not percent.

    Attributes:
        task: name of the task.
        texts: number of training texts; None if nothing was trained.
        scored_texts: number of texts that are scored.
        seeds: number of seeds that hybrid and RoBERTa alone have in common, with predictions
            where the score is the head's.
        score: `head` or `protocol`, whose accuracy was compared; the protocol's where there are no
            predictions of heads.
        difference: accuracy of the hybrid minus that of RoBERTa alone, paired over seeds and texts.
        needed: what would settle it; None with a single seed, or by protocol scores.
        cutoffs: of the hybrid; several if it chose others for other seeds.
        num_layers: of the complete Gemma.
        layers: by `cutoff` (0: RoBERTa alone) the validation `accuracy`, `p_value`,
            `ms_per_text` and `frontier`, whether none is both faster and better; None if no
            validation scores are known.
        layers_by: `linear probe` or `hybrid`, whose validation accuracy that is.
        layer_set: cutoffs that cannot be told from the best, 95 %; None if they were not compared.
        controls: by name: `random_weights`, `shuffled`, `noise`.
        learning_curve: a row per number of training texts and kind; see `_learning_curve`.
        disagreement: texts that only one gets right by most seeds; None without predictions.
        labels: a row per label: `texts`, recall of both, `difference`, `low`, `high`, and the
            number of texts that only one gets right; None without predictions.
        scored: a row per scored text; see `_scored_table`. None without predictions.
        cost: of the hybrid and RoBERTa alone; None if it was not measured.
        cost_table: all that was measured, by cutoff and batch; None if nothing was.
        cascade: None without predictions of validation texts.
        encoder: name of the ready encoder; None if there is none.
        encoder_difference: accuracy of the hybrid minus the ready encoder's.
        unlike: settings in which the hybrid and RoBERTa alone, or a control, differ though they
            should not.
        contenders: those in the table, in its order.
        points_per_doubling: points of accuracy that twice the time should give.
    """

    task: str
    texts: int | None
    scored_texts: int
    seeds: int
    score: str
    difference: Interval
    needed: Needed | None
    cutoffs: list[int]
    num_layers: int | None
    layers: pd.DataFrame | None
    layers_by: str | None
    layer_set: list[int] | None
    controls: dict[str, Control]
    learning_curve: pd.DataFrame
    disagreement: Disagreement | None
    labels: pd.DataFrame | None
    scored: pd.DataFrame | None
    cost: Cost | None
    cost_table: pd.DataFrame | None
    cascade: Cascade | None
    encoder: str | None
    encoder_difference: Interval | None
    unlike: list[str]
    contenders: list[Contender]
    points_per_doubling: float

    @property
    def cheapest(self) -> int | None:
        """The cheapest cutoff that cannot be told from the best."""
        return min(self.layer_set) if self.layer_set else None

    @property
    def answer(self) -> str:
        """`better`, `worse`, `not settled`, or `costs more than it gives`."""
        if not (self.difference.low > 0 or self.difference.high < 0):  # NaN with a single seed
            return "not settled"
        if self.difference.high < 0:
            return "worse"
        return "better" if self.is_worth_its_cost else "costs more than it gives"

    @property
    def is_worth_its_cost(self) -> bool:
        """Whether each doubling of the time gives as many points as it should.

        For the hybrid on all texts, or for a cascade that is better than RoBERTa alone. True where
        the cost is not known.
        """
        return self.cost is None or self.is_worth_for_every_text or self.is_worth_as_cascade

    @property
    def is_worth_for_every_text(self) -> bool:
        """The same of the hybrid alone; False without its cost."""
        return self.cost is not None and self._is_worth(self.difference, self.cost.times)

    @property
    def is_worth_as_cascade(self) -> bool:
        """The same of the cascade alone; False without a cascade, or its cost."""
        if self.cost is None or self.cascade is None or self.cascade.share in (0, 1):
            return False
        times = self.cascade.milliseconds / self.cost.roberta
        return self.cascade.gain.low > 0 and self._is_worth(self.cascade.gain, times)

    def _is_worth(self, gain: Interval, times: float) -> bool:
        return 100 * gain.mean >= self.points_per_doubling * np.log2(times)

    @property
    def knowledge(self) -> str | None:
        """What the gain is: `knowledge`, `capacity` or `not settled`; None without gain or controls.

        It is capacity if some control gives at least half of it, and is better than RoBERTa alone
        itself, its interval above 0. It is knowledge if none gives half, the hybrid is ahead of
        each, and random weights are among them.
        """
        if not (self.difference.low > 0 and self.controls):
            return None
        half = [self.controls[name].gain for name in self.half_controls]
        if any(gain.low > 0 for gain in half):
            return "capacity"
        is_ahead = all(control.ahead.low > 0 for control in self.controls.values()) and not half
        return "knowledge" if is_ahead and "random_weights" in self.controls else "not settled"

    @property
    def half_controls(self) -> list[str]:
        """The controls that give at least half of the gain."""
        half = self.difference.mean / 2
        return [name for name, control in self.controls.items() if control.gain.mean >= half]


def find(
    contenders: Sequence[Contender],
    *,
    cost_table: pd.DataFrame | None = None,
    texts: Sequence[str] | None = None,
    points_per_doubling: float = POINTS_PER_DOUBLING,
) -> Findings:
    """Compute the findings of one task; what its results do not have is left out.

    Args:
        contenders: of `make_contenders`.
        cost_table: `cutoff` (0: RoBERTa alone), `batch`, `ms_per_text`, `device`.
        texts: the scored texts, in their order.
        points_per_doubling: points of accuracy that twice the time should give.

    Raises:
        InputError: no hybrid and RoBERTa alone that were trained on as many texts, with a seed in
            common.
    """
    hybrid, roberta = _main_pair(contenders)
    size, first = hybrid.texts_per_label, hybrid.first
    others = {
        "gemma": select(contenders, "gemma_only", texts_per_label=size, like=hybrid),
        "encoder": select(contenders, "encoder_only", texts_per_label=size),
    }
    controls = {
        control: select(contenders, "hybrid", control=control, texts_per_label=size, like=hybrid)
        for control in CONTROL_NAMES
    }
    # At another cutoff it would be a control of another hybrid.
    controls = {
        name: control if control and control.cutoffs == hybrid.cutoffs else None
        for name, control in controls.items()
    }
    gemma_control = select(
        contenders, "gemma_only", control="random_weights", texts_per_label=size, like=hybrid
    )
    differences = paired_differences(hybrid, roberta)
    has_heads = differences is not None
    cost = _cost(cost_table, hybrid)
    layers, layers_by = _layer_table(contenders, hybrid, roberta, cost_table)
    shown = [
        roberta, others["gemma"], hybrid, *controls.values(), gemma_control, others["encoder"],
    ]  # fmt: skip
    encoder = others["encoder"]
    return Findings(
        task=first.task["name"],
        texts=first.task["texts"].get("fit"),
        scored_texts=first.task["texts"].get("scored", 0),
        seeds=len(differences if has_heads else common_seeds(hybrid, roberta)),
        score=HEAD if has_heads else PROTOCOL,
        difference=compared(hybrid, roberta, has_heads),
        needed=needed_to_settle(differences) if has_heads else None,
        cutoffs=hybrid.cutoffs,
        num_layers=first.num_layers,
        layers=layers,
        layers_by=layers_by,
        layer_set=_layer_set(layers),
        controls=_controls(controls, hybrid, roberta, has_heads),
        learning_curve=_learning_curve(contenders, hybrid, has_heads),
        disagreement=_disagreement(hybrid, roberta),
        labels=_label_table(hybrid, roberta),
        scored=_scored_table(hybrid, roberta, texts),
        cost=cost,
        cost_table=cost_table,
        cascade=_cascade(hybrid, roberta, cost),
        encoder=encoder and (encoder.first.experiment.get("encoder_preset") or encoder.name),
        encoder_difference=encoder and compared(hybrid, encoder, has_heads),
        unlike=_unlike(hybrid, [roberta, *filter(None, controls.values())]),
        contenders=[contender for contender in shown if contender],
        points_per_doubling=points_per_doubling,
    )


def _main_pair(contenders: Sequence[Contender]) -> tuple[Contender, Contender]:
    """The hybrid and RoBERTa alone on all training texts, or on the most that both were given."""
    sizes = {contender.texts_per_label for contender in contenders}
    for size in sorted(sizes, key=lambda size: np.inf if size is None else size, reverse=True):
        roberta = select(contenders, "roberta_only", texts_per_label=size)
        hybrid = select(contenders, "hybrid", texts_per_label=size)
        if hybrid and roberta and common_seeds(hybrid, roberta):
            return hybrid, roberta
    raise InputError(
        "a verdict compares a hybrid with RoBERTa alone, but the results have no two of these with "
        "a seed and a number of training texts in common: run both with the same settings"
    )


def _unlike(hybrid: Contender, others: Sequence[Contender]) -> list[str]:
    """The settings that a hybrid shares with others, with another value."""
    ours = relevant_settings(hybrid.first)
    differing = [
        name
        for other in others
        for name, value in relevant_settings(other.first).items()
        if name in ours and ours[name] != value
    ]
    return [name for name in dict.fromkeys(differing) if name not in NOT_THE_RECIPE]


def compared(first: Contender, second: Contender, has_heads: bool) -> Interval | None:
    """The difference of two accuracies, of the heads or else of the protocol."""
    if has_heads:
        return difference(first, second)
    results = list(first.results.values()), list(second.results.values())
    return paired_difference(*results, "accuracy")


def accuracy(contender: Contender, has_heads: bool) -> Interval | None:
    """An accuracy, of the head or else of the protocol."""
    if has_heads:
        return contender.accuracy()
    return score_interval(list(contender.results.values()), "accuracy")


def _controls(
    controls: Mapping[str, Contender | None],
    hybrid: Contender,
    roberta: Contender,
    has_heads: bool,
) -> dict[str, Control]:
    found = {}
    for name, control in controls.items():
        if control is None:
            continue
        gain = compared(control, roberta, has_heads)
        ahead = compared(hybrid, control, has_heads)
        if gain and ahead:
            found[name] = Control(gain, ahead)
    return found


# === Layers and cost ===


def _layer_table(
    contenders: Sequence[Contender],
    hybrid: Contender,
    roberta: Contender,
    cost_table: pd.DataFrame | None,
) -> tuple[pd.DataFrame | None, str | None]:
    """Validation accuracy by cutoff, and of what: see `Findings.layers`.

    Of the linear probes by which the hybrid's cutoff was selected, or Gemma's own; else of hybrids.
    """
    probed = select(contenders, "gemma_only", texts_per_label=hybrid.texts_per_label)
    selected = next((c for c in (hybrid, probed) if c and c.first.layer_selection), None)
    if selected:
        selection, p_values = selected.first.layer_selection, selected.first.layer_p_values or {}
        table, by = (
            pd.DataFrame(
                {
                    "cutoff": list(map(int, selection)),
                    "accuracy": list(selection.values()),
                    "p_value": [p_values.get(cutoff, np.nan) for cutoff in selection],
                }
            ).sort_values("cutoff", ignore_index=True),
            "linear probe",
        )
    else:
        hybrids = [
            contender
            for contender in contenders
            if (contender.kind, contender.control, contender.texts_per_label)
            == ("hybrid", None, hybrid.texts_per_label)
            and len(contender.layers) == 1
        ]
        table, by = validation_table(hybrids), "hybrid"
        if table is None:
            return None, None
        if len(table) == 1:
            table["p_value"] = np.nan  # nothing to choose from
        alone = roberta.validation_right()
        if alone is not None:
            row = {"cutoff": 0, "accuracy": alone.mean(), "p_value": np.nan}
            table = pd.concat([pd.DataFrame([row]), table], ignore_index=True)
    times = _milliseconds(cost_table)
    table["ms_per_text"] = table["cutoff"].map(times).astype(float)
    table["frontier"] = _frontier(table["ms_per_text"], table["accuracy"])
    return table, by


def _layer_set(layers: pd.DataFrame | None) -> list[int] | None:
    if layers is None or layers["p_value"].isna().all():
        return None
    return layers.loc[layers["p_value"] > 1 - LEVEL, "cutoff"].tolist()


def _frontier(milliseconds: pd.Series, accuracy: pd.Series) -> list[bool]:
    """Whether no other is at least as fast and as good, and better in one of the two."""
    points = list(zip(milliseconds, accuracy, strict=True))
    return [
        not np.isnan(time)
        and not any(
            other <= time and best >= score and (other, best) != (time, score)
            for other, best in points
        )
        for time, score in points
    ]


def _milliseconds(cost_table: pd.DataFrame | None) -> dict[int, float]:
    """Milliseconds for a text by cutoff, in the largest batches."""
    if cost_table is None or cost_table.empty:
        return {}
    rows = cost_table[cost_table["batch"] == cost_table["batch"].max()]
    return dict(zip(rows["cutoff"].astype(int), rows["ms_per_text"].astype(float), strict=True))


def _cost(cost_table: pd.DataFrame | None, hybrid: Contender) -> Cost | None:
    """The cost of the hybrid's cutoff, the largest if it has several; None if it is not known."""
    times, cutoff = _milliseconds(cost_table), max(hybrid.cutoffs)
    if not {0, cutoff} <= times.keys() or not times[0]:
        return None
    row = cost_table.loc[cost_table["batch"].idxmax()]
    return Cost(times[0], times[cutoff], int(row["batch"]), str(row.get("device", "")))


# === Training texts ===


def _learning_curve(
    contenders: Sequence[Contender], main: Contender, has_heads: bool
) -> pd.DataFrame:
    """A row per number of training texts and kind, the smallest number first.

    Columns: `texts per label` (a number, or `all`), `training texts`, `kind`, `seeds`, `accuracy` with
    `accuracy low` and `accuracy high`, and `difference` to RoBERTa alone with `low` and `high`,
    95 % intervals over seeds (which draw the training texts) and scored texts.
    """
    sizes = {contender.texts_per_label for contender in contenders}
    rows = []
    for size in sorted(sizes, key=lambda size: np.inf if size is None else size):
        roberta = select(contenders, "roberta_only", texts_per_label=size)
        for kind in ("roberta_only", "gemma_only", "hybrid", "encoder_only"):
            contender = select(contenders, kind, texts_per_label=size, like=main)
            interval = contender and accuracy(contender, has_heads)
            if not interval:
                continue
            minus = None
            if roberta and kind != "roberta_only":
                minus = compared(contender, roberta, has_heads)
            minus = minus or Interval(np.nan, np.nan, np.nan)
            counts = [r.task["texts"].get("fit", np.nan) for r in contender.results.values()]
            rows.append(
                (size or "all", float(np.mean(counts)), contender.name, len(contender.results))
                + (*interval, *minus)
            )
    columns = ["texts per label", "training texts", "kind", "seeds"]
    columns += ["accuracy", "accuracy low", "accuracy high", "difference", "low", "high"]
    return pd.DataFrame(rows, columns=columns)


# === Where it falls ===


def _right(hybrid: Contender, roberta: Contender) -> tuple[np.ndarray, np.ndarray] | None:
    """`(seeds, texts)` whether each is right, by the seeds that both have."""
    pairs = paired_predictions(hybrid, roberta)
    if not pairs:
        return None
    ours, theirs = zip(*((one.right, other.right) for one, other in pairs), strict=True)
    return np.stack(ours), np.stack(theirs)


def _disagreement(hybrid: Contender, roberta: Contender) -> Disagreement | None:
    right = _right(hybrid, roberta)
    return disagreement(*right) if right else None


def _true_labels(contender: Contender) -> np.ndarray:
    """`(texts,)` of object: true labels."""
    said = next(iter(contender.predictions.values()))
    labels = said.classes.astype(object)[said.labels]
    labels[said.labels < 0] = UNTRAINED_LABEL
    return labels


def _label_table(hybrid: Contender, roberta: Contender) -> pd.DataFrame | None:
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


def _scored_table(
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


# === Cascade ===


def _cascade(hybrid: Contender, roberta: Contender, cost: Cost | None) -> Cascade | None:
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

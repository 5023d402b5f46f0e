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
from embedder_helpers.results.cascade_findings import Cascade, find_cascade
from embedder_helpers.results.comparison import paired_difference, score_interval
from embedder_helpers.results.contenders import (
    CONTROL_NAMES,
    NOT_THE_RECIPE,
    Contender,
    common_seeds,
    difference,
    paired_differences,
    select,
)
from embedder_helpers.results.disagreement import Disagreement
from embedder_helpers.results.intervals import Interval
from embedder_helpers.results.layer_findings import Cost, find_cost, layer_set, layer_table
from embedder_helpers.results.naming import relevant_settings
from embedder_helpers.results.paired import Needed, needed_to_settle
from embedder_helpers.results.text_findings import (
    find_disagreement,
    label_table,
    scored_table,
)

HEAD, PROTOCOL = "head", "protocol"  # whose accuracy the score is
POINTS_PER_DOUBLING = 0.5  # of accuracy in percent, that twice the time for a text should give


class Control(NamedTuple):
    """A hybrid whose Gemma knows nothing: what it gains is capacity.

    Attributes:
        gain: its accuracy minus that of RoBERTa alone.
        ahead: the hybrid's accuracy minus its.
    """

    gain: Interval
    ahead: Interval


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
        scored: a row per scored text; see `text_findings.scored_table`. None without predictions.
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
        """What the gain is: `knowledge`, `capacity`, `not settled`; None without gain or controls.

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
    cost = find_cost(cost_table, hybrid)
    layers, layers_by = layer_table(contenders, hybrid, roberta, cost_table)
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
        layer_set=layer_set(layers),
        controls=_controls(controls, hybrid, roberta, has_heads),
        learning_curve=_learning_curve(contenders, hybrid, has_heads),
        disagreement=find_disagreement(hybrid, roberta),
        labels=label_table(hybrid, roberta),
        scored=scored_table(hybrid, roberta, texts),
        cost=cost,
        cost_table=cost_table,
        cascade=find_cascade(hybrid, roberta, cost),
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


def _learning_curve(
    contenders: Sequence[Contender], main: Contender, has_heads: bool
) -> pd.DataFrame:
    """A row per number of training texts and kind, the smallest number first.

    Columns: `texts per label` (a number, or `all`), `training texts`, `kind`, `seeds`, `accuracy`
    with `accuracy low` and `accuracy high`, and `difference` to RoBERTa alone with `low` and
    `high`, 95 % intervals over seeds (which draw the training texts) and scored texts.
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

"""Which cutoff a hybrid should have: validation accuracy by layer, and what a text costs there."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from embedder_helpers.results.contenders import LEVEL, Contender, select, validation_table
from embedder_helpers.results.result import Result


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


def layer_table(
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
        table, by = _probe_table(selected.first), "linear probe"
    else:
        table, by = _hybrid_table(contenders, hybrid, roberta), "hybrid"
    if table is None:
        return None, None
    times = _milliseconds(cost_table)
    table["ms_per_text"] = table["cutoff"].map(times).astype(float)
    table["frontier"] = _frontier(table["ms_per_text"], table["accuracy"])
    return table, by


def _probe_table(result: Result) -> pd.DataFrame:
    """Accuracy and p-value by cutoff, of the probes by which a result's cutoff was selected."""
    p_values = result.layer_p_values or {}
    rows = [
        (int(cutoff), accuracy, p_values.get(cutoff, np.nan))
        for cutoff, accuracy in result.layer_selection.items()
    ]
    return pd.DataFrame(sorted(rows), columns=["cutoff", "accuracy", "p_value"])


def _hybrid_table(
    contenders: Sequence[Contender], hybrid: Contender, roberta: Contender
) -> pd.DataFrame | None:
    """The same of hybrids of one cutoff each, and of RoBERTa alone as cutoff 0."""
    hybrids = [
        contender
        for contender in contenders
        if (contender.kind, contender.control, contender.texts_per_label)
        == ("hybrid", None, hybrid.texts_per_label)
        and len(contender.layers) == 1
    ]
    table = validation_table(hybrids)
    if table is None:
        return None
    if len(table) == 1:
        table["p_value"] = np.nan  # nothing to choose from
    alone = roberta.validation_right()
    if alone is not None:
        row = {"cutoff": 0, "accuracy": alone.mean(), "p_value": np.nan}
        table = pd.concat([pd.DataFrame([row]), table], ignore_index=True)
    return table


def layer_set(layers: pd.DataFrame | None) -> list[int] | None:
    """Cutoffs that cannot be told from the best, 95 %; None if they were not compared."""
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


def find_cost(cost_table: pd.DataFrame | None, hybrid: Contender) -> Cost | None:
    """The cost of the hybrid's cutoff, the largest if it has several; None if it is not known."""
    times, cutoff = _milliseconds(cost_table), max(hybrid.cutoffs)
    if not {0, cutoff} <= times.keys() or not times[0]:
        return None
    row = cost_table.loc[cost_table["batch"].idxmax()]
    return Cost(times[0], times[cutoff], int(row["batch"]), str(row.get("device", "")))

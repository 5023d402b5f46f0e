"""The verdict: does the LLM help on this task, where, and what does it cost?

Results on disk go in, one sentence comes out, with the tables it rests on. `contenders` sorts the
results, `findings` computes, `wording` phrases.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from embedder_helpers.results.comparison import format_interval, score_interval
from embedder_helpers.results.contenders import Contender, make_contenders
from embedder_helpers.results.cost_file import read_cost
from embedder_helpers.results.findings import POINTS_PER_DOUBLING, Findings, find
from embedder_helpers.results.formats import replace_csv
from embedder_helpers.results.result import Result
from embedder_helpers.results.wording import notes, sentence
from embedder_helpers.utils.files import writable_folder


@dataclass(frozen=True, eq=False, kw_only=True)
class Verdict(Findings):
    """Findings, and what they say in words.

    Attributes:
        sentence: the verdict in one sentence of plain text.
        notes: sentences on what it has no room for.
    """

    sentence: str
    notes: list[str]

    def table(self) -> pd.DataFrame:
        """A row per embedder: scores with 95 % intervals, as text, and milliseconds for a text.

        Intervals of the head are over seeds and scored texts, those of the protocol over seeds and
        its runs.
        """
        return pd.DataFrame([self._row(contender) for contender in self.contenders])

    def _row(self, contender: Contender) -> dict[str, Any]:
        results = list(contender.results.values())
        return {
            "embedder": contender.name,
            "cutoff": " or ".join(map(str, contender.cutoffs)) or "-",
            "seeds": len(contender.predictions or results),
            "head accuracy": format_interval(
                contender.accuracy() or score_interval(results, "head accuracy")
            ),
            "head macro F1": format_interval(
                contender.macro_f1() or score_interval(results, "head macro F1")
            ),
            "protocol accuracy": format_interval(score_interval(results, "accuracy")),
            "ms a text": self._milliseconds(contender),
        }

    def _milliseconds(self, contender: Contender) -> float:
        """Of RoBERTa alone and hybrids, whose cost does not depend on what Gemma knows."""
        if self.cost is None or contender.kind not in ("roberta_only", "hybrid"):
            return np.nan
        if contender.kind == "roberta_only":
            return self.cost.roberta
        return self.cost.hybrid if contender.cutoffs == self.cutoffs else np.nan


def assemble(
    results: Sequence[Result],
    folder: str | Path,
    *,
    texts: Sequence[str] | None = None,
    cost: pd.DataFrame | None = None,
    points_per_doubling: float = POINTS_PER_DOUBLING,
) -> Verdict:
    """The verdict on one task, of results and the predictions and cost beside them.

    Args:
        results: of one task; at least a hybrid and RoBERTa alone. What is missing besides, such as
            controls, other numbers of training texts or a ready encoder, is left out.
        folder: of the result files; its `predictions` and `cost.json` are read.
        texts: the scored texts, in their order, for the table of texts.
        cost: what was measured, instead of `cost.json`: `cutoff` (0: RoBERTa alone), `batch`,
            `ms_per_text`, `device`.
        points_per_doubling: percentage points of accuracy that a doubling of the time for a text
            should give, or else the hybrid costs more than it gives.

    Raises:
        InputError: the results are of several tasks, splits or recipes; there is no hybrid and
            RoBERTa alone with a seed in common.
    """
    contenders = make_contenders(results, folder)
    if cost is None:
        cost = read_cost(Path(folder))
    findings = find(
        contenders, cost_table=cost, texts=texts, points_per_doubling=points_per_doubling
    )
    return Verdict(**vars(findings), sentence=sentence(findings), notes=notes(findings))


def write_tables(verdict: Verdict, folder: str | Path) -> list[Path]:
    """Write the tables of a verdict as CSV to a folder.

    Those it does not have are removed, because an earlier verdict's would contradict the page.

    Args:
        verdict: to write.
        folder: for `verdict.csv`, `labels.csv`, `texts.csv`, `learning_curve.csv`, `layers.csv` and
            `cascade.csv`; created if it does not exist.

    Returns:
        The files.

    Raises:
        InputError: the folder cannot be written.
    """
    folder = writable_folder(folder)
    tables = {
        "verdict": verdict.table(),
        "labels": verdict.labels,
        "texts": verdict.scored,
        "learning_curve": verdict.learning_curve,
        "layers": verdict.layers,
        "cascade": verdict.cascade and verdict.cascade.curve,
    }
    written = [replace_csv(table, folder / f"{name}.csv") for name, table in tables.items()]
    return [path for path in written if path]

"""The files of a verdict: tables, figures, and one page with the texts that decided it."""

from pathlib import Path

import pandas as pd

from embedder_helpers.models.architectures import Hybrid
from embedder_helpers.models.attribution import attribute
from embedder_helpers.results.verdict import Verdict, write_tables
from embedder_helpers.results.verdict_figures import write_figures
from embedder_helpers.results.verdict_page import PageFigure, PageTable, PageText, write_page

PAGE = "verdict.html"
SHOWN_TEXTS = 12  # at most, of those that only one classifier gets right, for each of them
MAX_LETTERS = 600  # of such a text, since each of its tokens costs a pass through RoBERTa

# Title, what is seen, and how to read it.
FIGURES = {
    "learning_curve": (
        "How many texts does it take?",
        "Accuracy of each classifier, and the hybrid's difference to RoBERTa alone, by the number "
        "of training texts",
        "Where the band of the difference lies above zero, the LLM helps.",
    ),
    "controls": (
        "Knowledge or capacity?",
        "What the hybrid and its controls gain over RoBERTa alone",
        "A control has the hybrid's size without what Gemma knows of the text. What it gains is "
        "capacity; the rest of the hybrid's gain is knowledge.",
    ),
    "cost": (
        "Which cutoff, at what cost?",
        "Validation accuracy of each cutoff beside milliseconds for a text",
        "On the line lie the cutoffs of which none is both faster and better.",
    ),
    "cascade": (
        "Does every text need the LLM?",
        "Accuracy of a cascade by the share of texts that reach Gemma",
        "RoBERTa alone answers where it is sure, the hybrid elsewhere.",
    ),
}


def write_verdict(verdict: Verdict, folder: str | Path, hybrid: Hybrid | None = None) -> Path:
    """Write a verdict's tables as CSV, its figures as PNG, and the page `verdict.html`.

    Costs a pass through Gemma for each text on the page, and one through RoBERTa for each of its
    tokens.

    Args:
        verdict: of `results.verdict.assemble`, with texts if the page is to have any.
        folder: for the files.
        hybrid: trained, for the colours of the tokens; None: texts without colours.

    Returns:
        The page's path.

    Raises:
        InputError: the folder cannot be written.
    """
    write_tables(verdict, folder)
    images = {path.stem: path.read_bytes() for path in write_figures(verdict, folder)}
    figures = [
        PageFigure(title, images[name], alternative, text)
        for name, (title, alternative, text) in FIGURES.items()
        if name in images
    ]
    return write_page(
        Path(folder) / PAGE,
        f"Does the LLM help on {verdict.task}?",
        verdict.sentence,
        figures,
        _tables(verdict),
        _texts(verdict, hybrid),
        verdict.notes,
    )


def _tables(verdict: Verdict) -> list[PageTable]:
    tables = [
        PageTable(
            "What is compared",
            "Scores with 95 % intervals; the head is the classifier that training leaves, or a "
            "logistic regression on all training texts; the protocol is MTEB's.",
            verdict.table(),
        )
    ]
    if verdict.labels is not None:
        caption = "The share of a label's texts that is recognized, and the paired difference."
        tables.append(PageTable("On which labels?", caption, verdict.labels))
    return tables


def decisive_texts(verdict: Verdict) -> pd.DataFrame:
    """Texts that only one of the two gets right, at most `SHOWN_TEXTS` each, as in `scored`.

    First those on which most seeds agree.
    """
    if verdict.scored is None:
        return pd.DataFrame(columns=["text", "label", "only"])
    scored = verdict.scored[verdict.scored["only"] != ""]
    agreed = (scored["hybrid"] - scored["RoBERTa"]).abs()
    scored = scored.loc[agreed.sort_values(ascending=False, kind="stable").index]
    return scored.groupby("only").head(SHOWN_TEXTS)


def _texts(verdict: Verdict, hybrid: Hybrid | None) -> list[PageText]:
    """The decisive texts, coloured by what Gemma says for the hybrid's label."""
    rows = decisive_texts(verdict).to_dict("records")
    rows = [row for row in rows if isinstance(row["text"], str) and row["text"].strip()]
    shown = [row["text"].strip()[:MAX_LETTERS] for row in rows]
    explained = attribute(hybrid, shown) if hybrid and shown else [None] * len(shown)
    return [
        PageText(
            text,
            row["label"],
            {"hybrid": row["hybrid says"], "RoBERTa": row["RoBERTa says"]},
            found.tokens if found else None,
            found.label if found else None,
        )
        for row, text, found in zip(rows, shown, explained, strict=True)
    ]

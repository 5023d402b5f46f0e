"""The files of a verdict: tables, figures, and one page with the texts that decided it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from embedder_helpers.models.architectures import Hybrid
from embedder_helpers.models.attribution import Attribution, attribute
from embedder_helpers.results.formats import replace_csv
from embedder_helpers.results.verdict import Verdict, write_tables
from embedder_helpers.results.verdict_figures import write_figures
from embedder_helpers.results.verdict_page import PageFigure, PageTable, PageText, write_page

PAGE, TOKENS = "verdict.html", "tokens.csv"
SHOWN_TEXTS = 12  # at most, of those that only one classifier gets right, for each of them
SHOWN_TOKENS = 15  # at most, of those texts
MAX_LETTERS = 600  # of such a text are coloured, since each token costs a pass through RoBERTa

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
        "capacity, not knowledge; whether the hybrid gains more is said above, if it is settled.",
    ),
    "cost": (
        "Which cutoff, at what cost?",
        "Validation accuracy of each cutoff beside milliseconds for a text",
        "Where several cutoffs have no other that is both faster and better, a line joins them.",
    ),
    "cascade": (
        "Does every text need the LLM?",
        "Accuracy of a cascade by the share of texts that reach Gemma",
        "RoBERTa alone answers where it is sure, the hybrid elsewhere.",
    ),
}


def write_verdict(verdict: Verdict, folder: str | Path, hybrid: Hybrid | None = None) -> Path:
    """Write a verdict's tables as CSV, its figures as PNG, and the page `verdict.html`.

    With a hybrid, `tokens.csv` has a row for each token of the page's texts: `text`, its row in
    `texts.csv`; `label`, whose probability is explained; and the columns of
    `models.attribution.Attribution.tokens`.

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
    decisive = decisive_texts(verdict)
    decisive = decisive[decisive["text"].map(_has_letters)]
    explained = _explain(hybrid, decisive["text"].tolist()) if hybrid and len(decisive) else []
    tokens = _tokens(decisive.index, explained)
    replace_csv(tokens, Path(folder) / TOKENS)
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
        _tables(verdict, tokens),
        _texts(decisive, explained),
        verdict.notes,
    )


def _tables(verdict: Verdict, tokens: pd.DataFrame) -> list[PageTable]:
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
    if len(tokens):
        caption = (
            "Of the texts below, those whose hidden states change the probability of the hybrid's "
            "label most when left out: below 0 they speak for it. Beside the token's embedding "
            "in RoBERTa, a state has the given length."
        )
        tables.append(PageTable("On which tokens?", caption, decisive_tokens(tokens)))
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


def decisive_tokens(tokens: pd.DataFrame) -> pd.DataFrame:
    """The tokens whose hidden states change most, at most `SHOWN_TOKENS`, by their sum.

    Args:
        tokens: as in `tokens.csv`.

    Returns:
        A row per `token`, in small letters: `occurrences`, the mean `change`, and the mean length
        of the projected state as a multiple of the token embedding's; NaN where RoBERTa reads none.
    """
    table = tokens.assign(
        token=tokens["token"].str.strip().str.lower(),
        size=tokens["change"].abs(),
        ratio=tokens["gemma_norm"] / tokens["token_norm"],
    )
    table = table[table["token"].fillna("") != ""]
    groups = table.groupby("token")
    found = pd.DataFrame(
        {
            "occurrences": groups.size(),
            "change": groups["change"].mean(),
            "length beside the token's": groups["ratio"].mean(),
        }
    )
    order = groups["size"].sum().sort_values(ascending=False, kind="stable").index
    return found.loc[order[:SHOWN_TOKENS]].reset_index()


def _has_letters(text: Any) -> bool:
    return isinstance(text, str) and bool(text.strip())


def _tokens(rows: Sequence[Any], explained: Sequence[Attribution]) -> pd.DataFrame:
    """The tokens of some texts, of which `rows` are the rows in `texts.csv`, as in `tokens.csv`."""
    tables = []
    for row, found in zip(rows, explained, strict=bool(explained)):
        table = found.tokens.assign(text=row, label=found.label)
        tables.append(table[["text", "label", *found.tokens.columns]])
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()


def _explain(hybrid: Hybrid, texts: Sequence[str]) -> list[Attribution]:
    """What explains the beginning of each text, with the tokens' places in the whole text."""
    blanks = [len(text) - len(text.lstrip()) for text in texts]
    explained = attribute(hybrid, [text.strip()[:MAX_LETTERS] for text in texts])
    return [
        found._replace(tokens=found.tokens.assign(**(found.tokens[["start", "end"]] + blank)))
        for found, blank in zip(explained, blanks, strict=True)
    ]


def _texts(decisive: pd.DataFrame, explained: Sequence[Attribution]) -> list[PageText]:
    """The decisive texts, their beginning coloured by what Gemma says for the hybrid's label."""
    rows = decisive.to_dict("records")
    return [
        PageText(
            row["text"],
            row["label"],
            {"hybrid": row["hybrid says"], "RoBERTa": row["RoBERTa says"]},
            found.tokens if found else None,
            found.label if found else None,
        )
        for row, found in zip(rows, explained or [None] * len(rows), strict=True)
    ]

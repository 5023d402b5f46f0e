"""The document: results as a short report, in Markdown and HTML, its tables also as CSV."""

import base64
import datetime
import html
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from embedder_helpers import comparison, figures
from embedder_helpers.leaderboard import against_original, as_of, places
from embedder_helpers.platform import writable_folder, write_whole
from embedder_helpers.report import as_markdown, has_curve, notes, table
from embedder_helpers.result import Result

TITLE = "What was measured"


class Section(NamedTuple):
    """A part of the document.

    Attributes:
        name: of its table's and its figure's files, without their endings.
        title: its heading.
        words: what a reader should know.
        frame: its table; empty or None for none.
        figure: its matplotlib figure; None for none.
    """

    name: str
    title: str
    words: str
    frame: pd.DataFrame | None = None
    figure: Any = None


def sections(results: Sequence[Result]) -> list[Section]:
    """What there is to tell of results; what they do not hold is left out."""
    found = [
        Section(
            "comparison",
            "Scores",
            "Means over seeds and protocol draws, with 95 % intervals where seeds allow one.",
            comparison.comparison(results),
            figures.plot(results),
        ),
        Section(
            "differences",
            "How far the hybrid lies above",
            "Paired over seeds and draws: a whole interval above zero means that the hybrid is "
            "better, as far as seeds and draws go.",
            comparison.differences(results),
        ),
        Section(
            "leaderboard",
            "The place on MTEB's leaderboard",
            "The place that each embedder would take by accuracy on the test split: among all "
            "models that there are figures of, within its interval, and among those known to be, "
            f"or not to be, trained on the task as it was ({as_of()}; some figures are "
            "self-reported, some since removed; parameters without the projection's).",
            places(results),
            figures.plot_leaderboard(results),
        ),
        Section(
            "original_study",
            "Beside the original study, point by point",
            "The original study's scores are of Gemma 2B and RoBERTa-base, one run each.",
            against_original(results),
        ),
        Section(
            "cutoffs",
            "Over the cutoff",
            "A smooth curve says where Gemma holds what the task needs; a jagged one, that "
            "differences between neighbours are noise. Bands are 95 % intervals, where seeds allow "
            "one.",
            figure=figures.plot_layers(results) if has_curve(results) else None,
        ),
        Section(
            "results",
            "Every result",
            " ".join(notes(results)),
            table(results),
        ),
    ]
    return [one for one in found if one.figure is not None or _filled(one.frame)]


def _filled(frame: pd.DataFrame | None) -> bool:
    return frame is not None and not frame.empty


def write_document(parts: Sequence[Section], folder: str | Path) -> list[Path]:
    """Writes `report.md`, `report.html`, and each table and figure, into a folder.

    The page holds its figures in itself, so that it can be sent as it is.

    Returns:
        The files, the page last.

    Raises:
        InputError: the folder cannot be written.
    """
    folder = writable_folder(folder)
    files: list[Path] = []
    for part in parts:
        frame, figure = part.frame, part.figure
        if _filled(frame):
            path = folder / f"{part.name}.csv"
            files.append(write_whole(path, partial(frame.to_csv, index=False)))
        if figure is not None:
            files.append(write_whole(folder / f"{part.name}.png", partial(figure.savefig, dpi=150)))
    for ending, text in (("md", markdown(parts)), ("html", page(parts, folder))):
        save = partial(Path.write_text, data=text, encoding="utf-8")
        files.append(write_whole(folder / f"report.{ending}", save))
    return files


def markdown(parts: Sequence[Section]) -> str:
    """The document in Markdown, with figures beside it."""
    lines = [f"# {TITLE}", f"Written {datetime.date.today():%d %B %Y}."]
    for part in parts:
        lines += [f"## {part.title}", part.words]
        lines += [as_markdown(part.frame).strip()] if _filled(part.frame) else []
        lines += [f"![{part.title}]({part.name}.png)"] if part.figure is not None else []
    return "\n\n".join(lines) + "\n"


STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; font-size: 13px; } div { overflow-x: auto; }
th, td { padding: .25rem .6rem; border-bottom: 1px solid #ddd; text-align: right; }
th:first-child, td:first-child, th:nth-child(2), td:nth-child(2) { text-align: left; }
img { max-width: 100%; }
"""


def page(parts: Sequence[Section], folder: Path) -> str:
    """The document as one HTML page, whose figures lie in the folder."""
    lines = [f"<!doctype html><meta charset=utf-8><title>{TITLE}</title><style>{STYLE}</style>"]
    lines += [f"<h1>{TITLE}</h1><p>Written {datetime.date.today():%d %B %Y}.</p>"]
    for part in parts:
        lines += [f"<h2>{html.escape(part.title)}</h2><p>{html.escape(part.words)}</p>"]
        if _filled(part.frame):
            told = part.frame.round(3).to_html(index=False, border=0, na_rep="-")
            lines += [f"<div>{told}</div>"]
        if part.figure is not None:
            image = base64.b64encode((folder / f"{part.name}.png").read_bytes()).decode()
            lines += [f'<img alt="{html.escape(part.title)}" src="data:image/png;base64,{image}">']
    return "\n".join(lines) + "\n"

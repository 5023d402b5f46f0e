"""Reports on results: the printed summary of a sweep, and a page in Markdown and HTML with CSVs."""

import contextlib
import datetime
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pandas as pd

from embedder_helpers.results import comparison, figures
from embedder_helpers.results.formats import (
    escape_markdown,
    map_texts,
    one_line,
    to_csv,
    to_markdown,
    write_text,
)
from embedder_helpers.results.html_page import (
    MAX_TEXT,
    escape_html,
    html_document,
    html_image,
    html_paragraphs,
    html_table,
)
from embedder_helpers.results.leaderboard import (
    SMALL,
    last_updated,
    leaderboard_ranks,
    original_study_table,
)
from embedder_helpers.results.ranking import format_ranking, rank_notes, rank_table
from embedder_helpers.results.result import Result
from embedder_helpers.results.tables import (
    LAYERS_FIGURE,
    SCORES_FIGURE,
    TABLE_FILE,
    check_results,
    format_results,
    has_layer_curve,
    layer_table,
    reading_notes,
    results_table,
)
from embedder_helpers.utils.files import writable_folder

if TYPE_CHECKING:  # imported by the functions that draw
    from matplotlib.figure import Figure

logger = logging.getLogger(__name__)

TITLE = "Results"


def summarize(results: Sequence[Result], out: str | Path) -> list[Path]:
    """Print the tables of results, and write them and their figures to a folder.

    If a task has at least three cutoffs, the layer table and the curves over the cutoff are
    included; if an embedder has several seeds, means with 95 % CIs and paired differences. A search
    over settings has the mean rank of each recipe first, and no figure of its many scores.

    Args:
        results: results of any tasks.
        out: folder for `table.md`, `scores.png` and `layers.png`.

    Returns:
        The figures.

    Raises:
        InputError: there are no results, or the folder cannot be written.
    """
    check_results(results)
    text = comparison.format_comparison(results) + format_results(results)
    if has_curves := has_layer_curve(results):
        text = to_markdown(layer_table(results)) + "\n" + text
    ranking = format_ranking(results)
    text = ranking + text
    print(text)  # even if the disk turns out to be full
    folder = writable_folder(out)
    for name in (SCORES_FIGURE, LAYERS_FIGURE):  # they may show other results
        with contextlib.suppress(OSError):
            (folder / name).unlink()
    paths = []
    if not ranking:
        figures.plot_scores(results, folder / SCORES_FIGURE)
        paths.append(folder / SCORES_FIGURE)
    if has_curves:
        figures.plot_layers(results, folder / LAYERS_FIGURE)
        paths.append(folder / LAYERS_FIGURE)
    write_text(folder / TABLE_FILE, text)
    logger.info("table and figures: %s", ", ".join(map(str, [folder / TABLE_FILE, *paths])))
    return paths


class Section(NamedTuple):
    """A section of a report.

    Attributes:
        name: name of the files of its table and figure, without extension.
        title: heading.
        text: explanation for readers, in plain text.
        table: table of the section; empty or None for none.
        figure: figure of the section; None for none.
    """

    name: str
    title: str
    text: str
    table: pd.DataFrame | None = None
    figure: "Figure | None" = None

    @property
    def has_table(self) -> bool:
        """Whether there are rows to show."""
        return self.table is not None and not self.table.empty

    def rounded_table(self) -> pd.DataFrame:
        """The table as HTML shows it: rounded, and text without control characters."""
        return map_texts(self.table.round(3), one_line)


class Report(NamedTuple):
    """A written report; a notebook shows its sections.

    Attributes:
        sections: sections in their order.
        folder: folder that it was written to.
        files: files that were written, the HTML page last.
    """

    sections: list[Section]
    folder: Path
    files: list[Path]

    def _ipython_display_(self) -> None:
        # Tables and images of their own, since not every viewer shows images inside HTML.
        from IPython.display import Image, Markdown, display

        for section in self.sections:
            display(Markdown(f"### {section.title}\n\n{escape_markdown(section.text, MAX_TEXT)}"))
            if section.has_table:
                with pd.option_context("display.html.use_mathjax", False):
                    display(section.rounded_table())
            if section.figure is not None:
                display(Image(self.folder / f"{section.name}.png"))


def write_report(results: Sequence[Result], out: str | Path) -> Report:
    """Write `report.md`, `report.html`, and each table (CSV) and figure (PNG) to a folder.

    The HTML page contains its figures, so that it can be sent as a single file.

    Args:
        results: results of any tasks.
        out: target folder; created if it does not exist.

    Raises:
        InputError: there are no results, or the folder cannot be written.
    """
    check_results(results)
    sections, folder = report_sections(results), writable_folder(out)
    files: list[Path] = []
    for section in sections:
        if section.has_table:
            files.append(to_csv(section.table, folder / f"{section.name}.csv"))
        if section.figure is not None:
            files.append(figures.save(section.figure, folder / f"{section.name}.png"))
    date = f"Written {datetime.date.today():%d %B %Y}."
    pages = {
        "report.md": f"# {TITLE}\n\n{date}\n\n{_format_markdown(sections)}\n",
        "report.html": html_document(TITLE, f"<p>{date}</p>\n{_format_html(sections, folder)}"),
    }
    files += [write_text(folder / name, page) for name, page in pages.items()]
    return Report(sections, folder, files)


def report_sections(results: Sequence[Result]) -> list[Section]:
    """The sections of a report; those without content are left out."""
    sections = [
        Section(
            "ranking",
            "Choosing settings: the mean rank",
            " ".join(rank_notes(results)),
            rank_table(results),
        ),
        Section(
            "comparison",
            "Scores",
            "Means over seeds and runs of the protocol, with 95 % CIs; embedders trained with a "
            "single seed have no CI.",
            comparison.comparison_table(results),
            None if rank_notes(results) else figures.plot_scores(results),
        ),
        Section(
            "differences",
            "Paired differences",
            "The hybrid's score minus the other embedder's, paired over seeds and runs of the "
            "protocol. A 95 % CI that lies entirely above zero means that the hybrid is better; "
            "the choice of the test texts is not included.",
            comparison.difference_table(results),
        ),
        Section(
            "leaderboard",
            "Rank on MTEB's leaderboard",
            "The rank that each embedder would have by accuracy on the test split, with the ranks "
            "at the ends of its 95 % CI: among all models of the leaderboard, among those known to "
            f"have at most {SMALL} parameters, and among those known to be trained on the task or, "
            "for an untrained embedder, known not to be. The best model of each group has a row "
            f"of its own. Leaderboard scores as of {last_updated()}; some are self-reported, some "
            "have since been removed.",
            leaderboard_ranks(results),
            figures.plot_leaderboard(results),
        ),
        Section(
            "original_study",
            "Comparison with the original study",
            "The original study's scores are single runs with Gemma 2B and RoBERTa-base. "
            "Differences are our score minus the original one.",
            original_study_table(results),
        ),
        Section(
            "cutoffs",
            "Scores by cutoff",
            "A smooth curve shows in which layers Gemma holds what the task needs; in a jagged "
            "one, differences between neighboring cutoffs are noise. Bands are 95 % CIs; "
            "embedders trained with a single seed have no CI.",
            figure=figures.plot_layers(results) if has_layer_curve(results) else None,
        ),
        Section(
            "results",
            "All results",
            " ".join(reading_notes(results)),
            results_table(results),
        ),
    ]
    return [section for section in sections if section.has_table or section.figure is not None]


def _format_markdown(sections: Sequence[Section]) -> str:
    """The sections in Markdown, with links to their figures."""
    blocks = []
    for section in sections:
        blocks += [f"## {section.title}", escape_markdown(section.text, MAX_TEXT)]
        if section.has_table:
            blocks.append(to_markdown(section.table).strip())
        if section.figure is not None:
            blocks.append(f"![{section.title}]({section.name}.png)")
    return "\n\n".join(blocks)


def _format_html(sections: Sequence[Section], folder: Path) -> str:
    """The sections in HTML, with the figures of a folder embedded."""
    blocks = []
    for section in sections:
        blocks.append(f"<h2>{escape_html(section.title)}</h2>{html_paragraphs([section.text])}")
        if section.has_table:
            blocks.append(html_table(section.table))
        if section.figure is not None:
            image = (folder / f"{section.name}.png").read_bytes()
            blocks.append(html_image(image, section.title))
    return "\n".join(blocks)

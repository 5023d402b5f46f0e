"""The page of a verdict: the sentence, its figures and tables, and texts with coloured tokens.

One HTML file that can be sent, opened offline or shown in a notebook. What it says is given to it.
"""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from embedder_helpers.results.formats import write_text
from embedder_helpers.results.html_page import (
    escape_html,
    escape_lines,
    html_document,
    html_image,
    html_paragraphs,
    html_table,
)
from embedder_helpers.utils.files import writable_file

LEVELS = 5  # of colour
MAX_LETTERS = 2000  # of a text
MIN_CHANGE = 0.0005  # of a probability, below which a token is not coloured
# Blue and orange, which the color-blind can tell apart; against a label they are underlined too.
STYLE = """
.sentence { font-size: 1.25rem; }
figure { margin: 1.5rem 0; }
article { border-left: 3px solid #8886; margin: 1rem 0; padding: 0 .8rem; }
article h4 { margin: .2rem 0; font-weight: 600; font-size: 13px; overflow-wrap: anywhere; }
.text { white-space: pre-wrap; margin: .2rem 0; }
.rest { opacity: .6; }
""" + "".join(
    f".f{level} {{ background: rgb(40 120 220 / {0.12 * level:.2f}); }}\n"
    f".a{level} {{ background: rgb(225 110 0 / {0.12 * level:.2f}); "
    "text-decoration: underline dotted; }\n"
    for level in range(1, LEVELS + 1)
)


class PageFigure(NamedTuple):
    """A figure of the page.

    Attributes:
        title: heading, plain text.
        image: a PNG's bytes, or an SVG's text.
        alternative: what it shows, in words, for those who cannot see it.
        text: what to read from it, plain text; empty for nothing.
    """

    title: str
    image: bytes | str
    alternative: str
    text: str = ""


class PageTable(NamedTuple):
    """A table of the page.

    Attributes:
        title: heading, plain text.
        caption: what its rows and columns are, plain text.
        table: text and numbers; without rows, it is left out.
        decimals: of its numbers.
    """

    title: str
    caption: str
    table: pd.DataFrame
    decimals: int = 3


class PageText(NamedTuple):
    """A text of the page.

    Attributes:
        text: the text.
        label: its true label.
        answers: label that each classifier gives it, by the classifier's name.
        tokens: what the colours show, with columns `start`, `end` and `change`, as
            `models.attribution.Attribution.tokens` has them; None for a text without colours.
        explained: label whose probability changes; None: not said.
    """

    text: str
    label: Any
    answers: Mapping[str, Any]
    tokens: pd.DataFrame | None = None
    explained: Any = None


def write_page(
    path: str | Path,
    title: str,
    sentence: str,
    figures: Sequence[PageFigure] = (),
    tables: Sequence[PageTable] = (),
    texts: Sequence[PageText] = (),
    notes: Sequence[str] = (),
) -> Path:
    """Write the page of a verdict.

    Args:
        path: file that ends in `.html`; its folder is created.
        title: plain text, as all that follows.
        sentence: the verdict.
        figures: in their order.
        tables: in their order.
        texts: they are grouped by which classifiers are right, in the order in which these come.
        notes: paragraphs after the sentence.

    Returns:
        The file's path.

    Raises:
        InputError: the file cannot be written.
    """
    file = writable_file(path, ".html", "path")
    blocks = [f'<p class="sentence">{escape_html(sentence)}</p>', html_paragraphs(notes)]
    for figure in figures:
        image = html_image(figure.image, figure.alternative)
        caption = f"<figcaption>{escape_html(figure.text)}</figcaption>" if figure.text else ""
        blocks += [_heading(figure.title), f"<figure>{image}{caption}</figure>"]
    for table in tables:
        if len(table.table):
            content = html_table(table.table, table.caption, table.decimals)
            blocks += [_heading(table.title), content]
    blocks += _texts(texts)
    return write_text(file, html_document(title, "\n".join(filter(None, blocks)), STYLE))


def _heading(title: str, level: int = 2) -> str:
    return f"<h{level}>{escape_html(title)}</h{level}>"


def _texts(texts: Sequence[PageText]) -> list[str]:
    """The texts by who is right, with a legend if some are coloured."""
    if not texts:
        return []
    blocks = [_heading("Texts")]
    changes = [text.tokens["change"].abs() for text in texts if text.tokens is not None]
    largest = max((float(change.max()) for change in changes if change.notna().any()), default=0.0)
    if largest > MIN_CHANGE:
        blocks.append(_legend(largest))
    groups: dict[str, list[PageText]] = {}
    for text in texts:
        groups.setdefault(_who_is_right(text), []).append(text)
    for who, group in groups.items():
        blocks.append(_heading(f"{who} ({len(group)})", 3))
        blocks += [_article(text, largest) for text in group]
    return blocks


def _legend(largest: float) -> str:
    speaks = f'<span class="f{LEVELS}">speaks for</span> it'
    against = f'<span class="a{LEVELS}">speaks against</span> it'
    return (
        "<p>A token is coloured by how the probability of the label changes when Gemma's hidden "
        f"state of this token alone is left out: the state {speaks} (the probability falls) or "
        f"{against} (it rises). The strongest colour is a change of {largest:.3f}; point at a "
        "token to read its own.</p>"
    )


def _who_is_right(text: PageText) -> str:
    right = [name for name, answer in text.answers.items() if answer == text.label]
    if not right:
        return "None is right"
    if len(right) == len(text.answers) and len(right) > 1:
        return "All are right"
    return f"Only {' and '.join(right)} {'is' if len(right) == 1 else 'are'} right"


def _article(text: PageText, largest: float) -> str:
    """A text, and what it was taken for."""
    answers = [f"{name}: {answer}" for name, answer in text.answers.items()]
    line = f"label: {text.label}; {'; '.join(answers)}"
    if text.explained is not None and text.tokens is not None:
        line += f"; colours: {text.explained}"
    parts = "".join(_parts(text, largest))
    # `auto`: the text's own first letters say in which direction it is written.
    return (
        f'<article><h4 dir="auto">{escape_html(line)}</h4>'
        f'<p class="text" dir="auto">{parts}</p></article>'
    )


def _parts(text: PageText, largest: float) -> Iterable[str]:
    """The text's tokens with their colours, at most `MAX_LETTERS`, and what is left of it."""
    end = 0
    if text.tokens is not None:
        columns = (text.tokens[name].tolist() for name in ("start", "end", "change"))
        shown = ((start, stop, change) for start, stop, change in zip(*columns, strict=True))
        for start, stop, change in itertools.takewhile(lambda s: s[0] < MAX_LETTERS, shown):
            stop = min(stop, MAX_LETTERS)
            if stop > start:
                yield _token(text.text[start:stop], change, largest)
                end = stop
    rest = text.text[end:MAX_LETTERS]
    if rest:
        is_beside = text.tokens is not None  # not read, or not explained
        yield f'<span class="rest">{escape_lines(rest)}</span>' if is_beside else escape_lines(rest)
    if (hidden := len(text.text) - MAX_LETTERS) > 0:
        yield f'<span class="rest"> … ({hidden} more letters)</span>'


def _token(token: str, change: float, largest: float) -> str:
    """A token coloured by a change, on the scale of the page's largest one."""
    if not abs(change) > MIN_CHANGE:  # NaN too
        return escape_lines(token)
    level = max(1, round(LEVELS * abs(change) / largest))
    kind = "f" if change < 0 else "a"
    return f'<span class="{kind}{level}" title="{change:+.3f}">{escape_lines(token)}</span>'

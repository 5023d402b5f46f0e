"""Pages in HTML that are one file: nothing is fetched, no script runs, all data is escaped.

What a page says is left to `report` and `verdict_page`.
"""

import base64
import html
from collections.abc import Sequence

import numpy as np
import pandas as pd

from embedder_helpers.results.formats import CONTROL, map_texts, one_line

MAX_TEXT = 10_000  # letters of a paragraph
# A browser refuses what is not in the file, whatever a page may hold.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
STYLE = """
:root { color-scheme: light dark; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; font-size: 13px; } div { overflow-x: auto; }
caption { text-align: left; padding: .25rem .6rem; }
th, td { padding: .25rem .6rem; border-bottom: 1px solid #8884; text-align: right; }
th:first-child, td:first-child, th:nth-child(2), td:nth-child(2) { text-align: left; }
img { max-width: 100%; background: #fff; }
p, td, th, caption, figcaption { overflow-wrap: anywhere; }
"""


def html_document(title: str, body: str, style: str = "") -> str:
    """A whole page.

    Args:
        title: plain text; shown by the browser and as the heading.
        body: HTML after the heading.
        style: CSS besides `STYLE`.
    """
    shown = escape_html(title)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{shown}</title>\n<style>{STYLE}{style}</style>\n</head>\n"
        f"<body>\n<h1>{shown}</h1>\n{body}\n</body>\n</html>\n"
    )


def escape_html(text: str, most: int = MAX_TEXT) -> str:
    """Plain text for HTML: on one line, in at most `most` letters, without control characters."""
    return html.escape(one_line(text, most))


def escape_lines(text: str) -> str:
    """Plain text for HTML whose white space is kept; control characters are replaced."""
    kept = "".join(
        letter if letter in "\n\t" else CONTROL.sub("\N{REPLACEMENT CHARACTER}", letter)
        for letter in text.replace("\r\n", "\n")
    )
    return html.escape(kept)


def html_paragraphs(texts: Sequence[str]) -> str:
    """Paragraphs of plain text."""
    return "\n".join(f"<p>{escape_html(text)}</p>" for text in texts)


def html_table(table: pd.DataFrame, caption: str = "", decimals: int = 3) -> str:
    """A table that scrolls sideways if it is too wide.

    Args:
        table: of text and numbers; missing ones are shown as `-`, its index is not shown.
        caption: plain text above it.
        decimals: of numbers.
    """
    with pd.option_context("display.max_colwidth", None):  # text is short already
        shown = map_texts(table.round(decimals), one_line)
        shown = shown.where(shown.notna(), np.nan)  # pandas 2 writes None itself
        content = shown.to_html(index=False, border=0, na_rep="-")
    if caption:
        start = content.index(">") + 1
        content = f"{content[:start]}<caption>{escape_html(caption)}</caption>{content[start:]}"
    return f"<div>{content}</div>"


def html_image(image: bytes | str, alternative: str) -> str:
    """An image inside the page.

    Args:
        image: a PNG's bytes, or an SVG's text, of which no script can run in an image.
        alternative: plain text for those who cannot see it.
    """
    kind, content = ("png", image) if isinstance(image, bytes) else ("svg+xml", image.encode())
    data = base64.b64encode(content).decode()
    return f'<img alt="{escape_html(alternative)}" src="data:image/{kind};base64,{data}">'

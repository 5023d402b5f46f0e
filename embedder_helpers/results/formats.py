"""Tables and text as files: Markdown for pages, CSV for spreadsheets.

Names, labels and settings come from people's folders and files. What Markdown would read as markup,
or a spreadsheet as a formula, is escaped here, and what is too long for a cell is cut.
"""

import csv
import re
from collections.abc import Callable, Container
from pathlib import Path
from typing import Any

import pandas as pd

from embedder_helpers.errors import shorten
from embedder_helpers.utils.files import atomic_write

MAX_CELL = 200  # letters

# Control characters, marks that reverse the direction of writing, and halves of surrogate pairs.
CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
MARKUP = re.compile(
    r"""[|<`*~$]                        # cells, HTML, code, emphasis, mathematics
    | \\(?=[!-/:-@\[-`{-~]|$)           # what is an escape already
    | \](?=\()                          # links and images
    | &(?=\#?\w+;)                      # entities
    | _(?![^\W_]) | (?<![^\W_])_        # emphasis, which `_` within a word is not
    | ^(?:[#>]|[-+](?=\s))              # headings, quotations and lists""",
    re.VERBOSE,
)
# What a spreadsheet computes: https://owasp.org/www-community/attacks/CSV_Injection
FORMULA = re.compile("[=+\\-@\t\r\n＝＋－＠]")
LONE_RETURN = re.compile("\r(?!\n)")
NUMBER = re.compile(
    r"-|[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?( \[[+-]?[\d.]+, [+-]?[\d.]+\])?", re.ASCII | re.I
)


# === Markdown ===


def to_markdown(table: pd.DataFrame, markup: Container[str] = ()) -> str:
    """A Markdown table with aligned columns.

    Args:
        table: table of text and numbers.
        markup: names of the columns that hold Markdown, which is left as it is.
    """
    rows = [[escape_markdown(str(name)) for name in table.columns]]
    for record in table.to_dict("records"):
        cells = {name: _format_cell(name, value) for name, value in record.items()}
        rows.append(
            [cell if name in markup else escape_markdown(cell) for name, cell in cells.items()]
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["| " + " | ".join(map(str.ljust, row, widths)) + " |" for row in rows]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join([*lines, ""])


def _format_cell(name: str, value: Any) -> str:
    if value is None or value != value:
        return "-"
    if name == "parameters":
        return f"{value / 1e6:.1f} M"
    if str(name).endswith("rate"):
        return f"{value:g}" if isinstance(value, float) else str(value)
    if isinstance(value, float):
        return f"{value:.0f}" if name == "seconds" else f"{value:.3f}"
    return str(value)


def escape_markdown(text: str, most: int = MAX_CELL) -> str:
    """Text that Markdown shows as it is, on one line and in at most `most` letters."""
    return MARKUP.sub(r"\\\g<0>", one_line(text, most))


def markdown_code(text: str, most: int = MAX_CELL) -> str:
    """Text as code in Markdown: between more backticks than it has in a row."""
    text = one_line(text, most)
    quote, space = _quote(text), " " if "`" in text[:1] + text[-1:] else ""
    return f"{quote}{space}{text}{space}{quote}"


def markdown_block(text: str, language: str) -> str:
    """Lines of code in Markdown."""
    quote = max("```", _quote(text))
    return f"{quote}{language}\n{text}{quote}"


def _quote(text: str) -> str:
    return "`" * (1 + max(map(len, re.findall("`+", text)), default=0))


def one_line(text: str, most: int = MAX_CELL) -> str:
    """Text without line breaks and control characters, cut in its middle if it is too long."""
    return shorten(CONTROL.sub("\N{REPLACEMENT CHARACTER}", " ".join(text.split())), most)


# === Files ===


def replace_csv(table: pd.DataFrame | None, path: Path) -> Path | None:
    """Write a table as `to_csv`; without one, or without rows, remove the file of an earlier one.

    Returns:
        The file; None if there is none.
    """
    if table is not None and len(table):
        return to_csv(table, path)
    path.unlink(missing_ok=True)
    return None


def to_csv(table: pd.DataFrame, path: Path) -> Path:
    """Write a table as CSV, atomically, so that a spreadsheet shows text and computes nothing.

    Text that starts like a formula gets an apostrophe before it; numbers stay as they are.
    """
    table = map_texts(table, _as_cell)
    return atomic_write(path, lambda part: table.to_csv(part, index=False))


def to_raw_csv(table: pd.DataFrame, path: Path) -> Path:
    """Write a table of people's data as CSV, atomically, with every value as it is.

    Text is quoted, since readers would end a row at a return in text that is not.
    """
    options = {"index": False, "quoting": csv.QUOTE_NONNUMERIC}
    return atomic_write(path, lambda part: table.to_csv(part, **options))


def map_texts(table: pd.DataFrame, function: Callable[[str], str]) -> pd.DataFrame:
    """The table with other text in its cells and the names of its columns."""

    def change(value: Any) -> Any:
        return function(value) if isinstance(value, str) else value

    table = table.rename(columns=change)
    for name in table.select_dtypes(exclude=["number", "bool"]).columns:
        # Not `map`, which makes 1.0 of a whole number beside a missing one.
        table[name] = pd.Series(map(change, table[name]), table.index, dtype=object)
    return table


def _as_cell(value: str) -> str:
    if NUMBER.fullmatch(value):
        return value
    value = LONE_RETURN.sub("\n", value)  # which pandas does not quote, but readers end rows at
    return f"'{value}" if FORMULA.match(value) else value


def write_text(path: Path, text: str) -> Path:
    """Write a page, atomically; halves of surrogate pairs are spelled `\\udcff`."""
    options = {"encoding": "utf-8", "errors": "backslashreplace"}
    return atomic_write(path, lambda part: part.write_text(text, **options))

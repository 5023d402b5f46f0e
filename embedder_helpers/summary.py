"""The summary of results: their tables and figures, printed and left in a folder."""

from collections.abc import Sequence
from pathlib import Path

from embedder_helpers import comparison, figures
from embedder_helpers.report import (
    FIGURE,
    LAYERS,
    TABLE,
    as_markdown,
    as_text,
    has_curve,
    layer_table,
)
from embedder_helpers.result import Result


def summarise(results: Sequence[Result], out: str | Path) -> None:
    """Prints the table; writes it and the figures into a folder.

    Where results of a task have several cutoffs, the layer table and the curves over the cutoff are
    added; where they have several seeds, the means with their intervals, and the hybrids' lead.
    """
    folder = Path(out)
    text = comparison.as_text(results) + as_text(results)
    files = [folder / TABLE, folder / FIGURE]
    figures.plot(results, folder / FIGURE)
    (folder / LAYERS).unlink(missing_ok=True)  # of other results
    if has_curve(results):
        text = as_markdown(layer_table(results)) + "\n" + text
        figures.plot_layers(results, folder / LAYERS)
        files.append(folder / LAYERS)
    print(text)
    (folder / TABLE).write_text(text, encoding="utf-8")
    print("table and figures: " + ", ".join(map(str, files)))

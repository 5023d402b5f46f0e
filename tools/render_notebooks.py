"""Execute a notebook and write it with its outputs, to be read without running anything.

    python tools/render_notebooks.py NOTEBOOK OUT.ipynb [-p NAME VALUE]...

Parameters are set in the notebook's first code cell, so that the page shows the values it was
executed with. Progress bars, log lines and other standard error are removed, paths inside the
project are written relative to it, and cells tagged `texts` lose their output: a data set's license
may not allow publishing its texts.
"""

import argparse
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nbformat
import papermill
import yaml
from nbformat.v4 import new_output

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from embedder_helpers.utils.files import atomic_write
from tools.kaggle_kernels import read_notebook, set_parameter, write_notebook

ROOT = Path(__file__).resolve().parent.parent
MAX_BYTES = 1_500_000
HIDDEN_TEXTS = "(texts of the data set are not shown on this page)\n"
WIDGET = "application/vnd.jupyter.widget-view+json"  # empty on a page without its kernel


def render(notebook: Path, out: Path, parameters: Mapping[str, Any]) -> Path:
    """Execute a notebook in the current folder and write it with its outputs.

    Args:
        notebook: the .ipynb file, which is left as it is.
        out: path of the executed notebook.
        parameters: values by the names of lines `NAME = value` in the first code cell.

    Raises:
        ValueError: the executed notebook would be larger than `MAX_BYTES`.
        KeyError: the notebook has no such parameter.
        papermill.PapermillExecutionError: a cell failed.
    """
    content = read_notebook(notebook)
    for name, value in parameters.items():
        set_parameter(content, name, value)
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / notebook.name
        write_notebook(content, copy)
        papermill.execute_notebook(copy, copy)
        executed = nbformat.read(copy, as_version=4)
    page = nbformat.writes(clean(executed)).encode("utf-8")
    if len(page) > MAX_BYTES:
        raise ValueError(
            f"{out} would have {len(page) / 1e6:.1f} MB, but may have at most "
            f"{MAX_BYTES / 1e6:.1f} MB: show fewer or smaller figures and tables"
        )
    out.parent.mkdir(parents=True, exist_ok=True)
    return atomic_write(out, lambda part: part.write_bytes(page))


def clean(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """The notebook without standard error, widgets, papermill's metadata and absolute paths."""
    notebook.metadata.pop("papermill", None)
    for cell in notebook.cells:
        if "texts" in cell.metadata.get("tags", []):
            cell.outputs = [new_output("stream", name="stdout", text=HIDDEN_TEXTS)]
        elif cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if _is_shown(output)]
        cell.metadata = nbformat.NotebookNode()
    text = nbformat.writes(notebook).replace(f"{ROOT}/", "")
    return nbformat.reads(text, as_version=4)


def _is_shown(output: nbformat.NotebookNode) -> bool:
    return output.get("name") != "stderr" and WIDGET not in output.get("data", {})


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("notebook", type=Path, metavar="NOTEBOOK")
    parser.add_argument("out", type=Path, metavar="OUT", help="the executed notebook")
    parser.add_argument(
        "-p", dest="parameters", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"),
        help="set a parameter of the first code cell; VALUE is YAML, such as null or {epochs: 1}",
    )  # fmt: skip
    options = parser.parse_args(arguments)
    parameters = {name: yaml.safe_load(value) for name, value in options.parameters}
    try:
        page = render(options.notebook, options.out, parameters)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    except KeyError as error:
        sys.exit(f"error: {options.notebook}: {error.args[0]}")
    except papermill.PapermillExecutionError as error:
        sys.exit(f"error: {options.notebook} failed: {error.ename}: {error.evalue}")
    print(f"{page}: {page.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()

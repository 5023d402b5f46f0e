"""Kaggle kernels from the notebooks, by the table in kernels.yaml.

    python notebooks/kernels.py USER FOLDER    # a folder for each notebook, to push
    python notebooks/kernels.py                # address and badges into the notebooks

Pushing is the Kaggle command line's: `kaggle kernels push -p FOLDER/NAME`.
"""

import json
import re
import sys
from pathlib import Path
from typing import Any

import yaml

HERE = Path(__file__).resolve().parent
TABLE = yaml.safe_load((HERE / "kernels.yaml").read_text(encoding="utf-8"))


def write_kernels(user: str, folder: Path) -> list[Path]:
    """Writes a folder with the notebook and its kernel-metadata.json for each of the table.

    Args:
        user: the Kaggle account's name, as in the address of its page.
        folder: for the folders.

    Raises:
        ValueError: a user name that Kaggle cannot have given.
    """
    if not re.fullmatch(r"[a-z0-9][a-z0-9-]*", user):
        raise ValueError(f"USER is {user!r}, but must be as in https://www.kaggle.com/USER")
    written = []
    for name, row in TABLE["notebooks"].items():
        kernel = folder / slug(row["title"])
        kernel.mkdir(parents=True, exist_ok=True)
        notebook = _read(HERE / f"{name}.ipynb")
        for key, value in row["set"].items():
            set_parameter(notebook, key, value)
        _write(notebook, kernel / f"{name}.ipynb")
        metadata = {"id": f"{user}/{kernel.name}", "title": row["title"]}
        metadata |= {"code_file": f"{name}.ipynb"} | TABLE["kernel"]
        text = json.dumps(metadata, indent=1) + "\n"
        (kernel / "kernel-metadata.json").write_text(text, encoding="utf-8")
        written.append(kernel)
    return written


def slug(title: str) -> str:
    """What Kaggle makes of a title in a kernel's address; the two have to agree."""
    return re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")


def set_parameter(notebook: dict[str, Any], name: str, value: Any) -> None:
    """Sets a line `NAME = value` of the first code cell, and keeps a comment behind it.

    Args:
        notebook: as its file holds it.
        name: of the parameter.
        value: of the table.

    Raises:
        KeyError: the notebook has no such parameter.
    """
    cell = next(cell for cell in notebook["cells"] if cell["cell_type"] == "code")
    for place, line in enumerate(cell["source"]):
        if line.startswith(f"{name} = "):
            _, mark, comment = line.rstrip("\n").partition("  #")
            end = "\n" if line.endswith("\n") else ""
            cell["source"][place] = f"{name} = {_literal(value)}{mark}{comment}{end}"
            return
    raise KeyError(f"{name} is no parameter of the notebook")


def _literal(value: Any) -> str:
    """A value as Python spells it, a text in double quotes."""
    return json.dumps(value) if isinstance(value, str) else repr(value)


def write_badges() -> None:
    """Writes the project's address into every notebook: its badges, and its parameter."""
    for name in TABLE["notebooks"]:
        path = HERE / f"{name}.ipynb"
        notebook = _read(path)
        set_parameter(notebook, "REPOSITORY", f"{TABLE['repository']}@{TABLE['tag']}")
        title = notebook["cells"][0]["source"]
        rest = title[4:] if title[2].startswith("[![") else title[2:]
        title[:] = [title[0], "\n", badges(name) + "\n", "\n", *rest]
        _write(notebook, path)


def badges(name: str) -> str:
    """Markdown of two badges that open a notebook on Kaggle and on Colab."""
    file = f"{TABLE['repository']}/blob/{TABLE['tag']}/notebooks/{name}.ipynb"
    colab = file.replace("https://github.com/", "https://colab.research.google.com/github/")
    return (
        "[![Open in Kaggle](https://kaggle.com/static/images/open-in-kaggle.svg)]"
        f"(https://kaggle.com/kernels/welcome?src={file}) "
        "[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)]"
        f"({colab})"
    )


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def _write(notebook: dict[str, Any], path: Path) -> None:
    text = json.dumps(notebook, indent=1, ensure_ascii=False) + "\n"
    path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    if len(sys.argv) == 1:
        write_badges()
    elif len(sys.argv) == 3:
        try:
            kernels = write_kernels(sys.argv[1], Path(sys.argv[2]))
        except ValueError as error:
            sys.exit(f"error: {error}")
        print(*(f"kaggle kernels push -p {kernel}" for kernel in kernels), sep="\n")
    else:
        sys.exit(__doc__)

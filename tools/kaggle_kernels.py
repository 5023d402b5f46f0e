"""Kaggle kernels from the notebooks, as listed in kaggle_kernels.yaml.

    python tools/kaggle_kernels.py USER FOLDER    # a folder per notebook, ready to push
    python tools/kaggle_kernels.py                # write address and badges into the notebooks

Pushing is left to the Kaggle command line: `kaggle kernels push -p FOLDER/NAME`. The keys of the
metadata are those that it documents and sends (https://github.com/Kaggle/kaggle-cli).
"""

import json
import re
import sys
from pathlib import Path
from typing import Any

import yaml

TOOLS = Path(__file__).resolve().parent
NOTEBOOKS = TOOLS.parent / "notebooks"
# What a push does without saying so, or only in a warning.
AFTER_A_PUSH = """\
A push runs the notebook at once, on your GPU quota. Then check its page:
* Input shows two models: a source that Kaggle does not accept is left out, with a warning at most.
* A notebook that reads a secret (HF_TOKEN) fails, since a push attaches none: open it in the editor
  once, attach the secret (Add-ons, Secrets), and run it from there."""
TABLE = yaml.safe_load((TOOLS / "kaggle_kernels.yaml").read_text(encoding="utf-8"))


def write_kernels(user: str, folder: Path) -> list[Path]:
    """Write a folder with the notebook and its kernel-metadata.json for each notebook listed.

    Args:
        user: name of the Kaggle account, as in the address of its page.
        folder: parent folder of the kernels' folders.

    Raises:
        ValueError: an invalid Kaggle user name.
    """
    if not re.fullmatch(r"[a-z0-9][a-z0-9-]*", user):
        raise ValueError(f"USER is {user!r}, but must be as in https://www.kaggle.com/USER")
    kernels = []
    for name, row in TABLE["notebooks"].items():
        kernel = folder / slug(row["title"])
        kernel.mkdir(parents=True, exist_ok=True)
        notebook = read_notebook(NOTEBOOKS / f"{name}.ipynb")
        for parameter, value in row["set"].items():
            set_parameter(notebook, parameter, value)
        write_notebook(notebook, kernel / f"{name}.ipynb")
        metadata = {"id": f"{user}/{kernel.name}", "title": row["title"]}
        metadata |= {"code_file": f"{name}.ipynb"} | TABLE["kernel"]
        text = json.dumps(metadata, indent=1) + "\n"
        (kernel / "kernel-metadata.json").write_text(text, encoding="utf-8")
        kernels.append(kernel)
    return kernels


def slug(title: str) -> str:
    """The title as Kaggle writes it in a kernel's address; title and id have to agree."""
    return re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")


def set_parameter(notebook: dict[str, Any], name: str, value: Any) -> None:
    """Set a line `NAME = value` of the first code cell; a comment after it is kept.

    Args:
        notebook: the content of its file, changed in place.
        name: name of the parameter.
        value: a string, number, boolean, None, or list or dictionary of such.

    Raises:
        KeyError: the notebook has no such parameter.
    """
    cell = next(cell for cell in notebook["cells"] if cell["cell_type"] == "code")
    for index, line in enumerate(cell["source"]):
        if line.startswith(f"{name} = "):
            _, mark, comment = line.rstrip("\n").partition("  #")
            end = "\n" if line.endswith("\n") else ""
            cell["source"][index] = f"{name} = {_literal(value)}{mark}{comment}{end}"
            return
    raise KeyError(f"the notebook has no parameter {name}")


def _literal(value: Any) -> str:
    """A value in Python's syntax, a string in double quotes."""
    return json.dumps(value) if isinstance(value, str) else repr(value)


def write_badges() -> None:
    """Write the project's address into every notebook: its badges and its REPOSITORY parameter."""
    for name in TABLE["notebooks"]:
        path = NOTEBOOKS / f"{name}.ipynb"
        notebook = read_notebook(path)
        set_parameter(notebook, "REPOSITORY", f"{TABLE['repository']}@{TABLE['tag']}")
        intro = notebook["cells"][0]["source"]
        body = intro[4:] if intro[2].startswith("[![") else intro[2:]
        intro[:] = [intro[0], "\n", badges(name) + "\n", "\n", *body]
        write_notebook(notebook, path)


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


def read_notebook(path: Path) -> dict[str, Any]:
    """The content of a notebook's file."""
    return json.loads(path.read_text(encoding="utf-8"))


def write_notebook(notebook: dict[str, Any], path: Path) -> None:
    """Write a notebook's file in the format in which Jupyter saves it."""
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
        print(*(f"kaggle kernels push -p {kernel}" for kernel in kernels), AFTER_A_PUSH, sep="\n")
    else:
        sys.exit(__doc__)

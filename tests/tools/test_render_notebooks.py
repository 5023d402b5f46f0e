import json
import os

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from tools import render_notebooks
from tools.render_notebooks import ROOT, clean, main, render


def stream(text, name="stdout"):
    return new_output("stream", name=name, text=text)


def executed(*outputs):
    """A notebook as papermill leaves it."""
    code = new_code_cell("COUNT = 3  # a number", outputs=list(outputs))
    code.metadata = {"tags": ["parameters"], "papermill": {"duration": 1.0}}
    notebook = new_notebook(cells=[new_markdown_cell("# A title\n\nText."), code])
    notebook.metadata.papermill = {"input_path": "/somewhere"}
    return notebook


# Cleaning


def test_standard_error_and_widgets_are_removed():
    widget = new_output("display_data", data={render_notebooks.WIDGET: {}, "text/plain": "0 %"})
    notebook = clean(executed(stream("a\n"), stream("100 %\n", "stderr"), widget, stream("b\n")))
    assert [output.text for output in notebook.cells[1].outputs] == ["a\n", "b\n"]


def test_tags_and_papermills_metadata_are_removed():
    notebook = clean(executed())
    assert "papermill" not in notebook.metadata
    assert all(not cell.metadata for cell in notebook.cells)


def test_texts_of_a_data_set_are_not_shown():
    notebook = executed(stream("a text\n"))
    notebook.cells[1].metadata.tags = ["texts"]
    (output,) = clean(notebook).cells[1].outputs
    assert output.text == render_notebooks.HIDDEN_TEXTS


def test_paths_in_the_project_are_relative_to_it():
    notebook = clean(executed(stream(f"{ROOT}/results/mine: 3 files\n")))
    assert notebook.cells[1].outputs[0].text == "results/mine: 3 files\n"


# Executing

TOY = """
import os, sys
print("COUNT is", COUNT)
print("noise", file=sys.stderr)
os.system("echo more noise 1>&2");
"""


@pytest.fixture
def toy(tmp_path):
    cells = [new_markdown_cell("# Toy"), new_code_cell("COUNT = 1  # a number"), new_code_cell(TOY)]
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(
        new_notebook(cells=cells, metadata={"kernelspec": kernel}), tmp_path / "toy.ipynb"
    )
    return tmp_path / "toy.ipynb"


@pytest.fixture
def fake_execution(monkeypatch):
    """Instead of executing, prints ten thousand characters in the last cell."""

    def execute(notebook, executed):
        content = nbformat.read(notebook, as_version=4)
        content.cells[-1].outputs = [stream("x" * 10_000)]
        nbformat.write(content, executed)

    monkeypatch.setattr(render_notebooks.papermill, "execute_notebook", execute)


def test_parameters_are_set_in_the_first_code_cell(toy, tmp_path, fake_execution, capsys):
    before = toy.read_bytes()
    main([str(toy), str(tmp_path / "pages" / "toy.ipynb"), "-p", "COUNT", "[2, null]"])
    page = nbformat.read(tmp_path / "pages" / "toy.ipynb", as_version=4)
    assert page.cells[1].source == "COUNT = [2, None]  # a number"
    assert toy.read_bytes() == before
    assert "0.01 MB" in capsys.readouterr().out


def test_a_page_that_is_too_large_is_not_written(toy, tmp_path, fake_execution, monkeypatch):
    monkeypatch.setattr(render_notebooks, "MAX_BYTES", 10_000)
    with pytest.raises(ValueError, match="may have at most 0.0 MB"):
        render(toy, tmp_path / "page.ipynb", {})
    assert os.listdir(tmp_path) == ["toy.ipynb"]


def test_an_unknown_parameter_is_one_sentence(toy, tmp_path):
    with pytest.raises(SystemExit, match="no parameter NUMBER"):
        main([str(toy), str(tmp_path / "page.ipynb"), "-p", "NUMBER", "1"])
    assert os.listdir(tmp_path) == ["toy.ipynb"]


@pytest.mark.slow
def test_a_page_has_what_was_printed_and_not_standard_error(toy, tmp_path):
    page = nbformat.read(render(toy, tmp_path / "page.ipynb", {"COUNT": 3}), as_version=4)
    assert [output.text for output in page.cells[-1].outputs] == ["COUNT is 3\n"]


@pytest.mark.slow
def test_a_failing_notebook_leaves_no_page(toy, tmp_path):
    content = json.loads(toy.read_text())
    content["cells"][-1]["source"] = "1 / 0"
    toy.write_text(json.dumps(content))
    with pytest.raises(SystemExit, match="toy.ipynb failed: ZeroDivisionError: division by zero"):
        main([str(toy), str(tmp_path / "page.ipynb")])
    assert os.listdir(tmp_path) == ["toy.ipynb"]

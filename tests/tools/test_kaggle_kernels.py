"""What is pushed to Kaggle, and the notebooks in a simulated Kaggle session."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import papermill
import pytest
from made_results import EMOTION, TRAINED, result

from embedder_helpers.models.presets import kaggle_handle
from embedder_helpers.results.result import write_result
from tools import kaggle_kernels

ROOT = Path(__file__).resolve().parent.parent.parent
NOTEBOOKS = sorted(path.stem for path in (ROOT / "notebooks").glob("*.ipynb"))
COMPARE, VERDICT = "03_compare", "05_does_it_help"
TOKEN = "hf_ThisIsASecret"


def cells(path):
    return nbformat.read(path, as_version=4).cells


# What is pushed


@pytest.fixture
def kernels(tmp_path):
    """The folders of all kernels, by the name of their notebook."""
    folders = kaggle_kernels.write_kernels("ann-7", tmp_path)
    return {next(folder.glob("*.ipynb")).stem: folder for folder in folders}


def test_every_notebook_has_a_kernel(kernels):
    assert sorted(kernels) == NOTEBOOKS


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_kernel_asks_for_two_t4s_the_network_and_both_models(kernels, name):
    metadata = json.loads((kernels[name] / "kernel-metadata.json").read_text())
    assert metadata["machine_shape"] == "NvidiaTeslaT4"
    assert metadata["enable_internet"] is metadata["is_private"] is True
    assert metadata["docker_image_pinning_type"] in ("original", "latest")
    assert [find_version(model) for model in metadata["model_sources"]] == [
        find_version(kaggle_handle("llm_preset", "gemma_2b_en")),
        find_version(kaggle_handle("slm_preset", "roberta_base_en")),
    ]
    assert (kernels[name] / metadata["code_file"]).is_file()


def find_version(handle):
    """Owner, model, framework, variation and version of a Kaggle model."""
    parts = re.fullmatch(r"(?:kaggle://)?([^/]+)/([^/]+)/([^/]+)/([^/]+)/(\d+)", handle)
    return parts.groups()


def test_what_a_push_does_not_say_is_printed_after_the_commands(tmp_path):
    command = [sys.executable, "tools/kaggle_kernels.py", "ann-7", str(tmp_path)]
    lines = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert lines.count("kaggle kernels push -p ") == len(NOTEBOOKS)
    assert "Input shows two models" in lines and "HF_TOKEN" in lines


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_title_and_id_of_a_kernel_agree(kernels, name):
    metadata = json.loads((kernels[name] / "kernel-metadata.json").read_text())
    assert 5 <= len(metadata["title"]) <= 50  # Kaggle's limits
    assert metadata["id"] == "ann-7/" + metadata["title"].lower().replace(" ", "-")


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_kernels_notebook_differs_only_in_the_parameters_of_the_table(kernels, name):
    pushed, stored = cells(kernels[name] / f"{name}.ipynb"), cells(ROOT / f"notebooks/{name}.ipynb")
    changed = [
        line.partition(" = ")[0]
        for cell, other in zip(pushed, stored, strict=True)
        for line, before in zip(cell.source.splitlines(), other.source.splitlines(), strict=True)
        if line != before
    ]
    assert changed == list(kaggle_kernels.TABLE["notebooks"][name]["set"])


@pytest.mark.parametrize("user", ["", "Ann Seven", "https://www.kaggle.com/ann"])
def test_an_invalid_user_is_an_error_and_nothing_is_written(user, tmp_path):
    with pytest.raises(ValueError, match="must be as in https://www.kaggle.com/USER"):
        kaggle_kernels.write_kernels(user, tmp_path)
    assert not list(tmp_path.iterdir())


def test_setting_a_parameter_keeps_its_comment():
    notebook = {"cells": [{"cell_type": "code", "source": ["A = 1  # one\n", "B = 2"]}]}
    kaggle_kernels.set_parameter(notebook, "A", "x")
    kaggle_kernels.set_parameter(notebook, "B", {"c": None})
    assert notebook["cells"][0]["source"] == ['A = "x"  # one\n', "B = {'c': None}"]
    with pytest.raises(KeyError, match="no parameter C"):
        kaggle_kernels.set_parameter(notebook, "C", 3)


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_badges_and_address_are_those_of_the_table(name):
    intro, parameters = cells(ROOT / f"notebooks/{name}.ipynb")[:2]
    address = f"{kaggle_kernels.TABLE['repository']}@{kaggle_kernels.TABLE['tag']}"
    assert kaggle_kernels.badges(name) in intro.source.splitlines()
    assert f'REPOSITORY = "{address}"' in parameters.source
    assert re.findall(r"notebooks/(\w+)\.ipynb", intro.source) == [name] * 2


def test_writing_the_badges_again_changes_no_byte(tmp_path, monkeypatch):
    shutil.copytree(ROOT / "notebooks", tmp_path / "notebooks")
    monkeypatch.setattr(kaggle_kernels, "NOTEBOOKS", tmp_path / "notebooks")
    kaggle_kernels.write_badges()
    for name in NOTEBOOKS:
        stored = (ROOT / "notebooks" / f"{name}.ipynb").read_bytes()
        assert (tmp_path / "notebooks" / f"{name}.ipynb").read_bytes() == stored


# A Kaggle session, simulated by its folders, modules and variables

SMALL = """
epochs: 1
max_train_texts: 32
experiments:
  - {kind: gemma_only, llm_layers: 1}
  - {kind: hybrid, llm_layers: 1, projection_start: random}
  - {kind: hybrid, llm_layers: 1}
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel of a copy of the project that looks for Kaggle's folders in a temporary one."""
    root = tmp_path_factory.mktemp("root")
    project = root / "project"
    for part in ("embedder_helpers", "configs", "results/reference"):
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / part, project / part, ignore=ignore)
    for file in ("pyproject.toml", "requirements.txt", "README.md", "LICENSE"):
        shutil.copyfile(ROOT / file, project / file)
    environment = project / "embedder_helpers" / "utils" / "environment.py"
    environment.write_text(environment.read_text().replace('"/kaggle/', f'"{root}/kaggle/'))
    inputs = root / "kaggle" / "input" / "datasets" / "ann-7" / "our-wheel"
    options = ["--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", str(inputs)]
    subprocess.run([sys.executable, "-m", "pip", "wheel", *options, str(project)], check=True)
    return next(inputs.glob("*.whl"))


@pytest.fixture
def kaggle(wheel, tmp_path, monkeypatch):
    """A session without network: its root folder."""
    root = wheel.parents[5]
    for folder in ("working", "temp"):
        shutil.rmtree(root / "kaggle" / folder, ignore_errors=True)
        (root / "kaggle" / folder).mkdir()
    modules, installed = tmp_path / "modules", tmp_path / "installed"
    modules.mkdir()
    installed.mkdir()
    (modules / "kaggle_secrets.py").write_text(
        "class UserSecretsClient:\n    def get_secret(self, label):\n"
        f"        return {{'HF_TOKEN': '{TOKEN}'}}[label]\n"
    )
    for name, value in {
        "KAGGLE_KERNEL_RUN_TYPE": "Batch",
        "PYTHONPATH": f"{modules}:{installed}",
        "PIP_TARGET": str(installed),
        "PIP_NO_INDEX": "1",
        "HF_HUB_OFFLINE": "1",
        "HUGGING_FACE_TOKEN": "",
        "HF_TOKEN": "",
    }.items():
        monkeypatch.setenv(name, value)
    return root / "kaggle"


def execute(kaggle, name, **parameters):
    """Execute a notebook as Kaggle does, and return its text with all outputs."""
    source = (ROOT / "notebooks" / f"{name}.ipynb").read_text()
    notebook = kaggle / "working" / "__notebook__.ipynb"
    notebook.write_text(source.replace('\\"/kaggle/', f'\\"{kaggle}/'))
    try:
        papermill.execute_notebook(
            notebook, notebook, parameters, progress_bar=False, cwd=notebook.parent
        )
    finally:
        text = notebook.read_text()
        assert TOKEN not in text
    return text


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in NOTEBOOKS if name != COMPARE])
def test_a_notebook_runs_in_a_kaggle_session_from_the_attached_wheel(kaggle, name, tmp_path):
    parameters = {"SEED": 7, "OVERRIDES": {"epochs": 1, "max_train_texts": 32, "llm_layers": 1}}
    if name != NOTEBOOKS[0]:
        config = tmp_path / "small.yaml"
        config.write_text(SMALL)
        parameters = {"CONFIG": str(config), "OVERRIDES": {}}
    gemma, count = "Gemma only [1]", 3
    if name == VERDICT:  # Gemma, RoBERTa, the hybrid, its controls, and what they cost
        parameters |= {"SEEDS": [33], "SIZES": []}
        gemma, count = "Gemma alone", 7
    text = execute(kaggle, name, **parameters)
    assert "kaggle: " in text and gemma in text + " ".join(
        path.read_text() for path in kaggle.glob("working/results/*/*.md")
    )
    results = list(kaggle.glob("working/results/*/*.json"))
    assert len(results) == count
    assert list(kaggle.glob("temp/states/*"))


@pytest.mark.slow
def test_results_among_the_inputs_are_compared_in_a_kaggle_session(kaggle):
    folder = kaggle / "input" / "notebooks" / "ann-7" / "our-sweep" / "results"
    folder.mkdir(parents=True)
    trained = result("roberta_only", (), task=EMOTION, history=TRAINED)
    try:
        write_result(trained, folder / "one.json")
        text = execute(kaggle, COMPARE, FOLDER=str(kaggle / "input"))
    finally:
        assert [path.name for path in folder.iterdir()] == ["one.json"]
        shutil.rmtree(kaggle / "input" / "notebooks")
    assert "1 results in" in text and "of 224" in text
    assert (kaggle / "working" / "results" / "report" / "report.html").is_file()


@pytest.mark.slow
def test_the_error_for_a_gated_model_without_network_does_not_show_the_token(kaggle):
    with pytest.raises(papermill.PapermillExecutionError, match="Hugging Face cannot be reached"):
        execute(kaggle, NOTEBOOKS[0], OVERRIDES={"llm_preset": "hf://google/gemma-2b"})


@pytest.mark.slow
def test_without_wheel_and_network_the_setup_fails_with_the_remedy(kaggle, wheel):
    hidden = wheel.rename(wheel.with_suffix(".hidden"))
    try:
        with pytest.raises(
            papermill.PapermillExecutionError, match="package was not found: .*attach its wheel"
        ):
            execute(kaggle, NOTEBOOKS[0])
    finally:
        hidden.rename(wheel)

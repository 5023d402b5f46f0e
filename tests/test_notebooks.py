import json
import re
import subprocess
import sys
import types
from pathlib import Path

import nbformat
import pandas as pd
import papermill
import pytest
from made_presets import write_gemma
from made_results import EMOTION, TRAINED, result

import embedder_helpers
from embedder_helpers.errors import InputError
from embedder_helpers.results.result import write_result

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
MOST_LINES = 12


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_stored_without_outputs_and_in_small_cells(path):
    cells = nbformat.read(path, as_version=4).cells
    code = [cell for cell in cells if cell.cell_type == "code"]
    assert not any(cell.outputs for cell in code)
    assert max(cell.source.count("\n") + 1 for cell in code) <= MOST_LINES
    assert code[0].metadata.tags == ["parameters"]


def experiments_of(path, **parameters):
    """The experiments of a notebook for values in its first cell, without a kernel."""
    cells = [cell.source for cell in nbformat.read(path, as_version=4).cells]
    (load,) = (source for source in cells if "eh.load_experiments(" in source)
    names = {"eh": embedder_helpers, "pd": pd}
    exec(cells[1], names)
    names |= parameters
    exec(load, names)
    return names["experiments"]


OF_EXPERIMENTS = [path for path in NOTEBOOKS if "compare" not in path.stem]
CONFIG = "{seed: 5, clip_norm: 2.0, patience: 3, max_train_texts: 40}"


@pytest.mark.parametrize("path", OF_EXPERIMENTS, ids=lambda path: path.stem)
def test_none_in_the_overrides_is_null_and_elsewhere_the_value_of_the_config(path, tmp_path):
    (tmp_path / "my.yaml").write_text(CONFIG)
    overrides = {"patience": None, "max_train_texts": None}
    config = str(tmp_path / "my.yaml")
    (experiment,) = experiments_of(path, CONFIG=config, OVERRIDES=overrides)
    assert (experiment.patience, experiment.max_train_texts) == (None, None)
    assert (experiment.seed, experiment.clip_norm) == (5, 2.0)


WRONG_TYPES = [
    ("OVERRIDES", "{'epochs': 1}", "-y 'OVERRIDES: "),
    ("OVERRIDES", ["epochs"], "-y 'OVERRIDES: "),
    ("OVERRIDES", {"epoch": 1}, "'epoch'"),
    ("SEED", "one", "seed is 'one'"),
    ("SEED", [1, 2], "seed is"),
    ("TASK", ["a.csv"], "task is"),
    ("CONFIG", None, "None"),
    ("CONFIG", 7, "7"),
]


@pytest.mark.parametrize(
    ("path", "name", "value", "fault"),
    [
        pytest.param(path, *case, id=f"{path.stem}-{case[0]}-{i}")
        for path in OF_EXPERIMENTS
        for i, case in enumerate(WRONG_TYPES)
        if f"\n{case[0]} = " in "\n" + nbformat.read(path, as_version=4).cells[1].source
    ],
)
def test_a_wrong_type_in_the_first_cell_is_an_error_that_names_it(path, name, value, fault):
    with pytest.raises(InputError) as error:
        experiments_of(path, **{name: value})
    assert fault in str(error.value)


def outputs(path):
    cells = nbformat.read(path, as_version=4).cells
    return [output for cell in cells for output in cell.get("outputs", [])]


def printed_by(path):
    """What its cells wrote to standard output and standard error."""
    return "".join(output.text for output in outputs(path) if output.output_type == "stream")


def execute(tmp_path, notebook=NOTEBOOKS[0], folder=ROOT / "notebooks", **parameters):
    executed = tmp_path / "executed.ipynb"
    papermill.execute_notebook(
        notebook,
        executed,
        parameters={"OUT": str(tmp_path / "out"), **parameters},
        progress_bar=False,
        cwd=folder,
    )
    return executed


def execute_small(tmp_path, notebook, config):
    """Executes a notebook of many experiments on a config of its own."""
    (tmp_path / "small.yaml").write_text(config)
    states = str(tmp_path / "states")
    return execute(tmp_path, notebook, CONFIG=str(tmp_path / "small.yaml"), STATES_DIR=states)


@pytest.mark.slow
def test_train_and_score_runs_on_the_built_in_default(tmp_path):
    overrides = {"epochs": 1, "states_dir": str(tmp_path / "states")}
    executed = execute(tmp_path, LLM_LAYERS=-15, SEED=7, OVERRIDES=overrides)
    printed = printed_by(executed)
    assert "| hybrid [1-4]     | 4      | -15          |" in printed
    assert "not how good it is" in printed
    assert "WARNING:tensorflow" not in printed
    images = [output for output in outputs(executed) if "image/png" in output.get("data", {})]
    assert len(images) == 1
    results = [json.loads(path.read_text()) for path in (tmp_path / "out").glob("*.json")]
    kinds = sorted(result["experiment"]["kind"] for result in results)
    assert kinds == ["gemma_only", "hybrid", "roberta_only"]


@pytest.mark.slow
def test_an_invalid_first_cell_is_reported_before_any_computation(tmp_path):
    with pytest.raises(papermill.PapermillExecutionError, match="llm_layers is 2.5, but must be"):
        execute(tmp_path, LLM_LAYERS=2.5)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_where_the_package_is_not_found_the_notebook_says_how_to_execute_it(tmp_path, monkeypatch):
    monkeypatch.delenv("PYTHONPATH", raising=False)
    command = [sys.executable, "-c", "import embedder_helpers"]
    if subprocess.run(command, cwd=tmp_path, stderr=subprocess.DEVNULL).returncode == 0:
        pytest.skip("the package is installed")
    with pytest.raises(papermill.PapermillExecutionError, match="papermill --cwd notebooks"):
        execute(tmp_path, folder=tmp_path, REPOSITORY=str(tmp_path / "none"))


SWEEP = """
epochs: 1
max_train_texts: 32
experiments:
  - {kind: roberta_only, epochs: 0}
  - kind: gemma_only
    each: {llm_layers: [1, 2, 3]}
  - {kind: hybrid, llm_layers: 2}
"""


@pytest.mark.slow
def test_the_layer_sweep_writes_its_table_and_curves(tmp_path):
    executed = execute_small(tmp_path, NOTEBOOKS[1], SWEEP)
    printed = printed_by(executed)
    assert "3 cutoffs (1 … 3)" in printed and "GB of hidden states" in printed
    assert "| Gemma only [1-3]        | -16          |" in printed
    images = [output for output in outputs(executed) if "image/png" in output.get("data", {})]
    assert len(images) == 2
    assert {path.name for path in (tmp_path / "out").glob("*.[pc]*")} == {
        "layers.png",
        "results.csv",
        "scores.png",
    }


@pytest.mark.slow
def test_the_comparison_shows_its_report_and_writes_it(tmp_path):
    for kind, cutoffs in (("hybrid", (2,)), ("gemma_only", (2,)), ("roberta_only", ())):
        for task in ("weather", EMOTION):
            one = result(kind, cutoffs, task=task, history=TRAINED)
            (tmp_path / "mine").mkdir(exist_ok=True)
            write_result(one, tmp_path / "mine" / f"{task}-{kind}.json")
    executed = tmp_path / "executed.ipynb"
    papermill.execute_notebook(
        NOTEBOOKS[2], executed, {"FOLDER": str(tmp_path)}, progress_bar=False, cwd=ROOT
    )
    shown = json.dumps(outputs(executed))
    assert "MTEB's leaderboard" in shown and "of 224" in shown
    assert "original study" in shown
    assert (tmp_path / "report" / "report.html").exists()


ABLATION = """
epochs: 1
max_train_texts: 32
fusion: replace
each: {seed: [1, 2]}
experiments:
  - {kind: hybrid, llm_layers: 2, projection_start: random}
  - {kind: hybrid, llm_layers: 2}
"""


@pytest.mark.slow
def test_the_ablation_shows_what_each_step_gained(tmp_path):
    execute_small(tmp_path, NOTEBOOKS[3], ABLATION)
    table = (tmp_path / "out" / "steps.md").read_text()
    (step,) = [line for line in table.splitlines() if "projection_start ridge" in line]
    assert re.search(r"[+-]\d\.\d{3} \[[+-]\d", step)
    assert (tmp_path / "out" / "steps.png").stat().st_size > 1000


def test_the_texts_of_a_verdict_are_shown_as_text():
    cells = [cell.source for cell in nbformat.read(NOTEBOOKS[4], as_version=4).cells]
    (source,) = (cell for cell in cells if "decisive_texts(" in cell)
    table = pd.DataFrame({"text": ["<b>Rain</b>" + 99 * "."], "label": ["<i>"], "hybrid": [2 / 3]})
    shown = []
    names = {
        "verdict": None,
        "verdict_report": types.SimpleNamespace(decisive_texts=lambda verdict: table),
        "pd": pd, "HTML": str, "display": shown.append,
    }  # fmt: skip
    exec(source, names)
    (html,) = shown
    assert 99 * "." in html
    assert "&lt;b&gt;Rain" in html and "0.67" in html
    assert "<b>" not in html and "<i>" not in html


VERDICT = """
epochs: 1
llm_preset: {gemma}
"""


@pytest.mark.slow
def test_the_verdict_is_shown_with_its_figures_and_texts(tmp_path, monkeypatch):
    gemma = write_gemma("gemma2", 2, tmp_path / "gemma").handle
    lines = [
        json.dumps({"text": f"<b>The {word}</b> on day {i} of <i>{split}</i>.", "label": word})
        for split in ("spring", "autumn")
        for i in range(40)
        for word in ("rain", "sun")
    ]
    (tmp_path / "mine.jsonl").write_text("\n".join(lines))
    (tmp_path / "small.yaml").write_text(VERDICT.format(gemma=gemma))
    executed = execute(
        tmp_path, NOTEBOOKS[4], CONFIG=str(tmp_path / "small.yaml"),
        TASK=str(tmp_path / "mine.jsonl"), SEEDS=[1, 2], SIZES=[4],
        OVERRIDES={"samples_per_label": 4}, STATES_DIR=str(tmp_path / "states"),
    )  # fmt: skip
    printed = printed_by(executed)
    assert re.search(r"On mine\S*, with \d+ training texts, ", printed)
    assert str(tmp_path / "out" / "verdict.html") in printed
    images = [output for output in outputs(executed) if "image/png" in output.get("data", {})]
    assert len(images) == 4
    tables = "".join(
        output["data"]["text/html"]
        for output in outputs(executed)
        if "text/html" in output.get("data", {})
    )
    assert "protocol accuracy" in tables and "ms_per_text" in tables
    assert "<b>The" not in tables

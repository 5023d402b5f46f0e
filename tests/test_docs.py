"""The documentation: links lead somewhere, names and commands exist, and what it shows runs."""

import ast
import contextlib
import dataclasses
import importlib
import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
from made_results import result

import embedder_helpers as eh
from embedder_helpers import __main__ as command_line
from embedder_helpers import config
from embedder_helpers.config import Experiment, settings
from embedder_helpers.config_files import load_experiments
from embedder_helpers.data.tasks import MTEB_TASKS
from embedder_helpers.models import layers
from embedder_helpers.models.preset_config import FAMILIES
from embedder_helpers.results.comparison import (
    comparison_table,
    difference_table,
    format_comparison,
)
from embedder_helpers.results.ranking import rank_table
from embedder_helpers.results.tables import (
    layer_table,
    load_results,
    long_table,
    results_table,
)
from tools import configuration_page

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
README = ROOT / "README.md"
PAGES = [README, *sorted(DOCS.glob("*.md")), *sorted(ROOT.glob("results/*/README.md"))]
READING = (DOCS / "reading_the_results.md").read_text(encoding="utf-8")
EXAMPLES = sorted(path.stem for path in (ROOT / "examples").glob("*.py"))


def name_of(page):
    return page.relative_to(ROOT).as_posix()


def blocks(page, *languages):
    """The fenced blocks in these languages, as pairs of language and content, in order."""
    text = page.read_text(encoding="utf-8")
    pairs = re.findall(r"^```(\w+)\n(.*?)^```$", text, re.M | re.S)
    return [(language, content) for language, content in pairs if language in languages]


# === Links, names and commands ===


def anchors(page):
    """The headings of a page, as links spell them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_relative_link_leads_to_a_file_and_a_heading(page):
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if link.startswith(("http://", "https://")):
            continue
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def test_the_index_names_every_page():
    index = (DOCS / "README.md").read_text(encoding="utf-8")
    for page in DOCS.glob("*.md"):
        assert page.name == "README.md" or f"]({page.name})" in index, page.name


def test_the_readme_is_short():
    assert len(README.read_text(encoding="utf-8").split()) <= 900


def commands(page):
    """The arguments of every `python -m embedder_helpers …` on a page, placeholders kept."""
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    for line in re.findall(r"python -m embedder_helpers ([^\n`]+)", text):
        line = line.partition(" #")[0]
        # A command in a shell variable ends with a quotation mark that began before it.
        line = line if line.count('"') % 2 == 0 else line.rstrip().removesuffix('"')
        arguments = [word for word in shlex.split(line) if word != "…"]
        if not arguments[0].startswith("-"):
            yield arguments


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_the_command_line_accepts_every_command(page):
    for arguments in commands(page):
        with contextlib.suppress(SystemExit):
            command_line._parser().parse_args(arguments)
            continue
        pytest.fail(shlex.join(arguments))


def test_every_command_is_listed():
    text = (DOCS / "running.md").read_text(encoding="utf-8")
    assert [name for name in command_line.COMMANDS if f"| `{name}" not in text] == []


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_script_and_module_that_is_run_exists(page):
    text = page.read_text(encoding="utf-8")
    for path in re.findall(r"python ((?:tools|benchmarks|examples)/[\w/]+\.py)", text):
        assert (ROOT / path).is_file(), path
    for module in re.findall(r"python -m ((?:tools|examples)[\w.]+)", text):
        assert (ROOT / module.replace(".", "/")).with_suffix(".py").is_file(), module


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_name_after_eh_is_public(page):
    names = set(re.findall(r"\beh\.(\w+)", page.read_text(encoding="utf-8")))
    assert names <= set(eh.__all__)


def test_every_make_target_exists():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for page in PAGES:
        for target in re.findall(
            r"(?:^    |`)make ([a-z-]+)", page.read_text(encoding="utf-8"), re.M
        ):
            assert f"\n{target}:" in makefile, (page.name, target)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_python_block_is_valid(page):
    for _, content in blocks(page, "python"):
        ast.parse(content)


# === configuration.md ===


def test_the_page_of_settings_is_up_to_date():
    written = configuration_page.PAGE.read_text(encoding="utf-8")
    assert written == configuration_page.page(), "run `make docs`"


def test_every_setting_is_in_one_table_once_with_its_default():
    lines = configuration_page.tables().splitlines()
    defaults = Experiment().as_dict()
    for name, setting in settings().items():
        rows = [line for line in lines if line.startswith(f"| `{name}` |")]
        assert len(rows) == 1
        assert f"| `{json.dumps(defaults[name])}` | {setting.rule.allowed} |" in rows[0]


def test_the_configs_on_the_page_hold_as_many_experiments_as_it_says(tmp_path):
    counts = []
    for _, content in blocks(configuration_page.PAGE, "yaml"):
        (tmp_path / "my.yaml").write_text(content)
        counts.append(len(load_experiments(tmp_path / "my.yaml")))
    assert counts == [1, 8]


# === reading_the_results.md ===


def test_every_field_of_a_result_is_explained_by_its_stored_key():
    one = result()
    stored = one.as_stored()
    for field, key in zip(dataclasses.fields(one), stored, strict=True):
        assert f"`{key}`" in READING, key
        assert field.name == key or f"`{key}` (`{field.name}`)" in READING, field.name


def test_every_column_is_explained():
    one = result(seed=33)
    seeds = [one, result(seed=34), result("roberta_only", cutoffs=(), seed=33)]
    search = [
        result("roberta_only", (), task=task, scored_split="validation", epochs=epochs)
        for task in ("EmotionClassification", "weather")
        for epochs in (1, 2, 3)
    ]
    tables = [
        results_table([one]), long_table([one]), comparison_table(seeds), difference_table(seeds),
        rank_table(search),
    ]  # fmt: skip
    columns = {column for table in tables for column in table.columns}
    for column in columns - set(one.experiment) - set(one.versions) - {"weather accuracy"}:
        assert f"`{column}`" in READING or f"| {column} " in READING, column


def test_the_columns_of_the_layer_table_are_explained():
    tasks = ["EmotionClassification", "weather"]
    table = layer_table([result(task=task, seed=seed) for task in tasks for seed in (33, 34)])
    expected = {"embedder", "layer number", "seeds"}
    expected |= {f"{task} {metric}" for task in tasks for metric in ("accuracy", "macro F1")}
    assert set(table.columns) == expected
    assert "`EmotionClassification accuracy`" in READING


def cells(line):
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_the_rows_it_shows_are_measured_ones():
    measured = format_comparison(load_results(ROOT / "results" / "comparison")).splitlines()
    shown = [text for _, text in blocks(DOCS / "reading_the_results.md", "text")]
    rows = [cells(line) for line in "".join(shown).splitlines()]
    assert rows and [row for row in rows if row not in map(cells, measured)] == []


def test_the_readme_s_scores_are_measured_ones():
    results = load_results(ROOT / "results" / "comparison")
    text = README.read_text(encoding="utf-8").replace("**", "").replace("−", "-")
    rows = re.findall(
        r"^\| (\w+) \| ([\d ]+) \| (.+) \| (.+) \| (.+) \| (.+) \|$", text, re.MULTILINE
    )
    means, differences = comparison_table(results), difference_table(results)
    baselines = differences[differences["compared with"] == "RoBERTa only"].set_index("task")
    assert {f"{name}Classification" for name, *_ in rows} == set(means["task"])
    for name, texts, *scores, difference in rows:
        task = f"{name}Classification"
        trained_on = {one.task["texts"].get("fit") for one in results if one.task["name"] == task}
        assert int(texts.replace(" ", "")) in trained_on
        for kind, shown in zip(("Gemma only", "RoBERTa only", "hybrid"), scores, strict=True):
            mine = means[(means["task"] == task) & means["embedder"].str.startswith(kind)].iloc[0]
            metrics = ("accuracy", "macro F1")
            assert shown == " / ".join(mine[metric].split()[0] for metric in metrics)
        assert difference == baselines.loc[task, "accuracy"]


# === Blocks and examples ===


def run_blocks(page):
    """Run the Python and shell blocks of a page in the working folder, as one session."""
    names = {}
    for language, content in blocks(page, "python", "bash"):
        if language == "python":
            exec(content, names)
        elif content.startswith("python -m embedder_helpers "):
            arguments = shlex.split(content.replace("\\\n", " "))[3:]
            assert command_line.main(arguments) == 0
        else:
            subprocess.run(["bash", "-euc", content], check=True)
    return names


def test_an_object_with_encode_is_scored(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    scores = run_blocks(DOCS / "evaluate.md")["scores"]
    assert len(scores.experiments) == 10 and 0.5 < scores.accuracy < 1


@pytest.mark.slow
def test_the_readme_s_python_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = run_blocks(README)
    kinds = [one.experiment["kind"] for one in names["results"]]
    assert sorted(kinds) == ["gemma_only", "hybrid", "roberta_only"] and not names["failed"]
    assert names["embedder"].head is not None


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("bash"), reason="some blocks are for bash")
def test_an_embedder_is_saved_and_used(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = run_blocks(DOCS / "sharing.md")
    assert names["embedder"].experiment.kind == "roberta_only"
    assert (tmp_path / "my_embedder" / "embedder.json").is_file()


@pytest.fixture
def run_example(tmp_path):
    """Run an example in a temporary folder; what it registers is removed again."""
    tasks, architectures = dict(MTEB_TASKS), set(FAMILIES["slm_preset"][1])
    names, fusions = list(config.FUSION_NAMES), dict(layers.FUSION_FUNCTIONS)

    def run(name):
        (only,) = importlib.import_module(f"examples.{name}").main(tmp_path)
        return only

    yield run
    MTEB_TASKS.clear()
    MTEB_TASKS.update(tasks)
    FAMILIES["slm_preset"][1].intersection_update(architectures)
    config.FUSION_NAMES[:] = names
    layers.FUSION_FUNCTIONS.clear()
    layers.FUSION_FUNCTIONS.update(fusions)


def test_every_example_is_explained():
    page = (DOCS / "adding.md").read_text(encoding="utf-8")
    for name in EXAMPLES:
        assert f"(../examples/{name}.py)" in page, name


def test_a_folder_of_texts_is_a_task(run_example):
    only = run_example("own_task")
    assert only.task["name"] == "weather" and only.task["texts"] == {"drawn": 8, "scored": 4}


@pytest.mark.slow
def test_an_entry_is_another_task_of_mteb(run_example):
    only = run_example("own_mteb_task")
    assert only.task["name"] == "NewsClassification" and only.task["samples_per_label"] == 8


@pytest.mark.slow
def test_a_folder_is_another_gemma(run_example):
    only = run_example("own_gemma")
    assert only.cutoffs == [3] and only.num_layers == 3


@pytest.mark.slow
def test_a_function_is_another_fusion(run_example):
    only = run_example("own_fusion")
    assert only.experiment["fusion"] == "average" and len(only.history) == 1


@pytest.mark.slow
def test_another_encoder_takes_roberta_s_place(run_example):
    only = run_example("own_encoder")
    assert only.experiment["slm_preset"].endswith("my_bert")
    assert only.projection is not None  # its tokens were aligned with Gemma's

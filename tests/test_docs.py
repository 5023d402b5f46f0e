"""The documentation: its links lead somewhere, and what it shows is what happens."""

import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from made_results import result

from embedder_helpers.config import Experiment
from embedder_helpers.report import load_results, long_table, table
from embedder_helpers.result import Result
from embedder_helpers.sweep import load_sweep

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
sys.path.insert(0, str(DOCS))

import configuration  # noqa: E402

PAGES = [ROOT / "README.md", *sorted(DOCS.glob("*.md"))]
READING = (DOCS / "reading_the_results.md").read_text(encoding="utf-8")


def blocks(page, *languages):
    """The fenced blocks in these languages, as pairs of language and content, in order."""
    found = re.findall(r"^```(\w+)\n(.*?)^```$", page.read_text(encoding="utf-8"), re.M | re.S)
    return [(language, content) for language, content in found if language in languages]


# Links


def headings(page):
    """As links name them."""
    found = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.M)
    return {re.sub(r"[^\w\- ]", "", one.lower()).replace(" ", "-") for one in found}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_relative_link_leads_to_a_file_and_a_heading(page):
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if link.startswith(("http://", "https://")):
            continue
        path, _, heading = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), link
        assert not heading or heading in headings(target), link


def test_the_index_names_every_page():
    index = (DOCS / "README.md").read_text(encoding="utf-8")
    for page in PAGES[1:]:
        assert page.name == "README.md" or f"]({page.name})" in index, page.name


# configuration.md


def test_the_page_of_keys_is_up_to_date():
    written = configuration.PAGE.read_text(encoding="utf-8")
    assert written == configuration.page(), "run `make docs`"


def test_every_key_stands_in_one_table_once_with_its_default():
    lines = configuration.tables().splitlines()
    for key in dataclasses.fields(Experiment):
        rows = [line for line in lines if line.startswith(f"| `{key.name}` |")]
        assert len(rows) == 1
        assert f"| `{json.dumps(key.default)}` | {key.metadata['rule'].allowed} |" in rows[0]


def test_a_key_without_a_group_stands_in_the_last_table():
    found = configuration.grouped(["seed", "colour"])
    assert list(found)[-1] == configuration.REST and found[configuration.REST] == ["colour"]


def test_no_group_names_a_key_that_is_none():
    known = {one.name for one in dataclasses.fields(Experiment)}
    assert {name for keys in configuration.GROUPS.values() for name in keys} <= known


def test_the_configs_on_the_page_hold_as_many_experiments_as_it_says(tmp_path):
    counts = []
    for _, content in blocks(configuration.PAGE, "yaml"):
        (tmp_path / "my.yaml").write_text(content)
        counts.append(len(load_sweep(tmp_path / "my.yaml")))
    assert counts == [1, 8]


# reading_the_results.md


def test_every_field_of_a_result_is_explained():
    for one in dataclasses.fields(Result):
        assert f"`{one.name}`" in READING, one.name


def test_every_column_is_explained():
    one = result()
    columns = [*table([one]).columns, *long_table([one]).columns]
    for column in set(columns) - set(one.experiment) - set(one.versions):
        assert f"`{column}`" in READING or column == "kind", column


def test_the_rows_it_shows_are_measured_ones():
    measured = (ROOT / "results" / "comparison" / "table.md").read_text(encoding="utf-8")
    shown = "".join(text for _, text in blocks(DOCS / "reading_the_results.md", "text"))
    assert shown and set(shown.splitlines()) <= set(measured.splitlines())


# adding.md and sharing.md

RUNNER = """
import json, shlex, subprocess, sys
from embedder_helpers.__main__ import main

for language, content in json.load(sys.stdin):
    print(content, flush=True)
    if language == "python":
        exec(content, {})
    elif content.startswith("python -m embedder_helpers "):
        assert main(shlex.split(content.replace("\\\\\\n", " "))[3:]) == 0
    else:
        subprocess.run(["bash", "-euc", content], check=True)
"""


@pytest.fixture(scope="module")
def added(tmp_path_factory):
    """A copy of the package with the page's patches, in which all its blocks were run in order.

    And those of sharing.md behind them. They share a process, since TensorFlow takes longer to
    start than they take to run.
    """
    if not (shutil.which("git") and shutil.which("bash")):
        pytest.skip("the page is for a shell with git")
    folder = tmp_path_factory.mktemp("adding")
    for name in ("embedder_helpers", "configs"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, folder / name, ignore=ignored)
    page = DOCS / "adding.md"
    alone = os.environ | {"GIT_CEILING_DIRECTORIES": str(folder.parent)}  # of no repository's
    for _, patch in blocks(page, "diff"):
        apply = ["git", "apply", "-"]
        subprocess.run(apply, cwd=folder, env=alone, input=patch, text=True, check=True)
    pages = page, DOCS / "sharing.md"
    steps = json.dumps([step for one in pages for step in blocks(one, "bash", "python")])
    ran = subprocess.run(
        [sys.executable, "-c", RUNNER], cwd=folder, input=steps, capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stdout[-2000:] + ran.stderr[-2000:]
    return folder / "results"


def only_result(folder):
    (found,) = load_results(folder)
    return found


def test_a_folder_of_texts_is_a_task(added):
    found = only_result(added / "weather")
    assert found.task["name"] == "weather" and found.task["texts"] == {"drawn": 8, "scored": 4}


def test_a_row_is_another_task_of_mteb(added):
    found = only_result(added / "news")
    assert found.task["name"] == "NewsClassification" and found.task["samples_per_label"] == 8


def test_a_folder_is_another_gemma(added):
    found = only_result(added / "my_gemma")
    assert found.cutoffs == [3] and found.blocks == 3


def test_two_lines_let_another_family_in_roberta_s_place(added):
    found = only_result(added / "my_bert")
    assert found.experiment["slm_preset"] == "presets/my_bert"
    assert found.projection is not None  # its tokens were found among Gemma's


def test_a_patch_adds_a_fusion_that_trains(added):
    found = only_result(added / "average")
    assert found.experiment["fusion"] == "average" and len(found.history) == 1


def test_an_embedder_is_kept_and_used(added):
    assert (added.parent / "my_embedder" / "embedder.json").is_file()


def test_the_package_itself_knows_nothing_of_the_patches():
    with pytest.raises(ValueError, match="fusion is 'average'"):
        Experiment(fusion="average")

import re

import pandas as pd
import pytest
from made_results import EMOTION, TRAINED, result

from embedder_helpers.__main__ import main
from embedder_helpers.document import sections, write_document
from embedder_helpers.result import write_result

RESULTS = [
    *(result("hybrid", (cutoff,), 0.5, EMOTION, TRAINED) for cutoff in (1, 2, 3)),
    result("roberta_only", (), 0.6, EMOTION, TRAINED),
]


def test_a_document_tells_scores_lead_place_original_and_curves():
    assert [part.name for part in sections(RESULTS)] == [
        "comparison", "differences", "leaderboard", "original_study", "cutoffs", "results",
    ]  # fmt: skip


def test_what_results_do_not_hold_is_left_out():
    assert [part.name for part in sections([result("gemma_only", (2,))])] == [
        "comparison",
        "results",
    ]


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("results")
    write_document(sections(RESULTS), folder)
    return folder


def test_markdown_names_the_figures_beside_it(written):
    text = (written / "report.md").read_text()
    figures = re.findall(r"\((\w+\.png)\)", text)
    assert figures == ["comparison.png", "leaderboard.png", "cutoffs.png"]
    assert all((written / figure).is_file() for figure in figures)
    assert "| 0.600" in text and "## The place on MTEB's leaderboard" in text


def test_the_page_holds_its_figures_in_itself(written):
    text = (written / "report.html").read_text()
    assert text.count("data:image/png;base64,") == 3 and 'src="leaderboard' not in text
    assert text.count("<table") == 5


def test_tables_are_csv_with_numbers_that_sort(written):
    frame = pd.read_csv(written / "original_study.csv")
    assert frame["accuracy above"].dtype == float and len(frame) == 4


def test_the_command_line_writes_it_from_folders_below(tmp_path, capsys):
    (tmp_path / "mine").mkdir()
    write_result(RESULTS[0], tmp_path / "mine" / "one.json")
    assert main(["report", str(tmp_path)]) == 0
    assert str(tmp_path / "report" / "report.html") in capsys.readouterr().out


def test_a_folder_without_results_is_told(tmp_path, capsys):
    assert main(["report", str(tmp_path)]) == 2
    assert "holds no results" in capsys.readouterr().err

import logging
import re

import pandas as pd
import pytest
from made_results import EMOTION, TRAINED, result

from embedder_helpers.__main__ import main
from embedder_helpers.errors import InputError
from embedder_helpers.results import tables
from embedder_helpers.results.ranking import format_ranking, rank_table
from embedder_helpers.results.report import report_sections, summarize, write_report
from embedder_helpers.results.result import write_result

# === The summary ===


def test_a_summary_of_two_cutoffs_or_fewer_has_no_curves(tmp_path, capsys):
    (tmp_path / tables.LAYERS_FIGURE).write_text("of other results")
    results = [result(), result("gemma_only"), result(cutoffs=(4,)), result("roberta_only", ())]
    summarize(results, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {tables.TABLE_FILE, tables.SCORES_FIGURE}
    assert (tmp_path / tables.TABLE_FILE).read_text() in capsys.readouterr().out


def test_cutoffs_of_different_tasks_have_no_curves():
    results = [result(cutoffs=(cutoff,), task=f"task {cutoff}") for cutoff in (1, 10, 18)]
    assert not tables.has_layer_curve(results)


def test_a_summary_of_several_cutoffs_has_the_layer_table_and_curves(tmp_path, capsys):
    results = [result(cutoffs=(cutoff,)) for cutoff in (1, 10, 18)]
    summarize(results, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {
        tables.TABLE_FILE,
        tables.SCORES_FIGURE,
        tables.LAYERS_FIGURE,
    }
    text = (tmp_path / tables.TABLE_FILE).read_text()
    assert text.startswith(tables.to_markdown(tables.layer_table(results)))
    assert text.endswith(tables.format_results(results))
    assert text in capsys.readouterr().out


def test_a_summary_logs_its_files_and_prints_nothing_but_the_tables(tmp_path, capsys, caplog):
    with caplog.at_level(logging.INFO, "embedder_helpers"):
        summarize([result()], tmp_path)
    assert str(tmp_path / tables.SCORES_FIGURE) in caplog.text
    assert capsys.readouterr().out.strip() == (tmp_path / tables.TABLE_FILE).read_text().strip()


SEARCH = [
    result("roberta_only", (), accuracy, task, scored_split="validation", epochs=epochs)
    for task in ("sunshine", "weather")
    for epochs, accuracy in ((1, 0.5), (2, 0.7), (3, 0.6))
]


def test_the_summary_of_a_search_starts_with_its_mean_ranks(tmp_path):
    assert summarize(SEARCH, tmp_path) == []  # a figure of all its scores would be too large
    assert [path.name for path in tmp_path.iterdir()] == [tables.TABLE_FILE]
    text = (tmp_path / tables.TABLE_FILE).read_text()
    assert text == format_ranking(SEARCH) + tables.format_results(SEARCH)
    assert text.startswith("| recipe ")


# === The report ===

RESULTS = [
    *(result("hybrid", (cutoff,), 0.5, EMOTION, TRAINED) for cutoff in (1, 2, 3)),
    result("roberta_only", (), 0.6, EMOTION, TRAINED),
]


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    return write_report(RESULTS, tmp_path_factory.mktemp("results") / "report")


def test_a_report_has_scores_differences_ranks_the_original_study_and_curves(report):
    assert [section.name for section in report.sections] == [
        "comparison", "differences", "leaderboard", "original_study", "cutoffs", "results",
    ]  # fmt: skip


def test_sections_without_content_are_left_out():
    sections = report_sections([result("gemma_only", (2,))])
    assert [section.name for section in sections] == ["comparison", "results"]


def test_the_report_of_a_search_starts_with_its_mean_ranks():
    section = report_sections(SEARCH)[0]
    assert section.name == "ranking" and "critical difference" in section.text
    pd.testing.assert_frame_equal(section.table, rank_table(SEARCH))


def test_the_report_lists_its_files_with_the_page_last(report):
    assert {*report.files} == {*report.folder.iterdir()}
    assert report.files[-1].name == "report.html"


def test_the_markdown_has_tables_and_links_to_the_figures(report):
    text = (report.folder / "report.md").read_text()
    links = re.findall(r"\((\w+\.png)\)", text)
    assert links == ["comparison.png", "leaderboard.png", "cutoffs.png"]
    assert all((report.folder / link).is_file() for link in links)
    assert "| 0.600" in text
    assert all(f"## {section.title}" in text for section in report.sections)


def test_the_page_contains_tables_and_figures(report):
    text = (report.folder / "report.html").read_text()
    assert text.count("data:image/png;base64,") == 3 and 'src="leaderboard' not in text
    assert text.count("<table") == 5


def test_a_notebook_shows_the_sections_of_a_report(report, capsys):
    report._ipython_display_()
    shown = capsys.readouterr().out  # outside a notebook, objects are printed
    assert shown.count("Markdown object") == len(report.sections)
    assert shown.count("Image object") == 3


def test_tables_are_written_as_csv_with_numbers(report):
    table = pd.read_csv(report.folder / "original_study.csv")
    assert table["accuracy difference"].dtype == float and len(table) == 4


@pytest.fixture
def page_of_odd_names(tmp_path):
    """The folder of a report on data and models with names that are markup and formulas."""
    name = "=1+1|<script>`$x$`" + "/long" * 20
    return write_report([result(task=name, pooling="mean"), result(task=name)], tmp_path).folder


def test_names_are_no_markup_in_a_report(page_of_odd_names):
    markdown = (page_of_odd_names / "report.md").read_text(encoding="utf-8")
    page = (page_of_odd_names / "report.html").read_text(encoding="utf-8")
    assert "<script" not in page and "&lt;script" in page
    assert not re.search(r"(?<!\\)(<script|\$x)", markdown) and r"\<script" in markdown
    rows = [line for line in markdown.splitlines() if line.startswith("|")]
    assert {len(re.findall(r"(?<!\\)\|", row)) for row in rows[:3]} == {9}


def test_names_are_no_formulas_in_a_report(page_of_odd_names):
    table = pd.read_csv(page_of_odd_names / "comparison.csv")
    assert table["task"].str.startswith("'=1+1").all()


def test_the_page_shows_long_paths_whole(page_of_odd_names):
    assert "/long" * 20 in (page_of_odd_names / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["table.md", "scores.png"])
def test_a_folder_in_place_of_a_summary_s_file_is_an_input_error(tmp_path, name):
    (tmp_path / name).mkdir()
    with pytest.raises(InputError, match=f"{tmp_path} .*{name}"):
        summarize([result()], tmp_path)


def test_a_folder_that_cannot_be_written_is_an_input_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="file"):
        write_report([result()], tmp_path / "file")


def test_the_command_line_writes_a_report_on_results_in_folders_below(tmp_path, capsys):
    (tmp_path / "mine").mkdir()
    write_result(RESULTS[0], tmp_path / "mine" / "one.json")
    assert main(["report", str(tmp_path)]) == 0
    assert str(tmp_path / "report" / "report.html") in capsys.readouterr().out


def test_the_command_line_reports_a_folder_without_results(tmp_path, capsys):
    assert main(["report", str(tmp_path)]) == 2
    assert str(tmp_path) in capsys.readouterr().err


def test_the_page_has_no_control_characters_in_tables(tmp_path):
    write_report([result(task="a\u202eb\x07")], tmp_path)
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "a\ufffdb\ufffd" in page and "\u202e" not in page and "\x07" not in page

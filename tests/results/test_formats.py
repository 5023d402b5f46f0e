import csv
import io

import pandas as pd
import pytest

from embedder_helpers.errors import InputError
from embedder_helpers.results.formats import (
    MAX_CELL,
    escape_markdown,
    map_texts,
    markdown_block,
    markdown_code,
    one_line,
    to_csv,
    to_markdown,
    to_raw_csv,
    write_text,
)

# === Markdown ===


@pytest.mark.parametrize(
    ("text", "escaped"),
    [
        ("a|b", r"a\|b"),
        ("<script>", r"\<script>"),
        ("`code`", r"\`code\`"),
        ("$x$", r"\$x\$"),
        ("*a* ~b~ __c__", r"\*a\* \~b\~ \_\_c\_\_"),
        ("[a](b)", r"[a\](b)"),
        ("![](http://tracker)", r"![\](http://tracker)"),
        ("&lt;b&gt;", r"\&lt;b\&gt;"),
        ("# title", r"\# title"),
        ("- item", r"\- item"),
        (r"a\|b", r"a\\\|b"),
        ("two\nlines\there", "two lines here"),
        ("\x1b[31mred\u202e", "\ufffd[31mred\ufffd"),
        ("half \udcff", "half \ufffd"),
    ],
)
def test_what_markdown_would_read_as_markup_is_escaped(text, escaped):
    assert escape_markdown(text) == escaped


@pytest.mark.parametrize(
    "text", ["amazon_counterfactual", "hybrid [1-10, selected]", "-0.011 [-0.1, +0.2]", "-",
             "C:\\data\\mine", "R&D", "5 > 3", "naïve 日本 👩\u200d🔬"],
)  # fmt: skip
def test_text_without_markup_stays_as_it_is(text):
    assert escape_markdown(text) == text


def test_names_and_cells_of_a_table_are_escaped_and_bounded():
    text = to_markdown(pd.DataFrame({"p(a|b)": ["x|y"], "long": ["x" * 10_000]}))
    header, rule, row = text.splitlines()
    assert r"p(a\|b)" in header and r"x\|y" in row
    assert len(header) == len(rule) == len(row) < 2 * MAX_CELL


def test_columns_of_markup_are_left_as_they_are():
    table = pd.DataFrame({"name": ["[a](b)"], "license": ["[MIT](LICENSE)"]})
    assert r"| [a\](b) | [MIT](LICENSE) |" in to_markdown(table, markup=["license"])


def test_names_that_are_no_text_are_shown():
    assert to_markdown(pd.DataFrame({0: [1.0]})).startswith("| 0     |")


@pytest.mark.parametrize(
    ("text", "code"), [("a", "`a`"), ("a`b", "``a`b``"), ("`", "`` ` ``"), ("a\nb", "`a b`")]
)
def test_code_is_between_more_backticks_than_it_has(text, code):
    assert markdown_code(text) == code


def test_a_block_of_code_is_not_ended_by_its_content():
    assert markdown_block("a\n", "yaml") == "```yaml\na\n```"
    assert markdown_block("a\n```\n", "yaml").splitlines()[0] == "````yaml"


def test_long_text_is_cut_in_its_middle():
    line = one_line("start " + "x" * 10_000 + " end")
    assert len(line) <= MAX_CELL and line.startswith("start") and line.endswith("end")


# === CSV ===


def read_rows(path):
    return list(csv.reader(io.StringIO(path.read_text(encoding="utf-8"))))


@pytest.mark.parametrize(
    "text",
    [
        "=1+1",
        "+1+1",
        "-15+-9",
        "-cmd|'/C calc'!A0",
        "@SUM(A1)",
        "\t=1",
        "\r=1",
        "＝1",
        "+e5",
        "-E10",
    ],
)
def test_a_spreadsheet_computes_nothing(tmp_path, text):
    to_csv(pd.DataFrame({text: [text]}), tmp_path / "table.csv")
    with (tmp_path / "table.csv").open(newline="", encoding="utf-8") as file:
        cell = "'" + text.replace("\r", "\n")
        assert list(csv.reader(file)) == [[cell], [cell]]


def test_numbers_and_intervals_stay_as_they_are(tmp_path):
    table = pd.DataFrame(
        {
            "float": [-0.1, None],
            "int": [-1, 2],
            "text": ["-1", "+1.5e-05"],
            "mixed": [-0.25, "-"],
            "interval": ["-0.011 [-0.02, +0.1]", "+0.011"],
            "bool": [True, False],
        }
    )
    assert read_rows(to_csv(table, tmp_path / "table.csv"))[1:] == [
        ["-0.1", "-1", "-1", "-0.25", "-0.011 [-0.02, +0.1]", "True"],
        ["", "2", "+1.5e-05", "-", "+0.011", "False"],
    ]


@pytest.mark.parametrize("text", ["=1+1", "@user fine", "-neg", "+e5", "two\rlines", "007"])
def test_raw_tables_hold_text_as_it_is(tmp_path, text):
    path = to_raw_csv(pd.DataFrame({text: [text], "number": [0.1]}), tmp_path / "table.csv")
    with path.open(newline="", encoding="utf-8") as file:
        assert list(csv.reader(file)) == [[text, "number"], [text, "0.1"]]


def test_texts_are_mapped_and_other_values_kept():
    missing = pd.Series(["x", None], dtype=object)
    table = pd.DataFrame({"a": missing, "n": [1, 2], "mixed": [1, "y"], 0: [0.5, None]})
    mapped = map_texts(table, str.upper)
    assert list(mapped) == ["A", "N", "MIXED", 0] and list(table) == ["a", "n", "mixed", 0]
    assert [mapped[name].tolist() for name in ("A", "N", "MIXED")] == [
        ["X", None], [1, 2], [1, "Y"],
    ]  # fmt: skip


@pytest.mark.parametrize("text", ["two\nlines", "two\r\nlines", 'a, "b"', "'quoted'"])
def test_other_text_stays_as_it_is(tmp_path, text):
    path = to_csv(pd.DataFrame({"text": [text]}), tmp_path / "table.csv")
    with path.open(newline="", encoding="utf-8") as file:
        assert list(csv.reader(file))[1] == [text]


def test_a_return_does_not_end_a_row(tmp_path):
    path = to_csv(pd.DataFrame({"text": ["two\rlines"]}), tmp_path / "table.csv")
    assert pd.read_csv(path)["text"].tolist() == ["two\nlines"]


def test_a_page_with_what_is_no_unicode_can_be_written(tmp_path):
    path = write_text(tmp_path / "page.html", "half \udcff")
    assert path.read_text(encoding="utf-8") == r"half \udcff"


def test_a_folder_in_place_of_the_file_is_an_input_error(tmp_path):
    (tmp_path / "table.csv").mkdir()
    with pytest.raises(InputError, match=f"{tmp_path} .*table.csv"):
        to_csv(pd.DataFrame({"a": [1]}), tmp_path / "table.csv")

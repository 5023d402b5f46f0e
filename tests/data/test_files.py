"""Local data: reading folders and files, and errors that name their rows."""

import csv
import os
import unicodedata
from collections import Counter

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st
from task_files import make_rows, write_folder, write_rows

from embedder_helpers.data import files
from embedder_helpers.data.files import (
    FORMATS,
    as_list,
    read_splits,
    read_table,
    unread_files,
    validate_texts,
)
from embedder_helpers.errors import InputError

every_format = pytest.mark.parametrize("ending", FORMATS)


def read(path, text_column="text", label_column="label"):
    return read_splits(path, text_column, label_column)


def message_of(path, **columns):
    """The message of the InputError that reading a task raises: one line."""
    with pytest.raises(InputError) as error:
        read(path, **columns)
    assert "\n" not in str(error.value)
    return str(error.value)


# === Folders ===


@every_format
@pytest.mark.parametrize("labels", [(0, 1), (-1, 1), ("no", "yes")])
def test_a_folder_is_read_with_its_labels_unchanged(tmp_path, ending, labels):
    write_folder(tmp_path, ending, train=make_rows(40, labels), test=make_rows(10, labels))
    splits = read(tmp_path)
    assert list(splits) == ["train", "test"]
    assert splits["train"].name == f"train{ending}"
    assert splits["train"].texts == [f"text {i}" for i in range(40)]
    assert splits["train"].labels.tolist() == [labels[i % 2] for i in range(40)]
    assert len(splits["test"].texts) == 10


def test_a_validation_file_is_the_validation_split(tmp_path):
    splits = read(write_folder(tmp_path, validation=make_rows(6, prefix="held")))
    assert splits["validation"].texts == [f"held {i}" for i in range(6)]


@every_format
def test_columns_may_have_other_names(tmp_path, ending):
    rows = [{"id": i, "sentence": f"s {i}", "class": "ab"[i % 2]} for i in range(20)]
    write_folder(tmp_path, ending, train=rows, test=rows)
    test = read(tmp_path, "sentence", "class")["test"]
    assert test.texts[3] == "s 3" and test.labels[3] == "b"


@every_format
@pytest.mark.parametrize("text", ["NA", "null", "007", "two\u2028lines", 'a "quoted", text', "é"])
def test_a_text_is_read_exactly_as_it_is_written(tmp_path, ending, text):
    rows = [{"text": text, "label": 0}, *make_rows(9, (1, 0))]
    assert read(write_folder(tmp_path, ending, train=rows))["train"].texts[0] == text


@pytest.mark.parametrize("name", ["dev", "val", "valid"])
def test_a_validation_file_may_have_another_usual_name(tmp_path, name):
    write_rows(write_folder(tmp_path) / f"{name}.csv", make_rows(6, prefix="held"))
    validation = read(tmp_path)["validation"]
    assert validation.name == f"{name}.csv" and len(validation.texts) == 6


@pytest.mark.parametrize(
    ("first", "second"),
    [("train.jsonl", "train.csv"), ("test.jsonl", "test.parquet"), ("dev.csv", "validation.csv")],
)
def test_two_files_of_one_split_are_an_error_that_names_both(tmp_path, first, second):
    write_folder(tmp_path)
    for name in (first, second):
        write_rows(tmp_path / name, make_rows(10))
    message = message_of(tmp_path)
    assert first in message and second in message and "keep one" in message


def test_files_that_are_no_split_are_known_except_hidden_and_descriptive_ones(tmp_path):
    splits = read(write_folder(tmp_path))
    for name in ("train.csv.gz", "TEST.csv", "README.md", "LICENSE", ".notes"):
        (tmp_path / name).touch()
    (tmp_path / "more").mkdir()
    assert unread_files(tmp_path, splits) == ["TEST.csv", "train.csv.gz"]


# === Labels of a whole task ===


@pytest.mark.parametrize("labels", [("²", "1"), ("--1", "1"), ("0.0", "1.0"), ("01", "1")])
def test_csv_labels_that_only_resemble_integers_stay_strings(tmp_path, labels):
    path = write_rows(tmp_path / "a,b.csv", make_rows(40, labels))
    assert set(read(path)["train"].labels.tolist()) == set(labels)


def test_labels_have_one_type_in_all_files_of_a_task(tmp_path):
    write_folder(tmp_path, ".csv", train=make_rows(20, ("0", "unknown")), test=make_rows(9, "0"))
    assert set(read(tmp_path)["test"].labels.tolist()) == {"0"}


def test_files_of_two_formats_may_have_the_same_whole_numbers(tmp_path):
    write_folder(tmp_path, test=None)
    write_rows(tmp_path / "test.csv", make_rows(10))
    assert set(read(tmp_path)["test"].labels.tolist()) == {0, 1}


def test_labels_of_two_types_in_two_files_are_an_error(tmp_path):
    write_folder(tmp_path, test=make_rows(10, ("0", "1")))
    assert "int in train.jsonl and str in test.jsonl" in message_of(tmp_path)


# Without "\r", which pandas does not quote in a CSV file.
LETTERS = st.characters(codec="utf-8", exclude_characters="\0\r")
WORDS = st.text(LETTERS, min_size=1, max_size=8).filter(lambda word: word.strip())
# At least two labels that do not only look alike.
LABEL_LISTS = st.lists(WORDS | st.integers().map(str), min_size=2, max_size=6).filter(
    lambda labels: (
        len(set(labels))
        == len({unicodedata.normalize("NFC", " ".join(label.split())) for label in labels})
    )
)


@every_format
@given(LABEL_LISTS)
def test_labels_and_texts_are_read_as_they_were_written(tmp_path_factory, ending, labels):
    path = tmp_path_factory.mktemp("data") / f"mine{ending}"
    rows = [{"text": label, "label": label, "split": "train"} for label in labels]
    write_rows(path, [*rows, *({**row, "split": "test"} for row in rows)])
    for split in read(path).values():
        assert split.texts == labels == list(map(str, split.labels.tolist()))


@every_format
def test_a_file_is_read_as_other_libraries_read_it(tmp_path, ending):
    texts = ["plain", 'a "quoted", text', "two\nlines", "007", " spaces ", "null", "x\u2028y", "𝄞"]
    rows = [
        {"text": text, "label": label, "split": split}
        for text in texts
        for label in ("007", "yes")
        for split in ("train", "test")
    ]
    path = write_rows(tmp_path / f"mine{ending}", rows)
    if ending == ".csv":
        others = pd.read_csv(path, dtype=str, keep_default_na=False).to_dict("records")
    elif ending == ".jsonl":
        others = datasets.Dataset.from_json(str(path), cache_dir=str(tmp_path)).to_list()
    else:
        others = pd.read_parquet(path).to_dict("records")
    for name, split in read(path).items():
        of_split = [(row["text"], row["label"]) for row in others if row["split"] == name]
        assert list(zip(split.texts, split.labels.tolist(), strict=True)) == of_split


# === Single files ===


@every_format
def test_a_file_with_a_split_column_is_split_by_it(tmp_path, ending):
    names = ["train"] * 20 + ["validation"] * 4 + ["test"] * 6
    rows = [row | {"split": name} for row, name in zip(make_rows(30), names, strict=True)]
    splits = read(write_rows(tmp_path / f"mine{ending}", rows))
    sizes = {name: len(split.texts) for name, split in splits.items()}
    assert sizes == {"train": 20, "validation": 4, "test": 6}
    assert splits["test"].texts[0] == "text 24"
    assert splits["test"].name == f"mine{ending}, test"


@every_format
def test_a_file_without_a_split_column_leaves_a_quarter_of_each_label_to_test(tmp_path, ending):
    rows = make_rows(100, ("a", "b", "b", "b", "b"))
    splits = read(write_rows(tmp_path / f"mine{ending}", rows))
    assert Counter(splits["test"].labels.tolist()) == {"a": 5, "b": 20}
    texts = splits["train"].texts + splits["test"].texts
    assert sorted(texts) == sorted(row["text"] for row in rows)


def test_the_only_text_of_a_label_stays_in_train(tmp_path):
    rows = [*make_rows(60, (0, 1)), {"text": "the only one", "label": 2}]
    assert 2 in read(write_rows(tmp_path / "mine.jsonl", rows))["train"].labels


@pytest.mark.parametrize("name", ["validation", "dev", "val", "valid"])
def test_a_split_column_may_name_validation_as_files_do(tmp_path, name):
    names = ["train"] * 10 + [name] * 4 + ["test"] * 6
    rows = [row | {"split": name} for row, name in zip(make_rows(20), names, strict=True)]
    assert len(read(write_rows(tmp_path / "mine.csv", rows))["validation"].texts) == 4


def test_a_single_file_with_one_text_of_each_label_has_no_test_split(tmp_path):
    path = write_rows(tmp_path / "mine.csv", make_rows(8, range(8)))
    assert "mine.csv, test is empty" in message_of(path)


def test_a_split_column_without_a_test_split_is_an_error(tmp_path):
    rows = [row | {"split": "train"} for row in make_rows(20)]
    assert "mine.jsonl, test is empty" in message_of(write_rows(tmp_path / "mine.jsonl", rows))


def test_rows_of_an_unknown_split_are_named(tmp_path):
    rows = [row | {"split": "train"} for row in make_rows(20)]
    rows[6]["split"] = "held out"
    del rows[8]["split"]
    message = message_of(write_rows(tmp_path / "mine.jsonl", rows))
    assert "train, validation, dev, val, valid, test" in message and "2 rows (7, 9)" in message


def test_a_file_of_another_format_is_an_error(tmp_path):
    (tmp_path / "mine.txt").write_text("text")
    assert "only .jsonl, .csv, .parquet files" in message_of(tmp_path / "mine.txt")


# === Files that cannot be read ===


def test_a_missing_folder_is_an_error(tmp_path):
    path = tmp_path / "nowhere"
    assert message_of(path) == f"task_data: there is no folder or file {path}"


@pytest.mark.parametrize("split", ["train", "test"])
def test_the_error_for_a_missing_split_lists_its_possible_files(tmp_path, split):
    message = message_of(write_folder(tmp_path, **{split: None}))
    assert f"has no {split} split" in message
    assert f"{split}.jsonl, {split}.csv, {split}.parquet" in message


@pytest.mark.parametrize("split", ["train", "validation", "test"])
@pytest.mark.parametrize(
    ("ending", "content"),
    [(".jsonl", ""), (".jsonl", "\n"), (".csv", ""), (".csv", "text,label\n")],
)
def test_an_empty_split_is_an_error(tmp_path, split, ending, content):
    write_folder(tmp_path, ending)
    (tmp_path / f"{split}{ending}").write_text(content)
    assert message_of(tmp_path).startswith(f"{split}{ending} is empty")


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ("{", "not valid JSON"),
        ("text", "not valid JSON"),
        ('{"text": "a" "label": 0}', "not valid JSON"),
        ('{"text": "a", "label": 0, "text": "b"}', "not valid JSON: the key 'text' is there twice"),
        ("[" * 100_000, "not valid JSON: nested too deep"),
        ('["a", 0]', "not a JSON object"),
    ],
)
def test_a_line_that_is_not_a_json_object_is_named_by_its_number(tmp_path, line, fault):
    write_folder(tmp_path)
    (tmp_path / "test.jsonl").write_text('{"text": "a", "label": 0}\n' + line + "\n")
    assert f"{tmp_path / 'test.jsonl'}, line 2 is {fault}" in message_of(tmp_path)


def test_json_lines_may_hold_nan_in_a_column_that_is_not_read(tmp_path):
    write_folder(tmp_path)
    line = '{"text": "a", "label": 0, "stars": NaN}\n{"text": "b", "label": 1, "stars": 1e999}\n'
    (tmp_path / "test.jsonl").write_text(line)
    assert read_splits(tmp_path, "text", "label")["test"].texts == ["a", "b"]


@every_format
def test_the_error_for_a_file_of_invalid_format_names_its_path(tmp_path, ending):
    write_folder(tmp_path, ending)
    (tmp_path / f"train{ending}").write_bytes(b"\xff\xfe\x00\n" * 9)
    assert f"{tmp_path / 'train'}{ending} cannot be read" in message_of(tmp_path)


@pytest.mark.parametrize("row", ["Hello, world,0", "Hello"])
def test_a_csv_row_of_another_number_of_fields_is_named(tmp_path, row):
    write_folder(tmp_path, ".csv")
    (tmp_path / "train.csv").write_text(f"text,label\n{row}\nGood,1\n")
    message = message_of(tmp_path)
    assert message.startswith("train.csv: row 1 ") and "quotes" in message


@pytest.mark.parametrize("ending", [".jsonl", ".csv"])
def test_a_line_or_field_beyond_all_texts_is_an_error(tmp_path, ending, monkeypatch):
    monkeypatch.setattr(files, "MAX_LETTERS", 100)
    limit = csv.field_size_limit()
    path = write_rows(tmp_path / f"mine{ending}", [*make_rows(3), {"text": "a" * 101, "label": 1}])
    assert "100" in message_of(path)
    assert csv.field_size_limit() == limit


@pytest.mark.parametrize("is_in_folder", [True, False])
def test_a_pipe_is_an_error_and_not_waited_for(tmp_path, is_in_folder):
    path = write_folder(tmp_path, train=None) / "train.csv"
    os.mkfifo(path)
    assert f"{path} is not a regular file" in message_of(tmp_path if is_in_folder else path)


def test_a_second_header_inside_a_csv_file_is_named(tmp_path):
    write_folder(tmp_path, ".csv")
    joined = (tmp_path / "test.csv").read_text() + "\ufeff" + (tmp_path / "train.csv").read_text()
    (tmp_path / "train.csv").write_text(joined)
    message = message_of(tmp_path)
    assert message.startswith("train.csv: row 11 is the header again")


def test_a_text_may_be_the_name_of_its_column(tmp_path):
    (tmp_path / "mine.csv").write_text("text\na\ntext\n")
    assert read_table(tmp_path / "mine.csv", "text")["text"].tolist() == ["a", "text"]


# === Columns ===


@pytest.mark.parametrize(
    ("header", "twice"),
    [("text,label,text", "text"), ("label,text,label", "label"), ("text,n,label,n", "n")],
)
def test_a_csv_column_that_is_there_twice_is_named(tmp_path, header, twice):
    path = tmp_path / "mine.csv"
    path.write_text(f"{header}\n" + ",".join("abcd"[: header.count(",") + 1]) + "\n")
    message = message_of(path)
    assert message.startswith(f"mine.csv: the column {twice!r} is there twice")
    with pytest.raises(InputError, match="twice"):
        read_table(path, "text")


def test_several_csv_columns_may_have_no_name(tmp_path):
    (tmp_path / "mine.csv").write_text("text,,label,\n" + "a,,x,\nb,,y,\n" * 8)
    assert len(read(tmp_path / "mine.csv")["train"].texts) == 12


def test_a_parquet_column_that_is_there_twice_is_named(tmp_path):
    table = pa.table([["a", "b"], ["x", "y"], ["c", "d"]], names=["text", "label", "text"])
    pyarrow.parquet.write_table(table, tmp_path / "mine.parquet")
    assert "the column 'text' is there twice" in message_of(tmp_path / "mine.parquet")


@pytest.mark.parametrize(
    ("column", "setting"), [("sentence", "text_column"), ("class", "label_column")]
)
def test_the_error_for_a_missing_column_lists_the_columns_and_the_setting(
    tmp_path, column, setting
):
    message = message_of(write_folder(tmp_path), **{setting: column})
    assert f"no column {column!r}, only 'text', 'label'" in message
    assert message.endswith(f"name the column with {setting}")


def test_one_column_cannot_hold_texts_and_labels(tmp_path):
    message = message_of(write_folder(tmp_path), text_column="label")
    assert message.startswith("text_column and label_column are both 'label'")


def test_rows_without_a_column_are_named(tmp_path):
    rows = make_rows(20)
    del rows[4]["text"], rows[6]["text"]
    message = message_of(write_folder(tmp_path, train=rows))
    assert message.startswith("train.jsonl: no column 'text' in 2 rows (5, 7)")


def test_texts_are_read_from_one_column_of_a_file(tmp_path):
    path = write_rows(tmp_path / "mine.csv", [{"sentence": "a", "n": 1}, {"sentence": "b", "n": 2}])
    assert read_table(path, "sentence")["sentence"].tolist() == ["a", "b"]


@pytest.mark.parametrize(
    ("name", "column", "fault"),
    [
        ("nowhere.csv", "text", "there is no file"),
        ("mine.csv", "sentence", "name the column with --text-column"),
        ("mine.csv", "text", "an empty text in row 2"),
    ],
)
def test_texts_that_cannot_be_read_from_a_file_are_an_error(tmp_path, name, column, fault):
    write_rows(tmp_path / "mine.csv", [{"text": "a", "label": 0}, {"text": "", "label": 1}])
    with pytest.raises(InputError, match=name) as error:
        read_table(tmp_path / name, column)
    assert fault in str(error.value)


# === Texts ===


@pytest.mark.parametrize(
    ("invalid", "fault"),
    [
        (None, "None"),
        (7, "a value of type int"),
        (["a"], "a value of type list"),
        ("", "an empty text"),
        (" \t", "an empty text"),
    ],
)
def test_the_error_for_an_invalid_text_names_file_and_row(tmp_path, invalid, fault):
    rows = make_rows(20)
    rows[6]["text"] = invalid
    message = message_of(write_folder(tmp_path, train=rows))
    assert message.startswith("train.jsonl: ") and message.endswith(f"{fault} in row 7")


@pytest.mark.parametrize("ending", [".csv", ".parquet"])
def test_an_empty_text_is_an_error_in_every_format(tmp_path, ending):
    rows = make_rows(20)
    rows[6]["text"] = ""
    assert "an empty text in row 7" in message_of(write_folder(tmp_path, ending, test=rows))


def test_an_unpaired_surrogate_is_an_error(tmp_path):
    write_folder(tmp_path)
    (tmp_path / "train.jsonl").write_text('{"text": "\\ud800", "label": 0}\n')
    assert "line 1 " in (message := message_of(tmp_path)) and "surrogate" in message
    with pytest.raises(InputError, match="surrogate in row 2"):
        validate_texts(["a", "\ud800"], "my texts")


def test_many_invalid_texts_are_counted_and_the_first_named():
    with pytest.raises(InputError, match=r"7 rows \(1, 2, 3, 4, 5, …\)"):
        validate_texts([None] * 7, "my texts")


def test_each_kind_of_invalid_text_is_named():
    with pytest.raises(InputError, match="None in row 1; an empty text in row 3"):
        validate_texts([None, "good", ""], "my texts")


def test_rows_are_named_by_their_own_numbers():
    with pytest.raises(InputError, match="None in row 41"):
        validate_texts(["good", None], "my texts", numbers=[7, 40])


def test_valid_texts_pass():
    validate_texts(["a", " b "], "my texts")
    validate_texts(["a", ""], "my texts", allow_empty=True)


@pytest.mark.parametrize("missing", [float("nan"), np.nan, pd.NA, pd.NaT], ids=repr)
def test_a_missing_text_of_pandas_is_told_as_such(missing):
    with pytest.raises(InputError, match="NaN in row 2"):
        validate_texts(["good", missing], "my texts")


@pytest.mark.parametrize("table", [pd.DataFrame({"text": ["a"]}), {"text": ["a"]}])
def test_a_table_instead_of_a_list_is_an_error(table):
    with pytest.raises(InputError, match="labels are a table.*one of its columns"):
        as_list(table, "labels")


@pytest.mark.parametrize("values", [np.eye(3), np.array([["a"], ["b"]]), np.array("a")])
def test_a_matrix_or_a_single_value_of_numpy_is_an_error(values):
    with pytest.raises(InputError, match=f"{values.ndim} dimensions.*one value for each text"):
        as_list(values)


@pytest.mark.parametrize("values", ["abc", b"abc", {"a", "b"}, frozenset("ab"), 5, None])
def test_what_is_no_list_of_texts_is_an_error(values):
    with pytest.raises(InputError, match=f"{type(values).__name__}.*must be a list"):
        as_list(values)


def test_a_column_of_a_table_is_a_list_of_texts():
    assert as_list(pd.Series(["a", "b"], index=[7, 7])) == ["a", "b"]


# === Labels ===


@pytest.mark.parametrize("missing", [None, "", " \t"])
def test_the_error_for_a_missing_label_names_file_and_row(tmp_path, missing):
    rows = make_rows(20)
    rows[2]["label"] = missing
    assert message_of(write_folder(tmp_path, train=rows)) == "train.jsonl: no label in row 3"


@pytest.mark.parametrize("ending", [".csv", ".parquet"])
def test_a_missing_label_is_an_error_in_every_format(tmp_path, ending):
    rows = make_rows(20, ("a", "b"))
    rows[2]["label"] = None
    message = message_of(write_folder(tmp_path, ending, train=rows))
    assert message == f"train{ending}: no label in row 3"


@pytest.mark.parametrize(
    ("labels", "types"),
    [((0, "a"), "int and str"), ((0.5, 1.5), "float"), ((True, False), "bool"), (([], 1), "list")],
)
def test_labels_of_other_or_mixed_types_are_an_error(tmp_path, labels, types):
    message = message_of(write_folder(tmp_path, train=make_rows(20, labels)))
    assert message.startswith("train.jsonl: labels must be ") and types in message


@pytest.mark.parametrize("ending", [".csv", ".parquet"])
def test_columns_without_a_name_are_all_kept(tmp_path, ending):
    path = tmp_path / f"table{ending}"
    if ending == ".csv":
        path.write_text(",,text\n1,2,a\n")
    else:
        columns = [pa.array([1]), pa.array([2]), pa.array(["a"])]
        pa.parquet.write_table(pa.Table.from_arrays(columns, ["", "", "text"]), path)
    table = read_table(path, "text")
    assert table.shape == (1, 3) and table.iloc[0].astype(str).tolist() == ["1", "2", "a"]


def test_half_of_a_surrogate_pair_is_named(tmp_path):
    path = tmp_path / "data.jsonl"
    path.write_text('{"text": "a", "label": 0, "more": "\\ud800"}\n')
    assert "line 1 is not valid JSON: half of a surrogate pair" in message_of(path)

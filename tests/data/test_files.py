"""Local data: reading folders and files, errors that name their rows, and stratified samples."""

from collections import Counter

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from task_files import make_rows, write_folder, write_rows

from embedder_helpers.data.files import (
    FORMATS,
    as_list,
    read_splits,
    read_texts,
    stratified_sample,
    validate_labels,
    validate_texts,
)
from embedder_helpers.errors import InputError

LABELS = st.lists(st.integers(0, 4), min_size=1, max_size=100).map(np.array)

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


@pytest.mark.parametrize("labels", [("²", "1"), ("--1", "1"), ("0.0", "1.0")])
def test_csv_labels_that_only_resemble_integers_stay_strings(tmp_path, labels):
    path = write_rows(tmp_path / "a,b.csv", make_rows(40, labels))
    assert set(read(path)["train"].labels.tolist()) == set(labels)


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


def test_a_split_column_without_a_test_split_is_an_error(tmp_path):
    rows = [row | {"split": "train"} for row in make_rows(20)]
    assert "mine.jsonl, test is empty" in message_of(write_rows(tmp_path / "mine.jsonl", rows))


def test_rows_of_an_unknown_split_are_named(tmp_path):
    rows = [row | {"split": "train"} for row in make_rows(20)]
    rows[6]["split"] = "dev"
    del rows[8]["split"]
    message = message_of(write_rows(tmp_path / "mine.jsonl", rows))
    assert "train, validation, test" in message and "2 rows (7, 9)" in message


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
        ("{", "not JSON"),
        ("text", "not JSON"),
        ('{"text": "a" "label": 0}', "not JSON"),
        ('["a", 0]', "not a JSON object"),
    ],
)
def test_a_line_that_is_not_a_json_object_is_named_by_its_number(tmp_path, line, fault):
    write_folder(tmp_path)
    (tmp_path / "test.jsonl").write_text('{"text": "a", "label": 0}\n' + line + "\n")
    assert f"{tmp_path / 'test.jsonl'}, line 2 is {fault}" in message_of(tmp_path)


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


# === Columns ===


@pytest.mark.parametrize(
    ("column", "setting"), [("sentence", "text_column"), ("class", "label_column")]
)
def test_the_error_for_a_missing_column_lists_the_columns_and_the_setting(
    tmp_path, column, setting
):
    message = message_of(write_folder(tmp_path), **{setting: column})
    assert f"no column {column!r}, only text, label" in message
    assert message.endswith(f"name the column with {setting}")


def test_rows_without_a_column_are_named(tmp_path):
    rows = make_rows(20)
    del rows[4]["text"], rows[6]["text"]
    message = message_of(write_folder(tmp_path, train=rows))
    assert message.startswith("train.jsonl: no column 'text' in 2 rows (5, 7)")


def test_texts_are_read_from_one_column_of_a_file(tmp_path):
    path = write_rows(tmp_path / "mine.csv", [{"sentence": "a", "n": 1}, {"sentence": "b", "n": 2}])
    assert read_texts(path, "sentence") == ["a", "b"]


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
        read_texts(tmp_path / name, column)
    assert fault in str(error.value)


# === Texts ===


@pytest.mark.parametrize(
    ("invalid", "fault"),
    [
        (None, "None"),
        (float("nan"), "NaN"),
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
    assert "surrogate in row 1" in message_of(tmp_path)


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


@pytest.mark.parametrize("table", [pd.DataFrame({"text": ["a"]}), {"text": ["a"]}])
def test_a_table_instead_of_texts_is_an_error(table):
    with pytest.raises(InputError, match="one of its columns"):
        as_list(table)


def test_a_column_of_a_table_is_a_list_of_texts():
    assert as_list(pd.Series(["a", "b"])) == ["a", "b"]


# === Labels ===


@pytest.mark.parametrize("missing", [None, "", float("nan")])
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


def test_a_label_beyond_64_bits_is_an_error():
    with pytest.raises(InputError, match="at most 64 bits"):
        validate_labels([2**70, 1], "labels")


# === Stratified samples ===


@settings(deadline=None)
@given(LABELS, st.integers(0, 120), st.integers(0, 99))
def test_a_stratified_sample_has_the_requested_size_or_all_rows(labels, count, seed):
    assert len(stratified_sample(labels, count, seed)) == min(count, len(labels))


@settings(deadline=None)
@given(LABELS, st.integers(0, 120), st.integers(0, 99))
def test_a_stratified_sample_is_distinct_rows_in_ascending_order(labels, count, seed):
    rows = stratified_sample(labels, count, seed).tolist()
    assert rows == sorted(set(rows)) and set(rows) <= set(range(len(labels)))


@settings(deadline=None)
@given(LABELS, st.integers(0, 100), st.integers(0, 99))
def test_a_stratified_sample_has_each_label_in_proportion(labels, count, seed):
    count = min(count, len(labels))
    sampled = Counter(labels[stratified_sample(labels, count, seed)].tolist())
    num_labels = len(set(labels.tolist()))
    for label, total in Counter(labels.tolist()).items():
        # One row for its own rounding, and its part of the other labels' roundings.
        tolerance = 1 + num_labels * total / len(labels)
        assert abs(sampled[label] - count * total / len(labels)) <= tolerance


@settings(deadline=None)
@given(LABELS, st.integers(0, 100), st.integers(0, 99))
def test_a_smaller_stratified_sample_is_part_of_a_larger_one(labels, count, seed):
    fewer, more = (set(stratified_sample(labels, n, seed).tolist()) for n in (count, count + 5))
    assert fewer <= more


@settings(deadline=None)
@given(LABELS, st.integers(0, 120), st.integers(0, 99))
def test_a_stratified_sample_can_leave_one_row_of_each_label(labels, count, seed):
    count = min(count, len(labels) - len(set(labels.tolist())))
    rows = stratified_sample(labels, count, seed, leave_one=True)
    assert set(np.delete(labels, rows).tolist()) == set(labels.tolist())


def test_a_stratified_sample_depends_on_its_seed():
    labels = np.arange(100) % 3
    first, again, other = (stratified_sample(labels, 30, seed).tolist() for seed in (1, 1, 2))
    assert first == again != other

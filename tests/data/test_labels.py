"""Labels: one type for a whole task, errors that name their rows, and stratified samples."""

from collections import Counter
from decimal import Decimal

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embedder_helpers.data.labels import MAX_LETTERS, check_labels, stratified_sample
from embedder_helpers.errors import InputError

LABELS = st.lists(st.integers(0, 4), min_size=1, max_size=100).map(np.array)


def checked(untyped=(), **files):
    return {name: labels.tolist() for name, labels in check_labels(files, untyped).items()}


def message_of(untyped=(), **files):
    """The message of the InputError that some files' labels raise: one line."""
    with pytest.raises(InputError) as error:
        check_labels(files, untyped)
    assert "\n" not in str(error.value)
    return str(error.value)


# === One type for a whole task ===


def test_untyped_labels_are_whole_numbers_if_all_of_them_read_as_one():
    labels = checked({"train", "test"}, train=["0", "-1", "12"], test=["12"])
    assert labels == {"train": [0, -1, 12], "test": [12]}


def test_one_other_label_in_any_file_keeps_all_untyped_labels_strings():
    labels = checked({"train", "test"}, train=["0", "1"], test=["0", "unknown"])
    assert labels == {"train": ["0", "1"], "test": ["0", "unknown"]}


@pytest.mark.parametrize("label", ["007", "01", "-0", "+1", "1.0", "1_0", " 2", "\u0661", "1e3"])
def test_numbers_that_are_not_written_as_python_writes_them_are_strings(label):
    assert checked({"train"}, train=["3", label, "4"]) == {"train": ["3", label, "4"]}


def test_untyped_labels_are_whole_numbers_beside_a_file_that_has_them_as_such():
    assert checked({"test"}, train=[0, 1], test=["1", "0"]) == {"train": [0, 1], "test": [1, 0]}


def test_untyped_labels_are_strings_beside_a_file_that_has_them_as_strings():
    labels = checked({"test"}, train=["0", "1"], test=["1", "0"])
    assert labels == {"train": ["0", "1"], "test": ["1", "0"]}


def test_files_of_two_types_are_an_error_that_names_both():
    assert "int in train and str in test" in message_of({"test"}, train=[0, 1], test=["0", "x"])
    assert "int in train and str in test" in message_of(train=[0, 1], test=["0", "1"])


@pytest.mark.parametrize(
    "labels",
    [np.array([2, 0], "uint8"), [np.int64(2), np.array(0)], pd.Series([2, 0], index=[1, 1])],
)
def test_numpys_numbers_are_whole_numbers(labels):
    (label, other) = checked(y=labels)["y"]
    assert (label, other) == (2, 0) and type(label) is int


def test_categories_are_their_values():
    assert checked(y=pd.Categorical(["b", "a", "b"])) == {"y": ["b", "a", "b"]}


@pytest.mark.parametrize(
    ("labels", "found"),
    [
        ([[1, 0], [0, 1]], "list"),
        ([np.array([1, 0]), np.array([0, 1])], "ndarray"),
        ([True, False], "bool"),
        ([0.0, 1.0], "float"),
        ([1, Decimal(1)], "Decimal and int"),
        ([{"a": 1}, {"a": 2}], "dict"),
    ],
)
def test_labels_of_other_types_are_an_error(labels, found):
    message = message_of(y=labels)
    assert message.startswith("y: ") and "one for each text" in message
    assert message.endswith(f"are {found}")


@pytest.mark.parametrize("label", [2**63, -(2**63) - 1, 2**70])
def test_a_label_beyond_64_bits_is_an_error(label):
    assert "64 bits" in message_of(y=[label, 1])


def test_the_smallest_and_the_largest_number_of_64_bits_are_labels():
    labels = [-(2**63), 2**63 - 1]
    assert checked(y=labels) == {"y": labels}


# === Labels that are missing or no labels ===


@pytest.mark.parametrize(
    "missing",
    [None, float("nan"), np.nan, np.float32("nan"), pd.NA, pd.NaT, np.datetime64("NaT"), "", "\t "],
    ids=repr,
)
@pytest.mark.parametrize("others", [(0, 1), ("a", "b")])
def test_the_error_for_missing_labels_names_their_rows(missing, others):
    message = message_of(train=[0, 1], test=[others[0], missing, others[1], missing])
    assert message == "test: no label in 2 rows (2, 4)"


def test_a_missing_number_of_pandas_is_a_missing_label():
    labels = pd.array([1, 0, None], dtype="Int64")
    assert message_of(y=labels) == "y: no label in row 3"


@pytest.mark.parametrize(
    ("label", "fault"),
    [
        ("a\0", "NUL character"),
        ("\0b", "NUL character"),
        ("\ud800", "surrogate"),
        ("a" * (MAX_LETTERS + 1), "more"),
    ],
)
def test_a_string_that_cannot_be_a_label_is_an_error(label, fault):
    message = message_of(train=["a", "b"], test=["a", label])
    assert message.startswith("test: ") and f"{fault} in row 2" in message
    assert len(message) < 200


@pytest.mark.parametrize(
    ("label", "other"),
    [("wet", "wet "), ("a b", "a  b"), ("wet", "wet\u00a0"), ("\u00e9", "e\u0301")],
)
def test_labels_that_only_look_alike_are_an_error_that_shows_the_difference(label, other):
    message = message_of(train=[label, "dry"], test=["dry", other])
    assert message.startswith("test: ") and "row 2" in message and message.isascii()
    assert ascii(label) in message and ascii(other) in message


def test_white_space_around_a_label_is_part_of_it():
    assert checked(y=[" wet", "dry "]) == {"y": [" wet", "dry "]}


def test_a_label_of_its_own_for_most_texts_is_an_error():
    labels = [f"The rain fell on day {i}. " * (8000 if i == 7 else 1) for i in range(2000)]
    message = message_of(train=labels[:1500], test=labels[1500:])
    assert "2000 different labels for 2000 texts" in message and "label_column" in message


def test_many_labels_of_several_texts_each_are_accepted():
    labels = [f"intent {i}" for i in range(1000)]
    assert checked(train=labels, test=labels) == {"train": labels, "test": labels}


def test_one_text_for_each_of_a_few_labels_is_accepted():
    assert checked(y=list(range(50))) == {"y": list(range(50))}


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
    rows = stratified_sample(labels, count, seed, leave_one=True)
    assert len(rows) == min(count, len(labels) - len(set(labels.tolist())))
    assert set(np.delete(labels, rows).tolist()) == set(labels.tolist())


@given(LABELS, st.integers(5, 120), st.integers(0, 99))
def test_a_stratified_sample_can_take_one_row_of_each_label(labels, count, seed):
    rows = stratified_sample(labels, count, seed, take_one=True)
    assert len(rows) == min(count, len(labels))
    assert set(labels[rows].tolist()) == set(labels.tolist())


@given(LABELS, st.integers(0, 120), st.integers(0, 99))
def test_to_take_one_row_of_each_label_changes_no_sample_that_has_them_all(labels, count, seed):
    plain = stratified_sample(labels, count, seed)
    if set(labels[plain].tolist()) == set(labels.tolist()):
        assert plain.tolist() == stratified_sample(labels, count, seed, take_one=True).tolist()


def test_a_stratified_sample_is_the_same_for_labels_and_for_their_names():
    labels = np.arange(200) % 7 % 3
    names = np.array(["amber", "blue", "crimson"])[labels]
    for options in ({}, {"take_one": True}, {"leave_one": True}):
        rows = stratified_sample(labels, 40, 1, **options)
        assert rows.tolist() == stratified_sample(names, 40, 1, **options).tolist()


def test_a_sample_of_no_rows_is_empty():
    assert not len(stratified_sample(np.array([]), 5, 1, leave_one=True))


def test_a_stratified_sample_depends_on_its_seed():
    labels = np.arange(100) % 3
    first, again, other = (stratified_sample(labels, 30, seed).tolist() for seed in (1, 1, 2))
    assert first == again != other

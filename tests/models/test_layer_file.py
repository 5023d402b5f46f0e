import itertools

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from embedder_helpers.models.layer_file import RECORD, LayerFile, count_records, delete_files

WIDTH = 4
LENGTHS = np.array([3, 1, 4, 2, 5, 2])
STATES = np.random.default_rng(0).normal(size=(LENGTHS.sum(), WIDTH)).astype("float16")
KEYS = [bytes([number] * 16) for number in range(len(LENGTHS))]
TEXTS = np.split(STATES, np.cumsum(LENGTHS)[:-1])
# Where each text's hidden states and record end, in bytes.
ENDS = {
    "states": np.cumsum(LENGTHS) * WIDTH * 2,
    "index": np.arange(1, len(KEYS) + 1) * RECORD.itemsize,
}
BOTH = pytest.mark.parametrize("part", ["states", "index"])


@pytest.fixture(scope="module")
def new_file(tmp_path_factory):
    """A function that returns a file with no texts, in a folder of its own."""
    folder, numbers = tmp_path_factory.mktemp("files"), itertools.count()
    return lambda: LayerFile(folder / f"{next(numbers)}.states", WIDTH, "float16")


@pytest.fixture(scope="module")
def written(new_file):
    """A function that returns a file with all the texts."""

    def write():
        file = new_file()
        append(file, range(len(KEYS)))
        return file

    return write


def append(file, rows):
    rows = list(rows)
    states = np.concatenate([TEXTS[row] for row in rows])
    file.append([KEYS[row] for row in rows], LENGTHS[rows], states)


def damage(file, part, change):
    path = file.index if part == "index" else file.path
    path.write_bytes(change(path.read_bytes()))
    return file


def flip_byte(position, mask):
    def change(content):
        return content[:position] + bytes([content[position] ^ mask]) + content[position + 1 :]

    return change


def missing(file):
    """The texts that are not complete; the others are checked to be what was written."""
    states, complete = file.lookup(KEYS)
    for row in np.flatnonzero(complete):
        np.testing.assert_array_equal(states.text(row), TEXTS[row])
    return np.flatnonzero(~complete).tolist()


def assert_repairable(file):
    """What is missing can be written again, and the file stays small."""
    lost = missing(file)
    if lost:
        append(file, lost)
    assert missing(file) == []
    others = np.ones((2, WIDTH), "float16")
    file.append([b"a" * 16, b"b" * 16], np.array([1, 1]), others)
    assert missing(file) == []
    assert file.lookup([b"a" * 16, b"b" * 16])[1].all()
    assert file.path.stat().st_size <= (2 * LENGTHS.sum() + 2) * file.token_bytes


# Reading and writing


def test_texts_are_read_as_they_were_written_and_not_copied_to_memory(written):
    states, complete = written().lookup(KEYS)
    assert complete.all() and isinstance(states.values, np.memmap)
    assert states.values.dtype == "float16"
    for row, expected in enumerate(TEXTS):
        np.testing.assert_array_equal(states.text(row), expected)


def test_texts_are_looked_up_in_any_order_and_others_are_missing(new_file):
    file = new_file()
    append(file, [0, 1])
    append(file, [4])
    states, complete = file.lookup([KEYS[4], KEYS[2], KEYS[0], KEYS[4]])
    assert complete.tolist() == [True, False, True, True]
    for row, text in ((0, 4), (2, 0), (3, 4)):
        np.testing.assert_array_equal(states.text(row), TEXTS[text])


def test_a_file_that_does_not_exist_has_no_texts(new_file):
    states, complete = new_file().lookup(KEYS)
    assert len(states) == len(KEYS) and not complete.any()


def test_the_bytes_of_texts_are_those_of_their_hidden_states(written):
    assert written().bytes_of({KEYS[0], KEYS[4], b"a" * 16}) == (3 + 5) * WIDTH * 2


def test_only_some_texts_are_kept(written):
    file = written()
    file.keep_only({KEYS[1], KEYS[4], b"a" * 16})
    assert missing(file) == [0, 2, 3, 5]
    assert file.path.stat().st_size == (1 + 5) * file.token_bytes
    assert_repairable(file)


def test_damaged_texts_are_not_kept(written):
    file = damage(written(), "states", flip_byte(0, 1))
    file.keep_only({KEYS[0], KEYS[1]})
    assert missing(file) == [0, 2, 3, 4, 5] and count_records(file.path) == 1


def test_keeping_no_texts_deletes_the_file(written):
    file = written()
    file.keep_only({b"a" * 16})
    assert not file.path.exists() and not file.index.exists()
    assert_repairable(file)


def test_deleting_returns_the_bytes_that_the_hidden_states_took(written):
    file = written()
    assert delete_files(file.path) == LENGTHS.sum() * file.token_bytes
    assert not file.path.exists() and not file.index.exists()
    assert delete_files(file.path) == 0


# Damage


@BOTH
@given(data=st.data())
def test_texts_beyond_the_end_of_a_truncated_file_are_missing(part, data, written):
    ends = ENDS[part]
    near_an_end = st.sampled_from([int(end) + by for end in ends for by in (-1, 0, 1)])
    length = data.draw(st.one_of(near_an_end, st.integers(0, int(ends[-1]))))
    file = damage(written(), part, lambda content: content[:length])
    assert missing(file) == np.flatnonzero(ends > length).tolist()
    assert_repairable(file)


@BOTH
@example(garbage=b"\x01" * RECORD.itemsize)
@example(garbage=bytes(20) + b"\x01" + bytes(11))  # a record of a text far after the last one
@given(garbage=st.binary(min_size=1, max_size=3 * RECORD.itemsize))
def test_garbage_after_the_last_text_is_overwritten(part, garbage, written):
    file = damage(written(), part, lambda content: content + garbage)
    assert missing(file) == []
    assert_repairable(file)


@given(position=st.integers(0, int(ENDS["states"][-1]) - 1), mask=st.integers(1, 255))
def test_a_corrupted_byte_of_the_hidden_states_invalidates_only_its_text(position, mask, written):
    file = damage(written(), "states", flip_byte(position, mask))
    assert missing(file) == [np.searchsorted(ENDS["states"], position, side="right")]
    assert_repairable(file)


@example(position=20, mask=1)  # where the first text starts
@example(position=len(KEYS) * RECORD.itemsize - 1, mask=1)
@given(position=st.integers(0, int(ENDS["index"][-1]) - 1), mask=st.integers(1, 255))
def test_a_corrupted_byte_of_the_index_invalidates_only_its_text(position, mask, written):
    file = damage(written(), "index", flip_byte(position, mask))
    assert missing(file) == [position // RECORD.itemsize]
    assert_repairable(file)


@BOTH
def test_without_its_hidden_states_or_its_index_every_text_is_missing(part, written):
    file = written()
    (file.index if part == "index" else file.path).unlink()
    assert missing(file) == list(range(len(KEYS)))
    assert_repairable(file)


def test_a_text_that_was_written_again_is_known_by_its_newest_record(written):
    file = damage(written(), "states", flip_byte(0, 1))
    append(file, [0])
    assert count_records(file.path) == len(KEYS) + 1
    assert missing(file) == []

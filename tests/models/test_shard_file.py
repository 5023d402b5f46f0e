import itertools
import os
import shutil
import signal

import damages
import file_events
import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given
from hypothesis import strategies as st

from embedder_helpers.errors import InputError
from embedder_helpers.models.batching import RaggedArray, from_lengths
from embedder_helpers.models.shard_file import (
    SUFFIX,
    TEXT_BYTES,
    MappedStates,
    ShardFile,
    shard_path,
    write_shard,
)

WIDTH = 2
LENGTHS = [2, 0, 1, 3]
KEYS = [bytes([65 + number] * 16) for number in range(len(LENGTHS))]
VALUES = np.random.default_rng(0).normal(size=(sum(LENGTHS), WIDTH)).astype("float16")
TEXTS = dict(zip(KEYS, np.split(VALUES, np.cumsum(LENGTHS)[:-1]), strict=True))
STATES = from_lengths(VALUES, LENGTHS)


@pytest.fixture
def path(tmp_path):
    """The path of a file with the texts."""
    path = shard_path(tmp_path, "k01-rms", KEYS)
    write_shard(path, KEYS, STATES)
    return path


@pytest.fixture(scope="module")
def new_path(tmp_path_factory):
    """A function that returns the path of a file that does not exist, for hypothesis."""
    folder, numbers = tmp_path_factory.mktemp("files"), itertools.count()
    return lambda: folder / f"{next(numbers)}{SUFFIX}"


def intact_texts(path):
    """What a file has of the texts; none if it says that it is damaged."""
    try:
        file = ShardFile(path)
    except ValueError:
        return {}
    rows = [row for row in range(len(file.keys)) if file.is_intact(row)]
    return {file.keys[row]: np.array(file.states.text(row)) for row in rows}


def assert_right(texts):
    for key, states in texts.items():
        np.testing.assert_array_equal(states, TEXTS[key], strict=True)


def is_subset_of_what_was_written(texts):
    return all(
        key in TEXTS and states.dtype == "float16" and np.array_equal(states, TEXTS[key])
        for key, states in texts.items()
    )


# Reading and writing


def test_texts_are_read_as_they_were_written_and_not_copied_to_memory(path):
    file = ShardFile(path)
    assert file.path == path and file.keys == KEYS
    assert file.rows == {key: row for row, key in enumerate(KEYS)}
    assert isinstance(file.states.values, np.memmap) and not file.states.values.flags.writeable
    assert intact_texts(path).keys() == TEXTS.keys()
    assert_right(intact_texts(path))


def test_any_reader_of_safetensors_reads_a_file(path):
    tensors = safetensors.numpy.load_file(path)
    assert tensors.keys() == {"keys", "lengths", "checksums", "states"}
    assert [key.tobytes() for key in tensors["keys"]] == KEYS
    np.testing.assert_array_equal(tensors["lengths"], np.array(LENGTHS, "int64"), strict=True)
    np.testing.assert_array_equal(tensors["states"], VALUES, strict=True)
    assert tensors["checksums"].dtype == "uint32"


TEXT_LENGTHS = st.lists(st.integers(0, 5), min_size=1, max_size=6)


@given(data=st.data(), lengths=TEXT_LENGTHS, dtype=st.sampled_from(["float16", "float32"]))
def test_texts_are_read_as_they_were_written_from_any_array(data, lengths, dtype, new_path):
    order = data.draw(st.permutations(range(len(lengths))))
    count = len(lengths)
    keys = data.draw(st.lists(st.binary(min_size=16, max_size=16), min_size=count, max_size=count,
                              unique=True))  # fmt: skip
    values = np.random.default_rng(0).normal(size=(sum(lengths), 3)).astype(dtype)
    states = from_lengths(values, lengths).select(order)
    path = new_path()
    write_shard(path, keys, states)
    file = ShardFile(path)
    assert file.keys == keys and file.states.values.dtype == dtype
    for row in range(count):
        assert file.is_intact(row)
        np.testing.assert_array_equal(file.states.text(row), states.text(row), strict=True)


@given(values=st.lists(st.sampled_from([np.nan, np.inf, -np.inf, -0.0, 6e-8]), min_size=1))
def test_every_bit_of_a_value_is_kept(values, new_path):
    values = np.array(values, "float16")[:, None]
    path = new_path()
    write_shard(path, KEYS[:1], from_lengths(values, [len(values)]))
    assert ShardFile(path).is_intact(0)
    assert ShardFile(path).states.values.tobytes() == values.tobytes()


def test_a_file_takes_the_bytes_of_its_texts_and_a_header(path):
    content = VALUES.nbytes + TEXT_BYTES * len(KEYS)
    assert content < path.stat().st_size < content + 512


def test_a_name_says_which_texts_in_which_order(tmp_path):
    paths = [
        shard_path(tmp_path, prefix, keys)
        for prefix in ("k01-rms", "k10-none")
        for keys in (KEYS, KEYS[::-1], KEYS[:-1])
    ]
    assert len(set(paths)) == 6
    assert paths[0] == shard_path(tmp_path, "k01-rms", list(KEYS))
    assert paths[0].parent == tmp_path and paths[0].name.startswith("k01-rms-")
    assert paths[0].suffix == SUFFIX


def test_the_same_texts_are_written_as_the_same_bytes(path, tmp_path):
    other = tmp_path / f"k01-rms-other{SUFFIX}"
    order = [3, 1, 0, 2]
    values = np.concatenate([STATES.text(row) for row in order])
    shuffled = from_lengths(values, [LENGTHS[row] for row in order])
    write_shard(other, KEYS, shuffled.select(np.argsort(order)))
    assert other.read_bytes() == path.read_bytes()


def test_a_file_that_exists_is_replaced_and_its_readers_keep_what_they_have(path):
    before = ShardFile(path)
    write_shard(path, KEYS, RaggedArray(VALUES + 1, STATES.offsets, STATES.lengths))
    assert all(before.is_intact(row) for row in range(len(KEYS)))
    np.testing.assert_array_equal(before.states.values, VALUES)
    np.testing.assert_array_equal(ShardFile(path).states.values, VALUES + 1)
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_who_may_read_a_file_follows_from_the_process_and_not_from_the_library(path):
    (path.parent / "plain").write_text("")
    assert path.stat().st_mode == (path.parent / "plain").stat().st_mode


# Damage


def changed(content, position, mask):
    return content[:position] + bytes([content[position] ^ mask]) + content[position + 1 :]


def test_whatever_byte_is_changed_a_text_that_is_intact_is_right(path):
    content, copy = path.read_bytes(), path.with_name("k01-rms-copy")
    start = content.index(VALUES.tobytes())
    for position in range(len(content)):
        for mask in (1 << position % 8, 32, 255):
            copy.write_bytes(changed(content, position, mask))
            assert is_subset_of_what_was_written(intact_texts(copy)), (position, mask)
        if start <= position < start + VALUES.nbytes:
            row = np.searchsorted(np.cumsum(LENGTHS), (position - start) // (2 * WIDTH), "right")
            assert intact_texts(copy).keys() == TEXTS.keys() - {KEYS[row]}, position


def test_a_file_that_was_cut_anywhere_is_damaged(path):
    content, copy = path.read_bytes(), path.with_name("k01-rms-copy")
    for length in range(len(content)):
        copy.write_bytes(content[:length])
        with pytest.raises(ValueError):
            ShardFile(copy)


@given(data=st.data())
def test_whatever_is_overwritten_a_text_that_is_intact_is_right(data, new_path):
    path = new_path()
    write_shard(path, KEYS, STATES)
    content = path.read_bytes()
    start = data.draw(st.integers(0, len(content) - 1))
    noise = data.draw(st.binary(min_size=1, max_size=len(content) - start))
    path.write_bytes(content[:start] + noise + content[start + len(noise) :])
    assert is_subset_of_what_was_written(intact_texts(path))


# Replacements in the header that leave a file which any reader of safetensors takes for whole.
PLAUSIBLE = [
    (b'"states"', b'"statez"'), (b'"keys"', b'"kexs"'), (b'"lengths"', b'"lengthz"'),
    (b'"F16"', b'"I16"'), (b'"I64"', b'"F64"'), (b'"U32"', b'"F32"'), (b'"U8"', b'"I8"'),
    (b"[6,2]", b"[2,6]"), (b"[6,2]", b"[ 12]"), (b"[4,16]", b"[16,4]"), (b"[4,16]", b"[  64]"),
]  # fmt: skip


@pytest.mark.parametrize(("old", "new"), PLAUSIBLE)
def test_whatever_the_header_says_a_text_that_is_intact_is_right(path, old, new):
    content = path.read_bytes()
    assert content.count(old) == 1
    path.write_bytes(content.replace(old, new))
    safetensors.numpy.load_file(path)
    assert is_subset_of_what_was_written(intact_texts(path))


def test_a_length_below_zero_is_damage_even_if_the_sum_is_right(path):
    tensors = safetensors.numpy.load_file(path)
    tensors["lengths"] += np.array([1, -1, 0, 0])
    path.write_bytes(safetensors.numpy.save(tensors))
    with pytest.raises(ValueError):
        ShardFile(path)


FIRST_STATE, LAST_STATE = VALUES[:1].tobytes(), VALUES[-1:].tobytes()


@pytest.mark.parametrize(
    ("one", "other"), [(FIRST_STATE, LAST_STATE), (KEYS[0], KEYS[3])], ids=["states", "keys"]
)
def test_texts_of_which_parts_changed_places_are_not_intact(path, one, other):
    parts = path.read_bytes().split(one)
    assert len(parts) == 2
    path.write_bytes(other.join(part.replace(other, one) for part in parts))
    assert intact_texts(path).keys() == {KEYS[1], KEYS[2]}


def test_a_file_under_the_name_of_another_model_or_spec_has_no_intact_texts(path, tmp_path):
    (tmp_path / "model").mkdir()
    for other in (path.with_name(path.name.replace("k01", "k02")), tmp_path / "model" / path.name):
        shutil.copy(path, other)
        assert intact_texts(other) == {}


def test_what_was_checked_once_is_not_read_again(path, monkeypatch):
    file = ShardFile(path)
    assert file.is_intact(0)
    monkeypatch.setattr(file, "states", None)
    assert file.is_intact(0)


def test_a_file_that_is_gone_is_not_taken_for_a_damaged_one(path):
    path.unlink()
    with pytest.raises(FileNotFoundError):
        ShardFile(path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes")
@pytest.mark.parametrize("make", [damages.make_folder, damages.make_pipe, damages.make_loop])
def test_what_is_no_file_is_neither_read_nor_waited_for(path, make):
    make(path, None)
    with pytest.raises((OSError, ValueError)):
        ShardFile(path)
    if make != damages.make_folder:  # which is not ours to remove
        write_shard(path, KEYS, STATES)
        assert_right(intact_texts(path))


# A process that dies while it writes, and a disk that is full


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("exists", [False, True])
def test_a_process_killed_at_any_moment_leaves_a_whole_file_or_none(exists, tmp_path, monkeypatch):
    statuses = []
    for number in range(1, 100):
        folder = tmp_path / f"{number}"
        folder.mkdir()
        monkeypatch.chdir(folder)
        path = shard_path(folder, "k01-rms", KEYS)
        if exists:
            write_shard(path, KEYS, STATES)
        statuses.append(write_until_killed(path, number))
        assert not exists or path.exists()
        left = set(folder.glob(f"*{SUFFIX}"))
        assert left <= {path}
        if left:
            assert intact_texts(path).keys() == TEXTS.keys()
        write_shard(path, KEYS, STATES)
        assert intact_texts(path).keys() == TEXTS.keys()
        assert list(folder.iterdir()) == [path]
        if statuses[-1] == 0:
            break
        shutil.rmtree(folder)
    assert statuses[-1] == 0 and len(statuses) > 3
    assert set(statuses[:-1]) == {-signal.SIGKILL}


def write_until_killed(path, number):
    """The exit status of a process that is killed before it changes files so many times."""
    if child := os.fork():
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    status = 1
    try:
        file_events.before_change(number, file_events.die)
        write_shard(path, KEYS, STATES)
        status = 0
    finally:
        os._exit(status)


def test_a_full_disk_is_an_error_that_names_the_setting_and_the_file(path):
    resource = pytest.importorskip("resource")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    before = path.read_bytes()
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
        with pytest.raises(InputError, match="states_dir") as error:
            write_shard(path, KEYS, STATES)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert path.name in str(error.value) and str(path.parent) in str(error.value)
    assert path.read_bytes() == before and list(path.parent.iterdir()) == [path]


# Several files as one array


PARTS = st.lists(st.integers(0, 5), min_size=1, max_size=6)


@given(data=st.data(), lengths=PARTS, dtype=st.sampled_from(["float16", "float32"]))
def test_several_files_read_as_one_array(data, lengths, dtype):
    values = np.arange(sum(lengths) * WIDTH, dtype=dtype).reshape(-1, WIDTH)
    ends = np.cumsum(lengths)
    states = MappedStates(np.split(values, ends[:-1]))
    assert states.dtype == dtype and states.shape == values.shape
    part = data.draw(st.integers(0, len(lengths) - 1))
    start = data.draw(st.integers(ends[part] - lengths[part], ends[part]))
    stop = data.draw(st.integers(start, ends[part]))
    for cast in (int, np.int64):
        found = states[cast(start) : cast(stop)]
        np.testing.assert_array_equal(found, values[start:stop], strict=True)


@given(lengths=TEXT_LENGTHS, cut=st.integers(0, 6))
def test_texts_of_several_files_are_selected_and_padded_as_those_of_one(lengths, cut):
    values = np.arange(sum(lengths) * WIDTH, dtype="float16").reshape(-1, WIDTH)
    whole = from_lengths(values, lengths)
    split = [values[: sum(lengths[:cut])], values[sum(lengths[:cut]) :]]
    parts = RaggedArray(MappedStates(split), whole.offsets, whole.lengths)
    rows = list(range(len(lengths)))[::-1]
    for row in rows:
        np.testing.assert_array_equal(parts.select(rows).text(row), whole.select(rows).text(row))
    padded = zip(parts.pad(rows, 5, 8), whole.pad(rows, 5, 8), strict=True)
    for found, expected in padded:
        np.testing.assert_array_equal(found, expected, strict=True)


def test_several_files_are_read_without_a_copy(path, tmp_path):
    other = tmp_path / "other"
    shutil.copy(path, other)
    parts = [ShardFile(each).states.values for each in (path, other)]
    part = MappedStates(parts)[len(VALUES) : len(VALUES) + 2]
    assert np.shares_memory(part, parts[1])

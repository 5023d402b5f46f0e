import copy
import dataclasses
import functools
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import types
from pathlib import Path

import filelock
import h5py
import numpy as np
import pytest
from embedder_helpers.models.layer_file import count_records
from hypothesis import given, settings
from hypothesis import strategies as st
from shared_gemma import TEXTS, TINY, shared_gemma, token_ids, two_texts_per_batch

from embedder_helpers.errors import InputError
from embedder_helpers.models.batching import MultiLayerStates, RaggedArray, from_lengths
from embedder_helpers.models.gemma import HiddenStateSpec
from embedder_helpers.models.hidden_states import RESERVE, HiddenStateCache, _shards, text_keys
from embedder_helpers.models.preset_files import hdf5_datasets
from embedder_helpers.models.presets import find_preset

OTHER_TEXTS = [f"Night {i} was cold by the river." for i in range(1, 5)]
RMS = [HiddenStateSpec(cutoff, "rms") for cutoff in range(1, 19)]
RAW = [HiddenStateSpec(cutoff, "none") for cutoff in range(1, 19)]
ONE, TWO, THREE, FOUR = RMS[:4]


@pytest.fixture(scope="module", autouse=True)
def small_batches():
    with two_texts_per_batch():
        yield


@pytest.fixture
def cache(tmp_path):
    return HiddenStateCache(tmp_path / "states")


@pytest.fixture
def log(caplog):
    """Log lines of a test."""
    caplog.set_level(logging.INFO, logger="embedder_helpers")
    return caplog


class Killed(Exception):
    """Represents the end of the process."""


def tokenize(texts, max_tokens=64):
    return shared_gemma().tokenize(texts, max_tokens)[0]


@functools.cache
def computed_in_memory(spec):
    """Each text's hidden states, without a cache."""
    states = shared_gemma().hidden_states(token_ids(), [spec])
    return [states.text(row).copy() for row in range(len(TEXTS))]


def get(cache, specs, ids=None, gemma=None):
    """Hidden states, by default of `TEXTS`, and the layer passes that they cost."""
    gemma = gemma or shared_gemma()
    before = gemma.layer_passes
    states = cache.get_or_compute(gemma, token_ids() if ids is None else ids, specs)
    return states, gemma.layer_passes - before


def compute_missing(cache, wanted, ids=None, **options):
    """The layer passes that it costs."""
    before = shared_gemma().layer_passes
    cache.compute_missing(shared_gemma(), token_ids() if ids is None else ids, wanted, **options)
    return shared_gemma().layer_passes - before


def assert_right(states, spec, rows=None):
    """Equal to those in memory; the last bits may differ in batches of another size."""
    rows = range(len(TEXTS)) if rows is None else rows
    assert len(states) == len(rows)
    for i, row in enumerate(rows):
        expected = computed_in_memory(spec)[row]
        np.testing.assert_allclose(states.text(i).astype("float32"), expected, rtol=2e-3, atol=2e-3)


def assert_identical(states, spec):
    for row, expected in enumerate(computed_in_memory(spec)):
        np.testing.assert_array_equal(states.text(row), expected)


def contents(cache, specs):
    """The bytes of each text's hidden states, by spec and key."""
    found = {}
    for spec in specs:
        file = cache.layer_file(shared_gemma(), spec)
        values = np.fromfile(file.path, file.dtype).reshape(-1, file.width)
        for record in file.records():
            start, tokens = int(record["start"]), int(record["tokens"])
            found[spec, record["key"].tobytes()] = values[start : start + tokens].tobytes()
    return found


def cached(cache, spec, ids=None):
    """For each text, whether its hidden states are complete."""
    keys = text_keys(token_ids() if ids is None else ids)
    return cache.layer_file(shared_gemma(), spec).lookup(keys)[1].tolist()


def gigabytes(ids, specs):
    tokens = int(ids.lengths.sum())
    return sum(tokens * TINY.width * (4 if spec.norm == "none" else 2) for spec in specs) / 1e9


# What is cached, and what is computed


def test_cached_hidden_states_are_those_computed_in_memory_in_one_pass_per_layer(cache):
    states, passes = get(cache, RMS)
    assert isinstance(states, MultiLayerStates) and len(states.layers) == 18
    for spec, layer in zip(RMS, states.layers, strict=True):
        assert_identical(layer, spec)
    assert passes == len(TEXTS) * 18


def test_a_second_request_computes_nothing(cache):
    get(cache, RMS)
    again = HiddenStateCache(cache.folder)
    assert get(again, RMS)[1] == 0
    assert get(again, [RMS[4], RMS[9]])[1] == 0


def test_a_lookup_finds_texts_only_if_all_are_cached_for_all_specs(cache):
    assert cache.lookup(shared_gemma(), token_ids(), [ONE]) is None
    first = token_ids().select([0, 1])
    get(cache, [ONE], first)
    assert cache.lookup(shared_gemma(), token_ids(), [ONE]) is None
    assert cache.lookup(shared_gemma(), first, [ONE, TWO]) is None
    assert_right(cache.lookup(shared_gemma(), token_ids().select([1]), [ONE]), ONE, [1])


def test_only_missing_texts_are_computed(cache):
    get(cache, [THREE], token_ids().select([0, 3]))
    states, passes = get(cache, [THREE])
    assert passes == 4 * 3
    assert_right(states, THREE)


def test_only_missing_specs_are_computed(cache):
    get(cache, [THREE])
    before = contents(cache, [THREE])
    states, passes = get(cache, [ONE, TWO, THREE])
    assert passes == len(TEXTS) * 2
    assert contents(cache, [THREE]) == before
    assert_right(states.layers[1], TWO)


def test_each_text_is_computed_only_for_the_specs_it_is_wanted_for(cache):
    some = np.array([False, True, False, False, True, False])
    assert compute_missing(cache, {ONE: np.ones(6, bool), THREE: some}) == 4 * 1 + 2 * 3
    assert cached(cache, ONE) == [True] * 6
    assert cached(cache, THREE) == some.tolist()


def test_nothing_wanted_computes_nothing(cache):
    nothing = np.zeros(len(TEXTS), bool)
    assert compute_missing(cache, {ONE: nothing}) == 0
    assert cached(cache, ONE) == nothing.tolist()


def test_a_duplicate_text_is_computed_once(cache):
    states, passes = get(cache, [TWO], token_ids().select([2, 4, 2, 2]))
    assert passes == 2 * 2
    assert_right(states, TWO, [2, 4, 2, 2])
    assert len(cache.layer_file(shared_gemma(), TWO).records()) == 2


def test_a_duplicate_text_is_computed_for_every_spec_that_either_is_wanted_for(cache):
    twice = token_ids().select([2, 2])
    wanted = {ONE: np.array([True, False]), TWO: np.array([False, True])}
    assert compute_missing(cache, wanted, twice) == 2
    assert cached(cache, ONE, twice) == cached(cache, TWO, twice) == [True, True]


def test_hidden_states_are_read_from_the_file_and_not_copied_to_memory(cache):
    states, _ = get(cache, [TWO])
    assert isinstance(states, RaggedArray) and isinstance(states.values, np.memmap)
    assert states.values.dtype == "float16"
    assert Path(states.values.filename) == cache.layer_file(shared_gemma(), TWO).path.resolve()
    assert isinstance(states.select([1, 2]).values, np.memmap)


def test_a_text_is_identified_by_its_tokens_whatever_the_length_limit(cache):
    texts = [*TEXTS[:3], "Day 8 was wet, and so was the night behind it."]
    long, cut = tokenize(texts, 16), tokenize(texts, 14)
    assert long.lengths[3] == 16 and cut.lengths[3] == 14 and max(cut.lengths[:3]) < 14
    get(cache, [TWO], long)
    assert get(cache, [TWO], cut)[1] == 1 * 2


def test_texts_that_differ_in_a_token_have_different_keys():
    values = np.array([1, 2, 1, 2, 3, 1, 23, 12, 3, 258, 1, 2], "int32")
    keys = text_keys(from_lengths(values, [2, 3, 2, 2, 1, 2]))
    assert keys[0] == keys[5]
    assert len(set(keys)) == 5 and {len(key) for key in keys} == {16}


# Other models and norms


@pytest.fixture
def other_preset(tmp_path):
    """The tiny model under its own name in another folder, with another value of a weight."""
    folder = tmp_path / "elsewhere" / "tiny_gemma"
    shutil.copytree(TINY.handle, folder)
    with h5py.File(folder / "model.weights.h5", "r+") as file:
        next(iter(hdf5_datasets(file).values()))[0] += 1
    return find_preset("llm_preset", str(folder))


def gemma_with(**attributes):
    """The shared Gemma with another preset or precision."""
    gemma = copy.copy(shared_gemma())
    vars(gemma).update(attributes)
    return gemma


@pytest.mark.parametrize("attribute", ["preset", "dtype"])
def test_another_preset_or_precision_has_its_own_folder(cache, other_preset, attribute):
    get(cache, [ONE])
    other = gemma_with(**{attribute: {"preset": other_preset, "dtype": "bfloat16"}[attribute]})
    assert cache.lookup(other, token_ids(), [ONE]) is None
    folders = [cache.layer_file(gemma, ONE).path.parent for gemma in (shared_gemma(), other)]
    assert folders[0] != folders[1]


def test_the_same_preset_in_another_folder_finds_its_hidden_states(cache, tmp_path):
    get(cache, [ONE])
    shutil.copytree(TINY.handle, tmp_path / "elsewhere" / "tiny_gemma")
    same = find_preset("llm_preset", str(tmp_path / "elsewhere" / "tiny_gemma"))
    assert_right(cache.lookup(gemma_with(preset=same), token_ids(), [ONE]), ONE)


def test_norms_have_their_own_files(cache):
    learned = HiddenStateSpec(2, "learned")
    get(cache, [TWO])
    states, passes = get(cache, [learned])
    assert passes == len(TEXTS) * 2
    assert_right(states, learned)
    assert_right(cache.lookup(shared_gemma(), token_ids(), [TWO]), TWO)


# Raw hidden states


def test_raw_hidden_states_are_stored_in_float32(cache):
    states, _ = get(cache, [RAW[2]])
    assert states.values.dtype == "float32"
    assert_identical(states, RAW[2])


def test_computation_resumes_from_the_largest_cutoff_of_raw_hidden_states(cache):
    get(cache, [RAW[1], RAW[4]])
    specs = [RMS[6], RMS[17]]
    states, passes = get(cache, specs)
    assert passes == len(TEXTS) * 13
    for spec, layer in zip(specs, states.layers, strict=True):
        assert_identical(layer, spec)


def test_raw_hidden_states_at_the_wanted_cutoff_leave_no_layer_to_pass(cache):
    get(cache, [RAW[2]])
    states, passes = get(cache, [THREE])
    assert passes == 0
    assert_right(states, THREE)


def test_computation_does_not_resume_after_the_smallest_wanted_cutoff(cache):
    get(cache, [RAW[2]])
    states, passes = get(cache, [TWO, FOUR])
    assert passes == len(TEXTS) * 4
    for spec, layer in zip([TWO, FOUR], states.layers, strict=True):
        assert_right(layer, spec)


def test_computation_does_not_resume_from_raw_hidden_states_of_some_texts_only(cache):
    get(cache, [RAW[1]], token_ids().select([0, 1, 2]))
    states, passes = get(cache, [FOUR])
    assert passes == len(TEXTS) * 4
    assert_right(states, FOUR)


# Damage; test_layer_file.py has every kind of it


@pytest.mark.parametrize("part", ["states", "index"])
def test_texts_that_a_truncated_file_lacks_are_computed_again(cache, part):
    get(cache, [TWO])
    file = cache.layer_file(shared_gemma(), TWO)
    path = file.index if part == "index" else file.path
    path.write_bytes(path.read_bytes()[:-1])
    assert cached(cache, TWO) == [True] * 5 + [False]
    states, passes = get(cache, [TWO])
    assert passes == 1 * 2
    assert_right(states, TWO)


def test_a_text_with_a_changed_byte_is_computed_again_and_known_by_its_newest_record(cache):
    get(cache, [TWO])
    path = cache.layer_file(shared_gemma(), TWO).path
    path.write_bytes(b"\0" + path.read_bytes()[1:])
    states, passes = get(cache, [TWO])
    assert passes == 1 * 2
    assert_right(states, TWO)
    assert count_records(path) == len(TEXTS) + 1


# Shards, for several processes

LENGTHS = st.lists(st.integers(1, 50), max_size=40).map(np.array)


@given(LENGTHS, st.integers(1, 4))
def test_each_text_is_in_one_shard(lengths, num_shards):
    masks = [mask for _, mask in _shards(lengths, 0, num_shards)]
    assert (np.sum(masks, axis=0) == 1).all()


@given(LENGTHS, st.integers(2, 4))
def test_processes_agree_on_the_shards_and_each_starts_with_its_own(lengths, num_shards):
    all_shards = [dict(_shards(lengths, shard, num_shards)) for shard in range(num_shards)]
    assert len({next(iter(shards)) for shards in all_shards}) == num_shards
    for shards in all_shards:
        for name, mask in shards.items():
            np.testing.assert_array_equal(mask, all_shards[0][name])


@given(LENGTHS, st.integers(2, 4))
def test_shards_are_balanced_in_number_and_length_of_texts(lengths, num_shards):
    masks = [mask for _, mask in _shards(lengths, 0, num_shards)]
    texts = [int(mask.sum()) for mask in masks]
    tokens = [int(lengths[mask].sum()) for mask in masks]
    assert max(texts) - min(texts) <= 1
    assert max(tokens) - min(tokens) <= max(lengths, default=0)


def test_a_process_computes_its_own_shard_first_and_then_the_others(cache):
    wanted = {ONE: np.ones(len(TEXTS), bool)}
    assert compute_missing(cache, wanted, shard=1, num_shards=2) == len(TEXTS)
    keys = text_keys(token_ids())
    records = cache.layer_file(shared_gemma(), ONE).records()
    written = [keys.index(record["key"].tobytes()) for record in records]
    own = dict(_shards(token_ids().lengths, 1, 2))["lock-1-of-2"]
    assert sorted(written) == list(range(len(TEXTS)))
    assert set(written[: own.sum()]) == set(np.flatnonzero(own))


# Several processes at the same time


def test_a_process_waits_for_another_one_that_computes(cache, log):
    get(cache, [TWO])  # makes the folder
    path = cache.layer_file(shared_gemma(), ONE).path.with_name("lock")
    locked = threading.Event()

    def hold_lock():
        with filelock.FileLock(path):
            locked.set()
            time.sleep(0.3)

    other = threading.Thread(target=hold_lock)
    other.start()
    locked.wait()
    states, _ = get(cache, [ONE])
    other.join()
    assert "waiting for another process" in log.text
    assert_right(states, ONE)


def test_cached_hidden_states_are_read_without_waiting(cache, monkeypatch):
    expected, _ = get(cache, [ONE])
    monkeypatch.delattr(HiddenStateCache, "_locked")
    assert compute_missing(cache, {ONE: np.ones(len(TEXTS), bool)}) == 0
    np.testing.assert_array_equal(get(cache, [ONE])[0].values, expected.values)


def test_hidden_states_that_another_process_deletes_at_once_are_an_error(cache, monkeypatch):
    compute = cache.compute_missing

    def compute_and_delete(*arguments):
        compute(*arguments)
        cache.clear()

    monkeypatch.setattr(cache, "compute_missing", compute_and_delete)
    with pytest.raises(InputError, match="another process deleted.*states_dir"):
        get(cache, [ONE])


# Other processes compute with small batches and report each batch that they have written.
COMPUTING = """
import json, sys, time
from shared_gemma import TINY, two_texts_per_batch
from embedder_helpers.models.gemma import Gemma, HiddenStateSpec
from embedder_helpers.models.hidden_states import HiddenStateCache
from embedder_helpers.models.layer_file import LayerFile

append = LayerFile.append

def slow_append(*arguments):
    append(*arguments)
    print("written", flush=True)
    time.sleep(pause)

LayerFile.append = slow_append
gemma = Gemma(TINY, dtype="float32")
folder, texts, cutoffs, pause = json.loads(sys.stdin.readline())
with two_texts_per_batch():
    specs = [HiddenStateSpec(cutoff, "rms") for cutoff in cutoffs]
    HiddenStateCache(folder).get_or_compute(gemma, gemma.tokenize(texts, 64)[0], specs)
print("done", gemma.layer_passes, flush=True)
"""


@pytest.fixture
def start_computing():
    """A function that starts another process, and returns it after its first batch."""
    processes = []

    def start(cache, specs, pause):
        root = Path(__file__).resolve().parents[2]
        path = os.pathsep.join([str(root), str(root / "tests" / "support")])
        process = subprocess.Popen(
            [sys.executable, "-c", COMPUTING], env=os.environ | {"PYTHONPATH": path}, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        processes.append(process)
        request = [str(cache.folder), TEXTS, [spec.cutoff for spec in specs], pause]
        print(json.dumps(request), file=process.stdin, flush=True)
        wait_for("written", process)
        return process

    yield start
    for process in processes:
        process.kill()
        process.communicate()


def wait_for(word, process):
    """The next line that begins with a word."""
    for line in process.stdout:
        if line.startswith(word):
            return line
    raise AssertionError(f"the process ended before it wrote {word!r}")


@pytest.mark.slow
def test_of_two_processes_the_second_waits_and_computes_nothing(cache, start_computing, log):
    specs = [ONE, TWO, THREE]
    token_ids()  # loads the model while the other process is not yet at work
    process = start_computing(cache, specs, pause=1)
    states, passes = get(cache, specs)
    assert passes == 0
    assert "waiting for another process" in log.text
    assert wait_for("done", process).split()[1] == str(len(TEXTS) * 3)
    for spec, layer in zip(specs, states.layers, strict=True):
        assert_right(layer, spec)


@pytest.mark.slow
def test_a_killed_process_leaves_the_batches_that_it_has_written(cache, start_computing, tmp_path):
    specs = [ONE, TWO, FOUR]
    undisturbed = HiddenStateCache(tmp_path / "undisturbed")
    get(undisturbed, specs)
    process = start_computing(cache, specs, pause=0.1)
    for _ in range(3):
        wait_for("written", process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert any(cached(cache, ONE)) and not all(cached(cache, FOUR))
    assert 0 < get(cache, specs)[1] < len(TEXTS) * 4
    assert contents(cache, specs) == contents(undisturbed, specs)


# Interrupted computations


def dies_after(count, gemma):
    """The model's `forward_layers`, which ends in an error after some batches."""

    def forward_layers(*arguments):
        for number, batch in enumerate(type(gemma).forward_layers(gemma, *arguments)):
            if number == count:
                raise Killed
            yield batch
        raise Killed

    return forward_layers


# Three batches for three specs are nine steps.
@pytest.mark.parametrize(
    ("stream_blocks", "count"), [*((False, count) for count in range(10)), (True, 2), (True, 7)]
)
def test_an_interrupted_computation_continues_to_the_same_hidden_states(
    cache, stream_blocks, count, tmp_path, monkeypatch
):
    specs = [ONE, TWO, FOUR]
    undisturbed, gemma = HiddenStateCache(tmp_path / "undisturbed"), shared_gemma(stream_blocks)
    get(undisturbed, specs)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(gemma, "forward_layers", dies_after(count, gemma))
        get(cache, specs, gemma=gemma)
    assert sum(sum(cached(cache, spec)) for spec in specs) == 2 * min(count, 9)
    get(cache, specs, gemma=gemma)
    assert contents(cache, specs) == contents(undisturbed, specs)


@settings(max_examples=10, deadline=None)
@given(
    masks=st.lists(st.tuples(st.booleans(), st.booleans()), min_size=6, max_size=6),
    count=st.integers(0, 6),
)
def test_resuming_gives_the_same_hidden_states_when_specs_want_different_texts(masks, count):
    wanted = dict(zip([ONE, THREE], np.array(masks, bool).T, strict=True))
    with tempfile.TemporaryDirectory() as folder:
        undisturbed, cache = (HiddenStateCache(f"{folder}/{name}") for name in "ab")
        compute_missing(undisturbed, wanted)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(shared_gemma(), "forward_layers", dies_after(count, shared_gemma()))
            try:
                compute_missing(cache, wanted)
            except Killed:
                pass
        compute_missing(cache, wanted)
        for spec, mask in wanted.items():
            assert cached(cache, spec) == mask.tolist()
            for row in np.flatnonzero(mask):
                ids = token_ids().select([row])
                np.testing.assert_array_equal(
                    cache.lookup(shared_gemma(), ids, [spec]).text(0),
                    undisturbed.lookup(shared_gemma(), ids, [spec]).text(0),
                )


# The size limit


def set_last_used(cache, spec, seconds):
    os.utime(cache.layer_file(shared_gemma(), spec).path, (seconds, seconds))


def exists(cache, *specs):
    return [cache.layer_file(shared_gemma(), spec).path.exists() for spec in specs]


@pytest.fixture
def room_for_two(tmp_path):
    """A cache with room for two specs that holds two, of which the first is the older."""
    cache = HiddenStateCache(tmp_path, 2.5 * gigabytes(token_ids(), [ONE]))
    get(cache, [ONE, TWO])
    set_last_used(cache, ONE, 1000)
    set_last_used(cache, TWO, 2000)
    return cache


def test_what_was_least_recently_used_is_deleted_first(room_for_two, log):
    get(room_for_two, [THREE])
    assert exists(room_for_two, ONE, TWO, THREE) == [False, True, True]
    (line,) = [line for line in log.messages if "deleted" in line]
    assert "tiny_gemma" in line and "k01-rms" in line


def test_a_lookup_counts_as_use(room_for_two):
    room_for_two.lookup(shared_gemma(), token_ids(), [ONE])
    get(room_for_two, [THREE])
    assert exists(room_for_two, ONE, TWO, THREE) == [True, False, True]


def test_what_a_request_reads_is_not_deleted_for_it(room_for_two):
    states, _ = get(room_for_two, [ONE, THREE])
    assert exists(room_for_two, ONE, TWO, THREE) == [True, False, True]
    for spec, layer in zip([ONE, THREE], states.layers, strict=True):
        assert_right(layer, spec)


def test_raw_hidden_states_to_resume_from_are_not_deleted(tmp_path):
    raw = RAW[1]  # as large as two normed ones
    cache = HiddenStateCache(tmp_path, 3.5 * gigabytes(token_ids(), [ONE]))
    get(cache, [raw])
    get(cache, [ONE])
    set_last_used(cache, raw, 1000)
    assert get(cache, [THREE])[1] == len(TEXTS) * 1
    assert exists(cache, raw, ONE, THREE) == [True, False, True]


def test_nothing_is_deleted_for_what_fits(room_for_two, log):
    get(room_for_two, [THREE], token_ids().select([0]))
    assert exists(room_for_two, ONE, TWO, THREE) == [True, True, True]
    assert "deleted" not in log.text


def test_what_cannot_fit_is_an_error_that_names_size_room_and_remedies(tmp_path):
    # As wide as no model: the tiny one's hidden states are less than a hundredth of a gigabyte.
    wide = dataclasses.replace(TINY, width=10**7)
    cache = HiddenStateCache(tmp_path, 1.5)
    with pytest.raises(InputError) as error:
        gemma = types.SimpleNamespace(dtype="float32", preset=wide, unload=int)
        cache.get_or_compute(gemma, token_ids(), [ONE, TWO])
    needed = f"{2 * token_ids().lengths.sum() * 2 * 10**7 / 1e9:.2f} GB"
    settings = "states_dir", "states_gigabytes", "max_train_texts"
    for part in (needed, "1.50 GB", str(tmp_path), *settings):
        assert part in str(error.value)


def test_a_request_that_cannot_fit_deletes_nothing(room_for_two):
    with pytest.raises(InputError, match="states_gigabytes"):
        get(room_for_two, RMS[2:9])
    assert exists(room_for_two, ONE, TWO) == [True, True]


def test_the_free_disk_is_a_limit_too(cache, monkeypatch):
    free = RESERVE + int(1.5e9 * gigabytes(token_ids(), [ONE]))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(0, 0, free))
    with pytest.raises(InputError, match="states_dir"):
        get(cache, [ONE, TWO])
    assert_right(get(cache, [ONE])[0], ONE)


def test_other_texts_of_the_same_spec_are_deleted_too(tmp_path):
    others = tokenize(OTHER_TEXTS)
    cache = HiddenStateCache(tmp_path, 1.5 * gigabytes(token_ids(), [ONE]))
    get(cache, [ONE])
    get(cache, [ONE], others)
    assert cached(cache, ONE, others) == [True] * len(OTHER_TEXTS)
    assert cache.summary()["gigabytes"].sum() <= cache.limit / 1e9


def test_wanted_texts_stay_when_others_of_their_spec_are_deleted(tmp_path):
    others = tokenize(OTHER_TEXTS)
    both = tokenize([*TEXTS[:2], *OTHER_TEXTS])
    limit = 1.1 * max(gigabytes(both, [ONE]), gigabytes(token_ids(), [ONE]))
    cache = HiddenStateCache(tmp_path, limit)
    get(cache, [ONE])
    assert get(cache, [ONE], both)[1] == len(OTHER_TEXTS)
    assert_right(cache.lookup(shared_gemma(), token_ids().select([0, 1]), [ONE]), ONE, [0, 1])
    assert cached(cache, ONE) == [True, True, False, False, False, False]
    assert cached(cache, ONE, others) == [True] * len(OTHER_TEXTS)
    assert cache.summary()["gigabytes"].sum() <= limit


def test_what_is_cached_needs_no_room(cache):
    get(cache, [ONE])
    lowered = HiddenStateCache(cache.folder, 1e-9)
    assert compute_missing(lowered, {ONE: np.ones(len(TEXTS), bool)}) == 0
    assert_right(get(lowered, [ONE])[0], ONE)


def test_a_folder_that_cannot_be_written_is_an_error_that_names_its_setting(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="states_dir"):
        HiddenStateCache(tmp_path / "file" / "states")


# Summary and deletion


def test_the_summary_shows_each_specs_texts_and_size(cache):
    assert cache.summary().empty
    get(cache, [ONE])
    get(cache, [RAW[2]], token_ids().select([0, 1]))
    rows = cache.summary().sort_values("cutoff").to_dict("records")
    model = cache.layer_file(shared_gemma(), ONE).path.parent.name
    assert [(row["model"], row["cutoff"], row["norm"], row["texts"]) for row in rows] == [
        (model, 1, "rms", len(TEXTS)),
        (model, 3, "none", 2),
    ]
    sizes = gigabytes(token_ids(), [ONE]), gigabytes(token_ids().select([0, 1]), [RAW[2]])
    assert [row["gigabytes"] for row in rows] == pytest.approx(sizes)


def test_hidden_states_are_deleted_by_model_or_all(cache, other_preset):
    get(cache, [ONE, TWO])
    other = gemma_with(preset=other_preset)
    get(cache, [ONE], gemma=other)
    names = [cache.layer_file(gemma, ONE).path.parent.name for gemma in (shared_gemma(), other)]
    assert sorted(cache.summary()["model"].unique()) == sorted(names)
    assert cache.clear(names[0]) == round(gigabytes(token_ids(), [ONE, TWO]) * 1e9)
    assert list(cache.summary()["model"]) == [names[1]]
    assert cache.lookup(shared_gemma(), token_ids(), [ONE]) is None
    assert cache.clear() == round(gigabytes(token_ids(), [ONE]) * 1e9)
    assert cache.summary().empty
    assert_right(get(cache, [ONE])[0], ONE)


def test_deleting_a_model_without_hidden_states_is_an_error_that_names_it(cache):
    get(cache, [ONE])
    with pytest.raises(InputError, match="'tiny'"):
        cache.clear("tiny")
    assert not cache.summary().empty


# Hidden states that are not finite


def test_a_batch_that_is_not_finite_is_an_error_and_is_not_written(cache, monkeypatch):
    others = {token for row in range(5) for token in token_ids().text(row)}
    (own,) = set(token_ids().text(5)) - others
    table = np.array(shared_gemma()._weights.table)
    table[own] = np.nan
    monkeypatch.setattr(shared_gemma()._weights, "table", table)
    with pytest.raises(InputError, match="not finite"):
        get(cache, [TWO])
    assert cached(cache, TWO) == [True, True, True, True, False, False]


def test_what_is_finite_of_the_same_batch_is_written(cache, monkeypatch):
    layers = shared_gemma()._layers
    damaged = {name: weight * np.nan for name, weight in layers[1].items()}
    monkeypatch.setattr(shared_gemma(), "_layers", [layers[0], damaged, *layers[2:]])
    with pytest.raises(InputError, match="layer 2 .*not finite"):
        get(cache, [ONE, TWO])
    assert cached(cache, ONE) == [True, True, False, False, False, False]
    assert cached(cache, TWO) == [False] * 6

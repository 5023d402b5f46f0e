import copy
import dataclasses
import functools
import itertools
import json
import logging
import os
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
import types
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from shared_gemma import TEXTS, TINY, shared_gemma, token_ids, two_texts_per_batch

from embedder_helpers.errors import InputError
from embedder_helpers.models import (
    cache_folder,
    eviction,
    hidden_states,
    shard_index,
    sharding,
    use_marks,
)
from embedder_helpers.models.batching import MultiLayerStates, RaggedArray
from embedder_helpers.models.cache_folder import clear, summary
from embedder_helpers.models.eviction import RESERVE, SMALL_DISK
from embedder_helpers.models.gemma import HiddenStateSpec
from embedder_helpers.models.hidden_states import HiddenStateCache
from embedder_helpers.models.preset_files import hdf5_datasets
from embedder_helpers.models.presets import find_preset
from embedder_helpers.models.shard_file import TEXT_BYTES, MappedStates, ShardFile, write_shard
from embedder_helpers.models.sharding import text_keys

OTHER_TEXTS = [f"Night {i} was cold by the river." for i in range(1, 5)]
RMS = [HiddenStateSpec(cutoff, "rms") for cutoff in range(1, 19)]
RAW = [HiddenStateSpec(cutoff, "none") for cutoff in range(1, 19)]
ONE, TWO, THREE, FOUR = RMS[:4]
ALL = np.ones(len(TEXTS), bool)
BUCKET = 16  # tokens of each of them, with padding


@pytest.fixture(scope="module", autouse=True)
def small_batches():
    with two_texts_per_batch():
        yield


@pytest.fixture
def small_shards(monkeypatch):
    """Two texts per shard."""
    monkeypatch.setattr(sharding, "SHARD_TOKENS", 2 * BUCKET)


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


def compute_missing(cache, wanted, ids=None):
    """The layer passes that it costs."""
    before = shared_gemma().layer_passes
    cache.compute_missing(shared_gemma(), token_ids() if ids is None else ids, wanted)
    return shared_gemma().layer_passes - before


def prepare(cache, wanted, ids=None):
    """Rows of each shard of which something is missing."""
    shards = cache.prepare(shared_gemma(), token_ids() if ids is None else ids, wanted)
    return [shard.tolist() for shard in shards]


def compute_shard(cache, wanted, shard):
    """The layer passes that it costs."""
    before = shared_gemma().layer_passes
    cache.compute_shard(shared_gemma(), token_ids(), wanted, np.array(shard))
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
        np.testing.assert_array_equal(states.text(row), expected, strict=True)


def paths(cache, *specs, gemma=None):
    """Files of some specs, or of all."""
    folder = cache.model_folder(gemma or shared_gemma())
    prefixes = [f"k{spec.cutoff:02d}-{spec.norm}" for spec in specs] or ["k"]
    return sorted(path for prefix in prefixes for path in folder.glob(f"{prefix}*"))


def contents(cache):
    """The bytes of all files, by name."""
    return {path.name: path.read_bytes() for path in paths(cache)}


def states_of_texts(cache, *specs):
    """The bytes of each text's hidden states, by spec and key."""
    found = {}
    for spec in specs:
        for file in map(ShardFile, paths(cache, spec)):
            for key, row in file.rows.items():
                assert file.is_intact(row)
                found[spec, key] = file.states.text(row).tobytes()
    return found


def cached(cache, spec, ids=None):
    """For each text, whether its hidden states are on the disk and intact."""
    keys = text_keys(token_ids() if ids is None else ids)
    missing = HiddenStateCache(cache.folder).missing(
        shared_gemma(), keys, {spec: np.ones(len(keys), bool)}
    )
    return (~missing[spec]).tolist() if missing else [True] * len(keys)


def key_of(row):
    return text_keys(token_ids())[row]


def size_of(ids, specs):
    """Bytes of hidden states without headers of files."""
    tokens = int(ids.lengths.sum())
    values = [tokens * TINY.width * (4 if spec.norm == "none" else 2) for spec in specs]
    return sum(values) + len(ids) * len(specs) * TEXT_BYTES


def gigabytes(ids, specs):
    return size_of(ids, specs) / 1e9


def disk_usage(cache):
    return sum(path.stat().st_size for path in cache.folder.glob("*/k*"))


# What is cached, and what is computed


def test_cached_hidden_states_are_those_computed_in_memory_in_one_pass_per_layer(cache):
    states, passes = get(cache, RMS)
    assert isinstance(states, MultiLayerStates) and len(states.layers) == 18
    for spec, layer in zip(RMS, states.layers, strict=True):
        assert_identical(layer, spec)
    assert passes == len(TEXTS) * 18


def test_hidden_states_in_several_files_are_those_computed_in_memory(cache, small_shards):
    specs = [ONE, RAW[1], FOUR]
    states, passes = get(cache, specs)
    assert [len(paths(cache, spec)) for spec in specs] == [3, 3, 3]
    for spec, layer in zip(specs, states.layers, strict=True):
        assert_right(layer, spec)
    assert passes == len(TEXTS) * 4
    padded, mask = states.select([5, 0]).pad([0, 1], 16, 2)
    for i, row in enumerate([5, 0]):
        tokens = len(computed_in_memory(ONE)[row])
        assert mask[i].sum() == tokens
        np.testing.assert_array_equal(padded[i, :tokens], states.text(row))


def test_a_second_request_computes_nothing(cache, small_shards):
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
    assert len(paths(cache, THREE)) == 2


def test_only_missing_specs_are_computed(cache):
    get(cache, [THREE])
    before = contents(cache)
    states, passes = get(cache, [ONE, TWO, THREE])
    assert passes == len(TEXTS) * 2
    assert before.items() <= contents(cache).items()
    assert_right(states.layers[1], TWO)


def test_each_text_is_computed_only_for_the_specs_it_is_wanted_for(cache):
    some = np.array([False, True, False, False, True, False])
    assert compute_missing(cache, {ONE: ALL, THREE: some}) == 4 * 1 + 2 * 3
    assert cached(cache, ONE) == [True] * 6
    assert cached(cache, THREE) == some.tolist()


@pytest.mark.parametrize("wanted", [{ONE: ~ALL}, {ONE: ~ALL, TWO: ~ALL}, {}])
def test_nothing_wanted_computes_nothing(cache, wanted):
    assert prepare(cache, wanted) == []
    assert compute_missing(cache, wanted) == 0
    assert paths(cache) == []


def test_a_duplicate_text_is_computed_once(cache):
    states, passes = get(cache, [TWO], token_ids().select([2, 4, 2, 2]))
    assert passes == 2 * 2
    assert_right(states, TWO, [2, 4, 2, 2])
    assert len(states_of_texts(cache, TWO)) == 2


def test_a_duplicate_text_is_computed_for_every_spec_that_either_is_wanted_for(cache):
    twice = token_ids().select([2, 2])
    wanted = {ONE: np.array([True, False]), TWO: np.array([False, True])}
    assert compute_missing(cache, wanted, twice) == 2
    assert cached(cache, ONE, twice) == cached(cache, TWO, twice) == [True, True]


def test_hidden_states_are_read_from_the_file_and_not_copied_to_memory(cache):
    states, _ = get(cache, [TWO])
    assert isinstance(states, RaggedArray) and isinstance(states.values, np.memmap)
    assert states.values.dtype == "float16"
    (path,) = paths(cache, TWO)
    assert Path(states.values.filename) == path.resolve()
    assert isinstance(states.select([1, 2]).values, np.memmap)


def test_hidden_states_are_read_from_several_files_and_not_copied_to_memory(cache, small_shards):
    states, _ = get(cache, [TWO])
    assert isinstance(states.values, MappedStates) and len(states.values.parts) == 3
    for row in range(len(TEXTS)):
        assert any(np.shares_memory(states.text(row), part) for part in states.values.parts)
    assert {Path(part.filename) for part in states.values.parts} == {
        path.resolve() for path in paths(cache, TWO)
    }


def test_a_text_is_identified_by_its_tokens_whatever_the_length_limit(cache):
    texts = [*TEXTS[:3], "Day 8 was wet, and so was the night behind it."]
    long, cut = tokenize(texts, 16), tokenize(texts, 14)
    assert long.lengths[3] == 16 and cut.lengths[3] == 14 and max(cut.lengths[:3]) < 14
    get(cache, [TWO], long)
    assert get(cache, [TWO], cut)[1] == 1 * 2


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
    assert cache.model_folder(shared_gemma()) != cache.model_folder(other)


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


def test_computation_resumes_from_the_largest_cutoff_of_raw_hidden_states(cache, small_shards):
    get(cache, [RAW[1], RAW[4]])
    specs = [RMS[6], RMS[17]]
    states, passes = get(cache, specs)
    assert passes == len(TEXTS) * 13
    for spec, layer in zip(specs, states.layers, strict=True):
        assert_right(layer, spec)


def test_resumed_hidden_states_are_those_computed_from_the_text(cache):
    get(cache, [RAW[4]])
    states, passes = get(cache, [RMS[6]])
    assert passes == len(TEXTS) * 2
    assert_identical(states, RMS[6])


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


def test_each_shard_resumes_where_its_own_texts_can(cache, small_shards):
    first, *_ = prepare(cache, {FOUR: ALL})
    get(cache, [RAW[1]], token_ids().select(first))
    states, passes = get(cache, [FOUR])
    assert passes == 2 * 2 + 4 * 4
    assert_right(states, FOUR)


# Damage; test_shard_file.py has every kind of it


def header(path):
    """The start of each part of a file, and the end of all."""
    content = path.read_bytes()
    (size,) = struct.unpack("<Q", content[:8])
    tensors = json.loads(content[8 : 8 + size])
    starts = {name: 8 + size + entry["data_offsets"][0] for name, entry in tensors.items()}
    return {"size": 0, "header": 8} | starts | {"end": len(content)}


def flip(path, position, mask=1):
    content = bytearray(path.read_bytes())
    content[position] ^= mask
    path.write_bytes(content)


def assert_repaired(cache, spec):
    """What is damaged is computed again, once; returns the number of texts."""
    states, passes = get(HiddenStateCache(cache.folder), [spec])
    assert_right(states, spec)
    assert passes <= len(TEXTS) * spec.cutoff
    states, more = get(HiddenStateCache(cache.folder), [spec])
    assert_right(states, spec)
    assert more == 0
    return passes // spec.cutoff


@pytest.mark.parametrize("length", [0, 7, 8, 100, -(10**4), -1])
def test_texts_of_a_truncated_file_are_computed_again(cache, small_shards, length, log):
    get(cache, [TWO])
    path = paths(cache, TWO)[1]
    path.write_bytes(path.read_bytes()[:length])
    assert cached(cache, TWO).count(False) == 2
    assert assert_repaired(cache, TWO) == 2
    assert len(paths(cache, TWO)) == 3
    assert path.name in log.text and "computed again" in log.text


@pytest.mark.parametrize(
    ("part", "texts"),
    [("size", 2), ("header", 2), ("keys", 1), ("lengths", 2), ("checksums", 2), ("states", 2)],
)
def test_texts_of_a_file_with_a_changed_byte_are_computed_again(cache, small_shards, part, texts):
    get(cache, [TWO])
    path = paths(cache, TWO)[1]
    flip(path, header(path)[part])
    assert cached(cache, TWO).count(False) == texts
    assert assert_repaired(cache, TWO) == texts


@pytest.fixture(scope="module")
def undamaged(tmp_path_factory):
    """A cache of one file, of which hypothesis makes copies."""
    cache = HiddenStateCache(tmp_path_factory.mktemp("undamaged"))
    with two_texts_per_batch():
        get(cache, [ONE])
    return cache


@settings(max_examples=40, deadline=None)
@given(position=st.integers(0, 10**6), mask=st.integers(1, 255), where=st.booleans())
def test_whatever_byte_is_changed_the_hidden_states_are_right(undamaged, position, mask, where):
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(undamaged.folder, folder, dirs_exist_ok=True)
        cache = HiddenStateCache(folder)
        (path,) = paths(cache, ONE)
        parts = header(path)
        # As often in what is small as in the hidden states.
        start, end = (0, parts["states"]) if where else (parts["states"], parts["end"])
        if start < end:
            flip(path, start + position % (end - start), mask)
        assert_repaired(cache, ONE)


def test_a_folder_in_the_place_of_a_file_is_an_error_that_names_it(cache):
    get(cache, [ONE])
    (path,) = paths(cache, ONE)
    path.unlink()
    path.mkdir()
    with pytest.raises(InputError, match=f"{path.name}.*states_dir"):
        get(HiddenStateCache(cache.folder), [ONE])


def test_a_damaged_text_is_computed_again_with_those_that_passed_with_it(cache):
    ids = token_ids().select([0, 1, 2])
    get(cache, [TWO], ids)
    before, (path,) = contents(cache), paths(cache, TWO)
    flip(path, header(path)["states"])
    assert get(HiddenStateCache(cache.folder), [TWO], ids)[1] == 3 * 2
    assert contents(cache) == before


def test_a_text_that_is_damaged_in_one_file_is_read_from_another(cache):
    get(cache, [TWO], token_ids().select([0, 1]))
    (path,) = paths(cache, TWO)
    flip(path, header(path)["states"])
    damaged = text_keys(token_ids()).index(ShardFile(path).keys[0])
    for passes in (2, 0):
        found = get(HiddenStateCache(cache.folder), [TWO], token_ids().select([damaged]))
        assert found[1] == passes
        assert_right(found[0], TWO, [damaged])
    assert len(paths(cache, TWO)) == 2


def test_a_damaged_file_is_reported_once_and_other_specs_are_read(cache, log):
    get(cache, [ONE, TWO])
    (path,) = paths(cache, ONE)
    path.write_bytes(b"")
    again = HiddenStateCache(cache.folder)
    for _ in range(2):
        assert again.lookup(shared_gemma(), token_ids(), [ONE]) is None
        assert_right(again.lookup(shared_gemma(), token_ids(), [TWO]), TWO)
    assert len([line for line in log.messages if path.name in line]) == 1


def test_a_file_that_is_gone_when_it_is_opened_is_not_taken_for_a_damaged_one(
    cache, log, monkeypatch
):
    get(cache, [ONE])
    again = HiddenStateCache(cache.folder)

    def gone(path):
        raise FileNotFoundError(path)

    with monkeypatch.context() as patch:
        patch.setattr(shard_index, "ShardFile", gone)
        assert again.lookup(shared_gemma(), token_ids(), [ONE]) is None
    assert_right(again.lookup(shared_gemma(), token_ids(), [ONE]), ONE)
    assert "computed again" not in log.text


# Shards; test_sharding.py has how texts are divided


@settings(max_examples=15, deadline=None)
@given(missing=st.lists(st.tuples(st.booleans(), st.booleans()), min_size=6, max_size=6))
def test_shards_are_the_same_whatever_is_missing(missing):
    wanted = {ONE: ALL, TWO: np.array([True, False, True, True, True, True])}
    present = {
        spec: ~np.array(mask) & wanted[spec]
        for spec, mask in zip(wanted, np.array(missing).T, strict=True)
    }
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as folder:
        patch.setattr(sharding, "SHARD_TOKENS", 2 * BUCKET)
        cache = HiddenStateCache(folder)
        shards = prepare(cache, wanted)
        compute_missing(cache, present)
        lacks = np.any([wanted[spec] & ~present[spec] for spec in wanted], axis=0)
        assert prepare(cache, wanted) == [shard for shard in shards if lacks[shard].any()]


def test_a_duplicate_text_is_in_one_shard(cache, small_shards):
    twice = token_ids().select([0, 1, 0, 1, 2, 3])
    shards = prepare(cache, {ONE: ALL}, twice)
    assert sorted(itertools.chain(*shards)) == [0, 1, 4, 5]


# Several processes at the same time


@pytest.mark.parametrize("order", itertools.permutations(range(3)))
def test_shards_of_several_processes_in_any_order_are_the_files_of_one(
    tmp_path, small_shards, order
):
    wanted = {ONE: ALL, RAW[1]: ALL, FOUR: np.array([True, False, True, False, False, True])}
    alone, *several = (HiddenStateCache(tmp_path / name) for name in ("a", "b", "b"))
    compute_missing(alone, wanted)
    shards = prepare(several[0], wanted)
    assert len(shards) == 3
    for number in order:
        assert compute_shard(several[number % 2], wanted, shards[number]) > 0
    assert contents(several[0]) == contents(alone)
    assert len(contents(alone)) > 6
    for each in several:
        assert compute_missing(each, wanted) == 0


def test_a_shard_that_another_process_has_computed_is_not_computed_again(cache, small_shards):
    other, wanted = HiddenStateCache(cache.folder), {TWO: ALL}
    shards = prepare(cache, wanted)
    assert prepare(other, wanted) == shards
    assert compute_shard(other, wanted, shards[1]) == 2 * 2
    assert compute_shard(cache, wanted, shards[1]) == 0
    assert prepare(cache, wanted) == [shards[0], shards[2]]


def test_processes_that_compute_the_same_shard_write_the_same_file(cache, monkeypatch):
    other, wanted, counts = HiddenStateCache(cache.folder), {ONE: ALL, TWO: ALL}, []

    def write_after_the_other(*arguments):
        monkeypatch.setattr(hidden_states, "write_shard", write_shard)
        counts.append(compute_missing(other, wanted))
        before = contents(cache)
        write_shard(*arguments)
        assert contents(cache) == before

    monkeypatch.setattr(hidden_states, "write_shard", write_after_the_other)
    compute_missing(cache, wanted)
    assert counts == [len(TEXTS) * 2] and len(contents(cache)) == 2
    for each in (cache, other):
        states, passes = get(each, [ONE, TWO])
        assert passes == 0
        assert_identical(states.layers[1], TWO)


def test_what_another_process_computes_while_room_is_made_is_not_computed(cache, monkeypatch):
    other, useful_bytes = HiddenStateCache(cache.folder), cache._useful_bytes

    def compute_first(*arguments):
        compute_missing(other, {ONE: ALL})
        return useful_bytes(*arguments)

    monkeypatch.setattr(cache, "_useful_bytes", compute_first)
    assert prepare(cache, {ONE: ALL}) == []


def test_what_another_process_deletes_just_before_the_mark_is_computed(
    cache, small_shards, monkeypatch
):
    get(cache, [ONE])
    shards = prepare(HiddenStateCache(cache.folder / "empty"), {ONE: ALL})
    path = next(path for path in paths(cache) if key_of(shards[1][0]) in ShardFile(path).rows)
    replace = cache._mark.replace

    def delete_first(marked):
        path.unlink()
        replace(marked)

    monkeypatch.setattr(cache._mark, "replace", delete_first)
    assert prepare(cache, {ONE: ALL}) == [shards[1]]


def test_gemma_keeps_its_weights_between_shards_and_frees_them_at_the_end(
    cache, small_shards, monkeypatch
):
    calls = []
    monkeypatch.setattr(shared_gemma(), "unload", lambda: calls.append("unload"))
    wanted = {ONE: ALL}
    first, *_ = prepare(cache, wanted)
    compute_shard(cache, wanted, first)
    assert calls == []
    compute_missing(cache, wanted)
    assert calls == ["unload"]


def test_hidden_states_that_somebody_deletes_at_once_are_an_error(cache, monkeypatch):
    compute = cache.compute_missing

    def compute_and_delete(*arguments):
        compute(*arguments)
        clear(cache.folder)

    monkeypatch.setattr(cache, "compute_missing", compute_and_delete)
    with pytest.raises(InputError, match="deleted.*states_dir"):
        get(cache, [ONE])


def test_what_was_read_stays_readable_when_another_process_deletes_it(cache, small_shards):
    states, _ = get(cache, [TWO])
    assert clear(cache.folder) > 0
    assert_right(states, TWO)
    states, passes = get(cache, [TWO])
    assert passes == len(TEXTS) * 2
    assert_right(states, TWO)


@pytest.mark.skipif(not os.path.exists("/proc/self/maps"), reason="needs the list of mapped files")
@pytest.mark.parametrize("next_use", ["lookup", "compute_shard"])
def test_files_that_another_process_deleted_take_no_room_any_more(cache, next_use):
    get(cache, [ONE, TWO])
    (path,) = paths(cache, ONE)
    path.unlink()
    assert str(path) in Path("/proc/self/maps").read_text()
    if next_use == "lookup":
        get(cache, [TWO])
    else:
        compute_shard(cache, {THREE: ALL}, [0])
    assert str(path) not in Path("/proc/self/maps").read_text()


# Other processes compute shards of two texts and report each file that they have written.
COMPUTING = """
import json, sys, time
from shared_gemma import TINY, two_texts_per_batch
from embedder_helpers.models import hidden_states, sharding
from embedder_helpers.models.gemma import Gemma, HiddenStateSpec
from embedder_helpers.models.hidden_states import HiddenStateCache

write_shard = hidden_states.write_shard

def slow_write(*arguments):
    write_shard(*arguments)
    print("written", flush=True)
    time.sleep(pause)

hidden_states.write_shard = slow_write
gemma = Gemma(TINY, dtype="float32")
folder, texts, cutoffs, sharding.SHARD_TOKENS, pause = json.loads(sys.stdin.readline())
with two_texts_per_batch():
    specs = [HiddenStateSpec(cutoff, "rms") for cutoff in cutoffs]
    HiddenStateCache(folder).get_or_compute(gemma, gemma.tokenize(texts, 64)[0], specs)
print("done", gemma.layer_passes, flush=True)
sys.stdin.read()
"""


@pytest.fixture
def start_computing():
    """A function that starts another process, and returns it after its first file."""
    processes = []

    def start(cache, specs, pause):
        root = Path(__file__).resolve().parents[2]
        path = os.pathsep.join([str(root), str(root / "tests" / "support")])
        process = subprocess.Popen(
            [sys.executable, "-c", COMPUTING], env=os.environ | {"PYTHONPATH": path}, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        processes.append(process)
        request = [str(cache.folder), TEXTS, [spec.cutoff for spec in specs], 2 * BUCKET, pause]
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
def test_two_processes_at_once_end_with_the_files_of_one(
    cache, start_computing, tmp_path, small_shards
):
    specs = [ONE, TWO, FOUR]
    alone = HiddenStateCache(tmp_path / "alone")
    get(alone, specs)
    process = start_computing(cache, specs, pause=0.2)
    states, passes = get(cache, specs)  # does not wait
    assert 0 < passes <= len(TEXTS) * 4
    for spec, layer in zip(specs, states.layers, strict=True):
        assert_right(layer, spec)
    assert 0 < int(wait_for("done", process).split()[1]) <= len(TEXTS) * 4
    assert contents(cache) == contents(alone)
    assert len(contents(cache)) == 9


@pytest.mark.slow
def test_a_killed_process_leaves_whole_files_and_the_next_one_continues(
    cache, start_computing, tmp_path, small_shards
):
    specs = [ONE, TWO, FOUR]
    undisturbed = HiddenStateCache(tmp_path / "undisturbed")
    get(undisturbed, specs)
    process = start_computing(cache, specs, pause=0.1)
    for _ in range(3):
        wait_for("written", process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    left = contents(cache)
    assert 4 <= len(left) < 9 and left.items() <= contents(undisturbed).items()
    assert 0 < get(cache, specs)[1] < len(TEXTS) * 4
    assert contents(cache) == contents(undisturbed)


@pytest.mark.slow
def test_what_a_living_process_has_computed_is_kept_until_it_dies(
    cache, start_computing, small_shards
):
    process = start_computing(cache, [ONE], pause=0)
    wait_for("done", process)
    limited = HiddenStateCache(cache.folder, 1.5 * gigabytes(token_ids(), [ONE]))
    with pytest.raises(InputError, match="other processes"):
        get(limited, [TWO])
    process.kill()
    process.communicate()
    get(limited, [TWO])
    assert cached(limited, TWO) == [True] * 6


# Interrupted computations


def dies_after(count, gemma):
    """The model's `forward_layers`, which ends in an error after so many batches and specs."""
    numbers = itertools.count()

    def forward_layers(*arguments):
        for batch in type(gemma).forward_layers(gemma, *arguments):
            if next(numbers) == count:
                raise Killed
            yield batch

    return forward_layers


# Three batches for three specs are nine steps; in shards of a batch each, a step makes a file.
@pytest.mark.parametrize(
    ("stream_blocks", "shards", "count", "files"),
    [*((False, 3, count, count) for count in range(9)),
     (False, 1, 6, 0), (False, 1, 7, 1), (False, 1, 8, 2), (True, 1, 2, 0), (True, 1, 4, 1),
     (True, 1, 8, 2), (True, 3, 2, 2), (True, 3, 7, 7)],
)  # fmt: skip
def test_an_interrupted_computation_continues_to_the_same_files(
    cache, stream_blocks, shards, count, files, tmp_path, monkeypatch
):
    specs, gemma = [ONE, TWO, FOUR], shared_gemma(stream_blocks)
    if shards == 3:
        monkeypatch.setattr(sharding, "SHARD_TOKENS", 2 * BUCKET)
    undisturbed = HiddenStateCache(tmp_path / "undisturbed")
    get(undisturbed, specs)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(gemma, "forward_layers", dies_after(count, gemma))
        get(cache, specs, gemma=gemma)
    left = contents(cache)
    assert len(left) == files and left.items() <= contents(undisturbed).items()
    get(HiddenStateCache(cache.folder), specs, gemma=gemma)
    assert contents(cache) == contents(undisturbed)


@settings(max_examples=10, deadline=None)
@given(
    masks=st.lists(st.tuples(st.booleans(), st.booleans()), min_size=6, max_size=6),
    count=st.integers(0, 6),
    texts=st.sampled_from([2, 6]),
)
def test_resuming_gives_the_same_hidden_states_when_specs_want_different_texts(masks, count, texts):
    wanted = dict(zip([ONE, THREE], np.array(masks, bool).T, strict=True))
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(sharding, "SHARD_TOKENS", texts * BUCKET)
        undisturbed, cache = (HiddenStateCache(f"{folder}/{name}") for name in "ab")
        compute_missing(undisturbed, wanted)
        with pytest.MonkeyPatch.context() as dying:
            dying.setattr(shared_gemma(), "forward_layers", dies_after(count, shared_gemma()))
            try:
                compute_missing(cache, wanted)
            except Killed:
                pass
        compute_missing(cache, wanted)
        for spec, mask in wanted.items():
            assert cached(cache, spec) == mask.tolist()
        assert contents(cache) == contents(undisturbed)


def test_what_is_left_is_computed_in_the_files_of_all_that_was_planned(cache, tmp_path):
    planned = {ONE: np.arange(6) < 4, TWO: ALL}
    undisturbed = HiddenStateCache(tmp_path / "undisturbed")
    compute_missing(undisturbed, planned)
    wanted = {TWO: ALL}
    for shard in cache.prepare(shared_gemma(), token_ids(), wanted, planned):
        cache.compute_shard(shared_gemma(), token_ids(), wanted, shard, planned)
    kept, expected = contents(cache), contents(undisturbed)
    assert len(kept) == 2 and kept.items() < expected.items()


# The size limit


def set_last_used(seconds, *files):
    for path in files:
        os.utime(path, (seconds, seconds))


def exists(cache, *specs):
    return [bool(paths(cache, spec)) for spec in specs]


@pytest.fixture
def room_for_two(tmp_path):
    """A cache with room for two specs that holds two, of which the first is the older."""
    cache = HiddenStateCache(tmp_path, 2.5 * gigabytes(token_ids(), [ONE]))
    get(cache, [ONE, TWO])
    set_last_used(1000, *paths(cache, ONE))
    set_last_used(2000, *paths(cache, TWO))
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


def test_only_the_files_that_a_lookup_reads_count_as_used(cache, small_shards):
    get(cache, [ONE])
    set_last_used(1000, *paths(cache))
    ids = token_ids().select(prepare(HiddenStateCache(cache.folder / "other"), {ONE: ALL})[0])
    cache.lookup(shared_gemma(), ids, [ONE])
    assert sorted(path.stat().st_mtime > 1000 for path in paths(cache)) == [False, False, True]


def test_no_more_files_are_deleted_than_is_needed(tmp_path, small_shards, log):
    cache = HiddenStateCache(tmp_path, 2.5 * gigabytes(token_ids(), [ONE]))
    get(cache, [ONE, TWO])
    oldest = [paths(cache, TWO)[1], paths(cache, ONE)[2]]
    set_last_used(2000, *paths(cache))
    set_last_used(1000, *oldest)
    before = set(paths(cache))
    get(cache, [THREE], token_ids().select([0, 1, 2, 3, 4]))
    assert before - set(paths(cache)) == set(oldest)
    lines = [line for line in log.messages if "deleted" in line]
    assert len(lines) == 2 and all("1" in line for line in lines)


def test_what_a_request_reads_is_not_deleted_for_it(room_for_two):
    states, _ = get(room_for_two, [ONE, THREE])
    assert exists(room_for_two, ONE, TWO, THREE) == [True, False, True]
    for spec, layer in zip([ONE, THREE], states.layers, strict=True):
        assert_right(layer, spec)


def test_raw_hidden_states_to_resume_from_are_deleted_last(tmp_path):
    raw = RAW[1]  # as large as two normed ones
    cache = HiddenStateCache(tmp_path, 3.5 * gigabytes(token_ids(), [ONE]))
    get(cache, [raw])
    get(cache, [ONE])
    set_last_used(1000, *paths(cache, raw))
    assert get(cache, [THREE])[1] == len(TEXTS) * 1
    assert exists(cache, raw, ONE, THREE) == [True, False, True]


def test_raw_hidden_states_are_deleted_where_what_is_wanted_has_no_room_beside_them(tmp_path):
    raw = RAW[1]
    cache = HiddenStateCache(tmp_path, 3.5 * gigabytes(token_ids(), [ONE]))
    get(cache, [raw])
    get(cache, [ONE])
    set_last_used(2000, *paths(cache, raw))
    set_last_used(1000, *paths(cache, ONE))
    states, passes = get(cache, [ONE, THREE, FOUR])
    assert exists(cache, raw, ONE, THREE, FOUR) == [False, True, True, True]
    assert passes == len(TEXTS) * 4
    assert_right(states.layers[2], FOUR)


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
    needed = f"{2 * token_ids().lengths.sum() * 2 * 10**7 / 1e9:.2f}GB"
    remedies = "states_dir", "states_gigabytes", "max_train_texts"
    for part in (needed, "1.50GB", str(tmp_path), *remedies):
        assert part in str(error.value)
    assert "other processes" not in str(error.value)


def test_a_request_that_cannot_fit_deletes_nothing(room_for_two):
    with pytest.raises(InputError, match="states_gigabytes"):
        get(room_for_two, RMS[2:9])
    assert exists(room_for_two, ONE, TWO) == [True, True]


@pytest.mark.parametrize("size", ["large", "small"])
def test_the_free_disk_is_a_limit_too(cache, monkeypatch, size):
    usable = int(1.5 * size_of(token_ids(), [ONE]))
    if size == "large":
        monkeypatch.setattr(eviction, "SMALL_DISK", 10**9)
    free = RESERVE + usable if size == "large" else usable * SMALL_DISK
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(0, 0, free))
    with pytest.raises(InputError, match="states_dir"):
        get(cache, [ONE, TWO])
    assert_right(get(cache, [ONE])[0], ONE)


def test_a_full_disk_has_room_for_what_is_there(cache, monkeypatch):
    get(cache, [ONE])
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(0, 0, 0))
    assert cache.capacity() == disk_usage(cache)
    with pytest.raises(InputError, match="states_dir"):
        get(cache, [ONE, TWO])
    assert exists(cache, ONE, TWO) == [True, False]
    assert_right(get(cache, [TWO], token_ids().select([0, 1]))[0], TWO, [0, 1])
    assert exists(cache, ONE, TWO) == [False, True]


def test_other_texts_of_the_same_spec_are_deleted_too(tmp_path):
    others = tokenize(OTHER_TEXTS)
    cache = HiddenStateCache(tmp_path, 1.5 * gigabytes(token_ids(), [ONE]))
    get(cache, [ONE])
    get(cache, [ONE], others)
    assert cached(cache, ONE, others) == [True] * len(OTHER_TEXTS)
    assert cached(cache, ONE) == [False] * len(TEXTS)
    assert disk_usage(cache) <= cache.limit


def test_of_files_with_wanted_texts_that_with_the_least_is_deleted_first(cache, small_shards):
    get(cache, [ONE])
    first, *rest = prepare(HiddenStateCache(cache.folder / "empty"), {ONE: ALL})
    set_last_used(1000, *paths(cache))
    cache.lookup(shared_gemma(), token_ids().select(first), [ONE])  # it is the last one used
    rows = [first[0], *itertools.chain(*rest)]
    limited = HiddenStateCache(cache.folder, disk_usage(cache) / 1e9)
    ids = tokenize([TEXTS[row] for row in rows] + OTHER_TEXTS[:1])
    states, passes = get(limited, [ONE], ids)
    assert passes == 1 + 1
    assert_right(states.select(range(5)), ONE, rows)
    assert cached(limited, ONE) == [row != first[1] for row in range(len(TEXTS))]


def test_wanted_texts_in_a_file_that_is_deleted_are_computed_again(tmp_path):
    both = tokenize([*TEXTS[:2], *OTHER_TEXTS])
    limit = 1.1 * max(gigabytes(both, [ONE]), gigabytes(token_ids(), [ONE]))
    cache = HiddenStateCache(tmp_path, limit)
    get(cache, [ONE])
    states, passes = get(cache, [ONE], both)
    assert passes == 2 + len(OTHER_TEXTS)
    assert_right(states.select([0, 1]), ONE, [0, 1])
    assert cached(cache, ONE) == [True, True, False, False, False, False]
    assert disk_usage(cache) <= cache.limit


def test_what_is_cached_needs_no_room(cache):
    get(cache, [ONE])
    lowered = HiddenStateCache(cache.folder, 1e-9)
    assert compute_missing(lowered, {ONE: ALL}) == 0
    assert_right(get(lowered, [ONE])[0], ONE)


def test_what_is_left_of_what_just_fits_deletes_nothing(cache, small_shards, log):
    get(cache, [ONE, TWO])
    everything = contents(cache)
    lost = paths(cache, TWO)[0]
    keys = ShardFile(lost).keys
    lost.unlink()
    ids = token_ids().select([row for row in range(len(TEXTS)) if key_of(row) in keys])
    limited = HiddenStateCache(cache.folder, disk_usage(cache) / 1e9 + gigabytes(ids, [TWO]))
    assert get(limited, [ONE, TWO])[1] == 2 * 2
    assert contents(cache) == everything and "deleted" not in log.text


def test_room_is_made_for_the_wanted_texts_of_deleted_files_too(cache, small_shards):
    get(cache, [ONE])
    shards = prepare(HiddenStateCache(cache.folder / "empty"), {ONE: ALL})
    limited = HiddenStateCache(cache.folder, disk_usage(cache) / 1e9)
    rows = [shard[0] for shard in shards]
    states, passes = get(limited, [ONE], tokenize([TEXTS[row] for row in rows] + OTHER_TEXTS[:3]))
    assert passes == 3 + 3
    assert_right(states.select(range(3)), ONE, rows)
    assert disk_usage(cache) <= limited.limit


def test_damaged_texts_are_not_worth_their_room(cache, small_shards):
    get(cache, [ONE])
    shards = prepare(HiddenStateCache(cache.folder / "empty"), {ONE: ALL})
    limit = disk_usage(cache) / 1e9
    path = next(path for path in paths(cache) if key_of(shards[0][0]) in ShardFile(path).rows)
    flip(path, header(path)["states"])
    flip(path, header(path)["end"] - 1)
    rows = [shards[0][0], *shards[1], *shards[2]]
    limited = HiddenStateCache(cache.folder, limit)
    assert get(limited, [ONE], token_ids().select(rows))[1] == 1
    assert not path.exists() and disk_usage(cache) <= limited.limit


def test_damaged_files_are_deleted_like_others(cache):
    get(cache, [ONE, TWO])
    for path in paths(cache, ONE):
        path.write_bytes(path.read_bytes()[:-1])
    set_last_used(1000, *paths(cache, ONE))
    limited = HiddenStateCache(cache.folder, 2.5 * gigabytes(token_ids(), [ONE]))
    get(limited, [TWO, THREE])
    assert exists(limited, ONE, TWO, THREE) == [False, True, True]


def test_a_folder_that_cannot_be_written_is_an_error_that_names_its_setting(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="states_dir"):
        HiddenStateCache(tmp_path / "file" / "states")


# What other processes read


def mark(cache, files, seconds=0):
    """Say that a process of another machine reads some files, and did so many seconds ago."""
    names = [path.relative_to(cache.folder).as_posix() for path in files]
    content = {"process": "elsewhere-0-1-0", "files": names}
    path = cache.folder / f"{use_marks.PREFIX}elsewhere.json"
    path.write_text(json.dumps(content))
    set_last_used(time.time() - seconds, path)
    return path


def own_names(cache):
    """The files that this process says that it reads."""
    content = use_marks.own_mark(cache.folder).path.read_text()
    return {cache.folder / name for name in json.loads(content)["files"]}


def test_what_another_living_process_reads_is_never_deleted(room_for_two):
    mark(room_for_two, paths(room_for_two, ONE))
    get(room_for_two, [THREE])
    assert exists(room_for_two, ONE, TWO, THREE) == [True, False, True]


def test_what_a_dead_process_read_is_deleted(room_for_two):
    left = mark(room_for_two, paths(room_for_two, ONE), use_marks.LOST_SECONDS + 60)
    get(room_for_two, [THREE])
    assert exists(room_for_two, ONE, TWO, THREE) == [False, True, True]
    assert not left.exists()


def test_of_a_spec_only_the_files_that_another_process_reads_are_kept(tmp_path, small_shards):
    cache = HiddenStateCache(tmp_path, 1.5 * gigabytes(token_ids(), [ONE]))
    get(cache, [ONE])
    set_last_used(1000, *paths(cache, ONE))
    kept = paths(cache, ONE)[:1]
    mark(cache, kept)
    get(cache, [TWO])
    assert paths(cache, ONE) == kept and len(paths(cache, TWO)) == 3


def test_what_has_no_room_beside_the_files_of_others_is_an_error_and_deletes_nothing(room_for_two):
    mark(room_for_two, paths(room_for_two, ONE))
    with pytest.raises(InputError, match="other processes") as error:
        get(room_for_two, [THREE, FOUR])
    assert "states_gigabytes" in str(error.value)
    assert exists(room_for_two, ONE, TWO) == [True, True]


def test_what_others_read_and_this_process_wants_takes_room_once(room_for_two):
    mark(room_for_two, paths(room_for_two, ONE))
    states, passes = get(room_for_two, [ONE, THREE])
    assert passes == len(TEXTS) * 3
    assert exists(room_for_two, ONE, TWO, THREE) == [True, False, True]
    assert_right(states.layers[0], ONE)


def test_what_others_read_takes_room(room_for_two):
    before = room_for_two.capacity()
    mark(room_for_two, paths(room_for_two, ONE))
    assert room_for_two.capacity() == before - paths(room_for_two, ONE)[0].stat().st_size


def test_files_that_appear_while_room_is_made_are_an_error_that_says_what_to_do(
    room_for_two, monkeypatch
):
    other, unlink = HiddenStateCache(room_for_two.folder), Path.unlink

    def compute_first(path, **options):
        if path in paths(room_for_two, ONE):
            monkeypatch.undo()
            get(other, [FOUR])
        unlink(path, **options)

    monkeypatch.setattr(Path, "unlink", compute_first)
    with pytest.raises(InputError, match="another process.*states_dir"):
        get(room_for_two, [THREE])


def test_a_mark_that_is_left_while_room_is_made_counts(room_for_two, monkeypatch):
    useful_bytes = room_for_two._useful_bytes

    def mark_first(*arguments):
        mark(room_for_two, paths(room_for_two, ONE))
        return useful_bytes(*arguments)

    monkeypatch.setattr(room_for_two, "_useful_bytes", mark_first)
    get(room_for_two, [THREE])
    assert exists(room_for_two, ONE, TWO, THREE) == [True, False, True]


def test_a_process_says_that_it_reads_what_it_has_computed(cache, small_shards):
    wanted = {ONE: ALL, TWO: ALL}
    for shard in prepare(cache, wanted):
        compute_shard(cache, wanted, shard)
        assert own_names(cache) == set(paths(cache))
    assert len(own_names(cache)) == 6


def test_a_process_says_that_it_reads_what_a_lookup_found(cache, small_shards):
    get(cache, [ONE, TWO])
    prepare(cache, {THREE: ALL})
    assert own_names(cache) == set()
    cache.lookup(shared_gemma(), token_ids(), [TWO])
    assert own_names(cache) == set(paths(cache, TWO))


def test_a_process_reads_what_it_wants_and_nothing_else_any_more(cache):
    get(cache, [ONE, TWO])
    prepare(cache, {TWO: ALL, THREE: ALL})
    assert own_names(cache) == set(paths(cache, TWO))
    prepare(cache, {ONE: ALL})
    assert own_names(cache) == set(paths(cache, ONE))


def test_a_process_says_that_it_reads_the_raw_hidden_states_that_it_resumes_from(
    cache, small_shards
):
    first, *_ = prepare(HiddenStateCache(cache.folder / "empty"), {FOUR: ALL})
    get(cache, [RAW[1]], token_ids().select(first))  # of one shard only
    get(cache, [RAW[2]], token_ids().select([first[0]]))  # of a part of it
    (raw,) = paths(cache, RAW[1])
    prepare(cache, {FOUR: ALL})
    assert own_names(cache) == {raw}
    use_marks.own_mark(cache.folder).replace(())
    compute_shard(cache, {FOUR: ALL}, first)  # as another process, which has not prepared it
    assert own_names(cache) == {raw, *paths(cache, FOUR)}


def test_what_this_process_has_read_before_is_deleted_all_the_same(room_for_two):
    room_for_two.lookup(shared_gemma(), token_ids(), [ONE, TWO])
    set_last_used(1000, *paths(room_for_two, TWO))
    get(room_for_two, [THREE])
    assert exists(room_for_two, ONE, TWO, THREE) == [True, False, True]


# Summary and deletion


def test_the_summary_shows_each_specs_texts_and_size(cache, small_shards):
    assert summary(cache.folder).empty
    get(cache, [ONE])
    get(cache, [ONE], token_ids().select([0, 2]))  # in other files
    get(cache, [RAW[2]], token_ids().select([0, 1]))
    set_last_used(time.mktime((2020, 1, 2, 3, 4, 5, 0, 0, -1)), *paths(cache, RAW[2]))
    set_last_used(1000, paths(cache, ONE)[0])
    rows = summary(cache.folder).sort_values("cutoff").to_dict("records")
    model = cache.model_folder(shared_gemma()).name
    assert [(row["model"], row["cutoff"], row["norm"], row["texts"]) for row in rows] == [
        (model, 1, "rms", len(TEXTS)),
        (model, 3, "none", 2),
    ]
    sizes = [
        sum(path.stat().st_size for path in paths(cache, spec)) / 1e9 for spec in (ONE, RAW[2])
    ]
    assert [row["gigabytes"] for row in rows] == pytest.approx(sizes)
    assert sizes[0] >= gigabytes(token_ids(), [ONE])
    assert rows[1]["last used"] == "2020-01-02 03:04"
    assert rows[0]["last used"] > "2020-01-02 03:04"


def test_a_text_in_several_files_is_one_text_of_the_summary(cache):
    get(cache, [ONE], token_ids().select([0, 1]))
    (path,) = paths(cache, ONE)
    flip(path, header(path)["states"])
    damaged = text_keys(token_ids()).index(ShardFile(path).keys[0])
    get(HiddenStateCache(cache.folder), [ONE], token_ids().select([damaged]))
    assert len(paths(cache, ONE)) == 2
    assert list(summary(cache.folder)["texts"]) == [2]


def test_the_summary_shows_damaged_files(cache):
    get(cache, [ONE])
    for path in paths(cache, ONE):
        path.write_bytes(path.read_bytes()[:50])
    assert list(summary(cache.folder)["texts"]) == [0]
    assert list(summary(cache.folder)["gigabytes"]) == [50 / 1e9]


def test_hidden_states_are_deleted_by_model_or_all(cache, other_preset):
    get(cache, [ONE, TWO])
    other = gemma_with(preset=other_preset)
    get(cache, [ONE], gemma=other)
    names = [cache.model_folder(gemma).name for gemma in (shared_gemma(), other)]
    assert sorted(summary(cache.folder)["model"].unique()) == sorted(names)
    size = sum(path.stat().st_size for path in paths(cache))
    assert clear(cache.folder, names[0]) == size
    assert list(summary(cache.folder)["model"]) == [names[1]]
    assert cache.lookup(shared_gemma(), token_ids(), [ONE]) is None
    size = sum(path.stat().st_size for path in paths(cache, gemma=other))
    assert clear(cache.folder) == size > 0
    assert summary(cache.folder).empty
    assert_right(get(cache, [ONE])[0], ONE)


def test_deleting_a_model_without_hidden_states_is_an_error_that_names_it(cache):
    get(cache, [ONE])
    with pytest.raises(InputError, match="'tiny'"):
        clear(cache.folder, "tiny")
    assert not summary(cache.folder).empty


def test_a_folder_under_the_name_of_a_file_is_neither_shown_nor_deleted(cache):
    get(cache, [ONE, TWO])
    for path in paths(cache, ONE):
        path.unlink()
        path.mkdir()
        set_last_used(1000, path)
    (cache.folder / "old").mkdir()
    (cache.folder / "old" / "k10-rms.states").mkdir()
    assert list(summary(cache.folder)["cutoff"]) == [2]
    limited = HiddenStateCache(cache.folder, 1.5 * gigabytes(token_ids(), [ONE]))
    get(limited, [THREE])
    assert exists(cache, ONE, TWO, THREE) == [True, False, True]
    clear(cache.folder)
    assert exists(cache, ONE, TWO, THREE) == [True, False, False]


def test_files_of_others_in_the_folder_are_neither_shown_nor_deleted(cache):
    get(cache, [ONE])
    names = ["kept.safetensors", "k01-rms.safetensors", "kernel.states", "kept.index", "lock"]
    (cache.folder / "model").mkdir()
    for name in names:
        (cache.folder / "model" / name).write_text("mine")
    assert len(summary(cache.folder)) == 1
    limited = HiddenStateCache(cache.folder, 1.5 * gigabytes(token_ids(), [ONE]))
    get(limited, [TWO])
    clear(cache.folder)
    assert sorted(path.name for path in (cache.folder / "model").iterdir()) == sorted(names)


# Files of earlier versions


@pytest.fixture
def old_files(cache):
    """Files of the earlier format beside those that are read."""
    get(cache, [ONE])
    folder = cache.model_folder(shared_gemma())
    files = [folder / f"k10-rms.{suffix}" for suffix in ("states", "index")]
    files += [cache.folder / "gemma3_1b-12345678" / "k02-none.states"]
    files[-1].parent.mkdir()
    for path in files:
        path.write_bytes(bytes(10**7))
    return files


def test_files_of_earlier_versions_are_mentioned_once_and_never_read(cache, old_files, log):
    cache_folder.log_old_files.cache_clear()
    for _ in range(3):
        again = HiddenStateCache(cache.folder)
    (line,) = [line for line in log.messages if "earlier version" in line]
    assert "0.03 GB" in line and str(cache.folder) in line and "states --clear" in line
    assert "\n" not in line
    assert list(summary(again.folder)["cutoff"]) == [1]
    assert get(again, [RMS[9]])[1] == len(TEXTS) * 10
    assert all(path.exists() for path in old_files)


def test_a_folder_without_files_of_earlier_versions_is_not_mentioned(cache, log):
    cache_folder.log_old_files.cache_clear()
    get(HiddenStateCache(cache.folder), [ONE])
    assert "earlier version" not in log.text


def test_files_of_earlier_versions_are_deleted_with_all_others(cache, old_files):
    size = disk_usage(cache)
    model = cache.model_folder(shared_gemma()).name
    freed = clear(cache.folder, model)
    assert all(path.exists() for path in old_files)
    assert freed + clear(cache.folder) == size
    assert not any(path.exists() for path in old_files)


# Hidden states that are not finite


def test_a_shard_that_is_not_finite_is_an_error_and_is_not_written(
    cache, small_shards, monkeypatch
):
    others = {token for row in range(5) for token in token_ids().text(row)}
    (own,) = set(token_ids().text(5)) - others
    table = np.array(shared_gemma()._weights.table)
    table[own] = np.nan
    monkeypatch.setattr(shared_gemma()._weights, "table", table)
    shards = prepare(cache, {TWO: ALL})
    with pytest.raises(InputError, match="not finite"):
        get(cache, [TWO])
    before = shards[: next(i for i, shard in enumerate(shards) if 5 in shard)]
    written = [row in itertools.chain(*before) for row in range(len(TEXTS))]
    assert cached(cache, TWO) == written
    with pytest.raises(InputError, match="not finite"):
        get(HiddenStateCache(cache.folder), [TWO])
    assert cached(cache, TWO) == written


def test_what_is_finite_of_the_same_shard_is_written(cache, small_shards, monkeypatch):
    layers = shared_gemma()._layers
    damaged = {name: weight * np.nan for name, weight in layers[1].items()}
    monkeypatch.setattr(shared_gemma(), "_layers", [layers[0], damaged, *layers[2:]])
    with pytest.raises(InputError, match="layer 2 .*not finite"):
        get(cache, [ONE, TWO])
    assert cached(cache, ONE).count(True) == 2
    assert cached(cache, TWO) == [False] * 6

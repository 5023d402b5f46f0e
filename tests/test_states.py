import dataclasses
import functools
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import types
from pathlib import Path

import keras
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from embedder_helpers import gemma as gemma_module
from embedder_helpers.config import InputError
from embedder_helpers.gemma import Depth, Gemma
from embedder_helpers.presets import find_preset
from embedder_helpers.states import RECORD, RESERVE, Store, text_keys
from embedder_helpers.tokens import Ragged, Stacked, end_to_end

TINY = find_preset("llm_preset", "tiny_gemma")
# All of one bucket, because every bucket costs a compilation; some of another length.
TEXTS = [f"On day {i} the old mill was {'wet' if i % 2 else 'dry'}." for i in range(8, 14)]
OTHERS = [f"Night {i} was cold by the river." for i in range(1, 5)]
ALL = [Depth(cutoff, "rms") for cutoff in range(1, 19)]
ONE, TWO, THREE = ALL[:3]
FEW = settings(max_examples=15, deadline=None)


@pytest.fixture(scope="module", autouse=True)
def two_texts_a_batch():
    """Small batches, so that a walk over few texts has several."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gemma_module, "CPU_TOKENS", 2 * 16)
        patch.setattr(gemma_module, "GPU_TOKENS", 2 * 16)
        yield


class KeptGemma(Gemma):
    """Keeps its weights between fills, because loading them costs more than any walk here."""

    def unload(self):
        if not getattr(self, "_loaded", 0):
            super().unload()


class Killed(Exception):
    """Stands for the end of the process."""


@functools.cache
def gemma(stream_blocks=False):
    made = KeptGemma(TINY, stream_blocks)
    made._load(TINY.blocks)
    return made


def ids_of(texts, max_tokens=64):
    return gemma().tokenise(texts, max_tokens)[0]


@functools.cache
def ids():
    return ids_of(TEXTS)


@functools.cache
def in_memory(depth):
    """Each text's states, from the walk in memory."""
    states = gemma().states(ids(), [depth])
    return [states.text(row).copy() for row in range(len(TEXTS))]


def passes(action):
    """How many texts went through how many blocks while something was done."""
    before = gemma().block_passes
    action()
    return gemma().block_passes - before


def assert_right(states, depth, rows=None):
    """States are those in memory; in their last bits they may differ in batches of another size."""
    rows = range(len(TEXTS)) if rows is None else rows
    assert len(states) == len(rows)
    for place, row in enumerate(rows):
        np.testing.assert_allclose(
            states.text(place).astype("float32"), in_memory(depth)[row], rtol=2e-3, atol=2e-3
        )


def contents(store, depths, preset=TINY):
    """What the files hold: for each depth the bytes of each text, by key."""
    found = {}
    for depth in depths:
        file = store.file(preset, depth)
        values = np.fromfile(file.path, file.dtype).reshape(-1, file.width)
        for record in file.records():
            start, tokens = int(record["start"]), int(record["tokens"])
            found[depth, record["key"].tobytes()] = values[start : start + tokens].tobytes()
    return found


def kept_texts(store, depth, of=None):
    """Which of the texts are there and whole."""
    return store.file(TINY, depth).find(text_keys(ids() if of is None else of))[1].tolist()


def size(of, depths):
    """Gigabytes of states, reckoned by hand."""
    tokens = int(of.lengths.sum())
    widths = (TINY.width * (4 if depth.norm == "none" else 2) for depth in depths)
    return sum(tokens * width for width in widths) / 1e9


# What is kept, and what is computed


def test_what_was_kept_is_what_the_walk_gives_in_memory(tmp_path):
    states = Store(tmp_path).states(gemma(), ids(), ALL)
    assert isinstance(states, Stacked) and len(states.layers) == 18
    for depth, layer in zip(ALL, states.layers, strict=True):
        for row, expected in enumerate(in_memory(depth)):
            np.testing.assert_array_equal(layer.text(row), expected)


def test_eighteen_cutoffs_cost_one_pass_of_each_text_through_each_block(tmp_path):
    store = Store(tmp_path)
    assert passes(lambda: store.states(gemma(), ids(), ALL)) == len(TEXTS) * 18


def test_a_second_request_computes_nothing(tmp_path):
    Store(tmp_path).states(gemma(), ids(), ALL)
    assert passes(lambda: Store(tmp_path).states(gemma(), ids(), ALL)) == 0
    assert passes(lambda: Store(tmp_path).states(gemma(), ids(), [ALL[4], ALL[9]])) == 0


def test_what_is_not_there_is_not_found(tmp_path):
    store = Store(tmp_path)
    assert store.find(TINY, ids(), [ONE]) is None
    store.states(gemma(), ids().select([0, 1]), [ONE])
    assert store.find(TINY, ids(), [ONE]) is None
    assert store.find(TINY, ids().select([0, 1]), [ONE, TWO]) is None
    assert_right(store.find(TINY, ids().select([1]), [ONE]), ONE, [1])


def test_only_texts_that_are_missing_are_computed(tmp_path):
    store = Store(tmp_path)
    store.states(gemma(), ids().select([0, 3]), [THREE])
    found = []
    assert passes(lambda: found.append(store.states(gemma(), ids(), [THREE]))) == 4 * 3
    assert_right(found[0], THREE)


def test_only_depths_that_are_missing_are_computed(tmp_path):
    store = Store(tmp_path)
    store.states(gemma(), ids(), [THREE])
    before = contents(store, [THREE])
    assert passes(lambda: store.states(gemma(), ids(), [ONE, TWO, THREE])) == len(TEXTS) * 2
    assert contents(store, [THREE]) == before
    assert_right(store.find(TINY, ids(), [TWO]), TWO)


def test_a_fill_wants_each_text_only_where_it_is_asked_for(tmp_path):
    store = Store(tmp_path)
    shallow = np.ones(6, bool)
    deep = np.array([False, True, False, False, True, False])
    assert passes(lambda: store.fill(gemma(), ids(), {ONE: shallow, THREE: deep})) == 4 * 1 + 2 * 3
    assert kept_texts(store, ONE) == shallow.tolist()
    assert kept_texts(store, THREE) == deep.tolist()


def test_a_text_that_is_there_twice_is_computed_once(tmp_path):
    store = Store(tmp_path)
    twice = ids().select([2, 4, 2, 2])
    found = []
    assert passes(lambda: found.append(store.states(gemma(), twice, [TWO]))) == 2 * 2
    assert_right(found[0], TWO, [2, 4, 2, 2])
    assert len(store.file(TINY, TWO).records()) == 2


def test_a_text_that_is_there_twice_is_computed_wherever_either_is_wanted(tmp_path):
    store = Store(tmp_path)
    twice = ids().select([2, 2])
    wanted = {ONE: np.array([True, False]), TWO: np.array([False, True])}
    assert passes(lambda: store.fill(gemma(), twice, wanted)) == 2
    assert kept_texts(store, ONE, twice) == [True, True]
    assert kept_texts(store, TWO, twice) == [True, True]


def test_states_are_read_from_the_file_as_float16_and_not_copied_to_memory(tmp_path):
    store = Store(tmp_path)
    states = store.states(gemma(), ids(), [TWO])
    assert isinstance(states, Ragged) and isinstance(states.values, np.memmap)
    assert states.values.dtype == "float16"
    assert Path(states.values.filename) == store.file(TINY, TWO).path.resolve()
    assert isinstance(states.select([1, 2]).values, np.memmap)


def test_a_text_is_known_by_its_tokens_whatever_the_length_limit(tmp_path):
    store = Store(tmp_path)
    texts = [*TEXTS[:3], "Day 8 was wet, and so was the night behind it."]
    long, cut = ids_of(texts, 16), ids_of(texts, 14)
    assert long.lengths[3] == 16 and cut.lengths[3] == 14 and max(cut.lengths[:3]) < 14
    store.states(gemma(), long, [TWO])
    assert passes(lambda: store.states(gemma(), cut, [TWO])) == 1 * 2


def test_keys_tell_apart_all_texts_that_differ_in_a_token():
    values = np.array([1, 2, 1, 2, 3, 1, 23, 12, 3, 258, 1, 2], "int32")
    texts = end_to_end(values, [2, 3, 2, 2, 1, 2])
    keys = text_keys(texts)
    assert keys[0] == keys[5]
    assert len(set(keys)) == 5 and {len(key) for key in keys} == {16}


def test_states_that_another_process_deletes_at_once_are_one_clear_error(tmp_path, monkeypatch):
    store = Store(tmp_path)
    fill = store.fill
    monkeypatch.setattr(store, "fill", lambda *arguments: (fill(*arguments), store.clear()))
    with pytest.raises(InputError, match="another process deleted.*states_dir"):
        store.states(gemma(), ids(), [ONE])


def test_an_empty_request_is_no_request(tmp_path):
    store = Store(tmp_path)
    nothing = np.zeros(len(TEXTS), bool)
    assert passes(lambda: store.fill(gemma(), ids(), {ONE: nothing})) == 0
    assert kept_texts(store, ONE) == nothing.tolist()


# Other models


@pytest.fixture
def other_preset(tmp_path):
    """The tiny model under its own name, elsewhere, with a byte more in one of its files."""
    folder = tmp_path / "elsewhere" / "tiny_gemma"
    shutil.copytree(TINY.handle, folder)
    with (folder / "config.json").open("a") as file:
        file.write("\n")
    return find_preset("llm_preset", str(folder))


def test_a_preset_of_other_content_has_a_folder_of_its_own(other_preset, tmp_path):
    store = Store(tmp_path / "states")
    store.states(gemma(), ids(), [ONE])
    assert store.find(other_preset, ids(), [ONE]) is None
    assert store.file(other_preset, ONE).path.parent != store.file(TINY, ONE).path.parent


def test_the_same_preset_elsewhere_finds_its_states(tmp_path):
    store = Store(tmp_path / "states")
    store.states(gemma(), ids(), [ONE])
    shutil.copytree(TINY.handle, tmp_path / "elsewhere" / "tiny_gemma")
    same = find_preset("llm_preset", str(tmp_path / "elsewhere" / "tiny_gemma"))
    assert_right(store.find(same, ids(), [ONE]), ONE)


def test_norms_have_files_of_their_own(tmp_path):
    store = Store(tmp_path)
    store.states(gemma(), ids(), [TWO])
    assert passes(lambda: store.states(gemma(), ids(), [Depth(2, "learned")])) == len(TEXTS) * 2
    assert_right(store.find(TINY, ids(), [TWO]), TWO)
    assert_right(store.find(TINY, ids(), [Depth(2, "learned")]), Depth(2, "learned"))


# Raw states


def test_raw_states_are_kept_in_float32(tmp_path):
    raw = Depth(3, "none")
    states = Store(tmp_path).states(gemma(), ids(), [raw])
    assert states.values.dtype == "float32"
    for row, expected in enumerate(in_memory(raw)):
        np.testing.assert_array_equal(states.text(row), expected)


def test_a_fill_goes_on_from_raw_states(tmp_path):
    store = Store(tmp_path)
    store.states(gemma(), ids(), [Depth(2, "none"), Depth(5, "none")])
    wanted = [ALL[6], ALL[17]]
    found = []
    assert passes(lambda: found.append(store.states(gemma(), ids(), wanted))) == len(TEXTS) * 13
    for depth, layer in zip(wanted, found[0].layers, strict=True):
        for row, expected in enumerate(in_memory(depth)):
            np.testing.assert_array_equal(layer.text(row), expected)


def test_raw_states_at_the_wanted_cutoff_leave_nothing_to_walk(tmp_path):
    store = Store(tmp_path)
    store.states(gemma(), ids(), [Depth(3, "none")])
    found = []
    assert passes(lambda: found.append(store.states(gemma(), ids(), [THREE]))) == 0
    assert_right(found[0], THREE)


def test_raw_states_behind_the_shallowest_wanted_cutoff_are_no_start(tmp_path):
    store = Store(tmp_path)
    store.states(gemma(), ids(), [Depth(3, "none")])
    found = []
    wanted = [TWO, ALL[3]]
    assert passes(lambda: found.append(store.states(gemma(), ids(), wanted))) == len(TEXTS) * 4
    for depth, layer in zip(wanted, found[0].layers, strict=True):
        assert_right(layer, depth)


def test_raw_states_of_some_texts_only_are_no_start_for_others(tmp_path):
    store = Store(tmp_path)
    store.states(gemma(), ids().select([0, 1, 2]), [Depth(2, "none")])
    store.states(gemma(), ids(), [ALL[3]])
    assert_right(store.find(TINY, ids(), [ALL[3]]), ALL[3])


# Damage


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A folder with the states of all texts behind block 2; texts lie in their own order."""
    folder = tmp_path_factory.mktemp("whole")
    Store(folder).states(gemma(), ids(), [TWO])
    return folder


def damaged(folder, whole, which, change):
    """A copy of the folder whose file of states or records was changed as bytes."""
    shutil.copytree(whole, folder, dirs_exist_ok=True)
    file = Store(folder).file(TINY, TWO)
    path = file.index if which == "index" else file.path
    path.write_bytes(change(path.read_bytes()))
    return Store(folder)


def assert_mended(store, missing):
    """So many texts are missing; these are computed again, others can be added, all is small."""
    assert kept_texts(store, TWO).count(False) == missing
    found = []
    assert passes(lambda: found.append(store.states(gemma(), ids(), [TWO]))) == missing * 2
    assert_right(found[0], TWO)
    others = ids_of(OTHERS[:2])
    assert passes(lambda: store.states(gemma(), others, [TWO])) == 2 * 2
    assert_right(store.find(TINY, ids(), [TWO]), TWO)
    assert kept_texts(store, TWO, others) == [True, True]
    tokens = 2 * ids().lengths.sum() + others.lengths.sum()  # at most all texts anew
    assert store.file(TINY, TWO).path.stat().st_size <= tokens * 2 * TINY.width


@pytest.fixture(scope="module")
def ends():
    """Where each text's states and record end, in bytes."""
    records = np.arange(1, len(TEXTS) + 1) * RECORD.itemsize
    return {"states": np.cumsum(ids().lengths) * 2 * TINY.width, "index": records}


@pytest.mark.parametrize("which", ["states", "index"])
@FEW
@given(data=st.data())
def test_what_a_cut_off_file_no_longer_holds_whole_is_computed_again(which, data, whole, ends):
    near = st.sampled_from([int(end) + by for end in ends[which] for by in (-1, 0, 1)])
    length = data.draw(st.one_of(near, st.integers(0, int(ends[which][-1]))))
    length = min(length, int(ends[which][-1]))
    with tempfile.TemporaryDirectory() as folder:
        store = damaged(folder, whole, which, lambda content: content[:length])
        assert_mended(store, missing=int((ends[which] > length).sum()))


@pytest.mark.parametrize("which", ["states", "index"])
@FEW
@example(garbage=b"\x01" * RECORD.itemsize)
@example(garbage=bytes(20) + b"\x01" + bytes(11))  # a record of a text far behind the last one
@given(garbage=st.binary(min_size=1, max_size=3 * RECORD.itemsize))
def test_garbage_behind_the_last_text_is_overwritten(which, garbage, whole):
    with tempfile.TemporaryDirectory() as folder:
        store = damaged(folder, whole, which, lambda content: content + garbage)
        assert_mended(store, missing=0)


@FEW
@given(data=st.data())
def test_a_byte_that_changed_is_noticed_by_the_checksum(data, whole, ends):
    place = data.draw(st.integers(0, int(ends["states"][-1]) - 1))
    flip = data.draw(st.integers(1, 255))

    def change(content):
        return content[:place] + bytes([content[place] ^ flip]) + content[place + 1 :]

    with tempfile.TemporaryDirectory() as folder:
        store = damaged(folder, whole, "states", change)
        text = int(np.searchsorted(ends["states"], place, side="right"))
        assert [row for row, is_there in enumerate(kept_texts(store, TWO)) if not is_there] == [
            text
        ]
        assert_mended(store, missing=1)


@FEW
@example(place=20, flip=1)  # where the first text starts
@example(place=len(TEXTS) * RECORD.itemsize - 1, flip=1)
@given(place=st.integers(0, len(TEXTS) * RECORD.itemsize - 1), flip=st.integers(1, 255))
def test_a_byte_that_changed_in_the_index_costs_its_text_only(place, flip, whole):
    def change(content):
        return content[:place] + bytes([content[place] ^ flip]) + content[place + 1 :]

    with tempfile.TemporaryDirectory() as folder:
        store = damaged(folder, whole, "index", change)
        assert_mended(store, missing=1)


@pytest.mark.parametrize("which", ["states", "index"])
def test_an_index_and_states_need_each_other(which, whole, tmp_path):
    store = damaged(tmp_path, whole, which, lambda content: content)
    file = store.file(TINY, TWO)
    (file.index if which == "index" else file.path).unlink()
    assert_mended(store, missing=len(TEXTS))


def test_a_text_that_was_mended_is_known_by_its_newest_record(whole, ends, tmp_path):
    store = damaged(tmp_path, whole, "states", lambda content: b"\0" + content[1:])
    store.states(gemma(), ids(), [TWO])
    assert len(store.file(TINY, TWO).records()) == len(TEXTS) + 1
    assert kept_texts(store, TWO) == [True] * len(TEXTS)


# A process that dies


def dies_after(count, model):
    """The model's walk, which ends in an error after some batches."""
    walk = type(model).walk

    def dying(*arguments):
        for number, found in enumerate(walk(model, *arguments)):
            if number == count:
                raise Killed
            yield found
        raise Killed

    return dying


@pytest.mark.parametrize("stream_blocks", [False, True])
@pytest.mark.parametrize("count", range(10))
def test_a_walk_that_died_goes_on_to_the_same_states(count, stream_blocks, tmp_path, monkeypatch):
    # Three batches at three depths are nine steps.
    depths = [ONE, TWO, ALL[3]]
    undisturbed = Store(tmp_path / "undisturbed")
    undisturbed.states(gemma(), ids(), depths)
    store, model = Store(tmp_path / "disturbed"), gemma(stream_blocks)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(model, "walk", dies_after(count, model))
        store.states(model, ids(), depths)
    kept = sum(map(sum, (kept_texts(store, depth) for depth in depths)))
    assert kept == 2 * min(count, 9)
    store.states(model, ids(), depths)
    assert contents(store, depths) == contents(undisturbed, depths)


@FEW
@given(
    wanted=st.lists(st.tuples(st.booleans(), st.booleans()), min_size=6, max_size=6),
    count=st.integers(0, 6),
)
def test_a_walk_of_different_texts_at_each_depth_goes_on_to_the_same_states(wanted, count):
    masks = np.array(wanted, bool)
    asked = {ONE: masks[:, 0], THREE: masks[:, 1]}
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        undisturbed, store = Store(f"{folder}/undisturbed"), Store(f"{folder}/disturbed")
        undisturbed.fill(gemma(), ids(), asked)
        with patch.context() as dying:
            dying.setattr(gemma(), "walk", dies_after(count, gemma()))
            try:
                store.fill(gemma(), ids(), asked)
            except Killed:
                pass
        store.fill(gemma(), ids(), asked)
        for depth, mask in asked.items():
            assert kept_texts(store, depth) == mask.tolist()
            for row in np.flatnonzero(mask):
                one = ids().select([row])
                np.testing.assert_array_equal(
                    store.find(TINY, one, [depth]).text(0),
                    undisturbed.find(TINY, one, [depth]).text(0),
                )


# Fills folders with small batches, as it is told to, and tells of every batch that was kept.
FILLING = """
import json, sys, time
from embedder_helpers import gemma, states
from embedder_helpers.presets import find_preset

gemma.CPU_TOKENS = gemma.GPU_TOKENS = 2 * 16
model = gemma.Gemma(find_preset("llm_preset", "tiny_gemma"))
append = states.DepthFile.append

def slow(*arguments):
    append(*arguments)
    print("kept", flush=True)
    time.sleep(pause)

states.DepthFile.append = slow
for line in sys.stdin:
    folder, texts, cutoffs, pause = json.loads(line)
    wanted = [gemma.Depth(cutoff, "rms") for cutoff in cutoffs]
    states.Store(folder).states(model, model.tokenise(texts, 64)[0], wanted)
    print("done", model.block_passes, flush=True)
"""


@pytest.fixture(scope="module")
def fill_elsewhere():
    """A function that lets another process fill a folder; the process is there after a batch."""
    started = []

    def fill(folder, depths, pause):
        if not started or started[-1].poll() is not None:
            started.append(
                subprocess.Popen(
                    [sys.executable, "-c", FILLING],
                    cwd=Path(__file__).resolve().parent.parent,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.DEVNULL,
                    text=True,
                )
            )
        cutoffs = [depth.cutoff for depth in depths]
        print(json.dumps([str(folder), TEXTS, cutoffs, pause]), file=started[-1].stdin, flush=True)
        wait_for("kept", started[-1])
        return started[-1]

    yield fill
    for process in started:
        process.kill()
        process.communicate()


def wait_for(word, process):
    """The line that begins with a word, once the process has said it."""
    for line in process.stdout:
        if line.startswith(word):
            return line
    raise AssertionError(f"the process ended before it said {word!r}")


def test_of_two_processes_the_second_waits_and_computes_nothing(fill_elsewhere, tmp_path, capsys):
    depths = [ONE, TWO, THREE]
    model, texts, found = gemma(), ids(), []  # beforehand, so that the other is at work still
    process = fill_elsewhere(tmp_path, depths, pause=1)
    assert passes(lambda: found.append(Store(tmp_path).states(model, texts, depths))) == 0
    assert "waiting for another process" in capsys.readouterr().out
    assert wait_for("done", process).split()[1] == str(len(TEXTS) * 3)
    for depth, layer in zip(depths, found[0].layers, strict=True):
        assert_right(layer, depth)


def test_a_process_killed_in_the_middle_of_a_fill_leaves_what_it_kept(fill_elsewhere, tmp_path):
    depths = [ONE, TWO, ALL[3]]
    undisturbed, store = Store(tmp_path / "undisturbed"), Store(tmp_path / "disturbed")
    undisturbed.states(gemma(), ids(), depths)
    process = fill_elsewhere(tmp_path / "disturbed", depths, pause=0.1)
    for _ in range(3):
        wait_for("kept", process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert any(kept_texts(store, ONE)) and not all(kept_texts(store, ALL[3]))
    assert 0 < passes(lambda: store.states(gemma(), ids(), depths)) < len(TEXTS) * 4
    assert contents(store, depths) == contents(undisturbed, depths)


# The size limit


def used_at(store, depth, time):
    """Sets when a depth was last used."""
    os.utime(store.file(TINY, depth).path, (time, time))


def is_there(store, depth):
    return store.file(TINY, depth).path.exists()


@pytest.fixture
def room_for_two(tmp_path):
    """A folder with room for two depths that holds two, of which the first is the older."""
    store = Store(tmp_path, 2.5 * size(ids(), [ONE]))
    store.states(gemma(), ids(), [ONE, TWO])
    used_at(store, ONE, 1000)
    used_at(store, TWO, 2000)
    return store


def test_the_depth_that_was_unused_for_longest_goes_first(room_for_two, capsys):
    room_for_two.states(gemma(), ids(), [THREE])
    assert [is_there(room_for_two, depth) for depth in (ONE, TWO, THREE)] == [False, True, True]
    lines = [line for line in capsys.readouterr().out.splitlines() if "deleted" in line]
    assert len(lines) == 1 and "tiny_gemma" in lines[0] and "k01-rms" in lines[0]


def test_a_depth_that_was_read_counts_as_used(room_for_two):
    room_for_two.find(TINY, ids(), [ONE])
    room_for_two.states(gemma(), ids(), [THREE])
    assert [is_there(room_for_two, depth) for depth in (ONE, TWO, THREE)] == [True, False, True]


def test_what_a_request_reads_is_never_deleted_for_it(room_for_two):
    states = room_for_two.states(gemma(), ids(), [ONE, THREE])
    assert [is_there(room_for_two, depth) for depth in (ONE, TWO, THREE)] == [True, False, True]
    for depth, layer in zip([ONE, THREE], states.layers, strict=True):
        assert_right(layer, depth)


def test_raw_states_that_a_fill_goes_on_from_are_never_deleted_for_it(tmp_path):
    raw = Depth(2, "none")  # as large as two depths
    store = Store(tmp_path, 3.5 * size(ids(), [ONE]))
    store.states(gemma(), ids(), [raw])
    store.states(gemma(), ids(), [ONE])
    used_at(store, raw, 1000)
    assert passes(lambda: store.states(gemma(), ids(), [THREE])) == len(TEXTS) * 1
    assert [is_there(store, depth) for depth in (raw, ONE, THREE)] == [True, False, True]


def test_what_fits_leaves_the_rest_alone(room_for_two, capsys):
    room_for_two.states(gemma(), ids().select([0]), [THREE])
    assert [is_there(room_for_two, depth) for depth in (ONE, TWO, THREE)] == [True, True, True]
    assert "deleted" not in capsys.readouterr().out


def test_what_cannot_fit_is_told_with_its_size_and_what_to_do(tmp_path):
    # Wide as a large model: the tiny one's states are less than a hundredth of a gigabyte.
    wide = dataclasses.replace(TINY, width=10**7)
    store = Store(tmp_path, 1.5)
    with pytest.raises(InputError, match="states need") as told:
        store.states(types.SimpleNamespace(preset=wide, unload=int), ids(), [ONE, TWO])
    needed = 2 * ids().lengths.sum() * 2 * 10**7 / 1e9
    for words in (f"{needed:.2f} GB", "1.50 GB", str(tmp_path), "states_dir",
                  "states_gigabytes", "max_train_texts"):  # fmt: skip
        assert words in str(told.value)


def test_a_request_that_cannot_fit_deletes_nothing(room_for_two):
    with pytest.raises(InputError, match="states need"):
        room_for_two.states(gemma(), ids(), ALL[2:9])
    assert is_there(room_for_two, ONE) and is_there(room_for_two, TWO)


def test_the_free_disk_is_a_limit_too(tmp_path, monkeypatch):
    free = RESERVE + int(1.5e9 * size(ids(), [ONE]))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(0, 0, free))
    store = Store(tmp_path)
    with pytest.raises(InputError, match="room for"):
        store.states(gemma(), ids(), [ONE, TWO])
    assert_right(store.states(gemma(), ids(), [ONE]), ONE)


def test_other_texts_at_the_same_depth_make_room_too(tmp_path):
    others = ids_of(OTHERS)
    store = Store(tmp_path, 1.5 * size(ids(), [ONE]))
    store.states(gemma(), ids(), [ONE])
    store.states(gemma(), others, [ONE])
    assert kept_texts(store, ONE, others) == [True] * len(OTHERS)
    assert store.listing()["gigabytes"].sum() <= 1.5 * size(ids(), [ONE])


def test_texts_that_are_wanted_stay_where_others_at_their_depth_make_room(tmp_path):
    others = ids_of(OTHERS)
    both = ids_of([*TEXTS[:2], *OTHERS])
    limit = 1.1 * max(size(both, [ONE]), size(ids(), [ONE]))
    store = Store(tmp_path, limit)
    store.states(gemma(), ids(), [ONE])
    assert passes(lambda: store.states(gemma(), both, [ONE])) == len(OTHERS)
    assert_right(store.find(TINY, ids().select([0, 1]), [ONE]), ONE, [0, 1])
    assert kept_texts(store, ONE) == [True, True, False, False, False, False]
    assert kept_texts(store, ONE, others) == [True] * len(OTHERS)
    assert store.listing()["gigabytes"].sum() <= limit


def test_what_is_all_there_needs_no_room(tmp_path):
    Store(tmp_path).states(gemma(), ids(), [ONE])
    lowered = Store(tmp_path, 1e-9)
    wanted = {ONE: np.ones(len(TEXTS), bool)}
    assert passes(lambda: lowered.fill(gemma(), ids(), wanted)) == 0
    assert_right(lowered.states(gemma(), ids(), [ONE]), ONE)


def test_a_folder_that_cannot_be_written_is_told_with_its_key(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="states_dir"):
        Store(tmp_path / "file" / "states")


# The listing


def test_the_listing_tells_each_depths_texts_and_size(tmp_path):
    store = Store(tmp_path)
    assert store.listing().empty
    store.states(gemma(), ids(), [ONE])
    store.states(gemma(), ids().select([0, 1]), [Depth(3, "none")])
    rows = store.listing().sort_values("cutoff").to_dict("records")
    model = store.file(TINY, ONE).path.parent.name
    assert [(row["model"], row["cutoff"], row["norm"], row["texts"]) for row in rows] == [
        (model, 1, "rms", len(TEXTS)),
        (model, 3, "none", 2),
    ]
    expected = [size(ids(), [ONE]), size(ids().select([0, 1]), [Depth(3, "none")])]
    assert [row["gigabytes"] for row in rows] == pytest.approx(expected)


def test_states_are_deleted_by_model_or_all(other_preset, tmp_path):
    store = Store(tmp_path / "states")
    other = Gemma(other_preset)
    wanted = [ONE, TWO]
    store.states(gemma(), ids(), wanted)
    store.states(other, ids(), [ONE])
    names = [store.file(preset, ONE).path.parent.name for preset in (TINY, other_preset)]
    assert sorted(store.listing()["model"].unique()) == sorted(names)
    assert store.clear(names[0]) == round(size(ids(), wanted) * 1e9)
    assert list(store.listing()["model"]) == [names[1]]
    assert store.find(TINY, ids(), [ONE]) is None
    assert store.clear() == round(size(ids(), [ONE]) * 1e9)
    assert store.listing().empty
    assert_right(store.states(gemma(), ids(), [ONE]), ONE)


def test_a_model_that_has_no_states_cannot_be_deleted(tmp_path):
    store = Store(tmp_path)
    store.states(gemma(), ids(), [ONE])
    with pytest.raises(InputError, match="no states of 'tiny'"):
        store.clear("tiny")
    assert not store.listing().empty


# States that are not finite


@pytest.fixture
def damaged_gemma():
    """A model whose embedding of the last text's own token is not a number."""
    model = KeptGemma(TINY)
    model._load(2)
    (own,) = set(ids().text(5)) - {token for row in range(5) for token in ids().text(row)}
    table = np.array(model._embedding)
    table[own] = np.nan
    model._embedding = keras.ops.convert_to_tensor(table)
    return model


def test_states_that_are_not_finite_are_refused_and_their_batch_is_not_kept(
    damaged_gemma, tmp_path
):
    store = Store(tmp_path)
    with pytest.raises(InputError, match="not finite"):
        store.states(damaged_gemma, ids(), [TWO])
    assert kept_texts(store, TWO) == [True, True, True, True, False, False]


def test_only_the_depth_where_states_are_not_finite_is_refused(tmp_path, monkeypatch):
    model = KeptGemma(TINY)
    model._load(2)
    weights = model._weights

    def damaged_second(block):
        return [one * np.nan if block == 1 else one for one in weights(block)]

    monkeypatch.setattr(model, "_weights", damaged_second)
    store = Store(tmp_path)
    with pytest.raises(InputError, match="behind block 2 are not finite"):
        store.states(model, ids(), [ONE, TWO])
    assert kept_texts(store, ONE) == [True, True, False, False, False, False]
    assert kept_texts(store, TWO) == [False] * 6


def test_states_that_are_all_there_are_read_without_waiting_for_another_process(
    tmp_path, monkeypatch
):
    model, store = gemma(), Store(tmp_path)
    ids, _ = model.tokenise(TEXTS, 48)
    before = store.states(model, ids, [Depth(1, "rms")])
    monkeypatch.delattr(Store, "_locked")
    store.fill(model, ids, {Depth(1, "rms"): np.ones(len(ids), bool)})
    again = store.states(model, ids, [Depth(1, "rms")])
    np.testing.assert_array_equal(again.values, before.values)

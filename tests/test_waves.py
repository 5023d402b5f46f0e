import functools
import json

import numpy as np
import pytest
from made_task import write_task

from embedder_helpers import embedder as embedder_module
from embedder_helpers import gemma as gemma_module
from embedder_helpers import protocol, waves
from embedder_helpers.config import Experiment, InputError
from embedder_helpers.gemma import Depth, Gemma
from embedder_helpers.plan import plan
from embedder_helpers.presets import find_preset
from embedder_helpers.run import train_and_score
from embedder_helpers.states import DepthFile, Store
from embedder_helpers.tokens import end_to_end
from embedder_helpers.waves import plan_waves

TINY = find_preset("llm_preset", "tiny_gemma")
WEATHER = {"train": 24, "validation": 8, "test": 10}


class KeptGemma(Gemma):
    """Keeps its weights between walks, because loading them costs more than any walk here."""

    def unload(self):
        if not getattr(self, "_loaded", 0):
            super().unload()


@functools.cache
def loaded_gemma(preset, stream_blocks):
    model = KeptGemma(preset, stream_blocks)
    model._load(preset.blocks)
    return model


def kept_gemma(preset, stream_blocks=False):
    return loaded_gemma(preset, stream_blocks)


@pytest.fixture(autouse=True)
def one_gemma_for_all(monkeypatch):
    """Weights are loaded once, and batches have one shape."""
    monkeypatch.setattr(waves, "Gemma", kept_gemma)
    monkeypatch.setattr(embedder_module, "Gemma", kept_gemma)
    monkeypatch.setattr(gemma_module, "CPU_TOKENS", 8 * 24)
    monkeypatch.setattr(gemma_module, "GPU_TOKENS", 8 * 24)


@pytest.fixture
def rain(tmp_path):
    return write_task(tmp_path / "rain", "rain", WEATHER)


@pytest.fixture
def snow(tmp_path):
    return write_task(tmp_path / "snow", "snow", WEATHER)


@pytest.fixture
def plans_of(tmp_path):
    """A function that plans experiments on a task, which share a folder for states."""

    def plans(task, each=({},), **keys):
        common = dict(
            task=str(task), kind="gemma_only", samples_per_label=3, max_tokens=24,
            states_dir=str(tmp_path / "states"),
        )  # fmt: skip
        return [plan(Experiment(**{**common, **keys, **one}), tmp_path) for one in each]

    return plans


def every_cutoff():
    return [{"llm_layers": cutoff} for cutoff in range(1, 19)]


def rms(cutoff):
    return Depth(cutoff, "rms")


def ids_of(texts, max_tokens=24):
    return kept_gemma(TINY).tokenise(texts, max_tokens)[0]


def token_sets(ids, mask):
    """The texts that a mask names, as tuples of tokens."""
    return {tuple(ids.text(row).tolist()) for row in np.flatnonzero(mask)}


def texts_of(plans, *parts):
    """Different texts that plans read, as tuples of tokens."""
    texts = {text for one in plans for text in one.texts(*parts)}
    ids = ids_of(sorted(texts))
    return token_sets(ids, np.ones(len(ids), bool))


def gigabytes(texts, depths=1):
    """Size of normed states at some depths, reckoned by hand."""
    return sum(map(len, texts)) * depths * 2 * TINY.width / 1e9


def waves_of(plans, finished=()):
    """Waves of plans, of which some have a result already."""
    return plan_waves(plans, {one.path for one in plans if one not in finished})


def gemma_waves(plans, finished=()):
    return [wave for wave in waves_of(plans, finished) if wave.gemma]


def walked(found, scored=range(1, 19)):
    """Fills waves and runs plans of some cutoffs; gives the walks' block passes, and scores."""
    gemma = kept_gemma(TINY)
    passes, scores = 0, {}
    for wave in found:
        before = gemma.block_passes
        wave.fill()
        passes += gemma.block_passes - before
        for one in wave.plans:
            if one.experiment.llm_layers in scored:
                _, result = train_and_score(one, wave.store)
                scores[one.task.name, one.experiment.llm_layers] = result.scores
    return passes, scores


# Who shares a walk


def test_what_fits_is_one_wave_that_holds_all(plans_of, rain):
    plans = plans_of(rain, every_cutoff())
    (wave,) = gemma_waves(plans)
    assert wave.plans == plans
    assert list(wave.wanted) == [rms(cutoff) for cutoff in range(1, 19)]
    for mask in wave.wanted.values():
        assert token_sets(wave.ids, mask) == texts_of(plans)


def test_one_wave_walks_each_text_through_each_block_once(plans_of, rain):
    plans = plans_of(rain, every_cutoff())
    passes, _ = walked(gemma_waves(plans), scored=())
    assert passes == len(texts_of(plans)) * 18


def test_running_the_plans_of_a_wave_passes_no_block_again(plans_of, rain):
    (wave,) = gemma_waves(plans_of(rain, every_cutoff()[:2]))
    wave.fill()
    before = kept_gemma(TINY).block_passes
    for one in wave.plans:
        train_and_score(one, wave.store)
    assert kept_gemma(TINY).block_passes == before


def test_tasks_and_norms_share_a_walk(plans_of, rain, snow):
    plans = plans_of(rain, [{"llm_layers": 2}, {"llm_layers": 4, "final_norm": "learned"}])
    plans += plans_of(snow, [{"llm_layers": 3}])
    (wave,) = gemma_waves(plans)
    assert {depth: int(mask.sum()) for depth, mask in wave.wanted.items()} == {
        rms(2): len(texts_of(plans[:1])),
        rms(3): len(texts_of(plans[2:])),
        Depth(4, "learned"): len(texts_of(plans[:1])),
    }
    assert token_sets(wave.ids, wave.wanted[rms(3)]) == texts_of(plans[2:])


def test_pooled_cutoffs_want_each_of_their_depths(plans_of, rain):
    (wave,) = gemma_waves(plans_of(rain, [{"llm_layers": (6, 2)}]))
    assert list(wave.wanted) == [rms(2), rms(6)]


def test_plans_run_from_the_shallowest_cutoff(plans_of, rain):
    plans = plans_of(rain, [{"llm_layers": layers} for layers in (9, (1, 12), 3)])
    (wave,) = gemma_waves(plans)
    assert [one.experiment.llm_layers for one in wave.plans] == [3, 9, (1, 12)]


def test_roberta_alone_comes_first_and_wants_nothing(plans_of, rain):
    plans = plans_of(rain, [{"llm_layers": 2}, {"kind": "roberta_only"}, {"llm_layers": 1}])
    first, second = waves_of(plans)
    assert first.plans == [plans[1]] and not first.wanted and first.gemma is None
    assert second.plans == [plans[2], plans[0]]
    first.fill()
    assert first.store.listing().empty


def test_other_length_limits_are_other_waves_that_share_what_is_alike(plans_of, rain):
    plans = plans_of(rain, [{"llm_layers": 2, "max_tokens": most} for most in (24, 20)])
    found = gemma_waves(plans)
    assert [len(wave.plans) for wave in found] == [1, 1]
    passes, _ = walked(found, scored=())
    assert passes == len(texts_of(plans)) * 2


def test_no_plans_are_no_waves():
    assert waves_of([]) == []


def test_finished_plans_are_left_out_and_nothing_is_walked_for_them(plans_of, rain):
    plans = plans_of(rain, [*every_cutoff()[:4], {"kind": "roberta_only"}])
    (wave,) = waves_of(plans, finished=[plans[0], plans[3], plans[4]])
    assert wave.plans == plans[1:3]
    assert list(wave.wanted) == [rms(2), rms(3)]


def test_folders_of_states_are_other_waves(plans_of, rain, tmp_path):
    plans = plans_of(rain, [{"states_dir": str(tmp_path / name)} for name in "ab"])
    found = gemma_waves(plans)
    assert [wave.store.folder.name for wave in found] == ["a", "b"]
    assert [wave.plans for wave in found] == [[plans[0]], [plans[1]]]


# Which texts are wanted where


def test_gemma_alone_wants_only_what_the_protocol_draws_and_tests(plans_of, rain):
    plans = plans_of(rain, [{"llm_layers": 2}])
    (wave,) = gemma_waves(plans)
    lines = [json.loads(line) for line in (rain / "train.jsonl").read_text().splitlines()]
    draws = protocol.draw_rows([line["label"] for line in lines], 3)
    drawn = {lines[row]["text"] for row in np.concatenate(draws)}
    tested = [json.loads(line)["text"] for line in (rain / "test.jsonl").read_text().splitlines()]
    ids = ids_of([*drawn, *tested])
    assert token_sets(wave.ids, wave.wanted[rms(2)]) == token_sets(ids, np.ones(len(ids), bool))


def test_a_hybrid_adds_its_training_texts_at_its_own_cutoffs_only(plans_of, rain):
    each = [{"llm_layers": 2}, {"llm_layers": 4}, {"llm_layers": 4, "kind": "hybrid"}]
    plans = plans_of(rain, each)
    (wave,) = gemma_waves(plans)
    assert token_sets(wave.ids, wave.wanted[rms(2)]) == texts_of(plans[:1])
    assert token_sets(wave.ids, wave.wanted[rms(4)]) == texts_of(plans[2:])
    assert texts_of(plans[:1]) < texts_of(plans[2:])
    assert len(texts_of(plans[2:])) == sum(WEATHER.values())


def test_a_cutoff_that_is_chosen_wants_its_training_texts_behind_every_block(plans_of, rain):
    plans = plans_of(rain, [{"llm_layers": "auto"}])
    (wave,) = gemma_waves(plans)
    assert list(wave.wanted) == [rms(cutoff) for cutoff in range(1, 19)]
    for mask in wave.wanted.values():
        assert token_sets(wave.ids, mask) == texts_of(plans)
    assert len(texts_of(plans)) == sum(WEATHER.values())


def test_no_test_text_is_wanted_where_validation_is_scored(plans_of, rain):
    plans = plans_of(rain, [{"llm_layers": 2, "kind": "hybrid", "scored_split": "validation"}])
    (wave,) = gemma_waves(plans)
    tested = ids_of(plans[0].task.test.texts())
    wanted = token_sets(wave.ids, wave.wanted[rms(2)])
    assert len(wanted) == WEATHER["train"] + WEATHER["validation"]
    assert not wanted & token_sets(tested, np.ones(len(tested), bool))


def test_a_text_of_several_parts_is_wanted_once(plans_of, rain):
    (wave,) = gemma_waves(plans_of(rain, [{"llm_layers": 2, "kind": "hybrid"}]))
    assert len(wave.ids) == len(token_sets(wave.ids, np.ones(len(wave.ids), bool)))


def test_splits_that_swap_roles_want_their_own_texts(plans_of, tmp_path):
    # Both splits are of one size, so that the same rows of each are trained on.
    task = write_task(tmp_path / "even", "rain", {"train": 16, "validation": 16, "test": 8})
    common = {"llm_layers": 2, "kind": "hybrid", "max_train_texts": 8}
    swapped = {"llm_layers": 3, "train_split": "validation"}
    plans = plans_of(task, [common, common | swapped])
    (wave,) = gemma_waves(plans)
    assert token_sets(wave.ids, wave.wanted[rms(2)]) == texts_of(plans[:1])
    assert token_sets(wave.ids, wave.wanted[rms(3)]) == texts_of(plans[1:])


# What does not fit the disk


def scores_without_limit(plans_of, task, layers):
    each = [{"llm_layers": cutoff} for cutoff in layers]
    _, scores = walked(gemma_waves(plans_of(task, each, states_dir=str(task / "states"))))
    return scores


def limited(plans_of, task, depths, each, **keys):
    """Plans in a folder that holds so many depths of the protocol's texts."""
    (one,) = plans_of(task)
    return plans_of(task, each, states_gigabytes=gigabytes(texts_of([one]), depths), **keys)


def test_what_does_not_fit_runs_in_waves_that_go_on_from_each_other(plans_of, rain):
    # Room for 8 depths: raw states of the last wave and of this one take 2 each, so 4 are left.
    plans = limited(plans_of, rain, 8.5, every_cutoff())
    found = gemma_waves(plans)
    assert [[one.experiment.llm_layers for one in wave.plans] for wave in found] == [
        [1, 2, 3, 4], [5, 6, 7, 8], [9, 10, 11, 12], [13, 14, 15, 16], [17, 18],
    ]  # fmt: skip
    passes, scores = walked(found, scored=(5, 18))
    assert passes == len(texts_of(plans)) * 18
    assert scores == scores_without_limit(plans_of, rain, (5, 18))


def test_a_sweep_that_goes_on_has_the_waves_that_it_had(plans_of, rain):
    plans = limited(plans_of, rain, 8.5, every_cutoff())
    first, *whole = gemma_waves(plans)
    first.fill()
    left = gemma_waves(plans, finished=first.plans)
    assert [wave.plans for wave in left] == [wave.plans for wave in whole]
    passes, _ = walked(left, scored=())
    assert passes == len(texts_of(plans)) * 14


def test_waves_never_take_more_than_the_limit(plans_of, rain, monkeypatch):
    plans = limited(plans_of, rain, 8.5, every_cutoff())
    limit, taken = plans[0].experiment.states_gigabytes * 1e9, []
    found = gemma_waves(plans)
    append = DepthFile.append

    def watching(file, *arguments):
        append(file, *arguments)
        taken.append(found[0].store.listing()["gigabytes"].sum() * 1e9)

    monkeypatch.setattr(DepthFile, "append", watching)
    for wave in found:
        wave.fill()
    assert 0 < max(taken) <= limit


def test_without_room_for_raw_states_each_wave_walks_from_the_text(plans_of, rain):
    plans = limited(plans_of, rain, 2.5, every_cutoff()[:4])
    found = gemma_waves(plans)
    assert [len(wave.plans) for wave in found] == [2, 2]
    passes, scores = walked(found, scored=(4,))
    assert passes == len(texts_of(plans)) * (2 + 4)
    assert scores == scores_without_limit(plans_of, rain, (4,))


def test_a_protocol_whose_texts_do_not_fit_still_runs_and_keeps_nothing(plans_of, rain):
    plans = limited(plans_of, rain, 0.5, [{"llm_layers": 2}])
    (wave,) = gemma_waves(plans)
    assert not wave.wanted
    passes, scores = walked([wave])
    assert passes == 0 and wave.store.listing().empty
    assert scores == scores_without_limit(plans_of, rain, (2,))


def test_a_hybrid_keeps_at_least_what_it_is_trained_on(plans_of, rain):
    keys = {"llm_layers": 2, "kind": "hybrid", "max_train_texts": 8}
    (one,) = plans_of(rain, [keys])
    trained_on = texts_of([one], "fit", "watched")
    assert trained_on < texts_of([one])
    plans = plans_of(rain, [keys | {"states_gigabytes": 1.1 * gigabytes(trained_on)}])
    (wave,) = gemma_waves(plans)
    assert token_sets(wave.ids, wave.wanted[rms(2)]) == trained_on


def test_training_texts_that_do_not_fit_are_one_clear_error(plans_of, rain):
    keys = {"llm_layers": 2, "kind": "hybrid", "states_gigabytes": 1e-9}
    (wave,) = gemma_waves(plans_of(rain, [keys]))
    with pytest.raises(InputError, match="states need.*states_dir.*states_gigabytes"):
        wave.fill()


def of_both(plans_of, tasks, depths, each):
    """Plans on each task in turn, in a folder that holds so many depths of both."""
    room = gigabytes(texts_of([one for task in tasks for one in plans_of(task)]), depths)
    return [one for keys in each for task in tasks
            for one in plans_of(task, [keys], states_gigabytes=room)]  # fmt: skip


def test_tasks_at_one_cutoff_that_do_not_fit_together_run_one_after_the_other(plans_of, rain, snow):
    plans = of_both(plans_of, (rain, snow), 0.75, [{"llm_layers": 2}])
    found = gemma_waves(plans)
    assert [len(wave.plans) for wave in found] == [1, 1]
    passes, _ = walked(found, scored=())
    assert passes == len(texts_of(plans)) * 2


def test_waves_that_part_two_tasks_at_one_cutoff_still_walk_each_text_once(plans_of, rain, snow):
    # Raw states of this wave and the last one take 4 depths; room is left for 3 plans a wave.
    plans = of_both(plans_of, (rain, snow), 5.75, every_cutoff()[:6])
    found = gemma_waves(plans)
    assert [len(wave.plans) for wave in found] == [3, 3, 3, 3]
    passes, _ = walked(found, scored=())
    assert passes == len(texts_of(plans)) * 6


def test_the_free_disk_is_a_limit_too(plans_of, rain, monkeypatch):
    plans = plans_of(rain, every_cutoff()[:4])
    room = 1e9 * gigabytes(texts_of(plans), 2.5)
    monkeypatch.setattr(Store, "capacity", lambda store: room)
    assert len(gemma_waves(plans)) == 2


# What is told


def test_a_wave_tells_its_texts_cutoffs_size_and_folder(plans_of, rain, tmp_path):
    (wave,) = gemma_waves(plans_of(rain, every_cutoff()[2:7]))
    # As a real model would have it: wide states of many texts.
    many = end_to_end(np.zeros(3 * 10**7, "int32"), [10**7, 10**7, 10**7])
    masks = {rms(3): np.array([True, True, False]), rms(7): np.array([False, True, True])}
    told = waves.Wave(wave.plans, wave.store, wave.gemma, many, masks).describe()
    size = 4 * 10**7 * 2 * TINY.width / 1e9
    for words in ("tiny_gemma", "3 texts", "2 cutoffs", "(3 … 7)", f"{size:.2f} GB",
                  str(tmp_path / "states")):  # fmt: skip
        assert words in told

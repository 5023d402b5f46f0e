import dataclasses
import json
import subprocess
import sys
import time
from types import SimpleNamespace

import filelock
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_task import experiment, write_task

from embedder_helpers import platform
from embedder_helpers import sweep as sweep_module
from embedder_helpers.result import read_result
from embedder_helpers.shares import Share
from embedder_helpers.sweep import sweep

LENGTHS = st.lists(st.integers(1, 50), max_size=40).map(np.array)


# Texts


@given(LENGTHS, st.integers(1, 4))
def test_each_text_is_in_one_share(lengths, count):
    masks = [mask for _, mask in Share(0, count).texts(lengths)]
    assert (np.sum(masks, axis=0) == 1).all()


@given(LENGTHS, st.integers(2, 4))
def test_processes_agree_on_the_shares_and_each_begins_with_its_own(lengths, count):
    found = [dict(Share(number, count).texts(lengths)) for number in range(count)]
    assert len({next(iter(one)) for one in found}) == count
    for one in found:
        for name, mask in one.items():
            np.testing.assert_array_equal(mask, found[0][name])


@given(LENGTHS, st.integers(2, 4))
def test_shares_are_alike_in_number_and_length_of_texts(lengths, count):
    masks = [mask for _, mask in Share(0, count).texts(lengths)]
    sizes, tokens = ([int(sum(what[mask])) for mask in masks] for what in (lengths**0, lengths))
    assert max(sizes) - min(sizes) <= 1
    assert max(tokens) - min(tokens) <= max(lengths, default=0)


# Experiments


@pytest.fixture
def plans(tmp_path):
    return [
        SimpleNamespace(path=tmp_path / f"{name}.json", finished=lambda: False) for name in "abc"
    ]


def names(plans):
    return [one.path.stem for one in plans]


def test_a_single_process_takes_everything(plans):
    assert names(Share().take(plans)) == ["a", "b", "c"]


def test_what_another_process_is_doing_comes_last(plans, tmp_path):
    other = filelock.FileLock(tmp_path / "a.lock")
    other.acquire()
    taken = Share(0, 2, tmp_path).take(plans)
    assert names([next(taken), next(taken)]) == ["b", "c"]
    other.release()  # it died
    assert names(taken) == ["a"]


def test_what_is_being_done_is_locked(plans, tmp_path):
    first, second = (Share(number, 2, tmp_path).take(plans) for number in range(2))
    assert names([next(first)]) == ["a"]
    assert names([next(second)]) == ["b"]


def test_what_would_fail_everywhere_is_not_tried_again(plans, tmp_path):
    other, mine = Share(1, 2, tmp_path), Share(0, 2, tmp_path)
    other.fail("b", "too large", everywhere=True)
    other.fail("c", "its GPU is broken", everywhere=False)
    assert names(mine.take(plans)) == ["a", "c"]
    assert mine.failures == {"b": "too large"}


def test_what_another_process_finished_is_not_done_again(plans, tmp_path):
    plans[2].finished = lambda: True
    assert names(Share(0, 2, tmp_path).take(plans)) == ["a", "b"]


# Processes


def made(task, states):
    keys = dict(epochs=1, states_dir=str(states))
    return [
        experiment(task, **keys | dict(epochs=0), kind="roberta_only"),
        experiment(task, **keys, kind="gemma_only", llm_layers=1),
        experiment(task, **keys),
    ]


@pytest.fixture
def experiments(task, tmp_path):
    return made(task, tmp_path / "states")


@pytest.fixture
def two_gpus(monkeypatch):
    """As if there were two; the processes compute on the CPU."""
    monkeypatch.setattr(platform, "gpus", lambda: ["0", "1"])
    monkeypatch.setattr(platform, "keep_to_first_gpu", lambda: True)


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    return write_task(tmp_path_factory.mktemp("shared") / "task")


@pytest.fixture(scope="module")
def alone(task, tmp_path_factory):
    """The scores of a sweep in one process."""
    folder = tmp_path_factory.mktemp("alone")
    return scores(sweep(made(task, folder / "states"), folder))


def scores(swept):
    assert not swept.failed
    return [result.scores for result in swept.results]


def test_two_processes_give_the_scores_of_one(two_gpus, experiments, alone, tmp_path, capsys):
    assert scores(sweep(experiments, tmp_path / "both")) == alone
    assert "2 GPUs, a process for each" in capsys.readouterr().out


def test_the_other_process_walks_and_runs_what_is_not_taken(
    two_gpus, experiments, alone, tmp_path, capsys, monkeypatch
):
    def wait_for_the_other(plans, todo, until, share):
        deadline = time.time() + 300
        while not all(read_result(one.path) for one in plans) and time.time() < deadline:
            time.sleep(0.2)
        return {}

    monkeypatch.setattr(sweep_module, "_run_all", wait_for_the_other)
    assert scores(sweep(experiments, tmp_path / "both")) == alone
    assert "GPU 1:   RoBERTa only" in capsys.readouterr().out


def test_a_process_that_dies_leaves_its_work_to_the_first(
    two_gpus, experiments, alone, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(sys, "executable", "false")
    assert scores(sweep(experiments, tmp_path / "both")) == alone
    assert "GPU 1: its process ended early" in capsys.readouterr().out


def test_an_experiment_that_fails_in_either_process_is_told_once(two_gpus, experiments, tmp_path):
    bad = dataclasses.replace(experiments[2], learning_rate=1e30, projection_learning_rate=1e30)
    results, failed = sweep([*experiments[:2], bad], tmp_path / "both")
    assert len(results) == 2 and len(failed) == 1
    assert "diverged" in next(iter(failed.values()))


def test_the_other_process_ends_when_the_first_does():
    told = {"experiments": [], "folder": ".", "until": 0, "share": [1, 2, "."]}
    process = subprocess.Popen(
        [sys.executable, "-m", "embedder_helpers.shares"], stdin=subprocess.PIPE, text=True
    )
    process.stdin.write(json.dumps(told) + "\n")
    process.stdin.close()  # as the operating system does when a process dies
    assert process.wait(60) == 1

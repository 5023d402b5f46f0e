"""Sweeps: results kept and read again, failures, deadlines, and processes that are killed."""

import dataclasses
import json
import logging
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
from made_task import experiment, write_task

from embedder_helpers.builtin import BUILTIN_FOLDER
from embedder_helpers.config import Experiment
from embedder_helpers.errors import InputError
from embedder_helpers.experiments import estimate as estimate_module
from embedder_helpers.experiments import executor as executor_module
from embedder_helpers.experiments import plan as plan_module
from embedder_helpers.experiments.schedule import schedule
from embedder_helpers.experiments.sweep import run_experiments
from embedder_helpers.models.use_marks import PREFIX
from embedder_helpers.results.result import read_result
from embedder_helpers.utils import replacing
from embedder_helpers.utils.progress import OverallProgress

pytestmark = pytest.mark.usefixtures("fast_experiments")

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def log(caplog):
    caplog.set_level(logging.INFO, "embedder_helpers")
    return caplog


def assert_same_outcome(result, other):
    """Whatever ran before and wherever, but threads round a loss differently."""
    for name in ("scores", "scores_per_experiment", "head", "majority_baseline", "deduplicated"):
        assert getattr(result, name) == getattr(other, name)
    assert result.history == [pytest.approx(epoch, rel=1e-5) for epoch in other.history]


def result_files(folder):
    """Result files with their content and time of writing."""
    return {
        path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.glob("*.json")
    }


def write_damaged_gemma(folder):
    """A Gemma whose learned norm is not a number; with another norm it can be used."""
    shutil.copytree(BUILTIN_FOLDER / "tiny_gemma", folder)
    with h5py.File(folder / "model.weights.h5", "r+") as file:
        file["layers/rms_normalization/vars/0"][...] = np.nan
    return str(folder)


class MixedSweep:
    """A sweep of every kind in which one of two experiments that share a forward pass fails."""

    def __init__(self, folder):
        self.task = write_task(folder / "weather")
        self.states, self.out = folder / "states", folder / "out"
        damaged = dict(kind="gemma_only", llm_preset=write_damaged_gemma(folder / "damaged"))
        self.failing = self.experiment(**damaged, final_norm="learned")
        self.hybrid = self.experiment()
        self.shallow, self.deep = (
            self.experiment(kind="gemma_only", llm_layers=cutoff) for cutoff in (1, 2)
        )
        self.finished = [
            self.shallow,
            self.experiment(kind="roberta_only"),
            self.experiment(**damaged),
            self.hybrid,
            self.deep,
        ]
        experiments = [*self.finished[:2], self.failing, *self.finished[2:]]
        self.results, self.failed = run_experiments(experiments, self.out)

    def experiment(self, **settings):
        common = dict(max_tokens=24, epochs=0, projection_start="ridge")
        common |= dict(states_dir=str(self.states))
        return experiment(self.task, **common | settings)

    def result(self, one):
        """The result of one of the finished experiments."""
        return self.results[self.finished.index(one)]


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    return MixedSweep(tmp_path_factory.mktemp("mixed"))


PRINT_OWN_NAME = "from embedder_helpers.utils import processes; print(processes.own_name())"


@pytest.fixture
def nothing_runs(monkeypatch):
    monkeypatch.setattr(executor_module, "run_experiment", lambda *_: pytest.fail("runs"))


# Results


def test_an_experiment_that_fails_is_reported_and_the_others_are_finished(mixed):
    (name,) = mixed.failed
    assert "gemma_only-k2" in name and "norm: learned" in mixed.failed[name]
    experiments = [result.experiment for result in mixed.results]
    assert experiments == [one.as_dict() for one in mixed.finished]


def test_an_invalid_input_leaves_no_traceback(mixed):
    assert not list(mixed.out.glob("*.traceback.txt"))


def test_each_result_has_a_file_of_its_own(mixed):
    results = [read_result(path) for path in mixed.out.glob("*.json")]
    assert len(results) == len(mixed.finished)
    assert all(result in mixed.results for result in results)


def test_results_csv_has_a_row_for_each_result(mixed):
    table = pd.read_csv(mixed.out / "results.csv", float_precision="round_trip")
    rows = table[["kind", "accuracy", "f1", "seconds"]].itertuples(index=False, name=None)
    assert sorted(rows) == sorted(
        (
            result.experiment["kind"],
            result.scores["accuracy"],
            result.scores["f1"],
            result.seconds["total"],
        )
        for result in mixed.results
    )


def test_finished_results_are_read_and_not_written_again(mixed, nothing_runs, log):
    before = result_files(mixed.out)
    again = run_experiments(mixed.finished, mixed.out)
    assert again.failed == {} and again.results == mixed.results
    assert result_files(mixed.out) == before
    assert "5 experiments, 5 of them finished" in log.text


def test_a_dead_process_leaves_nothing_even_if_nothing_is_left_to_do(mixed, nothing_runs):
    ended = subprocess.run(
        [sys.executable, "-c", PRINT_OWN_NAME], capture_output=True, text=True, cwd=ROOT
    )
    mark = mixed.states / f"{PREFIX}alone-{uuid.uuid4().hex}.json"
    mark.write_text(json.dumps({"process": ended.stdout.strip(), "files": []}))
    before = [path for path in mixed.states.rglob("*") if path != mark]
    (model_folder, *_) = mixed.states.glob("*/")
    work = model_folder / f"{replacing.PREFIX}{ended.stdout.strip()}-abc"
    (work / "new").mkdir(parents=True)
    (work / "new" / "k01.safetensors").touch()
    run_experiments(mixed.finished, mixed.out)
    assert sorted(mixed.states.rglob("*")) == sorted(before)


def test_an_embedder_still_encodes_after_a_sweep_in_its_process(tiny_embedders, mixed, tmp_path):
    before = {kind: one.encode(["a text"]) for kind, one in tiny_embedders.items()}
    run_experiments([mixed.finished[-1]], tmp_path)
    for kind, embeddings in before.items():
        np.testing.assert_array_equal(tiny_embedders[kind].encode(["a text"]), embeddings)


def test_a_result_does_not_depend_on_earlier_experiments(mixed, tmp_path):
    alone = dataclasses.replace(mixed.hybrid, states_dir=str(tmp_path / "states"))
    (result,), _ = run_experiments([alone], tmp_path / "out")
    assert_same_outcome(result, mixed.result(mixed.hybrid))


@pytest.mark.slow
def test_a_trained_result_does_not_depend_on_earlier_experiments(mixed, tmp_path):
    trained = mixed.experiment(epochs=2)
    (_, after_another), _ = run_experiments([mixed.deep, trained], tmp_path / "out")
    alone = dataclasses.replace(trained, states_dir=str(tmp_path / "states"))
    (result,), _ = run_experiments([alone], tmp_path / "alone")
    assert_same_outcome(result, after_another)


def test_a_missing_result_is_computed_again_from_cached_hidden_states(mixed, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "embedder_helpers.models.gemma.Gemma.forward_layers",
        lambda *_: pytest.fail("computes hidden states"),
    )
    (result,), failed = run_experiments([mixed.deep], tmp_path)
    assert not failed
    assert_same_outcome(result, mixed.result(mixed.deep))


def test_hidden_states_that_do_not_fit_fail_only_what_is_trained_on_them(mixed, tmp_path):
    limited = dict(states_dir=str(tmp_path / "states"), states_gigabytes=1e-9)
    experiments = [mixed.experiment(**limited), mixed.experiment(**limited, kind="gemma_only")]
    results, failed = run_experiments(experiments, tmp_path / "out")
    assert [result.experiment["kind"] for result in results] == ["gemma_only"]
    assert_same_outcome(results[0], mixed.result(mixed.deep))
    (reason,) = failed.values()
    assert "states_gigabytes" in reason


# Failures


@pytest.fixture
def pair(mixed, monkeypatch):
    """Two experiments, with cutoffs 1 and 2, whose results are known and returned at once."""
    known = {1: mixed.result(mixed.shallow), 2: mixed.result(mixed.deep)}
    monkeypatch.setattr(
        executor_module,
        "run_experiment",
        lambda plan, *_: (None, known[plan.experiment.llm_layers]),
    )
    return [mixed.shallow, mixed.deep]


def fail_at(cutoffs, monkeypatch, error):
    """Makes experiments of some cutoffs fail."""
    run = executor_module.run_experiment

    def fail_or_run(plan, *others):
        if plan.experiment.llm_layers in cutoffs:
            raise error
        return run(plan, *others)

    monkeypatch.setattr(executor_module, "run_experiment", fail_or_run)


def cutoffs_of(results):
    return [result.cutoffs for result in results]


def test_a_bug_is_reported_with_its_traceback_and_the_others_run(pair, tmp_path, monkeypatch):
    fail_at([1], monkeypatch, ZeroDivisionError("a bug"))
    results, failed = run_experiments(pair, tmp_path)
    assert cutoffs_of(results) == [[2]]
    ((name, reason),) = failed.items()
    assert "gemma_only-k1" in name and "ZeroDivisionError: a bug" in reason
    (path,) = tmp_path.glob("*.traceback.txt")
    assert path.name == f"{name}.traceback.txt"
    assert "raise error" in path.read_text() and "ZeroDivisionError" in path.read_text()


def test_a_second_run_does_only_what_failed_and_removes_its_traceback(pair, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        fail_at([2], patch, ZeroDivisionError())
        run_experiments(pair, tmp_path)
    before = result_files(tmp_path)
    results, failed = run_experiments(pair, tmp_path)
    assert not failed and cutoffs_of(results) == [[1], [2]]
    assert before.items() < result_files(tmp_path).items()
    assert len(pd.read_csv(tmp_path / "results.csv")) == 2
    assert not list(tmp_path.glob("*.traceback.txt"))


def test_a_sweep_without_any_result_raises_the_first_error(pair, tmp_path, monkeypatch):
    fail_at([1, 2], monkeypatch, InputError("the cable is not plugged in"))
    with pytest.raises(InputError, match="the cable is not plugged in"):
        run_experiments(pair, tmp_path)
    assert not list(tmp_path.glob("*.json"))


def test_an_interrupt_ends_the_sweep_and_keeps_finished_results(pair, tmp_path, monkeypatch):
    fail_at([2], monkeypatch, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        run_experiments(pair, tmp_path)
    assert len(list(tmp_path.glob("*.json"))) == 1


# Deadlines


def stop_after_one_result(folder, monkeypatch):
    """As if there were time for one result in the folder."""
    monkeypatch.setattr(
        executor_module.session, "fits_deadline", lambda *_: not list(folder.glob("*.json"))
    )


def test_an_experiment_that_would_miss_the_deadline_is_not_started(
    pair, tmp_path, monkeypatch, log
):
    stop_after_one_result(tmp_path, monkeypatch)
    results, failed = run_experiments(pair, tmp_path)
    assert cutoffs_of(results) == [[1]]
    ((name, reason),) = failed.items()
    assert "gemma_only-k2" in name and "time" in reason and "--hours" in reason
    assert "with 1 experiments left" in log.text


def test_a_sweep_that_stopped_in_time_continues_where_it_stopped(pair, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        stop_after_one_result(tmp_path, patch)
        run_experiments(pair, tmp_path)
    before = result_files(tmp_path)
    results, failed = run_experiments(pair, tmp_path)
    assert not failed and len(results) == 2
    assert before.items() < result_files(tmp_path).items()


def test_time_is_estimated_from_the_pace_of_each_kind_of_work():
    overall = OverallProgress({}, {"training": 0.5, "scoring": 10})
    work, now = {"training": 80, "scoring": 1}, time.time()
    assert executor_module.Executor([], now + 70, overall)._in_time(work)
    # 50 seconds, and the slack
    assert not executor_module.Executor([], now + 60, overall)._in_time(work)


def test_not_even_the_first_experiment_is_begun_if_it_is_expected_to_take_too_long(
    pair, tmp_path, monkeypatch, nothing_runs
):
    monkeypatch.setattr(estimate_module, "SCORING_SECONDS", 3600.0)
    with pytest.raises(InputError, match="time"):
        run_experiments(pair, tmp_path, hours=0.5)


def test_the_work_of_a_sweep_sums_its_experiments_and_builds_each_architecture_once(
    mixed, tmp_path
):
    one = mixed.experiment(epochs=2)
    experiments = [one, dataclasses.replace(one, llm_layers=1), dataclasses.replace(one, seed=5)]
    experiments += [mixed.experiment(kind="roberta_only", epochs=2), mixed.shallow]
    plans = [plan_module.plan_experiment(experiment, tmp_path) for experiment in experiments]
    batches = schedule(plans, {plan.path for plan in plans})
    total = executor_module._total_work(batches)
    assert total["building"] == 2 + 1 and total["scoring"] == 5  # and Gemma is loaded
    works = [executor_module.experiment_work(plan) for plan in plans]
    for kind in ("training", "embedding"):
        assert total[kind] == pytest.approx(sum(work.get(kind, 0) for work in works))


def test_an_experiment_trains_in_every_epoch_and_is_embedded_once(mixed, tmp_path):
    once, twice, untrained = (
        executor_module.experiment_work(
            plan_module.plan_experiment(mixed.experiment(epochs=epochs), tmp_path)
        )
        for epochs in (1, 2, 0)
    )
    assert twice["training"] == 2 * once["training"] > 0 == untrained["training"]
    assert once["embedding"] == untrained["embedding"] > 0


# Before anything runs


def test_every_experiment_is_checked_before_the_first_one_runs(mixed, tmp_path, nothing_runs):
    with pytest.raises(InputError, match="llm_layers is 19"):
        run_experiments([mixed.hybrid, mixed.experiment(llm_layers=19)], tmp_path)
    assert not list(tmp_path.glob("*.json"))


def test_a_folder_that_cannot_be_written_is_an_error_before_anything_is_loaded(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="file/out cannot be written.*--out"):
        run_experiments([Experiment(task="no such task")], tmp_path / "file" / "out")


def test_a_task_of_several_experiments_is_loaded_once(mixed, monkeypatch):
    loaded, load_task = [], plan_module.load_task

    def record(one):
        loaded.append(one.task)
        return load_task(one)

    monkeypatch.setattr(plan_module, "load_task", record)
    run_experiments(mixed.finished, mixed.out)
    assert loaded == [str(mixed.task)]


def test_experiments_with_the_same_result_run_once(mixed, log):
    same = [
        mixed.experiment(kind="gemma_only", llm_layers=2, epochs=1),
        mixed.experiment(kind="gemma_only", llm_layers=-17),
    ]
    results, _ = run_experiments(same, mixed.out)
    assert len(results) == 1 and "1 experiments" in log.text


def test_no_experiments_have_no_results(tmp_path):
    assert run_experiments([], tmp_path) == ([], {})


# A process that is killed


@pytest.mark.slow
def test_a_sweep_that_is_killed_repeatedly_ends_with_the_same_results(mixed, tmp_path):
    settings = dataclasses.asdict(mixed.experiment(epochs=2))
    changed = {name: value for name, value in settings.items() if value is not None}
    kinds = [{"kind": "gemma_only", "each": {"llm_layers": [1, 2]}}, {"kind": "hybrid"}]
    config, out = tmp_path / "sweep.yaml", tmp_path / "out"
    for name in ("kind", "llm_layers"):
        changed.pop(name)
    config.write_text(json.dumps(changed | {"llm_layers": 2, "experiments": kinds}))

    def start(out):
        states = f"states_dir={out}-states"
        return subprocess.Popen(
            [sys.executable, "-m", "embedder_helpers", "sweep", config, "--out", out]
            + ["--set", states],
            cwd=ROOT,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    # While Gemma is loaded and computes, while it is scored, and while the hybrid is trained.
    generator = random.Random(33)
    killed = 0
    for logged, seconds in (("GB of hidden states", 3), ("gemma_only-k", 1), ("hybrid-k", 6)):
        process = start(out)
        # A fast machine may have finished that part before the last kill: then the sweep ends.
        if any(logged in line for line in process.stdout):
            time.sleep(generator.uniform(0, seconds))
        process.kill()
        process.communicate()
        killed += process.returncode == -signal.SIGKILL
    assert killed
    for folder in (out, tmp_path / "uninterrupted"):
        process = start(folder)
        output, _ = process.communicate()
        assert process.returncode == 0, output
        assert len(pd.read_csv(folder / "results.csv")) == 3
    names = {path.name for path in out.glob("*.json")}
    assert names == {path.name for path in (tmp_path / "uninterrupted").glob("*.json")}
    for name in names:
        assert_same_outcome(read_result(out / name), read_result(tmp_path / "uninterrupted" / name))


# Disks, and letters that files cannot hold


def test_a_csv_that_cannot_be_written_is_reported_with_the_results(pair, tmp_path):
    (tmp_path / "results.csv").mkdir()
    results, failed = run_experiments(pair, tmp_path)
    assert cutoffs_of(results) == [[1], [2]]
    ((name, reason),) = failed.items()
    assert name == "results.csv" and "cannot be written" in reason and "--out" in reason


def test_nothing_is_trained_for_a_disk_that_has_become_full(pair, tmp_path, monkeypatch):
    def fail(*_):
        raise InputError("the folder cannot be written (No space left on device)")

    ran = []
    run = executor_module.run_experiment

    def run_and_fill_the_disk(*arguments):
        ran.append(arguments)
        monkeypatch.setattr(executor_module, "writable_folder", fail)
        return run(*arguments)

    monkeypatch.setattr(executor_module, "run_experiment", run_and_fill_the_disk)
    results, failed = run_experiments(pair, tmp_path)
    assert len(ran) == len(results) == 1
    assert "No space left" in next(iter(failed.values()))


def test_a_traceback_is_written_in_utf_8_whatever_it_holds(pair, tmp_path, monkeypatch):
    fail_at([1], monkeypatch, RuntimeError("a folder named 雨 and \udcff"))
    _, failed = run_experiments(pair, tmp_path)
    (path,) = tmp_path.glob("*.traceback.txt")
    text = path.read_text(encoding="utf-8")
    assert "雨" in text and "\\udcff" in text and len(failed) == 1


def test_a_traceback_that_cannot_be_written_does_not_end_the_sweep(pair, tmp_path, monkeypatch):
    fail_at([1], monkeypatch, ZeroDivisionError("a bug"))
    _, failed = run_experiments(pair, tmp_path)
    (path,) = tmp_path.glob("*.traceback.txt")
    path.unlink()
    path.mkdir()
    results, again = run_experiments(pair, tmp_path)
    assert cutoffs_of(results) == [[2]] and again == failed


def test_the_reason_of_a_failure_is_short_on_one_line_and_without_secrets(
    pair, tmp_path, monkeypatch, log
):
    monkeypatch.setenv("HF_TOKEN", "hf_abcdefgh")
    message = "https://ann:word@hub.example refuses\nhf_abcdefgh " + 5000 * "x"
    fail_at([1], monkeypatch, ConnectionError(message))
    _, failed = run_experiments(pair, tmp_path)
    (reason,) = failed.values()
    (path,) = tmp_path.glob("*.traceback.txt")
    assert "https://hub.example refuses ***" in reason and len(reason) <= 1000
    for text in (reason, log.text, path.read_text(encoding="utf-8")):
        assert "ann:word" not in text and "hf_abcdefgh" not in text


@pytest.mark.parametrize("out", ["a\0b", "a\ud800", "x" * 5000, None])
def test_a_folder_that_cannot_be_one_is_an_error(pair, out):
    with pytest.raises(InputError, match="cannot be the path"):
        run_experiments(pair, out)

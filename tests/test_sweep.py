import dataclasses
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import types
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
from made_task import write_task

from embedder_helpers import sweep as sweep_module
from embedder_helpers.config import Experiment, InputError
from embedder_helpers.presets import BUILTIN_FOLDER
from embedder_helpers.result import read_result
from embedder_helpers.sweep import load_sweep, sweep

ROOT = Path(__file__).resolve().parent.parent
QUICK = dict(
    llm_layers=2, epochs=2, batch_size=8, max_tokens=24, samples_per_label=4, learning_rate=5e-4
)
COLUMNS = (
    "task", "kind", "llm_layers", "pooling", "seed", "accuracy", "f1", "head_accuracy", "head_f1",
    "seconds",
)  # fmt: skip


# The config


def write(tmp_path, text):
    path = tmp_path / "sweep.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_config_of_one_experiment_gives_one(tmp_path):
    path = write(tmp_path, "{task: sample, kind: gemma_only, llm_layers: 3}")
    assert load_sweep(path) == [Experiment(task="sample", kind="gemma_only", llm_layers=3)]


def test_each_gives_every_combination(tmp_path):
    path = write(tmp_path, "kind: gemma_only\neach: {llm_layers: [1, 2], pooling: [mean, max]}")
    assert load_sweep(path) == [
        Experiment(kind="gemma_only", llm_layers=layers, pooling=pooling)
        for layers in (1, 2)
        for pooling in ("mean", "max")
    ]


def test_experiments_list_keys_that_differ(tmp_path):
    path = write(
        tmp_path,
        "epochs: 1\nexperiments:\n"
        "  - {kind: roberta_only, seed: 5}\n"
        "  - {kind: gemma_only, llm_layers: 7}\n",
    )
    assert load_sweep(path) == [
        Experiment(kind="roberta_only", epochs=1, seed=5),
        Experiment(kind="gemma_only", epochs=1, llm_layers=7),
    ]


def test_each_inside_an_experiment_combines_with_each_at_the_top(tmp_path):
    path = write(
        tmp_path,
        "each: {seed: [1, 2]}\nexperiments:\n"
        "  - kind: roberta_only\n"
        "  - {kind: hybrid, each: {llm_layers: [3, 4]}}\n",
    )
    found = load_sweep(path)
    expected = [Experiment(kind="roberta_only", seed=seed) for seed in (1, 2)]
    expected += [Experiment(seed=seed, llm_layers=layers) for seed in (1, 2) for layers in (3, 4)]
    assert sorted(map(repr, found)) == sorted(map(repr, expected))


def test_an_experiments_own_keys_win_over_the_top(tmp_path):
    path = write(tmp_path, "{seed: 1, epochs: 4, experiments: [{seed: 2}, {epochs: 5}]}")
    assert load_sweep(path) == [Experiment(seed=2, epochs=4), Experiment(seed=1, epochs=5)]


def test_a_value_that_is_a_mapping_sets_several_keys(tmp_path):
    path = write(
        tmp_path,
        "each:\n  task:\n"
        "    - sample\n"
        "    - {task: EmotionClassification, task_data: data/emotion, samples_per_label: 16}\n",
    )
    emotion = dict(task="EmotionClassification", task_data="data/emotion", samples_per_label=16)
    assert load_sweep(path) == [Experiment(task="sample"), Experiment(**emotion)]


def test_a_list_among_the_values_of_llm_layers_is_pooled(tmp_path):
    path = write(tmp_path, "each: {llm_layers: [3, [3, 9], -1]}")
    assert [one.llm_layers for one in load_sweep(path)] == [3, (3, 9), -1]


def test_what_is_there_twice_is_run_once(tmp_path):
    path = write(tmp_path, "experiments: [{seed: 1}, {each: {seed: [2, 1, 2]}}, {llm_layers: -1}]")
    assert [one.seed for one in load_sweep(path)] == [1, 2, Experiment().seed]


def test_overrides_hold_in_every_experiment(tmp_path):
    path = write(tmp_path, "seed: 1\nexperiments: [{kind: roberta_only}, {each: {seed: [2, 3]}}]")
    found = load_sweep(path, seed=9, epochs=None, states_dir="elsewhere")
    assert [(one.seed, one.epochs, one.states_dir) for one in found] == [
        (9, Experiment().epochs, "elsewhere")
    ] * 2


@pytest.mark.parametrize(
    "text, told",
    [
        ("experiments: {kind: hybrid}", "experiments must be a list"),
        ("experiments: [hybrid]", "experiments must be a list"),
        ("experiments: ", "experiments must be a list"),
        ("each: [1, 2]", "each must hold"),
        ("each: ", "each must hold"),
        ("each: {seed: 33}", "each must hold"),
        ("experiments: [{each: {seed: 33}}]", "each must hold"),
        ("each: {sead: [33]}", "unknown key 'sead'; did you mean 'seed'"),
        ("each: {task: [{taks: sample}]}", "unknown key 'taks'; did you mean 'task'"),
        ("experiments: [{each: {seed: [33, x]}}]", "seed is 'x'"),
        ("experiments: [{experiments: [{seed: 1}]}]", "unknown key 'experiments'"),
        ("each: {seed: []}", "holds no experiment"),
        ("experiments: []", "holds no experiment"),
    ],
)
def test_a_wrong_shape_is_told_with_its_file_and_key(text, told, tmp_path):
    path = write(tmp_path, text)
    with pytest.raises(InputError) as error:
        load_sweep(path)
    assert str(path) in str(error.value) and told in str(error.value)


@pytest.mark.parametrize("path", sorted(ROOT.glob("configs/*.yaml")), ids=lambda path: path.stem)
def test_every_config_of_the_project_is_a_sweep(path):
    found = load_sweep(path)
    assert found and len(found) == len(set(found))


# A sweep


def assert_alike(result, other):
    """When and where an experiment ran must not matter, but threads round a loss their own way."""
    for name in ("scores", "experiments", "head", "floor", "unrepeated"):
        assert getattr(result, name) == getattr(other, name)
    assert result.history == [pytest.approx(epoch, rel=1e-5) for epoch in other.history]


def files(folder):
    """Result files with their content and time of writing."""
    return {
        path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.glob("*.json")
    }


def half_broken(folder):
    """Gemma whose learned norm is not a number: what is normed otherwise can be used."""
    shutil.copytree(BUILTIN_FOLDER / "tiny_gemma", folder)
    with h5py.File(folder / "model.weights.h5", "r+") as file:
        file["layers/rms_normalization/vars/0"][...] = np.nan
    return str(folder)


class Mixed:
    """A sweep of every kind in which one experiment fails, and shares its walk with another."""

    def __init__(self, folder):
        self.task = write_task(folder / "weather")
        self.states, self.out = folder / "states", folder / "out"
        self.hybrid = self.experiment()
        broken = dict(kind="gemma_only", llm_preset=half_broken(folder / "half_broken"))
        self.failing = self.experiment(**broken, final_norm="learned")
        self.experiments = [
            self.experiment(kind="gemma_only", llm_layers=1),
            self.experiment(kind="roberta_only", epochs=0),
            self.failing,
            self.experiment(**broken),
            self.hybrid,
            self.experiment(kind="gemma_only"),
        ]
        self.finished = [one for one in self.experiments if one != self.failing]
        self.results, self.failed = sweep(self.experiments, self.out)

    def experiment(self, **keys):
        common = dict(task=str(self.task), states_dir=str(self.states))
        return Experiment(**{**QUICK, **common, **keys})


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    return Mixed(tmp_path_factory.mktemp("mixed"))


def test_an_experiment_that_fails_is_told_and_the_others_are_finished(mixed):
    (name,) = mixed.failed
    assert "gemma_only-k2" in name and "norm: learned" in mixed.failed[name]
    assert [result.experiment for result in mixed.results] == [
        one.as_dict() for one in mixed.finished
    ]


def test_what_a_person_can_mend_leaves_no_traceback(mixed):
    assert not list(mixed.out.glob("*.traceback.txt"))


def test_each_result_has_a_file_of_its_own(mixed):
    found = [read_result(path) for path in mixed.out.glob("*.json")]
    assert len(found) == len(mixed.finished)
    assert all(result in mixed.results for result in found)


def test_the_table_has_a_row_for_each_result(mixed):
    table = pd.read_csv(mixed.out / "results.csv", dtype=str, keep_default_na=False)
    assert set(COLUMNS) <= set(table.columns)
    found = [[row[column] for column in COLUMNS] for row in table.to_dict("records")]
    expected = []
    for result in mixed.results:
        scores, head, settings = result.scores, result.head or {}, result.experiment
        expected.append(
            [
                result.task["name"],
                settings["kind"],
                "+".join(map(str, result.cutoffs)),
                settings["pooling"],
                settings["seed"],
                scores["accuracy"],
                scores["f1"],
                head.get("accuracy", ""),
                head.get("f1", ""),
                result.seconds["total"],
            ]  # fmt: skip
        )
    assert sorted(found) == sorted([str(value) for value in row] for row in expected)


def test_finished_results_are_read_and_not_touched(mixed, monkeypatch, capsys):
    before = files(mixed.out)
    monkeypatch.setattr(sweep_module, "train_and_score", lambda *_: pytest.fail("runs"))
    again = sweep(mixed.finished, mixed.out)
    assert again.failed == {} and again.results == mixed.results
    assert files(mixed.out) == before
    assert "5 experiments, 5 of them found" in capsys.readouterr().out


def test_a_result_does_not_depend_on_what_ran_before(mixed, tmp_path):
    alone = dataclasses.replace(mixed.hybrid, states_dir=str(tmp_path / "states"))
    (result,), _ = sweep([alone], tmp_path / "out")
    (among,) = [one for one in mixed.results if one.experiment["kind"] == "hybrid"]
    assert_alike(result, among)


def test_a_missing_result_is_computed_again_from_states_on_disk(mixed, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "embedder_helpers.gemma.Gemma.walk", lambda *_: pytest.fail("walks through Gemma")
    )
    gemma_only = mixed.experiments[-1]
    (result,), failed = sweep([gemma_only], tmp_path)
    assert not failed
    assert_alike(result, mixed.results[-1])


# Failures


@pytest.fixture
def pair(mixed, monkeypatch):
    """Two experiments of which the mixed sweep has the results, which are given at once."""
    known = {one.experiment["llm_layers"]: one for one in (mixed.results[0], mixed.results[-1])}

    def look_up(plan, store):
        return None, known[plan.experiment.llm_layers]

    monkeypatch.setattr(sweep_module, "train_and_score", look_up)
    return [mixed.experiments[0], mixed.experiments[-1]]


def fail_at(layers, monkeypatch, error):
    """Lets experiments of some cutoffs fail."""
    run = sweep_module.train_and_score

    def failing(plan, store):
        if plan.experiment.llm_layers in layers:
            raise error
        return run(plan, store)

    monkeypatch.setattr(sweep_module, "train_and_score", failing)


def test_a_bug_is_told_with_its_traceback_and_the_rest_goes_on(pair, tmp_path, monkeypatch):
    fail_at([1], monkeypatch, ZeroDivisionError("by chance"))
    results, failed = sweep(pair, tmp_path)
    assert [result.cutoffs for result in results] == [[2]]
    ((name, reason),) = failed.items()
    assert "gemma_only-k1" in name and "ZeroDivisionError: by chance" in reason
    (path,) = tmp_path.glob("*.traceback.txt")
    assert path.name == f"{name}.traceback.txt"
    assert "raise error" in path.read_text() and "ZeroDivisionError" in path.read_text()


def test_a_rerun_after_mending_runs_only_what_failed(pair, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        fail_at([2], patch, ZeroDivisionError())
        sweep(pair, tmp_path)
    before = files(tmp_path)
    results, failed = sweep(pair, tmp_path)
    assert not failed and [result.cutoffs for result in results] == [[1], [2]]
    assert before.items() < files(tmp_path).items()
    assert len(pd.read_csv(tmp_path / "results.csv")) == 2


def test_a_traceback_goes_when_its_experiment_is_finished(pair, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        fail_at([2], patch, ZeroDivisionError())
        sweep(pair, tmp_path)
    sweep(pair, tmp_path)
    assert not list(tmp_path.glob("*.traceback.txt"))


def test_a_sweep_of_which_nothing_could_be_finished_is_one_clear_error(pair, tmp_path, monkeypatch):
    fail_at([1, 2], monkeypatch, InputError("the cable is not plugged in"))
    with pytest.raises(InputError, match="the cable is not plugged in"):
        sweep(pair, tmp_path)
    assert not list(tmp_path.glob("*.json"))


def test_a_person_can_stop_a_sweep(pair, tmp_path, monkeypatch):
    fail_at([2], monkeypatch, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        sweep(pair, tmp_path)
    assert len(list(tmp_path.glob("*.json"))) == 1


def test_what_would_not_be_finished_in_time_is_not_begun(pair, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(
        sweep_module.session, "has_time", lambda *_: not list(tmp_path.glob("*.json"))
    )
    results, left = sweep(pair, tmp_path)
    assert [result.cutoffs for result in results] == [[1]]
    ((name, reason),) = left.items()
    assert "gemma_only-k2" in name or "hybrid-k2" in name
    assert "the time was too short" in reason
    assert "stopped in time, with 1 experiments to go" in capsys.readouterr().out


def test_a_sweep_that_stopped_in_time_goes_on_where_it_stopped(pair, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(
            sweep_module.session, "has_time", lambda *_: not list(tmp_path.glob("*.json"))
        )
        sweep(pair, tmp_path)
    before = files(tmp_path)
    results, left = sweep(pair, tmp_path)
    assert not left and len(results) == 2
    assert before.items() < files(tmp_path).items()


def test_time_is_reckoned_from_the_pace_so_far():
    bar = types.SimpleNamespace(n=10.0, format_dict={"elapsed": 5.0})  # half a second each
    now = time.time()
    assert sweep_module._in_time(bar, 100, now + 70)
    assert not sweep_module._in_time(bar, 100, now + 60)  # 50 seconds, and the slack


def test_states_that_do_not_fit_fail_only_what_is_trained_on_them(mixed, tmp_path):
    keys = dict(states_dir=str(tmp_path / "states"), states_gigabytes=1e-9)
    asked = [mixed.experiment(**keys), mixed.experiment(**keys, kind="gemma_only")]
    results, failed = sweep(asked, tmp_path / "out")
    assert [result.experiment["kind"] for result in results] == ["gemma_only"]
    assert_alike(results[0], mixed.results[-1])
    (reason,) = failed.values()
    assert "states_gigabytes" in reason


# Before anything runs


def test_every_experiment_is_checked_before_the_first_one_runs(mixed, tmp_path, monkeypatch):
    monkeypatch.setattr(sweep_module, "train_and_score", lambda *_: pytest.fail("runs"))
    with pytest.raises(InputError, match="llm_layers is 19"):
        sweep([mixed.hybrid, mixed.experiment(llm_layers=19)], tmp_path)
    assert not list(tmp_path.glob("*.json"))


def test_a_folder_that_cannot_be_written_is_told_before_anything_is_loaded(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        sweep([Experiment(task="no such task")], tmp_path / "file" / "out")


def test_the_same_task_is_loaded_once(mixed, monkeypatch):
    from embedder_helpers import plan as plan_module

    loaded, task_of = [], plan_module.task_of

    def counting(experiment):
        loaded.append(experiment.task)
        return task_of(experiment)

    monkeypatch.setattr(plan_module, "task_of", counting)
    sweep(mixed.finished, mixed.out)
    assert loaded == [str(mixed.task)]


def test_experiments_of_one_result_are_one(mixed, capsys):
    keys = dict(kind="gemma_only", llm_layers=2)
    alike = [mixed.experiment(**keys, epochs=1), mixed.experiment(**keys | {"llm_layers": -17})]
    results, _ = sweep(alike, mixed.out)
    assert len(results) == 1 and "1 experiments" in capsys.readouterr().out


def test_no_experiments_are_no_results(tmp_path):
    assert sweep([], tmp_path) == ([], {})


# A process that dies


def test_a_sweep_that_is_killed_again_and_again_ends_with_the_same_figures(mixed, tmp_path):
    keys = {
        **QUICK,
        "task": str(mixed.task),
        "states_dir": str(tmp_path / "states"),
        "experiments": [{"kind": "gemma_only", "each": {"llm_layers": [1, 2]}}, {"kind": "hybrid"}],
    }
    config, out = write(tmp_path, json.dumps(keys)), tmp_path / "out"
    chance = random.Random(33)

    def start():
        return subprocess.Popen(
            [sys.executable, "-m", "embedder_helpers", "sweep", config, "--out", out],
            cwd=ROOT,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    # While Gemma is loaded and walked, while it is scored, and while RoBERTa is trained.
    for said, seconds in (("GB of states", 3), ("gemma_only-k", 1), ("hybrid-k", 6)):
        process = start()
        assert any(said in line for line in process.stdout)
        time.sleep(chance.uniform(0, seconds))
        process.send_signal(signal.SIGKILL)
        process.communicate()
    process = start()
    told, _ = process.communicate()
    assert process.returncode == 0, told
    paths = list(out.glob("*.json"))
    assert len(paths) == len(pd.read_csv(out / "results.csv")) == 3
    for path in paths:
        assert_alike(read_result(path), read_result(mixed.out / path.name))

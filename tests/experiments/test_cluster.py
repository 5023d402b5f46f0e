"""Several processes on Ray, and what happens if one dies."""

import os
import signal
import sys
from pathlib import Path

import psutil
import pytest
from made_task import experiment, write_task

from embedder_helpers.experiments.sweep import run_experiments

ray = pytest.importorskip("ray", reason="Ray is an optional extra")

from embedder_helpers.experiments import cluster  # noqa: E402


@pytest.fixture(scope="session")
def two_workers():
    """A Ray with two CPUs, for two workers of one."""
    root = Path(__file__).resolve().parents[2]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([str(root), *filter(None, sys.path)]))
        patch.setenv("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
        ray.init("local", num_cpus=2, num_gpus=0, include_dashboard=False, log_to_driver=False)
    yield {"cluster": "local", "cpus_per_worker": 1}
    ray.shutdown()


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    return write_task(tmp_path_factory.mktemp("cluster") / "task")


def few_experiments(task, states):
    common = dict(states_dir=str(states))
    return [
        experiment(task, kind="roberta_only", epochs=0, **common),
        experiment(task, kind="gemma_only", llm_layers=1, **common),
        experiment(task, kind="gemma_only", **common),
        experiment(task, epochs=1, **common),
    ]


@pytest.fixture(scope="module")
def states_of_one(tmp_path_factory):
    """The folder of hidden states of the process of `alone`."""
    return tmp_path_factory.mktemp("states")


@pytest.fixture(scope="module")
def alone(task, states_of_one, tmp_path_factory):
    """The results of one process."""
    return run_experiments(few_experiments(task, states_of_one), tmp_path_factory.mktemp("alone"))


def scores_of(sweep_results):
    assert not sweep_results.failed
    return [result.scores for result in sweep_results.results]


def test_two_processes_have_the_scores_of_one(two_workers, alone, task, tmp_path):
    both = run_experiments(few_experiments(task, tmp_path / "s"), tmp_path / "out", **two_workers)
    assert scores_of(both) == scores_of(alone)
    left = [path for path in (tmp_path / "out").iterdir() if path.name.startswith(".")]
    assert not left


def test_a_cluster_continues_what_one_process_began_and_the_other_way_round(
    two_workers, alone, task, tmp_path
):
    experiments = few_experiments(task, tmp_path / "states")
    run_experiments(experiments[:1], tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.json")}
    run_experiments(experiments[:3], tmp_path, **two_workers)
    assert scores_of(run_experiments(experiments, tmp_path)) == scores_of(alone)
    assert len(before) == 1 and all(p.stat().st_mtime_ns == at for p, at in before.items())


def test_an_experiment_that_fails_is_reported_and_the_others_are_finished(
    two_workers, task, tmp_path
):
    experiments = few_experiments(task, tmp_path / "states")[:2]
    diverging = experiment(
        task, kind="roberta_only", learning_rate=1e30, projection_learning_rate=1e30
    )
    results, failed = run_experiments([*experiments, diverging], tmp_path / "out", **two_workers)
    assert len(results) == 2 and len(failed) == 1
    assert "diverged" in next(iter(failed.values()))


def test_batches_that_fit_a_limited_disk_only_one_by_one_are_all_finished(
    two_workers, alone, states_of_one, task, tmp_path
):
    one_cutoff = sum(path.stat().st_size for path in states_of_one.glob("*/k01-rms-*"))
    limited = dict(states_dir=str(tmp_path / "states"), states_gigabytes=1.5 * one_cutoff / 1e9)
    experiments = [
        # Two for each cutoff, so that both processes read its hidden states.
        experiment(task, kind="gemma_only", llm_layers=layers, pooling=pooling, **limited)
        for layers in (1, 2)
        for pooling in ("mean", "max")
    ]
    results, failed = run_experiments(experiments, tmp_path / "out", **two_workers)
    assert len(results) == 4 and not failed
    left = [path.name for path in (tmp_path / "states").glob("*/k*")]
    assert left and all(name.startswith("k02-rms-") for name in left)


def actor_processes():
    """The processes that run experiments."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        command = " ".join(process.info["cmdline"] or ())
        if command.startswith("ray::RemoteExecutor"):
            found.append(process)
    return found


@pytest.mark.slow
def test_a_worker_that_is_killed_is_started_again(two_workers, alone, task, tmp_path, caplog):
    killed = []

    def kill_the_first(*arguments):
        shown = show(*arguments)
        if not killed and "RoBERTa only" in caplog.text or "Gemma only" in caplog.text:
            for process in actor_processes()[:1]:
                if process.pid not in killed and len(killed) < 2:
                    process.send_signal(signal.SIGKILL)
                    killed.append(process.pid)
        return shown

    caplog.set_level("INFO", "embedder_helpers")
    show = cluster._Driver._show_logs
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cluster._Driver, "_show_logs", kill_the_first)
        experiments = few_experiments(task, tmp_path / "states")
        both = run_experiments(experiments, tmp_path / "out", **two_workers)
    assert killed and scores_of(both) == scores_of(alone)
    assert not actor_processes()

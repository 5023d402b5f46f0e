"""Several processes on Ray, and what happens if one dies."""

import logging
import os
import signal
import sys
from pathlib import Path

import psutil
import pytest
from made_task import experiment, write_task

from embedder_helpers.errors import InputError
from embedder_helpers.experiments.plan import Status, plan_all
from embedder_helpers.experiments.sweep import run_experiments

ray = pytest.importorskip("ray", reason="Ray is an optional extra")

from embedder_helpers.experiments import cluster  # noqa: E402
from embedder_helpers.experiments.remote import RemoteExecutor  # noqa: E402


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


# === With processes that only pretend to work ===


@pytest.fixture
def run_with(two_workers, task, tmp_path, monkeypatch):
    """Run an experiment with a class in the place of `RemoteExecutor`; returns the outcome."""

    def run(executor, **settings):
        monkeypatch.setattr(cluster, "RemoteExecutor", executor)
        states = str(tmp_path / "states")
        one = experiment(task, kind="roberta_only", epochs=0, states_dir=states, **settings)
        out = tmp_path / "out"
        out.mkdir(exist_ok=True)
        plans = plan_all([one], out)
        outcomes = cluster.run_on_cluster([one], plans, plans, out, float("inf"), None, 1)
        assert not any(path.name.startswith(".") for path in out.iterdir())
        return outcomes[plans[0].path.stem]

    return run


@pytest.fixture
def pretending():
    """An executor that finishes everything at once, without TensorFlow."""

    class Pretending(RemoteExecutor):  # a function's class is sent, for this file is not found
        def capacity(self):
            return 1e9

        def batches(self, site):
            return [(False, [(name, 0) for name in site[1]])]

        def run(self, site, batch, name):
            return (Status.FINISHED, ""), {}

        def close(self):
            pass

    return Pretending


def test_the_last_log_line_is_shown_too(run_with, pretending, caplog):
    class Talking(pretending):
        def run(self, *arguments):
            logging.getLogger("embedder_helpers").info("all is done")
            return super().run(*arguments)

    caplog.set_level("INFO", "embedder_helpers")
    run_with(Talking)
    assert "all is done" in caplog.text


def test_a_process_that_dies_at_the_last_experiment_is_not_waited_for(
    run_with, pretending, tmp_path
):
    mark = tmp_path / "died"

    class Dying(pretending):
        def run(self, *arguments):
            if not mark.exists():
                mark.touch()
                os._exit(1)
            return super().run(*arguments)

    assert run_with(Dying).status is Status.FINISHED and mark.exists()


def test_a_process_that_dies_before_the_work_begins_is_asked_again(run_with, pretending, tmp_path):
    mark = tmp_path / "died"

    class Dying(pretending):
        def _states_folder(self):
            if not mark.exists():
                mark.touch()
                os._exit(1)
            return super()._states_folder()

    assert run_with(Dying).status is Status.FINISHED and mark.exists()


def test_a_process_that_cannot_begin_is_left_out(run_with, pretending, tmp_path, caplog):
    mark = tmp_path / "mark"

    class Refusing(pretending):
        def __init__(self, *arguments):
            try:
                mark.touch(exist_ok=False)
            except FileExistsError:  # by the other process
                super().__init__(*arguments)
            else:
                raise OSError("no such library")

    assert run_with(Refusing).status is Status.FINISHED
    assert "others go on without it" in caplog.text and "no such library" in caplog.text


def test_if_no_process_can_work_the_error_says_why(run_with, pretending, tmp_path):
    (tmp_path / "states").touch()
    with pytest.raises(InputError, match="no process of the cluster can work: .*states_dir"):
        run_with(pretending)


def test_embedders_are_not_saved_where_the_driver_does_not_find_them(run_with, pretending):
    class Elsewhere(pretending):
        def shares_results(self):
            return False

    with pytest.raises(InputError, match="save_embedder needs a folder of results that all"):
        run_with(Elsewhere, save_embedder=True)


def test_machines_without_gpus_rest_if_others_have_some_unless_told_otherwise(monkeypatch):
    class Actor:
        def options(self, **options):
            return self

        def remote(self, *arguments):
            return None

    def count(*resources, cpus_per_worker=None):
        nodes = [
            {"Alive": True, "NodeID": f"{number:056x}", "Resources": {"CPU": cpus, "GPU": gpus}}
            for number, (cpus, gpus) in enumerate(resources)
        ]
        monkeypatch.setattr(ray, "nodes", lambda: nodes)
        monkeypatch.setattr(ray, "remote", lambda **options: lambda executor: Actor())
        workers = cluster._start_workers((), cpus_per_worker)
        return [sum(one.node == node["NodeID"] for one in workers) for node in nodes]

    assert count((8, 0), (8, 2)) == [0, 2]
    assert count((8, 0), (8, 2), cpus_per_worker=4) == [2, 2]
    assert count((8, 0), (4, 0)) == [1, 1]


def test_a_result_that_cannot_be_written_here_is_a_failure(tmp_path):
    (tmp_path / "file").touch()
    driver = cluster._Driver([], tmp_path / "file", 0)
    outcome = driver._write((Status.FINISHED, ""), {"a.json": "{}"})
    assert outcome.status is Status.FAILED and "file" in outcome.reason

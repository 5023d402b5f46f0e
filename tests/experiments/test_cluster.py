"""Several processes: which experiments each claims, and what happens if one dies."""

import dataclasses
import io
import json
import logging
import math
import subprocess
import sys
import time
import types

import filelock
import pytest
from made_task import experiment, write_task

from embedder_helpers.experiments import cluster
from embedder_helpers.experiments import sweep as sweep_module
from embedder_helpers.experiments import worker as worker_module
from embedder_helpers.experiments.cluster import Worker
from embedder_helpers.experiments.sweep import run_experiments
from embedder_helpers.results.result import read_result
from embedder_helpers.utils import environment

pytestmark = pytest.mark.usefixtures("fast_experiments")


@pytest.fixture
def log(caplog):
    caplog.set_level(logging.INFO, "embedder_helpers")
    return caplog


# Claims


@pytest.fixture
def plans(tmp_path):
    return [
        types.SimpleNamespace(path=tmp_path / f"{name}.json", is_finished=lambda: False)
        for name in "abc"
    ]


def names(plans):
    return [plan.path.stem for plan in plans]


def test_a_single_process_claims_every_plan(plans):
    assert names(Worker().claim(plans)) == ["a", "b", "c"]


def test_a_claimed_plan_is_locked_for_other_processes(plans, tmp_path):
    first, second = (Worker(number, 2, tmp_path).claim(plans) for number in range(2))
    assert names([next(first)]) == ["a"]
    assert names([next(second)]) == ["b"]


def test_plans_of_a_process_that_died_are_claimed_last(plans, tmp_path):
    other = filelock.FileLock(tmp_path / "a.lock")
    other.acquire()
    claimed = Worker(0, 2, tmp_path).claim(plans)
    assert names([next(claimed), next(claimed)]) == ["b", "c"]
    other.release()  # as the operating system does when a process dies
    assert names(claimed) == ["a"]


def test_a_plan_that_would_fail_everywhere_is_not_claimed_again(plans, tmp_path):
    other, worker = Worker(1, 2, tmp_path), Worker(0, 2, tmp_path)
    other.record_failure("b", "too large", everywhere=True)
    other.record_failure("c", "its GPU is broken", everywhere=False)
    assert names(worker.claim(plans)) == ["a", "c"]
    assert worker.failures == {"b": "too large"}


def test_a_plan_that_another_process_finished_is_not_claimed(plans, tmp_path):
    plans[2].is_finished = lambda: True
    assert names(Worker(0, 2, tmp_path).claim(plans)) == ["a", "b"]


# Processes


def test_what_a_library_prints_is_logged_whatever_it_is(tmp_path, monkeypatch, log):
    lines = r"20 of ours\n12345 tokens\n\xb2 squared\n\xff\xfe\n" + "9" * 5000 + r" digits\n"
    script = f"import sys; sys.stdout.buffer.write(b'{lines}'); sys.exit('x' * 50_000)"
    popen = subprocess.Popen
    monkeypatch.setattr(
        subprocess, "Popen", lambda _, **options: popen([sys.executable, "-c", script], **options)
    )
    process = cluster._WorkerProcess(Worker(1, 2, tmp_path), "1", [], tmp_path, math.inf)
    process.wait(math.inf)
    process.end()
    messages = [record.getMessage() for record in log.records]
    assert messages[:2] == ["GPU 1: of ours", "GPU 1: 12345 tokens"]
    assert len(messages) == 6 and "ended early" in messages[-1] and len(messages[-1]) < 1200


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    return write_task(tmp_path_factory.mktemp("cluster") / "task")


def untrained_experiments(task, states):
    common = dict(epochs=0, states_dir=str(states))
    return [
        experiment(task, kind="roberta_only", **common),
        experiment(task, kind="gemma_only", llm_layers=1, **common),
        experiment(task, kind="gemma_only", **common),
    ]


@pytest.fixture
def experiments(task, tmp_path):
    return untrained_experiments(task, tmp_path / "states")


def scores_of(sweep_results):
    assert not sweep_results.failed
    return [result.scores for result in sweep_results.results]


@pytest.fixture(scope="module")
def expected_scores(task, tmp_path_factory):
    """The scores of the untrained experiments, run in one process."""
    folder = tmp_path_factory.mktemp("alone")
    return scores_of(run_experiments(untrained_experiments(task, folder / "states"), folder))


@pytest.fixture
def two_gpus(monkeypatch):
    """As if there were two; the processes compute on the CPU."""
    monkeypatch.setattr(environment, "gpu_ids", lambda: ["0", "1"])
    monkeypatch.setattr(environment, "use_first_gpu_only", lambda: True)


def test_a_process_that_dies_leaves_its_work_to_the_first(
    two_gpus, experiments, expected_scores, tmp_path, log, monkeypatch
):
    monkeypatch.setattr(sys, "executable", "false")  # a program that ends at once
    assert scores_of(run_experiments(experiments, tmp_path / "both")) == expected_scores
    assert "2 GPUs" in log.text and "GPU 1: its process ended early" in log.text


def message(experiments, folder, claims):
    """What a worker process reads from its standard input."""
    return json.dumps(
        {
            "experiments": [one.as_dict() for one in experiments],
            "folder": str(folder),
            "until": math.inf,
            "worker": [1, 2, str(claims)],
        }
    )


@pytest.fixture
def run_worker_here(monkeypatch):
    """Runs a worker's main function in this process; returns the durations it checked."""
    monkeypatch.setattr(worker_module, "_end_with_standard_input", lambda: None)
    durations, fits_deadline = [], sweep_module.session.fits_deadline

    def record(until, seconds):
        durations.append(seconds)
        return fits_deadline(until, seconds)

    def run(text):
        monkeypatch.setattr(sweep_module.session, "fits_deadline", record)
        monkeypatch.setattr(sys, "stdin", io.StringIO(text + "\n"))
        worker_module.main()
        return durations

    logger = logging.getLogger("embedder_helpers")
    level = logger.level
    yield run
    logger.setLevel(level)


def test_a_worker_runs_what_is_not_claimed_and_estimates_time_without_bars(
    run_worker_here, experiments, expected_scores, tmp_path, capsys
):
    folder, claims = tmp_path / "out", tmp_path / "claims"
    folder.mkdir()
    claims.mkdir()
    durations = run_worker_here(message(experiments, folder, claims))
    results = [read_result(path) for path in folder.glob("*.json")]
    assert len(results) == 3
    assert all(result.scores in expected_scores for result in results)
    assert durations[-1] > 0
    assert "sweep" not in capsys.readouterr().err


@pytest.mark.slow
def test_two_processes_have_the_scores_of_one(two_gpus, task, tmp_path, log):
    def experiments(name):
        trained = experiment(task, epochs=1, states_dir=str(tmp_path / name))
        return [*untrained_experiments(task, tmp_path / name), trained]

    both = run_experiments(experiments("both states"), tmp_path / "both")
    assert "2 GPUs" in log.text
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(environment, "gpu_ids", lambda: [])
        alone = run_experiments(experiments("states"), tmp_path / "alone")
    assert scores_of(both) == scores_of(alone)


@pytest.mark.slow
def test_the_other_process_does_what_the_first_does_not(
    two_gpus, experiments, expected_scores, tmp_path, log, monkeypatch
):
    def wait_for_the_other(plans, todo, until, worker):
        deadline = time.time() + 300
        while not all(read_result(plan.path) for plan in plans) and time.time() < deadline:
            time.sleep(0.2)
        return {}

    monkeypatch.setattr(sweep_module, "_run_all", wait_for_the_other)
    assert scores_of(run_experiments(experiments, tmp_path / "both")) == expected_scores
    assert "GPU 1:   RoBERTa only" in log.text


@pytest.mark.slow
def test_an_experiment_that_fails_in_any_process_is_reported_once(two_gpus, experiments, tmp_path):
    diverging = dataclasses.replace(
        experiments[0], epochs=2, learning_rate=1e30, projection_learning_rate=1e30
    )
    results, failed = run_experiments([*experiments[:2], diverging], tmp_path / "both")
    assert len(results) == 2 and len(failed) == 1
    assert "diverged" in next(iter(failed.values()))


@pytest.mark.slow
def test_the_other_process_ends_when_the_first_one_dies():
    process = subprocess.Popen(
        [sys.executable, "-m", "embedder_helpers.experiments.worker"],
        stdin=subprocess.PIPE,
        text=True,
    )
    process.stdin.write(message([], ".", ".") + "\n")
    process.stdin.close()  # as the operating system does when a process dies
    assert process.wait(60) == 1

"""Several processes on Ray: what is handed out when, and what happens if one dies."""

import os
import signal
import sys
import types
from pathlib import Path

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_task import experiment, write_task

from embedder_helpers.experiments.plan import Outcome, Status
from embedder_helpers.experiments.sweep import run_experiments

ray = pytest.importorskip("ray", reason="Ray is an optional extra")

from embedder_helpers.experiments import cluster  # noqa: E402
from embedder_helpers.experiments.cluster import Job, Site, divide  # noqa: E402

DONE = Outcome(Status.FINISHED)

# === What comes next ===


def site(*batches, **options):
    """A site that knows its batches: whether each reads states, and its experiments' models."""
    answer = [
        (
            reads,
            [
                (f"{number}{letter}", model)
                for letter, model in zip("abcdefgh", models, strict=False)
            ],
        )
        for number, (reads, models) in enumerate(batches)
    ]
    names = [name for _, experiments in answer for name, _ in experiments]
    made = Site(names, names, 1e9, **options)
    job = made.next_job(None)
    assert job.method == "batches"
    made.end(job, answer)
    return made


def work_through(made, workers=1, shards=2):
    """Every job in the order in which it was handed out, each ended as late as possible."""
    order, running = [], []
    while True:
        while len(running) < workers and (job := made.next_job(None)):
            order.append(job)
            running.append(job)
        if not running:
            return order
        job = running.pop(0)
        made.end(job, [[i] for i in range(shards)] if job.method == "prepare" else DONE)


def described(jobs):
    return [job.argument if job.method == "run" else job.method for job in jobs]


def test_hidden_states_are_computed_before_the_experiments_that_read_them():
    shards = ["prepare", "compute_shard", "compute_shard"]
    order = described(work_through(site((True, [0, 0]), (True, [0]))))
    assert order == [*shards, "0a", "0b", *shards, "1a"]


@given(
    st.lists(st.tuples(st.booleans(), st.lists(st.integers(0, 2), max_size=5)), max_size=4),
    st.integers(1, 4),
    st.integers(0, 3),
)
def test_every_experiment_is_handed_out_once_and_no_stage_begins_before_the_last_ended(
    batches, workers, shards
):
    made = site(*batches)
    order, running = [], []
    while True:
        while len(running) < workers and (job := made.next_job(None)):
            if batches[job.batch][0]:
                stage = (job.batch, job.method)
                others = {(one.batch, one.method) for one in running if batches[one.batch][0]}
                assert others <= {stage}
            order.append(job)
            running.append(job)
        if not running:
            break
        job = running.pop(0)
        made.end(job, [[i] for i in range(shards)] if job.method == "prepare" else DONE)
    run = [job.argument for job in order if job.method == "run"]
    assert sorted(run) == sorted(made.key[0]) and len(set(run)) == len(run)
    assert not made.unfinished and set(made.outcomes) == set(run)


def test_experiments_that_read_no_hidden_states_fill_the_gaps():
    made = site((False, [0, 0]), (True, [0]))
    first, second = made.next_job(None), made.next_job(None)
    assert (first.method, second.argument) == ("prepare", "0a")
    made.end(first, [])
    assert made.next_job(None).argument == "1a"  # while 0a runs


def test_a_worker_keeps_its_model_and_others_take_the_one_with_the_most_experiments():
    made = site((True, [0, 1, 0, 1, 1]))
    made.end(made.next_job(None), [])
    assert [made.next_job(0).argument, made.next_job(None).argument] == ["0a", "0b"]
    assert [made.next_job(0).argument, made.next_job(0).argument] == ["0c", "0d"]


def test_experiments_of_a_batch_without_time_for_its_hidden_states_are_skipped():
    made = site((True, [0, 0]), (True, [0]))
    made.end(made.next_job(None), None)
    assert {name for name, outcome in made.outcomes.items()} == {"0a", "0b"}
    assert {outcome.status for outcome in made.outcomes.values()} == {Status.SKIPPED}
    assert made.next_job(None) == Job("prepare", 1)


def test_a_job_at_which_processes_die_is_given_up_at_last():
    made = site((True, [0]))
    made.end(made.next_job(None), [])
    for _ in range(cluster.MAX_ATTEMPTS):
        job = made.next_job(None)
        assert job.argument == "0a"
        made.try_again(job)
    assert made.next_job(None) is None and not made.unfinished
    assert "died" in made.outcomes["0a"].reason


def test_without_hidden_states_experiments_run_all_the_same_and_say_why():
    made = site((True, [0]))
    made.fail(made.next_job(None), "no room")
    assert made.next_job(None).argument == "0a"


def test_a_site_that_cannot_be_planned_fails_as_a_whole():
    made = Site(["a", "b"], ["b"], 1e9)
    made.fail(made.next_job(None), "no such model here")
    assert made.outcomes == {"b": Outcome(Status.FAILED, "no such model here")}
    assert made.next_job(None) is None


def test_what_a_site_hands_over_is_not_its_own_any_more():
    made = site((True, [0, 0]))
    made.end(made.next_job(None), [])
    made.end(made.next_job(None), DONE)
    rest = made.hand_over()
    assert rest.unfinished == ["0b"] and not made.unfinished and rest.key[0] == made.key[0]


# === Who runs what ===


def made_plans(counts, reads_states=True):
    return [
        types.SimpleNamespace(
            path=f"{task}{number}",
            inputs={"task": task},
            presets={"llm_preset": ...} if reads_states else {},
        )
        for task, count in counts.items()
        for number in range(count)
    ]


def tasks_of(parts):
    return [{plan.inputs["task"] for plan in part} for part in parts]


def test_the_experiments_of_a_task_stay_together():
    parts = divide(made_plans({"a": 3, "b": 3, "c": 3, "d": 3}), [1, 1])
    assert not set.intersection(*tasks_of(parts)) and [len(part) for part in parts] == [6, 6]


def test_fewer_tasks_than_folders_are_divided():
    parts = divide(made_plans({"a": 8}), [1, 1])
    assert [len(part) for part in parts] == [4, 4]


def test_more_workers_get_more():
    parts = divide(made_plans(dict.fromkeys("abcdef", 2)), [2, 1])
    assert [len(part) for part in parts] == [8, 4]


@given(st.dictionaries(st.sampled_from("abcde"), st.integers(1, 6), min_size=1),
       st.lists(st.integers(1, 3), min_size=1, max_size=4), st.booleans())  # fmt: skip
def test_every_experiment_is_somebodys(counts, sizes, reads_states):
    plans = made_plans(counts, reads_states)
    parts = divide(plans, sizes)
    assert len(parts) == len(sizes)
    assert sorted(plan.path for part in parts for plan in part) == sorted(p.path for p in plans)


# === On Ray ===


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

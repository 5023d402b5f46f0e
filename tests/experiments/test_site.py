"""What is handed out to a cluster's workers, and in what order."""

import types

from hypothesis import given
from hypothesis import strategies as st

from embedder_helpers.experiments.plan import Outcome, Status
from embedder_helpers.experiments.site import MAX_ATTEMPTS, Job, Site, divide

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
    assert made.is_finished() and set(made.outcomes) == set(run)


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
    for _ in range(MAX_ATTEMPTS):
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

"""What an actor of a cluster does, here in this process."""

import json
from pathlib import Path

import pytest
from made_task import experiment, write_task

pytest.importorskip("ray", reason="Ray is an optional extra")

from embedder_helpers.experiments.plan import Status, plan_all  # noqa: E402
from embedder_helpers.experiments.remote import RemoteExecutor  # noqa: E402
from embedder_helpers.models import use_marks  # noqa: E402
from embedder_helpers.utils import shared_folders  # noqa: E402


@pytest.fixture
def made(tmp_path, monkeypatch):
    """An executor of one experiment, in the driver's folder of results or another, and its site.

    Closed in the end, also where a test fails: it hides this process's progress bars.
    """
    monkeypatch.setattr(use_marks, "_sweep", "alone")
    monkeypatch.chdir(Path.cwd())  # to come back in the end
    task = write_task(tmp_path / "task")
    one = experiment(task, epochs=1, states_dir="states")
    out = tmp_path / "out"
    out.mkdir()
    executors = []

    def make(is_shared):
        if is_shared:
            shared_folders.leave_file(out, "token")
        arguments = [one.as_dict()], str(tmp_path), str(out), "token", float("inf"), None
        executor = RemoteExecutor(*arguments)
        executors.append(executor)
        name = plan_all([one], out)[0].path.stem
        return executor, ((name,), (name,), 1e9), name

    yield make
    for executor in executors:
        executor.close()


def run(executor, site, name):
    for shard in executor.prepare(site, 0):
        executor.compute_shard(site, 0, shard)
    return executor.run(site, 0, name)


def test_what_a_machine_without_the_drivers_folder_writes_is_handed_over(made, tmp_path):
    executor, site, name = made(is_shared=False)
    outcome, texts = run(executor, site, name)
    assert outcome.status is Status.FINISHED and not executor.shares_results()
    assert set(texts) == {f"{name}.json", f"curves/{name}.csv"}
    assert json.loads(texts[f"{name}.json"])["scores"]
    folder = executor._folder
    executor.close()
    assert not folder.exists() and not any((tmp_path / "out").iterdir())


def test_a_result_that_was_finished_meanwhile_is_not_computed_again(made, tmp_path):
    executor, site, name = made(is_shared=True)
    outcome, texts = run(executor, site, name)
    assert outcome.status is Status.FINISHED and not texts and executor.shares_results()
    before = (tmp_path / "out" / f"{name}.json").stat().st_mtime_ns
    assert executor.run(site, 0, name)[0].status is Status.FINISHED
    assert (tmp_path / "out" / f"{name}.json").stat().st_mtime_ns == before
    executor.close()


def test_relative_paths_count_from_where_the_driver_works(made, tmp_path):
    executor, site, _ = made(is_shared=True)
    assert executor.capacity() > 0 and (tmp_path / "states").is_dir()
    executor.close()

"""Session: its end, the time that is left, and what an earlier one left."""

import dataclasses
import json
import math
import time
import types

import psutil
import pytest
from made_results import result

from embedder_helpers import platform, session
from embedder_helpers.config import InputError


@pytest.fixture
def kaggle(monkeypatch, tmp_path):
    """A Kaggle session whose inputs are in a folder of the test's."""
    monkeypatch.setattr(platform, "name", lambda: "kaggle")
    monkeypatch.setattr(platform, "KAGGLE_INPUTS", tmp_path / "input")
    return tmp_path / "input"


def test_ones_own_machine_has_no_end(monkeypatch):
    monkeypatch.setattr(platform, "name", lambda: "local")
    assert session.end() == math.inf
    assert session.has_time(session.end(), 1e9)


def test_hours_count_from_now():
    assert session.end(2) == pytest.approx(time.time() + 7200, abs=5)


def test_a_kaggle_session_ends_twelve_hours_after_its_machine_began(kaggle, monkeypatch):
    began = time.time() - 7200
    put_first_process(monkeypatch, began)
    assert session.end() == began + 12 * 3600 - session.RESERVE


def put_first_process(monkeypatch, began):
    process = types.SimpleNamespace(create_time=lambda: began)
    monkeypatch.setattr(session.psutil, "Process", lambda _: process)


def test_a_session_that_seems_to_have_ended_begins_now(kaggle, monkeypatch):
    put_first_process(monkeypatch, 0.0)
    assert session.end() == pytest.approx(time.time() + 12 * 3600 - session.RESERVE, abs=5)


def test_a_first_process_that_cannot_be_read_is_no_error(kaggle, monkeypatch):
    def refuse(_):
        raise psutil.AccessDenied

    monkeypatch.setattr(session.psutil, "Process", refuse)
    assert session.end() == pytest.approx(time.time() + 12 * 3600 - session.RESERVE, abs=5)


def test_elsewhere_the_first_process_is_not_looked_at(monkeypatch):
    monkeypatch.setattr(platform, "name", lambda: "colab")
    monkeypatch.setattr(session, "_start", lambda _: pytest.fail("looks"))
    assert session.end() == math.inf


@pytest.mark.parametrize("hours", [0, -1, True, "two"])
def test_impossible_hours_are_told(hours):
    with pytest.raises(InputError, match="hours is .*, but must be a number above 0"):
        session.end(hours)


def test_work_that_might_not_be_finished_has_no_time():
    until = time.time() + 100
    assert session.has_time(until, 100 / session.SLACK - 5)
    assert not session.has_time(until, 100 / session.SLACK + 5)


def leave(folder, name, content):
    folder.mkdir(parents=True)
    (folder / name).write_text(content)


FOUND = json.dumps(dataclasses.asdict(result(accuracy=0.9)))


def test_results_of_an_earlier_session_are_taken_by_their_names(kaggle, tmp_path):
    leave(kaggle / "notebooks" / "someone" / "layer-sweep" / "results", "one.json", FOUND)
    leave(kaggle / "another", "other.json", FOUND)
    wanted = [tmp_path / "one.json", tmp_path / "two.json"]
    assert session.bring(wanted) == 1
    assert json.loads(wanted[0].read_text())["scores"]["accuracy"] == 0.9
    assert sorted(path.name for path in tmp_path.glob("*.*")) == ["one.json"]


def test_an_embedder_of_an_earlier_session_comes_with_its_result(kaggle, tmp_path):
    leave(kaggle / "earlier", "one.json", FOUND)
    leave(kaggle / "earlier" / "embedder-one", "embedder.json", "{}")
    leave(kaggle / "earlier" / "embedder-one" / "gemma", "config.json", "{}")
    assert session.bring([tmp_path / "one.json"]) == 1
    assert (tmp_path / "embedder-one" / "gemma" / "config.json").is_file()
    assert not list(tmp_path.glob(".*.part"))


def test_a_damaged_file_is_passed_over_for_a_whole_one(kaggle, tmp_path):
    for folder, content in (("a", FOUND[:40]), ("b", FOUND), ("c", "{}")):
        leave(kaggle / folder, "one.json", content)
    assert session.bring([tmp_path / "one.json"]) == 1
    assert json.loads((tmp_path / "one.json").read_text())["scores"]["accuracy"] == 0.9


def test_elsewhere_nothing_is_looked_for(kaggle, tmp_path, monkeypatch):
    monkeypatch.setattr(platform, "name", lambda: "local")
    leave(kaggle / "earlier", "one.json", FOUND)
    assert session.bring([tmp_path / "one.json"]) == 0

"""Session: its end, the time that is left, and what an earlier one left."""

import math
import time

import pytest

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
    monkeypatch.setattr(session, "_start", lambda: 1000.0)
    assert session.end() == 1000 + 12 * 3600 - session.RESERVE


def test_the_machine_began_before_this_test():
    assert 0 < session._start() <= time.time()


@pytest.mark.parametrize("hours", [0, -1, True, "two"])
def test_impossible_hours_are_told(hours):
    with pytest.raises(InputError, match="hours is .*, but must be a number above 0"):
        session.end(hours)


def test_work_that_might_not_be_finished_has_no_time():
    until = time.time() + 100
    assert session.has_time(until, 100 / session.SLACK - 5)
    assert not session.has_time(until, 100 / session.SLACK + 5)


def leave(folder, name, content="{}"):
    folder.mkdir(parents=True)
    (folder / name).write_text(content)


def test_results_of_an_earlier_session_are_taken_by_their_names(kaggle, tmp_path):
    leave(kaggle / "notebooks" / "someone" / "layer-sweep" / "results", "one.json", "[1]")
    leave(kaggle / "another", "other.json")
    wanted = [tmp_path / "one.json", tmp_path / "two.json"]
    assert session.bring(wanted) == 1
    assert wanted[0].read_text() == "[1]"
    assert sorted(path.name for path in tmp_path.glob("*.*")) == ["one.json"]


def test_a_result_that_is_there_is_not_replaced(kaggle, tmp_path):
    leave(kaggle / "earlier", "one.json", "[1]")
    (tmp_path / "one.json").write_text("[2]")
    assert session.bring([tmp_path / "one.json"]) == 0
    assert (tmp_path / "one.json").read_text() == "[2]"


def test_elsewhere_nothing_is_looked_for(kaggle, tmp_path, monkeypatch):
    monkeypatch.setattr(platform, "name", lambda: "local")
    leave(kaggle / "earlier", "one.json")
    assert session.bring([tmp_path / "one.json"]) == 0

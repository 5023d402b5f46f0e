"""The session: its deadline, what fits it, and results restored from an earlier session."""

import json
import math
import time
import types

import numpy as np
import psutil
import pytest
from made_results import result

from embedder_helpers.errors import InputError
from embedder_helpers.experiments import session
from embedder_helpers.results.predictions import Predictions, read_predictions, write_predictions
from embedder_helpers.utils import environment


@pytest.fixture
def kaggle_inputs(monkeypatch, tmp_path):
    """The folder of inputs of a Kaggle session."""
    monkeypatch.setattr(environment, "platform_name", lambda: "kaggle")
    monkeypatch.setattr(environment, "KAGGLE_INPUTS", tmp_path / "input")
    return tmp_path / "input"


# The deadline


def test_a_local_machine_has_no_deadline(monkeypatch):
    monkeypatch.setattr(environment, "platform_name", lambda: "local")
    assert session.deadline() == math.inf
    assert session.fits_deadline(session.deadline(), 1e9)


def test_hours_count_from_now():
    assert session.deadline(2) == pytest.approx(time.time() + 7200, abs=5)


def start_machine_at(seconds, monkeypatch):
    process = types.SimpleNamespace(create_time=lambda: seconds)
    monkeypatch.setattr(session.psutil, "Process", lambda _: process)


def test_a_kaggle_session_ends_twelve_hours_after_its_machine_started(kaggle_inputs, monkeypatch):
    started = time.time() - 7200
    start_machine_at(started, monkeypatch)
    assert session.deadline() == started + 12 * 3600 - session.RESERVE


def test_a_session_that_appears_to_be_over_starts_now(kaggle_inputs, monkeypatch):
    start_machine_at(0.0, monkeypatch)
    assert session.deadline() == pytest.approx(time.time() + 12 * 3600 - session.RESERVE, abs=5)


def test_a_session_whose_first_process_cannot_be_read_starts_now(kaggle_inputs, monkeypatch):
    def refuse(_):
        raise psutil.AccessDenied

    monkeypatch.setattr(session.psutil, "Process", refuse)
    assert session.deadline() == pytest.approx(time.time() + 12 * 3600 - session.RESERVE, abs=5)


def test_the_first_process_is_read_on_kaggle_only(monkeypatch):
    monkeypatch.setattr(environment, "platform_name", lambda: "colab")
    monkeypatch.setattr(session, "_session_start", lambda _: pytest.fail("reads it"))
    assert session.deadline() == math.inf


@pytest.mark.parametrize("hours", [0, -1, True, "two"])
def test_hours_must_be_a_number_above_0(hours):
    with pytest.raises(InputError, match=f"hours is {hours!r}.*above 0"):
        session.deadline(hours)


def test_work_fits_the_deadline_with_some_slack():
    until = time.time() + 100
    assert session.fits_deadline(until, 100 / session.SLACK - 5)
    assert not session.fits_deadline(until, 100 / session.SLACK + 5)


# Results of an earlier session


STORED = json.dumps(result(accuracy=0.9).as_stored())


def write(folder, name, content):
    folder.mkdir(parents=True)
    (folder / name).write_text(content)


def accuracy(path):
    return json.loads(path.read_text())["scores"]["accuracy"]


def test_results_are_restored_by_their_names(kaggle_inputs, tmp_path):
    write(kaggle_inputs / "notebooks" / "someone" / "layer-sweep" / "results", "one.json", STORED)
    write(kaggle_inputs / "datasets" / "someone" / "another", "other.json", STORED)
    assert session.restore_results([tmp_path / "one.json", tmp_path / "two.json"]) == 1
    assert accuracy(tmp_path / "one.json") == 0.9
    assert [path.name for path in tmp_path.glob("*.*")] == ["one.json"]


def test_an_embedder_is_restored_with_its_result(kaggle_inputs, tmp_path):
    earlier = kaggle_inputs / "datasets" / "someone" / "earlier"
    write(earlier, "one.json", STORED)
    write(earlier / "embedder-one", "embedder.json", "{}")
    write(earlier / "embedder-one" / "gemma", "config.json", "{}")
    assert session.restore_results([tmp_path / "one.json"]) == 1
    assert (tmp_path / "embedder-one" / "gemma" / "config.json").is_file()
    assert not list(tmp_path.glob(".*"))


def test_a_damaged_result_is_passed_over_for_a_complete_one(kaggle_inputs, tmp_path):
    for folder, content in (("a", STORED[:40]), ("b", STORED), ("c", "{}")):
        write(kaggle_inputs / folder, "one.json", content)
    assert session.restore_results([tmp_path / "one.json"]) == 1
    assert accuracy(tmp_path / "one.json") == 0.9


def test_results_are_restored_on_kaggle_only(kaggle_inputs, tmp_path, monkeypatch):
    monkeypatch.setattr(environment, "platform_name", lambda: "local")
    write(kaggle_inputs / "earlier", "one.json", STORED)
    assert session.restore_results([tmp_path / "one.json"]) == 0


def test_predictions_are_restored_with_their_result(kaggle_inputs, tmp_path):
    earlier = kaggle_inputs / "earlier"
    write(earlier, "one.json", STORED)
    labels, logits = np.array([1, 0]), np.eye(2, dtype="float32")
    predictions = Predictions(np.array(["dry", "wet"]), labels, logits, labels[:1], logits[:1])
    write_predictions(predictions, earlier / "one.json")
    assert session.restore_results([tmp_path / "one.json"]) == 1
    restored = read_predictions(tmp_path / "one.json")
    for own, other in zip(restored, predictions, strict=True):
        np.testing.assert_array_equal(own, other)

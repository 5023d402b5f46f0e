"""Tracking: the CSV file of every training, each tracker, and trackers that fail."""

import json
import logging
import os
import sys

import keras
import numpy as np
import pandas as pd
import pytest
from made_results import result
from made_task import experiment

from embedder_helpers.errors import InputError
from embedder_helpers.experiments import tracking
from embedder_helpers.experiments.plan import plan_experiment
from embedder_helpers.experiments.training import TwoRateAdamW
from embedder_helpers.results.result import write_result
from embedder_helpers.results.tables import find_results

TRACKERS = ("tensorboard", "mlflow", "wandb")
KEY = "0123456789abcdef" * 3


@pytest.fixture(autouse=True)
def no_services(monkeypatch, tmp_path):
    """No test finds a user's keys, or reaches a service."""
    for name in [name for name in os.environ if name.startswith(("WANDB_", "MLFLOW_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("NETRC", str(tmp_path / "no netrc"))
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")


@pytest.fixture
def log(caplog):
    caplog.set_level(logging.INFO, "embedder_helpers")
    return caplog


def with_tracker(task_folder, tracker=None):
    return experiment(task_folder, kind="roberta_only", tracking=tracker)


def train(settings, path):
    """Trains a model of one layer for an experiment's epochs; returns each epoch's metrics."""
    model = keras.Sequential([keras.Input([3]), keras.layers.Dense(2, name="head")])
    optimizer = TwoRateAdamW()
    optimizer.learning_rate = 0.1
    model.compile(optimizer, "mse", metrics=["accuracy"], run_eagerly=True)
    data = np.random.default_rng(0).normal(size=(8, 3)), np.eye(2)[[0, 1] * 4]
    with tracking.tracking_callbacks(settings, path) as callbacks:
        history = model.fit(
            *data, validation_data=data, epochs=settings.epochs, callbacks=callbacks, verbose=0
        ).history
    epochs = zip(*history.values(), strict=True)
    return [dict(zip(history, epoch, strict=True)) for epoch in epochs]


def csv_rows(folder):
    """The epochs in the folder's only CSV file."""
    (path,) = (folder / "curves").iterdir()
    table = pd.read_csv(path)
    assert table.pop("epoch").tolist() == list(range(len(table)))
    return table.to_dict("records")


# The CSV file


def test_each_epoch_is_a_row_of_a_csv_file_of_the_results_name(task_folder, tmp_path):
    out = tmp_path / "out"
    history = train(with_tracker(task_folder), out / "one.json")
    assert len(history) == 2
    assert csv_rows(out) == [pytest.approx(epoch) for epoch in history]
    assert [path.name for path in out.rglob("*")] == ["curves", "one.csv"]


def test_without_a_result_file_nothing_is_recorded(task_folder):
    with tracking.tracking_callbacks(with_tracker(task_folder, "tensorboard"), None) as callbacks:
        assert callbacks == []


def test_a_training_that_is_killed_leaves_the_finished_epochs(task_folder, tmp_path, monkeypatch):
    def stop(self, epoch, logs=None):
        if epoch == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(keras.callbacks.CSVLogger, "on_epoch_begin", stop)
    with pytest.raises(KeyboardInterrupt):
        train(with_tracker(task_folder), tmp_path / "one.json")
    assert len(csv_rows(tmp_path)) == 1


# Checks before any work


@pytest.mark.parametrize("name", TRACKERS)
def test_a_tracker_that_is_not_installed_is_an_error(name, task_folder, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(InputError, match=f"tracking is '{name}'.*pip install {name}"):
        plan_experiment(with_tracker(task_folder, name), tmp_path)


def test_a_folder_named_wandb_is_not_its_library(task_folder, tmp_path, monkeypatch):
    (tmp_path / "path" / "wandb").mkdir(parents=True)
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    monkeypatch.setattr(sys, "path", [str(tmp_path / "path")])
    with pytest.raises(InputError, match="tracking.*wandb is not installed"):
        tracking.check_tracker(with_tracker(task_folder, "wandb"))


@pytest.fixture
def wandb_is_installed(tmp_path, monkeypatch):
    """A library of the name, which is all that planning looks for."""
    (tmp_path / "wandb").mkdir()
    (tmp_path / "wandb" / "__init__.py").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path))


def test_wandb_without_a_key_is_an_error(task_folder, tmp_path, monkeypatch, wandb_is_installed):
    monkeypatch.delenv("WANDB_MODE")
    settings = with_tracker(task_folder, "wandb")
    with pytest.raises(InputError, match="WANDB_API_KEY.*wandb login.*WANDB_MODE=offline"):
        plan_experiment(settings, tmp_path)
    (tmp_path / "no netrc").write_text("")  # as `wandb login` would
    tracking.check_tracker(settings)


def test_wandb_is_given_the_platforms_secret(
    task_folder, tmp_path, monkeypatch, wandb_is_installed, log
):
    monkeypatch.delenv("WANDB_MODE")
    monkeypatch.setenv("WANDB_API_KEY", "")  # so that it is reset at the end
    monkeypatch.setattr(
        "embedder_helpers.utils.environment._kaggle_secret", {"WANDB_API_KEY": KEY}.get
    )
    plan_experiment(with_tracker(task_folder, "wandb"), tmp_path)
    assert os.environ["WANDB_API_KEY"] == KEY
    assert KEY not in log.text


# What each tracker records


def test_tensorboard_shows_the_curves_of_the_last_attempt_only(task_folder, tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.util import tensor_util

    settings = with_tracker(task_folder, "tensorboard")
    for _ in range(2):
        history = train(settings, tmp_path / "one.json")
    for split, prefix in (("train", ""), ("validation", "val_")):
        events = EventAccumulator(str(tmp_path / "tensorboard" / "one" / split)).Reload()
        for metric in ("loss", "accuracy"):
            recorded = events.Tensors(f"epoch_{metric}")
            values = [float(tensor_util.make_ndarray(event.tensor_proto)) for event in recorded]
            assert [event.step for event in recorded] == [0, 1]
            assert values == pytest.approx([epoch[prefix + metric] for epoch in history])


def mlflow_run(mlflow, folder):
    """The client and the only run in the folder's database."""
    client = mlflow.MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
    project = client.get_experiment_by_name(tracking.PROJECT)
    (run,) = client.search_runs([project.experiment_id])
    return client, run


def test_mlflow_records_a_run_of_the_results_name(task_folder, tmp_path):
    mlflow = pytest.importorskip("mlflow")
    settings = with_tracker(task_folder, "mlflow")
    history = train(settings, tmp_path / "one.json")
    client, run = mlflow_run(mlflow, tmp_path)
    assert run.info.run_name == "one"
    assert run.info.status == "FINISHED"
    expected = {name: str(value) for name, value in settings.relevant_settings().items()}
    assert run.data.params.items() >= expected.items()
    for metric in history[0]:
        recorded = client.get_metric_history(run.info.run_id, metric)
        values = {one.step: one.value for one in recorded}
        assert values == pytest.approx({i: epoch[metric] for i, epoch in enumerate(history)})
    (artifact,) = (tmp_path / "mlflow").rglob("model_summary.txt")
    assert "head" in artifact.read_text()


def test_mlflow_marks_a_training_that_failed(task_folder, tmp_path):
    mlflow = pytest.importorskip("mlflow")
    settings, path = with_tracker(task_folder, "mlflow"), tmp_path / "one.json"
    with pytest.raises(InputError, match="diverged"):
        with tracking.tracking_callbacks(settings, path):
            raise InputError("training diverged")
    assert mlflow.active_run() is None
    _, run = mlflow_run(mlflow, tmp_path)
    assert run.info.status == "FAILED"


def test_wandb_records_a_run_of_the_results_name(task_folder, tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    runs, init = [], wandb.init
    monkeypatch.setattr(wandb, "init", lambda **keys: runs.append(init(**keys)) or runs[-1])
    settings = with_tracker(task_folder, "wandb")
    history = train(settings, tmp_path / "one.json")
    (run,) = runs
    assert run.name == "one" and run.project == tracking.PROJECT
    assert dict(run.config).items() >= settings.relevant_settings().items()
    assert wandb.run is None  # it was finished
    (file,) = (tmp_path / "wandb").glob("offline-run-*/run-*.wandb")
    content = file.read_bytes()
    for epoch in history:
        for metric, value in epoch.items():
            assert f"epoch/{metric}".encode() in content and repr(value).encode() in content


def test_wandb_ends_its_run_when_the_training_fails(task_folder, tmp_path):
    wandb = pytest.importorskip("wandb")
    settings, path = with_tracker(task_folder, "wandb"), tmp_path / "one.json"
    with pytest.raises(InputError, match="diverged"):
        with tracking.tracking_callbacks(settings, path) as callbacks:
            assert len(callbacks) == 2 and wandb.run.name == "one"
            raise InputError("training diverged")
    assert wandb.run is None


def test_the_files_of_trackers_are_not_results(tmp_path):
    path = tmp_path / "wandb" / "offline-run-1" / "files" / "wandb-metadata.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"os": "Linux"}))
    (tmp_path / "below").mkdir()
    write_result(result(), tmp_path / "below" / "one.json")
    assert list(find_results(tmp_path)) == ["one.json"]


# A tracker that fails


def broken_tensorboard(hook):
    """TensorBoard's callback as if its server could not be reached."""

    def fail(*args, **kwargs):
        raise OSError(f"no route to https://ann:secret@tracker.example with {KEY}")

    hooks = {"__init__": lambda self, *args, **kwargs: None, hook: fail}
    return type("Broken", (keras.callbacks.Callback,), hooks)


@pytest.mark.parametrize("hook", ["__init__", "set_model", "on_epoch_end", "on_train_end"])
def test_a_failing_tracker_is_reported_once_without_secrets_and_training_continues(
    hook, task_folder, tmp_path, monkeypatch, log
):
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setattr("keras.callbacks.TensorBoard", broken_tensorboard(hook))
    assert len(train(with_tracker(task_folder, "tensorboard"), tmp_path / "one.json")) == 2
    assert len(csv_rows(tmp_path)) == 2
    (message,) = [record.getMessage() for record in log.records]
    assert "tensorboard failed" in message
    assert "OSError: no route to https://tracker" in message
    assert KEY not in log.text and "secret" not in log.text


def test_a_tracker_that_fails_to_close_does_not_hide_an_error_of_the_training(log):
    class Tracker:
        def __enter__(self):
            return object()

        def __exit__(self, *error):
            raise OSError("not reachable")

    with pytest.raises(InputError, match="diverged"), tracking._FailSafe("one", Tracker()):
        raise InputError("training diverged")
    assert "one failed" in log.text


def test_an_mlflow_server_that_cannot_be_reached_is_reported_and_training_continues(
    task_folder, tmp_path, monkeypatch, log
):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://ann:secret@127.0.0.1:9")
    monkeypatch.setattr("mlflow.tracking._tracking_service.utils._tracking_uri", None)
    assert len(train(with_tracker(task_folder, "mlflow"), tmp_path / "one.json")) == 2
    assert mlflow.active_run() is None
    assert "mlflow failed" in log.text and "ann:secret" not in log.text

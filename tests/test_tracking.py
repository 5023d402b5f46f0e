import json
import os
import sys

import keras
import numpy as np
import pandas as pd
import pytest
from made_results import result
from made_task import experiment
from test_run import run

from embedder_helpers import sweep as sweep_module
from embedder_helpers import tracking
from embedder_helpers.config import InputError
from embedder_helpers.plan import plan
from embedder_helpers.report import results_in
from embedder_helpers.result import write_result

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


def quick(task_folder, **keys):
    return experiment(task_folder, kind="roberta_only", **keys)


def train(asked, path):
    """Trains a model of one layer as an experiment asks; gives each epoch's metrics."""
    from embedder_helpers.training import TwoRateAdamW

    model = keras.Sequential([keras.Input([3]), keras.layers.Dense(2, name="head")])
    rate = keras.optimizers.schedules.CosineDecay(0.1, 10)
    model.compile(TwoRateAdamW(rate, 2.0), "mse", metrics=["accuracy"])
    data = np.random.default_rng(0).normal(size=(8, 3)), np.eye(2)[[0, 1] * 4]
    with tracking.trackers(asked, path) as told:
        kept = model.fit(
            *data, validation_data=data, epochs=asked.epochs, callbacks=told, verbose=0
        )
    epochs = zip(*kept.history.values(), strict=True)
    return [dict(zip(kept.history, epoch, strict=True)) for epoch in epochs]


def result_name(out):
    (path,) = out.glob("*.json")
    return path.stem


def rows(out):
    """The epochs in the only CSV file."""
    (path,) = (out / "curves").iterdir()
    table = pd.read_csv(path)
    assert table.pop("epoch").tolist() == list(range(len(table)))
    return table.to_dict("records")


def test_each_epoch_is_a_row_of_a_file_of_the_results_name_and_no_tracker_is_told(
    task_folder, tmp_path
):
    out = tmp_path / "out"
    result = run(quick(task_folder), out)
    assert len(result.history) == 2
    assert rows(out) == [pytest.approx(epoch) for epoch in result.history]
    name = result_name(out)
    assert (out / "curves" / f"{name}.csv").is_file()
    assert {path.name for path in out.iterdir()} == {"curves", "results.csv", f"{name}.json"}


def test_a_training_that_is_killed_leaves_the_epochs_that_were_done(
    task_folder, tmp_path, monkeypatch
):
    def killed(self, epoch, logs=None):
        if epoch == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(keras.callbacks.CSVLogger, "on_epoch_begin", killed)
    with pytest.raises(KeyboardInterrupt):
        train(quick(task_folder), tmp_path / "one.json")
    assert len(rows(tmp_path)) == 1


def test_where_nothing_is_trained_there_is_no_curve(task_folder, tmp_path):
    run(experiment(task_folder, kind="gemma_only"), tmp_path / "out")
    assert not (tmp_path / "out" / "curves").exists()


@pytest.mark.parametrize("name", TRACKERS)
def test_a_library_that_is_absent_is_told_before_anything_runs(
    name, task_folder, tmp_path, monkeypatch
):
    monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delattr(sweep_module, "train_and_score")
    with pytest.raises(InputError, match=f"tracking is '{name}'.*pip install {name}"):
        run(quick(task_folder, tracking=name), tmp_path)


def test_a_folder_of_the_name_is_no_library(task_folder, tmp_path, monkeypatch):
    (tmp_path / "path" / "wandb").mkdir(parents=True)
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    monkeypatch.setattr(sys, "path", [str(tmp_path / "path")])
    with pytest.raises(InputError, match="wandb is not installed"):
        tracking.check(quick(task_folder, tracking="wandb"))


@pytest.fixture
def wandb_is_there(tmp_path, monkeypatch):
    """W&B's library, as far as planning sees it."""
    (tmp_path / "wandb").mkdir()
    (tmp_path / "wandb" / "__init__.py").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path))


def test_weights_and_biases_without_a_key_is_told_before_anything_runs(
    task_folder, tmp_path, monkeypatch, wandb_is_there
):
    monkeypatch.delenv("WANDB_MODE")
    asked = quick(task_folder, tracking="wandb")
    with pytest.raises(InputError, match="WANDB_API_KEY.*wandb login.*WANDB_MODE=offline"):
        plan(asked, tmp_path)
    (tmp_path / "no netrc").write_text("")  # as `wandb login` would
    tracking.check(asked)


def test_a_secret_of_the_platform_is_handed_to_weights_and_biases(
    task_folder, tmp_path, monkeypatch, wandb_is_there, capsys
):
    monkeypatch.delenv("WANDB_MODE")
    monkeypatch.setenv("WANDB_API_KEY", "")  # so that it is taken back at the end
    monkeypatch.setattr("embedder_helpers.platform._kaggle_secret", {"WANDB_API_KEY": KEY}.get)
    plan(quick(task_folder, tracking="wandb"), tmp_path)
    assert os.environ["WANDB_API_KEY"] == KEY
    assert KEY not in capsys.readouterr().out


# What each tracker keeps


def test_tensorboard_reads_the_curves_of_the_last_try_alone(task_folder, tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.util import tensor_util

    asked = quick(task_folder, tracking="tensorboard")
    for _ in range(2):
        history = train(asked, tmp_path / "one.json")
    for part, prefix in (("train", ""), ("validation", "val_")):
        events = EventAccumulator(str(tmp_path / "tensorboard" / "one" / part)).Reload()
        for metric in ("loss", "accuracy"):
            found = events.Tensors(f"epoch_{metric}")
            values = [float(tensor_util.make_ndarray(one.tensor_proto)) for one in found]
            assert [one.step for one in found] == [0, 1]
            assert values == pytest.approx([one[prefix + metric] for one in history])


def test_mlflow_keeps_a_run_of_the_results_name(task_folder, tmp_path):
    mlflow = pytest.importorskip("mlflow")
    asked = quick(task_folder, tracking="mlflow")
    history = train(asked, tmp_path / "one.json")
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    kept = client.get_experiment_by_name(tracking.PROJECT)
    (found,) = client.search_runs([kept.experiment_id])
    assert found.info.run_name == "one"
    assert found.info.status == "FINISHED"
    assert found.data.params.items() >= {k: str(v) for k, v in asked.determining().items()}.items()
    for metric in history[0]:
        values = {
            one.step: one.value for one in client.get_metric_history(found.info.run_id, metric)
        }
        assert values == pytest.approx({i: one[metric] for i, one in enumerate(history)})
    (artifact,) = (tmp_path / "mlflow").rglob("model_summary.txt")
    assert "head" in artifact.read_text()


def test_mlflow_marks_a_training_that_failed(task_folder, tmp_path):
    mlflow = pytest.importorskip("mlflow")
    path = tmp_path / "one.json"
    with pytest.raises(InputError, match="diverged"):
        with tracking.trackers(quick(task_folder, tracking="mlflow"), path):
            raise InputError("training diverged")
    assert mlflow.active_run() is None
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    (found,) = client.search_runs([client.get_experiment_by_name(tracking.PROJECT).experiment_id])
    assert found.info.status == "FAILED"


def test_weights_and_biases_keeps_a_run_of_the_results_name(task_folder, tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    begun, init = [], wandb.init
    monkeypatch.setattr(wandb, "init", lambda **keys: begun.append(init(**keys)) or begun[-1])
    asked = quick(task_folder, tracking="wandb")
    history = train(asked, tmp_path / "one.json")
    (kept,) = begun
    assert kept.name == "one" and kept.project == tracking.PROJECT
    assert dict(kept.config).items() >= asked.determining().items()
    assert wandb.run is None  # it was finished
    (file,) = (tmp_path / "wandb").glob("offline-run-*/run-*.wandb")
    content = file.read_bytes()
    for epoch in history:
        for metric, value in epoch.items():
            assert f"epoch/{metric}".encode() in content and repr(value).encode() in content


def test_a_run_of_weights_and_biases_ends_where_the_training_fails(task_folder, tmp_path):
    wandb = pytest.importorskip("wandb")
    with pytest.raises(InputError, match="diverged"):
        with tracking.trackers(quick(task_folder, tracking="wandb"), tmp_path / "one.json") as told:
            assert len(told) == 2 and wandb.run.name == "one"
            raise InputError("training diverged")
    assert wandb.run is None


def test_what_trackers_keep_is_no_result(tmp_path):
    path = tmp_path / "wandb" / "offline-run-1" / "files" / "wandb-metadata.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"os": "Linux"}))
    (tmp_path / "below").mkdir()
    write_result(result(), tmp_path / "below" / "one.json")
    assert list(results_in(tmp_path)) == ["one.json"]


# A tracker that fails


def broken(where):
    """TensorBoard's callback, had it a server that is gone."""

    def fail(*arguments, **keys):
        raise OSError(f"no way to https://ann:secret@tracker.example with {KEY}")

    hooks = {"__init__": lambda self, *arguments, **keys: None, where: fail}
    return type("Broken", (keras.callbacks.Callback,), hooks)


@pytest.mark.parametrize("where", ["__init__", "set_model", "on_epoch_end", "on_train_end"])
def test_a_tracker_that_fails_is_told_once_without_secrets_and_training_goes_on(
    where, task_folder, tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setattr("keras.callbacks.TensorBoard", broken(where))
    assert len(train(quick(task_folder, tracking="tensorboard"), tmp_path / "one.json")) == 2
    assert len(rows(tmp_path)) == 2
    printed = capsys.readouterr().out
    told = "tensorboard failed, so training goes on without it: OSError: no way to https://tracker"
    assert printed.count(told) == 1
    assert KEY not in printed and "secret" not in printed


def test_a_tracker_that_fails_to_end_hides_no_error_of_the_training(tmp_path, capsys):
    class Opening:
        def __enter__(self):
            return object()

        def __exit__(self, *error):
            raise OSError("gone")

    with pytest.raises(InputError, match="diverged"), tracking._Harmless("one", Opening()):
        raise InputError("training diverged")
    assert "one failed" in capsys.readouterr().out


def test_an_mlflow_server_that_is_not_there_is_told_and_training_goes_on(
    task_folder, tmp_path, monkeypatch, capsys
):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://ann:secret@127.0.0.1:9")
    monkeypatch.setattr("mlflow.tracking._tracking_service.utils._tracking_uri", None)
    assert len(train(quick(task_folder, tracking="mlflow"), tmp_path / "one.json")) == 2
    assert mlflow.active_run() is None
    printed = capsys.readouterr().out
    assert "mlflow failed" in printed and "ann:secret" not in printed

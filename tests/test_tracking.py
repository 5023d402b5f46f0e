import json
import os
import sys

import pandas as pd
import pytest
from made_task import experiment
from test_run import run

from embedder_helpers import sweep as sweep_module
from embedder_helpers import tracking
from embedder_helpers.config import InputError
from embedder_helpers.plan import plan
from embedder_helpers.report import results_in

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


def result_name(out):
    (path,) = out.glob("*.json")
    return path.stem


def rows(out):
    """The epochs in the only CSV file."""
    (path,) = (out / "curves").iterdir()
    table = pd.read_csv(path)
    assert table.pop("epoch").tolist() == list(range(len(table)))
    return table.to_dict("records")


def test_each_epoch_is_a_row_of_a_file_of_the_results_name(task_folder, tmp_path):
    result = run(quick(task_folder), tmp_path / "out")
    (path,) = (tmp_path / "out" / "curves").iterdir()
    assert path.name == f"{result_name(tmp_path / 'out')}.csv"
    assert len(result.history) == 2
    assert rows(tmp_path / "out") == [pytest.approx(epoch) for epoch in result.history]


def test_a_training_that_is_killed_leaves_the_epochs_that_were_done(
    task_folder, tmp_path, monkeypatch
):
    def killed(self, epoch, logs=None):
        if epoch == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr("embedder_helpers.training.Progress.on_epoch_begin", killed, raising=False)
    with pytest.raises(KeyboardInterrupt):
        run(quick(task_folder), tmp_path / "out")
    assert len(rows(tmp_path / "out")) == 1 and not list((tmp_path / "out").glob("*.json"))


def test_nothing_else_is_written_unless_it_is_asked_for(task_folder, tmp_path):
    run(quick(task_folder, epochs=1), tmp_path / "out")
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"curves", "results.csv", f"{result_name(tmp_path / 'out')}.json"}


def test_where_nothing_is_trained_there_is_no_curve(task_folder, tmp_path):
    run(experiment(task_folder, kind="gemma_only"), tmp_path / "out")
    assert not (tmp_path / "out" / "curves").exists()


@pytest.mark.parametrize("name", TRACKERS)
def test_a_library_that_is_absent_is_told_before_anything_runs(
    name, task_folder, tmp_path, monkeypatch
):
    monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delattr(sweep_module, "run")
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
    name = plan(asked, tmp_path / "out").path.stem
    for attempt in (1, 2):
        result = run(asked, tmp_path / "out")
        if attempt == 1:
            (tmp_path / "out" / f"{name}.json").unlink()
    for part, prefix in (("train", ""), ("validation", "val_")):
        events = EventAccumulator(str(tmp_path / "out" / "tensorboard" / name / part)).Reload()
        for metric in ("loss", "accuracy"):
            found = events.Tensors(f"epoch_{metric}")
            values = [float(tensor_util.make_ndarray(one.tensor_proto)) for one in found]
            assert [one.step for one in found] == [0, 1]
            assert values == pytest.approx([one[prefix + metric] for one in result.history])


def test_mlflow_keeps_a_run_of_the_results_name(task_folder, tmp_path):
    mlflow = pytest.importorskip("mlflow")
    asked = quick(task_folder, tracking="mlflow")
    result = run(asked, tmp_path / "out")
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path / 'out' / 'mlflow.db'}")
    kept = client.get_experiment_by_name(tracking.PROJECT)
    (found,) = client.search_runs([kept.experiment_id])
    assert found.info.run_name == result_name(tmp_path / "out")
    assert found.info.status == "FINISHED"
    assert found.data.params.items() >= {k: str(v) for k, v in asked.determining().items()}.items()
    for metric in result.history[0]:
        values = {
            one.step: one.value for one in client.get_metric_history(found.info.run_id, metric)
        }
        assert values == pytest.approx({i: one[metric] for i, one in enumerate(result.history)})
    (artifact,) = (tmp_path / "out" / "mlflow").rglob("model_summary.txt")
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
    result = run(asked, tmp_path / "out")
    (file,) = (tmp_path / "out" / "wandb").glob("offline-run-*/run-*.wandb")
    assert file.stat().st_size > 0
    (kept,) = begun
    assert kept.name == result_name(tmp_path / "out") and kept.project == tracking.PROJECT
    assert dict(kept.config).items() >= asked.determining().items()
    assert wandb.run is None  # it was finished
    for metric, value in result.history[-1].items():
        assert kept.summary[f"epoch/{metric}"] == pytest.approx(value)


def test_a_run_of_weights_and_biases_ends_where_the_training_fails(task_folder, tmp_path):
    wandb = pytest.importorskip("wandb")
    with pytest.raises(InputError, match="diverged"):
        with tracking.trackers(quick(task_folder, tracking="wandb"), tmp_path / "one.json") as told:
            assert len(told) == 2 and wandb.run.name == "one"
            raise InputError("training diverged")
    assert wandb.run is None


def test_what_trackers_keep_is_no_result(task_folder, tmp_path):
    run(quick(task_folder, epochs=1), tmp_path / "out" / "below")
    path = tmp_path / "out" / "below" / "wandb" / "offline-run-1" / "files" / "wandb-metadata.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"os": "Linux"}))
    assert list(results_in(tmp_path / "out")) == [result_name(tmp_path / "out" / "below") + ".json"]


# A tracker that fails


def broken(where):
    """Puts TensorBoard's callback in the place of one that fails somewhere."""
    import keras

    def fail(*arguments):
        raise OSError(f"no way to https://ann:secret@tracker.example with {KEY}")

    return type("Broken", (keras.callbacks.Callback,), {where: fail})


@pytest.mark.parametrize("where", ["__init__", "set_model", "on_epoch_end", "on_train_end"])
def test_a_tracker_that_fails_is_told_once_without_secrets_and_training_goes_on(
    where, task_folder, tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setattr(tracking, "check", lambda experiment: None)
    monkeypatch.setattr("keras.callbacks.TensorBoard", broken(where))
    result = run(quick(task_folder, tracking="tensorboard"), tmp_path / "out")
    assert len(result.history) == len(rows(tmp_path / "out")) == 2
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
    result = run(quick(task_folder, tracking="mlflow", epochs=1), tmp_path / "out")
    assert len(result.history) == 1 and mlflow.active_run() is None
    printed = capsys.readouterr().out
    assert "mlflow failed" in printed and "ann:secret" not in printed

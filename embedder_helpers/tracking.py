"""Tracking: how each epoch of a training went, in a CSV file and, if asked for, with a tracker.

A row is written as its epoch ends, so a run that is killed leaves its curve. Trackers are for eyes:
nothing here is read back, and no failure of theirs ends a training.
"""

import contextlib
import functools
import importlib.util
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from embedder_helpers import platform
from embedder_helpers.config import Experiment, InputError

if TYPE_CHECKING:  # brings in Keras, seconds that a mistake should not wait for
    from keras.callbacks import Callback

PROJECT = "embedder-gemma-roberta"  # what runs are gathered under, unless a variable names another
SECRETS = ("WANDB_API_KEY", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN")


def check(experiment: Experiment) -> None:
    """Tells before anything long starts if the tracker that is asked for cannot be used.

    Raises:
        InputError: its library is absent, or nothing lets it log in.
    """
    name = experiment.tracking
    if name is None:
        return
    found = importlib.util.find_spec(name)
    if found is None or found.origin is None:  # W&B makes a folder `wandb`, which is no library
        raise InputError(
            f"tracking is {name!r}, but {name} is not installed: run `pip install {name}`, or "
            "leave tracking out"
        )
    if name == "wandb" and not _has_wandb_login():
        raise InputError(
            "tracking is 'wandb', but there is no key to log in with: give WANDB_API_KEY as a "
            "variable or as a secret of Kaggle or Colab, run `wandb login`, or set "
            "WANDB_MODE=offline"
        )


def _has_wandb_login() -> bool:
    """Whether W&B will not have to ask for a key; the user's secret is handed on to it."""
    if key := platform.secret("WANDB_API_KEY"):
        os.environ["WANDB_API_KEY"] = key
    offline = os.environ.get("WANDB_MODE", "online") != "online"
    # `wandb login` writes the second.
    files = os.environ.get("WANDB_IDENTITY_TOKEN_FILE"), os.environ.get("NETRC", "~/.netrc")
    return bool(key) or offline or any(Path(one).expanduser().is_file() for one in files if one)


@contextlib.contextmanager
def trackers(experiment: Experiment, path: Path | None) -> Iterator[list["Callback"]]:
    """The callbacks that a training tells of its epochs; their runs end with the context.

    Args:
        experiment: what is trained.
        path: of the result file: the trackers' own files go beside it, under its name; None:
            of a training without one, nobody is told.
    """
    if path is None:
        yield []
        return
    asked = {"tensorboard": _tensorboard, "mlflow": _mlflow, "wandb": _wandb}
    opened = [_Harmless("CSV", _csv(path))]
    if experiment.tracking:
        opening = asked[experiment.tracking](experiment, path)
        opened.append(_Harmless(experiment.tracking, opening))
    with contextlib.ExitStack() as stack:
        yield [callback for one in opened for callback in stack.enter_context(one)]


@contextlib.contextmanager
def _csv(path: Path) -> Iterator["Callback"]:
    import keras

    folder = path.parent / "curves"
    folder.mkdir(parents=True, exist_ok=True)
    yield keras.callbacks.CSVLogger(folder / f"{path.stem}.csv")


@contextlib.contextmanager
def _tensorboard(experiment: Experiment, path: Path) -> Iterator["Callback"]:
    import keras

    folder = path.parent / "tensorboard" / path.stem
    shutil.rmtree(folder, ignore_errors=True)  # the curve of an earlier try would be drawn into it
    yield keras.callbacks.TensorBoard(folder, write_graph=False)


@contextlib.contextmanager
def _mlflow(experiment: Experiment, path: Path) -> Iterator["Callback"]:
    import mlflow.keras

    if not os.environ.get("MLFLOW_TRACKING_URI"):
        _keep_mlflow_in(path.parent.resolve())
    with mlflow.start_run(run_name=path.stem):
        mlflow.log_params(experiment.determining())
        try:
            yield mlflow.keras.MlflowCallback()
        finally:
            mlflow.flush_async_logging()


def _keep_mlflow_in(folder: Path) -> None:
    """A database in the folder, for MLflow 3 has given up keeping runs in plain files."""
    import mlflow

    mlflow.set_tracking_uri(f"sqlite:///{folder / 'mlflow.db'}")
    name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
    if mlflow.get_experiment_by_name(name) is None:
        with contextlib.suppress(mlflow.MlflowException):  # another process was faster
            mlflow.create_experiment(name, (folder / "mlflow").as_uri())
    mlflow.set_experiment(name)


@contextlib.contextmanager
def _wandb(experiment: Experiment, path: Path) -> Iterator["Callback"]:
    import wandb
    from wandb.integration.keras import WandbMetricsLogger

    project, config = os.environ.get("WANDB_PROJECT", PROJECT), experiment.determining()
    with wandb.init(project=project, name=path.stem, config=config, dir=path.parent):
        yield WandbMetricsLogger()


class _Harmless:
    """Opens a tracker and closes it; its first failure is told, then it is left alone.

    Args:
        name: of the tracker, for the message.
        opening: gives its callback.
    """

    def __init__(self, name: str, opening: AbstractContextManager["Callback"]):
        self.name = name
        self.opening = opening
        self.failed = False

    def __enter__(self) -> list["Callback"]:
        callback = self._try(self.opening.__enter__)
        if callback is None:
            return []
        for name in dir(callback):
            if name.startswith("on_") or name == "set_model":
                setattr(callback, name, self._guarded(getattr(callback, name)))
        return [callback]

    def __exit__(self, *error: Any) -> None:
        self._try(self.opening.__exit__, *error)

    def _guarded(self, hook: Callable) -> Callable:
        @functools.wraps(hook)  # Keras reads there whether it does nothing, which is faster
        def guarded(*args, **keys):
            if not self.failed:
                self._try(hook, *args, **keys)

        return guarded

    def _try(self, act: Callable, *args: Any, **keys: Any) -> Any:
        try:
            return act(*args, **keys)
        except Exception as error:
            if not self.failed:
                reason = f"{type(error).__name__}: {_without_secrets(error)}"
                platform.say(f"  {self.name} failed, so training goes on without it: {reason}")
            self.failed = True


def _without_secrets(error: Exception) -> str:
    """The error's text on one line, without keys and without the user in an address."""
    text = re.sub(r"//[^/\s]*@", "//", " ".join(str(error).split()))
    for secret in filter(None, map(os.environ.get, SECRETS)):
        text = text.replace(secret, "***")
    return text

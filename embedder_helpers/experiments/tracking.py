"""Tracking: the metrics of every training epoch, in a CSV file and, if asked for, in a tracker.

A row is written as its epoch ends, so a run that is killed leaves its curve. Nothing here is read
back, and no failure of a tracker ends a training.
"""

import contextlib
import functools
import importlib.util
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from embedder_helpers.config import Experiment
from embedder_helpers.errors import MAX_MESSAGE, InputError, redact, shorten
from embedder_helpers.utils import environment

if TYPE_CHECKING:
    from keras.callbacks import Callback

logger = logging.getLogger(__name__)

PROJECT = "embedder-gemma-roberta"  # the trackers' project, unless a variable names another


def check_tracker(experiment: Experiment) -> None:
    """Check that the experiment's tracker can be used, before any long work.

    Raises:
        InputError: its library is not installed, or it has no way to log in.
    """
    name = experiment.tracking
    if name is None:
        return
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:  # W&B makes a folder `wandb`, which is no library
        raise InputError(
            f"tracking is {name!r}, but {name} is not installed: run `pip install {name}`, or "
            "leave tracking out"
        )
    if name == "wandb" and not _has_wandb_login():
        environment.forget_secrets()  # one may be added now, before another try
        raise InputError(
            "tracking is 'wandb', but there is no key to log in with: set WANDB_API_KEY as a "
            "variable or as a secret of Kaggle or Colab, run `wandb login`, or set "
            "WANDB_MODE=offline"
        )


def _has_wandb_login() -> bool:
    """Whether W&B will not have to ask for a key; a secret of the platform is passed on to it."""
    if key := environment.get_secret("WANDB_API_KEY"):
        os.environ["WANDB_API_KEY"] = key
    is_offline = os.environ.get("WANDB_MODE", "online") != "online"
    # `wandb login` writes the second.
    files = os.environ.get("WANDB_IDENTITY_TOKEN_FILE"), os.environ.get("NETRC", "~/.netrc")
    return bool(key) or is_offline or any(Path(one).expanduser().is_file() for one in files if one)


@contextlib.contextmanager
def tracking_callbacks(experiment: Experiment, path: Path | None) -> Iterator[list["Callback"]]:
    """Keras callbacks that record each epoch; the trackers' runs end with the context.

    Args:
        experiment: to train.
        path: of the result file; the trackers' own files go beside it, under its name. None: of a
            training without a result file, nothing is recorded.
    """
    if path is None:
        yield []
        return
    open_tracker = {"tensorboard": _tensorboard, "mlflow": _mlflow, "wandb": _wandb}
    trackers = [_FailSafe("CSV", _csv(path))]
    if name := experiment.tracking:
        trackers.append(_FailSafe(name, open_tracker[name](experiment, path)))
    with contextlib.ExitStack() as stack:
        yield [callback for tracker in trackers for callback in stack.enter_context(tracker)]


@contextlib.contextmanager
def _csv(path: Path) -> Iterator["Callback"]:
    import keras

    folder = path.parent / "curves"
    folder.mkdir(parents=True, exist_ok=True)
    logger = keras.callbacks.CSVLogger(folder / f"{path.stem}.csv")
    try:
        yield logger
    finally:
        logger.on_train_end()  # closes the file of a training that failed


@contextlib.contextmanager
def _tensorboard(experiment: Experiment, path: Path) -> Iterator["Callback"]:
    import keras

    folder = path.parent / "tensorboard" / path.stem
    shutil.rmtree(folder, ignore_errors=True)  # else an earlier attempt's curve is in the same plot
    yield keras.callbacks.TensorBoard(folder, write_graph=False)


@contextlib.contextmanager
def _mlflow(experiment: Experiment, path: Path) -> Iterator["Callback"]:
    import mlflow.keras

    if not os.environ.get("MLFLOW_TRACKING_URI"):
        _use_local_mlflow(path.parent.resolve())
    with mlflow.start_run(run_name=path.stem):
        mlflow.log_params(experiment.relevant_settings())
        try:
            yield mlflow.keras.MlflowCallback()
        finally:
            mlflow.flush_async_logging()


def _use_local_mlflow(folder: Path) -> None:
    """Make MLflow use a database in the folder, since MLflow 3 no longer keeps runs in files."""
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

    project, config = os.environ.get("WANDB_PROJECT", PROJECT), experiment.relevant_settings()
    with wandb.init(project=project, name=path.stem, config=config, dir=path.parent):
        yield WandbMetricsLogger()


class _FailSafe:
    """Opens and closes a tracker; its first failure is logged, and it is not used afterwards.

    Args:
        name: of the tracker, for the message.
        tracker: context that yields its callback.
    """

    def __init__(self, name: str, tracker: AbstractContextManager["Callback"]):
        self.name = name
        self.tracker = tracker
        self.failed = False

    def __enter__(self) -> list["Callback"]:
        callback = self._try(self.tracker.__enter__)
        if callback is None:
            return []
        for name in dir(callback):
            if name.startswith("on_") or name == "set_model":
                setattr(callback, name, self._guarded(getattr(callback, name)))
        return [callback]

    def __exit__(self, *error: Any) -> None:
        self._try(self.tracker.__exit__, *error)

    def _guarded(self, hook: Callable) -> Callable:
        @functools.wraps(hook)  # Keras skips hooks that are marked as doing nothing
        def guarded(*args, **kwargs):
            if not self.failed:
                self._try(hook, *args, **kwargs)

        return guarded

    def _try(self, act: Callable, *args: Any, **kwargs: Any) -> Any:
        try:
            return act(*args, **kwargs)
        except Exception as error:
            if not self.failed:
                text = " ".join(redact(str(error)).split())
                reason = shorten(f"{type(error).__name__}: {text}", MAX_MESSAGE)
                logger.warning(
                    "  %s failed, so training continues without it: %s", self.name, reason
                )
            self.failed = True

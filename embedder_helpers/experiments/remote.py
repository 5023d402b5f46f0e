"""An actor of a cluster: runs the parts of a sweep that the driver hands out."""

import collections
import contextlib
import logging
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray

from embedder_helpers.config import make_experiment
from embedder_helpers.errors import InputError
from embedder_helpers.models import use_marks
from embedder_helpers.utils import environment, progress, shared_folders
from embedder_helpers.utils.files import writable_folder

if TYPE_CHECKING:
    import numpy as np

    from embedder_helpers.experiments.executor import Executor
    from embedder_helpers.experiments.plan import Plan

LOG_LINES = 1000  # that are kept until the driver asks for them
MAX_RETRIES = 3  # of what is asked before the work begins, if the process dies


class RemoteExecutor:
    """An `Executor` in a process of its own, which Ray starts again if it dies.

    So no method relies on what another one did: each gets the names of the site's experiments, from
    which everything follows.

    Args:
        experiments: settings of each of the sweep's experiments.
        directory: in which the driver works, and from which relative paths count.
        folder: for the results, if this machine shares it with the driver.
        token: of the sweep, whose driver has left a file in that folder (`shared_folders`).
        until: deadline in seconds since 1970.
        num_cpus: that it may compute with; None: all.
    """

    def __init__(
        self,
        experiments: Sequence[dict[str, Any]],
        directory: str,
        folder: str,
        token: str,
        until: float,
        num_cpus: int | None,
    ):
        with contextlib.suppress(OSError):  # there is none here, and only absolute paths count
            os.chdir(directory)
        if num_cpus:  # read when TensorFlow is imported
            for name in ("OMP_NUM_THREADS", "TF_NUM_INTRAOP_THREADS"):
                os.environ[name] = str(num_cpus)
        self._lines: collections.deque[tuple[int, str]] = collections.deque(maxlen=LOG_LINES)
        package = logging.getLogger("embedder_helpers")
        package.setLevel(logging.INFO)
        package.addHandler(_Collector(self._lines))
        use_marks.join_sweep(token)
        self._experiments, self._until, self._token = experiments, until, token
        self._is_shared = shared_folders.sees_file(Path(folder), token)
        self._own_folder = None if self._is_shared else tempfile.TemporaryDirectory()
        self._folder = Path(self._own_folder.name if self._own_folder else folder)
        self._stack = contextlib.ExitStack()
        self._site: tuple[Any, ...] | None = None
        self._plans: dict[str, Plan] = {}
        self._executor: Executor | None = None

    @ray.method(concurrency_group="log")
    def take_log(self) -> list[tuple[int, str]]:
        """Levels and texts of the log lines since the last call."""
        lines = []
        with contextlib.suppress(IndexError):
            while True:
                lines.append(self._lines.popleft())
        return lines

    @ray.method(max_task_retries=MAX_RETRIES)
    def shares_results(self) -> bool:
        """Whether this machine has the driver's folder of results."""
        return self._is_shared

    @ray.method(max_task_retries=MAX_RETRIES)
    def leave_token(self, token: str) -> None:
        """Leave a file in the folder of hidden states, for other machines that share it to see."""
        shared_folders.leave_file(self._states_folder(), token)

    @ray.method(max_task_retries=MAX_RETRIES)
    def sees_token(self, token: str) -> bool:
        """Whether another machine's file is there."""
        return shared_folders.sees_file(self._states_folder(), token)

    @ray.method(max_task_retries=MAX_RETRIES)
    def remove_token(self, token: str) -> None:
        """Remove it."""
        shared_folders.remove_file(self._states_folder(), token)

    @ray.method(max_task_retries=MAX_RETRIES)
    def capacity(self) -> float:
        """Bytes that hidden states can take in their folder."""
        from embedder_helpers.models.hidden_states import HiddenStateCache

        limits = [settings["states_gigabytes"] for settings in self._experiments]
        limit = min((one for one in limits if one is not None), default=None)
        return HiddenStateCache(self._states_folder(), limit).capacity()

    def batches(self, site: tuple) -> list[tuple[bool, list[tuple[str, int]]]]:
        """What a site has to do, batch by batch.

        Args:
            site: names of all its experiments, names of those to run, and bytes of hidden states
                that fit its folder.

        Returns:
            For each batch, whether it reads hidden states, and the names of its experiments, each
            with a number that those have in common that share a compiled model.

        Raises:
            InputError: this machine lacks a model or data.
        """
        from embedder_helpers.experiments.reuse import by_architecture, classifier_key

        keys: dict[tuple, int] = {}
        return [
            (
                batch.gemma is not None,
                [
                    (plan.path.stem, keys.setdefault(classifier_key(plan), len(keys)))
                    for plan in by_architecture(batch.plans)
                ],
            )
            for batch in self._at(site).batches
        ]

    def prepare(self, site: tuple, batch: int) -> "list[np.ndarray] | None":
        """As `Executor.prepare`; what the site's processes read of the batch before may go."""
        executor = self._at(site)
        use_marks.remove_marks(executor.batches[batch].cache.folder, self._token)
        with _own_keras_state():
            return executor.prepare(executor.batches[batch])

    def compute_shard(self, site: tuple, batch: int, shard: "np.ndarray") -> None:
        """As `Executor.compute_shard`."""
        executor = self._at(site)
        with _own_keras_state():
            executor.compute_shard(executor.batches[batch], shard)

    def run(self, site: tuple, batch: int, name: str) -> tuple[tuple, dict[str, str]]:
        """As `Executor.run`; what it wrote too, by path in the folder, if the driver lacks it."""
        executor = self._at(site)
        with _own_keras_state():
            outcome = executor.run(executor.batches[batch], self._plans[name])
        written = [] if self._is_shared else self._folder.rglob(f"{name}.*")
        texts = {
            path.relative_to(self._folder).as_posix(): path.read_text(encoding="utf-8")
            for path in written
        }
        return outcome, texts

    def close(self) -> None:
        """Leave nothing behind."""
        self._stack.close()
        if self._own_folder:
            self._own_folder.cleanup()
        use_marks.own_mark(self._states_folder()).remove()

    def _at(self, site: tuple) -> "Executor":
        """The executor of a site; built when the site is another one than before."""
        if self._site != site:
            self._build(site)
        return self._executor

    def _build(self, site: tuple) -> None:
        from embedder_helpers.experiments.executor import make_executor
        from embedder_helpers.experiments.plan import plan_all

        names, todo, capacity = site
        self._stack.close()
        plans = plan_all([make_experiment(one, "sweep") for one in self._experiments], self._folder)
        self._plans = {plan.path.stem: plan for plan in plans}
        if missing := set(names) - self._plans.keys():
            raise InputError(
                f"this machine has other models, data or versions than the driver: "
                f"{len(missing)} experiments would have another name"
            )
        paths = {self._plans[name].path for name in todo}
        self._stack.enter_context(progress.show_bars(False))
        self._executor = self._stack.enter_context(
            make_executor([self._plans[name] for name in names], paths, self._until, capacity)
        )
        self._site = site

    def _states_folder(self) -> Path:
        folders = [settings["states_dir"] for settings in self._experiments]
        folder = next(filter(None, folders), environment.states_folder())
        return writable_folder(folder, "states_dir")


class _Collector(logging.Handler):
    def __init__(self, lines: collections.deque[tuple[int, str]]):
        super().__init__()
        self._lines = lines

    def emit(self, record: logging.LogRecord) -> None:
        self._lines.append((record.levelno, record.getMessage()))


def _own_keras_state() -> contextlib.AbstractContextManager:
    from embedder_helpers.utils.keras_state import own_keras_state

    return own_keras_state()

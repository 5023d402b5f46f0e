"""Several GPUs, a process for each: how a sweep's work is divided.

Every process computes the hidden states of its shard of the texts, then claims experiments that no
other process has claimed. A claim is a file lock, which the operating system frees when a process
dies, so that its work falls to the others.
"""

import contextlib
import json
import logging
import math
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import filelock

from embedder_helpers.config import Experiment
from embedder_helpers.errors import MAX_MESSAGE, InputError, redact, shorten
from embedder_helpers.experiments.plan import Plan
from embedder_helpers.utils import environment
from embedder_helpers.utils.files import PACKAGE, atomic_write

logger = logging.getLogger(__name__)

# With which a worker's lines begin: other numbers are a library's.
LEVELS = {str(level) for level in (logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR)}


@dataclass(frozen=True)
class Worker:
    """One process of a sweep.

    Attributes:
        number: of this process, from 0.
        count: of processes.
        claims: folder of the locks; None: there is only one process.
        failures: why experiments failed, by name, as far as this process knows.
    """

    number: int = 0
    count: int = 1
    claims: Path | None = None
    failures: dict[str, str] = field(default_factory=dict)

    def claim(self, plans: Sequence[Plan]) -> Iterator[Plan]:
        """Plans that no other process runs, then those another one claimed and did not finish."""
        if not self.claims:
            yield from plans
            return
        claimed = []
        for plan in plans:
            lock = filelock.FileLock(self.claims / f"{plan.path.stem}.lock")
            try:
                with lock.acquire(timeout=0):
                    if not self._is_done(plan):
                        yield plan
            except filelock.Timeout:
                claimed.append((plan, lock))
        for plan, lock in claimed:
            with lock:
                if not self._is_done(plan):
                    yield plan

    def _is_done(self, plan: Plan) -> bool:
        """Whether another process finished it, or recorded why it cannot be finished."""
        note = self._note(plan.path.stem)
        if note.exists():
            self.failures[plan.path.stem] = note.read_text(encoding="utf-8")
        return note.exists() or plan.is_finished()

    def record_failure(self, name: str, reason: str, everywhere: bool) -> None:
        """Record why an experiment failed; if it would `everywhere`, no other process tries it."""
        self.failures[name] = reason
        if self.claims and everywhere:
            text = partial(Path.write_text, data=reason, encoding="utf-8")
            with contextlib.suppress(InputError):  # of a full disk; another process may try it
                atomic_write(self._note(name), text)

    def _note(self, name: str) -> Path:
        return self.claims / f"{name}.failed"


@contextlib.contextmanager
def start_workers(
    experiments: Sequence[Experiment], folder: Path, until: float, most: int
) -> Iterator[Worker]:
    """Start a process on every GPU but the first, which this process keeps.

    With one GPU or none, this process does all the work. When the context ends, the others are
    waited for; if this process is interrupted or dies, they end.

    Args:
        experiments: of the sweep.
        folder: for the results.
        until: deadline in seconds since 1970.
        most: processes that there is work for.
    """
    gpus = environment.gpu_ids()
    # Restricted to the first GPU even where that is enough today: a later sweep may want the rest.
    gpus = gpus[:most] if len(gpus) > 1 and environment.use_first_gpu_only() else []
    if len(gpus) < 2:
        yield Worker()
        return
    claims = Path(tempfile.mkdtemp(prefix="embedder-claims-"))
    workers = [Worker(number, len(gpus), claims) for number in range(len(gpus))]
    processes: list[_WorkerProcess] = []
    try:
        for worker, gpu in zip(workers[1:], gpus[1:], strict=True):
            processes.append(_WorkerProcess(worker, gpu, experiments, folder, until))
        logger.info("%d GPUs, a process for each", len(gpus))
        yield workers[0]
        for process in processes:
            process.wait(until)
    finally:
        for process in processes:
            process.end()
        shutil.rmtree(claims, ignore_errors=True)


class _WorkerProcess:
    """Another process, which sees one GPU; its output is logged here."""

    def __init__(
        self,
        worker: Worker,
        gpu: str,
        experiments: Sequence[Experiment],
        folder: Path,
        until: float,
    ):
        self.name = f"GPU {worker.number}"
        self.errors = worker.claims / f"{worker.number}.errors"
        path = os.pathsep.join([str(PACKAGE.parent), *filter(None, sys.path)])
        with self.errors.open("w", encoding="utf-8") as errors:
            self.process = subprocess.Popen(
                [sys.executable, "-u", "-m", "embedder_helpers.experiments.worker"],
                env=os.environ | {
                    "CUDA_VISIBLE_DEVICES": gpu, "PYTHONPATH": path, "PYTHONIOENCODING": "utf-8",
                },
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors,
                encoding="utf-8", errors="replace",  # of what a library prints
            )  # fmt: skip
        message = {
            "experiments": [experiment.as_dict() for experiment in experiments],
            "folder": str(folder.resolve()),
            "until": until,
            "worker": [worker.number, worker.count, str(worker.claims)],
        }
        with contextlib.suppress(BrokenPipeError):  # it died already: `wait` reports that
            self.process.stdin.write(json.dumps(message) + "\n")
            self.process.stdin.flush()
        self.listener = threading.Thread(target=self._listen, daemon=True)
        self.listener.start()

    def _listen(self) -> None:
        for line in self.process.stdout:
            level, _, text = line.rstrip().partition(" ")
            if level in LEVELS:
                logger.log(int(level), "%s: %s", self.name, text)
            else:  # printed by a library, or a further line of a message
                logger.info("%s: %s", self.name, line.rstrip())

    def wait(self, until: float) -> None:
        """Wait until it ends or the time is up; log it if it ended early by itself."""
        try:
            limit = None if math.isinf(until) else max(0.0, until - time.time())
            code = self.process.wait(limit)
        except subprocess.TimeoutExpired:
            return
        self.listener.join()
        if code:
            with self.errors.open("rb") as file:
                file.seek(max(0, self.errors.stat().st_size - 10_000))
                lines = file.read().decode(errors="replace").strip().splitlines()
            logger.warning(
                "%s: its process ended early, so the others did its work (%s)",
                self.name,
                shorten(redact(lines[-1]), MAX_MESSAGE) if lines else f"exit status {code}",
            )

    def end(self) -> None:
        """End it, whatever it is doing; what it has finished is kept."""
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()

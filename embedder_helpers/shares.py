"""Several GPUs, a process for each: which part of a sweep's work is whose.

Every process walks its share of the texts through Gemma, then takes experiments that no other has
taken. What one takes it locks, and the operating system frees the locks of a process that dies, so
its work falls to the others.
"""

import contextlib
import json
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
import numpy as np

from embedder_helpers import platform
from embedder_helpers.config import PACKAGE, Experiment, make_experiment
from embedder_helpers.plan import Plan


@dataclass(frozen=True)
class Share:
    """One process's part of the work.

    Attributes:
        number: of this process, from 0.
        count: of processes.
        claims: the folder in which it is told what is taken; None: there is one process.
        failures: why experiments failed, by name, as far as this process knows.
    """

    number: int = 0
    count: int = 1
    claims: Path | None = None
    failures: dict[str, str] = field(default_factory=dict)

    def texts(self, lengths: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
        """A name and `(texts,)` mask of each share, this process's first.

        Shares are alike in number and length of texts. The others' come too: whoever has finished
        its own waits for them, or walks those of a process that died.

        Args:
            lengths: of all texts, in tokens.
        """
        order = np.argsort(lengths, kind="stable")
        for turn in range(self.count):
            number = (self.number + turn) % self.count
            mask = np.zeros(len(lengths), bool)
            mask[order[number :: self.count]] = True
            yield f"lock-{number}-of-{self.count}" if self.count > 1 else "lock", mask

    def take(self, plans: Sequence[Plan]) -> Iterator[Plan]:
        """Plans that nobody else runs; then those that another process took and did not finish."""
        if not self.claims:
            yield from plans
            return
        taken = []
        for one in plans:
            lock = filelock.FileLock(self.claims / f"{one.path.stem}.lock")
            try:
                with lock.acquire(timeout=0):
                    if not self._finished(one):
                        yield one
            except filelock.Timeout:
                taken.append((one, lock))
        for one, lock in taken:
            with lock:
                if not self._finished(one):
                    yield one

    def _finished(self, one: Plan) -> bool:
        """Whether another process has the result, or has told why there is none."""
        note = self._note(one.path.stem)
        if note.exists():
            self.failures[one.path.stem] = note.read_text(encoding="utf-8")
        return note.exists() or one.finished()

    def fail(self, name: str, reason: str, everywhere: bool) -> None:
        """Notes why an experiment failed; if it would everywhere, no other process tries it too."""
        self.failures[name] = reason
        if self.claims and everywhere:
            text = partial(Path.write_text, data=reason, encoding="utf-8")
            platform.write_whole(self._note(name), text)

    def _note(self, name: str) -> Path:
        return self.claims / f"{name}.failed"


@contextlib.contextmanager
def shared(
    experiments: Sequence[Experiment], folder: Path, until: float, most: int
) -> Iterator[Share]:
    """Starts a process on every GPU but the first; this one is given its own share, on the first.

    With one GPU or none, all is this process's. At the end the others are waited for; if this one
    is interrupted, or dies, they end.

    Args:
        experiments: of the sweep.
        folder: for the results.
        until: when to have finished, in seconds since 1970.
        most: processes that there is work for.
    """
    gpus = platform.gpus()
    # Kept to the first even where it is enough today: a later sweep may want the others.
    gpus = gpus[:most] if len(gpus) > 1 and platform.keep_to_first_gpu() else []
    if len(gpus) < 2:
        yield Share()
        return
    claims = Path(tempfile.mkdtemp(prefix="embedder-shares-"))
    shares = [Share(number, len(gpus), claims) for number in range(len(gpus))]
    started: list[_Process] = []
    try:
        for share, gpu in zip(shares[1:], gpus[1:], strict=True):
            started.append(_Process(share, gpu, experiments, folder, until))
        platform.say(f"{len(gpus)} GPUs, a process for each")
        yield shares[0]
        for process in started:
            process.wait(until)
    finally:
        for process in started:
            process.end()
        shutil.rmtree(claims, ignore_errors=True)


class _Process:
    """Another process, which sees one GPU; what it says is said here."""

    def __init__(
        self, share: Share, gpu: str, experiments: Sequence[Experiment], folder: Path, until: float
    ):
        self.name = f"GPU {share.number}"
        self.errors = share.claims / f"{share.number}.errors"
        path = os.pathsep.join([str(PACKAGE.parent), *filter(None, sys.path)])
        with self.errors.open("w") as errors:
            self.process = subprocess.Popen(
                [sys.executable, "-u", "-m", "embedder_helpers.shares"],
                env=os.environ | {"CUDA_VISIBLE_DEVICES": gpu, "PYTHONPATH": path},
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True,
            )  # fmt: skip
        told = {
            "experiments": [one.as_dict() for one in experiments],
            "folder": str(folder.resolve()),
            "until": until,
            "share": [share.number, share.count, str(share.claims)],
        }
        with contextlib.suppress(BrokenPipeError):  # it has died: `wait` tells
            self.process.stdin.write(json.dumps(told) + "\n")
            self.process.stdin.flush()
        self.listener = threading.Thread(target=self._listen, daemon=True)
        self.listener.start()

    def _listen(self) -> None:
        for line in self.process.stdout:
            platform.say(f"{self.name}: {line.rstrip()}")

    def wait(self, until: float) -> None:
        """Until it has ended, or the time is up; if it ended early by itself, says so."""
        try:
            limit = None if math.isinf(until) else max(0.0, until - time.time())
            code = self.process.wait(limit)
        except subprocess.TimeoutExpired:
            return
        self.listener.join()
        if code:
            said = self.errors.read_text(errors="replace").strip().splitlines()
            platform.say(
                f"{self.name}: its process ended early, so the others did its work "
                f"({said[-1] if said else f'exit status {code}'})"
            )

    def end(self) -> None:
        """Ends it, whatever it is doing; what it has finished is kept."""
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()


def main() -> None:
    """The other process: reads from standard input what to do; ends when that is closed."""
    told = json.loads(sys.stdin.readline())
    threading.Thread(target=_end_with_standard_input, daemon=True).start()
    from embedder_helpers.sweep import run_share

    number, count, claims = told["share"]
    platform.bars = open(os.devnull, "w")  # noqa: SIM115, open as long as the process lives
    experiments = [make_experiment(one, where="sweep") for one in told["experiments"]]
    share = Share(number, count, Path(claims))
    run_share(experiments, Path(told["folder"]), told["until"], share)


def _end_with_standard_input() -> None:
    sys.stdin.read()
    os._exit(1)


if __name__ == "__main__":
    main()

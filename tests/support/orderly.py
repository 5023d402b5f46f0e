"""Commands in a process of their own that must end well, or with one sentence; and soon."""

import contextlib
import hashlib
import io
import json
import os
import re
import resource
import shutil
import signal
import stat
import time
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, NamedTuple

import forked
import psutil
from rounds import FAILURES

SECONDS = 60  # of a busy machine; what is bounded takes a tenth of it
BYTES = 2 * 10**9
LETTERS = 1200


class Ended(NamedTuple):
    """How a command ended."""

    status: int | None
    out: str
    err: str


class Commands:
    """Runs commands in a process that is replaced if one ends or blocks it.

    Args:
        prepare: function that is called in a new process.
    """

    def __init__(self, prepare: Callable[[], Any] | None = None):
        self._prepare = prepare
        self._pool: ProcessPoolExecutor | None = None
        self.kept: list[Path] = []

    def call(self, function: Callable, *arguments: Any) -> Any:
        """What a function of a module returns, called in the process."""
        if self._pool is None:
            self._pool = forked.worker()
            self._pid = self._pool.submit(_limit, self._prepare).result()
        try:
            return self._pool.submit(function, *arguments).result(SECONDS)
        except TimeoutError:
            os.kill(self._pid, signal.SIGKILL)
            self._pool = None
            raise AssertionError(f"no end within {SECONDS} s: {arguments}") from None
        except BrokenProcessPool:
            self._pool = None
            raise AssertionError(f"the process died: {arguments}") from None

    def run(self, folder: Path, *arguments: str) -> Ended:
        """Run a command in a folder; fails unless it ends in an orderly way.

        If the environment variable ROBUSTNESS_FAILURES names a folder, a failure is kept there,
        with its inputs, instead, so that a long run goes on.
        """
        ended = Ended(None, "", "")
        try:
            ended = self.call(_main, str(folder), arguments)
            assert_orderly(ended, folder)
        except AssertionError as error:
            if not FAILURES:
                raise
            self.kept.append(_keep(folder, arguments, str(error)))
        return ended


def assert_orderly(ended: Ended, folder: Path) -> None:
    """Fail unless a command succeeded, or said what was wrong in one sentence."""
    problem = f"status {ended.status}\n{ended.out[-2000:]}\n{ended.err[-6000:]}"
    assert ended.status in (0, None, 1, 2), problem
    assert "Traceback" not in ended.err, problem
    left = [*folder.rglob("*.traceback.txt")]
    assert not left, left[0].read_text(encoding="utf-8", errors="replace")[-6000:] if left else ""
    if ended.status not in (1, 2):
        return
    lines = ended.err.splitlines()
    said = [line for line in lines if line.startswith(("error: ", "not finished: "))]
    is_usage = "usage: python -m embedder_helpers" in ended.err
    assert said or is_usage, problem
    assert max(map(len, said or [lines[-1]])) <= LETTERS, problem


def _keep(folder: Path, arguments: Sequence[str], problem: str) -> Path:
    """Keep a failure; of those that say the same, the first."""
    said = " ".join(problem.strip().splitlines()[-3:])
    kept = Path(FAILURES) / hashlib.sha256(re.sub(r"\d+", "", said)[:300].encode()).hexdigest()[:8]
    if not kept.exists():
        shutil.copytree(folder, kept / "run", symlinks=True, ignore=_special_files)
        (kept / "arguments.json").write_text(json.dumps(arguments))
        (kept / "problem.txt").write_text(problem, errors="replace")
    with (kept / "times").open("a") as file:
        file.write(time.strftime("%H:%M:%S\n"))
    return kept


def _special_files(folder: str, names: list[str]) -> list[str]:
    return [name for name in names if stat.S_ISFIFO(os.lstat(os.path.join(folder, name)).st_mode)]


def _limit(prepare: Callable[[], Any] | None) -> int:
    used = psutil.Process().memory_info()
    limit = used.data + BYTES
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    resource.setrlimit(resource.RLIMIT_FSIZE, (BYTES, BYTES))
    if prepare:
        prepare()
    return os.getpid()


def _main(folder: str, arguments: Sequence[str]) -> Ended:
    from embedder_helpers.__main__ import main

    os.chdir(folder)
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            status = main(list(arguments))
        except SystemExit as exit:
            status = exit.code
        except BaseException:
            traceback.print_exc()
            status = 70
    return Ended(status, out.getvalue(), err.getvalue())

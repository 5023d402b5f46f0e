"""Processes that start at once: forked from one that has imported TensorFlow, but not used it.

For tests that kill processes, or need many fresh ones. A process that imports TensorFlow itself
takes seconds to start.
"""

import multiprocessing
import multiprocessing.forkserver
import os
import sys
import traceback
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
# One thread each: sums are in one order, and several processes do not fight over the cores.
ENVIRONMENT = {
    "PYTHONPATH": os.pathsep.join([str(ROOT), str(Path(__file__).parent)]),
    "MPLBACKEND": "agg",
    **dict.fromkeys(
        ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "TF_NUM_INTRAOP_THREADS",
         "TF_NUM_INTEROP_THREADS"), "1",
    ),
}  # fmt: skip

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["preloaded"])


def start(folder: Path, call: Callable, *arguments: Any, log: str = "log.txt") -> BaseProcess:
    """Start a call in a process of its own; what the call returns is the exit status.

    Args:
        folder: its working directory.
        call: function of a module.
        arguments: arguments of the call.
        log: name of the file in the folder's parent that gets what the process prints.
    """
    _start_server()
    path = folder.parent / log
    process = _context.Process(target=_run, args=(folder, path, call, arguments), daemon=True)
    process.start()
    return process


def run(folder: Path, call: Callable, *arguments: Any, log: str = "log.txt") -> tuple[int, str]:
    """Wait for a call in a process of its own; returns the exit status and what it printed."""
    process = start(folder, call, *arguments, log=log)
    process.join()
    return process.exitcode, (folder.parent / log).read_text(encoding="utf-8", errors="replace")


def fork(log: Path, call: Callable, *arguments: Any) -> int:
    """Wait for a call in a fork of this process, in which TensorFlow must not have been used."""
    if child := os.fork():
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    _run(Path.cwd(), log, call, arguments)


def worker() -> ProcessPoolExecutor:
    """A process that does many calls, one after another."""
    _start_server()
    return ProcessPoolExecutor(1, mp_context=_context)


def _start_server() -> None:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in ENVIRONMENT.items():
            patch.setenv(name, value)
        multiprocessing.forkserver.ensure_running()


def _run(folder: Path, log: Path, call: Callable, arguments: tuple) -> None:
    with log.open("wb") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.chdir(folder)
    try:
        status = call(*arguments)
    except BaseException:
        traceback.print_exc()
        status = 70
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status or 0)

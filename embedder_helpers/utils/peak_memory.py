"""The peak of memory that a call takes: of the process on a CPU, of the device on a GPU."""

import contextlib
import ctypes
import gc
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from embedder_helpers.utils import environment, keras_state

PROCESS = Path("/proc/self")  # what Linux says about this process
RESET_PEAK = "5"  # for clear_refs, see proc(5)
GPU = "GPU:0"


class Usage(NamedTuple):
    """Memory in use, in bytes.

    Attributes:
        level: now.
        peak: at most since the peak was reset, or since the process began.
    """

    level: int
    peak: int


def peak_rise(function: Callable[[], Any]) -> int | None:
    """Bytes by which memory rises above its level before a call, at the peak of the call.

    What a call leaves allocated, such as weights that it loads, counts in that call alone.

    Args:
        function: it is called once, whether or not its memory can be measured.

    Returns:
        On a CPU those of the whole process, on Linux only; on a GPU those of the first one. None
        where they cannot be measured: elsewhere, in a container that does not let a process reset
        its peak, and with JAX on a GPU, whose peak nobody can reset, for a call below an earlier
        peak.
    """
    gc.collect()
    was_reset = _reset_peak()
    before = _usage()
    function()
    after = _usage()
    if not (before and after) or not (was_reset or after.peak > before.peak):
        return None
    return max(0, after.peak - before.level)


def _reset_peak() -> bool:
    """Forget the peak so far; returns whether that is possible."""
    backend = keras_state.backend()
    if environment.on_cpu():
        with contextlib.suppress(OSError, AttributeError):  # a C library other than glibc
            # What it holds of freed memory would hide what the call takes.
            ctypes.CDLL(None).malloc_trim(0)
        try:
            (PROCESS / "clear_refs").write_text(RESET_PEAK)
        except OSError:
            return False
        return True
    if backend == "tensorflow":
        import tensorflow as tf

        tf.config.experimental.reset_memory_stats(GPU)
    if backend == "torch":
        import torch

        torch.cuda.reset_peak_memory_stats()
    return backend != "jax"


def _usage() -> Usage | None:
    """Memory in use on the device that Keras computes on; None if nothing says it."""
    if environment.on_cpu():
        return _process_usage()
    if keras_state.backend() == "tensorflow":
        import tensorflow as tf

        used = tf.config.experimental.get_memory_info(GPU)
        return Usage(used["current"], used["peak"])
    if keras_state.backend() == "torch":
        import torch

        return Usage(torch.cuda.memory_allocated(), torch.cuda.max_memory_allocated())
    import jax

    used = jax.local_devices()[0].memory_stats() or {}
    has_both = {"bytes_in_use", "peak_bytes_in_use"} <= used.keys()
    return Usage(used["bytes_in_use"], used["peak_bytes_in_use"]) if has_both else None


def _process_usage() -> Usage | None:
    """Resident memory of the process."""
    try:
        status = (PROCESS / "status").read_text(encoding="utf-8")
    except OSError:
        return None
    found = dict(re.findall(r"^(VmRSS|VmHWM):\s*(\d+) kB$", status, re.MULTILINE))
    if len(found) < 2:
        return None
    return Usage(1024 * int(found["VmRSS"]), 1024 * int(found["VmHWM"]))

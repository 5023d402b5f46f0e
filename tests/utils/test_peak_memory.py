"""The peak of memory: of real calls of this process, and of GPUs that are played."""

import os
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from embedder_helpers.utils import peak_memory
from embedder_helpers.utils.peak_memory import peak_rise

MEGABYTE = 2**20
on_linux = pytest.mark.skipif(
    not os.access("/proc/self/clear_refs", os.W_OK), reason="this system cannot reset a peak"
)


def touch(megabytes):
    """Allocate and fill memory, and let it go."""
    return lambda: np.ones(megabytes * MEGABYTE, "uint8").sum()


@on_linux
@pytest.mark.parametrize("megabytes", [64, 256])
def test_the_rise_is_what_a_call_allocates_even_if_it_frees_it(megabytes):
    rise = peak_rise(touch(megabytes))
    assert megabytes * MEGABYTE * 0.95 < rise < (megabytes + 24) * MEGABYTE


@on_linux
def test_an_earlier_and_higher_peak_does_not_count():
    touch(256)()
    assert peak_rise(touch(32)) < 64 * MEGABYTE


@on_linux
def test_what_is_allocated_before_the_call_does_not_count():
    held = np.ones(256 * MEGABYTE, "uint8")
    assert peak_rise(touch(32)) < 64 * MEGABYTE
    assert held[-1] == 1


@on_linux
def test_memory_that_an_earlier_call_has_freed_hides_nothing():
    def small_arrays():  # small enough to come from the C library's own store of freed memory
        return [np.ones(100_000, "uint8") for _ in range(640)]

    first, second = peak_rise(small_arrays), peak_rise(small_arrays)
    assert second > 0.8 * first > 0.8 * 60 * MEGABYTE


@pytest.mark.parametrize("files", [{}, {"clear_refs": "", "status": "Name: python\n"}])
def test_a_system_that_says_nothing_gives_none_after_the_call(files, tmp_path, monkeypatch):
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    monkeypatch.setattr(peak_memory, "PROCESS", tmp_path / "none" if not files else tmp_path)
    called = []
    assert peak_rise(lambda: called.append(1)) is None
    assert called == [1]


def play_gpu(monkeypatch, backend):
    monkeypatch.setattr("embedder_helpers.utils.environment.on_cpu", lambda: False)
    monkeypatch.setattr("embedder_helpers.utils.keras_state.backend", lambda: backend)


def test_tensorflows_peak_is_reset_first(monkeypatch):
    play_gpu(monkeypatch, "tensorflow")
    used = {"current": 100, "peak": 900}

    def reset(device):
        assert device == "GPU:0"
        used["peak"] = used["current"]

    experimental = SimpleNamespace(get_memory_info=lambda _: dict(used), reset_memory_stats=reset)
    module = SimpleNamespace(config=SimpleNamespace(experimental=experimental))
    monkeypatch.setitem(sys.modules, "tensorflow", module)
    assert peak_rise(lambda: used.update(peak=350)) == 250


@pytest.mark.parametrize("peak, rise", [(950, 850), (900, None)])
def test_jax_says_it_only_of_a_call_that_exceeds_an_earlier_peak(peak, rise, monkeypatch):
    play_gpu(monkeypatch, "jax")
    used = {"bytes_in_use": 100, "peak_bytes_in_use": 900}
    device = SimpleNamespace(memory_stats=lambda: dict(used))
    monkeypatch.setitem(sys.modules, "jax", SimpleNamespace(local_devices=lambda: [device]))
    assert peak_rise(lambda: used.update(peak_bytes_in_use=peak)) == rise


def test_a_device_of_jax_without_statistics_gives_none(monkeypatch):
    play_gpu(monkeypatch, "jax")
    device = SimpleNamespace(memory_stats=lambda: None)
    monkeypatch.setitem(sys.modules, "jax", SimpleNamespace(local_devices=lambda: [device]))
    assert peak_rise(lambda: None) is None

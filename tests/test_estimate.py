"""Estimate: sums over a sweep, checked by hand."""

import numpy as np
import pytest
from made_task import write_task

from embedder_helpers import estimate
from embedder_helpers.__main__ import main
from embedder_helpers.config import Experiment
from embedder_helpers.estimate import Device
from embedder_helpers.shapes import shape_of, weights_of

DEVICE = Device(float32=2e12, float16=0, memory=1e9)


def part(frame, name):
    (row,) = frame[frame["part"].str.startswith(name)].to_dict("records")
    return row


@pytest.fixture
def task(tmp_path):
    return str(write_task(tmp_path / "task"))


def test_texts_are_walked_once_to_the_deepest_cutoff_and_kept_behind_each(task):
    keys = dict(task=task, samples_per_label=2)
    one = [Experiment(kind="gemma_only", llm_layers=2, **keys)]
    more = [*one, Experiment(kind="gemma_only", llm_layers=4, seed=7, **keys)]
    first, second = (part(estimate.estimate(some, DEVICE), "tiny_gemma") for some in (one, more))
    assert second["TFLOP"] == pytest.approx(2 * first["TFLOP"])
    assert second["disk GB"] == pytest.approx(2 * first["disk GB"])
    assert second["hours"] == pytest.approx(second["TFLOP"] / (estimate.SHARE * 2) / 3600)


def test_every_seed_is_trained_and_every_epoch_costs_the_same(task):
    keys = dict(kind="roberta_only", task=task, samples_per_label=2)
    frames = [
        estimate.estimate([Experiment(seed=seed, **keys, epochs=epochs) for seed in seeds], DEVICE)
        for seeds, epochs in (([1], 2), ([1, 2, 3], 2), ([1], 4))
    ]
    once, thrice, longer = (part(frame, "training")["TFLOP"] for frame in frames)
    assert (thrice, longer) == (pytest.approx(3 * once), pytest.approx(2 * once))
    assert frames[0].iloc[-1]["part"] == "all"
    assert frames[0].iloc[-1]["hours"] == pytest.approx(frames[0].iloc[:-1]["hours"].sum())


def test_what_is_one_result_is_reckoned_once(task):
    keys = dict(kind="roberta_only", task=task, samples_per_label=2)
    one, two = ([Experiment(**keys, llm_layers=layer) for layer in range(1, n)] for n in (2, 5))
    assert estimate.estimate(one, DEVICE).equals(estimate.estimate(two, DEVICE))


@pytest.mark.parametrize(
    ("norms", "bytes_each"), [(["rms"], 2), (["none"], 4), (["last"], 4), (["none", "last"], 4)]
)
def test_states_take_the_bytes_of_their_norm(task, norms, bytes_each):
    keys = dict(kind="gemma_only", task=task, samples_per_label=2, llm_layers=2)
    rms = estimate.estimate([Experiment(**keys)], DEVICE)
    found = estimate.estimate([Experiment(final_norm=norm, **keys) for norm in norms], DEVICE)
    ratio = part(found, "tiny_gemma")["disk GB"] / part(rms, "tiny_gemma")["disk GB"]
    assert ratio == pytest.approx(bytes_each / 2)


def test_states_take_no_more_than_their_limit(task):
    keys = dict(kind="gemma_only", task=task, samples_per_label=2, states_gigabytes=1e-6)
    frame = estimate.estimate([Experiment(**keys)], DEVICE)
    assert part(frame, "tiny_gemma")["disk GB"] == pytest.approx(1e-6)


def test_a_streamed_gemma_needs_the_memory_of_one_block(task):
    keys = dict(kind="gemma_only", task=task, samples_per_label=2, llm_layers=5)
    whole, streamed = (
        part(estimate.estimate([Experiment(**keys, stream_blocks=flag)], DEVICE), "tiny_gemma")
        for flag in (False, True)
    )
    block = weights_of(shape_of("llm_preset", "tiny_gemma")).block
    assert whole["memory GB"] - streamed["memory GB"] == pytest.approx(4 * 4 * block / 1e9)


def test_operations_are_two_a_weight_and_the_attention():
    shape = shape_of("llm_preset", "tiny_gemma")
    plain = estimate.operations(shape, 10, 3, 0)
    assert plain == 10 * 3 * 2 * weights_of(shape).block
    assert estimate.operations(shape, 10, 3, 7) - plain == 10 * 3 * 4 * 7 * 3 * 32


def test_tensor_cores_train_at_a_share_of_their_own():
    assert Device(1e12, 0, 1).training() == estimate.SHARE * 1e12
    assert Device(1e12, 8e12, 1).training() == estimate.HALF_SHARE * 8e12


def test_this_cpu_does_some_products():
    device = estimate.here(0.05)
    assert np.isfinite(device.float32) and device.float32 > 1e8


def test_the_command_line_tells_a_table_and_on_what(task, capsys):
    settings = ["--set", f"task={task}", "--set", "samples_per_label=2"]
    assert main(["estimate", "quickstart", *settings, "--baselines", "--on", "P100"]) == 0
    printed = capsys.readouterr().out
    assert "| tiny_gemma, one walk |" in printed and "P100: 16 GB of memory" in printed


def test_an_unknown_gpu_is_told(capsys):
    assert main(["estimate", "quickstart", "--on", "GTX"]) == 2
    assert "--on is 'GTX', but must be one of P100, T4" in capsys.readouterr().err

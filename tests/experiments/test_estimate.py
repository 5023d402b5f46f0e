"""The estimate: sums over a sweep, checked by hand."""

import numpy as np
import pytest
from made_task import write_task

from embedder_helpers.__main__ import main
from embedder_helpers.config import Experiment
from embedder_helpers.experiments import estimate
from embedder_helpers.experiments.estimate import Device, estimate_cost
from embedder_helpers.models.shapes import count_weights, preset_shape

DEVICE = Device(float32=2e12, float16=0, memory=1e9)


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    return str(write_task(tmp_path_factory.mktemp("estimate") / "task"))


@pytest.fixture(scope="module")
def experiment(task):
    """Makes an experiment on the task."""
    return lambda **settings: Experiment(task=task, samples_per_label=2, **settings)


def part(table, name):
    (row,) = table[table["part"].str.startswith(name)].to_dict("records")
    return row


def test_all_texts_pass_gemma_once_to_the_deepest_cutoff_and_are_stored_at_each(experiment):
    shallow = experiment(kind="gemma_only", llm_layers=2)
    deep = experiment(kind="gemma_only", llm_layers=4, seed=7)
    one, both = (
        part(estimate_cost(experiments, DEVICE), "tiny_gemma")
        for experiments in ([shallow], [shallow, deep])
    )
    assert both["TFLOP"] == pytest.approx(2 * one["TFLOP"])
    assert both["disk GB"] == pytest.approx(2 * one["disk GB"])
    assert both["hours"] == pytest.approx(both["TFLOP"] / (estimate.FLOAT32_UTILIZATION * 2) / 3600)


def test_every_seed_is_trained_and_every_epoch_costs_the_same(experiment):
    tables = [
        estimate_cost(
            [experiment(kind="roberta_only", seed=seed, epochs=epochs) for seed in seeds], DEVICE
        )
        for seeds, epochs in (([1], 2), ([1, 2, 3], 2), ([1], 4))
    ]
    once, three_seeds, longer = (part(table, "training")["TFLOP"] for table in tables)
    assert (three_seeds, longer) == (pytest.approx(3 * once), pytest.approx(2 * once))


def test_the_last_row_sums_the_parts(experiment):
    table = estimate_cost([experiment()], DEVICE)
    *parts, total = table.to_dict("records")
    assert len(parts) == 3 and total["part"] == "all"
    for column in ("disk GB", "TFLOP", "hours"):
        assert total[column] == pytest.approx(sum(row[column] for row in parts))
    assert total["memory GB"] == max(row["memory GB"] for row in parts)


def test_experiments_with_the_same_result_count_once(experiment):
    one, several = (
        [experiment(kind="roberta_only", llm_layers=layer) for layer in layers]
        for layers in ([1], [1, 2, 3, 4])
    )
    assert estimate_cost(one, DEVICE).equals(estimate_cost(several, DEVICE))


@pytest.mark.parametrize(
    ("norms", "value_bytes"), [(["rms"], 2), (["none"], 4), (["last"], 4), (["none", "last"], 4)]
)
def test_hidden_states_take_the_bytes_of_their_norm(experiment, norms, value_bytes):
    gemma = dict(kind="gemma_only", llm_layers=2)
    rms = estimate_cost([experiment(**gemma)], DEVICE)
    table = estimate_cost([experiment(final_norm=norm, **gemma) for norm in norms], DEVICE)
    ratio = part(table, "tiny_gemma")["disk GB"] / part(rms, "tiny_gemma")["disk GB"]
    assert ratio == pytest.approx(value_bytes / 2)


def test_hidden_states_take_no_more_disk_than_their_limit(experiment):
    table = estimate_cost([experiment(kind="gemma_only", states_gigabytes=1e-6)], DEVICE)
    assert part(table, "tiny_gemma")["disk GB"] == pytest.approx(1e-6)


def test_a_streamed_gemma_needs_the_memory_of_one_layer(experiment):
    loaded, streamed = (
        estimate_cost(
            [experiment(kind="gemma_only", llm_layers=5, stream_blocks=is_streamed)], DEVICE
        )
        for is_streamed in (False, True)
    )
    layer = count_weights(preset_shape("llm_preset", "tiny_gemma")).layer
    difference = part(loaded, "tiny_gemma")["memory GB"] - part(streamed, "tiny_gemma")["memory GB"]
    assert difference == pytest.approx(4 * 4 * layer / 1e9)


def test_operations_are_two_per_weight_and_those_of_attention():
    shape = preset_shape("llm_preset", "tiny_gemma")
    without_attention = estimate.forward_operations(shape, 10, 3, 0)
    assert without_attention == 10 * 3 * 2 * count_weights(shape).layer
    attention = estimate.forward_operations(shape, 10, 3, 7) - without_attention
    assert attention == 10 * 3 * 4 * 7 * 3 * 32


def test_tensor_cores_train_at_a_fraction_of_their_own_peak():
    assert Device(1e12, 0, 1).training() == estimate.FLOAT32_UTILIZATION * 1e12
    assert Device(1e12, 8e12, 1).training() == estimate.FLOAT16_UTILIZATION * 8e12


@pytest.mark.parametrize("name", sorted(estimate.GPUS))
def test_a_device_is_described_by_its_memory_speed_and_utilization(name):
    device = estimate.GPUS[name]
    description = estimate.describe_device(device)
    training = estimate.FLOAT16_UTILIZATION if device.float16 else estimate.FLOAT32_UTILIZATION
    assert f"{device.memory / 1e9:.0f} GB" in description
    assert f"{device.float32 / 1e12:.2g} TFLOP/s" in description
    assert f"training {training:.0%}" in description


def test_the_speed_of_this_cpu_can_be_measured():
    device = estimate.measure_cpu(0.05)
    assert np.isfinite(device.float32) and device.float32 > 1e8


def test_the_command_prints_the_table_and_the_device(task, capsys):
    settings = ["--set", f"task={task}", "--set", "samples_per_label=2"]
    assert main(["estimate", "quickstart", *settings, "--baselines", "--on", "P100"]) == 0
    output = capsys.readouterr().out
    assert "| tiny_gemma, one forward pass |" in output and "P100: 16 GB of memory" in output


def test_an_unknown_gpu_is_an_error_that_lists_the_known_ones(capsys):
    assert main(["estimate", "quickstart", "--on", "GTX"]) == 2
    message = capsys.readouterr().err
    assert "--on" in message and "'GTX'" in message
    assert all(name in message for name in estimate.GPUS)

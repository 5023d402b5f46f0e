"""The estimate: sums over a sweep, checked by hand."""

import numpy as np
import pytest
from made_task import write_task

from embedder_helpers.__main__ import main
from embedder_helpers.config import Experiment
from embedder_helpers.experiments import estimate
from embedder_helpers.experiments.estimate import Device, estimate_cost
from embedder_helpers.models import text_model
from embedder_helpers.models.presets import find_preset
from embedder_helpers.models.shapes import count_weights, preset_shape, training_bytes
from embedder_helpers.utils import environment, progress

DEVICE = Device(float32=2e12, half=0, half_dtype="", training=1e12, memory=1e9)


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
    computing = both["TFLOP"] / 2 / 3600
    assert both["hours"] - one["hours"] == pytest.approx(computing / 2)  # compiled alike


def test_a_ready_encoder_reads_every_text_once_and_trains_nothing(experiment):
    tables = [
        estimate_cost(
            [experiment(kind="encoder_only", probe=probe, seed=seed) for seed in (1, 2)], DEVICE
        )
        for probe in (False, True)
    ]
    plain, probed = (part(table, "embedding") for table in tables)
    assert len(tables[0]) == 2  # besides this part, the sum
    assert probed["TFLOP"] > 1.5 * plain["TFLOP"] > 0  # a probe reads the training texts too
    assert plain["disk GB"] == 0


def test_every_seed_is_trained_and_every_epoch_costs_the_same(experiment):
    tables = [
        estimate_cost(
            [experiment(kind="roberta_only", seed=seed, epochs=epochs) for seed in seeds], DEVICE
        )
        for seeds, epochs in (([1], 2), ([1, 2, 3], 2), ([1], 4))
    ]
    once, three_seeds, longer = (part(table, "training")["TFLOP"] for table in tables)
    assert three_seeds == pytest.approx(3 * once, rel=0.05)  # padding depends on the shuffle
    assert longer == pytest.approx(2 * once)


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


def test_a_streamed_gemma_needs_the_memory_of_two_layers_and_of_several_batches(experiment):
    loaded, streamed = (
        part(
            estimate_cost(
                [experiment(kind="gemma_only", llm_layers=5, stream_blocks=is_streamed)], DEVICE
            ),
            "tiny_gemma",
        )
        for is_streamed in (False, True)
    )
    shape = preset_shape("llm_preset", "tiny_gemma")
    saved = 4 * 3 * count_weights(shape).layer
    tokens = (loaded["memory GB"] - streamed["memory GB"]) * 1e9 - saved
    assert tokens < 0 and tokens % (4 * shape["hidden_dim"]) == pytest.approx(0, abs=1e-3)


def test_gemma_takes_half_the_memory_and_its_own_speed_in_half_precision(experiment):
    device = DEVICE._replace(half=8e12, half_dtype="bfloat16", is_cpu=True)
    single, half = (
        part(estimate_cost([experiment(kind="gemma_only", llm_dtype=dtype)], device), "tiny_gemma")
        for dtype in ("float32", "auto")
    )
    assert "float32" in single["part"] and "bfloat16" in half["part"]
    assert single["hours"] > single["TFLOP"] / 2 / 3600  # XLA compiles it
    assert half["hours"] == pytest.approx(half["TFLOP"] / 8 / 3600)
    assert device.forward_speed("float16") == device.float32  # slow on a CPU
    assert device._replace(is_cpu=False).forward_speed("float16") == device.half


def test_memory_that_does_not_suffice_is_reported_with_what_to_set(experiment):
    experiments = [experiment(batch_size=64, epochs=1, llm_layers=5)]
    assert estimate.memory_advice(experiments, DEVICE._replace(memory=1e12)) == []
    gemma, training, *_ = estimate.memory_advice(experiments, DEVICE._replace(memory=1e5))
    assert "tiny_gemma" in gemma and "stream_blocks: true" in gemma
    assert "training" in training and "lower batch_size" in training


def test_several_devices_share_the_work_but_each_builds_the_models(experiment):
    one = estimate_cost([experiment(kind="roberta_only")], DEVICE)
    two = estimate_cost([experiment(kind="roberta_only")], DEVICE._replace(count=2))
    assert "hours, 2 GPUs" not in one
    row = part(two, "training")
    assert row["hours"] == part(one, "training")["hours"]
    building = estimate.BUILDING_SECONDS / 3600
    assert row["hours, 2 GPUs"] - building == pytest.approx((row["hours"] - building) / 2)


def test_a_model_is_built_once_for_each_architecture(experiment):
    def building(**settings):
        seeds = [experiment(seed=seed, epochs=1, **settings) for seed in (1, 2)]
        row = part(estimate_cost(seeds, DEVICE), "training")
        return row["hours"] * 3600 - row["TFLOP"] / (DEVICE.training / 1e12)

    alone, hybrid = building(kind="roberta_only"), building(kind="hybrid", fusion="add")
    assert alone == hybrid == pytest.approx(estimate.BUILDING_SECONDS)
    both = [experiment(kind=kind, epochs=1) for kind in ("roberta_only", "hybrid")]
    row = part(estimate_cost(both, DEVICE), "training")
    seconds = row["hours"] * 3600 - row["TFLOP"] / (DEVICE.training / 1e12)
    assert seconds == pytest.approx(2 * estimate.BUILDING_SECONDS)


@pytest.fixture
def six_texts(tmp_path):
    """Makes an experiment of one epoch on six training texts of 13 tokens, three of each label."""
    (tmp_path / "task").mkdir()
    for split in ("train", "validation", "test"):
        rows = "".join(f"{'ab'[i % 2] * 54},{i % 2}\n" for i in range(6))
        (tmp_path / "task" / f"{split}.csv").write_text(f"text,label\n{rows}")

    def made(**settings):
        settings = {"kind": "roberta_only", "epochs": 1, "batch_size": 2} | settings
        return Experiment(task=str(tmp_path / "task"), samples_per_label=2, **settings)

    return made


@pytest.mark.parametrize("is_traced_once, length", [(True, 13), (False, 16)])
def test_texts_are_padded_to_a_bucket_only_where_every_shape_is_compiled(
    six_texts, monkeypatch, is_traced_once, length
):
    monkeypatch.setattr(text_model, "is_traced_once", lambda: is_traced_once)
    table = estimate_cost([six_texts()], DEVICE)
    shape = preset_shape("slm_preset", "tiny_roberta")
    text = estimate.forward_operations(shape, length, shape["num_layers"], length) / 1e12
    assert part(table, "training")["TFLOP"] == pytest.approx((3 * 6 + 6) * text)
    embedded = part(table, "embedding")["TFLOP"] / text
    # Twelve texts, in a batch whose number of texts is compiled too.
    assert embedded == pytest.approx(12 if is_traced_once else 16)


def test_a_contrastive_step_holds_the_texts_that_stay_with_their_label(six_texts):
    """Three texts of a label stay together, one more than the batch size."""
    alone, paired = (
        part(estimate_cost([six_texts(objective=objective)], DEVICE), "training")
        for objective in ("cross_entropy", "contrastive")
    )
    shape = preset_shape("slm_preset", "tiny_roberta")
    more = training_bytes(shape, 3 * 13, 13) - training_bytes(shape, 2 * 13, 13)
    assert (paired["memory GB"] - alone["memory GB"]) * 1e9 == pytest.approx(more)
    assert paired["TFLOP"] == pytest.approx(alone["TFLOP"])


def test_operations_are_two_per_weight_and_those_of_attention():
    shape = preset_shape("llm_preset", "tiny_gemma")
    without_attention = estimate.forward_operations(shape, 10, 3, 0)
    assert without_attention == 10 * 3 * 2 * count_weights(shape).layer
    attention = estimate.forward_operations(shape, 10, 3, 7) - without_attention
    assert attention == 10 * 3 * 4 * 7 * 3 * 32


@pytest.mark.parametrize("name", sorted(estimate.GPUS))
def test_a_device_is_described_by_its_memory_and_the_speeds_assumed(name):
    device = estimate.GPUS[name]
    description = estimate.describe_device(device)
    assert f"{device.memory / 1e9:.1f} GB" in description
    assert f"{device.half / 1e12:.2g} TFLOP/s in {device.half_dtype}" in description
    assert f"training {device.training / 1e12:.2g}" in description


def test_the_speed_of_this_device_is_measured_once():
    device = estimate.measure_device()
    assert np.isfinite(device.float32) and device.float32 > 1e8
    assert estimate.measure_device().float32 == device.float32
    assert bool(device.half) == bool(environment.half_dtype())


def test_paces_are_expected_from_the_speeds_of_this_device(monkeypatch):
    monkeypatch.setattr(estimate, "measure_device", lambda: DEVICE)
    preset = find_preset("llm_preset", "tiny_gemma")
    paces = estimate.expected_paces(preset, "float32")
    assert paces["training"] == 1 / DEVICE.training
    shape = preset_shape("llm_preset", "tiny_gemma")
    units = progress.forward_flops(1000, 3, shape["hidden_dim"])
    operations = estimate.forward_operations(shape, 1000, 3, 0)
    assert paces["forward"] * units == pytest.approx(operations / DEVICE.float32)
    assert "forward" not in estimate.expected_paces()


def test_the_command_prints_the_table_and_the_device(task, capsys):
    settings = ["--set", f"task={task}", "--set", "samples_per_label=2"]
    assert main(["estimate", "quickstart", *settings, "--baselines", "--on", "T4"]) == 0
    output = capsys.readouterr().out
    assert "| tiny_gemma, one forward pass, float16 |" in output
    assert "hours, 2 GPUs" in output and "T4: 15.1 GB of memory" in output


def test_an_unknown_gpu_is_an_error_that_lists_the_known_ones(capsys):
    assert main(["estimate", "quickstart", "--on", "GTX"]) == 2
    message = capsys.readouterr().err
    assert "--on" in message and "'GTX'" in message
    assert all(name in message for name in estimate.GPUS)

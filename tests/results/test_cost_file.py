"""The file of measured costs: what is kept of other machines, and what is done with damage."""

import dataclasses
import json
import logging

import numpy as np
import pandas as pd
import pytest

from embedder_helpers.errors import InputError
from embedder_helpers.results.cost_file import (
    COST_FILE,
    Cost,
    Measurement,
    add_measurement,
    find_measurement,
    read_cost,
    read_measurements,
)
from embedder_helpers.utils.json_files import write_json

COLUMNS = [
    "cutoff", "batch", "block_passes", "ms_per_text", "peak_megabytes", "weights_megabytes",
    "device",
]  # fmt: skip


def cost(cutoff, ms=1.5, peak=12.5):
    return Cost(
        cutoff=cutoff, batch=1, block_passes=float(cutoff), ms_per_text=ms, peak_megabytes=peak,
        weights_megabytes=80.0,
    )  # fmt: skip


def measurement(device="GPU", texts=64, ms=1.5):
    rows = [cost(0, ms), cost(2, 2 * ms)]
    return Measurement(machine={"device": device}, subject={"texts": texts}, rows=rows)


def test_a_measurement_is_read_as_it_was_written(tmp_path):
    assert add_measurement(tmp_path, measurement()) == tmp_path / COST_FILE
    assert read_measurements(tmp_path) == [measurement()]
    table = read_cost(tmp_path)
    assert list(table) == COLUMNS
    pd.testing.assert_frame_equal(table, measurement().as_table())
    assert table["cutoff"].tolist() == [0, 2] and table["ms_per_text"].tolist() == [1.5, 3.0]
    assert set(table["device"]) == {"GPU"}


def test_memory_that_nobody_could_measure_is_a_missing_number(tmp_path):
    unknown = dataclasses.replace(measurement(), rows=[cost(0, peak=None), cost(1, peak=None)])
    add_measurement(tmp_path, unknown)
    column = read_cost(tmp_path)["peak_megabytes"]
    assert column.dtype == "float64" and np.isnan(column).all()


def test_a_machine_replaces_its_own_measurement_and_keeps_the_others(tmp_path):
    first, other = measurement("GPU"), measurement("CPU")
    again, longer = measurement("GPU", ms=9.0), measurement("GPU", texts=8)
    for one in (first, other, again, longer):
        add_measurement(tmp_path, one)
    assert read_measurements(tmp_path) == [other, again, longer]
    assert find_measurement(tmp_path, {"device": "GPU"}, {"texts": 64}) == again
    assert find_measurement(tmp_path, {"device": "TPU"}, {"texts": 64}) is None
    pd.testing.assert_frame_equal(read_cost(tmp_path), longer.as_table())  # the newest


def test_a_folder_without_the_file_has_no_costs(tmp_path, caplog):
    assert read_cost(tmp_path) is None and read_cost(tmp_path / "none") is None
    assert not caplog.records


def with_changed_row(**changes):
    stored = dataclasses.asdict(measurement())
    stored["rows"][0] |= changes
    return json.dumps({"measurements": [stored]})


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "{}",
        '{"measurements": 1}',
        '{"measurements": [1]}',
        with_changed_row(cutoff=-1),
        with_changed_row(cutoff=1.5),
        with_changed_row(ms_per_text="fast"),
        with_changed_row(ms_per_text=-1.0),
        with_changed_row(more=1),
        with_changed_row(ms_per_text=None),
    ],
)
def test_a_damaged_file_is_logged_and_measured_again(content, tmp_path, caplog):
    (tmp_path / COST_FILE).write_text(content)
    with caplog.at_level(logging.WARNING, "embedder_helpers"):
        assert read_cost(tmp_path) is None
    assert COST_FILE in caplog.text and "measured again" in caplog.text
    add_measurement(tmp_path, measurement())
    assert read_measurements(tmp_path) == [measurement()]


def test_one_wrong_digit_is_noticed(tmp_path, caplog):
    path = add_measurement(tmp_path, measurement())
    content = path.read_text()
    path.write_text(content.replace("1.5", "1.6"))
    assert read_cost(tmp_path) is None and "checksum" in caplog.text


def test_a_folder_in_place_of_the_file_is_logged(tmp_path, caplog):
    (tmp_path / COST_FILE).mkdir()
    assert read_cost(tmp_path) is None and COST_FILE in caplog.text
    with pytest.raises(InputError, match=COST_FILE):
        add_measurement(tmp_path, measurement())


def test_a_file_without_a_checksum_is_read(tmp_path):
    stored = {"measurements": [dataclasses.asdict(measurement())]}
    (tmp_path / COST_FILE).write_text(json.dumps(stored))
    assert read_measurements(tmp_path) == [measurement()]
    write_json(tmp_path / COST_FILE, stored)
    assert read_measurements(tmp_path) == [measurement()]

import dataclasses
import json
import os
import re
import shutil
import types
from pathlib import Path

import pytest
from made_results import TRAINED, result
from made_task import experiment

from embedder_helpers.config import Experiment, stored_experiment
from embedder_helpers.data.tasks import load_task
from embedder_helpers.errors import InputError
from embedder_helpers.experiments.plan import plan_experiment
from embedder_helpers.results.result import (
    STORED_NAMES,
    Result,
    read_result,
    result_name,
    write_result,
)
from embedder_helpers.utils.json_files import write_json

RESULTS = Path(__file__).resolve().parents[2] / "results"
FOLDERS = sorted({path.parent.relative_to(RESULTS) for path in RESULTS.rglob("*-????????.json")})
NEWER_FIELDS = ("projection", "choice", "unrepeated", "parameters", "license", "layer_p_values")
TASK_FIELDS = ("name", "samples_per_label")  # that are part of a result's name


def test_a_result_is_read_back_as_it_was_written(tmp_path):
    write_result(result(), tmp_path / "one.json")
    assert read_result(tmp_path / "one.json") == result()


def test_a_result_file_may_have_any_name_that_a_folder_allows(tmp_path):
    write_result(result(task="Größe"), tmp_path / "größe.json")
    assert read_result(tmp_path / "größe.json").task["name"] == "Größe"


def test_an_incomplete_or_missing_file_is_not_a_result(tmp_path):
    write_result(result(), tmp_path / "one.json")
    content = (tmp_path / "one.json").read_text()
    for broken in ("", content[:100], "[]", "{}"):
        (tmp_path / "one.json").write_text(broken)
        assert read_result(tmp_path / "one.json") is None
    assert read_result(tmp_path / "no.json") is None


# === Damaged files ===

NAME = "weather-hybrid-k10-seed33-01234567.json"


def without(values, *keys):
    return {key: value for key, value in values.items() if key not in keys}


def test_no_flipped_bit_makes_another_result(tmp_path):
    write_result(result(), tmp_path / NAME)
    content, expected = (tmp_path / NAME).read_bytes(), result()
    for position in range(0, 8 * len(content), 31):
        damaged = bytearray(content)
        damaged[position // 8] ^= 1 << position % 8
        (tmp_path / NAME).write_bytes(damaged)
        assert read_result(tmp_path / NAME) in (None, expected), position


def test_a_result_with_a_neighbors_checksum_is_damaged(tmp_path):
    for name, accuracy in (("one", 0.7), ("two", 0.8)):
        write_result(result(accuracy=accuracy), tmp_path / f"{name}.json")
    one, two = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("one", "two"))
    (tmp_path / NAME).write_text(json.dumps(one | {"checksum": two["checksum"]}))
    assert read_result(tmp_path / NAME) is None


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"\xff", b"[" * 100_000, b'{"scores": {"accuracy": NaN}}']
)
def test_a_damaged_file_is_named_once_with_what_to_do(tmp_path, caplog, content):
    (tmp_path / NAME).write_bytes(content)
    for _ in range(2):
        assert read_result(tmp_path / NAME) is None
    (record,) = caplog.records
    assert str(tmp_path / NAME) in record.message and "run the experiment again" in record.message
    assert len(record.message) < 800


def test_other_json_files_are_not_results_and_not_named(tmp_path, caplog):
    (tmp_path / "vocabulary.json").write_text(json.dumps({"a": 1}))
    assert read_result(tmp_path / "vocabulary.json") is None
    assert not caplog.records


def test_a_folder_or_a_pipe_is_not_a_result(tmp_path):
    (tmp_path / "folder-01234567.json").mkdir()
    os.mkfifo(tmp_path / "pipe-01234567.json")
    for path in tmp_path.iterdir():
        assert read_result(path) is None


STORED = result(history=TRAINED).as_stored()


@pytest.mark.parametrize(
    "changed",
    [
        {"experiment": None},
        {"experiment": {"kind": "hybrid"}},
        {"experiment": STORED["experiment"] | {"kind": "other"}},
        {"experiment": STORED["experiment"] | {"seed": "33"}},
        {"experiment": STORED["experiment"] | {"llm_layers": 19}},
        {"task": "weather"},
        {"task": without(STORED["task"], "notes")},
        {"task": without(STORED["task"], "texts")},
        {"cutoffs": 10},
        {"cutoffs": []},
        {"cutoffs": [19]},
        {"cutoffs": [9]},
        {"cutoffs": [2, 1]},
        {"cutoffs": [0]},
        {"blocks": None},
        {"scores": {}},
        {"scores": STORED["scores"] | {"accuracy": 7.5}},
        {"scores": STORED["scores"] | {"accuracy": None}},
        {"scores": STORED["scores"] | {"accuracy": 0.76}},
        {"scores": STORED["scores"] | {"ap": 0.5}},
        {"experiments": []},
        {"experiments": [STORED["scores"], {"accuracy": 0.75}]},
        {"head": {"accuracy": 0.5}},
        {"floor": None},
        {"history": [{}]},
        {"history": {"loss": 1}},
        {"truncated": -1},
        {"truncated": 10**30},
        {"seconds": {}},
        {"seconds": {"total": "long"}},
        {"versions": {"python": 3.12}},
        {"device": "CPU"},
        {"inputs": {}},
        {"inputs": {"task": None}},
        {"projection": {"explained": True}},
        {"choice": {"1": 2.0}},
        {"unrepeated": {}},
        {"unrepeated": {"texts": 1, "scores": STORED["scores"]}},
        {"parameters": 1.5},
    ],
    ids=str,
)
def test_a_value_that_no_result_has_is_an_error_also_without_a_checksum(tmp_path, changed):
    assert Result.from_stored(STORED)
    with pytest.raises(InputError, match="run its experiment again"):
        Result.from_stored(STORED | changed)
    (tmp_path / NAME).write_text(json.dumps(STORED | changed))
    assert read_result(tmp_path / NAME) is None


@pytest.mark.parametrize("name", [name for name in STORED if name not in NEWER_FIELDS])
def test_a_missing_field_is_an_error(name):
    with pytest.raises(InputError, match="is missing"):
        Result.from_stored(without(STORED, name))


LATER = [
    {"later": 1},
    {"experiment": STORED["experiment"] | {"later": 1}},
    {"task": STORED["task"] | {"later": 1}},
    {"unrepeated": {"texts": 1, "later": 1}},
]


@pytest.mark.parametrize("changed", LATER, ids=str)
def test_a_field_of_a_later_version_is_no_damage_and_no_result(changed):
    with pytest.raises(TypeError, match="'later' is not known"):
        Result.from_stored(STORED | changed)


@pytest.mark.parametrize("with_checksum", [True, False])
@pytest.mark.parametrize("changed", LATER, ids=str)
def test_a_file_of_a_later_version_is_not_counted_and_not_to_be_deleted(
    tmp_path, caplog, changed, with_checksum
):
    values = STORED | changed
    write_json(tmp_path / NAME, values)
    if not with_checksum:
        (tmp_path / NAME).write_text(json.dumps(values))
    assert read_result(tmp_path / NAME) is None
    (record,) = caplog.records
    assert ("update embedder_helpers" in record.message) == with_checksum
    assert ("delete it" in record.message) != with_checksum


def test_a_fusion_that_another_process_registered_is_no_damage():
    Result.from_stored(STORED | {"experiment": STORED["experiment"] | {"fusion": "mine"}})


# === Files of earlier versions ===


@pytest.mark.parametrize("folder", FOLDERS, ids=str)
def test_committed_results_are_read_and_stored_with_their_own_keys(folder):
    paths = sorted((RESULTS / folder).glob("*-????????.json"))
    assert paths
    for path in paths:
        content = json.loads(path.read_text(encoding="utf-8"))
        content.pop("checksum", None)  # of the demo's, which are written here too
        stored = read_result(path).as_stored()
        assert content == {key: stored[key] for key in content}, path
        assert all(stored[key] is None for key in stored.keys() - content.keys()), path


def test_a_file_is_written_again_as_it_was_with_null_for_newer_keys_and_a_checksum(tmp_path):
    keys = [STORED_NAMES.get(field.name, field.name) for field in dataclasses.fields(Result)]
    paths = sorted((RESULTS / "pretraining").glob("*-????????.json"))
    assert paths
    for path in paths:
        write_result(read_result(path), tmp_path / path.name)
        before, after = path.read_text(), (tmp_path / path.name).read_text()
        newer = [key for key in keys if key not in json.loads(before)]
        before = before.removesuffix("\n}\n") + "".join(f',\n "{key}": null' for key in newer)
        assert after.startswith(before + ',\n "checksum": "')


def test_fields_have_clearer_names_than_the_keys_of_files():
    (path,) = (RESULTS / "comparison").glob("EmotionClassification-hybrid-*-seed33-*.json")
    content, loaded = json.loads(path.read_text(encoding="utf-8")), read_result(path)
    assert loaded.num_layers == content["blocks"] == 18
    assert loaded.scores_per_experiment == content["experiments"]
    assert loaded.majority_baseline == content["floor"]
    assert loaded.layer_selection == content["choice"]
    assert loaded.deduplicated == content["unrepeated"] and loaded.deduplicated["texts"] == 11


# === Names of files ===


@pytest.mark.parametrize("folder", ["layer_sweep", "comparison", "search"])
def test_committed_results_have_the_names_that_their_experiments_give(folder):
    paths = sorted((RESULTS / folder).glob("*-????????.json"))
    assert len(paths) > 30
    for path in paths:
        known = read_result(path)
        task = types.SimpleNamespace(**{name: known.task[name] for name in TASK_FIELDS})
        experiment = stored_experiment(known.experiment)
        assert result_name(experiment, task, known.num_layers, known.inputs) == path.name


def test_the_name_of_a_ready_encoder_is_part_of_the_files_name_and_its_content_of_the_hash():
    task = types.SimpleNamespace(name="weather", samples_per_label=8)

    def name(preset, fingerprint="0", **settings):
        experiment = Experiment(kind="encoder_only", encoder_preset=preset, **settings)
        return result_name(experiment, task, None, {"task": "1", "encoder_preset": fingerprint})

    assert re.fullmatch(
        r"weather-encoder_only-all-MiniLM-L6-v2-[0-9a-f]{8}\.json", name("all-MiniLM-L6-v2")
    )
    moved = name("/models/all-MiniLM-L6-v2")
    assert moved == name("all-MiniLM-L6-v2") != name("all-MiniLM-L6-v2", "2")
    assert name("a", pooling="max", seed=1, epochs=9, llm_layers=3) == name("a")
    assert len({name("a"), name("a", max_tokens=64), name("a", probe=True)}) == 3


def name_of(tmp_path, task_folder, **settings):
    return plan_experiment(experiment(task_folder, **settings), tmp_path).path.name


def test_a_selected_cutoff_is_not_part_of_the_name(task_folder, tmp_path):
    assert "-kauto-seed33-" in name_of(tmp_path, task_folder, llm_layers="auto")


def test_a_setting_without_effect_does_not_change_the_name(task_folder, tmp_path):
    names = {name_of(tmp_path, task_folder, kind="gemma_only", epochs=epochs) for epochs in (1, 9)}
    assert len(names) == 1


def test_the_place_of_hidden_states_does_not_change_the_name(task_folder, tmp_path):
    elsewhere = {"states_dir": "elsewhere", "states_gigabytes": 1, "stream_blocks": True}
    assert name_of(tmp_path, task_folder) == name_of(tmp_path, task_folder, **elsewhere)


def test_both_spellings_of_a_cutoff_and_moved_data_give_the_same_name(task_folder, tmp_path):
    moved = task_folder.parent / "moved" / task_folder.name
    shutil.copytree(task_folder, moved)
    assert name_of(tmp_path, task_folder, kind="gemma_only", llm_layers=2) == name_of(
        tmp_path, moved, kind="gemma_only", llm_layers=-17
    )


def test_other_data_under_the_same_path_change_the_name(task_folder, tmp_path):
    before = name_of(tmp_path, task_folder, kind="gemma_only")
    line = json.dumps({"text": "The sun shone twice.", "label": 0}) + "\n"
    with (task_folder / "test.jsonl").open("a") as file:
        file.write(line)
    assert name_of(tmp_path, task_folder, kind="gemma_only") != before


def test_a_release_keeps_names_and_a_change_of_figures_changes_them(
    task_folder, tmp_path, monkeypatch
):
    before = name_of(tmp_path, task_folder, kind="gemma_only")
    monkeypatch.setattr("embedder_helpers.__version__", "99.0")
    assert name_of(tmp_path, task_folder, kind="gemma_only") == before
    monkeypatch.setattr("embedder_helpers.results.result.FIGURES_SINCE", "99.0")
    assert name_of(tmp_path, task_folder, kind="gemma_only") != before


@pytest.mark.parametrize(
    "name", ["n" * 255, "情" * 85, ".hidden", "a b:c*?<>|", "-", "two\nlines", "..."]
)
def test_the_name_of_a_file_is_short_and_plain_whatever_the_task_is_called(task_folder, name):
    task = dataclasses.replace(load_task(str(task_folder)), name=name)
    settings = Experiment(kind="hybrid", llm_layers=tuple(range(1, 100)), seed=2**32 - 1)
    file = result_name(settings, task, 100, {"task": "0123"})
    assert re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_+-]*-[0-9a-f]{8}\.json", file)
    assert len(file) < 140


def test_tasks_that_are_shortened_to_the_same_name_have_results_of_their_own(task_folder):
    task = load_task(str(task_folder))
    names = {
        result_name(Experiment(), dataclasses.replace(task, name=name), 18, {})
        for name in ("情感", "天气", "n" * 200, "n" * 201)
    }
    assert len(names) == 4


def test_each_evaluation_split_has_a_result_of_its_own(task_folder, tmp_path):
    splits = ("validation", "test")
    assert len({name_of(tmp_path, task_folder, scored_split=split) for split in splits}) == 2

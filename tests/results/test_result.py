import dataclasses
import json
import shutil
from pathlib import Path

import pytest
from made_results import result
from made_task import experiment

from embedder_helpers.experiments.plan import plan_experiment
from embedder_helpers.results.result import STORED_NAMES, Result, read_result, write_result

RESULTS = Path(__file__).resolve().parents[2] / "results"
FOLDERS = ("ablation", "comparison", "layer_sweep", "measured", "pretraining")


def test_a_result_is_read_back_as_it_was_written(tmp_path):
    write_result(result(), tmp_path / "one.json")
    assert read_result(tmp_path / "one.json") == result()


def test_an_incomplete_or_missing_file_is_not_a_result(tmp_path):
    write_result(result(), tmp_path / "one.json")
    content = (tmp_path / "one.json").read_text()
    for broken in ("", content[:100], "[]", "{}"):
        (tmp_path / "one.json").write_text(broken)
        assert read_result(tmp_path / "one.json") is None
    assert read_result(tmp_path / "no.json") is None


# === Files of earlier versions ===


@pytest.mark.parametrize("folder", FOLDERS)
def test_committed_results_are_read_and_stored_with_their_own_keys(folder):
    paths = sorted((RESULTS / folder).glob("*.json"))
    assert paths
    for path in paths:
        content = json.loads(path.read_text(encoding="utf-8"))
        stored = read_result(path).as_stored()
        assert content == {key: stored[key] for key in content}, path
        assert all(stored[key] is None for key in stored.keys() - content.keys()), path


def test_a_file_that_has_all_keys_is_written_again_byte_for_byte(tmp_path):
    keys = {STORED_NAMES.get(field.name, field.name) for field in dataclasses.fields(Result)}
    complete = [
        path
        for path in (RESULTS / "comparison").glob("*.json")
        if json.loads(path.read_text(encoding="utf-8")).keys() == keys
    ]
    assert complete
    for path in complete:
        write_result(read_result(path), tmp_path / path.name)
        assert (tmp_path / path.name).read_bytes() == path.read_bytes()


def test_fields_have_clearer_names_than_the_keys_of_files():
    (path,) = (RESULTS / "comparison").glob("EmotionClassification-hybrid-*-seed33-*.json")
    content, loaded = json.loads(path.read_text(encoding="utf-8")), read_result(path)
    assert loaded.num_layers == content["blocks"] == 18
    assert loaded.scores_per_experiment == content["experiments"]
    assert loaded.majority_baseline == content["floor"]
    assert loaded.layer_selection == content["choice"]
    assert loaded.deduplicated == content["unrepeated"] and loaded.deduplicated["texts"] == 11


# === Names of files ===


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


def test_each_evaluation_split_has_a_result_of_its_own(task_folder, tmp_path):
    splits = ("validation", "test")
    assert len({name_of(tmp_path, task_folder, scored_split=split) for split in splits}) == 2

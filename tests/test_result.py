import dataclasses
import json
import shutil

from made_results import result
from made_task import experiment

from embedder_helpers.plan import plan
from embedder_helpers.result import read_result, write_result


def test_a_result_is_read_back_as_it_was_written(tmp_path):
    write_result(result(), tmp_path / "one.json")
    assert read_result(tmp_path / "one.json") == result()


def test_a_file_that_is_no_whole_result_is_none(tmp_path):
    write_result(result(), tmp_path / "one.json")
    content = (tmp_path / "one.json").read_text()
    for broken in ("", content[:100], "[]", "{}"):
        (tmp_path / "one.json").write_text(broken)
        assert read_result(tmp_path / "one.json") is None
    assert read_result(tmp_path / "no.json") is None


def test_a_chosen_cutoff_is_no_part_of_the_name(task_folder, tmp_path):
    path = plan(experiment(task_folder, llm_layers="auto"), tmp_path).path
    assert "-kauto-seed33-" in path.name


def test_a_key_that_the_kind_ignores_makes_no_new_result(task_folder, tmp_path):
    one, other = (experiment(task_folder, kind="gemma_only", epochs=epochs) for epochs in (1, 9))
    assert plan(one, tmp_path).path == plan(other, tmp_path).path


def test_where_states_are_kept_makes_no_new_result(task_folder, tmp_path):
    asked = experiment(task_folder)
    elsewhere = dataclasses.replace(
        asked, states_dir="elsewhere", states_gigabytes=1, stream_blocks=True
    )
    assert plan(asked, tmp_path).path == plan(elsewhere, tmp_path).path


def test_both_spellings_of_a_cutoff_and_moved_data_find_the_same_result(task_folder, tmp_path):
    moved = task_folder.parent / "moved" / task_folder.name
    shutil.copytree(task_folder, moved)
    one = experiment(task_folder, kind="gemma_only", llm_layers=2)
    other = experiment(moved, kind="gemma_only", llm_layers=-17)
    assert plan(one, tmp_path).path == plan(other, tmp_path).path


def test_other_data_under_the_same_path_make_a_new_result(task_folder, tmp_path):
    asked = experiment(task_folder, kind="gemma_only")
    before = plan(asked, tmp_path).path
    line = json.dumps({"text": "The sun shone twice.", "label": 0}) + "\n"
    with (task_folder / "test.jsonl").open("a") as file:
        file.write(line)
    assert plan(asked, tmp_path).path != before


def test_each_scored_split_has_a_result_of_its_own(task_folder, tmp_path):
    asked = [experiment(task_folder, scored_split=split) for split in ("validation", "test")]
    assert len({plan(one, tmp_path).path for one in asked}) == 2

"""Results in MTEB's own format."""

import json
import re
import subprocess

import pytest
from made_results import EMOTION, TRAINED, result

from embedder_helpers.__main__ import main
from embedder_helpers.errors import InputError
from embedder_helpers.results.result import write_result
from embedder_helpers.sharing.mteb_results import model_meta, model_name, write_mteb_results

PLAIN = {"fusion": "replace", "late_fusion": False, "objective": "cross_entropy"}
RESULTS = {
    "EmotionClassification-hybrid-k4-seed33-0123abcd.json": result(
        "hybrid", (4,), 0.75, EMOTION, TRAINED, slm_preset="some/where/roberta_base_en", **PLAIN
    ),
    "EmotionClassification-gemma_only-k4-89ab0123.json": result("gemma_only", (4,), 0.5, EMOTION),
    "weather-gemma_only-k4-4567cdef.json": result("gemma_only", (4,), 0.5, "weather"),
}


def test_each_result_has_a_folder_of_its_model_and_its_hash(tmp_path):
    files = write_mteb_results(RESULTS, tmp_path, "me")
    assert [str(path.relative_to(tmp_path)) for path in files] == [
        "me__tiny_gemma-k4-roberta_base_en-replace-seed33/0123abcd/EmotionClassification.json",
        "me__tiny_gemma-k4/89ab0123/EmotionClassification.json",
    ]
    assert all((path.parent / "model_meta.json").is_file() for path in files)


def test_a_trained_embedder_names_its_task_as_training_data(tmp_path):
    trained, untrained = (
        json.loads((path.parent / "model_meta.json").read_text())
        for path in write_mteb_results(RESULTS, tmp_path, "me")
    )
    assert trained["training_datasets"] == [EMOTION] and untrained["training_datasets"] is None
    assert trained["name"] == "me/tiny_gemma-k4-roberta_base_en-replace-seed33"


def test_texts_of_local_files_have_the_revision_local(tmp_path):
    local = {"a-1.json": result("gemma_only", (4,), 0.5, EMOTION, task_data="data/emotion")}
    (path,) = write_mteb_results(local, tmp_path, "me")
    assert json.loads(path.read_text())["dataset_revision"] == "local"


def test_texts_of_the_hub_have_the_revision_that_was_loaded(tmp_path):
    one = result("gemma_only", (4,), 0.5, EMOTION)
    one.inputs["task"] = "mteb/emotion@0123456789"
    (path,) = write_mteb_results({"a-1.json": one}, tmp_path, "me")
    assert json.loads(path.read_text())["dataset_revision"] == "0123456789"


@pytest.mark.parametrize("recorded", [True, False])
def test_a_folder_with_the_name_of_a_task_is_left_out(tmp_path, recorded):
    one = result("gemma_only", (4,), 0.5, EMOTION, task_data="mine")
    one.task["name"] = f"{EMOTION} (local files)" if recorded else EMOTION
    one.experiment.update(task=f"data/{EMOTION}", task_data=None)
    if not recorded:
        del one.task["source"]
    with pytest.raises(InputError, match=rf"no result .*{EMOTION} \(local files\)"):
        write_mteb_results({"a-1.json": one}, tmp_path, "me")
    assert not list(tmp_path.iterdir())


def test_local_files_have_no_name_among_the_training_data():
    weather = result("roberta_only", (), history=TRAINED)
    meta = model_meta("me/one", "0", weather)
    assert meta["training_datasets"] is None and meta["languages"] is None


@pytest.mark.parametrize(
    ("kind", "settings", "expected"),
    [
        ("hybrid", {"late_fusion": True}, "tiny_gemma-k10-tiny_roberta-replace-late-seed33"),
        (
            "hybrid",
            {"objective": "contrastive"},
            "tiny_gemma-k10-tiny_roberta-replace-contrastive-seed33",
        ),
        ("roberta_only", {"objective": "contrastive"}, "tiny_roberta-contrastive-seed33"),
        ("roberta_only", {"objective": "cross_entropy"}, "tiny_roberta-seed33"),
    ],
)
def test_a_name_says_what_the_embedder_is_and_how_it_was_trained(kind, settings, expected):
    cutoffs = (10,) if kind == "hybrid" else ()
    one = result(kind, cutoffs, history=TRAINED, **PLAIN | settings)
    assert model_name(one) == expected


@pytest.mark.parametrize("handle", ["hf://google/gemma-2b", "kaggle://keras/gemma/gemma-2b/3"])
def test_a_name_holds_only_what_a_hub_allows(handle):
    pooled = result("gemma_only", (4, 7), llm_layers=(4, 7), llm_preset=handle)
    assert model_name(pooled) == "gemma-2b-k4.7"


@pytest.mark.parametrize("folder", ["日本", "x" * 5000, "a b`c"])
def test_a_name_of_any_folder_is_one_that_a_hub_allows(folder):
    name = model_name(result("gemma_only", (4,), llm_preset=f"/data/{folder}"))
    assert re.fullmatch(r"[A-Za-z0-9_.-]{1,96}", name)


def test_scores_of_other_sample_sizes_than_mtebs_are_left_out(tmp_path):
    other = result("gemma_only", (4,), 0.5, EMOTION)
    other.task["samples_per_label"] = 64
    with pytest.raises(InputError, match=f"no result .* samples per label.* '{EMOTION}'"):
        write_mteb_results({"a-1.json": other}, tmp_path, "me")


def test_an_invalid_org_is_reported(tmp_path):
    with pytest.raises(InputError, match="--org is 'a/b'"):
        write_mteb_results(RESULTS, tmp_path, "a/b")


def test_results_on_other_tasks_alone_are_reported(tmp_path):
    weather = {"weather-1.json": result("gemma_only", (4,), 0.5, "weather")}
    with pytest.raises(InputError, match="no result is on a task of MTEB.* 'weather'"):
        write_mteb_results(weather, tmp_path, "me")
    assert not list(tmp_path.iterdir())


def test_the_command_writes_the_results_of_a_folder(tmp_path, capsys):
    for name, one in RESULTS.items():
        write_result(one, tmp_path / name)
    out = tmp_path / "results"
    assert main(["mteb", str(tmp_path), "--org", "me", "--out", str(out)]) == 0
    assert len(capsys.readouterr().out.splitlines()) == len(list(out.rglob("Emotion*.json"))) == 2


READ = """
import json, sys
from mteb.cache import ResultCache
results = ResultCache(sys.argv[1]).load_results(include_remote=False)
print(json.dumps([
    [model.model_name, model.model_revision, task.task_name, task.get_score()]
    for model in results.model_results for task in model.task_results
]))
"""


@pytest.mark.real
def test_mteb_reads_what_was_written(tmp_path, reference_python):
    write_mteb_results(RESULTS, tmp_path / "results", "me")
    command = [reference_python, "-c", READ, str(tmp_path)]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert sorted(json.loads(output.splitlines()[-1])) == [
        ["me/tiny_gemma-k4", "89ab0123", EMOTION, 0.5],
        ["me/tiny_gemma-k4-roberta_base_en-replace-seed33", "0123abcd", EMOTION, 0.75],
    ]


def test_a_preset_whose_folder_is_a_number_has_that_name():
    assert model_name(result("gemma_only", (4,), llm_preset="123")) == "123-k4"

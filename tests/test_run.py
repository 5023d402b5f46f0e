import dataclasses
import json
import shutil

import numpy as np
import pytest

from embedder_helpers import presets
from embedder_helpers.config import Experiment, InputError
from embedder_helpers.run import read_result, run, run_all, with_baselines

QUICK = dict(llm_layers=2, epochs=2, batch_size=8, max_tokens=48, learning_rate=5e-4)


def experiment(task_folder, **keys):
    return Experiment(task=str(task_folder), samples_per_label=4, **{**QUICK, **keys})


@pytest.mark.parametrize("kind", ["hybrid", "gemma_only", "roberta_only"])
def test_a_run_leaves_a_result_that_carries_all_that_determined_it(kind, task_folder, tmp_path):
    asked = experiment(task_folder, kind=kind)
    result = run(asked, tmp_path / "out")
    (path,) = (tmp_path / "out").glob("*.json")
    assert read_result(path) == result
    assert result.experiment == asked.as_dict()
    assert len(result.experiments) == 10
    assert result.scores["accuracy"] == pytest.approx(
        np.mean([one["accuracy"] for one in result.experiments])
    )
    assert (result.head is None) == (kind == "gemma_only")
    assert {"keras", "tensorflow", "scikit-learn"} <= set(result.versions)
    assert result.device and result.seconds["total"] > 0


def test_a_result_that_is_there_is_not_computed_again(task_folder, tmp_path, capsys):
    first = run(experiment(task_folder, kind="gemma_only"), tmp_path)
    again = run(experiment(task_folder, kind="gemma_only"), tmp_path)
    assert again == first
    assert "found, not computed again" in capsys.readouterr().out


def test_a_key_that_the_kind_ignores_makes_no_new_result(task_folder, tmp_path):
    run(experiment(task_folder, kind="gemma_only", epochs=1), tmp_path)
    run(experiment(task_folder, kind="gemma_only", epochs=9), tmp_path)
    assert len(list(tmp_path.glob("*.json"))) == 1


def test_both_spellings_of_a_cutoff_and_moved_data_find_the_same_result(task_folder, tmp_path):
    run(experiment(task_folder, kind="gemma_only", llm_layers=2), tmp_path / "out")
    moved = task_folder.parent / "moved" / task_folder.name
    shutil.copytree(task_folder, moved)
    run(experiment(moved, kind="gemma_only", llm_layers=-17), tmp_path / "out")
    assert len(list((tmp_path / "out").glob("*.json"))) == 1


def test_other_data_under_the_same_path_make_a_new_result(task_folder, tmp_path):
    asked = experiment(task_folder, kind="gemma_only")
    run(asked, tmp_path / "out")
    line = json.dumps({"text": "The sun shone twice.", "label": 0}) + "\n"
    with (task_folder / "test.jsonl").open("a") as file:
        file.write(line)
    run(asked, tmp_path / "out")
    assert len(list((tmp_path / "out").glob("*.json"))) == 2


def test_a_broken_result_file_is_computed_again(task_folder, tmp_path):
    asked = experiment(task_folder, kind="gemma_only")
    result = run(asked, tmp_path)
    (path,) = tmp_path.glob("*.json")
    path.write_text(path.read_text()[:100])
    again = run(asked, tmp_path)
    assert again.scores == result.scores
    assert read_result(path) == again


def test_a_seed_repeats_a_hybrid(task_folder, tmp_path):
    first, again = (run(experiment(task_folder), tmp_path / name) for name in ("a", "b"))
    assert first.scores == again.scores and first.history == again.history
    other = run(experiment(task_folder, seed=34), tmp_path / "c")
    assert other.history != first.history


def test_no_epochs_leave_roberta_untrained(task_folder, tmp_path):
    result = run(experiment(task_folder, kind="roberta_only", epochs=0), tmp_path)
    assert result.history == [] and result.head is None


def test_training_on_validation_swaps_the_roles_of_the_splits(task_folder, tmp_path):
    asked = experiment(task_folder, kind="roberta_only", train_split="validation", epochs=1)
    texts = run(asked, tmp_path).task["texts"]
    assert texts["fit"] == 12 and texts["watched"] == 12


def test_training_can_be_capped_while_the_protocol_draws_from_the_whole_split(
    task_folder, tmp_path
):
    asked = experiment(task_folder, kind="roberta_only", max_train_texts=10, epochs=1)
    texts = run(asked, tmp_path).task["texts"]
    assert texts["fit"] == 10 and texts["drawn"] > 10


def test_gemma_alone_encodes_only_what_the_protocol_uses(task_folder, tmp_path):
    texts = run(experiment(task_folder, kind="gemma_only"), tmp_path).task["texts"]
    assert set(texts) == {"drawn", "test"}


def test_a_hybrid_has_two_baselines_in_the_same_setting():
    asked = Experiment(seed=7)
    kinds = [one.kind for one in with_baselines(asked)]
    assert kinds == ["hybrid", "roberta_only", "gemma_only"]
    assert all(dataclasses.replace(one, kind="hybrid") == asked for one in with_baselines(asked))


def test_every_experiment_is_checked_before_the_first_one_runs(task_folder, tmp_path):
    wrong = experiment(task_folder, llm_layers=19)
    with pytest.raises(InputError, match="llm_layers is 19"):
        run_all([experiment(task_folder), wrong], tmp_path)
    assert not list(tmp_path.glob("*.json"))


def test_states_are_prepared_a_chunk_at_a_time_to_the_same_scores(
    task_folder, tmp_path, monkeypatch
):
    asked = experiment(task_folder, epochs=1)
    whole = run(asked, tmp_path / "whole")
    monkeypatch.setattr("embedder_helpers.run.CHUNK", 5)
    in_chunks = run(asked, tmp_path / "chunks")
    assert in_chunks.scores == whole.scores and in_chunks.head == whole.head


def test_a_preset_without_weights_is_one_clear_error(task_folder, tmp_path):
    source = presets.BUILTIN_FOLDER / "tiny_roberta"
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / "config.json").write_text((source / "config.json").read_text())
    asked = experiment(task_folder, kind="roberta_only", slm_preset=str(tmp_path / "half"))
    with pytest.raises(InputError, match="slm_preset .*half.* cannot be loaded by keras-hub"):
        run(asked, tmp_path)


def test_a_folder_that_cannot_be_written_is_told_before_anything_is_loaded(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        run(Experiment(task="no such task"), tmp_path / "file" / "out")


@pytest.mark.real
@pytest.mark.parametrize(
    "cutoff, accuracy, f1", [(4, 0.714, 0.654), (10, 0.820, 0.763), (18, 0.719, 0.660)]
)
def test_real_gemma_scores_as_it_did_in_an_earlier_trial(
    cutoff, accuracy, f1, real_presets, shared_folder, tmp_path
):
    asked = Experiment(
        task="AmazonCounterfactualClassification",
        task_data=str(shared_folder / "data" / "amazon_counterfactual"),
        kind="gemma_only",
        llm_preset=str(real_presets / "gemma3_270m"),
        llm_layers=cutoff,
    )
    result = run(asked, tmp_path)
    assert result.scores["accuracy"] == pytest.approx(accuracy, abs=0.005)
    assert result.scores["f1"] == pytest.approx(f1, abs=0.005)

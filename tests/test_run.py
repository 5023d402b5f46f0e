import dataclasses
import json
import shutil

import numpy as np
import pytest

from embedder_helpers import presets
from embedder_helpers import run as run_module
from embedder_helpers.config import Experiment, InputError
from embedder_helpers.gemma import Gemma
from embedder_helpers.run import plan, read_result, with_baselines
from embedder_helpers.states import Store
from embedder_helpers.sweep import sweep

QUICK = dict(llm_layers=2, epochs=2, batch_size=8, max_tokens=48, learning_rate=5e-4)


def experiment(task_folder, **keys):
    return Experiment(task=str(task_folder), samples_per_label=4, **{**QUICK, **keys})


def run(asked, out):
    """The result of one experiment, found or computed."""
    return sweep([asked], out).results[0]


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
    assert f"1 experiments, 1 of them found in {tmp_path}" in capsys.readouterr().out


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


def test_a_broken_result_file_is_computed_again(task_folder, tmp_path):
    asked = experiment(task_folder, kind="gemma_only")
    result = run(asked, tmp_path)
    (path,) = tmp_path.glob("*.json")
    path.write_text(path.read_text()[:100])
    again = run(asked, tmp_path)
    assert again.scores == result.scores
    assert read_result(path) == again


def test_a_seed_repeats_a_hybrid(task_folder, tmp_path):
    asked = experiment(task_folder, epochs=1)
    first, again = (run(asked, tmp_path / name) for name in ("a", "b"))
    assert first.scores == again.scores and first.history == again.history
    other = run(dataclasses.replace(asked, seed=34), tmp_path / "c")
    assert other.history != first.history


def test_no_epochs_leave_roberta_untrained(task_folder, tmp_path):
    result = run(experiment(task_folder, kind="roberta_only", epochs=0), tmp_path)
    assert result.history == [] and result.head is None


def test_a_closed_form_start_is_taken_from_the_training_texts_without_any_epoch(
    task_folder, tmp_path
):
    started, random = (
        run(experiment(task_folder, epochs=0, projection_start=start), tmp_path)
        for start in ("ridge", "random")
    )
    assert set(started.task["texts"]) == {"fit", "drawn", "test"}
    assert started.projection["explained"] > 0.05 and started.projection["penalty"] > 0
    assert set(random.task["texts"]) == {"drawn", "test"} and random.projection is None
    assert started.head is random.head is None
    assert started.experiments != random.experiments


def test_training_on_validation_swaps_the_roles_of_the_splits(task_folder, tmp_path):
    asked = experiment(task_folder, kind="roberta_only", train_split="validation")
    planned = plan(asked, tmp_path)
    fit, watched = planned.texts("fit"), planned.texts("watched")
    assert len(fit) == len(watched) == 12
    assert all("of the validation" in text for text in fit)
    assert all("of the train" in text for text in watched)


def test_training_can_be_capped_while_the_protocol_draws_from_the_whole_split(
    task_folder, tmp_path
):
    asked = experiment(task_folder, kind="roberta_only", max_train_texts=10)
    rows = plan(asked, tmp_path).rows
    assert len(rows["fit"]) == 10 and len(rows["drawn"]) > 10


def test_gemma_alone_encodes_only_what_the_protocol_uses(task_folder, tmp_path):
    rows = plan(experiment(task_folder, kind="gemma_only"), tmp_path).rows
    assert set(rows) == {"drawn", "test"}


def test_a_plan_gives_the_texts_of_all_its_parts_end_to_end(task_folder, tmp_path):
    planned = plan(experiment(task_folder), tmp_path)
    assert list(planned.rows) == ["drawn", "test", "fit", "watched"]
    assert planned.texts() == [text for part in planned.rows for text in planned.texts(part)]
    assert len(planned.texts("test", "watched")) == 16 + 12


def test_each_text_that_was_cut_is_counted_once(task_folder, tmp_path):
    asked = experiment(task_folder, kind="roberta_only", max_tokens=6, epochs=1)
    # Every text is longer, and all that the protocol draws are trained on too.
    assert run(asked, tmp_path).truncated == 40 + 12 + 16


def test_states_that_are_there_are_not_computed_again(task_folder, tmp_path, monkeypatch):
    asked = experiment(task_folder, kind="gemma_only", llm_layers=3)
    first = run(asked, tmp_path / "first")
    monkeypatch.delattr(Gemma, "walk")
    again = run(asked, tmp_path / "again")
    assert again.scores == first.scores


def test_a_run_keeps_no_states_of_texts_that_it_reads_once(task_folder, tmp_path):
    asked = experiment(task_folder, kind="gemma_only")
    store = Store(tmp_path / "states")
    found = run_module.run(plan(asked, tmp_path), store)
    assert len(store.listing()) == 0
    assert found.scores == run(asked, tmp_path / "out").scores


def test_a_run_keeps_the_states_that_training_reads_again(task_folder, tmp_path):
    asked = experiment(task_folder, llm_layers=(1, 2), layer_pooling="learned", epochs=1)
    store = Store(tmp_path / "states")
    found = run_module.run(plan(asked, tmp_path), store)
    assert store.listing()["texts"].tolist() == [40 + 12] * 2
    assert found.cutoffs == [1, 2] and found.head


def test_a_hybrid_has_two_baselines_in_the_same_setting():
    asked = Experiment(seed=7)
    kinds = [one.kind for one in with_baselines(asked)]
    assert kinds == ["hybrid", "roberta_only", "gemma_only"]
    assert all(dataclasses.replace(one, kind="hybrid") == asked for one in with_baselines(asked))


def test_gemma_alone_beside_a_hybrid_with_learned_pooling_takes_the_mean():
    asked = Experiment(llm_layers=(1, 2), layer_pooling="learned")
    found = [(one.kind, one.layer_pooling) for one in with_baselines(asked)]
    assert found == [("hybrid", "learned"), ("roberta_only", "learned"), ("gemma_only", "mean")]


@pytest.mark.parametrize("kind", ["gemma_only", "roberta_only"])
def test_a_baseline_has_no_baselines(kind):
    assert with_baselines(Experiment(kind=kind)) == [Experiment(kind=kind)]


def test_every_experiment_is_checked_before_the_first_one_runs(task_folder, tmp_path):
    wrong = experiment(task_folder, llm_layers=19)
    with pytest.raises(InputError, match="llm_layers is 19"):
        sweep([experiment(task_folder), wrong], tmp_path)
    assert not list(tmp_path.glob("*.json"))


def test_texts_are_embedded_a_chunk_at_a_time_to_the_same_scores(
    task_folder, tmp_path, monkeypatch
):
    asked = experiment(task_folder, epochs=0)
    whole = run(asked, tmp_path / "whole")
    monkeypatch.setattr("embedder_helpers.embedder.CHUNK", 5)
    assert run(asked, tmp_path / "chunks").scores == whole.scores


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

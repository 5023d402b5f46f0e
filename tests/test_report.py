import csv
import dataclasses
import json

import numpy as np
import pytest
from made_results import EMOTION, TRAINED, result

from embedder_helpers import report
from embedder_helpers.config import Experiment, InputError
from embedder_helpers.result import write_result


def test_the_table_shows_the_cutoff_in_both_spellings():
    (row,) = report.table([result(cutoffs=(1, 10, 18))]).to_dict("records")
    assert row["embedder"] == "hybrid [1, 1-10, 1-18]"
    assert row["cutoff"] == "1, 10, 18" and row["layer number"] == "-18, -9, -1"


def test_protocol_and_head_scores_stand_in_columns_of_their_own():
    (row,) = report.table([result()]).to_dict("records")
    assert (row["accuracy"], row["head accuracy"], row["floor accuracy"]) == (0.75, 0.8, 0.5)
    assert row["texts cut"] == 3


def test_roberta_alone_has_no_cutoff_and_gemma_alone_no_head():
    text = report.as_text([result("roberta_only", ()), result("gemma_only")])
    roberta, gemma = text.splitlines()[2:4]
    assert "| RoBERTa only      | -      | -            |" in roberta
    assert "| -             | -       |" in gemma


def test_an_untrained_embedder_is_called_untrained():
    assert report.embedder_name(result("roberta_only", (), epochs=0)) == "RoBERTa only, untrained"


def test_the_built_in_models_are_said_to_show_how_the_method_behaves():
    told = "not how good it is"
    assert told in report.as_text([result()])
    real = result(llm_preset="gemma_2b_en", slm_preset="roberta_base_en")
    assert told not in report.as_text([real])


def test_a_preset_that_the_kind_does_not_use_is_not_spoken_of():
    real = result("gemma_only", llm_preset="gemma_2b_en")
    assert "not how good it is" not in report.as_text([real])


def test_keys_in_which_results_differ_have_columns_of_their_own():
    frame = report.table([result(seed=1), result(seed=2), result("gemma_only", seed=3)])
    assert frame["seed"].tolist() == [1, 2, "-"]
    assert "pooling" not in frame.columns


def test_the_notes_on_a_task_are_told_once():
    assert report.as_text([result(), result("roberta_only", ())]).count("weather: a note.") == 1


def test_results_are_read_back_from_a_folder(tmp_path):
    write_result(result(), tmp_path / "one.json")
    (tmp_path / "other.json").write_text(json.dumps({"not": "a result"}))
    (found,) = report.load_results(tmp_path)
    assert dataclasses.asdict(found) == dataclasses.asdict(result())


def test_a_folder_without_results_says_what_to_do(tmp_path):
    with pytest.raises(InputError, match="holds no results: run an experiment"):
        report.load_results(tmp_path)


def test_the_long_table_tells_each_result_with_every_key_and_version():
    (row,) = report.long_table([result(cutoffs=(4, 10), llm_layers=(4, -9))]).to_dict("records")
    assert (row["llm_layers"], row["layer_number"]) == ("4+10", "-15+-9")
    assert (row["accuracy"], row["head_f1"], row["floor_accuracy"]) == (0.75, 0.7, 0.5)
    assert (row["task"], row["seed"], row["batch_size"]) == ("weather", 33, 32)
    assert (row["seconds"], row["device"], row["python"]) == (12.4, "CPU", "3.12")
    assert set(Experiment().as_dict()) <= set(row)


def test_the_long_table_gives_the_last_epochs_accuracy_on_validation():
    frame = report.long_table([result(history=TRAINED), result("gemma_only")])
    assert frame["val_accuracy"][0] == 0.8  # after the last of three epochs
    assert np.isnan(frame["val_accuracy"][1]) and frame["head_accuracy"].isna()[1]


@pytest.mark.parametrize("patience", [2, "before there was a choice"])
def test_the_validation_accuracy_is_the_best_epochs_where_that_was_kept(patience):
    one = result(history=TRAINED)
    one.experiment["patience"] = patience
    if patience != 2:
        del one.experiment["patience"]
    assert report.long_table([one])["val_accuracy"].tolist() == [0.9]


def test_the_csv_holds_all_results_of_its_folder(tmp_path):
    for seed in (1, 2):
        write_result(result(seed=seed, accuracy=0.7 + seed / 100), tmp_path / f"{seed}.json")
        report.write_csv(tmp_path)
    with (tmp_path / report.CSV).open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {(row["seed"], row["accuracy"]) for row in rows} == {("1", "0.71"), ("2", "0.72")}
    assert not list(tmp_path.glob("*.part"))


def test_without_results_no_csv_is_written(tmp_path):
    report.write_csv(tmp_path)
    assert not list(tmp_path.iterdir())


def test_the_layer_table_goes_from_roberta_over_gemma_to_the_hybrids_the_deepest_first():
    results = [
        result(cutoffs=(4,)),
        result("gemma_only", (4,)),
        result(cutoffs=(18,)),
        result("roberta_only", (), history=TRAINED),
        result("gemma_only", (18,)),
        result(cutoffs=(10,)),
    ]
    frame = report.layer_table(results)
    assert frame["embedder"].tolist() == [
        "RoBERTa only",
        "Gemma only [1-18]",
        "Gemma only [1-4]",
        "hybrid [1-18]",
        "hybrid [1-10]",
        "hybrid [1-4]",
    ]
    assert frame["layer number"].tolist() == ["-", "-1", "-15", "-1", "-9", "-15"]


def test_the_layer_table_averages_over_seeds_and_counts_them():
    seeds = [result(seed=seed, accuracy=0.7 + seed / 10) for seed in (0, 1, 2)]
    frame = report.layer_table([*seeds, result("gemma_only")])
    assert frame["seeds"].tolist() == [1, 3]
    assert frame["weather accuracy"].tolist() == pytest.approx([0.75, 0.8])
    assert frame["weather F1"].tolist() == pytest.approx([0.65, 0.7])


def test_the_layer_table_of_one_seed_does_not_count_it():
    assert "seeds" not in report.layer_table([result(), result("gemma_only")])


def test_the_layer_table_puts_the_tasks_side_by_side():
    results = [
        result(accuracy=0.6, task="weather"),
        result(accuracy=0.8, task=EMOTION, max_train_texts=100),
        result("gemma_only", accuracy=0.5, task=EMOTION),
    ]
    frame = report.layer_table(results)
    assert list(frame)[2:] == [
        f"{EMOTION} accuracy",
        f"{EMOTION} F1",
        "weather accuracy",
        "weather F1",
    ]
    gemma, hybrid = frame.to_dict("records")
    assert (hybrid[f"{EMOTION} accuracy"], hybrid["weather accuracy"]) == (0.8, 0.6)
    assert gemma[f"{EMOTION} accuracy"] == 0.5 and np.isnan(gemma["weather accuracy"])


def test_the_layer_table_keeps_other_settings_apart_and_names_them():
    frame = report.layer_table([result(pooling="mean"), result(pooling="max")])
    assert frame["embedder"].tolist() == [
        "hybrid [1-10], pooling mean",
        "hybrid [1-10], pooling max",
    ]

import csv
import dataclasses
import json

import numpy as np
import pytest
from made_results import EMOTION, TRAINED, result

from embedder_helpers.config import Experiment
from embedder_helpers.errors import InputError
from embedder_helpers.models.saving import MANIFEST_FILE
from embedder_helpers.results import tables
from embedder_helpers.results.comparison import score_interval
from embedder_helpers.results.result import write_result

# === Result files ===


def test_results_of_a_folder_are_loaded_and_other_files_ignored(tmp_path):
    write_result(result(), tmp_path / "one.json")
    (tmp_path / "other.json").write_text(json.dumps({"not": "a result"}))
    assert tables.load_results(tmp_path) == [result()]


def test_results_in_folders_below_are_found_by_file_name(tmp_path):
    (tmp_path / "below" / "deeper").mkdir(parents=True)
    write_result(result(), tmp_path / "below" / "one.json")
    write_result(result(seed=1), tmp_path / "below" / "deeper" / "two.json")
    assert set(tables.find_results(tmp_path)) == {"one.json", "two.json"}


def test_hidden_folders_and_saved_embedders_hold_no_results(tmp_path):
    (tmp_path / "saved" / "gemma").mkdir(parents=True)
    (tmp_path / "saved" / MANIFEST_FILE).touch()
    for folder in (".hidden", ".saving-1", "saved", "saved/gemma"):
        (tmp_path / folder).mkdir(exist_ok=True)
        write_result(result(), tmp_path / folder / "one.json")
    with pytest.raises(InputError, match="contains no results"):
        tables.find_results(tmp_path)


def test_a_folder_of_results_may_be_named_like_a_saved_embedder(tmp_path):
    (tmp_path / "embedder-comparison").mkdir()
    write_result(result(), tmp_path / "embedder-comparison" / "one.json")
    assert set(tables.find_results(tmp_path)) == {"one.json"}


def test_linked_folders_are_read_once(tmp_path):
    (tmp_path / "all").mkdir()
    (tmp_path / "mine").mkdir()
    write_result(result(), tmp_path / "mine" / "one.json")
    (tmp_path / "all" / "linked").symlink_to(tmp_path / "mine")
    (tmp_path / "mine" / "loop").symlink_to(tmp_path / "all")
    assert set(tables.find_results(tmp_path / "all")) == {"one.json"}


def test_a_damaged_file_is_told_and_does_not_hide_the_others(tmp_path, caplog):
    write_result(result(), tmp_path / "a-one-01234567.json")
    (tmp_path / "b-two-01234567.json").write_text('{"scores": {}}')
    assert tables.load_results(tmp_path) == [result()]
    assert "b-two-01234567.json" in caplog.text


@pytest.mark.parametrize("folder", ["x" * 5000, "/".join(["x" * 200] * 30), "a\0b"])
def test_a_folder_that_cannot_exist_is_a_short_input_error(folder):
    with pytest.raises(InputError) as error:
        tables.load_results(folder)
    assert len(str(error.value)) < 1000


def test_results_are_loaded_by_task_kind_and_cutoff(tmp_path):
    kinds = [("hybrid", (2,)), ("roberta_only", ()), ("gemma_only", (2,)), ("gemma_only", (1,))]
    for number, (kind, cutoffs) in enumerate(kinds):
        write_result(result(kind, cutoffs), tmp_path / f"{number}.json")
    loaded = [(one.experiment["kind"], *one.cutoffs) for one in tables.load_results(tmp_path)]
    assert loaded == [("roberta_only",), ("gemma_only", 1), ("gemma_only", 2), ("hybrid", 2)]


def test_a_ready_encoder_is_loaded_between_gemma_alone_and_the_hybrids(tmp_path):
    kinds = [("hybrid", (2,)), ("encoder_only", ()), ("gemma_only", (2,))]
    for number, (kind, cutoffs) in enumerate(kinds):
        write_result(result(kind, cutoffs), tmp_path / f"{number}.json")
    loaded = [one.experiment["kind"] for one in tables.load_results(tmp_path)]
    assert loaded == ["gemma_only", "encoder_only", "hybrid"]


def test_a_ready_encoder_has_a_row_by_its_name_and_its_fingerprint_in_the_long_table():
    encoder = result("encoder_only", (), 0.7, encoder_preset="me/mini-LM")
    encoder.inputs["encoder_preset"] = "hf://me/mini-LM@0123"
    row = tables.results_table([encoder, result()]).iloc[0]
    assert row["embedder"] == "Encoder alone: mini-LM" and row["accuracy"] == 0.7
    assert (row["cutoff"], row["layer number"]) == ("-", "-")
    long = tables.long_table([encoder, result()])
    assert long["encoder_preset_fingerprint"].tolist()[:1] == ["hf://me/mini-LM@0123"]
    assert "encoder_preset_fingerprint" not in tables.long_table([result()])


def test_a_note_says_how_large_a_ready_encoder_is_and_under_which_license():
    encoder = result("encoder_only", (), encoder_preset="me/mini-LM")
    known = dataclasses.replace(encoder, parameters=22_713_216, license="apache-2.0")
    fact = "Encoder alone: mini-LM: 22.7 million weights, license apache-2.0;"
    assert notes([known, known, result()]).count(fact) == 1
    assert "Encoder alone: mini-LM: license unknown;" in notes([encoder])


def test_a_folder_without_results_is_an_input_error_that_names_it(tmp_path):
    with pytest.raises(InputError, match=f"{tmp_path}.*--out {tmp_path}"):
        tables.load_results(tmp_path)


def test_the_csv_contains_all_results_of_its_folder(tmp_path):
    for seed in (1, 2):
        write_result(result(seed=seed, accuracy=0.7 + seed / 100), tmp_path / f"{seed}.json")
        tables.write_csv(tmp_path)
    with (tmp_path / tables.CSV_FILE).open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {(row["seed"], row["accuracy"]) for row in rows} == {("1", "0.71"), ("2", "0.72")}
    assert not list(tmp_path.glob(".*"))


def test_without_results_no_csv_is_written(tmp_path):
    tables.write_csv(tmp_path)
    assert not list(tmp_path.iterdir())


# === The results table ===


def test_the_table_has_scores_of_protocol_head_and_majority_baseline():
    (row,) = tables.results_table([result(cutoffs=(1, 10, 18))]).to_dict("records")
    assert row == {
        "embedder": "hybrid [1, 1-10, 1-18]",
        "cutoff": "1, 10, 18",
        "layer number": "-18, -9, -1",
        "task": "weather",
        "data": "01234567 /data/weather",
        "accuracy": 0.75,
        "macro F1": 0.65,
        "head accuracy": 0.8,
        "head macro F1": 0.7,
        "majority accuracy": 0.5,
        "majority macro F1": 0.33,
        "truncated texts": 3,
        "seconds": 12.4,
    }


def test_roberta_alone_has_no_cutoff_and_gemma_alone_no_head():
    text = tables.format_results([result("roberta_only", ()), result("gemma_only")])
    roberta, gemma = text.splitlines()[2:4]
    assert "| RoBERTa only      | -      | -            |" in roberta
    assert "| -             | -             |" in gemma


def test_settings_that_differ_have_columns_of_their_own():
    table = tables.results_table([result(seed=1), result(seed=2), result("gemma_only", seed=3)])
    assert table["seed"].tolist() == [1, 2, "-"]
    assert "pooling" not in table.columns


# === Notes ===


def notes(results):
    return "\n".join(tables.reading_notes(results))


def test_scores_of_the_built_in_models_come_with_a_warning():
    real = result(llm_preset="gemma_2b_en", slm_preset="roberta_base_en")
    assert "built-in" in notes([real, result()])
    assert "built-in" not in notes([real])


def test_a_built_in_preset_that_the_kind_does_not_use_is_not_mentioned():
    assert "built-in" not in notes([result("gemma_only", llm_preset="gemma_2b_en")])


def test_validation_scores_come_with_a_warning():
    assert "validation" in notes([result(scored_split="validation")])
    assert "validation" not in notes([result()])


def test_a_note_on_a_task_appears_once():
    assert notes([result(), result("roberta_only", ())]).count("weather: a note.") == 1


def test_duplicates_of_training_texts_are_counted():
    one = result()
    one.task["texts"] = {"scored": 50}
    one = dataclasses.replace(one, deduplicated={"texts": 2})
    assert "weather: the train split also contains 2 of 50 evaluation texts." in notes([one])


def test_notes_are_bounded():
    one = result()
    one.task["notes"] = [
        f"label {number} " + "x" * 10_000 for number in range(1000)
    ]  # and the path
    assert len(tables.format_results([one])) < 20_000
    assert "989 more" in notes([one])


def test_names_in_notes_are_no_markup():
    one = result(task="<script>|`$x$`")
    assert r"* \<script>\|\`\$x\$\`: a note." in tables.format_results([one])


# === The long table ===


def test_the_long_table_has_what_was_used_and_the_fingerprints():
    one = result(task="sample")
    one.task["samples_per_label"] = 8
    one.inputs["llm_preset"] = "0123"
    (row,) = tables.long_table([one]).to_dict("records")
    assert row["samples_per_label"] == 8 and row["task_source"] == "builtin"
    assert {f"{name}_fingerprint": value for name, value in one.inputs.items()}.items() <= set(
        row.items()
    )


def test_the_long_table_has_scores_every_setting_and_versions():
    (row,) = tables.long_table([result(cutoffs=(4, 10), llm_layers=(4, -9))]).to_dict("records")
    assert (row["llm_layers"], row["layer_number"]) == ("4+10", "-15+-9")
    assert (row["accuracy"], row["head_f1"], row["majority_accuracy"]) == (0.75, 0.7, 0.5)
    assert (row["task"], row["seed"], row["batch_size"]) == ("weather", 33, 32)
    assert (row["seconds"], row["device"], row["python"]) == (12.4, "CPU", "3.12")
    assert not row["cutoff_selected"] and row["duplicate_texts"] == 0
    assert set(Experiment().as_dict()) <= set(row)


def test_the_validation_accuracy_is_that_of_the_last_epoch():
    table = tables.long_table([result(history=TRAINED), result("gemma_only")])
    assert table["val_accuracy"][0] == 0.8
    assert np.isnan(table["val_accuracy"][1]) and table["head_accuracy"].isna()[1]


@pytest.mark.parametrize("settings", [{"patience": 2}, {}])
def test_the_validation_accuracy_is_the_best_if_its_weights_were_kept(settings):
    one = result(history=TRAINED)
    del one.experiment["patience"]  # as in results of versions that always kept the best
    one.experiment.update(settings)
    assert tables.long_table([one])["val_accuracy"].tolist() == [0.9]


# === The layer table ===


def test_the_layer_table_is_sorted_by_kind_then_by_descending_cutoff():
    results = [
        result(cutoffs=(4,)),
        result("gemma_only", (4,)),
        result(cutoffs=(18,)),
        result("roberta_only", (), history=TRAINED),
        result("gemma_only", (18,)),
        result(cutoffs=(10,)),
    ]
    table = tables.layer_table(results)
    assert table["embedder"].tolist() == [
        "RoBERTa only",
        "Gemma only [1-18]",
        "Gemma only [1-4]",
        "hybrid [1-18]",
        "hybrid [1-10]",
        "hybrid [1-4]",
    ]
    assert table["layer number"].tolist() == ["-", "-1", "-15", "-1", "-9", "-15"]


def test_the_layer_table_averages_over_seeds_counts_them_and_shows_the_interval():
    seeds = [result(seed=seed, accuracy=0.7 + seed / 10) for seed in (0, 1, 2)]
    table = tables.layer_table([*seeds, result("gemma_only")])
    assert table["seeds"].tolist() == [1, 3]
    for column, name in (("accuracy", "weather accuracy"), ("macro F1", "weather macro F1")):
        assert table[name].iloc[1] == score_interval(seeds, column).to_string()
    assert table["weather accuracy"].iloc[1].startswith("0.800 [")


def test_the_layer_table_shows_no_interval_for_a_single_seed_of_several():
    seeds = [result(seed=seed) for seed in (0, 1)]
    table = tables.layer_table([*seeds, result("hybrid", cutoffs=[4])])
    assert "[" not in table["weather accuracy"].iloc[-1]


def test_a_copy_of_a_result_counts_once():
    copies = [result(seed=1, accuracy=0.6), result(seed=1, accuracy=0.6), result(seed=2)]
    (row,) = tables.layer_table(copies).to_dict("records")
    assert row["seeds"] == 2 and row["weather accuracy"].startswith("0.675 [")


def test_the_layer_table_of_single_seeds_does_not_count_them():
    assert "seeds" not in tables.layer_table([result(), result("gemma_only")])


def test_the_layer_table_has_columns_for_each_task():
    results = [
        result(accuracy=0.6, task="weather"),
        result(accuracy=0.8, task=EMOTION, max_train_texts=100),
        result("gemma_only", accuracy=0.5, task=EMOTION),
    ]
    table = tables.layer_table(results)
    assert list(table)[2:] == [
        f"{EMOTION} accuracy",
        f"{EMOTION} macro F1",
        "weather accuracy",
        "weather macro F1",
    ]
    gemma, hybrid = table.to_dict("records")
    assert (hybrid[f"{EMOTION} accuracy"], hybrid["weather accuracy"]) == (0.8, 0.6)
    assert gemma[f"{EMOTION} accuracy"] == 0.5 and np.isnan(gemma["weather accuracy"])


def test_the_layer_table_has_a_row_for_each_value_of_another_setting():
    table = tables.layer_table([result(pooling="mean"), result(pooling="max")])
    assert table["embedder"].str.contains("pooling").tolist() == [True, True]

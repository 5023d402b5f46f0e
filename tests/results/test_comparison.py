import dataclasses

import numpy as np
import pytest
from made_results import EMOTION, TRAINED, result

from embedder_helpers.results import comparison
from embedder_helpers.results.intervals import mean_interval, paired_interval


def trained(kind, seed, accuracy, task="weather", **settings):
    cutoffs = () if kind == "roberta_only" else (10,)
    return result(kind, cutoffs, accuracy, task, TRAINED, seed=seed, **settings)


HYBRIDS = [trained("hybrid", seed, 0.8 + seed / 50) for seed in (1, 2, 3)]
ROBERTAS = [trained("roberta_only", seed, 0.7 + seed / 40) for seed in (2, 3, 4)]
GEMMA = result("gemma_only", accuracy=0.6, seed=9)
ALL = [*ROBERTAS, GEMMA, *HYBRIDS]


def row(table, **columns):
    """The only row with these values."""
    for name, value in columns.items():
        table = table[table[name] == value]
    (record,) = table.to_dict("records")
    return record


def accuracies(results):
    return np.array([[run["accuracy"] for run in one.scores_per_experiment] for one in results])


# === Scores ===


def test_results_that_differ_in_their_seed_are_one_row_with_an_interval():
    table = comparison.comparison_table(ALL)
    assert len(table) == 3
    hybrid = row(table, embedder="hybrid [1-10]")
    assert hybrid["seeds"] == 3
    assert hybrid["accuracy"] == mean_interval(accuracies(HYBRIDS)).to_string()


def test_results_that_differ_in_another_setting_are_rows_of_their_own():
    table = comparison.comparison_table([*HYBRIDS, trained("hybrid", 1, 0.9, fusion="prepend")])
    assert len(table) == 2
    assert table["embedder"].str.contains("fusion prepend").sum() == 1


def test_a_head_score_is_shown_if_there_is_a_head():
    table = comparison.comparison_table(ALL)
    assert row(table, embedder="Gemma only [1-10]")["head accuracy"] == "-"
    assert row(table, embedder="RoBERTa only")["head accuracy"].startswith("0.800")


def test_a_single_seed_of_a_trained_embedder_has_no_interval():
    table = comparison.comparison_table([HYBRIDS[0], ROBERTAS[0]])
    assert row(table, embedder="hybrid [1-10]")["accuracy"] == "0.820"


def test_gemma_alone_has_an_interval_without_any_seeds():
    interval = comparison.score_interval([GEMMA], "accuracy")
    assert interval == mean_interval(accuracies([GEMMA]))


def with_cutoff(selected, seed, accuracy):
    return trained("hybrid", seed, accuracy, llm_layers="auto" if selected else 10)


def test_a_selected_cutoff_and_the_same_one_set_are_rows_of_their_own():
    results = [with_cutoff(selected, seed, 0.8) for selected in (True, False) for seed in (1, 2)]
    table = comparison.comparison_table(results)
    assert sorted(table["embedder"]) == ["hybrid [1-10, selected]", "hybrid [1-10]"]
    assert table["seeds"].tolist() == [2, 2]


def test_a_hybrid_is_compared_with_a_ready_encoder_at_every_cutoff():
    encoder = result("encoder_only", (), accuracy=0.7)
    hybrids = [result(cutoffs=(k,), accuracy=0.75 + k / 100, seed=7) for k in (1, 4)]
    table = comparison.difference_table([encoder, *hybrids])
    assert table["compared with"].tolist() == ["Encoder alone: tiny_roberta"] * 2
    assert [text.split()[0] for text in table["accuracy"]] == ["+0.060", "+0.090"]


def test_gemma_alone_with_and_without_a_probe_are_rows_of_their_own():
    results = [result("gemma_only", accuracy=0.6, probe=probe) for probe in (True, False)]
    table = comparison.comparison_table(results)
    assert table["seeds"].tolist() == [1, 1] and len(set(table["embedder"])) == 2


@pytest.mark.parametrize(
    "changes", [{"versions": {"embedder_helpers": "0.1"}}, {"inputs": {"task": "other"}}]
)
def test_results_of_another_version_or_other_data_are_rows_of_their_own(changes):
    ((field, values),) = changes.items()
    older = dataclasses.replace(HYBRIDS[0], **{field: getattr(HYBRIDS[0], field) | values})
    versions = HYBRIDS[1].versions | {"embedder_helpers": "0.2"}
    newer = dataclasses.replace(HYBRIDS[1], versions=versions)
    assert comparison.comparison_table([older, newer])["seeds"].tolist() == [1, 1]


def test_a_copy_of_a_result_counts_once():
    table = comparison.comparison_table([*HYBRIDS, HYBRIDS[0]])
    assert table["seeds"].tolist() == [3]
    assert comparison.difference_table([*HYBRIDS, HYBRIDS[0], *ROBERTAS])["seeds"].tolist() == [2]


# === Differences ===


def test_a_hybrid_is_compared_on_the_seeds_that_both_have():
    difference = row(comparison.difference_table(ALL), **{"compared with": "RoBERTa only"})
    expected = paired_interval(accuracies(HYBRIDS[1:]), accuracies(ROBERTAS[:2]))
    assert difference["hybrid"] == "hybrid [1-10]" and difference["seeds"] == 2
    assert difference["accuracy"] == expected.to_string(signed=True)


def test_an_embedder_without_training_is_compared_with_every_seed():
    difference = row(comparison.difference_table(ALL), **{"compared with": "Gemma only [1-10]"})
    expected = paired_interval(accuracies(HYBRIDS), accuracies([GEMMA]))
    assert difference["seeds"] == 3
    assert difference["accuracy"] == expected.to_string(signed=True)
    assert difference["head accuracy"] == "-"


def test_embedders_without_a_common_seed_have_no_difference():
    (difference,) = comparison.difference_table([HYBRIDS[0], ROBERTAS[2]]).to_dict("records")
    assert difference["seeds"] == 0 and difference["accuracy"] == "-"


def test_the_difference_of_a_single_seed_has_no_interval():
    (difference,) = comparison.difference_table([HYBRIDS[1], ROBERTAS[0]]).to_dict("records")
    assert difference["seeds"] == 1 and "[" not in difference["accuracy"]


def test_embedders_of_different_tasks_are_not_compared():
    other = trained("roberta_only", 1, 0.5, EMOTION)
    assert set(comparison.difference_table([*HYBRIDS, GEMMA, other])["task"]) == {"weather"}


def test_validation_scores_are_not_compared_with_test_scores():
    validated = [trained("roberta_only", seed, 0.7, scored_split="validation") for seed in (1, 2)]
    assert comparison.difference_table([*HYBRIDS, *validated]).empty


def test_a_hybrid_is_compared_with_gemma_alone_at_its_own_cutoff_or_a_selected_one():
    others = [result("gemma_only", (cutoff,)) for cutoff in (4, 10)]
    selected = result("gemma_only", (5,), llm_layers="auto")
    table = comparison.difference_table([*HYBRIDS, *others, selected])
    assert set(table["compared with"]) == {"Gemma only [1-10]", "Gemma only [1-5, selected]"}


def test_a_hybrid_is_compared_with_a_probe_of_gemma_at_any_cutoff():
    probe = result("gemma_only", (14,), accuracy=0.6, probe=True)
    plain = result("gemma_only", (12,), accuracy=0.6)
    table = comparison.difference_table([probe, plain, *HYBRIDS])
    assert table["compared with"].str.contains("1-14").tolist() == [True]


def test_probes_at_other_cutoffs_are_left_out_beside_gemma_at_the_hybrids_own():
    probes = [result("gemma_only", (cutoff,), probe=True) for cutoff in (4, 10, 14)]
    table = comparison.difference_table([*probes, *ROBERTAS, *HYBRIDS])
    assert len(table) == 2 and table["compared with"].str.contains("1-10").sum() == 1


def test_results_of_versions_without_probes_are_compared():
    old = result("gemma_only", (10,), accuracy=0.6)
    del old.experiment["probe"]
    assert len(comparison.difference_table([old, *HYBRIDS])) == 1


# === Text ===


def test_single_seeds_have_no_comparison():
    assert comparison.format_comparison([HYBRIDS[0], ROBERTAS[0], GEMMA]) == ""


@pytest.fixture
def with_duplicates():
    """The hybrids, two of whose evaluation texts are in the train split too."""
    runs = [{"accuracy": 0.5, "f1": 0.4}, {"accuracy": 0.6, "f1": 0.5}]
    scores = {"texts": 2, "scores": {}, "experiments": runs, "head": {"accuracy": 1, "f1": 1}}
    return [
        dataclasses.replace(one, deduplicated=scores, task=one.task | {"texts": {"scored": 50}})
        for one in HYBRIDS
    ]


def test_scores_without_duplicates_are_shown_after_those_of_all_texts(with_duplicates):
    text = comparison.format_comparison(with_duplicates)
    everything, deduplicated = text.split("Without 2 of 50 evaluation texts of weather")
    expected = mean_interval(np.tile([[0.5, 0.6]], (3, 1))).to_string()
    assert expected in deduplicated and expected not in everything


def test_without_duplicates_there_is_one_comparison():
    assert "Without" not in comparison.format_comparison(ALL)


# === Ablations ===

FIRST = [
    trained("hybrid", seed, 0.6 + seed / 100, fusion="replace", epochs=6) for seed in (1, 2, 3)
]
SECOND = [
    trained("hybrid", seed, 0.7 + seed / 50, fusion="replace", epochs=3) for seed in (2, 3, 4)
]
THIRD = [trained("hybrid", seed, 0.8, fusion="add", epochs=3) for seed in (2, 3)]
ALONE = [trained("roberta_only", 2, 0.75, epochs=3)]


def changes(results):
    return [step.change for step in comparison.ablation_steps(results)]


def gains(results):
    return comparison.ablation_table(results)["accuracy gain"].tolist()


def test_a_step_names_the_settings_that_changed():
    assert changes([*FIRST, *SECOND, *THIRD, *ALONE]) == [
        "hybrid",
        "epochs 3",
        "fusion add, projection_start zero",
        "RoBERTa only",
    ]


def test_a_step_to_another_kind_names_the_settings_that_changed_too():
    gemma = result("gemma_only", (10,), 0.7, final_norm="none")
    assert changes([THIRD[0], gemma])[1].startswith("Gemma only, final_norm none")


def test_steps_keep_the_order_of_the_results_task_by_task():
    other = [trained("hybrid", 2, 0.5, EMOTION, epochs=epochs) for epochs in (3, 1)]
    steps = comparison.ablation_steps([FIRST[0], other[0], *SECOND, other[1]])
    assert [(step.task, step.change) for step in steps] == [
        ("weather", "hybrid"),
        ("weather", "epochs 3"),
        (EMOTION, "hybrid"),
        (EMOTION, "epochs 1"),
    ]


def test_a_gain_is_paired_over_the_seeds_that_both_steps_have():
    table = comparison.ablation_table([*FIRST, *SECOND])
    expected = paired_interval(accuracies(SECOND[:2]), accuracies(FIRST[1:]))
    assert table["accuracy gain"].tolist() == ["-", expected.to_string(signed=True)]
    assert table["seeds"].tolist() == [3, 3]


def test_the_gain_of_a_single_seed_has_no_interval():
    assert gains([SECOND[0], THIRD[0]])[1] == "+0.060"


def test_steps_without_a_common_seed_have_no_gain():
    table = comparison.ablation_table([FIRST[0], SECOND[2]])
    assert table["accuracy"][1] == "0.780"
    assert table["accuracy gain"][1] == "-"


def test_gains_to_and_from_an_embedder_without_training_are_over_all_seeds():
    gemma = result("gemma_only", (10,), 0.7, seed=9)
    down = paired_interval(accuracies([gemma]), accuracies(FIRST))
    up = paired_interval(accuracies(THIRD), accuracies([gemma]))
    expected = [interval.to_string(signed=True) for interval in (down, up)]
    assert gains([*FIRST, gemma, *THIRD])[1:] == expected


def test_seeds_of_an_untrained_hybrid_are_paired_one_by_one():
    untrained = [
        result("hybrid", (10,), 0.3 + seed / 10, seed=seed, epochs=0, projection_start="random")
        for seed in (1, 2, 3)
    ]
    expected = paired_interval(accuracies(untrained), accuracies(FIRST))
    assert gains([*FIRST, *untrained])[1] == expected.to_string(signed=True)

import numpy as np
from made_results import EMOTION, TRAINED, result

from embedder_helpers import ablation
from embedder_helpers.intervals import paired


def trained(seed, accuracy, task="weather", kind="hybrid", **keys):
    return result(kind, (10,), accuracy, task, TRAINED, seed=seed, **keys)


FIRST = [trained(seed, 0.6 + seed / 100, fusion="replace", epochs=6) for seed in (1, 2, 3)]
SECOND = [trained(seed, 0.7 + seed / 50, fusion="replace", epochs=3) for seed in (2, 3, 4)]
THIRD = [trained(seed, 0.8, fusion="add", epochs=3) for seed in (2, 3)]
ALONE = [trained(2, 0.75, kind="roberta_only", epochs=3)]


def accuracies(results):
    return np.array([[one["accuracy"] for one in each.experiments] for each in results])


def test_a_step_names_the_keys_that_changed_and_no_others():
    changes = [step.change for step in ablation.steps([*FIRST, *SECOND, *THIRD, *ALONE])]
    assert changes == [
        "hybrid",
        "epochs 3",
        "fusion add, projection_start zero",
        "RoBERTa only",
    ]


def test_steps_are_in_the_order_of_the_results_task_by_task():
    other = [trained(2, 0.5, EMOTION, epochs=3), trained(2, 0.4, EMOTION, epochs=1)]
    found = ablation.steps([FIRST[0], other[0], *SECOND, other[1]])
    assert [(step.task, step.change) for step in found] == [
        ("weather", "hybrid"),
        ("weather", "epochs 3"),
        (EMOTION, "hybrid"),
        (EMOTION, "epochs 1"),
    ]


def test_a_gain_is_paired_over_the_seeds_that_both_steps_have():
    first, second = ablation.step_table([*FIRST, *SECOND]).to_dict("records")
    expected = paired(accuracies(SECOND[:2]), accuracies(FIRST[1:]))
    assert first["accuracy gain"] == "-"
    assert second["accuracy gain"] == expected.told(signed=True)
    assert (first["seeds"], second["seeds"]) == (3, 3)


def test_the_gain_of_a_single_seed_has_no_interval():
    (_, second) = ablation.step_table([SECOND[0], THIRD[0]]).to_dict("records")
    assert second["accuracy gain"] == "+0.060"


def test_a_gain_without_a_common_seed_is_not_told():
    (_, second) = ablation.step_table([FIRST[0], SECOND[2]]).to_dict("records")
    assert second["accuracy"] == "0.780"
    assert second["accuracy gain"] == "-"


def test_the_kind_is_told_where_it_changes_with_the_keys_that_change_beside_it():
    gemma = result("gemma_only", (10,), 0.7, final_norm="none")
    assert [step.change for step in ablation.steps([THIRD[0], gemma])][1].startswith(
        "Gemma only, final_norm none"
    )


def test_a_step_to_something_that_no_seed_decides_is_told_over_all_seeds():
    gemma = result("gemma_only", (10,), 0.7, seed=9)
    (_, down, up) = ablation.step_table([*FIRST, gemma, *THIRD]).to_dict("records")
    expected = paired(accuracies([gemma]), accuracies(FIRST))
    assert down["accuracy gain"] == expected.told(signed=True)
    assert up["accuracy gain"] == paired(accuracies(THIRD), accuracies([gemma])).told(signed=True)


def test_seeds_of_an_untrained_hybrid_are_paired_one_by_one():
    untrained = [
        result("hybrid", (10,), 0.3 + seed / 10, seed=seed, epochs=0, projection_start="random")
        for seed in (1, 2, 3)
    ]
    (_, second) = ablation.step_table([*FIRST, *untrained]).to_dict("records")
    expected = paired(accuracies(untrained), accuracies(FIRST))
    assert second["accuracy gain"] == expected.told(signed=True)

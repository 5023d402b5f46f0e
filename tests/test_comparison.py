import dataclasses

import numpy as np
import pytest
from made_results import EMOTION, TRAINED, result

from embedder_helpers import comparison
from embedder_helpers.intervals import interval, paired


def trained(kind, seed, accuracy, task="weather", **keys):
    cutoffs = () if kind == "roberta_only" else (10,)
    return result(kind, cutoffs, accuracy, task, TRAINED, seed=seed, **keys)


HYBRIDS = [trained("hybrid", seed, 0.8 + seed / 50) for seed in (1, 2, 3)]
ROBERTAS = [trained("roberta_only", seed, 0.7 + seed / 40) for seed in (2, 3, 4)]
GEMMA = result("gemma_only", accuracy=0.6, seed=9)
ALL = [*ROBERTAS, GEMMA, *HYBRIDS]


def row(frame, **columns):
    for name, value in columns.items():
        frame = frame[frame[name] == value]
    (found,) = frame.to_dict("records")
    return found


def accuracies(results):
    return np.array([[one["accuracy"] for one in each.experiments] for each in results])


def test_results_that_differ_in_their_seed_are_one_row_with_its_interval():
    frame = comparison.comparison(ALL)
    assert len(frame) == 3
    found = row(frame, embedder="hybrid [1-10]")
    assert found["seeds"] == 3
    assert found["accuracy"] == interval(accuracies(HYBRIDS)).told()


def test_results_that_differ_in_another_key_are_rows_of_their_own():
    frame = comparison.comparison([*HYBRIDS, trained("hybrid", 1, 0.9, fusion="add")])
    assert len(frame) == 2
    assert frame["embedder"].str.contains("fusion add").sum() == 1


def test_a_head_score_is_told_where_there_is_a_head():
    frame = comparison.comparison(ALL)
    assert row(frame, embedder="Gemma only [1-10]")["head accuracy"] == "-"
    assert row(frame, embedder="RoBERTa only")["head accuracy"].startswith("0.800")


def test_a_hybrid_is_compared_on_the_seeds_that_both_have():
    found = row(comparison.differences(ALL), above="RoBERTa only")
    expected = paired(accuracies(HYBRIDS[1:]), accuracies(ROBERTAS[:2]))
    assert found["seeds"] == 2
    assert found["accuracy"] == expected.told(signed=True)


def test_an_embedder_without_training_is_compared_with_every_seed():
    found = row(comparison.differences(ALL), above="Gemma only [1-10]")
    expected = paired(accuracies(HYBRIDS), accuracies([GEMMA]))
    assert found["seeds"] == 3
    assert found["accuracy"] == expected.told(signed=True)
    assert found["head accuracy"] == "-"


def test_embedders_of_different_tasks_are_not_compared():
    other = trained("roberta_only", 1, 0.5, EMOTION)
    assert set(comparison.differences([*HYBRIDS, GEMMA, other])["task"]) == {"weather"}


def test_without_a_seed_in_common_nothing_is_told():
    frame = comparison.differences([HYBRIDS[0], ROBERTAS[2]])
    assert row(frame, above="RoBERTa only")["seeds"] == 0


def test_a_single_seed_has_no_comparison():
    assert comparison.as_text([HYBRIDS[0], ROBERTAS[0], GEMMA]) == ""


@pytest.fixture
def repeated():
    """The hybrids, two of whose scored texts train has too."""
    rest = [{"accuracy": 0.5, "f1": 0.4}, {"accuracy": 0.6, "f1": 0.5}]
    unrepeated = {"texts": 2, "scores": {}, "experiments": rest, "head": {"accuracy": 1, "f1": 1}}
    return [
        dataclasses.replace(one, unrepeated=unrepeated, task=one.task | {"texts": {"scored": 50}})
        for one in HYBRIDS
    ]


def test_scores_without_repeated_texts_are_told_beside_those_of_all(repeated):
    text = comparison.as_text(repeated)
    assert "Without 2 of 50 scored texts of weather, which the train split has too" in text
    found = row(comparison.comparison(repeated, unrepeated=True), seeds=3)
    assert found["accuracy"] == interval(np.tile([[0.5, 0.6]], (3, 1))).told()


def test_without_repeated_texts_there_is_one_comparison():
    assert "Without" not in comparison.as_text(ALL)


def asked(chosen, seed, accuracy, **keys):
    keys = {"llm_layers": "auto" if chosen else 10} | keys
    return trained("hybrid", seed, accuracy, **keys)


def test_a_chosen_cutoff_and_the_same_one_given_are_rows_of_their_own():
    results = [asked(chosen, seed, 0.8) for chosen in (True, False) for seed in (1, 2)]
    frame = comparison.comparison(results)
    assert sorted(frame["embedder"]) == ["hybrid [1-10, chosen]", "hybrid [1-10]"]
    assert frame["seeds"].tolist() == [2, 2]


def test_gemma_alone_with_and_without_a_probe_are_rows_of_their_own():
    results = [result("gemma_only", accuracy=0.6, probe=probe) for probe in (True, False)]
    frame = comparison.comparison(results)
    assert frame["seeds"].tolist() == [1, 1] and len(set(frame["embedder"])) == 2


@pytest.mark.parametrize(
    "part", [{"versions": {"embedder_helpers": "0.1"}}, {"inputs": {"task": "other"}}]
)
def test_results_of_another_version_or_of_other_data_are_rows_of_their_own(part):
    older = dataclasses.replace(HYBRIDS[0], **{
        name: vars(HYBRIDS[0])[name] | value for name, value in part.items()
    })  # fmt: skip
    newer = dataclasses.replace(
        HYBRIDS[1], versions=HYBRIDS[1].versions | {"embedder_helpers": "0.2"}
    )
    frame = comparison.comparison([older, newer])
    assert frame["seeds"].tolist() == [1, 1]


def test_scores_of_validation_are_marked_and_not_compared_with_those_of_test():
    validated = [trained("roberta_only", seed, 0.7, scored_split="validation") for seed in (1, 2)]
    results = [*HYBRIDS, *validated]
    assert "RoBERTa only, validation" in set(comparison.comparison(results)["embedder"])
    assert len(comparison.differences(results)) == 0


def test_a_hybrid_is_compared_with_gemma_alone_at_its_own_cutoff_or_a_chosen_one():
    others = [result("gemma_only", (cutoff,)) for cutoff in (4, 10)]
    chosen = result("gemma_only", (5,), llm_layers="auto")
    frame = comparison.differences([*HYBRIDS, *others, chosen])
    assert set(frame["above"]) == {"Gemma only [1-10]", "Gemma only [1-5, chosen]"}


def test_one_seed_of_what_was_trained_tells_no_interval():
    one, other = HYBRIDS[:1], ROBERTAS[:1]
    frame = comparison.comparison([*one, *other])
    assert row(frame, embedder="hybrid [1-10]")["accuracy"] == "0.820"
    found = row(comparison.differences([HYBRIDS[1], ROBERTAS[0]]), above="RoBERTa only")
    assert found["seeds"] == 1 and "[" not in found["accuracy"]


def test_gemma_with_a_probe_is_compared_whatever_its_cutoff():
    probe = result("gemma_only", (14,), accuracy=0.6, probe=True)
    plain = result("gemma_only", (12,), accuracy=0.6)
    frame = comparison.differences([probe, plain, *HYBRIDS])
    assert frame["above"].str.contains("1-14").tolist() == [True]


def test_results_of_before_there_were_probes_are_compared():
    old = result("gemma_only", (10,), accuracy=0.6)
    del old.experiment["probe"]
    assert len(comparison.differences([old, *HYBRIDS])) == 1

import dataclasses

import pytest
from made_results import EMOTION, TRAINED, result

from embedder_helpers.results.naming import display_names, embedder_name


@pytest.mark.parametrize(
    "kind, cutoffs, settings, name",
    [
        ("hybrid", (10,), {}, "hybrid [1-10]"),
        ("hybrid", (1, 10, 18), {}, "hybrid [1, 1-10, 1-18]"),
        ("gemma_only", (10,), {"llm_layers": "auto"}, "Gemma only [1-10, selected]"),
        ("gemma_only", (10,), {"epochs": 0}, "Gemma only [1-10]"),
        ("roberta_only", (), {}, "RoBERTa only"),
        ("roberta_only", (), {"epochs": 0}, "RoBERTa only, untrained"),
        ("roberta_only", (), {"scored_split": "validation"}, "RoBERTa only, validation"),
        (
            "encoder_only",
            (),
            {"encoder_preset": "sentence-transformers/all-MiniLM-L6-v2", "epochs": 0},
            "Encoder alone: all-MiniLM-L6-v2",
        ),
        (
            "encoder_only",
            (),
            {"encoder_preset": "kaggle://keras/bert/keras/bert_base_en/3"},
            "Encoder alone: bert_base_en",
        ),
    ],
)
def test_an_embedder_is_named_by_kind_layers_and_training(kind, cutoffs, settings, name):
    assert embedder_name(result(kind, cutoffs, **settings)) == name


def test_settings_that_differ_are_part_of_the_name():
    assert display_names([result(pooling="mean"), result(pooling="max")]) == [
        "hybrid [1-10], pooling mean",
        "hybrid [1-10], pooling max",
    ]


def test_the_seed_and_settings_without_effect_are_not_part_of_the_name():
    results = [result("gemma_only", epochs=1, seed=1), result("gemma_only", epochs=2, seed=2)]
    assert display_names(results) == ["Gemma only [1-10]"] * 2


def test_results_of_earlier_versions_have_the_loss_and_fusion_that_there_were():
    older, newer = result(), result(objective="contrastive", late_fusion=True)
    del older.experiment["objective"], older.experiment["late_fusion"]
    assert display_names([older, newer]) == [
        "hybrid [1-10], late_fusion False, objective cross_entropy",
        "hybrid [1-10], late_fusion True, objective contrastive",
    ]


def test_ready_encoders_are_told_apart_by_name_or_else_by_content():
    results = [
        result("encoder_only", (), encoder_preset=preset) for preset in ("a/one", "a/two", "b/one")
    ]
    for number, one in enumerate(results):
        one.inputs["encoder_preset"] = f"{number}23456789"
    assert display_names(results) == [
        "Encoder alone: one, one 02345678",
        "Encoder alone: two",
        "Encoder alone: one, one 22345678",
    ]


def test_settings_that_differ_between_tasks_are_not_part_of_the_name():
    results = [result(max_train_texts=100), result(task=EMOTION, max_train_texts=200)]
    assert display_names(results) == ["hybrid [1-10]"] * 2


@pytest.mark.parametrize(
    "changes, distinction",
    [
        ({"versions": {"embedder_helpers": "0.1"}}, "version 0.1"),
        ({"inputs": {"llm_preset": "0123456789"}}, "Gemma 01234567"),
        ({"inputs": {"slm_preset": "0123456789"}}, "RoBERTa 01234567"),
        ({"inputs": {"llm_preset": "hf://a/b@0123456789"}}, "Gemma hf://a/b@01234567"),
        ({"task": {"samples_per_label": 64}}, "texts per label 64"),
    ],
)
def test_a_different_origin_is_part_of_the_name(changes, distinction):
    usual = result(history=TRAINED)
    ((field, values),) = changes.items()
    other = dataclasses.replace(usual, **{field: getattr(usual, field) | values})
    usual_name, other_name = display_names([usual, other])
    assert other_name == f"hybrid [1-10], {distinction}"
    assert usual_name != other_name


def test_two_versions_of_one_preset_are_told_apart():
    results = [result(), result()]
    for version, one in enumerate(results):
        one.inputs["slm_preset"] = f"kaggle://keras/roberta@{version}"
    assert display_names(results)[1] == "hybrid [1-10], RoBERTa kaggle://keras/roberta@1"


def test_a_version_that_was_not_recorded_is_unknown():
    older = result()
    newer = dataclasses.replace(older, versions={"embedder_helpers": "0.2"})
    assert display_names([older, newer])[0] == "hybrid [1-10], version unknown"

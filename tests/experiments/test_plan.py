"""Plans: which texts an experiment trains on, validates on, samples and scores."""

import dataclasses
import json

import numpy as np
import pytest
from made_task import experiment, write_task

from embedder_helpers.data.tasks import load_task
from embedder_helpers.errors import InputError
from embedder_helpers.experiments.plan import Subset, plan_all, plan_experiment, select_rows


@pytest.fixture
def plan(task_folder, tmp_path):
    """Plans an experiment with some settings on the task of 40, 12 and 16 texts."""
    return lambda **settings: plan_experiment(experiment(task_folder, **settings), tmp_path)


def append_row(path, text, label):
    with path.open("a") as file:
        file.write(json.dumps({"text": text, "label": label}) + "\n")


def test_training_on_validation_swaps_the_roles_of_the_splits(plan):
    swapped = plan(kind="roberta_only", train_split="validation")
    train, validation = swapped.texts(Subset.TRAIN), swapped.texts(Subset.VALIDATION)
    assert len(train) == len(validation) == 12
    assert all("of the validation" in text for text in train)
    assert all("of the train" in text for text in validation)


def test_max_train_texts_limits_training_and_not_the_protocol(plan):
    rows = plan(kind="roberta_only", max_train_texts=10).rows
    assert len(rows[Subset.TRAIN]) == 10 and len(rows[Subset.PROTOCOL_TRAIN]) > 10


def test_max_train_texts_leaves_no_label_out(plan, task_folder):
    append_row(task_folder / "train.jsonl", "The only text of a third label.", 2)
    limited = plan(kind="roberta_only", max_train_texts=3)
    assert sorted(limited.labels(Subset.TRAIN).tolist()) == [0, 1, 2]


def test_max_train_texts_below_the_number_of_labels_is_an_error(plan, task_folder):
    append_row(task_folder / "train.jsonl", "The only text of a third label.", 2)
    with pytest.raises(InputError, match="max_train_texts is 2, .* at least 3"):
        plan(kind="roberta_only", max_train_texts=2)


@pytest.mark.parametrize("kind", ["hybrid", "roberta_only"])
def test_texts_per_label_are_nested_draws_by_the_seed_alone(kind, plan):
    drawn = {}
    for seed in (1, 2):
        for count in (1, 3, 8, 99):
            rows = plan(kind=kind, train_texts_per_label=count, seed=seed).rows
            drawn[seed, count] = set(rows[Subset.TRAIN].tolist())
            labels = plan(kind=kind).task.train.labels[rows[Subset.TRAIN]]
            assert np.bincount(labels).tolist() == [min(count, 20)] * 2
            assert len(rows[Subset.VALIDATION]) == 2 * min(count, 6)
        assert drawn[seed, 1] < drawn[seed, 3] < drawn[seed, 8] < drawn[seed, 99]
    assert drawn[1, 3] != drawn[2, 3]
    other = plan(kind="gemma_only", probe=True, train_texts_per_label=3, seed=1)
    assert set(other.rows[Subset.TRAIN].tolist()) == drawn[1, 3] and "-seed1-" in other.path.name


def test_texts_per_label_do_not_limit_the_protocol(plan):
    few, all_texts = plan(train_texts_per_label=1).rows, plan().rows
    for subset in (Subset.PROTOCOL_TRAIN, Subset.EVAL):
        np.testing.assert_array_equal(few[subset], all_texts[subset])


def test_texts_per_label_are_drawn_from_the_most_training_texts(plan):
    few, most = (
        plan(max_train_texts=10, train_texts_per_label=count).rows[Subset.TRAIN]
        for count in (2, None)
    )
    assert len(few) == 4 and set(few) < set(most)


def test_an_experiment_that_is_wanted_twice_saves_what_either_saves(task_folder, tmp_path):
    wanted = [{"save_embedder": "with_gemma"}, {"save_embedder": True}, {"save_predictions": True}]
    plans = plan_all([experiment(task_folder, **one) for one in wanted], tmp_path)
    assert len(plans) == 1
    assert plans[0].experiment.save_embedder == "with_gemma"
    assert plans[0].experiment.save_predictions


def test_a_label_that_the_validation_split_lacks_cannot_be_trained_on_there(plan, task_folder):
    append_row(task_folder / "train.jsonl", "The only text of a third label.", 2)
    assert len(plan(kind="roberta_only").rows[Subset.TRAIN]) == 41
    with pytest.raises(InputError, match="train_split .*label.s. 2: "):
        plan(kind="roberta_only", train_split="validation")


def test_held_out_texts_that_lack_a_label_are_told_from_a_validation_file(plan, task_folder):
    (task_folder / "validation.jsonl").unlink()
    append_row(task_folder / "train.jsonl", "The only text of a third label.", 2)
    with pytest.raises(InputError, match="train_split .*held out .*label.s. 2: .*file"):
        plan(kind="roberta_only", train_split="validation")


def test_mtebs_splits_are_trained_on_as_they_are(plan, task_folder):
    append_row(task_folder / "train.jsonl", "The only text of a third label.", 2)
    settings = experiment(task_folder, kind="roberta_only", train_split="validation")
    task = dataclasses.replace(load_task(settings), source="mteb")
    assert len(select_rows(settings, task)[Subset.TRAIN]) == 12


def test_one_text_of_each_label_can_be_scored_but_not_trained_on(tmp_path):
    folder = write_task(tmp_path / "few", counts={"train": 5, "test": 5}, num_classes=5)
    plan = plan_experiment(experiment(folder, kind="gemma_only"), tmp_path)
    assert len(plan.rows[Subset.PROTOCOL_TRAIN]) == 5
    with pytest.raises(InputError, match="few has no text to validate training on"):
        plan_experiment(experiment(folder, kind="roberta_only"), tmp_path)


def test_gemma_alone_reads_only_the_texts_of_the_protocol(plan):
    assert set(plan(kind="gemma_only").rows) == {Subset.PROTOCOL_TRAIN, Subset.EVAL}


def test_subsets_have_the_names_of_result_files(plan):
    assert list(plan().rows) == ["drawn", "scored", "fit", "watched"]


def test_texts_concatenates_subsets_and_by_default_all(plan):
    hybrid = plan()
    texts = [text for subset in hybrid.rows for text in hybrid.texts(subset)]
    assert hybrid.texts() == texts
    assert len(hybrid.texts(Subset.EVAL, Subset.VALIDATION)) == 16 + 12


@pytest.mark.parametrize(("split", "count"), [("validation", 12), ("test", 16)])
def test_scored_split_is_the_split_that_is_scored(split, count, plan):
    scored = plan(scored_split=split)
    assert scored.texts(Subset.EVAL) == getattr(scored.task, split).texts()
    assert scored.labels(Subset.EVAL).tolist() == [0, 1] * (count // 2)


def held_out_experiment(folder, count):
    """An experiment that scores validation texts on a task without a validation split."""
    task = write_task(folder / "rain", counts={"train": count, "test": 8})
    return experiment(task, scored_split="validation", kind="roberta_only", epochs=1)


def test_no_held_out_text_that_the_protocol_samples_is_scored(tmp_path):
    plan = plan_experiment(held_out_experiment(tmp_path, 200), tmp_path)
    scored, sampled = plan.texts(Subset.EVAL), plan.texts(Subset.PROTOCOL_TRAIN)
    assert 0 < len(scored) < len(plan.task.validation) == 20
    assert not set(scored) & set(sampled) and not set(scored) & set(plan.texts(Subset.TRAIN))
    assert set(plan.task.validation.texts()) <= set(scored) | set(sampled)


def test_held_out_texts_that_are_all_sampled_are_an_error(tmp_path):
    with pytest.raises(InputError, match="scored_split.*'validation'.*rain.*samples_per_label"):
        plan_experiment(held_out_experiment(tmp_path, 20), tmp_path)


def test_a_seed_counts_only_where_texts_are_drawn(plan):
    def names(**settings):
        return {plan(seed=seed, train_texts_per_label=2, **settings).path for seed in (1, 2)}

    assert len(names(kind="gemma_only", llm_layers=1)) == 1  # nothing is fitted
    assert len(names(kind="gemma_only", llm_layers=1, probe=True)) == 2

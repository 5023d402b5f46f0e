import dataclasses

import pytest
from made_task import experiment, write_task

from embedder_helpers.config import Experiment, InputError
from embedder_helpers.plan import plan, with_baselines


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
    assert set(rows) == {"drawn", "scored"}


def test_a_plan_gives_the_texts_of_all_its_parts_end_to_end(task_folder, tmp_path):
    planned = plan(experiment(task_folder), tmp_path)
    assert list(planned.rows) == ["drawn", "scored", "fit", "watched"]
    assert planned.texts() == [text for part in planned.rows for text in planned.texts(part)]
    assert len(planned.texts("scored", "watched")) == 16 + 12


def test_the_rows_scored_are_those_of_the_split_asked_for(task_folder, tmp_path):
    for split, count in (("validation", 12), ("test", 16)):
        planned = plan(experiment(task_folder, scored_split=split), tmp_path)
        assert planned.texts("scored") == getattr(planned.task, split).texts()
        assert planned.labels("scored").tolist() == [0, 1] * (count // 2)


def held_out_task(folder, count):
    """A task without a validation split."""
    task = write_task(folder / "rain", counts={"train": count, "test": 8})
    return experiment(task, scored_split="validation", kind="roberta_only", epochs=1)


def test_no_text_that_is_scored_was_drawn_where_validation_is_held_out_of_train(tmp_path):
    planned = plan(held_out_task(tmp_path, 200), tmp_path)
    scored, drawn = planned.texts("scored"), planned.texts("drawn")
    assert 0 < len(scored) < len(planned.task.validation) == 20
    assert not set(scored) & set(drawn) and not set(scored) & set(planned.texts("fit"))
    assert set(planned.task.validation.texts()) <= set(scored) | set(drawn)


def test_held_out_texts_that_are_all_drawn_are_one_clear_error(tmp_path):
    with pytest.raises(InputError, match="scored_split is 'validation', but rain has none"):
        plan(held_out_task(tmp_path, 20), tmp_path)


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

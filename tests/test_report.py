import dataclasses
import json

import pytest

from embedder_helpers import report
from embedder_helpers.config import Experiment, InputError
from embedder_helpers.run import Result, write_result


def result(kind="hybrid", cutoffs=(10,), accuracy=0.75, **keys):
    experiment = Experiment(kind=kind, **keys)
    scores = {"accuracy": accuracy, "f1": accuracy - 0.1}
    return Result(
        experiment=experiment.as_dict(),
        task={"name": "weather", "notes": ["a note"]},
        cutoffs=list(cutoffs),
        blocks=18 if cutoffs else None,
        scores=scores,
        experiments=[{"accuracy": accuracy + d, "f1": accuracy + d - 0.1} for d in (-0.02, 0.02)],
        head=None if kind == "gemma_only" else {"accuracy": 0.8, "f1": 0.7},
        floor={"accuracy": 0.5, "f1": 0.33},
        history=[],
        truncated=3,
        seconds={"total": 12.4},
        versions={},
        device=["CPU"],
        inputs={
            "task": "",
            **({"llm_preset": ""} if cutoffs else {}),
            **({} if kind == "gemma_only" else {"slm_preset": ""}),
        },
    )


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


def test_the_built_in_models_are_said_to_show_the_machinery_only():
    told = "the machinery, not the method"
    assert told in report.as_text([result()])
    real = result(llm_preset="gemma_2b_en", slm_preset="roberta_base_en")
    assert told not in report.as_text([real])


def test_a_preset_that_the_kind_does_not_use_is_not_spoken_of():
    real = result("gemma_only", llm_preset="gemma_2b_en")
    assert "the machinery, not the method" not in report.as_text([real])


def test_keys_in_which_results_differ_have_columns_of_their_own():
    frame = report.table([result(seed=1), result(seed=2), result("gemma_only", seed=3)])
    assert frame["seed"].tolist() == [1, 2, "-"]
    assert "pooling" not in frame.columns


def test_the_notes_on_a_task_are_told_once():
    assert report.as_text([result(), result("roberta_only", ())]).count("weather: a note.") == 1


def test_the_figure_shows_every_embedder_and_the_floor(tmp_path):
    results = [result(), result("roberta_only", ())]
    figure = report.plot(results, tmp_path / "scores.png")
    accuracy = figure.axes[0]
    names = [label.get_text() for label in accuracy.get_yticklabels()]
    assert names == ["hybrid [1-10]", "RoBERTa only"]
    assert (tmp_path / "scores.png").stat().st_size > 1000


def test_results_are_read_back_from_a_folder(tmp_path):
    write_result(result(), tmp_path / "one.json")
    (tmp_path / "other.json").write_text(json.dumps({"not": "a result"}))
    (found,) = report.load_results(tmp_path)
    assert dataclasses.asdict(found) == dataclasses.asdict(result())


def test_a_folder_without_results_says_what_to_do(tmp_path):
    with pytest.raises(InputError, match="holds no results: run an experiment"):
        report.load_results(tmp_path)

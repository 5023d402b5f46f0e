import pandas as pd
import pytest
from made_results import EMOTION, TRAINED, result

from embedder_helpers import leaderboard
from embedder_helpers.comparison import mean
from embedder_helpers.leaderboard import against_original, places

AMAZON = "AmazonCounterfactualClassification"


def trained(accuracy, kind="hybrid", cutoffs=(4,), task=EMOTION, **keys):
    return result(kind, cutoffs, accuracy, task, TRAINED, **keys)


def row(frame, **wanted):
    found = frame[(frame[list(wanted)] == pd.Series(wanted)).all(axis=1)]
    return found.iloc[0].to_dict()


# The carried figures


def test_a_model_stands_once_on_each_task_of_the_leaderboard():
    board = leaderboard.leaderboard()
    assert not board.duplicated(["model", "task"]).any()
    assert board.groupby("task")["model"].count().min() >= 87  # a refresh takes none away
    assert set(board["trained_on_task"]) == {"yes", "no", "unknown"}
    assert board["accuracy"].between(0, 1).all() and board["f1"].dropna().between(0, 1).all()


# Places


@pytest.fixture
def board(monkeypatch):
    """Four models on Emotion."""
    scores = {"a": (0.9, 0.6, "yes"), "b": (0.7, 0.8, "no"), "c": (0.5, 0.5, "yes")}
    rows = [
        {"model": name, "parameters": 10, "task": EMOTION}
        | dict(zip(("accuracy", "f1", "trained_on_task"), one, strict=True))
        for name, one in (scores | {"d": (0.3, None, "unknown")}).items()
    ]
    monkeypatch.setattr(leaderboard, "leaderboard", lambda: pd.DataFrame(rows))


def test_a_place_counts_the_models_above(board):
    found = row(places([trained(0.6)]), embedder="hybrid [1-4]")
    assert found["place"] == "3 of 5" and found["next above"] == "b"
    assert found["place by F1"] == "3 of 4"  # a tie is not above, and one model has no F1


def test_a_trained_embedder_is_placed_among_the_trained_models(board):
    found = places([trained(0.6), result("gemma_only", (4,), 0.6, EMOTION)])
    assert row(found, embedder="hybrid [1-4]")["among alike"] == "2 of 3"
    assert row(found, embedder="Gemma only [1-4]")["among alike"] == "2 of 2"


def test_the_best_has_none_above(board):
    found = row(places([trained(0.95)]), embedder="hybrid [1-4]")
    assert (found["place"], found["next above"]) == ("1 of 5", "-")


def test_seeds_have_one_place_by_their_mean(board):
    found = places([trained(0.6, seed=1), trained(0.8, seed=2)])
    assert len(found) == 1
    assert found["accuracy"].iloc[0] == pytest.approx(0.7) and found["seeds"].iloc[0] == 2


def test_scores_of_the_validation_split_and_tasks_without_figures_have_no_place(board):
    assert places([trained(0.6, scored_split="validation")]).empty
    assert places([trained(0.6, task="weather")]).empty


def test_an_interval_tells_the_places_it_spans(board):
    untrained = result("gemma_only", (4,), 0.5, EMOTION)  # two draws, 0.48 and 0.52
    low, high = mean([untrained], "accuracy")[1:]
    above = [sum(one > edge for one in (0.9, 0.7, 0.5, 0.3)) + 1 for edge in (high, low)]
    assert places([untrained])["within"].item() == "{} … {}".format(*above)
    assert places([trained(0.5)])["within"].tolist() == ["-"]  # one seed tells no interval


def test_scores_of_other_draws_than_mtebs_have_no_place(board):
    some = trained(0.6)
    some.task["samples_per_label"] = 64
    assert places([some]).empty


# The original study


def test_the_original_studys_table_stands_beside_ours_point_by_point():
    found = against_original([trained(0.5, cutoffs=(7,)), trained(0.9, "roberta_only", ())])
    hybrid = row(found, embedder="hybrid [1-7]")
    assert hybrid["original accuracy"] == pytest.approx(0.399, abs=5e-4)
    assert hybrid["our accuracy"] == pytest.approx(0.5)
    assert hybrid["accuracy above"] == pytest.approx(0.5 - hybrid["original accuracy"])
    assert row(found, embedder="RoBERTa only")["original F1"] == pytest.approx(0.798, abs=5e-4)


def test_the_original_gemma_is_the_whole_one():
    some = [result("gemma_only", (cutoff,), 0.5, EMOTION) for cutoff in (17, 18)]
    assert against_original(some)["embedder"].tolist() == ["Gemma only [1-18]"]


def test_what_the_original_study_did_not_do_is_left_out():
    untrained = result("roberta_only", (), 0.5, EMOTION, epochs=0)
    pooled = trained(0.5, cutoffs=(4, 7), llm_layers=(4, 7))
    assert against_original([untrained, pooled, trained(0.5, task="weather")]).empty

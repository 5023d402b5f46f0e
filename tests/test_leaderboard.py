import pandas as pd
import pytest
from made_results import EMOTION, TRAINED, result

from embedder_helpers import leaderboard
from embedder_helpers.config import Experiment
from embedder_helpers.embedder import build_embedder
from embedder_helpers.leaderboard import against_original, parameters, places

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
    assert board.groupby("task")["model"].count().to_dict() == {AMAZON: 95, EMOTION: 87}
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


# Parameters


@pytest.mark.parametrize(
    ("kind", "cutoffs"), [("roberta_only", ()), ("gemma_only", (3,)), ("hybrid", (3,))]
)
def test_parameters_are_the_models_own_without_the_projection(kind, cutoffs):
    embedder = build_embedder(Experiment(kind=kind, llm_layers=3, fusion="add"))
    own = embedder.model.count_params()
    if kind == "hybrid":
        own -= embedder.projection.count_params() + embedder.standard.count_params()
        own -= sum(layer.count_params() for layer in embedder.model.layers if layer.name == "gate")
    if embedder.gemma:
        embedder.gemma._load(3)
        blocks = sum(w.shape.num_elements() for i in range(3) for w in embedder.gemma._weights(i))
        table, norm = embedder.gemma._embedding, embedder.gemma._learned_norm
        own += blocks + table.shape.num_elements() + norm.count_params()
    assert parameters(result(kind, cutoffs)) == own


def test_a_preset_that_cannot_be_reached_has_no_parameters():
    assert parameters(result("gemma_only", (3,), llm_preset="presets/not_there")) is None


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

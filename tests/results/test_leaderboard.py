from pathlib import Path

import pandas as pd
import pytest
from made_results import EMOTION, TRAINED, result

from embedder_helpers.errors import InputError
from embedder_helpers.results import leaderboard
from embedder_helpers.results.comparison import score_interval
from embedder_helpers.results.figures import plot_leaderboard
from embedder_helpers.results.leaderboard import leaderboard_ranks, original_study_table


def trained(accuracy, kind="hybrid", cutoffs=(4,), task=EMOTION, **settings):
    return result(kind, cutoffs, accuracy, task, TRAINED, **settings)


def row(table, **values):
    """The first row with these values."""
    matches = table[(table[list(values)] == pd.Series(values)).all(axis=1)]
    return matches.iloc[0].to_dict()


# === The stored scores ===


def test_a_model_has_one_row_for_each_task_of_the_leaderboard():
    board = leaderboard.load_leaderboard()
    assert not board.duplicated(["model", "task"]).any()
    assert board.groupby("task")["model"].count().min() >= 87  # an update removes none
    assert set(board["trained_on_task"]) == {"yes", "no", "unknown"}
    assert board["accuracy"].between(0, 1).all() and board["f1"].dropna().between(0, 1).all()


def test_the_description_names_file_date_source_and_tasks():
    text = leaderboard.describe_leaderboard()
    for part in (leaderboard.LEADERBOARD_FILE, leaderboard.last_updated(), leaderboard.SOURCE):
        assert str(part) in text
    assert EMOTION in text and "AmazonCounterfactualClassification" in text


@pytest.fixture
def rows():
    """Two valid rows as they are stored, by column."""
    return pd.read_csv(leaderboard.LEADERBOARD_FILE, dtype=str, keep_default_na=False)[:2]


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("accuracy", "nan"),
        ("accuracy", "1e400"),
        ("accuracy", "93.1"),
        ("f1", "-1"),
        ("parameters", "-5"),
        ("parameters", "9" * 5000),
        ("parameters", "many"),
        ("self_reported", "maybe"),
        ("trained_on_task", "perhaps"),
        ("read", "2026-13"),
        ("read", ""),
        ("model", ""),
        ("model", "\0"),
    ],
)
def test_a_value_that_is_no_score_is_an_error(rows, tmp_path, column, value):
    rows.loc[1, column] = value
    rows.to_csv(tmp_path / "board.csv", index=False)
    with pytest.raises(InputError, match="board.csv.*refresh_leaderboard"):
        leaderboard.describe_leaderboard(tmp_path / "board.csv")


@pytest.mark.parametrize("column", leaderboard.TYPES)
def test_a_missing_column_is_an_error(rows, tmp_path, column):
    rows.drop(columns=column).to_csv(tmp_path / "board.csv", index=False)
    with pytest.raises(InputError, match=column):
        leaderboard.load_leaderboard(tmp_path / "board.csv")


def test_two_rows_of_one_model_and_task_are_an_error(rows, tmp_path):
    pd.concat([rows, rows]).to_csv(tmp_path / "board.csv", index=False)
    with pytest.raises(InputError, match="row 3: model"):
        leaderboard.load_leaderboard(tmp_path / "board.csv")


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b'a,"b', b"a\n"])
def test_a_file_that_is_no_table_of_scores_is_an_error(tmp_path, content):
    (tmp_path / "board.csv").write_bytes(content)
    with pytest.raises(InputError, match="not a file of leaderboard scores"):
        leaderboard.load_leaderboard(tmp_path / "board.csv")


@pytest.mark.parametrize("path", ["/dev/zero", "/", "/nowhere/board.csv"])
def test_what_is_no_file_of_scores_is_an_error(path):
    with pytest.raises(InputError, match="not a file of leaderboard scores"):
        leaderboard.load_leaderboard(Path(path))


# === Ranks ===


@pytest.fixture
def board(monkeypatch):
    """Four models on Emotion."""
    scores = {
        "a": (0.9, 0.6, "yes"),
        "b": (0.7, 0.8, "no"),
        "c": (0.5, 0.5, "yes"),
        "d": (0.3, None, "unknown"),
    }
    columns = ("accuracy", "f1", "trained_on_task")
    rows = [
        {"model": name, "parameters": 10, "task": EMOTION} | dict(zip(columns, of, strict=True))
        for name, of in scores.items()
    ]
    monkeypatch.setattr(leaderboard, "load_leaderboard", lambda: pd.DataFrame(rows))


def test_a_rank_counts_the_better_models(board):
    hybrid = row(leaderboard_ranks([trained(0.6)]), embedder="hybrid [1-4]")
    assert hybrid["rank"] == "3 of 5" and hybrid["next better"] == "b"
    assert hybrid["rank by macro F1"] == "3 of 4"  # a tie is not better; one model has no F1


def test_a_trained_embedder_is_ranked_among_the_trained_models(board):
    ranks = leaderboard_ranks([trained(0.6), result("gemma_only", (4,), 0.6, EMOTION)])
    assert row(ranks, embedder="hybrid [1-4]")["rank among comparable"] == "2 of 3"
    assert row(ranks, embedder="Gemma only [1-4]")["rank among comparable"] == "2 of 2"


def test_the_best_embedder_has_no_next_better_model(board):
    hybrid = row(leaderboard_ranks([trained(0.95)]), embedder="hybrid [1-4]")
    assert (hybrid["rank"], hybrid["next better"]) == ("1 of 5", "-")


def test_seeds_are_ranked_by_their_mean(board):
    ranks = leaderboard_ranks([trained(0.6, seed=1), trained(0.8, seed=2)])
    assert len(ranks) == 1
    assert ranks["accuracy"].iloc[0] == pytest.approx(0.7) and ranks["seeds"].iloc[0] == 2


def test_the_ends_of_the_interval_have_ranks(board):
    untrained = result("gemma_only", (4,), 0.5, EMOTION)  # two runs, 0.48 and 0.52
    low, high = score_interval([untrained], "accuracy")[1:]
    best, worst = (1 + sum(one > end for one in (0.9, 0.7, 0.5, 0.3)) for end in (high, low))
    assert leaderboard_ranks([untrained])["rank 95 % CI"].item() == f"{best} … {worst}"


def test_a_single_seed_has_no_interval_of_ranks(board):
    assert leaderboard_ranks([trained(0.5)])["rank 95 % CI"].tolist() == ["-"]


def test_validation_scores_and_other_tasks_have_no_rank(board):
    assert leaderboard_ranks([trained(0.6, scored_split="validation")]).empty
    assert leaderboard_ranks([trained(0.6, task="weather")]).empty


def test_scores_with_another_sample_size_than_mtebs_have_no_rank(board):
    other = trained(0.6)
    other.task["samples_per_label"] = 64
    assert leaderboard_ranks([other]).empty
    assert plot_leaderboard([other]) is None


# === The original study ===


def test_the_original_studys_scores_are_compared_with_ours():
    table = original_study_table([trained(0.5, cutoffs=(7,)), trained(0.9, "roberta_only", ())])
    hybrid = row(table, embedder="hybrid [1-7]")
    assert hybrid["cutoff"] == 7
    assert hybrid["original accuracy"] == pytest.approx(0.399, abs=5e-4)
    assert hybrid["our accuracy"] == pytest.approx(0.5)
    assert hybrid["accuracy difference"] == pytest.approx(0.5 - hybrid["original accuracy"])
    roberta = row(table, embedder="RoBERTa only")
    assert roberta["cutoff"] == "-"
    assert roberta["original macro F1"] == pytest.approx(0.798, abs=5e-4)


def test_gemma_alone_is_compared_with_all_its_layers():
    results = [result("gemma_only", (cutoff,), 0.5, EMOTION) for cutoff in (17, 18)]
    assert original_study_table(results)["embedder"].tolist() == ["Gemma only [1-18]"]


def test_embedders_that_the_original_study_does_not_have_are_left_out():
    untrained = result("roberta_only", (), 0.5, EMOTION, epochs=0)
    pooled = trained(0.5, cutoffs=(4, 7), llm_layers=(4, 7))
    beyond = trained(0.5, cutoffs=(19,))
    other_task = trained(0.5, task="weather")
    assert original_study_table([untrained, pooled, beyond, other_task]).empty

import dataclasses
import subprocess
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from made_results import EMOTION, TRAINED, result

from embedder_helpers.data.mteb import MTEB_TASKS
from embedder_helpers.errors import InputError
from embedder_helpers.results import figures, leaderboard
from embedder_helpers.results.comparison import score_interval
from embedder_helpers.results.figures import plot_leaderboard
from embedder_helpers.results.formats import to_markdown
from embedder_helpers.results.leaderboard import leaderboard_ranks, original_study_table


def trained(accuracy, kind="hybrid", cutoffs=(4,), task=EMOTION, **settings):
    return result(kind, cutoffs, accuracy, task, TRAINED, **settings)


def row(table, **values):
    """The first row with these values."""
    matches = table[(table[list(values)] == pd.Series(values)).all(axis=1)]
    return matches.iloc[0].to_dict()


# === The stored scores ===


def test_a_model_has_at_most_one_row_for_each_task():
    board = leaderboard.load_leaderboard()
    assert set(board["task"]) == set(MTEB_TASKS)
    assert not board.duplicated(["model", "task"]).any()
    assert board.groupby("task")["model"].count().min() >= 221  # an update removes none
    assert set(board["trained_on_task"]) == {"yes", "no", "unknown"}
    assert board["accuracy"].between(0, 1).all() and board["f1"].dropna().between(0, 1).all()


def test_the_description_names_file_date_source_tasks_and_benchmarks():
    text = leaderboard.describe_leaderboard()
    for part in (leaderboard.LEADERBOARD_FILE, leaderboard.last_updated(), leaderboard.SOURCE):
        assert str(part) in text
    assert f"{EMOTION}, MTEB(eng, v1): " in text
    assert "AmazonCounterfactualClassification, MTEB(eng, v2): " in text


def test_the_month_is_that_of_most_scores(rows, tmp_path):
    more = pd.concat([rows, rows.assign(task="other")])
    more.assign(read=["2026-08", "2026-08", "2026-08", "2027-01"]).to_csv(tmp_path / "board.csv")
    assert leaderboard.last_updated(tmp_path / "board.csv") == "August 2026"


LIST_TASKS = """
import mteb
for task in mteb.get_benchmark("MTEB(eng, v2)").tasks:
    if task.metadata.type == "Classification":
        print(task.metadata.name)
"""


@pytest.mark.real
def test_a_task_is_on_the_benchmark_that_mteb_has_it_on(reference_python):
    process = subprocess.run([reference_python, "-c", LIST_TASKS], capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    assert MTEB_TASKS.keys() - leaderboard.FIRST_VERSION_TASKS == set(process.stdout.split())


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
        "a": (0.9, 0.6, "yes", 7_000_000_000),
        "b": (0.7, 0.8, "no", 400_000_000),
        "c": (0.5, 0.5, "yes", 100_000_000),
        "d": (0.3, None, "unknown", None),
    }
    columns = ("accuracy", "f1", "trained_on_task", "parameters")
    rows = [
        {"model": name, "task": EMOTION} | dict(zip(columns, of, strict=True))
        for name, of in scores.items()
    ]
    table = pd.DataFrame(rows).astype({"parameters": "Int64"})
    monkeypatch.setattr(leaderboard, "load_leaderboard", lambda: table)
    monkeypatch.setattr(figures, "load_leaderboard", lambda: table)


def of_size(one, parameters=100):
    return dataclasses.replace(one, parameters=parameters)


def test_a_rank_counts_the_better_models(board):
    hybrid = row(leaderboard_ranks([trained(0.6)]), embedder="hybrid [1-4]")
    assert hybrid["rank"] == "3 of 5"
    assert row(leaderboard_ranks([trained(0.5)]), embedder="hybrid [1-4]")["rank"] == "3 of 5"


def test_the_rank_among_small_models_counts_those_known_to_be_small(board):
    ranks = leaderboard_ranks([of_size(trained(0.6)), of_size(trained(0.4, "roberta_only", ()))])
    assert row(ranks, embedder="hybrid [1-4]")["rank up to 400 M"] == "2 of 3"
    assert row(ranks, embedder="RoBERTa only")["rank up to 400 M"] == "3 of 3"


@pytest.mark.parametrize("parameters", [400_000_001, None])
def test_an_embedder_that_is_not_known_to_be_small_has_no_rank_among_small_models(
    board, parameters
):
    ranks = leaderboard_ranks([of_size(trained(0.6), parameters)])
    assert row(ranks, embedder="hybrid [1-4]")["rank up to 400 M"] == "-"


def test_a_trained_embedder_is_ranked_among_the_trained_models(board):
    ranks = leaderboard_ranks([trained(0.6), result("gemma_only", (4,), 0.8, EMOTION)])
    assert row(ranks, embedder="hybrid [1-4]")["rank trained alike"] == "2 of 3"
    assert row(ranks, embedder="Gemma only [1-4]")["rank trained alike"].startswith("1 of 2 ")


def test_the_best_model_of_each_group_stands_between_our_embedders_with_its_score(board):
    untrained = result("gemma_only", (4,), 0.1, EMOTION)
    ranks = leaderboard_ranks([of_size(trained(0.8)), of_size(untrained)])
    assert ranks["embedder"].tolist() == ["a", "hybrid [1-4]", "b", "Gemma only [1-4]"]
    assert ranks["accuracy"].tolist() == pytest.approx([0.9, 0.8, 0.7, 0.1])
    assert set(ranks["benchmark"]) == {"MTEB(eng, v1)"}
    columns = ["rank", "rank up to 400 M", "rank trained alike"]
    assert ranks[columns].iloc[0].tolist() == ["best of 4", "-", "best of 2 trained"]
    assert ranks[columns].iloc[2].tolist() == ["-", "best of 2", "best of 1 untrained"]


def test_seeds_are_ranked_by_their_mean(board):
    ranks = leaderboard_ranks([trained(0.6, seed=1), trained(0.8, seed=2)])
    hybrid = row(ranks, embedder="hybrid [1-4]")
    assert hybrid["accuracy"] == pytest.approx(0.7)


def test_the_ends_of_the_interval_have_ranks(board):
    untrained = result("gemma_only", (4,), 0.5, EMOTION)  # two runs, 0.48 and 0.52
    low, high = score_interval([untrained], "accuracy")[1:]
    best, worst = (1 + sum(one > end for one in (0.9, 0.7, 0.5, 0.3)) for end in (high, low))
    rank = row(leaderboard_ranks([untrained]), embedder="Gemma only [1-4]")["rank"]
    assert rank == f"3 of 5 [{best}, {worst}]"


def test_validation_scores_and_other_tasks_have_no_rank(board):
    assert leaderboard_ranks([trained(0.6, scored_split="validation")]).empty
    assert leaderboard_ranks([trained(0.6, task="weather")]).empty


def test_scores_with_another_sample_size_than_mtebs_have_no_rank(board):
    other = trained(0.6)
    other.task["samples_per_label"] = 64
    assert leaderboard_ranks([other]).empty
    assert plot_leaderboard([other]) is None


def test_the_table_of_ranks_can_be_shown_with_models_of_unknown_size(board):
    text = to_markdown(leaderboard_ranks([trained(0.1, task=EMOTION)]))
    assert "| 7000.0 M" in text and "400.0 M" in text


# === The figure ===


def drawn(panel):
    """The lines of a panel by label: x and y values."""
    return {
        line.get_label(): (np.asarray(line.get_xdata()), np.asarray(line.get_ydata()))
        for line in panel.get_lines()
    }


def test_the_figure_tells_models_apart_by_their_training(board):
    accuracy, f1 = plot_leaderboard([of_size(trained(0.6))]).axes
    lines = drawn(accuracy)
    assert lines["leaderboard: trained on the task"][1].tolist() == [0.9, 0.5]
    assert lines["leaderboard: not trained on the task"][1].tolist() == [0.7]
    assert lines["leaderboard: training data unknown"][1].size == 0  # its size is unknown too
    assert [line.tolist() for line in lines["ours: hybrid"]] == [[100], [pytest.approx(0.6)]]
    assert drawn(f1)["leaderboard: trained on the task"][1].tolist() == [0.6, 0.5]


def test_the_figure_shows_the_best_score_of_all_and_of_small_models_and_the_benchmark(board):
    accuracy, f1 = plot_leaderboard([of_size(trained(0.6))]).axes
    assert set(drawn(accuracy)["best of all"][1]) == {0.9}
    assert set(drawn(accuracy)["best up to 400 M"][1]) == {0.7}
    assert set(drawn(f1)["best of all"][1]) == {0.8}
    assert set(drawn(accuracy)["400 M parameters"][0]) == {400_000_000}
    assert f1.get_title(loc="right") == "MTEB(eng, v1)"


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

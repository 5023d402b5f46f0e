"""The leaderboard's figures read anew, from a repository made here in the public one's layout."""

import datetime
import json
import subprocess

import pandas as pd
import pytest

from embedder_helpers import leaderboard
from embedder_helpers.__main__ import main
from embedder_helpers.leaderboard import FIGURES, as_of, told
from embedder_helpers.refresh import refresh

AMAZON, EMOTION = "AmazonCounterfactualClassification", "EmotionClassification"
QWEN = "Qwen/Qwen3-Embedding-8B"  # carried as `unknown` on the first task


def git(folder, *arguments):
    who = ("-c", "user.name=a", "-c", "user.email=a@example.org")
    done = subprocess.run(["git", "-C", folder, *who, *arguments], check=True, capture_output=True)
    return done.stdout.decode().strip()


def scores(version, **subsets):
    """A file of MTEB 1.11 or newer: accuracy by subset, F1 a tenth below."""
    test = [
        {"hf_subset": name.replace("_", "-"), "languages": ["eng-Latn"]}
        | {"accuracy": accuracy, "f1": accuracy - 0.1, "main_score": accuracy}
        for name, accuracy in subsets.items()
    ]
    return {"mteb_version": version, "scores": {"validation": [], "test": test}}


CARD = {"accuracy": 93.1492537, "f1": 89.7, "main_score": 93.1492537, "hf_subset": "en"}
MADE = {
    "a__two_revisions/bbb/model_meta": {"n_parameters": None, "training_datasets": None},
    f"a__two_revisions/bbb/{AMAZON}": scores("1.9.1", en=0.5),
    "a__two_revisions/aaa/model_meta": {"n_parameters": 7e9, "training_datasets": [EMOTION]},
    f"a__two_revisions/aaa/{AMAZON}": scores("1.38.9", de=0.9, en_ext=0.8, en=0.6),
    f"a__two_revisions/aaa/{EMOTION}": scores("1.38.9", default=0.7),
    f"a__card__too/external/{AMAZON}": {"mteb_version": None, "scores": {"test": [CARD]}},
    f"a__card__too/no_version/{EMOTION}": {"test": {"accuracy": 0.55}},
    f"a__card__too/external/{EMOTION}": {"scores": {"test": [CARD]}},
    f"a__old/1/{AMAZON}": {"test": {"en": {"accuracy": 0.7641791045}}, "mteb_dataset_name": AMAZON},
    "a__old/1/model_meta": {"n_parameters": 10, "training_datasets": {f"{AMAZON}.v2": ["train"]}},
    f"a__other_language/1/{AMAZON}": scores("2.0.0", de=0.9),
    f"a__other_split/1/{EMOTION}": {"scores": {"train": [CARD]}},
    f"a__damaged/1/{AMAZON}": {"scores": {"test": [{"hf_subset": "en", "accuracy": "high"}]}},
    f"{QWEN.replace('/', '__')}/1/{AMAZON}": scores("2.0.0", en=0.91),
    f"{QWEN.replace('/', '__')}/1/model_meta": {"training_datasets": ["NQ"]},
    "a__old/1/Banking77Classification": scores("2.0.0", default=0.9),
}


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    """A repository of `results/<model>/<revision>/<name>.json`, and how to reach it."""
    folder = tmp_path_factory.mktemp("repository")
    git(folder, "init", "--quiet")
    git(folder, "config", "uploadpack.allowFilter", "true")
    for name, content in MADE.items():
        path = folder / "results" / f"{name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content))
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--message", "results")
    return folder


@pytest.fixture(scope="module")
def board(repository, tmp_path_factory):
    out = tmp_path_factory.mktemp("out") / "board.csv"
    return leaderboard.leaderboard(refresh(repository.as_uri(), out))


def row(board, model, task=AMAZON):
    (found,) = board[(board["model"] == model) & (board["task"] == task)].to_dict("records")
    return found


def test_of_two_revisions_the_one_run_by_the_newest_mteb_counts(board):
    found = row(board, "a/two_revisions")
    assert (found["accuracy"], found["f1"], found["mteb_version"]) == (0.6, 0.5, "1.38.9")


def test_the_english_subset_counts_and_the_only_one_of_a_task_without_others(board):
    assert row(board, "a/two_revisions")["accuracy"] == 0.6  # not de, nor en-ext
    assert row(board, "a/two_revisions", EMOTION)["accuracy"] == 0.7


def test_a_model_cards_scores_are_shares_and_marked_self_reported(board):
    found = row(board, "a/card__too")
    assert (found["accuracy"], found["f1"], found["self_reported"]) == (0.931493, 0.897, True)


def test_a_measured_score_counts_before_a_self_reported_one(board):
    found = row(board, "a/card__too", EMOTION)
    assert (found["accuracy"], found["self_reported"]) == (0.55, False)


def test_files_of_old_layouts_are_read(board):
    found = row(board, "a/old")
    assert found["accuracy"] == 0.764179 and pd.isna(found["f1"])


def test_files_without_an_english_test_score_give_no_row(board):
    models = set(board["model"])
    assert not models & {"a/other_language", "a/other_split", "a/damaged"}


def test_training_on_the_task_is_what_a_models_metadata_say(board):
    assert row(board, "a/two_revisions", EMOTION)["trained_on_task"] == "yes"
    assert row(board, "a/two_revisions")["trained_on_task"] == "no"
    assert row(board, "a/old")["trained_on_task"] == "yes"  # another version of the same data


def test_a_model_without_metadata_has_unknown_training_and_size(board):
    found = row(board, "a/card__too")
    assert found["trained_on_task"] == "unknown" and pd.isna(found["parameters"])
    assert row(board, "a/two_revisions")["parameters"] == 7_000_000_000


def test_a_carried_doubt_stands_against_a_no_and_carried_sizes_fill_gaps(board):
    before, found = row(leaderboard.leaderboard(), QWEN), row(board, QWEN)
    assert found["accuracy"] == 0.91 and found["trained_on_task"] == "unknown"
    assert found["parameters"] == before["parameters"]


def test_rows_the_repository_does_not_have_stay_as_they_were(board):
    carried = leaderboard.leaderboard()
    kept = board[board["commit"].isin(carried["commit"])]
    gone = carried[(carried["model"] != QWEN) | (carried["task"] != AMAZON)]
    order = ["task", "model"]
    pd.testing.assert_frame_equal(
        kept.sort_values(order).reset_index(drop=True),
        gone.sort_values(order).reset_index(drop=True),
    )


def test_new_rows_tell_their_month_and_commit(board, repository):
    found = row(board, QWEN)
    assert found["commit"] == git(repository, "rev-parse", "HEAD")[:12]
    assert found["read"] == f"{datetime.date.today():%Y-%m}"


def test_the_date_that_is_told_is_the_newest_in_the_file(tmp_path):
    frame = leaderboard.leaderboard()
    frame.loc[:4, ["read", "commit"]] = "2031-03", "123456789012"
    frame.to_csv(tmp_path / "board.csv", index=False)
    assert as_of(tmp_path / "board.csv") == "March 2031"
    lines = told(tmp_path / "board.csv").splitlines()
    assert lines[1].endswith("commit 123456789012")
    assert lines[-1].startswith(f"{len(frame) - 5} rows are older")


def test_only_the_wanted_files_are_fetched(repository, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(
        "embedder_helpers.refresh._rows",
        lambda root, rows: seen.extend(root.glob("results/*/*/*")) or [],
    )
    refresh(repository.as_uri(), tmp_path / "board.csv")
    assert {path.stem for path in seen} == {AMAZON, EMOTION, "model_meta"}


def test_in_a_git_hook_its_repository_is_left_alone(repository, tmp_path, monkeypatch):
    git(tmp_path, "init", "--quiet", "other")
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "other" / ".git"))
    refresh(repository.as_uri(), tmp_path / "board.csv")
    assert not (tmp_path / "other" / ".git" / "info" / "sparse-checkout").exists()
    assert not (tmp_path / "other" / ".git" / "index").exists()


# The command line


def told_by(capsys, *arguments):
    assert main(["leaderboard", *map(str, arguments)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_the_command_says_what_the_figures_are_from(capsys):
    before = FIGURES.read_bytes()
    assert main(["leaderboard"]) == 0
    assert capsys.readouterr().out.strip() == told() and as_of() in told()
    assert FIGURES.read_bytes() == before


def test_the_command_writes_the_file_and_says_what_is_in_it(repository, tmp_path, capsys):
    out = tmp_path / "new" / "board.csv"
    assert main(["leaderboard", "--refresh", "--from", repository.as_uri(), "--out", str(out)]) == 0
    assert capsys.readouterr().out.strip() == told(out)


@pytest.mark.parametrize(
    "url",
    ["file:///nowhere/s3cret", "http://user:s3cret@127.0.0.1:9/results", "--upload-pack=s3cret"],
)
def test_an_address_that_cannot_be_reached_is_told_without_it(capsys, tmp_path, url):
    line = told_by(capsys, "--refresh", f"--from={url}", "--out", tmp_path / "board.csv")
    assert "git cannot fetch it" in line and f"those of {as_of()} stay in use" in line
    assert "s3cret" not in line and not list(tmp_path.iterdir())


def test_a_repository_without_results_is_told(capsys, tmp_path):
    git(tmp_path, "init", "--quiet", "empty")
    git(tmp_path / "empty", "commit", "--quiet", "--allow-empty", "--message", "nothing")
    url = (tmp_path / "empty").as_uri()
    line = told_by(capsys, "--refresh", "--from", url, "--out", tmp_path / "board.csv")
    assert f"it holds no results of {AMAZON}" in line and "stay in use" in line


def test_a_machine_without_git_is_told(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    line = told_by(capsys, "--refresh", "--out", tmp_path / "board.csv")
    assert "git is not installed" in line and "stay in use" in line


def test_a_file_that_cannot_be_written_is_told_first(capsys, tmp_path):
    (tmp_path / "file").write_text("")
    line = told_by(
        capsys, "--refresh", "--from", "file:///no", "--out", tmp_path / "file" / "b.csv"
    )
    assert "cannot be written" in line and "choose another with --out" in line
    assert "is a folder" in told_by(capsys, "--refresh", "--out", tmp_path)


def test_options_of_a_refresh_without_one_are_told(capsys, tmp_path):
    assert "go with --refresh" in told_by(capsys, "--out", tmp_path / "board.csv")

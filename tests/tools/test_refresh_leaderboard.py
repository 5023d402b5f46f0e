import json
import math
import os
import subprocess
import sys

import pandas as pd
import pytest

from embedder_helpers.data.mteb import MTEB_TASKS
from embedder_helpers.errors import InputError
from embedder_helpers.results.leaderboard import LEADERBOARD_FILE, load_leaderboard
from embedder_helpers.utils.files import PACKAGE
from tools import refresh_leaderboard
from tools.refresh_leaderboard import english_scores, main, refresh, trained_on_task

AMAZON, EMOTION = "AmazonCounterfactualClassification", "EmotionClassification"
REVIEWS = "AmazonReviewsClassification"
QWEN = "Qwen/Qwen3-Embedding-8B"  # `unknown` on the first task in the present file
BANKING = "Banking77Classification"
DATE, MONTH = "2031-03-05T12:00:00+00:00", "2031-03"  # of the commits made here


def subset(name, accuracy, **scores):
    """One subset's scores, as a result file of MTEB has them."""
    scores = {"hf_subset": name, "languages": ["eng-Latn"], "main_score": accuracy} | scores
    return {"accuracy": accuracy, "f1": accuracy - 0.1} | scores


def get_row(board, model, task=AMAZON):
    (row,) = board[(board["model"] == model) & (board["task"] == task)].to_dict("records")
    return row


# Scores and metadata


def test_subset_en_is_read_and_en_ext_is_ignored():
    subsets = [subset("de", 0.9), subset("en-ext", 0.8), subset("en", 0.6)]
    assert english_scores(subsets) == (0.6, 0.5)


def test_a_task_without_subsets_has_its_scores_under_default():
    assert english_scores([subset("default", 0.7)]) == (0.7, 0.6)


def test_percentages_of_model_cards_become_fractions():
    assert english_scores([subset("en", 93.1492537, f1=89.7)]) == (0.931493, 0.897)


def test_the_main_score_stands_for_a_missing_accuracy_and_a_missing_f1_stays_missing():
    accuracy, f1 = english_scores([{"hf_subset": "en", "main_score": 0.5}])
    assert accuracy == 0.5 and math.isnan(f1)


@pytest.mark.parametrize("subsets", [[], [subset("de", 0.9)], [{"hf_subset": "en"}]])
def test_without_english_scores_nothing_is_read(subsets):
    assert english_scores(subsets) is None


def test_every_version_of_a_task_counts_as_the_same_training_data():
    assert trained_on_task(AMAZON, [f"{AMAZON}.v2"], None) == "yes"
    assert trained_on_task(AMAZON, {EMOTION: ["train"]}, None) == "no"


def test_a_misspelled_task_counts_as_training_data():
    assert trained_on_task(REVIEWS, ["AmazonReviewClassification"], None) == "yes"


def test_without_metadata_training_is_as_in_the_present_row_or_unknown():
    assert trained_on_task(AMAZON, None, "yes") == "yes"
    assert trained_on_task(AMAZON, None, None) == "unknown"


def test_unknown_is_replaced_by_yes_but_not_by_no():
    assert trained_on_task(AMAZON, [], "unknown") == "unknown"
    assert trained_on_task(AMAZON, [AMAZON], "unknown") == "yes"


@pytest.mark.parametrize("value", ["0.9", True, None, math.inf, -0.1, 10**400, [0.9]])
def test_what_is_no_score_is_not_read(value):
    assert english_scores([{"hf_subset": "en", "accuracy": value}]) is None
    assert math.isnan(english_scores([{"hf_subset": "en", "accuracy": 0.9, "f1": value}])[1])


@pytest.mark.parametrize("value", [10**21, -1, 0, True, "7B", [7], {}, None, 1.5])
def test_a_number_of_parameters_that_no_model_has_is_unknown(value):
    meta = model_meta("a/b", "1", n_parameters=value)
    assert refresh_leaderboard._clean_meta(json.dumps(meta))["n_parameters"] is None


@pytest.mark.parametrize(
    "values",
    [
        {"name": "../a"},
        {"name": "a" * 500 + "/b"},
        {"name": ["a"]},
        {"name": "a/\ud800"},
        {"training_datasets": [[1]]},
        {"training_datasets": 7},
        {"n_parameters": math.inf},
        {"n_parameters": math.nan},
    ],
)
def test_damaged_metadata_are_left_out(values):
    with pytest.raises((ValueError, TypeError)):
        refresh_leaderboard._clean_meta(json.dumps(model_meta("a/b", "1") | values))


@pytest.mark.parametrize("version", ["9" * 5000, "\ud800", ["1.0"], {}])
def test_scores_of_a_damaged_version_are_left_out(version):
    with pytest.raises((ValueError, TypeError)):
        refresh_leaderboard._clean_scores(json.dumps(result_file(AMAZON, version)))


@pytest.mark.parametrize("clean", ["_clean_meta", "_clean_scores"])
@pytest.mark.parametrize("text", ["", "[" * 100_000, "[]", "null", '"' + "a" * 10**6, "1" * 5000])
def test_what_is_no_json_object_is_left_out(clean, text):
    with pytest.raises((ValueError, TypeError, AttributeError, RecursionError)):
        getattr(refresh_leaderboard, clean)(text)


# The file


def test_rows_of_the_repository_replace_present_ones_and_the_others_are_kept(tmp_path, monkeypatch):
    present = load_leaderboard()
    new = get_row(present, QWEN) | {"accuracy": 0.99, "commit": "123456789012", "read": "2031-03"}
    monkeypatch.setattr(refresh_leaderboard, "read_repository", lambda clone, rows: [new])
    board = load_leaderboard(refresh(tmp_path, tmp_path / "board.csv"))
    assert get_row(board, QWEN) == new and board["model"][0] == QWEN
    board, present = (frame.set_index(["task", "model"]).sort_index() for frame in (board, present))
    pd.testing.assert_frame_equal(board.drop((AMAZON, QWEN)), present.drop((AMAZON, QWEN)))


def test_an_error_leaves_the_file_as_it_is(tmp_path, monkeypatch):
    def fail(clone, rows):
        raise InputError("it contains no results")

    monkeypatch.setattr(refresh_leaderboard, "read_repository", fail)
    (tmp_path / "board.csv").write_text("as it is")
    with pytest.raises(SystemExit, match="it contains no results; .*board.csv is unchanged"):
        main(["--clone", str(tmp_path), "--out", str(tmp_path / "board.csv")])
    assert (tmp_path / "board.csv").read_text() == "as it is"


def test_without_mteb_the_message_names_the_requirements(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "mteb", None)
    with pytest.raises(SystemExit, match="install requirements-reference.txt"):
        main(["--clone", str(tmp_path), "--out", str(tmp_path / "board.csv")])


# A repository in the public layout, read by MTEB


def git(folder, *arguments):
    author = ("-c", "user.name=a", "-c", "user.email=a@example.org")
    command = ["git", "-C", folder, *author, *arguments]
    environment = os.environ | {"GIT_COMMITTER_DATE": DATE}
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    return done.stdout.strip()


def result_file(task, version, *subsets, split="test"):
    """The content of a result file of MTEB 1.11 or newer."""
    content = {"task_name": task, "mteb_version": version, "dataset_revision": "1"}
    return content | {"evaluation_time": 1.0, "scores": {split: list(subsets)}}


def model_meta(name, revision, **metadata):
    return {"name": name, "revision": revision} | metadata


CARD = subset("en", 93.1492537, f1=89.7)
FILES = {
    f"a__two_revisions/bbb/{AMAZON}": result_file(AMAZON, "1.12.1", subset("en", 0.5)),
    "a__two_revisions/aaa/model_meta": model_meta(
        "a/two_revisions", "aaa", n_parameters=7_000_000_000, training_datasets=[EMOTION]
    ),
    f"a__two_revisions/aaa/{AMAZON}": result_file(
        AMAZON, "1.38.9", subset("de", 0.9), subset("en-ext", 0.8), subset("en", 0.6)
    ),
    f"a__two_revisions/ccc/{AMAZON}": result_file(AMAZON, "2.0.0", subset("de", 0.9)),
    f"a__two_revisions/aaa/{EMOTION}": result_file(EMOTION, "1.38.9", subset("default", 0.7)),
    f"a__card/external/{AMAZON}": result_file(AMAZON, None, CARD),
    f"a__card/external/{EMOTION}": result_file(EMOTION, None, CARD | {"hf_subset": "default"}),
    f"a__card/1/{EMOTION}": result_file(EMOTION, None, subset("default", 0.55)),
    f"a__old/1/{AMAZON}": {
        "test": {"en": {"accuracy": 0.7641791045}},
        "mteb_dataset_name": AMAZON,
    },
    f"a__other_split/1/{EMOTION}": result_file(
        EMOTION, "2.0.0", subset("default", 0.5), split="train"
    ),
    f"{QWEN.replace('/', '__')}/1/{AMAZON}": result_file(AMAZON, "2.0.0", subset("en", 0.91)),
    f"a__old/1/{BANKING}": result_file(BANKING, "2.0.0", subset("default", 0.9)),
    f"a__old/1/{BANKING}.v2": result_file(f"{BANKING}.v2", "2.0.0", subset("default", 0.8)),
    f"w601sxs__b1ade-embed/1/{REVIEWS}": result_file(REVIEWS, "2.0.0", subset("en", 0.4)),
}


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    folder = tmp_path_factory.mktemp("repository")
    git(folder, "init", "--quiet")
    for name, content in FILES.items():
        path = folder / "results" / f"{name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content))
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--message", "results")
    return folder


OK = result_file(AMAZON, "2.0.0", subset("en", 0.7))
HOSTILE = {
    "a__infinite/1/model_meta": '{"name": "a/infinite", "revision": "1", "n_parameters": 1e400}',
    "a__many/1/model_meta": json.dumps(model_meta("a/many", "1", n_parameters=10**21)),
    "a__deep/1/model_meta": "[" * 100_000,
    "a__damaged/1/model_meta": "{",
    "a__large/1/model_meta": '"' + "a" * 2**21 + '"',
}
LEFT_OUT = {
    "b__version": json.dumps(OK | {"mteb_version": "9" * 5000}),
    "b__surrogate": json.dumps(OK | {"mteb_version": "\ud800"}),
    "b__score": json.dumps(result_file(AMAZON, "2.0.0", subset("en", 0) | {"hf_subset": [1]})),
    "b__other_task": json.dumps(OK | {"task_name": "Banking77Classification"}),
    "b__text": "no JSON",
}


@pytest.fixture(scope="module")
def hostile_repository(tmp_path_factory):
    """Good scores beside damaged metadata, damaged scores, links and a folder in place of files."""
    folder = tmp_path_factory.mktemp("hostile")
    git(folder, "init", "--quiet")
    texts = {f"{name.rpartition('/')[0]}/{AMAZON}": json.dumps(OK) for name in HOSTILE} | HOSTILE
    texts |= {f"{name}/1/{AMAZON}": text for name, text in LEFT_OUT.items()}
    texts[f"a__link/1/{AMAZON}"] = texts[f"a__folder/1/{AMAZON}"] = json.dumps(OK)
    for name, text in texts.items():
        path = folder / "results" / f"{name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (folder / "results/a__link/1/model_meta.json").symlink_to("/dev/zero")
    (folder / "results/c__link/1").mkdir(parents=True)
    (folder / f"results/c__link/1/{AMAZON}.json").symlink_to(folder / "outside.json")
    (folder / "results/a__folder/1/model_meta.json").mkdir()
    (folder / "results/a__folder/1/model_meta.json/x").write_text("1")
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--message", "results")
    (folder / "outside.json").write_text(json.dumps(OK))  # in the work tree only
    return folder


def test_the_month_is_that_of_the_newest_commit(repository):
    commit = git(repository, "rev-parse", "HEAD")
    assert refresh_leaderboard._newest_commit(repository) == (commit[:12], MONTH)


def test_only_regular_files_of_the_newest_commit_are_listed(hostile_repository):
    paths = {str(path) for path, _, _ in refresh_leaderboard._tree(hostile_repository)}
    assert f"results/a__link/1/{AMAZON}.json" in paths
    assert not paths & {
        "results/a__link/1/model_meta.json", f"results/c__link/1/{AMAZON}.json", "outside.json",
    }  # fmt: skip


def test_a_folder_within_another_repository_is_no_clone(hostile_repository):
    assert not list(refresh_leaderboard._tree(hostile_repository / "results"))


def test_a_repository_without_an_end_is_an_error(hostile_repository, monkeypatch):
    monkeypatch.setattr(refresh_leaderboard, "MAX_OUTPUT", 100)
    with pytest.raises(InputError, match="too large"):
        list(refresh_leaderboard._tree(hostile_repository))


def run(python, *arguments, **environment):
    command = [python, PACKAGE.parent / "tools" / "refresh_leaderboard.py", *arguments]
    environment = os.environ | environment
    return subprocess.run(command, env=environment, capture_output=True, text=True)


@pytest.fixture(scope="module")
def board(reference_python, repository, tmp_path_factory):
    out = tmp_path_factory.mktemp("out") / "board.csv"
    done = run(reference_python, "--clone", repository, "--out", out)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{out}: ")
    return load_leaderboard(out)


@pytest.mark.real
def test_the_revision_run_by_the_newest_mteb_counts_if_it_has_english_scores(board):
    row = get_row(board, "a/two_revisions")
    assert (row["accuracy"], row["f1"], row["mteb_version"]) == (0.6, 0.5, "1.38.9")
    assert get_row(board, "a/two_revisions", EMOTION)["accuracy"] == 0.7


@pytest.mark.real
def test_scores_of_a_model_card_are_marked_self_reported(board):
    row = get_row(board, "a/card")
    assert (row["accuracy"], row["f1"], row["self_reported"]) == (0.931493, 0.897, True)


@pytest.mark.real
def test_a_measured_score_is_preferred_to_a_self_reported_one(board):
    row = get_row(board, "a/card", EMOTION)
    assert (row["accuracy"], row["self_reported"]) == (0.55, False)


@pytest.mark.real
def test_files_of_old_layouts_are_read(board):
    row = get_row(board, "a/old")
    assert row["accuracy"] == 0.764179 and pd.isna(row["f1"]) and pd.isna(row["mteb_version"])


@pytest.mark.real
def test_files_without_an_english_test_score_give_no_row(board):
    assert "a/other_split" not in set(board["model"])


@pytest.mark.real
def test_size_and_training_data_of_an_unregistered_model_are_those_stored_with_its_scores(board):
    row = get_row(board, "a/two_revisions")
    assert (row["parameters"], row["trained_on_task"]) == (7_000_000_000, "no")
    assert get_row(board, "a/two_revisions", EMOTION)["trained_on_task"] == "yes"
    row = get_row(board, "a/card")
    assert pd.isna(row["parameters"]) and row["trained_on_task"] == "unknown"


@pytest.mark.real
def test_training_data_include_those_of_the_model_that_one_is_adapted_from(board):
    assert get_row(board, "w601sxs/b1ade-embed", REVIEWS)["trained_on_task"] == "yes"


@pytest.mark.real
def test_all_english_tasks_are_read_in_their_first_version(board):
    assert get_row(board, "a/old", BANKING)["accuracy"] == 0.9
    assert set(board["task"]) == set(MTEB_TASKS)


@pytest.mark.real
def test_a_registered_model_has_mtebs_metadata_and_the_present_doubt(board):
    row = get_row(board, QWEN)
    assert row["accuracy"] == 0.91 and row["trained_on_task"] == "unknown"
    assert row["parameters"] == get_row(load_leaderboard(), QWEN)["parameters"]


@pytest.mark.real
def test_new_rows_have_the_month_and_the_commit(board, repository):
    row = get_row(board, QWEN)
    assert row["commit"] == git(repository, "rev-parse", "HEAD")[:12] and row["read"] == MONTH


@pytest.mark.real
def test_the_public_repository_is_downloaded_and_later_updated(
    reference_python, repository, tmp_path
):
    clone = tmp_path / "public"
    git(tmp_path, "clone", "--quiet", repository, clone)
    environment = {
        "MTEB_CACHE": str(tmp_path / "cache"),
        "GIT_CONFIG_COUNT": "1",
        "GIT_CONFIG_KEY_0": f"url.{clone.as_uri()}.insteadOf",
        "GIT_CONFIG_VALUE_0": "https://github.com/embeddings-benchmark/results",
    }
    out = tmp_path / "board.csv"
    for model in ("a/old", "a/new"):
        path = clone / "results" / model.replace("/", "__") / "1" / f"{AMAZON}.json"
        path.parent.mkdir(exist_ok=True, parents=True)
        path.write_text(json.dumps(result_file(AMAZON, "2.0.0", subset("en", 0.77))))
        git(clone, "add", "--all")
        git(clone, "commit", "--quiet", "--message", model)
        done = run(reference_python, "--out", out, **environment)
        assert done.returncode == 0, done.stderr
        row = get_row(load_leaderboard(out), model)
        assert row["accuracy"] == 0.77 and git(clone, "rev-parse", "HEAD").startswith(row["commit"])


@pytest.mark.real
def test_a_folder_that_is_not_a_clone_is_an_error(reference_python, tmp_path):
    done = run(reference_python, "--clone", tmp_path, "--out", tmp_path / "board.csv")
    assert done.returncode == 1 and f"'{tmp_path}' contains no results" in done.stderr
    assert not list(tmp_path.iterdir()) and LEADERBOARD_FILE.exists()


@pytest.mark.real
def test_what_is_damaged_is_left_out_and_counted_and_the_rest_is_read(
    reference_python, hostile_repository, tmp_path
):
    out = tmp_path / "board.csv"
    done = run(reference_python, "--clone", hostile_repository, "--out", out)
    assert done.returncode == 0, done.stderr
    assert f"{len(LEFT_OUT) + 4} files left out" in done.stderr
    board = load_leaderboard(out)
    new = set(board["model"]) - set(load_leaderboard()["model"])
    names = {name.partition("/")[0].replace("__", "/") for name in HOSTILE}
    assert new == names | {"a/link", "a/folder"}
    assert pd.isna(get_row(board, "a/many")["parameters"])

"""Tasks: local data, the built-in sample, MTEB's tasks on the hub, and what is told of bad data."""

import csv
import json
import subprocess
from collections import Counter

import datasets
import numpy as np
import pandas
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embedder_helpers.config import Experiment, InputError
from embedder_helpers.tasks import (
    MTEB_TASKS,
    SAMPLES,
    check_texts,
    load_task,
    stratified_rows,
    task_of,
)

LABELS = st.lists(st.integers(0, 4), min_size=1, max_size=100).map(np.array)
TOKEN = "hf_ThisIsASecret"


def rows_of(count, labels=(0, 1), prefix="text"):
    return [{"text": f"{prefix} {i}", "label": labels[i % len(labels)]} for i in range(count)]


def write_rows(path, rows):
    frame = pandas.DataFrame(rows)
    if path.suffix == ".jsonl":
        lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        path.write_text("".join(lines), encoding="utf-8")
    elif path.suffix == ".csv":
        frame.to_csv(path, index=False)
    else:
        frame.to_parquet(path)
    return path


def write_folder(folder, ending=".jsonl", **splits):
    """A task folder with a train and a test file, and whatever is given instead."""
    rows = {"train": rows_of(40), "test": rows_of(10, prefix="unseen"), **splits}
    for split, found in rows.items():
        if found is not None:
            write_rows(folder / f"{split}{ending}", found)
    return folder


def message_of(path, **options):
    with pytest.raises(InputError) as caught:
        load_task(str(path), **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- local folders -------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", [".jsonl", ".csv", ".parquet"])
@pytest.mark.parametrize("labels", [(0, 1), (-1, 1), ("no", "yes")])
def test_a_folder_is_read_with_its_labels_as_they_are(tmp_path, ending, labels):
    write_folder(tmp_path, ending, train=rows_of(40, labels), test=rows_of(10, labels))
    task = load_task(str(tmp_path))
    assert task.train.texts() == [f"text {i}" for i in range(40)]
    assert task.train.labels.tolist() == [labels[i % 2] for i in range(40)]
    assert (task.classes.tolist(), len(task.test)) == (sorted(labels), 10)


@pytest.mark.parametrize("ending", [".jsonl", ".csv", ".parquet"])
def test_columns_may_have_other_names(tmp_path, ending):
    rows = [{"id": i, "sentence": f"s {i}", "class": "ab"[i % 2]} for i in range(20)]
    write_folder(tmp_path, ending, train=rows, test=rows)
    task = load_task(str(tmp_path), text_column="sentence", label_column="class")
    assert task.test.texts([0, 3]) == ["s 0", "s 3"]
    assert task.classes.tolist() == ["a", "b"]


def test_the_experiment_says_where_local_data_are_and_how_to_read_them(tmp_path):
    rows = [{"sentence": f"s {i}", "class": i % 2} for i in range(20)]
    write_folder(tmp_path, train=rows, test=rows)
    task = task_of(
        Experiment(
            task="ImdbClassification",
            task_data=str(tmp_path),
            text_column="sentence",
            label_column="class",
            samples_per_label=3,
        )
    )
    assert (task.name, task.samples_per_label, len(task.train)) == ("ImdbClassification", 3, 20)


@pytest.mark.parametrize("text", ["NA", "null", "007", "two\u2028lines", 'a "quoted", text', "é"])
@pytest.mark.parametrize("ending", [".jsonl", ".csv", ".parquet"])
def test_a_text_is_kept_as_it_is_written(tmp_path, ending, text):
    rows = [{"text": text, "label": 0}, *rows_of(9, (1, 0))]
    task = load_task(str(write_folder(tmp_path, ending, train=rows)))
    assert task.train.texts([0]) == [text]


def test_a_validation_file_is_the_validation_split(tmp_path):
    task = load_task(str(write_folder(tmp_path, validation=rows_of(6, prefix="held"))))
    assert task.validation.texts() == [f"held {i}" for i in range(6)]
    assert task.training_rows.tolist() == list(range(40))
    assert not any("validation" in note for note in task.notes)


def test_without_a_validation_split_a_tenth_of_each_label_is_held_out_of_training(tmp_path):
    rows = rows_of(100, (0, 0, 0, 0, 1))
    task = load_task(str(write_folder(tmp_path, train=rows)))
    assert Counter(task.validation.labels.tolist()) == {0: 8, 1: 2}
    trained = task.train.texts(task.training_rows)
    assert sorted(trained + task.validation.texts()) == sorted(task.train.texts())
    assert "no validation split: 10 of train's texts are held out" in task.notes


def test_held_out_texts_are_told_by_their_rows_of_train(tmp_path):
    task = load_task(str(write_folder(tmp_path)))
    rows = task.held_out()
    assert task.train.texts(rows) == task.validation.texts()
    assert not set(rows.tolist()) & set(task.training_rows.tolist())


def test_a_validation_split_of_its_own_is_no_part_of_train(tmp_path):
    task = load_task(str(write_folder(tmp_path, validation=rows_of(6, prefix="held"))))
    assert task.held_out().tolist() == [-1] * 6


REPEATED = ["Text 1!", "  TEXT\t1 ", "text 11", "unseen", "??", "?!", "straße 3", "STRASSE 3."]


def test_repeated_texts_are_those_of_train_but_for_case_marks_and_spaces(tmp_path):
    known = rows_of(40) + [{"text": text, "label": 0} for text in ("?!", "Straße 3", "Te-xt 41")]
    tested = [{"text": text, "label": 0} for text in REPEATED]
    validation = rows_of(2, prefix="held") + [{"text": "text 41", "label": 0}]
    task = load_task(str(write_folder(tmp_path, train=known, test=tested, validation=validation)))
    found = [True, True, True, False, False, True, True, True]
    assert task.repeated_test.tolist() == found
    assert task.repeated_validation.tolist() == [False, False, True]


@pytest.mark.parametrize("name", SAMPLES)
def test_no_text_of_a_sample_is_repeated(name):
    task = load_task(name)
    assert not task.repeated_test.any() and not task.repeated_validation.any()


def test_a_text_held_out_of_train_repeats_the_rest_of_train_alone(tmp_path):
    train = [{"text": f"text {row}", "label": row % 2} for row in range(40)]
    twice = [{"text": "Text 3!", "label": 0}]
    task = load_task(str(write_folder(tmp_path, train=train, test=twice)))
    assert task.repeated_test.tolist() == [True] and not task.repeated_validation.any()


def test_the_protocol_still_draws_from_the_whole_train_split(tmp_path):
    task = load_task(str(write_folder(tmp_path)))
    assert len(task.train) == 40 > len(task.training_rows)


def test_the_same_rows_are_held_out_every_time(tmp_path):
    write_folder(tmp_path)
    first, again = load_task(str(tmp_path)), load_task(str(tmp_path))
    assert first.validation.texts() == again.validation.texts()


def test_local_data_are_drawn_8_a_label_unless_told_otherwise(tmp_path):
    write_folder(tmp_path)
    assert load_task(str(tmp_path)).samples_per_label == 8
    assert load_task(str(tmp_path), samples_per_label=5).samples_per_label == 5


def test_a_named_task_on_local_data_keeps_its_number_of_draws(tmp_path):
    task = load_task("EmotionClassification", data=str(write_folder(tmp_path)))
    assert task.samples_per_label == 16


def test_a_label_with_fewer_texts_than_are_drawn_is_noted(tmp_path):
    task = load_task(str(write_folder(tmp_path, train=rows_of(40, (0,) * 9 + (1,)))))
    notes = [note for note in task.notes if note.startswith("label ")]
    assert len(notes) == 1
    assert notes[0].startswith("label 1 has 4 training texts, fewer than the 8")


def test_the_fingerprint_is_the_contents_not_the_folders(tmp_path):
    found = {}
    for name, prefix in (("one", "text"), ("same", "text"), ("other", "changed")):
        (tmp_path / name).mkdir()
        write_folder(tmp_path / name, train=rows_of(40, prefix=prefix))
        found[name] = load_task(str(tmp_path / name)).fingerprint
    assert found["one"] == found["same"] != found["other"]


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_changed_label_changes_the_fingerprint(tmp_path, split):
    before = load_task(str(write_folder(tmp_path))).fingerprint
    write_folder(tmp_path, **{split: rows_of(40 if split == "train" else 10, (1, 0))})
    assert load_task(str(tmp_path)).fingerprint != before


# --- single files --------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", [".jsonl", ".csv", ".parquet"])
def test_a_file_with_a_split_column_is_split_by_it(tmp_path, ending):
    names = ["train"] * 20 + ["validation"] * 4 + ["test"] * 6
    rows = [row | {"split": name} for row, name in zip(rows_of(30), names, strict=True)]
    task = load_task(str(write_rows(tmp_path / f"mine{ending}", rows)))
    assert (len(task.train), len(task.validation), len(task.test)) == (20, 4, 6)
    assert task.test.texts()[0] == "text 24"
    assert task.name == f"mine{ending}"


@pytest.mark.parametrize("ending", [".jsonl", ".csv", ".parquet"])
def test_a_file_without_a_split_column_gives_a_quarter_of_each_label_to_test(tmp_path, ending):
    rows = rows_of(100, ("a", "b", "b", "b", "b"))
    task = load_task(str(write_rows(tmp_path / f"mine{ending}", rows)))
    assert Counter(task.test.labels.tolist()) == {"a": 5, "b": 20}
    assert sorted(task.train.texts() + task.test.texts()) == sorted(row["text"] for row in rows)


def test_a_file_whose_split_column_lacks_a_test_split_is_told(tmp_path):
    rows = [row | {"split": "train"} for row in rows_of(20)]
    assert "mine.jsonl, test is empty" in message_of(write_rows(tmp_path / "mine.jsonl", rows))


def test_a_file_of_another_format_is_told(tmp_path):
    (tmp_path / "mine.txt").write_text("text")
    assert "only .jsonl, .csv, .parquet files" in message_of(tmp_path / "mine.txt")


# --- the built-in samples ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "labels", "least"), [("sample", 2, 400), ("sample_emotion", 6, 600)]
)
def test_a_sample_has_all_its_labels_in_every_split_and_no_split_is_small(name, labels, least):
    task = load_task(name)
    splits = task.train, task.validation, task.test
    for split in splits:
        assert set(split.labels.tolist()) == set(range(labels)) == set(task.classes.tolist())
    assert sum(map(len, splits)) >= least


@pytest.mark.parametrize("name", SAMPLES)
def test_a_label_of_a_sample_has_one_name(name):
    rows = [
        json.loads(line)
        for path in SAMPLES[name].glob("*.jsonl")
        for line in path.read_text(encoding="utf-8").splitlines()
    ]
    names = {(row["label"], row["label_text"]) for row in rows}
    assert len(names) == len({label for label, _ in names}) == len({name for _, name in names})


@pytest.mark.parametrize("name", SAMPLES)
def test_no_text_of_a_sample_is_in_two_splits_or_twice_in_one(name):
    task = load_task(name)
    texts = [*task.train.texts(), *task.validation.texts(), *task.test.texts()]
    assert len(set(texts)) == len(texts)


@pytest.mark.parametrize("name", SAMPLES)
def test_a_sample_has_enough_texts_of_each_label_to_draw_from(name):
    assert load_task(name).notes == ()


# --- MTEB's tasks --------------------------------------------------------------------------------


def test_the_tasks_are_the_12_english_ones_of_mteb():
    assert sorted(MTEB_TASKS) == [
        "AmazonCounterfactualClassification",
        "AmazonPolarityClassification",
        "AmazonReviewsClassification",
        "Banking77Classification",
        "EmotionClassification",
        "ImdbClassification",
        "MTOPDomainClassification",
        "MTOPIntentClassification",
        "MassiveIntentClassification",
        "MassiveScenarioClassification",
        "ToxicConversationsClassification",
        "TweetSentimentExtractionClassification",
    ]


def test_the_tasks_are_where_the_reference_says_and_draw_what_it_says(shared_folder):
    with (shared_folder / "reference" / "tasks.csv").open(encoding="utf-8") as file:
        reference = {row["task"]: row for row in csv.DictReader(file)}
    for name, source in MTEB_TASKS.items():
        row = reference[name]
        subset = None if row["english_subset"] == "default" else row["english_subset"]
        assert (source.path, source.revision) == (row["hf_path"], row["revision"])
        assert (source.subset, source.draws) == (subset, int(row["samples_per_label"]))
        assert source.validation == bool(row["rows_validation"])


def test_the_reference_data_are_read_in_their_order(shared_folder):
    folder = shared_folder / "data" / "amazon_counterfactual"
    task = load_task("AmazonCounterfactualClassification", data=str(folder))
    assert (len(task.train), len(task.validation), len(task.test)) == (4018, 335, 670)
    first = json.loads((folder / "train.jsonl").read_text().splitlines()[0])
    assert task.train.texts([0]) == [first["text"]]


def put_hub(monkeypatch, **splits):
    """A hub that has these splits of every data set; tells what it was asked for."""
    calls = []
    found = {"train": rows_of(80), "validation": rows_of(10), "test": rows_of(20), **splits}
    tables = {
        split: datasets.Dataset.from_list([row | {"label_text": "x"} for row in rows])
        for split, rows in found.items()
    }

    def load_dataset(path, name=None, **options):
        calls.append((path, name, options))
        return datasets.DatasetDict(tables)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return calls


@pytest.mark.parametrize("name", sorted(MTEB_TASKS))
def test_a_task_is_asked_of_the_hub_by_path_subset_and_revision(monkeypatch, name):
    calls = put_hub(monkeypatch)
    task = load_task(name)
    source = MTEB_TASKS[name]
    assert calls == [(source.path, source.subset, {"revision": source.revision})]
    assert task.fingerprint == f"{source.path}@{source.revision}"
    assert (task.name, task.samples_per_label) == (name, source.draws)


def test_a_validation_split_of_the_hub_is_taken_where_mteb_has_one(monkeypatch):
    put_hub(monkeypatch, validation=rows_of(10, prefix="held"))
    assert load_task("EmotionClassification").validation.texts([0]) == ["held 0"]
    assert load_task("ImdbClassification").validation.texts([0]) != ["held 0"]


def test_texts_of_the_hub_may_be_empty(monkeypatch):
    put_hub(monkeypatch, test=[{"text": "", "label": 0}])
    assert load_task("ImdbClassification").test.texts() == [""]


def test_the_large_toxic_test_split_is_sampled_by_label_to_2048_rows(monkeypatch):
    put_hub(monkeypatch, test=rows_of(3000, (0, 0, 0, 1)))
    task = load_task("ToxicConversationsClassification")
    assert Counter(task.test.labels.tolist()) == {0: 1536, 1: 512}
    assert len(set(task.test.texts())) == 2048
    for text, label in zip(task.test.texts(), task.test.labels, strict=True):
        assert label == (int(text.split()[1]) % 4 == 3)


def test_the_toxic_test_split_is_sampled_alike_every_time(monkeypatch):
    put_hub(monkeypatch, test=rows_of(3000))
    first = load_task("ToxicConversationsClassification").test.texts()
    assert load_task("ToxicConversationsClassification").test.texts() == first


MTEB_SAMPLE = """
import json, sys
import datasets, mteb
rows = datasets.Dataset.from_list(json.load(sys.stdin))
task = mteb.get_task("ToxicConversationsClassification")
splits = datasets.DatasetDict({"train": rows, "test": rows})
print(json.dumps(task.stratified_subsampling(splits, seed=task.seed)["test"]["text"][:]))
"""


@pytest.mark.real
def test_the_toxic_test_split_is_sampled_as_mteb_does(monkeypatch, reference_python):
    rows = rows_of(3000, (0, 0, 1, 0, 0, 1, 0))
    put_hub(monkeypatch, test=rows)
    found = load_task("ToxicConversationsClassification").test.texts()
    command = [reference_python, "-c", MTEB_SAMPLE]
    done = subprocess.run(command, input=json.dumps(rows), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert found == json.loads(done.stdout.splitlines()[-1])


def test_a_label_of_the_hub_that_train_lacks_is_noted(monkeypatch):
    put_hub(monkeypatch, test=rows_of(20, (0, 1, 7)))
    notes = load_task("ImdbClassification").notes
    assert any("label(s) 7 do not occur in train and can never be predicted" in n for n in notes)


def test_a_hub_that_fails_is_told_in_one_sentence_without_a_token(monkeypatch):
    def fail(*arguments, **options):
        raise ConnectionError(f"https://user:{TOKEN}@huggingface.co\nretry")

    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr(datasets, "load_dataset", fail)
    told = message_of("EmotionClassification")
    assert told.startswith("EmotionClassification cannot be loaded from the hub (ConnectionError)")
    assert "task_data" in told and TOKEN not in told


# --- bad data ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("EmotionClasification", "EmotionClassification"),
        ("Banking77Clasification", "Banking77Classification"),
        ("ImdbClassification.v2", "ImdbClassification"),
    ],
)
def test_an_unknown_task_is_told_with_the_nearest_one(wrong, right):
    assert f"no task, folder or file '{wrong}'; did you mean '{right}'" in message_of(wrong)


def test_an_unknown_task_like_no_other_is_told_with_all_tasks():
    told = message_of("zzz")
    assert "sample" in told and all(name in told for name in MTEB_TASKS)


def test_task_data_that_are_not_there_are_told(tmp_path):
    told = message_of("EmotionClassification", data=str(tmp_path / "nowhere"))
    assert told == f"task_data: there is no folder or file {tmp_path / 'nowhere'}"


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_missing_split_is_told_with_the_files_it_may_be(tmp_path, split):
    told = message_of(write_folder(tmp_path, **{split: None}))
    assert f"has no {split} split" in told
    assert f"{split}.jsonl, {split}.csv, {split}.parquet" in told


@pytest.mark.parametrize("split", ["train", "validation", "test"])
@pytest.mark.parametrize(("ending", "content"), [(".jsonl", ""), (".jsonl", "\n"), (".csv", ""),
                                                 (".csv", "text,label\n")])  # fmt: skip
def test_an_empty_split_is_told(tmp_path, split, ending, content):
    write_folder(tmp_path, ending)
    (tmp_path / f"{split}{ending}").write_text(content)
    assert message_of(tmp_path).startswith(f"{split}{ending} is empty")


@pytest.mark.parametrize(
    ("options", "setting"),
    [({"text_column": "sentence"}, "text_column"), ({"label_column": "class"}, "label_column")],
)
def test_a_missing_column_is_told_with_those_there_are_and_the_setting(tmp_path, options, setting):
    told = message_of(write_folder(tmp_path), **options)
    assert f"no column {options[setting]!r}, only text, label" in told
    assert told.endswith(f"name the column with {setting}")


def test_rows_without_a_column_are_named(tmp_path):
    rows = rows_of(20)
    del rows[4]["text"], rows[6]["text"]
    told = message_of(write_folder(tmp_path, train=rows))
    assert told.startswith("train.jsonl: no column 'text' in 2 rows (5, 7)")


@pytest.mark.parametrize(
    ("bad", "fault"),
    [
        (None, "None"),
        (float("nan"), "NaN"),
        (7, "a value of type int"),
        (["a"], "a value of type list"),
        ("", "an empty text"),
        (" \t", "an empty text"),
    ],
)
def test_a_value_that_is_no_text_is_told_by_file_and_row(tmp_path, bad, fault):
    rows = rows_of(20)
    rows[6]["text"] = bad
    told = message_of(write_folder(tmp_path, train=rows))
    assert told == (
        f"train.jsonl: every text must be a non-empty string, but found {fault} in row 7"
    )


@pytest.mark.parametrize("ending", [".csv", ".parquet"])
def test_an_empty_text_is_told_in_every_format(tmp_path, ending):
    rows = rows_of(20)
    rows[6]["text"] = ""
    assert "an empty text in row 7" in message_of(write_folder(tmp_path, ending, test=rows))


def test_many_bad_rows_are_counted_and_the_first_named():
    with pytest.raises(InputError, match=r"7 rows \(1, 2, 3, 4, 5, …\)"):
        check_texts([None] * 7, "my texts")


def test_different_faults_are_told_apart():
    with pytest.raises(InputError, match="None in row 1; an empty text in row 3"):
        check_texts([None, "good", ""], "my texts")


def test_good_texts_pass():
    check_texts(["a", " b "], "my texts")


@pytest.mark.parametrize("bad", [None, "", float("nan")])
def test_a_missing_label_is_told_by_file_and_row(tmp_path, bad):
    rows = rows_of(20)
    rows[2]["label"] = bad
    told = message_of(write_folder(tmp_path, train=rows))
    assert told == "train.jsonl: no label in row 3"


@pytest.mark.parametrize("ending", [".csv", ".parquet"])
def test_a_missing_label_is_told_in_every_format(tmp_path, ending):
    rows = rows_of(20, ("a", "b"))
    rows[2]["label"] = None
    told = message_of(write_folder(tmp_path, ending, train=rows, test=rows_of(4, ("a", "b"))))
    assert told.startswith(f"train{ending}: no label in row 3") and "no label" in told


@pytest.mark.parametrize(
    ("labels", "found"),
    [((0, "a"), "int and str"), ((0.5, 1.5), "float"), ((True, False), "bool"), (([], 1), "list")],
)
def test_labels_that_are_not_all_integers_or_all_strings_are_told(tmp_path, labels, found):
    told = message_of(write_folder(tmp_path, train=rows_of(20, labels)))
    assert told.startswith("train.jsonl: labels must be all whole numbers or all strings")
    assert found in told


def test_a_label_that_train_lacks_is_told_with_what_to_do(tmp_path):
    told = message_of(write_folder(tmp_path, test=rows_of(10, (0, 5))))
    assert told.startswith("test.jsonl: label(s) 5 do not occur in train: add training texts")


def test_a_single_label_is_told(tmp_path):
    told = message_of(write_folder(tmp_path, train=rows_of(20, (3,)), test=rows_of(5, (3,))))
    assert told.startswith("train.jsonl has only one label, 3")


@pytest.mark.parametrize("line", ["{", "text", '{"text": "a" "label": 0}'])
def test_a_line_that_is_not_json_is_told_by_its_number(tmp_path, line):
    write_folder(tmp_path)
    (tmp_path / "test.jsonl").write_text('{"text": "a", "label": 0}\n' + line + "\n")
    told = message_of(tmp_path)
    assert f"{tmp_path / 'test.jsonl'}, line 2 is not JSON" in told


def test_a_line_that_is_no_object_is_told_by_its_number(tmp_path):
    write_folder(tmp_path)
    (tmp_path / "test.jsonl").write_text('["a", 0]\n')
    assert "line 1 is not a JSON object" in message_of(tmp_path)


@pytest.mark.parametrize("ending", [".jsonl", ".csv", ".parquet"])
def test_a_file_that_is_not_of_its_format_is_told_with_its_path(tmp_path, ending):
    write_folder(tmp_path, ending)
    (tmp_path / f"train{ending}").write_bytes(b"\xff\xfe\x00\n" * 9)
    assert f"{tmp_path / 'train'}{ending} cannot be read" in message_of(tmp_path)


# --- rows drawn by label -------------------------------------------------------------------------


@settings(deadline=None)
@given(LABELS, st.integers(0, 120), st.integers(0, 99))
def test_stratified_rows_are_exactly_as_many_as_asked_for_or_all(labels, count, seed):
    assert len(stratified_rows(labels, count, seed)) == min(count, len(labels))


@settings(deadline=None)
@given(LABELS, st.integers(0, 120), st.integers(0, 99))
def test_stratified_rows_rise_and_are_rows(labels, count, seed):
    rows = stratified_rows(labels, count, seed).tolist()
    assert rows == sorted(set(rows)) and set(rows) <= set(range(len(labels)))


@settings(deadline=None)
@given(LABELS, st.integers(0, 100), st.integers(0, 99))
def test_stratified_rows_give_each_label_its_share(labels, count, seed):
    count = min(count, len(labels))
    found = Counter(labels[stratified_rows(labels, count, seed)].tolist())
    kinds = len(set(labels.tolist()))
    for label, there in Counter(labels.tolist()).items():
        # One row of its own rounding, and its part of the other labels' roundings.
        most = 1 + kinds * there / len(labels)
        assert abs(found[label] - count * there / len(labels)) <= most


@settings(deadline=None)
@given(LABELS, st.integers(0, 100), st.integers(0, 99))
def test_fewer_stratified_rows_are_among_more(labels, count, seed):
    fewer, more = (set(stratified_rows(labels, n, seed).tolist()) for n in (count, count + 5))
    assert fewer <= more


def test_stratified_rows_depend_on_the_seed_alone():
    labels = np.arange(100) % 3
    drawn = [stratified_rows(labels, 30, seed).tolist() for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]


def test_a_csv_row_with_a_comma_too_many_is_named_not_misread(tmp_path):
    folder = write_folder(tmp_path)
    for path in folder.glob("train.*"):
        path.unlink()
    (folder / "train.csv").write_text("text,label\nHello, world,0\nGood,1\n")
    assert "train.csv: row 1 with another number of fields" in message_of(folder)


def test_an_unknown_split_name_in_a_file_is_an_error(tmp_path):
    rows = [row | {"split": "train"} for row in rows_of(20)]
    rows[6]["split"] = "dev"
    del rows[8]["split"]
    path = write_rows(tmp_path / "mine.jsonl", rows)
    with pytest.raises(InputError, match=r"`split` must be one of .* 2 rows \(7, 9\)"):
        load_task(str(path))


@pytest.mark.parametrize("labels", [("²", "1"), ("--1", "1"), ("0.0", "1.0")])
def test_csv_labels_that_only_look_like_whole_numbers_stay_strings(tmp_path, labels):
    rows = rows_of(40, labels)
    path = write_rows(tmp_path / "a,b.csv", rows)
    assert set(load_task(str(path)).train.labels.tolist()) == set(labels)


def test_labels_beyond_64_bits_and_broken_unicode_are_told(tmp_path):
    assert "at most 64 bits" in message_of(write_folder(tmp_path, train=rows_of(20, (2**70, 1))))
    folder = write_folder(tmp_path)
    row = '{"text": "\\ud800", "label": 0}\n'
    (folder / "train.jsonl").write_text(row)
    assert "half a surrogate pair in row 1" in message_of(folder)


def test_a_label_with_one_text_stays_in_train(tmp_path):
    rows = [*rows_of(60, (0, 1)), {"text": "the only one", "label": 2}]
    task = load_task(str(write_rows(tmp_path / "mine.jsonl", rows)))
    assert 2 in task.train.labels and 2 in task.train.labels[task.training_rows]

"""Tasks: local data, the built-in samples, MTEB's tasks on the hub, and errors for invalid data."""

import csv
import json
import os
import subprocess
import tracemalloc
from collections import Counter

import datasets
import numpy as np
import pandas as pd
import pytest
from task_files import make_rows, write_folder, write_rows

from embedder_helpers.builtin import BUILTIN_TASKS
from embedder_helpers.config import Experiment
from embedder_helpers.data.tasks import MTEB_TASKS, load_task, task_from_arrays
from embedder_helpers.errors import InputError

TOKEN = "hf_ThisIsASecret"


def message_of(path, **options):
    """The message of the InputError that loading a task raises: one line."""
    with pytest.raises(InputError) as error:
        load_task(str(path), **options)
    assert "\n" not in str(error.value)
    return str(error.value)


# === Local data ===


def test_a_folder_is_a_task_of_its_name(tmp_path):
    (tmp_path / "mine").mkdir()
    labels = ("yes", "no")
    write_folder(tmp_path / "mine", train=make_rows(40, labels), test=make_rows(10, labels))
    task = load_task(str(tmp_path / "mine"))
    assert task.name == "mine"
    assert task.train.texts([0, 3]) == ["text 0", "text 3"]
    assert task.train.labels[:2].tolist() == ["yes", "no"]
    assert (task.classes.tolist(), len(task.test)) == (["no", "yes"], 10)


def test_a_single_file_is_a_task_of_its_name(tmp_path):
    task = load_task(str(write_rows(tmp_path / "mine.jsonl", make_rows(40))))
    assert (task.name, len(task.train), len(task.test)) == ("mine.jsonl", 30, 10)


def test_an_experiment_says_where_local_data_are_and_how_to_read_them(tmp_path):
    rows = [{"sentence": f"s {i}", "class": i % 2} for i in range(20)]
    write_folder(tmp_path, train=rows, test=rows)
    experiment = Experiment(
        task="ImdbClassification",
        task_data=str(tmp_path),
        text_column="sentence",
        label_column="class",
        samples_per_label=3,
    )
    task = load_task(experiment)
    assert (task.name, task.samples_per_label, len(task.train)) == ("ImdbClassification", 3, 20)


def test_a_validation_file_is_the_validation_split_and_not_part_of_train(tmp_path):
    task = load_task(str(write_folder(tmp_path, validation=make_rows(6, prefix="held"))))
    assert task.validation.texts() == [f"held {i}" for i in range(6)]
    assert task.training_rows.tolist() == list(range(40))
    assert task.held_out_rows().tolist() == [-1] * 6
    assert not any("validation" in note for note in task.notes)


def test_without_a_validation_split_a_tenth_of_each_label_is_held_out_of_training(tmp_path):
    rows = make_rows(100, (0, 0, 0, 0, 1))
    task = load_task(str(write_folder(tmp_path, train=rows)))
    assert Counter(task.validation.labels.tolist()) == {0: 8, 1: 2}
    training_texts = task.train.texts(task.training_rows)
    assert sorted(training_texts + task.validation.texts()) == sorted(task.train.texts())
    assert any(note.startswith("no validation split: 10 ") for note in task.notes)


def test_the_only_text_of_a_label_is_not_held_out(tmp_path):
    rows = [*make_rows(60, (0, 1)), {"text": "the only one", "label": 2}]
    task = load_task(str(write_folder(tmp_path, train=rows)))
    assert 2 in task.train.labels[task.training_rows]


def test_held_out_texts_are_known_by_their_rows_of_train(tmp_path):
    task = load_task(str(write_folder(tmp_path)))
    rows = task.held_out_rows()
    assert task.train.texts(rows) == task.validation.texts()
    assert not set(rows.tolist()) & set(task.training_rows.tolist())


def test_the_protocol_samples_from_the_complete_train_split(tmp_path):
    task = load_task(str(write_folder(tmp_path)))
    assert len(task.train) == 40 > len(task.training_rows)


def test_the_same_rows_are_held_out_every_time(tmp_path):
    write_folder(tmp_path)
    first, again = load_task(str(tmp_path)), load_task(str(tmp_path))
    assert first.validation.texts() == again.validation.texts()


def test_the_protocol_samples_8_texts_of_each_label_of_local_data_by_default(tmp_path):
    write_folder(tmp_path)
    assert load_task(str(tmp_path)).samples_per_label == 8
    assert load_task(str(tmp_path), samples_per_label=5).samples_per_label == 5


def test_a_named_task_on_local_data_keeps_its_samples_per_label(tmp_path):
    task = load_task("EmotionClassification", data=str(write_folder(tmp_path)))
    assert task.samples_per_label == 16


def test_a_label_with_fewer_texts_than_the_protocol_samples_is_noted(tmp_path):
    task = load_task(str(write_folder(tmp_path, train=make_rows(40, (0,) * 9 + (1,)))))
    (note,) = [note for note in task.notes if "fewer training texts" in note]
    assert "than the 8 " in note and note.endswith(": 1 (4)")


def test_notes_on_many_labels_are_bounded(monkeypatch):
    labels = range(900)
    put_hub(monkeypatch, train=make_rows(1800, labels), test=make_rows(1800, range(-900, 900)))
    notes = load_task("ImdbClassification").notes
    assert len(notes) == 3 and all(len(note) < 300 for note in notes)
    assert sum("and 890 more" in note for note in notes) == 2


def test_the_fingerprint_depends_on_the_content_not_on_the_folder(tmp_path):
    fingerprints = {}
    for name, prefix in (("first", "text"), ("copy", "text"), ("other", "changed")):
        (tmp_path / name).mkdir()
        write_folder(tmp_path / name, train=make_rows(40, prefix=prefix))
        fingerprints[name] = load_task(str(tmp_path / name)).fingerprint
    assert fingerprints["first"] == fingerprints["copy"] != fingerprints["other"]


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_changed_label_changes_the_fingerprint(tmp_path, split):
    before = load_task(str(write_folder(tmp_path))).fingerprint
    write_folder(tmp_path, **{split: make_rows(40 if split == "train" else 10, (1, 0))})
    assert load_task(str(tmp_path)).fingerprint != before


def test_a_number_and_its_digits_have_different_fingerprints(tmp_path):
    write_folder(tmp_path)
    numbers = load_task(str(tmp_path)).fingerprint
    labels = ("0", "1")
    write_folder(tmp_path, train=make_rows(40, labels), test=make_rows(10, labels, "unseen"))
    assert load_task(str(tmp_path)).fingerprint != numbers


def test_files_that_are_not_read_are_counted_in_a_note_and_named_in_the_log(tmp_path, caplog):
    write_folder(tmp_path)
    for number in range(9):
        (tmp_path / f"more{number}.csv").touch()
    notes = load_task(str(tmp_path)).notes
    assert any(note.startswith("9 other file(s)") for note in notes) and "more" not in str(notes)
    assert "'more4.csv' and 4 more" in caplog.text


def test_labels_that_a_validation_file_lacks_are_noted(tmp_path):
    write_folder(tmp_path, train=make_rows(40, (0, 1, 2)), validation=make_rows(8))
    assert any(
        note.startswith("validation.jsonl has no text of label(s) 2, ")
        for note in load_task(str(tmp_path)).notes
    )


# === Few texts of a label ===


def test_no_label_loses_its_only_text_however_many_labels_have_one(tmp_path):
    rows = make_rows(20, range(20))
    task = load_task(str(write_folder(tmp_path, train=rows, test=rows)))
    assert len(task.validation) == 0 and len(task.training_rows) == 20
    assert task.held_out_rows().tolist() == [] and not task.validation_duplicates.any()


def test_texts_are_held_out_of_the_labels_that_can_spare_them(tmp_path):
    rows = make_rows(20, (*range(18), 18, 18))
    task = load_task(str(write_folder(tmp_path, train=rows, test=rows)))
    assert task.validation.labels.tolist() == [18]
    assert set(task.train.labels[task.training_rows]) == set(range(19))


# === Name, source and path ===


def make_folder(path):
    path.mkdir(parents=True)
    return write_folder(path)


def origin(task, **options):
    task = load_task(task, **options)
    return task.name, task.source, task.path


def test_local_data_have_their_absolute_path(tmp_path, monkeypatch):
    make_folder(tmp_path / "mine")
    monkeypatch.chdir(tmp_path)
    expected = "mine", "local", str(tmp_path / "mine")
    assert origin("mine") == origin("./mine") == origin(tmp_path / "mine") == expected


@pytest.mark.parametrize("name", ["sample", "EmotionClassification"])
def test_local_data_of_a_tasks_name_are_told_from_the_task(tmp_path, name):
    folder = make_folder(tmp_path / name)
    expected = f"{name} (local files)", "local", str(folder)
    assert origin(str(folder)) == origin(folder) == expected


def test_a_named_task_with_task_data_is_mtebs_but_local(tmp_path):
    folder = make_folder(tmp_path / "mine")
    expected = "EmotionClassification", "local", str(folder)
    assert origin("EmotionClassification", data=str(folder)) == expected
    expected = "sample (local files)", "local", str(folder)
    assert origin("sample", data=str(folder)) == expected


def test_a_folder_of_the_name_of_a_task_is_passed_over_with_a_warning(
    tmp_path, monkeypatch, caplog
):
    put_hub(monkeypatch)
    for name in ("sample", "EmotionClassification"):
        make_folder(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    for name, source in (("sample", "builtin"), ("EmotionClassification", "mteb")):
        assert origin(name) == (name, source, None)
        assert f"./{name}" in caplog.text and str(tmp_path) in caplog.text
        assert not any("./" in note for note in load_task(name).notes)
        caplog.clear()
        assert origin(f"./{name}")[0] == f"{name} (local files)"
        assert not caplog.text


def test_data_in_a_folder_whose_name_is_not_unicode_can_be_named_in_a_result(tmp_path, monkeypatch):
    try:
        folder = make_folder(tmp_path / os.fsdecode(b"caf\xe9"))
    except OSError:
        pytest.skip("this system allows no such name")
    monkeypatch.chdir(folder)
    name, _, path = origin(".")
    assert (name, path) == (r"caf\xe9", str(tmp_path / r"caf\xe9"))


def test_the_name_of_local_data_need_not_be_one_of_a_file(tmp_path):
    name = "n" * 300
    assert origin(name, data=str(make_folder(tmp_path / "mine")))[0] == name
    with pytest.raises(InputError, match="task is"):
        load_task("\ud800", data=str(tmp_path / "mine"))


def test_a_folder_that_datasets_would_read_in_place_of_the_hub_is_an_error(tmp_path, monkeypatch):
    calls = put_hub(monkeypatch)
    make_folder(tmp_path / "mteb" / "emotion")
    monkeypatch.chdir(tmp_path)
    message = message_of("EmotionClassification")
    assert "folder mteb/emotion" in message and "task_data" in message and not calls


# === Duplicates ===

TEST_TEXTS = {
    "Text 1!": True,
    "  TEXT\t1 ": True,
    "text 11": True,
    "unseen": False,
    "??": False,
    "?!": True,
    "straße 3": True,
    "STRASSE 3.": True,
}


def test_duplicates_are_texts_of_train_except_for_case_punctuation_and_spaces(tmp_path):
    train = make_rows(40) + [{"text": text, "label": 0} for text in ("?!", "Straße 3", "Te-xt 41")]
    test = [{"text": text, "label": 0} for text in TEST_TEXTS]
    validation = make_rows(2, prefix="held") + [{"text": "text 41", "label": 0}]
    task = load_task(str(write_folder(tmp_path, train=train, test=test, validation=validation)))
    assert task.test_duplicates.tolist() == list(TEST_TEXTS.values())
    assert task.validation_duplicates.tolist() == [False, False, True]


def test_a_held_out_text_is_compared_with_the_rest_of_train_only(tmp_path):
    test = [{"text": "Text 3!", "label": 0}]
    task = load_task(str(write_folder(tmp_path, test=test)))
    assert task.test_duplicates.tolist() == [True] and not task.validation_duplicates.any()


# === The built-in samples ===


@pytest.fixture(scope="module", params=BUILTIN_TASKS)
def sample(request):
    return load_task(request.param)


@pytest.mark.parametrize(
    ("name", "num_labels", "size"), [("sample", 2, 400), ("sample_emotion", 6, 600)]
)
def test_every_split_of_a_sample_has_every_label(name, num_labels, size):
    task = load_task(name)
    splits = task.train, task.validation, task.test
    for split in splits:
        assert set(split.labels.tolist()) == set(range(num_labels)) == set(task.classes.tolist())
    assert sum(map(len, splits)) >= size


@pytest.mark.parametrize("name", BUILTIN_TASKS)
def test_each_label_of_a_sample_has_one_name(name):
    rows = [
        json.loads(line)
        for path in BUILTIN_TASKS[name].glob("*.jsonl")
        for line in path.read_text(encoding="utf-8").splitlines()
    ]
    names = {(row["label"], row["label_text"]) for row in rows}
    assert len(names) == len({label for label, _ in names}) == len({name for _, name in names})


def test_no_text_of_a_sample_is_a_duplicate(sample):
    texts = [*sample.train.texts(), *sample.validation.texts(), *sample.test.texts()]
    assert len(set(texts)) == len(texts)
    assert not sample.test_duplicates.any() and not sample.validation_duplicates.any()


def test_a_sample_has_enough_texts_of_each_label_for_the_protocol(sample):
    assert sample.notes == ()


# === MTEB's tasks ===


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


def test_the_sources_of_the_tasks_are_those_of_the_reference(shared_folder):
    with (shared_folder / "reference" / "tasks.csv").open(encoding="utf-8") as file:
        reference = {row["task"]: row for row in csv.DictReader(file)}
    for name, source in MTEB_TASKS.items():
        row = reference[name]
        subset = None if row["english_subset"] == "default" else row["english_subset"]
        assert (source.path, source.revision) == (row["hf_path"], row["revision"])
        assert (source.subset, source.samples_per_label) == (subset, int(row["samples_per_label"]))
        assert source.has_validation == bool(row["rows_validation"])


def test_the_reference_data_are_read_in_their_order(shared_folder):
    folder = shared_folder / "data" / "amazon_counterfactual"
    task = load_task("AmazonCounterfactualClassification", data=str(folder))
    assert (len(task.train), len(task.validation), len(task.test)) == (4018, 335, 670)
    first = json.loads((folder / "train.jsonl").read_text().splitlines()[0])
    assert task.train.texts([0]) == [first["text"]]


def put_hub(monkeypatch, **splits):
    """A hub that has these splits of every data set; returns the list of its calls."""
    calls = []
    rows = {"train": make_rows(80), "validation": make_rows(10), "test": make_rows(20), **splits}
    tables = {
        split: datasets.Dataset.from_list([row | {"label_text": "x"} for row in split_rows])
        for split, split_rows in rows.items()
    }

    def load_dataset(path, name=None, **options):
        calls.append((path, name, options))
        return datasets.DatasetDict(tables)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return calls


@pytest.mark.parametrize("name", sorted(MTEB_TASKS))
def test_a_task_is_loaded_from_the_hub_by_path_subset_and_revision(monkeypatch, name):
    calls = put_hub(monkeypatch)
    task = load_task(name)
    source = MTEB_TASKS[name]
    assert calls == [(source.path, source.subset, {"revision": source.revision})]
    assert task.fingerprint == f"{source.path}@{source.revision}"
    assert (task.name, task.samples_per_label) == (name, source.samples_per_label)


def test_the_hubs_validation_split_is_used_only_where_mteb_has_one(monkeypatch):
    put_hub(monkeypatch, validation=make_rows(10, prefix="held"))
    assert load_task("EmotionClassification").validation.texts([0]) == ["held 0"]
    assert load_task("ImdbClassification").validation.texts([0]) != ["held 0"]


def test_texts_of_the_hub_may_be_empty(monkeypatch):
    put_hub(monkeypatch, test=[{"text": "", "label": 0}])
    assert load_task("ImdbClassification").test.texts() == [""]


def test_the_large_toxic_test_split_is_subsampled_by_label_to_2048_rows(monkeypatch):
    put_hub(monkeypatch, test=make_rows(3000, (0, 0, 0, 1)))
    test = load_task("ToxicConversationsClassification").test
    assert Counter(test.labels.tolist()) == {0: 1536, 1: 512}
    assert len(set(test.texts())) == 2048
    for text, label in zip(test.texts(), test.labels, strict=True):
        assert label == (int(text.split()[1]) % 4 == 3)
    assert load_task("ToxicConversationsClassification").test.texts() == test.texts()


MTEB_SAMPLE = """
import json, sys
import datasets, mteb
rows = datasets.Dataset.from_list(json.load(sys.stdin))
task = mteb.get_task("ToxicConversationsClassification")
splits = datasets.DatasetDict({"train": rows, "test": rows})
print(json.dumps(task.stratified_subsampling(splits, seed=task.seed)["test"]["text"][:]))
"""


@pytest.mark.real
def test_the_toxic_test_split_is_subsampled_as_mteb_does(monkeypatch, reference_python):
    rows = make_rows(3000, (0, 0, 1, 0, 0, 1, 0))
    put_hub(monkeypatch, test=rows)
    texts = load_task("ToxicConversationsClassification").test.texts()
    command = [reference_python, "-c", MTEB_SAMPLE]
    process = subprocess.run(command, input=json.dumps(rows), capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    assert texts == json.loads(process.stdout.splitlines()[-1])


def test_a_label_of_the_hub_that_train_lacks_is_noted(monkeypatch):
    put_hub(monkeypatch, test=make_rows(20, (0, 1, 7)))
    notes = load_task("ImdbClassification").notes
    assert any("label(s) 7 do not occur in train and can never be predicted" in n for n in notes)


def test_the_error_for_an_unavailable_hub_names_its_class_and_no_token(monkeypatch):
    def fail(*arguments, **options):
        raise ConnectionError(f"https://user:{TOKEN}@huggingface.co\nretry")

    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr(datasets, "load_dataset", fail)
    message = message_of("EmotionClassification")
    assert message.startswith("EmotionClassification ") and "(ConnectionError)" in message
    assert "task_data" in message and TOKEN not in message


# === Invalid tasks ===


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("EmotionClasification", "EmotionClassification"),
        ("Banking77Clasification", "Banking77Classification"),
        ("ImdbClassification.v2", "ImdbClassification"),
    ],
)
def test_the_error_for_an_unknown_task_suggests_the_nearest_one(wrong, right):
    assert f"no task, folder or file '{wrong}'; did you mean '{right}'" in message_of(wrong)


def test_the_error_for_an_unknown_task_lists_all_tasks():
    message = message_of("zzz")
    assert "sample" in message and all(name in message for name in MTEB_TASKS)


def test_task_data_that_do_not_exist_are_an_error(tmp_path):
    message = message_of("EmotionClassification", data=str(tmp_path / "nowhere"))
    assert message.startswith("task_data: ") and str(tmp_path / "nowhere") in message


def test_a_label_of_local_data_that_train_lacks_is_an_error(tmp_path):
    message = message_of(write_folder(tmp_path, test=make_rows(10, (0, 5))))
    assert message.startswith("test.jsonl: label(s) 5 do not occur in train: add training texts")


def test_a_single_label_is_an_error(tmp_path):
    message = message_of(write_folder(tmp_path, train=make_rows(20, (3,))))
    assert message.startswith("train.jsonl has only one label, 3")


# === Tasks from arrays ===


def test_texts_and_labels_make_a_task_with_a_tenth_held_out():
    texts = [f"text {i}" for i in range(20)]
    task = task_from_arrays(pd.Series(texts), np.arange(20) % 2)
    assert task.train.texts() == task.test.texts() == texts
    assert task.classes.tolist() == [0, 1]
    assert (len(task.validation), len(task.training_rows)) == (2, 18)


@pytest.mark.parametrize(
    ("texts", "labels", "fault"),
    [
        (["a", ""], [0, 1], "an empty text in row 2"),
        (["a", "b"], [0, 1, 1], "2 texts, but 3 labels"),
        ([], [], "no texts"),
        (["a", "b"], [0, "x"], "int and str"),
        (["a", "b"], [1, 1], "only one label, 1"),
        (["a", "b"], np.eye(2, dtype=int), "labels have 2 dimensions"),
        (["a", "b"], pd.DataFrame({"label": [0, 1]}), "labels are a table"),
        (["a", "b"], pd.array([0, None], dtype="Int64"), "no label in row 2"),
        (["a", "b"], [[0], [1]], "are list"),
        (["a", "b"], "ab", "labels are of type str"),
        (pd.DataFrame({"text": ["a", "b"]}), [0, 1], "one of its columns"),
        (pd.Series(["a", pd.NA], dtype="string"), [0, 1], "NaN in row 2"),
    ],
)
def test_invalid_texts_or_labels_are_an_error(texts, labels, fault):
    with pytest.raises(InputError) as error:
        task_from_arrays(texts, labels)
    assert fault in str(error.value)


def test_a_label_of_its_own_for_each_text_takes_little_memory():
    texts = [f"The rain fell on day {day}. " * (8000 if day == 7 else 1) for day in range(2000)]
    tracemalloc.start()
    with pytest.raises(InputError, match="2000 different labels") as error:
        task_from_arrays(["wet"] * 2000, texts)
    assert tracemalloc.get_traced_memory()[1] < 20e6 and len(str(error.value)) < 200
    tracemalloc.stop()

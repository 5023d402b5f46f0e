"""Protocol: the rows drawn, the scores, and equality with MTEB's own evaluator."""

import hashlib
import json
import subprocess
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embedder_helpers import protocol
from embedder_helpers.config import InputError
from embedder_helpers.protocol import (
    EXPERIMENTS,
    Scores,
    answers,
    draw_rows,
    floor,
    metrics,
    score,
)
from embedder_helpers.tasks import load_task

LABELS = st.lists(st.integers(0, 4), min_size=1, max_size=120)


def example(seed=0, labels=3, train=120, test=60, noise=1.0):
    """Embeddings that tell of their labels, but not surely."""
    generator = np.random.default_rng(seed)
    centres = generator.normal(size=(labels, 8))
    parts = []
    for count in (train, test):
        found = generator.integers(0, labels, count)
        parts += [centres[found] + noise * generator.normal(size=(count, 8)), found]
    return parts


def scores_of(train, train_labels, test, test_labels, **options):
    options = {"samples_per_label": 8, **options}
    return score(train, train_labels, test, test_labels, **options)


@pytest.mark.parametrize("count", ["10", "335", "670", "4018", "15956", "16000"])
def test_the_orders_are_mtebs_golden_ones(shared_folder, count):
    golden = json.loads((shared_folder / "reference" / "shuffle_golden.json").read_text())[count]
    # With a draw as large as the split, the walk takes every row: the order itself.
    orders = draw_rows([0] * int(count), int(count))
    for experiment in (0, 1, 9):
        assert orders[experiment][:8] == golden[f"first8_exp{experiment}"]
    digest = hashlib.sha256(np.array(orders[9], "<i8").tobytes()).hexdigest()
    assert digest == golden["sha256_exp9"]


@settings(deadline=None)
@given(LABELS, st.integers(1, 12))
def test_each_draw_has_the_asked_number_of_each_label_or_all_there_are(labels, count):
    expected = {label: min(count, found) for label, found in Counter(labels).items()}
    for rows in draw_rows(labels, count):
        assert Counter(labels[row] for row in rows) == expected
        assert len(set(rows)) == len(rows)


@settings(deadline=None)
@given(LABELS)
def test_each_draw_is_the_beginning_of_a_larger_one_for_each_label(labels):
    for small, large in zip(draw_rows(labels, 2), draw_rows(labels, 5), strict=True):
        for label in set(labels):
            of_label = [[row for row in rows if labels[row] == label] for rows in (small, large)]
            assert of_label[0] == of_label[1][:2]


@settings(deadline=None)
@given(LABELS, st.integers(0, 99))
def test_the_draws_do_not_depend_on_numpys_global_generator(labels, seed):
    first = draw_rows(labels, 3)
    np.random.seed(seed)
    np.random.rand()
    assert draw_rows(labels, 3) == first


@settings(deadline=None)
@given(LABELS)
def test_the_draws_do_not_depend_on_the_names_of_the_labels(labels):
    assert draw_rows(labels, 3) == draw_rows([f"label {label}" for label in labels], 3)


def test_the_draws_differ_from_one_another_and_by_seed():
    draws = draw_rows([0, 1] * 50, 8)
    assert len({tuple(rows) for rows in draws}) == len(draws) == EXPERIMENTS
    assert draws != draw_rows([0, 1] * 50, 8, seed=7)


def test_there_are_as_many_experiments_as_asked_for():
    assert len(scores_of(*example(), experiments=3).experiments) == 3


def test_embeddings_that_tell_their_labels_score_1():
    found = scores_of(*example(noise=0.01))
    assert (found.accuracy, found.f1) == (1.0, 1.0)


def test_the_mean_is_the_plain_mean_of_the_experiments():
    found = scores_of(*example())
    assert len({one["f1"] for one in found.experiments}) > 1
    assert found.mean["f1"] == found.f1 == np.mean([one["f1"] for one in found.experiments])
    assert found.mean["accuracy"] == found.accuracy


def test_scores_are_the_same_every_time():
    assert scores_of(*example()) == scores_of(*example())


def test_the_drawn_rows_alone_give_the_scores_of_all_rows():
    train, train_labels, test, test_labels = example()
    rows = np.unique(np.concatenate(draw_rows(train_labels, 4)))
    assert len(rows) < len(train)
    options = {"samples_per_label": 4}
    whole = scores_of(train, train_labels, test, test_labels, **options)
    assert scores_of(train[rows], train_labels, test, test_labels, rows=rows, **options) == whole


def test_the_scores_are_those_of_the_answers():
    train, train_labels, test, test_labels = example()
    found = answers(train, train_labels, test, samples_per_label=8)
    assert [len(answer) for answer in found] == [len(test)] * EXPERIMENTS
    assert Scores.of(test_labels, found) == scores_of(train, train_labels, test, test_labels)
    for answer, scored in zip(found, Scores.of(test_labels, found).experiments, strict=True):
        assert scored == metrics(test_labels.tolist(), answer.tolist())


@pytest.mark.parametrize("left", [[0], [3, 1, 7], range(0, 60, 2)])
def test_an_answer_does_not_depend_on_which_other_texts_are_answered(left):
    train, train_labels, test, _ = example()
    rows = list(left)
    found = answers(train, train_labels, test, samples_per_label=8)
    alone = answers(train, train_labels, test[rows], samples_per_label=8)
    for answer, part in zip(found, alone, strict=True):
        assert answer[rows].tolist() == part.tolist()


def test_no_text_to_score_is_told():
    train, train_labels, test, test_labels = example()
    with pytest.raises(InputError, match="test_embeddings is empty"):
        scores_of(train, train_labels, test[:0], test_labels[:0])


def test_rows_that_lack_a_drawn_one_are_told():
    train, train_labels, test, test_labels = example()
    rows = np.unique(np.concatenate(draw_rows(train_labels, 8)))[:-1]
    with pytest.raises(InputError, match="rows lacks train rows that the protocol draws"):
        scores_of(train[rows], train_labels, test, test_labels, rows=rows)


def test_string_labels_score_as_integers_in_the_same_order_do():
    train, train_labels, test, test_labels = example()
    names = np.array(["amber", "blue", "crimson"])
    found = scores_of(train, names[train_labels], test, names[test_labels])
    assert found == scores_of(train, train_labels, test, test_labels)


@pytest.mark.parametrize("kind", [list, tuple, np.asarray])
def test_labels_may_be_any_sequence(kind):
    train, train_labels, test, test_labels = example()
    found = scores_of(train, kind(train_labels.tolist()), test, kind(test_labels.tolist()))
    assert found == scores_of(*example())


@pytest.mark.parametrize("narrow", ["float32", "float16"])
def test_narrow_embeddings_score_as_their_values_in_float64_do(narrow):
    train, train_labels, test, test_labels = example()
    train, test = train.astype(narrow), test.astype(narrow)
    wide = scores_of(train.astype("float64"), train_labels, test.astype("float64"), test_labels)
    assert scores_of(train, train_labels, test, test_labels) == wide


def test_the_classifier_is_given_float64_whatever_the_embeddings_are(monkeypatch):
    seen = set()

    class Watched(protocol.LogisticRegression):
        def fit(self, embeddings, labels):
            seen.add(embeddings.dtype)
            return super().fit(embeddings, labels)

    monkeypatch.setattr(protocol, "LogisticRegression", Watched)
    train, train_labels, test, test_labels = example()
    scores_of(train.astype("float32"), train_labels, test.astype("float32"), test_labels)
    assert seen == {np.dtype("float64")}


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(("place", "name"), [(0, "train_embeddings"), (2, "test_embeddings")])
def test_embeddings_that_are_not_finite_are_told_with_the_first_row(bad, place, name):
    parts = example()
    parts[place][[7, 9], 3] = bad
    with pytest.raises(InputError, match=f"{name} holds NaN or infinite .* 2 rows, first row 7"):
        scores_of(*parts)


@pytest.mark.parametrize(
    ("place", "change", "message"),
    [
        (0, lambda rows: rows[:-1], r"train_embeddings has shape \(119, 8\).* \(120, width\)"),
        (0, lambda rows: rows[0], r"train_embeddings has shape \(8,\)"),
        (2, lambda rows: rows[:, :, None], r"test_embeddings has shape \(60, 8, 1\)"),
        (2, lambda rows: rows[:-1], "test_embeddings has 59 rows, but test_labels 60"),
        (2, lambda rows: rows[:, 0], r"test_embeddings has shape \(60,\)"),
        (2, lambda rows: rows[:, :7], "train_embeddings have width 8, but test_embeddings 7"),
    ],
)
def test_shapes_that_do_not_fit_are_told(place, change, message):
    parts = example()
    parts[place] = change(parts[place])
    with pytest.raises(InputError, match=message):
        scores_of(*parts)


def test_average_precision_is_given_for_two_labels_of_which_one_is_1():
    found = metrics([0, 1, 1, 0], [0, 1, 0, 0])
    # Hard answers: at the threshold 1 precision 1 and recall 1/2, at 0 precision 1/2 and recall 1.
    assert found["ap"] == found["ap_weighted"] == 0.5 * 1 + 0.5 * 0.5


@pytest.mark.parametrize("labels", [[0, 1, 2], ["no", "yes"], [0, 2], [1, 1]])
def test_average_precision_is_none_for_other_labels(labels):
    found = metrics(labels, labels)
    assert found["ap"] is found["ap_weighted"] is None


def test_average_precision_is_none_in_the_mean_where_it_is_none_in_the_experiments():
    assert scores_of(*example(labels=3)).mean["ap"] is None
    assert scores_of(*example(labels=2)).mean["ap"] is not None


def test_macro_f1_gives_each_label_the_same_weight():
    found = metrics([0, 0, 0, 1], [0, 0, 0, 0])
    assert found["accuracy"] == 0.75
    assert found["f1"] == pytest.approx((6 / 7 + 0) / 2)
    assert found["f1_weighted"] == pytest.approx(0.75 * 6 / 7)


def test_metrics_are_plain_numbers_that_json_takes():
    found = metrics([0, 1], [0, 1])
    assert json.loads(json.dumps(found)) == dict.fromkeys(found, 1.0)


def test_the_floor_always_answers_the_commonest_label_of_train():
    found = floor([1, 1, 0], [0, 0, 0, 1])
    assert found == metrics([0, 0, 0, 1], [1, 1, 1, 1])
    assert found["accuracy"] == 0.25


def test_the_floor_takes_string_labels():
    assert floor(np.array(["a", "b", "b"]), np.array(["b", "a"]))["accuracy"] == 0.5


@settings(deadline=None)
@given(LABELS, LABELS)
def test_the_floors_accuracy_is_the_share_of_one_label(train_labels, test_labels):
    shares = {test_labels.count(label) / len(test_labels) for label in train_labels}
    assert floor(train_labels, test_labels)["accuracy"] in shares


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
    centres = generator.normal(size=(len(task.classes), 16))
    embeddings = {}
    for split, part in (("train", task.train), ("test", task.test)):
        places = np.searchsorted(task.classes, part.labels)
        embeddings[split] = centres[places] + 1.5 * generator.normal(size=(len(part), 16))
        np.save(tmp_path / f"{split}.npy", embeddings[split])

    command = [reference_python, shared_folder / "tools" / "official_mteb.py", "--task", name]
    command += ["--data", data, "--dtype", "float64", "--json"]
    command += ["--train-emb", tmp_path / "train.npy", "--test-emb", tmp_path / "test.npy"]
    command += ["--subset", "en"] if "Emotion" not in name else []
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    official = json.loads(done.stdout.splitlines()[-1])

    found = score(
        embeddings["train"],
        task.train.labels,
        embeddings["test"],
        task.test.labels,
        samples_per_label=task.samples_per_label,
    )
    for metric in ("accuracy", "f1"):
        single = [one[metric] for one in found.experiments]
        assert single == official[f"{metric}_per_experiment"]
    names = ("accuracy", "f1", "f1_weighted", "precision", "recall", "ap", "ap_weighted")
    assert {key: found.mean[key] for key in names} == {key: official[key] for key in names}
    assert found.accuracy == official["main_score"] < 1

"""Predictions: the file beside a result, and what is made of a damaged one."""

import numpy as np
import pytest

from embedder_helpers.errors import InputError
from embedder_helpers.results.predictions import (
    Predictions,
    label_positions,
    predictions_path,
    read_predictions,
    write_predictions,
)


def made_predictions(classes=("no", "yes"), **changes):
    generator = np.random.default_rng(0)
    width = len(classes)
    values = {
        "classes": np.array(classes),
        "labels": np.arange(7) % width,
        "logits": generator.normal(size=(7, width)).astype("float32"),
        "validation_labels": np.arange(4) % width,
        "validation_logits": generator.normal(size=(4, width)).astype("float32"),
    }
    return Predictions(**values | changes)


@pytest.mark.parametrize("classes", [("no", "yes"), (0, 3, 7), ("情", "é", "z")])
def test_what_is_written_is_read(classes, tmp_path):
    predictions = made_predictions(classes)
    write_predictions(predictions, tmp_path / "one.json")
    found = read_predictions(tmp_path / "one.json")
    for name, array in predictions._asdict().items():
        np.testing.assert_array_equal(getattr(found, name), array)


def test_right_and_probabilities_follow_from_the_logits():
    predictions = made_predictions(labels=np.array([0, 1, -1, 0, 1, 1, 0]))
    first, second = predictions.logits.astype(float).T
    labels = predictions.labels
    expected = [(b > a) == bool(label) for a, b, label in zip(first, second, labels, strict=True)]
    expected[2] = False  # a label that was not trained on is never right
    assert predictions.right.tolist() == expected
    np.testing.assert_allclose(predictions.probabilities[:, 1], 1 / (1 + np.exp(first - second)))


def test_positions_of_labels_that_are_no_class_are_minus_one():
    classes = np.array(["b", "d"])
    labels = np.array(["a", "b", "c", "d", "e"])
    assert label_positions(classes, labels).tolist() == [-1, 0, -1, 1, -1]


def test_missing_predictions_are_none(tmp_path):
    assert read_predictions(tmp_path / "one.json") is None


def test_a_damaged_file_is_none_wherever_the_damage_is(tmp_path):
    write_predictions(made_predictions(), tmp_path / "one.json")
    path = predictions_path(tmp_path / "one.json")
    content = path.read_bytes()
    for size in range(0, len(content), 97):
        path.write_bytes(content[:size])
        assert read_predictions(tmp_path / "one.json") is None
    expected = made_predictions()
    for place in range(0, len(content), 13):
        path.write_bytes(content[:place] + bytes([content[place] ^ 16]) + content[place + 1 :])
        found = read_predictions(tmp_path / "one.json")
        if found is not None:  # a bit that no value depends on
            np.testing.assert_array_equal(found.logits, expected.logits)
            np.testing.assert_array_equal(found.labels, expected.labels)


@pytest.mark.parametrize(
    "changes",
    [
        {"labels": np.array([0, 1, 2, 0, 1, 0, 1])},
        {"labels": np.arange(6) % 2},
        {"logits": np.zeros((7, 3), "float32")},
        {"logits": np.full((7, 2), np.nan, "float32")},
        {"validation_logits": np.zeros((4, 2), "float64")},
        {"classes": np.array([object(), object()])},
    ],
)
def test_a_file_whose_parts_do_not_fit_is_none(changes, tmp_path):
    write_predictions(made_predictions(**changes), tmp_path / "one.json")
    assert read_predictions(tmp_path / "one.json") is None


def test_a_folder_that_cannot_be_written_is_an_error(tmp_path):
    (tmp_path / "predictions").write_text("a file")
    with pytest.raises(InputError, match="predictions"):
        write_predictions(made_predictions(), tmp_path / "one.json")

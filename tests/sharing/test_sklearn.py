"""TextEmbedder: a transformer of scikit-learn."""

import pickle

import numpy as np
import pandas as pd
import pytest
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline

from embedder_helpers.config import Experiment
from embedder_helpers.errors import InputError
from embedder_helpers.models.architectures import build_embedder
from embedder_helpers.sharing.sklearn import TextEmbedder

TEXTS = [f"The {word} on day {day}." for day in range(8) for word in ("rain fell", "sun shone")]
LABELS = ["wet", "dry"] * 8
# Its head is a logistic regression, which takes no training graph.
PROBED = Experiment(
    kind="gemma_only", llm_layers=4, probe=True, max_tokens=16, train_split="validation"
)


@pytest.fixture(scope="module")
def fitted():
    return TextEmbedder(PROBED).fit(np.array(TEXTS), np.array(LABELS))


def test_a_saved_embedders_embeddings_are_the_features(tiny_embedders, saved_gemma):
    features = TextEmbedder(saved_gemma, normalize_embeddings=True).fit_transform(TEXTS)
    expected = tiny_embedders["gemma_only"].encode(TEXTS, normalize_embeddings=True)
    np.testing.assert_array_equal(features, expected)


def test_late_fusion_adds_features_beside_those_of_the_hybrid_without(
    tiny_embedders, saved_late_hybrid
):
    features = TextEmbedder(saved_late_hybrid).fit_transform(TEXTS)
    without = tiny_embedders["hybrid"].encode(TEXTS)
    np.testing.assert_allclose(features[:, : without.shape[1]], without, atol=1e-5)
    assert features.shape[1] == 2 * without.shape[1]
    assert features[:, without.shape[1] :].std(0).min() > 0


def test_it_works_in_a_pipeline_a_clone_and_a_cross_validation(saved_gemma):
    pipeline = clone(make_pipeline(TextEmbedder(saved_gemma), LogisticRegression()))
    scores = cross_val_score(pipeline, TEXTS, LABELS, cv=2)
    assert scores.mean() > 0.9


def test_features_have_names(saved_gemma):
    names = TextEmbedder(saved_gemma).fit(TEXTS).get_feature_names_out()
    assert len(names) == 96 and names[0] == "textembedder0"


def test_an_experiment_is_trained_on_the_texts_and_labels_of_fit(fitted):
    predictions = fitted.embedder_.head.predict(fitted.transform(TEXTS))
    assert np.mean(predictions == LABELS) == 1


def test_a_trained_embedder_can_be_saved_and_used_again(fitted, tmp_path):
    saved = TextEmbedder(fitted.embedder_.save(tmp_path / "saved"))
    np.testing.assert_array_equal(saved.fit_transform(TEXTS), fitted.transform(TEXTS))


def test_a_fitted_embedder_cannot_be_pickled(fitted):
    for transformer in (fitted, make_pipeline(fitted)):
        with pytest.raises(InputError, match=r"embedder_.save\(folder\)"):
            pickle.dumps(transformer)


def test_a_pipeline_that_was_fitted_can_be_cloned_and_searched(saved_gemma):
    pipeline = make_pipeline(TextEmbedder(saved_gemma), LogisticRegression()).fit(TEXTS, LABELS)
    parameters = {"textembedder__normalize_embeddings": [True, False], "logisticregression__C": [1]}
    search = GridSearchCV(clone(pipeline), parameters, cv=2).fit(pd.Series(TEXTS), LABELS)
    assert search.best_score_ > 0.9
    assert search.predict(TEXTS[:1]).shape == (1,)


@pytest.mark.slow
def test_a_clone_is_cross_validated_in_two_processes(saved_gemma):
    fitted = make_pipeline(TextEmbedder(saved_gemma), LogisticRegression()).fit(TEXTS, LABELS)
    alone = cross_val_score(fitted, TEXTS, LABELS, cv=2)
    together = cross_val_score(clone(fitted), TEXTS, LABELS, cv=2, n_jobs=2)
    np.testing.assert_allclose(together, alone)


@pytest.mark.parametrize("value", ["It works.", None, pd.DataFrame({"text": TEXTS}), np.array("a")])
def test_what_is_no_list_of_texts_is_not_transformed(fitted, value):
    with pytest.raises(InputError, match="texts (are|have)"):
        fitted.transform(value)


@pytest.mark.slow
def test_fit_fine_tunes_the_experiments_roberta():
    experiment = Experiment(
        kind="roberta_only", epochs=8, batch_size=4, learning_rate=5e-4, max_tokens=16,
        train_split="validation",
    )  # fmt: skip
    fitted = TextEmbedder(experiment).fit(TEXTS, LABELS)
    predictions = fitted.embedder_.head.predict(fitted.transform(TEXTS))
    assert np.mean(predictions == LABELS) == 1
    untrained = build_embedder(experiment).encode(TEXTS)
    assert np.abs(fitted.transform(TEXTS) - untrained).max() > 1e-3


@pytest.mark.parametrize(
    ("texts", "labels", "message"),
    [
        (TEXTS, None, "labels y"),
        (TEXTS, LABELS[:-1], "16 texts, but 15 labels"),
        (TEXTS, ["wet"] * 16, "only one label"),
        (TEXTS, ["wet"] * 15 + [float("nan")], "row 16"),
        (TEXTS, [0.5] * 16, "all whole numbers or all strings|all integers or all strings"),
        ([*TEXTS[:-1], None], LABELS, "None in row 16"),
    ],
)
def test_invalid_texts_and_labels_are_reported(texts, labels, message):
    with pytest.raises(InputError, match=message):
        TextEmbedder(Experiment(kind="roberta_only")).fit(texts, labels)


def test_a_folder_without_an_embedder_is_reported(tmp_path):
    with pytest.raises(InputError, match="holds no saved embedder"):
        TextEmbedder(tmp_path).fit(TEXTS)

import pickle

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline

from embedder_helpers.config import Experiment, InputError
from embedder_helpers.embedder import build_embedder
from embedder_helpers.transformer import TextEmbedder

TEXTS = [f"The {word} on day {day}." for day in range(8) for word in ("rain fell", "sun shone")]
LABELS = ["wet", "dry"] * 8


@pytest.fixture(scope="module")
def embedder():
    return build_embedder(Experiment(kind="gemma_only", llm_layers=2))


@pytest.fixture(scope="module")
def folder(embedder, tmp_path_factory):
    return embedder.save(tmp_path_factory.mktemp("transformer") / "gemma")


def test_it_gives_a_saved_embedders_embeddings(embedder, folder):
    found = TextEmbedder(folder, normalize_embeddings=True).fit_transform(TEXTS)
    np.testing.assert_array_equal(found, embedder.encode(TEXTS, normalize_embeddings=True))


def test_it_works_in_a_pipeline_a_clone_and_a_cross_validation(folder):
    pipeline = clone(make_pipeline(TextEmbedder(folder), LogisticRegression()))
    scores = cross_val_score(pipeline, TEXTS, LABELS, cv=2)
    assert scores.mean() > 0.9
    names = pipeline.fit(TEXTS, LABELS)[:-1].get_feature_names_out()
    assert len(names) == 96 and names[0] == "textembedder0"


def test_an_experiment_is_trained_on_what_fit_is_given(tmp_path):
    experiment = Experiment(
        kind="roberta_only", epochs=8, batch_size=4, learning_rate=5e-4, max_tokens=16,
        train_split="validation",
    )  # fmt: skip
    fitted = TextEmbedder(experiment).fit(np.array(TEXTS), np.array(LABELS))
    answers = fitted.embedder_.head.predict(fitted.transform(TEXTS))
    assert np.mean(answers == LABELS) == 1
    untrained = build_embedder(experiment).encode(TEXTS)
    assert np.abs(fitted.transform(TEXTS) - untrained).max() > 1e-3
    with pytest.raises(InputError, match=r"embedder_.save\(folder\)"):
        pickle.dumps(fitted)
    saved = TextEmbedder(fitted.embedder_.save(tmp_path / "saved"))
    np.testing.assert_array_equal(saved.fit_transform(TEXTS), fitted.transform(TEXTS))


@pytest.mark.parametrize(
    "texts, labels, words",
    [
        (TEXTS, None, "give fit the labels y"),
        (TEXTS, LABELS[:-1], "16 texts, but 15 labels"),
        (TEXTS, ["wet"] * 16, "only one label"),
        (TEXTS, ["wet"] * 15 + [float("nan")], "no label in row 16"),
        (TEXTS, [0.5] * 16, "labels must be all whole numbers or all strings"),
        ([*TEXTS[:-1], None], LABELS, "None in row 16"),
    ],
)
def test_texts_and_labels_that_cannot_be_used_are_told(texts, labels, words):
    with pytest.raises(InputError, match=words):
        TextEmbedder(Experiment(kind="roberta_only")).fit(texts, labels)


def test_a_folder_that_holds_no_embedder_is_told(tmp_path):
    with pytest.raises(InputError, match="holds no saved embedder"):
        TextEmbedder(tmp_path).fit(TEXTS)

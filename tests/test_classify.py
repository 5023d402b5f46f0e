import numpy as np
import pandas as pd
import pytest

from embedder_helpers.__main__ import main
from embedder_helpers.classify import classify
from embedder_helpers.config import Experiment, InputError
from embedder_helpers.embedder import build_embedder
from embedder_helpers.head import Head

TEXTS = ["The rain fell on day 3.", "The rain rose, on day 4.", "Rain."]


def headed(labels, **keys):
    """An untrained embedder with a head of random weights."""
    embedder = build_embedder(Experiment(llm_layers=1, **keys))
    kernel = np.random.default_rng(0).normal(size=(embedder.width, len(labels)))
    embedder.head = Head(kernel, np.zeros(len(labels)), np.array(labels))
    return embedder


@pytest.fixture(scope="module")
def hybrid():
    return headed([0, 1], fusion="add", projection_start="random")


@pytest.fixture(scope="module")
def folder(hybrid, tmp_path_factory):
    return str(hybrid.save(tmp_path_factory.mktemp("classify") / "hybrid"))


@pytest.mark.parametrize("kind", ["gemma_only", "roberta_only"])
def test_the_label_is_that_of_the_highest_probability(kind):
    found = classify(headed([0, 1], kind=kind), TEXTS)
    assert list(found) == ["text", "label", "p(0)", "p(1)"]
    np.testing.assert_allclose(found["p(0)"] + found["p(1)"], 1)
    assert (found["label"] == (found["p(1)"] > found["p(0)"]).astype(int)).all()


def test_what_gemma_moved_is_measured_against_the_same_roberta_without_it(hybrid):
    found = classify(hybrid, TEXTS)
    alone = build_embedder(Experiment(kind="roberta_only"))
    own = hybrid.head.probabilities(alone.encode(TEXTS))
    np.testing.assert_allclose(found["moved_by_gemma"], np.abs(own[:, 1] - found["p(1)"]), 1e-4)
    assert found["label_without_gemma"].tolist() == own.argmax(-1).tolist()
    assert found["moved_by_gemma"].between(0, 1).all() and found["moved_by_gemma"].max() > 0


def test_a_gemma_that_adds_nothing_moves_nothing():
    found = classify(headed(["a", "b", "c"], fusion="add"), TEXTS)  # the projection starts at 0
    np.testing.assert_allclose(found["moved_by_gemma"], 0, atol=1e-5)
    assert list(found)[2:5] == ["p(a)", "p(b)", "p(c)"]


def test_an_embedder_without_a_classifier_is_told():
    with pytest.raises(InputError, match="no classifier: train one"):
        classify(build_embedder(Experiment(kind="roberta_only")), TEXTS)


def test_a_table_is_not_taken_for_the_names_of_its_columns(hybrid):
    with pytest.raises(InputError, match="give one of its columns"):
        classify(hybrid, pd.DataFrame({"text": TEXTS}))


def test_the_command_labels_a_file_into_a_file(hybrid, folder, tmp_path, capsys):
    texts = tmp_path / "in.csv"
    pd.DataFrame({"id": [7, 8, 9], "words": TEXTS}).to_csv(texts, index=False)
    out = tmp_path / "new" / "out.csv"
    arguments = ["predict", folder, "--file", str(texts)]
    assert main([*arguments, "--text-column", "words", "--out", str(out)]) == 0
    found = pd.read_csv(out)
    assert found["text"].tolist() == TEXTS
    pd.testing.assert_frame_equal(found, classify(hybrid, TEXTS))
    assert "3 texts labelled" in capsys.readouterr().out


def test_the_command_prints_the_labels_of_texts(folder, capsys):
    arguments = ["predict", folder, "--text", TEXTS[0], "--text", TEXTS[1]]
    assert main(arguments) == 0
    assert capsys.readouterr().out.count("| The rain") == 2


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--file", "missing.csv"], "there is no file missing.csv"),
        (["--text", " "], "--text: every text must be"),
        (["--file", "in.csv"], "no column 'text', only words: name the column with --text-column"),
    ],
)
def test_a_mistake_is_told_before_a_model_is_loaded(
    arguments, words, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in.csv").write_text("words\nRain.\n")
    assert main(["predict", "nowhere", *arguments]) == 2
    assert words in capsys.readouterr().err

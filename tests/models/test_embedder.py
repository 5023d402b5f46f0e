import copy
import pickle

import joblib
import keras
import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import LogisticRegression

from embedder_helpers.__main__ import main
from embedder_helpers.config import Experiment
from embedder_helpers.errors import InputError
from embedder_helpers.models import text_model
from embedder_helpers.models.architectures import build_embedder
from embedder_helpers.models.embedder import Head
from embedder_helpers.models.tokenization import TokenizedTexts

TEXTS = [
    "It works.",
    "I wish the clasp were stronger.",
    "Had the pump been oiled in autumn, the mill by the river would still be running today.",
    "No.",
]


# What holds for every embedder


KINDS = {
    "hybrid": {},
    "add": {"fusion": "add", "projection_start": "random", "late_fusion": False},
    "prepend": {"fusion": "prepend", "late_fusion": False},
    "late": {"fusion": "add", "late_fusion": True},
    "gemma_only": {"kind": "gemma_only"},
    "roberta_only": {"kind": "roberta_only"},
}


@pytest.fixture(scope="module", params=KINDS)
def embedder(request, tiny_embedders):
    """An untrained embedder of each kind, and a hybrid of each fusion."""
    if request.param in tiny_embedders:
        return tiny_embedders[request.param]
    return build_embedder(Experiment(llm_layers=4, **KINDS[request.param]))


@pytest.fixture(scope="module")
def embeddings(embedder):
    return embedder.encode(TEXTS)


def test_encode_returns_a_float32_embedding_per_text(embedder, embeddings):
    width = 96 if embedder.roberta is None else 128
    width *= 2 if embedder.experiment.late_fusion else 1
    assert embedder.width == width
    assert embeddings.shape == (len(TEXTS), width) and embeddings.dtype == "float32"
    assert np.isfinite(embeddings).all()


def test_different_texts_have_different_embeddings(embeddings):
    distances = np.linalg.norm(embeddings[:, None] - embeddings[None], axis=-1)
    assert distances[~np.eye(len(TEXTS), dtype=bool)].min() > 1e-3


def test_encode_is_tokenize_then_hidden_states_then_prepare_inputs_then_embed(embedder, embeddings):
    tokens = embedder.tokenize(TEXTS)
    assert isinstance(tokens, TokenizedTexts)
    inputs = embedder.prepare_inputs(tokens, embedder.hidden_states(tokens))
    np.testing.assert_allclose(embedder.embed(inputs), embeddings, atol=1e-5)


def test_the_order_of_the_texts_does_not_change_an_embedding(embedder, embeddings):
    np.testing.assert_allclose(embedder.encode(TEXTS[::-1])[::-1], embeddings, atol=1e-4)


def test_neither_the_batch_size_nor_the_other_texts_change_an_embedding(
    embedder, embeddings, monkeypatch
):
    sizes, predict_on_batch = [], embedder.model.predict_on_batch

    def record(batch):
        sizes.append(len(batch["mask"]))
        return predict_on_batch(batch)

    monkeypatch.setattr(embedder.model, "predict_on_batch", record)
    np.testing.assert_allclose(embedder.encode(TEXTS, batch_size=1), embeddings, atol=1e-4)
    assert sizes == [1] * len(TEXTS)


def padded_lengths(embedder, monkeypatch, is_traced_once):
    """The lengths to which a backend of either kind pads texts, and their embeddings."""
    lengths, predict_on_batch = [], embedder.model.predict_on_batch

    def record(batch):
        lengths.append(batch["mask"].shape[1])
        return predict_on_batch(batch)

    monkeypatch.setattr(text_model, "is_traced_once", lambda: is_traced_once)
    with monkeypatch.context() as patch:
        patch.setattr(embedder.model, "predict_on_batch", record)
        return lengths, embedder.encode(TEXTS)


def test_padding_to_the_longest_text_or_to_buckets_does_not_change_an_embedding(
    embedder, monkeypatch
):
    lengths, embeddings = padded_lengths(embedder, monkeypatch, is_traced_once=True)
    tokens = embedder.tokenize(TEXTS)
    inputs = embedder.prepare_inputs(tokens, embedder.hidden_states(tokens))
    assert lengths == [inputs.lengths.max()]
    monkeypatch.setattr("embedder_helpers.models.batching.BUCKETS", (64, 128))
    lengths, padded = padded_lengths(embedder, monkeypatch, is_traced_once=False)
    assert lengths == [64]
    np.testing.assert_allclose(padded, embeddings, atol=1e-4)


def test_texts_are_encoded_in_chunks(embedder, embeddings, monkeypatch):
    chunks, tokenize = [], embedder.tokenize

    def record(texts):
        chunks.append(texts)
        return tokenize(texts)

    monkeypatch.setattr("embedder_helpers.models.embedder.CHUNK", 3)
    monkeypatch.setattr(embedder, "tokenize", record)
    np.testing.assert_allclose(embedder.encode(TEXTS), embeddings, atol=1e-4)
    assert chunks == [TEXTS[:3], TEXTS[3:]]


# The rounding of half precision depends on the shape of a batch.
@pytest.mark.real
@pytest.mark.parametrize("kind", ["hybrid", "gemma_only", "roberta_only"])
@pytest.mark.parametrize(("llm_dtype", "tolerance"), [("float32", 1e-4), ("bfloat16", 2e-2)])
def test_real_embeddings_do_not_depend_on_their_batch(real_presets, kind, llm_dtype, tolerance):
    experiment = Experiment(
        kind=kind,
        llm_layers=10,
        llm_dtype=llm_dtype,
        llm_preset=str(real_presets / "gemma3_270m"),
        slm_preset=str(real_presets / "roberta_6l_384"),
    )
    embedder = build_embedder(experiment)
    together = embedder.encode(TEXTS)
    alone = np.concatenate([embedder.encode([text]) for text in TEXTS])
    np.testing.assert_allclose(alone, together, atol=tolerance)
    lengths = np.linalg.norm(alone, axis=1) * np.linalg.norm(together, axis=1)
    assert ((alone * together).sum(1) / lengths > 0.99999).all()


# The arguments of encode


@pytest.fixture(scope="module")
def roberta_only(tiny_embedders):
    return tiny_embedders["roberta_only"]


def test_a_single_text_has_a_single_embedding(roberta_only):
    single = roberta_only.encode("Fine.")
    np.testing.assert_array_equal(single, roberta_only.encode(["Fine."])[0])


@pytest.mark.parametrize(
    "text, fault", [(None, "None"), (float("nan"), "NaN"), (7, "int"), ("  ", "empty")]
)
def test_an_invalid_text_is_named_by_its_row(roberta_only, text, fault):
    with pytest.raises(InputError, match=rf"encode: .*{fault}.* row 2"):
        roberta_only.encode(["Fine.", text])


@pytest.mark.parametrize("method", ["encode", "predict"])
@pytest.mark.parametrize("table", [pd.DataFrame({"text": TEXTS}), {"text": TEXTS}])
def test_a_table_is_refused_instead_of_encoding_its_column_names(classifier, method, table):
    with pytest.raises(InputError, match="give one of its columns"):
        getattr(classifier, method)(table)


@pytest.mark.parametrize("method", ["encode", "predict"])
@pytest.mark.parametrize(
    "value", [None, float("nan"), 7, np.array("Fine."), np.array([["Fine."]]), b"Fine.", {"Fine."}]
)
def test_what_is_no_list_of_texts_is_refused(classifier, method, value):
    with pytest.raises(InputError, match="texts (are|have)"):
        getattr(classifier, method)(value)


@pytest.mark.parametrize("text", ["", " \n", "\ud83d", None])
def test_only_empty_texts_are_accepted_on_request(roberta_only, text):
    if isinstance(text, str) and not text.strip():
        assert np.isfinite(roberta_only.encode(["Fine.", text], allow_empty=True)).all()
    else:
        with pytest.raises(InputError, match="row 2"):
            roberta_only.encode(["Fine.", text], allow_empty=True)


@pytest.mark.parametrize(
    "texts",
    [
        pd.Series(TEXTS, index=[7, 7, -1, 0]),
        np.array(TEXTS),
        np.array(TEXTS, object),
        tuple(TEXTS),
        (text for text in TEXTS),
    ],
)
def test_texts_may_be_any_sequence_or_iterable(roberta_only, texts):
    embeddings = roberta_only.encode(texts, batch_size=np.int64(4))
    np.testing.assert_allclose(embeddings, roberta_only.encode(TEXTS), atol=1e-4)


def test_predictions_of_a_column_have_rows_from_0(classifier):
    column = pd.Series(TEXTS, index=[7, 7, -1, 0])
    pd.testing.assert_frame_equal(classifier.predict(column), classifier.predict(TEXTS))


def test_no_texts_have_no_embeddings_and_no_predictions(classifier):
    assert classifier.encode([]).shape == (0, classifier.width)
    assert list(classifier.predict([])) == ["text", "label", "p(0)", "p(1)"]


@pytest.mark.parametrize("fusion", ["replace", "add"])
def test_neither_nul_nor_the_name_of_a_special_token_ends_a_text(fusion):
    embedder = build_embedder(Experiment(llm_layers=1, fusion=fusion, projection_start="random"))
    texts = ["The rain\0 fell", "The rain\0 stopped", "The rain</s> fell", "The rain<eos> fell"]
    embeddings = embedder.encode(texts)
    distances = np.linalg.norm(embeddings[:, None] - embeddings[None], axis=-1)
    assert distances[~np.eye(len(texts), dtype=bool)].min() > 1e-3


@pytest.mark.parametrize("kind", ["hybrid", "roberta_only"])
def test_a_very_long_text_has_the_embedding_of_its_beginning(tiny_embedders, kind):
    text = "The rain fell, and the mill by the river stood still. " * 20_000
    embeddings = tiny_embedders[kind].encode([text, text[:20_000]])
    np.testing.assert_allclose(embeddings[0], embeddings[1], atol=1e-5)


def test_embeddings_that_are_not_finite_are_an_error(monkeypatch):
    embedder = build_embedder(Experiment(kind="gemma_only", llm_layers=1))
    predict_on_batch = embedder.model.predict_on_batch
    monkeypatch.setattr(
        embedder.model, "predict_on_batch", lambda batch: predict_on_batch(batch) * [[np.nan], [1]]
    )
    with pytest.raises(InputError, match="embeddings of 1 of 2 texts are not finite"):
        embedder.encode(["Fine.", "Good."])


@pytest.mark.parametrize("duplicate", [pickle.dumps, copy.deepcopy, joblib.hash])
def test_an_embedder_is_saved_not_pickled_or_copied(roberta_only, duplicate):
    with pytest.raises(InputError, match=r"save\(folder\)"):
        duplicate(roberta_only)


def test_a_shallow_copy_shares_the_models(roberta_only):
    copied = copy.copy(roberta_only)
    assert type(copied) is type(roberta_only) and copied.model is roberta_only.model
    copied.head = "another"
    assert roberta_only.head != "another"


@pytest.mark.parametrize("batch_size", [0, -1, 1.5, True, "8"])
def test_an_invalid_batch_size_is_an_error(roberta_only, batch_size):
    with pytest.raises(InputError, match=f"batch_size is {batch_size!r}"):
        roberta_only.encode(TEXTS, batch_size=batch_size)


def test_normalized_embeddings_have_unit_length_and_the_same_direction(roberta_only):
    plain = roberta_only.encode(TEXTS)
    normalized = roberta_only.encode(TEXTS, normalize_embeddings=True)
    expected = plain / np.linalg.norm(plain, axis=1, keepdims=True)
    np.testing.assert_allclose(normalized, expected, 1e-5)


def test_embeddings_are_a_tensor_of_the_backend_on_request(roberta_only):
    tensor = roberta_only.encode(TEXTS, convert_to_numpy=False)
    assert keras.ops.is_tensor(tensor) and tensor.shape == (len(TEXTS), 128)


@pytest.mark.parametrize("shown", [True, False])
def test_a_bar_is_shown_on_standard_error_on_request(roberta_only, shown, monkeypatch, capsys):
    monkeypatch.setattr("embedder_helpers.utils.progress.DELAY", 0)
    roberta_only.encode(TEXTS, show_progress_bar=shown)
    output = capsys.readouterr()
    assert ("embedding" in output.err) == shown and not output.out


# The head, and predictions


def test_a_head_equals_scikit_learns_logistic_regression_of_the_same_weights():
    generator, classes = np.random.default_rng(0), np.array(["a", "b", "c"])
    embeddings, labels = generator.normal(size=(60, 5)), classes[np.arange(60) % 3]
    regression = LogisticRegression().fit(embeddings, labels)
    head = Head(regression.coef_.T, regression.intercept_, classes)
    np.testing.assert_array_equal(head.predict(embeddings), regression.predict(embeddings))
    np.testing.assert_allclose(head.probabilities(embeddings), regression.predict_proba(embeddings))


@pytest.fixture(scope="module")
def classifier():
    """Gemma alone with a head of random weights."""
    embedder = build_embedder(Experiment(kind="gemma_only", llm_layers=1))
    kernel = np.random.default_rng(0).normal(size=(embedder.width, 2))
    embedder.head = Head(kernel, np.zeros(2), np.array([0, 1]))
    return embedder


def test_the_predicted_label_is_the_one_of_the_highest_probability(classifier):
    predictions = classifier.predict(TEXTS)
    assert list(predictions) == ["text", "label", "p(0)", "p(1)"]
    assert predictions["text"].tolist() == TEXTS
    np.testing.assert_allclose(predictions["p(0)"] + predictions["p(1)"], 1)
    assert (predictions["label"] == (predictions["p(1)"] > predictions["p(0)"])).all()


def test_a_single_text_has_a_single_prediction(classifier):
    predictions = classifier.predict(TEXTS[0])
    pd.testing.assert_frame_equal(predictions, classifier.predict(TEXTS[:1]))


def test_an_embedder_without_a_head_cannot_predict(roberta_only):
    with pytest.raises(InputError, match="no classifier: train one"):
        roberta_only.predict(TEXTS)


@pytest.fixture(scope="module")
def folder(classifier, tmp_path_factory):
    return str(classifier.save(tmp_path_factory.mktemp("predict") / "classifier"))


def test_the_command_predict_writes_a_table_of_a_files_texts(classifier, folder, tmp_path, capsys):
    texts, out = tmp_path / "in.csv", tmp_path / "new" / "out.csv"
    pd.DataFrame({"id": range(len(TEXTS)), "body": TEXTS}).to_csv(texts, index=False)
    arguments = ["predict", folder, "--file", str(texts)]
    assert main([*arguments, "--text-column", "body", "--out", str(out)]) == 0
    written = pd.read_csv(out)
    assert written["id"].tolist() == list(range(len(TEXTS)))
    predictions = classifier.predict(TEXTS).drop(columns="text")
    pd.testing.assert_frame_equal(written[[*predictions]], predictions)
    assert str(out) in capsys.readouterr().err


def test_the_command_predict_prints_the_labels_of_texts(folder, capsys):
    assert main(["predict", folder, "--text", TEXTS[0], "--text", TEXTS[1]]) == 0
    printed = capsys.readouterr().out
    assert all(printed.count(f"| {text}") == 1 for text in TEXTS[:2])


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--file", "missing.csv"], "there is no file missing.csv"),
        (["--text", " "], "--text: every text must be"),
        (["--file", "in.csv"], "no column 'text', only 'body': name the column with --text-column"),
    ],
)
def test_the_command_predict_reports_invalid_input_before_it_loads_a_model(
    arguments, message, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in.csv").write_text("body\nRain.\n")
    assert main(["predict", "nowhere", *arguments]) == 2
    assert message in capsys.readouterr().err


# Sharing


def test_an_embedder_is_uploaded_by_its_own_method(roberta_only, monkeypatch):
    uploads = []

    def push_to_hub(*arguments, **options):
        uploads.append((arguments, options))
        return "https://hub/owner/model"

    monkeypatch.setattr("embedder_helpers.sharing.publish.push_to_hub", push_to_hub)
    assert roberta_only.push_to_hub("hf:owner/model", public=True) == "https://hub/owner/model"
    assert uploads == [((roberta_only, "hf:owner/model"), {"public": True})]

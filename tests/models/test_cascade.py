"""A cascade: who answers, what passes through Gemma, and what is saved of it."""

import copy
import json
import shutil

import numpy as np
import pandas as pd
import pytest
from scipy.special import softmax

from embedder_helpers.config import Experiment
from embedder_helpers.errors import InputError
from embedder_helpers.models import saving
from embedder_helpers.models.architectures import build_embedder, load_embedder
from embedder_helpers.models.embedder import Head
from embedder_helpers.results.cascade import confidence
from embedder_helpers.sharing.publish import prepare_upload

TEXTS = [
    "It works.",
    "I wish the clasp were stronger.",
    "Had the pump been oiled in autumn, the mill by the river would still be running today.",
    "No.",
    "The rain fell on the old mill.",
    "So it is, she said, and left.",
]
LABELS = ["dry", "mixed", "wet"]


def with_head(embedder, labels, seed=0):
    """The embedder with a head of random weights."""
    kernel = np.random.default_rng(seed).normal(size=(embedder.width, len(labels)))
    embedder.head = Head(kernel.astype("float32"), np.zeros(len(labels), "f"), np.array(labels))
    return embedder


@pytest.fixture(scope="module")
def roberta():
    """RoBERTa alone, whose labels are in another order."""
    embedder = with_head(build_embedder(Experiment(kind="roberta_only", seed=3)), LABELS[::-1], 1)
    for variable in embedder.model.trainable_variables[:3]:
        variable.assign(variable + 0.01)
    return embedder


@pytest.fixture(scope="module")
def alone():
    """A hybrid without a cheap classifier."""
    settings = dict(llm_layers=2, projection_start="random", late_fusion=False)
    return with_head(build_embedder(Experiment(**settings)), LABELS)


@pytest.fixture
def hybrid(alone, roberta):
    embedder = copy.copy(alone)
    embedder.attach(roberta, 2.5)
    return embedder


@pytest.fixture
def middle(hybrid):
    """A threshold that half of the texts reach."""
    return float(np.median(hybrid.predict(TEXTS, cascade=0)["confidence"]))


def probabilities(table):
    return table[[f"p({label})" for label in LABELS]].to_numpy()


# Who answers


def test_roberta_answers_where_it_is_sure_and_the_hybrid_elsewhere(hybrid, roberta, middle):
    table = hybrid.predict(TEXTS, cascade=middle)
    logits = roberta.encode(TEXTS) @ roberta.head.kernel + roberta.head.bias
    cheap = softmax(logits.astype("float64") / 2.5, axis=1)[:, ::-1]  # in the hybrid's order
    np.testing.assert_allclose(table["confidence"], confidence(logits, 2.5), rtol=1e-5)
    is_sure = table["confidence"] >= middle
    assert 0 < is_sure.sum() < len(TEXTS)
    expected = np.where(is_sure, "roberta_only", "hybrid")
    assert table["answered_by"].tolist() == expected.tolist()
    np.testing.assert_allclose(probabilities(table)[is_sure], cheap[is_sure], atol=1e-5)
    whole = hybrid.predict(TEXTS)
    np.testing.assert_allclose(
        probabilities(table)[~is_sure], probabilities(whole)[~is_sure], atol=1e-4
    )
    own = np.array(LABELS)[probabilities(table).argmax(1)]
    assert table["label"].tolist() == own.tolist() and table["text"].tolist() == TEXTS


def test_the_confidence_is_as_fine_as_that_by_which_thresholds_are_chosen(alone, roberta):
    logits = roberta.encode(TEXTS) @ roberta.head.kernel + roberta.head.bias
    second, first = np.sort(logits.astype(float), axis=1)[:, -2:].T
    temperature = float(np.median(first - second)) / 23  # so that the median is 1 - 1e-10
    hybrid = copy.copy(alone)
    hybrid.attach(roberta, temperature)
    found = hybrid.predict(TEXTS, cascade=0)["confidence"].to_numpy()
    expected = confidence(logits, temperature)
    assert (np.float32(expected) == 1).sum() > (expected == 1).sum()
    np.testing.assert_allclose(1 - found, 1 - expected, rtol=1e-2, atol=1e-14)


def test_only_texts_of_which_roberta_is_not_sure_pass_through_gemma(hybrid, middle):
    before = hybrid.gemma.layer_passes
    table = hybrid.predict(TEXTS, cascade=middle)
    unsure = int((table["answered_by"] == "hybrid").sum())
    assert hybrid.gemma.layer_passes - before == unsure * 2  # layers


@pytest.mark.parametrize(
    "threshold, kind", [(0, "roberta_only"), (np.float32(1), "hybrid"), (np.inf, "hybrid")]
)
def test_the_ends_of_the_scale_are_one_classifier_alone(hybrid, threshold, kind):
    before = hybrid.gemma.layer_passes
    table = hybrid.predict(TEXTS, cascade=threshold)
    assert set(table["answered_by"]) == {kind}
    assert (hybrid.gemma.layer_passes == before) == (kind == "roberta_only")


def test_a_higher_temperature_makes_roberta_less_sure_of_the_same_label(alone, roberta):
    tables = []
    for temperature in (1, 4):
        embedder = copy.copy(alone)
        embedder.attach(roberta, temperature)
        tables.append(embedder.predict(TEXTS, cascade=0))
    assert (tables[1]["confidence"] < tables[0]["confidence"]).all()
    assert tables[0]["label"].tolist() == tables[1]["label"].tolist()


def test_a_single_text_and_no_text_are_answered(hybrid):
    columns = ["text", "label", "p(dry)", "p(mixed)", "p(wet)", "answered_by", "confidence"]
    assert list(hybrid.predict(TEXTS[0], cascade=0.5)) == columns
    assert len(hybrid.predict(TEXTS[0], cascade=0.5)) == 1
    empty = hybrid.predict([], cascade=0.5)
    assert list(empty) == columns and not len(empty)


def test_labels_may_be_integers(alone, roberta):
    hybrid, cheap = (copy.copy(embedder) for embedder in (alone, roberta))
    hybrid.head = hybrid.head._replace(classes=np.array([0, 1, 2]))
    cheap.head = cheap.head._replace(classes=np.array([2, 0, 1]))
    hybrid.attach(cheap)
    assert set(hybrid.predict(TEXTS, cascade=0)["label"]) <= {0, 1, 2}


def test_without_a_cascade_nothing_changes(hybrid, alone):
    pd.testing.assert_frame_equal(hybrid.predict(TEXTS), alone.predict(TEXTS))


def test_an_embedder_that_is_built_anew_forgets_its_cheap_classifier(hybrid):
    hybrid.prepare(hybrid.experiment, hybrid.presets)
    assert hybrid.cheap is None


# What is refused


def test_only_roberta_alone_answers_before_a_hybrid(alone):
    encoder = build_embedder(Experiment(kind="encoder_only", encoder_preset="tiny_roberta"))
    with pytest.raises(InputError, match="encoder_only.*attach RoBERTa alone"):
        copy.copy(alone).attach(with_head(encoder, LABELS))


def test_a_cascade_needs_a_cheap_classifier(alone, roberta):
    for embedder in (alone, roberta):
        with pytest.raises(InputError, match=r"attach RoBERTa alone.*hybrid\.attach"):
            embedder.predict(TEXTS, cascade=0.9)


@pytest.mark.parametrize("threshold", [-0.1, 1.1, float("nan"), float("-inf"), "0.9", True, [0.5]])
def test_a_threshold_that_is_no_probability_is_refused(hybrid, threshold):
    with pytest.raises(InputError, match="cascade is .* from 0 to 1"):
        hybrid.predict(TEXTS, cascade=threshold)


@pytest.mark.parametrize("temperature", [0, -1, float("nan"), float("inf"), "1", None, True])
def test_a_temperature_that_is_no_positive_number_is_refused(alone, roberta, temperature):
    with pytest.raises(InputError, match="temperature is .* above 0"):
        copy.copy(alone).attach(roberta, temperature)


@pytest.mark.parametrize("labels", [["dry", "wet"], ["dry", "mixed", "snow"], [0, 1, 2]])
def test_other_labels_are_refused(alone, roberta, labels):
    cheap = copy.copy(roberta)
    cheap.head = cheap.head._replace(classes=np.array(labels))
    with pytest.raises(InputError, match="train both on the same task"):
        copy.copy(alone).attach(cheap)


def test_an_embedder_without_a_classifier_is_refused(alone, roberta):
    untrained, cheap = copy.copy(alone), copy.copy(roberta)
    untrained.head = cheap.head = None
    with pytest.raises(InputError, match="the hybrid has no classifier"):
        untrained.attach(roberta)
    with pytest.raises(InputError, match="the cheap embedder has no classifier"):
        copy.copy(alone).attach(cheap)


def test_only_an_embedder_without_gemma_answers_before_one_with(alone, roberta, tiny_embedders):
    for first, second in ((alone, alone), (tiny_embedders["gemma_only"], alone)):
        with pytest.raises(InputError, match="cannot answer before"):
            copy.copy(second).attach(first)
    with pytest.raises(InputError, match="cannot answer before"):
        copy.copy(roberta).attach(roberta)


def test_an_invalid_text_is_named_by_its_row(hybrid):
    with pytest.raises(InputError, match="row 2"):
        hybrid.predict(["Fine.", " "], cascade=0.5)


# Saving


@pytest.fixture
def saved(hybrid, tmp_path):
    return hybrid.save(tmp_path / "saved")


def test_a_saved_hybrid_keeps_its_cheap_classifier(hybrid, saved, middle, tmp_path):
    loaded = load_embedder(saved)
    assert loaded.cheap.temperature == 2.5
    expected = hybrid.predict(TEXTS, cascade=middle)
    pd.testing.assert_frame_equal(loaded.predict(TEXTS, cascade=middle), expected)
    again = load_embedder(loaded.save(tmp_path / "again"))
    pd.testing.assert_frame_equal(again.predict(TEXTS, cascade=middle), expected)
    loaded.save(saved)  # replaces what is its own
    assert load_embedder(saved).cheap.temperature == 2.5


def test_the_cheap_classifier_is_an_embedder_of_its_own_inside(saved, roberta):
    cheap = load_embedder(saved / "cheap")
    pd.testing.assert_frame_equal(cheap.predict(TEXTS), roberta.predict(TEXTS))


def test_a_hybrid_without_one_is_saved_without_one(alone, hybrid, saved):
    alone.save(saved)
    assert not (saved / "cheap").exists() and load_embedder(saved).cheap is None


@pytest.mark.parametrize("name", ["embedder.json", "joint.safetensors", "roberta/config.json"])
def test_damage_of_the_cheap_classifier_is_noticed(saved, name):
    path = saved / "cheap" / name
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(InputError, match=f"cheap/{name}.* is missing or damaged"):
        load_embedder(saved)


def test_a_temperature_and_a_cheap_classifier_come_together(saved):
    manifest = json.loads((saved / "embedder.json").read_text())
    del manifest["checksum"]  # as of a stranger's
    for changes in ({"cheap_temperature": None}, {"cheap_temperature": -1.0}):
        (saved / "embedder.json").write_text(json.dumps(manifest | changes))
        with pytest.raises(InputError, match="cheap_temperature is"):
            load_embedder(saved)


def test_an_embedder_saved_before_there_were_cascades_is_loaded(alone, tmp_path):
    folder = alone.save(tmp_path / "older")
    manifest = json.loads((folder / "embedder.json").read_text())
    assert manifest.pop("cheap_temperature") is None
    del manifest["checksum"]
    (folder / "embedder.json").write_text(json.dumps(manifest))
    assert load_embedder(folder).cheap is None


def test_a_cheap_classifier_is_not_uploaded(saved):
    with prepare_upload(saved, "hf:owner/model") as prepared:
        copied = shutil.copytree(prepared.folder, saved.parent / "uploaded")
    assert not (copied / "cheap").exists()
    assert saving.read_manifest(copied).cheap_temperature is None
    assert load_embedder(copied).cheap is None

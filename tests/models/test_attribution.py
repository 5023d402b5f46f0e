"""What hidden states change: compared with texts in which they are replaced one by one."""

import numpy as np
import pytest
from keras import ops
from scipy.special import softmax

from embedder_helpers.config import Experiment
from embedder_helpers.errors import InputError
from embedder_helpers.models.architectures import build_embedder
from embedder_helpers.models.attribution import attribute
from embedder_helpers.models.embedder import Head
from embedder_helpers.models.layers import FUSION_FUNCTIONS, register_fusion

TEXTS = ["It works.", "I wish the clasp were stronger, she said.", "No. "]
LABELS = ["dry", "mixed", "wet"]
COLUMNS = ["token", "start", "end", "gemma_norm", "token_norm", "change"]


def trained(**settings):
    """A hybrid as if it were trained: states are standardized, and its weights matter."""
    settings = dict(final_norm="none", projection_start="random", late_fusion=False) | settings
    embedder = build_embedder(Experiment(llm_layers=settings.pop("llm_layers", 2), **settings))
    tokens = embedder.tokenize(TEXTS)
    embedder.standardize.adapt(embedder.hidden_states(tokens))
    generator = np.random.default_rng(0)
    kernel = generator.normal(scale=0.05, size=(embedder.width, 3)).astype("float32")
    embedder.head = Head(kernel, np.zeros(3, "float32"), np.array(LABELS))
    return embedder


HYBRIDS = {
    "add": {"fusion": "add"},
    "replace": {"fusion": "replace"},
    "prepend": {"fusion": "prepend"},
    "add, late": {"fusion": "add", "late_fusion": True},
    "replace, late": {"fusion": "replace", "late_fusion": True},
    "prepend, late": {"fusion": "prepend", "late_fusion": True},
    "learned": {"llm_layers": (1, 2), "layer_pooling": "learned", "projection": "mlp"},
    "max, late": {"llm_layers": (1, 2), "layer_pooling": "max", "late_fusion": True},
}


@pytest.fixture(scope="module", params=HYBRIDS)
def hybrid(request):
    return trained(**HYBRIDS[request.param])


@pytest.fixture(scope="module")
def found(hybrid):
    return attribute(hybrid, TEXTS)


@pytest.fixture(scope="module")
def add():
    return trained(fusion="add")


def probabilities(hybrid, batch):
    embeddings = hybrid.model.predict_on_batch(batch)
    return softmax((embeddings @ hybrid.head.kernel).astype("float64"), axis=-1)


def text_inputs(hybrid, row):
    """The model's inputs for one text, not padded."""
    tokens = hybrid.tokenize(TEXTS)
    inputs = hybrid.prepare_inputs(tokens, hybrid.hidden_states(tokens))
    return inputs.batch([row], int(inputs.lengths[row]), 1)


def test_the_changes_are_those_of_inputs_in_which_one_state_is_the_mean(hybrid, found):
    mean = ops.convert_to_numpy(hybrid.standardize.mean)
    for row, attribution in enumerate(found):
        batch = text_inputs(hybrid, row)
        whole = probabilities(hybrid, batch)[0]
        assert attribution.label == LABELS[whole.argmax()]
        assert attribution.probability == pytest.approx(whole.max(), abs=1e-5)
        expected = []
        for position in range(len(attribution.tokens)):
            edited = batch["inputs"].copy()
            edited[0, position] = mean
            without = probabilities(hybrid, batch | {"inputs": edited})[0]
            expected.append(without[whole.argmax()] - whole.max())
        np.testing.assert_allclose(attribution.tokens["change"], expected, atol=1e-5)
        assert np.abs(expected).max() > 1e-4


def test_the_norms_are_those_of_what_roberta_reads(hybrid, found):
    table = ops.convert_to_numpy(hybrid.roberta.token_embedding.embeddings)
    for row, attribution in enumerate(found):
        batch, count = text_inputs(hybrid, row), len(attribution.tokens)
        projected = hybrid.projection(hybrid.projection_input(batch["inputs"]))
        norms = np.linalg.norm(ops.convert_to_numpy(projected)[0], axis=-1)
        np.testing.assert_allclose(attribution.tokens["gemma_norm"], norms[:count], rtol=1e-4)
        own = attribution.tokens["token_norm"]
        if hybrid.fusion == "add":
            np.testing.assert_allclose(own, np.linalg.norm(table[batch["tokens"][0]], axis=-1))
        else:
            assert own.isna().all()


def test_the_tokens_with_their_spans_reproduce_the_text(found):
    for text, attribution in zip(TEXTS, found, strict=True):
        tokens = attribution.tokens
        assert list(tokens) == COLUMNS
        assert "".join(tokens["token"]) == text == attribution.text
        spans = zip(tokens["start"], tokens["end"], strict=True)
        assert tokens["token"].tolist() == [text[start:end] for start, end in spans]


def test_there_is_a_row_for_each_token_whose_state_is_read(hybrid, found):
    tokens = hybrid.tokenize(TEXTS)
    ids = tokens.roberta if hybrid.fusion == "add" else tokens.gemma
    assert [len(attribution.tokens) for attribution in found] == ids.lengths.tolist()


def test_neither_the_other_texts_nor_the_batch_size_matter(hybrid, found):
    (alone,) = attribute(hybrid, TEXTS[1], batch_size=2)
    np.testing.assert_allclose(alone.tokens["change"], found[1].tokens["change"], atol=1e-5)


def test_a_registered_fusion_is_explained_like_add():
    register_fusion("subtract", lambda projected, own, tokens: own - projected)
    try:
        hybrid = trained(fusion="subtract")
        (attribution,) = attribute(hybrid, TEXTS[1])
        assert len(attribution.tokens) == hybrid.tokenize(TEXTS[1:2]).roberta.lengths[0]
        assert attribution.tokens["change"].abs().max() > 1e-4
    finally:
        del FUSION_FUNCTIONS["subtract"]
        from embedder_helpers.config import FUSION_NAMES

        FUSION_NAMES.remove("subtract")


def test_states_that_say_nothing_change_nothing():
    """With a closed gate the hybrid is RoBERTa alone."""
    hybrid = trained(fusion="add", projection_start="zero")
    for attribution in attribute(hybrid, TEXTS):
        np.testing.assert_allclose(attribution.tokens[["gemma_norm", "change"]], 0, atol=1e-6)


def test_states_in_half_precision_are_left_out_exactly():
    """Where a mean is large, one that is rounded to float16 would be far from average."""
    hybrid = trained(final_norm="rms")
    hybrid.standardize.mean.assign(hybrid.standardize.mean + 1000.3)
    name = hybrid.standardize.output.name
    assert hybrid.after_standardizing.input[name].dtype == "float32"
    (attribution,) = attribute(hybrid, TEXTS[0])
    states = ops.convert_to_numpy(hybrid.standardize(text_inputs(hybrid, 0)["inputs"]))
    states[0, 1] = 0
    inputs = text_inputs(hybrid, 0) | {name: states}
    del inputs["inputs"]
    embedding = ops.convert_to_numpy(hybrid.after_standardizing(inputs))
    without = softmax((embedding @ hybrid.head.kernel).astype("float64"))[0]
    place = LABELS.index(attribution.label)
    expected = without[place] - attribution.probability
    assert attribution.tokens["change"][1] == pytest.approx(expected, abs=1e-5)


def test_each_token_costs_one_pass_through_roberta_and_each_text_one_through_gemma(
    add, monkeypatch
):
    rows, predict_on_batch = [], add.after_standardizing.predict_on_batch

    def record(batch):
        rows.append(len(batch["mask"]))
        return predict_on_batch(batch)

    monkeypatch.setattr(add.after_standardizing, "predict_on_batch", record)
    before = add.gemma.layer_passes
    found = attribute(add, TEXTS)
    assert add.gemma.layer_passes - before == len(TEXTS) * 2  # layers
    assert sum(rows) == sum(len(attribution.tokens) for attribution in found)
    assert len(rows) == 1  # in one batch


def test_texts_are_explained_in_chunks(add, monkeypatch):
    whole = attribute(add, TEXTS, labels=["wet", "dry", "dry"])
    monkeypatch.setattr("embedder_helpers.models.attribution.CHUNK", 2)
    for part, expected in zip(attribute(add, TEXTS, ["wet", "dry", "dry"]), whole, strict=True):
        assert part.label == expected.label
        np.testing.assert_allclose(part.tokens["change"], expected.tokens["change"], atol=1e-5)


def test_another_label_than_the_predicted_one_can_be_explained(add):
    by_label = [attribute(add, TEXTS, [label] * len(TEXTS)) for label in LABELS]
    for text in zip(*by_label, strict=True):
        assert [attribution.label for attribution in text] == LABELS
        assert sum(attribution.probability for attribution in text) == pytest.approx(1, abs=1e-5)
        changes = np.sum([attribution.tokens["change"] for attribution in text], 0)
        np.testing.assert_allclose(changes, 0, atol=1e-5)


def test_a_truncated_text_is_explained_as_far_as_it_is_read():
    hybrid = trained(fusion="add", max_tokens=8)
    text = "The rain fell on the old mill by the river, and the mill stood still."
    (attribution,) = attribute(hybrid, text)
    read = "".join(attribution.tokens["token"])
    assert 0 < len(read) < len(text) and text.startswith(read)


def test_no_texts_have_no_attributions(add):
    assert attribute(add, []) == []


# What is refused


@pytest.mark.parametrize("kind", ["gemma_only", "roberta_only"])
def test_only_a_hybrid_can_be_explained(tiny_embedders, kind):
    with pytest.raises(InputError, match=f"'{kind}', but only a hybrid"):
        attribute(tiny_embedders[kind], TEXTS)


def test_a_hybrid_without_a_classifier_is_refused(tiny_embedders):
    with pytest.raises(InputError, match="no classifier"):
        attribute(tiny_embedders["hybrid"], TEXTS)


@pytest.mark.parametrize(
    "labels, message", [(["wet"], "1 labels, but 3 texts"), (["wet", "snow", "dry"], "'snow'")]
)
def test_labels_that_the_head_lacks_are_refused(add, labels, message):
    with pytest.raises(InputError, match=message):
        attribute(add, TEXTS, labels)


def test_an_invalid_text_is_named_by_its_row(add):
    with pytest.raises(InputError, match="row 2"):
        attribute(add, ["Fine.", " "])

import math
import random
import zlib

import keras
import keras_hub
import numpy as np
import pandas as pd
import pytest

from embedder_helpers.builtin import BUILTIN_FOLDER, BUILTIN_PRESETS
from embedder_helpers.data.tasks import load_task
from tools.builtin_models import build, corpus, pretrain

# The training text


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())


def test_a_gloss_follows_its_synonyms(tmp_path):
    wordnet = tmp_path / "wordnet-base/usr/share/wordnet"
    for part in ("verb", "adj", "adv"):
        write(wordnet / f"data.{part}", "")
    write(
        wordnet / "data.noun",
        "  1 This software and database is being provided\n"
        "07527352 12 n 02 joy 0 high_spirits(p) 0 001 @ 00 n 0000 | great happiness; with | joy\n",
    )
    assert list(corpus.glosses(tmp_path)) == ["joy, high spirits: great happiness; with | joy"]


def r_strings(lines):
    """A character vector as R serializes it."""
    return b"X\n" + b"".join(
        b"\x00\x04\x00\x09" + len(line).to_bytes(4, "big") + line.encode() for line in lines
    )


def test_novels_are_read_from_a_data_set_of_r(tmp_path):
    root = tmp_path / "r-cran-janeaustenr/usr/lib/R/site-library/janeaustenr/data"
    novels = [["EMMA", "", "It was a", "fine day."], ["PERSUASION", "", "It rained."]]
    chunks = [r_strings(lines) for lines in novels]
    packed = [len(chunk).to_bytes(4, "big") + zlib.compress(chunk) for chunk in chunks]
    write(root / "Rdata.rdb", b"".join(packed))
    assert list(corpus.austen(tmp_path)) == [
        "EMMA", "It was a\nfine day.", "PERSUASION", "It rained.",
    ]  # fmt: skip


def test_speeches_are_split_into_passages_of_four_sentences(tmp_path):
    write(tmp_path / "datasets-sotu/package/data/1790.txt", "One. Two! Three? Four. Five.")
    assert list(corpus.speeches(tmp_path)) == ["One. Two! Three? Four.", "Five."]


def test_every_50th_passage_is_held_out_and_duplicates_are_dropped(tmp_path, monkeypatch):
    monkeypatch.setattr(corpus, "download", lambda folder: None)
    for name in ("glosses", "austen", "moby_dick"):
        monkeypatch.setattr(corpus, name, lambda folder: [])
    passages = [f"passage  {i}\n" for i in range(120)]
    monkeypatch.setattr(corpus, "speeches", lambda folder: [*passages, *passages])
    train, held_out = corpus.passages(tmp_path)
    assert held_out == ["passage 49", "passage 99"]
    assert sorted(train + held_out) == sorted(f"passage {i}" for i in range(120))


# Training examples

LENGTH = 48


@pytest.fixture(scope="module")
def tokenizer():
    folder = BUILTIN_FOLDER / BUILTIN_PRESETS[1]
    return keras_hub.models.RobertaTokenizer.from_preset(str(folder))


@pytest.fixture(scope="module")
def sequences(tokenizer):
    """RoBERTa's tokens of the sample task's texts."""
    return pretrain.pack(tokenizer, load_task("sample").train.texts(), LENGTH)


def test_sequences_begin_with_the_start_token_and_continue_with_the_texts(tokenizer, sequences):
    assert sequences.shape[1] == LENGTH + 1
    assert (sequences[:, 0] == 0).all()
    ids = np.asarray(tokenizer(load_task("sample").train.texts()[0]))
    np.testing.assert_array_equal(sequences[0, 1 : len(ids) + 2], [*ids, tokenizer.end_token_id])


def test_each_token_is_predicted_from_those_before_it(sequences):
    inputs, targets = pretrain.next_token(sequences, np.random.default_rng(0))
    np.testing.assert_array_equal(inputs["token_ids"][:, 1:], targets[:, :-1])
    np.testing.assert_array_equal(targets[:, -1], sequences[:, -1])


def test_masked_tokens_are_predicted_and_the_others_stay(sequences):
    inputs, targets = pretrain.masked_tokens(sequences, np.random.default_rng(0))
    positions = inputs["mask_positions"]
    assert (np.diff(positions) > 0).all() and positions.min() > 0
    np.testing.assert_array_equal(np.take_along_axis(sequences, positions, 1), targets)
    changed = inputs["token_ids"] != sequences[:, :-1]
    rows = np.arange(len(positions))[:, None]
    assert changed.sum() == changed[rows, positions].sum()
    shown = inputs["token_ids"][rows, positions]
    assert 0.7 < (shown == 4).mean() < 0.9  # <mask>
    assert 0.05 < (shown == targets).mean() < 0.2


def test_tokens_with_the_same_contexts_have_similar_initial_embeddings():
    random = np.random.default_rng(0)
    # Each sentence has one of two topics, of 8 tokens each; 10 and 11 belong to the same one.
    stream = np.concatenate(
        [random.permutation(10 * (1 + i % 2) + np.arange(8)) for i in range(400)]
    )
    model = build.random_roberta()
    build.initialize_token_embeddings(model, stream)
    embeddings = keras.ops.convert_to_numpy(model.token_embedding.embeddings)
    assert 0.01 < embeddings.std() < 0.03
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    assert embeddings[10] @ embeddings[11] > 0.5 > 0.1 > embeddings[10] @ embeddings[20]


# Checkpoints

STEPS, CHECKPOINT_STEPS, VOCABULARY_SIZE = 6, 2, 16
SCHEDULE = pretrain.Schedule(length=8, batch=4, steps=STEPS, rate=1e-2)


def tiny_model():
    random.seed(0)  # Keras draws its seeds from here
    backbone = keras_hub.models.GemmaBackbone(
        vocabulary_size=VOCABULARY_SIZE, num_layers=1, num_query_heads=1, num_key_value_heads=1,
        hidden_dim=8, intermediate_dim=16, head_dim=8,
    )  # fmt: skip
    return keras_hub.models.GemmaCausalLM(backbone=backbone, preprocessor=None)


def sample(step):
    random = np.random.default_rng(step)
    shape = (CHECKPOINT_STEPS * SCHEDULE.batch, SCHEDULE.length + 1)
    return pretrain.next_token(random.integers(0, VOCABULARY_SIZE, shape), random)


def fit(folder, sample=sample):
    folder.mkdir(exist_ok=True)
    model = tiny_model()
    pretrain.fit(model, SCHEDULE, sample, sample(99), folder / "tiny")
    return model


@pytest.mark.slow
def test_an_interrupted_run_resumes_to_the_same_weights_and_curve(tmp_path, monkeypatch):
    monkeypatch.setattr(pretrain, "CHECKPOINT_STEPS", CHECKPOINT_STEPS)
    monkeypatch.setattr(pretrain, "WARMUP", 1)
    complete = fit(tmp_path / "complete")

    def interrupted_sample(step):
        if step == STEPS - CHECKPOINT_STEPS:
            raise KeyboardInterrupt
        return sample(step)

    with pytest.raises(KeyboardInterrupt):
        fit(tmp_path / "interrupted", interrupted_sample)
    resumed = fit(tmp_path / "interrupted")
    for weight, other in zip(complete.get_weights(), resumed.get_weights(), strict=True):
        np.testing.assert_allclose(weight, other, rtol=1e-5, atol=1e-7)
    curves = [pd.read_csv(tmp_path / name / "tiny.csv") for name in ("complete", "interrupted")]
    assert curves[0]["step"].tolist() == [2, 4, 6]
    pd.testing.assert_frame_equal(*curves, rtol=1e-4)


def test_curves_of_both_models_are_plotted(tmp_path):
    curve = BUILTIN_FOLDER / "curve_tiny_gemma.csv"
    pretrain.plot({"tiny_gemma": curve, "tiny_roberta": curve}, tmp_path / "curves.png")
    assert (tmp_path / "curves.png").stat().st_size > 1000


# The built-in models


def test_both_models_take_at_most_16_megabytes():
    files = [path for name in BUILTIN_PRESETS for path in (BUILTIN_FOLDER / name).rglob("*")]
    assert sum(path.stat().st_size for path in files if path.is_file()) <= 16e6


def test_gemma_predicts_english_better_than_token_frequencies_do():
    folder = str(BUILTIN_FOLDER / BUILTIN_PRESETS[0])
    tokenizer = keras_hub.models.Tokenizer.from_preset(folder)
    texts = [*load_task("sample").test.texts(), *load_task("sample_emotion").test.texts()]
    inputs, targets = pretrain.next_token(pretrain.pack(tokenizer, texts, 128), None)
    model = keras_hub.models.GemmaCausalLM(
        backbone=keras_hub.models.Backbone.from_preset(folder), preprocessor=None
    )
    logits = model.predict(inputs, batch_size=8, verbose=0)
    losses = keras.losses.sparse_categorical_crossentropy(targets, logits, from_logits=True)
    frequencies = np.bincount(targets.ravel(), minlength=build.VOCABULARY_SIZE) / targets.size
    entropy = -np.sum(frequencies[frequencies > 0] * np.log(frequencies[frequencies > 0]))
    assert np.mean(losses) < entropy < math.log(build.VOCABULARY_SIZE)

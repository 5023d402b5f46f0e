"""The text that the built-in models read, how they read it, and that they did."""

import math
import zlib

import keras
import keras_hub
import numpy as np
import pandas as pd
import pytest

from embedder_helpers.builtin import build, corpus, pretrain
from embedder_helpers.presets import BUILTIN, BUILTIN_FOLDER
from embedder_helpers.tasks import load_task

# The text


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())


def test_a_gloss_stands_behind_its_synonyms(tmp_path):
    words = tmp_path / "wordnet-base/usr/share/wordnet"
    for part in ("verb", "adj", "adv"):
        write(words / f"data.{part}", "")
    write(
        words / "data.noun",
        "  1 This software and database is being provided\n"
        "07527352 12 n 02 joy 0 high_spirits(p) 0 001 @ 00 n 0000 | great happiness; with | joy\n",
    )
    assert list(corpus.glosses(tmp_path)) == ["joy, high spirits: great happiness; with | joy"]


def r_strings(lines):
    """A character vector as R writes it."""
    return b"X\n" + b"".join(
        b"\x00\x04\x00\x09" + len(line).to_bytes(4, "big") + line.encode() for line in lines
    )


def test_novels_are_read_from_rs_own_format(tmp_path):
    root = tmp_path / "r-cran-janeaustenr/usr/lib/R/site-library/janeaustenr/data"
    novels = [["EMMA", "", "It was a", "fine day."], ["PERSUASION", "", "It rained."]]
    chunks = [r_strings(lines) for lines in novels]
    packed = [len(chunk).to_bytes(4, "big") + zlib.compress(chunk) for chunk in chunks]
    write(root / "Rdata.rdb", b"".join(packed))
    assert list(corpus.novels(tmp_path)) == [
        "EMMA", "It was a\nfine day.", "PERSUASION", "It rained.",
    ]  # fmt: skip


def test_speeches_come_in_passages_of_some_sentences(tmp_path):
    write(tmp_path / "datasets-sotu/package/data/1790.txt", "One. Two! Three? Four. Five.")
    assert list(corpus.speeches(tmp_path)) == ["One. Two! Three? Four.", "Five."]


def test_held_out_passages_are_not_read_and_none_comes_twice(tmp_path, monkeypatch):
    monkeypatch.setattr(corpus, "fetch", lambda folder: None)
    for name in ("glosses", "novels", "whale"):
        monkeypatch.setattr(corpus, name, lambda folder: [])
    made = [f"passage  {i}\n" for i in range(120)]
    monkeypatch.setattr(corpus, "speeches", lambda folder: [*made, *made])
    train, held_out = corpus.passages(tmp_path)
    assert held_out == ["passage 49", "passage 99"]
    assert sorted(train + held_out) == sorted(f"passage {i}" for i in range(120))


# Reading it

LENGTH = 48


@pytest.fixture(scope="module")
def sequences():
    """Of RoBERTa's tokens, from the sample task's texts."""
    tokenizer = keras_hub.models.RobertaTokenizer.from_preset(str(BUILTIN_FOLDER / BUILTIN[1]))
    return pretrain.pack(tokenizer, load_task("sample").train.texts(), LENGTH)


def test_sequences_open_with_the_start_token_and_hold_the_texts_end_to_end(sequences):
    assert sequences.shape[1] == LENGTH + 1
    assert (sequences[:, 0] == 0).all()
    tokenizer = keras_hub.models.RobertaTokenizer.from_preset(str(BUILTIN_FOLDER / BUILTIN[1]))
    first = load_task("sample").train.texts()[0]
    ids = np.asarray(tokenizer(first))
    np.testing.assert_array_equal(sequences[0, 1 : len(ids) + 2], [*ids, tokenizer.end_token_id])


def test_each_token_is_to_be_told_from_those_before_it(sequences):
    inputs, told = pretrain.next_token(sequences, np.random.default_rng(0))
    np.testing.assert_array_equal(inputs["token_ids"][:, 1:], told[:, :-1])
    np.testing.assert_array_equal(told[:, -1], sequences[:, -1])


def test_masked_tokens_are_to_be_told_and_the_others_stay(sequences):
    inputs, told = pretrain.masked_tokens(sequences, np.random.default_rng(0))
    places = inputs["mask_positions"]
    assert (np.diff(places) > 0).all() and places.min() > 0
    np.testing.assert_array_equal(np.take_along_axis(sequences, places, 1), told)
    changed = inputs["token_ids"] != sequences[:, :-1]
    rows = np.arange(len(places))[:, None]
    assert changed.sum() == changed[rows, places].sum()
    shown = inputs["token_ids"][rows, places]
    assert 0.7 < (shown == 4).mean() < 0.9  # <mask>
    assert 0.05 < (shown == told).mean() < 0.2


def test_tokens_that_stand_beside_the_same_tokens_start_alike():
    random = np.random.default_rng(0)
    # Each sentence: one of two topics, whose tokens stand together; 10 and 11 are of one topic.
    stream = np.concatenate(
        [random.permutation(10 * (1 + i % 2) + np.arange(8)) for i in range(400)]
    )
    model = build.random_roberta()
    build.start_at_meanings(model, stream)
    table = keras.ops.convert_to_numpy(model.token_embedding.embeddings)
    table /= np.linalg.norm(table, axis=1, keepdims=True)
    assert table[10] @ table[11] > 0.5 > 0.1 > table[10] @ table[20]
    assert 0.01 < keras.ops.convert_to_numpy(model.token_embedding.embeddings).std() < 0.03


# Kept between slices

STEPS, SLICE, WORDS = 6, 2, 16


def tiny_model():
    keras.utils.set_random_seed(0)
    backbone = keras_hub.models.GemmaBackbone(
        vocabulary_size=WORDS, num_layers=1, num_query_heads=1, num_key_value_heads=1,
        hidden_dim=8, intermediate_dim=16, head_dim=8,
    )  # fmt: skip
    return keras_hub.models.GemmaCausalLM(backbone=backbone, preprocessor=None)


READING = pretrain.Reading(length=8, batch=4, steps=STEPS, rate=1e-2)


def drawn(step):
    random = np.random.default_rng(step)
    return pretrain.next_token(random.integers(0, WORDS, (SLICE * READING.batch, 9)), random)


def read(folder, draw=drawn):
    folder.mkdir(exist_ok=True)
    model = tiny_model()
    pretrain.fit(model, READING, draw, drawn(99), folder / "tiny")
    return model


def test_killed_it_goes_on_to_the_same_weights_and_curve(tmp_path, monkeypatch):
    monkeypatch.setattr(pretrain, "SLICE", SLICE)
    monkeypatch.setattr(pretrain, "WARMUP", 1)
    whole = read(tmp_path / "whole")

    def die_at_the_last(step):
        if step == STEPS - SLICE:
            raise KeyboardInterrupt
        return drawn(step)

    with pytest.raises(KeyboardInterrupt):
        read(tmp_path / "killed", die_at_the_last)
    again = read(tmp_path / "killed")
    for one, other in zip(whole.get_weights(), again.get_weights(), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-7)
    curves = [pd.read_csv(tmp_path / name / "tiny.csv") for name in ("whole", "killed")]
    assert curves[0]["step"].tolist() == [2, 4, 6]
    pd.testing.assert_frame_equal(*curves, rtol=1e-4)


# What is built in


def test_both_models_take_16_megabytes_at_most():
    files = [path for name in BUILTIN for path in (BUILTIN_FOLDER / name).rglob("*")]
    assert sum(path.stat().st_size for path in files if path.is_file()) <= 16e6


def test_gemma_has_read_english():
    folder = str(BUILTIN_FOLDER / BUILTIN[0])
    tokenizer = keras_hub.models.Tokenizer.from_preset(folder)
    texts = [*load_task("sample").test.texts(), *load_task("sample_emotion").test.texts()]
    inputs, told = pretrain.next_token(pretrain.pack(tokenizer, texts, 128), None)
    model = keras_hub.models.GemmaCausalLM(
        backbone=keras_hub.models.Backbone.from_preset(folder), preprocessor=None
    )
    logits = model.predict(inputs, batch_size=8, verbose=0)
    losses = keras.losses.sparse_categorical_crossentropy(told, logits, from_logits=True)
    counts = np.bincount(told.ravel(), minlength=build.WORDS) / told.size
    frequencies = -np.sum(counts[counts > 0] * np.log(counts[counts > 0]))
    # To beat the texts' own word frequencies takes more than knowing how frequent words are.
    assert np.mean(losses) < frequencies < math.log(build.WORDS)

import types

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embedder_helpers.builtin import BUILTIN_FOLDER, BUILTIN_PRESETS
from embedder_helpers.models.batching import from_lengths
from embedder_helpers.models.tokenization import TokenizedTexts, align_tokens, tokenize

START, END = 101, 102


class LetterTokenizer:
    """One id per letter; returns lists, as keras-hub does."""

    start_token_id = START
    end_token_id = END

    def __call__(self, texts):
        return [[ord(letter) for letter in text] for text in texts]


class RaggedLetterTokenizer(LetterTokenizer):
    """Returns an object with `to_list`, as older keras-hub does."""

    def __call__(self, texts):
        ids = super().__call__(texts)
        return types.SimpleNamespace(to_list=lambda: ids)


def ids_by_text(ragged):
    return [ragged.text(row).tolist() for row in range(len(ragged))]


@pytest.mark.parametrize("tokenizer", [LetterTokenizer(), RaggedLetterTokenizer()])
@pytest.mark.parametrize(("end", "tail"), [(True, [END]), (False, [])])
def test_a_text_has_a_start_token_and_on_request_an_end_token(tokenizer, end, tail):
    ids, truncated = tokenize(tokenizer, ["ab", "c"], 8, end=end)
    assert ids_by_text(ids) == [[START, 97, 98, *tail], [START, 99, *tail]]
    assert ids.values.dtype == np.int32
    assert truncated.tolist() == [False, False]


@pytest.mark.parametrize(
    ("end", "expected"), [(False, [START, 97, 98, 99]), (True, [START, 97, 98, END])]
)
def test_a_long_text_is_truncated_to_max_tokens_including_special_tokens(end, expected):
    ids, truncated = tokenize(LetterTokenizer(), ["abcdef"], 4, end=end)
    assert ids_by_text(ids) == [expected]
    assert truncated.tolist() == [True]


@pytest.mark.parametrize(("end", "fits"), [(False, "abc"), (True, "ab")])
def test_a_text_that_just_fits_is_not_truncated(end, fits):
    _, truncated = tokenize(LetterTokenizer(), [fits, fits + "x"], 4, end=end)
    assert truncated.tolist() == [False, True]


def test_an_empty_text_has_its_special_tokens():
    ids, _ = tokenize(LetterTokenizer(), [""], 4, end=True)
    assert ids_by_text(ids) == [[START, END]]


def test_no_texts_have_no_tokens():
    ids, truncated = tokenize(LetterTokenizer(), [], 4, end=True)
    assert len(ids) == len(ids.values) == len(truncated) == 0


@settings(deadline=None)
@given(st.lists(st.text("abc", max_size=12), max_size=10), st.integers(3, 10), st.booleans())
def test_no_text_has_more_than_max_tokens_and_only_truncated_ones_lose_any(texts, max_tokens, end):
    ids, truncated = tokenize(LetterTokenizer(), texts, max_tokens, end=end)
    complete = np.array([len(text) + 1 + end for text in texts], int)
    assert ids.lengths.tolist() == np.minimum(complete, max_tokens).tolist()
    assert truncated.tolist() == (complete > max_tokens).tolist()


def test_selected_texts_keep_the_tokens_of_each_model_and_whether_they_were_truncated():
    gemma, roberta = (from_lengths(first + np.arange(6), [1, 3, 2]) for first in (0, 10))
    selected = TokenizedTexts(gemma, roberta, np.array([True, False, False])).select(range(2))
    assert ids_by_text(selected.gemma) == [[0], [1, 2, 3]]
    assert ids_by_text(selected.roberta) == [[10], [11, 12, 13]]
    assert selected.truncated.tolist() == [True, False]


@pytest.mark.parametrize("missing", ["gemma", "roberta"])
def test_tokens_that_a_model_does_not_read_stay_none(missing):
    ids = {role: from_lengths(np.arange(6), [1, 3, 2]) for role in ("gemma", "roberta")}
    tokens = TokenizedTexts(**ids | {missing: None}, truncated=np.zeros(3, bool))
    assert getattr(tokens.select([0]), missing) is None


# Alignment


TEXTS = [
    "The rain fell on day 12 of the train.",
    "  Two  spaces,\n\na tab\tand the end ",
    "wörld— 😀 it's naïve",
    "one",
]


@pytest.fixture(scope="module", params=["tiny", pytest.param("real", marks=pytest.mark.real)])
def tokenizers(request):
    """Gemma's and RoBERTa's; the real ones spell rare characters in bytes."""
    import keras_hub

    folder, names = BUILTIN_FOLDER, BUILTIN_PRESETS
    if request.param == "real":
        folder = request.getfixturevalue("real_presets")
        names = ("gemma3_270m", "roberta_6l_384")
    return [keras_hub.models.Tokenizer.from_preset(str(folder / name)) for name in names]


def spelled(tokenizer, ids):
    """What token ids spell, without white space; a cut character spells its first bytes."""
    return "".join(tokenizer.detokenize(ids).replace("\ufffd", "").split())


def test_each_roberta_token_is_aligned_with_the_gemma_token_in_which_it_ends(tokenizers):
    gemma, roberta = tokenizers
    gemma_ids = tokenize(gemma, TEXTS, 256, end=False)[0]
    roberta_ids = tokenize(roberta, TEXTS, 256, end=True)[0]
    alignment = align_tokens((gemma, gemma_ids), (roberta, roberta_ids))
    np.testing.assert_array_equal(alignment.lengths, roberta_ids.lengths)
    for row in range(len(TEXTS)):
        indices = alignment.text(row)
        assert indices[0] == 0 and (np.diff(indices) >= 0).all()
        previous = ""
        for i, index in enumerate(indices[1:-1], 1):
            prefix = spelled(roberta, roberta_ids.text(row)[1 : i + 1].tolist())
            through = spelled(gemma, gemma_ids.text(row)[1 : index + 1].tolist())
            before = spelled(gemma, gemma_ids.text(row)[1:index].tolist())
            assert through.startswith(prefix)
            if prefix != previous:  # else the token ends within a character, or is white space
                assert len(before) < len(prefix)
            previous = prefix


def test_tokens_beyond_gemmas_truncation_are_aligned_with_its_last_token(tokenizers):
    gemma, roberta = tokenizers
    gemma_ids = tokenize(gemma, TEXTS[:1], 4, end=False)[0]
    roberta_ids = tokenize(roberta, TEXTS[:1], 256, end=True)[0]
    assert align_tokens((gemma, gemma_ids), (roberta, roberta_ids)).text(0)[-1] == 3


def test_no_texts_have_no_alignment(tokenizers):
    gemma, roberta = tokenizers
    empty = from_lengths(np.zeros(0, "int32"), [])
    assert len(align_tokens((gemma, empty), (roberta, empty))) == 0

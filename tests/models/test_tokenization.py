import itertools
import json
import random
import shutil
import types

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from embedder_helpers.builtin import BUILTIN_FOLDER, BUILTIN_PRESETS
from embedder_helpers.models.batching import from_lengths
from embedder_helpers.models.tokenization import (
    TokenizedTexts,
    align_tokens,
    token_spans,
    tokenize,
)

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


class RecordingTokenizer(LetterTokenizer):
    """Keeps the texts that it was given."""

    def __call__(self, texts):
        self.texts = texts
        return super().__call__(texts)


@pytest.mark.parametrize("text", ["word " * 100_000, "x" * 500_000])
def test_a_very_long_text_is_cut_before_it_is_tokenized(text):
    tokenizer = RecordingTokenizer()
    ids, truncated = tokenize(tokenizer, [text], 8, end=True)
    assert len(tokenizer.texts[0]) < 10_000
    assert ids.text(0).tolist() == [START, *map(ord, text[:6]), END]
    assert truncated.all()


def test_a_very_long_text_that_begins_with_white_space_is_cut_behind_its_words():
    tokenizer = RecordingTokenizer()
    tokenize(tokenizer, [" " * 100_000 + "word" * 100_000], 8, end=True)
    assert tokenizer.texts[0].endswith("word") and len(tokenizer.texts[0]) < 110_000


def test_nul_does_not_end_a_text():
    ids, _ = tokenize(LetterTokenizer(), ["a\0b"], 8, end=False)
    assert ids.text(0).tolist() == [START, ord("a"), 0xFFFD, ord("b")]


def test_selected_texts_keep_the_tokens_of_each_model_and_whether_they_were_truncated():
    gemma, roberta = (from_lengths(first + np.arange(6), [1, 3, 2]) for first in (0, 10))
    tokens = TokenizedTexts(["a", "b", "c"], gemma, roberta, np.array([True, False, False]))
    selected = tokens.select(range(2))
    assert selected.texts == ["a", "b"]
    assert ids_by_text(selected.gemma) == [[0], [1, 2, 3]]
    assert ids_by_text(selected.roberta) == [[10], [11, 12, 13]]
    assert selected.truncated.tolist() == [True, False]


@pytest.mark.parametrize("missing", ["gemma", "roberta"])
def test_tokens_that_a_model_does_not_read_stay_none(missing):
    ids = {role: from_lengths(np.arange(6), [1, 3, 2]) for role in ("gemma", "roberta")}
    tokens = TokenizedTexts(["a", "b", "c"], **ids | {missing: None}, truncated=np.zeros(3, bool))
    assert getattr(tokens.select([0]), missing) is None


# Alignment


TEXTS = [
    "The rain fell on day 12 of the train.",
    "  Two  spaces,\n\na tab\tand the end ",
    "wörld— 😀 it's naïve",
    "one",
    "Was <s>forty</s> now <mask> thirty<pad> pounds",
]
# What a tokenizer drops, rewrites, or takes for a token of its own.
ODD = [
    "<s>", "</s>", "<pad>", "<mask>", "<unk>", "<bos>", "<eos>", "<unused7>", "<start_of_turn>",
    "<0x41>", "\u2581", "\u200b", "\ufeff", "\u00ad", "\u00a0", "\u3000", "\u2009", "\u2028",
    "\x85", "\0", "\x01", "\x7f", "…", "ﬁ", "½", "e\u0301", "é", "Ｗａｉｔ", "，", "६", "😀",
    "👩\u200d👧", "שלום", "™", "a", "the", " ", "  ", "\n", "\r\n", "\t", "12", "...",
]  # fmt: skip
SENTENCE = " The rain fell on day 12."


@pytest.fixture(
    scope="module", params=["tiny", "xlm", pytest.param("real", marks=pytest.mark.real)]
)
def tokenizers(request):
    """Gemma's and RoBERTa's; the tiny Gemma's and XLM-RoBERTa's rewrite characters."""
    import keras_hub

    folder, names = BUILTIN_FOLDER, BUILTIN_PRESETS
    if request.param == "real":
        folder = request.getfixturevalue("real_presets")
        names = ("gemma3_270m", "roberta_6l_384")
    gemma, roberta = (keras_hub.models.Tokenizer.from_preset(str(folder / name)) for name in names)
    if request.param == "xlm":
        roberta = keras_hub.models.XLMRobertaTokenizer(proto=gemma.proto)
    return gemma, roberta


def align(tokenizers, texts, gemma_tokens=256):
    """Gemma's ids, RoBERTa's ids and the alignment of each text, as lists."""
    gemma, roberta = tokenizers
    gemma_ids = tokenize(gemma, texts, gemma_tokens, end=False)[0]
    roberta_ids = tokenize(roberta, texts, 256, end=True)[0]
    alignment = align_tokens(texts, (gemma, gemma_ids), (roberta, roberta_ids))
    return list(zip(*map(ids_by_text, (gemma_ids, roberta_ids, alignment)), strict=True))


def spelled(tokenizer, ids):
    """What token ids spell, without white space; a cut character spells its first bytes."""
    return "".join(tokenizer.detokenize(ids).replace("\ufffd", "").split())


def test_each_roberta_token_is_aligned_with_the_gemma_token_in_which_it_ends(tokenizers):
    gemma, roberta = tokenizers
    for gemma_ids, roberta_ids, indices in align(tokenizers, TEXTS):
        assert len(indices) == len(roberta_ids)
        assert indices[0] == 0 and (np.diff(indices) >= 0).all()
        previous = ""
        for i, index in enumerate(indices[1:-1], 1):
            prefix = spelled(roberta, roberta_ids[1 : i + 1])
            through = spelled(gemma, gemma_ids[1 : index + 1])
            before = spelled(gemma, gemma_ids[1:index])
            assert through.startswith(prefix)
            if prefix != previous:  # else the token ends within a character, or is white space
                assert len(before) < len(prefix)
            previous = prefix


def test_a_sentence_is_aligned_alike_whatever_comes_before_it(tokenizers):
    generator = random.Random(0)
    odd = [*ODD, "".join(ODD), *("".join(generator.choices(ODD, k=8)) for _ in range(100))]
    (llm_alone, slm_alone, alone), *others = align(
        tokenizers, [SENTENCE, *(text + SENTENCE for text in odd)]
    )
    llm_count, slm_count = len(llm_alone) - 1, len(slm_alone) - 1  # without start tokens
    compared = 0
    for llm_ids, slm_ids, indices in others:
        assert (np.diff(indices) >= 0).all()
        # What comes before may merge with the sentence's first letters.
        if llm_ids[-llm_count:] == llm_alone[1:] and slm_ids[-slm_count:] == slm_alone[1:]:
            distances = [len(llm_ids) - index for index in indices[-slm_count:]]
            assert distances == [len(llm_alone) - index for index in alone[1:]]
            compared += 1
    assert compared > 100


def test_texts_are_aligned_together_as_alone(tokenizers):
    texts = ["".join(ODD), *ODD, *TEXTS]
    together = [indices for _, _, indices in align(tokenizers, texts)]
    assert together == [align(tokenizers, [text])[0][2] for text in texts]


def test_selected_texts_are_aligned_as_before(tokenizers):
    gemma, roberta = tokenizers
    gemma_ids = tokenize(gemma, TEXTS, 256, end=False)[0].select([2, 0])
    roberta_ids = tokenize(roberta, TEXTS, 256, end=True)[0].select([2, 0])
    selected = align_tokens([TEXTS[2], TEXTS[0]], (gemma, gemma_ids), (roberta, roberta_ids))
    every = [indices for _, _, indices in align(tokenizers, TEXTS)]
    assert ids_by_text(selected) == [every[2], every[0]]


def test_tokens_beyond_gemmas_truncation_are_aligned_with_its_last_token(tokenizers):
    whole, cut = (align(tokenizers, TEXTS[:1], count)[0][2] for count in (256, 4))
    assert cut == np.minimum(whole, 3).tolist()


def test_no_texts_have_no_alignment(tokenizers):
    assert align(tokenizers, []) == []


class BytePairTokenizer:
    """What the alignment reads of a tokenizer for RoBERTa; it may pass over characters."""

    merges = ()
    end_token_id = 1
    vocabulary = {name: i for i, name in enumerate(["<s>", "</s>", *"abcdef"])}


@pytest.mark.parametrize("dropped", ["", "६", "६६६६"])
def test_characters_that_a_tokenizer_passes_over_shift_no_token_behind_them(dropped):
    letters = [BytePairTokenizer.vocabulary[letter] for letter in "abcdef"]
    ids = from_lengths(np.array([0, *letters, 1]), [8])
    text = f"ab{dropped}cdef"
    alignment = align_tokens([text], (BytePairTokenizer(), ids), (BytePairTokenizer(), ids))
    assert alignment.text(0).tolist() == [0, 1, 2, 3, 4, 5, 6, 6]


# Spans


def spans_of(tokenizer, texts, max_tokens=256, end=True):
    """Ids and spans of each text, as lists."""
    ids, truncated = tokenize(tokenizer, texts, max_tokens, end=end)
    spans = token_spans(texts, tokenizer, ids, truncated)
    return list(zip(ids_by_text(ids), ids_by_text(spans), strict=True))


def is_without_gaps(spans):
    return spans[0][0] == 0 and all(
        start == before and start <= end
        for (start, end), before in zip(spans, [0, *(end for _, end in spans)], strict=False)
    )


@pytest.mark.parametrize("model", [0, 1])
def test_the_spans_of_a_text_reproduce_it(tokenizers, model):
    generator = random.Random(1)
    texts = [*TEXTS, *ODD, *("".join(generator.choices(ODD, k=8)) for _ in range(100))]
    for text, (_, spans) in zip(texts, spans_of(tokenizers[model], texts, end=model), strict=True):
        assert is_without_gaps(spans)
        assert "".join(text[start:end] for start, end in spans) == text


@pytest.mark.parametrize("model", [0, 1])
def test_the_spans_of_a_truncated_text_reproduce_what_is_read_of_it(tokenizers, model):
    for count in range(3, 8):
        ((ids, spans),) = spans_of(tokenizers[model], TEXTS[:1], count, end=model)
        assert len(ids) == len(spans) == count and is_without_gaps(spans)
        read = TEXTS[0][: spans[-1][1]]
        words = ids[1:-1] if model else ids[1:]
        assert "".join(read.split()) == spelled(tokenizers[model], words)


@pytest.mark.parametrize("model", [0, 1])
def test_a_token_covers_the_letters_that_it_spells(tokenizers, model):
    for text in (TEXTS[0], TEXTS[1], TEXTS[3]):
        ((ids, spans),) = spans_of(tokenizers[model], [text], end=model)
        for token, (start, end) in list(zip(ids, spans, strict=True))[1 : -1 if model else None]:
            assert "".join(text[start:end].split()) == spelled(tokenizers[model], [token])


def test_special_tokens_cover_nothing(tokenizers):
    for _, spans in spans_of(tokenizers[1], TEXTS):
        assert spans[0][0] == spans[0][1] and spans[-1][0] == spans[-1][1]


def test_a_letter_of_several_tokens_is_the_first_ones(tokenizers):
    ((ids, spans),) = spans_of(tokenizers[1], ["a😀b"])
    covered = ["a😀b"[start:end] for start, end in spans]
    assert covered[0] == "" and "".join(covered) == "a😀b"
    if len(ids) == 2 + 1 + 4 + 1:  # one token per byte
        try:
            tokenizers[1].id_to_token(ids[1])
        except AttributeError:  # XLM-RoBERTa's in keras-hub < 0.30: the last one's
            assert covered == ["", "a", "", "", "", "😀", "b", ""]
        else:
            assert covered == ["", "a", "😀", "", "", "", "b", ""]


def test_white_space_belongs_to_the_token_behind_it_and_at_the_end_to_the_last(tokenizers):
    text = " one \n two  "
    for tokenizer, end in zip(tokenizers, (False, True), strict=True):
        ((_, spans),) = spans_of(tokenizer, [text], end=end)
        covered = [text[start:stop] for start, stop in spans if stop > start]
        assert covered[0].startswith(" ") and covered[-1].endswith("  ")
        assert not any(part.endswith((" ", "\n")) for part in covered[:-1])


def test_no_texts_have_no_spans(tokenizers):
    assert spans_of(tokenizers[1], []) == []


@pytest.mark.real
@pytest.mark.parametrize("tokenizers", ["real"], indirect=True)
def test_real_spans_are_those_of_hugging_faces_tokenizer(tokenizers, reference, shared_folder):
    with (shared_folder / "data" / "emotion" / "test.jsonl").open(encoding="utf-8") as lines:
        texts = [json.loads(line)["text"] for line in itertools.islice(lines, 200)]
    compared = 0
    for text, (ids, spans) in zip(texts, spans_of(tokenizers[1], texts), strict=True):
        encoded = reference[1](text, return_offsets_mapping=True)
        assert encoded["input_ids"] == ids
        expected = [list(place) for place in encoded["offset_mapping"][1:-1]]
        if all(text[start:end].strip() for start, end in expected):  # no token is a space alone
            assert spans[1:-1] == expected
            compared += 1
    assert compared > 150


# The alignment by Hugging Face's tokenizers of the same vocabularies, which know where in a text
# each token is.


@pytest.fixture(scope="module")
def reference(real_presets, tmp_path_factory):
    """Gemma's and RoBERTa's tokenizers."""
    transformers = pytest.importorskip("transformers")
    gemma, roberta = (
        real_presets / name / "assets" / "tokenizer" for name in ("gemma3_270m", "roberta_6l_384")
    )
    folder = tmp_path_factory.mktemp("gemma")
    shutil.copy(gemma / "vocabulary.spm", folder / "tokenizer.model")
    vocabulary, merges = str(roberta / "vocabulary.json"), str(roberta / "merges.txt")
    return (
        transformers.GemmaTokenizer.from_pretrained(folder),
        transformers.RobertaTokenizer(vocabulary, merges, trim_offsets=False),
    )


def reference_ends(tokenizer, text):
    """Ids; each token's end in letters of the text; and whether it ends within a letter."""
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    places = encoded["offset_mapping"]
    following = [start for start, _ in [*places, (len(text), 0)][1:]]
    is_cut = [end > start for (_, end), start in zip(places, following, strict=True)]
    ends = [min(end, start) for (_, end), start in zip(places, following, strict=True)]
    counts = [sum(letter not in " \t\n\r\v\f" for letter in text[:end]) for end in ends]
    return encoded["input_ids"], counts, is_cut


def is_aligned_as_by_the_reference(tokenizers, reference, text):
    """False if keras-hub's tokens are others."""
    gemma_ids, roberta_ids, indices = align(tokenizers, [text])[0]
    expected_gemma, llm_ends, _ = reference_ends(reference[0], text)
    expected_roberta, slm_ends, is_cut = reference_ends(reference[1], text)
    if (gemma_ids[1:], roberta_ids[1:-1]) != (expected_gemma, expected_roberta):
        return False
    expected, whole = np.searchsorted([0, *llm_ends], slm_ends), ~np.array(is_cut, bool)
    np.testing.assert_array_equal(np.array(indices[1:-1])[whole], expected[whole])
    return True


@pytest.mark.real
@pytest.mark.parametrize("tokenizers", ["real"], indirect=True)
@given(odd=st.one_of(st.lists(st.sampled_from(ODD)).map("".join), st.text()))
@example(odd="Was <s>forty</s> now <mask>thirty<pad> pounds…\u200b 😀 \u00a0ok\n\n")
def test_real_tokens_are_aligned_as_by_hugging_faces_tokenizers(tokenizers, reference, odd):
    is_aligned_as_by_the_reference(tokenizers, reference, odd + SENTENCE)


@pytest.mark.real
@pytest.mark.parametrize("tokenizers", ["real"], indirect=True)
def test_real_texts_are_aligned_as_by_hugging_faces_tokenizers(
    tokenizers, reference, shared_folder
):
    with (shared_folder / "data" / "emotion" / "test.jsonl").open(encoding="utf-8") as lines:
        texts = [json.loads(line)["text"] for line in itertools.islice(lines, 200)]
    same = [is_aligned_as_by_the_reference(tokenizers, reference, text) for text in texts]
    assert sum(same) > 190

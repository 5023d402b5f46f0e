"""Tokens: texts to ids, ragged values, and batches of few shapes."""

import types

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from embedder_helpers.presets import BUILTIN, BUILTIN_FOLDER
from embedder_helpers.tokens import (
    BUCKETS,
    Stacked,
    Tokens,
    align,
    bucket,
    end_to_end,
    inference_batches,
    stacked,
    tokenise,
    training_batches,
)

START, END = 101, 102
LENGTHS = st.lists(st.integers(1, 1200), max_size=80).map(lambda found: np.array(found, "int64"))
BUDGETS = st.integers(1, 5000)


class LetterTokenizer:
    """One id a letter; answers with lists, as keras-hub does."""

    start_token_id = START
    end_token_id = END

    def __call__(self, texts):
        return [[ord(letter) for letter in text] for text in texts]


class RaggedLetterTokenizer(LetterTokenizer):
    """Answers with an object that has `to_list`, as older keras-hub does."""

    def __call__(self, texts):
        found = super().__call__(texts)
        return types.SimpleNamespace(to_list=lambda: found)


def words(ragged):
    return [ragged.text(row).tolist() for row in range(len(ragged))]


@pytest.mark.parametrize("tokenizer", [LetterTokenizer(), RaggedLetterTokenizer()])
@pytest.mark.parametrize(("end", "tail"), [(True, [END]), (False, [])])
def test_a_text_begins_with_the_start_token_and_ends_where_asked(tokenizer, end, tail):
    ids, truncated = tokenise(tokenizer, ["ab", "c"], 8, end=end)
    assert words(ids) == [[START, 97, 98, *tail], [START, 99, *tail]]
    assert ids.values.dtype == np.int32
    assert truncated.tolist() == [False, False]


@pytest.mark.parametrize(
    ("end", "expected", "cut"),
    [(False, [START, 97, 98, 99], True), (True, [START, 97, 98, END], True)],
)
def test_a_long_text_is_cut_to_max_tokens_with_the_special_ones(end, expected, cut):
    ids, truncated = tokenise(LetterTokenizer(), ["abcdef"], 4, end=end)
    assert words(ids) == [expected]
    assert truncated.tolist() == [cut]


@pytest.mark.parametrize(("end", "fits"), [(False, "abc"), (True, "ab")])
def test_a_text_that_just_fits_is_not_cut(end, fits):
    _, truncated = tokenise(LetterTokenizer(), [fits, fits + "x"], 4, end=end)
    assert truncated.tolist() == [False, True]


def test_an_empty_text_has_its_special_tokens():
    ids, _ = tokenise(LetterTokenizer(), [""], 4, end=True)
    assert words(ids) == [[START, END]]


def test_no_texts_give_no_tokens():
    ids, truncated = tokenise(LetterTokenizer(), [], 4, end=True)
    assert len(ids) == len(ids.values) == len(truncated) == 0


@settings(deadline=None)
@given(st.lists(st.text("abc", max_size=12), max_size=10), st.integers(3, 10), st.booleans())
def test_no_text_has_more_than_max_tokens_and_only_cut_ones_lose_any(texts, max_tokens, end):
    ids, truncated = tokenise(LetterTokenizer(), texts, max_tokens, end=end)
    whole = np.array([len(text) + 1 + end for text in texts], int)
    assert ids.lengths.tolist() == np.minimum(whole, max_tokens).tolist()
    assert truncated.tolist() == (whole > max_tokens).tolist()


def test_texts_that_follow_one_another_are_found_again():
    ragged = end_to_end(np.arange(6), [1, 3, 2])
    assert words(ragged) == [[0], [1, 2, 3], [4, 5]]


def test_selected_texts_come_in_the_order_asked_for_and_share_their_values():
    ragged = end_to_end(np.arange(6), [1, 3, 2])
    chosen = ragged.select([2, 0, 2])
    assert words(chosen) == [[4, 5], [0], [4, 5]]
    assert chosen.values is ragged.values


def test_a_selection_can_be_selected_from():
    chosen = end_to_end(np.arange(6), [1, 3, 2]).select([2, 1]).select([1])
    assert words(chosen) == [[1, 2, 3]]


def test_no_rows_can_be_selected():
    assert len(end_to_end(np.arange(6), [1, 3, 2]).select([])) == 0


def test_padded_values_are_zero_and_masked_behind_each_text_and_behind_the_rows():
    ragged = end_to_end(np.arange(1, 7), [1, 3, 2])
    values, mask = ragged.padded([2, 1], length=4, texts=3)
    assert values.tolist() == [[5, 6, 0, 0], [2, 3, 4, 0], [0, 0, 0, 0]]
    assert mask.tolist() == [[1, 1, 0, 0], [1, 1, 1, 0], [0, 0, 0, 0]]


def test_padded_states_keep_width_and_type():
    states = end_to_end(np.ones((3, 5), "float16"), [1, 2])
    values, mask = states.padded([0, 1], length=8, texts=2)
    assert (values.shape, values.dtype) == ((2, 8, 5), np.float16)
    assert mask.sum() == 3 and (values.sum((1, 2)) == [5, 10]).all()


OF_TEXTS = [1, 3, 2]


def layers_of(count, types=("float16",)):
    """The states of three texts behind some cutoffs; each value tells cutoff, token and column."""
    tokens, columns = np.arange(6)[:, None], np.arange(2)
    return [
        end_to_end(
            (100 * layer + 10 * tokens + columns).astype(types[layer % len(types)]), OF_TEXTS
        )
        for layer in range(count)
    ]


def test_one_cutoffs_states_stay_as_they_are():
    (layer,) = layers_of(1)
    assert stacked([layer]) is layer


def test_several_cutoffs_are_stacked_in_the_order_given():
    layers = layers_of(2)
    both = stacked(layers[::-1])
    assert isinstance(both, Stacked)
    assert both.layers == (layers[1], layers[0])


def test_stacked_states_are_as_many_and_as_long_as_the_texts():
    both = stacked(layers_of(2))
    assert len(both) == 3 and both.lengths.tolist() == OF_TEXTS


def test_a_stacked_selection_selects_from_each_cutoff():
    layers = layers_of(2)
    chosen = stacked(layers).select([2, 0])
    for found, layer in zip(chosen.layers, layers, strict=True):
        assert words(found) == words(layer.select([2, 0]))


def test_stacked_values_stand_by_text_token_cutoff_and_column():
    values, mask = stacked(layers_of(2)).padded([2, 1], length=4, texts=3)
    assert (values.shape, values.dtype) == ((3, 4, 2, 2), np.float16)
    assert values[0, 1].tolist() == [[50, 51], [150, 151]]
    assert not values[0, 2:].any() and not values[2].any()
    assert mask.tolist() == [[1, 1, 0, 0], [1, 1, 1, 0], [0, 0, 0, 0]]


def test_raw_and_normed_states_are_stacked_in_the_wider_type():
    values, _ = stacked(layers_of(2, ("float16", "float32"))).padded([0], length=1, texts=1)
    assert values.dtype == np.float32


@pytest.mark.parametrize("cutoffs", [1, 2])
def test_a_batch_is_the_padded_values_and_mask_by_the_models_names(cutoffs):
    states = stacked(layers_of(cutoffs))
    values, mask = states.padded([2, 1], length=4, texts=3)
    batch = states.batch([2, 1], 4, 3)
    assert set(batch) == {"inputs", "mask"}
    np.testing.assert_array_equal(batch["inputs"], values)
    np.testing.assert_array_equal(batch["mask"], mask)


def test_selected_tokens_are_those_of_each_model_and_whether_they_were_cut():
    gemma, roberta = (end_to_end(first + np.arange(6), OF_TEXTS) for first in (0, 10))
    chosen = Tokens(gemma, roberta, np.array([True, False, False])).select(range(2))
    assert words(chosen.gemma) == [[0], [1, 2, 3]]
    assert words(chosen.roberta) == [[10], [11, 12, 13]]
    assert chosen.truncated.tolist() == [True, False]


@pytest.mark.parametrize("missing", ["gemma", "roberta"])
def test_tokens_that_a_model_does_not_read_stay_none(missing):
    ids = {"gemma": end_to_end(np.arange(6), OF_TEXTS), "roberta": end_to_end(np.arange(6), [6])}
    tokens = Tokens(**ids | {missing: None}, truncated=np.zeros(3, bool))
    assert getattr(tokens.select([0]), missing) is None


@settings(deadline=None)
@given(st.integers(1, 5000))
def test_a_bucket_is_the_least_that_holds_a_length(length):
    sizes = [*BUCKETS, *range(2 * BUCKETS[-1], 6000, BUCKETS[-1])]
    assert bucket(length) == min(size for size in sizes if size >= length)


@settings(deadline=None)
@given(LENGTHS, BUDGETS)
def test_inference_batches_cover_every_row_exactly_once(lengths, budget):
    rows = [row for batch, _, _ in inference_batches(lengths, budget) for row in batch]
    assert sorted(rows) == list(range(len(lengths)))


@settings(deadline=None)
@given(LENGTHS, BUDGETS)
def test_inference_batches_pad_each_text_to_its_bucket(lengths, budget):
    for batch, length, _ in inference_batches(lengths, budget):
        assert {bucket(lengths[row]) for row in batch} == {length}


@settings(deadline=None)
@given(LENGTHS, BUDGETS)
def test_inference_batches_hold_the_budget_unless_a_single_text_exceeds_it(lengths, budget):
    for batch, length, texts in inference_batches(lengths, budget):
        assert length * texts <= budget or texts == 1
        assert len(batch) <= texts < 2 * len(batch) + (len(batch) == 1)


@settings(deadline=None)
@given(LENGTHS, BUDGETS)
def test_inference_batches_come_longest_first(lengths, budget):
    found = [length for _, length, _ in inference_batches(lengths, budget)]
    assert found == sorted(found, reverse=True)


@settings(deadline=None)
@given(LENGTHS, BUDGETS)
def test_inference_batches_of_a_length_have_two_shapes_at_most(lengths, budget):
    shapes = {(length, texts) for _, length, texts in inference_batches(lengths, budget)}
    padded = [length for length, _ in shapes]
    assert all(padded.count(length) <= 2 for length in padded)


@settings(deadline=None)
@given(LENGTHS, st.integers(1, 9), st.integers(0, 99))
def test_training_batches_cover_every_row_exactly_once(lengths, batch_size, seed):
    batches = training_batches(lengths, batch_size, np.random.default_rng(seed))
    assert sorted(row for batch in batches for row in batch) == list(range(len(lengths)))


@settings(deadline=None)
@given(LENGTHS, st.integers(1, 9), st.integers(0, 99))
def test_all_training_batches_but_one_are_full(lengths, batch_size, seed):
    batches = training_batches(lengths, batch_size, np.random.default_rng(seed))
    sizes = sorted(map(len, batches), reverse=True)
    assert sizes[:-1] == [batch_size] * (len(sizes) - 1)
    assert len(batches) == -(-len(lengths) // batch_size)


@settings(deadline=None)
@given(arrays("int64", st.integers(1, 128), elements=st.integers(1, 500)), st.integers(0, 99))
def test_the_texts_of_a_training_batch_are_of_like_length(lengths, seed):
    batches = training_batches(lengths, 4, np.random.default_rng(seed))
    spans = sorted((lengths[batch].min(), lengths[batch].max()) for batch in batches)
    # 128 rows are one pool, so that no batch reaches into another's lengths.
    assert all(low[1] <= high[0] for low, high in zip(spans, spans[1:], strict=False))


def batches_of(seed):
    lengths = np.arange(100) % 7
    return [batch.tolist() for batch in training_batches(lengths, 8, np.random.default_rng(seed))]


def test_training_batches_depend_on_the_generator_alone():
    assert batches_of(1) == batches_of(1)
    assert batches_of(1) != batches_of(2)


def test_training_batches_are_not_sorted_by_length():
    lengths = np.arange(128)
    first = [batch[0] for batch in training_batches(lengths, 4, np.random.default_rng(0))]
    assert first != sorted(first) and first != sorted(first, reverse=True)


# Alignment


LINES = [
    "The rain fell on day 12 of the train.",
    "  Two  spaces,\n\na tab\tand the end ",
    "wörld— 😀 it's naïve",
    "one",
]


@pytest.fixture(scope="module", params=["tiny", pytest.param("real", marks=pytest.mark.real)])
def tokenizers(request):
    """Gemma's and RoBERTa's; the real ones spell rare letters in bytes."""
    import keras_hub

    folder, names = BUILTIN_FOLDER, BUILTIN
    if request.param == "real":
        folder = request.getfixturevalue("real_presets")
        names = ("gemma3_270m", "roberta_6l_384")
    return [keras_hub.models.Tokenizer.from_preset(str(folder / name)) for name in names]


def letters(tokenizer, ids):
    """What token ids spell, without white space; a cut letter spells its first bytes."""
    return "".join(tokenizer.detokenize(ids).replace("\ufffd", "").split())


def test_each_roberta_token_is_placed_at_the_gemma_token_in_which_it_ends(tokenizers):
    gemma, roberta = tokenizers
    ids = tokenise(gemma, LINES, 256, end=False)[0]
    wanted = tokenise(roberta, LINES, 256, end=True)[0]
    places = align((gemma, ids), (roberta, wanted))
    np.testing.assert_array_equal(places.lengths, wanted.lengths)
    for row in range(len(LINES)):
        assert places.text(row)[0] == 0 and (np.diff(places.text(row)) >= 0).all()
        so_far = ""
        for i, place in enumerate(places.text(row)[1:-1], 1):
            spelled = letters(roberta, wanted.text(row)[1 : i + 1].tolist())
            through = letters(gemma, ids.text(row)[1 : place + 1].tolist())
            before = letters(gemma, ids.text(row)[1:place].tolist())
            assert through.startswith(spelled)
            if spelled != so_far:  # else the token ends within a letter, or is white space
                assert len(before) < len(spelled)
            so_far = spelled


def test_behind_a_cut_the_last_gemma_token_stands(tokenizers):
    gemma, roberta = tokenizers
    ids = tokenise(gemma, LINES[:1], 4, end=False)[0]
    wanted = tokenise(roberta, LINES[:1], 256, end=True)[0]
    assert align((gemma, ids), (roberta, wanted)).text(0)[-1] == 3

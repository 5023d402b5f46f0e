import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from embedder_helpers.models.batching import (
    BUCKETS,
    EMPTY,
    FusedInputs,
    MultiLayerStates,
    bucket_length,
    from_lengths,
    fuse_inputs,
    inference_batches,
    paired_batches,
    sorted_batches,
    stack_layers,
    training_batches,
)

LENGTHS = st.lists(st.integers(1, 1200), max_size=80).map(lambda found: np.array(found, "int64"))
BUDGETS = st.integers(1, 5000)
TEXT_LENGTHS = [1, 3, 2]


def values_by_text(ragged):
    return [ragged.text(row).tolist() for row in range(len(ragged))]


# Ragged arrays


def test_each_text_has_as_many_of_the_values_as_its_length():
    assert values_by_text(from_lengths(np.arange(6), TEXT_LENGTHS)) == [[0], [1, 2, 3], [4, 5]]


def test_selected_texts_are_in_the_requested_order_and_share_their_values():
    ragged = from_lengths(np.arange(6), TEXT_LENGTHS)
    selected = ragged.select([2, 0, 2])
    assert values_by_text(selected) == [[4, 5], [0], [4, 5]]
    assert selected.values is ragged.values


def test_a_selection_can_be_selected_from():
    selected = from_lengths(np.arange(6), TEXT_LENGTHS).select([2, 1]).select([1])
    assert values_by_text(selected) == [[1, 2, 3]]


def test_no_rows_can_be_selected():
    assert len(from_lengths(np.arange(6), TEXT_LENGTHS).select([])) == 0


def test_padding_is_zero_and_masked_after_each_text_and_after_the_last_one():
    ragged = from_lengths(np.arange(1, 7), TEXT_LENGTHS)
    values, mask = ragged.pad([2, 1], length=4, texts=3)
    assert values.tolist() == [[5, 6, 0, 0], [2, 3, 4, 0], [0, 0, 0, 0]]
    assert mask.tolist() == [[1, 1, 0, 0], [1, 1, 1, 0], [0, 0, 0, 0]]


def test_padded_hidden_states_keep_width_and_dtype():
    states = from_lengths(np.ones((3, 5), "float16"), [1, 2])
    values, mask = states.pad([0, 1], length=8, texts=2)
    assert (values.shape, values.dtype) == ((2, 8, 5), np.float16)
    assert mask.sum() == 3 and (values.sum((1, 2)) == [5, 10]).all()


# Hidden states of several cutoffs


def layers(count, dtypes=("float16",)):
    """Hidden states of three texts at some cutoffs; values encode cutoff, token and column."""
    tokens, columns = np.arange(6)[:, None], np.arange(2)
    return [
        from_lengths(
            (100 * layer + 10 * tokens + columns).astype(dtypes[layer % len(dtypes)]), TEXT_LENGTHS
        )
        for layer in range(count)
    ]


def test_hidden_states_of_one_cutoff_stay_as_they_are():
    (layer,) = layers(1)
    assert stack_layers([layer]) is layer


def test_several_cutoffs_are_stacked_in_the_order_of_the_list():
    first, second = layers(2)
    stacked = stack_layers([second, first])
    assert isinstance(stacked, MultiLayerStates) and stacked.layers == (second, first)


def test_stacked_values_are_indexed_by_text_token_cutoff_and_column():
    values, mask = stack_layers(layers(2)).pad([2, 1], length=4, texts=3)
    assert (values.shape, values.dtype) == ((3, 4, 2, 2), np.float16)
    assert values[0, 1].tolist() == [[50, 51], [150, 151]]
    assert not values[0, 2:].any() and not values[2].any()
    assert mask.tolist() == [[1, 1, 0, 0], [1, 1, 1, 0], [0, 0, 0, 0]]


def test_raw_and_normed_hidden_states_are_stacked_in_the_wider_dtype():
    values, _ = stack_layers(layers(2, ("float16", "float32"))).pad([0], length=1, texts=1)
    assert values.dtype == np.float32


# Hidden states and tokens of both models


@st.composite
def fused_inputs(draw):
    """Fused inputs, and rows to select; hidden states of one cutoff or two."""
    lengths = draw(st.lists(st.integers(1, 9), min_size=1, max_size=6))
    positions = draw(st.lists(st.integers(1, 12), min_size=len(lengths), max_size=len(lengths)))
    alignment, tokens = [], []
    for length, count in zip(lengths, positions, strict=True):
        alignment += draw(st.lists(st.integers(EMPTY, length - 1), min_size=count, max_size=count))
        tokens += draw(st.lists(st.integers(EMPTY, 99), min_size=count, max_size=count))
    values = np.arange(2.0 * sum(lengths)).reshape(-1, 2) + 1
    signs = draw(st.sampled_from([[1], [1, -1]]))
    inputs = FusedInputs(
        stack_layers([from_lengths(sign * values, lengths) for sign in signs]),
        from_lengths(np.array(alignment), positions),
        from_lengths(np.array(tokens), positions),
    )
    rows = draw(st.lists(st.integers(0, len(lengths) - 1), min_size=1, max_size=8))
    return inputs, rows


@settings(deadline=None)
@given(fused_inputs(), st.integers(0, 3), st.integers(0, 2))
def test_a_batch_holds_the_hidden_state_token_and_mask_of_each_position(
    case, more_positions, more_texts
):
    inputs, rows = case
    length, count = int(inputs.lengths[rows].max()) + more_positions, len(rows) + more_texts
    batch = inputs.batch(rows, length, count)
    assert len(batch["inputs"]) == len(batch["tokens"]) == len(batch["mask"]) == count
    for text in range(count):
        tokens = inputs.tokens.text(rows[text]) if text < len(rows) else []
        for position in range(length):
            real, state, token = position < len(tokens), 0, 0
            if real:
                index, token = inputs.alignment.text(rows[text])[position], tokens[position]
                state = 0 if index == EMPTY else inputs.states.text(rows[text])[index]
            assert (batch["inputs"][text, position] == state).all()
            assert batch["tokens"][text, position] == token
            assert batch["mask"][text, position] == real


def test_prepended_hidden_states_are_in_their_order_before_the_texts_own_tokens():
    states = from_lengths(np.arange(5.0)[:, None], [2, 3])
    alignment = from_lengths(np.zeros(3, int), [2, 1])
    tokens = from_lengths(np.array([7, 8, 9]), [2, 1])
    inputs = fuse_inputs("prepend", states, alignment, tokens)
    assert inputs.lengths.tolist() == [4, 4]
    assert values_by_text(inputs.alignment) == [[0, 1, EMPTY, EMPTY], [0, 1, 2, EMPTY]]
    assert values_by_text(inputs.tokens) == [[EMPTY, EMPTY, 7, 8], [EMPTY, EMPTY, EMPTY, 9]]


def test_added_hidden_states_are_at_the_positions_of_the_tokens():
    states = from_lengths(np.arange(5.0)[:, None], [2, 3])
    alignment = from_lengths(np.array([0, 1, 2]), [2, 1])
    tokens = from_lengths(np.arange(3), [2, 1])
    inputs = fuse_inputs("add", states, alignment, tokens)
    assert (inputs.states, inputs.alignment, inputs.tokens) == (states, alignment, tokens)


# All kinds of model inputs


def fused(fusion):
    states, other = layers(2)
    alignment = from_lengths(np.zeros(6, int), TEXT_LENGTHS)
    return fuse_inputs(fusion, stack_layers([states, other]), alignment, tokens())


def tokens():
    return from_lengths(np.arange(1, 7, dtype="int32"), TEXT_LENGTHS)


MODEL_INPUTS = {
    "token ids": (tokens, {"inputs", "mask"}, TEXT_LENGTHS),
    "one cutoff": (lambda: layers(1)[0], {"inputs", "mask"}, TEXT_LENGTHS),
    "two cutoffs": (lambda: stack_layers(layers(2)), {"inputs", "mask"}, TEXT_LENGTHS),
    "add": (lambda: fused("add"), {"inputs", "tokens", "mask"}, TEXT_LENGTHS),
    "prepend": (lambda: fused("prepend"), {"inputs", "tokens", "mask"}, [2, 6, 4]),
}


@pytest.mark.parametrize("kind", MODEL_INPUTS)
def test_model_inputs_of_every_kind_have_lengths_and_batches_with_a_mask(kind):
    build, names, lengths = MODEL_INPUTS[kind]
    inputs = build()
    assert len(inputs) == 3 and inputs.lengths.tolist() == lengths
    batch = inputs.batch([2, 1], 8, 4)
    assert set(batch) == names
    assert all(padded.shape[:2] == (4, 8) for padded in batch.values())
    assert batch["mask"].sum(1).tolist() == [lengths[2], lengths[1], 0, 0]


@pytest.mark.parametrize("kind", MODEL_INPUTS)
def test_selected_texts_of_every_kind_make_the_same_batch_as_before(kind):
    inputs = MODEL_INPUTS[kind][0]()
    selected = inputs.select([2, 0, 2]).batch(range(3), 8, 3)
    for name, expected in inputs.batch([2, 0, 2], 8, 3).items():
        np.testing.assert_array_equal(selected[name], expected)


# Buckets and batches


@settings(deadline=None)
@given(st.integers(1, 5000))
def test_a_bucket_is_the_smallest_that_holds_a_length(length):
    sizes = [*BUCKETS, *range(2 * BUCKETS[-1], 6000, BUCKETS[-1])]
    assert bucket_length(length) == min(size for size in sizes if size >= length)


@pytest.mark.parametrize("length, expected", [(5, 8), (9, 12), (12, 12)])
def test_no_bucket_is_larger_than_the_maximum(length, expected):
    assert bucket_length(length, 12) == expected


@settings(deadline=None)
@given(LENGTHS, BUDGETS)
def test_inference_batches_cover_every_row_exactly_once(lengths, budget):
    rows = [row for batch, _, _ in inference_batches(lengths, budget) for row in batch]
    assert sorted(rows) == list(range(len(lengths)))


@settings(deadline=None)
@given(LENGTHS, BUDGETS)
def test_inference_batches_pad_each_text_to_its_bucket(lengths, budget):
    for batch, length, _ in inference_batches(lengths, budget):
        assert {bucket_length(lengths[row]) for row in batch} == {length}


@given(lengths=LENGTHS, budget=st.integers(1, 600), batch_size=st.none() | st.integers(1, 5))
def test_sorted_batches_cover_every_row_once_within_budget_and_size(lengths, budget, batch_size):
    batches = list(sorted_batches(lengths, budget, batch_size))
    assert sorted(row for rows, _, _ in batches for row in rows) == list(range(len(lengths)))
    for rows, length, texts in batches:
        assert len(rows) == texts and length == lengths[rows].max()
        assert texts == 1 or texts * length <= budget
        assert batch_size is None or texts <= batch_size


def test_sorted_batches_begin_with_the_longest_texts():
    lengths = np.array([3, 9, 1, 9, 8])
    batches = [(rows.tolist(), length) for rows, length, _ in sorted_batches(lengths, 18)]
    assert batches == [([1, 3], 9), ([4, 0], 8), ([2], 1)]


@settings(deadline=None)
@given(LENGTHS, BUDGETS)
def test_inference_batches_keep_the_budget_unless_a_single_text_exceeds_it(lengths, budget):
    for batch, length, texts in inference_batches(lengths, budget):
        assert length * texts <= budget or texts == 1
        assert len(batch) <= texts < 2 * len(batch) + (len(batch) == 1)


@settings(deadline=None)
@given(LENGTHS, BUDGETS, st.integers(1, 9))
def test_inference_batches_have_no_more_texts_than_the_batch_size(lengths, budget, batch_size):
    for _, _, texts in inference_batches(lengths, budget, batch_size=batch_size):
        assert texts <= batch_size


@settings(deadline=None)
@given(LENGTHS, BUDGETS)
def test_inference_batches_start_with_the_longest(lengths, budget):
    padded = [length for _, length, _ in inference_batches(lengths, budget)]
    assert padded == sorted(padded, reverse=True)


@settings(deadline=None)
@given(LENGTHS, BUDGETS)
def test_inference_batches_of_a_length_have_at_most_two_shapes(lengths, budget):
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
def test_the_texts_of_a_training_batch_are_of_similar_length(lengths, seed):
    batches = training_batches(lengths, 4, np.random.default_rng(seed))
    spans = sorted((lengths[batch].min(), lengths[batch].max()) for batch in batches)
    # 128 rows are one pool, so that the lengths of two batches do not overlap.
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


# Batches of pairs

LABELS = st.lists(st.integers(0, 5), min_size=1, max_size=120).map(np.array)
SIZES = st.integers(2, 9)
SEEDS = st.integers(0, 99)


def random_lengths(count, seed=0):
    """Lengths of texts as they are: most are short, few are long."""
    lengths = np.random.default_rng(seed).lognormal(3.2, 0.6, count)
    return np.clip(lengths, 3, 256).astype("int64")


def pairs_of(labels, batch_size, seed=0, lengths=None):
    lengths = random_lengths(len(labels), seed) if lengths is None else lengths
    return paired_batches(lengths, labels, batch_size, np.random.default_rng(seed))


@given(LABELS, SIZES, SEEDS)
def test_paired_batches_cover_every_row_exactly_once(labels, batch_size, seed):
    batches = pairs_of(labels, batch_size, seed)
    assert sorted(row for batch in batches for row in batch) == list(range(len(labels)))


@given(LABELS, SIZES, SEEDS)
def test_no_label_is_alone_in_a_paired_batch_unless_it_has_a_single_text(labels, batch_size, seed):
    singles = np.bincount(labels, minlength=6) == 1
    for batch in pairs_of(labels, batch_size, seed):
        alone = np.bincount(labels[batch], minlength=6) == 1
        assert not (alone & ~singles).any()


@given(LABELS, SIZES, SEEDS)
def test_a_paired_batch_has_at_most_two_texts_more_than_the_batch_size(labels, batch_size, seed):
    assert max(map(len, pairs_of(labels, batch_size, seed))) <= batch_size + 2


@given(LABELS, st.integers(2, 40), SEEDS)
def test_there_are_as_many_paired_batches_as_others(labels, batch_size, seed):
    count, expected = len(pairs_of(labels, batch_size, seed)), -(-len(labels) // batch_size)
    # Three texts that stay together may fill the place of two small batches.
    assert count == expected or (batch_size < 5 and count < expected)


@pytest.mark.parametrize("num_labels", [2, 6, 77])
def test_paired_batches_are_padded_hardly_more_than_others(num_labels):
    lengths, labels = random_lengths(4000), np.random.default_rng(1).integers(0, num_labels, 4000)

    def padded(batches):
        return sum(len(batch) * lengths[batch].max() for batch in batches)

    others = padded(training_batches(lengths, 32, np.random.default_rng(0)))
    assert padded(pairs_of(labels, 32, lengths=lengths)) < 1.1 * others


def test_paired_batches_depend_on_the_generator_alone():
    labels, lengths = np.arange(100) % 3, random_lengths(100)
    one, again, other = (
        [batch.tolist() for batch in pairs_of(labels, 8, seed, lengths)] for seed in (1, 1, 2)
    )
    assert one == again != other


def test_a_text_has_another_partner_in_every_epoch():
    labels, generator = np.zeros(64, int), np.random.default_rng(0)
    epochs = [paired_batches(np.full(64, 5), labels, 2, generator) for _ in range(2)]
    first, second = ({tuple(sorted(batch)) for batch in batches} for batches in epochs)
    assert len(first & second) < 8


def test_paired_batches_are_not_sorted_by_length():
    lengths = random_lengths(320)
    longest = [lengths[batch].max() for batch in pairs_of(np.arange(320) % 2, 8, 0, lengths)]
    assert longest != sorted(longest) and longest != sorted(longest, reverse=True)

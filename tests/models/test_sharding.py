"""How texts are divided into shards, whatever process computes them."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedder_helpers.models import sharding
from embedder_helpers.models.batching import bucket_length, from_lengths, inference_batches
from embedder_helpers.models.gemma import CPU_TOKENS, GPU_TOKENS
from embedder_helpers.models.sharding import divide, text_keys

LENGTHS = st.lists(st.integers(1, 50), min_size=1, max_size=40).map(np.array)


def many_lengths(texts):
    """Numbers of tokens as those of reviews."""
    return np.random.default_rng(0).gamma(3, 10, texts).astype(int) + 1


@given(LENGTHS, st.data(), st.integers(1, 100))
def test_each_wanted_text_is_in_one_shard_of_bounded_size(lengths, data, most):
    bits = st.lists(st.booleans(), min_size=len(lengths), max_size=len(lengths))
    mask = np.array(data.draw(bits), bool)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sharding, "SHARD_TOKENS", most)
        shards = divide(lengths, mask)
    assert sorted(row for shard in shards for row in shard) == np.flatnonzero(mask).tolist()
    for shard in shards:
        assert sum(map(bucket_length, lengths[shard])) <= most or len(shard) == 1
    longest_first = [length for shard in shards for length in lengths[shard]]
    assert longest_first == sorted(longest_first, reverse=True)


@given(LENGTHS, st.integers(64, 300))
def test_no_two_neighbours_are_small_enough_to_be_one_shard(lengths, most):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sharding, "SHARD_TOKENS", most)
        shards = divide(lengths, lengths > 0)
    for one, other in zip(shards, shards[1:], strict=False):
        padded = [bucket_length(length) for length in lengths[other]]
        first = padded.count(padded[0]) * padded[0]  # of the other's, which is not cut again
        assert sum(map(bucket_length, lengths[one])) + first > most


@pytest.mark.parametrize("budget", [CPU_TOKENS, GPU_TOKENS])
@pytest.mark.parametrize("texts", [60, 300, 1000, 5000, 20000])
def test_a_division_costs_hardly_more_shapes_and_padding_than_one_forward_pass(texts, budget):
    def costs(parts):
        batches = [
            (length, count)
            for rows in parts
            for _, length, count in inference_batches(lengths[rows], budget)
        ]
        return len(set(batches)), sum(length * count for length, count in batches)

    lengths = many_lengths(texts)
    shapes, padded = costs([np.arange(texts)])
    more_shapes, more_padded = costs(divide(lengths, lengths > 0))
    assert more_shapes <= shapes + 4
    assert more_padded <= 1.02 * padded


def test_texts_that_differ_in_a_token_have_different_keys():
    values = np.array([1, 2, 1, 2, 3, 1, 23, 12, 3, 258, 1, 2], "int32")
    keys = text_keys(from_lengths(values, [2, 3, 2, 2, 1, 2]))
    assert keys[0] == keys[5]
    assert len(set(keys)) == 5 and {len(key) for key in keys} == {16}

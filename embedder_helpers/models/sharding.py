"""Texts by key, and their division into shards, of which each is a file of hidden states per spec.

A text's key is the hash of its token ids. What is on disk is left to `shard_index`.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from embedder_helpers.models.batching import RaggedArray, bucket_length
from embedder_helpers.models.gemma import HiddenStateSpec

SHARD_TOKENS = 2**14  # at most, with padding, unless a single text is longer: a batch of a GPU

# For each kind of hidden states, `(texts,)` whether a text's are wanted.
Wanted = Mapping[HiddenStateSpec, np.ndarray]


def text_keys(ids: RaggedArray) -> list[bytes]:
    """A key of 16 bytes per text, the hash of its token ids."""
    texts = (ids.text(row).astype("<i4").tobytes() for row in range(len(ids)))
    return [hashlib.blake2b(text, digest_size=16).digest() for text in texts]


def first_occurrences(keys: Sequence[bytes], wanted: Wanted) -> dict[HiddenStateSpec, np.ndarray]:
    """The masks, moved to the first row of each key, so that a duplicate is computed once."""
    first: dict[bytes, int] = {}
    rows = np.array([first.setdefault(key, row) for row, key in enumerate(keys)], int)
    moved = {spec: np.zeros(len(keys), bool) for spec in wanted}
    for spec, mask in wanted.items():
        moved[spec][rows[mask]] = True
    return moved


def divide(lengths: np.ndarray, mask: np.ndarray) -> list[np.ndarray]:
    """Rows of each shard, of texts of similar length, the longest first.

    A shard ends where a bucket of `batching` ends, or a full batch, so that its batches are nearly
    those of a forward pass through all texts: as few shapes, and as little padding.

    Args:
        lengths: `(texts,)` number of tokens of each text.
        mask: `(texts,)` which texts are in a shard.
    """
    rows = np.flatnonzero(mask)
    rows = rows[np.argsort(-lengths[rows], kind="stable")]
    padded = np.array([bucket_length(int(length)) for length in lengths[rows]], int)
    shards: list[list[np.ndarray]] = []
    room = 0
    for length in sorted(set(padded.tolist()), reverse=True):
        bucket, count = rows[padded == length], max(1, SHARD_TOKENS // length)
        for batch in np.split(bucket, range(count, len(bucket), count)):
            if len(batch) * length > room:
                shards.append([])
                room = SHARD_TOKENS
            shards[-1].append(batch)
            room -= len(batch) * length
    return [np.concatenate(shard) for shard in shards]


def group_by_missing(
    missing: Wanted, planned: Wanted
) -> Iterator[tuple[np.ndarray, list[HiddenStateSpec]]]:
    """Rows of the texts that pass together, and the specs that are missing for all of them.

    Args:
        missing: what is to be computed.
        planned: what the whole sweep reads. Texts for which it reads the same specs pass together
            whichever of these are missing: a file that was written before the process was killed
            does not change who is with whom.
    """
    matrix = np.stack(list(missing.values()), 1)  # (texts, specs)
    patterns = np.hstack([matrix, np.stack(list(planned.values()), 1)])
    for pattern in np.unique(patterns[matrix.any(1)], axis=0)[::-1]:
        specs = [spec for spec, is_missing in zip(missing, pattern, strict=False) if is_missing]
        yield np.flatnonzero((patterns == pattern).all(1)), specs

"""Batching: texts of different lengths as batches of few shapes with little padding.

Lengths are rounded up to a short list of buckets, because every shape costs a compilation.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, Self

import numpy as np

BUCKETS = (8, 16, 24, 32, 40, 48, 64, 80, 96, 128, 160, 192, 256, 320, 384, 512)
EMPTY = -1  # marks a position without a hidden state, or without a token


class ModelInputs(Protocol):
    """What an embedder's model reads, text by text: token ids, hidden states, or both."""

    @property
    def lengths(self) -> np.ndarray:
        """`(texts,)` number of positions of each text."""

    def __len__(self) -> int:
        """Number of texts."""

    def select(self, rows: Sequence[int]) -> Self:
        """Select texts in the order of `rows`; the values are shared, not copied."""

    def batch(self, rows: Sequence[int], length: int, texts: int) -> dict[str, np.ndarray]:
        """Pad texts to the model's inputs, by name.

        Args:
            rows: rows of the batch's texts.
            length: padded number of positions, at least that of the longest text.
            texts: padded number of texts, at least as many as `rows`.

        Returns:
            `inputs` and `mask` and, where both models' tokens are read, `tokens`.
        """


@dataclass(frozen=True)
class RaggedArray:
    """Values of texts of different lengths: token ids, or hidden states at one cutoff.

    Attributes:
        values: `(tokens, …)` of all texts.
        offsets: `(texts,)`; text i has the values from offsets[i] to offsets[i] + lengths[i].
        lengths: `(texts,)` number of tokens of each text.
    """

    values: np.ndarray
    offsets: np.ndarray
    lengths: np.ndarray

    def __len__(self) -> int:
        return len(self.lengths)

    def select(self, rows: Sequence[int]) -> "RaggedArray":
        """Select texts in the order of `rows`; the values are shared, not copied."""
        rows = np.asarray(rows, dtype=int)
        return RaggedArray(self.values, self.offsets[rows], self.lengths[rows])

    def text(self, row: int) -> np.ndarray:
        """The values `(tokens, …)` of one text."""
        return self.values[self.offsets[row] : self.offsets[row] + self.lengths[row]]

    def pad(self, rows: Sequence[int], length: int, texts: int) -> tuple[np.ndarray, np.ndarray]:
        """Values `(texts, length, …)` and mask `(texts, length)`, zero where padded."""
        values = np.zeros((texts, length, *self.values.shape[1:]), self.values.dtype)
        mask = np.zeros((texts, length), "int32")
        for i, row in enumerate(rows):
            values[i, : self.lengths[row]] = self.text(row)
            mask[i, : self.lengths[row]] = 1
        return values, mask

    def batch(self, rows: Sequence[int], length: int, texts: int) -> dict[str, np.ndarray]:
        """The padded values and their mask as a model's inputs."""
        values, mask = self.pad(rows, length, texts)
        return {"inputs": values, "mask": mask}


@dataclass(frozen=True)
class MultiLayerStates:
    """Hidden states of the same texts at several cutoffs.

    Attributes:
        layers: hidden states at each cutoff.
    """

    layers: tuple[RaggedArray, ...]

    @property
    def lengths(self) -> np.ndarray:
        """`(texts,)` number of tokens of each text."""
        return self.layers[0].lengths

    def __len__(self) -> int:
        return len(self.lengths)

    def select(self, rows: Sequence[int]) -> "MultiLayerStates":
        """Select texts in the order of `rows`; the values are shared, not copied."""
        return MultiLayerStates(tuple(layer.select(rows) for layer in self.layers))

    def text(self, row: int) -> np.ndarray:
        """The hidden states `(tokens, cutoffs, width)` of one text."""
        return np.stack([layer.text(row) for layer in self.layers], 1)

    def pad(self, rows: Sequence[int], length: int, texts: int) -> tuple[np.ndarray, np.ndarray]:
        """Values `(texts, length, cutoffs, width)` and mask `(texts, length)`, zero if padded."""
        padded = [layer.pad(rows, length, texts) for layer in self.layers]
        return np.stack([values for values, _ in padded], 2), padded[0][1]

    def batch(self, rows: Sequence[int], length: int, texts: int) -> dict[str, np.ndarray]:
        """The padded values and their mask as a model's inputs."""
        values, mask = self.pad(rows, length, texts)
        return {"inputs": values, "mask": mask}


@dataclass(frozen=True)
class FusedInputs:
    """Texts whose positions hold one of Gemma's hidden states, a RoBERTa token, or both.

    Attributes:
        states: Gemma's hidden states.
        alignment: index of each position's hidden state in the text, or EMPTY.
        tokens: RoBERTa's token id at each position, or EMPTY.
    """

    states: RaggedArray | MultiLayerStates
    alignment: RaggedArray
    tokens: RaggedArray

    @property
    def lengths(self) -> np.ndarray:
        """`(texts,)` number of positions of each text."""
        return self.tokens.lengths

    def __len__(self) -> int:
        return len(self.lengths)

    def select(self, rows: Sequence[int]) -> "FusedInputs":
        """Select texts in the order of `rows`; the values are shared, not copied."""
        return FusedInputs(
            self.states.select(rows), self.alignment.select(rows), self.tokens.select(rows)
        )

    def batch(self, rows: Sequence[int], length: int, texts: int) -> dict[str, np.ndarray]:
        """Hidden states `(texts, length, …)`, zero at EMPTY positions, token ids and mask."""
        first = self.states.text(rows[0])
        values = np.zeros((texts, length, *first.shape[1:]), first.dtype)
        for i, row in enumerate(rows):
            alignment = self.alignment.text(row)
            positions = np.flatnonzero(alignment != EMPTY)
            values[i, positions] = self.states.text(row)[alignment[positions]]
        tokens, mask = self.tokens.pad(rows, length, texts)
        return {"inputs": values, "tokens": tokens, "mask": mask}


def from_lengths(values: np.ndarray, lengths: Sequence[int]) -> RaggedArray:
    """A ragged array of texts of these lengths, which follow one another in `values`."""
    lengths = np.asarray(lengths, "int64")
    return RaggedArray(values, np.cumsum(lengths) - lengths, lengths)


def stack_layers(layers: Sequence[RaggedArray]) -> RaggedArray | MultiLayerStates:
    """Hidden states of one cutoff as they are, those of several as MultiLayerStates."""
    return layers[0] if len(layers) == 1 else MultiLayerStates(tuple(layers))


def fuse_inputs(
    fusion: str, states: RaggedArray | MultiLayerStates, alignment: RaggedArray, tokens: RaggedArray
) -> FusedInputs:
    """Inputs of a hybrid that reads RoBERTa's own tokens besides Gemma's hidden states.

    Args:
        fusion: `prepend`, all hidden states first; any other, a hidden state at each token.
        states: Gemma's hidden states.
        alignment: index of each RoBERTa token's Gemma token (`align_tokens`).
        tokens: RoBERTa's token ids.
    """
    if fusion != "prepend":
        return FusedInputs(states, alignment, tokens)
    order, ids = [], []
    for row, count in enumerate(states.lengths):
        text_ids = tokens.text(row)
        order += [np.arange(count), np.full(len(text_ids), EMPTY)]
        ids += [np.full(count, EMPTY), text_ids]
    lengths = states.lengths + tokens.lengths
    return FusedInputs(
        states,
        from_lengths(np.concatenate(order), lengths),
        from_lengths(np.concatenate(ids), lengths),
    )


def bucket_length(length: int, maximum: int | None = None) -> int:
    """Round a length up to the next bucket, or to a multiple of the last one.

    Args:
        length: number of tokens.
        maximum: upper limit of the result, which no text exceeds: RoBERTa may have no more
            positions.
    """
    last = BUCKETS[-1]
    bucket = next((size for size in BUCKETS if size >= length), -(-length // last) * last)
    return bucket if maximum is None else min(bucket, maximum)


def inference_batches(
    lengths: np.ndarray,
    token_budget: int,
    maximum: int | None = None,
    batch_size: int | None = None,
) -> Iterator[tuple[np.ndarray, int, int]]:
    """Split texts into batches of about `token_budget` tokens, padding included.

    The longest come first, so that a batch that does not fit into memory fails at once. The number
    of texts is as many as fit the budget or, in the last batch of a bucket, the next power of two.

    Args:
        lengths: `(texts,)` number of tokens of each text.
        token_budget: tokens per batch.
        maximum: upper limit of the padded length, as in `bucket_length`.
        batch_size: upper limit of the number of texts; None: no limit.

    Yields:
        Rows, padded length and padded number of texts.
    """
    buckets = np.array([bucket_length(length, maximum) for length in lengths])
    for length in sorted(set(buckets.tolist()), reverse=True):
        rows = np.flatnonzero(buckets == length)
        full = min(max(1, token_budget // length), batch_size or token_budget)
        for start in range(0, len(rows), full):
            batch = rows[start : start + full]
            yield batch, length, min(full, 1 << (len(batch) - 1).bit_length())


def sorted_batches(
    lengths: np.ndarray, token_budget: int, batch_size: int | None = None
) -> Iterator[tuple[np.ndarray, int, int]]:
    """As `inference_batches`, with hardly any padding, but nearly as many shapes as batches.

    For functions that are not compiled for each shape.
    """
    order = np.argsort(-np.asarray(lengths), kind="stable")
    while len(order):
        longest = int(lengths[order[0]])
        count = min(max(1, token_budget // max(1, longest)), batch_size or len(order))
        yield order[:count], longest, len(order[:count])
        order = order[count:]


def training_batches(
    lengths: np.ndarray, batch_size: int, generator: np.random.Generator
) -> list[np.ndarray]:
    """Rows of shuffled batches, each of texts of similar length.

    Rows are shuffled, sorted by length within pools of 32 batches, cut into batches, and the
    batches shuffled.
    """
    order = generator.permutation(len(lengths))
    pool = 32 * batch_size
    batches = []
    for start in range(0, len(order), pool):
        rows = order[start : start + pool]
        rows = rows[np.argsort(lengths[rows], kind="stable")]
        batches += [rows[i : i + batch_size] for i in range(0, len(rows), batch_size)]
    generator.shuffle(batches)
    return batches


def paired_batches(
    lengths: np.ndarray, labels: np.ndarray, batch_size: int, generator: np.random.Generator
) -> list[np.ndarray]:
    """As `training_batches`, with no label alone in a batch unless it has a single text.

    Texts of a label are paired with others of similar length, and a pair stays in one batch; of an
    odd number of texts, three stay together. So a batch may have up to two more texts than
    `batch_size`. From a `batch_size` of 5 there are exactly as many batches; of smaller ones, at
    most as many.

    Args:
        lengths: `(texts,)` number of tokens of each text.
        labels: `(texts,)` class numbers.
        batch_size: texts per batch.
        generator: of the order.
    """
    groups = []
    for label in np.unique(labels):
        rows = generator.permutation(np.flatnonzero(labels == label))
        for start in range(0, len(rows), 2 * batch_size):
            pool = rows[start : start + 2 * batch_size]
            pool = pool[np.argsort(lengths[pool], kind="stable")]
            groups += np.split(pool, range(2, len(pool), 2))
        if len(rows) % 2 and len(rows) > 1:
            groups[-2:] = [np.concatenate(groups[-2:])]
    order = generator.permutation(len(groups))
    sizes = np.array([len(group) for group in groups])
    longest = np.array([lengths[group].max() for group in groups])
    pools = np.cumsum(sizes[order]) // (32 * batch_size)
    order = order[np.lexsort((longest[order], pools))]
    count = -(-len(labels) // batch_size)
    number = (np.cumsum(sizes[order]) - sizes[order]) * count // len(labels)  # of each one's batch
    batches = [
        np.concatenate([groups[group] for group in batch])
        for batch in np.split(order, np.flatnonzero(np.diff(number)) + 1)
    ]
    generator.shuffle(batches)
    return batches

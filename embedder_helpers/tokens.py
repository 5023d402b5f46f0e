"""Tokens: texts to ids, ragged values, and batches of few shapes with little padding.

Lengths are rounded up to a short list of buckets, because every shape costs a compilation.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

BUCKETS = (8, 16, 24, 32, 40, 48, 64, 80, 96, 128, 160, 192, 256, 320, 384, 512)


@dataclass(frozen=True)
class Ragged:
    """Values of texts of different lengths: token ids or token states.

    Attributes:
        values: `(tokens, …)`, all texts' values.
        starts: `(texts,)`; text i has the values from starts[i] to starts[i] + lengths[i].
        lengths: `(texts,)` tokens of each text.
    """

    values: np.ndarray
    starts: np.ndarray
    lengths: np.ndarray

    def __len__(self) -> int:
        return len(self.lengths)

    def select(self, rows: Sequence[int]) -> "Ragged":
        """Some texts, in the order asked for; the values are shared, not copied."""
        rows = np.asarray(rows, dtype=int)
        return Ragged(self.values, self.starts[rows], self.lengths[rows])

    def text(self, row: int) -> np.ndarray:
        """The values of one text."""
        return self.values[self.starts[row] : self.starts[row] + self.lengths[row]]

    def padded(self, rows: Sequence[int], length: int, texts: int) -> tuple[np.ndarray, np.ndarray]:
        """Values `(texts, length, …)` and mask `(texts, length)`, zero behind the rows asked."""
        values = np.zeros((texts, length, *self.values.shape[1:]), self.values.dtype)
        mask = np.zeros((texts, length), "int32")
        for place, row in enumerate(rows):
            values[place, : self.lengths[row]] = self.text(row)
            mask[place, : self.lengths[row]] = 1
        return values, mask

    def batch(self, rows: Sequence[int], length: int, texts: int) -> dict[str, np.ndarray]:
        """What a model takes: `padded`, by name."""
        return _named(*self.padded(rows, length, texts))


@dataclass(frozen=True)
class Stacked:
    """The states of the same texts behind several cutoffs; used as one Ragged is."""

    layers: tuple[Ragged, ...]

    @property
    def lengths(self) -> np.ndarray:
        """`(texts,)` tokens of each text."""
        return self.layers[0].lengths

    def __len__(self) -> int:
        return len(self.lengths)

    def select(self, rows: Sequence[int]) -> "Stacked":
        """Some texts, in the order asked for; the values are shared, not copied."""
        return Stacked(tuple(layer.select(rows) for layer in self.layers))

    def text(self, row: int) -> np.ndarray:
        """The states of one text, `(tokens, cutoffs, width)`."""
        return np.stack([layer.text(row) for layer in self.layers], 1)

    def padded(self, rows: Sequence[int], length: int, texts: int) -> tuple[np.ndarray, np.ndarray]:
        """Values `(texts, length, cutoffs, width)` and mask `(texts, length)`."""
        padded = [layer.padded(rows, length, texts) for layer in self.layers]
        return np.stack([values for values, _ in padded], 2), padded[0][1]

    def batch(self, rows: Sequence[int], length: int, texts: int) -> dict[str, np.ndarray]:
        """What a model takes: `padded`, by name."""
        return _named(*self.padded(rows, length, texts))


def _named(values: np.ndarray, mask: np.ndarray) -> dict[str, np.ndarray]:
    return {"inputs": values, "mask": mask}


class Tokens(NamedTuple):
    """A text's tokens, for each model that reads it.

    Attributes:
        gemma: ids with the start token; None for RoBERTa alone.
        roberta: ids with start and end token; None where the model behind does not read them.
        truncated: `(texts,)` whether a text was cut at the length limit.
    """

    gemma: Ragged | None
    roberta: Ragged | None
    truncated: np.ndarray

    def select(self, rows: Sequence[int]) -> "Tokens":
        """Some texts, in the order asked for."""
        gemma, roberta = (None if ids is None else ids.select(rows) for ids in self[:2])
        return Tokens(gemma, roberta, self.truncated[np.asarray(rows, dtype=int)])


def stacked(layers: Sequence[Ragged]) -> Ragged | Stacked:
    """One cutoff's states as they are, several stacked."""
    return layers[0] if len(layers) == 1 else Stacked(tuple(layers))


def end_to_end(values: np.ndarray, lengths: Sequence[int]) -> Ragged:
    """Texts of these lengths that follow one another in `values`."""
    lengths = np.asarray(lengths, "int64")
    return Ragged(values, np.cumsum(lengths) - lengths, lengths)


def tokenise(
    tokenizer: Any, texts: Sequence[str], max_tokens: int, *, end: bool
) -> tuple[Ragged, np.ndarray]:
    """Token ids with the start token, and the end token where asked for.

    Args:
        tokenizer: a keras-hub tokenizer.
        texts: checked texts.
        max_tokens: tokens that are kept of a text, special tokens included.
        end: RoBERTa reads an end token; Gemma's states are taken without one.

    Returns:
        int32 ids, and `(texts,)` whether each text was cut.
    """
    found = tokenizer(list(texts)) if len(texts) else []
    found = found.to_list() if hasattr(found, "to_list") else found  # keras-hub < 0.30: tf.Ragged
    room = max_tokens - 1 - end
    tail = [tokenizer.end_token_id] if end else []
    ids = [[tokenizer.start_token_id, *map(int, text[:room]), *tail] for text in found]
    values = np.array([token for text in ids for token in text], "int32")
    truncated = np.array([len(text) > room for text in found], bool)
    return end_to_end(values, [len(text) for text in ids]), truncated


WHITE = b" \t\n\r\v\f"
# GPT-2's alphabet for bytes, which RoBERTa's vocabulary is written in, moves white space up by 256.
WHITE_SIGNS = {chr(256 + byte) for byte in WHITE}


def align(llm: tuple[Any, Ragged], slm: tuple[Any, Ragged]) -> Ragged:
    """For each RoBERTa token, the Gemma token of the same text in which it ends.

    Both tokenizers' tokens are placed by the bytes up to their end, white space left out, which is
    where tokenizers differ; one that rewrites letters (`…` to `...`) may shift the places behind
    them by a token. RoBERTa's start token is Gemma's; behind a cut the last token is taken.

    Args:
        llm: Gemma's tokenizer and token ids.
        slm: RoBERTa's tokenizer and token ids of the same texts.
    """
    ends, wanted = _ends(*llm), _ends(*slm)
    places = [
        np.searchsorted(ends.text(row), wanted.text(row)).clip(max=ends.lengths[row] - 1)
        for row in range(len(wanted))
    ]
    return end_to_end(np.concatenate([np.zeros(0, int), *places]), wanted.lengths)


def _ends(tokenizer: Any, ids: Ragged) -> Ragged:
    """For each token, the bytes of its text up to its end, white space left out."""
    different, places = np.unique(ids.values, return_inverse=True)
    sizes = np.array([_size(tokenizer, int(token)) for token in different], int)[places]
    ends = [np.cumsum(end_to_end(sizes, ids.lengths).text(row)) for row in range(len(ids))]
    return end_to_end(np.concatenate([np.zeros(0, int), *ends]), ids.lengths)


def _size(tokenizer: Any, token: int) -> int:
    """Bytes of a token's text, white space left out; none of a special token."""
    special = (tokenizer.start_token_id, tokenizer.end_token_id, tokenizer.pad_token_id)
    text = tokenizer.id_to_token(token)
    if token in special:
        return 0
    if hasattr(tokenizer, "merges"):  # byte pairs: a letter per byte
        return sum(letter not in WHITE_SIGNS for letter in text)
    if re.fullmatch("<0x[0-9A-F]{2}>", text):  # SentencePiece spells unknown letters in bytes
        return int(text[3:5], 16) not in WHITE
    return sum(byte not in WHITE for byte in text.replace("\u2581", " ").encode())


def bucket(length: int, most: int | None = None) -> int:
    """The bucket that holds a length; past the last one, multiples of it.

    Args:
        length: tokens.
        most: no bucket is larger, because no text is (and RoBERTa may have no more positions).
    """
    last = BUCKETS[-1]
    found = next((one for one in BUCKETS if one >= length), -(-length // last) * last)
    return found if most is None else min(found, most)


def inference_batches(
    lengths: np.ndarray,
    token_budget: int,
    most: int | None = None,
    batch_size: int | None = None,
) -> Iterator[tuple[np.ndarray, int, int]]:
    """Rows, padded length and padded number of texts, longest first, about `token_budget` a batch.

    And at most `batch_size` texts, where that is given.

    Longest first, so that a batch that does not fit the memory fails at once. The number of texts
    is the bucket's full one or, for the last batch of a bucket, the next power of two.
    """
    buckets = np.array([bucket(length, most) for length in lengths])
    for length in sorted(set(buckets.tolist()), reverse=True):
        rows = np.flatnonzero(buckets == length)
        full = min(max(1, token_budget // length), batch_size or token_budget)
        for start in range(0, len(rows), full):
            batch = rows[start : start + full]
            yield batch, length, min(full, 1 << (len(batch) - 1).bit_length())


def training_batches(
    lengths: np.ndarray, batch_size: int, generator: np.random.Generator
) -> list[np.ndarray]:
    """Rows of shuffled batches whose texts are of like length.

    Rows are shuffled, sorted by length within pools of 32 batches, cut, and the batches shuffled.
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

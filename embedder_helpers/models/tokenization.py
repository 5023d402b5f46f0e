"""Tokenization: texts to the token ids of each model, and the alignment of the two."""

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from embedder_helpers.models.batching import RaggedArray, from_lengths

WHITESPACE = b" \t\n\r\v\f"
# RoBERTa's vocabulary is written in GPT-2's alphabet for bytes, which shifts white space by 256.
WHITESPACE_SYMBOLS = {chr(256 + byte) for byte in WHITESPACE}


class TokenizedTexts(NamedTuple):
    """Token ids of texts, for each model that reads them.

    Attributes:
        gemma: ids with the start token; None for RoBERTa alone.
        roberta: ids with the start and the end token; None where the embedder does not read them.
        truncated: `(texts,)` whether a text was truncated at the length limit.
    """

    gemma: RaggedArray | None
    roberta: RaggedArray | None
    truncated: np.ndarray

    def select(self, rows: Sequence[int]) -> "TokenizedTexts":
        """Select texts in the order of `rows`."""
        gemma, roberta = (None if ids is None else ids.select(rows) for ids in self[:2])
        return TokenizedTexts(gemma, roberta, self.truncated[np.asarray(rows, dtype=int)])


def tokenize(
    tokenizer: Any, texts: Sequence[str], max_tokens: int, *, end: bool
) -> tuple[RaggedArray, np.ndarray]:
    """Tokenize texts with the start token and, if wanted, the end token.

    Args:
        tokenizer: a keras-hub tokenizer.
        texts: valid texts.
        max_tokens: number of tokens at which a text is truncated, special tokens included.
        end: whether to append the end token, which RoBERTa reads; Gemma's hidden states are
            computed without.

    Returns:
        int32 ids, and `(texts,)` whether each text was truncated.
    """
    tokenized = tokenizer(list(texts)) if len(texts) else []
    if hasattr(tokenized, "to_list"):  # keras-hub < 0.30: a ragged tensor
        tokenized = tokenized.to_list()
    room = max_tokens - 1 - end
    tail = [tokenizer.end_token_id] if end else []
    ids = [[tokenizer.start_token_id, *map(int, text[:room]), *tail] for text in tokenized]
    values = np.array([token for text in ids for token in text], "int32")
    truncated = np.array([len(text) > room for text in tokenized], bool)
    return from_lengths(values, [len(text) for text in ids]), truncated


def align_tokens(llm: tuple[Any, RaggedArray], slm: tuple[Any, RaggedArray]) -> RaggedArray:
    """For each RoBERTa token, the index of the Gemma token of the same text in which it ends.

    The end of a token is counted in bytes of the text without white space, which the two tokenizers
    treat differently. A tokenizer that rewrites characters (`…` to `...`) may shift the tokens
    after them by one. RoBERTa's start token is aligned with Gemma's, and tokens beyond Gemma's
    truncation with its last token.

    Args:
        llm: Gemma's tokenizer and token ids.
        slm: RoBERTa's tokenizer and token ids of the same texts.
    """
    llm_ends, slm_ends = _token_ends(*llm), _token_ends(*slm)
    alignment = [
        np.searchsorted(llm_ends.text(row), slm_ends.text(row)).clip(max=llm_ends.lengths[row] - 1)
        for row in range(len(slm_ends))
    ]
    return from_lengths(np.concatenate([np.zeros(0, int), *alignment]), slm_ends.lengths)


def _token_ends(tokenizer: Any, ids: RaggedArray) -> RaggedArray:
    """For each token, the number of bytes of its text up to its end, without white space."""
    distinct, inverse = np.unique(ids.values, return_inverse=True)
    sizes = np.array([_token_bytes(tokenizer, int(token)) for token in distinct], int)[inverse]
    sizes = from_lengths(sizes, ids.lengths)
    ends = [np.cumsum(sizes.text(row)) for row in range(len(ids))]
    return from_lengths(np.concatenate([np.zeros(0, int), *ends]), ids.lengths)


def _token_bytes(tokenizer: Any, token: int) -> int:
    """Number of bytes of a token's text without white space; 0 for a special token."""
    special = (tokenizer.start_token_id, tokenizer.end_token_id, tokenizer.pad_token_id)
    text = tokenizer.id_to_token(token)
    if token in special:
        return 0
    if hasattr(tokenizer, "merges"):  # byte-pair encoding: one symbol per byte
        return sum(symbol not in WHITESPACE_SYMBOLS for symbol in text)
    if re.fullmatch("<0x[0-9A-F]{2}>", text):  # SentencePiece's byte fallback
        return int(text[3:5], 16) not in WHITESPACE
    return sum(byte not in WHITESPACE for byte in text.replace("\u2581", " ").encode())

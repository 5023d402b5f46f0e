"""Tokenization: texts to the token ids of each model, and the alignment of the two."""

import re
import weakref
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import Any, NamedTuple

import numpy as np

from embedder_helpers.models.batching import RaggedArray, from_lengths

WHITESPACE = b" \t\n\r\v\f"
LONGEST_TOKEN = 128  # characters: RoBERTa's longest; Gemma's has 31
SKIPPED = 64  # bytes of a text that a tokenizer may pass over between two tokens

# RoBERTa's vocabulary spells bytes in GPT-2's alphabet: printable Latin-1 characters as they are,
# all other bytes as the characters from 256 on.
_PRINTABLE = {*range(33, 127), *range(161, 173), *range(174, 256)}
_BYTES = {256 + i: byte for i, byte in enumerate(b for b in range(256) if b not in _PRINTABLE)}

# What tokens spell (`_spell`), by tokenizer and id; kept as long as the tokenizer.
_SPELLED: weakref.WeakKeyDictionary[Any, dict[int, bytes]] = weakref.WeakKeyDictionary()


class TokenizedTexts(NamedTuple):
    """Token ids of texts, for each model that reads them.

    Attributes:
        texts: the texts.
        gemma: ids with the start token; None for RoBERTa alone.
        roberta: ids with the start and the end token; None where the embedder does not read them.
        truncated: `(texts,)` whether a text was truncated at the length limit.
    """

    texts: Sequence[str]
    gemma: RaggedArray | None
    roberta: RaggedArray | None
    truncated: np.ndarray

    def select(self, rows: Sequence[int]) -> "TokenizedTexts":
        """Select texts in the order of `rows`."""
        texts = [self.texts[row] for row in rows]
        gemma, roberta = (
            None if ids is None else ids.select(rows) for ids in (self.gemma, self.roberta)
        )
        return TokenizedTexts(texts, gemma, roberta, self.truncated[np.asarray(rows, dtype=int)])


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
    tokenized = tokenizer([_readable(text, max_tokens) for text in texts]) if len(texts) else []
    if hasattr(tokenized, "to_list"):  # keras-hub < 0.30: a ragged tensor
        tokenized = tokenized.to_list()
    room = max_tokens - 1 - end
    tail = [tokenizer.end_token_id] if end else []
    ids = [[tokenizer.start_token_id, *map(int, text[:room]), *tail] for text in tokenized]
    values = np.array([token for text in ids for token in text], "int32")
    truncated = np.array([len(text) > room for text in tokenized], bool)
    return from_lengths(values, [len(text) for text in ids]), truncated


def _readable(text: str, max_tokens: int) -> str:
    """A text for a tokenizer: no NUL, and of a very long one only what the tokens can reach.

    keras-hub < 0.30 reads a text for RoBERTa up to the first NUL, which is replaced as in HTML. Of
    a text of megabytes, most tokens would be made, at a hundred times its memory, to be cut off.
    """
    text = text.replace("\0", "\ufffd")
    size = LONGEST_TOKEN * max_tokens
    if len(text) <= size:
        return text
    return re.match(rf"(?:\s*\S){{0,{size}}}\s*", text).group()  # white space may not be tokens


def align_tokens(
    texts: Sequence[str], llm: tuple[Any, RaggedArray], slm: tuple[Any, RaggedArray]
) -> RaggedArray:
    """For each RoBERTa token, the index of the Gemma token of the same text in which it ends.

    Where a token ends is counted in bytes of the text without white space, which the two tokenizers
    treat differently. RoBERTa's start token is aligned with Gemma's, and tokens beyond Gemma's
    truncation with its last token.

    Args:
        texts: the texts.
        llm: Gemma's tokenizer and token ids of the texts.
        slm: RoBERTa's tokenizer and token ids of the texts.
    """
    llm_ends, slm_ends = _token_ends(texts, *llm), _token_ends(texts, *slm)
    # One search for all texts: those of each text are numbered from a start of its own.
    span = 1 + max(ends.values.max(initial=0) for ends in (llm_ends, slm_ends))
    llm_places, slm_places = (
        ends.values + span * np.repeat(np.arange(len(texts)), ends.lengths)
        for ends in (llm_ends, slm_ends)
    )
    found = np.searchsorted(llm_places, slm_places)
    found -= np.repeat(llm_ends.offsets, slm_ends.lengths)
    last = np.repeat(llm_ends.lengths - 1, slm_ends.lengths)
    return from_lengths(np.minimum(found, last), slm_ends.lengths)


def token_spans(
    texts: Sequence[str], tokenizer: Any, ids: RaggedArray, truncated: np.ndarray
) -> RaggedArray:
    """Where each token is in its text: from which character to before which one, `(tokens, 2)`.

    Spans follow one another without gaps, so that they reproduce a text that is not truncated, and
    the beginning of one that is. White space belongs to the token after it, at the end of a text to
    the last one; of tokens that share a character, it belongs to the first (to the last with
    XLM-RoBERTa and keras-hub < 0.30, which gives its tokens no names). Special tokens, and
    others of which nothing is left, have empty spans.

    Args:
        texts: the texts.
        tokenizer: of the tokens.
        ids: token ids of the texts, with their special tokens.
        truncated: `(texts,)` whether each text was truncated.
    """
    ends = _token_ends(texts, tokenizer, ids)
    spans = []
    for row, text in enumerate(texts):
        readable = _readable(text, int(ids.lengths[row]))
        counts = np.cumsum([len(_without_whitespace(letter)) for letter in readable], dtype=int)
        own = np.maximum.accumulate(ends.text(row))
        places = np.where(own > 0, np.searchsorted(counts, own) + 1, 0)
        places = np.minimum(places, len(readable))
        if not truncated[row] or not text[places[-1] :].strip():
            filled = np.flatnonzero(np.diff(places, prepend=0))
            places[filled[-1] if len(filled) else -1 :] = len(text)
        spans.append(np.stack([np.r_[0, places[:-1]], places], 1))
    return from_lengths(np.concatenate([np.zeros((0, 2), int), *spans]), ids.lengths)


def _token_ends(texts: Sequence[str], tokenizer: Any, ids: RaggedArray) -> RaggedArray:
    """For each token, the number of bytes of its text up to its end, without white space.

    In most texts the tokens spell the text, and the lengths of what they spell are summed. Where
    they do not, because a tokenizer rewrites characters (`…` to `...`), drops them (zero-width
    ones) or has no token for them, the tokens are found in the text.
    """
    texts = [_readable(text, length) for text, length in zip(texts, ids.lengths, strict=True)]
    values = np.concatenate([np.zeros(0, "int32"), *map(ids.text, range(len(ids)))])
    starts = np.cumsum(ids.lengths) - ids.lengths
    lasts = starts + ids.lengths - 1
    tokens = values.tolist()
    known = _spelled(tokenizer, set(tokens))
    spelled = [known[token] for token in tokens]
    for place in (*starts, *lasts[values[lasts] == tokenizer.end_token_id]):
        spelled[place] = b""  # not in the text, unlike `</s>` elsewhere
    ends = np.cumsum(list(map(len, spelled)), dtype="int64")
    letters, before = b"".join(spelled), ends[starts]
    parts = [letters[i:j] for i, j in zip(before.tolist(), ends[lasts].tolist(), strict=True)]
    rewritten = [
        row
        for row, (text, part) in enumerate(zip(texts, parts, strict=True))
        if not _without_whitespace(text).startswith(part)
    ]
    ends = from_lengths(ends - np.repeat(before, ids.lengths), ids.lengths)
    cases = [(texts[row], spelled[starts[row] + 1 : lasts[row] + 1]) for row in rewritten]
    find = _find_pieces if hasattr(tokenizer, "proto") else _find_spelled
    for row, found in zip(rewritten, find(tokenizer, cases), strict=True):
        ends.text(row)[1:] = found
    return ends


def _without_whitespace(text: str) -> bytes:
    return text.encode().translate(None, WHITESPACE)


def _spelled(tokenizer: Any, ids: set[int]) -> dict[int, bytes]:
    """What tokens spell without white space, by id; at least those of `ids`."""
    known = _SPELLED.setdefault(tokenizer, {})
    if not known and hasattr(tokenizer, "merges"):  # its `id_to_token` may search the vocabulary
        known |= {token: _spell(tokenizer, name) for name, token in tokenizer.vocabulary.items()}
    for token in ids:
        if token not in known:
            try:
                known[token] = _spell(tokenizer, tokenizer.id_to_token(token))
            except AttributeError:  # XLM-RoBERTa's has no names in keras-hub < 0.30
                known[token] = b"\0"  # in no readable text, so the token is found in it
    return known


def _spell(tokenizer: Any, name: str) -> bytes:
    """What a token of a vocabulary spells without white space; a special token spells its name."""
    if hasattr(tokenizer, "merges"):  # byte-pair encoding: one symbol per byte
        spelled = name.translate(_BYTES).encode("latin-1", "replace")
    elif re.fullmatch("<0x[0-9A-F]{2}>", name):  # SentencePiece's byte fallback
        spelled = bytes.fromhex(name[3:5])
    else:
        spelled = name.replace("\u2581", " ").encode()
    return spelled.translate(None, WHITESPACE)


def _find_pieces(
    tokenizer: Any, rewritten: Sequence[tuple[str, Sequence[bytes]]]
) -> Iterator[list[int]]:
    """Where tokens end in texts that SentencePiece, which knows their places, has rewritten.

    Args:
        tokenizer: of the texts.
        rewritten: each text, and what its tokens after the start token spell.

    Yields:
        For each of these tokens what `_token_ends` counts.
    """
    if not rewritten:
        return
    import tensorflow_text

    pieces = tensorflow_text.SentencepieceTokenizer(tokenizer.proto)
    places = pieces.tokenize_with_offsets([text for text, _ in rewritten])[2].to_list()
    for (text, spelled), ends in zip(rewritten, places, strict=True):
        is_counted = [byte not in WHITESPACE for byte in text.encode()]
        counts = list(accumulate(is_counted, initial=0))
        has_end = spelled[-1:] == [b""]  # an end token, which in a truncated text is no next piece
        ends = [0, *ends][: len(spelled) + 1 - has_end]
        ends += ends[-1:] * (len(spelled) + 1 - len(ends))
        yield [counts[end] for end in ends[1:]]


def _find_spelled(
    tokenizer: Any, rewritten: Sequence[tuple[str, Sequence[bytes]]]
) -> Iterator[list[int]]:
    """As `_find_pieces`, for a tokenizer that passes over characters.

    keras-hub < 0.30 passes over `६`, which it uses itself, when it tokenizes for RoBERTa.
    """
    for text, spelled in rewritten:
        letters, end, ends = _without_whitespace(text), 0, []
        for part in spelled:
            place = letters.find(part, end, end + len(part) + SKIPPED)
            end = end if place < 0 else place + len(part)
            ends.append(end)
        yield ends

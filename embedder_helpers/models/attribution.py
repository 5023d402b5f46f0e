"""Where in a text Gemma matters: what each of its hidden states weighs, and what it changes.

A state is left out by putting the average state in its place, which is 0 once it is standardized,
and RoBERTa and the head read the text again: occlusion (Zeiler & Fergus 2014, section 2.2; Li,
Monroe & Jurafsky 2016, "Understanding Neural Networks through Representation Erasure", for text).
It shows what the classifier relies on, one state at a time: two of which either is enough seem to
change nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from keras import ops

from embedder_helpers.data.files import as_list, validate_texts
from embedder_helpers.errors import InputError, show, show_list
from embedder_helpers.models.architectures import Hybrid
from embedder_helpers.models.batching import ModelInputs, RaggedArray
from embedder_helpers.models.embedder import CHUNK, Embedder
from embedder_helpers.models.text_model import forward_batches
from embedder_helpers.models.tokenization import TokenizedTexts, token_spans
from embedder_helpers.utils import progress
from embedder_helpers.utils.keras_state import own_keras_state


class Attribution(NamedTuple):
    """What Gemma's hidden states contribute to a text's label.

    Attributes:
        text: the text.
        label: the label whose probability is explained.
        probability: the probability of this label, not calibrated.
        tokens: a row for each position at which the hybrid reads a hidden state:
            `token`: the characters it covers; `start`, `end`: their place in the text. In the order
                of the text and without gaps, see `tokenization.token_spans`. Special tokens cover
                none.
            `gemma_norm`: length of the projected hidden state, as RoBERTa reads it.
            `token_norm`: length of RoBERTa's own embedding of the token; NaN where it reads none
                beside the state (fusions `replace` and `prepend`).
            `change`: the label's probability without this state minus that with it: below 0 where
                the state speaks for the label.
    """

    text: str
    label: Any
    probability: float
    tokens: pd.DataFrame


@own_keras_state()
def attribute(
    hybrid: Embedder,
    texts: str | Sequence[str],
    labels: Sequence[Any] | None = None,
    batch_size: int | None = None,
) -> list[Attribution]:
    """Explain a trained hybrid's labels by the hidden states that it reads.

    Positions are RoBERTa's tokens, each with the state of the Gemma token in which it ends; with
    the fusions `replace` and `prepend`, which read one state per Gemma token, they are Gemma's.
    With late fusion a state is left out in both places: where it enters RoBERTa, and in the mean
    beside it.

    Costs one pass through Gemma per text, and one through RoBERTa per position of it.

    Args:
        hybrid: a hybrid with a head.
        texts: a list of texts, or a single text.
        labels: the label to explain for each text; None: the one it predicts.
        batch_size: maximum number of texts, or of a text's variants, per batch.

    Raises:
        InputError: no hybrid, or one without a head; an invalid text; not a label of the head for
            each text.
    """
    if not isinstance(hybrid, Hybrid):
        raise InputError(
            f"the embedder is {show(hybrid.experiment.kind)}, but only a hybrid reads hidden "
            "states besides tokens: give one"
        )
    if hybrid.head is None:
        raise InputError("this hybrid has no classifier: train it with epochs of 1 or more")
    texts = [texts] if isinstance(texts, str) else as_list(texts)
    validate_texts(texts, "attribute")
    columns = None if labels is None else _columns(hybrid, texts, labels)
    found: list[Attribution] = []
    for start in range(0, len(texts), CHUNK):
        part = slice(start, start + CHUNK)
        chosen = None if columns is None else columns[part]
        found += _attribute(hybrid, texts[part], chosen, batch_size)
    return found


def _columns(hybrid: Hybrid, texts: list[str], labels: Sequence[Any]) -> np.ndarray:
    """`(texts,)` the labels as columns of the head."""
    labels, classes = list(labels), hybrid.head.classes.tolist()
    if len(labels) != len(texts):
        raise InputError(f"there are {len(labels)} labels, but {len(texts)} texts")
    if unknown := [label for label in labels if label not in classes]:
        raise InputError(
            f"labels has {show_list(unknown, 3)}, which the hybrid was not trained on: it knows "
            f"{show_list(classes, 5)}"
        )
    return np.array([classes.index(label) for label in labels], int)


def _attribute(
    hybrid: Hybrid, texts: list[str], columns: np.ndarray | None, batch_size: int | None
) -> list[Attribution]:
    tokens = hybrid.tokenize(texts)
    inputs = hybrid.prepare_inputs(tokens, hybrid.hidden_states(tokens, batch_size))
    whole = hybrid.head.probabilities(hybrid.embed(inputs, batch_size))  # (texts, classes)
    columns = whole.argmax(-1) if columns is None else columns
    # All positions that hold a state; with `prepend`, RoBERTa's own tokens are behind them.
    ids = _own_ids(hybrid, tokens)
    rows = np.repeat(np.arange(len(ids)), ids.lengths)
    positions = np.arange(len(rows)) - np.repeat(ids.offsets, ids.lengths)
    without, norms = _leave_out(hybrid, _Variants(inputs, rows, positions), columns, batch_size)
    found = []
    for row, (text, table) in enumerate(zip(texts, _tokens(hybrid, tokens), strict=True)):
        own = slice(ids.offsets[row], ids.offsets[row] + ids.lengths[row])
        probability = float(whole[row, columns[row]])
        table.insert(3, "gemma_norm", norms[own])
        table["change"] = without[own] - probability
        found.append(Attribution(text, hybrid.head.classes[columns[row]], probability, table))
    return found


# === Texts without one state ===


@dataclass(frozen=True)
class _Variants:
    """Texts with a hidden state left out: each text once per position that holds one.

    Attributes:
        inputs: of the whole texts.
        rows: `(variants,)` text of each variant.
        positions: `(variants,)` position of the state that it lacks.
    """

    inputs: ModelInputs
    rows: np.ndarray
    positions: np.ndarray

    @property
    def lengths(self) -> np.ndarray:
        """`(variants,)` number of positions of each."""
        return self.inputs.lengths[self.rows]

    def batch(
        self, hybrid: Hybrid, variants: np.ndarray, length: int, count: int
    ) -> tuple[dict[str, Any], np.ndarray]:
        """Inputs of `Hybrid.after_standardizing`, padded to `(count, length)`, and left-out states.

        Returns:
            The inputs by name; `(variants, …, llm_width)`, the standardized states that they lack.
        """
        batch = self.inputs.batch(self.rows[variants], length, count)
        states = np.array(ops.convert_to_numpy(hybrid.standardize(batch.pop("inputs"))))
        places = np.arange(len(variants)), self.positions[variants]
        left_out = states[places].copy()
        states[places] = 0
        return batch | {hybrid.standardize.output.name: states}, left_out


def _leave_out(
    hybrid: Hybrid, variants: _Variants, columns: np.ndarray, batch_size: int | None
) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities `(variants,)` without a state, and norms `(variants,)` of its projection."""
    lengths, model = variants.lengths, hybrid.after_standardizing
    probabilities, norms = np.empty(len(lengths)), np.empty(len(lengths))
    work = {progress.EMBEDDING: hybrid.forward_flops(lengths)}
    with progress.progress_bar(int(lengths.sum()), "leaving out states", "token", work) as bar:
        for chosen, length, count in forward_batches(lengths, hybrid.longest, batch_size):
            batch, left_out = variants.batch(hybrid, chosen, length, count)
            embeddings = model.predict_on_batch(batch)[: len(chosen)]
            of_text = columns[variants.rows[chosen]]
            found = hybrid.head.probabilities(embeddings)
            probabilities[chosen] = found[np.arange(len(chosen)), of_text]
            norms[chosen] = _projected_norms(hybrid, left_out)
            bar.update(int(lengths[chosen].sum()))
    return probabilities, norms


def _projected_norms(hybrid: Hybrid, states: np.ndarray) -> np.ndarray:
    """Lengths `(states,)` of standardized hidden states `(states, …, llm_width)` as projected."""
    if states.ndim == 3:
        states = hybrid.model.get_layer("layer_pooling")(states[None])[0]
    projected = hybrid.projection(ops.convert_to_tensor(states)[None])[0]
    return np.linalg.norm(ops.convert_to_numpy(projected).astype("float32"), axis=-1)


# === The tokens of a text ===


def _own_ids(hybrid: Hybrid, tokens: TokenizedTexts) -> RaggedArray:
    """Ids of the tokens at whose positions hidden states are read."""
    return tokens.gemma if hybrid.fusion in ("replace", "prepend") else tokens.roberta


def _tokens(hybrid: Hybrid, tokens: TokenizedTexts) -> list[pd.DataFrame]:
    """For each text, `token`, `start`, `end` and `token_norm` of its positions."""
    ids = _own_ids(hybrid, tokens)
    reads_tokens = ids is tokens.roberta
    tokenizer = hybrid.tokenizer if reads_tokens else hybrid.gemma.tokenizer
    spans = token_spans(tokens.texts, tokenizer, ids, tokens.truncated)
    norms = np.full(len(ids.values), np.nan)
    if reads_tokens:
        table = ops.convert_to_numpy(hybrid.roberta.token_embedding.embeddings)
        norms = np.linalg.norm(table[ids.values].astype("float32"), axis=-1)
    tables = []
    for row, text in enumerate(tokens.texts):
        own = spans.text(row)
        columns = {
            "token": [text[start:end] for start, end in own],
            "start": own[:, 0],
            "end": own[:, 1],
            "token_norm": norms[ids.offsets[row] : ids.offsets[row] + ids.lengths[row]],
        }
        tables.append(pd.DataFrame(columns))
    return tables

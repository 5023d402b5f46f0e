"""Classify: the labels an embedder's head gives to texts, and what Gemma had to do with them."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from embedder_helpers.config import InputError
from embedder_helpers.embedder import Embedder, Hybrid
from embedder_helpers.local import listed


def classify(embedder: Embedder, texts: str | Sequence[str]) -> pd.DataFrame:
    """A row per text: `text`, `label`, and `p(…)`, the probability of each class.

    For a hybrid also `label_without_gemma`, what the same RoBERTa and head say of the text's own
    token embeddings, with nothing of Gemma's; and `moved_by_gemma`, the share of probability, 0 to
    1, that Gemma moved from one class to another (the total variation distance). Costs a pass of
    RoBERTa more. Probabilities are the head's, not calibrated.

    Args:
        embedder: with a head.
        texts: to classify.

    Raises:
        InputError: no classifier was trained; a text that is none.
    """
    head = embedder.head
    if head is None:
        raise InputError(
            "this embedder has no classifier: train one (epochs of 1 or more; for gemma_only, "
            "probe: true) and save it again"
        )
    texts = [texts] if isinstance(texts, str) else listed(texts)
    given = head.probabilities(embedder.encode(texts)).astype("float64")
    found = {"text": texts, "label": head.classes[given.argmax(-1)]}
    found |= {f"p({one})": given[:, i] for i, one in enumerate(head.classes)}
    if isinstance(embedder, Hybrid):
        own = head.probabilities(embedder.without_gemma.encode(texts))
        found["label_without_gemma"] = head.classes[own.argmax(-1)]
        found["moved_by_gemma"] = np.abs(given - own).sum(-1) / 2
    return pd.DataFrame(found)

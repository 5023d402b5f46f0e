"""A saved embedder as a model of `mteb`, for `mteb.evaluate` on any of its text tasks.

Needs `mteb`, which brings torch: `pip install "embedder-gemma-roberta[mteb]"`. No other module
imports this one.
"""

from pathlib import Path
from typing import Any

import numpy as np

from embedder_helpers.config import InputError
from embedder_helpers.mteb_files import model_meta
from embedder_helpers.saved import load, read_saved

try:
    from mteb.models import ModelMeta
    from mteb.models.abs_encoder import AbsEncoder
except ModuleNotFoundError:
    raise InputError("mteb is not installed: pip install 'embedder-gemma-roberta[mteb]'") from None


class MtebEncoder(AbsEncoder):
    """What `mteb.evaluate` takes, with cosine similarity.

    Args:
        folder: of a saved embedder.
        name: `org/model`, by which `mteb` keeps its results.
        llm_preset: where its Gemma is, if it has moved.

    Raises:
        InputError: as `load` does.
    """

    def __init__(self, folder: str | Path, name: str, llm_preset: str | None = None):
        told = read_saved(Path(folder))
        self.model = load(folder, llm_preset)
        meta = model_meta(name, told["revision"], self.model.result)
        size = {"embed_dim": self.model.width, "max_tokens": self.model.max_tokens}
        self.mteb_model_meta = ModelMeta(**meta | size)

    def encode(self, inputs: Any, *, batch_size: int | None = None, **others: Any) -> np.ndarray:
        """Embeddings `(texts, width)` float32.

        A text may be empty here, as some of MTEB's are.

        Args:
            inputs: batches that hold a list of texts under `text`.
            batch_size: texts that are computed at a time, at most.
            others: the task and the role of the texts, which change nothing here.
        """
        texts = [text for batch in inputs for text in batch["text"]]
        return self.model.encode_unchecked(texts, batch_size)

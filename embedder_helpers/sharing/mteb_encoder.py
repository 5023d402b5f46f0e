"""A saved embedder as a model of `mteb`, for `mteb.evaluate` on any of its text tasks.

Needs `mteb`, which brings torch: `pip install "embedder-gemma-roberta[mteb]"`. No other module
imports this one.
"""

from pathlib import Path
from typing import Any

import numpy as np

from embedder_helpers.errors import InputError
from embedder_helpers.models.architectures import load_embedder
from embedder_helpers.models.saving import read_manifest
from embedder_helpers.sharing.model_card import saved_result
from embedder_helpers.sharing.mteb_results import model_meta
from embedder_helpers.utils.files import as_path

try:
    from mteb.models import ModelMeta
    from mteb.models.abs_encoder import AbsEncoder
except ModuleNotFoundError:
    raise InputError("mteb is not installed: pip install 'embedder-gemma-roberta[mteb]'") from None


class MtebEncoder(AbsEncoder):
    """An `mteb` encoder with cosine similarity.

    Args:
        folder: folder of a saved embedder.
        name: name `org/model`, under which `mteb` stores its results.
        llm_preset: name, handle or folder of its Gemma, if it has moved.

    Raises:
        InputError: as `load_embedder` does.
    """

    def __init__(self, folder: str | Path, name: str, llm_preset: str | None = None):
        manifest = read_manifest(as_path(folder))
        self.model = load_embedder(folder, llm_preset)
        meta = model_meta(name, manifest.revision, saved_result(manifest.result))
        size = {"embed_dim": self.model.width, "max_tokens": self.model.max_tokens}
        self.mteb_model_meta = ModelMeta(**meta | size)

    def encode(self, inputs: Any, *, batch_size: int | None = None, **options: Any) -> np.ndarray:
        """Encode texts, which may be empty, as some of MTEB's are.

        Args:
            inputs: batches with a list of texts under `text`.
            batch_size: maximum number of texts per batch.
            options: the task and the role of the texts; they change nothing.

        Returns:
            Embeddings `(texts, width)` float32.

        Raises:
            InputError: as `Embedder.encode` does.
        """
        texts = [text for batch in inputs for text in batch["text"]]
        return self.model.encode(texts, batch_size, allow_empty=True)

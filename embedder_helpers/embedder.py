"""The three embedders behind one `encode(texts)`: hybrid, Gemma alone, RoBERTa alone.

Each works in two steps: `prepare` does what training never changes (token ids, or frozen Gemma's
states) and `embed` does the rest, so that training repeats only the second.
"""

from collections.abc import Sequence

import keras
import numpy as np
from keras import ops

from embedder_helpers import platform
from embedder_helpers.config import Experiment, InputError
from embedder_helpers.gemma import Gemma
from embedder_helpers.local import check_texts
from embedder_helpers.pooling import pool
from embedder_helpers.presets import Preset, find_presets
from embedder_helpers.projection import build_projection
from embedder_helpers.roberta import encode_embeddings, load_roberta
from embedder_helpers.tokens import Ragged, inference_batches, tokenise

ROBERTA_TOKENS = 4096  # tokens a batch when RoBERTa only encodes


class Embedder:
    """What the three kinds share.

    Attributes:
        gemma: the truncated Gemma; None for RoBERTa alone.
        model: the trained part, a Keras model `{"inputs", "mask"} -> (texts, width)`; None for
            Gemma alone.
        truncated: texts that were cut at `max_tokens` since the embedder was made.
    """

    gemma: Gemma | None
    model: keras.Model | None = None
    truncated: int = 0

    def prepare(self, texts: Sequence[str]) -> Ragged:
        """What training never changes: token ids, or Gemma's states."""
        raise NotImplementedError

    def embed(self, prepared: Ragged) -> np.ndarray:
        """Embeddings `(texts, width)` float32."""
        raise NotImplementedError

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """Embeddings `(texts, width)` float32, in the order of the texts.

        Raises:
            InputError: a text that is None, NaN, empty or not a string; names the rows.
        """
        if isinstance(texts, str):
            raise InputError("encode takes a list of texts: put the one text into a list")
        check_texts(texts, "encode")
        return self.embed(self.prepare(texts))


def build_embedder(experiment: Experiment, presets: dict[str, Preset] | None = None) -> Embedder:
    """The embedder of an Experiment, its pretrained weights loaded and nothing trained.

    Args:
        experiment: what to build.
        presets: what `find_presets` found, if it was called already.

    Raises:
        InputError: a preset cannot be used.
    """
    presets = presets or find_presets(experiment)
    keras.utils.set_random_seed(experiment.seed)
    gemma = None
    if "llm_preset" in presets:
        gemma = Gemma(
            presets["llm_preset"],
            experiment.llm_layers,
            experiment.layer_pooling,
            experiment.final_norm,
        )
    if experiment.kind == "gemma_only":
        return GemmaOnly(gemma, experiment)
    return WithRoberta(presets["slm_preset"], gemma, experiment)


class GemmaOnly(Embedder):
    """Text → Gemma's states → pool. Nothing is trained."""

    def __init__(self, gemma: Gemma, experiment: Experiment):
        self.gemma = gemma
        self.pooling = experiment.pooling
        self.max_tokens = experiment.max_tokens

    def prepare(self, texts: Sequence[str]) -> Ragged:
        """Token ids."""
        ids, truncated = self.gemma.tokenise(texts, self.max_tokens)
        self.truncated += int(truncated.sum())
        return ids

    def embed(self, prepared: Ragged) -> np.ndarray:
        """Embeddings; each batch is pooled at once, so no states are kept."""
        embeddings = np.empty((len(prepared), self.gemma.width), "float32")
        for rows, states, mask in self.gemma.walk(prepared):
            pooled = pool(states, mask, self.pooling)
            embeddings[rows] = ops.convert_to_numpy(pooled)[: len(rows)]
        return embeddings


class WithRoberta(Embedder):
    """Text → (Gemma's states → projection, or RoBERTa's own embeddings) → RoBERTa → pool."""

    def __init__(self, preset: Preset, gemma: Gemma | None, experiment: Experiment):
        # === Layers ===
        self.gemma = gemma
        roberta, self.tokenizer = load_roberta(preset)

        # === Functional model ===
        mask = keras.Input((None,), dtype="int32", name="mask")
        if gemma is None:
            inputs = keras.Input((None,), dtype="int32", name="inputs")
            embeddings = roberta.token_embedding(inputs)
        else:
            inputs = keras.Input((None, gemma.width), name="inputs")
            projection = build_projection(experiment.projection, gemma.width, preset.width)
            embeddings = projection(inputs)
        states = encode_embeddings(roberta, embeddings, mask)
        self.model = keras.Model(
            {"inputs": inputs, "mask": mask}, pool(states, mask, experiment.pooling)
        )

        # === Config ===
        self.width = preset.width
        self.max_tokens = experiment.max_tokens

    def prepare(self, texts: Sequence[str]) -> Ragged:
        """RoBERTa's token ids, or frozen Gemma's states."""
        if self.gemma is None:
            ids, truncated = tokenise(self.tokenizer, texts, self.max_tokens, end=True)
            prepared = ids
        else:
            ids, truncated = self.gemma.tokenise(texts, self.max_tokens)
            prepared = self.gemma.states(ids)
        self.truncated += int(truncated.sum())
        return prepared

    def embed(self, prepared: Ragged) -> np.ndarray:
        """Embeddings of the trained part as it stands; costs one pass over every token."""
        embeddings = np.empty((len(prepared), self.width), "float32")
        batches = inference_batches(prepared.lengths, ROBERTA_TOKENS, self.max_tokens)
        with platform.progress(len(prepared), "RoBERTa") as bar:
            for rows, length, texts in batches:
                values, mask = prepared.padded(rows, length, texts)
                output = self.model.predict_on_batch({"inputs": values, "mask": mask})
                embeddings[rows] = output[: len(rows)]
                bar.update(len(rows))
        return embeddings

"""The three embedders behind one `encode(texts)`: hybrid, Gemma alone, RoBERTa alone.

Text → `tokenise` → ids → `inputs` (frozen Gemma's states, or the ids themselves) → `embed`.
Training repeats only the last step; states may as well come from disk.
"""

from collections.abc import Sequence

import keras
import numpy as np
from keras import ops

from embedder_helpers import platform
from embedder_helpers.config import Experiment, InputError
from embedder_helpers.gemma import Depth, Gemma, depths
from embedder_helpers.local import check_texts
from embedder_helpers.pooling import LayerPooling, pool
from embedder_helpers.presets import Preset, find_presets
from embedder_helpers.projection import Ridge, aligned_pairs, build_projection, ridge, start_at
from embedder_helpers.roberta import encode_embeddings, load_roberta
from embedder_helpers.tokens import Ragged, Stacked, align, inference_batches, tokenise

EMBEDDING_TOKENS = 4096  # tokens a batch when nothing is trained
CHUNK = 2048  # texts whose states are held at a time


class Embedder:
    """What the three kinds share.

    Attributes:
        gemma: frozen Gemma; None for RoBERTa alone.
        depths: where its states are taken; empty for RoBERTa alone.
        model: `{"inputs", "mask"} -> (texts, width)`, what comes behind the states or the ids.
        width: of the embeddings.
        max_tokens: of a text that are read.
    """

    gemma: Gemma | None = None
    depths: tuple[Depth, ...] = ()
    model: keras.Model
    width: int
    max_tokens: int

    def tokenise(self, texts: Sequence[str]) -> tuple[Ragged, np.ndarray]:
        """Token ids, and `(texts,)` whether each text was cut at the length limit."""
        raise NotImplementedError

    def inputs(self, ids: Ragged) -> Ragged | Stacked:
        """What the model takes: Gemma's states in memory, or for RoBERTa alone the ids."""
        return self.gemma.states(ids, self.depths) if self.gemma else ids

    def embed(self, inputs: Ragged | Stacked) -> np.ndarray:
        """Embeddings `(texts, width)` float32 of the model as it stands."""
        embeddings = np.empty((len(inputs), self.width), "float32")
        work = self.forward_work(inputs.lengths)
        with platform.progress(len(inputs), "embedding", work=work) as bar:
            batches = inference_batches(inputs.lengths, EMBEDDING_TOKENS, self.max_tokens)
            for rows, length, texts in batches:
                values, mask = inputs.padded(rows, length, texts)
                output = self.model.predict_on_batch({"inputs": values, "mask": mask})
                embeddings[rows] = output[: len(rows)]
                bar.update(len(rows))
        return embeddings

    def forward_work(self, lengths: np.ndarray) -> float:
        """Operations, roughly, of one pass of the model over texts of these lengths."""
        raise NotImplementedError

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """Embeddings `(texts, width)` float32, in the order of the texts.

        Raises:
            InputError: a text that is None, NaN, empty or not a string; names the rows.
        """
        if isinstance(texts, str):
            raise InputError("encode takes a list of texts: put the one text into a list")
        check_texts(texts, "encode")
        embeddings = np.empty((len(texts), self.width), "float32")
        for start in range(0, len(texts), CHUNK):
            ids, _ = self.tokenise(texts[start : start + CHUNK])
            embeddings[start : start + CHUNK] = self.embed(self.inputs(ids))
        return embeddings


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
    if experiment.kind == "gemma_only":
        return GemmaOnly(experiment, presets["llm_preset"])
    return WithRoberta(experiment, presets["slm_preset"], presets.get("llm_preset"))


class GemmaOnly(Embedder):
    """Text → Gemma's states → pool. Nothing is trained."""

    def __init__(self, experiment: Experiment, preset: Preset):
        # === Layers ===
        self.gemma = Gemma(preset, experiment.stream_blocks)
        self.depths = depths(experiment, preset.blocks)

        # === Functional model ===
        inputs, states = _states_input(self.depths, preset.width, experiment.layer_pooling)
        mask = keras.Input((None,), dtype="int32", name="mask")
        pooled = pool(ops.cast(states, "float32"), mask, experiment.pooling)
        self.model = _model(inputs, mask, pooled)

        # === Config ===
        self.width = preset.width
        self.max_tokens = experiment.max_tokens

    def tokenise(self, texts: Sequence[str]) -> tuple[Ragged, np.ndarray]:
        """Gemma's token ids."""
        return self.gemma.tokenise(texts, self.max_tokens)

    def forward_work(self, lengths: np.ndarray) -> float:
        """Pooling costs next to nothing."""
        return 0.0


class WithRoberta(Embedder):
    """Text → (Gemma's states → projection, or RoBERTa's own embeddings) → RoBERTa → pool."""

    def __init__(self, experiment: Experiment, preset: Preset, llm_preset: Preset | None):
        # === Layers ===
        dtype = platform.training_dtype()
        roberta, self.tokenizer = load_roberta(preset, dtype)

        # === Functional model ===
        if llm_preset is None:
            inputs = keras.Input((None,), dtype="int32", name="inputs")
            embeddings = roberta.token_embedding(inputs)
        else:
            self.gemma = Gemma(llm_preset, experiment.stream_blocks)
            self.depths = depths(experiment, llm_preset.blocks)
            inputs, states = _states_input(self.depths, llm_preset.width, experiment.layer_pooling)
            # Raw states, kept in float32, may be too large for float16.
            projection = build_projection(
                experiment.projection,
                llm_preset.width,
                preset.width,
                dtype if self.depths[0].dtype == "float16" else "float32",
            )
            embeddings = projection(states)
            self.projection, self.token_embedding = projection, roberta.token_embedding
            self.layer_pooling = experiment.layer_pooling
        mask = keras.Input((None,), dtype="int32", name="mask")
        states = ops.cast(encode_embeddings(roberta, embeddings, mask), "float32")
        self.model = _model(inputs, mask, pool(states, mask, experiment.pooling))

        # === Config ===
        self.width, self.blocks = preset.width, preset.blocks
        self.max_tokens = experiment.max_tokens

    def tokenise(self, texts: Sequence[str]) -> tuple[Ragged, np.ndarray]:
        """RoBERTa's token ids, or Gemma's."""
        if self.gemma:
            return self.gemma.tokenise(texts, self.max_tokens)
        return tokenise(self.tokenizer, texts, self.max_tokens, end=True)

    def start_projection(
        self, texts: Sequence[str], ids: Ragged, states: Ragged | Stacked
    ) -> Ridge:
        """Starts the projection in closed form.

        Args:
            texts: training texts.
            ids: their Gemma token ids.
            states: their states at `depths`.
        """
        slm_ids, _ = tokenise(self.tokenizer, texts, self.max_tokens, end=True)
        places = align((self.gemma.tokenizer, ids), (self.tokenizer, slm_ids))
        table = ops.convert_to_numpy(self.token_embedding.embeddings)
        found = ridge(aligned_pairs(states, places, slm_ids, table, self.layer_pooling))
        start_at(self.projection, found)
        return found

    def forward_work(self, lengths: np.ndarray) -> float:
        """Of RoBERTa's blocks; the projection counts little."""
        return platform.forward_work(lengths.sum(), self.blocks, self.width)


def _states_input(
    depths: Sequence[Depth], width: int, layer_pooling: str
) -> tuple[keras.KerasTensor, keras.KerasTensor]:
    """The input for states, `(texts, tokens, width)` or with an axis of cutoffs; their pool."""
    shape = (None, width) if len(depths) == 1 else (None, len(depths), width)
    inputs = keras.Input(shape, dtype=depths[0].dtype, name="inputs")
    if len(depths) == 1:
        return inputs, inputs
    return inputs, LayerPooling(layer_pooling, name="layer_pooling")(inputs)


def _model(
    inputs: keras.KerasTensor, mask: keras.KerasTensor, embedding: keras.KerasTensor
) -> keras.Model:
    """A model that is not compiled by XLA: it would compile anew for every length and batch."""
    model = keras.Model({"inputs": inputs, "mask": mask}, embedding)
    model.jit_compile = False
    return model

"""The three embedders behind one `encode(texts)`: hybrid, Gemma alone, RoBERTa alone.

Text → `tokenise` → ids → `states` of frozen Gemma → `inputs`, what the model takes → `embed`.
Training repeats only the last step; states may as well come from disk.
"""

import functools
import operator
import random
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import keras
import numpy as np
from keras import ops

from embedder_helpers import platform
from embedder_helpers.config import Experiment, InputError
from embedder_helpers.fusion import Inputs, fuse, fused
from embedder_helpers.gemma import Depth, Gemma, depths
from embedder_helpers.head import Head
from embedder_helpers.local import check_texts, listed
from embedder_helpers.pooling import LayerPooling, pool
from embedder_helpers.presets import ROLES, Preset, find_presets
from embedder_helpers.projection import (
    Ridge,
    Standardise,
    aligned_pairs,
    build_projection,
    ridge,
    start_at,
)
from embedder_helpers.roberta import encode_embeddings, load_roberta
from embedder_helpers.tokens import (
    Ragged,
    Stacked,
    Tokens,
    align,
    inference_batches,
    tokenise,
)

if TYPE_CHECKING:  # results come later on a text's way
    from embedder_helpers.result import Result

EMBEDDING_TOKENS = 4096  # tokens a batch when nothing is trained
CHUNK = 2048  # texts whose states are held at a time


class Embedder:
    """What the three kinds share.

    Attributes:
        experiment: that it was built from.
        presets: its pretrained models, by key of the Experiment.
        head: the classifier that training left; None where there is none.
        result: what it scored, where it was loaded with that.
        gemma: frozen Gemma; None for RoBERTa alone.
        roberta: the backbone, as it is trained; None for Gemma alone.
        depths: where its states are taken; empty for RoBERTa alone.
        model: `{"inputs", "mask", …} -> (texts, width)`, what comes behind the states or the ids.
        width: of the embeddings.
        max_tokens: of a text that are read.
        longest: positions of the model's longest input.
    """

    experiment: Experiment
    presets: dict[str, Preset]
    head: Head | None = None
    result: "Result | None" = None
    gemma: Gemma | None = None
    roberta: Any = None
    depths: tuple[Depth, ...] = ()
    model: keras.Model
    width: int
    max_tokens: int
    longest: int

    def tokenise(self, texts: Sequence[str]) -> Tokens:
        """Token ids of each model that reads the text itself."""
        raise NotImplementedError

    def states(self, tokens: Tokens, batch_size: int | None = None) -> Ragged | Stacked | None:
        """Gemma's states, in memory; None for RoBERTa alone."""
        return self.gemma.states(tokens.gemma, self.depths, batch_size) if self.gemma else None

    def inputs(self, tokens: Tokens, states: Ragged | Stacked | None) -> Inputs:
        """What the model takes."""
        raise NotImplementedError

    def embed(self, inputs: Inputs, batch_size: int | None = None) -> np.ndarray:
        """Embeddings `(texts, width)` float32 of the model as it stands."""
        embeddings = np.empty((len(inputs), self.width), "float32")
        work = self.forward_work(inputs.lengths)
        with platform.progress(len(inputs), "embedding", work=work) as bar:
            batches = inference_batches(inputs.lengths, EMBEDDING_TOKENS, self.longest, batch_size)
            for rows, length, texts in batches:
                output = self.model.predict_on_batch(inputs.batch(rows, length, texts))
                embeddings[rows] = output[: len(rows)]
                bar.update(len(rows))
        return embeddings

    def forward_work(self, lengths: np.ndarray) -> float:
        """Operations, roughly, of one pass of the model over texts of these lengths."""
        raise NotImplementedError

    def encode(
        self,
        texts: str | Sequence[str],
        batch_size: int | None = None,
        show_progress_bar: bool = True,
        normalize_embeddings: bool = False,
        convert_to_numpy: bool = True,
    ) -> Any:
        """Embeddings `(texts, width)` float32, in the order of the texts; `(width,)` of one text.

        The arguments that sentence-transformers' `encode` has too mean the same here.

        Args:
            texts: a list of texts, or one text.
            batch_size: texts that are computed at a time, at most; None: as many as there are of
                one length in some thousand tokens, which is fastest.
            show_progress_bar: show one where it takes longer than two seconds.
            normalize_embeddings: give them length 1, so that a product is their cosine.
            convert_to_numpy: a NumPy array; False: a tensor of Keras's backend.

        Raises:
            InputError: a text that is None, NaN, empty or not a string (names the rows); a
                table in the place of texts; a `batch_size` that is no whole number above 0.
        """
        if isinstance(texts, str):
            given = batch_size, show_progress_bar, normalize_embeddings, convert_to_numpy
            return self.encode([texts], *given)[0]
        texts, batch_size = listed(texts), _whole(batch_size)
        check_texts(texts, "encode")
        with platform.bars_shown(show_progress_bar):
            embeddings = self.encode_unchecked(texts, batch_size)
        if normalize_embeddings:
            lengths = np.linalg.norm(embeddings, axis=-1, keepdims=True)
            embeddings /= np.maximum(lengths, np.finfo("float32").tiny)
        return embeddings if convert_to_numpy else ops.convert_to_tensor(embeddings)

    def encode_unchecked(self, texts: Sequence[str], batch_size: int | None = None) -> np.ndarray:
        """`encode` for texts that may be empty, as some of MTEB's are."""
        embeddings = np.empty((len(texts), self.width), "float32")
        for start in range(0, len(texts), CHUNK):
            tokens = self.tokenise(texts[start : start + CHUNK])
            inputs = self.inputs(tokens, self.states(tokens, batch_size))
            embeddings[start : start + CHUNK] = self.embed(inputs, batch_size)
        return embeddings

    def save(self, folder: str | Path, with_gemma: bool = False) -> Path:
        """Saves it for `load(folder)`, as `saved.save` does."""
        from embedder_helpers import saved  # which builds embedders

        return saved.save(self, folder, with_gemma)


def _whole(batch_size: Any) -> int | None:
    """A number above 0, NumPy's too, or None."""
    if batch_size is None:
        return None
    try:
        if not isinstance(batch_size, bool) and operator.index(batch_size) > 0:
            return operator.index(batch_size)
    except TypeError:
        pass
    raise InputError(f"batch_size is {batch_size!r}, but must be a whole number above 0")


def build_embedder(experiment: Experiment, presets: dict[str, Preset] | None = None) -> Embedder:
    """The embedder of an Experiment, its pretrained weights loaded and nothing trained.

    Args:
        experiment: what to build.
        presets: what `find_presets` found, if it was called already.

    Raises:
        InputError: a preset cannot be used.
    """
    presets = presets or find_presets(experiment)
    presets = {role: presets[role] for role in ROLES[experiment.kind]}
    # Keras draws the seeds of weights and dropout from here. Its own set_random_seed would reset
    # TensorFlow too, which in 2.20 takes the tables of all tokenizers that are there.
    random.seed(experiment.seed)
    kinds = {"gemma_only": GemmaOnly, "roberta_only": RobertaOnly, "hybrid": Hybrid}
    embedder = kinds[experiment.kind](experiment, **presets)
    embedder.experiment, embedder.presets = experiment, presets
    return embedder


class GemmaOnly(Embedder):
    """Text → Gemma's states → pool. Nothing is trained."""

    def __init__(self, experiment: Experiment, llm_preset: Preset):
        # === Layers ===
        self.gemma = Gemma(llm_preset, experiment.stream_blocks)
        self.depths = depths(experiment, llm_preset.blocks)

        # === Functional model ===
        inputs = _states_input(self.depths, llm_preset.width)
        states = _layers_pooled(inputs, experiment.layer_pooling)
        mask = _tokens_input("mask")
        pooled = pool(ops.cast(states, "float32"), mask, experiment.pooling)
        self.model = _model({"inputs": inputs, "mask": mask}, pooled)

        # === Config ===
        self.width = llm_preset.width
        self.max_tokens = self.longest = experiment.max_tokens

    def tokenise(self, texts: Sequence[str]) -> Tokens:
        """Gemma's token ids."""
        ids, truncated = self.gemma.tokenise(texts, self.max_tokens)
        return Tokens(ids, None, truncated)

    def inputs(self, tokens: Tokens, states: Ragged | Stacked) -> Ragged | Stacked:
        """The states."""
        return states

    def forward_work(self, lengths: np.ndarray) -> float:
        """Pooling costs next to nothing."""
        return 0.0


class RobertaOnly(Embedder):
    """Text → RoBERTa's own embeddings → RoBERTa → pool.

    Args:
        experiment: pooling and length.
        slm_preset: to load, unless `loaded`, backbone and tokenizer, is given.
    """

    def __init__(self, experiment: Experiment, slm_preset: Preset, loaded: Any = None):
        # === Layers ===
        loaded = loaded or load_roberta(slm_preset, platform.training_dtype())
        self.roberta, self.tokenizer = loaded

        # === Functional model ===
        tokens, mask = _tokens_input("inputs"), _tokens_input("mask")
        states = encode_embeddings(self.roberta, self.roberta.token_embedding(tokens), mask)
        pooled = pool(ops.cast(states, "float32"), mask, experiment.pooling)
        self.model = _model({"inputs": tokens, "mask": mask}, pooled)

        # === Config ===
        self.width, self.blocks = slm_preset.width, slm_preset.blocks
        self.max_tokens = self.longest = experiment.max_tokens

    def tokenise(self, texts: Sequence[str]) -> Tokens:
        """RoBERTa's token ids."""
        return Tokens(None, *tokenise(self.tokenizer, texts, self.max_tokens, end=True))

    def inputs(self, tokens: Tokens, states: None = None) -> Ragged:
        """The ids."""
        return tokens.roberta

    def forward_work(self, lengths: np.ndarray) -> float:
        """Of RoBERTa's blocks."""
        return platform.forward_work(lengths.sum(), self.blocks, self.width)


class Hybrid(RobertaOnly):
    """Text → Gemma's states → projection → fused with RoBERTa's embeddings → RoBERTa → pool."""

    def __init__(self, experiment: Experiment, slm_preset: Preset, llm_preset: Preset):
        # === Layers ===
        dtype = platform.training_dtype()
        self.gemma = Gemma(llm_preset, experiment.stream_blocks)
        self.depths = depths(experiment, llm_preset.blocks)
        self.roberta, self.tokenizer = load_roberta(slm_preset, dtype)
        self.standard = Standardise(dtype="float32", name="standardise")
        self.projection = build_projection(experiment, llm_preset.width, slm_preset.width, dtype)

        # === Functional model ===
        inputs = _states_input(self.depths, llm_preset.width)
        states = _layers_pooled(self.standard(inputs), experiment.layer_pooling)
        self.reader = keras.Model(inputs, states)
        states = keras.layers.Dropout(experiment.state_dropout, name="state_dropout")(states)
        embeddings = self.projection(states)
        mask, takes = _tokens_input("mask"), {"inputs": inputs}
        if experiment.fusion != "replace":
            takes["tokens"] = _tokens_input("tokens")
            own = self.roberta.token_embedding(ops.maximum(takes["tokens"], 0))
            embeddings = fuse(experiment.fusion, embeddings, own, takes["tokens"])
        states = ops.cast(encode_embeddings(self.roberta, embeddings, mask), "float32")
        pooled = pool(states, mask, experiment.pooling)
        self.model = _model(takes | {"mask": mask}, pooled)

        # === Config ===
        self.fusion = experiment.fusion
        self.width, self.blocks = slm_preset.width, slm_preset.blocks
        self.max_tokens = experiment.max_tokens
        self.longest = self.max_tokens * (2 if self.fusion == "prepend" else 1)

    def tokenise(self, texts: Sequence[str]) -> Tokens:
        """Gemma's token ids, and RoBERTa's where its own embeddings are read."""
        ids, truncated = self.gemma.tokenise(texts, self.max_tokens)
        if self.fusion == "replace":
            return Tokens(ids, None, truncated)
        _, own, too = super().tokenise(texts)
        return Tokens(ids, own, truncated | too)

    def inputs(self, tokens: Tokens, states: Ragged | Stacked) -> Inputs:
        """The states, beside RoBERTa's own tokens where these are read."""
        if self.fusion == "replace":
            return states
        return fused(self.fusion, states, self._places(tokens), tokens.roberta)

    @functools.cached_property
    def without_gemma(self) -> RobertaOnly:
        """The same RoBERTa, as it stands, on the text's own token embeddings."""
        loaded = self.roberta, self.tokenizer
        return RobertaOnly(self.experiment, self.presets["slm_preset"], loaded)

    def start_projection(
        self, texts: Sequence[str], tokens: Tokens, states: Ragged | Stacked
    ) -> Ridge:
        """Starts the projection in closed form.

        Args:
            texts: training texts.
            tokens: their ids.
            states: their states at `depths`.
        """
        if tokens.roberta is None:
            tokens = tokens._replace(roberta=super().tokenise(texts).roberta)
        table = ops.convert_to_numpy(self.roberta.token_embedding.embeddings)

        def read(values):
            return ops.convert_to_numpy(self.reader(values[None]))[0]

        found = ridge(aligned_pairs(states, self._places(tokens), tokens.roberta, table, read))
        start_at(self.projection, found)
        return found

    def _places(self, tokens: Tokens) -> Ragged:
        return align((self.gemma.tokenizer, tokens.gemma), (self.tokenizer, tokens.roberta))


def _tokens_input(name: str) -> keras.KerasTensor:
    return keras.Input((None,), dtype="int32", name=name)


def _states_input(depths: Sequence[Depth], width: int) -> keras.KerasTensor:
    """The input for states, `(texts, tokens, width)` or with an axis of cutoffs before the last."""
    shape = (None, width) if len(depths) == 1 else (None, len(depths), width)
    return keras.Input(shape, dtype=depths[0].dtype, name="inputs")


def _layers_pooled(states: keras.KerasTensor, layer_pooling: str) -> keras.KerasTensor:
    """States without the axis of cutoffs, if they have one."""
    if len(states.shape) == 3:
        return states
    return LayerPooling(layer_pooling, name="layer_pooling")(states)


def _model(takes: dict[str, keras.KerasTensor], embedding: keras.KerasTensor) -> keras.Model:
    """A model that is not compiled by XLA: it would compile anew for every length and batch."""
    model = keras.Model(takes, embedding)
    model.jit_compile = False
    return model

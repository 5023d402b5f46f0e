"""The three architectures behind one `encode(texts)`: hybrid, Gemma alone, RoBERTa alone.

Built from an Experiment with pretrained weights, or loaded from a saved embedder's folder.
"""

import functools
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pandas as pd
from keras import ops

from embedder_helpers.config import Experiment, make_experiment
from embedder_helpers.models import saving
from embedder_helpers.models.batching import ModelInputs, MultiLayerStates, RaggedArray, fuse_inputs
from embedder_helpers.models.embedder import Embedder
from embedder_helpers.models.gemma import Gemma, HiddenStateSpec, hidden_state_specs
from embedder_helpers.models.layers import LayerPooling, Standardize, fuse_embeddings, pool
from embedder_helpers.models.presets import ROLES, Preset, find_presets
from embedder_helpers.models.projection import (
    RidgeMap,
    aligned_pairs,
    build_projection,
    fit_ridge,
    set_projection,
)
from embedder_helpers.models.roberta import encode_embeddings, load_roberta
from embedder_helpers.models.tokenization import TokenizedTexts, align_tokens, tokenize
from embedder_helpers.utils import environment, progress


def build_embedder(experiment: Experiment, presets: dict[str, Preset] | None = None) -> Embedder:
    """Build an Experiment's embedder with pretrained weights, before any training.

    Args:
        experiment: settings of the embedder.
        presets: result of `find_presets`, if it was called already.

    Raises:
        InputError: a preset cannot be used.
    """
    presets = presets or find_presets(experiment)
    presets = {role: presets[role] for role in ROLES[experiment.kind]}
    # Keras draws the seeds of weights and dropout from here. Its own set_random_seed would reset
    # TensorFlow too, which in 2.20 invalidates the tables of all existing tokenizers.
    random.seed(experiment.seed)
    kinds = {"gemma_only": GemmaOnly, "roberta_only": RobertaOnly, "hybrid": Hybrid}
    embedder = kinds[experiment.kind](experiment, **presets)
    embedder.experiment, embedder.presets = experiment, presets
    return embedder


def load_embedder(
    folder: str | Path, llm_preset: str | None = None, stream_blocks: bool = False
) -> Embedder:
    """Load a saved embedder; on the same machine its embeddings are the same bit for bit.

    Args:
        folder: folder written by `Embedder.save`, or by an experiment with `save_embedder`.
        llm_preset: name, handle or folder of its Gemma, if neither in the folder nor where it was
            when saved.
        stream_blocks: keep only one Gemma layer at a time in memory.

    Raises:
        InputError: not a saved embedder, or a damaged one; its Gemma cannot be found, or is a
            different one.
    """
    folder = Path(folder).resolve()
    saving.restore_interrupted(folder)
    manifest = saving.read_manifest(folder)
    with saving.report_damage(folder):
        experiment = make_experiment(
            manifest.experiment | {"stream_blocks": stream_blocks},
            where=str(folder / saving.MANIFEST_FILE),
        )
        presets = {
            role: saving.saved_preset(role, folder, manifest, llm_preset)
            for role in ROLES[experiment.kind]
        }
    embedder = build_embedder(experiment, presets)
    with saving.report_damage(folder):
        embedder.load_weights(saving.read_arrays(folder), manifest.classes)
    embedder.result = manifest.result
    return embedder


class GemmaOnly(Embedder):
    """Text → Gemma's hidden states → pooling. Nothing is trained.

    Args:
        experiment: settings: cutoffs, poolings and length.
        llm_preset: preset of Gemma.
    """

    def __init__(self, experiment: Experiment, llm_preset: Preset):
        # === Layers ===
        self.gemma = Gemma(llm_preset, experiment.stream_blocks)
        self.specs = hidden_state_specs(experiment, llm_preset.num_layers)

        # === Functional Model ===
        inputs = _states_input(self.specs, llm_preset.width)
        states = _pool_layers(inputs, experiment.layer_pooling)
        mask = _tokens_input("mask")
        pooled = pool(ops.cast(states, "float32"), mask, experiment.pooling)
        self.model = _uncompiled_model({"inputs": inputs, "mask": mask}, pooled)

        # === Config ===
        self.width = llm_preset.width
        self.max_tokens = self.longest = experiment.max_tokens

    def tokenize(self, texts: Sequence[str]) -> TokenizedTexts:
        """Tokenize for Gemma."""
        ids, truncated = self.gemma.tokenize(texts, self.max_tokens)
        return TokenizedTexts(ids, None, truncated)

    def prepare_inputs(
        self, tokens: TokenizedTexts, states: RaggedArray | MultiLayerStates
    ) -> RaggedArray | MultiLayerStates:
        """The hidden states as they are."""
        return states

    def forward_flops(self, lengths: np.ndarray) -> float:
        """Pooling costs next to nothing."""
        return 0.0


class RobertaOnly(Embedder):
    """Text → RoBERTa's token embeddings → RoBERTa → pooling.

    Args:
        experiment: settings: pooling and length.
        slm_preset: preset of RoBERTa.
        loaded: backbone and tokenizer, to share those of another embedder; None: load them.
    """

    def __init__(self, experiment: Experiment, slm_preset: Preset, loaded: Any = None):
        # === Layers ===
        loaded = loaded or load_roberta(slm_preset, environment.training_dtype())
        self.roberta, self.tokenizer = loaded

        # === Functional Model ===
        tokens, mask = _tokens_input("inputs"), _tokens_input("mask")
        states = encode_embeddings(self.roberta, self.roberta.token_embedding(tokens), mask)
        pooled = pool(ops.cast(states, "float32"), mask, experiment.pooling)
        self.model = _uncompiled_model({"inputs": tokens, "mask": mask}, pooled)

        # === Config ===
        self.width, self.num_layers = slm_preset.width, slm_preset.num_layers
        self.max_tokens = self.longest = experiment.max_tokens

    def tokenize(self, texts: Sequence[str]) -> TokenizedTexts:
        """Tokenize for RoBERTa."""
        return TokenizedTexts(None, *tokenize(self.tokenizer, texts, self.max_tokens, end=True))

    def prepare_inputs(self, tokens: TokenizedTexts, states: None = None) -> RaggedArray:
        """The token ids as they are."""
        return tokens.roberta

    def forward_flops(self, lengths: np.ndarray) -> float:
        """Operations of RoBERTa's layers."""
        return progress.forward_flops(lengths.sum(), self.num_layers, self.width)


class Hybrid(RobertaOnly):
    """Text → Gemma's hidden states → projection → fusion with token embeddings → RoBERTa → pooling.

    Args:
        experiment: settings: cutoffs, poolings, fusion, projection and length.
        slm_preset: preset of RoBERTa.
        llm_preset: preset of Gemma.
    """

    def __init__(self, experiment: Experiment, slm_preset: Preset, llm_preset: Preset):
        # === Layers ===
        dtype = environment.training_dtype()
        self.gemma = Gemma(llm_preset, experiment.stream_blocks)
        self.specs = hidden_state_specs(experiment, llm_preset.num_layers)
        self.roberta, self.tokenizer = load_roberta(slm_preset, dtype)
        self.standardize = Standardize(dtype="float32", name="standardise")
        self.projection = build_projection(experiment, llm_preset.width, slm_preset.width, dtype)

        # === Functional Model ===
        inputs = _states_input(self.specs, llm_preset.width)
        states = _pool_layers(self.standardize(inputs), experiment.layer_pooling)
        self.projection_input = keras.Model(inputs, states)
        states = keras.layers.Dropout(experiment.state_dropout, name="state_dropout")(states)
        embeddings = self.projection(states)
        mask, model_inputs = _tokens_input("mask"), {"inputs": inputs}
        if experiment.fusion != "replace":
            model_inputs["tokens"] = tokens = _tokens_input("tokens")
            own = self.roberta.token_embedding(ops.maximum(tokens, 0))
            embeddings = fuse_embeddings(experiment.fusion, embeddings, own, tokens)
        states = ops.cast(encode_embeddings(self.roberta, embeddings, mask), "float32")
        pooled = pool(states, mask, experiment.pooling)
        self.model = _uncompiled_model(model_inputs | {"mask": mask}, pooled)

        # === Config ===
        self.fusion = experiment.fusion
        self.width, self.num_layers = slm_preset.width, slm_preset.num_layers
        self.max_tokens = experiment.max_tokens
        self.longest = self.max_tokens * (2 if self.fusion == "prepend" else 1)

    def tokenize(self, texts: Sequence[str]) -> TokenizedTexts:
        """Tokenize for Gemma, and for RoBERTa where its own embeddings are read."""
        ids, truncated = self.gemma.tokenize(texts, self.max_tokens)
        if self.fusion == "replace":
            return TokenizedTexts(ids, None, truncated)
        _, own_ids, own_truncated = super().tokenize(texts)
        return TokenizedTexts(ids, own_ids, truncated | own_truncated)

    def prepare_inputs(
        self, tokens: TokenizedTexts, states: RaggedArray | MultiLayerStates
    ) -> ModelInputs:
        """The hidden states, aligned with RoBERTa's own tokens where these are read."""
        if self.fusion == "replace":
            return states
        return fuse_inputs(self.fusion, states, self._align(tokens), tokens.roberta)

    @functools.cached_property
    def without_gemma(self) -> RobertaOnly:
        """The same fine-tuned RoBERTa on the text's own token embeddings."""
        loaded = self.roberta, self.tokenizer
        return RobertaOnly(self.experiment, self.presets["slm_preset"], loaded)

    def predict(self, texts: str | Sequence[str]) -> pd.DataFrame:
        """Classify texts with the head, and show what Gemma changed.

        Args:
            texts: a list of texts, or a single text.

        Returns:
            The columns of `Embedder.predict`; `label_without_gemma`, the label of the same RoBERTa
            and head for the text's own token embeddings; and `moved_by_gemma`, the total variation
            distance between the two class distributions, from 0 to 1. Costs one more forward pass
            of RoBERTa.

        Raises:
            InputError: there is no head; an invalid text.
        """
        table = super().predict(texts)
        with_gemma = table[[f"p({label})" for label in self.head.classes]].to_numpy()
        without = self.head.probabilities(self.without_gemma.encode(table["text"].tolist()))
        table["label_without_gemma"] = self.head.classes[without.argmax(-1)]
        table["moved_by_gemma"] = np.abs(with_gemma - without).sum(-1) / 2
        return table

    def initialize_projection(
        self, texts: Sequence[str], tokens: TokenizedTexts, states: RaggedArray | MultiLayerStates
    ) -> RidgeMap:
        """Initialize the projection in closed form; see `projection.fit_ridge`.

        Args:
            texts: training texts.
            tokens: token ids of the texts.
            states: hidden states of the texts.

        Returns:
            The map, with the variance that it explains.
        """
        if tokens.roberta is None:
            tokens = tokens._replace(roberta=super().tokenize(texts).roberta)
        table = ops.convert_to_numpy(self.roberta.token_embedding.embeddings)

        def transform(values):
            return ops.convert_to_numpy(self.projection_input(values[None]))[0]

        pairs = aligned_pairs(states, self._align(tokens), tokens.roberta, table, transform)
        ridge_map = fit_ridge(pairs)
        set_projection(self.projection, ridge_map)
        return ridge_map

    def _align(self, tokens: TokenizedTexts) -> RaggedArray:
        return align_tokens((self.gemma.tokenizer, tokens.gemma), (self.tokenizer, tokens.roberta))


def _tokens_input(name: str) -> keras.KerasTensor:
    return keras.Input((None,), dtype="int32", name=name)


def _states_input(specs: Sequence[HiddenStateSpec], width: int) -> keras.KerasTensor:
    """Input `(texts, tokens, width)`, or `(texts, tokens, cutoffs, width)` for several cutoffs."""
    shape = (None, width) if len(specs) == 1 else (None, len(specs), width)
    return keras.Input(shape, dtype=specs[0].dtype, name="inputs")


def _pool_layers(states: keras.KerasTensor, layer_pooling: str) -> keras.KerasTensor:
    """Hidden states without the axis of cutoffs, if they have one."""
    if len(states.shape) == 3:
        return states
    return LayerPooling(layer_pooling, name="layer_pooling")(states)


def _uncompiled_model(
    inputs: dict[str, keras.KerasTensor], embedding: keras.KerasTensor
) -> keras.Model:
    """A model that XLA does not compile: it would recompile for every length and batch size."""
    model = keras.Model(inputs, embedding)
    model.jit_compile = False
    return model

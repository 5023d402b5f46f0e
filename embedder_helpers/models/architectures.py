"""The three architectures behind one `encode(texts)`: hybrid, Gemma alone, RoBERTa alone.

Built from an Experiment with pretrained weights, or loaded from a saved embedder's folder. Ready
encoders, which are scored beside them, are left to `encoders`.
"""

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pandas as pd
from keras import ops

from embedder_helpers.config import (
    BEFORE_SETTING_EXISTED,
    FROZEN,
    Experiment,
    make_experiment,
)
from embedder_helpers.errors import InputError
from embedder_helpers.models import saving
from embedder_helpers.models.batching import (
    EMPTY,
    ModelInputs,
    MultiLayerStates,
    RaggedArray,
    fuse_inputs,
)
from embedder_helpers.models.embedder import Embedder
from embedder_helpers.models.encoders import build_encoder
from embedder_helpers.models.gemma import Gemma, hidden_state_specs
from embedder_helpers.models.layers import (
    FUSION_FUNCTIONS,
    NEW_LAYERS,
    LayerPooling,
    Standardize,
    fuse_embeddings,
    fuse_late,
    pool,
)
from embedder_helpers.models.manifest import CHEAP_FOLDER
from embedder_helpers.models.presets import ROLES, Preset, find_presets
from embedder_helpers.models.projection import (
    RidgeMap,
    aligned_pairs,
    build_projection,
    fit_ridge,
    set_projection,
)
from embedder_helpers.models.roberta import encode_embeddings, load_roberta
from embedder_helpers.models.text_model import TextModel, tokens_input
from embedder_helpers.models.tokenization import TokenizedTexts, align_tokens, tokenize
from embedder_helpers.utils import environment, progress
from embedder_helpers.utils.files import as_path
from embedder_helpers.utils.keras_state import own_keras_state
from embedder_helpers.utils.replacing import finish_interrupted


@own_keras_state()
def build_embedder(experiment: Experiment, presets: dict[str, Preset] | None = None) -> Embedder:
    """Build an Experiment's embedder with pretrained weights, before any training.

    Args:
        experiment: settings of the embedder.
        presets: result of `find_presets`, if it was called already.

    Raises:
        InputError: a preset cannot be used.
    """
    presets = presets or find_presets(experiment)
    kinds = {
        "gemma_only": GemmaOnly,
        "roberta_only": RobertaOnly,
        "hybrid": Hybrid,
        "encoder_only": build_encoder,
    }
    presets = {role: presets[role] for role in ROLES[experiment.kind]}
    return kinds[experiment.kind](experiment, presets)


def architecture(experiment: Experiment, presets: dict[str, Preset]) -> tuple[Any, ...]:
    """What determines an embedder's Keras models and pretrained weights.

    Embedders that have it in common differ in what `Embedder.prepare` and training set.
    """
    if experiment.kind in FROZEN:
        return (experiment.kind,)
    roberta = presets["slm_preset"].fingerprint, environment.training_dtype()
    common = experiment.kind, *roberta, experiment.pooling
    if experiment.kind == "roberta_only":
        return common
    specs = hidden_state_specs(experiment, presets["llm_preset"].num_layers)
    count = 1 if experiment.selects_layer() else len(specs)
    states = presets["llm_preset"].width, count, specs[0].dtype, experiment.layer_pooling
    fusion = experiment.fusion, FUSION_FUNCTIONS.get(experiment.fusion)
    projection = experiment.projection, experiment.projection_init(), experiment.state_dropout
    return *common, *states, *fusion, *projection, experiment.late_fusion


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
    folder = as_path(folder).resolve()
    finish_interrupted(folder)
    manifest = saving.read_manifest(folder)
    experiment = make_experiment(
        {**BEFORE_SETTING_EXISTED, **manifest.experiment, "stream_blocks": stream_blocks},
        where=str(folder / saving.MANIFEST_FILE),
    )
    presets = {
        role: saving.saved_preset(role, folder, manifest, llm_preset)
        for role in ROLES[experiment.kind]
    }
    embedder = build_embedder(experiment, presets)
    if embedder.roberta is not None and embedder.longest > presets["slm_preset"].positions:
        raise InputError(
            f"{folder / saving.MANIFEST_FILE} is damaged (max_tokens is {experiment.max_tokens}, "
            "more than its RoBERTa has positions for): copy the whole folder again"
        )
    shapes = embedder.array_shapes(len(manifest.classes or ()))
    embedder.load_weights(saving.read_arrays(folder, shapes), manifest.classes)
    embedder.result = manifest.result
    if manifest.cheap_temperature is not None:
        embedder.attach(load_embedder(folder / CHEAP_FOLDER), manifest.cheap_temperature)
    return embedder


class GemmaOnly(Embedder):
    """Text → Gemma's hidden states → pooling. Nothing is trained.

    Args:
        experiment: settings: cutoffs, poolings and length.
        presets: Gemma's, by its setting.
    """

    def __init__(self, experiment: Experiment, presets: dict[str, Preset]):
        # === Layers ===
        preset = presets["llm_preset"]
        self.gemma = Gemma(preset, experiment.stream_blocks, experiment.llm_dtype)
        self.specs = hidden_state_specs(experiment, preset.num_layers)

        # === Functional Model ===
        states = preset.width, len(self.specs), self.specs[0].dtype
        self.model = _pooling_model(*states, experiment.layer_pooling, experiment.pooling)

        # === Config ===
        self.width = preset.width
        self.prepare(experiment, presets)

    def tokenize(self, texts: Sequence[str]) -> TokenizedTexts:
        """Tokenize for Gemma."""
        ids, truncated = self.gemma.tokenize(texts, self.max_tokens)
        return TokenizedTexts(texts, ids, None, truncated)

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
        presets: RoBERTa's, by its setting.
        loaded: backbone and tokenizer, to share those of another embedder; None: load them.
    """

    def __init__(self, experiment: Experiment, presets: dict[str, Preset], loaded: Any = None):
        # === Layers ===
        preset = presets["slm_preset"]
        self.roberta, self.tokenizer = loaded or load_roberta(preset, environment.training_dtype())

        # === Functional Model ===
        tokens, mask = tokens_input("inputs"), tokens_input("mask")
        states = encode_embeddings(self.roberta, self.roberta.token_embedding(tokens), mask)
        pooled = pool(ops.cast(states, "float32"), mask, experiment.pooling)
        self.model = TextModel({"inputs": tokens, "mask": mask}, pooled)

        # === Config ===
        self.width, self.num_layers = preset.width, preset.num_layers
        self.prepare(experiment, presets)

    def tokenize(self, texts: Sequence[str]) -> TokenizedTexts:
        """Tokenize for RoBERTa."""
        ids, truncated = tokenize(self.tokenizer, texts, self.max_tokens, end=True)
        return TokenizedTexts(texts, None, ids, truncated)

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
        presets: both models', by their settings.
    """

    def __init__(self, experiment: Experiment, presets: dict[str, Preset]):
        # === Layers ===
        dtype = environment.training_dtype()
        llm_preset, slm_preset = presets["llm_preset"], presets["slm_preset"]
        specs = hidden_state_specs(experiment, llm_preset.num_layers)
        self.roberta, self.tokenizer = load_roberta(slm_preset, dtype)
        self.standardize = Standardize(dtype="float32", name="standardise")
        self.projection = build_projection(experiment, llm_preset.width, slm_preset.width, dtype)

        # === Functional Model ===
        inputs = _states_input(llm_preset.width, len(specs), specs[0].dtype)
        states = _pool_layers(self.standardize(inputs), experiment.layer_pooling)
        self.projection_input = keras.Model(inputs, states)
        states = keras.layers.Dropout(experiment.state_dropout, name="state_dropout")(states)
        embeddings = self.projection(states)
        mask, model_inputs = tokens_input("mask"), {"inputs": inputs}
        states_mask = mask
        if experiment.fusion != "replace":
            model_inputs["tokens"] = tokens = tokens_input("tokens")
            own = self.roberta.token_embedding(ops.maximum(tokens, 0))
            embeddings = fuse_embeddings(experiment.fusion, embeddings, own, tokens)
        if experiment.fusion == "prepend":
            states_mask = mask * ops.cast(ops.equal(tokens, EMPTY), mask.dtype)
        last_states = ops.cast(encode_embeddings(self.roberta, embeddings, mask), "float32")
        pooled = pool(last_states, mask, experiment.pooling)
        if experiment.late_fusion:
            pooled = fuse_late(pooled, states, states_mask, slm_preset.width)
        self.model = TextModel(model_inputs | {"mask": mask}, pooled)
        self._check_weights(experiment.fusion)

        # === Config ===
        self.fusion = experiment.fusion
        self.width = slm_preset.width * (2 if experiment.late_fusion else 1)
        self.num_layers = slm_preset.num_layers
        self.prepare(experiment, presets)

    def prepare(self, experiment: Experiment, presets: dict[str, Preset]) -> None:
        """Set also Gemma, which differs between embedders of one architecture, and its cutoffs."""
        super().prepare(experiment, presets)
        for cached in ("without_gemma", "after_standardizing"):
            self.__dict__.pop(cached, None)
        preset = presets["llm_preset"]
        settings = preset, experiment.stream_blocks, experiment.llm_dtype
        if not self.gemma or self.gemma.settings != settings:
            self.gemma = Gemma(*settings)
        self.specs = hidden_state_specs(experiment, preset.num_layers)
        self.longest = self.max_tokens * (2 if self.fusion == "prepend" else 1)

    def _check_weights(self, fusion: str) -> None:
        """Raises InputError if a fusion has weights that would be neither initialized nor saved."""
        known = {id(weight) for weight in self.roberta.weights}
        for layer in self.model.layers:
            is_new = any(id(weight) not in known for weight in layer.weights)
            if is_new and not layer.name.startswith(NEW_LAYERS):
                raise InputError(
                    f"fusion {fusion!r} has a layer {layer.name!r} with weights of its own: give "
                    f"it a name that begins with one of {', '.join(NEW_LAYERS)}"
                )

    def tokenize(self, texts: Sequence[str]) -> TokenizedTexts:
        """Tokenize for Gemma, and for RoBERTa where its own embeddings are read."""
        ids, truncated = self.gemma.tokenize(texts, self.max_tokens)
        if self.fusion == "replace":
            return TokenizedTexts(texts, ids, None, truncated)
        own = super().tokenize(texts)
        return TokenizedTexts(texts, ids, own.roberta, truncated | own.truncated)

    def prepare_inputs(
        self, tokens: TokenizedTexts, states: RaggedArray | MultiLayerStates
    ) -> ModelInputs:
        """The hidden states, aligned with RoBERTa's own tokens where these are read."""
        if self.fusion == "replace":
            return states
        return fuse_inputs(self.fusion, states, self._align(tokens), tokens.roberta)

    @functools.cached_property
    @own_keras_state()
    def without_gemma(self) -> RobertaOnly:
        """The same fine-tuned RoBERTa on the text's own token embeddings."""
        return RobertaOnly(self.experiment, self.presets, (self.roberta, self.tokenizer))

    @functools.cached_property
    @own_keras_state()
    def after_standardizing(self) -> TextModel:
        """The model from standardized hidden states on, which are float32.

        In these, 0 is exactly the average state, which the model's own inputs could only round to.
        In place of `inputs` its input is called `standardize.output.name`; the others are the same.
        """
        inputs = {name: self.model.input[name] for name in self.model.input if name != "inputs"}
        states = self.standardize.output
        return TextModel(inputs | {states.name: states}, self.model.output)

    def predict(self, texts: str | Sequence[str], cascade: float | None = None) -> pd.DataFrame:
        """Classify texts with the head, and show what Gemma changed, or classify in a cascade.

        Args:
            texts: a list of texts, or a single text.
            cascade: as in `Embedder.predict`.

        Returns:
            The columns of `Embedder.predict`; unless in a cascade, `label_without_gemma`, the label
            of the same RoBERTa and head for the text's own token embeddings (with late fusion
            beside the embedding of an average hidden state), and `moved_by_gemma`, the total
            variation distance between the two class distributions, from 0 to 1. These cost one
            more forward pass of RoBERTa.

        Raises:
            InputError: there is no head; an invalid text; as in `Embedder.predict` in a cascade.
        """
        table = super().predict(texts, cascade)
        if cascade is not None:
            return table
        with_gemma = table[[f"p({label})" for label in self.head.classes]].to_numpy()
        embeddings = self.without_gemma.encode(table["text"].tolist())
        without = self.head.probabilities(self._beside_average(embeddings))
        table["label_without_gemma"] = self.head.classes[without.argmax(-1)]
        table["moved_by_gemma"] = np.abs(with_gemma - without).sum(-1) / 2
        return table

    def _beside_average(self, embeddings: np.ndarray) -> np.ndarray:
        """RoBERTa's embeddings as the head expects them, without a word of Gemma's."""
        if not self.experiment.late_fusion:
            return embeddings
        layers = [self.model.get_layer(name) for name in ("late_norm", "late_dense")]
        average = np.zeros((1, self.presets["llm_preset"].width), "float32")  # standardized
        for layer in layers:
            average = layer(average)
        average = np.repeat(ops.convert_to_numpy(average), len(embeddings), 0)
        return np.concatenate([embeddings, average], 1)

    def initialize_projection(
        self, tokens: TokenizedTexts, states: RaggedArray | MultiLayerStates
    ) -> RidgeMap:
        """Initialize the projection in closed form; see `projection.fit_ridge`.

        Args:
            tokens: training texts with their token ids.
            states: hidden states of the texts.

        Returns:
            The map, with the variance that it explains.
        """
        if tokens.roberta is None:
            tokens = tokens._replace(roberta=super().tokenize(tokens.texts).roberta)
        table = ops.convert_to_numpy(self.roberta.token_embedding.embeddings)

        def transform(values):
            return ops.convert_to_numpy(self.projection_input(values[None]))[0]

        pairs = aligned_pairs(states, self._align(tokens), tokens.roberta, table, transform)
        ridge_map = fit_ridge(pairs)
        set_projection(self.projection, ridge_map)
        return ridge_map

    def _align(self, tokens: TokenizedTexts) -> RaggedArray:
        llm, slm = (self.gemma.tokenizer, tokens.gemma), (self.tokenizer, tokens.roberta)
        return align_tokens(tokens.texts, llm, slm)


@functools.cache  # it has no weights, so embedders can share it
def _pooling_model(
    width: int, num_cutoffs: int, dtype: str, layer_pooling: str, pooling: str
) -> TextModel:
    """The model of Gemma alone, after the hidden states."""
    inputs, mask = _states_input(width, num_cutoffs, dtype), tokens_input("mask")
    states = ops.cast(_pool_layers(inputs, layer_pooling), "float32")
    return TextModel({"inputs": inputs, "mask": mask}, pool(states, mask, pooling))


def _states_input(width: int, num_cutoffs: int, dtype: str) -> keras.KerasTensor:
    """Input `(texts, tokens, width)`, or `(texts, tokens, cutoffs, width)` for several cutoffs."""
    shape = (None, width) if num_cutoffs == 1 else (None, num_cutoffs, width)
    return keras.Input(shape, dtype=dtype, name="inputs")


def _pool_layers(states: keras.KerasTensor, layer_pooling: str) -> keras.KerasTensor:
    """Hidden states without the axis of cutoffs, if they have one."""
    if len(states.shape) == 3:
        return states
    return LayerPooling(layer_pooling, name="layer_pooling")(states)

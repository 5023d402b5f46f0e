"""The truncated Gemma: hidden states after any of its layers, in one forward pass.

Only the layers up to the largest cutoff are loaded. Layers of one kind share one compiled function,
which takes each layer's weights, so that a new input shape costs one or two compilations instead of
one per layer. Pooling, projection and the cache on disk are left to other modules.
"""

import gc
import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import keras
import numpy as np
from keras import ops

from embedder_helpers.config import Experiment, InputError, resolve_cutoffs
from embedder_helpers.models.batching import (
    MultiLayerStates,
    RaggedArray,
    from_lengths,
    inference_batches,
    stack_layers,
)
from embedder_helpers.models.layer_weights import check_streamable, layer_reader
from embedder_helpers.models.presets import Preset, from_preset
from embedder_helpers.models.tokenization import tokenize
from embedder_helpers.utils import environment, progress

CPU_TOKENS = 2048  # tokens per batch; more gains nothing on a CPU
GPU_TOKENS = 16384
STREAMED_BATCHES = 16  # batches that pass a streamed layer before the next one is read
LAYER_PATTERN = 6  # kinds of layers repeat after 1 (Gemma 1), 2 (Gemma 2) or 6 (Gemma 3) layers


class HiddenStateSpec(NamedTuple):
    """After how many layers hidden states are taken, and through which norm.

    Attributes:
        cutoff: number of layers, from 1.
        norm: `rms`, `learned` or `none`.
    """

    cutoff: int
    norm: str

    @property
    def dtype(self) -> str:
        """What hidden states are stored in: float16 if normed, else float32.

        Raw ones exceed float16's range: Gemma 3 270M's residual stream reaches 100 000.
        """
        return "float32" if self.norm == "none" else "float16"


def hidden_state_specs(experiment: Experiment, num_layers: int) -> tuple[HiddenStateSpec, ...]:
    """The hidden states that an Experiment reads, in order of their cutoffs.

    Args:
        experiment: settings: cutoffs and norm; `last` norms after the last layer only.
        num_layers: number of the complete Gemma's layers.

    Raises:
        InputError: a cutoff beyond `num_layers`.
    """
    cutoffs = resolve_cutoffs(experiment.llm_layers, num_layers)
    if experiment.final_norm != "last":
        return tuple(HiddenStateSpec(cutoff, experiment.final_norm) for cutoff in cutoffs)
    return tuple(
        HiddenStateSpec(cutoff, "learned" if cutoff == num_layers else "none") for cutoff in cutoffs
    )


class Gemma:
    """A frozen Gemma: loads its tokenizer at once, its weights with the first forward pass.

    Args:
        preset: preset of the model.
        stream_blocks: keep only one layer at a time in memory, read from the preset's file.

    Raises:
        InputError: the preset cannot be loaded, or its layers cannot be read one by one.

    Attributes:
        layer_passes: number of texts that passed through a layer, summed over layers so far.
    """

    _loaded = 0  # layers whose weights are in memory

    def __init__(self, preset: Preset, stream_blocks: bool = False):
        import keras_hub

        self.preset = preset
        self.stream_blocks = stream_blocks
        if stream_blocks:
            check_streamable(preset)
        self.tokenizer = from_preset(keras_hub.models.Tokenizer, "llm_preset", preset)
        self.layer_passes = 0
        self.unload()

    def tokenize(self, texts: Sequence[str], max_tokens: int) -> tuple[RaggedArray, np.ndarray]:
        """Token ids, and `(texts,)` whether a text was truncated."""
        return tokenize(self.tokenizer, texts, max_tokens, end=False)

    def hidden_states(
        self, ids: RaggedArray, specs: Sequence[HiddenStateSpec], batch_size: int | None = None
    ) -> RaggedArray | MultiLayerStates:
        """Compute hidden states in memory: `(tokens, width)` per text, for each spec."""
        shape = (int(ids.lengths.sum()), self.preset.width)
        layers = {spec: from_lengths(np.empty(shape, spec.dtype), ids.lengths) for spec in specs}
        for spec, rows, states in self.forward_layers(ids, specs, batch_size=batch_size):
            ends = np.cumsum(ids.lengths[rows])
            for row, text_states in zip(rows, np.split(states, ends[:-1]), strict=True):
                layers[spec].text(row)[:] = text_states
        return stack_layers([layers[spec] for spec in specs])

    def forward_layers(
        self,
        ids: RaggedArray,
        specs: Sequence[HiddenStateSpec],
        resume_from: tuple[int, RaggedArray] | None = None,
        batch_size: int | None = None,
    ) -> Iterator[tuple[HiddenStateSpec, np.ndarray, np.ndarray]]:
        """Compute hidden states for every spec; each text passes through each layer once.

        Memory: the truncated model, or one layer of it if streamed, and the hidden states of one
        batch, or of `STREAMED_BATCHES` if streamed.

        Args:
            ids: token ids.
            specs: hidden states to compute.
            resume_from: cutoff to continue from, and the raw hidden states of `ids` at it; None:
                start from the token ids.
            batch_size: maximum number of texts per batch.

        Yields:
            A spec, rows of `ids`, and the hidden states `(tokens, width)` of these rows, one text
            after another. Within a batch, specs come in order of their cutoffs.

        Raises:
            InputError: hidden states that are not finite in the spec's dtype.
        """
        first, residual = resume_from or (0, None)
        last = max(spec.cutoff for spec in specs)
        self._load(last)
        budget = CPU_TOKENS if environment.on_cpu() else GPU_TOKENS
        batches = inference_batches(ids.lengths, budget, batch_size=batch_size)
        work = progress.forward_flops(ids.lengths.sum(), last - first, self.preset.width)
        with progress.progress_bar(len(ids), f"Gemma, {last} layers", work=work) as bar:
            # One batch at a time, or several for each layer that is streamed in.
            while chunk := list(itertools.islice(batches, self._chunk_size)):
                states, masks = self._embed(ids, residual, chunk)
                for cutoff in range(first, last + 1):
                    if cutoff > first:
                        self._apply_layer(cutoff - 1, states, masks)
                    for spec in (spec for spec in specs if spec.cutoff == cutoff):
                        for (rows, _, _), padded, mask in zip(chunk, states, masks, strict=True):
                            yield spec, rows, self._finish(padded, mask, spec)
                texts = sum(len(rows) for rows, _, _ in chunk)
                self.layer_passes += texts * (last - first)
                bar.update(texts)

    def unload(self) -> None:
        """Free the weights; the next forward pass loads them again."""
        was_loaded, self._loaded = self._loaded > 0, 0
        self._functions = self._weights = self._embedding = self._learned_norm = None
        if was_loaded:
            gc.collect()  # Keras models hold reference cycles

    def _load(self, num_layers: int) -> None:
        """Load embedding table, final norm and the layers' functions and weights.

        The backbone itself is dropped: its layers refer to each other and would all stay in memory.
        """
        if self._loaded >= num_layers:
            return
        import keras_hub

        self.unload()
        pattern = min(LAYER_PATTERN, self.preset.num_layers)
        backbone = from_preset(
            keras_hub.models.Backbone,
            "llm_preset",
            self.preset,
            num_layers=pattern if self.stream_blocks else num_layers,
            dtype="float32",
        )
        layers = backbone.transformer_layers
        self._embedding = ops.convert_to_tensor(backbone.token_embedding.embeddings.value)
        self._learned_norm = _standalone(backbone.layer_norm, self.preset.width)
        self._learned_norm.set_weights(backbone.layer_norm.get_weights())
        if self.stream_blocks:
            self._chunk_size, self._weights = STREAMED_BATCHES, layer_reader(self.preset, layers[0])
        else:
            self._chunk_size, self._weights = 1, [_tensors(layer) for layer in layers].__getitem__
        kinds = [_layer_function(layer) for layer in layers]
        self._functions = [kinds[index % len(kinds)] for index in range(num_layers)]
        self._loaded = num_layers
        del backbone, layers
        gc.collect()

    def _embed(
        self,
        ids: RaggedArray,
        residual: RaggedArray | None,
        chunk: Sequence[tuple[np.ndarray, int, int]],
    ) -> tuple[list, list]:
        """Each batch's input to its first layer `(texts, length, width)`, and its mask."""
        states, masks = [], []
        for rows, length, texts in chunk:
            tokens, mask = ids.pad(rows, length, texts)
            if residual is None:
                embedded = ops.take(self._embedding, tokens, axis=0)
                states.append(embedded * ops.cast(ops.sqrt(self.preset.width), embedded.dtype))
            else:
                states.append(ops.convert_to_tensor(residual.pad(rows, length, texts)[0]))
            masks.append(ops.convert_to_tensor(mask))
        return states, masks

    def _apply_layer(self, index: int, states: list, masks: list) -> None:
        """Replace each batch's hidden states by the layer's output.

        A streamed layer's weights are freed on return, before those of the next one are read.
        """
        function, weights = self._functions[index], self._weights(index)
        for i, mask in enumerate(masks):
            states[i] = function(weights, states[i], mask)

    def _finish(self, states: Any, mask: Any, spec: HiddenStateSpec) -> np.ndarray:
        """Normed hidden states of the tokens that are not padding, `(tokens, width)`."""
        if spec.norm == "learned":
            states = self._learned_norm(states)
        normed, finite = _norm_function(spec)(states, mask)
        if not bool(finite):
            raise InputError(
                f"Gemma's hidden states after layer {spec.cutoff} are not finite in {spec.dtype} "
                f"(norm: {spec.norm}): the preset's weights are damaged, or this norm leaves them "
                "too large: use final_norm: rms"
            )
        return ops.convert_to_numpy(normed)[ops.convert_to_numpy(mask).astype(bool)]


# Compiled functions by kind of layer, for the life of the process: the next experiment on the same
# model compiles nothing. Each keeps the weights of one layer in memory.
_COMPILED: dict[str, Callable] = {}


def _layer_function(layer: keras.layers.Layer) -> Callable[[list, Any, Any], Any]:
    """The function `(weights, states, mask) -> states` of all layers of this one's kind."""
    config = {name: value for name, value in layer.get_config().items() if name != "name"}
    kind = type(layer).__name__ + json.dumps(config, sort_keys=True, default=str)
    if kind not in _COMPILED:
        _COMPILED[kind] = _compile(_stateless(layer))
    return _COMPILED[kind]


def _stateless(layer: keras.layers.Layer) -> Callable[[list, Any, Any], Any]:
    standalone = _standalone(layer, layer.hidden_dim)

    def call(weights, states, mask):
        return standalone.stateless_call([], weights, states, padding_mask=mask)[0]

    return call


def _standalone(layer: keras.layers.Layer, width: int) -> keras.layers.Layer:
    """A frozen copy of a layer, part of no model, with new weights."""
    copy = type(layer).from_config(layer.get_config())
    copy.build((None, None, width))
    copy.trainable = False
    return copy


def _norm_function(spec: HiddenStateSpec) -> Callable[[Any, Any], tuple[Any, Any]]:
    """The function that norms and casts hidden states, and checks that they are finite."""

    def norm(states, mask):
        if spec.norm == "rms":
            states = states * ops.rsqrt(ops.mean(ops.square(states), -1, keepdims=True) + 1e-6)
        states = ops.cast(states, spec.dtype)
        padding = ops.expand_dims(ops.logical_not(ops.cast(mask, "bool")), -1)
        return states, ops.all(ops.logical_or(ops.isfinite(states), padding))

    return _COMPILED.setdefault(f"norm {spec.norm}", _compile(norm))


def _tensors(layer: keras.layers.Layer) -> list[Any]:
    return [ops.convert_to_tensor(variable.value) for variable in layer.variables]


def _compile(function: Callable) -> Callable:
    """Compile with the backend's own compiler; XLA on TensorFlow and JAX."""
    if keras.config.backend() == "tensorflow":
        import tensorflow

        return tensorflow.function(function, jit_compile=True)
    if keras.config.backend() == "jax":
        import jax

        return jax.jit(function)
    import torch

    return torch.no_grad()(function)

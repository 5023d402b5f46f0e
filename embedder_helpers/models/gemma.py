"""The truncated Gemma: hidden states after any of its layers, in one forward pass.

Only the layers up to the largest cutoff are loaded, in half precision where the device has it.
Layers of one kind share one compiled function, which takes each layer's weights, so that a new
input shape costs one or two compilations instead of one per layer. Pooling, projection and the
cache on disk are left to other modules.
"""

import functools
import gc
import itertools
import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import keras
import numpy as np
from keras import ops

from embedder_helpers.config import Experiment, resolve_cutoffs
from embedder_helpers.errors import InputError, show
from embedder_helpers.models.batching import (
    MultiLayerStates,
    RaggedArray,
    bucket_length,
    from_lengths,
    inference_batches,
    sorted_batches,
    stack_layers,
)
from embedder_helpers.models.decoder_layer import (
    LayerKind,
    apply_layer,
    arrange_weights,
    compiled_matmul,
    layer_kind,
    rms_norm,
)
from embedder_helpers.models.layer_weights import FileWeights, GemmaWeights, open_weights
from embedder_helpers.models.presets import Preset, from_preset
from embedder_helpers.models.shapes import forward_bytes_per_token, llm_weight_bytes
from embedder_helpers.models.tokenization import tokenize
from embedder_helpers.utils import environment, progress

logger = logging.getLogger(__name__)

# Tokens per batch; more gain nothing. Where each shape is compiled, batches are larger and fewer;
# elsewhere they can be as small as is fast, so that their texts are of nearly the same length.
CPU_TOKENS = 2048
UNCOMPILED_TOKENS = 512
GPU_TOKENS = 16384
STREAMED_BATCHES = 16  # batches that pass a streamed layer before the next one is read
MEMORY_FRACTION = 0.8  # of the memory that is free, which a batch may take


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
        dtype: of the operands of matrix products: `float32`, `bfloat16`, `float16`, or `auto`, half
            precision if the device multiplies it faster.

    Raises:
        InputError: the preset cannot be loaded, or its layers cannot be read one by one.

    Attributes:
        settings: the arguments.
        dtype: as given, `auto` resolved.
        layer_passes: number of texts that passed through a layer, summed over layers so far.
        float32_passes: of these, how many were computed in float32 because half precision
            overflowed.
    """

    def __init__(self, preset: Preset, stream_blocks: bool = False, dtype: str = "auto"):
        import keras_hub

        self.settings = preset, stream_blocks, dtype
        self.preset = preset
        self.stream_blocks = stream_blocks
        self.dtype = (environment.half_dtype() or "float32") if dtype == "auto" else dtype
        if stream_blocks:
            FileWeights(preset)  # reports what cannot be streamed before any long work
        self.tokenizer = from_preset(keras_hub.models.Tokenizer, "llm_preset", preset)
        self.layer_passes = self.float32_passes = 0
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

        Memory: the truncated model, or one layer of it if streamed; the layer's arrays for one
        batch; and the hidden states of that batch, or of `STREAMED_BATCHES` if streamed.

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
            InputError: hidden states that are not finite in the spec's dtype; not enough memory.
        """
        first, residual = resume_from or (0, None)
        last = max(spec.cutoff for spec in specs)
        self._load(last)
        self._parts, overflowed, passed = 1, self.float32_passes, self.layer_passes
        chunk_size = STREAMED_BATCHES if self.stream_blocks else 1
        batches = self._batches(ids.lengths, chunk_size, batch_size)
        tokens = int(ids.lengths.sum())
        work = {progress.FORWARD: progress.forward_flops(tokens, last - first, self.preset.width)}
        with progress.progress_bar(tokens, f"Gemma, {last} layers", "token", work) as bar:
            # One batch at a time, or several for each layer that is streamed in.
            while chunk := list(itertools.islice(batches, chunk_size)):
                states, masks = self._embed(ids, residual, chunk)
                for cutoff in range(first, last + 1):
                    if cutoff > first:
                        self._apply_layer(cutoff - 1, states, masks)
                    for spec in (spec for spec in specs if spec.cutoff == cutoff):
                        for (rows, _, _), padded, mask in zip(chunk, states, masks, strict=True):
                            yield spec, rows, self._finish(padded, mask, spec)
                texts = sum(len(rows) for rows, _, _ in chunk)
                self.layer_passes += texts * (last - first)
                bar.update(sum(int(ids.lengths[rows].sum()) for rows, _, _ in chunk))
        self._log_what_was_lost(self.float32_passes - overflowed, self.layer_passes - passed)

    def _log_what_was_lost(self, overflowed: int, passed: int) -> None:
        """Log what half precision could not hold in a forward pass, if anything."""
        if lost := sum(self._lost.values()):
            logger.info("  %s turned %d weights into 0 or infinity", self.dtype, lost)
        if overflowed:
            logger.info(
                "  %s overflowed in %d of %d passes of a text through a layer, which were computed "
                "in float32",
                self.dtype,
                overflowed,
                passed,
            )

    def unload(self) -> None:
        """Free the weights; the next forward pass loads them again."""
        was_loaded = getattr(self, "_weights", None) is not None
        self._weights: GemmaWeights | None = None
        self._layers: list[dict[str, Any]] = []
        self._float32_layer: tuple[int, dict[str, Any]] | None = None
        self._lost: dict[int, int] = {}  # for each layer, weights that became 0 or infinite
        self._parts = 1  # in which a batch passes a layer, more after memory has run out
        if was_loaded:
            gc.collect()

    def _load(self, num_layers: int) -> None:
        """Open the preset's weights, and load those layers that are to be kept in memory."""
        if self._weights is None or num_layers > self._weights.num_layers:
            self.unload()
            self._weights = open_weights(self.preset, num_layers, self.stream_blocks)
        if self.stream_blocks:
            return
        missing = range(len(self._layers), num_layers)
        with progress.progress_bar(len(missing), "loading Gemma", "layer") as bar:
            for index in missing:
                self._layers.append(self._read_layer(index, self.dtype))
                bar.update(1)

    def _read_layer(self, index: int, dtype: str) -> dict[str, Any]:
        """A layer's weights on the device."""
        weights, lost = arrange_weights(self._weights.read_layer(index), dtype)
        if dtype == self.dtype:
            self._lost[index] = lost
        try:
            tensors = {name: ops.convert_to_tensor(array) for name, array in weights.items()}
            ops.negative(0.0)  # TensorFlow frees the arrays with its next operation
            return tensors
        except Exception as error:
            raise self._explained(error, f"layer {index + 1}") from None

    def _explained(self, error: Exception, what: str) -> Exception:
        """An InputError that says what to do, if memory has run out; else the error itself."""
        if not environment.is_out_of_memory(error):
            return error
        stream = "" if self.stream_blocks else "set stream_blocks: true, "
        return InputError(
            f"memory ran out at {what} of {self.preset.name} in {self.dtype}: {stream}lower "
            "max_tokens or llm_layers, or use a device with more memory"
        )

    def _batches(
        self, lengths: np.ndarray, chunk_size: int, batch_size: int | None
    ) -> Iterator[tuple[np.ndarray, int, int]]:
        """Batches of as many tokens as fit the free memory; of few shapes if each is compiled."""
        longest, is_compiled = bucket_length(int(lengths.max(initial=1))), _is_compiled(self.dtype)
        token_bytes = bytes_per_token(self._weights.shape, longest, is_compiled, chunk_size)
        free, is_cpu = environment.free_memory(), environment.on_cpu()
        if self.stream_blocks:  # no layer is loaded yet
            free -= llm_weight_bytes(self._weights.shape, 2, self.dtype, streamed=True)
        budget = token_budget(token_bytes, longest, free, is_cpu, is_compiled)
        if is_compiled:
            return inference_batches(lengths, budget, batch_size=batch_size)
        return sorted_batches(lengths, budget, batch_size)

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
                # On the host: a few rows of a table that the device need not hold.
                values = self._weights.table[tokens].astype("float32")
                values *= np.sqrt(np.float32(self.preset.width))
            else:
                values = residual.pad(rows, length, texts)[0]
            states.append(ops.convert_to_tensor(values))
            masks.append(ops.convert_to_tensor(mask))
        return states, masks

    def _apply_layer(self, index: int, states: list, masks: list) -> None:
        """Replace each batch's hidden states by the layer's output.

        A streamed layer's weights are freed on return, before those of the next one are read.
        """
        kind = layer_kind(self._weights.shape, index)
        weights = self._read_layer(index, self.dtype) if self.stream_blocks else self._layers[index]
        for i, mask in enumerate(masks):
            output, is_finite = self._in_parts(kind, self.dtype, weights, states[i], mask)
            if not is_finite and self.dtype != "float32":
                self.float32_passes += int(ops.convert_to_numpy(mask).any(1).sum())
                exact = self._float32_weights(index)
                output, _ = self._in_parts(kind, "float32", exact, states[i], mask)
            states[i] = output

    def _in_parts(
        self, kind: LayerKind, dtype: str, weights: dict[str, Any], states: Any, mask: Any
    ) -> tuple[Any, bool]:
        """Apply a layer to a batch; to parts of its texts, where the whole exceeds the memory."""
        function = _layer_function(kind, dtype)
        while True:
            try:
                size = -(-len(mask) // self._parts)
                outputs = [
                    function(weights, states[i : i + size], mask[i : i + size])
                    for i in range(0, len(mask), size)
                ]
                is_finite = all(bool(finite) for _, finite in outputs)
                parts = [output for output, _ in outputs]
                return parts[0] if len(parts) == 1 else ops.concatenate(parts), is_finite
            except Exception as error:
                if not environment.is_out_of_memory(error) or self._parts >= len(mask):
                    raise self._explained(error, "one text") from None
                if self._parts == 1:
                    logger.info("  memory ran out: Gemma's batches are halved")
                self._parts *= 2

    def _float32_weights(self, index: int) -> dict[str, Any]:
        """A layer's weights in float32, of which those of one layer are kept."""
        if self._float32_layer is None or self._float32_layer[0] != index:
            self._float32_layer = None  # freed first
            self._float32_layer = index, self._read_layer(index, "float32")
        return self._float32_layer[1]

    def _finish(self, states: Any, mask: Any, spec: HiddenStateSpec) -> np.ndarray:
        """Normed hidden states of the tokens that are not padding, `(tokens, width)`."""
        shape = self._weights.shape
        epsilon, is_compiled = shape.get("layer_norm_epsilon", 1e-6), _is_compiled(self.dtype)
        function = _norm_function(spec, epsilon, is_compiled)
        final_norm = ops.convert_to_tensor(self._weights.final_norm)
        normed, finite = function(final_norm, states, mask)
        if not bool(finite):
            raise InputError(
                f"llm_preset {show(self.preset.name)}: hidden states after layer {spec.cutoff} are "
                f"not finite in {spec.dtype} (norm: {spec.norm}): its weights are damaged, or this "
                "norm leaves them too large: use final_norm: rms, or copy the preset again"
            )
        return ops.convert_to_numpy(normed)[ops.convert_to_numpy(mask).astype(bool)]


def bytes_per_token(shape: dict[str, Any], length: int, is_compiled: bool, chunk_size: int) -> int:
    """Memory that a token of a batch takes in a forward pass.

    Args:
        shape: of the preset (`preset_shape`).
        length: of the batch's texts, padding included.
        is_compiled: whether XLA compiles the layers.
        chunk_size: number of batches whose hidden states are held at a time.
    """
    held = 4 * shape["hidden_dim"] * (chunk_size - 1)
    return forward_bytes_per_token(shape, length, is_compiled) + held


def token_budget(
    token_bytes: int, longest: int, free: float, is_cpu: bool, is_compiled: bool
) -> int:
    """Tokens per batch, as many as are fast and fit.

    Args:
        token_bytes: result of `bytes_per_token`.
        longest: tokens of the longest text, which is a batch in any case.
        free: bytes of memory that the weights have left.
        is_cpu: whether the device is a CPU.
        is_compiled: as for `bytes_per_token`.
    """
    budget = GPU_TOKENS
    if is_cpu:
        budget = CPU_TOKENS if is_compiled else UNCOMPILED_TOKENS
    while budget > longest and budget * token_bytes > MEMORY_FRACTION * free:
        budget //= 2  # not the exact number, so that results seldom depend on it
    return budget


# Compiled functions stay for the life of the process: the next experiment on the same model
# compiles nothing.


@functools.cache
def _layer_function(kind: LayerKind, dtype: str) -> Callable[..., tuple[Any, Any]]:
    """The function `(weights, states, mask) -> (states, whether finite)` of a kind of layer."""
    is_compiled = _is_compiled(dtype)
    matmul = compiled_matmul if is_compiled else ops.matmul
    return _compile(functools.partial(apply_layer, kind, matmul), is_compiled)


@functools.cache
def _norm_function(
    spec: HiddenStateSpec, epsilon: float, is_compiled: bool
) -> Callable[..., tuple[Any, Any]]:
    """The function that norms and casts hidden states, and checks that they are finite."""

    def norm(final_norm, states, mask):
        if spec.norm == "rms":
            states = states * ops.rsqrt(ops.mean(ops.square(states), -1, keepdims=True) + 1e-6)
        if spec.norm == "learned":
            states = rms_norm(states, final_norm, epsilon)
        states = ops.cast(states, spec.dtype)
        padding = ops.expand_dims(ops.logical_not(ops.cast(mask, "bool")), -1)
        return states, ops.all(ops.logical_or(ops.isfinite(states), padding))

    return _compile(norm, is_compiled)


def _is_compiled(dtype: str) -> bool:
    """Whether a compiler is used, which makes a program for each shape of a batch.

    XLA gains nothing from half precision on a CPU, unlike TensorFlow's own kernels: see
    docs/performance.md.
    """
    if keras.config.backend() == "tensorflow":
        return not environment.on_cpu() or dtype == "float32"
    return keras.config.backend() == "jax"


def _compile(function: Callable, is_compiled: bool) -> Callable:
    """Compile a function of weights, states and mask with the backend's own compiler, XLA if any.

    Without XLA, TensorFlow makes one graph for batches of every shape. It would otherwise make one
    for the first shape only, and results would depend, in their last digits, on which that was.
    """
    if keras.config.backend() == "jax":
        import jax

        return jax.jit(function)
    if keras.config.backend() == "torch":
        import torch

        return torch.no_grad()(function)
    import tensorflow as tf

    if is_compiled:
        return tf.function(function, jit_compile=True)
    traced = tf.function(function)

    def call(weights, states, mask):
        specs = (
            tf.nest.map_structure(tf.TensorSpec.from_tensor, weights),
            tf.TensorSpec((None, None, states.shape[-1]), states.dtype),
            tf.TensorSpec((None, None), mask.dtype),
        )
        return traced.get_concrete_function(*specs)(weights, states, mask)

    return call

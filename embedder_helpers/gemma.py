"""The truncated Gemma: token states at all wanted depths, in one walk through the blocks.

Only the blocks up to the deepest cutoff are loaded. Blocks of one kind are one compiled function
that takes each block's weights, so a length bucket costs a compilation or two, not one per block.
Not here: what is done with the states (projection, pooling), and keeping them on disk.
"""

import gc
import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import keras
import numpy as np
from keras import ops

from embedder_helpers import platform
from embedder_helpers.config import Experiment, InputError, cutoffs
from embedder_helpers.presets import Preset, load_preset
from embedder_helpers.streaming import block_reader, check_streamable
from embedder_helpers.tokens import (
    Ragged,
    Stacked,
    end_to_end,
    inference_batches,
    stacked,
    tokenise,
)

CPU_TOKENS = 2048  # tokens a batch; more gains nothing on a CPU
GPU_TOKENS = 16384
STREAMED_BATCHES = 16  # batches that a streamed block visits before the next one is read
PATTERN = 6  # kinds of blocks repeat after 1 (Gemma 1), 2 (Gemma 2) or 6 (Gemma 3) blocks


class Depth(NamedTuple):
    """Where states are taken: behind a cutoff, through a norm (`rms`, `learned` or `none`)."""

    cutoff: int
    norm: str

    @property
    def dtype(self) -> str:
        """What states are kept in: float16 once normed.

        Raw ones can be too large for it: Gemma 3 270M's residual stream reaches 100 000.
        """
        return "float32" if self.norm == "none" else "float16"


def depths(experiment: Experiment, blocks: int) -> tuple[Depth, ...]:
    """The depths that an Experiment reads, from the shallowest; `last` norms the last block's.

    Raises:
        InputError: a cutoff beyond the model's `blocks`.
    """
    norm = experiment.final_norm
    return tuple(
        Depth(cutoff, ("learned" if cutoff == blocks else "none") if norm == "last" else norm)
        for cutoff in cutoffs(experiment.llm_layers, blocks)
    )


class Gemma:
    """A frozen Gemma; its weights are loaded by the first walk, its tokenizer at once.

    Args:
        preset: where it is.
        stream_blocks: keep one block at a time in memory, read from the preset's file.

    Raises:
        InputError: the preset cannot be loaded, or its blocks not one by one.

    Attributes:
        block_passes: texts that went through a block, summed over blocks, since it was made.
    """

    def __init__(self, preset: Preset, stream_blocks: bool = False):
        import keras_hub

        self.preset = preset
        self.stream_blocks = stream_blocks
        if stream_blocks:
            check_streamable(preset)
        self.tokenizer = load_preset(keras_hub.models.Tokenizer, "llm_preset", preset)
        self.block_passes = 0
        self.unload()

    def tokenise(self, texts: Sequence[str], max_tokens: int) -> tuple[Ragged, np.ndarray]:
        """Token ids, and whether each text was cut."""
        return tokenise(self.tokenizer, texts, max_tokens, end=False)

    def states(
        self, ids: Ragged, wanted: Sequence[Depth], batch_size: int | None = None
    ) -> Ragged | Stacked:
        """Token states `(tokens, width)` at one or several depths, in memory."""
        shape = (int(ids.lengths.sum()), self.preset.width)
        found = {depth: end_to_end(np.empty(shape, depth.dtype), ids.lengths) for depth in wanted}
        for depth, rows, values in self.walk(ids, wanted, batch_size=batch_size):
            ends = np.cumsum(ids.lengths[rows])
            for row, text in zip(rows, np.split(values, ends[:-1]), strict=True):
                found[depth].text(row)[:] = text
        return stacked([found[depth] for depth in wanted])

    def walk(
        self,
        ids: Ragged,
        wanted: Sequence[Depth],
        start: tuple[int, Ragged] | None = None,
        batch_size: int | None = None,
    ) -> Iterator[tuple[Depth, np.ndarray, np.ndarray]]:
        """States at every wanted depth; each text passes each block once.

        Costs `deepest cutoff - start` block-passes a text. Memory: the cut model, or one block of
        it if streamed, and the states of one batch, or of `STREAMED_BATCHES` if streamed.

        Args:
            ids: token ids.
            wanted: depths.
            start: a cutoff, and the raw states of `ids` behind it to go on from; default: the text.
            batch_size: texts that are computed at a time, at most.

        Yields:
            A depth, rows of `ids`, and these rows' states `(tokens, width)` end to end. Of one
            batch the shallowest depth comes first.

        Raises:
            InputError: a state that is not finite in its depth's dtype.
        """
        first, residual = start or (0, None)
        deepest = max(depth.cutoff for depth in wanted)
        self._load(deepest)
        budget = CPU_TOKENS if platform.on_cpu() else GPU_TOKENS
        batches = inference_batches(ids.lengths, budget, batch_size=batch_size)
        work = platform.forward_work(ids.lengths.sum(), deepest - first, self.preset.width)
        with platform.progress(len(ids), f"Gemma, {deepest} blocks", work=work) as bar:
            # One batch at a time, or a chunk of them for each block that is streamed in.
            while chunk := list(itertools.islice(batches, self._chunk)):
                states, masks = self._enter(ids, residual, chunk)
                for cutoff in range(first, deepest + 1):
                    if cutoff > first:
                        weights = None  # a streamed block goes before the next one comes
                        function, weights = self._functions[cutoff - 1], self._weights(cutoff - 1)
                        for i, mask in enumerate(masks):
                            states[i] = function(weights, states[i], mask)
                    for depth in (depth for depth in wanted if depth.cutoff == cutoff):
                        for (rows, _, _), one, mask in zip(chunk, states, masks, strict=True):
                            yield depth, rows, self._kept(one, mask, depth)
                texts = sum(len(rows) for rows, _, _ in chunk)
                self.block_passes += texts * (deepest - first)
                bar.update(texts)

    def unload(self) -> None:
        """Frees the weights; the next walk loads them again."""
        self._loaded = 0
        self._functions = self._weights = self._embedding = self._learned_norm = None
        gc.collect()  # Keras's models hold on to themselves

    def _load(self, deepest: int) -> None:
        """The embedding table, the final norm, each block's function, and where its weights are.

        The model itself is let go: its layers know each other and would stay in memory together.
        """
        if self._loaded >= deepest:
            return
        import keras_hub

        self.unload()
        backbone = load_preset(
            keras_hub.models.Backbone,
            "llm_preset",
            self.preset,
            num_layers=min(PATTERN, self.preset.blocks) if self.stream_blocks else deepest,
            dtype="float32",
        )
        layers = backbone.transformer_layers
        self._embedding = ops.convert_to_tensor(backbone.token_embedding.embeddings.value)
        self._learned_norm = _alone(backbone.layer_norm, self.preset.width)
        self._learned_norm.set_weights(backbone.layer_norm.get_weights())
        if self.stream_blocks:
            self._chunk, self._weights = STREAMED_BATCHES, block_reader(self.preset, layers[0])
        else:
            self._chunk, self._weights = 1, [_tensors(layer) for layer in layers].__getitem__
        kinds = [_block_function(layer) for layer in layers]
        self._functions = [kinds[block % len(kinds)] for block in range(deepest)]
        self._loaded = deepest
        del backbone, layers
        gc.collect()

    def _enter(
        self, ids: Ragged, residual: Ragged | None, chunk: Sequence[tuple[np.ndarray, int, int]]
    ) -> tuple[list, list]:
        """Padded batches before their first block: raw states `(texts, length, width)`, masks."""
        states, masks = [], []
        for rows, length, texts in chunk:
            tokens, mask = ids.padded(rows, length, texts)
            if residual is None:
                embedded = ops.take(self._embedding, tokens, axis=0)
                states.append(embedded * ops.cast(ops.sqrt(self.preset.width), embedded.dtype))
            else:
                states.append(ops.convert_to_tensor(residual.padded(rows, length, texts)[0]))
            masks.append(ops.convert_to_tensor(mask))
        return states, masks

    def _kept(self, states: Any, mask: Any, depth: Depth) -> np.ndarray:
        """The real tokens' states `(tokens, width)`, normed and checked."""
        if depth.norm == "learned":
            states = self._learned_norm(states)
        kept, finite = _finish_function(depth)(states, mask)
        if not bool(finite):
            raise InputError(
                f"Gemma's states behind block {depth.cutoff} are not finite in {depth.dtype} "
                f"(norm: {depth.norm}): the preset's weights are damaged, or this norm leaves "
                "them too large: use final_norm: rms"
            )
        return ops.convert_to_numpy(kept)[ops.convert_to_numpy(mask).astype(bool)]


# Compiled functions by kind, for the life of the process: the next experiment on the same model
# compiles nothing. Each keeps the block it was made from, one block's weights, in memory.
_COMPILED: dict[str, Callable] = {}


def _block_function(block: keras.layers.Layer) -> Callable[[list, Any, Any], Any]:
    """The function `(weights, states, mask) -> states` of all blocks of this one's kind."""
    config = {name: value for name, value in block.get_config().items() if name != "name"}
    kind = type(block).__name__ + json.dumps(config, sort_keys=True, default=str)

    if kind not in _COMPILED:
        _COMPILED[kind] = _compile(_stateless(block))
    return _COMPILED[kind]


def _stateless(block: keras.layers.Layer) -> Callable[[list, Any, Any], Any]:
    alone = _alone(block, block.hidden_dim)

    def call(weights, states, mask):
        return alone.stateless_call([], weights, states, padding_mask=mask)[0]

    return call


def _alone(layer: keras.layers.Layer, width: int) -> keras.layers.Layer:
    """A frozen layer of the same kind, part of no model and with weights of its own."""
    alone = type(layer).from_config(layer.get_config())
    alone.build((None, None, width))
    alone.trainable = False
    return alone


def _finish_function(depth: Depth) -> Callable[[Any, Any], tuple[Any, Any]]:
    """The function that norms and casts states, and tells whether the real ones are finite."""

    def finish(states, mask):
        if depth.norm == "rms":
            states = states * ops.rsqrt(ops.mean(ops.square(states), -1, keepdims=True) + 1e-6)
        kept = ops.cast(states, depth.dtype)
        real = ops.expand_dims(ops.cast(mask, "bool"), -1)
        return kept, ops.all(ops.logical_or(ops.isfinite(kept), ops.logical_not(real)))

    return _COMPILED.setdefault(f"finish {depth.norm}", _compile(finish))


def _tensors(block: keras.layers.Layer) -> list[Any]:
    return [ops.convert_to_tensor(variable.value) for variable in block.variables]


def _compile(function: Callable) -> Callable:
    """The backend's own compiler; XLA on TensorFlow and JAX."""
    if keras.config.backend() == "tensorflow":
        import tensorflow

        return tensorflow.function(function, jit_compile=True)
    if keras.config.backend() == "jax":
        import jax

        return jax.jit(function)
    import torch

    return torch.no_grad()(function)

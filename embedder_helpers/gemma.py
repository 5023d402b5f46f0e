"""The truncated Gemma: token states behind the wanted blocks, in one walk through the depth.

Only the blocks up to the deepest cutoff are loaded. Blocks of one kind are one compiled function
that takes each block's weights, so a length bucket costs a compilation or two, not one per block.
Not here: what is done with the states (pooling, projection), and keeping them on disk.
"""

import json
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
from keras import ops

from embedder_helpers import platform
from embedder_helpers.config import InputError, cutoffs
from embedder_helpers.pooling import pool_layers
from embedder_helpers.presets import Preset, load_preset
from embedder_helpers.tokens import Ragged, end_to_end, inference_batches, tokenise

CPU_TOKENS = 2048  # tokens a batch; more gains nothing on a CPU
GPU_TOKENS = 16384


class Gemma:
    """A frozen Gemma, cut behind its deepest wanted block.

    Args:
        preset: where it is.
        llm_layers: the cutoff or cutoffs, as in the Experiment.
        layer_pooling: how the states of several cutoffs become one, `mean` or `max`.
        final_norm: `rms`, `learned`, `last` or `none`, as in the Experiment.

    Raises:
        InputError: a cutoff beyond the model.
    """

    def __init__(self, preset: Preset, llm_layers, layer_pooling: str, final_norm: str):
        import keras_hub

        # === Config ===
        self.blocks = preset.blocks
        self.width = preset.width
        self.cutoffs = cutoffs(llm_layers, preset.blocks)
        self.layer_pooling = layer_pooling
        self.final_norm = final_norm

        # === Layers ===
        models = keras_hub.models
        self.tokenizer = load_preset(models.Tokenizer, "llm_preset", preset)
        self.backbone = load_preset(
            models.Backbone, "llm_preset", preset, num_layers=self.cutoffs[-1], dtype="float32"
        )
        self.backbone.trainable = False

        # === Compiled blocks ===
        self._steps = _compiled_blocks(self.backbone.transformer_layers)

    def tokenise(self, texts: list[str], max_tokens: int) -> tuple[Ragged, np.ndarray]:
        """Token ids, and whether each text was cut."""
        return tokenise(self.tokenizer, texts, max_tokens, end=False)

    def states(self, ids: Ragged) -> Ragged:
        """Token states `(tokens, width)` float32; memory is 4 · width bytes a token."""
        values = np.empty((int(ids.lengths.sum()), self.width), "float32")
        found = end_to_end(values, ids.lengths)
        for rows, states, _ in self.walk(ids):
            states = ops.convert_to_numpy(states)
            for place, row in enumerate(rows):
                found.text(row)[:] = states[place, : found.lengths[row]]
        return found

    def walk(self, ids: Ragged) -> Iterator[tuple[np.ndarray, Any, np.ndarray]]:
        """Rows, their states `(texts, tokens, width)` and mask `(texts, tokens)`, batch by batch.

        Costs one pass of each block up to the deepest cutoff over every token. Batches are padded
        to a bucket and a number of texts: the first `len(rows)` texts of a batch are real.

        Raises:
            InputError: a state that is not finite.
        """
        budget = CPU_TOKENS if platform.devices()[0].startswith("CPU") else GPU_TOKENS
        with platform.progress(len(ids), f"Gemma, {self.cutoffs[-1]} blocks") as bar:
            for rows, length, texts in inference_batches(ids.lengths, budget):
                tokens, mask = ids.padded(rows, length, texts)
                states = pool_layers(self.cut_states(tokens, mask), self.layer_pooling)
                if not bool(ops.all(ops.isfinite(states))):
                    raise InputError(
                        f"Gemma gave states that are not finite behind block {self.cutoffs[-1]}: "
                        "the preset's weights are damaged or overflow"
                    )
                yield rows, states, mask
                bar.update(len(rows))

    def cut_states(self, tokens: np.ndarray, mask: np.ndarray) -> list[Any]:
        """The normed states `(texts, tokens, width)` behind each cutoff, of one padded batch."""
        embedded = self.backbone.token_embedding(ops.convert_to_tensor(tokens))
        states = embedded * ops.cast(ops.sqrt(self.width), embedded.dtype)
        mask = ops.convert_to_tensor(mask)
        cut = []
        for block, step in enumerate(self._steps, 1):
            states = step(states, mask)
            if block in self.cutoffs:
                cut.append(self._normed(states, block))
        return cut

    def _normed(self, states: Any, block: int) -> Any:
        if self.final_norm == "rms":
            return states * ops.rsqrt(ops.mean(ops.square(states), -1, keepdims=True) + 1e-6)
        is_last = self.final_norm == "last" and block == self.blocks
        if self.final_norm == "learned" or is_last:
            return self.backbone.layer_norm(states)
        return states


# Compiled functions by kind of block, for the life of the process: the next experiment on the same
# model compiles nothing. Each keeps the block it was made from, one block's weights, in memory.
_COMPILED: dict[str, Callable] = {}


def _compiled_blocks(blocks: list[keras.layers.Layer]) -> list[Callable[[Any, Any], Any]]:
    """A function `(states, mask) -> states` for each block; one compilation for those of a kind."""
    steps = []
    for block in blocks:
        config = {name: value for name, value in block.get_config().items() if name != "name"}
        kind = type(block).__name__ + json.dumps(config, sort_keys=True, default=str)
        if kind not in _COMPILED:
            _COMPILED[kind] = _compile(_stateless(block))
        steps.append(_with_weights(_COMPILED[kind], block))
    return steps


def _stateless(block: keras.layers.Layer) -> Callable[[list, Any, Any], Any]:
    def call(weights, states, mask):
        trainable = weights[: len(block.trainable_variables)]
        frozen = weights[len(block.trainable_variables) :]
        return block.stateless_call(trainable, frozen, states, padding_mask=mask)[0]

    return call


def _with_weights(function: Callable, block: keras.layers.Layer) -> Callable[[Any, Any], Any]:
    variables = block.trainable_variables + block.non_trainable_variables
    weights = [ops.convert_to_tensor(variable.value) for variable in variables]
    return lambda states, mask: function(weights, states, mask)


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

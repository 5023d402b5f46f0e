"""How many weights a model has and what memory it needs, from its preset's config.json alone."""

import functools
from typing import Any, NamedTuple

import ml_dtypes  # noqa: F401, makes NumPy know bfloat16
import numpy as np

from embedder_helpers.config import Experiment
from embedder_helpers.errors import InputError, show
from embedder_helpers.models.presets import ROLES, preset_config

# Shapes of the original study's models in keras-hub's terms, for when their config.json cannot be
# fetched; from the papers (Gemma: arXiv:2403.08295, table 1; RoBERTa: arXiv:1907.11692, section 3).
KNOWN_SHAPES = {
    "gemma_2b_en": {
        "class_name": "GemmaBackbone", "vocabulary_size": 256000, "num_layers": 18,
        "num_query_heads": 8, "num_key_value_heads": 1, "hidden_dim": 2048,
        "intermediate_dim": 32768, "head_dim": 256,
    },
    "roberta_base_en": {
        "class_name": "RobertaBackbone", "vocabulary_size": 50265, "num_layers": 12,
        "num_heads": 12, "hidden_dim": 768, "intermediate_dim": 3072, "max_sequence_length": 512,
    },
}  # fmt: skip


class WeightCounts(NamedTuple):
    """How many weights the parts of a model have.

    Attributes:
        embedding: number of weights outside the layers, in embeddings and a norm.
        layer: number of weights of each transformer layer.
    """

    embedding: int
    layer: int


def read_shape(role: str, name: str) -> dict[str, Any]:
    """The shape of a preset in keras-hub's terms: from its config.json, else `KNOWN_SHAPES`.

    Args:
        role: `llm_preset` or `slm_preset`.
        name: name of the preset, as in an Experiment.

    Raises:
        InputError: its config.json cannot be read, or is in Hugging Face's format.
    """
    try:
        config = preset_config(role, name)
    except InputError:
        if name not in KNOWN_SHAPES:
            raise
        return KNOWN_SHAPES[name]
    if "class_name" not in config:
        raise InputError(
            f"{role} {show(name)} is a Hugging Face model: give a Keras preset to count its weights"
        )
    return config["config"] | {"class_name": config["class_name"]}


@functools.cache
def preset_shape(role: str, name: str) -> dict[str, Any]:
    """`read_shape`, once in a process: a handle's config.json may come over the network."""
    return read_shape(role, name)


def count_weights(shape: dict[str, Any]) -> WeightCounts:
    """Count the weights of a Gemma 1, 2 or 3, or of a RoBERTa."""
    width, inner = shape["hidden_dim"], shape["intermediate_dim"]
    if "Gemma" not in shape["class_name"]:
        embedding = (shape["vocabulary_size"] + shape["max_sequence_length"] + 2) * width
        products = 4 * width * width + 2 * width * inner
        return WeightCounts(embedding, products + 4 * width + inner + width + 4 * width)
    return WeightCounts(shape["vocabulary_size"] * width + width, sum(_count_layer(shape)))


def _inner_width(shape: dict[str, Any]) -> int:
    """Width of the gate, and of the value, in the feed-forward part of a Gemma's layer."""
    inner = shape["intermediate_dim"]
    # keras-hub's intermediate_dim is that of gate and value together, except in Gemma 3.
    return inner // 2 if shape["class_name"] == "GemmaBackbone" else inner


def _count_layer(shape: dict[str, Any]) -> tuple[int, int]:
    """How many weights the matrices of a Gemma's layer have, and how many its norms."""
    width = shape["hidden_dim"]
    heads = shape["head_dim"] * (2 * shape["num_query_heads"] + 2 * shape["num_key_value_heads"])
    matrices = width * heads + 3 * width * _inner_width(shape)
    norms = 2 + shape.get("use_post_attention_norm", False) + shape.get("use_post_ffw_norm", False)
    query_key = 2 * shape["head_dim"] * bool(shape.get("use_query_key_norm"))
    return matrices, norms * width + query_key


def count_parameters(experiment: Experiment, last_cutoff: int | None) -> int | None:
    """Count the weights that a text passes, in Gemma's kept layers, RoBERTa and what joins them.

    Args:
        experiment: settings: kind, presets, cutoffs and fusion.
        last_cutoff: number of Gemma's layers that are kept; None for RoBERTa alone.

    Returns:
        The count; None if the shape of a preset is unknown.
    """
    total, widths = 0, []
    for role in ROLES[experiment.kind]:
        try:
            shape = preset_shape(role, getattr(experiment, role))
        except InputError:
            return None
        widths.append(shape["hidden_dim"])
        num_layers = last_cutoff if role == "llm_preset" else shape["num_layers"]
        weights = count_weights(shape)
        total += weights.embedding + num_layers * weights.layer
    return total + (_count_joint_weights(experiment, *widths) if len(widths) == 2 else 0)


def _count_joint_weights(experiment: Experiment, llm_width: int, slm_width: int) -> int:
    """How many weights lie between Gemma and RoBERTa; a registered fusion may have more."""
    layers = experiment.llm_layers
    num_cutoffs = len(layers) if isinstance(layers, tuple) else 1
    total = 2 * num_cutoffs * llm_width + (llm_width + 1) * slm_width  # standardization, projection
    if num_cutoffs > 1 and experiment.layer_pooling == "learned":
        total += num_cutoffs
    if experiment.projection == "mlp":
        total += (llm_width + 1) * slm_width + (slm_width + 1) * slm_width
    if experiment.fusion == "add" and experiment.projection_init() == "ridge":
        total += 1  # the gate
    if experiment.late_fusion:
        total += 2 * llm_width + (llm_width + 1) * slm_width
    return total


def llm_weight_bytes(
    shape: dict[str, Any], num_layers: int, dtype: str, streamed: bool = False
) -> int:
    """Bytes that a frozen Gemma's weights take on the device.

    Not its embedding table, which stays in the preset's file and is mapped into the host's memory.

    Args:
        shape: of the preset (`preset_shape`).
        num_layers: number of kept layers.
        dtype: of the layers' matrices, `float32`, `float16` or `bfloat16`; norms are float32.
        streamed: whether layers are read one by one: twice a layer, which the host holds too then.
    """
    matrices, norms = _count_layer(shape)
    layer = matrices * np.dtype(dtype).itemsize + 4 * norms
    return min(num_layers, 2 if streamed else num_layers) * layer + 4 * shape["hidden_dim"]


def forward_bytes_per_token(shape: dict[str, Any], length: int, is_compiled: bool) -> int:
    """Working memory per token, padding included, of a batch that passes one of Gemma's layers.

    What is alive at once is float32 whatever the matrices' dtype: copies of operands in half
    precision are freed before the peak, which is in the feed-forward part unless texts are long.

    Args:
        shape: of the preset (`preset_shape`).
        length: of the batch's texts, padding included.
        is_compiled: whether XLA compiles the layer. It fuses what lies between two products; an
            interpreter holds each step's result.
    """
    width, heads = shape["hidden_dim"], shape["num_query_heads"]
    projected = shape["head_dim"] * (heads + 2 * shape["num_key_value_heads"])
    # The states and their sum with the output; logits and softmax; queries, keys and values before
    # and after rotation.
    attention = 2 * width + 2 * heads * length + 2 * projected
    # Gate and value, and their product. An interpreter holds gate and value twice, because they
    # come from one product that is split, and two intermediate results of GELU; and the states
    # before attention, after it, and normed.
    inner = _inner_width(shape)
    feed_forward = 2 * width + 3 * inner if is_compiled else 3 * width + 6 * inner
    return 4 * max(attention, feed_forward)


def training_bytes(shape: dict[str, Any], tokens: int, length: int, value_bytes: int = 4) -> int:
    """Memory of a RoBERTa's training step, its weights included.

    Weights, gradients and AdamW's two moments are float32. Of each layer, about 25 activations per
    width and 3 per head and pair of tokens are kept for the gradients: fitted to measured peaks of
    memory, within 15 %.

    Args:
        shape: of the preset (`preset_shape`).
        tokens: of the batch, padding included.
        length: of the batch's texts, padding included.
        value_bytes: bytes of an activation, 2 in mixed precision.
    """
    weights = count_weights(shape)
    kept = 25 * shape["hidden_dim"] + 3 * shape["num_heads"] * length
    activations = value_bytes * tokens * shape["num_layers"] * kept
    return 16 * (weights.embedding + shape["num_layers"] * weights.layer) + activations

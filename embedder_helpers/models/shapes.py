"""How many weights a model has, from its preset's config.json alone."""

import functools
from typing import Any, NamedTuple

from embedder_helpers.config import Experiment, InputError
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


@functools.cache
def preset_shape(role: str, name: str) -> dict[str, Any]:
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
            f"{role} {name!r} is a Hugging Face model: give a Keras preset to count its weights"
        )
    return {"class_name": config["class_name"], **config["config"]}


def count_weights(shape: dict[str, Any]) -> WeightCounts:
    """Count the weights of a Gemma 1, 2 or 3, or of a RoBERTa."""
    width, inner = shape["hidden_dim"], shape["intermediate_dim"]
    if "Gemma" not in shape["class_name"]:
        embedding = (shape["vocabulary_size"] + shape["max_sequence_length"] + 2) * width
        products = 4 * width * width + 2 * width * inner
        return WeightCounts(embedding, products + 4 * width + inner + width + 4 * width)
    if shape["class_name"] == "GemmaBackbone":
        inner //= 2  # keras-hub's intermediate_dim is that of gate and value together
    heads = shape["head_dim"] * (2 * shape["num_query_heads"] + 2 * shape["num_key_value_heads"])
    norms = 2 + shape.get("use_post_attention_norm", False) + shape.get("use_post_ffw_norm", False)
    query_key = 2 * shape["head_dim"] * bool(shape.get("use_query_key_norm"))
    layer = width * heads + 3 * width * inner + norms * width + query_key
    return WeightCounts(shape["vocabulary_size"] * width + width, layer)


def count_parameters(experiment: Experiment, last_cutoff: int | None) -> int | None:
    """Count the weights that a text passes, in Gemma's kept layers and in RoBERTa.

    Embeddings are included; the projection, less than a hundredth of them, is not.

    Args:
        experiment: settings: kind and presets.
        last_cutoff: number of Gemma's layers that are kept; None for RoBERTa alone.

    Returns:
        The count; None if the shape of a preset is unknown.
    """
    total = 0
    for role in ROLES[experiment.kind]:
        try:
            shape = preset_shape(role, getattr(experiment, role))
        except InputError:
            return None
        num_layers = last_cutoff if role == "llm_preset" else shape["num_layers"]
        weights = count_weights(shape)
        total += weights.embedding + num_layers * weights.layer
    return total

"""Shapes: how many weights a model has, from its preset's config.json alone."""

import functools
from typing import Any, NamedTuple

from embedder_helpers.config import Experiment, InputError
from embedder_helpers.presets import ROLES, preset_config

# Shapes of the original study's models, for where their config.json cannot be fetched, from the
# papers (Gemma: arXiv:2403.08295, table 1; RoBERTa: arXiv:1907.11692, section 3) in Keras's words.
KNOWN = {
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


class Weights(NamedTuple):
    """How many weights a model has: its embeddings with what follows all blocks, and a block."""

    embedding: int
    block: int


@functools.cache
def shape_of(role: str, name: str) -> dict[str, Any]:
    """The shape of a preset in Keras's words: of its config.json, or known beforehand.

    Raises:
        InputError: it cannot be had, or is in Hugging Face's format.
    """
    try:
        config = preset_config(role, name)
    except InputError:
        if name not in KNOWN:
            raise
        return KNOWN[name]
    if "class_name" not in config:
        raise InputError(f"{role} {name!r} is a Hugging Face model: give a Keras preset to reckon")
    return {"class_name": config["class_name"], **config["config"]}


def weights_of(shape: dict[str, Any]) -> Weights:
    """Weights of a Gemma 1, 2 or 3, or of a RoBERTa."""
    width, inner = shape["hidden_dim"], shape["intermediate_dim"]
    if "Gemma" not in shape["class_name"]:
        embedding = (shape["vocabulary_size"] + shape["max_sequence_length"] + 2) * width
        products = 4 * width * width + 2 * width * inner
        return Weights(embedding, products + 4 * width + inner + width + 4 * width)
    if shape["class_name"] == "GemmaBackbone":
        inner //= 2  # keras-hub counts gate and value together
    heads = shape["head_dim"] * (2 * shape["num_query_heads"] + 2 * shape["num_key_value_heads"])
    norms = 2 + shape.get("use_post_attention_norm", False) + shape.get("use_post_ffw_norm", False)
    query_key = 2 * shape["head_dim"] * bool(shape.get("use_query_key_norm"))
    block = width * heads + 3 * width * inner + norms * width + query_key
    return Weights(shape["vocabulary_size"] * width + width, block)


def parameters(experiment: Experiment, deepest: int | None) -> int | None:
    """Weights that a text passes, of the Gemma cut behind its deepest cutoff and of RoBERTa.

    Embeddings count, the projection's weights, below a hundredth, do not. None where a shape
    cannot be had.
    """
    total = 0
    for role in ROLES[experiment.kind]:
        try:
            shape = shape_of(role, getattr(experiment, role))
        except InputError:
            return None
        blocks = deepest if role == "llm_preset" else shape["num_layers"]
        total += weights_of(shape).embedding + blocks * weights_of(shape).block
    return total

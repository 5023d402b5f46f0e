"""RoBERTa fed with embeddings: its own token embeddings, or projected states in their place.

keras-hub's RoBERTa takes token ids only; this walks its layers by hand from the embeddings on.
"""

from typing import Any

from embedder_helpers.presets import Preset, load_preset


def load_roberta(preset: Preset, dtype: str = "float32") -> tuple[Any, Any]:
    """The backbone in a dtype or dtype policy, and the tokenizer of a preset."""
    import keras_hub

    models = keras_hub.models
    backbone = load_preset(models.Backbone, "slm_preset", preset, dtype=dtype)
    return backbone, load_preset(models.Tokenizer, "slm_preset", preset)


def encode_embeddings(roberta: Any, embeddings: Any, mask: Any) -> Any:
    """RoBERTa from its input embeddings on.

    Positions are added here, so padding must stand on the right.

    Args:
        roberta: a `RobertaBackbone`.
        embeddings: `(texts, tokens, width)`, in the place of token embeddings.
        mask: `(texts, tokens)`, 1 for tokens and 0 for padding.

    Returns:
        Token states `(texts, tokens, width)`.
    """
    states = embeddings + roberta.embeddings.position_embedding(embeddings)
    states = roberta.embeddings_layer_norm(states)
    states = roberta.embeddings_dropout(states)
    for block in roberta.transformer_layers:
        states = block(states, padding_mask=mask)
    return states

"""RoBERTa fed with embeddings: its own token embeddings, or projected hidden states in their place.

keras-hub's RoBERTa takes token ids only; here its layers are applied one by one to embeddings.
"""

from typing import Any

from keras import ops

from embedder_helpers.errors import InputError, show
from embedder_helpers.models.presets import Preset, from_preset


def load_roberta(preset: Preset, dtype: str = "float32") -> tuple[Any, Any]:
    """Load the backbone, in a dtype or dtype policy, and the tokenizer of a preset.

    Raises:
        InputError: the preset cannot be loaded, or has weights that are not finite.
    """
    import keras_hub

    models = keras_hub.models
    backbone = from_preset(models.Backbone, "slm_preset", preset, dtype=dtype)
    for weight in backbone.weights:
        if not bool(ops.all(ops.isfinite(weight))):
            raise InputError(
                f"{show(weight.path)} of {show(preset.handle)} is not finite: its weights are "
                "damaged, so copy the whole folder again, or use another preset"
            )
    return backbone, from_preset(models.Tokenizer, "slm_preset", preset)


def encode_embeddings(roberta: Any, embeddings: Any, mask: Any) -> Any:
    """Apply RoBERTa to embeddings in place of token ids.

    Position embeddings are added here, so padding must be on the right.

    Args:
        roberta: a `RobertaBackbone`.
        embeddings: `(texts, tokens, width)`, in place of token embeddings.
        mask: `(texts, tokens)`, 1 for tokens and 0 for padding.

    Returns:
        Hidden states of the last layer, `(texts, tokens, width)`.
    """
    states = embeddings + roberta.embeddings.position_embedding(embeddings)
    states = roberta.embeddings_layer_norm(states)
    states = roberta.embeddings_dropout(states)
    for layer in roberta.transformer_layers:
        states = layer(states, padding_mask=mask)
    return states

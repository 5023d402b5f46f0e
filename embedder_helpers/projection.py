"""The feed-forward projection from Gemma's state space into RoBERTa's embedding space."""

import keras


def build_projection(
    projection: str, llm_width: int, slm_width: int, dtype: str = "float32"
) -> keras.Sequential:
    """Layers that map `(texts, tokens, llm_width)` to `(texts, tokens, slm_width)`.

    Args:
        projection: `linear`, one dense layer, or `mlp`, a hidden layer of RoBERTa's width with GELU
            before it.
        llm_width: width of Gemma's states.
        slm_width: width of RoBERTa's embeddings.
        dtype: dtype or dtype policy of the layers.
    """
    layers = [keras.Input((None, llm_width))]
    if projection == "mlp":
        hidden = keras.layers.Dense(
            slm_width, activation="gelu", dtype=dtype, name="projection_hidden"
        )
        layers.append(hidden)
    layers.append(keras.layers.Dense(slm_width, dtype=dtype, name="projection_output"))
    return keras.Sequential(layers, name="projection")

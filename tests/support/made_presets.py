"""Presets of tiny models of families that are not built in."""

from pathlib import Path

import keras_hub

from embedder_helpers.models.presets import Preset, find_preset


def write_gemma(family: str, num_layers: int, folder: Path) -> Preset:
    """Write a tiny random Gemma 2 or 3 whose sliding window is shorter than most texts."""
    shape = dict(
        vocabulary_size=4096, num_layers=num_layers, num_query_heads=2, num_key_value_heads=1,
        hidden_dim=16, intermediate_dim=32, head_dim=8, use_post_ffw_norm=True,
        use_post_attention_norm=True, use_sliding_window_attention=True, sliding_window_size=4,
    )  # fmt: skip
    models = keras_hub.models
    if family == "gemma2":
        backbone = models.GemmaBackbone(**shape, attention_logit_soft_cap=50.0)
    else:
        backbone = models.Gemma3Backbone(**shape, image_size=None)
    backbone.save_to_preset(str(folder))
    tokenizer = find_preset("llm_preset", "tiny_gemma").handle
    models.Tokenizer.from_preset(tokenizer).save_to_preset(str(folder))
    return find_preset("llm_preset", str(folder))

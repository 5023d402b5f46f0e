import dataclasses
import math

import keras_hub
import pytest
from made_presets import write_gemma

from embedder_helpers.config import Experiment
from embedder_helpers.errors import InputError
from embedder_helpers.models import shapes
from embedder_helpers.models.architectures import build_embedder
from embedder_helpers.models.presets import find_preset
from embedder_helpers.models.shapes import (
    count_parameters,
    count_weights,
    forward_bytes_per_token,
    llm_weight_bytes,
    preset_shape,
    training_bytes,
)

GEMMA_2B = shapes.KNOWN_SHAPES["gemma_2b_en"]
ROBERTA_BASE = shapes.KNOWN_SHAPES["roberta_base_en"]
GEMMA_3_270M = {
    "class_name": "Gemma3Backbone", "vocabulary_size": 262144, "num_layers": 18,
    "num_query_heads": 4, "num_key_value_heads": 1, "hidden_dim": 640, "intermediate_dim": 2048,
    "head_dim": 256, "use_query_key_norm": True, "use_post_ffw_norm": True,
    "use_post_attention_norm": True,
}  # fmt: skip
ROBERTA_6L = ROBERTA_BASE | {"num_layers": 6, "hidden_dim": 384, "intermediate_dim": 1536}


def count_all(shape):
    weights = count_weights(shape)
    return weights.embedding + shape["num_layers"] * weights.layer


@pytest.mark.parametrize(
    ("role", "name", "backbone"),
    [
        ("llm_preset", "gemma_2b_en", keras_hub.models.GemmaBackbone),
        ("slm_preset", "roberta_base_en", keras_hub.models.RobertaBackbone),
    ],
)
def test_known_shapes_have_the_weights_that_keras_hub_publishes(role, name, backbone):
    assert count_all(shapes.KNOWN_SHAPES[name]) == backbone.presets[name]["metadata"]["params"]


@pytest.mark.parametrize("name", ["tiny_gemma", "tiny_roberta", "gemma2", "gemma3"])
def test_weights_are_counted_as_keras_counts_them(name, tmp_path):
    role = "slm_preset" if name == "tiny_roberta" else "llm_preset"
    is_built_in = name.startswith("tiny")
    preset = find_preset(role, name) if is_built_in else write_gemma(name, 3, tmp_path)
    backbone = keras_hub.models.Backbone.from_preset(preset.handle)
    assert count_all(preset_shape(role, preset.name)) == backbone.count_params()


def test_a_hugging_face_model_is_an_error(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "gemma", "hidden_size": 8}')
    with pytest.raises(InputError, match="llm_preset .*Keras preset"):
        preset_shape("llm_preset", str(tmp_path))


def test_a_preset_that_cannot_be_read_and_has_no_known_shape_is_an_error():
    with pytest.raises(InputError, match="llm_preset.*'gemma_3b_en'"):
        preset_shape("llm_preset", "gemma_3b_en")


def variables_of(embedder):
    """The weights of an embedder's models and of all that was built between them, each once."""
    variables = {id(weight): weight for weight in embedder.model.weights}
    if embedder.roberta:
        variables |= {id(weight): weight for weight in embedder.roberta.weights}
    if embedder.gemma:
        embedder.gemma._load(embedder.specs[-1].cutoff)
        weights = [weight for layer in embedder.gemma._layers for weight in layer.values()]
        weights += [embedder.gemma._weights.table, embedder.gemma._weights.final_norm]
        variables |= {id(weight): weight for weight in weights}
    return list(variables.values())


@pytest.mark.parametrize(
    "settings",
    [
        {"kind": "roberta_only"},
        {"kind": "gemma_only"},
        {"kind": "hybrid"},
        {"projection": "mlp", "fusion": "prepend"},
        {"fusion": "add"},
        {"fusion": "add", "projection_start": "ridge", "projection": "mlp", "late_fusion": True},
        {"llm_layers": (1, 2, 4), "layer_pooling": "learned", "late_fusion": True},
        {"llm_layers": (1, 2, 4), "layer_pooling": "max"},
        {"llm_layers": (4,), "layer_pooling": "learned"},
        {"llm_layers": "auto"},
    ],
    ids=lambda settings: " ".join(map(str, settings.values())),
)
def test_parameters_are_the_weights_of_all_that_a_text_passes(settings):
    experiment = Experiment(**{"llm_layers": 4} | settings)
    # A cutoff that is selected is that of another experiment once it is.
    cutoff = 4 if experiment.llm_layers == "auto" else experiment.llm_layers
    embedder = build_embedder(dataclasses.replace(experiment, llm_layers=cutoff))
    expected = sum(math.prod(weight.shape) for weight in variables_of(embedder))
    last_cutoff = embedder.specs[-1].cutoff if embedder.gemma else None
    assert count_parameters(experiment, last_cutoff) == expected


def test_parameters_of_a_preset_that_cannot_be_found_are_unknown():
    assert count_parameters(Experiment(kind="gemma_only", llm_preset="not/there"), 3) is None


# Memory


def test_layers_take_the_bytes_of_their_dtype_and_their_norms_those_of_float32():
    layer = count_weights(GEMMA_2B).layer
    width = GEMMA_2B["hidden_dim"]
    assert llm_weight_bytes(GEMMA_2B, 3, "float32") == 4 * (3 * layer + width)
    norms = 2 * width
    expected = 3 * (2 * (layer - norms) + 4 * norms) + 4 * width
    for dtype in ("bfloat16", "float16"):
        assert llm_weight_bytes(GEMMA_2B, 3, dtype) == expected


def test_two_layers_are_in_memory_when_layers_are_streamed():
    streamed = [llm_weight_bytes(GEMMA_2B, k, "bfloat16", streamed=True) for k in (1, 2, 18)]
    loaded = [llm_weight_bytes(GEMMA_2B, k, "bfloat16") for k in (1, 2, 2)]
    assert streamed == loaded


# Peaks of memory per token of a batch, in kB, measured on a CPU (docs/performance.md).
@pytest.mark.parametrize(
    ("shape", "length", "is_compiled", "measured"),
    [
        (GEMMA_2B, 32, True, 203),
        (GEMMA_2B, 256, True, 213),
        (GEMMA_2B, 256, False, 418),
        (GEMMA_2B, 512, False, 444),
        (GEMMA_3_270M, 32, True, 30.6),
        (GEMMA_3_270M, 512, True, 30.8),
        (GEMMA_3_270M, 512, False, 56.8),
    ],
)
def test_a_layers_working_memory_is_that_measured(shape, length, is_compiled, measured):
    estimated = forward_bytes_per_token(shape, length, is_compiled) / 1e3
    assert estimated == pytest.approx(measured, rel=0.15)


def test_long_texts_need_memory_for_attention():
    short, long, longer = (
        forward_bytes_per_token(GEMMA_3_270M, length, True) for length in (32, 1024, 2048)
    )
    assert short < long
    assert longer - long == 4 * 2 * 4 * 1024  # two arrays of float32 for each of four heads


# Growth of the peak over that of a tiny step, in GB, measured on a CPU (docs/performance.md).
@pytest.mark.parametrize(
    ("shape", "texts", "length", "measured"),
    [
        (ROBERTA_6L, 32, 128, 1.33),
        (ROBERTA_6L, 32, 256, 3.58),
        (ROBERTA_BASE, 32, 64, 2.16),
        (ROBERTA_BASE, 32, 128, 4.64),
        (ROBERTA_BASE, 8, 256, 2.64),
    ],
)
def test_a_training_steps_activations_take_the_memory_measured(shape, texts, length, measured):
    activations = training_bytes(shape, texts * length, length) - training_bytes(shape, 0, length)
    assert activations / 1e9 == pytest.approx(measured, rel=0.15)


def test_training_holds_each_weight_four_times_and_halves_activations_in_mixed_precision():
    weights = training_bytes(ROBERTA_BASE, 0, 64)
    assert weights == 16 * count_all(ROBERTA_BASE)
    single, half = (training_bytes(ROBERTA_BASE, 1024, 64, size) - weights for size in (4, 2))
    assert single == 2 * half

import math

import keras_hub
import pytest
from made_presets import write_gemma

from embedder_helpers.config import Experiment, InputError
from embedder_helpers.models import shapes
from embedder_helpers.models.presets import find_preset
from embedder_helpers.models.shapes import count_parameters, count_weights, preset_shape


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


@pytest.mark.parametrize("kind", ["roberta_only", "gemma_only", "hybrid"])
def test_parameters_are_those_of_roberta_and_of_gemmas_kept_layers(tiny_embedders, kind):
    embedder = tiny_embedders[kind]
    expected = embedder.roberta.count_params() if embedder.roberta else 0
    cutoff = None
    if embedder.gemma:
        gemma, cutoff = embedder.gemma, embedder.specs[0].cutoff
        gemma._load(cutoff)
        weights = [weight for i in range(cutoff) for weight in gemma._weights(i)]
        expected += sum(math.prod(weight.shape) for weight in [*weights, gemma._embedding])
        expected += gemma._learned_norm.count_params()
    assert count_parameters(embedder.experiment, cutoff) == expected


def test_parameters_of_a_preset_that_cannot_be_found_are_unknown():
    assert count_parameters(Experiment(kind="gemma_only", llm_preset="not/there"), 3) is None

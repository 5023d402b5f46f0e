"""Shapes: weights as Keras counts them."""

import keras_hub
import pytest
from made_presets import write_gemma

from embedder_helpers import shapes
from embedder_helpers.config import Experiment, InputError
from embedder_helpers.embedder import build_embedder
from embedder_helpers.presets import find_preset
from embedder_helpers.shapes import parameters, shape_of, weights_of


def total(shape):
    weights = weights_of(shape)
    return weights.embedding + shape["num_layers"] * weights.block


@pytest.mark.parametrize(
    ("role", "name", "models"),
    [
        ("llm_preset", "gemma_2b_en", keras_hub.models.GemmaBackbone),
        ("slm_preset", "roberta_base_en", keras_hub.models.RobertaBackbone),
    ],
)
def test_the_known_models_have_the_weights_that_keras_hub_publishes(role, name, models):
    assert total(shapes.KNOWN[name]) == models.presets[name]["metadata"]["params"]


@pytest.mark.parametrize("name", ["tiny_gemma", "tiny_roberta", "gemma2", "gemma3"])
def test_weights_are_as_many_as_a_models_own(name, tmp_path):
    role = "slm_preset" if name == "tiny_roberta" else "llm_preset"
    written = name in ("gemma2", "gemma3")
    preset = write_gemma(name, 3, tmp_path) if written else find_preset(role, name)
    model = keras_hub.models.Backbone.from_preset(preset.handle)
    assert total(shape_of(role, preset.name)) == model.count_params()


def test_a_hugging_face_model_is_told(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "gemma", "hidden_size": 8}')
    with pytest.raises(InputError, match="give a Keras preset"):
        shape_of("llm_preset", str(tmp_path))


def test_a_model_that_cannot_be_had_and_is_not_known_is_told():
    with pytest.raises(InputError, match="there is no preset 'gemma_3b_en'"):
        shape_of("llm_preset", "gemma_3b_en")


@pytest.mark.parametrize(
    ("kind", "cutoffs"), [("roberta_only", ()), ("gemma_only", (3,)), ("hybrid", (3,))]
)
def test_parameters_are_the_models_own_without_the_projection(kind, cutoffs):
    experiment = Experiment(kind=kind, llm_layers=3, fusion="add")
    embedder = build_embedder(experiment)
    own = embedder.model.count_params()
    if kind == "hybrid":
        own -= embedder.projection.count_params() + embedder.standard.count_params()
        own -= sum(layer.count_params() for layer in embedder.model.layers if layer.name == "gate")
    if embedder.gemma:
        embedder.gemma._load(3)
        blocks = sum(w.shape.num_elements() for i in range(3) for w in embedder.gemma._weights(i))
        table, norm = embedder.gemma._embedding, embedder.gemma._learned_norm
        own += blocks + table.shape.num_elements() + norm.count_params()
    assert parameters(experiment, max(cutoffs, default=None)) == own


def test_a_preset_that_cannot_be_reached_has_no_parameters():
    assert parameters(Experiment(kind="gemma_only", llm_preset="not/there"), 3) is None

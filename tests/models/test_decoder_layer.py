import functools

import keras
import numpy as np
import pytest
from keras import ops
from keras_hub.src.models.gemma.gemma_decoder_block import GemmaDecoderBlock
from keras_hub.src.models.gemma3.gemma3_decoder_block import Gemma3DecoderBlock

from embedder_helpers.models.decoder_layer import (
    apply_layer,
    arrange_weights,
    compiled_matmul,
    layer_kind,
    stored_shapes,
)
from embedder_helpers.models.gemma import _compile
from embedder_helpers.models.layer_weights import _variables

WIDTH, LENGTH = 24, 12
SHAPE = dict(
    hidden_dim=WIDTH, intermediate_dim=40, head_dim=8, num_query_heads=6, num_key_value_heads=2,
    sliding_window_size=5,
)  # fmt: skip
OPTIONS = {
    "GemmaBackbone": [
        {},
        {"attention_logit_soft_cap": 2.0, "use_sliding_window_attention": True},
        {"use_post_ffw_norm": True, "use_post_attention_norm": True},
    ],
    "Gemma3Backbone": [
        {"use_query_key_norm": True, "use_sliding_window_attention": True},
        {"use_bidirectional_attention": True, "use_sliding_window_attention": True},
        {"use_bidirectional_attention": True, "use_post_ffw_norm": True},
        {"global_rope_scaling_factor": 8.0, "local_rope_scaling_factor": 2.0},
    ],
}
CASES = [(name, options) for name, cases in OPTIONS.items() for options in cases]
# The first layer is local, if there are local ones, and the sixth of Gemma 2 and 3 is not.
INDICES = (0, 5)


def keras_layer(shape, index):
    """keras-hub's layer, as its backbones make it, with random weights."""
    names = {"attention_logit_soft_cap": "logit_soft_cap"}
    options = {names.get(name, name): value for name, value in shape.items()}
    kind = layer_kind(shape, index)
    options["use_sliding_window_attention"] = kind.window is not None
    local, whole = (options.pop(f"{n}_rope_scaling_factor", 1.0) for n in ("local", "global"))
    if options.pop("class_name") == "GemmaBackbone":
        layer = GemmaDecoderBlock(**options)
    else:
        options["gate_dim_reduction"] = 1
        options["rope_wavelength"] = 1e4 if kind.window else 1e6
        options["rope_scaling_factor"] = local if kind.window else whole
        layer = Gemma3DecoderBlock(**options)
    layer.build((None, None, WIDTH))
    generator = np.random.default_rng(0)
    for variable in layer.variables:
        variable.assign(generator.normal(0, 0.2, variable.shape))
    return layer


@functools.cache
def batch():
    """States of four texts, and a mask of texts of several lengths."""
    states = np.random.default_rng(1).normal(0, 3, (4, LENGTH, WIDTH)).astype("float32")
    mask = np.arange(LENGTH) < np.array([LENGTH, 7, 2, 1])[:, None]
    return states, mask.astype("int32")


def stored_weights(layer):
    return {path: ops.convert_to_numpy(value) for path, value in _variables(layer)}


def applied(shape, index, dtype="float32", matmul=ops.matmul):
    """The states of the batch's tokens after a layer, and those that keras-hub computes."""
    layer, (states, mask) = keras_layer(shape, index), batch()
    weights, _ = arrange_weights(stored_weights(layer), dtype)
    tensors = {name: ops.convert_to_tensor(value) for name, value in weights.items()}
    arguments = tensors, ops.convert_to_tensor(states), ops.convert_to_tensor(mask)
    function = functools.partial(apply_layer, layer_kind(shape, index), matmul)
    if matmul is compiled_matmul:
        function = _compile(function, True)
    output, finite = function(*arguments)
    assert bool(finite)
    tokens = mask.astype(bool)
    expected = layer(states, padding_mask=mask)
    return ops.convert_to_numpy(output)[tokens], ops.convert_to_numpy(expected)[tokens]


@pytest.mark.parametrize("index", INDICES)
@pytest.mark.parametrize(("class_name", "options"), CASES)
def test_a_layer_equals_keras_hubs(class_name, options, index):
    states, expected = applied({**SHAPE, **options, "class_name": class_name}, index)
    np.testing.assert_allclose(states, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("class_name", "options"), CASES)
def test_stored_weights_have_the_shapes_that_keras_hub_gives_them(class_name, options):
    shape = {**SHAPE, **options, "class_name": class_name}
    stored = stored_weights(keras_layer(shape, 0))
    assert {path: array.shape for path, array in stored.items()} == stored_shapes(shape)


def test_only_matrices_are_in_half_precision():
    shape = {**SHAPE, "class_name": "Gemma3Backbone", "use_query_key_norm": True}
    weights, lost = arrange_weights(stored_weights(keras_layer(shape, 0)), "bfloat16")
    dtypes = {array.ndim: array.dtype.name for array in weights.values()}
    assert dtypes == {1: "float32", 2: "bfloat16"} and lost == 0


def test_weights_that_float16_cannot_hold_are_counted():
    stored = stored_weights(keras_layer({**SHAPE, "class_name": "GemmaBackbone"}, 0))
    stored["ffw_linear"] = stored["ffw_linear"].copy()
    stored["ffw_linear"][0, :4] = 1e5, -1e5, 1e-9, 0.0
    weights, lost = arrange_weights(stored, "float16")
    assert lost == 3
    assert weights["ffw_linear"][0, :4].tolist() == [np.inf, -np.inf, 0.0, 0.0]


@pytest.mark.parametrize("padding", [100.0, 1e30])
def test_padding_may_hold_anything(padding):
    shape = {**SHAPE, "class_name": "GemmaBackbone"}
    layer, (states, mask) = keras_layer(shape, 0), batch()
    weights, _ = arrange_weights(stored_weights(layer), "float32")
    kind, tokens = layer_kind(shape, 0), mask.astype(bool)[..., None]
    other = np.where(tokens, states, np.float32(padding))
    (first, _), (second, finite) = (
        apply_layer(kind, ops.matmul, weights, values, mask) for values in (states, other)
    )
    np.testing.assert_array_equal(ops.convert_to_numpy(first), ops.convert_to_numpy(second))
    assert bool(finite) and not ops.convert_to_numpy(second)[~tokens[..., 0]].any()


def test_states_that_are_not_finite_are_reported():
    shape = {**SHAPE, "class_name": "GemmaBackbone"}
    states, mask = batch()
    states = states.copy()
    states[1, 6] = np.inf
    weights, _ = arrange_weights(stored_weights(keras_layer(shape, 0)), "float32")
    _, finite = apply_layer(layer_kind(shape, 0), ops.matmul, weights, states, mask)
    assert not bool(finite)


@pytest.mark.skipif(keras.config.backend() == "torch", reason="nothing is compiled with torch")
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_compiled_products_of_half_precision_are_rounded_once(dtype):
    """Only operands are rounded, so that errors are smaller than if results were too."""
    shape = {**SHAPE, "class_name": "Gemma3Backbone", "use_query_key_norm": True}
    errors = []
    for matmul in (compiled_matmul, ops.matmul):
        states, expected = applied(shape, 0, dtype, matmul)
        errors.append(np.linalg.norm(states - expected) / np.linalg.norm(expected))
    assert 0 < errors[0] < errors[1] < 0.02


def test_products_whose_results_exceed_float16_are_finite_if_compiled():
    rows = ops.convert_to_tensor(np.full((2, 64), 60.0, "float16"))
    matrix = ops.convert_to_tensor(np.full((64, 2), 60.0, "float16"))
    if keras.config.backend() != "torch":
        compiled = _compile(compiled_matmul, True)(rows, matrix)
        np.testing.assert_array_equal(ops.convert_to_numpy(compiled), 64 * 3600.0)
    assert not np.isfinite(ops.convert_to_numpy(ops.matmul(rows, matrix))).any()

import h5py
import keras_hub
import ml_dtypes
import numpy as np
import pytest
from keras import ops

from benchmarks import gemma_2b_shape
from embedder_helpers.models.gemma import Gemma, HiddenStateSpec
from embedder_helpers.models.presets import find_preset

SHAPE = {
    "num_layers": 2, "vocabulary_size": 4096, "num_query_heads": 4, "num_key_value_heads": 1,
    "hidden_dim": 24, "intermediate_dim": 48, "head_dim": 8,
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("presets") / "gemma"
    gemma_2b_shape.write_preset(folder, SHAPE)
    return folder


def layout(path):
    """Everything in a weights file but the values."""
    items = {}

    def record(name, item):
        kind = (item.shape, item.dtype, item.chunks) if isinstance(item, h5py.Dataset) else None
        items[name] = kind, dict(item.attrs)

    with h5py.File(path) as file:
        file.visititems(record)
    return items


def test_the_weights_have_the_layout_that_keras_writes(folder, tmp_path):
    keras_hub.models.GemmaBackbone(**SHAPE, dtype="bfloat16").save_to_preset(str(tmp_path))

    def without_counters(items):  # Keras numbers layers that were given no name
        return {
            name: (kind, {key: value.rstrip("_0123456789") for key, value in attributes.items()})
            for name, (kind, attributes) in items.items()
        }

    written, expected = (layout(one / "model.weights.h5") for one in (folder, tmp_path))
    assert without_counters(written) == without_counters(expected)
    assert {path.name for path in tmp_path.iterdir()} <= {path.name for path in folder.iterdir()}


def test_keras_hub_loads_every_weight_bit_for_bit(folder):
    backbone = keras_hub.models.Backbone.from_preset(str(folder), dtype="bfloat16")
    assert {name: getattr(backbone, name) for name in SHAPE} == SHAPE
    layer = backbone.transformer_layers[1]
    loaded = {
        "reversible_embedding/vars/0": backbone.token_embedding.embeddings,
        "rms_normalization/vars/0": backbone.layer_norm.scale,
        "gemma_decoder_block_1/attention/query_dense/vars/0": layer.attention.query_dense.kernel,
        "gemma_decoder_block_1/ffw_linear/vars/0": layer.ffw_linear.kernel,
        "gemma_decoder_block_1/gating_ffw_2/vars/0": layer.gating_ffw_2.kernel,
    }
    with h5py.File(folder / "model.weights.h5") as file:
        for name, variable in loaded.items():
            stored = file["layers"][name][()].view(ml_dtypes.bfloat16)
            values = ops.convert_to_numpy(variable.value)
            assert values.tobytes() == stored.tobytes()
            assert 0.01 < stored.astype("float32").std() < 0.03


def test_fewer_layers_have_the_same_weights(folder, tmp_path):
    gemma_2b_shape.write_preset(tmp_path / "gemma", SHAPE | {"num_layers": 1})
    name = "layers/gemma_decoder_block/ffw_linear/vars/0"
    with (
        h5py.File(folder / "model.weights.h5") as both,
        h5py.File(tmp_path / "gemma" / "model.weights.h5") as one,
    ):
        assert both[name][()].tobytes() == one[name][()].tobytes()
        assert "gemma_decoder_block_1" not in one["layers"]


@pytest.mark.parametrize("stream", [False, True])
def test_the_preset_runs(folder, stream):
    gemma = Gemma(find_preset("llm_preset", str(folder)), stream)
    ids, _ = gemma.tokenize(["The weather is fine."], 16)
    states = gemma.hidden_states(ids, [HiddenStateSpec(2, "rms")])
    assert states.values.shape == (ids.lengths.sum(), SHAPE["hidden_dim"])
    assert np.isfinite(states.values).all()

"""What the package leaves as it was, and what it does not depend on."""

import json
import os
import random
import subprocess
import sys

import keras
import numpy as np
import pytest

from embedder_helpers.config import Experiment
from embedder_helpers.data.tasks import task_from_arrays
from embedder_helpers.errors import InputError
from embedder_helpers.experiments.plan import plan_experiment
from embedder_helpers.experiments.run import train_embedder
from embedder_helpers.models.architectures import build_embedder, load_embedder
from embedder_helpers.models.hidden_states import HiddenStateCache
from embedder_helpers.utils import keras_state
from embedder_helpers.utils.keras_state import own_keras_state

TEXTS = [f"The {word} on day {day}." for day in range(8) for word in ("rain fell", "sun shone")]
KINDS = {
    "hybrid": {
        "fusion": "replace", "projection": "mlp", "llm_layers": (1, 2), "layer_pooling": "learned",
    },
    "add": {"fusion": "add", "llm_layers": 2},
    "gemma_only": {"kind": "gemma_only", "llm_layers": (1, 2)},
    "roberta_only": {"kind": "roberta_only"},
}  # fmt: skip


def random_state():
    """The states of the process's random generators."""
    name, keys, *rest = np.random.get_state()
    state = [random.getstate(), name, keys.tolist(), *rest]
    if keras.config.backend() == "torch":
        import torch

        state.append(torch.get_rng_state().tolist())
    return state


def train(experiment, folder):
    labels = ["wet", "dry"] * (len(TEXTS) // 2)
    plan = plan_experiment(experiment, None, task_from_arrays(TEXTS, labels))
    return train_embedder(plan, HiddenStateCache(folder, 1))


@pytest.fixture(params=["float64", "mixed_float16", "mixed_bfloat16"])
def precision(request):
    """A precision that the user's program has set."""
    policy, floatx = keras.config.dtype_policy(), keras.config.floatx()
    if request.param.startswith("float"):
        keras.config.set_floatx(request.param)
    keras.config.set_dtype_policy(request.param)
    yield request.param
    keras.config.set_floatx(floatx)
    keras.config.set_dtype_policy(policy)


@pytest.mark.parametrize("kind", KINDS)
def test_building_saving_loading_and_encoding_leave_the_random_state_as_it_was(kind, tmp_path):
    before = random_state()
    embedder = build_embedder(Experiment(**KINDS[kind]))
    assert random_state() == before
    embedder.encode(TEXTS[:2])
    assert random_state() == before
    loaded = load_embedder(embedder.save(tmp_path / "saved", with_gemma=True))
    assert random_state() == before
    loaded.encode(TEXTS[:2])
    assert random_state() == before


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["hybrid", "roberta_only"])
def test_training_leaves_the_random_state_as_it_was(kind, tmp_path):
    before = random_state()
    train(Experiment(**KINDS[kind], epochs=1, batch_size=8, train_split="train"), tmp_path)
    assert random_state() == before


@pytest.mark.parametrize("kind", KINDS)
def test_the_users_precision_changes_no_embedding_and_stays_as_it_was(kind, precision):
    with own_keras_state():
        expected = build_embedder(Experiment(**KINDS[kind])).encode(TEXTS)
    embedder = build_embedder(Experiment(**KINDS[kind]))
    np.testing.assert_array_equal(embedder.encode(TEXTS), expected)
    assert keras.config.dtype_policy().name == precision
    assert not precision.startswith("float") or keras.config.floatx() == precision


@pytest.mark.slow
def test_the_users_precision_changes_no_training(precision, tmp_path):
    experiment = Experiment(**KINDS["hybrid"], epochs=1, batch_size=8, train_split="train")
    with own_keras_state():
        expected = train(experiment, tmp_path)
    trained = train(experiment, tmp_path)
    np.testing.assert_array_equal(trained.encode(TEXTS), expected.encode(TEXTS))
    np.testing.assert_array_equal(trained.head.kernel, expected.head.kernel)


def test_the_state_is_restored_after_an_error():
    before = random_state()
    with pytest.raises(InputError), own_keras_state():
        random.random()
        np.random.rand()
        raise InputError("wrong")
    assert random_state() == before


def test_a_backend_that_cannot_train_is_reported(monkeypatch):
    monkeypatch.setattr(keras.config, "backend", lambda: "numpy")
    with pytest.raises(InputError, match="numpy.* KERAS_BACKEND .*tensorflow"):
        keras_state.backend()


# Keras reads its settings when it is imported, so in a process of its own.

ENCODE = """
import sys
import numpy as np
from embedder_helpers import Experiment, build_embedder
embedder = build_embedder(Experiment(llm_layers=2, fusion="add", projection_start="random"))
np.save(sys.argv[1], embedder.encode(["The rain fell.", "The sun shone."]))
"""


def run_with(settings, arguments, folder):
    """Run Python with a keras.json and environment variables of its own."""
    folder.mkdir()
    (folder / "keras.json").write_text(json.dumps(settings.pop("file", {})))
    variables = os.environ | {"KERAS_HOME": str(folder), "PYTHONPATH": os.getcwd()} | settings
    command = [sys.executable, *arguments]
    return subprocess.run(command, env=variables, capture_output=True, text=True)


@pytest.mark.slow
def test_keras_json_changes_no_embedding(tmp_path):
    files = [
        {},
        {"floatx": "float16", "epsilon": 0.1, "image_data_format": "channels_first"},
        {"floatx": "float64", "backend": "nonsense"},
    ]
    embeddings = []
    for number, file in enumerate(files):
        path = tmp_path / f"{number}.npy"
        process = run_with({"file": file}, ["-c", ENCODE, str(path)], tmp_path / str(number))
        assert process.returncode == 0, process.stderr
        embeddings.append(np.load(path))
    np.testing.assert_array_equal(embeddings[1], embeddings[0])
    np.testing.assert_array_equal(embeddings[2], embeddings[0])


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [{"KERAS_BACKEND": "nonsense"}, {"KERAS_BACKEND": "numpy"}, {"file": {"floatx": "nonsense"}}],
)
def test_settings_that_keras_does_not_accept_are_one_sentence(settings, tmp_path):
    arguments = ["-m", "embedder_helpers", "sweep", "quickstart", "--out", str(tmp_path / "out")]
    process = run_with(settings, arguments, tmp_path / "home")
    assert process.returncode == 2
    assert "error: Keras" in process.stderr and "KERAS_BACKEND" in process.stderr
    assert "Traceback" not in process.stderr

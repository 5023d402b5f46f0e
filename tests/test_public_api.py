"""The public API: its names, found without importing Keras or TensorFlow."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

import embedder_helpers as eh

ROOT = Path(__file__).resolve().parent.parent
NAMES = set(
    "Experiment InputError build_embedder evaluate layer_table load_embedder load_experiments "
    "load_results load_task results_table run_experiments summarize verdict with_baselines "
    "write_report".split()
)
LIGHT = sorted(NAMES - {"build_embedder", "load_embedder", "verdict"})  # these have Keras models
HEAVY = ["keras", "keras_hub", "tensorflow", "torch", "jax"]
IMPORT = """
import json, sys
import embedder_helpers as eh
print(json.dumps({
    "dir": dir(eh),
    "all": eh.__all__,
    "version": eh.__version__,
    "light": [getattr(eh, name).__name__ for name in LIGHT],
    "heavy": [name for name in HEAVY if name in sys.modules],
}))
"""


@pytest.fixture(scope="module")
def imported():
    """What a process that imported the package, and used its light names, printed."""
    code = f"LIGHT = {LIGHT}; HEAVY = {HEAVY}{IMPORT}"
    process = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert process.returncode == 0, process.stderr
    return json.loads(process.stdout)


def test_the_light_names_need_neither_keras_nor_a_backend(imported):
    assert imported["light"] == LIGHT
    assert imported["heavy"] == []


def test_every_public_name_is_listed(imported):
    assert set(imported["all"]) == NAMES < set(imported["dir"])
    assert imported["version"] == eh.__version__


@pytest.mark.parametrize("name", eh.__all__)
def test_every_public_name_is_documented(name):
    assert not getattr(eh, name).__doc__.startswith(name)  # what a data class would get by itself


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="'embedder_helpers' has no attribute 'no_such_name'"):
        eh.no_such_name  # noqa: B018
    with pytest.raises(ImportError):
        exec("from embedder_helpers import no_such_name")

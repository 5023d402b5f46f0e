"""Models that experiments share: what is built again, and that no result depends on it."""

import gc
import itertools
import json
import random
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
import threadpoolctl
from made_task import experiment, write_task

from embedder_helpers.config import Experiment
from embedder_helpers.errors import InputError
from embedder_helpers.experiments import reuse
from embedder_helpers.experiments.plan import plan_experiment
from embedder_helpers.experiments.reuse import ReusableModels, by_architecture
from embedder_helpers.experiments.run import run_experiment, train_embedder
from embedder_helpers.models.architectures import build_embedder
from embedder_helpers.models.hidden_states import HiddenStateCache
from embedder_helpers.models.layers import FUSION_FUNCTIONS
from embedder_helpers.models.text_model import TextModel
from embedder_helpers.utils import environment

pytestmark = pytest.mark.usefixtures("fast_experiments")

ROOT = Path(__file__).resolve().parents[2]
on_tensorflow = pytest.mark.skipif(
    keras.config.backend() != "tensorflow", reason="other backends trace nothing here"
)

# Trained with dropout of RoBERTa, of the hidden states and of the head.
ARCHITECTURES = {
    "roberta_only": {"kind": "roberta_only", "patience": 1},
    "replace": {"fusion": "replace", "late_fusion": False, "state_dropout": 0.1},
    "add": {"fusion": "add", "late_fusion": False, "state_dropout": 0.1, "patience": 1},
    "late": {"fusion": "add", "late_fusion": True, "objective": "contrastive"},
}
BEFORE = {
    "seed": 1, "llm_layers": 1, "epochs": 1, "batch_size": 5, "learning_rate": 2e-3,
    "objective": "cross_entropy",
}  # fmt: skip
AFTER = {"seed": 2, "llm_layers": 2, "epochs": 3}


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    return write_task(tmp_path_factory.mktemp("task") / "weather")


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return HiddenStateCache(tmp_path_factory.mktemp("states"))


def outcome(settings, cache, models=None):
    """All numbers that an experiment leaves, exactly."""
    with threadpoolctl.threadpool_limits(1):  # with more, NumPy's products are rounded otherwise
        embedder, result = run_experiment(plan_experiment(settings, None), cache, models)
    weights = [*embedder.model.get_weights(), embedder.head.kernel, embedder.head.bias]
    return result.history, result.scores, result.head, [array.tobytes().hex() for array in weights]


def outcome_in_a_new_process(settings, cache, folder):
    """`outcome` of a process that runs nothing else, on the same hidden states."""
    lines = [
        "import json, sys",
        "from pathlib import Path",
        f"sys.path[:0] = {[str(ROOT), str(Path(__file__).parent), str(ROOT / 'tests/support')]}",
        "import test_reuse",
        "from embedder_helpers.utils import environment",
        f"environment.half_dtype = lambda: {environment.half_dtype()!r}",  # tests may change it
        "from embedder_helpers.config import make_experiment",
        "from embedder_helpers.models.hidden_states import HiddenStateCache",
        f"settings = make_experiment(json.loads({json.dumps(settings.as_dict())!r}))",
        f"numbers = test_reuse.outcome(settings, HiddenStateCache({str(cache.folder)!r}))",
        f"Path({str(folder)!r}, 'outcome.json').write_text(json.dumps(numbers))",
    ]
    done = subprocess.run([sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads((folder / "outcome.json").read_text())


@pytest.fixture
def traced(monkeypatch):
    """The steps that TensorFlow traces."""
    steps = []
    for name in ("train_step", "test_step", "predict_step"):
        step = getattr(TextModel, name)

        def record(*given, name=name, step=step):
            steps.append(name)
            return step(*given)

        monkeypatch.setattr(TextModel, name, record)
    return steps


@pytest.mark.slow
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_result_is_that_of_a_new_process_bit_for_bit(name, task, cache, tmp_path):
    models, common = ReusableModels(), ARCHITECTURES[name]
    run_experiment(plan_experiment(experiment(task, **common | BEFORE), None), cache, models)
    settings = experiment(task, **common | AFTER)
    again = outcome(settings, cache, models)
    assert json.loads(json.dumps(again)) == outcome_in_a_new_process(settings, cache, tmp_path)


class DisturbingCache(HiddenStateCache):
    """A cache that, before training, draws random numbers and builds another embedder."""

    def get_or_compute(self, *given):
        """As ever, after the disturbance."""
        keras.utils.set_random_seed(random.getrandbits(31))
        np.random.normal(size=3)
        keras.random.normal((3,))
        keras.layers.Dense(3).build((None, 2))
        if keras.config.backend() == "tensorflow":
            import tensorflow as tf

            tf.random.normal((3,))
        build_embedder(Experiment(llm_layers=3, fusion="prepend", seed=5))
        return super().get_or_compute(*given)


def trained_weights(settings, cache):
    embedder = train_embedder(plan_experiment(settings, None), cache)
    weights = [*embedder.model.get_weights(), embedder.head.kernel, embedder.head.bias]
    return [array.tobytes() for array in weights]


@pytest.mark.slow
def test_a_seed_alone_decides_what_a_training_leaves(task, tmp_path):
    settings = ARCHITECTURES["late"] | {"llm_layers": 1, "epochs": 1, "batch_size": 6}
    settings = experiment(task, **settings)
    computed = trained_weights(settings, HiddenStateCache(tmp_path / "states"))
    assert trained_weights(settings, HiddenStateCache(tmp_path / "states")) == computed  # read
    assert trained_weights(settings, DisturbingCache(tmp_path / "others")) == computed


def initial_state(settings):
    """Weights and random states of the layers that hybrids share, by layer and order."""
    embedder = build_embedder(settings)
    names = "projection", "state_dropout", "embeddings_dropout", "transformer_layer"
    layers = [layer for layer in embedder.model.layers if layer.name.startswith(names)]
    return {
        (layer.name, number): keras.ops.convert_to_numpy(variable)
        for layer in [*layers, *embedder.projection.layers]
        for number, variable in enumerate(layer.variables)
    }


def test_what_a_layer_starts_with_depends_on_the_seed_and_its_name_alone(task):
    common = {"fusion": "add", "projection": "mlp", "projection_start": "random"}
    common |= {"state_dropout": 0.1, "late_fusion": False}
    others = {"late_fusion": True, "batch_size": 3, "llm_layers": (1, 2), "pooling": "max"}
    one, other, another = (
        initial_state(experiment(task, **common | settings))
        for settings in ({}, others, {"seed": 5})
    )
    assert one.keys() == other.keys()
    for place, state in one.items():
        np.testing.assert_array_equal(state, other[place], str(place))
    differing = {place[0] for place, state in one.items() if (state != another[place]).any()}
    drawn = {"projection_linear", "projection_hidden", "state_dropout", "transformer_layer_0"}
    assert drawn < differing


@on_tensorflow
def test_the_second_experiment_of_an_architecture_builds_and_traces_nothing(
    task, cache, traced, monkeypatch
):
    models = ReusableModels()
    outcome(experiment(task, **BEFORE), cache, models)
    assert sorted(traced) == ["predict_step", "test_step", "train_step"]
    traced.clear()
    monkeypatch.delattr(reuse, "build_embedder")
    monkeypatch.delattr(reuse, "build_classifier")
    others = {"max_tokens": 20, "warmup": 0.5, "class_weights": True, "objective": "contrastive"}
    outcome(experiment(task, **AFTER, **others), cache, models)
    assert not traced


def test_an_embedder_of_another_architecture_is_built_anew(task):
    models = ReusableModels()
    one, other = (
        plan_experiment(experiment(task, kind="roberta_only", pooling=pooling), None)
        for pooling in ("mean", "max")
    )
    first = models.build_embedder(one.experiment, one.presets)
    assert models.build_embedder(one.experiment, one.presets) is first
    assert models.build_embedder(other.experiment, other.presets) is not first


def test_a_number_of_classes_has_a_classifier_of_its_own(task):
    models, plan = ReusableModels(), plan_experiment(experiment(task, kind="roberta_only"), None)
    embedder = models.build_embedder(plan.experiment, plan.presets)
    two = models.build_classifier(embedder, 2, 1.0)
    assert models.has_classifier(plan) and models.build_classifier(embedder, 2, 1.0) is two
    logits, embeddings = models.build_classifier(embedder, 3, 1.0).output
    assert logits.shape == (None, 3) and embeddings.shape == (None, 128)
    assert models.build_classifier(embedder, 3, None) is not two
    assert not models.has_classifier(plan)


@on_tensorflow
def test_released_models_leave_no_graph_in_memory(task, cache):
    def graphs():
        gc.collect()
        return sum(type(one).__name__ == "FuncGraph" for one in gc.get_objects())

    before, models = graphs(), ReusableModels()
    outcome(experiment(task, kind="roberta_only", epochs=1), cache, models)
    assert graphs() > before
    models.release_unless_read([plan_experiment(experiment(task, kind="roberta_only"), None)])
    assert graphs() > before
    models.release_unless_read([plan_experiment(experiment(task), None)])
    assert graphs() == before


def test_plans_of_one_architecture_follow_one_another(task):
    kinds = ("gemma_only", "hybrid")
    plans = [
        plan_experiment(experiment(task, kind=kind, llm_layers=cutoff), None)
        for cutoff in (1, 2, 3)
        for kind in kinds
    ]
    order = [(plan.experiment.kind, plan.experiment.llm_layers) for plan in by_architecture(plans)]
    assert order == [(kind, cutoff) for kind in kinds for cutoff in (1, 2, 3)]


def test_a_fusion_that_is_registered_again_is_another_architecture(task, monkeypatch):
    plan, keys = plan_experiment(experiment(task, fusion="add"), None), []
    for function in (lambda *_: 1, lambda *_: 2):
        monkeypatch.setitem(FUSION_FUNCTIONS, "add", function)
        keys.append(reuse.classifier_key(plan))
    assert keys[0] != keys[1]


def test_layers_that_two_architectures_have_in_common_start_with_the_same_dropout(task):
    states = []
    for kind in ("roberta_only", "hybrid"):
        plan = plan_experiment(experiment(task, kind=kind, fusion="add"), None)
        model = ReusableModels().build_embedder(plan.experiment, plan.presets).model
        variables = model.get_layer("transformer_layer_0").variables
        states.append([keras.ops.convert_to_numpy(v) for v in variables if "seed" in v.name])
    assert states[0]
    np.testing.assert_array_equal(*states)


def test_an_experiment_after_one_that_diverged_is_that_of_new_models(task, cache):
    models = ReusableModels()
    settings = experiment(task, **BEFORE | {"learning_rate": 1e30})
    with pytest.raises(InputError, match="diverged"):
        outcome(settings, cache, models)
    settings = experiment(task, **AFTER)
    assert outcome(settings, cache, models) == outcome(settings, cache)


def test_a_selected_cutoff_has_the_classifier_of_any_other(task):
    given, selected = (
        plan_experiment(experiment(task, llm_layers=cutoff), None) for cutoff in (1, "auto")
    )
    assert reuse.classifier_key(given) == reuse.classifier_key(selected)


def test_plans_of_two_tasks_alternate_neither_architectures_nor_classifiers(task, tmp_path):
    other = write_task(tmp_path / "other", num_classes=3)
    plans = [
        plan_experiment(experiment(folder, llm_layers=cutoff, **kind), None)
        for cutoff in (1, 2)
        for folder in (task, other)
        for kind in ({"fusion": "add"}, {"fusion": "replace"})
    ]
    keys = [reuse.classifier_key(plan) for plan in by_architecture(plans)]
    changes = sum(one != following for one, following in itertools.pairwise(keys))
    assert changes == len(set(keys)) - 1 == 3


def test_a_fusion_with_weights_that_are_not_initialized_is_an_error(task, monkeypatch):
    mixing = keras.layers.Dense(1, name="mixing")
    monkeypatch.setitem(FUSION_FUNCTIONS, "add", lambda projected, own, tokens: own * mixing(own))
    plan = plan_experiment(experiment(task, fusion="add"), None)
    with pytest.raises(InputError, match="'add'.*'mixing'.*projection"):
        ReusableModels().build_embedder(plan.experiment, plan.presets)

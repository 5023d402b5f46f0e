"""Probes: the layer that a linear classifier reads best, and the head of Gemma alone."""

import dataclasses

import numpy as np
import pytest
from made_task import write_task
from sklearn.linear_model import LogisticRegression, RidgeClassifier
from sklearn.model_selection import StratifiedKFold, cross_val_score
from sklearn.preprocessing import StandardScaler

from embedder_helpers.config import Experiment
from embedder_helpers.experiments import probe as probe_module
from embedder_helpers.experiments import run as run_module
from embedder_helpers.experiments.plan import Subset, plan_experiment
from embedder_helpers.experiments.probe import LayerScores, fit_probe, score_layers
from embedder_helpers.experiments.sweep import run_experiments
from embedder_helpers.models.architectures import GemmaOnly
from embedder_helpers.models.batching import from_lengths
from embedder_helpers.models.gemma import HiddenStateSpec
from embedder_helpers.models.hidden_states import HiddenStateCache
from embedder_helpers.models.tokenization import TokenizedTexts
from embedder_helpers.results.result import read_result

pytestmark = pytest.mark.usefixtures("fast_experiments")

SPECS = [HiddenStateSpec(cutoff, "rms") for cutoff in (1, 2, 3, 4)]


class MadeStates:
    """Cache and embedder in one: noise at every cutoff, and at one of them the label too."""

    gemma = None

    def __init__(self, labels, informative, noise=1.0):
        generator = np.random.default_rng(0)
        self.computed = {}
        self.embeddings = {}
        for spec in SPECS:
            self.embeddings[spec] = noise * generator.normal(size=(len(labels), 6))
            self.embeddings[spec][:, 2] += 3 * labels * (spec.cutoff == informative)

    def compute_missing(self, gemma, ids, wanted):
        self.computed |= wanted

    def get_or_compute(self, gemma, ids, specs):
        (spec,) = specs
        return self.embeddings[spec]

    def embed(self, states):
        return states


def score_made_states(labels, informative=3, **options):
    states = MadeStates(labels, informative, **options)
    ids = from_lengths(np.zeros(len(labels), "int32"), [1] * len(labels))
    tokens = TokenizedTexts([""] * len(labels), ids, None, np.zeros(len(labels), bool))
    return states, score_layers(states, states, tokens, labels, SPECS)


@pytest.mark.parametrize("informative", [1, 3, 4])
def test_the_cutoff_whose_states_hold_the_label_is_the_best_and_alone_in_its_set(informative):
    _, scores = score_made_states(np.arange(60) % 2, informative)
    accuracies = dict(scores.accuracies)
    assert list(accuracies) == [1, 2, 3, 4] and scores.best == scores.cheapest() == informative
    best = accuracies.pop(informative)
    assert best > 0.75 > max(accuracies.values())
    assert [cutoff for cutoff, p in scores.p_values.items() if p > 0.05] == [informative]


def test_the_cheapest_of_cutoffs_that_nothing_tells_apart_is_the_first():
    _, scores = score_made_states(np.arange(60) % 2, informative=None)
    assert scores.cheapest() == 1 and max(scores.p_values.values()) == 1


@pytest.mark.parametrize(
    ("rare", "folds"), [(30, 5), (3, 3), (2, 2), pytest.param(1, 2, id="a label of one text")]
)
@pytest.mark.filterwarnings("ignore:The least populated class:UserWarning")
def test_accuracies_are_those_of_scikit_learns_cross_validation(rare, folds):
    labels = np.array(["no"] * 30 + ["yes"] * rare)
    states, scores = score_made_states(labels == "yes")
    for spec in SPECS:
        split = StratifiedKFold(folds, shuffle=True, random_state=42)
        expected = cross_val_score(RidgeClassifier(), states.embeddings[spec], labels, cv=split)
        assert scores.accuracies[spec.cutoff] == pytest.approx(expected.mean())


def test_the_hidden_states_of_all_cutoffs_are_computed_in_one_forward_pass():
    states, _ = score_made_states(np.arange(20) % 2)
    assert list(states.computed) == SPECS
    assert all(mask.all() and len(mask) == 20 for mask in states.computed.values())


@pytest.mark.parametrize(("seed", "best"), [(6, 0.1), (31, 0.001)])
def test_a_probe_has_the_penalty_with_the_highest_validation_accuracy(seed, best):
    generator = np.random.default_rng(seed)
    labels = np.arange(40) % 2, np.arange(12) % 2
    embeddings = generator.normal(size=(40 + 12, 30))
    embeddings[:, 0] += 2 * np.concatenate(labels)
    others = generator.normal(size=(200, 30))
    head = fit_probe((embeddings[:40], labels[0]), (embeddings[40:], labels[1]))
    scaler = StandardScaler().fit(embeddings[:40])
    accuracies, predictions = {}, {}
    for penalty in probe_module.INVERSE_PENALTIES:
        reference = LogisticRegression(C=penalty, max_iter=1000)
        reference.fit(scaler.transform(embeddings[:40]), labels[0])
        accuracies[penalty] = reference.score(scaler.transform(embeddings[40:]), labels[1])
        predictions[penalty] = reference.predict(scaler.transform(others)).tolist()
    predicted = head.predict(others).tolist()
    assert max(accuracies, key=accuracies.get) == best
    assert [predicted == reference for reference in predictions.values()].count(True) == 1
    assert predicted == predictions[best]


# In an experiment


@pytest.fixture(autouse=True)
def no_earlier_selections(monkeypatch):
    monkeypatch.setattr(run_module, "_LAYER_SCORES", {})


@pytest.fixture(scope="module")
def weather(tmp_path_factory):
    return write_task(tmp_path_factory.mktemp("probe") / "weather")


def auto(task, **settings):
    """An experiment that selects its cutoff, and is not trained otherwise."""
    settings = {"kind": "gemma_only", "llm_layers": "auto", "epochs": 0} | settings
    return Experiment(task=str(task), samples_per_label=2, max_tokens=24, **settings)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """Hidden states that the tests of this module share."""
    return HiddenStateCache(tmp_path_factory.mktemp("states"))


def select_layer(experiment, cache, folder):
    """The accuracies by which an experiment's cutoff is selected."""
    return run_module._resolve_layer(plan_experiment(experiment, folder), cache)[1][
        "layer_selection"
    ]


@pytest.mark.parametrize("kind", ["hybrid", "gemma_only"])
def test_a_result_has_the_selected_cutoff_and_the_accuracies_of_all(kind, weather, cache, tmp_path):
    experiment = auto(weather, kind=kind, states_dir=str(cache.folder))
    (result,), _ = run_experiments([experiment], tmp_path)
    (path,) = tmp_path.glob("*.json")
    assert read_result(path) == result
    assert list(result.layer_selection) == [str(cutoff) for cutoff in range(1, 19)]
    (cutoff,) = result.cutoffs
    assert result.layer_selection[str(cutoff)] == max(result.layer_selection.values()) <= 1
    assert result.layer_selection == select_layer(experiment, cache, tmp_path)
    assert result.experiment["llm_layers"] == "auto"
    explicit = dataclasses.replace(experiment, llm_layers=cutoff)
    (same,), _ = run_experiments([explicit], tmp_path / "explicit")
    assert same.layer_selection is None and same.scores == result.scores


def test_a_layer_is_selected_by_training_and_validation_texts_only(
    weather, cache, tmp_path, monkeypatch
):
    texts, tokenize = [], GemmaOnly.tokenize

    def record(embedder, some):
        texts.extend(some)
        return tokenize(embedder, some)

    monkeypatch.setattr(GemmaOnly, "tokenize", record)
    experiment = auto(weather)
    select_layer(experiment, cache, tmp_path)
    plan = plan_experiment(experiment, tmp_path)
    assert texts == plan.texts(Subset.TRAIN, Subset.VALIDATION) and len(texts) == 24 + 8
    assert not set(texts) & set(plan.task.test.texts())


def test_test_labels_do_not_affect_the_selection(weather, cache, tmp_path):
    relabeled = write_task(tmp_path / "weather", "rain")
    lines = (relabeled / "test.jsonl").read_text()
    (relabeled / "test.jsonl").write_text(lines.replace('"label": 0', '"label": 1'))
    accuracies = [select_layer(auto(task), cache, tmp_path) for task in (relabeled, weather)]
    assert accuracies[0] == accuracies[1]


def test_experiments_that_differ_only_after_the_hidden_states_share_a_selection(
    weather, cache, tmp_path, monkeypatch
):
    computed = []

    def record(plan, reader, cache):
        computed.append(plan)
        return LayerScores({3: 0.5}, np.ones((1, 4), bool))

    monkeypatch.setattr(run_module, "_score_layers", record)
    same = [
        {},
        {"kind": "hybrid"},
        {"kind": "hybrid", "seed": 7, "fusion": "add"},
        {"kind": "hybrid", "layer_pooling": "learned"},
        {"kind": "hybrid", "llm_layers": "cheapest"},
        {"kind": "hybrid", "llm_control": "shuffled"},
    ]
    others = [
        {"pooling": "max"},
        {"max_train_texts": 12},
        {"final_norm": "none"},
        {"llm_control": "random_weights"},
    ]
    for settings in same + others:
        select_layer(auto(weather, **settings), cache, tmp_path)
    assert len(computed) == 1 + len(others)


def test_a_hybrid_with_learned_pooling_selects_a_single_cutoff(weather, cache, tmp_path):
    learned = auto(weather, kind="hybrid", layer_pooling="learned")
    accuracies = select_layer(learned, cache, tmp_path)
    run_module._LAYER_SCORES.clear()
    assert accuracies == select_layer(auto(weather, kind="hybrid"), cache, tmp_path)

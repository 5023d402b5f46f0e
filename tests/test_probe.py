import dataclasses

import numpy as np
import pytest
from made_task import write_task
from sklearn.linear_model import LogisticRegression, RidgeClassifier
from sklearn.model_selection import StratifiedKFold, cross_val_score
from sklearn.preprocessing import StandardScaler

from embedder_helpers import probe as probe_module
from embedder_helpers import run as run_module
from embedder_helpers.config import Experiment
from embedder_helpers.embedder import GemmaOnly
from embedder_helpers.gemma import Depth
from embedder_helpers.plan import plan
from embedder_helpers.probe import choose_cutoff, fit_probe
from embedder_helpers.result import read_result
from embedder_helpers.states import Store
from embedder_helpers.sweep import sweep
from embedder_helpers.tokens import Tokens, end_to_end

DEPTHS = [Depth(cutoff, "rms") for cutoff in (1, 2, 3, 4)]


class MadeStates:
    """Stands for store and reader: noise behind every cutoff, and behind one the label too."""

    gemma = None

    def __init__(self, labels, telling, noise=1.0):
        generator = np.random.default_rng(0)
        self.filled = {}
        self.embeddings = {}
        for depth in DEPTHS:
            self.embeddings[depth] = noise * generator.normal(size=(len(labels), 6))
            self.embeddings[depth][:, 2] += 3 * labels * (depth.cutoff == telling)

    def fill(self, gemma, ids, wanted):
        self.filled |= wanted

    def states(self, gemma, ids, wanted):
        (depth,) = wanted
        return self.embeddings[depth]

    def embed(self, states):
        return states


def choice_of(labels, telling=3, **keys):
    made = MadeStates(labels, telling, **keys)
    ids = end_to_end(np.zeros(len(labels), "int32"), [1] * len(labels))
    tokens = Tokens(ids, None, np.zeros(len(labels), bool))
    return made, choose_cutoff(made, made, tokens, labels, DEPTHS)


@pytest.mark.parametrize("telling", [1, 3, 4])
def test_the_cutoff_whose_states_carry_the_label_is_read_best(telling, capsys):
    _, found = choice_of(np.arange(60) % 2, telling)
    assert list(found) == ["1", "2", "3", "4"] and max(found, key=found.get) == str(telling)
    others = [share for cutoff, share in found.items() if cutoff != str(telling)]
    assert found[str(telling)] > 0.75 > max(others)
    told = capsys.readouterr().out
    assert f"cutoff {telling} of 4 chosen" in told and f"{found[str(telling)]:.3f}" in told


@pytest.mark.parametrize(
    ("rare", "folds"), [(30, 5), (3, 3), (2, 2), pytest.param(1, 2, id="a label of one text")]
)
@pytest.mark.filterwarnings("ignore:The least populated class:UserWarning")
def test_shares_are_those_of_scikit_learns_cross_validation(rare, folds):
    labels = np.array(["no"] * 30 + ["yes"] * rare)
    made, found = choice_of(labels == "yes")
    for depth in DEPTHS:
        parts = StratifiedKFold(folds, shuffle=True, random_state=42)
        expected = cross_val_score(RidgeClassifier(), made.embeddings[depth], labels, cv=parts)
        assert found[str(depth.cutoff)] == pytest.approx(expected.mean())


def test_the_states_of_all_cutoffs_are_computed_in_one_walk():
    made, _ = choice_of(np.arange(20) % 2)
    assert list(made.filled) == DEPTHS
    assert all(mask.all() and len(mask) == 20 for mask in made.filled.values())


# In an experiment


@pytest.fixture(autouse=True)
def no_choice_made_before(monkeypatch):
    monkeypatch.setattr(run_module, "_CHOICES", {})


@pytest.fixture(scope="module")
def weather(tmp_path_factory):
    return write_task(tmp_path_factory.mktemp("choice") / "weather")


def auto(task, **keys):
    keys = {"kind": "gemma_only", "llm_layers": "auto", "epochs": 1, "batch_size": 8} | keys
    return Experiment(task=str(task), samples_per_label=2, max_tokens=24, **keys)


def choose(asked, folder):
    return run_module._choose(plan(asked, folder), Store(folder / "states"))


@pytest.mark.parametrize("kind", ["hybrid", "gemma_only"])
def test_a_result_tells_the_chosen_cutoff_and_the_shares_of_all(kind, weather, tmp_path):
    asked = auto(weather, kind=kind)
    (result,), _ = sweep([asked], tmp_path)
    (path,) = tmp_path.glob("*.json")
    assert read_result(path) == result
    assert list(result.choice) == [str(cutoff) for cutoff in range(1, 19)]
    (cutoff,) = result.cutoffs
    assert result.choice[str(cutoff)] == max(result.choice.values()) <= 1
    assert result.choice == choose(asked, tmp_path)
    assert result.experiment["llm_layers"] == "auto"
    given = dataclasses.replace(asked, llm_layers=cutoff)
    (same,), _ = sweep([given], tmp_path / "given")
    assert same.choice is None and same.scores == result.scores


def test_the_reader_sees_training_and_validation_texts_and_never_a_test_text(
    weather, tmp_path, monkeypatch
):
    seen, tokenise = [], GemmaOnly.tokenise

    def watching(reader, texts):
        seen.extend(texts)
        return tokenise(reader, texts)

    monkeypatch.setattr(GemmaOnly, "tokenise", watching)
    asked = auto(weather)
    choose(asked, tmp_path)
    planned = plan(asked, tmp_path)
    assert seen == planned.texts("fit", "watched") and len(seen) == 24 + 8
    assert not set(seen) & set(planned.task.test.texts())


def test_other_test_labels_choose_alike(weather, tmp_path):
    turned = write_task(tmp_path / "weather", "rain")
    lines = (turned / "test.jsonl").read_text()
    (turned / "test.jsonl").write_text(lines.replace('"label": 0', '"label": 1'))
    assert choose(auto(turned), tmp_path) == choose(auto(weather), tmp_path)


def test_a_hybrid_with_learned_pooling_chooses_one_cutoff_too(weather, tmp_path):
    learned = choose(auto(weather, kind="hybrid", layer_pooling="learned"), tmp_path)
    run_module._CHOICES.clear()
    assert learned == choose(auto(weather, kind="hybrid"), tmp_path)


def test_experiments_that_differ_in_what_is_behind_the_states_share_a_choice(
    weather, tmp_path, monkeypatch
):
    made, anew = [], run_module._choose_anew
    monkeypatch.setattr(
        run_module, "_choose_anew", lambda plan, store: (made.append(plan), anew(plan, store))[1]
    )
    alike = [{}, {"kind": "hybrid"}, {"kind": "hybrid", "seed": 7, "fusion": "add"}]
    others = [{"pooling": "max"}, {"max_train_texts": 12}, {"final_norm": "none"}]
    for keys in alike + others:
        choose(auto(weather, **keys), tmp_path)
    assert len(made) == 1 + len(others)


@pytest.mark.parametrize("seed, best", [(6, 0.1), (31, 0.001)])
def test_a_probes_penalty_is_the_one_that_labels_most_watched_texts_rightly(seed, best):
    generator = np.random.default_rng(seed)
    labels = np.arange(40) % 2, np.arange(12) % 2
    given = generator.normal(size=(40 + 12, 30))
    given[:, 0] += 2 * np.concatenate(labels)
    others = generator.normal(size=(200, 30))
    answered = fit_probe((given[:40], labels[0]), (given[40:], labels[1])).predict(others)
    scaler = StandardScaler().fit(given[:40])
    right, answers = {}, {}
    for penalty in probe_module.INVERSE_PENALTIES:
        peer = LogisticRegression(C=penalty, max_iter=1000)
        peer.fit(scaler.transform(given[:40]), labels[0])
        right[penalty] = peer.score(scaler.transform(given[40:]), labels[1])
        answers[penalty] = peer.predict(scaler.transform(others)).tolist()
    assert max(right, key=right.get) == best
    assert [answered.tolist() == one for one in answers.values()].count(True) == 1
    assert answered.tolist() == answers[best]

"""One experiment: its result, the texts and hidden states it reads, and its duplicates."""

import dataclasses
import functools
import json
import logging
import shutil
import types
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import pytest
from made_task import experiment, write_task

from embedder_helpers.builtin import BUILTIN_FOLDER
from embedder_helpers.config import Experiment
from embedder_helpers.errors import InputError
from embedder_helpers.experiments import protocol
from embedder_helpers.experiments.plan import Subset, plan_experiment
from embedder_helpers.experiments.run import run_experiment, train_embedder
from embedder_helpers.experiments.sweep import run_experiments
from embedder_helpers.models.architectures import load_embedder
from embedder_helpers.models.cache_folder import summary
from embedder_helpers.models.gemma import Gemma
from embedder_helpers.models.hidden_states import HiddenStateCache
from embedder_helpers.models.layers import Standardize
from embedder_helpers.models.text_model import TextModel
from embedder_helpers.models.tokenization import tokenize
from embedder_helpers.results.predictions import (
    predictions_path,
    read_predictions,
    write_predictions,
)
from embedder_helpers.results.result import embedder_folder, read_result

pytestmark = pytest.mark.usefixtures("fast_experiments")

KINDS = ("hybrid", "gemma_only", "roberta_only")
COUNTS = {"train": 24, "validation": 8, "test": 12}


def run(experiment, out):
    """The result of one experiment, read or computed."""
    return run_experiments([experiment], out).results[0]


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    return write_task(tmp_path_factory.mktemp("run") / "weather", counts=COUNTS)


@pytest.fixture(scope="module")
def finished(task, tmp_path_factory):
    """A finished sweep of one experiment of each kind, of which the hybrid is trained."""
    folder = tmp_path_factory.mktemp("finished")
    common = dict(states_dir=str(folder / "states"), save_embedder=True)
    experiments = {
        "hybrid": experiment(task, projection_start="ridge", **common),
        "gemma_only": experiment(task, kind="gemma_only", **common),
        "roberta_only": experiment(task, kind="roberta_only", epochs=0, **common),
    }
    results, failed = run_experiments(list(experiments.values()), folder / "out")
    assert not failed
    results = {result.experiment["kind"]: result for result in results}
    paths = {kind: next((folder / "out").glob(f"weather-{kind}-*.json")) for kind in KINDS}
    return types.SimpleNamespace(
        out=folder / "out", experiments=experiments, results=results, paths=paths
    )


def test_a_result_says_where_its_data_come_from(finished, task):
    for result in finished.results.values():
        found = {key: result.task[key] for key in ("name", "source", "path")}
        assert found == {"name": "weather", "source": "local", "path": str(task)}


@pytest.fixture
def gemma_only(finished):
    """The finished experiment of Gemma alone, without saving the embedder."""
    return dataclasses.replace(finished.experiments["gemma_only"], save_embedder=False)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """Hidden states that the tests of this module share."""
    return HiddenStateCache(tmp_path_factory.mktemp("states"))


@pytest.fixture(scope="module")
def untrained(task, cache, tmp_path_factory):
    """Runs a hybrid without training; returns its result and the embeddings that are scored."""
    folder = tmp_path_factory.mktemp("untrained")

    @functools.cache
    def run_untrained(**settings):
        embeddings, predict = [], protocol.predict

        def record(train_embeddings, labels, test_embeddings, **options):
            embeddings.append(test_embeddings)
            return predict(train_embeddings, labels, test_embeddings, **options)

        plan = plan_experiment(experiment(task, epochs=0, **settings), folder)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(protocol, "predict", record)
            _, result = run_experiment(plan, cache)
        return result, embeddings[0]

    return run_untrained


# The result


@pytest.mark.parametrize("kind", KINDS)
def test_a_result_file_has_everything_that_determined_the_result(kind, finished):
    result = finished.results[kind]
    assert read_result(finished.paths[kind]) == result
    assert result.experiment == finished.experiments[kind].as_dict()
    assert len(result.scores_per_experiment) == 10
    assert result.scores["accuracy"] == pytest.approx(
        np.mean([scores["accuracy"] for scores in result.scores_per_experiment])
    )
    assert {"keras", "tensorflow", "scikit-learn"} <= set(result.versions)
    assert set(result.inputs) >= {"task"}
    assert result.device and result.seconds["total"] > 0


def test_a_trained_hybrid_has_a_head_and_the_history_of_each_epoch(finished):
    result = finished.results["hybrid"]
    assert len(result.history) == 2 and np.isfinite(result.history[-1]["val_loss"])
    assert set(result.head) == set(result.scores)
    assert result.projection["explained"] > 0.05 and result.projection["penalty"] > 0


@pytest.mark.parametrize("kind", ["gemma_only", "roberta_only"])
def test_what_is_not_trained_has_neither_head_nor_history(kind, finished):
    result = finished.results[kind]
    assert result.head is None and result.history == [] and result.projection is None


def test_each_epoch_of_a_training_is_a_row_of_a_csv_file(finished):
    (path,) = (finished.out / "curves").iterdir()
    assert path.stem == finished.paths["hybrid"].stem
    rows = pd.read_csv(path).drop(columns="epoch").to_dict("records")
    assert rows == [pytest.approx(epoch) for epoch in finished.results["hybrid"].history]


@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_embedder_evaluates_to_the_scores_of_its_result(kind, finished):
    embedder = load_embedder(embedder_folder(finished.paths[kind]))
    scores = protocol.evaluate(embedder, finished.experiments[kind])
    assert scores.mean == finished.results[kind].scores
    assert list(scores.experiments) == finished.results[kind].scores_per_experiment


def test_a_finished_result_is_not_computed_again(finished, caplog):
    caplog.set_level(logging.INFO, "embedder_helpers")
    paths = finished.paths.values()
    times = [path.stat().st_mtime_ns for path in paths]
    results, _ = run_experiments(list(finished.experiments.values()), finished.out)
    assert {result.experiment["kind"]: result for result in results} == finished.results
    assert [path.stat().st_mtime_ns for path in paths] == times
    assert "3 experiments, 3 of them finished" in caplog.text


def test_a_damaged_result_file_is_computed_again(finished, gemma_only, tmp_path):
    path = tmp_path / finished.paths["gemma_only"].name
    path.write_text(finished.paths["gemma_only"].read_text()[:100])
    again = run(gemma_only, tmp_path)
    assert again.scores == finished.results["gemma_only"].scores
    assert read_result(path) == again


@pytest.mark.slow
def test_a_seed_repeats_a_hybrid(task, tmp_path):
    once = experiment(task, epochs=1)
    first, again = (run(once, tmp_path / name) for name in ("a", "b"))
    assert first.scores == again.scores
    assert first.history == [pytest.approx(epoch, rel=1e-5) for epoch in again.history]
    other = run(dataclasses.replace(once, seed=34), tmp_path / "c")
    assert other.history[0]["loss"] != pytest.approx(first.history[0]["loss"], rel=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        {"fusion": "prepend"},
        {"fusion": "add"},
        {"fusion": "add", "projection_start": "ridge"},
        {"kind": "roberta_only"},
        {"fusion": "replace", "llm_layers": (1, 2), "layer_pooling": "learned"},
    ],
)
def test_every_trained_embedder_has_a_finite_loss_and_a_head(settings, task, tmp_path):
    result = run(experiment(task, epochs=1, projection="mlp", **settings), tmp_path)
    assert np.isfinite(result.history[0]["loss"]) and result.head["accuracy"] > 0
    uses_ridge = settings.get("fusion") != "add" or "projection_start" in settings
    is_hybrid = settings.get("kind") is None
    assert (result.projection is not None) == (is_hybrid and uses_ridge)


# The projection


def test_a_seed_repeats_a_random_projection(untrained, task, cache, tmp_path):
    result, embeddings = untrained(projection_start="random")
    untrained.cache_clear()
    again, same_embeddings = untrained(projection_start="random")
    assert again.scores == result.scores
    np.testing.assert_array_equal(same_embeddings, embeddings)
    _, other_embeddings = untrained(projection_start="random", seed=34)
    assert np.abs(other_embeddings - embeddings).max() > 0.01


def test_a_closed_form_projection_is_fitted_to_the_training_texts_without_any_epoch(untrained):
    replace = {"fusion": "replace", "late_fusion": False}
    ridge, ridge_embeddings = untrained(**replace)
    random, random_embeddings = untrained(projection_start="random", **replace)
    assert set(ridge.task["texts"]) == {"fit", "watched", "drawn", "scored"}
    assert ridge.projection["explained"] > 0.05 and ridge.projection["penalty"] > 0
    assert set(random.task["texts"]) == {"drawn", "scored"} and random.projection is None
    assert ridge.head is random.head is None
    distances = np.linalg.norm(ridge_embeddings - random_embeddings, axis=1)
    assert distances.min() > 0.1 * np.linalg.norm(random_embeddings, axis=1).max()


@pytest.mark.parametrize("fusion", ["add", "prepend"])
def test_a_hybrid_of_any_fusion_is_scored(fusion, untrained):
    settings = {"projection_start": "ridge", "projection": "mlp", "late_fusion": False}
    result, embeddings = untrained(fusion=fusion, **settings)
    assert result.projection["explained"] > 0.05 and result.scores["accuracy"] > 0
    assert not np.allclose(embeddings, untrained(fusion="replace", late_fusion=False)[1])


def test_hidden_states_are_standardized_by_the_training_texts_alone(
    task, cache, tmp_path, monkeypatch
):
    adapted, adapt = [], Standardize.adapt
    monkeypatch.setattr(
        Standardize,
        "adapt",
        lambda layer, states: (adapted.append(states.lengths), adapt(layer, states))[1],
    )
    plan = plan_experiment(experiment(task, epochs=0, projection_start="ridge"), tmp_path)
    embedder, _ = run_experiment(plan, cache)
    (lengths,) = adapted
    expected = embedder.tokenize(plan.texts(Subset.TRAIN)).gemma.lengths
    assert lengths.tolist() == expected.tolist() and len(lengths) == COUNTS["train"]


def test_texts_are_embedded_in_chunks_to_the_same_scores(
    finished, gemma_only, tmp_path, monkeypatch
):
    monkeypatch.setattr("embedder_helpers.models.embedder.CHUNK", 15)
    assert run(gemma_only, tmp_path).scores == finished.results["gemma_only"].scores


def test_no_text_is_alone_in_a_chunk_where_states_are_dealt(task, cache, tmp_path, monkeypatch):
    plan = plan_experiment(experiment(task, llm_control="shuffled", epochs=1), tmp_path)
    distinct = len(set(plan.texts(Subset.PROTOCOL_TRAIN, Subset.EVAL)))
    size = next(size for size in range(5, distinct) if distinct % size == 1)
    monkeypatch.setattr("embedder_helpers.models.embedder.CHUNK", size)
    _, result = run_experiment(plan, cache)
    assert result.head


# Hidden states


def test_cached_hidden_states_are_not_computed_again(finished, gemma_only, tmp_path, monkeypatch):
    monkeypatch.delattr(Gemma, "forward_layers")
    assert run(gemma_only, tmp_path).scores == finished.results["gemma_only"].scores


def test_hidden_states_that_are_read_once_are_not_stored(finished, gemma_only, tmp_path):
    cache = HiddenStateCache(tmp_path / "states")
    _, result = run_experiment(plan_experiment(gemma_only, tmp_path), cache)
    assert summary(cache.folder).empty
    assert result.scores == finished.results["gemma_only"].scores


def test_hidden_states_that_training_reads_again_are_stored(task, tmp_path):
    settings = dict(llm_layers=(1, 2), layer_pooling="learned", epochs=0, projection_start="ridge")
    cache = HiddenStateCache(tmp_path / "states")
    _, result = run_experiment(plan_experiment(experiment(task, **settings), tmp_path), cache)
    assert summary(cache.folder)["texts"].tolist() == [COUNTS["train"] + COUNTS["validation"]] * 2
    assert result.cutoffs == [1, 2]


def test_each_truncated_text_is_counted_once(task, cache, tmp_path):
    settings = dict(kind="gemma_only", probe=True, max_tokens=6)
    _, result = run_experiment(plan_experiment(experiment(task, **settings), tmp_path), cache)
    # Every text is longer, and all that the protocol samples are trained on too.
    assert result.truncated == sum(COUNTS.values())


# Which texts are read


@pytest.fixture
def tokenized(monkeypatch):
    """Every text that any model reads."""
    texts = []

    def record(tokenizer, some, *arguments, **options):
        texts.extend(some)
        return tokenize(tokenizer, some, *arguments, **options)

    for module in ("gemma", "architectures"):
        monkeypatch.setattr(f"embedder_helpers.models.{module}.tokenize", record)
    return texts


def are_of(split, texts):
    return [f"of {split}" in text for text in texts]


@pytest.mark.parametrize(
    "settings",
    [
        {"fusion": "add", "projection_start": "ridge", "epochs": 0},
        {"kind": "gemma_only", "llm_layers": "auto", "probe": True},
        pytest.param({"kind": "roberta_only", "epochs": 1}, marks=pytest.mark.slow),
    ],
)
def test_scoring_validation_never_reads_a_test_text(settings, task, cache, tmp_path, tokenized):
    plan = plan_experiment(experiment(task, scored_split="validation", **settings), tmp_path)
    _, result = run_experiment(plan, cache)
    assert result.task["texts"]["scored"] == COUNTS["validation"]
    assert tokenized and not any(are_of("test", tokenized))
    assert any(are_of("validation", tokenized))


def test_scoring_test_reads_each_test_text_once(task, cache, tmp_path, tokenized):
    plan = plan_experiment(experiment(task, kind="roberta_only", epochs=0), tmp_path)
    _, result = run_experiment(plan, cache)
    assert result.task["texts"]["scored"] == sum(are_of("test", tokenized)) == COUNTS["test"]


def test_train_embedder_trains_a_head_without_a_test_text(task, cache, tmp_path, tokenized):
    plan = plan_experiment(experiment(task, kind="gemma_only", probe=True), tmp_path)
    embedder = train_embedder(plan, cache)
    assert embedder.head.classes.tolist() == [0, 1]
    assert tokenized and not any(are_of("test", tokenized))


def test_a_probe_is_a_head_for_gemma_alone(finished, task, cache, tmp_path):
    plan = plan_experiment(experiment(task, kind="gemma_only", probe=True), tmp_path)
    _, result = run_experiment(plan, cache)
    assert set(result.head) == set(result.scores) and result.history == []
    assert result.scores == finished.results["gemma_only"].scores
    assert set(result.task["texts"]) == {"drawn", "scored", "fit", "watched"}


# Duplicates: evaluation texts that the train split holds too


def test_scores_without_duplicates_are_reported_too(task, tmp_path, monkeypatch):
    folder = shutil.copytree(task, tmp_path / "weather")
    lines = (folder / "test.jsonl").read_text().splitlines()
    duplicates = [{"text": f"the RAIN {'fell' if i % 2 else 'rose'}, on day {i + shift} of train!!",
                   "label": i % 2} for i, shift in ((3, 0), (8, 1), (5, 0))]  # fmt: skip
    lines[4:4] = map(json.dumps, duplicates)
    (folder / "test.jsonl").write_text("\n".join(lines))
    permuted, predict = [], protocol.predict

    def permute(*arguments, **options):
        # The built-in models are too good at this task for its scores to differ.
        permuted[:] = [
            np.random.default_rng(run).permutation(predicted)
            for run, predicted in enumerate(predict(*arguments, **options))
        ]
        return permuted

    monkeypatch.setattr(protocol, "predict", permute)
    result = run(experiment(folder, kind="gemma_only", probe=True), tmp_path / "out")
    rows = [row for row in range(len(lines)) if row not in (4, 6)]
    labels = [json.loads(lines[row])["label"] for row in rows]
    expected = [protocol.metrics(labels, predicted[rows].tolist()) for predicted in permuted]
    scores = result.deduplicated["scores"]
    assert result.deduplicated["texts"] == 2  # that of day 9 rose, so it is no duplicate
    assert result.deduplicated["experiments"] == expected
    assert scores["f1"] == pytest.approx(np.mean([run["f1"] for run in expected]))
    assert scores["f1"] != result.scores["f1"]
    assert set(result.deduplicated["head"]) == set(scores)
    (path,) = (tmp_path / "out").glob("*.json")
    assert read_result(path).deduplicated == result.deduplicated


def test_if_all_evaluation_texts_are_duplicates_only_their_number_is_reported(
    task, cache, tmp_path
):
    folder = shutil.copytree(task, tmp_path / "weather")
    shutil.copy(folder / "train.jsonl", folder / "test.jsonl")
    plan = plan_experiment(experiment(folder, kind="gemma_only"), tmp_path)
    assert run_experiment(plan, cache)[1].deduplicated == {"texts": COUNTS["train"]}


def test_without_duplicates_none_are_reported(finished):
    assert finished.results["gemma_only"].deduplicated is None


# Errors


def test_a_preset_without_weights_is_an_error_that_names_it(task, tmp_path):
    folder = tmp_path / "half"
    folder.mkdir()
    shutil.copy(BUILTIN_FOLDER / "tiny_roberta" / "config.json", folder)
    with pytest.raises(InputError, match="slm_preset.*half"):
        run(experiment(task, kind="roberta_only", slm_preset=str(folder)), tmp_path)


def test_a_training_that_runs_out_of_memory_says_what_to_lower(task, tmp_path, monkeypatch):
    def train_on_batch(*_, **__):
        raise MemoryError("32 GiB")

    monkeypatch.setattr(TextModel, "train_on_batch", train_on_batch)
    settings = dict(kind="roberta_only", batch_size=7, max_tokens=48)
    message = "memory ran out in training with batch_size 7 and max_tokens 48: lower batch_size"
    with pytest.raises(InputError, match=message):
        run(experiment(task, **settings), tmp_path)
    files = [Path(file.path) for file in psutil.Process().open_files()]
    assert not any(tmp_path in path.parents for path in files)


@pytest.mark.real
@pytest.mark.parametrize(
    ("cutoff", "accuracy", "f1"), [(4, 0.714, 0.654), (10, 0.820, 0.763), (18, 0.719, 0.660)]
)
def test_a_real_gemma_has_its_known_scores(
    cutoff, accuracy, f1, real_presets, shared_folder, tmp_path
):
    gemma = Experiment(
        task="AmazonCounterfactualClassification",
        task_data=str(shared_folder / "data" / "amazon_counterfactual"),
        kind="gemma_only",
        llm_preset=str(real_presets / "gemma3_270m"),
        llm_layers=cutoff,
    )
    result = run(gemma, tmp_path)
    assert result.scores["accuracy"] == pytest.approx(accuracy, abs=0.005)
    assert result.scores["f1"] == pytest.approx(f1, abs=0.005)


# === Controls and predictions ===


@pytest.mark.parametrize("control", ["random_weights", "shuffled", "noise"])
def test_a_control_predicts_otherwise_than_the_hybrid_and_always_the_same(control, task, tmp_path):
    def logits(folder, **settings):
        run(experiment(task, save_predictions=True, **settings), tmp_path / folder)
        (path,) = (tmp_path / folder).glob("weather-*.json")
        return read_predictions(path).logits

    first, again = (logits(folder, llm_control=control) for folder in ("first", "again"))
    np.testing.assert_array_equal(first, again)
    assert not np.allclose(first, logits("hybrid"), atol=1e-3)


def test_the_saved_predictions_are_those_of_the_saved_embedder(task, tmp_path):
    saved = experiment(task, save_predictions=True, save_embedder=True)
    result = run(saved, tmp_path)
    (path,) = tmp_path.glob("weather-*.json")
    predictions = read_predictions(path)
    assert predictions.right.mean() == result.head["accuracy"]
    embedder, plan = load_embedder(embedder_folder(path)), plan_experiment(saved, tmp_path)
    for subset, labels, logits in (
        (Subset.EVAL, predictions.labels, predictions.logits),
        (Subset.VALIDATION, predictions.validation_labels, predictions.validation_logits),
    ):
        assert predictions.classes[labels].tolist() == plan.labels(subset).tolist()
        expected = embedder.head.logits(embedder.encode(plan.texts(subset)))
        np.testing.assert_allclose(logits, expected, atol=1e-4)


@pytest.mark.parametrize("damage", ["missing", "damaged", "of another result"])
def test_a_result_without_its_predictions_is_not_finished(damage, task, tmp_path):
    saved = experiment(task, save_predictions=True)
    plain = dataclasses.replace(saved, save_predictions=False)
    run(saved, tmp_path)
    plan = plan_experiment(saved, tmp_path)
    assert plan.is_finished()
    path = predictions_path(plan.path)
    if damage == "missing":
        path.unlink()
    elif damage == "damaged":
        path.write_bytes(path.read_bytes()[:100])
    else:
        predictions = read_predictions(plan.path)
        other = predictions._replace(labels=(predictions.labels + 1) % 2)
        write_predictions(other, plan.path)
    assert not plan.is_finished()
    assert plan_experiment(plain, tmp_path).is_finished()

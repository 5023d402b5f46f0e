import dataclasses
import json

import numpy as np
import pytest
from made_task import experiment, write_task

from embedder_helpers import presets
from embedder_helpers import run as run_module
from embedder_helpers.config import Experiment, InputError
from embedder_helpers.gemma import Gemma
from embedder_helpers.plan import plan
from embedder_helpers.presets import find_preset
from embedder_helpers.projection import Standardise
from embedder_helpers.protocol import metrics
from embedder_helpers.report import notes
from embedder_helpers.result import read_result
from embedder_helpers.states import Store
from embedder_helpers.sweep import sweep
from embedder_helpers.tokens import tokenise


def run(asked, out):
    """The result of one experiment, found or computed."""
    return sweep([asked], out).results[0]


@pytest.mark.parametrize("kind", ["hybrid", "gemma_only", "roberta_only"])
def test_a_run_leaves_a_result_that_carries_all_that_determined_it(kind, task_folder, tmp_path):
    asked = experiment(task_folder, kind=kind)
    result = run(asked, tmp_path / "out")
    (path,) = (tmp_path / "out").glob("*.json")
    assert read_result(path) == result
    assert result.experiment == asked.as_dict()
    assert len(result.experiments) == 10
    assert result.scores["accuracy"] == pytest.approx(
        np.mean([one["accuracy"] for one in result.experiments])
    )
    assert (result.head is None) == (kind == "gemma_only")
    assert {"keras", "tensorflow", "scikit-learn"} <= set(result.versions)
    assert result.device and result.seconds["total"] > 0


def test_a_result_that_is_there_is_not_computed_again(task_folder, tmp_path, capsys):
    first = run(experiment(task_folder, kind="gemma_only"), tmp_path)
    again = run(experiment(task_folder, kind="gemma_only"), tmp_path)
    assert again == first
    assert f"1 experiments, 1 of them found in {tmp_path}" in capsys.readouterr().out


def test_a_broken_result_file_is_computed_again(task_folder, tmp_path):
    asked = experiment(task_folder, kind="gemma_only")
    result = run(asked, tmp_path)
    (path,) = tmp_path.glob("*.json")
    path.write_text(path.read_text()[:100])
    again = run(asked, tmp_path)
    assert again.scores == result.scores
    assert read_result(path) == again


def test_a_seed_repeats_a_hybrid(task_folder, tmp_path):
    asked = experiment(task_folder, epochs=1)
    first, again = (run(asked, tmp_path / name) for name in ("a", "b"))
    assert first.scores == again.scores
    assert first.history == [pytest.approx(epoch, rel=1e-5) for epoch in again.history]
    other = run(dataclasses.replace(asked, seed=34), tmp_path / "c")
    assert other.history[0]["loss"] != pytest.approx(first.history[0]["loss"], rel=1e-3)


def test_no_epochs_leave_roberta_untrained(task_folder, tmp_path):
    result = run(experiment(task_folder, kind="roberta_only", epochs=0), tmp_path)
    assert result.history == [] and result.head is None


@pytest.fixture
def scored_embeddings(monkeypatch):
    """The embeddings of drawn and of scored texts that each run gives to the protocol."""
    given, answers = [], run_module.protocol.answers

    def watching(drawn, labels, scored, **keys):
        given.append((drawn, scored))
        return answers(drawn, labels, scored, **keys)

    monkeypatch.setattr(run_module.protocol, "answers", watching)
    return given


def test_a_closed_form_start_is_taken_from_the_training_texts_without_any_epoch(
    task_folder, tmp_path, scored_embeddings
):
    started, random = (
        run(experiment(task_folder, epochs=0, projection_start=start), tmp_path)
        for start in ("ridge", "random")
    )
    assert set(started.task["texts"]) == {"fit", "watched", "drawn", "scored"}
    assert started.projection["explained"] > 0.05 and started.projection["penalty"] > 0
    assert set(random.task["texts"]) == {"drawn", "scored"} and random.projection is None
    assert started.head is random.head is None
    (_, of_started), (_, of_random) = scored_embeddings
    distances = np.linalg.norm(of_started - of_random, axis=1)
    assert distances.min() > 0.1 * np.linalg.norm(of_random, axis=1).max()


def test_each_text_that_was_cut_is_counted_once(task_folder, tmp_path):
    asked = experiment(task_folder, kind="roberta_only", max_tokens=6, epochs=1)
    # Every text is longer, and all that the protocol draws are trained on too.
    assert run(asked, tmp_path).truncated == 40 + 12 + 16


def test_states_that_are_there_are_not_computed_again(task_folder, tmp_path, monkeypatch):
    asked = experiment(task_folder, kind="gemma_only", llm_layers=3)
    first = run(asked, tmp_path / "first")
    monkeypatch.delattr(Gemma, "walk")
    again = run(asked, tmp_path / "again")
    assert again.scores == first.scores


def test_a_run_keeps_no_states_of_texts_that_it_reads_once(task_folder, tmp_path):
    asked = experiment(task_folder, kind="gemma_only")
    store = Store(tmp_path / "states")
    _, found = run_module.train_and_score(plan(asked, tmp_path), store)
    assert len(store.listing()) == 0
    assert found.scores == run(asked, tmp_path / "out").scores


def test_a_run_keeps_the_states_that_training_reads_again(task_folder, tmp_path):
    asked = experiment(task_folder, llm_layers=(1, 2), layer_pooling="learned", epochs=1)
    store = Store(tmp_path / "states")
    _, found = run_module.train_and_score(plan(asked, tmp_path), store)
    assert store.listing()["texts"].tolist() == [40 + 12] * 2
    assert found.cutoffs == [1, 2] and found.head


@pytest.mark.parametrize("keys", [{"fusion": "prepend"}, {"fusion": "add"},
                                  {"fusion": "add", "projection_start": "ridge"}])  # fmt: skip
def test_a_hybrid_of_any_fusion_is_trained_and_scored(keys, task_folder, tmp_path):
    result = run(experiment(task_folder, epochs=1, projection="mlp", **keys), tmp_path)
    assert np.isfinite(result.history[0]["loss"]) and result.head["accuracy"] > 0
    assert (result.projection is None) == (keys == {"fusion": "add"})


def test_a_probe_is_a_head_for_gemma_alone(task_folder, tmp_path):
    asked = experiment(task_folder, kind="gemma_only", probe=True)
    probed, plain = (run(one, tmp_path) for one in (asked, dataclasses.replace(asked, probe=False)))
    assert plain.head is None and set(probed.head) == set(probed.scores)
    assert probed.scores == plain.scores and probed.history == []
    assert set(probed.task["texts"]) == {"drawn", "scored", "fit", "watched"}


@pytest.fixture
def tokenised(monkeypatch):
    """Every text that any model is given."""
    texts = []

    def watching(tokenizer, given, *arguments, **keys):
        texts.extend(given)
        return tokenise(tokenizer, given, *arguments, **keys)

    for module in ("gemma", "embedder"):
        monkeypatch.setattr(f"embedder_helpers.{module}.tokenise", watching)
    return texts


@pytest.mark.parametrize(
    "keys",
    [
        {"kind": "roberta_only", "epochs": 1},
        {"fusion": "add", "projection_start": "ridge", "epochs": 1},
        {"kind": "gemma_only", "llm_layers": "auto", "probe": True},
    ],
)
def test_scores_of_validation_never_read_a_test_text(keys, task_folder, tmp_path, tokenised):
    result = run(experiment(task_folder, scored_split="validation", **keys), tmp_path)
    assert result.task["texts"]["scored"] == 12
    assert tokenised and not any("of the test" in text for text in tokenised)
    assert any("of the validation" in text for text in tokenised)


def test_the_test_split_is_read_where_it_is_scored(task_folder, tmp_path, tokenised):
    result = run(experiment(task_folder, kind="roberta_only", epochs=0), tmp_path)
    assert result.task["texts"]["scored"] == 16
    assert sum("of the test" in text for text in tokenised) == 16


# Texts that train has too


@pytest.mark.parametrize("probe", [False, True])
def test_scores_are_told_without_the_texts_that_train_has_too(
    probe, task_folder, tmp_path, monkeypatch
):
    lines = (task_folder / "test.jsonl").read_text().splitlines()
    repeated = [{"text": f"the RAIN fell, on day {i} of the train!!", "label": i % 2}
                for i in (3, 8, 5)]  # fmt: skip
    lines[4:4] = map(json.dumps, repeated)
    (task_folder / "test.jsonl").write_text("\n".join(lines))
    given, answers = [], run_module.protocol.answers

    def chosen(drawn, labels, scored, **keys):
        # The built-in models are too good at this task for its scores to differ.
        given[:] = [np.random.default_rng(i).permutation(answer)
                    for i, answer in enumerate(answers(drawn, labels, scored, **keys))]  # fmt: skip
        return given

    monkeypatch.setattr(run_module.protocol, "answers", chosen)
    result = run(experiment(task_folder, kind="gemma_only", probe=probe), tmp_path)
    kept = [row for row in range(len(lines)) if row not in (4, 6)]
    labels = [json.loads(lines[row])["label"] for row in kept]
    expected = [metrics(labels, answer[kept].tolist()) for answer in given]
    told = result.unrepeated
    assert told["texts"] == 2  # day 8 had sun, so its text is new
    assert told["experiments"] == expected
    assert told["scores"]["f1"] == pytest.approx(np.mean([one["f1"] for one in expected]))
    assert told["scores"]["f1"] != result.scores["f1"]
    assert (told["head"] is not None) == probe
    (path,) = tmp_path.glob("*.json")
    assert read_result(path).unrepeated == told


def test_where_train_has_every_scored_text_their_number_alone_is_told(tmp_path):
    folder = write_task(tmp_path / "weather")
    (folder / "test.jsonl").write_text((folder / "train.jsonl").read_text())
    result = run(experiment(folder, kind="gemma_only"), tmp_path / "out")
    assert result.unrepeated == {"texts": 24}
    assert any("24 of 24 scored texts" in note for note in notes([result]))


def test_states_are_standardised_by_the_training_texts_alone(task_folder, tmp_path, monkeypatch):
    seen, adapt = [], Standardise.adapt
    monkeypatch.setattr(
        Standardise, "adapt", lambda layer, states: (seen.append(states), adapt(layer, states))[1]
    )
    asked = experiment(task_folder, epochs=0)
    run(asked, tmp_path)
    (states,) = seen
    texts = plan(asked, tmp_path).texts("fit")
    ids, _ = Gemma(find_preset("llm_preset", "tiny_gemma")).tokenise(texts, asked.max_tokens)
    assert states.lengths.tolist() == ids.lengths.tolist() and len(states) == 40


def test_nothing_is_told_of_repeated_texts_where_there_are_none(task_folder, tmp_path):
    assert run(experiment(task_folder, kind="gemma_only"), tmp_path).unrepeated is None


def test_every_experiment_is_checked_before_the_first_one_runs(task_folder, tmp_path):
    wrong = experiment(task_folder, llm_layers=19)
    with pytest.raises(InputError, match="llm_layers is 19"):
        sweep([experiment(task_folder), wrong], tmp_path)
    assert not list(tmp_path.glob("*.json"))


def test_texts_are_embedded_a_chunk_at_a_time_to_the_same_scores(
    task_folder, tmp_path, monkeypatch
):
    asked = experiment(task_folder, epochs=0)
    whole = run(asked, tmp_path / "whole")
    monkeypatch.setattr("embedder_helpers.embedder.CHUNK", 5)
    assert run(asked, tmp_path / "chunks").scores == whole.scores


def test_a_preset_without_weights_is_one_clear_error(task_folder, tmp_path):
    source = presets.BUILTIN_FOLDER / "tiny_roberta"
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / "config.json").write_text((source / "config.json").read_text())
    asked = experiment(task_folder, kind="roberta_only", slm_preset=str(tmp_path / "half"))
    with pytest.raises(InputError, match="slm_preset .*half.* cannot be loaded by keras-hub"):
        run(asked, tmp_path)


def test_a_folder_that_cannot_be_written_is_told_before_anything_is_loaded(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        run(Experiment(task="no such task"), tmp_path / "file" / "out")


@pytest.mark.real
@pytest.mark.parametrize(
    "cutoff, accuracy, f1", [(4, 0.714, 0.654), (10, 0.820, 0.763), (18, 0.719, 0.660)]
)
def test_real_gemma_scores_as_it_did_in_an_earlier_trial(
    cutoff, accuracy, f1, real_presets, shared_folder, tmp_path
):
    asked = Experiment(
        task="AmazonCounterfactualClassification",
        task_data=str(shared_folder / "data" / "amazon_counterfactual"),
        kind="gemma_only",
        llm_preset=str(real_presets / "gemma3_270m"),
        llm_layers=cutoff,
    )
    result = run(asked, tmp_path)
    assert result.scores["accuracy"] == pytest.approx(accuracy, abs=0.005)
    assert result.scores["f1"] == pytest.approx(f1, abs=0.005)

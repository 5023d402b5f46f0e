"""A saved embedder in `mteb.evaluate`, in an environment that has mteb, and without the hub."""

import json
import runpy
import subprocess
import sys
import types

import numpy as np
import pytest

from embedder_helpers.errors import InputError

try:
    import mteb  # noqa: F401
except ModuleNotFoundError:
    mteb = None


@pytest.mark.skipif(mteb is not None, reason="mteb is installed")
def test_without_mteb_the_message_says_what_to_install():
    with pytest.raises(InputError, match="pip install 'embedder-gemma-roberta\\[mteb\\]'"):
        import embedder_helpers.sharing.mteb_encoder  # noqa: F401


@pytest.mark.skipif(mteb is not None, reason="mteb is installed")
def test_the_encoder_has_the_embedders_name_size_and_embeddings(
    saved_late_hybrid, late_hybrid, monkeypatch
):
    class AbsEncoder:  # stand-ins for mteb's classes
        pass

    for name, members in {
        "mteb": {},
        "mteb.models": {"ModelMeta": types.SimpleNamespace},
        "mteb.models.abs_encoder": {"AbsEncoder": AbsEncoder},
    }.items():
        module = types.ModuleType(name)
        vars(module).update(members)
        monkeypatch.setitem(sys.modules, name, module)
    module = runpy.run_module("embedder_helpers.sharing.mteb_encoder")
    monkeypatch.setenv("HOME", str(saved_late_hybrid.parent))
    monkeypatch.setenv("USERPROFILE", str(saved_late_hybrid.parent))
    encoder = module["MtebEncoder"](f"~/{saved_late_hybrid.name}", "me/mine")
    meta = encoder.mteb_model_meta
    assert (meta.name, meta.embed_dim) == ("me/mine", 2 * 128)
    assert (
        meta.revision == json.loads((saved_late_hybrid / "embedder.json").read_text())["revision"]
    )
    texts = ["It works.", ""]
    embeddings = encoder.encode([{"text": texts[:1]}, {"text": texts[1:]}])
    expected = late_hybrid.encode(texts, allow_empty=True)
    np.testing.assert_array_equal(embeddings, expected)


# MTEB's own tasks with a few texts in place of the hub's.
EVALUATE = """
import json, sys
import datasets, mteb, numpy as np
from embedder_helpers.sharing.mteb_encoder import MtebEncoder

def rows(**columns):
    return datasets.Dataset.from_dict(columns)

wet = [f"The rain fell on day {i}, and the river rose." for i in range(40)]
dry = [f"The sun shone all morning on field number {i}." for i in range(40)]
texts, labels = wet + dry, [1] * 40 + [0] * 40

def task(name, dataset):
    loaded = mteb.get_task(name)
    loaded.dataset, loaded.data_loaded = dataset, True
    return loaded

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
results = mteb.evaluate(model, [classification, clustering, sts, retrieval], cache=None)
print(json.dumps({one.task_name: one.get_score() for one in results.task_results}))
print(json.dumps([results.model_name, results.model_revision]))
np.save(sys.argv[2], model.encode([{"text": texts[:2]}, {"text": ["", texts[2]]}]))
"""


@pytest.mark.real
def test_mteb_evaluates_a_saved_embedder_on_every_kind_of_task(
    tmp_path, tiny_embedders, reference_python
):
    folder = tiny_embedders["roberta_only"].save(tmp_path / "roberta")
    command = [reference_python, "-c", EVALUATE, str(folder), str(tmp_path / "embeddings.npy")]
    process = subprocess.run(command, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr[-3000:]
    protocol, scores, names = process.stdout.splitlines()[-3:]
    assert protocol == "True"
    assert json.loads(names) == [
        "me/mine",
        json.loads((folder / "embedder.json").read_text())["revision"],
    ]
    assert all(score > 0.8 for score in json.loads(scores).values()), scores

"""The model card: what a stranger reads about a saved embedder."""

import dataclasses
import re
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard
from made_results import EMOTION, SHA, TRAINED, result

from embedder_helpers.errors import InputError
from embedder_helpers.models.saving import Manifest
from embedder_helpers.results.tables import load_results
from embedder_helpers.sharing.licenses import (
    APACHE,
    GEMMA,
    GEMMA_TERMS,
    MIT,
    OTHER,
    REPOSITORY,
    license_of,
)
from embedder_helpers.sharing.model_card import comparable_results, model_card, saved_result

ROOT = Path(__file__).parents[2]
COUNTERFACTUAL = "AmazonCounterfactualClassification"


def manifest_of(own, classes=(0, 1), files=(), handle=None, **names):
    """The manifest that a result's embedder would be saved with.

    Args:
        own: its result.
        classes: of the head.
        files: in the folder.
        handle: where others find its Gemma.
        names: of its presets, by their setting.
    """
    experiment = own.experiment | {"llm_layers": own.cutoffs[0] if own.cutoffs else 1} | names
    presets = {
        role: {"name": experiment[role], "fingerprint": _fingerprint(experiment[role])}
        for role in own.inputs
        if role != "task"
    }
    return Manifest(
        experiment=experiment | ({"llm_preset": handle} if handle else {}),
        presets=presets,
        classes=list(classes) or None,
        width=384,
        versions={},
        result=own.as_stored(),
        files=dict.fromkeys(files, ""),
        revision="01234567",
    )


def _fingerprint(name):
    """Of a preset of a hub by its handle, or of a built-in one or a folder."""
    return SHA if name.startswith(("tiny_", "my_")) else f"{name}@2"


def made_manifest(own, **options):
    """`manifest_of` a made-up result whose texts are counted."""
    texts = {"drawn": 16, "scored": 20, "fit": 40, "watched": 8}
    task = own.task | {"texts": texts, "samples_per_label": 8}
    return manifest_of(dataclasses.replace(own, task=task), **options)


def card_of(manifest, results=(), address="hf:me/one"):
    return model_card(manifest, results, *address.split(":"))


def made_card(own, **options):
    return card_of(made_manifest(own, **options))


def prose(card):
    return " ".join(card.split())


def metadata(card):
    return yaml.safe_load(card.split("---\n")[1])


def rows(card):
    """The cells of every table row."""
    lines = [line.strip("|").split("|") for line in card.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line] for line in lines]


@pytest.fixture(scope="module")
def measured():
    return load_results(ROOT / "results" / "comparison")


@pytest.fixture(scope="module")
def own(measured):
    """The measured hybrid of seed 34."""
    key = (COUNTERFACTUAL, "hybrid", 34)
    return next(
        one
        for one in measured
        if (one.task["name"], one.experiment["kind"], one.experiment["seed"]) == key
    )


@pytest.fixture(scope="module")
def card(own, measured):
    """Its card on Hugging Face."""
    return card_of(manifest_of(own), measured, "hf:me/my-hybrid")


def test_scores_with_intervals_stand_beside_roberta_and_gemma_alone(card):
    scores = {row[0]: row[1:] for row in reversed(rows(card))}  # the first table's come last
    hybrid = next(name for name in scores if name.startswith("hybrid [1-10"))
    assert scores[hybrid][:2] == ["5", "0.940 [0.936, 0.944]"]
    assert scores["RoBERTa only"][:3] == ["5", "0.929 [0.925, 0.932]", "0.892 [0.888, 0.896]"]
    assert "Gemma only [1-10]" in scores
    assert EMOTION not in card


def test_differences_to_the_baselines_have_intervals(card):
    difference = next(row for row in rows(card) if row[0] == "RoBERTa only" and row[2][0] in "+-")
    assert difference[2:4] == ["+0.012 [+0.010, +0.013]", "+0.016 [+0.013, +0.018]"]


def test_the_weights_own_scores_are_distinguished_from_the_mean(card, own):
    text = prose(card)
    assert f"seed 34) have accuracy {own.scores['accuracy']:.3f}" in text
    assert f"(head: accuracy {own.head['accuracy']:.3f}" in text


def test_hugging_face_reads_the_scores_in_hundredths_and_by_mtebs_names(card, own):
    data = ModelCard(card).data
    assert (data.license, data.library_name, data.model_name) == (
        "gemma", "embedder_helpers", "my-hybrid",
    )  # fmt: skip
    scores = {one.metric_type: one.metric_value for one in data.eval_results}
    expected = {"accuracy": 100 * own.scores["accuracy"], "f1": 100 * own.scores["f1"]}
    assert scores == pytest.approx(expected, abs=1e-3)
    assert {one.dataset_type for one in data.eval_results} == {"mteb/amazon_counterfactual"}


def test_texts_of_local_files_have_no_revision_of_the_data_set(card):
    (index,) = metadata(card)["model-index"]
    assert "revision" not in index["results"][0]["dataset"]


def test_texts_of_local_files_are_said_not_to_have_been_compared(card, own):
    assert f"not compared with MTEB's, with SHA-256 `{own.inputs['task']}`" in prose(card)


def test_texts_from_the_hub_have_the_revision_that_was_loaded():
    own = result(task=EMOTION, history=TRAINED)
    own.inputs["task"] = "mteb/emotion@0123456789"
    own.task["texts"] = {}
    card = card_of(manifest_of(own))
    (index,) = metadata(card)["model-index"]
    assert index["results"][0]["dataset"]["revision"] == "0123456789"
    assert metadata(card)["datasets"] == ["mteb/emotion"]


@pytest.mark.parametrize("name", [EMOTION, "sample"])
@pytest.mark.parametrize("recorded", [True, False])
def test_a_folder_with_the_name_of_a_task_is_data_of_one_s_own(name, recorded):
    own = result(history=TRAINED)
    own.task["name"] = f"{name} (local files)" if recorded else name
    own.experiment["task"] = name if recorded else f"/home/me/{name}"
    if not recorded:
        del own.task["source"], own.task["path"]
    card = made_card(own)
    known = metadata(card)
    assert f"trained on data of one's own (a local folder named `{name}`)" in prose(card)
    assert not {"datasets", "model-index", "language"} & set(known)
    assert "MTEB " not in card.split("---")[1] and "English" not in card
    assert "/home/me" not in card and f"`{SHA}`" in card


def test_a_built_in_sample_is_english_and_no_data_set_of_the_hub():
    card = made_card(result(task="sample", history=TRAINED))
    assert metadata(card)["language"] == ["en"] and "datasets" not in metadata(card)
    assert f"sample, built in, with SHA-256 `{SHA}`" in prose(card)


def test_names_and_labels_are_no_markup():
    own = result(task="a|b\n<script>`$x$`", history=TRAINED)
    own.task["notes"] = ["label '<b>' has *1* text"]
    card = made_card(own, classes=["<i>", "`", "two\nlines", "x" * 1000])
    assert "`` a|b <script>`$x$` ``" in card
    assert "`<i>`, `` ` ``, `two lines`, `xxx" in card and "x" * 100 not in card
    assert r"label '\<b>' has \*1\* text." in card


def test_notes_on_the_data_are_bounded():
    own = result(history=TRAINED)
    own.task["notes"] = [f"label {number} is rare" for number in range(1000)]
    assert len(made_card(own)) < 10_000


def test_the_settings_are_yaml_without_local_paths(card):
    settings = yaml.safe_load(re.search(r"```yaml\n(.*?)```", card, re.DOTALL)[1])
    assert settings["seed"] == 34 and settings["samples_per_label"] == 32
    assert "task_data" not in settings and "slm_preset" not in settings


def test_one_seed_has_no_interval():
    card = card_of(made_manifest(result(history=TRAINED)))
    (row,) = (row for row in rows(card) if row[0].startswith("hybrid"))
    assert "[" not in "".join(row[1:])


def test_kaggles_card_has_no_metadata_and_its_own_download():
    card = card_of(made_manifest(result(history=TRAINED)), address="kaggle:me/one")
    assert card.startswith("# one\n")
    assert 'kagglehub.model_download("me/one/keras/default")' in card


@pytest.mark.parametrize("address", ["hf:me/one", "kaggle:me/one"])
def test_the_example_is_python(address):
    card = card_of(made_manifest(result(history=TRAINED)), address=address)
    example = re.search(r"```python\n(.*?)```", card, re.DOTALL)[1]
    compile(example, "example", "exec")
    assert "eh.load_embedder(folder)" in example and "embedder.predict(" in example


def test_results_of_other_texts_splits_and_hybrids_are_left_out():
    own = result(seed=33, history=TRAINED)
    other_seed = result(seed=34, history=TRAINED)
    roberta = result("roberta_only", (), seed=33, history=TRAINED)
    others = [
        result(cutoffs=(3,), llm_layers=3, history=TRAINED),
        result("roberta_only", (), task="snow", history=TRAINED),
        result("roberta_only", (), scored_split="validation", history=TRAINED),
        result("gemma_only", (4,), llm_layers=4),
    ]
    others[1].inputs["task"] = "other"
    shown = comparable_results(own, [own, other_seed, roberta, *others])
    assert shown == [roberta, own, other_seed]


def test_duplicates_and_the_majority_class_baseline_are_shown():
    scores = {"accuracy": 0.7, "f1": 0.6}
    duplicates = {"texts": 3, "scores": scores, "experiments": [scores], "head": None}
    own = dataclasses.replace(result(history=TRAINED), deduplicated=duplicates)
    text = prose(card_of(made_manifest(own)))
    assert "3 of the 20 evaluation texts" in text and "accuracy 0.700 and macro F1 0.600" in text
    assert "majority-class baseline has accuracy 0.500 and macro F1 0.330" in text


def test_validation_scores_are_marked_as_too_optimistic():
    text = prose(card_of(made_manifest(result(history=TRAINED, scored_split="validation"))))
    assert "on the validation split of data of one's own" in text and "too optimistic" in text


def test_an_embedder_without_a_result_has_no_scores():
    card = card_of(dataclasses.replace(manifest_of(result()), result=None))
    assert "were not saved with this embedder" in card and "<!--" not in card
    assert "model-index" not in metadata(card) and "language" not in metadata(card)


@pytest.mark.parametrize("fields", [None, {"from": "another version"}])
def test_without_fields_or_with_those_of_another_version_there_is_no_result(fields):
    assert saved_result(fields) is None


def test_damaged_fields_are_an_input_error():
    with pytest.raises(InputError, match="scores"):
        saved_result(result().as_stored() | {"scores": {}})


def test_an_untrained_gemma_claims_no_training_and_no_labels():
    own = result("gemma_only", (4,), llm_layers=4)
    card = card_of(made_manifest(own, classes=()))
    assert "Nothing in it was trained." in prose(card)
    assert "predict" not in card and "calibrated" not in card


def test_the_loss_is_named_by_which_the_embedder_was_trained():
    plain = {"objective": "cross_entropy"}
    contrastive = {"objective": "contrastive", "contrastive_weight": 0.5}
    alone, other, untrained = (
        prose(made_card(result("roberta_only", (), history=history, **settings)))
        for history, settings in ((TRAINED, plain), (TRAINED, contrastive), ((), {"epochs": 0}))
    )
    assert "by cross-entropy." in alone and "contrastive" not in alone
    assert "by cross-entropy plus 0.5 times the supervised contrastive loss" in other
    assert "at temperature 0.1." in other and "arxiv.org/abs/2004.11362" in other
    assert "cross-entropy" not in untrained


def test_late_fusion_is_described_where_a_hybrid_has_it():
    late, hybrid = (
        prose(made_card(result(history=TRAINED, late_fusion=is_late))) for is_late in (True, False)
    )
    assert "followed by the mean of Gemma's" in late and "late fusion, RoBERTa" in late
    roberta = made_manifest(result("roberta_only", (), history=TRAINED))
    del roberta.experiment["late_fusion"]  # as in manifests of earlier versions
    for card in (hybrid, prose(card_of(roberta))):
        assert "(late fusion)" not in card and "the late fusion" not in card


def test_the_number_of_weights_is_told_where_it_is_known():
    own = result(history=TRAINED)
    counted = dataclasses.replace(own, parameters=1_234_567_890)
    assert "1,234.6 million weights" in prose(made_card(counted))
    assert "million weights" not in prose(made_card(own))


def test_of_many_labels_the_first_are_listed():
    text = prose(card_of(made_manifest(result(history=TRAINED), classes=range(100, 130))))
    assert "into 30 classes: `100`" in text and "`111`, …" in text and "`112`" not in text


@pytest.mark.parametrize(
    ("kind", "names", "expected"),
    [
        ("hybrid", {}, APACHE),
        ("hybrid", {"llm_preset": "gemma_2b_en"}, GEMMA),
        ("gemma_only", {"llm_preset": "hf://google/gemma-3-270m"}, GEMMA),
        ("roberta_only", {"slm_preset": "roberta_base_en"}, MIT),
        ("roberta_only", {"slm_preset": "hf://FacebookAI/roberta-base"}, MIT),
        ("roberta_only", {"slm_preset": "hf://somebody/roberta-base"}, OTHER),
        ("hybrid", {"slm_preset": "my_roberta"}, OTHER),
    ],
)
def test_the_license_is_the_strictest_of_the_parts(kind, names, expected):
    manifest = made_manifest(result(kind, () if kind == "roberta_only" else (4,)), **names)
    assert license_of(manifest) == expected
    card = card_of(manifest)
    assert metadata(card)["license"] == expected
    assert ("license_name" in metadata(card)) == (expected == OTHER)
    assert (GEMMA_TERMS in card) == (expected == GEMMA)


def test_a_folder_with_the_name_of_meta_s_roberta_has_another_license():
    manifest = made_manifest(result("roberta_only", ()), slm_preset="roberta_base_en")
    manifest.presets["slm_preset"]["fingerprint"] = SHA
    assert license_of(manifest) == OTHER


def test_a_gemma_in_the_folder_is_named():
    own = result(history=TRAINED)
    manifest = made_manifest(own, files=["gemma/config.json"], llm_preset="gemma_2b_en")
    assert "The truncated Gemma is in the folder" in card_of(manifest)


def test_a_gemma_elsewhere_is_named_with_its_address():
    handle = "hf://google/gemma-2b"
    card = card_of(made_manifest(result(history=TRAINED), handle=handle, llm_preset="gemma_2b_en"))
    assert f"downloads `{handle}`" in prose(card)
    (row,) = (row for row in rows(card) if row[0] == "Gemma")
    assert row[1] == "gemma_2b_en" and handle in row[3] and "not compared" in row[3]
    assert metadata(card)["base_model"] == ["google/gemma-2b"]


def test_the_address_is_the_notebooks():
    file = ROOT / "tools" / "kaggle_kernels.yaml"
    assert yaml.safe_load(file.read_text(encoding="utf-8"))["repository"] == REPOSITORY

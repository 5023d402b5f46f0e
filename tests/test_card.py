"""The model card: what a stranger reads of a saved embedder."""

import dataclasses
import re

import pytest
import yaml
from conftest import ROOT
from made_results import EMOTION, TRAINED, result

from embedder_helpers import card as cards
from embedder_helpers.card import APACHE, GEMMA, MIT, OTHER, REPOSITORY, beside, card, licence
from embedder_helpers.report import load_results

COUNTERFACTUAL = "AmazonCounterfactualClassification"


def told_of(own, classes=(0, 1), files=(), **names):
    """What `embedder.json` would tell of a result's embedder."""
    keys = own.experiment | {"llm_layers": own.cutoffs[0] if own.cutoffs else 1}
    presets = {
        role: {"name": names.get(role, keys[role]), "fingerprint": "0123456789abcdef" * 4}
        for role in own.inputs
        if role != "task"
    }
    return {
        "experiment": keys | names,
        "presets": presets,
        "classes": list(classes) or None,
        "width": 384,
        "files": dict.fromkeys(files, ""),
        "result": dataclasses.asdict(own),
    }


@pytest.fixture(scope="module")
def measured():
    return load_results(ROOT / "results" / "comparison")


def seed_of(results, task, kind, seed):
    return next(
        one
        for one in results
        if (one.task["name"], one.experiment["kind"], one.experiment["seed"]) == (task, kind, seed)
    )


@pytest.fixture(scope="module")
def real(measured):
    """The card of the measured hybrid of seed 34, on Hugging Face."""
    own = seed_of(measured, COUNTERFACTUAL, "hybrid", 34)
    return card(told_of(own), measured, "hf", "me/my-hybrid")


def front_matter(text):
    return yaml.safe_load(text.split("---\n")[1])


def rows(text):
    """The cells of each table row, by the first."""
    lines = [line.strip("|").split("|") for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line] for line in lines]


def test_scores_with_intervals_stand_beside_roberta_and_gemma_alone(real):
    found = {row[0]: row[1:] for row in reversed(rows(real))}  # the first table's come last
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for name, seeds in (("hybrid [1-10, chosen]", "5"), ("RoBERTa only", "5")):
        assert found[name][0] == seeds
        mean, low, high = re.findall(r"0(\.\d+)", found[name][1])
        assert re.search(rf"{re.escape(mean)}\**? ?\**\[{low}, {high}\]", readme)
    assert {"Gemma only [1-10, chosen]", "Gemma only [1-14]"} <= set(found)
    assert not any(EMOTION in line for line in real.splitlines())


def test_the_hybrids_lead_is_told_as_the_readme_tells_it(real):
    lead = next(row for row in rows(real) if row[0] == "RoBERTa only" and row[2][0] in "+-")
    assert lead[2:4] == ["+0.011 [+0.005, +0.018]", "+0.015 [+0.006, +0.024]"]


def test_the_weights_own_scores_are_told_apart_from_the_mean(real, measured):
    own = seed_of(measured, COUNTERFACTUAL, "hybrid", 34)
    words = " ".join(real.split())
    assert f"of seed 34 alone, which has accuracy {own.scores['accuracy']:.3f}" in words
    assert f"(head: accuracy {own.head['accuracy']:.3f}" in words


def test_the_front_matter_holds_the_weights_own_scores_as_mteb_names_them(real, measured):
    own = seed_of(measured, COUNTERFACTUAL, "hybrid", 34)
    (index,) = front_matter(real)["model-index"]
    (one,) = index["results"]
    assert one["dataset"]["type"] == "mteb/amazon_counterfactual"
    assert "revision" not in one["dataset"]  # it was read from local files
    found = {metric["type"]: metric["value"] for metric in one["metrics"]}
    assert found == pytest.approx(
        {"accuracy": 100 * own.scores["accuracy"], "f1": 100 * own.scores["f1"]}, abs=1e-3
    )


def test_the_front_matter_is_what_hugging_faces_own_reader_takes(real):
    from huggingface_hub import ModelCard

    read = ModelCard(real).data
    assert (read.license, read.library_name) == ("gemma", "embedder_helpers")
    assert [one.metric_type for one in read.eval_results] == ["accuracy", "f1"]


def test_one_seed_is_said_to_be_one_and_has_no_interval():
    own = result(history=TRAINED, samples_per_label=8)
    text = card(counted(own), [], "kaggle", "me/one")
    assert "What was trained with one seed has no interval" in " ".join(text.split())
    assert "No embedder of another kind stands in this table." in " ".join(text.split())
    (row,) = (row for row in rows(text) if row[0].startswith("hybrid"))
    assert "[" not in "".join(row[1:])


def counted(own, **keys):
    """`told_of` a made-up result whose texts are counted."""
    texts = {"drawn": 16, "scored": 20, "fit": 40, "watched": 8}
    task = own.task | {"texts": texts, "samples_per_label": 8}
    return told_of(dataclasses.replace(own, task=task), **keys)


def test_kaggle_gets_no_front_matter_and_its_own_way_to_fetch():
    text = card(counted(result(history=TRAINED)), [], "kaggle", "me/one")
    assert text.startswith("# one\n")
    assert 'kagglehub.model_download("me/one/keras/default")' in text


def test_results_of_other_texts_splits_and_hybrids_are_left_out():
    own = result(seed=33, history=TRAINED)
    same = result(seed=34, history=TRAINED)
    roberta = result("roberta_only", (), seed=33, history=TRAINED)
    others = [
        result(cutoffs=(3,), llm_layers=3, history=TRAINED),
        result("roberta_only", (), task="snow", history=TRAINED),
        result("roberta_only", (), scored_split="validation", history=TRAINED),
        result("gemma_only", (4,), llm_layers=4),
    ]
    others[1].inputs["task"] = "other"
    assert beside(own, [own, same, roberta, *others]) == [roberta, own, same]


def test_repeated_texts_and_the_floor_are_told():
    own = result(history=TRAINED)
    told = counted(own)
    told["result"]["unrepeated"] = {
        "texts": 3, "scores": {"accuracy": 0.7, "f1": 0.6}, "experiments": [], "head": None
    }  # fmt: skip
    words = " ".join(card(told, [], "hf", "me/one").split())
    assert "3 of the 20 scored texts stand in the train split too; without them these" in words
    assert "commonest label has accuracy 0.500 and F1 0.330" in words


def test_scores_of_the_validation_split_are_said_to_be_too_good_to_quote():
    told = counted(result(history=TRAINED, scored_split="validation"))
    words = " ".join(card(told, [], "hf", "me/one").split())
    assert "on the validation split of weather" in words and "too good to quote" in words


def test_an_embedder_without_a_result_is_said_to_have_no_scores():
    told = told_of(result()) | {"result": None}
    text = card(told, [], "hf", "me/one")
    assert "None were kept with it." in text
    assert "model-index" not in front_matter(text) and "language" not in front_matter(text)


def test_an_untrained_gemma_claims_no_training_and_no_labels():
    told = counted(result("gemma_only", (4,), llm_layers=4), classes=())
    text = card(told, [], "hf", "me/one")
    assert "Nothing in it was trained." in " ".join(text.split())
    assert "predict" not in text and "calibrated" not in text


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
def test_the_licence_is_the_strictest_of_the_parts(kind, names, expected):
    cutoffs = () if kind == "roberta_only" else (4,)
    told = counted(result(kind, cutoffs), **names)
    assert licence(told) is expected
    text = card(told, [], "hf", "me/one")
    assert front_matter(text)["license"] == expected.hf
    assert (cards.GEMMA_TERMS in text) == (expected is GEMMA)


def test_whether_gemma_is_inside_is_told_and_where_it_is_from_otherwise():
    own = result(history=TRAINED)
    told = counted(own, files=["gemma/config.json"], llm_preset="gemma_2b_en")
    assert "The cut Gemma is in the folder" in card(told, [], "hf", "me/one")
    told = counted(own, llm_preset="gemma_2b_en")
    told["experiment"]["llm_preset"] = "hf://google/gemma-2b"
    text = card(told, [], "hf", "me/one")
    assert "`load` fetches `hf://google/gemma-2b`" in " ".join(text.split())
    assert "not inside, to be read from hf://google/gemma-2b, which was not compared" in text
    assert front_matter(text)["base_model"] == ["google/gemma-2b"]


def test_the_address_is_the_notebooks():
    kernels = yaml.safe_load((ROOT / "notebooks" / "kernels.yaml").read_text(encoding="utf-8"))
    assert kernels["repository"] == REPOSITORY

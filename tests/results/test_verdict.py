"""Verdicts on made-up results: every answer, every clause, and every number by another way."""

import dataclasses
import re

import numpy as np
import pandas as pd
import pytest
from made_verdicts import SEEDS, MadeFolder
from scipy.special import softmax
from sklearn.metrics import confusion_matrix, f1_score, recall_score

from embedder_helpers.config import KINDS
from embedder_helpers.errors import InputError
from embedder_helpers.models.cascade import check_threshold
from embedder_helpers.results.cascade import fit_temperature
from embedder_helpers.results.cost_file import Measurement, add_measurement
from embedder_helpers.results.intervals import Interval
from embedder_helpers.results.paired import Needed
from embedder_helpers.results.predictions import predictions_path, read_predictions
from embedder_helpers.results.verdict import assemble, write_tables
from embedder_helpers.results.wording import notes, sentence

SELECTION = {"1": 0.6, "8": 0.7, "18": 0.72}
P_VALUES = {"1": 0.01, "8": 0.3, "18": 1.0}


@pytest.fixture
def folder(tmp_path):
    return MadeFolder(tmp_path)


def made_cost(roberta=0.9, hybrid=3.1):
    rows = [(0, roberta), (1, hybrid / 2), (8, hybrid), (18, 2 * hybrid)]
    return pd.DataFrame(
        {"cutoff": cutoff, "batch": batch, "ms_per_text": times * ms, "device": "CPU"}
        for batch, times in ((1, 5), (64, 1))
        for cutoff, ms in rows
    )


def verdict_of(folder, **options):
    return assemble(folder.results, folder.path, **options)


def predictions_of(folder, kind, per_label=None):
    """The predictions of a kind by seed, read from its files."""
    found = {}
    for i, one in enumerate(folder.results):
        settings = one.experiment
        if settings["kind"] == kind and settings.get("train_texts_per_label") == per_label:
            found[settings["seed"]] = read_predictions(folder.path / f"{kind}-{i}.json")
    return found


# === Answers ===


def test_a_complete_verdict_is_one_sentence_of_numbers_from_its_inputs(folder):
    folder.add("roberta_only", 0.80)
    folder.add("hybrid", 0.86, llm_layers="cheapest", selection=SELECTION, p_values=P_VALUES)
    folder.add("hybrid", 0.81, llm_control="random_weights")
    verdict = verdict_of(folder, cost=made_cost())
    difference, gain = verdict.difference, verdict.controls["random_weights"].gain
    mean, low, high = (f"{100 * value:.1f}" for value in difference)
    assert verdict.sentence == (
        f"On weather, with 900 training texts, the hybrid is better than RoBERTa alone by {mean} "
        f"points [{low}, {high}]; the cheapest cutoff that cannot be told from the best by a "
        "linear probe of Gemma is layer 8 of 18; the gain is knowledge: a Gemma with random "
        f"weights gives {100 * gain.mean:.1f}; it costs 3.1 ms a text beside 0.9."
    )
    assert verdict.answer == "better" and verdict.knowledge == "knowledge"


def test_the_difference_is_that_of_the_heads_of_equal_seeds(folder):
    folder.add("roberta_only", 0.80, seeds=(1, 2, 3, 4), shift=0.05)
    folder.add("hybrid", 0.83, seeds=(2, 3, 4, 9), shift=0.02)
    verdict = verdict_of(folder)
    ours, theirs = (predictions_of(folder, kind) for kind in ("hybrid", "roberta_only"))
    expected = np.mean([ours[seed].right.mean() - theirs[seed].right.mean() for seed in (2, 3, 4)])
    assert verdict.difference.mean == pytest.approx(expected) and verdict.seeds == 3


def test_a_hybrid_that_is_worse_does_not_help(folder):
    folder.add("roberta_only", 0.86)
    folder.add("hybrid", 0.80)
    folder.add("hybrid", 0.78, llm_control="random_weights")
    verdict = verdict_of(folder)
    assert verdict.answer == "worse" and verdict.knowledge is None
    assert "worse than RoBERTa alone by 5" in verdict.sentence
    assert verdict.sentence.endswith(": the LLM does not help here.")
    low, high = (f"{-100 * end:.1f}" for end in (verdict.difference.high, verdict.difference.low))
    assert f"[{low}, {high}]" in verdict.sentence


def test_what_seeds_leave_open_is_not_settled_and_more_seeds_would_settle_it(folder):
    folder.add("roberta_only", 0.80)
    folder.add("hybrid", 0.83, shift=0.05)
    verdict = verdict_of(folder)
    assert verdict.answer == "not settled" and verdict.difference.low < 0 < verdict.difference.high
    assert "it is not settled by 3 seeds whether the hybrid is better" in verdict.sentence
    assert f"about {verdict.needed.seeds} seeds" in verdict.sentence
    assert "knowledge" not in verdict.sentence


def test_what_more_seeds_and_texts_would_not_settle_says_what_these_would(folder):
    folder.add("roberta_only", 0.80)
    folder.add("hybrid", 0.83, shift=0.05)
    verdict = verdict_of(folder)
    without = dataclasses.replace(verdict, needed=Needed(None, None, 0.01))
    assert sentence(without).endswith(
        "too small for 100 seeds or 100 times the test texts to settle; these seeds and texts "
        "settle differences from 1.0 points on."
    )
    both = dataclasses.replace(verdict, needed=Needed(7, 12345, 0.01))
    assert sentence(both).endswith(
        "and about 7 seeds or 13,000 test texts would settle one of that size."
    )


def test_a_single_seed_settles_nothing(folder):
    folder.add("roberta_only", 0.6, seeds=(5,))
    folder.add("hybrid", 0.9, seeds=(5,))
    verdict = verdict_of(folder)
    assert verdict.answer == "not settled" and np.isnan(verdict.difference.low)
    assert "not settled by 1 seed whether" in verdict.sentence
    assert "run at least 3" in verdict.sentence and "nan" not in verdict.sentence
    assert not any("nan" in note for note in verdict.notes)


def test_answers_that_are_equal_for_every_text_have_no_difference(folder):
    folder.noise = 0
    folder.add("roberta_only", 0.8)
    folder.add("hybrid", 0.8)
    verdict = verdict_of(folder)
    assert verdict.answer == "not settled"
    assert "there is no difference in these 400 texts" in verdict.sentence


def test_a_gain_that_costs_too_much_costs_more_than_it_gives(folder):
    folder.add("roberta_only", 0.80, validation=0.6)
    folder.add("hybrid", 0.86, validation=0.9)
    worth = verdict_of(folder, cost=made_cost(1, 8), points_per_doubling=1.5)
    assert worth.answer == "better"  # 5.5 points for three doublings
    verdict = verdict_of(folder, cost=made_cost(1, 8), points_per_doubling=3.0)
    assert verdict.answer == "costs more than it gives"
    assert verdict.sentence.endswith(
        "but it costs more than it gives: 8.0 ms a text beside 1.0, which is 8.0 times as long, "
        "for less than 3.0 points for each doubling."
    )


def test_a_cascade_that_pays_keeps_the_hybrid_from_costing_too_much(folder):
    folder.add("roberta_only", 0.80)
    folder.add("hybrid", 0.86)
    verdict = verdict_of(folder, cost=made_cost(1, 8), points_per_doubling=3.0)
    cascade = verdict.cascade
    assert verdict.answer == "better" and cascade.milliseconds == 1 + 8 * cascade.share
    assert f"pays as a cascade: {100 * cascade.share:.0f} % of the texts" in verdict.sentence


def test_a_cascade_that_is_not_surely_better_does_not_pay(folder):
    folder.add("roberta_only", 0.80)
    folder.add("hybrid", 0.86)
    verdict = verdict_of(folder, cost=made_cost(1, 8), points_per_doubling=3.0)
    gain = verdict.cascade.gain
    unsure = verdict.cascade._replace(gain=gain._replace(low=-0.01))
    assert dataclasses.replace(verdict, cascade=unsure).answer == "costs more than it gives"


# === Knowledge and capacity ===


def test_a_gain_that_a_control_gives_too_is_capacity(folder):
    folder.add("roberta_only", 0.80)
    folder.add("hybrid", 0.86)
    folder.add("hybrid", 0.85, llm_control="random_weights")
    folder.add("hybrid", 0.80, llm_control="noise")
    verdict = verdict_of(folder)
    gain = 100 * verdict.controls["random_weights"].gain.mean
    whole = 100 * verdict.difference.mean
    assert verdict.knowledge == "capacity"
    assert (
        f"the gain is mostly capacity: a Gemma with random weights gives {gain:.1f} of the "
        f"{whole:.1f}" in verdict.sentence
    )


@pytest.mark.parametrize(("seeds", "shift"), [((1,), 0.0), ((1, 2, 3), 0.2)])
def test_a_control_that_is_not_surely_better_than_roberta_leaves_it_open(folder, seeds, shift):
    folder.add("roberta_only", 0.80)
    folder.add("hybrid", 0.86)
    folder.add("hybrid", 0.80, llm_control="random_weights")
    folder.add("hybrid", 0.84, llm_control="noise", seeds=seeds, shift=shift)
    verdict = verdict_of(folder)
    assert verdict.half_controls == ["noise"] and verdict.knowledge == "not settled"
    assert "not settled: noise in place of Gemma gives " in verdict.sentence
    assert "of the 5." in verdict.sentence and "nan" not in verdict.sentence


def test_the_control_that_is_named_is_one_that_is_surely_better(folder):
    folder.add("roberta_only", 0.80)
    folder.add("hybrid", 0.86)
    folder.add("hybrid", 0.85, llm_control="random_weights")
    folder.add("hybrid", 0.87, llm_control="noise", shift=0.12)
    verdict = verdict_of(folder)
    assert verdict.half_controls == ["random_weights", "noise"]
    assert "mostly capacity: a Gemma with random weights gives" in verdict.sentence


def test_a_control_at_another_cutoff_is_none_of_this_hybrid(folder):
    folder.add("roberta_only", 0.80)
    folder.add("hybrid", 0.86)
    folder.add("hybrid", 0.80, llm_control="random_weights", cutoff=18)
    assert not verdict_of(folder).controls


def test_a_baseline_that_was_trained_otherwise_is_said_to_be(folder):
    folder.add("roberta_only", 0.80, epochs=1)
    folder.add("hybrid", 0.86, epochs=9)
    verdict = verdict_of(folder)
    assert verdict.unlike == ["epochs"]
    assert any(note.endswith("may explain a difference: see epochs.") for note in verdict.notes)


def test_without_random_weights_a_gain_is_not_settled_to_be_knowledge(folder):
    folder.add("roberta_only", 0.80)
    folder.add("hybrid", 0.86)
    folder.add("hybrid", 0.80, llm_control="shuffled")
    verdict = verdict_of(folder)
    assert verdict.knowledge == "not settled"
    assert "no Gemma with random weights was run" in verdict.sentence


def test_a_control_that_the_hybrid_is_not_surely_ahead_of_leaves_it_open(folder):
    folder.add("roberta_only", 0.80)
    folder.add("hybrid", 0.86)
    folder.add("hybrid", 0.81, llm_control="random_weights", shift=0.06)
    verdict = verdict_of(folder)
    assert verdict.controls["random_weights"].ahead.low < 0
    assert "whether the gain is knowledge is not settled: the hybrid minus a Gemma with random" in (
        verdict.sentence
    )


# === Layers ===


def test_of_several_hybrids_validation_chooses_the_cheapest_as_good_as_the_best(folder):
    folder.add("roberta_only", 0.70)
    folder.add("hybrid", 0.90, cutoff=1, validation=0.6)  # the best on the scored texts
    folder.add("hybrid", 0.80, cutoff=8, validation=0.9)
    folder.add("hybrid", 0.80, cutoff=18, validation=0.9)
    verdict = verdict_of(folder)
    assert verdict.layer_set == [8, 18] and verdict.cheapest == 8 and verdict.cutoffs == [8]
    assert verdict.layers["cutoff"].tolist() == [0, 1, 8, 18]
    assert verdict.difference.mean < 0.12
    assert "cannot be told from the best by validation is layer 8 of 18" in verdict.sentence


def test_a_hybrid_at_another_cutoff_than_the_cheapest_says_so(folder):
    folder.add("roberta_only", 0.70)
    folder.add("hybrid", 0.8, cutoff=18, llm_layers="auto", selection=SELECTION, p_values=P_VALUES)
    assert "is layer 8 of 18 (the hybrid's is 18)" in verdict_of(folder).sentence


def test_a_single_cutoff_has_no_clause_on_layers(folder):
    folder.add("roberta_only", 0.70)
    folder.add("hybrid", 0.80)
    verdict = verdict_of(folder)
    assert verdict.layer_set is None and "cutoff" not in verdict.sentence


def test_the_frontier_has_those_than_which_none_is_faster_and_better(folder):
    folder.add("roberta_only", 0.70)
    selection = {"1": 0.6, "8": 0.72, "18": 0.71}
    folder.add("hybrid", 0.8, llm_layers="cheapest", selection=selection, p_values=P_VALUES)
    layers = verdict_of(folder, cost=made_cost()).layers
    assert layers["frontier"].tolist() == [True, True, False]
    assert layers["ms_per_text"].tolist() == [1.55, 3.1, 6.2]


# === What may be missing ===


def test_without_controls_cost_and_encoder_their_clauses_are_left_out(folder):
    folder.add("roberta_only", 0.80)
    folder.add("hybrid", 0.86)
    verdict = verdict_of(folder)
    assert verdict.sentence.startswith("On weather, with 900 training texts, the hybrid is better")
    assert ";" not in verdict.sentence and not verdict.controls and verdict.cost is None
    assert verdict.encoder is None and verdict.table()["ms a text"].isna().all()


def test_without_heads_the_protocol_is_the_score(folder):
    folder.add("roberta_only", 0.75, head=False)
    folder.add("hybrid", 0.95, head=False, texts=0)
    verdict = verdict_of(folder)
    assert verdict.score == "protocol" and verdict.difference.mean == pytest.approx(0.2)
    assert "the hybrid is better than RoBERTa alone by MTEB's protocol by 20" in verdict.sentence
    assert "training text" not in verdict.sentence and verdict.cascade is None
    assert verdict.labels is None and verdict.scored is None and verdict.disagreement is None
    assert "the protocol's accuracy" in verdict.notes[0]


def test_without_predictions_of_one_the_protocol_is_the_score_of_both(folder):
    folder.add("roberta_only", 0.80)
    folder.add("hybrid", 0.90, predictions=False)
    assert verdict_of(folder).score == "protocol"


def test_seeds_whose_predictions_are_lost_do_not_count(folder):
    folder.add("roberta_only", 0.80)
    folder.add("hybrid", 0.86)
    lost = [predictions_path(folder.path / f"hybrid-{number}.json") for number in (4, 5)]
    for path in lost:
        path.unlink()
    verdict = verdict_of(folder)
    assert verdict.seeds == 1 and "not settled by 1 seed " in verdict.sentence
    assert verdict.table().set_index("embedder").loc["hybrid", "seeds"] == 1


def test_the_cost_is_read_from_the_folder(folder):
    folder.add("roberta_only", 0.80)
    folder.add("hybrid", 0.86)
    rows = [
        {"cutoff": cutoff, "batch": batch, "block_passes": 0.0, "ms_per_text": ms}
        | {"peak_megabytes": None, "weights_megabytes": None}
        for batch, factor in ((1, 3.0), (64, 1.0))
        for cutoff, ms in ((0, 0.5 * factor), (8, 2.0 * factor))
    ]
    add_measurement(folder.path, Measurement(machine={"device": "CPU"}, subject={}, rows=rows))
    verdict = verdict_of(folder)
    assert (verdict.cost.roberta, verdict.cost.hybrid, verdict.cost.batch) == (0.5, 2.0, 64)
    assert "it costs 2.0 ms a text beside 0.5" in verdict.sentence


def test_a_cutoff_whose_cost_was_not_measured_has_no_clause(folder):
    folder.add("roberta_only", 0.80)
    folder.add("hybrid", 0.86, cutoff=5)
    assert verdict_of(folder, cost=made_cost()).cost is None


# === Training texts, the encoder, the table ===


def test_the_learning_curve_compares_equal_numbers_of_texts(folder):
    for per_label, roberta, hybrid in ((8, 0.5, 0.62), (64, 0.7, 0.78), (None, 0.8, 0.86)):
        texts = per_label * 3 if per_label else 900
        options = {"train_texts_per_label": per_label, "texts": texts}
        folder.add("roberta_only", roberta, **options)
        folder.add("hybrid", hybrid, **options)
    verdict = verdict_of(folder)
    hybrids = verdict.learning_curve[verdict.learning_curve["kind"] == "hybrid"]
    assert hybrids["texts per label"].tolist() == [8, 64, "all"]
    assert hybrids["training texts"].tolist() == [24, 192, 900]
    for row, per_label in zip(hybrids.itertuples(index=False), (8, 64, None), strict=True):
        ours, theirs = (
            predictions_of(folder, kind, per_label) for kind in ("hybrid", "roberta_only")
        )
        expected = np.mean([ours[seed].right - 1.0 * theirs[seed].right for seed in SEEDS])
        assert row.difference == pytest.approx(expected) and row.low < expected < row.high
    assert verdict.texts == 900
    (note,) = [note for note in verdict.notes if note.startswith("By training texts per label")]
    assert re.search(r"is better with 8 \(1.+ points \[.+\]\)", note)


def test_numbers_of_texts_with_which_nothing_is_settled_are_named_apart(folder):
    for per_label, hybrid, shift in ((8, 0.75, 0.3), (None, 0.86, 0)):
        options = {"train_texts_per_label": per_label, "texts": per_label or 900}
        folder.add("roberta_only", 0.5 if per_label else 0.8, **options)
        folder.add("hybrid", hybrid, shift=shift, **options)
    (note,) = [note for note in verdict_of(folder).notes if "per label" in note]
    assert re.fullmatch(r".+ is better with all \([^)]+\), and not with 8\.", note)


def test_without_all_texts_the_most_that_both_have_count(folder):
    for per_label in (8, 64):
        folder.add("roberta_only", 0.6, train_texts_per_label=per_label, texts=3 * per_label)
        folder.add("hybrid", 0.7, train_texts_per_label=per_label, texts=3 * per_label)
    assert verdict_of(folder).sentence.startswith("On weather, with 192 training texts, ")


def test_gemma_alone_has_one_row_which_goes_with_every_seed(folder):
    folder.add("roberta_only", 0.80)
    folder.add("hybrid", 0.86)
    folder.add("gemma_only", 0.6, seeds=(33,), probe=True)
    verdict = verdict_of(folder)
    curve = verdict.learning_curve.set_index("kind")
    theirs = predictions_of(folder, "roberta_only")
    (gemma,) = predictions_of(folder, "gemma_only").values()
    expected = np.mean([gemma.right - 1.0 * other.right for other in theirs.values()])
    assert curve.loc["Gemma alone", "difference"] == pytest.approx(expected)
    assert curve.loc["Gemma alone", "high"] < 0
    assert any(f"is \N{MINUS SIGN}{-100 * expected:.1f} points [" in note for note in verdict.notes)


def test_where_few_texts_do_not_help_either_the_notes_say_so(folder):
    for per_label in (8, None):
        folder.add("roberta_only", 0.8, train_texts_per_label=per_label)
        folder.add("hybrid", 0.7, train_texts_per_label=per_label)
    assert "With no number of training texts is it settled" in " ".join(verdict_of(folder).notes)


def test_a_cascade_is_described_only_where_the_hybrid_is_better(folder):
    folder.add("roberta_only", 0.80)
    folder.add("hybrid", 0.86)
    better = verdict_of(folder)
    (note,) = (note for note in better.notes if "cascade" in note)
    assert f"{100 * better.cascade.share:.0f} % of the texts reach Gemma" in note
    worse = dataclasses.replace(better, difference=Interval(0.0, -0.1, 0.1))
    assert not any("cascade" in note for note in notes(worse))


def test_gemma_alone_on_texts_that_a_seed_drew_is_paired_with_that_seed(folder):
    options = {"train_texts_per_label": 8}
    folder.add("roberta_only", 0.5, **options)
    folder.add("hybrid", 0.6, **options)
    folder.add("gemma_only", 0.6, seeds=(2,), probe=True, **options)
    row = verdict_of(folder).learning_curve.set_index("kind").loc["Gemma alone"]
    ours, theirs = (predictions_of(folder, kind, 8)[2] for kind in ("gemma_only", "roberta_only"))
    assert row["difference"] == pytest.approx(ours.right.mean() - theirs.right.mean())
    assert np.isnan(row["low"])  # another seed would draw other texts


def test_the_table_has_a_row_for_each_embedder(folder):
    folder.add("roberta_only", 0.80)
    folder.add("hybrid", 0.86)
    folder.add("gemma_only", 0.6, seeds=(33,), probe=True)
    folder.add("hybrid", 0.81, llm_control="noise")
    table = verdict_of(folder, cost=made_cost()).table().set_index("embedder")
    assert list(table.index) == ["RoBERTa alone", "Gemma alone", "hybrid", "hybrid, noise"]
    assert table["seeds"].tolist() == [3, 1, 3, 3]
    assert table["ms a text"].tolist()[::2] == [0.9, 3.1]
    ours = predictions_of(folder, "gemma_only")[33]
    assert table.loc["Gemma alone", "head accuracy"].startswith(f"{ours.right.mean():.3f} [")
    f1 = f1_score(ours.labels, ours.predicted, average="macro")
    assert table.loc["Gemma alone", "head macro F1"].startswith(f"{f1:.3f} [")


@pytest.mark.skipif("encoder_only" not in KINDS, reason="needs ready encoders")
def test_a_ready_encoder_is_compared_with_the_hybrid(folder):
    folder.add("roberta_only", 0.80)
    folder.add("hybrid", 0.86)
    options = {"encoder_preset": "a/small-encoder", "probe": True}
    folder.add("encoder_only", 0.70, seeds=(33,), **options)
    verdict = verdict_of(folder)
    (ready,) = predictions_of(folder, "encoder_only").values()
    ours = predictions_of(folder, "hybrid")
    expected = np.mean([said.right - 1.0 * ready.right for said in ours.values()])
    assert verdict.encoder_difference.mean == pytest.approx(expected)
    assert "ready encoder (a/small-encoder, frozen" in " ".join(verdict.notes)
    assert verdict.table()["embedder"].tolist()[-1] == "ready encoder"


# === Where it falls ===


@pytest.fixture
def fallen(folder):
    folder.add("roberta_only", 0.75, shift=0.1)
    folder.add("hybrid", 0.85, shift=0.04)
    texts = [f"=text {i}" for i in range(len(folder.labels))]
    return folder, verdict_of(folder, texts=texts)


def test_labels_have_the_recall_of_both(fallen):
    folder, verdict = fallen
    table = verdict.labels.set_index("label")
    for column, kind in (("hybrid recall", "hybrid"), ("RoBERTa recall", "roberta_only")):
        recalls = [
            recall_score(said.labels, said.predicted, average=None)
            for said in predictions_of(folder, kind).values()
        ]
        expected = dict(zip(["rain", "snow", "sun"], np.mean(recalls, axis=0), strict=True))
        assert table[column].to_dict() == pytest.approx(expected)
    assert table["texts"].sum() == 400
    assert table["difference"].is_monotonic_decreasing


def test_texts_that_only_one_gets_right_are_those_of_most_seeds(fallen):
    folder, verdict = fallen
    ours, theirs = (
        np.sum([said.right for said in predictions_of(folder, kind).values()], axis=0) >= 2
        for kind in ("hybrid", "roberta_only")
    )
    (_, only_theirs), (only_ours, _) = confusion_matrix(ours, theirs)
    assert (verdict.scored["only"] == "hybrid").sum() == only_ours
    assert (verdict.scored["only"] == "RoBERTa").sum() == only_theirs
    assert verdict.labels["only hybrid"].sum() == only_ours
    assert f"the hybrid alone gets {only_ours} right by most seeds" in " ".join(verdict.notes)


def test_mcnemars_test_is_statsmodels(fallen):
    tables = pytest.importorskip("statsmodels.stats.contingency_tables")
    verdict = fallen[1]
    only = [(verdict.scored["only"] == name).sum() for name in ("hybrid", "RoBERTa")]
    expected = tables.mcnemar([[0, only[0]], [only[1], 0]], exact=True).pvalue
    assert verdict.disagreement.p_value == pytest.approx(expected)


def test_the_table_of_texts_has_the_share_of_seeds_that_are_right(fallen):
    folder, verdict = fallen
    shares = np.mean([said.right for said in predictions_of(folder, "hybrid").values()], axis=0)
    assert verdict.scored["hybrid"].tolist() == shares.tolist()
    is_right = verdict.scored["hybrid says"] == verdict.scored["label"]
    assert is_right[shares > 0.5].all() and not is_right[shares == 0].any()


def test_a_text_that_few_seeds_get_right_is_not_said_to_be_right(folder):
    folder.noise = 0.3  # so that seeds differ
    folder.add("roberta_only", 0.6, seeds=(1, 2))
    folder.add("hybrid", 0.7, seeds=(1, 2))
    scored = verdict_of(folder).scored
    for name in ("hybrid", "RoBERTa"):
        assert ((scored[name] > 0.5) == (scored[f"{name} says"] == scored["label"])).all()


def test_a_label_of_a_single_text_has_no_interval(folder):
    folder.labels[folder.labels == 2] = 0
    folder.labels[0] = 2
    folder.add("roberta_only", 0.7)
    folder.add("hybrid", 0.8)
    table = verdict_of(folder).labels.set_index("label")
    assert table.loc["sun", "texts"] == 1 and np.isnan(table.loc["sun", ["low", "high"]]).all()
    assert table.loc["rain", "low"] < table.loc["rain", "difference"] < table.loc["rain", "high"]


def test_a_label_without_training_texts_has_a_row_of_its_own(folder):
    folder.labels[:10] = -1
    folder.add("roberta_only", 0.7)
    folder.add("hybrid", 0.8)
    table = verdict_of(folder).labels.set_index("label")
    assert table.loc["(no training text has it)", "texts"] == 10


def test_tables_are_written_so_that_a_spreadsheet_computes_nothing(fallen, tmp_path):
    paths = write_tables(fallen[1], tmp_path / "tables")
    names = [path.name for path in paths]
    assert names[:4] == ["verdict.csv", "labels.csv", "texts.csv", "learning_curve.csv"]
    written = pd.read_csv(tmp_path / "tables" / "texts.csv")
    assert written["text"][0] == "'=text 0" and len(written) == 400


def test_tables_that_a_verdict_lacks_are_removed(fallen, tmp_path):
    before = write_tables(fallen[1], tmp_path)
    after = write_tables(dataclasses.replace(fallen[1], labels=None), tmp_path)
    assert set(before) - set(after) == {tmp_path / "labels.csv"}
    assert set(tmp_path.glob("*.csv")) == set(after)


# === The cascade ===


def test_a_cascade_that_should_ask_the_hybrid_always_has_a_threshold_that_can_be_given(folder):
    folder.noise = 0
    folder.add("roberta_only", 0.6, validation=0.0)
    folder.add("hybrid", 0.9, validation=1.0)
    verdict = verdict_of(folder)
    assert verdict.cascade.share == 1 and verdict.cascade.threshold == np.inf
    check_threshold(verdict.cascade.threshold)
    assert any("A cascade saves nothing here" in note for note in verdict.notes)


def test_the_cascade_is_that_of_trying_thresholds_on_validation_texts(folder):
    folder.noise = 0.2  # so that some cascades are better than the hybrid
    folder.add("roberta_only", 0.75, shift=0.04)
    folder.add("hybrid", 0.85, shift=0.04)
    cascade = verdict_of(folder).cascade
    ours, theirs = (predictions_of(folder, kind) for kind in ("hybrid", "roberta_only"))

    def run(split, threshold):
        accuracies, shares = [], []
        for seed in SEEDS:
            temperature = fit_temperature(
                theirs[seed].validation_logits, theirs[seed].validation_labels
            )
            labels = getattr(ours[seed], f"{split}labels")
            one, other = (getattr(of[seed], f"{split}logits") for of in (ours, theirs))
            goes_on = softmax(other.astype(float) / temperature, axis=1).max(1) < threshold
            said = np.where(goes_on, one.argmax(1), other.argmax(1))
            accuracies.append((said == labels).mean())
            shares.append(goes_on.mean())
        return np.mean(accuracies), np.mean(shares)

    assert run("", cascade.threshold) == pytest.approx((cascade.accuracy, cascade.share))
    as_good = np.mean(
        [(s.validation_logits.argmax(1) == s.validation_labels).mean() for s in ours.values()]
    )
    assert run("validation_", cascade.threshold)[0] >= as_good - 1e-9
    share = run("validation_", cascade.threshold)[1]
    tried = [run("validation_", threshold) for threshold in np.linspace(0, 1, 300)]
    assert all(accuracy < as_good for accuracy, smaller in tried if smaller < share - 1e-9)
    for row in cascade.curve.iloc[::97].itertuples():
        assert run("", row.threshold) == pytest.approx((row.accuracy, row.share))


# === Errors ===


def test_results_of_several_tasks_are_refused(folder):
    folder.add("roberta_only", 0.8)
    folder.add("hybrid", 0.8, task="sample")
    with pytest.raises(InputError, match="of one task, but the results are of 'weather', 'sample'"):
        verdict_of(folder)


def test_results_of_several_recipes_are_refused(folder):
    folder.add("roberta_only", 0.8)
    folder.add("hybrid", 0.8, seeds=(1, 2))
    folder.add("hybrid", 0.8, seeds=(3,), epochs=9)
    with pytest.raises(InputError, match="results of hybrid differ in epochs"):
        verdict_of(folder)


def test_a_hybrid_without_roberta_is_refused(folder):
    folder.add("hybrid", 0.8)
    with pytest.raises(InputError, match="compares a hybrid with RoBERTa alone"):
        verdict_of(folder)


def test_seeds_that_differ_are_refused(folder):
    folder.add("hybrid", 0.8, seeds=(1, 2))
    folder.add("roberta_only", 0.8, seeds=(3, 4))
    with pytest.raises(InputError, match="in common"):
        verdict_of(folder)


def test_another_number_of_texts_is_refused(folder):
    folder.add("roberta_only", 0.7)
    folder.add("hybrid", 0.8)
    with pytest.raises(InputError, match="there are 1 texts, but 400 were scored"):
        verdict_of(folder, texts=["one"])


def test_predictions_of_different_texts_are_refused(folder):
    folder.add("roberta_only", 0.7)
    folder.labels = np.roll(folder.labels, 1)
    folder.add("hybrid", 0.8)
    with pytest.raises(InputError, match="predictions are of different texts"):
        verdict_of(folder)

"""Figures of verdicts: what they show, and when there is none."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
from made_verdicts import MadeFolder

from embedder_helpers.results import verdict_figures as figures
from embedder_helpers.results.verdict import assemble


def lines(panel):
    """The lines of a panel by label: x and y values."""
    return {
        line.get_label(): (np.asarray(line.get_xdata()), np.asarray(line.get_ydata()))
        for line in panel.get_lines()
    }


@pytest.fixture(scope="module")
def verdict(tmp_path_factory):
    folder = MadeFolder(tmp_path_factory.mktemp("results"))
    for per_label, roberta, hybrid in ((8, 0.5, 0.62), (None, 0.8, 0.86)):
        options = {"train_texts_per_label": per_label, "texts": 24 if per_label else 900}
        folder.add("roberta_only", roberta, **options)
        folder.add("hybrid", hybrid, **options)
    folder.add("hybrid", 0.86, cutoff=1, validation=0.6)
    folder.add("hybrid", 0.81, llm_control="random_weights")
    folder.add("hybrid", 0.80, llm_control="shuffled")
    folder.add("hybrid", 0.80, llm_control="noise")
    times = {0: 0.9, 1: 1.5, 8: 3.1}
    cost = pd.DataFrame(
        {"cutoff": cutoff, "batch": 64, "ms_per_text": ms, "device": "CPU"}
        for cutoff, ms in times.items()
    )
    return assemble(folder.results, folder.path, cost=cost)


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    folder = MadeFolder(tmp_path_factory.mktemp("bare"))
    folder.add("roberta_only", 0.8, head=False)
    folder.add("hybrid", 0.9, head=False)
    return assemble(folder.results, folder.path)


def test_the_learning_curve_shows_accuracy_and_difference_over_training_texts(verdict):
    scores, differences = figures.plot_learning_curve(verdict).axes
    curve = verdict.learning_curve.set_index("kind")
    for name in ("RoBERTa alone", "hybrid"):
        texts, accuracy = lines(scores)[name]
        assert texts.tolist() == [24, 900]
        assert accuracy.tolist() == pytest.approx((100 * curve.loc[name, "accuracy"]).tolist())
    shown = lines(differences)["hybrid"][1]
    assert shown.tolist() == pytest.approx((100 * curve.loc["hybrid", "difference"]).tolist())
    labels = [label.get_text() for label in scores.get_xticklabels()]
    assert labels == ["24\n(8)", "900\n(all)"]


def test_controls_have_a_row_each_below_the_hybrid(verdict):
    (panel,) = figures.plot_controls(verdict).axes
    names = [label.get_text() for label in panel.get_yticklabels()]
    of_others = "hybrid, states of other texts"
    assert names == ["hybrid", "hybrid, random weights", of_others, "hybrid, noise"]
    ends = [line.get_xdata() for line in panel.get_lines()[:8:2]]
    gains = [verdict.difference, *(control.gain for control in verdict.controls.values())]
    for shown, gain in zip(ends, gains, strict=True):
        assert list(shown) == pytest.approx([100 * gain.low, 100 * gain.high])
    half = lines(panel)["half of the hybrid's gain"][0]
    assert half[0] == pytest.approx(50 * verdict.difference.mean)


def test_the_cost_figure_marks_the_cheapest_cutoff_and_the_frontier(verdict):
    (panel,) = figures.plot_cost(verdict).axes
    shown = lines(panel)
    assert verdict.cheapest == 8
    assert shown["the cheapest of these: layer 8"][0].tolist() == [3.1]
    assert shown["other cutoff"][0].tolist() == [1.5]
    assert shown["RoBERTa alone"][0].tolist() == [0.9]
    frontier = shown["frontier: none is faster and better"][0]
    assert frontier.tolist() == [0.9, 3.1]  # cutoff 1 is slower and worse than RoBERTa alone


def test_the_cascade_goes_from_roberta_alone_to_the_hybrid(verdict):
    (panel,) = figures.plot_cascade(verdict).axes
    share, accuracy = lines(panel)["cascade: the texts that RoBERTa is least sure of go on"]
    assert share[[0, -1]].tolist() == [0, 100]
    assert accuracy[0] == lines(panel)["RoBERTa alone"][1][0]
    assert accuracy[-1] == lines(panel)["hybrid, for every text"][1][0]


@pytest.mark.parametrize("plot", figures.FIGURES.values(), ids=figures.FIGURES)
def test_nothing_is_cut_off_at_the_edge(plot, verdict):
    long = dataclasses.replace(verdict, task="AmazonCounterfactualClassification")
    figure = plot(long)
    figure.draw_without_rendering()
    inside = figure.get_tightbbox().padded(-0.01)
    assert inside.x0 >= 0 and inside.x1 <= figure.get_figwidth()
    assert inside.y0 >= 0 and inside.y1 <= figure.get_figheight()


def test_every_figure_is_written(verdict, tmp_path):
    paths = figures.write_figures(verdict, tmp_path)
    assert [path.stem for path in paths] == ["learning_curve", "controls", "cost", "cascade"]
    assert all(path.stat().st_size > 1000 for path in paths)


def test_figures_without_numbers_are_left_out_and_earlier_ones_removed(bare, verdict, tmp_path):
    figures.write_figures(verdict, tmp_path)
    assert figures.write_figures(bare, tmp_path) == []
    assert list(tmp_path.iterdir()) == []

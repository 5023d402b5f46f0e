import numpy as np
import pytest
from made_results import EMOTION, TRAINED, result

from embedder_helpers import figures
from embedder_helpers.comparison import mean
from embedder_helpers.leaderboard import original_study


def test_the_figure_shows_every_embedder_and_the_floor(tmp_path):
    results = [result(), result("roberta_only", ())]
    figure = figures.plot(results, tmp_path / "scores.png")
    accuracy = figure.axes[0]
    names = [label.get_text() for label in accuracy.get_yticklabels()]
    assert names == ["hybrid [1-10]", "RoBERTa only"]
    assert (tmp_path / "scores.png").stat().st_size > 1000


def lines(panel):
    """The lines of a panel by their labels: places and heights."""
    return {
        line.get_label(): (np.asarray(line.get_xdata()), np.asarray(line.get_ydata()))
        for line in panel.get_lines()
    }


SEEDS = ((1, 0.0), (2, 0.03), (3, 0.01))  # and how far each lies above
SWEPT = [
    *(result(cutoffs=(k,), accuracy=k / 20, seed=seed) for k in (1, 10, 18) for seed in (1, 2)),
    result(cutoffs=(1,), accuracy=0.25, seed=3),
    *(result("gemma_only", (k,), accuracy=k / 30) for k in (18, 5)),
    result(cutoffs=(1, 18), accuracy=0.99),
    result("roberta_only", (), 0.9, history=TRAINED),
    result("roberta_only", (), 0.4, epochs=0),
]


def test_the_curves_stand_at_their_cutoffs_with_the_means_over_seeds(tmp_path):
    figure = figures.plot_layers(SWEPT, tmp_path / "layers.png")
    found = lines(figure.axes[0])
    places, heights = found["hybrid"]
    assert places.tolist() == [1, 10, 18]
    assert heights.tolist() == pytest.approx([(0.05 + 0.05 + 0.25) / 3, 0.5, 0.9])
    places, heights = found["Gemma only"]
    assert places.tolist() == [5, 18] and heights.tolist() == pytest.approx([5 / 30, 0.6])
    assert (tmp_path / "layers.png").stat().st_size > 1000


def bands(panel):
    """The ends of each band by its cutoff."""
    found = []
    for band in panel.collections:
        ends = {}
        for place, height in np.concatenate([path.vertices for path in band.get_paths()] or [[]]):
            low, high = ends.get(place, (height, height))
            ends[place] = min(low, height), max(high, height)
        found.append(ends)
    return found


def test_bands_are_the_intervals_of_the_comparison():
    seeds = [result(cutoffs=(4,), accuracy=0.5 + d, history=TRAINED, seed=s) for s, d in SEEDS]
    alone = [result("gemma_only", (k,), accuracy=k / 30) for k in (4, 5)]
    one_seed = [result(cutoffs=(9,), accuracy=0.7, history=TRAINED, seed=1)]
    panels = figures.plot_layers([*seeds, *alone, *one_seed]).axes
    for panel, column in zip(panels, ("accuracy", "F1"), strict=True):
        hybrid, gemma, *_ = bands(panel)
        assert hybrid == {4: pytest.approx(mean(seeds, column)[1:])}
        ends = [pytest.approx(mean([one], column)[1:]) for one in alone]
        assert gemma == dict(zip((4, 5), ends, strict=True))
        assert "95 % interval" in panel.get_legend_handles_labels()[1]


def test_one_trained_seed_has_no_band():
    panel = figures.plot_layers([result(cutoffs=(k,), history=TRAINED) for k in (1, 2, 3)]).axes[0]
    assert bands(panel) == [{}]
    assert "95 % interval" not in panel.get_legend_handles_labels()[1]


def test_a_chosen_cutoff_and_the_same_one_given_are_one_seed():
    given = [result(cutoffs=(4,), accuracy=0.5 + d, history=TRAINED, seed=s) for s, d in SEEDS]
    chosen = result(cutoffs=(4,), accuracy=0.5, history=TRAINED, seed=1, llm_layers="auto")
    panel = figures.plot_layers([*given, chosen]).axes[0]
    assert lines(panel)["hybrid"][1].tolist() == pytest.approx([mean(given, "accuracy").mean])
    assert bands(panel)[0] == {4: pytest.approx(mean(given, "accuracy")[1:])}


def test_curves_of_other_settings_are_apart_and_named():
    results = [
        *(result(cutoffs=(k,), accuracy=k / 20, pooling="mean") for k in (5, 10)),
        *(result(cutoffs=(k,), accuracy=k / 40, pooling="max") for k in (5, 10)),
    ]
    found = lines(figures.plot_layers(results).axes[0])
    assert found["hybrid, pooling mean"][1].tolist() == [0.25, 0.5]
    assert found["hybrid, pooling max"][1].tolist() == [0.125, 0.25]
    assert "hybrid" not in found


def test_the_curves_come_for_accuracy_and_for_f1():
    accuracy, f1 = figures.plot_layers(SWEPT).axes
    _, heights = lines(accuracy)["Gemma only"]
    np.testing.assert_allclose(lines(f1)["Gemma only"][1], heights - 0.1)


def test_roberta_alone_and_the_floor_are_levels():
    accuracy, f1 = (lines(panel) for panel in figures.plot_layers(SWEPT).axes)
    assert set(accuracy["RoBERTa only"][1]) == {0.9}
    assert set(accuracy["RoBERTa only, untrained"][1]) == {0.4}
    assert set(accuracy["floor: the commonest label"][1]) == {0.5}
    assert set(f1["floor: the commonest label"][1]) == {0.33}


@pytest.mark.parametrize("task", [EMOTION, "AmazonCounterfactualClassification"])
def test_the_original_studys_curve_stands_beside_ours_on_its_tasks(task):
    panels = figures.plot_layers([result(task=task)]).axes
    rows = original_study().query("task == @task")
    hybrid = rows[rows["kind"] == "hybrid"]
    assert len(hybrid) > 2
    for panel, metric in zip(panels, ("accuracy", "f1"), strict=True):
        (curve,) = [label for label in lines(panel) if "hybrid" in label and "original" in label]
        places, heights = lines(panel)[curve]
        assert dict(zip(places, heights, strict=True)) == dict(
            zip(hybrid["llm_layers"], hybrid[metric], strict=True)
        )
        level = rows.loc[rows["kind"] == "roberta_only", metric].item()
        assert set(lines(panel)["original study: RoBERTa only"][1]) == {level}


def test_another_task_has_no_published_curve():
    for panel in figures.plot_layers([result()]).axes:
        assert not any("original" in label for label in lines(panel))


def test_each_task_has_a_row_of_panels():
    figure = figures.plot_layers([result(), result(task=EMOTION)])
    titles = [panel.get_title(loc="left") for panel in figure.axes]
    assert titles == [f"{EMOTION}: accuracy", "macro F1", "weather: accuracy", "macro F1"]


def test_a_figure_of_steps_has_a_row_for_each_with_what_it_changed(tmp_path):
    results = [
        result(accuracy=0.6, epochs=1),
        result(accuracy=0.7, epochs=3),
        result("roberta_only", (), 0.8, EMOTION),
    ]
    figure = figures.plot_steps(results, tmp_path / "steps.png")
    first, _, second, _ = figure.axes
    rows = [[label.get_text() for label in panel.get_yticklabels()] for panel in (first, second)]
    assert rows == [
        ["1. hybrid", "2. epochs 3"],
        ["1. RoBERTa only"],
    ]
    assert lines(first)["protocol, 95 % interval"][0].tolist() == pytest.approx([0.6, 0.7])
    assert (tmp_path / "steps.png").stat().st_size > 1000

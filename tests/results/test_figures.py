import numpy as np
import pytest
from made_results import EMOTION, TRAINED, result
from matplotlib.collections import LineCollection, PolyCollection

from embedder_helpers.errors import InputError
from embedder_helpers.results import figures
from embedder_helpers.results.comparison import paired_difference, score_interval
from embedder_helpers.results.leaderboard import load_original_study


def tick_labels(panel):
    return [label.get_text() for label in panel.get_yticklabels()]


def lines(panel):
    """The lines of a panel by label: x and y values."""
    return {
        line.get_label(): (np.asarray(line.get_xdata()), np.asarray(line.get_ydata()))
        for line in panel.get_lines()
    }


def bands(panel):
    """The ends of each band by cutoff."""
    every = []
    for band in panel.findobj(PolyCollection):
        ends = {}
        for cutoff, score in np.concatenate([path.vertices for path in band.get_paths()] or [[]]):
            low, high = ends.get(cutoff, (score, score))
            ends[cutoff] = min(low, score), max(high, score)
        every.append(ends)
    return every


def legend_labels(panel):
    return panel.get_legend_handles_labels()[1]


# === Scores ===


def test_every_embedder_has_a_row_with_its_runs_mean_and_head(tmp_path):
    results = [result(), result("roberta_only", (), 0.6)]
    figure = figures.plot_scores(results, tmp_path / "scores.png")
    accuracy, _ = figure.axes
    assert tick_labels(accuracy) == ["hybrid [1-10]", "RoBERTa only"]
    shown = lines(accuracy)
    assert shown["single run"][0].tolist() == pytest.approx([0.73, 0.77])
    assert shown["mean of the protocol's runs, 95 % CI"][0].tolist() == pytest.approx([0.75, 0.6])
    assert shown["head, 95 % CI over seeds"][0].tolist() == [0.8, 0.8]
    assert set(shown["majority-class baseline"][0]) == {0.5}
    assert (tmp_path / "scores.png").stat().st_size > 1000


def test_long_names_are_wrapped_at_their_commas():
    preset = "a/folder/with/a/long/name"
    results = [result(llm_preset=name) for name in (preset, f"another/{preset}")]
    accuracy, _ = figures.plot_scores(results).axes
    assert tick_labels(accuracy)[0] == f"hybrid [1-10],\nllm_preset {preset}"


def test_a_figure_of_an_ablation_has_a_row_for_each_step(tmp_path):
    results = [
        result(accuracy=0.6, epochs=1),
        result(accuracy=0.7, epochs=3),
        result("roberta_only", (), 0.8, EMOTION),
    ]
    figure = figures.plot_ablation(results, tmp_path / "steps.png")
    first, _, second, _ = figure.axes
    assert tick_labels(first) == ["1. hybrid", "2. epochs 3"]
    assert tick_labels(second) == ["1. RoBERTa only"]
    means, _ = lines(first)["mean of the protocol's runs, 95 % CI"]
    assert means.tolist() == pytest.approx([0.6, 0.7])
    assert (tmp_path / "steps.png").stat().st_size > 1000


# === Curves over the cutoff ===

SEEDS = ((1, 0.0), (2, 0.03), (3, 0.01))  # and how much better each one is


@pytest.fixture(scope="module")
def curves(tmp_path_factory):
    """Accuracy and macro F1 of a sweep over cutoffs, as panels."""
    results = [
        *(result(cutoffs=(k,), accuracy=k / 20, seed=seed) for k in (1, 10, 18) for seed in (1, 2)),
        result(cutoffs=(1,), accuracy=0.25, seed=3),
        *(result("gemma_only", (k,), accuracy=k / 30) for k in (18, 5)),
        result(cutoffs=(1, 18), accuracy=0.99),
        result("roberta_only", (), 0.9, history=TRAINED),
        result("roberta_only", (), 0.4, epochs=0),
    ]
    path = tmp_path_factory.mktemp("curves") / "layers.png"
    panels = figures.plot_layers(results, path).axes
    assert path.stat().st_size > 1000
    return panels


def test_curves_are_means_over_seeds_at_single_cutoffs(curves):
    cutoffs, means = lines(curves[0])["hybrid"]
    assert cutoffs.tolist() == [1, 10, 18]
    assert means.tolist() == pytest.approx([(0.05 + 0.05 + 0.25) / 3, 0.5, 0.9])
    cutoffs, means = lines(curves[0])["Gemma only"]
    assert cutoffs.tolist() == [5, 18] and means.tolist() == pytest.approx([5 / 30, 0.6])


def test_both_metrics_have_curves(curves):
    accuracy, f1 = (lines(panel)["Gemma only"][1] for panel in curves)
    np.testing.assert_allclose(f1, accuracy - 0.1)


def test_roberta_alone_and_the_majority_baseline_are_horizontal_lines(curves):
    accuracy, f1 = map(lines, curves)
    assert set(accuracy["RoBERTa only"][1]) == {0.9}
    assert set(accuracy["RoBERTa only, untrained"][1]) == {0.4}
    assert set(accuracy["majority-class baseline"][1]) == {0.5}
    assert set(f1["majority-class baseline"][1]) == {0.33}


def test_another_task_has_no_curve_of_the_original_study(curves):
    assert not any("original" in label for panel in curves for label in lines(panel))


def test_bands_are_the_intervals_of_the_comparison():
    seeds = [result(cutoffs=(4,), accuracy=0.5 + d, history=TRAINED, seed=s) for s, d in SEEDS]
    alone = [result("gemma_only", (k,), accuracy=k / 30) for k in (4, 5)]
    single_seed = result(cutoffs=(9,), accuracy=0.7, history=TRAINED, seed=1)
    panels = figures.plot_layers([*seeds, *alone, single_seed]).axes
    for panel, column in zip(panels, ("accuracy", "macro F1"), strict=True):
        hybrid, gemma, *_ = bands(panel)
        interval = score_interval(seeds, column)[1:]
        assert hybrid == {4: pytest.approx(interval)}
        (bar,) = panel.findobj(LineCollection)  # at the only cutoff of its curve with an interval
        ((low, high),) = bar.get_segments()
        assert (low[0], high[0]) == (4, 4) and (low[1], high[1]) == pytest.approx(interval)
        ends = [pytest.approx(score_interval([single], column)[1:]) for single in alone]
        assert gemma == dict(zip((4, 5), ends, strict=True))
        assert "95 % CI" in legend_labels(panel)


def test_a_third_panel_has_the_paired_differences_to_roberta_alone():
    hybrids = [
        result(cutoffs=(k,), accuracy=0.5 + k / 10 + d * k, history=TRAINED, seed=s)
        for k in (1, 2)
        for s, d in SEEDS
    ]
    single_seed = result(cutoffs=(3,), accuracy=0.7, history=TRAINED, seed=1)
    alone = [result("roberta_only", (), 0.6 + d, history=TRAINED, seed=s) for s, d in SEEDS]
    untrained = result("roberta_only", (), 0.1, epochs=0)
    other_task = result("gemma_only", (1,), task=EMOTION)
    panels = figures.plot_layers([*hybrids, single_seed, *alone, untrained, other_task]).axes
    _, _, empty, _, _, panel = panels  # another task comes first
    assert not empty.lines and [text.get_text() for text in empty.texts] == ["no pair to compare"]
    curve, zero = panel.lines[0], panel.lines[-1]
    assert curve.get_xdata().tolist() == [1, 2, 3] and set(zero.get_ydata()) == {0}
    (bars,) = panel.findobj(LineCollection)
    groups = [hybrids[:3], hybrids[3:]]
    for k, group, segment in zip((1, 2), groups, bars.get_segments(), strict=False):
        mean, *ends = 100 * np.array(paired_difference(group, alone, "accuracy"))
        assert curve.get_ydata()[k - 1] == pytest.approx(mean)
        assert [x for x, _ in segment] == [k, k]
        assert [y for _, y in segment] == pytest.approx(ends)
    assert curve.get_ydata()[2] == pytest.approx(100 * (0.7 - 0.6))
    assert not np.isfinite(bars.get_segments()[2:]).any()


def test_two_recipes_of_roberta_alone_leave_no_third_panel():
    alone = [result("roberta_only", (), history=TRAINED, epochs=n) for n in (1, 2)]
    hybrids = [result(cutoffs=(k,), history=TRAINED) for k in (1, 2, 3)]
    assert len(figures.plot_layers([*hybrids, *alone]).axes) == 2


def test_a_ready_encoder_is_a_level_beside_the_curves():
    encoder = result("encoder_only", (), accuracy=0.66, encoder_preset="me/mini-LM")
    hybrids = [result(cutoffs=(k,), history=TRAINED) for k in (1, 2, 3)]
    panel, _ = figures.plot_layers([encoder, *hybrids]).axes
    (line,) = [one for one in panel.lines if one.get_label() == "Encoder alone: mini-LM"]
    assert list(line.get_ydata()) == pytest.approx([0.66, 0.66])


def test_a_single_seed_of_a_trained_embedder_has_no_band():
    panel, _ = figures.plot_layers([result(cutoffs=(k,), history=TRAINED) for k in (1, 2, 3)]).axes
    assert bands(panel) == [{}]
    assert "95 % CI" not in legend_labels(panel)


def test_a_cutoff_that_was_both_selected_and_set_counts_once_per_seed():
    by_seed = [result(cutoffs=(4,), accuracy=0.5 + d, history=TRAINED, seed=s) for s, d in SEEDS]
    selected = result(cutoffs=(4,), accuracy=0.5, history=TRAINED, seed=1, llm_layers="auto")
    panel, _ = figures.plot_layers([*by_seed, selected]).axes
    mean, *ends = score_interval(by_seed, "accuracy")
    assert lines(panel)["hybrid"][1].tolist() == pytest.approx([mean])
    assert bands(panel)[0] == {4: pytest.approx(tuple(ends))}


def test_different_settings_have_different_named_curves():
    results = [
        *(result(cutoffs=(k,), accuracy=k / 20, pooling="mean") for k in (5, 10)),
        *(result(cutoffs=(k,), accuracy=k / 40, pooling="max") for k in (5, 10)),
    ]
    shown = lines(figures.plot_layers(results).axes[0])
    assert shown["hybrid, pooling mean"][1].tolist() == [0.25, 0.5]
    assert shown["hybrid, pooling max"][1].tolist() == [0.125, 0.25]
    assert "hybrid" not in shown


def test_roberta_baselines_with_different_settings_have_different_line_styles():
    results = [
        result("roberta_only", (), history=TRAINED, pooling=pooling) for pooling in ("mean", "max")
    ]
    panel, _ = figures.plot_layers(results).axes
    styles = {
        line.get_linestyle() for line in panel.get_lines() if "RoBERTa only" in line.get_label()
    }
    assert len(styles) == 2


def test_a_name_has_the_same_line_style_in_every_panel():
    results = [
        result(cutoffs=(k,), task=task, pooling=pooling)
        for task, poolings in (("a", ("mean",)), ("b", ("max", "mean")))
        for pooling in poolings
        for k in (1, 2)
    ]
    styles: dict[str, set[str]] = {}
    for panel in figures.plot_layers(results).axes:
        for line in panel.get_lines():
            styles.setdefault(line.get_label(), set()).add(line.get_linestyle())
    names = [name for name in styles if name.startswith("hybrid")]
    assert len(names) == 2 and all(len(styles[name]) == 1 for name in names)
    assert styles[names[0]] != styles[names[1]]


@pytest.fixture(scope="module")
def two_tasks():
    """The panels of both tasks of the original study, a row each."""
    tasks = ("AmazonCounterfactualClassification", EMOTION)
    return tasks, figures.plot_layers([result(task=task) for task in tasks]).axes


def test_each_task_has_a_row_of_panels(two_tasks):
    (first, second), panels = two_tasks
    titles = [panel.get_title(loc="left") for panel in panels]
    assert titles == [f"{first}: accuracy", "macro F1", f"{second}: accuracy", "macro F1"]


@pytest.mark.parametrize("row", [0, 1])
def test_the_original_studys_curve_is_shown_on_its_tasks(two_tasks, row):
    tasks, panels = two_tasks
    study = load_original_study()
    study = study[study["task"] == tasks[row]]
    hybrid = study[study["kind"] == "hybrid"]
    level = study[study["kind"] == "roberta_only"]
    assert len(hybrid) > 2
    for panel, metric in zip(panels[2 * row : 2 * row + 2], ("accuracy", "f1"), strict=True):
        shown = lines(panel)
        (curve,) = [label for label in shown if "hybrid" in label and "original" in label]
        np.testing.assert_array_equal(shown[curve], [hybrid["llm_layers"], hybrid[metric]])
        assert set(shown["original study: RoBERTa only"][1]) == {level[metric].item()}


def test_validation_scores_are_shown_without_the_original_study():
    panel, _ = figures.plot_layers([result(task=EMOTION, scored_split="validation")]).axes
    assert not any("original" in label for label in lines(panel))


# === Names that are not ours ===


ODD_NAMES = (r"$\frac$", "$", r"\$x$", "日本 😀", "\x1b[0m", "x" * 5000)


@pytest.mark.parametrize("plot", [figures.plot_scores, figures.plot_layers, figures.plot_ablation])
def test_a_figure_shows_any_name_as_it_is(tmp_path, recwarn, plot):
    names = zip(ODD_NAMES, reversed(ODD_NAMES), strict=True)
    results = [result(task=name, llm_preset=preset) for name, preset in names]
    plot([*results, *(result(task=name) for name in ODD_NAMES)], tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 1000
    assert not [str(warning.message) for warning in recwarn if "Glyph" in str(warning.message)]


def test_a_dollar_is_a_letter_and_an_unknown_letter_is_spelled():
    panel, _ = figures.plot_scores([result(task="$a$ 日")]).axes
    assert panel.get_title(loc="left") == r"\$a\$ \u65e5: accuracy"


def test_embedders_whose_names_are_cut_alike_keep_their_rows():
    names = ["x" * 200 + end + "x" * 200 for end in "ab"]
    panel, _ = figures.plot_scores([result(llm_preset=name) for name in names]).axes
    assert len(tick_labels(panel)) == 2 and all(len(name) < 250 for name in tick_labels(panel))


def test_two_data_sets_of_one_name_have_panels_of_their_own():
    two = [result(), result()]
    two[1].inputs["task"] = "abcdef0123"
    titles = [panel.get_title(loc="left") for panel in figures.plot_scores(two).axes]
    assert titles[::2] == ["weather [01234567]: accuracy", "weather [abcdef01]: accuracy"]


def test_a_folder_with_the_name_of_a_task_has_no_curve_of_the_original_study():
    local = result(task=EMOTION, task_data="mine")
    local.experiment["task"] = f"data/{EMOTION}"
    panel, _ = figures.plot_layers([local]).axes
    assert not any("original" in label for label in lines(panel))


def test_another_number_of_texts_per_label_has_no_curve_of_the_original_study():
    few = result(task=EMOTION)
    few.task["samples_per_label"] = 2
    panel, _ = figures.plot_layers([few]).axes
    assert not any("original" in label for label in lines(panel))


def test_very_many_embedders_fit_into_a_file(tmp_path):
    figure = figures.plot_scores([result()])
    figure.set_figheight(1000)
    figures.save(figure, tmp_path / "scores.png")
    assert (tmp_path / "scores.png").stat().st_size > 1000


def test_a_figure_that_cannot_be_written_is_an_input_error(tmp_path):
    (tmp_path / "scores.png").mkdir()
    with pytest.raises(InputError, match=str(tmp_path)):
        figures.plot_scores([result()], tmp_path / "scores.png")


# === Layout ===


@pytest.mark.parametrize("length, columns", [(10, 4), (40, 3), (60, 2), (130, 1)])
def test_long_labels_leave_room_for_fewer_columns_in_the_legend(length, columns):
    assert figures._legend_columns(["x" * length] * 6) == columns

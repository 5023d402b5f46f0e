"""The mean ranks of a search over settings: names, ranks, missing tasks, and how sure they are."""

import dataclasses
import re

import numpy as np
import pytest
from made_results import EMOTION, result

from embedder_helpers.config_files import load_experiments
from embedder_helpers.results import ranking

RATES = (1e-5, 2e-5, 4e-5)


def trial(task, accuracy, kind="roberta_only", *, cutoffs=(10,), **settings):
    """A validation score; RoBERTa alone has no cutoffs."""
    cutoffs = () if kind == "roberta_only" else cutoffs
    return result(kind, cutoffs, accuracy, task, scored_split="validation", **settings)


def search(**accuracies):
    """Trials of the recipes RATES, whose accuracies on each task are given; None is missing."""
    return [
        trial(task, accuracy, learning_rate=rate)
        for task, row in accuracies.items()
        for rate, accuracy in zip(RATES, row, strict=True)
        if accuracy is not None
    ]


def ranks(results):
    table = ranking.rank_table(results)
    return dict(zip(table["recipe"], table["mean rank"], strict=True))


SEARCH = search(a=(0.7, 0.8, 0.6), b=(0.6, 0.4, 0.3))
FIRST, SECOND, THIRD = (
    "RoBERTa only",  # where all are equally typical, the first one has no settings in its name
    "RoBERTa only, learning_rate 2e-05",
    "RoBERTa only, learning_rate 4e-05",
)

# === Ranks ===

# Demšar 2006, table 6: the AUC of four classifiers on 14 data sets, and their mean ranks. It prints
# 0.9751 as 0.975, with a rank that shows the difference.
PUBLISHED = """
0.763 0.768 0.771 0.798  0.599 0.591 0.590 0.569  0.954 0.971 0.968 0.967  0.628 0.661 0.654 0.657
0.882 0.888 0.886 0.898  0.936 0.931 0.916 0.931  0.661 0.668 0.609 0.685  0.583 0.583 0.563 0.625
0.775 0.838 0.866 0.875  1.000 1.000 1.000 1.000  0.940 0.962 0.965 0.962  0.619 0.666 0.614 0.669
0.972 0.981 0.9751 0.975  0.957 0.978 0.946 0.970
"""


def test_mean_ranks_are_those_of_a_published_table():
    scores = np.array(PUBLISHED.split(), float).reshape(14, 4)
    results = [
        trial(f"task {task}", score, epochs=epochs)
        for task, row in enumerate(scores)
        for epochs, score in enumerate(row, 1)
    ]
    found = ranks(results).values()
    assert sorted(found) == pytest.approx([1.964, 2.000, 2.893, 3.143], abs=5e-4)


def test_a_row_has_the_score_of_each_task_their_mean_and_their_number():
    rows = ranking.rank_table(SEARCH).to_dict("records")
    assert rows[0] == {
        "recipe": FIRST,
        "mean rank": 1.5,
        "mean score": pytest.approx(0.65),
        "tasks": 2,
        "a accuracy": 0.7,
        "b accuracy": 0.6,
    }


def test_the_lowest_mean_rank_comes_first():
    results = search(a=(0.5, 0.6, 0.8), b=(0.5, 0.9, 0.6), c=(0.2, 0.3, 0.4))
    assert list(ranks(results)) == [THIRD, SECOND, FIRST]


def test_of_equal_mean_ranks_the_higher_mean_score_comes_first():
    results = search(a=(0.5, 0.9, 0.1), b=(0.4, 0.3, 0.1))
    assert list(ranks(results).items()) == [(SECOND, 1.5), (FIRST, 1.5), (THIRD, 3)]


def test_equal_scores_share_the_mean_of_their_ranks_whatever_their_rounding_errors():
    results = search(a=(0.1 + 0.2, 0.3, 0.9), b=(0.5, 0.5, 0.5))
    assert ranks(results) == {THIRD: 1.5, FIRST: 2.25, SECOND: 2.25}


def test_seeds_are_averaged_before_they_are_ranked():
    others = [trial(task, 0.1, learning_rate=RATES[0], seed=34) for task in "ab"]
    rows = ranking.rank_table([*SEARCH, *others]).set_index("recipe")
    assert rows.loc[FIRST, "a accuracy"] == pytest.approx(0.4)
    assert rows["mean rank"].to_dict() == {SECOND: 1, THIRD: 2.5, FIRST: 2.5}


def test_a_copy_of_a_result_counts_once():
    results = [*SEARCH, trial("a", 0.1, learning_rate=RATES[0], seed=34), *SEARCH[:1]]
    row = ranking.rank_table(results).set_index("recipe").loc[FIRST]
    assert row["a accuracy"] == pytest.approx(0.4)


# === Kinds ===


def hybrids(*, tasks="ab", **settings):
    return [
        trial(task, 0.95, "hybrid", fusion=fusion, projection_start="ridge", **settings)
        for task in tasks
        for fusion in ("add", "replace", "prepend")
    ]


def test_kinds_are_ranked_one_by_one():
    found = ranks([*SEARCH, *hybrids()])
    assert {name: rank for name, rank in found.items() if "RoBERTa" in name} == ranks(SEARCH)
    assert [rank for name, rank in found.items() if "hybrid" in name] == [2, 2, 2]


def test_a_kind_with_fewer_recipes_or_tasks_is_in_the_table_too():
    gemma = trial("a", 0.9, "gemma_only")
    assert ranks([*SEARCH, gemma]) == ranks(SEARCH) | {"Gemma only": 1}


# === Missing tasks ===


def test_a_recipe_that_lacks_a_task_is_listed_last_without_a_rank_or_a_mean():
    results = search(a=(0.9, 0.8, 0.7), b=(None, 0.5, 0.6))
    *_, last = ranking.rank_table(results).to_dict("records")
    assert last["recipe"] == FIRST and last["tasks"] == 1 and last["a accuracy"] == 0.9
    assert np.isnan([last["mean rank"], last["mean score"], last["b accuracy"]]).all()


def test_a_recipe_that_lacks_a_task_takes_no_rank_from_the_others():
    found = ranks(search(a=(0.9, 0.8, 0.7), b=(None, 0.5, 0.6)))
    assert found[SECOND] == found[THIRD] == 1.5


def test_tasks_of_another_kind_are_not_missing():
    found = ranks([*SEARCH, *hybrids(tasks="abc")])
    assert not np.isnan([*found.values()]).any()


# === Names ===


def test_the_recipe_that_is_most_like_the_others_has_no_settings_in_its_name():
    results = [
        trial(task, 0.5, **settings)
        for task in "ab"
        for settings in ({"epochs": 7}, {"learning_rate": 1e-4}, {}, {"batch_size": 8})
    ]
    assert set(ranks(results)) == {
        "RoBERTa only, epochs 7",
        "RoBERTa only, learning_rate 0.0001",
        "RoBERTa only",
        "RoBERTa only, batch_size 8",
    }


def test_a_selected_cutoff_is_one_recipe_whichever_each_task_selects():
    selected = [
        trial(task, 0.1, "hybrid", cutoffs=(cutoff,), llm_layers="auto", projection_start="ridge")
        for task, cutoff in (("a", 4), ("b", 12))
    ]
    assert ranks([*selected, *hybrids()])["hybrid, llm_layers auto"] == 4


def test_a_cutoff_is_one_recipe_whether_it_is_counted_from_the_top_or_not():
    results = [
        trial(task, 0.9, "hybrid", cutoffs=cutoffs, llm_layers=layers)
        for task in "ab"
        for cutoffs, layers in (((10,), 10), ((10,), -9), ((4,), 4), ((4, 10), (4, 10)))
    ]
    assert [*ranks(results)] == ["hybrid", "hybrid, llm_layers 4", "hybrid, llm_layers [4, 10]"]


def test_settings_that_differ_between_tasks_only_distinguish_no_recipes():
    results = [
        dataclasses.replace(one, experiment=one.experiment | {"max_train_texts": texts})
        for one, texts in zip(SEARCH, [100] * 3 + [200] * 3, strict=True)
    ]
    assert ranks(results) == ranks(SEARCH)


def test_untrained_embedders_are_recipes_of_their_own():
    untrained = [trial(task, 0.1, epochs=0) for task in "ab"]
    assert ranks([*SEARCH, *untrained])["RoBERTa only, epochs 0"] == 4


@pytest.mark.parametrize(
    "field, values, distinction",
    [
        ("versions", {"embedder_helpers": "0.1"}, "version 0.1"),
        ("inputs", {"slm_preset": "0123456789"}, "RoBERTa 01234567"),
    ],
)
def test_results_of_another_version_or_model_are_recipes_of_their_own(field, values, distinction):
    others = [
        dataclasses.replace(one, **{field: getattr(one, field) | values})
        for one in SEARCH
        if one.experiment["learning_rate"] == RATES[0]
    ]
    assert f"{FIRST}, {distinction}" in ranks([*SEARCH, *others])


# === What is no search ===


@pytest.mark.parametrize(
    "results",
    [
        [],
        SEARCH[:3],  # one task
        [one for one in SEARCH if one.experiment["learning_rate"] != RATES[0]],  # two recipes
        [*SEARCH, result("roberta_only", (), task="a")],  # a test score
        [*SEARCH, dataclasses.replace(SEARCH[0], task=SEARCH[0].task | {"samples_per_label": 64})],
    ],
    ids=["none", "one task", "two recipes", "a test score", "two protocols of a task"],
)
def test_other_results_are_not_ranked(results):
    assert ranking.rank_table(results).empty
    assert ranking.rank_notes(results) == [] and ranking.format_ranking(results) == ""


# === How sure the choice is ===


@pytest.mark.parametrize(
    "recipes, tasks, expected",
    [(2, 6, 0.80), (4, 14, 1.25), (5, 30, 1.11), (10, 24, 2.77)],
)
def test_the_critical_difference_is_that_of_published_tables(recipes, tasks, expected):
    # Demšar 2006: example of section 3.2.2, and table 5 (a): q 1.960, 2.728 and 3.164.
    assert ranking.critical_difference(recipes, tasks) == pytest.approx(expected, abs=0.01)


def describe(results):
    (ranked,) = ranking.rankings(results)
    return ranked.describe()


def test_the_notes_say_which_settings_the_names_leave_out():
    assert f"learning_rate {RATES[0]}" in describe(SEARCH)
    assert "epochs" not in describe(SEARCH)


def test_the_notes_count_the_recipes_that_are_not_told_apart_from_the_first():
    clear = search(**{f"t{number}": (0.9, 0.5, 0.1) for number in range(10)})
    distance = ranking.critical_difference(3, 10)  # 1.05, and the second is 1 from the first
    assert f"{distance:.1f}: 1 of the other 2" in describe(clear)


def test_no_critical_difference_is_shown_where_too_few_recipes_are_complete():
    assert "critical" not in describe(search(a=(0.9, 0.8, 0.7), b=(None, 0.5, 0.6)))


def test_the_notes_give_the_standard_error_of_a_score_on_each_task():
    results = search(**{EMOTION: (0.7, 0.8, 0.9), "b": (0.5, 0.5, 0.5)})
    *_, last = ranking.rank_notes(results)
    shown = {task: float(error) for error, task in re.findall(r"([.\d]+) on (\w+)", last)}
    draws = np.random.default_rng(0).binomial(20, [0.8, 0.5], (100_000, 2)) / 20  # of 20 texts
    assert [*shown] == [EMOTION, "b"]
    assert [*shown.values()] == pytest.approx(draws.std(axis=0), abs=1e-3)


def test_the_notes_follow_the_table():
    table, _, notes = ranking.format_ranking(SEARCH).partition("\n\n")
    assert table.count("\n") == 4 and notes.count("* ") == len(ranking.rank_notes(SEARCH))


# === The search of the project ===


@pytest.fixture(scope="module")
def table():
    """The mean ranks of made-up results of `configs/search.yaml`, each better than the last."""
    results = []
    for number, experiment in enumerate(load_experiments("search")):
        layers = 4 if experiment.llm_layers == "auto" else experiment.llm_layers
        cutoffs = layers if isinstance(layers, tuple) else (layers,)
        cutoffs = () if experiment.kind == "roberta_only" else cutoffs
        settings = vars(experiment) | {"accuracy": 0.5 + number / 1000}
        results.append(result(cutoffs=cutoffs, **settings))
    return ranking.rank_table(results)


def test_the_search_ranks_every_recipe_of_each_kind_on_four_tasks(table):
    kinds = table["recipe"].str.partition(",")[0]
    assert kinds.value_counts().to_dict() == {"hybrid": 12, "RoBERTa only": 12}
    assert table["recipe"].is_unique and set(table["tasks"]) == {4}
    assert table["mean rank"].tolist() == [*range(1, 13)] * 2


def test_the_recipes_that_the_search_varies_have_no_settings_in_their_names(table):
    first = [list(table["recipe"])[last] for last in (11, 23)]  # of each kind, and thus the worst
    assert first == ["RoBERTa only", "hybrid"]

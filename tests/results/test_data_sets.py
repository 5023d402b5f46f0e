import dataclasses

import pytest
from made_results import EMOTION, SHA, result

from embedder_helpers.data.mteb import MTEB_TASKS
from embedder_helpers.results.comparison import comparison_table, difference_table
from embedder_helpers.results.data_sets import (
    data_key,
    data_labels,
    data_revision,
    data_source,
    describe_local_data,
    is_english,
    local_data,
    mteb_task,
)
from embedder_helpers.results.leaderboard import leaderboard_ranks, original_study_table
from embedder_helpers.results.tables import (
    has_layer_curve,
    layer_table,
    long_table,
    reading_notes,
    results_table,
)

HUB = MTEB_TASKS[EMOTION]


def changed(one, data=(), fingerprint=None, **settings):
    """A result with other fields of its task, another fingerprint of it and other settings."""
    return dataclasses.replace(
        one,
        task=one.task | dict(data),
        inputs=one.inputs | ({"task": fingerprint} if fingerprint else {}),
        experiment=one.experiment | settings,
    )


def older(one):
    """The result as versions wrote it that did not record where its data came from."""
    task = {key: value for key, value in one.task.items() if key not in ("source", "path")}
    return dataclasses.replace(one, task=task)


FROM_HUB = result(task=EMOTION)
DECLARED = result(task=EMOTION, task_data="copies/emotion")  # local files, said to be the task's
NAMESAKE = changed(
    result("roberta_only", (), 0.9),
    {"name": f"{EMOTION} (local files)", "path": f"/data/{EMOTION}"},
    task=f"data/{EMOTION}",
)
OLD_NAMESAKE = older(changed(NAMESAKE, {"name": EMOTION}))
SAMPLE = result(task="sample")
OLD_LOCAL_SAMPLE = older(changed(SAMPLE, task="./sample"))


# === A name does not stand for the content ===


def test_a_data_set_has_one_label_on_a_page():
    few = changed(DECLARED, {"samples_per_label": 2})
    results = [dataclasses.replace(one, history=({"val_accuracy": 1},)) for one in (FROM_HUB, few)]
    label, _ = data_labels(results)
    assert set(leaderboard_ranks(results)["task"]) == {label}
    assert set(original_study_table(results)["task"]) <= {label}
    runs = results[0].scores_per_experiment
    duplicates = {"texts": 1, "scores": {}, "experiments": runs, "head": None}
    results[0] = dataclasses.replace(results[0], deduplicated=duplicates)
    assert set(comparison_table(results, deduplicated=True)["task"]) == {label}


@pytest.mark.parametrize(
    ("one", "source", "task"),
    [
        (FROM_HUB, "mteb", HUB),
        (DECLARED, "local", HUB),
        (NAMESAKE, "local", None),
        (SAMPLE, "builtin", None),
        (result(), "local", None),
        (older(FROM_HUB), "mteb", HUB),
        (older(DECLARED), "local", HUB),
        (OLD_NAMESAKE, "local", None),
        (older(SAMPLE), "builtin", None),
        (OLD_LOCAL_SAMPLE, "local", None),
        (older(changed(SAMPLE, task_data="mine")), "local", None),
    ],
)
def test_data_are_a_task_of_mteb_s_only_from_the_hub_or_where_that_was_said(one, source, task):
    assert (data_source(one), mteb_task(one)) == (source, task)


def test_old_results_on_a_folder_with_the_name_of_a_task_are_marked():
    assert data_labels([OLD_NAMESAKE, OLD_LOCAL_SAMPLE, SAMPLE, FROM_HUB, DECLARED]) == [
        f"{EMOTION} (local files)",
        "sample (local files)",
        "sample",
        f"{EMOTION} [mteb/emotion@{HUB.revision[:8]}]",
        f"{EMOTION} [{SHA[:8]}]",
    ]


@pytest.mark.parametrize("one", [NAMESAKE, OLD_NAMESAKE])
def test_a_folder_with_the_name_of_a_task_has_no_rank_and_is_not_compared_with_the_study(one):
    one = dataclasses.replace(one, history=[{"val_accuracy": 0.9}])
    assert leaderboard_ranks([one]).empty and original_study_table([one]).empty
    assert len(leaderboard_ranks([DECLARED])) == len(leaderboard_ranks([FROM_HUB])) > 0


def test_the_language_of_local_files_is_unknown():
    assert is_english(FROM_HUB) and is_english(SAMPLE) and is_english(DECLARED)
    assert not (is_english(NAMESAKE) or is_english(OLD_LOCAL_SAMPLE))


def test_the_revision_is_the_one_that_was_loaded():
    earlier = changed(FROM_HUB, fingerprint=f"{HUB.path}@0123")
    assert data_revision(earlier) == "0123"
    assert data_revision(DECLARED) == "local"


# === Two data sets of one name ===


def in_folder(one, folder, fingerprint):
    return changed(one, {"path": f"/{folder}/weather"}, fingerprint * 8, task=folder)


HYBRIDS = [result(cutoffs=(cutoff,), accuracy=cutoff / 20) for cutoff in (1, 2, 3)]
TWO = [in_folder(result(accuracy=0.6), "jan", "a1"), in_folder(result(accuracy=0.8), "feb", "b2")]
LABELS = ["weather [a1a1a1a1]", "weather [b2b2b2b2]"]
DATA = ["a1a1a1a1 /jan/weather", "b2b2b2b2 /feb/weather"]


@pytest.mark.parametrize("make_table", [results_table, comparison_table])
def test_each_of_two_data_sets_of_one_name_has_a_row_with_its_fingerprint_and_path(make_table):
    table = make_table(TWO)
    assert table["task"].tolist() == LABELS and table["data"].tolist() == DATA
    assert set(table["embedder"]) == {"hybrid [1-10]"}


def test_a_folder_that_was_edited_in_place_is_another_data_set():
    edited = [in_folder(result(seed=seed), "jan", str(seed) * 2) for seed in (1, 2)]
    assert comparison_table(edited)["seeds"].tolist() == [1, 1]


def test_copies_of_one_folder_are_one_data_set():
    copies = [in_folder(result(seed=1), "jan", "a1"), in_folder(result(seed=2), "feb", "a1")]
    assert comparison_table(copies)["seeds"].tolist() == [2]
    assert results_table(copies)["task"].tolist() == ["weather"] * 2


def test_the_layer_table_has_columns_for_each_of_two_data_sets():
    table = layer_table(TWO)
    assert table[[f"{label} accuracy" for label in LABELS]].values.tolist() == [[0.6, 0.8]]
    assert "seeds" not in table


def test_differences_are_within_a_data_set():
    roberta = in_folder(result("roberta_only", (), 0.5), "feb", "b2")
    table = difference_table([*TWO, roberta])
    assert table[["task", "data"]].values.tolist() == [[LABELS[1], DATA[1]]]


def test_cutoffs_of_two_data_sets_make_no_curve():
    assert has_layer_curve(HYBRIDS)
    two = [in_folder(one, "jan", "a1") for one in HYBRIDS[:2]]
    assert not has_layer_curve([*two, in_folder(HYBRIDS[2], "feb", "b2")])


def test_the_long_table_tells_two_data_sets_apart():
    table = long_table(TWO)
    assert table["task_path"].tolist() == ["/jan/weather", "/feb/weather"]
    assert table["task_fingerprint"].tolist() == ["a1" * 8, "b2" * 8]
    assert set(table["task_source"]) == {"local"}


def test_of_two_revisions_on_the_hub_each_has_a_label():
    other = changed(FROM_HUB, fingerprint=f"{HUB.path}@0123456789")
    assert data_labels([FROM_HUB, other])[1] == f"{EMOTION} [mteb/emotion@01234567]"


# === What readers are told ===


def test_local_files_are_named_with_fingerprint_and_path():
    assert local_data(result()) == f"{SHA[:8]} /data/weather"
    assert local_data(older(DECLARED)) == f"{SHA[:8]} copies/emotion"
    assert local_data(FROM_HUB) is None and describe_local_data(SAMPLE) is None


def test_a_local_copy_of_a_task_is_said_not_to_have_been_compared():
    assert "not compared with MTEB's" in describe_local_data(DECLARED)
    assert "MTEB" not in describe_local_data(result())
    notes = "\n".join(reading_notes([DECLARED, NAMESAKE]))
    assert f"{EMOTION}: read from local files" in notes
    assert f"{EMOTION} (local files): local files, {SHA[:8]} /data/{EMOTION}" in notes


def test_without_local_data_tables_have_no_column_for_them():
    for table in (results_table([FROM_HUB]), comparison_table([SAMPLE]), leaderboard_ranks([])):
        assert "data" not in table


def test_data_are_the_same_if_name_and_fingerprint_are():
    assert data_key(FROM_HUB) == data_key(older(FROM_HUB)) != data_key(DECLARED)

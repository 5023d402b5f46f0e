"""The cost of a text: what is measured, how often, and when it is not measured again."""

import copy
import json
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from embedder_helpers.config import Experiment
from embedder_helpers.errors import InputError
from embedder_helpers.experiments import cost
from embedder_helpers.experiments.cost import measure_cost, read_or_measure_cost
from embedder_helpers.models.architectures import build_embedder
from embedder_helpers.models.shapes import preset_shape
from embedder_helpers.results.cost_file import COST_FILE, read_cost

TEXTS = ["It works.", "The rain fell on the old mill by the river.", "No.", "So it is, she said."]
CUTOFFS = (3, 1)


@pytest.fixture(scope="module")
def hybrid():
    return build_embedder(Experiment(llm_layers=2, llm_dtype="float32", late_fusion=False))


@pytest.fixture(scope="module")
def roberta(tiny_embedders):
    return tiny_embedders["roberta_only"]


class Counted:
    """Counts what is done while costs are measured."""

    def __init__(self, hybrid, roberta, monkeypatch):
        self.hybrid, self.loaded, self.calls = hybrid, 0, []
        before, unload = hybrid.gemma.layer_passes, hybrid.gemma.unload
        read_layer, encode = hybrid.gemma._read_layer, type(roberta).encode
        self.passes = lambda: hybrid.gemma.layer_passes - before

        def count_layer(*arguments):
            self.loaded += 1
            return read_layer(*arguments)

        def record(embedder, texts, **options):
            cutoffs = tuple(spec.cutoff for spec in embedder.specs)
            self.calls.append((cutoffs, len(texts)))
            return encode(embedder, texts, **options)

        unload()
        monkeypatch.setattr(hybrid.gemma, "_read_layer", count_layer)
        monkeypatch.setattr(type(roberta), "encode", record)


@pytest.fixture(scope="module")
def measured(hybrid, roberta):
    """The table of a measurement, and what was counted."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cost, "SINGLE_TEXTS", 2)
        counted = Counted(hybrid, roberta, patch)
        return measure_cost(hybrid, roberta, TEXTS, CUTOFFS, repeats=2), counted


def test_there_is_a_row_for_every_cutoff_and_for_roberta_alone_one_text_at_a_time_and_all(measured):
    table, _ = measured
    rows = list(zip(table["cutoff"], table["batch"], strict=True))
    assert rows == [(cutoff, batch) for cutoff in (0, 1, 3) for batch in (1, len(TEXTS))]
    assert (table["ms_per_text"] > 0).all() and (table["device"] != "").all()


def test_a_text_passes_as_many_layers_as_the_cutoff_says(measured):
    table, _ = measured
    assert table["block_passes"].tolist() == table["cutoff"].tolist()
    assert table["block_passes"].is_monotonic_increasing


def test_it_costs_the_passes_that_are_promised_and_loads_each_layer_once(measured):
    _, counted = measured
    assert counted.passes() == (2 + 2) * (len(TEXTS) + 2) * sum(CUTOFFS)
    assert counted.loaded == max(CUTOFFS)
    assert not counted.hybrid.gemma._layers  # freed


def test_every_repeat_encodes_all_texts_at_once_and_some_one_by_one(measured):
    _, counted = measured
    for cutoffs in ((3,), (1,), ()):
        sizes = [size for called, size in counted.calls if called == cutoffs]
        assert sizes.count(len(TEXTS)) == 2 + 2 and sizes.count(1) == 2 * (2 + 2)


def test_the_weights_are_robertas_and_those_of_the_kept_layers(measured, hybrid, roberta):
    table, _ = measured
    weights = table.groupby("cutoff")["weights_megabytes"].first()
    assert weights[0] == pytest.approx(4e-6 * sum(w.size for w in roberta.model.get_weights()))
    hybrid.gemma._load(1)
    layer = 4e-6 * sum(np.size(array) for array in hybrid.gemma._layers[0].values())
    hybrid.gemma.unload()
    assert weights[3] - weights[1] == pytest.approx(2 * layer)
    own = 4e-6 * sum(weight.size for weight in hybrid.model.get_weights())
    width = preset_shape("llm_preset", "tiny_gemma")["hidden_dim"]
    assert weights[1] == pytest.approx(own + layer + 4e-6 * width)


def test_the_median_of_the_repeats_counts(hybrid, monkeypatch):
    clock = iter([0, 1, 10, 11, 20, 21, 30, 31, *(0, 9) * 4, 0, 2, 0, 2, 0, 2, 0, 2])
    monkeypatch.setattr(cost, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    table = measure_cost(hybrid, None, TEXTS[:2], [1], repeats=3)
    assert table["ms_per_text"].tolist() == [1000.0] * 4  # of two texts


def test_single_texts_are_of_all_lengths():
    texts = ["a" * (1 + number % 100) for number in range(1000)]
    chosen = sorted(map(len, cost._of_all_lengths(texts)))
    assert len(chosen) == cost.SINGLE_TEXTS and len(set(chosen)) == cost.SINGLE_TEXTS
    assert np.mean(chosen) == pytest.approx(np.mean(list(map(len, texts))), abs=1)


def test_robertas_own_cost_is_measured_without_another_embedder(hybrid):
    table = measure_cost(hybrid, None, TEXTS[:2], [1], repeats=1)
    assert table["cutoff"].tolist() == [0, 0, 1, 1]


def test_the_hybrid_keeps_its_cutoff(hybrid, measured):
    assert [spec.cutoff for spec in hybrid.specs] == [2]


def test_a_hybrid_of_several_cutoffs_reads_as_many_states_at_each():
    hybrid = build_embedder(Experiment(llm_layers=(1, 2), late_fusion=False))
    table = measure_cost(hybrid, None, TEXTS[:2], [1, 3], repeats=1)
    assert table["block_passes"].tolist() == [0, 0, 1, 1, 3, 3]


# Once per machine


@pytest.fixture
def counted(hybrid, roberta, monkeypatch):
    return Counted(hybrid, roberta, monkeypatch)


def test_a_cost_is_measured_once_per_machine_and_subject(
    hybrid, roberta, counted, tmp_path, monkeypatch
):
    arguments = (tmp_path / "new", hybrid, roberta, TEXTS[:2], [1], 1)
    first = read_or_measure_cost(*arguments)
    passes = counted.passes()
    assert passes > 0
    pd.testing.assert_frame_equal(read_or_measure_cost(*arguments), first)
    assert counted.passes() == passes
    pd.testing.assert_frame_equal(read_cost(tmp_path / "new"), first)
    read_or_measure_cost(tmp_path / "new", hybrid, roberta, TEXTS[:3], [1], 1)
    assert counted.passes() > passes
    passes = counted.passes()
    monkeypatch.setattr("embedder_helpers.utils.environment.devices", lambda: ["CPU, 999 cores"])
    assert set(read_or_measure_cost(*arguments)["device"]) == {"CPU, 999 cores"}
    assert counted.passes() > passes
    stored = json.loads((tmp_path / "new" / COST_FILE).read_text())
    assert len(stored["measurements"]) == 3


def test_a_damaged_file_is_measured_again(hybrid, roberta, counted, tmp_path):
    (tmp_path / COST_FILE).write_text("{")
    read_or_measure_cost(tmp_path, hybrid, roberta, TEXTS[:2], [1], 1)
    assert counted.passes() > 0 and len(read_cost(tmp_path)) == 4


def test_no_path_of_this_machine_is_stored(hybrid, roberta, tmp_path):
    local = copy.copy(hybrid)
    names = {"llm_preset": "/home/me/gemma", "slm_preset": "/home/me/roberta"}
    local.presets = {
        role: type(preset)(**vars(preset) | {"name": names[role]})
        for role, preset in hybrid.presets.items()
    }
    read_or_measure_cost(tmp_path, local, roberta, TEXTS[:2], [1], 1)
    content = (tmp_path / COST_FILE).read_text()
    assert "/home" not in content and "gemma: 18 layers" in content


# What is refused


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"cutoffs": []}, "cutoffs is"),
        ({"cutoffs": [0]}, "1 … 18"),
        ({"cutoffs": [1, 19]}, "1 … 18"),
        ({"cutoffs": ["1"]}, "1 … 18"),
        ({"texts": TEXTS[:1]}, "two texts"),
        ({"texts": ["Fine.", " "]}, "row 2"),
        ({"repeats": 0}, "repeats is 0"),
    ],
)
def test_what_cannot_be_measured_is_refused(hybrid, roberta, changes, message):
    with pytest.raises(InputError, match=message):
        measure_cost(hybrid, roberta, **{"texts": TEXTS, "cutoffs": [1]} | changes)


@pytest.mark.parametrize("kind", ["gemma_only", "roberta_only"])
def test_only_a_hybrid_has_cutoffs_that_cost(tiny_embedders, roberta, kind):
    with pytest.raises(InputError, match=f"'{kind}', .* hybrid"):
        measure_cost(tiny_embedders[kind], roberta, TEXTS, [1])


@pytest.mark.parametrize("kind", ["gemma_only", "hybrid"])
def test_roberta_alone_has_no_gemma(tiny_embedders, hybrid, kind):
    with pytest.raises(InputError, match="without Gemma"):
        measure_cost(hybrid, tiny_embedders[kind], TEXTS, [1])

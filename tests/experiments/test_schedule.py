"""Schedules: which experiments share a forward pass of Gemma, and what fits the disk."""

import json
import shutil

import numpy as np
import pytest
from made_task import write_task
from shared_gemma import TINY, shared_gemma

from embedder_helpers.config import Experiment
from embedder_helpers.errors import InputError
from embedder_helpers.experiments import protocol
from embedder_helpers.experiments.plan import Subset, plan_experiment
from embedder_helpers.experiments.run import run_experiment
from embedder_helpers.experiments.schedule import ExperimentBatch, schedule
from embedder_helpers.models import gemma as gemma_module
from embedder_helpers.models import hidden_states, sharding
from embedder_helpers.models.batching import from_lengths
from embedder_helpers.models.cache_folder import summary
from embedder_helpers.models.gemma import HiddenStateSpec
from embedder_helpers.models.hidden_states import HiddenStateCache

pytestmark = pytest.mark.usefixtures("fast_experiments")

COUNTS = {"train": 24, "validation": 8, "test": 10}


@pytest.fixture(autouse=True)
def one_gemma_for_all(monkeypatch):
    """Weights are loaded once, and batches have one shape."""
    for module in ("experiments.schedule", "models.architectures"):
        monkeypatch.setattr(f"embedder_helpers.{module}.Gemma", lambda *_: shared_gemma())
    monkeypatch.setattr(gemma_module, "CPU_TOKENS", 8 * 24)
    monkeypatch.setattr(gemma_module, "GPU_TOKENS", 8 * 24)


@pytest.fixture(scope="module")
def rain(tmp_path_factory):
    return write_task(tmp_path_factory.mktemp("rain") / "rain", "rain", COUNTS)


@pytest.fixture(scope="module")
def snow(tmp_path_factory):
    return write_task(tmp_path_factory.mktemp("snow") / "snow", "snow", COUNTS)


@pytest.fixture
def make_plans(tmp_path):
    """Plans experiments on a task, by default of Gemma alone, with a common cache."""

    def plans(task, each=({},), **settings):
        common = dict(
            task=str(task), kind="gemma_only", samples_per_label=3, max_tokens=24,
            states_dir=str(tmp_path / "states"),
        )  # fmt: skip
        experiments = [Experiment(**common | settings | one) for one in each]
        return [plan_experiment(experiment, tmp_path) for experiment in experiments]

    return plans


def test_a_ready_encoder_waits_for_no_hidden_states_and_runs_with_roberta_alone(make_plans, rain):
    kinds = ("gemma_only", "encoder_only", "roberta_only")
    first, second = batches_of(make_plans(rain, [{"kind": kind} for kind in kinds]))
    assert not first.gemma and not first.wanted
    assert [plan.experiment.kind for plan in first.plans] == ["encoder_only", "roberta_only"]
    assert [plan.experiment.kind for plan in second.plans] == ["gemma_only"]


ALL_CUTOFFS = [{"llm_layers": cutoff} for cutoff in range(1, 19)]


def rms(cutoff):
    return HiddenStateSpec(cutoff, "rms")


def token_tuples(ids, mask=None):
    """Texts, by default all, as tuples of tokens."""
    rows = range(len(ids)) if mask is None else np.flatnonzero(mask)
    return {tuple(ids.text(row).tolist()) for row in rows}


def tokens_of(texts):
    return token_tuples(shared_gemma().tokenize(list(texts), 24)[0])


def texts_of(plans, *subsets):
    """The distinct texts that plans read, as tuples of tokens."""
    return tokens_of({text for plan in plans for text in plan.texts(*subsets)})


def gigabytes(texts, cutoffs=1):
    """The size of normed hidden states of texts at some cutoffs, computed by hand."""
    return sum(map(len, texts)) * cutoffs * 2 * TINY.width / 1e9


def batches_of(plans, finished=()):
    """Batches of plans of which some have a result already."""
    return schedule(plans, {plan.path for plan in plans if plan not in finished})


def gemma_batches(plans, finished=()):
    return [batch for batch in batches_of(plans, finished) if batch.gemma]


def cutoffs_of(batches):
    return [[plan.experiment.llm_layers for plan in batch.plans] for batch in batches]


def compute_states(batch):
    for shard in batch.prepare():
        batch.compute_shard(shard)


def run_batches(batches, scored=()):
    """Runs batches, and scores plans of some cutoffs; returns how often texts passed a layer."""
    gemma = shared_gemma()
    passes, scores = 0, {}
    for batch in batches:
        before = gemma.layer_passes
        compute_states(batch)
        passes += gemma.layer_passes - before
        for plan in batch.plans:
            if plan.experiment.llm_layers in scored:
                _, result = run_experiment(plan, batch.cache)
                scores[plan.task.name, plan.experiment.llm_layers] = result.scores
    return passes, scores


def test_the_work_of_a_shard_looks_at_its_texts_only(make_plans, rain, monkeypatch):
    (batch,) = gemma_batches(make_plans(rain, ALL_CUTOFFS[:2]))
    monkeypatch.setattr(sharding, "SHARD_TOKENS", 8 * 24)
    shards, work = batch.prepare(), batch.forward_work()
    batch.compute_shard(shards[0])
    looked_at, missing = [], batch.cache.missing

    def count(gemma, keys, wanted):
        looked_at.append(len(keys))
        return missing(gemma, keys, wanted)

    monkeypatch.setattr(batch.cache, "missing", count)
    works = [batch.forward_work(shard) for shard in shards]
    assert looked_at == [len(shard) for shard in shards] and len(shards) > 2
    assert works[0] == 0 and 0 < sum(works) < work
    assert sum(works) == pytest.approx(batch.forward_work())


# Which plans share a forward pass


def test_plans_whose_states_fit_are_one_batch(make_plans, rain):
    plans = make_plans(rain, ALL_CUTOFFS)
    (batch,) = gemma_batches(plans)
    assert batch.plans == plans
    assert list(batch.wanted) == [rms(cutoff) for cutoff in range(1, 19)]
    for mask in batch.wanted.values():
        assert token_tuples(batch.ids, mask) == texts_of(plans)


def test_each_text_of_a_batch_passes_each_layer_once(make_plans, rain):
    plans = make_plans(rain, ALL_CUTOFFS)
    passes, _ = run_batches(gemma_batches(plans))
    assert passes == len(texts_of(plans)) * 18


def test_running_the_plans_of_a_batch_computes_no_hidden_states(make_plans, rain):
    (batch,) = gemma_batches(make_plans(rain, ALL_CUTOFFS[:2]))
    compute_states(batch)
    before = shared_gemma().layer_passes
    for plan in batch.plans:
        run_experiment(plan, batch.cache)
    assert shared_gemma().layer_passes == before


def test_tasks_and_norms_share_a_forward_pass(make_plans, rain, snow):
    plans = make_plans(rain, [{"llm_layers": 2}, {"llm_layers": 4, "final_norm": "learned"}])
    plans += make_plans(snow, [{"llm_layers": 3}])
    (batch,) = gemma_batches(plans)
    assert {spec: int(mask.sum()) for spec, mask in batch.wanted.items()} == {
        rms(2): len(texts_of(plans[:1])),
        rms(3): len(texts_of(plans[2:])),
        HiddenStateSpec(4, "learned"): len(texts_of(plans[:1])),
    }
    assert token_tuples(batch.ids, batch.wanted[rms(3)]) == texts_of(plans[2:])


def test_pooled_cutoffs_are_all_wanted(make_plans, rain):
    (batch,) = gemma_batches(make_plans(rain, [{"llm_layers": (6, 2)}]))
    assert list(batch.wanted) == [rms(2), rms(6)]


def test_plans_run_from_the_shallowest_cutoff(make_plans, rain):
    batches = gemma_batches(make_plans(rain, [{"llm_layers": one} for one in (9, (1, 12), 3)]))
    assert cutoffs_of(batches) == [[3, 9, (1, 12)]]


def test_roberta_alone_runs_first_and_reads_no_hidden_states(make_plans, rain):
    plans = make_plans(rain, [{"llm_layers": 2}, {"kind": "roberta_only"}, {"llm_layers": 1}])
    first, second = batches_of(plans)
    assert first.plans == [plans[1]] and not first.wanted and first.gemma is None
    assert second.plans == [plans[2], plans[0]]
    compute_states(first)
    assert not first.forward_work() and summary(first.cache.folder).empty


def test_length_limits_are_separate_batches_that_share_equal_texts(make_plans, rain):
    plans = make_plans(rain, [{"llm_layers": 2, "max_tokens": limit} for limit in (24, 20)])
    batches = gemma_batches(plans)
    assert [len(batch.plans) for batch in batches] == [1, 1]
    passes, _ = run_batches(batches)
    assert passes == len(texts_of(plans)) * 2


def test_no_plans_are_no_batches():
    assert batches_of([]) == []


def test_finished_plans_are_left_out_with_their_hidden_states(make_plans, rain):
    plans = make_plans(rain, [*ALL_CUTOFFS[:4], {"kind": "roberta_only"}])
    (batch,) = batches_of(plans, finished=[plans[0], plans[3], plans[4]])
    assert batch.plans == plans[1:3]
    assert list(batch.wanted) == [rms(2), rms(3)]


def test_cache_folders_are_separate_batches(make_plans, rain, tmp_path):
    plans = make_plans(rain, [{"states_dir": str(tmp_path / name)} for name in "ab"])
    batches = gemma_batches(plans)
    assert [batch.cache.folder.name for batch in batches] == ["a", "b"]
    assert [batch.plans for batch in batches] == [[plans[0]], [plans[1]]]


# Which texts are wanted at which cutoff


def test_gemma_alone_wants_only_sampled_and_test_texts(make_plans, rain):
    (batch,) = gemma_batches(make_plans(rain, [{"llm_layers": 2}]))
    train, test = (
        [json.loads(line) for line in (rain / f"{split}.jsonl").read_text().splitlines()]
        for split in ("train", "test")
    )
    samples = protocol.sample_indices([row["label"] for row in train], 3)
    sampled = {train[index]["text"] for index in np.concatenate(samples)}
    expected = tokens_of([*sampled, *(row["text"] for row in test)])
    assert token_tuples(batch.ids, batch.wanted[rms(2)]) == expected


def test_a_hybrid_wants_its_training_texts_too_at_its_own_cutoff_only(make_plans, rain):
    each = [{"llm_layers": 2}, {"llm_layers": 4}, {"llm_layers": 4, "kind": "hybrid"}]
    plans = make_plans(rain, each)
    (batch,) = gemma_batches(plans)
    assert token_tuples(batch.ids, batch.wanted[rms(2)]) == texts_of(plans[:1])
    assert token_tuples(batch.ids, batch.wanted[rms(4)]) == texts_of(plans[2:])
    assert texts_of(plans[:1]) < texts_of(plans[2:])
    assert len(texts_of(plans[2:])) == sum(COUNTS.values())


def test_what_is_finished_is_not_wanted_but_decides_which_texts_pass_together(
    make_plans, rain, tmp_path
):
    each = [{"llm_layers": 2}, {"llm_layers": 4, "kind": "hybrid"}]
    plans = make_plans(rain, each)
    (all_of_them,) = gemma_batches(plans)
    (rest,) = schedule(plans, {plans[1].path})
    assert rest.plans == plans[1:] and list(rest.wanted) == [rms(4)]
    assert list(rest.planned) == [rms(2), rms(4)]
    for shard in all_of_them.prepare():
        all_of_them.compute_shard(shard)
    folder = rest.cache.folder
    before = {path.name: path.read_bytes() for path in folder.rglob("k04*")}
    assert len(before) == 2
    shutil.rmtree(folder)
    (rest,) = schedule(plans, {plans[1].path})
    for shard in rest.prepare():
        rest.compute_shard(shard)
    assert {path.name: path.read_bytes() for path in folder.rglob("k*")} == before


def test_a_selected_cutoff_wants_its_training_texts_at_every_cutoff(make_plans, rain):
    plans = make_plans(rain, [{"llm_layers": "auto"}])
    (batch,) = gemma_batches(plans)
    assert list(batch.wanted) == [rms(cutoff) for cutoff in range(1, 19)]
    for mask in batch.wanted.values():
        assert token_tuples(batch.ids, mask) == texts_of(plans)
    assert len(texts_of(plans)) == sum(COUNTS.values())


def test_no_test_text_is_wanted_if_validation_is_scored(make_plans, rain):
    settings = {"llm_layers": 2, "kind": "hybrid", "scored_split": "validation"}
    plans = make_plans(rain, [settings])
    (batch,) = gemma_batches(plans)
    wanted = token_tuples(batch.ids, batch.wanted[rms(2)])
    assert len(wanted) == COUNTS["train"] + COUNTS["validation"]
    assert not wanted & tokens_of(plans[0].task.test.texts())


def test_a_text_of_several_subsets_is_wanted_once(make_plans, rain):
    (batch,) = gemma_batches(make_plans(rain, [{"llm_layers": 2, "kind": "hybrid"}]))
    assert len(batch.ids) == len(token_tuples(batch.ids))


def test_splits_that_swap_roles_want_their_own_texts(make_plans, tmp_path):
    # Both splits have the same size, so the same rows of each are trained on.
    task = write_task(tmp_path / "even", "rain", {"train": 16, "validation": 16, "test": 8})
    common = {"llm_layers": 2, "kind": "hybrid", "max_train_texts": 8}
    swapped = {"llm_layers": 3, "train_split": "validation"}
    plans = make_plans(task, [common, common | swapped])
    (batch,) = gemma_batches(plans)
    assert token_tuples(batch.ids, batch.wanted[rms(2)]) == texts_of(plans[:1])
    assert token_tuples(batch.ids, batch.wanted[rms(3)]) == texts_of(plans[1:])


# Hidden states that do not fit the disk


@pytest.fixture(scope="module")
def unlimited_folder(tmp_path_factory):
    return tmp_path_factory.mktemp("unlimited")


@pytest.fixture
def unlimited_scores(make_plans, rain, unlimited_folder):
    """Scores at some cutoffs with room for all hidden states."""

    def scores(*cutoffs):
        each = [{"llm_layers": cutoff} for cutoff in cutoffs]
        plans = make_plans(rain, each, states_dir=str(unlimited_folder))
        return run_batches(gemma_batches(plans), cutoffs)[1]

    return scores


def limited_plans(make_plans, task, cutoffs, each, **settings):
    """Plans with a cache that has room for the protocol's texts at so many cutoffs."""
    limit = gigabytes(texts_of(make_plans(task)), cutoffs)
    return make_plans(task, each, states_gigabytes=limit, **settings)


def test_what_does_not_fit_runs_in_batches_that_resume_from_each_other(
    make_plans, rain, unlimited_scores
):
    # Room for 8 cutoffs: raw states of the last batch and of this one take 2 each, so 4 are left.
    plans = limited_plans(make_plans, rain, 8.5, ALL_CUTOFFS)
    batches = gemma_batches(plans)
    assert cutoffs_of(batches) == [
        [1, 2, 3, 4], [5, 6, 7, 8], [9, 10, 11, 12], [13, 14, 15, 16], [17, 18],
    ]  # fmt: skip
    passes, scores = run_batches(batches, scored=(5, 18))
    assert passes == len(texts_of(plans)) * 18
    assert scores == unlimited_scores(5, 18)


def test_a_sweep_that_continues_has_the_batches_that_it_had(make_plans, rain):
    plans = limited_plans(make_plans, rain, 8.5, ALL_CUTOFFS)
    first, *others = gemma_batches(plans)
    compute_states(first)
    remaining = gemma_batches(plans, finished=first.plans)
    assert cutoffs_of(remaining) == cutoffs_of(others)
    passes, _ = run_batches(remaining)
    assert passes == len(texts_of(plans)) * 14


def test_batches_never_exceed_the_limit(make_plans, rain, monkeypatch):
    plans = limited_plans(make_plans, rain, 8.5, ALL_CUTOFFS)
    limit, sizes = plans[0].experiment.states_gigabytes, []
    batches = gemma_batches(plans)
    write = hidden_states.write_shard

    def record(*arguments):
        write(*arguments)
        sizes.append(summary(batches[0].cache.folder)["gigabytes"].sum())

    monkeypatch.setattr(hidden_states, "write_shard", record)
    run_batches(batches)
    assert 0 < max(sizes) <= limit


def test_without_room_for_raw_states_each_batch_starts_from_the_text(
    make_plans, rain, unlimited_scores
):
    plans = limited_plans(make_plans, rain, 2.5, ALL_CUTOFFS[:4])
    batches = gemma_batches(plans)
    assert cutoffs_of(batches) == [[1, 2], [3, 4]]
    passes, scores = run_batches(batches, scored=(4,))
    assert passes == len(texts_of(plans)) * (2 + 4)
    assert scores == unlimited_scores(4)


def test_a_protocol_whose_states_do_not_fit_runs_without_storing_them(
    make_plans, rain, unlimited_scores
):
    plans = limited_plans(make_plans, rain, 0.5, [{"llm_layers": 2}])
    (batch,) = gemma_batches(plans)
    assert not batch.wanted
    passes, scores = run_batches([batch], scored=(2,))
    assert passes == 0 and summary(batch.cache.folder).empty
    assert scores == unlimited_scores(2)


def test_a_hybrid_stores_at_least_what_it_is_trained_on(make_plans, rain):
    hybrid = {"llm_layers": 2, "kind": "hybrid", "max_train_texts": 8}
    plans = make_plans(rain, [hybrid])
    trained_on = texts_of(plans, Subset.TRAIN, Subset.VALIDATION)
    assert trained_on < texts_of(plans)
    limited = make_plans(rain, [hybrid | {"states_gigabytes": 1.1 * gigabytes(trained_on)}])
    (batch,) = gemma_batches(limited)
    assert token_tuples(batch.ids, batch.wanted[rms(2)]) == trained_on


def test_training_texts_whose_states_do_not_fit_are_an_error(make_plans, rain):
    settings = {"llm_layers": 2, "kind": "hybrid", "states_gigabytes": 1e-9}
    (batch,) = gemma_batches(make_plans(rain, [settings]))
    with pytest.raises(InputError, match="states_dir.*states_gigabytes"):
        compute_states(batch)


def plans_on_both(make_plans, tasks, cutoffs, each):
    """Plans on each task in turn, with room for both tasks' texts at so many cutoffs."""
    texts = texts_of([plan for task in tasks for plan in make_plans(task)])
    limit = gigabytes(texts, cutoffs)
    return [
        plan
        for settings in each
        for task in tasks
        for plan in make_plans(task, [settings], states_gigabytes=limit)
    ]


def test_tasks_at_one_cutoff_that_do_not_fit_together_run_one_after_the_other(
    make_plans, rain, snow
):
    plans = plans_on_both(make_plans, (rain, snow), 0.75, [{"llm_layers": 2}])
    batches = gemma_batches(plans)
    assert [len(batch.plans) for batch in batches] == [1, 1]
    passes, _ = run_batches(batches)
    assert passes == len(texts_of(plans)) * 2


def test_batches_that_separate_tasks_at_one_cutoff_pass_each_text_once(make_plans, rain, snow):
    # Raw states of the last batch and of this one take 4 cutoffs; 3 plans a batch have room.
    plans = plans_on_both(make_plans, (rain, snow), 5.75, ALL_CUTOFFS[:6])
    batches = gemma_batches(plans)
    assert [len(batch.plans) for batch in batches] == [3, 3, 3, 3]
    passes, _ = run_batches(batches)
    assert passes == len(texts_of(plans)) * 6


def test_the_free_disk_is_a_limit_too(make_plans, rain, monkeypatch):
    plans = make_plans(rain, ALL_CUTOFFS[:4])
    capacity = 1e9 * gigabytes(texts_of(plans), 2.5)
    monkeypatch.setattr(HiddenStateCache, "capacity", lambda cache: capacity)
    assert len(gemma_batches(plans)) == 2


def test_a_batch_describes_its_model_texts_cutoffs_size_and_folder(make_plans, rain, tmp_path):
    (batch,) = gemma_batches(make_plans(rain, ALL_CUTOFFS[2:7]))
    ids = from_lengths(np.zeros(3 * 10**7, "int32"), [10**7, 10**7, 10**7])  # as of a large task
    wanted = {rms(3): np.array([True, True, False]), rms(7): np.array([False, True, True])}
    description = ExperimentBatch(batch.plans, batch.cache, batch.gemma, ids, wanted).describe()
    size = f"{4 * 10**7 * 2 * TINY.width / 1e9:.2f} GB"
    folder = str(tmp_path / "states")
    for part in ("tiny_gemma", "3 texts", "2 cutoffs", "(3 … 7)", size, folder):
        assert part in description

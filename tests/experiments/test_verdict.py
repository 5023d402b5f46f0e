"""The verdict's plan, its run on a tiny task, and what it says of wrong inputs."""

import dataclasses
import json
import logging

import numpy as np
import pytest
from made_presets import write_gemma
from made_task import experiment, write_task

from embedder_helpers.config import Experiment
from embedder_helpers.config_files import load_experiments
from embedder_helpers.data.tasks import load_task
from embedder_helpers.errors import InputError
from embedder_helpers.experiments import training
from embedder_helpers.experiments import verdict as verdicts
from embedder_helpers.experiments.plan import Subset, plan_experiment
from embedder_helpers.models.architectures import load_embedder
from embedder_helpers.results.predictions import read_predictions
from embedder_helpers.results.result import embedder_folder, read_result

pytestmark = pytest.mark.usefixtures("fast_experiments")

SEEDS, SIZES = (5, 6), (2,)
HTML = "<b>Rain</b> & <script>alert(1)</script> fell on day"


# === The plan ===


@pytest.fixture
def task(tmp_path):
    return write_task(tmp_path / "weather")


def planned(task, seeds=(1, 2), sizes=(3, 5), **settings):
    hybrid = experiment(task, **{"llm_layers": 2, "save_predictions": True} | settings)
    return verdicts.plan_verdict(hybrid, load_task(hybrid), seeds, sizes)


def test_the_plan_has_both_at_every_size_and_the_controls_at_all_texts_for_each_seed(task):
    found = sorted(
        (one.seed, one.kind, one.llm_control or "", one.train_texts_per_label or 0)
        for one in planned(task)
    )
    expected = [
        (seed, kind, control, size)
        for seed in (1, 2)
        for kind, control, sizes in (
            ("hybrid", "", (0, 3, 5)),
            ("roberta_only", "", (0, 3, 5)),
            ("hybrid", "random_weights", (0,)),
            ("hybrid", "shuffled", (0,)),
            ("hybrid", "noise", (0,)),
        )
        for size in sizes
    ]
    assert found == sorted(expected)
    assert {one.llm_layers for one in planned(task)} == {2}
    assert all(one.save_predictions for one in planned(task))


def test_only_the_first_seed_s_hybrid_and_roberta_on_all_texts_are_saved(task):
    saved = [one for one in planned(task) if one.save_embedder]
    assert [(one.kind, one.seed, one.train_texts_per_label) for one in saved] == [
        ("hybrid", 1, None),
        ("roberta_only", 1, None),
    ]
    assert [one for one in planned(task)[:2]] == saved


def test_the_smaller_training_sets_of_a_seed_are_parts_of_the_larger_ones(task):
    data, rows = load_task(experiment(task)), {}
    for one in planned(task, seeds=(1,)):
        plan = plan_experiment(one, None, data)
        key = one.train_texts_per_label or 99
        drawn = rows.setdefault(key, plan.rows[Subset.TRAIN].tolist())
        assert plan.rows[Subset.TRAIN].tolist() == drawn  # of every kind
    assert set(rows[3]) < set(rows[5]) < set(rows[99])
    assert (len(rows[3]), len(rows[5]), len(rows[99])) == (6, 10, 24)


@pytest.mark.parametrize(
    ("sizes", "kept"), [((6, 2, 6), [2, 6]), ((7,), []), ((), []), ((6, 7, 500), [6])]
)
def test_a_size_of_more_than_half_of_the_texts_of_a_label_is_left_out(task, sizes, kept):
    found = {one.train_texts_per_label for one in planned(task, sizes=sizes)}
    assert sorted(found - {None}) == kept  # of 12 texts of each label


@pytest.mark.parametrize(
    ("epochs", "batch_size", "at_all", "at_five"),
    [
        (5, 8, 20, 20),  # 3 and 2 steps an epoch: 60 steps take 20 and 30
        (5, 1, 5, 6),  # 24 and 10 steps an epoch: enough, and 6 epochs of 60 steps
        (30, 8, 30, 30),  # more than any rule asks for
    ],
)
def test_small_training_sets_have_more_epochs_up_to_twenty(
    task, epochs, batch_size, at_all, at_five
):
    settings = dict(epochs=epochs, batch_size=batch_size, objective="cross_entropy")
    found = {
        (one.train_texts_per_label, one.epochs) for one in planned(task, sizes=(5,), **settings)
    }
    assert found == {(None, at_all), (5, at_five)}


# === A verdict ===


@pytest.fixture(scope="module")
def gemma(tmp_path_factory):
    """The folder of a Gemma of two layers."""
    return write_gemma("gemma2", 2, tmp_path_factory.mktemp("presets") / "small").handle


@pytest.fixture(scope="module")
def quick():
    """Experiments, measurements and pages that take as few steps as they can."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(verdicts, "MIN_STEPS", 1)
        patch.setattr(verdicts, "COST_TEXTS", 3)
        patch.setattr(verdicts, "COST_REPEATS", 1)
        yield patch


def hybrid_of(task, gemma, **settings):
    return experiment(task, llm_preset=gemma, epochs=1, **settings)


def write_named_task(folder):
    """Three labels with names, of which one has a single training text; HTML in the texts."""
    folder.mkdir()
    names = ["dry", "wet <i>", "odd"]
    for split, count in (("train", 24), ("validation", 9), ("test", 12)):
        labels = [i % 3 if split != "train" else 2 * (i == 0) or i % 2 for i in range(count)]
        rows = [
            {"text": f"{HTML if label else 'The sun shone on day'} {i} of {split}.",
             "label": names[label]}
            for i, label in enumerate(labels)
        ]  # fmt: skip
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{split}.jsonl").write_text(lines, encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def run(quick, gemma, tmp_path_factory, fast_experiments):
    """A hybrid's experiment, the folder of its verdict, and the verdict."""
    folder = tmp_path_factory.mktemp("verdict")
    hybrid = hybrid_of(write_named_task(folder / "weather"), gemma, save_embedder="with_gemma")
    found = verdicts.verdict(hybrid, folder / "out", seeds=SEEDS, sizes=SIZES)
    return hybrid, folder / "out", found


def test_the_sentence_and_the_tables_are_of_what_was_run(run):
    _, _, found = run
    assert found.sentence.startswith("On weather, with 24 training texts, ")
    assert (found.seeds, found.texts, found.scored_texts, found.score) == (2, 24, 12, "head")
    assert found.encoder is None
    assert set(found.controls) == {"random_weights", "shuffled", "noise"}
    curve = found.learning_curve
    sizes = curve[curve["kind"] == "hybrid"]
    assert sizes["texts per label"].tolist() == [2, "all"]
    assert sizes["training texts"].tolist() == [5, 24]  # the label of one text has one
    assert set(found.labels["label"]) == {"dry", "wet <i>", "odd"}
    assert found.cost_table["cutoff"].unique().tolist() == [0, 1, 2]
    assert found.layers["cutoff"].tolist() == [1, 2] and found.cutoffs == [found.cheapest]


def test_every_file_is_there(run):
    _, out, _ = run
    names = {path.name for path in out.iterdir()}
    assert {"verdict.html", "verdict.csv", "labels.csv", "texts.csv", "learning_curve.csv"} < names
    assert {"layers.csv", "cascade.csv", "cost.json", "results.csv", "predictions"} < names
    assert {"learning_curve.png", "controls.png", "cost.png", "cascade.png"} < names
    assert len(list(out.glob("weather-*.json"))) == 1 + 2 * (2 * 2 + 3)
    assert len(list((out / "predictions").iterdir())) == 1 + 2 * (2 * 2 + 3)
    assert len(list(out.glob("embedder-*"))) == 2
    assert not [name for name in names if name.startswith(".")]


def test_nothing_of_a_text_or_a_label_is_markup_on_the_page(run):
    _, out, _ = run
    page = (out / "verdict.html").read_text(encoding="utf-8")
    assert "<script" not in page and "<b>Rain" not in page and "<i>" not in page
    assert "wet &lt;i&gt;" in page


def test_the_accuracies_are_those_of_the_result_files(run):
    _, out, found = run
    results = [read_result(path) for path in out.glob("weather-*.json")]

    def accuracy(kind):
        heads = [
            result.head["accuracy"]
            for result in results
            if result.experiment["kind"] == kind
            and result.experiment["train_texts_per_label"] is None
            and result.experiment["llm_control"] is None
        ]
        assert len(heads) == len(SEEDS)
        return np.mean(heads)

    expected = accuracy("hybrid") - accuracy("roberta_only")
    assert found.difference.mean == pytest.approx(expected, abs=1e-9)


def test_the_saved_hybrid_answers_in_a_cascade_with_a_calibrated_roberta(run):
    hybrid, out, _ = run
    (folder,) = out.glob("embedder-weather-hybrid-*")
    (cheap,) = out.glob("embedder-weather-roberta_only-*")
    texts = [f"{HTML} {i}." for i in range(3)]
    table = load_embedder(folder).predict(texts, cascade=0.0)
    assert set(table["answered_by"]) == {"roberta_only"}
    alone = load_embedder(cheap).predict(texts)
    assert table["label"].tolist() == alone["label"].tolist()
    # The temperature is the best of a fine grid, by the likelihood of the validation labels.
    said = read_predictions(out / f"{cheap.name.removeprefix('embedder-')}.json")
    grid = np.exp(np.linspace(-4.9, 4.9, 3000))
    logits = said.validation_logits.astype(float)[None] / grid[:, None, None]
    logits -= np.log(np.exp(logits).sum(-1, keepdims=True))
    rows = np.arange(len(said.validation_labels))
    best = grid[logits[:, rows, said.validation_labels].mean(-1).argmax()]
    assert load_embedder(folder).cheap.temperature == pytest.approx(best, rel=0.02)


def state_of(folder):
    """Result files, predictions, measurements and embedders with their time of writing."""
    kept = ["*.json", "predictions/*", "embedder-*/**/*"]
    paths = {path for pattern in kept for path in folder.glob(pattern)}
    return {str(path): path.stat().st_mtime_ns for path in paths}


@pytest.fixture
def trainings(monkeypatch):
    """One entry for each training that begins."""
    begun, train = [], training.train_classifier

    def counted(*arguments):
        begun.append(arguments[3])
        return train(*arguments)

    monkeypatch.setattr(training, "train_classifier", counted)
    return begun


def test_a_second_call_trains_and_measures_nothing_and_says_the_same(run, trainings):
    hybrid, out, found = run
    before = state_of(out)
    again = verdicts.verdict(hybrid, out, seeds=SEEDS, sizes=SIZES)
    assert not trainings and state_of(out) == before
    assert (again.sentence, again.notes) == (found.sentence, found.notes)
    assert again.table().equals(found.table())


@pytest.mark.slow
def test_what_failed_is_one_error_and_is_all_that_the_next_call_runs(
    quick, gemma, tmp_path, monkeypatch, trainings, caplog
):
    folder = write_task(tmp_path / "weather")
    hybrid, out = hybrid_of(folder, gemma), tmp_path / "out"
    count = training.train_classifier

    def fail(*arguments):
        one = arguments[3]
        if one.llm_control == "shuffled":
            raise RuntimeError("the device is gone")
        return count(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(training, "train_classifier", fail)
        with pytest.raises(InputError) as error:
            verdicts.verdict(hybrid, out, seeds=[5], sizes=[])
    assert "1 of 4 experiments were not finished, such as weather-hybrid-" in str(error.value)
    assert "the device is gone" in str(error.value)
    assert len(trainings) == 4 and not (out / "verdict.html").exists()
    trainings.clear()
    caplog.set_level(logging.INFO, "embedder_helpers")
    # A single seed has no interval, and no sizes no curve.
    found = verdicts.verdict(hybrid, out, seeds=[5], sizes=[])
    assert [one.llm_control for one in trainings] == ["shuffled"]
    assert np.isnan(found.difference.low) and found.answer == "not settled"
    assert "run at least 3" in found.sentence
    assert (out / "verdict.html").exists()


@pytest.mark.slow
def test_an_embedder_whose_cascade_was_lost_gets_it_back_without_training(run, trainings):
    hybrid, out, _ = run
    (folder,) = out.glob("embedder-weather-hybrid-*")
    embedder = load_embedder(folder)
    embedder.cheap = None
    embedder.save(folder)
    assert load_embedder(folder).cheap is None
    verdicts.verdict(hybrid, out, seeds=SEEDS, sizes=SIZES)
    assert not trainings and load_embedder(folder).cheap is not None


# === Wrong inputs ===


@pytest.fixture
def nothing_runs(monkeypatch):
    """A verdict that would run an experiment fails."""

    def fail(*_, **__):
        raise AssertionError("an experiment would run")

    monkeypatch.setattr(verdicts, "run_experiments", fail)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"seeds": []}, "seeds is empty"),
        ({"seeds": [1, -1]}, "seed is -1"),
        ({"seeds": ["one"]}, "seed is 'one'"),
        ({"sizes": [8, 0]}, "sizes has 0"),
        ({"sizes": [-3, 8]}, "sizes has -3"),
        ({"sizes": ["all"]}, "sizes has 'all'"),
        ({"sizes": [1.5]}, "sizes has 1.5"),
        ({"encoder": "./no-such-encoder"}, "there is no folder './no-such-encoder'"),
        ({"hours": -1}, "hours is -1"),
    ],
)
def test_a_wrong_argument_is_reported_before_anything_runs(
    nothing_runs, task, tmp_path, arguments, words
):
    with pytest.raises(InputError) as error:
        verdicts.verdict(experiment(task), tmp_path / "out", **arguments)
    assert words in str(error.value)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"llm_preset": "tiny_gema"}, "did you mean 'tiny_gemma'"),
        ({"slm_preset": "./nowhere"}, "there is no folder './nowhere'"),
        ({"max_tokens": 513}, "512 positions"),
        ({"scored_split": "validation"}, "a verdict is on the test split"),
        ({"epochs": 0}, "epochs is 0, but a verdict compares classifiers that are trained"),
    ],
)
def test_a_wrong_setting_is_reported_before_anything_runs(
    nothing_runs, task, tmp_path, settings, words
):
    hybrid = dataclasses.replace(experiment(task), **settings)
    with pytest.raises(InputError) as error:
        verdicts.verdict(hybrid, tmp_path / "out")
    assert words in str(error.value)


def test_a_single_test_text_is_reported_before_anything_runs(nothing_runs, tmp_path):
    folder = write_named_task(tmp_path / "weather")
    first, *_ = (folder / "test.jsonl").read_text(encoding="utf-8").splitlines()
    (folder / "test.jsonl").write_text(first, encoding="utf-8")
    with pytest.raises(InputError, match="1 test text.s. that are not blank"):
        verdicts.verdict(str(folder), tmp_path / "out")


def test_a_task_that_does_not_exist_is_reported_before_anything_runs(nothing_runs, tmp_path):
    with pytest.raises(InputError, match="did you mean 'EmotionClassification'"):
        verdicts.verdict("EmotionClasification", tmp_path)


def test_a_folder_that_cannot_be_written_is_reported_before_anything_runs(nothing_runs, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot be written"):
        verdicts.verdict("sample", tmp_path / "file" / "out")


class Stop(Exception):
    """Raised in place of a sweep."""


@pytest.fixture
def first_run(monkeypatch):
    """Runs a verdict up to its first sweep; returns what that would run."""

    def stop(experiments, *_, **__):
        raise Stop(experiments)

    monkeypatch.setattr(verdicts, "run_experiments", stop)

    def run(*arguments, **options):
        with pytest.raises(Stop) as stopped:
            verdicts.verdict(*arguments, **options)
        return stopped.value.args[0]

    return run


@pytest.mark.parametrize(
    "settings",
    [
        {"save_embedder": True},
        {"llm_control": "noise"},
        {"kind": "gemma_only"},
        {"llm_layers": "auto"},
        {"max_train_texts": 16},
        {"train_texts_per_label": 9},
        {"kind": "gemma_only", "llm_control": "random_weights", "probe": True},
    ],
)
def test_settings_that_a_verdict_replaces_or_keeps_are_no_hindrance(
    first_run, task, tmp_path, settings
):
    found = first_run(experiment(task, **settings), tmp_path, seeds=[4], sizes=[2])
    reader, roberta, few = found
    assert (reader.kind, reader.llm_layers, reader.probe) == ("gemma_only", "cheapest", True)
    assert {one.kind for one in (roberta, few)} == {"roberta_only"}
    assert few.train_texts_per_label == 2 and few.max_train_texts == roberta.max_train_texts
    assert not any(one.llm_control for one in found) and {one.seed for one in found} == {4}


def test_the_built_in_models_are_used_for_a_task_s_name_and_an_encoder_is_added(
    first_run, tmp_path
):
    found = first_run("sample", tmp_path, encoder="tiny_roberta")
    assert {one.llm_preset for one in found} == {Experiment().llm_preset}
    assert {one.learning_rate for one in found} == {load_experiments("quickstart")[0].learning_rate}
    (encoder,) = [one for one in found if one.kind == "encoder_only"]
    assert encoder.probe and encoder.save_predictions and not encoder.save_embedder


def test_the_second_sweep_has_only_the_hours_that_are_left(task, tmp_path, monkeypatch):
    given, now = [], [1000.0]
    reader = type("Reader", (), {"cutoffs": [2]})()

    def sweep(experiments, out, hours, **options):
        given.append(hours)
        now[0] += 1800
        if len(given) == 2:
            raise Stop
        return [reader, *experiments[1:]], {}

    monkeypatch.setattr(verdicts.time, "time", lambda: now[0])
    monkeypatch.setattr(verdicts, "run_experiments", sweep)
    with pytest.raises(Stop):
        verdicts.verdict(experiment(task), tmp_path, seeds=[1], sizes=[], hours=2)
    assert given == pytest.approx([2, 1.5])


def test_the_saved_names_are_those_of_the_plan(run):
    hybrid, out, found = run
    data = load_task(hybrid)
    settings = {"llm_layers": found.cutoffs[0], "llm_control": None, "save_predictions": True}
    one = dataclasses.replace(hybrid, seed=SEEDS[0], **settings, save_embedder=True)
    assert embedder_folder(plan_experiment(one, out, data).path).is_dir()

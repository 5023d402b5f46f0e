import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import h5py
import keras_hub
import numpy as np
import pandas as pd
import pytest
from dead_process import dead_name
from made_links import link_files
from made_presets import write_gemma
from made_task import experiment, write_task
from safetensors.numpy import load_file, save

from embedder_helpers.config import Experiment
from embedder_helpers.data.tasks import load_task
from embedder_helpers.errors import InputError
from embedder_helpers.experiments import protocol
from embedder_helpers.experiments.plan import plan_experiment
from embedder_helpers.experiments.sweep import run_experiments
from embedder_helpers.models import saving
from embedder_helpers.models.architectures import build_embedder, load_embedder
from embedder_helpers.models.embedder import Head
from embedder_helpers.models.presets import find_preset
from embedder_helpers.results.result import Result, embedder_folder, read_result

ROOT = Path(__file__).parents[2]
TEXTS = ["I wish the clasp were stronger.", "It works as well as it can, she said."]
RESULT = {"scores": {"accuracy": 0.75}}


def with_other_weights(embedder, classes):
    """The embedder as if it were trained, with a head."""
    for variable in embedder.model.trainable_variables:
        variable.assign(variable + 0.01)
    kernel = np.random.default_rng(0).normal(size=(embedder.width, len(classes)))
    embedder.head = Head(kernel.astype("float32"), np.ones(len(classes)), np.array(classes))
    return embedder


@pytest.fixture(scope="module")
def hybrid():
    """A hybrid with every layer that can be saved but those of late fusion."""
    settings = dict(
        llm_layers=(1, 2),
        layer_pooling="learned",
        fusion="add",
        projection="mlp",
        projection_start="ridge",
        late_fusion=False,
    )
    return with_other_weights(build_embedder(Experiment(**settings)), ["a", "b"])


@pytest.fixture(scope="module")
def saved(hybrid, tmp_path_factory):
    return hybrid.save(tmp_path_factory.mktemp("saved") / "hybrid", result=RESULT)


@pytest.fixture(scope="module")
def loaded(saved):
    return load_embedder(saved)


@pytest.fixture(scope="module")
def gemma_only():
    """Two embedders that differ in their cutoff, by the cutoff."""
    return {
        cutoff: build_embedder(Experiment(kind="gemma_only", llm_layers=cutoff))
        for cutoff in (1, 2)
    }


@pytest.fixture
def small(gemma_only, tmp_path):
    """The folder of an embedder without RoBERTa, which is saved in no time."""
    return gemma_only[1].save(tmp_path / "small")


@pytest.fixture(scope="module")
def small_embeddings(gemma_only):
    return gemma_only[1].encode(TEXTS)


# Saving and loading


def test_a_loaded_hybrid_has_the_same_embeddings_bit_for_bit(hybrid, loaded):
    np.testing.assert_array_equal(loaded.encode(TEXTS), hybrid.encode(TEXTS))


def test_a_loaded_embedder_has_its_settings_head_and_result(hybrid, loaded):
    for name in ("kind", "llm_layers", "layer_pooling", "fusion", "projection", "pooling"):
        assert getattr(loaded.experiment, name) == getattr(hybrid.experiment, name)
    for part, expected in zip(loaded.head, hybrid.head, strict=True):
        np.testing.assert_array_equal(part, expected)
    assert loaded.result == RESULT


@pytest.mark.parametrize(
    "with_gemma, settings",
    [
        (True, dict(kind="gemma_only", llm_layers=3, final_norm="last")),
        (True, dict(kind="roberta_only", max_tokens=8)),
    ],
)
def test_a_loaded_single_model_has_the_same_embeddings_bit_for_bit(settings, with_gemma, tmp_path):
    embedder = with_other_weights(build_embedder(Experiment(**settings)), [0, 1])
    folder = embedder.save(tmp_path / "saved", with_gemma)
    assert (folder / "gemma").is_dir() == (settings["kind"] == "gemma_only")
    np.testing.assert_array_equal(load_embedder(folder).encode(TEXTS), embedder.encode(TEXTS))


@pytest.mark.parametrize("fusion", ["replace", "prepend"])
def test_a_loaded_hybrid_with_late_fusion_has_the_same_outputs_bit_for_bit(fusion, tmp_path):
    settings = dict(llm_layers=1, fusion=fusion, projection_start="random", late_fusion=True)
    embedder = with_other_weights(build_embedder(Experiment(**settings)), ["a", "b"])
    folder = embedder.save(tmp_path / "late")
    arrays = load_file(folder / "joint.safetensors")
    assert arrays["late_dense/kernel"].shape == (96, 128) and arrays["head/kernel"].shape == (
        256,
        2,
    )
    assert {"late_norm/gamma", "late_norm/beta", "late_dense/bias"} < arrays.keys()
    assert json.loads((folder / "embedder.json").read_text())["width"] == 256
    loaded = load_embedder(folder)
    assert loaded.width == 256 and loaded.experiment.late_fusion
    np.testing.assert_array_equal(loaded.encode(TEXTS), embedder.encode(TEXTS))
    pd.testing.assert_frame_equal(loaded.predict(TEXTS), embedder.predict(TEXTS))


def test_a_hybrid_older_than_late_fusion_is_loaded_without_it(hybrid, saved, tmp_path):
    folder = shutil.copytree(saved, tmp_path / "older")
    experiment = json.loads((folder / "embedder.json").read_text())["experiment"]
    assert experiment.pop("late_fusion") is False
    change(folder, experiment=experiment)
    loaded = load_embedder(folder)
    assert loaded.experiment.late_fusion is False and loaded.width == 128
    np.testing.assert_array_equal(loaded.encode(TEXTS), hybrid.encode(TEXTS))


def test_the_weights_around_roberta_are_saved_by_name(saved):
    assert set(load_file(saved / "joint.safetensors")) == {
        "standardise/mean",
        "standardise/deviation",
        "layer_pooling/logits",
        "projection_linear/kernel",
        "projection_linear/bias",
        "projection_hidden/kernel",
        "projection_hidden/bias",
        "projection_branch/kernel",
        "projection_branch/bias",
        "projection_gate/scale",
        "head/kernel",
        "head/bias",
    }


def test_a_saved_roberta_is_a_complete_keras_preset(hybrid, saved):
    backbone = keras_hub.models.Backbone.from_preset(str(saved / "roberta"))
    for weight, expected in zip(backbone.get_weights(), hybrid.roberta.get_weights(), strict=True):
        np.testing.assert_array_equal(weight, expected)


def test_no_file_of_a_saved_embedder_can_run_code(saved):
    for path in (path for path in saved.rglob("*") if path.is_file()):
        if path.suffix == ".h5":
            assert h5py.is_hdf5(path)
        elif path.suffix == ".safetensors":
            assert load_file(path)
        else:
            assert path.suffix in (".json", ".txt") and path.read_text(encoding="utf-8")


def test_an_embedder_saved_with_its_gemma_needs_no_other(tmp_path):
    write_gemma("gemma3", 3, tmp_path / "gemma")
    settings = dict(kind="gemma_only", llm_preset=str(tmp_path / "gemma"), llm_layers=2)
    embedder = build_embedder(Experiment(**settings))
    expected = embedder.encode(TEXTS)
    complete = embedder.save(tmp_path / "complete", with_gemma=True)
    partial = embedder.save(tmp_path / "partial")
    (tmp_path / "gemma").rename(tmp_path / "moved")
    np.testing.assert_array_equal(load_embedder(complete).encode(TEXTS), expected)
    with pytest.raises(InputError, match=r"needs the Gemma it was made with .* or --llm"):
        load_embedder(partial)
    moved = load_embedder(partial, llm_preset=str(tmp_path / "moved"))
    np.testing.assert_array_equal(moved.encode(TEXTS), expected)
    with pytest.raises(InputError, match="'tiny_gemma' is not the Gemma"):
        load_embedder(partial, llm_preset="tiny_gemma")


def test_an_embedder_saved_again_keeps_its_result_gemma_and_presets(
    gemma_only, small_embeddings, tmp_path
):
    first = gemma_only[1].save(tmp_path / "first", with_gemma=True, result=RESULT)
    second = load_embedder(first).save(tmp_path / "second")
    load_embedder(second).save(second)
    third = load_embedder(second)
    np.testing.assert_array_equal(third.encode(TEXTS), small_embeddings)
    assert third.result == RESULT
    before, after = (saving.read_manifest(folder) for folder in (first, second))
    assert before.contains_gemma and after.contains_gemma
    assert before.presets == after.presets
    assert before.experiment == after.experiment


def test_a_copy_works_anywhere(small, small_embeddings, tmp_path):
    copy = shutil.copytree(small, tmp_path / "deep" / "copy")
    np.testing.assert_array_equal(load_embedder(copy).encode(TEXTS), small_embeddings)


def test_a_loaded_embedder_works_after_the_working_folder_changes(
    small, small_embeddings, monkeypatch
):
    monkeypatch.chdir(small.parent)
    embedder = load_embedder(small.name)
    monkeypatch.chdir("/")
    np.testing.assert_array_equal(embedder.encode(TEXTS), small_embeddings)


# Interrupted and refused saves


def test_saving_again_replaces_the_folder_and_leaves_nothing_else(gemma_only, small):
    gemma_only[2].save(small)
    assert load_embedder(small).specs[0].cutoff == 2
    assert [path.name for path in small.parent.iterdir()] == ["small"]


def test_a_failing_save_leaves_the_former_embedder(gemma_only, small, monkeypatch):
    before = (small / "embedder.json").read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("embedder_helpers.models.saving._checksum", full)
    with pytest.raises(InputError, match="No space left on device"):
        gemma_only[2].save(small)
    assert (small / "embedder.json").read_bytes() == before
    assert [path.name for path in small.parent.iterdir()] == ["small"]


def test_an_embedder_that_a_killed_save_moved_away_is_restored(small, small_embeddings):
    small.rename(small.with_name(".small.old"))  # as versions before 0.5.0 did
    np.testing.assert_array_equal(load_embedder(small).encode(TEXTS), small_embeddings)


def test_an_old_embedder_that_a_killed_save_left_is_removed_and_blocks_no_save(gemma_only, small):
    for use in (load_embedder, gemma_only[1].save):
        shutil.copytree(small, small.with_name(".small.old"))
        use(small)
        assert [path.name for path in small.parent.iterdir()] == ["small"]


def test_a_save_during_another_of_the_same_folder_succeeds(gemma_only, small, monkeypatch):
    write = saving.write_manifest

    def write_meanwhile(*args, **options):
        monkeypatch.setattr(saving, "write_manifest", write)
        gemma_only[1].save(small)
        write(*args, **options)

    monkeypatch.setattr(saving, "write_manifest", write_meanwhile)
    gemma_only[2].save(small)
    assert load_embedder(small).specs[0].cutoff == 2
    assert [path.name for path in small.parent.iterdir()] == ["small"]


def test_a_folder_that_holds_something_else_is_not_replaced(gemma_only, small):
    (small / "notes.txt").write_text("precious")
    for taken in (small.parent, small, small / "notes.txt"):
        with pytest.raises(InputError, match="holds something else .* give a new folder"):
            gemma_only[1].save(taken)
    assert (small / "notes.txt").read_text() == "precious"


@pytest.mark.parametrize("name", ["notes", "roberta/notes.txt", "gemma/mine/a.txt"])
def test_a_file_that_is_not_the_embedders_own_blocks_a_save_also_deep_inside(
    gemma_only, small, name
):
    path = small / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("precious")
    with pytest.raises(InputError, match=f"{path.name}.*give a new folder"):
        gemma_only[1].save(small)
    assert path.read_text() == "precious"


def test_hidden_files_of_the_system_do_not_block_a_save_but_a_repository_does(gemma_only, small):
    (small / "roberta").mkdir()
    for folder in (small, small / "roberta"):
        (folder / ".DS_Store").write_text("")
    gemma_only[1].save(small)
    (small / ".git").mkdir()
    with pytest.raises(InputError, match=".git"):
        gemma_only[1].save(small)


@pytest.mark.parametrize("damage", ["missing", "empty", "folder"])
def test_a_damaged_embedder_of_a_run_is_replaced(gemma_only, small, damage):
    folder = small.rename(small.with_name("embedder-weather-k1-01234567"))
    damage_manifest(folder, damage)
    gemma_only[1].save(folder)
    assert load_embedder(folder).specs[0].cutoff == 1


def test_what_might_be_presets_of_the_user_is_not_replaced(gemma_only, small):
    (small / "embedder.json").unlink()
    (small / "roberta").mkdir()
    with pytest.raises(InputError, match="holds something else"):
        gemma_only[1].save(small)


def damage_manifest(folder, damage):
    """Leave no file `embedder.json`, an empty one, or a folder of that name."""
    path = folder / "embedder.json"
    path.unlink()
    if damage == "empty":
        path.touch()
    elif damage == "folder":
        path.mkdir()


# Damaged folders


def test_a_folder_without_an_embedder_is_an_error(tmp_path):
    with pytest.raises(InputError, match="holds no saved embedder"):
        load_embedder(tmp_path)


def test_a_damaged_or_missing_file_is_named(small):
    path = small / "joint.safetensors"
    path.write_bytes(path.read_bytes() + b"x")
    with pytest.raises(InputError, match="joint.safetensors' is missing or damaged"):
        load_embedder(small)
    path.unlink()
    with pytest.raises(InputError, match="joint.safetensors' is missing or damaged"):
        load_embedder(small)


def change(folder, **values):
    """Change the manifest as if it had been saved so, by a version without checksums."""
    path = folder / "embedder.json"
    content = json.loads(path.read_text()) | values
    content.pop("checksum", None)
    path.write_text(json.dumps(content))


def test_a_later_version_is_an_error(small):
    change(small, format=99)
    with pytest.raises(InputError, match="format is 99.*: update embedder_helpers"):
        load_embedder(small)


def test_no_flipped_bit_of_the_manifest_makes_another_one(small):
    path, expected = small / "embedder.json", saving.read_manifest(small)
    content = path.read_bytes()
    for position in range(0, 8 * len(content), 13):
        damaged = bytearray(content)
        damaged[position // 8] ^= 1 << position % 8
        path.write_bytes(damaged)
        try:
            assert saving.read_manifest(small) == expected, position
        except InputError as error:
            assert str(small) in str(error)


def test_no_truncated_manifest_is_read(small):
    path = small / "embedder.json"
    content = path.read_bytes()
    for length in range(0, len(content) - 1, 29):
        path.write_bytes(content[:length])
        with pytest.raises(InputError, match="embedder.json is damaged"):
            saving.read_manifest(small)


@pytest.mark.parametrize("name", ["../small/joint.safetensors", "/etc/hostname", "a\\b", "x:y", ""])
def test_a_manifest_names_files_inside_its_folder_only(small, name):
    files = json.loads((small / "embedder.json").read_text())["files"]
    change(small, files=files | {name: "0" * 64})
    with pytest.raises(InputError, match="missing or damaged"):
        saving.read_manifest(small)


def test_an_embedder_of_links_to_a_cache_is_loaded_and_its_files_are_still_checked(
    small, small_embeddings, tmp_path
):
    cached = link_files(small, tmp_path / "model")
    np.testing.assert_array_equal(load_embedder(cached).encode(TEXTS), small_embeddings)
    (cached / "joint.safetensors").resolve().write_bytes(b"other weights")
    with pytest.raises(InputError, match="missing or damaged"):
        load_embedder(cached)


@pytest.mark.parametrize("kind", ["pipe", "device", "link in a circle"])
def test_what_has_no_end_among_the_files_is_an_error_not_a_wait(small, kind):
    path = small / "joint.safetensors"
    path.unlink()
    if kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to("/dev/zero" if kind == "device" else path)
    with pytest.raises(InputError, match="missing or damaged"):
        load_embedder(small)


def test_the_weights_of_a_saved_embedder_are_read_once_to_check_them(saved, monkeypatch):
    monkeypatch.setattr("embedder_helpers.models.presets.folder_fingerprint", None)
    manifest = saving.read_manifest(saved)
    roberta = saving.saved_preset("slm_preset", saved, manifest, None)
    assert roberta.fingerprint == manifest.presets["slm_preset"]["fingerprint"]


def test_a_preset_whose_fingerprint_is_known_is_still_checked_for_links(tmp_path):
    folder = shutil.copytree(find_preset("slm_preset", "tiny_roberta").handle, tmp_path / "preset")
    assert find_preset("slm_preset", str(folder), "0123").fingerprint == "0123"
    with h5py.File(folder / "model.weights.h5", "r+") as file:
        file["layers/more"] = h5py.ExternalLink("/somewhere/else.h5", "/x")
    with pytest.raises(InputError, match="is a link"):
        find_preset("slm_preset", str(folder), "0123")


def save_arrays(folder, arrays):
    """Write the weights with a checksum that fits, whatever they are."""
    content = arrays if isinstance(arrays, bytes) else save(arrays)
    (folder / "joint.safetensors").write_bytes(content)
    files = json.loads((folder / "embedder.json").read_text())["files"]
    change(folder, files=files | {"joint.safetensors": hashlib.sha256(content).hexdigest()})


def head(kernel=1.0, bias=0.0, classes=2):
    return {
        "head/kernel": np.full((96, classes), kernel, "float32"),
        "head/bias": np.full(classes, bias, "float32"),
    }


@pytest.mark.parametrize(
    "arrays",
    [
        b"not safetensors",
        {},
        head(classes=3),
        head() | {"other": np.zeros(1)},
        {name: array.astype(int) for name, array in head().items()},
        head(kernel=np.nan),
        head(bias=-np.inf),
    ],
)
def test_weights_that_do_not_fit_or_are_not_finite_are_an_error(small, arrays):
    change(small, classes=["a", "b"])
    save_arrays(small, head())
    load_embedder(small)
    save_arrays(small, arrays)
    with pytest.raises(InputError, match="joint.safetensors is damaged"):
        load_embedder(small)


def test_scores_that_are_not_finite_have_no_label():
    broken = Head(np.full((2, 2), np.nan), np.zeros(2), np.array([0, 1]))
    for method in (broken.predict, broken.probabilities):
        with pytest.raises(InputError, match="not finite"):
            method(np.ones((1, 2)))


def test_a_text_longer_than_the_saved_roberta_allows_is_an_error(tmp_path):
    folder = build_embedder(Experiment(kind="roberta_only")).save(tmp_path / "roberta")
    experiment = json.loads((folder / "embedder.json").read_text())["experiment"]
    change(folder, experiment=experiment | {"max_tokens": 100_000})
    with pytest.raises(InputError, match="max_tokens is 100000"):
        load_embedder(folder)


# Formats of earlier versions


@pytest.fixture
def format_1(tmp_path):
    """Gemma alone as version 0.3.0 saved it, with the fingerprint of today's built-in Gemma."""
    folder = shutil.copytree(ROOT / "tests/support/format_1_embedder", tmp_path / "format_1")
    manifest = json.loads((folder / "embedder.json").read_text())
    fingerprint = find_preset("llm_preset", "tiny_gemma").fingerprint
    manifest["presets"]["llm_preset"]["fingerprint"] = fingerprint
    (folder / "embedder.json").write_text(json.dumps(manifest, indent=1) + "\n")
    return folder


def test_an_embedder_of_format_1_is_loaded_with_its_head(format_1, small_embeddings):
    embedder = load_embedder(format_1)
    assert embedder.experiment.llm_dtype == "float32"  # a setting that came later
    np.testing.assert_allclose(embedder.encode(TEXTS), small_embeddings, rtol=0.1, atol=0.02)
    weather = ["The rain rose on day 2 of test.", "The rain fell on day 3 of test."]
    assert embedder.predict(weather)["label"].tolist() == [0, 1]


def test_the_result_of_an_embedder_of_format_1_is_read(format_1):
    result = Result.from_stored(saving.read_manifest(format_1).result)
    assert result.num_layers == 18
    assert len(result.scores_per_experiment) == 10
    assert result.majority_baseline["accuracy"] == pytest.approx(7 / 13)
    assert result.layer_selection["18"] == 1.0
    assert result.deduplicated["texts"] == 1


def test_an_embedder_of_format_1_is_saved_again_in_the_same_format(format_1, tmp_path):
    again = load_embedder(format_1).save(tmp_path / "again")
    before, after = (
        json.loads((folder / "embedder.json").read_text()) for folder in (format_1, again)
    )
    before["experiment"] |= {"llm_dtype": "float32", "late_fusion": False}  # which came later
    assert after.pop("checksum")
    assert after | {"versions": before["versions"]} == before


# Embedders saved by a run


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    return write_task(tmp_path_factory.mktemp("saved") / "weather")


@pytest.fixture(scope="module")
def run(task, tmp_path_factory):
    """Folder and result of a hybrid that a run trained and saved."""
    out = tmp_path_factory.mktemp("run")
    settings = dict(fusion="add", projection_start="ridge", epochs=1, save_embedder=True)
    (result,), _ = run_experiments([experiment(task, **settings)], out)
    (folder,) = out.glob("embedder-*")
    return folder, result


SCRIPT = """
import sys
import numpy as np
import embedder_helpers as eh
embedder = eh.load_embedder(sys.argv[1])
np.save(sys.argv[2], embedder.encode(sys.stdin.read().splitlines()))
"""


def encode_in_another_process(folder, texts, tmp_path):
    command = [sys.executable, "-c", SCRIPT, str(folder), str(tmp_path / "embeddings.npy")]
    subprocess.run(command, input="\n".join(texts), text=True, check=True, cwd=ROOT)
    return np.load(tmp_path / "embeddings.npy")


@pytest.mark.slow
def test_a_trained_embedder_has_its_embeddings_and_scores_in_another_process(run, task, tmp_path):
    folder, result = run
    data = load_task(str(task), samples_per_label=4)
    train, test = data.train.texts(), data.test.texts()
    embeddings = encode_in_another_process(folder, [*train, *test], tmp_path)
    np.testing.assert_array_equal(load_embedder(folder).encode([*train, *test]), embeddings)
    predictions = protocol.predict(
        embeddings[: len(train)], data.train.labels, embeddings[len(train) :], samples_per_label=4
    )
    scores = protocol.Scores.from_predictions(data.test.labels, predictions)
    assert scores.mean == pytest.approx(result.scores)


@pytest.mark.slow
def test_a_trained_embedders_head_has_the_metrics_of_its_result(run, task):
    folder, result = run
    embedder, data = load_embedder(folder), load_task(str(task))
    predictions = embedder.head.predict(embedder.encode(data.test.texts()))
    assert protocol.metrics(data.test.labels, predictions) == pytest.approx(result.head)


@pytest.fixture(scope="module")
def modes(task):
    """An experiment without training, for each way to save its embedder."""
    settings = dict(kind="gemma_only", llm_layers=1)
    return {
        mode: experiment(task, save_embedder=mode, **settings)
        for mode in (False, True, "with_gemma")
    }


@pytest.fixture(scope="module")
def gemma_run(modes, tmp_path_factory):
    """Folder and result of a run of one result, whose embedder is wanted once."""
    out = tmp_path_factory.mktemp("gemma_run")
    (result,), _ = run_experiments([modes[False], modes[True]], out)
    return out, result


def test_a_run_saves_its_embedder_beside_its_result_and_with_it(gemma_run):
    out, result = gemma_run
    (folder,) = out.glob("embedder-*")
    path = folder.with_name(folder.name.removeprefix("embedder-") + ".json")
    assert read_result(path) == result
    assert Result.from_stored(load_embedder(folder).result) == result
    assert not (folder / "gemma").exists()


def test_a_finished_experiment_is_repeated_if_its_embedder_is_wanted(modes, gemma_run, tmp_path):
    shutil.copytree(gemma_run[0], tmp_path / "run")
    for folder in (tmp_path / "run").glob("embedder-*"):
        shutil.rmtree(folder)
    assert plan_experiment(modes[False], tmp_path / "run").is_finished()
    assert not plan_experiment(modes[True], tmp_path / "run").is_finished()


def unfinished(plan, caplog):
    """Whether an experiment is to be run again, and the log says why."""
    caplog.clear()
    return not plan.is_finished() and "is run again" in caplog.text


@pytest.mark.parametrize("damage", ["empty", "folder"])
def test_an_experiment_with_a_damaged_embedder_is_not_finished(
    modes, gemma_run, tmp_path, damage, caplog
):
    out = shutil.copytree(gemma_run[0], tmp_path / "run")
    plan = plan_experiment(modes[True], out)
    assert plan.is_finished()
    damage_manifest(next(out.glob("embedder-*")), damage)
    assert unfinished(plan, caplog)
    run_experiments([modes[True]], out)
    assert plan.is_finished()


def test_an_experiment_without_a_file_of_its_embedder_is_not_finished(
    modes, gemma_run, tmp_path, caplog
):
    out = shutil.copytree(gemma_run[0], tmp_path / "run")
    (path,) = out.glob("embedder-*/joint.safetensors")
    path.unlink()
    assert unfinished(plan_experiment(modes[True], out), caplog)
    assert plan_experiment(modes[False], out).is_finished()


def test_the_result_or_embedder_of_another_experiment_is_not_its_own(
    task, modes, gemma_run, tmp_path, caplog
):
    other = experiment(task, kind="gemma_only", llm_layers=3, save_embedder=True)
    run_experiments([other], tmp_path / "other")
    (others_embedder,) = (tmp_path / "other").glob("embedder-*")
    plan = plan_experiment(modes[True], shutil.copytree(gemma_run[0], tmp_path / "run"))
    folder, result_path = embedder_folder(plan.path), plan.path
    shutil.rmtree(folder)
    shutil.copytree(others_embedder, folder)
    assert unfinished(plan, caplog)
    shutil.copy(next((tmp_path / "other").glob("*.json")), result_path)
    assert unfinished(plan, caplog)


def test_a_folder_that_stands_in_the_way_of_an_embedder_is_reported_before_any_work(
    modes, tmp_path
):
    plan = plan_experiment(modes[True], tmp_path)
    embedder_folder(plan.path).mkdir()
    (embedder_folder(plan.path) / "notes.txt").write_text("precious")
    with pytest.raises(InputError, match="holds something else"):
        plan.is_finished()


def test_an_embedder_that_a_killed_run_moved_away_is_put_back_and_finished(
    modes, gemma_run, tmp_path
):
    out = shutil.copytree(gemma_run[0], tmp_path / "run")
    (folder,) = out.glob("embedder-*")
    work = out / f".saving-{dead_name()}-1"
    (work / "new" / folder.name).mkdir(parents=True)
    (work / "old").mkdir()
    folder.rename(work / "old" / folder.name)
    assert plan_experiment(modes[True], out).is_finished()
    assert not work.exists()


def test_a_note_beside_a_whole_embedder_is_no_damage(modes, gemma_run, tmp_path):
    out = shutil.copytree(gemma_run[0], tmp_path / "run")
    (next(out.glob("embedder-*")) / "notes.txt").write_text("precious")
    assert plan_experiment(modes[True], out).is_finished()


def test_a_gemma_wanted_later_is_added_to_the_saved_embedder(modes, gemma_run, tmp_path):
    out = shutil.copytree(gemma_run[0], tmp_path / "run")
    run_experiments([modes["with_gemma"]], out)
    (folder,) = out.glob("embedder-*")
    assert saving.read_manifest(folder).contains_gemma
    assert all(plan_experiment(one, out).is_finished() for one in modes.values())


@pytest.mark.real
def test_real_models_have_the_same_embeddings_bit_for_bit_in_another_process(
    real_presets, tmp_path
):
    presets = dict(
        llm_preset=str(real_presets / "gemma3_270m"),
        slm_preset=str(real_presets / "roberta_6l_384"),
    )
    embedder = build_embedder(Experiment(llm_layers=4, fusion="add", **presets))
    for variable in embedder.projection.trainable_variables:  # as if trained
        variable.assign(variable + 0.01)
    folder = embedder.save(tmp_path / "real", with_gemma=True)
    embeddings = encode_in_another_process(folder, TEXTS, tmp_path)
    np.testing.assert_array_equal(embeddings, embedder.encode(TEXTS))

"""Saved embedders: loaded in another process, they give the same embeddings bit for bit."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import h5py
import keras_hub
import numpy as np
import pytest
from made_presets import write_gemma
from made_task import experiment, write_task
from safetensors.numpy import load_file

from embedder_helpers import protocol
from embedder_helpers.config import Experiment, InputError
from embedder_helpers.embedder import build_embedder
from embedder_helpers.result import read_result
from embedder_helpers.saved import load, save
from embedder_helpers.sweep import sweep
from embedder_helpers.tasks import load_task

TEXTS = ["It works.", "I wish the clasp were stronger.", "No."]


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    return write_task(tmp_path_factory.mktemp("saved") / "weather")


@pytest.fixture(scope="module")
def run(task, tmp_path_factory):
    """Folder and result of a hybrid that a sweep trained and saved."""
    out = tmp_path_factory.mktemp("run")
    one = experiment(task, fusion="add", projection_start="ridge", save_embedder=True)
    (result,), _ = sweep([one], out)
    (folder,) = out.glob("embedder-*")
    return folder, result


ELSEWHERE = """
import sys
import numpy as np
from embedder_helpers.saved import load
embedder = load(sys.argv[1])
texts = sys.stdin.read().splitlines()
np.save(sys.argv[2], embedder.encode(texts))
"""


def in_another_process(folder, texts, tmp_path):
    command = [sys.executable, "-c", ELSEWHERE, str(folder), str(tmp_path / "found.npy")]
    subprocess.run(command, input="\n".join(texts), text=True, check=True)
    return np.load(tmp_path / "found.npy")


def test_what_a_run_saved_scores_in_another_process_as_it_did(run, task, tmp_path):
    folder, result = run
    loaded = load_task(str(task), samples_per_label=4)
    train, test = loaded.train.texts(), loaded.test.texts()
    there = in_another_process(folder, [*train, *test], tmp_path)
    np.testing.assert_array_equal(load(folder).encode([*train, *test]), there)
    answers = protocol.answers(
        there[: len(train)], loaded.train.labels, there[len(train) :], samples_per_label=4
    )
    scores = protocol.Scores.of(loaded.test.labels, answers)
    assert scores.mean == pytest.approx(result.scores)


def test_the_head_is_saved_too(run, task):
    folder, result = run
    embedder, loaded = load(folder), load_task(str(task))
    answers = embedder.head.predict(embedder.encode(loaded.test.texts()))
    assert protocol.metrics(loaded.test.labels, answers) == pytest.approx(result.head)


def test_the_folder_lies_beside_the_result_and_tells_it(run):
    folder, result = run
    path = folder.with_name(folder.name.removeprefix("embedder-") + ".json")
    assert read_result(path) == result
    told = json.loads((folder / "embedder.json").read_text())
    assert told["result"]["scores"] == result.scores


def test_a_saved_roberta_is_a_whole_preset_of_keras(run):
    backbone = keras_hub.models.Backbone.from_preset(str(run[0] / "roberta"))
    embedder = load(run[0])
    for mine, theirs in zip(embedder.roberta.get_weights(), backbone.get_weights(), strict=True):
        np.testing.assert_array_equal(mine, theirs)


def test_a_gemma_that_is_asked_for_later_is_put_in_later(task, tmp_path, capsys):
    keys = dict(kind="gemma_only", llm_layers=1)
    saving = [experiment(task, save_embedder=one, **keys) for one in (False, True, "with_gemma")]
    sweep(saving[:2], tmp_path)  # one result, of which the embedder is wanted once
    (folder,) = tmp_path.glob("embedder-*")
    assert not (folder / "gemma").exists()
    sweep(saving[2:], tmp_path)
    assert (folder / "gemma").is_dir()
    capsys.readouterr()
    sweep(saving, tmp_path)
    assert "1 of them found" in capsys.readouterr().out


def test_a_run_whose_result_is_there_runs_again_for_its_embedder_alone(task, tmp_path, capsys):
    one = experiment(task, kind="gemma_only", llm_layers=1)
    sweep([one], tmp_path)
    saving = experiment(task, kind="gemma_only", llm_layers=1, save_embedder=True)
    for found in ("0 of them found", "1 of them found"):
        sweep([saving], tmp_path)
        assert found in capsys.readouterr().out
    assert len(list(tmp_path.glob("embedder-*/embedder.json"))) == 1


@pytest.mark.parametrize(
    "with_gemma, keys",
    [
        (False, dict(fusion="prepend", llm_layers=2, pooling="max")),
        (False, dict(llm_layers=(2, 4), layer_pooling="learned", projection="mlp")),
        (True, dict(kind="gemma_only", llm_layers=3, final_norm="last")),
        (True, dict(kind="roberta_only", max_tokens=8)),
    ],
)
def test_an_embedder_comes_back_bit_for_bit(keys, with_gemma, tmp_path):
    embedder = build_embedder(Experiment(**keys))
    for variable in embedder.model.trainable_variables:  # as if trained
        variable.assign(variable + 0.01)
    embedder.save(tmp_path / "one", with_gemma)
    kind = embedder.experiment.kind
    assert (tmp_path / "one" / "gemma").is_dir() == (with_gemma and kind != "roberta_only")
    np.testing.assert_array_equal(load(tmp_path / "one").encode(TEXTS), embedder.encode(TEXTS))


def test_a_gemma_that_was_saved_too_needs_no_other(tmp_path):
    write_gemma("gemma3", 7, tmp_path / "gemma")
    keys = dict(kind="gemma_only", llm_preset=str(tmp_path / "gemma"), llm_layers=5)
    embedder = build_embedder(Experiment(**keys))
    expected = embedder.encode(TEXTS)
    save(embedder, tmp_path / "whole", with_gemma=True)
    save(embedder, tmp_path / "part")
    (tmp_path / "gemma").rename(tmp_path / "moved")
    np.testing.assert_array_equal(load(tmp_path / "whole").encode(TEXTS), expected)
    with pytest.raises(InputError, match=r"needs the Gemma it was made with .* or --llm"):
        load(tmp_path / "part")
    moved = load(tmp_path / "part", llm_preset=str(tmp_path / "moved"))
    np.testing.assert_array_equal(moved.encode(TEXTS), expected)
    with pytest.raises(InputError, match="'tiny_gemma' is not the Gemma"):
        load(tmp_path / "part", llm_preset="tiny_gemma")


@pytest.fixture
def small(tmp_path):
    return save(build_embedder(Experiment(kind="gemma_only", llm_layers=1)), tmp_path / "small")


def test_saving_again_replaces_the_folder_and_leaves_nothing_else(small):
    save(build_embedder(Experiment(kind="gemma_only", llm_layers=2)), small)
    assert load(small).depths[0].cutoff == 2
    assert [path.name for path in small.parent.iterdir()] == ["small"]


def test_a_save_that_fails_leaves_what_was_there(small, monkeypatch):
    before = (small / "embedder.json").read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("embedder_helpers.saved._checksum", full)
    with pytest.raises(InputError, match="No space left on device"):
        save(build_embedder(Experiment(kind="gemma_only", llm_layers=2)), small)
    assert (small / "embedder.json").read_bytes() == before
    assert [path.name for path in small.parent.iterdir()] == ["small"]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(39, "Directory not empty")])
def test_a_save_that_ends_between_its_two_renames_leaves_what_was_there(small, monkeypatch, error):
    before, rename = (small / "embedder.json").read_bytes(), Path.replace

    def ends(path, target):
        if path.suffix == ".part":
            raise error
        return rename(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", ends)
        with pytest.raises((KeyboardInterrupt, InputError)):
            save(build_embedder(Experiment(kind="gemma_only", llm_layers=2)), small)
    assert (small / "embedder.json").read_bytes() == before
    assert [path.name for path in small.parent.iterdir()] == ["small"]


def test_what_a_killed_save_moved_away_is_found_again(small):
    expected = load(small).encode(TEXTS)
    small.rename(small.with_name(".small.old"))
    np.testing.assert_array_equal(load(small).encode(TEXTS), expected)


def test_a_folder_that_holds_something_else_is_not_replaced(tmp_path):
    (tmp_path / "precious").write_text("")
    embedder = build_embedder(Experiment(kind="gemma_only", llm_layers=1))
    for taken in (tmp_path, tmp_path / "precious"):
        with pytest.raises(InputError, match="holds something else"):
            embedder.save(taken)
    assert (tmp_path / "precious").exists()


def test_an_embedder_saved_again_is_the_same_and_keeps_what_came_with_it(run, tmp_path):
    folder, result = run
    first = load(folder)
    first.save(tmp_path / "whole", with_gemma=True)
    again = load(tmp_path / "whole")
    again.save(tmp_path / "whole")
    third = load(tmp_path / "whole")
    np.testing.assert_array_equal(third.encode(TEXTS), first.encode(TEXTS))
    assert third.result == result
    told = [json.loads((one / "embedder.json").read_text()) for one in (folder, tmp_path / "whole")]
    assert told[0]["presets"] == told[1]["presets"]
    assert told[0]["experiment"] == told[1]["experiment"]


def test_a_loaded_embedder_goes_on_from_another_working_folder(small, tmp_path, monkeypatch):
    expected = load(small).encode(TEXTS)
    monkeypatch.chdir(small.parent)
    embedder = load(small.name)
    monkeypatch.chdir("/")
    np.testing.assert_array_equal(embedder.encode(TEXTS), expected)


def test_the_weights_are_in_formats_that_run_no_code(run):
    for path in (path for path in run[0].rglob("*") if path.is_file()):
        if path.suffix == ".h5":
            assert h5py.is_hdf5(path)
        elif path.suffix == ".safetensors":
            assert load_file(path)
        else:
            assert path.suffix in (".json", ".txt") and path.read_text(encoding="utf-8")


def test_a_folder_that_holds_no_embedder_is_told(tmp_path):
    with pytest.raises(InputError, match="holds no saved embedder"):
        load(tmp_path)


def test_a_damaged_file_is_told_by_name(small):
    path = small / "joint.safetensors"
    path.write_bytes(path.read_bytes() + b"x")
    with pytest.raises(InputError, match="joint.safetensors is missing or damaged"):
        load(small)
    path.unlink()
    with pytest.raises(InputError, match="joint.safetensors is missing or damaged"):
        load(small)


def test_a_damaged_description_and_one_of_a_later_version_are_told(small):
    path = small / "embedder.json"
    told = json.loads(path.read_text())
    path.write_text(json.dumps(told | {"format": 99}))
    with pytest.raises(InputError, match="update it"):
        load(small)
    wrong = [{"experiment": {}}, {"presets": None}, {"files": []}, {"files": 7}, {"classes": [0]}]
    for content in wrong:
        path.write_text(json.dumps(told | content))
        with pytest.raises(InputError):
            load(small)
    path.write_text(path.read_text()[:50])
    with pytest.raises(InputError, match="is damaged"):
        load(small)


def test_a_copy_works_anywhere(small, tmp_path):
    expected = load(small).encode(TEXTS)
    shutil.copytree(small, tmp_path / "deep" / "copy")
    np.testing.assert_array_equal(load(tmp_path / "deep" / "copy").encode(TEXTS), expected)


@pytest.mark.real
def test_real_models_come_back_bit_for_bit_in_another_process(real_presets, tmp_path):
    keys = dict(
        llm_preset=str(real_presets / "gemma3_270m"),
        slm_preset=str(real_presets / "roberta_6l_384"),
    )
    embedder = build_embedder(Experiment(llm_layers=4, fusion="add", **keys))
    for variable in embedder.projection.trainable_variables:  # as if trained
        variable.assign(variable + 0.01)
    folder = embedder.save(tmp_path / "real", with_gemma=True)
    there = in_another_process(folder, TEXTS, tmp_path)
    np.testing.assert_array_equal(there, embedder.encode(TEXTS))

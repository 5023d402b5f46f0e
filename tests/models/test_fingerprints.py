"""What changes a preset's fingerprint, and what does not; folders that are no presets."""

import json
import os
import shutil

import h5py
import keras_hub
import numpy as np
import pytest
import safetensors.numpy
from made_presets import write_gemma

from embedder_helpers.builtin import BUILTIN_FOLDER
from embedder_helpers.errors import InputError
from embedder_helpers.models import fingerprints, preset_files
from embedder_helpers.models.fingerprints import folder_fingerprint

WEIGHTS = "model.weights.h5"


@pytest.fixture
def preset(tmp_path):
    """A copy of the built-in RoBERTa."""
    return shutil.copytree(BUILTIN_FOLDER / "tiny_roberta", tmp_path / "preset")


def save_again(folder, target, **options):
    """Load a preset and save it, as a user would."""
    models = keras_hub.models
    models.Backbone.from_preset(str(folder)).save_to_preset(str(target), **options)
    models.Tokenizer.from_preset(str(folder)).save_to_preset(str(target))
    return target


def first_dataset(file):
    path = next(iter(preset_files.hdf5_datasets(file)))
    return path, file[path]


# The same


@pytest.mark.parametrize("options", [{}, {"max_shard_size": 0.003}])
def test_a_preset_saved_again_in_one_or_several_files_is_the_same(preset, tmp_path, options):
    again = save_again(preset, tmp_path / "again", **options)
    assert (again / WEIGHTS).exists() == (not options)
    assert folder_fingerprint(again) == folder_fingerprint(preset)


def compress(folder):
    with h5py.File(folder / WEIGHTS, "r+") as file:
        for path, dataset in preset_files.hdf5_datasets(file).items():
            values = dataset[()]
            del file[path]
            file.create_dataset(path, data=values, compression="gzip", compression_opts=1)


def set_attribute(folder):
    with h5py.File(folder / WEIGHTS, "r+") as file:
        first_dataset(file)[1].parent.attrs["name"] = "dropout_42"


def set_time(folder):
    (folder / "metadata.json").write_text('{"date_saved": "2026-01-01@00:00:00"}')


def reorder_json(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(dict(reversed(config.items())), indent=7))


def number_the_model(folder):
    config = json.loads((folder / "config.json").read_text())
    config["config"]["name"] = "roberta_backbone_3"
    (folder / "config.json").write_text(json.dumps(config))


def add_hidden_file(folder):
    (folder / ".cache").mkdir()
    (folder / ".cache" / "download.lock").write_text("now")


def link_to_nothing(folder):
    (folder / "notes").symlink_to("nowhere")


def link_to_itself(folder):
    (folder / "assets" / "again").symlink_to("..")


def link_the_folder_of_assets(folder):
    assets = (folder / "assets").rename(folder.parent / "assets")
    (folder / "assets").symlink_to(assets)


@pytest.mark.parametrize(
    "change",
    [
        compress,
        set_attribute,
        set_time,
        reorder_json,
        number_the_model,
        add_hidden_file,
        link_to_nothing,
        link_to_itself,
        link_the_folder_of_assets,
    ],
)
def test_what_is_no_content_does_not_change_a_fingerprint(preset, monkeypatch, change):
    monkeypatch.setattr(fingerprints, "PIECE", 10_000)  # so that datasets are read in pieces
    before = folder_fingerprint(preset)
    change(preset)
    assert folder_fingerprint(preset) == before


def test_tensors_in_one_or_several_files_are_the_same(tmp_path):
    tensors = {"a": np.ones((2, 3), "float32"), "b": np.zeros(4, "float16")}
    one, two = tmp_path / "one", tmp_path / "two"
    for folder in (one, two):
        folder.mkdir()
    safetensors.numpy.save_file(tensors, one / "model.safetensors", {"format": "pt"})
    for number, name in enumerate(tensors, 1):
        path = two / f"model-{number:05}-of-00002.safetensors"
        safetensors.numpy.save_file({name: tensors[name]}, path)
    (two / "model.safetensors.index.json").write_text("{}")
    assert folder_fingerprint(one) == folder_fingerprint(two)


# Another


def change_value(folder):
    with h5py.File(folder / WEIGHTS, "r+") as file:
        first_dataset(file)[1][0] += 1e-3


def change_dtype(folder):
    with h5py.File(folder / WEIGHTS, "r+") as file:
        path, dataset = first_dataset(file)
        values = dataset[()]
        del file[path]
        file[path] = values.astype("float64")


def change_shape(folder):
    with h5py.File(folder / WEIGHTS, "r+") as file:
        path, dataset = first_dataset(file)
        values = dataset[()]
        del file[path]
        file[path] = values[None]


def rename_weight(folder):
    with h5py.File(folder / WEIGHTS, "r+") as file:
        file.move(first_dataset(file)[0], "layers/other")


def change_config(folder):
    text = (folder / "config.json").read_text()
    (folder / "config.json").write_text(text.replace('"dropout": 0.1', '"dropout": 0.2'))


def change_vocabulary(folder):
    path = next(folder.rglob("merges.txt"))
    path.write_text(path.read_text() + "q z\n")


def change_linked_vocabulary(folder):
    link_the_folder_of_assets(folder)
    change_vocabulary(folder.parent)


def rename_file(folder):
    path = next(folder.rglob("merges.txt"))
    path.rename(path.with_name("other.txt"))


@pytest.mark.parametrize(
    "change",
    [
        change_value,
        change_dtype,
        change_shape,
        rename_weight,
        change_config,
        change_vocabulary,
        change_linked_vocabulary,
        rename_file,
    ],
)
def test_changed_content_changes_a_fingerprint(preset, change):
    before = folder_fingerprint(preset)
    change(preset)
    assert folder_fingerprint(preset) != before


@pytest.mark.parametrize("word", ["name", "_name_or_path"])
def test_a_word_of_a_vocabulary_is_no_label(preset, word):
    path = preset / "vocabulary.json"
    prints = set()
    for number in (1, 2):
        path.write_text(json.dumps({"the": 0, word: number, "config": {"name": 3}}))
        prints.add(folder_fingerprint(preset))
    assert len(prints) == 2


def test_bfloat16_weights_are_not_those_of_two_other_bytes(tmp_path):
    values = np.arange(6, dtype="uint16")
    for name, attributes in (("plain", {}), ("bfloat16", {"dtype": "bfloat16"})):
        (tmp_path / name).mkdir()
        with h5py.File(tmp_path / name / WEIGHTS, "w") as file:
            file["layers/0"] = values
            file["layers/0"].attrs.update(attributes)
    assert folder_fingerprint(tmp_path / "plain") != folder_fingerprint(tmp_path / "bfloat16")


@pytest.mark.parametrize("name", [WEIGHTS, "model.safetensors", "tokenizer.json"])
def test_a_file_in_an_unknown_format_counts_by_its_bytes(tmp_path, name):
    (tmp_path / name).write_bytes(b"\x90" * 100)
    before = folder_fingerprint(tmp_path)
    (tmp_path / name).write_bytes(b"\x90" * 99 + b"\x91")
    assert folder_fingerprint(tmp_path) != before


@pytest.mark.parametrize(
    "offsets", [[0, 10**30], [-8, 8], [8, 0], [0, 0.5], "ab", None, [[0], [1]]]
)
def test_tensors_outside_of_their_file_count_by_its_bytes(tmp_path, offsets):
    header = json.dumps({"a": {"dtype": "F32", "shape": [2], "data_offsets": offsets}}).encode()
    content = len(header).to_bytes(8, "little") + header + b"12345678"
    (tmp_path / "model.safetensors").write_bytes(content)
    assert folder_fingerprint(tmp_path)


def test_a_file_is_read_once_while_it_does_not_change(preset, monkeypatch):
    before = folder_fingerprint(preset)
    monkeypatch.setattr(fingerprints, "_hdf5_content", None)
    assert folder_fingerprint(preset) == before


def test_a_file_that_is_replaced_is_read_again_whatever_its_size_and_time(preset):
    path, before = preset / "config.json", folder_fingerprint(preset)
    time = path.stat().st_mtime_ns
    new = preset / "new"
    new.write_text(path.read_text().replace('"dropout": 0.1', '"dropout": 0.2'))
    os.utime(new, ns=(time, time))
    new.replace(path)
    assert folder_fingerprint(preset) != before


# No presets


def add_pipe(folder):
    os.mkfifo(folder / "tokenizer.json.2")


def link_to_a_device(folder):
    (folder / "assets" / "vocabulary.txt").symlink_to("/dev/zero")


def grow_json(folder):
    with (folder / "tokenizer.json").open("r+b") as file:
        file.truncate(10**9)  # takes no disk


def link_a_dataset(folder):
    with h5py.File(folder / WEIGHTS, "r+") as file:
        file["layers/more"] = h5py.ExternalLink("/somewhere/else.h5", "/x")


def store_a_dataset_elsewhere(folder):
    (folder.parent / "secret").write_bytes(b"\0" * 40)
    with h5py.File(folder / WEIGHTS, "r+") as file:
        outside = [(str(folder.parent / "secret"), 0, 40)]
        file.create_dataset("layers/more", (10,), "float32", external=outside)


def describe_too_many_weights(folder):
    with h5py.File(folder / WEIGHTS, "r+") as file:
        file.create_dataset("layers/more", (10**12,), "float32")  # of which none is stored


@pytest.mark.parametrize(
    "change",
    [
        add_pipe,
        link_to_a_device,
        grow_json,
        link_a_dataset,
        store_a_dataset_elsewhere,
        describe_too_many_weights,
    ],
)
def test_what_may_be_read_without_end_or_leads_elsewhere_is_an_error(preset, change):
    change(preset)
    with pytest.raises(InputError, match="copy the whole preset|save the preset"):
        folder_fingerprint(preset)


def test_a_folder_of_very_many_files_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(preset_files, "MAX_FILES", 3)
    for number in range(4):
        (tmp_path / f"{number}.txt").write_text("")
    with pytest.raises(InputError, match="more than 3 files"):
        folder_fingerprint(tmp_path)


def test_presets_of_other_families_have_fingerprints(tmp_path):
    first, second = (write_gemma(name, 1, tmp_path / name) for name in ("gemma2", "gemma3"))
    assert first.fingerprint != second.fingerprint

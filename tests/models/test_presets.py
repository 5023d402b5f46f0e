import json
import shutil

import huggingface_hub
import kagglehub
import pytest

from embedder_helpers.builtin import BUILTIN_FOLDER
from embedder_helpers.config import Experiment
from embedder_helpers.errors import InputError
from embedder_helpers.models.presets import (
    Preset,
    find_preset,
    find_presets,
    folder_fingerprint,
    from_preset,
    preset_config,
    preset_file,
)

HF_GEMMA = {"model_type": "gemma", "num_hidden_layers": 18, "hidden_size": 2048}
HF_ROBERTA = {
    "model_type": "roberta",
    "num_hidden_layers": 12,
    "hidden_size": 768,
    "max_position_embeddings": 514,
}


def write_preset(folder, config):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def replace_download(monkeypatch, module, function, path):
    """Let a hub's library return a path; returns the list of its calls."""
    calls = []

    def download(*arguments):
        calls.append(arguments)
        return str(path)

    monkeypatch.setattr(module, function, download)
    return calls


def error_of(role, name):
    with pytest.raises(InputError) as error:
        find_preset(role, name)
    return str(error.value)


# Folders


def test_the_built_in_gemma_has_18_layers_of_width_96():
    preset = find_preset("llm_preset", "tiny_gemma")
    assert (preset.num_layers, preset.width, preset.positions) == (18, 96, None)
    assert (preset.name, preset.handle) == ("tiny_gemma", str(BUILTIN_FOLDER / "tiny_gemma"))


def test_the_built_in_roberta_has_width_128_and_512_positions():
    preset = find_preset("slm_preset", "tiny_roberta")
    assert (preset.width, preset.positions) == (128, 512)


def test_a_folder_in_hugging_faces_format_is_read(tmp_path):
    preset = find_preset("llm_preset", str(write_preset(tmp_path / "gemma", HF_GEMMA)))
    assert (preset.num_layers, preset.width, preset.positions) == (18, 2048, None)


def test_hugging_faces_two_positions_that_no_token_uses_do_not_count(tmp_path):
    preset = find_preset("slm_preset", str(write_preset(tmp_path / "roberta", HF_ROBERTA)))
    assert preset.positions == 512


def test_the_config_of_a_preset_is_what_its_file_holds(tmp_path):
    folder = write_preset(tmp_path / "gemma", HF_GEMMA)
    assert preset_config("llm_preset", str(folder)) == HF_GEMMA


@pytest.mark.parametrize("name", ["./nowhere", "models/gemma", "../gemma_2b_en"])
def test_a_missing_folder_is_an_error(name):
    assert error_of("llm_preset", name).startswith(f"llm_preset: there is no folder '{name}'")


@pytest.mark.parametrize(
    "content", [None, "{", "[]", '{"class_name": "GemmaBackbone", "config": null}']
)
def test_a_folder_without_a_readable_config_is_an_error(tmp_path, content):
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    message = error_of("llm_preset", str(tmp_path))
    assert (
        message.startswith(f"llm_preset: {tmp_path} is not a preset") and "config.json" in message
    )


def test_a_config_without_a_size_is_an_error_that_names_the_missing_key(tmp_path):
    folder = write_preset(tmp_path / "gemma", {"model_type": "gemma"})
    message = error_of("llm_preset", str(folder))
    assert "config.json" in message and "num_hidden_layers" in message


# Families


@pytest.mark.parametrize(
    "config",
    [
        {"class_name": "BertBackbone", "config": {"num_layers": 2, "hidden_dim": 8}},
        {"model_type": "llama", "num_hidden_layers": 2, "hidden_size": 8},
        {"model_type": "gemma3", "text_config": {}},
        {},
    ],
)
def test_a_preset_of_another_family_is_an_error_that_names_both(tmp_path, config):
    message = error_of("llm_preset", str(write_preset(tmp_path / "other", config)))
    assert f"is a {config.get('class_name') or config.get('model_type')}," in message
    assert "Gemma 1, 2 or 3 text model" in message


def test_a_gemma_with_a_vision_encoder_is_an_error(tmp_path):
    shape = {"num_layers": 2, "hidden_dim": 8, "vision_encoder": {"class_name": "Vit"}}
    config = {"class_name": "Gemma3Backbone", "config": shape}
    message = error_of("llm_preset", str(write_preset(tmp_path / "vision", config)))
    assert "text model" in message


@pytest.mark.parametrize(
    ("role", "name", "architecture"),
    [
        ("llm_preset", "tiny_roberta", "RobertaBackbone"),
        ("slm_preset", "tiny_gemma", "GemmaBackbone"),
    ],
)
def test_swapped_presets_are_an_error(role, name, architecture):
    assert error_of(role, name).startswith(f"{role} '{name}' is a {architecture},")


# An Experiment's presets


def test_an_experiment_has_the_presets_of_its_kind():
    assert set(find_presets(Experiment(kind="hybrid"))) == {"llm_preset", "slm_preset"}
    assert set(find_presets(Experiment(kind="gemma_only"))) == {"llm_preset"}
    assert set(find_presets(Experiment(kind="roberta_only"))) == {"slm_preset"}


def test_a_cutoff_beyond_the_model_is_an_error():
    with pytest.raises(InputError, match="llm_layers.*19"):
        find_presets(Experiment(llm_layers=19))


@pytest.mark.parametrize(("fusion", "limit"), [("replace", 512), ("prepend", 256)])
def test_texts_longer_than_robertas_positions_are_an_error(fusion, limit):
    assert find_presets(Experiment(fusion=fusion, max_tokens=limit))
    with pytest.raises(InputError, match=f"max_tokens is {limit + 1}.*at most {limit}"):
        find_presets(Experiment(fusion=fusion, max_tokens=limit + 1))


# Names and handles


@pytest.mark.parametrize(
    ("role", "wrong", "right"),
    [
        ("llm_preset", "tiny_gema", "tiny_gemma"),
        ("llm_preset", "gemma_2b_em", "gemma_2b_en"),
        ("slm_preset", "roberta_base_ne", "roberta_base_en"),
    ],
)
def test_a_misspelt_name_is_an_error_with_the_most_similar_one(role, wrong, right):
    message = error_of(role, wrong)
    assert message.startswith(f"{role}: there is no preset '{wrong}'") and f"'{right}'?" in message


def test_a_name_like_no_other_is_an_error_with_the_kinds_of_names():
    message = error_of("llm_preset", "zzzzz")
    assert "hf://" in message and "kaggle://" in message and "did you mean" not in message


def test_a_hugging_face_preset_is_known_by_its_revision(tmp_path, monkeypatch):
    path = write_preset(tmp_path / "snapshots" / "abc123", HF_GEMMA) / "config.json"
    calls = replace_download(monkeypatch, huggingface_hub, "hf_hub_download", path)
    preset = find_preset("llm_preset", "hf://google/gemma-2b")
    assert calls == [("google/gemma-2b", "config.json")]
    assert preset.handle == preset.name == "hf://google/gemma-2b"
    assert preset.fingerprint == "hf://google/gemma-2b@abc123"


def test_a_kaggle_preset_is_known_by_its_version(tmp_path, monkeypatch):
    path = write_preset(tmp_path, HF_GEMMA) / "config.json"
    calls = replace_download(monkeypatch, kagglehub, "model_download", path)
    handle = "keras/gemma/keras/gemma_2b_en/2"
    preset = find_preset("llm_preset", f"kaggle://{handle}")
    assert calls == [(handle, "config.json")]
    assert preset.num_layers == 18
    assert preset.fingerprint == f"kaggle://{handle}@{tmp_path.name}"


@pytest.mark.parametrize(
    ("role", "name", "handle", "config"),
    [
        ("llm_preset", "gemma_2b_en", "keras/gemma/keras/gemma_2b_en", HF_GEMMA),
        ("llm_preset", "gemma_1.1_instruct_2b_en", "keras/gemma/keras/gemma_1.1", HF_GEMMA),
        ("slm_preset", "roberta_base_en", "keras/roberta/keras/roberta_base_en", HF_ROBERTA),
    ],
)
def test_a_keras_preset_is_found_on_kaggle_by_its_name(
    tmp_path, monkeypatch, role, name, handle, config
):
    path = write_preset(tmp_path, config) / "config.json"
    calls = replace_download(monkeypatch, kagglehub, "model_download", path)
    preset = find_preset(role, name)
    assert preset.handle == name
    assert calls[0][0].startswith(handle)
    assert preset.fingerprint.startswith(f"kaggle://{handle}")


# Loading


class Unreadable:
    """A model class that fails to load."""

    @staticmethod
    def from_preset(handle, **options):
        raise OSError("a\nreason")


def test_a_folder_that_cannot_be_loaded_is_an_error_with_the_reason(tmp_path):
    preset = Preset("mine", str(tmp_path), "", 1, 8, None)
    with pytest.raises(InputError, match="llm_preset 'mine' .*keras-hub.*a reason.*config.json"):
        from_preset(Unreadable, "llm_preset", preset)


def test_a_download_that_cannot_be_loaded_is_an_error_with_its_kind_only():
    preset = Preset("hf://a/b", "hf://a/b", "", 1, 8, None)
    with pytest.raises(InputError, match="OSError") as error:
        from_preset(Unreadable, "llm_preset", preset)
    assert "reason" not in str(error.value)


def test_a_file_of_a_keras_preset_is_found_by_its_name(tmp_path, monkeypatch):
    file = tmp_path / "task.json"
    file.write_text("")
    calls = replace_download(monkeypatch, kagglehub, "model_download", file)
    local = Preset("mine", str(tmp_path), "", 1, 8, None)
    named = Preset("gemma_2b_en", "gemma_2b_en", "", 1, 8, None)
    for preset in (local, named):
        assert preset_file("llm_preset", preset, "task.json") == file
    ((handle, name),) = calls
    assert handle.startswith("keras/gemma/keras/gemma_2b_en") and name == "task.json"


def test_a_folder_that_lacks_a_file_is_an_error_that_names_it(tmp_path):
    preset = Preset("mine", str(tmp_path), "", 1, 8, None)
    with pytest.raises(InputError, match="llm_preset 'mine' has no file model.weights.h5: use a"):
        preset_file("llm_preset", preset, "model.weights.h5")


# Fingerprints


def test_folders_of_the_same_content_have_the_same_fingerprint(tmp_path):
    folder = write_preset(tmp_path / "first", HF_GEMMA)
    copy = shutil.copytree(folder, tmp_path / "second")
    assert folder_fingerprint(folder) == folder_fingerprint(copy)


def test_the_time_of_saving_does_not_change_a_fingerprint(tmp_path):
    folder = write_preset(tmp_path / "preset", HF_GEMMA)
    before = folder_fingerprint(folder)
    (folder / "metadata.json").write_text('{"date_saved": "2026-01-01@00:00:00"}')
    assert folder_fingerprint(folder) == before


def change_content(folder):
    (folder / "assets" / "vocabulary.txt").write_text("b")


def change_name(folder):
    (folder / "assets" / "vocabulary.txt").rename(folder / "assets" / "words.txt")


def add_file(folder):
    (folder / "model.weights.h5").write_bytes(b"weights")


@pytest.mark.parametrize("change", [change_content, change_name, add_file])
def test_a_fingerprint_changes_with_a_files_content_or_name(tmp_path, change):
    folder = write_preset(tmp_path / "first", HF_GEMMA)
    (folder / "assets").mkdir()
    (folder / "assets" / "vocabulary.txt").write_text("a")
    copy = shutil.copytree(folder, tmp_path / "second")
    change(copy)
    assert folder_fingerprint(folder) != folder_fingerprint(copy)


def test_a_file_that_changes_within_a_process_changes_the_fingerprint(tmp_path):
    weights = tmp_path / "weights"
    weights.write_bytes(b"one")
    before = folder_fingerprint(tmp_path)
    weights.write_bytes(b"three")
    assert folder_fingerprint(tmp_path) != before

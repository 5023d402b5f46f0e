import json
import os
import shutil

import huggingface_hub
import hypothesis
import kagglehub
import pytest
from hypothesis import strategies as st

from embedder_helpers.builtin import BUILTIN_FOLDER, BUILTIN_PRESETS
from embedder_helpers.config import Experiment
from embedder_helpers.errors import InputError
from embedder_helpers.models.fingerprints import files_fingerprint
from embedder_helpers.models.preset_config import OPTIONS, SIZES
from embedder_helpers.models.presets import (
    Preset,
    find_preset,
    find_presets,
    from_preset,
    has_fingerprint,
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
        message.startswith(f"llm_preset: '{tmp_path}' is not a preset") and "config.json" in message
    )


def test_the_reason_why_a_config_cannot_be_read_is_named(tmp_path):
    (tmp_path / "config.json").write_text("\ufeff" + json.dumps(HF_GEMMA), encoding="utf-8")
    assert "BOM" in error_of("llm_preset", str(tmp_path))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_number_that_is_not_finite_is_no_error_where_it_is_not_read(tmp_path, value):
    folder = write_preset(tmp_path / "gemma", HF_GEMMA | {"classifier_dropout": value})
    assert find_preset("llm_preset", str(folder)).num_layers == 18


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


# Folders of strangers

GEMMA = json.loads((BUILTIN_FOLDER / "tiny_gemma" / "config.json").read_text())
ROBERTA = json.loads((BUILTIN_FOLDER / "tiny_roberta" / "config.json").read_text())
NOT_SIZES = ["18", -1, 0, 2.0, 10**30, True, None, [[18]], {"a": 1}]


def changed(config, key, value):
    return config | {"config": config["config"] | {key: value}}


@pytest.mark.parametrize("key", SIZES["llm_preset"])
@pytest.mark.parametrize("value", NOT_SIZES)
def test_a_size_that_no_gemma_has_is_an_error_that_names_it(tmp_path, key, value):
    folder = write_preset(tmp_path / "gemma", changed(GEMMA, key, value))
    assert key in error_of("llm_preset", str(folder))


@pytest.mark.parametrize("key", SIZES["slm_preset"])
@pytest.mark.parametrize("value", NOT_SIZES)
def test_a_size_that_no_roberta_has_is_an_error_that_names_it(tmp_path, key, value):
    folder = write_preset(tmp_path / "roberta", changed(ROBERTA, key, value))
    assert key in error_of("slm_preset", str(folder))


@pytest.mark.parametrize("key", ["num_hidden_layers", "hidden_size", "max_position_embeddings"])
@pytest.mark.parametrize("value", NOT_SIZES)
def test_a_size_that_no_hugging_face_model_has_is_an_error(tmp_path, key, value):
    folder = write_preset(tmp_path / "roberta", HF_ROBERTA | {key: value})
    assert key in error_of("slm_preset", str(folder))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("num_key_value_heads", 2),  # of three queries
        ("head_dim", 33),
        ("use_post_ffw_norm", "yes"),
        ("layer_norm_epsilon", -1),
        ("sliding_window_size", [4]),
    ],
)
def test_an_option_that_no_gemma_has_is_an_error(tmp_path, key, value):
    folder = write_preset(tmp_path / "gemma", changed(GEMMA, key, value))
    message = error_of("llm_preset", str(folder))
    assert key in message or "num_query_heads" in message


@pytest.mark.parametrize(
    "text",
    [
        '{"class_name": "GemmaBackbone", "config": {"num_layers": 1e400}}',
        '{"class_name": "GemmaBackbone", "class_name": "GemmaBackbone"}',
        "[" * 100_000,
        "1" * 5000,
        " " * 2**21,
    ],
)
def test_json_that_is_no_config_is_an_error(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    assert "config.json" in error_of("llm_preset", str(tmp_path))


@pytest.mark.parametrize("device", ["pipe", "/dev/zero"])
def test_a_config_without_an_end_is_an_error(tmp_path, device):
    if device == "pipe":
        os.mkfifo(tmp_path / "config.json")
    else:
        (tmp_path / "config.json").symlink_to(device)
    assert "config.json" in error_of("llm_preset", str(tmp_path))


def test_a_class_that_is_loaded_in_place_of_the_named_one_is_an_error(tmp_path):
    folder = write_preset(tmp_path, GEMMA | {"registered_name": "keras_hub>BertBackbone"})
    assert "is a keras_hub>BertBackbone" in error_of("llm_preset", str(folder))


def test_a_model_larger_than_its_files_is_an_error_before_it_is_made(tmp_path):
    folder = shutil.copytree(BUILTIN_FOLDER / "tiny_gemma", tmp_path / "gemma")
    write_preset(folder, changed(GEMMA, "vocabulary_size", 10**7))
    message = error_of("llm_preset", str(folder))
    assert "weights" in message and "bytes" in message


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=2000),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)


@hypothesis.settings(
    max_examples=100,
    suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture],
)
@hypothesis.given(st.sampled_from([*SIZES["llm_preset"], *OPTIONS]), values)
def test_any_value_is_accepted_or_one_sentence(tmp_path, key, value):
    shutil.copytree(BUILTIN_FOLDER / "tiny_gemma", tmp_path / "gemma", dirs_exist_ok=True)
    write_preset(tmp_path / "gemma", changed(GEMMA, key, value))
    try:
        assert find_preset("llm_preset", str(tmp_path / "gemma"))
    except InputError as error:
        assert len(str(error)) < 1200 and len(str(error).splitlines()) == 1


@hypothesis.settings(
    max_examples=100,
    suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture],
)
@hypothesis.given(values)
def test_any_json_is_one_sentence(tmp_path, value):
    (tmp_path / "config.json").write_text(json.dumps(value))
    message = error_of("llm_preset", str(tmp_path))
    assert len(message) < 1200 and len(message.splitlines()) == 1


@pytest.mark.parametrize("name", BUILTIN_PRESETS)
def test_a_folder_of_a_built_in_models_name_is_passed_over_with_a_warning(
    tmp_path, monkeypatch, caplog, name
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).mkdir()
    role = "llm_preset" if name == "tiny_gemma" else "slm_preset"
    assert find_preset(role, name).handle == str(BUILTIN_FOLDER / name)
    assert f"./{name}" in caplog.text and str(tmp_path) in caplog.text


def test_the_home_folder_is_written_as_a_tilde(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    folder = write_preset(tmp_path / "gemma", HF_GEMMA)
    assert find_preset("llm_preset", "~/gemma").handle == str(folder)


def test_a_preset_has_the_fingerprint_that_an_older_version_gave_it():
    preset = find_preset("llm_preset", "tiny_gemma")
    old = files_fingerprint(BUILTIN_FOLDER / "tiny_gemma")
    assert old != preset.fingerprint
    assert has_fingerprint(preset, old) and has_fingerprint(preset, preset.fingerprint)
    assert not has_fingerprint(preset, "0" * 64)

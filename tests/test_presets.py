"""Presets: found by name, handle or folder; what is wrong is said plainly and keeps secrets."""

import json
import os
import shutil

import huggingface_hub
import pytest
from huggingface_hub import errors

from embedder_helpers import presets
from embedder_helpers.config import InputError
from embedder_helpers.presets import find_preset, folder_fingerprint, hugging_face_token

TOKEN = "hf_ThisIsASecret"
HF_GEMMA = {"model_type": "gemma", "num_hidden_layers": 18, "hidden_size": 2048}
HF_ROBERTA = {
    "model_type": "roberta",
    "num_hidden_layers": 12,
    "hidden_size": 768,
    "max_position_embeddings": 514,
}


@pytest.fixture(autouse=True)
def no_token(monkeypatch):
    """No token in the environment, and none left there by a test."""
    for name in ("HUGGING_FACE_TOKEN", "HF_TOKEN"):
        monkeypatch.setenv(name, "")


@pytest.fixture
def token(monkeypatch):
    monkeypatch.setenv("HUGGING_FACE_TOKEN", TOKEN)


def write_preset(folder, config):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def answer(monkeypatch, module, function, outcome):
    """Puts a function in a library that raises an error or gives a path; tells its arguments."""
    calls = []

    def answered(*arguments, **options):
        calls.append(arguments)
        if isinstance(outcome, Exception):
            raise outcome
        return str(outcome)

    monkeypatch.setattr(module, function, answered)
    return calls


def hugging_face_error(kind, text=f"Authorization: Bearer {TOKEN}"):
    error = kind.__new__(kind)  # their arguments differ by version
    error.args = (text,)
    return error


def kaggle_error(status):
    import requests
    from kagglehub.exceptions import KaggleApiHTTPError

    response = requests.Response()
    response.status_code = status
    return KaggleApiHTTPError(f"https://user:{TOKEN}@kaggle.com", response)


def message_of(role, name):
    with pytest.raises(InputError) as caught:
        find_preset(role, name)
    assert TOKEN not in str(caught.value)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_the_built_in_gemma_has_18_blocks_of_width_96():
    found = find_preset("llm_preset", "tiny_gemma")
    assert (found.blocks, found.width, found.positions) == (18, 96, None)
    assert (found.name, found.handle) == ("tiny_gemma", str(presets.BUILTIN_FOLDER / "tiny_gemma"))


def test_the_built_in_roberta_has_width_64_and_512_positions():
    found = find_preset("slm_preset", "tiny_roberta")
    assert (found.width, found.positions) == (128, 512)


def test_a_folder_in_hugging_faces_format_is_read(tmp_path):
    found = find_preset("llm_preset", str(write_preset(tmp_path / "gemma", HF_GEMMA)))
    assert (found.blocks, found.width, found.positions) == (18, 2048, None)


def test_hugging_faces_two_positions_that_no_token_uses_do_not_count(tmp_path):
    found = find_preset("slm_preset", str(write_preset(tmp_path / "roberta", HF_ROBERTA)))
    assert found.positions == 512


@pytest.mark.parametrize(
    "config",
    [
        {"class_name": "BertBackbone", "config": {"num_layers": 2, "hidden_dim": 8}},
        {"model_type": "llama", "num_hidden_layers": 2, "hidden_size": 8},
        {"model_type": "gemma3", "text_config": {}},
        {},
    ],
)
def test_a_preset_of_another_family_is_told_with_its_own_and_the_one_needed(tmp_path, config):
    told = message_of("llm_preset", str(write_preset(tmp_path / "other", config)))
    assert f"is a {config.get('class_name') or config.get('model_type')}," in told
    assert "Gemma 1, 2 or 3 text model is needed" in told


def test_a_gemma_that_sees_is_told_from_a_text_model(tmp_path):
    shape = {"num_layers": 2, "hidden_dim": 8, "vision_encoder": {"class_name": "Vit"}}
    config = {"class_name": "Gemma3Backbone", "config": shape}
    told = message_of("llm_preset", str(write_preset(tmp_path / "seeing", config)))
    assert "text model is needed" in told


@pytest.mark.parametrize(
    ("role", "name", "found"),
    [
        ("llm_preset", "tiny_roberta", "RobertaBackbone"),
        ("slm_preset", "tiny_gemma", "GemmaBackbone"),
    ],
)
def test_swapped_presets_are_told(role, name, found):
    told = message_of(role, name)
    assert told.startswith(f"{role} '{name}' is a {found}, but a")


@pytest.mark.parametrize(
    ("role", "wrong", "right"),
    [
        ("llm_preset", "tiny_gema", "tiny_gemma"),
        ("llm_preset", "gemma_2b_em", "gemma_2b_en"),
        ("slm_preset", "roberta_base_ne", "roberta_base_en"),
    ],
)
def test_a_misspelt_preset_is_told_with_the_nearest_name(role, wrong, right):
    assert f"there is no preset '{wrong}'; did you mean '{right}'?" in message_of(role, wrong)


def test_a_preset_like_no_other_is_told_with_the_ways_to_name_one():
    told = message_of("llm_preset", "zzzzz")
    assert "Give a preset's name, an hf:// or kaggle:// handle, or a folder" in told


@pytest.mark.parametrize("name", ["./nowhere", "models/gemma", "../gemma_2b_en"])
def test_a_missing_folder_is_told(name):
    assert message_of("llm_preset", name).startswith(f"llm_preset: there is no folder '{name}'")


def test_a_folder_without_config_is_told(tmp_path):
    told = message_of("llm_preset", str(tmp_path))
    assert told == f"llm_preset: {tmp_path} is not a preset: it has no readable config.json"


def test_a_folder_with_a_broken_config_is_told(tmp_path):
    (tmp_path / "config.json").write_text("{")
    assert "no readable config.json" in message_of("llm_preset", str(tmp_path))


def test_a_hugging_face_handle_is_found_by_its_config_and_revision(tmp_path, monkeypatch):
    folder = write_preset(tmp_path / "snapshots" / "abc123", HF_GEMMA)
    path = folder / "config.json"
    calls = answer(monkeypatch, huggingface_hub, "hf_hub_download", path)
    found = find_preset("llm_preset", "hf://google/gemma-2b")
    assert calls == [("google/gemma-2b", "config.json")]
    assert found.handle == found.name == "hf://google/gemma-2b"
    assert found.fingerprint == "hf://google/gemma-2b@abc123"


HUGGING_FACE_ERRORS = [
    (errors.GatedRepoError, "is gated"),
    (errors.RepositoryNotFoundError, "shows no model hf://google/gemma-2b"),
    (errors.EntryNotFoundError, "not a model in Keras's or Transformers' format"),
    (errors.HFValidationError, "not a model in Keras's or Transformers' format"),
    (errors.LocalEntryNotFoundError, "cannot be reached"),
    (ConnectionError, "cannot be reached"),
    (RuntimeError, "cannot be reached"),
]


@pytest.mark.parametrize(("kind", "words"), HUGGING_FACE_ERRORS)
def test_what_hugging_face_refuses_is_told_without_the_token(token, monkeypatch, kind, words):
    answer(monkeypatch, huggingface_hub, "hf_hub_download", hugging_face_error(kind))
    told = message_of("llm_preset", "hf://google/gemma-2b")
    assert told.startswith("llm_preset: ") and words in told


@pytest.mark.parametrize("kind", [errors.GatedRepoError, errors.RepositoryNotFoundError])
def test_without_a_token_the_way_to_one_is_told(monkeypatch, kind):
    answer(monkeypatch, huggingface_hub, "hf_hub_download", hugging_face_error(kind))
    told = message_of("llm_preset", "hf://google/gemma-2b")
    assert "set HUGGING_FACE_TOKEN" in told and "https://huggingface.co/settings/tokens" in told


def test_with_a_token_a_gated_model_asks_for_its_licence_alone(token, monkeypatch):
    error = hugging_face_error(errors.GatedRepoError)
    answer(monkeypatch, huggingface_hub, "hf_hub_download", error)
    told = message_of("llm_preset", "hf://google/gemma-2b")
    assert "accept the licence at https://huggingface.co/google/gemma-2b" in told
    assert "settings/tokens" not in told


@pytest.mark.parametrize("kind", [errors.LocalEntryNotFoundError, ConnectionError])
def test_without_network_a_folder_is_advised_and_the_kind_of_error_told(monkeypatch, kind):
    answer(monkeypatch, huggingface_hub, "hf_hub_download", hugging_face_error(kind))
    told = message_of("slm_preset", "hf://FacebookAI/roberta-base")
    assert "give a folder" in told and f"({kind.__name__})" in told


def test_a_kaggle_handle_is_found_by_its_config(tmp_path, monkeypatch):
    import kagglehub

    path = write_preset(tmp_path, HF_GEMMA) / "config.json"
    calls = answer(monkeypatch, kagglehub, "model_download", path)
    found = find_preset("llm_preset", "kaggle://keras/gemma/keras/gemma_2b_en/2")
    assert calls == [("keras/gemma/keras/gemma_2b_en/2", "config.json")]
    version = f"kaggle://keras/gemma/keras/gemma_2b_en/2@{tmp_path.name}"
    assert (found.blocks, found.fingerprint) == (18, version)


@pytest.mark.parametrize(
    ("role", "name", "handle", "config"),
    [
        ("llm_preset", "gemma_2b_en", "keras/gemma/keras/gemma_2b_en", HF_GEMMA),
        ("slm_preset", "roberta_base_en", "keras/roberta/keras/roberta_base_en", HF_ROBERTA),
    ],
)
def test_a_keras_preset_is_found_by_its_name(tmp_path, monkeypatch, role, name, handle, config):
    import kagglehub

    path = write_preset(tmp_path, config) / "config.json"
    calls = answer(monkeypatch, kagglehub, "model_download", path)
    found = find_preset(role, name)
    assert found.handle == name
    assert calls[0][0].startswith(handle)
    assert found.fingerprint.startswith(f"kaggle://{handle}")


@pytest.mark.parametrize("status", [401, 403])
def test_a_kaggle_model_behind_a_licence_is_told_with_its_page_and_the_way_to_a_token(
    token, monkeypatch, status
):
    import kagglehub

    answer(monkeypatch, kagglehub, "model_download", kaggle_error(status))
    told = message_of("llm_preset", "kaggle://keras/gemma/keras/gemma_2b_en/2")
    assert f"({status}): " in told and "KAGGLE_API_TOKEN" in told
    assert "accept the licence at https://www.kaggle.com/models/keras/gemma" in told
    assert ("does not know who asks" in told) == (status == 401)


def test_a_missing_consent_is_told_apart_from_a_missing_token(token, monkeypatch):
    import kagglehub

    error = kaggle_error(403)
    error.args = (f"User has not consented to terms of use. {TOKEN}",)
    answer(monkeypatch, kagglehub, "model_download", error)
    told = message_of("llm_preset", "gemma_2b_en")
    assert told.endswith("models/keras/gemma with the account that asks")
    assert "KAGGLE_API_TOKEN" not in told


def test_without_credentials_the_way_to_a_token_is_told_first(monkeypatch):
    import kagglehub
    from kagglehub.exceptions import UnauthenticatedError

    answer(monkeypatch, kagglehub, "model_download", UnauthenticatedError())
    told = message_of("llm_preset", "gemma_2b_en")
    assert told.index("KAGGLE_API_TOKEN") < told.index("accept the licence")


@pytest.mark.parametrize("error", [kaggle_error(404), ValueError(f"bad handle {TOKEN}")])
def test_a_kaggle_model_that_does_not_exist_is_told(monkeypatch, error):
    import kagglehub

    answer(monkeypatch, kagglehub, "model_download", error)
    told = message_of("llm_preset", "kaggle://keras/gema/keras/gemma_2b_en/2")
    assert "Kaggle has no model 'kaggle://keras/gema/keras/gemma_2b_en/2'" in told


@pytest.mark.parametrize("error", [ConnectionError(f"https://user:{TOKEN}@x"), kaggle_error(500)])
def test_without_network_kaggle_is_told_with_the_kind_of_error(token, monkeypatch, error):
    import kagglehub

    answer(monkeypatch, kagglehub, "model_download", error)
    told = message_of("llm_preset", "gemma_2b_en")
    assert "Kaggle cannot be reached for 'gemma_2b_en'" in told
    assert f"({type(error).__name__})" in told


def test_the_token_is_handed_on_by_the_name_that_the_libraries_read(token):
    assert hugging_face_token() == TOKEN
    assert os.environ["HF_TOKEN"] == TOKEN


def test_a_token_that_the_libraries_know_already_is_taken(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_known")
    assert hugging_face_token() == "hf_known"


def test_folders_of_the_same_content_have_the_same_fingerprint(tmp_path):
    first = write_preset(tmp_path / "first", HF_GEMMA)
    second = shutil.copytree(first, tmp_path / "second")
    assert folder_fingerprint(first) == folder_fingerprint(second)


def test_when_a_preset_was_saved_does_not_change_its_fingerprint(tmp_path):
    preset = write_preset(tmp_path / "preset", HF_GEMMA)
    before = folder_fingerprint(preset)
    (preset / "metadata.json").write_text('{"date_saved": "2026-01-01@00:00:00"}')
    assert folder_fingerprint(preset) == before


def change_content(folder):
    (folder / "assets" / "vocabulary.txt").write_text("b")


def change_name(folder):
    (folder / "assets" / "vocabulary.txt").rename(folder / "assets" / "words.txt")


def add_file(folder):
    (folder / "model.weights.h5").write_bytes(b"weights")


@pytest.mark.parametrize("change", [change_content, change_name, add_file])
def test_the_fingerprint_changes_with_a_files_content_or_name(tmp_path, change):
    first = write_preset(tmp_path / "first", HF_GEMMA)
    (first / "assets").mkdir()
    (first / "assets" / "vocabulary.txt").write_text("a")
    second = shutil.copytree(first, tmp_path / "second")
    change(second)
    assert folder_fingerprint(first) != folder_fingerprint(second)


@pytest.mark.parametrize(
    "config", [[], {"class_name": "GemmaBackbone", "config": None}, {"model_type": "gemma"}]
)
def test_a_config_that_describes_no_model_is_one_clear_error(tmp_path, config):
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match="config.json"):
        find_preset("llm_preset", str(tmp_path))


def test_a_changed_file_changes_a_folders_fingerprint_within_one_process(tmp_path):
    weights = tmp_path / "weights"
    weights.write_bytes(b"one")
    before = folder_fingerprint(tmp_path)
    weights.write_bytes(b"three")
    assert folder_fingerprint(tmp_path) != before


def test_a_keras_preset_with_a_point_in_its_name_is_known(tmp_path, monkeypatch):
    import kagglehub

    path = write_preset(tmp_path, HF_GEMMA) / "config.json"
    calls = answer(monkeypatch, kagglehub, "model_download", path)
    find_preset("llm_preset", "gemma_1.1_instruct_2b_en")
    assert "gemma_1.1_instruct_2b_en" in calls[0][0]


def test_a_refusal_inside_a_kaggle_session_is_told_as_a_missing_consent(monkeypatch):
    import kagglehub
    from kagglehub.exceptions import BackendError

    answer(monkeypatch, kagglehub, "model_download", BackendError("refused"))
    told = message_of("llm_preset", "kaggle://keras/gemma/keras/gemma_2b_en/2")
    assert "accept the licence at https://www.kaggle.com/models/keras/gemma" in told

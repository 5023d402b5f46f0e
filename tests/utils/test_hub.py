"""Model hubs: files of Kaggle and Hugging Face models, and errors with advice but no token."""

import os
import threading

import huggingface_hub
import kagglehub
import pytest
import requests
from huggingface_hub import errors
from kagglehub.exceptions import BackendError, KaggleApiHTTPError, UnauthenticatedError

from embedder_helpers.errors import InputError
from embedder_helpers.utils import environment, hub
from embedder_helpers.utils.hub import hugging_face_config, hugging_face_token, kaggle_file

TOKEN = "hf_ThisIsASecret"
HANDLE = "kaggle://keras/gemma/keras/gemma_2b_en/2"
PAGE = "https://www.kaggle.com/models/keras/gemma"


@pytest.fixture(autouse=True)
def no_token(monkeypatch):
    """No token in the environment, and none left there by a test."""
    for name in ("HUGGING_FACE_TOKEN", "HF_TOKEN"):
        monkeypatch.setenv(name, "")


@pytest.fixture
def token(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", TOKEN)


@pytest.fixture
def kaggle(monkeypatch):
    """Sets what Kaggle's download returns or raises; returns the list of its calls."""
    return lambda outcome: replace(monkeypatch, kagglehub, "model_download", outcome)


@pytest.fixture
def hugging_face(monkeypatch):
    """Sets what Hugging Face's download returns or raises; returns the list of its calls."""
    return lambda outcome: replace(monkeypatch, huggingface_hub, "hf_hub_download", outcome)


def replace(monkeypatch, module, function, outcome):
    calls = []

    def download(*arguments, **options):
        calls.append(arguments)
        if isinstance(outcome, Exception):
            raise outcome
        return str(outcome)

    monkeypatch.setattr(module, function, download)
    return calls


def hugging_face_error(kind, status=None):
    error = kind.__new__(kind)  # their arguments differ between versions
    error.args = (f"Authorization: Bearer {TOKEN}",)
    if status:
        error.response = response(status)
    return error


def kaggle_error(status, text=f"https://user:{TOKEN}@kaggle.com"):
    return KaggleApiHTTPError(text, response(status))


def response(status):
    result = requests.Response()
    result.status_code = status
    return result


def message_of(function, *arguments):
    """The message of the InputError that a call raises: one line without a token."""
    with pytest.raises(InputError) as error:
        function("llm_preset", *arguments)
    message = str(error.value)
    assert message.startswith("llm_preset: ")
    assert TOKEN not in message and "\n" not in message
    return message


def kaggle_message():
    return message_of(kaggle_file, "gemma_2b_en", HANDLE)


def hugging_face_message():
    return message_of(hugging_face_config, "hf://google/gemma-2b")


# === Kaggle ===


@pytest.mark.parametrize("handle", [HANDLE, HANDLE.removeprefix("kaggle://")])
def test_a_file_of_a_kaggle_model_is_downloaded_by_its_handle(kaggle, tmp_path, handle):
    calls = kaggle(tmp_path / "tokenizer.json")
    path = kaggle_file("llm_preset", "gemma", handle, "tokenizer.json")
    assert path == tmp_path / "tokenizer.json"
    assert calls == [("keras/gemma/keras/gemma_2b_en/2", "tokenizer.json")]


@pytest.mark.parametrize("status", [401, 403])
def test_a_refusal_by_kaggle_advises_license_and_token(kaggle, status):
    kaggle(kaggle_error(status))
    message = kaggle_message()
    assert f"'gemma_2b_en' ({status})" in message
    assert "KAGGLE_API_TOKEN" in message and f"accept the license at {PAGE}" in message


def test_a_missing_consent_advises_the_license_only(kaggle):
    kaggle(kaggle_error(403, f"User has not consented to terms of use. {TOKEN}"))
    message = kaggle_message()
    assert f"accept the license at {PAGE}" in message and "KAGGLE_API_TOKEN" not in message


def test_missing_credentials_advise_the_token_first(kaggle):
    kaggle(UnauthenticatedError())
    message = kaggle_message()
    assert message.index("KAGGLE_API_TOKEN") < message.index("accept the license")


def test_a_backend_error_of_a_kaggle_session_advises_the_license_or_another_try(kaggle):
    kaggle(BackendError(f"POST failed with: {TOKEN}"))
    message = kaggle_message()
    assert f"accept the license at {PAGE}" in message and "try again" in message
    assert "KAGGLE_API_TOKEN" not in message  # a session has its own


def test_a_mount_that_does_not_end_is_an_error_that_says_what_was_waited_for(monkeypatch):
    end = threading.Event()
    monkeypatch.setattr(kagglehub, "model_download", lambda *_: end.wait())
    monkeypatch.setattr(hub, "MOUNT_MINUTES", 0.001)
    try:
        message = kaggle_message()
    finally:
        end.set()
    assert "has not mounted 'gemma_2b_en' within 0.001 minutes" in message
    assert "attach the model as an input" in message and "give a folder" in message


def test_a_larger_file_is_downloaded_without_a_limit_where_an_interrupt_ends_it(
    monkeypatch, tmp_path
):
    def download(*_):
        assert threading.current_thread() is threading.main_thread()
        return str(tmp_path)

    monkeypatch.setattr(kagglehub, "model_download", download)
    monkeypatch.setattr(hub, "MOUNT_MINUTES", 0)
    assert kaggle_file("llm_preset", "gemma", HANDLE, "model.weights.h5") == tmp_path


@pytest.mark.parametrize("error", [kaggle_error(404), ValueError(f"bad handle {TOKEN}")])
def test_an_unknown_kaggle_model_is_an_error_with_the_models_page(kaggle, error):
    kaggle(error)
    assert f"Kaggle has no model 'gemma_2b_en': see {PAGE}" in kaggle_message()


@pytest.mark.parametrize("error", [kaggle_error(404), ValueError("not in the model's files")])
def test_a_file_that_a_kaggle_model_lacks_is_an_error_that_names_it(kaggle, error):
    kaggle(error)
    message = message_of(kaggle_file, "gemma_2b_en", HANDLE, "model.weights.h5")
    assert f"Kaggle has no file model.weights.h5 of 'gemma_2b_en': see {PAGE}" in message


@pytest.mark.parametrize("error", [ConnectionError(f"https://user:{TOKEN}@x"), kaggle_error(500)])
def test_an_unreachable_kaggle_error_shows_its_class_and_remedies(kaggle, error):
    kaggle(error)
    message = kaggle_message()
    assert f"'gemma_2b_en' ({type(error).__name__})" in message
    assert "network" in message and "give a folder" in message


# === Hugging Face ===


def test_the_config_of_a_hugging_face_model_is_downloaded_by_its_handle(hugging_face, tmp_path):
    calls = hugging_face(tmp_path / "config.json")
    path = hugging_face_config("llm_preset", "hf://google/gemma-2b")
    assert path == tmp_path / "config.json"
    assert calls == [("google/gemma-2b", "config.json")]


@pytest.mark.parametrize(
    ("kind", "fault"),
    [
        (errors.GatedRepoError, "'hf://google/gemma-2b' is gated"),
        (errors.RepositoryNotFoundError, "no model 'hf://google/gemma-2b'"),
        (errors.EntryNotFoundError, "not a model in Keras's or Transformers' format"),
        (errors.HFValidationError, "not a model in Keras's or Transformers' format"),
        (errors.LocalEntryNotFoundError, "cannot be reached"),
        (ConnectionError, "cannot be reached"),
        (RuntimeError, "cannot be reached"),
    ],
)
def test_each_error_of_hugging_face_is_distinguished(hugging_face, token, kind, fault):
    hugging_face(hugging_face_error(kind))
    assert fault in hugging_face_message()


@pytest.mark.parametrize("status", [401, 403])
def test_a_refused_token_is_an_error_with_the_way_to_another(hugging_face, token, status):
    hugging_face(hugging_face_error(RuntimeError, status))
    message = hugging_face_message()
    assert "refuses the token" in message and "https://huggingface.co/settings/tokens" in message


@pytest.mark.parametrize("kind", [errors.GatedRepoError, errors.RepositoryNotFoundError])
def test_without_a_token_the_error_says_how_to_set_one(hugging_face, kind):
    hugging_face(hugging_face_error(kind))
    message = hugging_face_message()
    assert "set HF_TOKEN" in message
    assert "https://huggingface.co/settings/tokens" in message


def test_with_a_token_a_gated_model_advises_the_license_only(hugging_face, token):
    hugging_face(hugging_face_error(errors.GatedRepoError))
    message = hugging_face_message()
    assert "accept the license at https://huggingface.co/google/gemma-2b" in message
    assert "settings/tokens" not in message


@pytest.mark.parametrize("kind", [errors.LocalEntryNotFoundError, ConnectionError])
def test_without_hugging_face_the_error_names_its_class_and_advises_a_folder(hugging_face, kind):
    hugging_face(hugging_face_error(kind))
    message = hugging_face_message()
    assert "give a folder" in message and f"({kind.__name__})" in message


@pytest.mark.parametrize("kind", [errors.GatedRepoError, errors.RepositoryNotFoundError])
def test_a_token_that_is_added_after_the_error_is_found(hugging_face, monkeypatch, kind):
    hugging_face(hugging_face_error(kind))
    monkeypatch.setenv("KAGGLE_KERNEL_RUN_TYPE", "Interactive")
    secrets = {}
    monkeypatch.setattr(environment, "_kaggle_secret", secrets.__getitem__)
    assert "set HF_TOKEN" in hugging_face_message()
    secrets["HF_TOKEN"] = TOKEN
    assert "set HF_TOKEN" not in hugging_face_message()


# === The user's token ===


def test_hf_token_is_taken_before_hugging_face_token(token, monkeypatch):
    monkeypatch.setenv("HUGGING_FACE_TOKEN", "hf_another")
    assert hugging_face_token() == os.environ["HF_TOKEN"] == TOKEN


def test_hugging_face_token_is_exported_by_the_name_that_the_libraries_read(monkeypatch):
    monkeypatch.setenv("HUGGING_FACE_TOKEN", TOKEN)
    assert hugging_face_token() == os.environ["HF_TOKEN"] == TOKEN


@pytest.mark.parametrize("label", ["HF_TOKEN", "HUGGING_FACE_TOKEN"])
def test_a_secret_of_a_kaggle_session_is_exported_for_the_libraries(monkeypatch, label):
    monkeypatch.setenv("KAGGLE_KERNEL_RUN_TYPE", "Batch")
    monkeypatch.setattr(environment, "_kaggle_secret", {label: TOKEN}.__getitem__)
    assert hugging_face_token() == os.environ["HF_TOKEN"] == TOKEN


def test_without_a_token_there_is_none():
    assert hugging_face_token() is None

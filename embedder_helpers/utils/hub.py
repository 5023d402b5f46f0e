"""Model hubs: single files of Kaggle and Hugging Face models, and the user's tokens.

Every failure is an InputError that says what to do and never contains a token. What the files mean
is left to `models.presets`.
"""

import functools
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait
from pathlib import Path

from embedder_helpers.errors import InputError, show
from embedder_helpers.utils import environment

# What to do without valid credentials.
KAGGLE_TOKEN_ADVICE = (
    "set KAGGLE_API_TOKEN in the environment (on Colab: the key in the side bar) to a token "
    "from https://www.kaggle.com/settings/api, Generate New Token"
)
HUGGING_FACE_TOKEN_ADVICE = (
    "set HF_TOKEN in the environment (on Kaggle: Add-ons, Secrets; on Colab: the key in the side "
    "bar) to a token from https://huggingface.co/settings/tokens"
)

CONFIG_FILE = "config.json"
# A session on Kaggle or Colab mounts a model when its first file is asked for, and kagglehub waits
# for the mount without a limit.
MOUNT_MINUTES = 10


def kaggle_file(role: str, name: str, handle: str, file: str = CONFIG_FILE) -> Path:
    """Download one file of a Kaggle model, or find it among a session's inputs.

    Args:
        role: setting that names the model, for messages.
        name: name of the model in that setting, for messages.
        handle: handle of the model, with or without `kaggle://`.
        file: name of the file.

    Raises:
        InputError: no access, no such model, no network, or no answer within `MOUNT_MINUTES`.
    """
    import kagglehub

    handle = handle.removeprefix("kaggle://")
    page = "https://www.kaggle.com/models/" + "/".join(handle.split("/")[:2])
    download = functools.partial(kagglehub.model_download, handle, file)
    try:
        return Path(_mount(download) if file == CONFIG_FILE else download())
    except Exception as error:
        what = f"model {show(name)}" if file == CONFIG_FILE else f"file {file} of {show(name)}"
        raise InputError(f"{role}: {_kaggle_fault(error, name, what, page)}") from None


class _MountTimeout(Exception):
    """A session has not mounted a model in time."""


def _mount(download: Callable[[], str]) -> str:
    """Download a model's first file within `MOUNT_MINUTES`.

    A thread that still waits then does not keep the process from ending.

    Raises:
        _MountTimeout: there is neither a file nor an error by then.
    """
    outcome: Future[str] = Future()

    def run() -> None:
        try:
            outcome.set_result(download())
        except Exception as error:
            outcome.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    if not wait([outcome], timeout=60 * MOUNT_MINUTES).done:
        raise _MountTimeout
    return outcome.result()


def _kaggle_fault(error: Exception, name: str, what: str, page: str) -> str:
    """What failed and what to do."""
    if isinstance(error, _MountTimeout):
        return (
            f"Kaggle has not mounted {show(name)} within {MOUNT_MINUTES} minutes: attach the model "
            "as an input (on Kaggle: Add Input, Models), or give a folder"
        )
    status, kind = _status_code(error), error_kind(error)
    license = f"accept the license at {page}"
    refusal = f"Kaggle refuses access to {show(name)} ({status or kind})"
    if "not consented" in str(error):  # so the account is known
        return f"{refusal}: {license} with the token's account"
    if status == 401 or kind in ("CredentialError", "UnauthenticatedError"):
        return f"{refusal}: the token is missing or invalid: {KAGGLE_TOKEN_ADVICE}; and {license}"
    if status == 403:
        return f"{refusal}: {license}, and outside Kaggle {KAGGLE_TOKEN_ADVICE}"
    if kind == "BackendError":  # of a session's mount; stands for a refusal and for passing faults
        return (
            f"Kaggle does not mount {show(name)} ({kind}): {license} with the session's account, "
            "or if it is accepted, try again in some minutes"
        )
    if kind == "JSONDecodeError" or "No response" in str(error):
        return f"Kaggle gave no answer for {show(name)} ({kind}): try again in some minutes"
    if status == 404 or isinstance(error, ValueError):
        return f"Kaggle has no {what}: see {page}"
    return (
        f"Kaggle cannot be reached for {show(name)} ({kind}): switch the network on (on Kaggle: "
        "Settings, Internet), attach the model, or give a folder"
    )


def hugging_face_config(role: str, name: str, files: Sequence[str] = (CONFIG_FILE,)) -> Path:
    """Download the config.json of a Hugging Face model, or find it in the cache.

    Args:
        role: setting that names the model, for messages.
        name: `hf://` handle of the model.
        files: names of files that describe a model; the first that it has is taken.

    Raises:
        InputError: no access, no such model, no such file, or no network.
    """
    import huggingface_hub

    has_token, fault = bool(hugging_face_token()), None
    for file in files:
        try:
            return Path(huggingface_hub.hf_hub_download(name.removeprefix("hf://"), file))
        except Exception as error:
            fault = error
            if not _is_missing_file(error):
                break
    environment.forget_secrets()  # one may be added now, before another try
    raise InputError(f"{role}: {_hugging_face_fault(fault, name, has_token)}")


def _is_missing_file(error: Exception) -> bool:
    """Whether the model is there, but not the file."""
    from huggingface_hub import errors

    # LocalEntryNotFoundError is an EntryNotFoundError too, but for lack of a network.
    is_missing = isinstance(error, errors.EntryNotFoundError)
    return is_missing and not isinstance(error, errors.LocalEntryNotFoundError)


def _hugging_face_fault(error: Exception, name: str, has_token: bool) -> str:
    """What failed and what to do."""
    from huggingface_hub import errors

    advice = HUGGING_FACE_TOKEN_ADVICE
    if isinstance(error, errors.GatedRepoError):
        page = f"https://huggingface.co/{name.removeprefix('hf://')}"
        license = f"accept the license at {page} with the token's account"
        return f"{show(name)} is gated: {license if has_token else advice}"
    if isinstance(error, errors.RepositoryNotFoundError):
        private = "" if has_token else f", and if it is private {advice}"
        return f"Hugging Face shows no model {show(name)}: check the spelling{private}"
    if isinstance(error, errors.HFValidationError) or _is_missing_file(error):
        return f"{show(name)} is not a model in Keras's or Transformers' format"
    if _status_code(error) in (401, 403):
        return f"Hugging Face refuses the token for {show(name)}: {advice}, and restart a notebook"
    return (
        f"Hugging Face cannot be reached for {show(name)} ({error_kind(error)}): switch the "
        "network on (on Kaggle: Settings, Internet) or give a folder"
    )


def _status_code(error: Exception) -> int | None:
    return getattr(getattr(error, "response", None), "status_code", None)


def error_kind(error: Exception) -> str:
    """The class of an error; its text could contain addresses with tokens in them."""
    return type(error).__name__


def hugging_face_token() -> str | None:
    """The user's HF_TOKEN, or else HUGGING_FACE_TOKEN; exported as the first.

    HF_TOKEN is the one that Hugging Face's own libraries read, so that both use the same account.
    """
    token = environment.get_secret("HF_TOKEN", "HUGGING_FACE_TOKEN")
    if token:
        os.environ["HF_TOKEN"] = token
    return token

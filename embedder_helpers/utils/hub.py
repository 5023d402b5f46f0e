"""Model hubs: single files of Kaggle and Hugging Face models, and the user's tokens.

Every failure is an InputError that says what to do and never contains a token. What the files mean
is left to `models.presets`.
"""

import os
from pathlib import Path

from embedder_helpers.config import InputError
from embedder_helpers.utils import environment

# What to do without valid credentials.
KAGGLE_TOKEN_ADVICE = (
    "set KAGGLE_API_TOKEN in the environment (on Colab: the key in the side bar) to a token "
    "from https://www.kaggle.com/settings/api, Generate New Token"
)
HUGGING_FACE_TOKEN_ADVICE = (
    "set HUGGING_FACE_TOKEN in the environment (on Kaggle: Add-ons, Secrets; on Colab: the key "
    "in the side bar) to a token from https://huggingface.co/settings/tokens"
)


def kaggle_file(role: str, name: str, handle: str, file: str = "config.json") -> Path:
    """Download one file of a Kaggle model, or find it among a session's inputs.

    Args:
        role: setting that names the model, for messages.
        name: name of the model in that setting, for messages.
        handle: handle of the model, with or without `kaggle://`.
        file: name of the file.

    Raises:
        InputError: no access, no such model, or no network.
    """
    import kagglehub

    handle = handle.removeprefix("kaggle://")
    page = "https://www.kaggle.com/models/" + "/".join(handle.split("/")[:2])
    try:
        return Path(kagglehub.model_download(handle, file))
    except Exception as error:
        status = _status_code(error)
        if advice := _kaggle_advice(error, status, page):
            raise InputError(
                f"{role}: Kaggle refuses access to {name!r} ({status or error_kind(error)}): "
                f"{advice}"
            ) from None
        if status == 404 or isinstance(error, ValueError):
            raise InputError(f"{role}: Kaggle has no model {name!r}: see {page}") from None
        raise InputError(
            f"{role}: Kaggle cannot be reached for {name!r} ({error_kind(error)}): switch the "
            "network on (on Kaggle: Settings, Internet), attach the model, or give a folder"
        ) from None


def _kaggle_advice(error: Exception, status: int | None, page: str) -> str:
    """What to do about a refusal; empty for any other error."""
    license = f"accept the license at {page}"
    if "not consented" in str(error):  # so the account is known
        return f"{license} with the token's account"
    if status == 401 or error_kind(error) in ("CredentialError", "UnauthenticatedError"):
        return f"the token is missing or invalid: {KAGGLE_TOKEN_ADVICE}; and {license}"
    if status == 403 or error_kind(error) == "BackendError":
        return f"{license}, and outside Kaggle {KAGGLE_TOKEN_ADVICE}"
    return ""


def hugging_face_config(role: str, name: str) -> Path:
    """Download the config.json of a Hugging Face model, or find it in the cache.

    Args:
        role: setting that names the model, for messages.
        name: `hf://` handle of the model.

    Raises:
        InputError: no access, no such model, no such file, or no network.
    """
    import huggingface_hub
    from huggingface_hub import errors

    repository = name.removeprefix("hf://")
    has_token = bool(hugging_face_token())
    advice = HUGGING_FACE_TOKEN_ADVICE
    try:
        return Path(huggingface_hub.hf_hub_download(repository, "config.json"))
    except errors.GatedRepoError:
        license = f"accept the license at https://huggingface.co/{repository} with the token's "
        step = f"{license}account" if has_token else advice
        raise InputError(f"{role}: {name} is gated: {step}") from None
    except errors.RepositoryNotFoundError:
        step = "check the spelling" + ("" if has_token else f", and if it is private {advice}")
        raise InputError(f"{role}: Hugging Face shows no model {name}: {step}") from None
    except errors.LocalEntryNotFoundError as error:  # an EntryNotFoundError, for lack of network
        raise _no_network(role, name, error) from None
    except (errors.HFValidationError, errors.EntryNotFoundError):
        raise InputError(
            f"{role}: {name} is not a model in Keras's or Transformers' format"
        ) from None
    except Exception as error:
        if _status_code(error) in (401, 403):
            raise InputError(
                f"{role}: Hugging Face refuses the token for {name}: {advice}"
            ) from None
        raise _no_network(role, name, error) from None


def _no_network(role: str, name: str, error: Exception) -> InputError:
    return InputError(
        f"{role}: Hugging Face cannot be reached for {name} ({error_kind(error)}): switch the "
        "network on (on Kaggle: Settings, Internet) or give a folder"
    )


def _status_code(error: Exception) -> int | None:
    return getattr(getattr(error, "response", None), "status_code", None)


def error_kind(error: Exception) -> str:
    """The class of an error; its text could contain addresses with tokens in them."""
    return type(error).__name__


def hugging_face_token() -> str | None:
    """The user's HUGGING_FACE_TOKEN, also exported as HF_TOKEN, which the libraries read."""
    token = environment.get_secret("HUGGING_FACE_TOKEN") or os.environ.get("HF_TOKEN")
    if token:
        os.environ["HF_TOKEN"] = token
    return token or None

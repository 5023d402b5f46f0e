"""Presets: find one by name, handle or folder, read its shape, and say plainly what is wrong.

Nothing here loads weights. A preset is a folder in Keras's or Hugging Face's format, near or far.
"""

import difflib
import functools
import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from embedder_helpers import platform
from embedder_helpers.config import Experiment, InputError, cutoffs
from embedder_helpers.local import exists

BUILTIN_FOLDER = Path(__file__).parent / "builtin"
BUILTIN = ("tiny_gemma", "tiny_roberta")

# What to do where a hub does not know who asks.
KAGGLE_TOKEN = (
    "set KAGGLE_API_TOKEN in the environment (on Colab: the key in the side bar) to a token "
    "from https://www.kaggle.com/settings/api, Generate New Token"
)
HUGGING_FACE_TOKEN = (
    "set HUGGING_FACE_TOKEN in the environment (on Kaggle: Add-ons, Secrets; on Colab: the key "
    "in the side bar) to a token from https://huggingface.co/settings/tokens"
)

# The presets that each kind of embedder uses.
ROLES = {
    "hybrid": ("llm_preset", "slm_preset"),
    "gemma_only": ("llm_preset",),
    "roberta_only": ("slm_preset",),
}

# The architectures that can take each place, as Keras and as Hugging Face spell them.
FAMILIES = {
    "llm_preset": (
        "Gemma 1, 2 or 3 text model",
        {"GemmaBackbone", "Gemma3Backbone", "gemma", "gemma2", "gemma3_text"},
    ),
    "slm_preset": (
        "RoBERTa model",
        {"RobertaBackbone", "XLMRobertaBackbone", "roberta", "xlm-roberta"},
    ),
}


@dataclass(frozen=True)
class Preset:
    """A preset that was found.

    Attributes:
        name: as the Experiment spells it.
        handle: what `from_preset` takes.
        fingerprint: determined by the content of a folder, or by the version of a handle.
        blocks: transformer blocks.
        width: size of a token state.
        positions: tokens it can take at most, None where nothing bounds them.
    """

    name: str
    handle: str
    fingerprint: str
    blocks: int
    width: int
    positions: int | None


def find_presets(experiment: Experiment) -> dict[str, Preset]:
    """The presets that an Experiment's kind uses, by their key; checks cutoff and length.

    Raises:
        InputError: a preset cannot be had, or has no such block or fewer positions.
    """
    roles = ROLES[experiment.kind]
    presets = {role: find_preset(role, getattr(experiment, role)) for role in roles}
    if "llm_preset" in presets:
        cutoffs(experiment.llm_layers, presets["llm_preset"].blocks)
    if "slm_preset" in presets:
        _check_positions(experiment, presets["slm_preset"].positions)
    return presets


def _check_positions(experiment: Experiment, positions: int) -> None:
    """Raises InputError if texts may be longer than RoBERTa can take."""
    both = experiment.kind == "hybrid" and experiment.fusion == "prepend"
    most = positions // 2 if both else positions
    if experiment.max_tokens > most:
        words = ", half of them for Gemma's states in front of the text's tokens" if both else ""
        raise InputError(
            f"max_tokens is {experiment.max_tokens}, but {experiment.slm_preset} has "
            f"{positions} positions{words}: use at most {most}"
        )


def find_preset(role: str, name: str) -> Preset:
    """The preset that a key of the Experiment names.

    Args:
        role: `llm_preset` or `slm_preset`.
        name: a built-in or Keras preset's name, a `kaggle://` or `hf://` handle, or a folder.

    Raises:
        InputError: it does not exist, cannot be reached or read, or is of another family.
    """
    config, handle, fingerprint = _read_config(role, name)
    words, architectures = FAMILIES[role]
    found = config.get("class_name") or config.get("model_type")
    shape = config.get("config", config)
    if found not in architectures or shape.get("vision_encoder"):
        raise InputError(f"{role} {name!r} is a {found}, but a {words} is needed")
    try:
        return Preset(
            name=name,
            handle=handle,
            fingerprint=fingerprint,
            blocks=shape.get("num_layers") or shape["num_hidden_layers"],
            width=shape.get("hidden_dim") or shape["hidden_size"],
            positions=_positions(shape) if role == "slm_preset" else None,
        )
    except KeyError as missing:
        raise InputError(f"{role} {name!r}: its config.json has no {missing}") from None


def _positions(shape: dict[str, Any]) -> int:
    # Hugging Face counts two rows of the table that no token uses.
    return shape.get("max_sequence_length") or shape["max_position_embeddings"] - 2


def preset_config(role: str, name: str) -> dict[str, Any]:
    """What a preset's config.json holds.

    Raises:
        InputError: it does not exist, or cannot be reached or read.
    """
    return _read_config(role, name)[0]


def _read_config(role: str, name: str) -> tuple[dict[str, Any], str, str]:
    """Config, handle and fingerprint of a preset."""
    folder = BUILTIN_FOLDER / name if name in BUILTIN else Path(name)
    if exists(folder) and folder.is_dir():
        return _json(role, folder / "config.json"), str(folder), folder_fingerprint(folder)
    if name.startswith("hf://"):
        path = _from_hugging_face(role, name)
        return _json(role, path), name, f"{name}@{path.parent.name}"
    handle = name if name.startswith("kaggle://") else kaggle_handle(role, name)
    path = _from_kaggle(role, name, handle)
    return _json(role, path), name, f"{handle}@{path.parent.name}"  # the folder is the version


def load_preset(kind: Any, role: str, preset: Preset, **options: Any) -> Any:
    """`kind.from_preset`, for a backbone or a tokenizer.

    Raises:
        InputError: files are missing or damaged, or this keras-hub cannot read them.
    """
    try:
        return kind.from_preset(preset.handle, **options)
    except Exception as error:  # keras-hub, its hubs and h5py have errors of their own
        local = Path(preset.handle).is_dir()
        reason = " ".join(str(error).split())[:200] if local else _kind(error)
        version = platform.versions()["keras-hub"]
        raise InputError(
            f"{role} {preset.name!r} cannot be loaded by keras-hub {version} ({reason}): give a "
            "whole preset (config.json, model.weights.h5, tokenizer.json, assets/), or another one"
        ) from None


def preset_file(role: str, preset: Preset, name: str) -> Path:
    """One file of a preset in Keras's format: in its folder, or fetched from Kaggle.

    Raises:
        InputError: it has no such file, or is a Hugging Face model.
    """
    if preset.handle.startswith("hf://"):
        raise InputError(
            f"{role} {preset.name!r}: a Keras preset is needed here, which a Hugging Face model "
            "becomes with keras-hub's save_to_preset; or set stream_blocks: false"
        )
    if Path(preset.handle).is_dir():
        path = Path(preset.handle) / name
    else:
        handle = preset.handle.removeprefix("kaggle://")
        handle = handle if "/" in handle else kaggle_handle(role, handle)
        path = _from_kaggle(role, preset.name, handle, name)
    if not path.is_file():
        raise InputError(
            f"{role} {preset.name!r} has no file {name}: its weights are spread over several "
            "files, or missing; set stream_blocks: false, or give another preset"
        )
    return path


def _json(role: str, path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(config, dict) and isinstance(config.get("config", {}), dict):
            return config
    except (OSError, ValueError):
        pass
    raise InputError(f"{role}: {path.parent} is not a preset: it has no readable config.json")


def folder_fingerprint(folder: Path) -> str:
    """SHA-256 over the names and contents of a folder's files (a second per gigabyte).

    Not over Keras's `metadata.json`: it says when and by what version the preset was saved.
    """
    digest = hashlib.sha256()
    files = (path for path in folder.rglob("*") if path.is_file())
    for path in sorted(path for path in files if path.name != "metadata.json"):
        digest.update(path.relative_to(folder).as_posix().encode())
        digest.update(file_digest(path))
    return digest.hexdigest()


def file_digest(path: Path) -> bytes:
    """SHA-256 of a file's content, read once as long as the file stays as it is."""
    return _file_digest(path, path.stat().st_size, path.stat().st_mtime_ns)


@functools.cache
def _file_digest(path: Path, size: int, changed: int) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def kaggle_handle(role: str, name: str) -> str:
    """The Kaggle handle of one of Keras's own presets; needs no network.

    Raises:
        InputError: there is none of that name.
    """
    import keras_hub

    classes = {
        "llm_preset": (keras_hub.models.GemmaBackbone, keras_hub.models.Gemma3Backbone),
        "slm_preset": (keras_hub.models.RobertaBackbone,),
    }[role]
    known = {preset: data for one in classes for preset, data in one.presets.items()}
    if name not in known and any(mark in name for mark in "/\\"):
        raise InputError(
            f"{role}: there is no folder {name!r} (a Hugging Face model is written hf://{name})"
        )
    if name not in known:
        near = difflib.get_close_matches(name, [*known, *BUILTIN], n=1)
        guess = f"; did you mean {near[0]!r}?" if near else "."
        raise InputError(
            f"{role}: there is no preset {name!r}{guess} "
            "Give a preset's name, an hf:// or kaggle:// handle, or a folder"
        )
    return known[name]["kaggle_handle"]


def _from_kaggle(role: str, name: str, handle: str, file: str = "config.json") -> Path:
    """A file of a Kaggle model, fetched or attached."""
    import kagglehub

    page = "https://www.kaggle.com/models/" + "/".join(
        handle.removeprefix("kaggle://").split("/")[:2]
    )
    try:
        return Path(kagglehub.model_download(handle.removeprefix("kaggle://"), file))
    except Exception as error:
        status = getattr(getattr(error, "response", None), "status_code", None)
        if advice := _kaggle_advice(error, status, page):
            raise InputError(
                f"{role}: Kaggle does not let you have {name!r} ({status or _kind(error)}): "
                f"{advice}"
            ) from None
        if status == 404 or isinstance(error, ValueError):
            raise InputError(f"{role}: Kaggle has no model {name!r}: see {page}") from None
        raise InputError(
            f"{role}: Kaggle cannot be reached for {name!r}: switch the network on "
            f"(on Kaggle: Settings, Internet), attach the model, or give a folder ({_kind(error)})"
        ) from None


def _kaggle_advice(error: Exception, status: int | None, page: str) -> str:
    """What to do about a refusal; empty if it is none."""
    licence = f"accept the licence at {page}"
    if "not consented" in str(error):  # so Kaggle knows who asks
        return f"{licence} with the account that asks"
    if status == 401 or _kind(error) in ("CredentialError", "UnauthenticatedError"):
        return f"it does not know who asks: {KAGGLE_TOKEN}; and {licence}"
    if status == 403 or _kind(error) == "BackendError":
        return f"{licence}, and outside Kaggle {KAGGLE_TOKEN}"
    return ""


def _from_hugging_face(role: str, name: str) -> Path:
    """The config.json of a Hugging Face model, fetched or cached."""
    import huggingface_hub
    from huggingface_hub import errors

    token = hugging_face_token()
    page = "https://huggingface.co/" + name.removeprefix("hf://")
    advice = HUGGING_FACE_TOKEN
    try:
        return Path(huggingface_hub.hf_hub_download(name.removeprefix("hf://"), "config.json"))
    except errors.GatedRepoError:
        step = f"accept the licence at {page} with the token's account" if token else advice
        raise InputError(f"{role}: {name} is gated: {step}") from None
    except errors.RepositoryNotFoundError:
        step = (
            "check the spelling" if token else f"check the spelling, and if it is private {advice}"
        )
        raise InputError(f"{role}: Hugging Face shows no model {name}: {step}") from None
    except (errors.HFValidationError, errors.EntryNotFoundError) as error:
        if not isinstance(error, errors.LocalEntryNotFoundError):
            raise InputError(
                f"{role}: {name} is not a model in Keras's or Transformers' format"
            ) from None
        raise _no_network(role, name, error) from None
    except Exception as error:
        if getattr(getattr(error, "response", None), "status_code", None) in (401, 403):
            raise InputError(
                f"{role}: Hugging Face refuses the token for {name}: {advice}"
            ) from None
        raise _no_network(role, name, error) from None


def _no_network(role: str, name: str, error: Exception) -> InputError:
    return InputError(
        f"{role}: Hugging Face cannot be reached for {name}: switch the network on "
        f"(on Kaggle: Settings, Internet) or give a folder ({_kind(error)})"
    )


def _kind(error: Exception) -> str:
    # The error's kind alone: the text of a network error can hold addresses with tokens in them.
    return type(error).__name__


def hugging_face_token() -> str | None:
    """The user's HUGGING_FACE_TOKEN, handed on as HF_TOKEN, which the libraries read."""
    token = platform.secret("HUGGING_FACE_TOKEN") or os.environ.get("HF_TOKEN")
    if token:
        os.environ["HF_TOKEN"] = token
    return token

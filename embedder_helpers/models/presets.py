"""Presets: pretrained models by name, handle or folder, and their shapes.

A preset is a folder in Keras's or Hugging Face's format, local or on a hub. Finding one loads no
weights.
"""

import difflib
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from embedder_helpers.builtin import BUILTIN_FOLDER, BUILTIN_PRESETS
from embedder_helpers.config import Experiment, resolve_cutoffs
from embedder_helpers.errors import InputError
from embedder_helpers.utils import environment
from embedder_helpers.utils.files import file_digest, path_exists
from embedder_helpers.utils.hub import error_kind, hugging_face_config, kaggle_file

# The presets that each kind of embedder reads.
ROLES = {
    "hybrid": ("llm_preset", "slm_preset"),
    "gemma_only": ("llm_preset",),
    "roberta_only": ("slm_preset",),
}

# The architectures that each role accepts, as Keras and as Hugging Face spell them.
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
    """A preset that exists.

    Attributes:
        name: name in the Experiment.
        handle: argument of keras-hub's `from_preset`.
        fingerprint: hash of a folder's content, or the version of a handle.
        num_layers: number of transformer layers.
        width: size of a hidden state.
        positions: maximum number of tokens; None if unlimited.
    """

    name: str
    handle: str
    fingerprint: str
    num_layers: int
    width: int
    positions: int | None


def find_presets(experiment: Experiment) -> dict[str, Preset]:
    """Find the presets that an Experiment's kind reads, by role; checks cutoffs and length.

    Raises:
        InputError: a preset cannot be used, or has fewer layers or positions than are needed.
    """
    roles = ROLES[experiment.kind]
    presets = {role: find_preset(role, getattr(experiment, role)) for role in roles}
    if "llm_preset" in presets:
        resolve_cutoffs(experiment.llm_layers, presets["llm_preset"].num_layers)
    if "slm_preset" in presets:
        _check_positions(experiment, presets["slm_preset"].positions)
    return presets


def _check_positions(experiment: Experiment, positions: int) -> None:
    """Raises InputError if texts may be longer than RoBERTa accepts."""
    prepends = experiment.kind == "hybrid" and experiment.fusion == "prepend"
    limit = positions // 2 if prepends else positions
    if experiment.max_tokens > limit:
        half = (
            ", half of them for Gemma's hidden states before the text's tokens" if prepends else ""
        )
        raise InputError(
            f"max_tokens is {experiment.max_tokens}, but {experiment.slm_preset} has "
            f"{positions} positions{half}: use at most {limit}"
        )


def find_preset(role: str, name: str) -> Preset:
    """Find a preset and read its shape.

    Args:
        role: `llm_preset` or `slm_preset`.
        name: name of a built-in or Keras preset, a `kaggle://` or `hf://` handle, or a folder.

    Raises:
        InputError: it does not exist, cannot be reached or read, or is of another family.
    """
    config, handle, fingerprint = _read_config(role, name)
    family, architectures = FAMILIES[role]
    architecture = config.get("class_name") or config.get("model_type")
    shape = config.get("config", config)
    if architecture not in architectures or shape.get("vision_encoder"):
        raise InputError(f"{role} {name!r} is a {architecture}, but a {family} is needed")
    try:
        return Preset(
            name=name,
            handle=handle,
            fingerprint=fingerprint,
            num_layers=shape.get("num_layers") or shape["num_hidden_layers"],
            width=shape.get("hidden_dim") or shape["hidden_size"],
            positions=_positions(shape) if role == "slm_preset" else None,
        )
    except KeyError as key:
        raise InputError(f"{role} {name!r}: its config.json has no {key}") from None


def _positions(shape: dict[str, Any]) -> int:
    # Hugging Face counts two rows of the embedding table that no token uses.
    return shape.get("max_sequence_length") or shape["max_position_embeddings"] - 2


def preset_config(role: str, name: str) -> dict[str, Any]:
    """Read a preset's config.json.

    Raises:
        InputError: it does not exist, or cannot be reached or read.
    """
    return _read_config(role, name)[0]


def _read_config(role: str, name: str) -> tuple[dict[str, Any], str, str]:
    """Read a preset's config.json; also returns its handle and fingerprint."""
    folder = BUILTIN_FOLDER / name if name in BUILTIN_PRESETS else Path(name)
    if path_exists(folder) and folder.is_dir():
        return _read_json(role, folder / "config.json"), str(folder), folder_fingerprint(folder)
    if name.startswith("hf://"):
        path = hugging_face_config(role, name)
        return _read_json(role, path), name, f"{name}@{path.parent.name}"
    handle = name if name.startswith("kaggle://") else kaggle_handle(role, name)
    path = kaggle_file(role, name, handle)
    return _read_json(role, path), name, f"{handle}@{path.parent.name}"  # the folder is the version


def from_preset(model_class: Any, role: str, preset: Preset, **options: Any) -> Any:
    """Call `from_preset` of keras-hub's `Backbone` or `Tokenizer`.

    Raises:
        InputError: files are missing or damaged, or this keras-hub cannot read them.
    """
    try:
        return model_class.from_preset(preset.handle, **options)
    except Exception as error:  # keras-hub, its hubs and h5py have errors of their own
        local = Path(preset.handle).is_dir()
        reason = " ".join(str(error).split())[:200] if local else error_kind(error)
        version = environment.package_versions()["keras-hub"]
        raise InputError(
            f"{role} {preset.name!r} cannot be loaded by keras-hub {version} ({reason}): use a "
            "complete preset (config.json, model.weights.h5, tokenizer.json, assets/), or another "
            "one"
        ) from None


def preset_file(role: str, preset: Preset, name: str) -> Path:
    """The path of a file of a preset in Keras's format, downloaded if it is on Kaggle.

    Raises:
        InputError: there is no such file, or the preset is a Hugging Face model.
    """
    if preset.handle.startswith("hf://"):
        raise InputError(
            f"{role} {preset.name!r} is a Hugging Face model, but stream_blocks needs a Keras "
            "preset: convert it with keras-hub's save_to_preset, or set stream_blocks: false"
        )
    if Path(preset.handle).is_dir():
        path = Path(preset.handle) / name
    else:
        handle = preset.handle.removeprefix("kaggle://")
        handle = handle if "/" in handle else kaggle_handle(role, handle)
        path = kaggle_file(role, preset.name, handle, name)
    if not path.is_file():
        raise InputError(
            f"{role} {preset.name!r} has no file {name}: use a complete preset (config.json, "
            "model.weights.h5, tokenizer.json, assets/), or another one"
        )
    return path


def _read_json(role: str, path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(config, dict) and isinstance(config.get("config", {}), dict):
            return config
    except (OSError, ValueError):
        pass
    raise InputError(f"{role}: {path.parent} is not a preset: it has no readable config.json")


def folder_fingerprint(folder: Path) -> str:
    """SHA-256 of the names and contents of a folder's files; takes a second per gigabyte.

    Keras's `metadata.json` is left out: it holds the time of saving and Keras's version.
    """
    digest = hashlib.sha256()
    files = (path for path in folder.rglob("*") if path.is_file())
    for path in sorted(path for path in files if path.name != "metadata.json"):
        digest.update(path.relative_to(folder).as_posix().encode())
        digest.update(file_digest(path))
    return digest.hexdigest()


def kaggle_handle(role: str, name: str) -> str:
    """The Kaggle handle of one of Keras's own presets; needs no network.

    Raises:
        InputError: there is no preset of that name.
    """
    import keras_hub

    classes = {
        "llm_preset": (keras_hub.models.GemmaBackbone, keras_hub.models.Gemma3Backbone),
        "slm_preset": (keras_hub.models.RobertaBackbone,),
    }[role]
    known = {preset: data for backbone in classes for preset, data in backbone.presets.items()}
    if name in known:
        return known[name]["kaggle_handle"]
    if any(separator in name for separator in "/\\"):
        raise InputError(
            f"{role}: there is no folder {name!r} (a Hugging Face model is written hf://{name})"
        )
    similar = difflib.get_close_matches(name, [*known, *BUILTIN_PRESETS], n=1)
    suggestion = f"; did you mean {similar[0]!r}?" if similar else "."
    raise InputError(
        f"{role}: there is no preset {name!r}{suggestion} "
        "Use a preset's name, an hf:// or kaggle:// handle, or a folder"
    )

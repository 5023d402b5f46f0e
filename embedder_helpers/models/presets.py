"""Presets: pretrained models by name, handle or folder, and their shapes.

A preset is a folder in Keras's or Hugging Face's format, local or on a hub. Finding one loads no
weights.
"""

import difflib
import functools
import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from embedder_helpers.builtin import BUILTIN_FOLDER, BUILTIN_PRESETS
from embedder_helpers.config import Experiment, resolve_cutoffs
from embedder_helpers.errors import InputError, show
from embedder_helpers.models.fingerprints import files_fingerprint, folder_fingerprint
from embedder_helpers.models.preset_config import (
    check_weights,
    model_shape,
    read_config,
    read_size,
)
from embedder_helpers.utils import environment
from embedder_helpers.utils.files import as_path, path_exists
from embedder_helpers.utils.hub import error_kind, hugging_face_config, kaggle_file

logger = logging.getLogger(__name__)

# The presets that each kind of embedder reads.
ROLES = {
    "hybrid": ("llm_preset", "slm_preset"),
    "gemma_only": ("llm_preset",),
    "roberta_only": ("slm_preset",),
}


@dataclass(frozen=True)
class Preset:
    """A preset that exists.

    Attributes:
        name: name in the Experiment.
        handle: argument of keras-hub's `from_preset`.
        fingerprint: hash of what a folder holds, or the version of a handle.
        num_layers: number of transformer layers.
        width: size of a hidden state.
        positions: maximum number of tokens; None if unlimited.
        random_weights: whether its weights are replaced by random ones of their mean and standard
            deviation.
    """

    name: str
    handle: str
    fingerprint: str
    num_layers: int
    width: int
    positions: int | None
    random_weights: bool = False


def find_presets(experiment: Experiment) -> dict[str, Preset]:
    """Find the presets that an Experiment's kind reads, by role; checks cutoffs and length.

    Raises:
        InputError: a preset cannot be used, or has fewer layers or positions than are needed.
    """
    roles = ROLES[experiment.kind]
    presets = {role: find_preset(role, getattr(experiment, role)) for role in roles}
    if "llm_preset" in presets:
        resolve_cutoffs(experiment.llm_layers, presets["llm_preset"].num_layers)
        if experiment.llm_control == "random_weights":
            presets["llm_preset"] = replace(presets["llm_preset"], random_weights=True)
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


def find_preset(role: str, name: str, fingerprint: str | None = None) -> Preset:
    """Find a preset and read its shape.

    Args:
        role: `llm_preset` or `slm_preset`.
        name: name of a built-in or Keras preset, a `kaggle://` or `hf://` handle, or a folder.
        fingerprint: of a folder, if it is known, so that its weights need not be read.

    Raises:
        InputError: it does not exist, cannot be reached or read, or is of another family.
    """
    config, handle, fingerprint = _read_config(role, name, fingerprint)
    shape, is_keras = model_shape(config), "class_name" in config
    layers, width, positions = (
        ("num_layers", "hidden_dim", "max_sequence_length")
        if is_keras
        else ("num_hidden_layers", "hidden_size", "max_position_embeddings")
    )
    positions = read_size(role, name, shape, positions) if role == "slm_preset" else None
    if positions is not None and not is_keras:
        positions -= 2  # two rows of the embedding table that no token uses
    return Preset(
        name=name,
        handle=handle,
        fingerprint=fingerprint,
        num_layers=read_size(role, name, shape, layers),
        width=read_size(role, name, shape, width),
        positions=positions,
    )


def has_fingerprint(preset: Preset, fingerprint: str) -> bool:
    """Whether a preset has this fingerprint, or had it in versions before 0.5.0."""
    if preset.fingerprint == fingerprint:
        return True
    folder = Path(preset.handle)
    return folder.is_dir() and files_fingerprint(folder) == fingerprint


def preset_config(role: str, name: str) -> dict[str, Any]:
    """Read a preset's config.json.

    Raises:
        InputError: it does not exist, cannot be reached or read, or says what no model of the
            role's family has.
    """
    return _read_config(role, name)[0]


def _read_config(
    role: str, name: str, fingerprint: str | None = None
) -> tuple[dict[str, Any], str, str]:
    """Read a preset's config.json; also returns its handle and fingerprint."""
    if name.startswith("hf://"):
        path = hugging_face_config(role, name)
        return read_config(role, name, path), name, f"{name}@{path.parent.name}"
    if not name.startswith("kaggle://") and (folder := _local_folder(role, name)):
        config = read_config(role, name, folder / "config.json")
        if "class_name" in config:
            check_weights(role, name, folder, model_shape(config))
        return config, str(folder), fingerprint or folder_fingerprint(folder)
    handle = name if name.startswith("kaggle://") else kaggle_handle(role, name)
    path = kaggle_file(role, name, handle)
    # The folder is the version.
    return read_config(role, name, path), name, f"{handle}@{path.parent.name}"


def _local_folder(role: str, name: str) -> Path | None:
    """The folder of a built-in preset or of this name; None if there is none."""
    if name in BUILTIN_PRESETS:
        if path_exists(Path(name)):
            _warn_of_passed_over(role, name, Path.cwd())
        return BUILTIN_FOLDER / name
    folder = as_path(name)
    return folder if folder.is_dir() else None


@functools.cache  # once in a process
def _warn_of_passed_over(role: str, name: str, folder: Path) -> None:
    logger.warning(
        "%s: %s is the built-in model; the folder of that name in %s is passed over: give it as "
        "./%s to read it",
        role,
        name,
        folder,
        name,
    )


def from_preset(model_class: Any, role: str, preset: Preset, **options: Any) -> Any:
    """Call `from_preset` of keras-hub's `Backbone` or `Tokenizer`.

    Raises:
        InputError: files are missing or damaged, or this keras-hub cannot read them.
    """
    try:
        loaded = model_class.from_preset(preset.handle, **options)
        if not isinstance(loaded, model_class):  # keras-hub passes on what a file describes
            raise TypeError(f"it is a {type(loaded).__name__}")
        if hasattr(loaded, "tokenize"):
            loaded(["a"])  # invalid settings of a tokenizer show in use only
        return loaded
    except Exception as error:  # keras-hub, its hubs and h5py have errors of their own
        local = Path(preset.handle).is_dir()
        reason = " ".join(str(error).split())[:200] if local else error_kind(error)
        version = environment.package_versions()["keras-hub"]
        raise InputError(
            f"{role} {show(preset.name)} cannot be loaded by keras-hub {version} ({reason}): use a "
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
            f"{role} {show(preset.name)} is a Hugging Face model, but stream_blocks needs a Keras "
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
            f"{role} {show(preset.name)} has no file {name}: use a complete preset (config.json, "
            "model.weights.h5, tokenizer.json, assets/), or another one"
        )
    return path


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
            f"{role}: there is no folder {show(name)} (a Hugging Face model is written hf://…)"
        )
    similar = difflib.get_close_matches(name, [*known, *BUILTIN_PRESETS], n=1)
    suggestion = f"; did you mean {similar[0]!r}?" if similar else "."
    raise InputError(
        f"{role}: there is no preset {show(name)}{suggestion} "
        "Use a preset's name, an hf:// or kaggle:// handle, or a folder"
    )

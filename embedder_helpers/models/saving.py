"""Saved embedders: the format of their folder, written atomically and checked when read.

    embedder.json       the manifest: settings, presets with fingerprints, classes, checksums, and
                        the result of its run, if there is one
    roberta/            a Keras preset of the fine-tuned RoBERTa, tokenizer included
    joint.safetensors   the layers around it: standardization, layer weights, projection, head
    gemma/              on request, a Keras preset of the truncated Gemma; else it is loaded by name
    cheap/              the embedder attached for a cascade, if there is one: such a folder itself

No pickle. This module knows folders, arrays and the manifest; what an embedder is made of is left
to `embedder` and `architectures`.
"""

import dataclasses
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from embedder_helpers.errors import InputError, show, show_list
from embedder_helpers.models.manifest import (
    ARRAYS_FILE,
    CHEAP_FOLDER,
    PRESET_FOLDERS,
    Manifest,
    check_manifest,
    parse_manifest,
)
from embedder_helpers.models.presets import Preset, find_preset, has_fingerprint
from embedder_helpers.utils import environment
from embedder_helpers.utils.files import as_path, file_digest, path_exists, writable_folder
from embedder_helpers.utils.json_files import read_json
from embedder_helpers.utils.replacing import replace_folder

MANIFEST_FILE = "embedder.json"
OWN_NAMES = {MANIFEST_FILE, ARRAYS_FILE, CHEAP_FOLDER, *PRESET_FOLDERS.values()}
OWN_FOLDER = re.compile("embedder-.+-[0-9a-f]{8}")  # beside a result
MAX_BYTES = 2**24  # of the manifest


def save_folder(folder: str | Path, write: Callable[[Path], Any], num_bytes: int = 0) -> Path:
    """Write a folder as a whole, in place of a saved embedder of that name.

    Killed at any instant, it leaves the old embedder or the new one. Of processes that save the
    same folder at once, the last one wins.

    Args:
        folder: target folder.
        write: function that writes the content into an empty folder.
        num_bytes: free disk space that it takes at least.

    Returns:
        The folder's absolute path.

    Raises:
        InputError: the folder cannot be written, or holds something else; the disk is too full.
    """
    folder = as_path(folder).resolve()
    writable_folder(folder.parent, "embedder.save(folder)")
    check_replaceable(folder)
    free = shutil.disk_usage(folder.parent).free
    if free < num_bytes:  # h5py would print a page of tracebacks besides its error
        raise InputError(
            f"the embedder cannot be saved in {folder}: its weights take {num_bytes / 1e6:.0f} MB, "
            f"but no space is left on the disk ({free / 1e6:.0f} MB)"
        )
    try:
        replace_folder(folder, write)
    except OSError as error:  # h5py's message is a page long
        reason = os.strerror(error.errno) if error.errno else type(error).__name__
        raise InputError(f"the embedder cannot be saved in {folder} ({reason})") from None
    return folder


def check_replaceable(folder: Path) -> None:
    """Check that a folder is a saved embedder, perhaps a damaged one, or empty or missing.

    Raises:
        InputError: it holds something else, which saving would delete.
    """
    if not path_exists(folder):
        return
    try:
        others = _other_files(folder)
    except OSError as error:
        raise InputError(
            f"{folder} cannot be read ({error.strerror}): give a new folder to save in"
        ) from None
    if others:
        raise InputError(
            f"{folder} holds something else than an embedder ({show_list(others, 3)}): move that "
            "elsewhere, or give a new folder to save in"
        )


def _other_files(folder: Path) -> list[str]:
    """What is not a saved embedder's: names in the folder, or else of files deeper in it."""
    if not folder.is_dir():
        return [folder.name]
    names = sorted(path.name for path in folder.iterdir())
    if not ((folder / MANIFEST_FILE).is_file() or OWN_FOLDER.fullmatch(folder.name)):
        return names
    others = [name for name in names if name not in OWN_NAMES and not _is_hidden(folder / name)]
    try:
        own = {MANIFEST_FILE, *read_json(folder / MANIFEST_FILE, MAX_BYTES)["files"]}
    except (OSError, ValueError, KeyError, TypeError):  # a damaged embedder
        return others
    inside = (name for name, path in _files(folder) if not _is_hidden(path))
    return others or [name for name in inside if name not in own]


def _is_hidden(path: Path) -> bool:
    """Whether a path is a hidden file, as the system leaves; a hidden folder may be precious."""
    return path.name.startswith(".") and path.is_file()


def write_arrays(folder: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write the weights that are not RoBERTa's or Gemma's, by name."""
    contiguous = {name: np.array(value, order="C") for name, value in arrays.items()}  # not views
    (folder / ARRAYS_FILE).write_bytes(safetensors.numpy.save(contiguous))


def read_arrays(folder: Path, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """Read what `write_arrays` wrote.

    Args:
        folder: folder of the embedder.
        shapes: shape of each array, by name.

    Raises:
        InputError: the file cannot be read, has other arrays, or numbers that are not finite.
    """
    path = folder / ARRAYS_FILE
    try:
        arrays = safetensors.numpy.load_file(path)
    except (OSError, ValueError, KeyError, TypeError, safetensors.SafetensorError):
        raise _damaged(path, "it is not in the format of safetensors") from None
    found = {name: array.shape for name, array in arrays.items()}
    if found != shapes:
        names = sorted(name for name in {*found, *shapes} if found.get(name) != shapes.get(name))
        raise _damaged(path, f"its arrays do not fit the embedder: {show_list(names, 3)}")
    for name, array in arrays.items():
        if array.dtype.kind != "f" or not np.isfinite(array).all():
            raise _damaged(path, f"{name} has values that are not finite numbers")
    return arrays


def write_manifest(
    folder: Path,
    experiment: Mapping[str, Any],
    presets: Mapping[str, Preset],
    *,
    classes: list[Any] | None,
    width: int,
    result: dict[str, Any] | None,
    cheap_temperature: float | None = None,
) -> None:
    """Write `embedder.json`, with a checksum of every other file in the folder and of itself.

    Call it last.

    Raises:
        InputError: a class or result that does not belong to the embedder.
    """
    files = {name: _checksum(path) for name, path in _files(folder)}
    manifest = Manifest(
        experiment=dict(experiment),
        presets={
            role: {"name": preset.name, "fingerprint": preset.fingerprint, "width": preset.width}
            for role, preset in presets.items()
        },
        classes=classes,
        width=width,
        versions=environment.package_versions(),
        result=result,
        files=files,
        revision=hashlib.sha256(json.dumps(files).encode()).hexdigest()[:8],
        cheap_temperature=cheap_temperature,
    )
    try:
        check_manifest(manifest)
    except ValueError as error:
        raise InputError(f"the embedder cannot be saved ({error})") from None
    path = folder / MANIFEST_FILE
    path.write_text(manifest.as_json(), encoding="utf-8", newline="\n")


def read_manifest(folder: Path) -> Manifest:
    """Read `embedder.json`, and check that every file it names exists and is undamaged.

    Takes a second per gigabyte for files that have changed since they were read in this process.

    Raises:
        InputError: not a saved embedder, a damaged one, or one saved by a later version.
    """
    path = folder / MANIFEST_FILE
    if not path_exists(path):
        raise InputError(
            f"{folder} holds no saved embedder: give a folder written by `save_embedder: true`, "
            f"which has a file {MANIFEST_FILE}"
        )
    try:
        manifest = parse_manifest(folder, read_json(path, MAX_BYTES))
    except InputError:
        raise
    except OSError as error:
        raise _damaged(path, error.strerror or str(error)) from None
    except ValueError as error:
        raise _damaged(path, str(error)) from None
    for name, checksum in manifest.files.items():
        if not _is_undamaged(folder, name, checksum):
            raise InputError(
                f"{folder}: {show(name)} is missing or damaged: copy the whole folder again, or "
                "save the embedder again"
            )
    return manifest


def _is_undamaged(folder: Path, name: str, checksum: str) -> bool:
    """Whether a file of an embedder is the one that was saved."""
    path = folder / name
    try:
        return _is_inside(name) and path.is_file() and _checksum(path) == checksum
    except (OSError, ValueError):
        return False


def _is_inside(name: str) -> bool:
    """Whether a name in the manifest is a path in its folder.

    What is there may be a link out of it, as in a cache; the checksum says whether it is the file.
    """
    parts = name.split("/")
    return not any(part in ("", ".", "..") for part in parts) and not re.search(r"[\\:]", name)


def _damaged(path: Path, reason: str) -> InputError:
    return InputError(
        f"{path} is damaged ({reason}): copy the whole folder again, or save the embedder again"
    )


def saved_preset(role: str, folder: Path, manifest: Manifest, llm_preset: str | None) -> Preset:
    """Find a pretrained model of a saved embedder: in its folder, or Gemma where it is now.

    Args:
        role: `llm_preset` or `slm_preset`.
        folder: folder of the embedder.
        manifest: manifest of the embedder.
        llm_preset: name, handle or folder of its Gemma, if neither in the folder nor under its
            saved name.

    Returns:
        The preset; name and fingerprint are those of the model it was made from.

    Raises:
        InputError: it cannot be found, or is a different one.
    """
    name, saved = manifest.experiment[role], manifest.presets[role]
    inside = folder / PRESET_FOLDERS[role]
    is_gemma = role == "llm_preset"
    if f"{inside.name}/config.json" in manifest.files and not (is_gemma and llm_preset):
        preset = find_preset(role, str(inside), saved["fingerprint"])
        if preset.width != saved["width"]:
            raise _damaged(folder / MANIFEST_FILE, f"the width of {role} is not {saved['width']}")
        return dataclasses.replace(preset, name=name)
    return _find_gemma(folder, llm_preset or name, saved)


def _find_gemma(folder: Path, name: str, saved: Mapping[str, Any]) -> Preset:
    """Find the Gemma of this name; raises InputError unless it is the one that was saved.

    A handle's fingerprint is its version, a folder's its content: between the two, only the width
    can be compared.
    """
    try:
        preset = find_preset("llm_preset", name)
    except InputError as error:
        raise InputError(
            f"the embedder in {folder} needs the Gemma it was made with ({error}); say where it "
            "is: load_embedder(folder, llm_preset=…), or --llm"
        ) from None
    is_same = has_fingerprint(preset, saved["fingerprint"])
    if ("@" in preset.fingerprint) != ("@" in saved["fingerprint"]):
        is_same = preset.width == saved["width"]
    if not is_same:
        raise InputError(
            f"{show(name)} is not the Gemma that the embedder in {folder} was made with: "
            "say where that one is with load_embedder(folder, llm_preset=…), or --llm"
        )
    return preset


def _files(folder: Path) -> Iterator[tuple[str, Path]]:
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            yield path.relative_to(folder).as_posix(), path


def _checksum(path: Path) -> str:
    return file_digest(path.resolve()).hex()  # read once, whatever links lead to it

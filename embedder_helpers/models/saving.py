"""Saved embedders: the format of their folder, written atomically and checked when read.

    embedder.json       the manifest: settings, presets with fingerprints, classes, checksums, and
                        the result of its run, if there is one
    roberta/            a Keras preset of the fine-tuned RoBERTa, tokenizer included
    joint.safetensors   the layers around it: standardization, layer weights, projection, head
    gemma/              on request, a Keras preset of the truncated Gemma; else it is loaded by name

No pickle. This module knows folders, arrays and the manifest; what an embedder is made of is left
to `embedder` and `architectures`.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy

from embedder_helpers.errors import InputError
from embedder_helpers.models.presets import Preset, find_preset
from embedder_helpers.utils import environment
from embedder_helpers.utils.files import file_digest, writable_folder

FORMAT = 1  # raised when a folder's content changes
MANIFEST_FILE = "embedder.json"
ARRAYS_FILE = "joint.safetensors"
PRESET_FOLDERS = {"llm_preset": "gemma", "slm_preset": "roberta"}
PRESET_FIELDS = ("name", "fingerprint", "width")


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What `embedder.json` holds.

    Attributes:
        format: version of the folder's format.
        experiment: settings without which the embedder cannot be rebuilt.
        presets: name, fingerprint and width of each pretrained model, by its setting.
        classes: labels of the head, in its order; None without a head.
        width: size of an embedding.
        versions: versions of Python and the packages that saved it.
        result: fields of the result file of its run; None if there was none.
        files: SHA-256 of every other file, by its path in the folder.
        revision: hash of the content, eight hexadecimal digits.
    """

    format: int = FORMAT
    experiment: dict[str, Any]
    presets: dict[str, dict[str, Any]]
    classes: list[Any] | None
    width: int
    versions: dict[str, str] = dataclasses.field(default_factory=dict)
    result: dict[str, Any] | None = None
    files: dict[str, str]
    revision: str = ""

    def as_json(self) -> str:
        """The content of `embedder.json`."""
        return json.dumps(dataclasses.asdict(self), indent=1, ensure_ascii=False) + "\n"

    @property
    def contains_gemma(self) -> bool:
        """Whether the truncated Gemma's weights are in the folder."""
        return any(name.startswith("gemma/") for name in self.files)


def save_folder(folder: str | Path, write: Callable[[Path], Any]) -> Path:
    """Write a folder under another name and rename it, replacing a saved embedder of that name.

    Args:
        folder: target folder.
        write: function that writes the content into an empty folder.

    Returns:
        The folder's absolute path.

    Raises:
        InputError: the folder cannot be written, or holds something else.
    """
    folder = Path(folder).resolve()
    writable_folder(folder.parent, "embedder.save(folder)")
    _check_replaceable(folder)
    restore_interrupted(folder)
    part = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)  # left by a process that was killed
    try:
        part.mkdir()
        write(part)
        if folder.exists():
            folder.replace(_old(folder))
        part.replace(folder)
    except OSError as error:  # h5py's message is a page long
        reason = os.strerror(error.errno) if error.errno else type(error).__name__
        raise InputError(f"the embedder cannot be saved in {folder} ({reason})") from None
    finally:
        restore_interrupted(folder)
        for leftover in (part, _old(folder)):
            shutil.rmtree(leftover, ignore_errors=True)
    return folder


def _check_replaceable(folder: Path) -> None:
    if folder.is_dir() and ((folder / MANIFEST_FILE).is_file() or not any(folder.iterdir())):
        return
    if folder.exists():
        raise InputError(f"{folder} holds something else: give a new folder to save in")


def _old(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.old")


def restore_interrupted(folder: Path) -> None:
    """Rename an embedder back if a process was killed between the two renames of `save_folder`."""
    if _old(folder).is_dir() and not folder.exists():
        _old(folder).replace(folder)


def write_arrays(folder: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write the weights that are not RoBERTa's or Gemma's, by name."""
    contiguous = {name: np.array(value, order="C") for name, value in arrays.items()}  # not views
    (folder / ARRAYS_FILE).write_bytes(safetensors.numpy.save(contiguous))


def read_arrays(folder: Path) -> dict[str, np.ndarray]:
    """Read what `write_arrays` wrote."""
    return safetensors.numpy.load_file(folder / ARRAYS_FILE)


def write_manifest(
    folder: Path,
    experiment: Mapping[str, Any],
    presets: Mapping[str, Preset],
    *,
    classes: list[Any] | None,
    width: int,
    result: dict[str, Any] | None,
) -> None:
    """Write `embedder.json`, with a checksum of every other file in the folder.

    Call it last.
    """
    files = {name: _checksum(path) for name, path in _files(folder)}
    manifest = Manifest(
        experiment=dict(experiment),
        presets={
            role: {field: getattr(preset, field) for field in PRESET_FIELDS}
            for role, preset in presets.items()
        },
        classes=classes,
        width=width,
        versions=environment.package_versions(),
        result=result,
        files=files,
        revision=hashlib.sha256(json.dumps(files).encode()).hexdigest()[:8],
    )
    (folder / MANIFEST_FILE).write_text(manifest.as_json(), encoding="utf-8")


def read_manifest(folder: Path) -> Manifest:
    """Read `embedder.json`, and check that every file it names exists and is undamaged.

    Raises:
        InputError: not a saved embedder, a damaged one, or one saved by a later version.
    """
    path = folder / MANIFEST_FILE
    if not path.is_file():
        raise InputError(
            f"{folder} holds no saved embedder: give a folder written by `save_embedder: true`, "
            f"which has a file {MANIFEST_FILE}"
        )
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        version, files = content["format"], dict(content["files"])
    except (OSError, ValueError, KeyError, TypeError):
        raise _damaged(folder) from None
    if not files:
        raise _damaged(folder)
    if version != FORMAT:
        raise InputError(
            f"{folder} has format {version}, which this version cannot read: "
            "update embedder_helpers"
        )
    for name, checksum in files.items():
        if not (folder / name).is_file() or _checksum(folder / name) != checksum:
            raise InputError(f"{folder}: {name} is missing or damaged: copy the whole folder again")
    known = {field.name for field in dataclasses.fields(Manifest)}
    with report_damage(folder):
        return Manifest(**{key: value for key, value in content.items() if key in known})


@contextlib.contextmanager
def report_damage(folder: Path) -> Iterator[None]:
    """Turn whatever a missing or mistyped value in `embedder.json` raises into one sentence."""
    try:
        yield
    except InputError:
        raise
    except (KeyError, TypeError, AttributeError, ValueError):
        raise _damaged(folder) from None


def _damaged(folder: Path) -> InputError:
    return InputError(f"{folder / MANIFEST_FILE} is damaged: save the embedder again")


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
        InputError: RoBERTa is missing; Gemma cannot be found, or is a different one.
    """
    name, saved = manifest.experiment[role], manifest.presets[role]
    inside = folder / PRESET_FOLDERS[role]
    is_gemma = role == "llm_preset"
    if f"{inside.name}/config.json" in manifest.files and not (is_gemma and llm_preset):
        preset = find_preset(role, str(inside))
        return dataclasses.replace(preset, name=name, fingerprint=saved["fingerprint"])
    if not is_gemma:
        raise _damaged(folder)
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
    is_same = preset.fingerprint == saved["fingerprint"]
    if ("@" in preset.fingerprint) != ("@" in saved["fingerprint"]):
        is_same = preset.width == saved["width"]
    if not is_same:
        raise InputError(
            f"{name!r} is not the Gemma that the embedder in {folder} was made with: "
            "say where that one is with load_embedder(folder, llm_preset=…), or --llm"
        )
    return preset


def _files(folder: Path) -> Iterator[tuple[str, Path]]:
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            yield path.relative_to(folder).as_posix(), path


def _checksum(path: Path) -> str:
    return file_digest(path).hex()

"""Fingerprints of presets' folders: the same weights and settings have the same one.

Weights count by their values, in however many files and whatever layout they are stored; JSON by
its content. So a preset that is loaded and saved again keeps its fingerprint, although its files
differ: they hold the time of saving, and names that Keras numbers anew in every process.
"""

import functools
import hashlib
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import h5py
import numpy as np

from embedder_helpers.errors import InputError, show
from embedder_helpers.models.preset_files import (
    DAMAGE,
    hdf5_datasets,
    preset_files,
    stored_dtype,
)
from embedder_helpers.utils.files import file_digest
from embedder_helpers.utils.json_files import MAX_BYTES, parse_json, read_json

PIECE = 2**24  # bytes that are read at a time
MAX_ROW = 2**28  # bytes of a row of weights that are not stored in one piece
# What says when and by which version something was saved, or how it is divided into files.
NOT_CONTENT = re.compile(r"metadata\.json|.*\.(weights|index)\.json")
LABELS = ("name", "_name_or_path", "transformers_version")  # of a config, without effect
SHARD = re.compile(r"[_-]\d{5}(-of-\d{5})?(?=\.)")  # model_00000.weights.h5 of model.weights.h5


def folder_fingerprint(folder: Path) -> str:
    """SHA-256 of a preset's weights, settings and vocabularies; takes a second per gigabyte.

    It depends on names, dtypes, shapes and values of weights, on the content of JSON files, and on
    the bytes of other files and of weights in an unknown format. Files that have not changed are
    read once in a process.

    Raises:
        InputError: a file cannot be read, or leads out of the folder.
    """
    parts = []
    for path in preset_files(folder):
        name = path.relative_to(folder).as_posix()
        if NOT_CONTENT.fullmatch(path.name):
            continue
        try:
            stat = path.stat()
            for part, digest in _content(path, stat.st_ino, stat.st_size, stat.st_mtime_ns):
                # Weights belong to the model, whichever of its files they are in.
                parts.append((SHARD.sub("", name) if part else name, part, digest))
        except OSError as error:
            raise InputError(
                f"{show(str(path))} cannot be read ({error.strerror or type(error).__name__}): "
                "copy the whole preset again"
            ) from None
    return hashlib.sha256(json.dumps(sorted(parts)).encode()).hexdigest()


def files_fingerprint(folder: Path) -> str:
    """The fingerprint that versions before 0.5.0 computed: of the files' names and bytes."""
    digest = hashlib.sha256()
    files = (path for path in folder.rglob("*") if path.is_file())
    for path in sorted(path for path in files if path.name != "metadata.json"):
        digest.update(path.relative_to(folder).as_posix().encode())
        digest.update(file_digest(path))
    return digest.hexdigest()


@functools.cache
def _content(path: Path, inode: int, size: int, modified: int) -> tuple[tuple[str, str], ...]:
    """What a file holds: the name and the digest of each part of it, a name of "" for the whole."""
    readers: dict[str, Callable[[Path, int], list[tuple[str, str]]]] = {
        ".h5": _hdf5_content, ".safetensors": _safetensors_content, ".json": _json_content,
    }  # fmt: skip
    try:
        if read := readers.get(path.suffix):
            return tuple(read(path, size))
    except InputError:
        raise
    except DAMAGE:
        pass
    return (("", file_digest(path).hex()),)


def _json_content(path: Path, size: int) -> list[tuple[str, str]]:
    """One digest, whatever the order of the keys."""
    values = read_json(path, finite=False)
    # A config, not a vocabulary, in which every word is a key.
    if isinstance(values, dict) and isinstance(
        values.get("class_name", values.get("model_type")), str
    ):
        values = _without_labels(values)
        if isinstance(values.get("config"), dict):
            values["config"] = _without_labels(values["config"])
    return [("", hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest())]


def _without_labels(config: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in config.items() if key not in LABELS}


def _hdf5_content(path: Path, size: int) -> list[tuple[str, str]]:
    """A digest of each dataset."""
    with h5py.File(path) as file, path.open("rb") as raw:
        datasets = hdf5_datasets(file)
        return [(name, _digest(dataset, raw, size)) for name, dataset in datasets.items()]


def _digest(dataset: h5py.Dataset, raw: BinaryIO, size: int) -> str:
    if dataset.dtype.hasobject or dataset.shape is None:
        raise ValueError("not numbers")
    digest = hashlib.sha256(
        f"{stored_dtype(dataset).name}{dataset.dtype.str}{dataset.shape}".encode()
    )
    offset, count = dataset.id.get_offset(), dataset.nbytes
    if offset is not None:
        _update(digest, raw, offset, count, size)
    elif count <= PIECE:
        digest.update(np.ascontiguousarray(dataset[()]))
    else:  # compressed, or in chunks
        row = count // len(dataset)
        if row > MAX_ROW:
            raise ValueError("rows too long to be read one by one")
        rows = max(1, PIECE // row)
        for start in range(0, len(dataset), rows):
            digest.update(np.ascontiguousarray(dataset[start : start + rows]))
    return digest.hexdigest()


def _safetensors_content(path: Path, size: int) -> list[tuple[str, str]]:
    """A digest of each tensor."""
    with path.open("rb") as file:
        tensors = dict(_safetensors_header(file))
        if sum(end - start for _, start, end in tensors.values()) > size:
            raise ValueError("tensors that overlap")
        content = []
        for name, (description, start, end) in tensors.items():
            digest = hashlib.sha256(description.encode())
            _update(digest, file, start, end - start, size)
            content.append((name, digest.hexdigest()))
    return content


def _safetensors_header(file: BinaryIO) -> Iterator[tuple[str, tuple[str, int, int]]]:
    """Each tensor's name; its dtype and shape; where its values begin and end in the file."""
    length = int.from_bytes(file.read(8), "little")
    if length > MAX_BYTES:
        raise ValueError("a header too long")
    for name, tensor in parse_json(file.read(length).decode()).items():
        if name != "__metadata__":
            start, end = tensor["data_offsets"]
            yield (
                name,
                (f"{tensor['dtype']}{tensor['shape']}", 8 + length + start, 8 + length + end),
            )


def _update(digest: Any, file: BinaryIO, start: int, count: int, size: int) -> None:
    """Add a part of a file of that size to a digest."""
    if not 0 <= start <= start + count <= size:
        raise ValueError("weights outside the file")
    file.seek(start)
    while count:
        piece = file.read(min(count, PIECE))
        if not piece:
            raise ValueError("a file that became shorter")
        digest.update(piece)
        count -= len(piece)

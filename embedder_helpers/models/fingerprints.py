"""Fingerprints of presets' folders: the same weights and settings have the same one.

Weights count by their values, in however many files and whatever layout they are stored; JSON by
its content. So a preset that is loaded and saved again keeps its fingerprint, although its files
differ: they hold the time of saving, and names that Keras numbers anew in every process.
"""

import functools
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import h5py
import numpy as np

from embedder_helpers.errors import InputError, show
from embedder_helpers.utils.files import file_digest
from embedder_helpers.utils.json_files import MAX_BYTES, parse_json, read_json

MAX_FILES = 100_000  # of a preset, and folders
MAX_EXPANSION = 20  # how many times larger than its file a file's weights may be
PIECE = 2**24  # bytes that are read at a time
MAX_ROW = 2**28  # bytes of a row of weights that are not stored in one piece
# What says when and by which version something was saved, or how it is divided into files.
NOT_CONTENT = re.compile(r"metadata\.json|.*\.(weights|index)\.json")
LABELS = ("name", "_name_or_path", "transformers_version")  # of a config, without effect
# What a damaged header makes h5py, or the arithmetic below, raise.
DAMAGE = (OSError, ValueError, KeyError, TypeError, RuntimeError, ArithmeticError)
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


def preset_files(folder: Path) -> list[Path]:
    """The files of a preset's folder, also in folders that are links.

    Hidden files, which belong to tools, are left out, and links to nothing, which are as good as
    missing.

    Raises:
        InputError: there is something else in it, which might be read without end, or too much.
    """
    files, count = [], 0
    for parent, folders, names in os.walk(folder, followlinks=True):
        inside, real = Path(parent), Path(parent).resolve()
        # A link to a folder above would be followed without end.
        folders[:] = [
            name
            for name in folders
            if not name.startswith(".") and not real.is_relative_to((inside / name).resolve())
        ]
        files += [
            path for name in names if not name.startswith(".") and (path := inside / name).exists()
        ]
        count += len(folders) + len(names)
        if count > MAX_FILES:
            raise InputError(
                f"{show(str(folder))} holds more than {MAX_FILES} files, too many for a preset: "
                "give a folder that holds nothing else"
            )
    for path in files:
        if not path.is_file():
            raise InputError(
                f"{show(str(path))} is neither a file nor a folder: remove it from the preset, or "
                "copy the whole preset again"
            )
        if path.suffix == ".json" and path.stat().st_size > MAX_BYTES:
            raise InputError(
                f"{show(str(path))} has more than {MAX_BYTES} bytes, too many for a preset's JSON "
                "file: copy the whole preset again, or use another one"
            )
    return sorted(files)


def check_datasets(path: Path) -> None:
    """Check that an HDF5 file holds its weights itself; what is damaged, keras-hub names.

    Raises:
        InputError: as `hdf5_datasets` does.
    """
    try:
        with h5py.File(path) as file:
            hdf5_datasets(file)
    except InputError:
        raise
    except DAMAGE:
        pass


def hdf5_datasets(file: h5py.File) -> dict[str, h5py.Dataset]:
    """The datasets of an open HDF5 file, by path.

    Raises:
        InputError: one of them, or a group, is in another file; they have far more values than the
            file has bytes.
    """
    datasets, links = {}, []

    def record(path: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset):
            datasets[path] = item

    def record_link(path: str, link: Any) -> None:
        if not isinstance(link, h5py.HardLink):
            links.append(path)

    file.visititems(record)
    file.visititems_links(record_link)
    links += [path for path, item in datasets.items() if item.external or item.is_virtual]
    if links:
        raise InputError(
            f"{show(links[0])} of {show(file.filename)} is a link, which may lead out of the "
            "preset: save the preset again with keras-hub's save_to_preset, or use another one"
        )
    size = Path(file.filename).stat().st_size
    if sum(dataset.nbytes for dataset in datasets.values()) > MAX_EXPANSION * size:
        raise InputError(
            f"{show(file.filename)} describes far more weights than its {size} bytes can hold: "
            "copy the whole preset again, or use another one"
        )
    return datasets


def stored_dtype(dataset: h5py.Dataset) -> np.dtype:
    """A dataset's dtype; Keras stores bfloat16 as two bytes, for which HDF5 has no name."""
    import ml_dtypes

    is_bfloat16 = dataset.attrs.get("dtype") == "bfloat16" and dataset.dtype.itemsize == 2
    return np.dtype(ml_dtypes.bfloat16) if is_bfloat16 else dataset.dtype


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

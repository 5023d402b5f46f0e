"""A preset's files, and the datasets of an HDF5 file: checked, since they may be a stranger's."""

import os
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from embedder_helpers.errors import InputError, show
from embedder_helpers.utils.json_files import MAX_BYTES

MAX_FILES = 100_000  # of a preset, and folders
MAX_EXPANSION = 20  # how many times larger than its file a file's weights may be
# What a damaged header makes h5py, or arithmetic on what it says, raise.
DAMAGE = (OSError, ValueError, KeyError, TypeError, RuntimeError, ArithmeticError)


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

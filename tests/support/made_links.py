"""Embedders whose files are links, as in the cache of a hub."""

import os
from pathlib import Path


def link_files(folder: Path, model: Path) -> Path:
    """Move a folder's files as Hugging Face's cache does; returns the folder that has links.

    The embedder is in a folder of its repository.
    """
    cached = model / "snapshots" / "4567" / "hybrid"
    (model / "blobs").mkdir(parents=True)
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    for number, path in enumerate(files):
        blob = path.rename(model / "blobs" / str(number))
        link = cached / path.relative_to(folder)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(blob, link.parent))
    return cached

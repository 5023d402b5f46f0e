"""JSON files that are read back: bounded, finite, and with a checksum that shows one wrong bit.

Files may come from a stranger, or from a disk that failed. What the values mean is checked by the
modules that read them.
"""

import hashlib
import json
import math
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from embedder_helpers.utils.files import atomic_write

MAX_BYTES = 64 * 2**20
CHECKSUM = "checksum"


def read_json(path: Path, max_bytes: int = MAX_BYTES) -> Any:
    """Read a JSON file.

    Args:
        path: path of the file; a link to a regular file is followed.
        max_bytes: size above which it is not read.

    Raises:
        OSError: it does not exist, cannot be read, or is not a regular file.
        ValueError: it is larger than `max_bytes`, not UTF-8, or not JSON: a number that is not
            finite, a key that is there twice, nesting too deep to be read.
    """
    # Opening a pipe would wait for a writer.
    with open(os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0)), "rb") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError(f"{path} is not a regular file")
        content = file.read(max_bytes + 1)
    if len(content) > max_bytes:
        raise ValueError(f"larger than {max_bytes} bytes")
    return parse_json(content.decode())


def parse_json(text: str) -> Any:
    """Parse strict JSON: finite numbers, and every key once.

    Raises:
        ValueError: it is not.
    """
    try:
        return json.loads(
            text,
            object_pairs_hook=_distinct_keys,
            parse_float=_finite,
            parse_constant=_finite,
        )
    except RecursionError:
        raise ValueError("nested too deep") from None


def _distinct_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"the key {twice!r} is there twice")
    return values


def _finite(number: str) -> float:
    value = float(number)
    if not math.isfinite(value):
        raise ValueError(f"{number} is not a finite number")
    return value


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Write a JSON file atomically, its checksum as the last key."""
    content = json.dumps({**values, CHECKSUM: _checksum(values)}, indent=1, ensure_ascii=False)
    atomic_write(path, lambda part: part.write_text(content + "\n", encoding="utf-8"))


def check_checksum(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values without their checksum, after comparing it.

    A file without one, written by a version that had none, is accepted as it is.

    Raises:
        ValueError: the values are not those that were written.
    """
    values = dict(values)
    checksum = values.pop(CHECKSUM, None)
    if checksum is not None and checksum != _checksum(values):
        raise ValueError("its content does not match its checksum")
    return values


def _checksum(values: Mapping[str, Any]) -> str:
    """SHA-256 of the values, whatever the order of their keys and the spelling of their numbers."""
    content = json.dumps(values, sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()

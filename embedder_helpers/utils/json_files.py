"""JSON files that are read back: bounded, finite, and with a checksum that shows one wrong bit.

Files may come from a stranger, or from a disk that failed. What the values mean is checked by the
modules that read them.
"""

import hashlib
import json
import math
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from embedder_helpers.errors import show
from embedder_helpers.utils.files import atomic_write, read_bounded

MAX_BYTES = 64 * 2**20
CHECKSUM = "checksum"
HALF_PAIR = re.compile(r"\\u[dD][89a-fA-F]")  # the escape of a surrogate


def read_json(path: Path, max_bytes: int = MAX_BYTES, *, finite: bool = True) -> Any:
    """Read a JSON file.

    Args:
        path: path of the file; a link to a regular file is followed.
        max_bytes: size above which it is not read.
        finite: whether to refuse NaN and infinite numbers.

    Raises:
        OSError: it does not exist, cannot be read, or is not a regular file.
        ValueError: it is larger than `max_bytes`, not UTF-8, or not JSON: a number that is not
            finite, a key that is there twice, half of a surrogate pair, too deep nesting.
    """
    return parse_json(read_bounded(path, max_bytes).decode(), finite=finite)


def parse_json(text: str, *, finite: bool = True) -> Any:
    """Parse strict JSON: every key once, and text that can be written again.

    Args:
        text: content of a file, or of a line.
        finite: whether to refuse NaN and infinite numbers.

    Raises:
        ValueError: it is not.
    """
    try:
        values = json.loads(
            text,
            object_pairs_hook=_distinct_keys,
            parse_float=_finite if finite else float,
            parse_constant=_finite if finite else float,
        )
        if HALF_PAIR.search(text):  # or a whole one, which is fine
            json.dumps(values, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise ValueError("half of a surrogate pair") from None
    except RecursionError:
        raise ValueError("nested too deep") from None
    return values


def _distinct_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        ((twice, _),) = Counter(key for key, _ in pairs).most_common(1)
        raise ValueError(f"the key {show(twice)} is there twice")
    return values


def _finite(number: str) -> float:
    value = float(number)
    if not math.isfinite(value):
        raise ValueError(f"{number} is not a finite number")
    return value


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Write a JSON file atomically, its checksum as the last key.

    Raises:
        ValueError: a number that is not finite, or text that is not Unicode.
        InputError: as `atomic_write` does.
    """
    content = with_checksum(values)
    atomic_write(path, lambda part: part.write_text(content, encoding="utf-8", newline="\n"))


def with_checksum(values: Mapping[str, Any]) -> str:
    """The content of a JSON file with these values, their checksum as the last key.

    Raises:
        ValueError: a number that is not finite.
    """
    values = {**values, CHECKSUM: _checksum(values)}
    return json.dumps(values, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def check_checksum(values: Any) -> dict[str, Any]:
    """The values of a JSON object without their checksum, after comparing it.

    An object without one, written by a version that had none, is accepted as it is.

    Raises:
        ValueError: it is no object, or its values are not those that were written.
    """
    if not isinstance(values, dict):
        raise ValueError("it is not a JSON object")
    values = dict(values)
    if CHECKSUM in values and values.pop(CHECKSUM) != _checksum(values):
        raise ValueError("its content does not match its checksum")
    return values


def _checksum(values: Mapping[str, Any]) -> str:
    """SHA-256 of the values, whatever the order of their keys."""
    try:
        content = json.dumps(values, sort_keys=True)
    except RecursionError:
        raise ValueError("nested too deep") from None
    return hashlib.sha256(content.encode()).hexdigest()

"""Local data: jsonl, csv and parquet files to splits of checked texts and labels.

Every fault is one sentence that names the file and its rows, counted from 1.
"""

import csv
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from embedder_helpers.config import InputError

FORMATS = (".jsonl", ".csv", ".parquet")
SPLITS = ("train", "validation", "test")
FILE_TEST = 0.25  # share of a single file without a `split` column that becomes the test split
SPLIT_SEED = 42  # not the Experiment's: all seeds train and are scored on the same rows

Columns = tuple[list[str], np.ndarray]


def read_local(
    path: Path, text_column: str, label_column: str
) -> dict[str, tuple[str, list[str], np.ndarray]]:
    """Name, texts and labels of each split of a folder or a single file.

    A folder holds `train` and `test`, and may hold `validation`, each in one of FORMATS. A single
    file is split by its `split` column, or else a quarter of each label becomes the test split.

    Raises:
        InputError: anything that is missing, cannot be read, or is no text or label.
    """
    if not exists(path):
        raise InputError(f"task_data: there is no folder or file {path}")
    read = _read_folder if path.is_dir() else _read_one_file
    found = read(path, text_column, label_column)
    for where, texts, _ in found.values():
        if not texts:
            raise InputError(f"{where} is empty: every split needs at least one row")
    return found


def read_texts(path: Path, text_column: str) -> list[str]:
    """The texts of one file, checked; other columns are not looked at.

    Raises:
        InputError: no such file or column, or a text that is none.
    """
    if not exists(path):
        raise InputError(f"there is no file {path}")
    rows = _rows(path)
    _check_column(path, rows, text_column, "--text-column")
    texts = [row[text_column] for row in rows]
    check_texts(texts, path.name)
    return texts


def exists(path: Path) -> bool:
    """Whether there is such a file or folder; a name too long for one is not an error."""
    try:
        return path.exists()
    except OSError:
        return False


def stratified_rows(
    labels: np.ndarray, count: int, seed: int, *, leave_one: bool = False
) -> np.ndarray:
    """`count` rows in rising order, each label with its share, drawn by the seed.

    Args:
        labels: `(n,)`.
        count: how many rows; all if there are fewer.
        seed: of the draw.
        leave_one: leave at least one row of each label out, so that what is left has them all.
    """
    generator = np.random.default_rng(seed)
    place = np.empty(len(labels))
    for label in np.unique(labels):
        rows = generator.permutation(np.flatnonzero(labels == label))
        # The i-th of m rows of a label stands at (i + u) / m: any start of the line has its share.
        place[rows] = (np.arange(len(rows)) + generator.random()) / len(rows)
        if leave_one:
            place[rows[-1]] = np.inf
    return np.sort(np.argsort(place, kind="stable")[:count])


def listed(texts: Iterable[str]) -> list[str]:
    """The texts; raises InputError for a table, which would give the names of its columns."""
    if hasattr(texts, "columns") or isinstance(texts, Mapping):
        raise InputError("texts are a table: give one of its columns")
    return list(texts)


def check_texts(
    texts: Sequence[Any],
    where: str,
    *,
    numbers: Sequence[int] | None = None,
    allow_empty: bool = False,
) -> None:
    """Raises InputError that counts and names the rows (from 1) that hold no usable text."""
    numbers = range(len(texts)) if numbers is None else numbers
    bad: dict[str, list[int]] = {}
    for number, text in zip(numbers, texts, strict=True):
        if fault := _fault(text, allow_empty):
            bad.setdefault(fault, []).append(int(number) + 1)
    if bad:
        found = "; ".join(f"{fault} in {_name_rows(rows)}" for fault, rows in bad.items())
        raise InputError(f"{where}: every text must be a non-empty string, but found {found}")


def _fault(text: Any, allow_empty: bool) -> str | None:
    if isinstance(text, str):
        if re.search("[\ud800-\udfff]", text):
            return "half a surrogate pair"
        return None if text.strip() or allow_empty else "an empty text"
    if text is None:
        return "None"
    if isinstance(text, float) and math.isnan(text):
        return "NaN"
    return f"a value of type {type(text).__name__}"


def _name_rows(rows: Sequence[int], most: int = 5) -> str:
    """`row 7` or `3 rows (2, 5, 9)`, counted from 1."""
    if len(rows) == 1:
        return f"row {rows[0]}"
    more = ", …" if len(rows) > most else ""
    return f"{len(rows)} rows ({', '.join(map(str, rows[:most]))}{more})"


def _read_folder(folder: Path, text_column: str, label_column: str) -> dict:
    found = {}
    for split in SPLITS:
        files = [folder / (split + ending) for ending in FORMATS]
        path = next((path for path in files if path.is_file()), None)
        if path is not None:
            found[split] = (path.name, *_columns(path, _rows(path), text_column, label_column))
        elif split != "validation":
            formats = ", ".join(path.name for path in files)
            raise InputError(
                f"task folder {folder} has no {split} split: it needs one of {formats}"
            )
    return found


def _read_one_file(path: Path, text_column: str, label_column: str) -> dict:
    rows = _rows(path)
    texts, labels = _columns(path, rows, text_column, label_column)
    if any("split" in row for row in rows):
        named = [row.get("split") for row in rows]
        if bad := [number for number, split in enumerate(named, 1) if split not in SPLITS]:
            raise InputError(
                f"{path.name}: `split` must be one of {', '.join(SPLITS)}, but is not in "
                f"{_name_rows(bad)}"
            )
    else:
        count = round(FILE_TEST * len(rows))
        tested = set(stratified_rows(labels, count, SPLIT_SEED, leave_one=True).tolist())
        named = ["test" if row in tested else "train" for row in range(len(rows))]
    found = {}
    for split in SPLITS:
        chosen = [row for row, name in enumerate(named) if name == split]
        if chosen or split != "validation":
            found[split] = (f"{path.name}, {split}", [texts[i] for i in chosen], labels[chosen])
    return found


def _rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a file, values typed as the file types them; a CSV file's are all strings."""
    readers = {".jsonl": _read_jsonl, ".csv": _read_csv, ".parquet": _read_parquet}
    if path.suffix not in readers:
        raise InputError(f"{path}: only {', '.join(FORMATS)} files can be read")
    try:
        rows = readers[path.suffix](path)
    except InputError:
        raise
    except Exception as error:  # each reader has errors of its own
        reason = " ".join(str(error).split())
        raise InputError(f"{path} cannot be read: {reason}") from None
    if not rows:
        raise InputError(f"{path.name} is empty: every split needs at least one row")
    return rows


def _read_jsonl(path: Path) -> list[dict[str, Any]]:
    rows = []
    # Split on newlines alone: texts may hold U+2028 and other characters that splitlines takes.
    for number, line in enumerate(path.read_text(encoding="utf-8-sig").split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise InputError(f"{path}, line {number} is not JSON: {error.msg}") from None
        if not isinstance(row, dict):
            raise InputError(f"{path}, line {number} is not a JSON object")
        rows.append(row)
    return rows


def _read_csv(path: Path) -> list[dict[str, str]]:
    csv.field_size_limit(2**31 - 1)  # a text may be a book
    with path.open(encoding="utf-8-sig", newline="") as file:
        lines = [line for line in csv.reader(file, strict=True) if line]
    header, *rows = lines or [[]]
    if bad := [number for number, row in enumerate(rows, 1) if len(row) != len(header)]:
        raise InputError(
            f"{path.name}: {_name_rows(bad)} with another number of fields than the header's "
            f"{len(header)}: put quotes around texts that hold a comma"
        )
    return [dict(zip(header, row, strict=True)) for row in rows]


def _read_parquet(path: Path) -> list[dict[str, Any]]:
    import pyarrow.parquet

    return pyarrow.parquet.read_table(path).to_pylist()


def _columns(
    path: Path, rows: list[dict[str, Any]], text_column: str, label_column: str
) -> Columns:
    """Texts and labels, checked."""
    _check_column(path, rows, text_column, "text_column")
    _check_column(path, rows, label_column, "label_column")
    texts = [row[text_column] for row in rows]
    check_texts(texts, path.name)
    labels = [row[label_column] for row in rows]
    # A CSV file has no types: integers where every value is one.
    if path.suffix == ".csv" and all(re.fullmatch(r"-?[0-9]{1,18}", label) for label in labels):
        labels = [int(label) for label in labels]
    return texts, check_labels(labels, path.name)


def _check_column(path: Path, rows: list[dict[str, Any]], column: str, setting: str) -> None:
    without = [number for number, row in enumerate(rows, 1) if column not in row]
    if without:
        there = ", ".join(map(str, rows[without[0] - 1]))
        place = "" if len(without) == len(rows) else f" in {_name_rows(without)}"
        raise InputError(
            f"{path.name}: no column {column!r}{place}, only {there}: "
            f"name the column with {setting}"
        )


def check_labels(values: list[Any], where: str) -> np.ndarray:
    """Labels `(n,)`, all whole numbers or all strings; raises InputError that says what is not."""
    missing = [
        number
        for number, value in enumerate(values, 1)
        if value is None or value == "" or (isinstance(value, float) and math.isnan(value))
    ]
    if missing:
        raise InputError(f"{where}: no label in {_name_rows(missing)}")
    types = {type(value) for value in values}
    if types == {int} and max(map(abs, values)) >= 2**63:
        raise InputError(f"{where}: labels must be whole numbers of at most 64 bits")
    if types not in ({int}, {str}):
        found = " and ".join(sorted(one.__name__ for one in types))
        raise InputError(
            f"{where}: labels must be all whole numbers or all strings, but are {found}"
        )
    return np.asarray(values)

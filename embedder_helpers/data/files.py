"""Local data: jsonl, csv and parquet files as splits of validated texts and labels.

Invalid data is an InputError of one sentence that names the file and its rows, which count from 1.
What a split is used for is left to `tasks`.
"""

import csv
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from embedder_helpers.errors import InputError
from embedder_helpers.utils.files import path_exists

FORMATS = (".jsonl", ".csv", ".parquet")
SPLITS = ("train", "validation", "test")
TEST_FRACTION = 0.25  # of a single file without a `split` column
SPLIT_SEED = 42  # not the Experiment's: every seed trains and is scored on the same rows


class LocalSplit(NamedTuple):
    """The validated rows of one split.

    Attributes:
        name: name of its file, for messages.
        texts: non-empty strings.
        labels: `(n,)` integers or strings.
    """

    name: str
    texts: list[str]
    labels: np.ndarray


def read_splits(path: Path, text_column: str, label_column: str) -> dict[str, LocalSplit]:
    """Read the splits of a folder or a single file.

    A folder has a `train` and a `test` file, and may have a `validation` file, each in one of
    FORMATS. A single file is split by its `split` column; without one, a quarter of each label's
    rows becomes the test split.

    Raises:
        InputError: a file, column or split is missing, cannot be read, or holds invalid values.
    """
    if not path_exists(path):
        raise InputError(f"task_data: there is no folder or file {path}")
    read = _read_folder if path.is_dir() else _read_single_file
    splits = read(path, text_column, label_column)
    for split in splits.values():
        if not split.texts:
            raise InputError(f"{split.name} is empty: every split needs at least one row")
    return splits


def read_texts(path: Path, text_column: str) -> list[str]:
    """Read and validate the texts of one file; other columns are ignored.

    Raises:
        InputError: no such file or column, or an invalid text.
    """
    if not path_exists(path):
        raise InputError(f"there is no file {path}")
    rows = _read_rows(path)
    _check_column(path, rows, text_column, "--text-column")
    texts = [row[text_column] for row in rows]
    validate_texts(texts, path.name)
    return texts


def stratified_sample(
    labels: np.ndarray, count: int, seed: int, *, leave_one: bool = False
) -> np.ndarray:
    """Sample rows in proportion to their labels.

    Args:
        labels: `(n,)`.
        count: number of rows; all if there are fewer.
        seed: seed of the sample.
        leave_one: whether to leave out at least one row of each label, so that the rest has every
            label.

    Returns:
        `(count,)` row numbers in ascending order. A smaller sample is part of a larger one.
    """
    generator = np.random.default_rng(seed)
    position = np.empty(len(labels))
    for label in np.unique(labels):
        rows = generator.permutation(np.flatnonzero(labels == label))
        # Spread each label's rows evenly over 0 … 1 (the i-th of m at (i + u) / m, u random), so
        # that the rows of lowest position have every label in proportion.
        position[rows] = (np.arange(len(rows)) + generator.random()) / len(rows)
        if leave_one:
            position[rows[-1]] = np.inf
    return np.sort(np.argsort(position, kind="stable")[:count])


def as_list(texts: Iterable[str]) -> list[str]:
    """The texts as a list.

    Raises:
        InputError: they are a table, which would iterate over the names of its columns.
    """
    if hasattr(texts, "columns") or isinstance(texts, Mapping):
        raise InputError("texts are a table: give one of its columns")
    return list(texts)


def validate_texts(
    texts: Sequence[Any],
    where: str,
    *,
    numbers: Sequence[int] | None = None,
    allow_empty: bool = False,
) -> None:
    """Check that every text is a non-empty string.

    Args:
        texts: texts to check.
        where: source of the texts, for the message.
        numbers: row numbers of the texts, from 0; None: in order.
        allow_empty: whether to accept empty texts.

    Raises:
        InputError: counts and names the rows, from 1, of each kind of invalid text.
    """
    numbers = range(len(texts)) if numbers is None else numbers
    rows_by_fault: dict[str, list[int]] = {}
    for number, text in zip(numbers, texts, strict=True):
        if fault := _text_fault(text, allow_empty):
            rows_by_fault.setdefault(fault, []).append(int(number) + 1)
    if rows_by_fault:
        faults = "; ".join(
            f"{fault} in {_format_rows(rows)}" for fault, rows in rows_by_fault.items()
        )
        raise InputError(f"{where}: every text must be a non-empty string, but found {faults}")


def validate_labels(labels: list[Any], where: str) -> np.ndarray:
    """Check that labels are all whole numbers or all strings.

    Args:
        labels: labels to check.
        where: source of the labels, for the message.

    Returns:
        Labels `(n,)`.

    Raises:
        InputError: a missing label, or labels of other types.
    """
    missing = [
        number
        for number, label in enumerate(labels, 1)
        if label is None or label == "" or (isinstance(label, float) and math.isnan(label))
    ]
    if missing:
        raise InputError(f"{where}: no label in {_format_rows(missing)}")
    types = {type(label) for label in labels}
    if types == {int} and max(map(abs, labels)) >= 2**63:
        raise InputError(f"{where}: labels must be whole numbers of at most 64 bits")
    if types not in ({int}, {str}):
        names = " and ".join(sorted(kind.__name__ for kind in types))
        raise InputError(
            f"{where}: labels must be all whole numbers or all strings, but are {names}"
        )
    return np.asarray(labels)


def _text_fault(text: Any, allow_empty: bool) -> str | None:
    if isinstance(text, str):
        if re.search("[\ud800-\udfff]", text):
            return "a lone surrogate"
        return None if text.strip() or allow_empty else "an empty text"
    if text is None:
        return "None"
    if isinstance(text, float) and math.isnan(text):
        return "NaN"
    return f"a value of type {type(text).__name__}"


def _format_rows(rows: Sequence[int], most: int = 5) -> str:
    """`row 7` or `3 rows (2, 5, 9)`, counted from 1."""
    if len(rows) == 1:
        return f"row {rows[0]}"
    more = ", …" if len(rows) > most else ""
    return f"{len(rows)} rows ({', '.join(map(str, rows[:most]))}{more})"


def _read_folder(folder: Path, text_column: str, label_column: str) -> dict[str, LocalSplit]:
    splits = {}
    for name in SPLITS:
        candidates = [folder / (name + ending) for ending in FORMATS]
        path = next((path for path in candidates if path.is_file()), None)
        if path is not None:
            columns = _texts_and_labels(path, _read_rows(path), text_column, label_column)
            splits[name] = LocalSplit(path.name, *columns)
        elif name != "validation":
            names = ", ".join(path.name for path in candidates)
            raise InputError(f"task folder {folder} has no {name} split: it needs one of {names}")
    return splits


def _read_single_file(path: Path, text_column: str, label_column: str) -> dict[str, LocalSplit]:
    rows = _read_rows(path)
    texts, labels = _texts_and_labels(path, rows, text_column, label_column)
    names = _split_column(path, rows) or _random_split(labels)
    splits = {}
    for name in SPLITS:
        indices = [i for i, row_name in enumerate(names) if row_name == name]
        if indices or name != "validation":
            split_texts = [texts[i] for i in indices]
            splits[name] = LocalSplit(f"{path.name}, {name}", split_texts, labels[indices])
    return splits


def _split_column(path: Path, rows: list[dict[str, Any]]) -> list[str] | None:
    """The split of each row, by the file's `split` column; None without one."""
    if not any("split" in row for row in rows):
        return None
    names = [row.get("split") for row in rows]
    if unknown := [number for number, name in enumerate(names, 1) if name not in SPLITS]:
        raise InputError(
            f"{path.name}: `split` must be one of {', '.join(SPLITS)}, but is not in "
            f"{_format_rows(unknown)}"
        )
    return names


def _random_split(labels: np.ndarray) -> list[str]:
    """`test` for a stratified sample of the rows, `train` for the others."""
    count = round(TEST_FRACTION * len(labels))
    test = set(stratified_sample(labels, count, SPLIT_SEED, leave_one=True).tolist())
    return ["test" if row in test else "train" for row in range(len(labels))]


def _read_rows(path: Path) -> list[dict[str, Any]]:
    """Read the rows of a file; values have the file's types, in a CSV file all are strings."""
    readers = {".jsonl": _read_jsonl, ".csv": _read_csv, ".parquet": _read_parquet}
    if path.suffix not in readers:
        raise InputError(f"{path}: only {', '.join(FORMATS)} files can be read")
    try:
        rows = readers[path.suffix](path)
    except InputError:
        raise
    except Exception as error:  # each reader raises its own errors
        reason = " ".join(str(error).split())
        raise InputError(f"{path} cannot be read: {reason}") from None
    if not rows:
        raise InputError(f"{path.name} is empty: every split needs at least one row")
    return rows


def _read_jsonl(path: Path) -> list[dict[str, Any]]:
    rows = []
    # Split at newlines only: texts may contain U+2028 and others at which splitlines splits.
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
    if ragged := [number for number, row in enumerate(rows, 1) if len(row) != len(header)]:
        verb = "does" if len(ragged) == 1 else "do"
        raise InputError(
            f"{path.name}: {_format_rows(ragged)} {verb} not have as many fields as the header "
            f"({len(header)}): put quotes around texts that contain a comma"
        )
    return [dict(zip(header, row, strict=True)) for row in rows]


def _read_parquet(path: Path) -> list[dict[str, Any]]:
    import pyarrow.parquet

    return pyarrow.parquet.read_table(path).to_pylist()


def _texts_and_labels(
    path: Path, rows: list[dict[str, Any]], text_column: str, label_column: str
) -> tuple[list[str], np.ndarray]:
    """The validated texts and labels of a file."""
    _check_column(path, rows, text_column, "text_column")
    _check_column(path, rows, label_column, "label_column")
    texts = [row[text_column] for row in rows]
    validate_texts(texts, path.name)
    labels = [row[label_column] for row in rows]
    # A CSV file has no types: labels are integers if every one of them reads as one.
    if path.suffix == ".csv" and all(re.fullmatch(r"-?[0-9]{1,18}", label) for label in labels):
        labels = [int(label) for label in labels]
    return texts, validate_labels(labels, path.name)


def _check_column(path: Path, rows: list[dict[str, Any]], column: str, setting: str) -> None:
    """Raise InputError if a row lacks the column; names the setting that chooses another."""
    lacking = [number for number, row in enumerate(rows, 1) if column not in row]
    if lacking:
        columns = ", ".join(map(str, rows[lacking[0] - 1]))
        where = "" if len(lacking) == len(rows) else f" in {_format_rows(lacking)}"
        raise InputError(
            f"{path.name}: no column {column!r}{where}, only {columns}: "
            f"name the column with {setting}"
        )

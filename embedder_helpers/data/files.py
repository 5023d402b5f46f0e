"""Local data: jsonl, csv and parquet files as splits of validated texts and labels.

Invalid data is an InputError of one sentence that names the file and its rows, which count from 1.
What is checked of labels is in `labels`; what a split is used for is left to `tasks`.
"""

import csv
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from embedder_helpers.data.labels import (
    SURROGATE,
    check_labels,
    describe_faults,
    format_rows,
    is_missing,
    stratified_sample,
)
from embedder_helpers.errors import InputError, shorten, show, show_list
from embedder_helpers.utils.files import path_exists
from embedder_helpers.utils.json_files import parse_json

FORMATS = (".jsonl", ".csv", ".parquet")
# The names of each split, of its file in a folder and in a `split` column.
SPLITS = {
    "train": ("train",),
    "validation": ("validation", "dev", "val", "valid"),
    "test": ("test",),
}
TEST_FRACTION = 0.25  # of a single file without a `split` column
SPLIT_SEED = 42  # not the Experiment's: every seed trains and is scored on the same rows
MAX_LETTERS = 2**26  # of a line of JSON or a field of CSV; a text may be a book
DESCRIPTIVE = (".", "README", "LICENSE")  # how the names of files begin that are no data

Rows = list[dict[str, Any]]


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

    A folder has a `train` and a `test` file, and may have a `validation` file (also named `dev`,
    `val` or `valid`), each in one of FORMATS. A single file is split by its `split` column; without
    one, a quarter of each label's rows becomes the test split. Labels have one type in all files.

    Raises:
        InputError: a file, column or split is missing, cannot be read, or holds invalid values.
    """
    if not path_exists(path):
        raise InputError(f"task_data: there is no folder or file {path}")
    if text_column == label_column:
        raise InputError(
            f"text_column and label_column are both {show(text_column)}: name two columns"
        )
    read = _read_folder if path.is_dir() else _read_single_file
    splits = read(path, text_column, label_column)
    for split in splits.values():
        if not split.texts:
            raise InputError(f"{split.name} is empty: every split needs at least one row")
    return splits


def read_table(path: Path, text_column: str) -> pd.DataFrame:
    """Read all columns of one file, and validate its texts; other values are those of the file.

    Raises:
        InputError: no such file or column, or an invalid text.
    """
    if not path_exists(path):
        raise InputError(f"there is no file {path}")
    rows = _read_rows(path)
    _check_column(path, rows, text_column, "--text-column")
    validate_texts([row[text_column] for row in rows], path.name)
    return pd.DataFrame(rows, dtype=object)


def unread_files(folder: Path, splits: Mapping[str, LocalSplit]) -> list[str]:
    """The names of files of a folder that are no split, except hidden and descriptive ones."""
    read = {split.name for split in splits.values()}
    names = sorted(path.name for path in folder.iterdir() if path.is_file())
    return [name for name in names if name not in read and not name.startswith(DESCRIPTIVE)]


def as_list(values: Iterable[Any], what: str = "texts") -> list[Any]:
    """Texts or labels, one after another, as a list.

    Args:
        values: a list, a column of a table, an array of one dimension or another iterable.
        what: what the values are, for the message.

    Raises:
        InputError: they are a table, which would iterate over the names of its columns; a matrix; a
            set, which has no order; a single string; or no iterable.
    """
    if hasattr(values, "columns") or isinstance(values, Mapping):
        raise InputError(f"{what} are a table: give one of its columns")
    if (dimensions := getattr(values, "ndim", 1)) != 1:
        raise InputError(
            f"{what} have {dimensions} dimensions, but must be a list or an array of one: "
            "give one value for each text"
        )
    if isinstance(values, str | bytes | set | frozenset) or not isinstance(values, Iterable):
        raise InputError(f"{what} are of type {type(values).__name__}, but must be a list")
    return list(values)


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
    if faults := describe_faults(texts, lambda text: _text_fault(text, allow_empty), numbers):
        raise InputError(f"{where}: every text must be a non-empty string, but found {faults}")


def _text_fault(text: Any, allow_empty: bool) -> str | None:
    if isinstance(text, str):
        if SURROGATE.search(text):
            return "a lone surrogate"
        return None if text.strip() or allow_empty else "an empty text"
    if is_missing(text):
        return "None" if text is None else "NaN"
    return f"a value of type {type(text).__name__}"


def _read_folder(folder: Path, text_column: str, label_column: str) -> dict[str, LocalSplit]:
    files = {}
    for split, names in SPLITS.items():
        candidates = [folder / (name + ending) for name in names for ending in FORMATS]
        found = [path for path in candidates if path_exists(path) and not path.is_dir()]
        if len(found) > 1:
            names = show_list([path.name for path in found])
            raise InputError(
                f"task folder {folder} has several files for its {split} split, {names}: "
                "keep one of them"
            )
        if found:
            files[split] = found[0]
        elif split != "validation":
            names = ", ".join(path.name for path in candidates)
            raise InputError(f"task folder {folder} has no {split} split: it needs one of {names}")
    rows = {path: _read_rows(path) for path in files.values()}
    columns = _texts_and_labels(rows, text_column, label_column)
    return {split: LocalSplit(path.name, *columns[path]) for split, path in files.items()}


def _read_single_file(path: Path, text_column: str, label_column: str) -> dict[str, LocalSplit]:
    rows = _read_rows(path)
    texts, labels = _texts_and_labels({path: rows}, text_column, label_column)[path]
    names = _split_column(path, rows) or _random_split(labels)
    splits = {}
    for name in SPLITS:
        indices = [i for i, row_name in enumerate(names) if row_name == name]
        if indices or name != "validation":
            split_texts = [texts[i] for i in indices]
            splits[name] = LocalSplit(f"{path.name}, {name}", split_texts, labels[indices])
    return splits


def _split_column(path: Path, rows: Rows) -> list[str] | None:
    """The split of each row, by the file's `split` column; None without one."""
    if not any("split" in row for row in rows):
        return None
    split_of = {name: split for split, names in SPLITS.items() for name in names}
    names = [row.get("split") for row in rows]
    splits = [split_of.get(name) if isinstance(name, str) else None for name in names]
    if unknown := [number for number, split in enumerate(splits, 1) if split is None]:
        raise InputError(
            f"{path.name}: `split` must be one of {', '.join(split_of)}, but is "
            f"{show(names[unknown[0] - 1])} in {format_rows(unknown)}"
        )
    return splits


def _random_split(labels: np.ndarray) -> list[str]:
    """`test` for a stratified sample of the rows, `train` for the others."""
    count = round(TEST_FRACTION * len(labels))
    test = set(stratified_sample(labels, count, SPLIT_SEED, leave_one=True).tolist())
    return ["test" if row in test else "train" for row in range(len(labels))]


def _read_rows(path: Path) -> Rows:
    """Read the rows of a file; values have the file's types, in a CSV file all are strings."""
    readers = {".jsonl": _read_jsonl, ".csv": _read_csv, ".parquet": _read_parquet}
    if path.suffix not in readers:
        raise InputError(f"{path}: only {', '.join(FORMATS)} files can be read")
    if not path.is_file():  # opening a pipe would wait for a writer
        raise InputError(f"{path} is not a regular file: store its content in one")
    try:
        rows = readers[path.suffix](path)
    except InputError:
        raise
    except Exception as error:  # each reader raises its own errors
        reason = shorten(" ".join(str(error).split()), 300)
        raise InputError(f"{path} cannot be read: {reason}") from None
    if not rows:
        raise InputError(f"{path.name} is empty: every split needs at least one row")
    return rows


def _read_jsonl(path: Path) -> Rows:
    rows = []
    # Not splitlines: texts may contain U+2028 and others at which it splits.
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(iter(lambda: file.readline(MAX_LETTERS + 1), ""), 1):
            if not line.strip():
                continue
            try:
                if len(line) > MAX_LETTERS:
                    raise ValueError(f"it has more than {MAX_LETTERS} letters")
                row = parse_json(line, finite=False)  # of a column that is not read, perhaps
            except ValueError as error:
                reason = getattr(error, "msg", str(error))
                raise InputError(f"{path}, line {number} is not valid JSON: {reason}") from None
            if not isinstance(row, dict):
                raise InputError(f"{path}, line {number} is not a JSON object")
            rows.append(row)
    return rows


def _read_csv(path: Path) -> Rows:
    limit = csv.field_size_limit(MAX_LETTERS)  # of the process
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            lines = [line for line in csv.reader(file, strict=True) if line]
    finally:
        csv.field_size_limit(limit)
    header, *rows = lines or [[]]
    columns = _distinct_names(path, header)
    if ragged := [number for number, row in enumerate(rows, 1) if len(row) != len(header)]:
        verb = "does" if len(ragged) == 1 else "do"
        raise InputError(
            f"{path.name}: {format_rows(ragged)} {verb} not have as many fields as the header "
            f"({len(header)}): put quotes around texts that contain a comma"
        )
    for number, row in enumerate(rows, 1):
        # In a file of one column it may be a text.
        if len(row) > 1 and [row[0].removeprefix("\ufeff"), *row[1:]] == header:
            raise InputError(
                f"{path.name}: row {number} is the header again, as after joining two files: "
                "remove that line"
            )
    return [dict(zip(columns, row, strict=True)) for row in rows]


def _read_parquet(path: Path) -> Rows:
    import pyarrow.parquet

    with pyarrow.parquet.ParquetFile(path) as file:
        table = file.read()
    return table.rename_columns(_distinct_names(path, table.column_names)).to_pylist()


def _distinct_names(path: Path, columns: Sequence[str]) -> list[str]:
    """The names of the columns; of several without one, as pandas writes its indices, numbers.

    Raises:
        InputError: two columns have the same name.
    """
    if list(columns).count("") > 1:
        columns = [name or f"Unnamed: {number}" for number, name in enumerate(columns)]
    if twice := [name for name, count in Counter(columns).items() if count > 1]:
        raise InputError(
            f"{path.name}: the column {show_list(twice)} is there twice: rename or remove one"
        )
    return list(columns)


def _texts_and_labels(
    files: Mapping[Path, Rows], text_column: str, label_column: str
) -> dict[Path, tuple[list[str], np.ndarray]]:
    """The validated texts and labels of each file of a task."""
    texts, labels = {}, {}
    for path, rows in files.items():
        _check_column(path, rows, text_column, "text_column")
        _check_column(path, rows, label_column, "label_column")
        texts[path] = [row[text_column] for row in rows]
        validate_texts(texts[path], path.name)
        labels[path.name] = [row[label_column] for row in rows]
    labels = check_labels(labels, [path.name for path in files if path.suffix == ".csv"])
    return {path: (texts[path], labels[path.name]) for path in files}


def _check_column(path: Path, rows: Rows, column: str, setting: str) -> None:
    """Raise InputError if a row lacks the column; names the setting that chooses another."""
    lacking = [number for number, row in enumerate(rows, 1) if column not in row]
    if lacking:
        where = "" if len(lacking) == len(rows) else f" in {format_rows(lacking)}"
        raise InputError(
            f"{path.name}: no column {show(column)}{where}, only "
            f"{show_list(rows[lacking[0] - 1])}: name the column with {setting}"
        )

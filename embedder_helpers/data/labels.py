"""Labels: checked and typed for a whole task at once, and samples of rows stratified by them.

What is checked of texts is in `files`; which labels a split needs is left to `tasks`.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from embedder_helpers.errors import MAX_VALUE, InputError, shorten

SURROGATE = re.compile("[\ud800-\udfff]")
WHOLE_NUMBER = re.compile("0|-?[1-9][0-9]{0,17}")  # as Python writes it: neither 007 nor -0
MAX_LETTERS = 1000  # of a label
MAX_SINGLE = 100  # labels of a single text each, if these are most of the texts


def check_labels(
    labels: Mapping[str, Sequence[Any]], untyped: Collection[str] = ()
) -> dict[str, np.ndarray]:
    """Check the labels of all files of a task together, and give them one type.

    Args:
        labels: labels by the name of their file, which messages name.
        untyped: the files whose format has no types (CSV). Their labels are whole numbers if each
            of them is written as one and no other file has strings.

    Returns:
        The labels `(n,)` of each file: integers in all of them, or strings in all of them.

    Raises:
        InputError: labels that are missing, of another type or of two types, too long, not
            encodable, or alike except for white space; a label of its own for most texts.
    """
    columns = {where: [as_scalar(label) for label in column] for where, column in labels.items()}
    for where, column in columns.items():
        if faults := describe_faults(column, _missing_fault):
            raise InputError(f"{where}: {faults}")
    columns = _typed(columns, untyped)
    counts = Counter(label for column in columns.values() for label in column)
    total, single = counts.total(), list(counts.values()).count(1)
    if single > max(MAX_SINGLE, total / 2):
        raise InputError(
            f"{', '.join(columns)}: {len(counts)} different labels for {total} texts: "
            "is label_column right?"
        )
    if any(isinstance(label, str) for label in counts):
        for where, column in columns.items():
            if faults := describe_faults(column, _letters_fault):
                raise InputError(
                    f"{where}: a label must be a name of at most {MAX_LETTERS} letters, but found "
                    f"{faults}: is label_column right?"
                )
        _reject_lookalikes(columns)
    return {where: np.asarray(column) for where, column in columns.items()}


def as_scalar(value: Any) -> Any:
    """A NumPy scalar, or a tensor without dimensions, as the Python value; others as they are."""
    is_array = hasattr(value, "__array__") and getattr(value, "ndim", None) == 0
    return np.asarray(value).item() if is_array else value


def is_missing(value: Any) -> bool:
    """Whether a value is None, NaN, or pandas' NA or NaT."""
    return value is None or pd.isna(value) is True


def describe_faults(
    values: Sequence[Any],
    fault_of: Callable[[Any], str | None],
    numbers: Sequence[int] | None = None,
) -> str:
    """What is wrong with which values: `None in row 1; an empty text in row 3`.

    Args:
        values: values to check.
        fault_of: what is wrong with a value; None if nothing.
        numbers: row numbers of the values, from 0; None: in order.
    """
    numbers = range(len(values)) if numbers is None else numbers
    rows_by_fault: dict[str, list[int]] = {}
    for number, value in zip(numbers, values, strict=True):
        if fault := fault_of(value):
            rows_by_fault.setdefault(fault, []).append(int(number) + 1)
    return "; ".join(f"{fault} in {format_rows(rows)}" for fault, rows in rows_by_fault.items())


def format_rows(rows: Sequence[int], most: int = 5) -> str:
    """`row 7` or `3 rows (2, 5, 9)`, counted from 1."""
    if len(rows) == 1:
        return f"row {rows[0]}"
    more = ", …" if len(rows) > most else ""
    return f"{len(rows)} rows ({', '.join(map(str, rows[:most]))}{more})"


def stratified_sample(
    labels: np.ndarray, count: int, seed: int, *, take_one: bool = False, leave_one: bool = False
) -> np.ndarray:
    """Sample rows in proportion to their labels.

    Args:
        labels: `(n,)`.
        count: number of rows; all if there are fewer.
        seed: seed of the sample.
        take_one: whether to take at least one row of each label, as far as `count` allows.
        leave_one: whether to leave out at least one row of each label, so that the rest has every
            label; the sample may then be smaller than `count`.

    Returns:
        `(count,)` row numbers in ascending order. A smaller sample is part of a larger one.
    """
    generator = np.random.default_rng(seed)
    position = np.empty(len(labels))
    groups = np.unique(labels, return_inverse=True)[1]
    by_label = np.argsort(groups, kind="stable")
    for rows in np.split(by_label, np.flatnonzero(np.diff(groups[by_label])) + 1):
        rows = generator.permutation(rows)
        # Spread each label's rows evenly over 0 … 1 (the i-th of m at (i + u) / m, u random), so
        # that the rows of lowest position have every label in proportion.
        position[rows] = (np.arange(len(rows)) + generator.random()) / max(1, len(rows))
        position[rows[:1]] -= take_one
        if leave_one:
            position[rows[-1:]] = np.inf
    count = min(count, np.isfinite(position).sum())
    return np.sort(np.argsort(position, kind="stable")[:count])


def _missing_fault(label: Any) -> str | None:
    is_blank = isinstance(label, str) and not label.strip()
    return "no label" if is_blank or is_missing(label) else None


def _letters_fault(label: str) -> str | None:
    if len(label) > MAX_LETTERS:
        return "more"
    if SURROGATE.search(label):
        return "a lone surrogate"
    return "a NUL character" if "\0" in label else None


def _typed(columns: dict[str, list[Any]], untyped: Collection[str]) -> dict[str, list[Any]]:
    """The labels, all integers or all strings.

    Raises:
        InputError: they are of other types, or of two.
    """
    typed = [set(map(type, column)) for where, column in columns.items() if where not in untyped]
    # Each distinct spelling is matched once.
    spellings = set().union(*(columns[where] for where in untyped))
    if str not in set().union(*typed) and all(map(WHOLE_NUMBER.fullmatch, spellings)):
        columns = columns | {where: list(map(int, columns[where])) for where in untyped}
    types = {where: set(map(type, column)) for where, column in columns.items()}
    rule = "labels must be all whole numbers or all strings, one for each text, but are"
    for where, found in types.items():
        if found not in ({int}, {str}):
            names = " and ".join(sorted(kind.__name__ for kind in found))
            raise InputError(f"{where}: {rule} {names}")
        if found == {int} and not -(2**63) <= min(columns[where]) <= max(columns[where]) < 2**63:
            raise InputError(f"{where}: labels must be whole numbers of at most 64 bits")
    if len(set().union(*types.values())) > 1:
        names = (f"{kind.__name__} in {where}" for where, (kind,) in types.items())
        raise InputError(f"{rule} {' and '.join(names)}")
    return columns


def _reject_lookalikes(columns: Mapping[str, Sequence[str]]) -> None:
    """Raise InputError if two labels look alike, and would be two classes nevertheless."""
    known: dict[str, str] = {}
    for where, column in columns.items():
        for label in dict.fromkeys(column):
            form = unicodedata.normalize("NFC", " ".join(label.split()))
            other = known.setdefault(form, label)
            if other != label:
                # Escaped beyond ASCII, which shows how they differ.
                names = " and ".join(shorten(ascii(name), MAX_VALUE) for name in (other, label))
                raise InputError(
                    f"{where}: the labels {names} differ only in white space or in the encoding "
                    f"of a letter, as in row {column.index(label) + 1}: write them alike"
                )

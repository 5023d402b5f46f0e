"""Rules: the values that a setting may have, each as a sentence and as a function.

Which setting has which rule is left to `config`.
"""

import math
import operator
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

SELECTED = ("auto", "cheapest")  # cutoffs that are selected by their hidden states
MAX_INTEGER = 2**31 - 1  # of an int32, which batches and counts of tokens are


class Rule(NamedTuple):
    """The values a setting may have.

    Attributes:
        allowed: their description.
        accept: function that returns a value as it is kept, or raises ValueError, TypeError or
            OverflowError. NumPy's numbers, strings and arrays have become Python's before.
        is_text: whether the command line takes the value as it is, instead of as YAML.
        is_optional: whether it may be null.
    """

    allowed: str
    accept: Callable[[Any], Any]
    is_text: bool = False
    is_optional: bool = False


def without_numpy(value: Any) -> Any:
    """The value, with Python's numbers, strings and lists in place of NumPy's."""
    if isinstance(value, (list, tuple)):
        return list(map(_as_python, value))
    return _as_python(value)


def _as_python(value: Any) -> Any:
    is_numpy = type(value).__module__ == "numpy"  # which need not be imported to know
    return value.tolist() if is_numpy and hasattr(value, "tolist") else value


def one_of(values: Sequence[str]) -> Rule:
    """One of several strings; to a list, more may be appended later."""

    def accept(value):
        if value not in values:
            raise ValueError
        return value

    return Rule("one of " + ", ".join(values), accept)


def integer(minimum: int, maximum: int = MAX_INTEGER) -> Rule:
    """An integer in a closed range."""

    def accept(value):
        number = _index(value)
        if not minimum <= number <= maximum:
            raise ValueError
        return number

    return Rule(f"an integer from {minimum} to {maximum}", accept)


def positive() -> Rule:
    """A finite number above zero."""

    def accept(value):
        number = _number(value)
        if not (math.isfinite(number) and number > 0):
            raise ValueError
        return number

    return Rule("a number above 0", accept)


def fraction() -> Rule:
    """A number from 0 to below 1."""

    def accept(value):
        number = _number(value)
        if not 0 <= number < 1:
            raise ValueError
        return number

    return Rule("a number from 0 to below 1", accept)


def text() -> Rule:
    """A non-empty string."""

    def accept(value):
        if isinstance(value, Path):
            value = str(value)
        if not isinstance(value, str) or not value.strip():
            raise ValueError
        return value

    return Rule("a non-empty string", accept, is_text=True)


def flag() -> Rule:
    """True or false."""

    def accept(value):
        if not isinstance(value, bool):
            raise ValueError
        return value

    return Rule("true or false", accept)


def flag_or(word: str) -> Rule:
    """True, false or a word."""

    def accept(value):
        if not isinstance(value, bool) and value != word:
            raise ValueError
        return value

    return Rule(f"true, false or {word}", accept)


def cutoff_or_list() -> Rule:
    """A cutoff in either spelling, several, or a word; the range depends on the model."""

    def accept(value):
        if value in SELECTED:
            return value
        several = isinstance(value, list)
        numbers = tuple(map(_index, value if several else [value]))
        if not numbers or not all(1 <= abs(number) <= MAX_INTEGER for number in numbers):
            raise ValueError
        return numbers if several else numbers[0]

    cutoff = "an integer from 1 to the number of Gemma's layers, or from -1 (all layers) down"
    return Rule(f"{cutoff}, or a non-empty list of such integers, or auto, or cheapest", accept)


def optional(rule: Rule) -> Rule:
    """The rule, or null."""
    return rule._replace(
        allowed=f"{rule.allowed}, or null",
        accept=lambda value: None if value is None else rule.accept(value),
        is_optional=True,
    )


def _index(value: Any) -> int:
    if isinstance(value, bool):
        raise TypeError
    return operator.index(value)


def _number(value: Any) -> float:
    """The number; a numeric string is accepted, since YAML 1.1 (papermill's) reads 1e-5 as one."""
    if isinstance(value, bool):
        raise TypeError
    return float(value)

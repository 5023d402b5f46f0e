"""Check values that were read from JSON: by type annotations, and by the rules of settings.

A checksum shows damage; this shows what is no value at all, in files that are older than checksums
or come from a stranger. What values mean together is checked by the modules that read them.
"""

import dataclasses
import functools
import types
import typing
from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

from embedder_helpers.config import settings
from embedder_helpers.errors import show
from embedder_helpers.setting_rules import text

MAX_INTEGER = 2**63 - 1  # of NumPy and pandas
MAX_FLOAT = 1e300


class Condition(NamedTuple):
    """What `Annotated[type, condition]` demands besides the type.

    Attributes:
        allowed: description of the values, after "must be".
        holds: function that says whether a value of the type is one of them.
    """

    allowed: str
    holds: Callable[[Any], bool]


def between(minimum: float, maximum: float = MAX_INTEGER) -> Condition:
    """A number in a closed range."""
    is_bounded = maximum < MAX_INTEGER
    allowed = f"from {minimum:g} to {maximum:g}" if is_bounded else f"of at least {minimum:g}"
    return Condition(f"a number {allowed}", lambda value: minimum <= value <= maximum)


def having(*keys: str) -> Condition:
    """An object in which some keys have values other than null."""
    return Condition(
        f"an object with {', '.join(keys)}",
        lambda value: all(value.get(key) is not None for key in keys),
    )


def check_fields(values: Any, cls: type, where: str = "") -> None:
    """Check a JSON object by the annotations of a dataclass or a TypedDict.

    Args:
        values: the object.
        cls: class with annotations of JSON's types, unions of them, `Annotated` with conditions,
            and TypedDicts; fields without a default are required.
        where: path of the object in its file, for the message.

    Raises:
        ValueError: a value of another type, or a missing key.
        TypeError: an unknown key, as of a function's arguments.
    """
    if not isinstance(values, dict):
        raise ValueError(f"{where or 'it'} is {show(values)}, but must be an object")
    hints, required = _annotations(cls)
    if unknown := values.keys() - hints.keys():
        raise TypeError(f"{_join(where, show(min(unknown)))} is not known")
    _demand_keys(values, required, where)
    for name, value in values.items():
        _check_value(value, hints[name], _join(where, name))


def _check_value(value: Any, hint: Any, where: str) -> None:
    """Check a value of JSON by an annotation; arguments as in `check_fields`.

    Raises:
        ValueError: it is of another type.
        TypeError: an object in it has an unknown key.
    """
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Annotated:
        _check_value(value, arguments[0], where)
        _demand(arguments[1].holds(value), value, arguments[1].allowed, where)
    elif origin in (types.UnionType, typing.Union):
        _check_union(value, arguments, where)
    elif typing.is_typeddict(hint):
        check_fields(value, hint, where)
    elif origin is list:
        _demand(isinstance(value, list), value, "a list", where)
        for number, item in enumerate(value):
            _check_value(item, arguments[0], f"{where}[{number}]")
    elif origin is dict:
        _demand(isinstance(value, dict), value, "an object", where)
        for key, item in value.items():
            _check_value(item, arguments[1], _join(where, show(key)))
    elif hint is float:
        is_number = type(value) in (int, float) and abs(value) <= MAX_FLOAT
        _demand(is_number, value, "a finite number", where)
    elif hint is int:
        is_integer = type(value) is int and abs(value) <= MAX_INTEGER
        _demand(is_integer, value, "an integer of 64 bits", where)
    elif hint is not Any:
        _demand(isinstance(value, hint), value, f"of type {hint.__name__}", where)


def _check_union(value: Any, hints: tuple[Any, ...], where: str) -> None:
    """Check a value by several annotations, of which one must fit; the first one's error counts."""
    errors = []
    for hint in hints:
        try:
            return _check_value(value, hint, where)
        except ValueError as error:
            errors.append(error)
    raise errors[0]


def _demand(holds: bool, value: Any, allowed: str, where: str) -> None:
    if not holds:
        raise ValueError(f"{where} is {show(value)}, but must be {allowed}")


def _demand_keys(values: Mapping[str, Any], required: Collection[str], where: str) -> None:
    for name in required:
        if name not in values:
            raise ValueError(f"{_join(where, name)} is missing")


def _join(where: str, name: str) -> str:
    return f"{where}.{name}" if where else name


@functools.cache
def _annotations(cls: type) -> tuple[dict[str, Any], frozenset[str]]:
    """The annotations of a class by field, and the names of the required ones."""
    hints = typing.get_type_hints(cls, include_extras=True)
    if typing.is_typeddict(cls):
        required = cls.__required_keys__
        return {name: _without_qualifier(hint) for name, hint in hints.items()}, required
    missing = dataclasses.MISSING
    fields = dataclasses.fields(cls)
    return hints, frozenset(
        one.name for one in fields if one.default is missing and one.default_factory is missing
    )


def _without_qualifier(hint: Any) -> Any:
    is_qualified = typing.get_origin(hint) in (typing.Required, typing.NotRequired)
    return typing.get_args(hint)[0] if is_qualified else hint


def check_settings(values: Mapping[str, Any], required: Collection[str], where: str) -> None:
    """Check an Experiment's settings as a file stores them.

    Each is checked for itself: rules on several settings at once may be newer than the file. A
    fusion may be one that was registered, in another process.

    Args:
        values: settings by name, with lists in place of tuples.
        required: names of those that may not be missing.
        where: path of the object in its file, for the message.

    Raises:
        ValueError: a missing setting, or a value that is not allowed.
        TypeError: an unknown setting.
    """
    known = settings()
    if unknown := values.keys() - known.keys():
        raise TypeError(f"{where}.{show(min(unknown))} is not known")
    _demand_keys(values, required, where)
    for name, value in values.items():
        rule = text() if name == "fusion" else known[name].rule
        try:
            accepted = rule.accept(value)
            stored = list(accepted) if isinstance(accepted, tuple) else accepted
            holds = stored == value and isinstance(stored, bool) == isinstance(value, bool)
        except (ValueError, TypeError, OverflowError):
            holds = False
        _demand(holds, value, rule.allowed, f"{where}.{name}")

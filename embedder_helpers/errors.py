"""The error for invalid input, and how messages show values: on one line, short, no secrets."""

import os
import re
import reprlib
from collections.abc import Callable, Iterable
from typing import Any

MAX_MESSAGE = 1000  # letters
MAX_VALUE = 100
SECRETS = (  # variables whose values no message, log line or file may show
    "HF_TOKEN", "HUGGING_FACE_TOKEN", "HUGGING_FACE_HUB_TOKEN", "KAGGLE_API_TOKEN", "KAGGLE_KEY",
    "WANDB_API_KEY", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN",
)  # fmt: skip


class InputError(ValueError):
    """Invalid input; the message says what is wrong, where, and what to do about it.

    A message longer than `MAX_MESSAGE` letters is cut in its middle.
    """

    def __init__(self, message: str):
        super().__init__(shorten(message, MAX_MESSAGE))


class _BoundedRepr(reprlib.Repr):
    """`repr` that stays short, also of values that are nested, large or refer to themselves."""

    def __init__(self):
        super().__init__()
        self.maxlevel = 3
        self.maxstring = self.maxother = self.maxlong = MAX_VALUE


_repr = _BoundedRepr().repr


def show(value: Any) -> str:
    """A value as Python spells it, in at most about `MAX_VALUE` letters, for messages."""
    try:
        return shorten(" ".join(_repr(value).splitlines()), MAX_VALUE)
    except Exception:  # a class of somebody else may fail in its __repr__
        return f"a value of type {type(value).__name__}"


def show_list(values: Iterable[Any], most: int = 10, form: Callable[[Any], str] = show) -> str:
    """The first values, separated by commas: `'a', 'b' and 742 more`."""
    values = list(values)
    shown = ", ".join(map(form, values[:most]))
    return shown if len(values) <= most else f"{shown} and {len(values) - most} more"


def shorten(text: str, most: int) -> str:
    """The text, with its middle left out if it has more than `most` letters."""
    if len(text) <= most:
        return text
    end = (most - 3) // 3
    return f"{text[: most - 3 - end]} … {text[-end:]}"


def check_characters(text: str, name: str) -> None:
    """Check that a text can be (part of) a path, and be written to a file.

    Args:
        text: a name, path or other setting.
        name: what it is the value of, for the message.

    Raises:
        InputError: it has a NUL character, or half of a surrogate pair, which UTF-8 cannot encode.
    """
    for character in text:
        if character == "\0" or "\ud800" <= character <= "\udfff":
            raise InputError(
                f"{name} is {show(text)}, which has the character {character!r}: no path or file "
                "can contain it, so leave it out"
            )


def redact(text: str) -> str:
    """A text of a library's without secrets, and without the user in an address."""
    text = re.sub(r"//[^/\s]*@", "//", text)
    for secret in filter(None, map(os.environ.get, SECRETS)):
        text = text.replace(secret, "***")
    return text


def reason_of(error: Exception) -> str:
    """What went wrong, on one line, bounded and without secrets."""
    text = str(error) if isinstance(error, InputError) else f"{type(error).__name__}: {error}"
    text = redact(text).encode(errors="backslashreplace").decode()  # half of a surrogate pair
    return shorten(" ".join(text.split()), MAX_MESSAGE)

"""YAML text and files, read strictly as YAML 1.2: what is ambiguous or of no use is an error.

PyYAML only parses. Its own values follow YAML 1.1, where `042` is 34, `1:30` is 90, `no` is false,
`2024-01-01` is a date, and the last of two equal keys wins. What the values mean is checked by the
modules that read them.
"""

import itertools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from embedder_helpers.errors import show
from embedder_helpers.utils.files import read_bounded

MAX_BYTES = 2**20
MAX_DEPTH = 20
MAX_DIGITS = 1000  # of a number
MAX_MERGED = 10**6  # keys, with those that `<<` repeats

# Plain scalars of YAML 1.2's core schema; the others are strings. Underscores in numbers are
# Python's and YAML 1.1's; no setting may be infinite.
WORDS = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL")),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}
TAGS = {"!!str": str, "!!int": int, "!!float": (int, float), "!!bool": bool, "!!null": type(None)}
_DIGITS = "[0-9]+(?:_[0-9]+)*"
INTEGER = re.compile(f"[-+]?{_DIGITS}")
OCTAL_OR_HEXADECIMAL = re.compile("0o[0-7]+|0x[0-9a-fA-F]+")
DECIMAL = re.compile(rf"[-+]?(?:{_DIGITS}(?:\.(?:{_DIGITS})?)?|\.{_DIGITS})(?:[eE][-+]?[0-9]+)?")


def read_yaml(path: Path) -> Any:
    """Read a YAML file.

    Raises:
        OSError: it does not exist, cannot be read, or is not a regular file.
        ValueError: it has more than `MAX_BYTES` bytes, or is not YAML as `parse_yaml` reads it.
    """
    return parse_yaml(read_bounded(path, MAX_BYTES).decode())


def parse_yaml(text: str) -> Any:
    """Parse one YAML document into dictionaries, lists, strings, numbers, booleans and None.

    Aliases and the merge key `<<` are followed. Keys are strings, as they are written.

    Raises:
        ValueError: it is not YAML, or has a key twice, a tag, several documents, or more than
            `MAX_DEPTH` levels; says in which line.
    """
    try:
        return _Reader(text).document()
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1
        raise ValueError(f"line {line}: {error.problem or error.context}") from None
    except (yaml.YAMLError, OverflowError) as error:  # OverflowError: "\Uffffffff"
        raise ValueError(" ".join(str(error).split())) from None


class _Reader:
    """Makes values of PyYAML's events, which nothing has interpreted or multiplied yet."""

    def __init__(self, text: str):
        self.events = yaml.parse(text, Loader=yaml.SafeLoader)
        self.anchors: dict[str, Any] = {}
        self.merged = 0

    def document(self) -> Any:
        next(self.events)  # the start of the stream
        start = next(self.events)
        if isinstance(start, yaml.StreamEndEvent):
            return None
        if start.version not in (None, (1, 2)):
            raise _fault(start, "YAML 1.1 is not read: remove `%YAML`")
        value = self.value(next(self.events), 1)
        next(self.events)  # the end of the document
        end = next(self.events)
        if not isinstance(end, yaml.StreamEndEvent):
            raise _fault(end, "there is a second document: remove `---`")
        return value

    def value(self, event: yaml.Event, depth: int) -> Any:
        if isinstance(event, yaml.AliasEvent):
            if event.anchor not in self.anchors:
                raise _fault(event, f"there is no anchor {show(event.anchor)} above")
            return self.anchors[event.anchor]
        if depth > MAX_DEPTH:
            raise _fault(event, f"there are more than {MAX_DEPTH} levels")
        if isinstance(event, yaml.ScalarEvent):
            value = self.scalar(event)
        elif event.tag is not None:
            raise _fault(event, f"the tag {show(event.tag)} is not read: remove it")
        elif isinstance(event, yaml.SequenceStartEvent):
            value = [self.value(item, depth + 1) for item in self.items()]
        else:
            value = self.mapping(depth + 1)
        if event.anchor:
            self.anchors[event.anchor] = value
        return value

    def scalar(self, event: yaml.ScalarEvent) -> Any:
        tag = (event.tag or "").replace("tag:yaml.org,2002:", "!!")
        if tag == "!!str" or not (tag or event.implicit[0]):  # the latter: in quotes
            return event.value
        value = _scalar(event.value)
        if tag and not (tag in TAGS and isinstance(value, TAGS[tag])):
            raise _fault(event, f"{show(event.value)} with the tag {show(tag)} is not read")
        return value

    def items(self) -> Iterator[yaml.Event]:
        """The first event of every item, up to the end of the list or mapping."""
        return itertools.takewhile(
            lambda event: not isinstance(event, yaml.CollectionEndEvent), self.events
        )

    def mapping(self, depth: int) -> dict[str, Any]:
        values: dict[str, Any] = {}
        merged: dict[str, Any] = {}
        for event in self.items():
            if not isinstance(event, yaml.ScalarEvent) or event.tag is not None:
                raise _fault(event, "a key must be a word")
            key, value = event.value, self.value(next(self.events), depth)
            if key == "<<" and not merged:
                merged = self.merge(event, value)
            elif key in (*values, "<<"):
                raise _fault(event, f"the key {show(key)} is there twice")
            else:
                values[key] = value
        return merged | values

    def merge(self, event: yaml.Event, bases: Any) -> dict[str, Any]:
        """The values of one mapping, or of several, the first of which has precedence."""
        merged: dict[str, Any] = {}
        for base in bases if isinstance(bases, list) else [bases]:
            if not isinstance(base, dict):
                raise _fault(event, "`<<` takes a mapping, such as *name, or a list of mappings")
            self.merged += len(base)
            if self.merged > MAX_MERGED:
                raise _fault(event, f"`<<` repeats more than {MAX_MERGED} keys")
            merged = base | merged
        return merged


def _scalar(text: str) -> Any:
    """The value of a scalar without quotes."""
    if text in WORDS:
        return WORDS[text]
    if len(text) > MAX_DIGITS:
        return text
    if INTEGER.fullmatch(text):
        return int(text)
    if OCTAL_OR_HEXADECIMAL.fullmatch(text):
        return int(text, 0)
    return float(text) if DECIMAL.fullmatch(text) else text


def _fault(event: yaml.Event, problem: str) -> ValueError:
    return ValueError(f"line {event.start_mark.line + 1}: {problem}")

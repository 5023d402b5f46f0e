"""Strategies for what nobody should have to expect: odd values, and documents with odd places."""

import copy
import json
from collections.abc import Iterator
from typing import Any

import hypothesis
from hypothesis import strategies as st

HUGE = 10**9  # what a stranger's file may ask for
WORDS = [
    "", " ", "auto", "null", "nan", "-1", "1e999", "..", "../../etc/passwd", "/", "a\0b", "\ud800",
    "x" * 300, "é" * 5000, "</script>", "{}", "%s", "$HOME", "~", "--help", "\r\n", "\u202e", "|",
]  # fmt: skip

words = st.sampled_from(WORDS) | st.text(max_size=8)
numbers = (
    st.sampled_from([0, -1, 1, 2, 3, HUGE, -HUGE, 2**31, 2**63, 2**64, 10**400, 0.5, -0.0, 1e308])
    | st.integers(-20, 600)
    | st.floats()
)
scalars = st.none() | st.booleans() | numbers | words
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(words, inner, max_size=3),
    max_leaves=8,
)


@st.composite
def damaged_bytes(draw: st.DrawFn, content: bytes) -> bytes:
    """Some bytes of a file cut out, doubled or replaced."""
    for _ in range(draw(st.integers(1, 3))):
        start = draw(st.integers(0, len(content)))
        end = draw(st.integers(start, min(len(content), start + 200)) | st.just(len(content)))
        between = draw(st.binary(max_size=8) | st.just(content[start:end] * 2))
        content = content[:start] + between + content[end:]
    return content


@st.composite
def odd_document(draw: st.DrawFn, document: Any, most: int = 2) -> Any:
    """A JSON document with some places left out, replaced, or added to."""
    document = copy.deepcopy(document)
    for _ in range(draw(st.integers(1, most))):
        places = list(_places(document))
        if not places:
            break
        holder, name = draw(st.sampled_from(places))
        before = holder[name]
        action = draw(st.sampled_from(["replace", "replace", "replace", "delete", "add"]))
        value = None if action == "delete" else draw(values)
        if action == "delete":
            del holder[name]
        elif action == "replace":
            holder[name] = value
        elif isinstance(holder, dict):
            name = draw(words)
            holder[name] = value
        else:
            holder.insert(name, value)
        hypothesis.note(f"{action} {name!r}: {str(before)[:200]} with {str(value)[:200]}")
    return document


def _places(document: Any) -> Iterator[tuple[Any, Any]]:
    """Every place in a document, as its holder and its name or number there."""
    items = document.items() if isinstance(document, dict) else enumerate(document)
    for name, value in list(items):
        yield document, name
        if isinstance(value, (dict, list)):
            yield from _places(value)


def as_json(document: Any) -> str:
    """JSON as Python writes it: also NaN, infinities and lone surrogates."""
    return json.dumps(document)

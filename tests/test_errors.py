"""How messages show values, and that they stay short."""

import numpy as np
import pandas as pd
import pytest

from embedder_helpers.errors import MAX_MESSAGE, MAX_VALUE, InputError, shorten, show, show_list


def billion():
    """A list that Python would spell with ten billion letters."""
    values = ["lol"]
    for _ in range(10):
        values = [values] * 10
    return values


class Failing:
    def __repr__(self):
        raise RuntimeError


def test_a_short_value_is_shown_as_python_spells_it():
    assert show("a'b") == '"a\'b"' and show(None) == "None" and show([1, "a"]) == "[1, 'a']"


@pytest.mark.parametrize(
    "value",
    ["x" * 10**6, billion(), {1: billion()}, 10**4000, list(range(10**5)), "\n" * 1000, Failing(),
     np.zeros(10**5), pd.DataFrame({"a": [1, 2]})],
    ids=lambda value: type(value).__name__,
)  # fmt: skip
def test_any_value_is_shown_on_one_short_line(value):
    assert len(show(value)) <= MAX_VALUE
    assert len(show(value).splitlines()) == 1


def test_a_long_list_says_how_many_values_are_left_out():
    assert show_list("abc") == "'a', 'b', 'c'"
    assert show_list(range(752), 2) == "0, 1 and 750 more"


def test_a_long_text_keeps_its_beginning_and_its_end():
    text = shorten("begin" + "x" * 500 + "end", 50)
    assert len(text) <= 50 and text.startswith("begin") and text.endswith("end")


def test_a_long_message_keeps_what_is_wrong_and_what_to_do():
    message = str(InputError("setting is " + "x" * 10**5 + ": use another"))
    assert len(message) <= MAX_MESSAGE
    assert message.startswith("setting is") and message.endswith("use another")

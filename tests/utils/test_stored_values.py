"""Values read from JSON, checked by type annotations and by the rules of settings."""

from dataclasses import dataclass
from typing import Annotated, Any, NotRequired, TypedDict

import pytest

from embedder_helpers.config import Experiment
from embedder_helpers.utils.stored_values import between, check_fields, check_settings, having


class Inner(TypedDict):
    a: int
    b: NotRequired[str]


@dataclass
class Outer:
    number: float
    score: Annotated[float, between(0, 1)] | None
    words: list[str]
    inner: Inner
    counts: Annotated[dict[str, Annotated[int, between(0)]], having("total")]
    labels: list[int | str]
    anything: dict[str, Any]
    later: str = ""


VALID = {
    "number": 2,
    "score": 0.5,
    "words": ["a"],
    "inner": {"a": 1},
    "counts": {"total": 1},
    "labels": [1, "b"],
    "anything": {"a": [None]},
}


def test_values_of_the_annotated_types_are_accepted():
    check_fields(VALID, Outer)
    check_fields(VALID | {"score": None, "inner": {"a": 1, "b": "c"}, "later": "d"}, Outer)


@pytest.mark.parametrize(
    "name, value",
    [
        ("number", True),
        ("number", "2"),
        ("number", 10**400),
        ("score", 1.5),
        ("words", "a"),
        ("words", [None]),
        ("inner", []),
        ("inner", {}),
        ("inner", {"a": 2**63}),
        ("counts", {}),
        ("counts", {"total": None}),
        ("counts", {"total": -1}),
        ("labels", [True]),
        ("labels", [1.5]),
        ("anything", []),
        ("later", None),
    ],
)
def test_a_value_of_another_type_is_named(name, value):
    with pytest.raises(ValueError, match=name):
        check_fields(VALID | {name: value}, Outer)


@pytest.mark.parametrize("changed", [{"unknown": 1}, {"inner": {"a": 1, "unknown": 2}}])
def test_an_unknown_key_is_an_error_of_its_own(changed):
    with pytest.raises(TypeError, match="'unknown' is not known"):
        check_fields(VALID | changed, Outer)


@pytest.mark.parametrize(("condition", "limits"), [(between(0, 1), "from 0 to 1"),
                                                   (between(1), "of at least 1")])  # fmt: skip
def test_limits_are_plain_numbers(condition, limits):
    assert condition.allowed == f"a number {limits}"


def test_a_missing_key_is_named():
    with pytest.raises(ValueError, match="words is missing"):
        check_fields({key: value for key, value in VALID.items() if key != "words"}, Outer)


def test_the_path_of_a_nested_value_is_named():
    with pytest.raises(ValueError, match=r"inner\.a is 'x'"):
        check_fields(VALID | {"inner": {"a": "x"}}, Outer)


def test_settings_are_accepted_as_an_experiment_stores_them():
    every = Experiment(llm_layers=(1, 2), clip_norm=1, learning_rate="1e-4").as_dict()
    check_settings(every, every, "experiment")
    check_settings({"fusion": "registered_elsewhere"}, [], "experiment")


@pytest.mark.parametrize(
    "changed",
    [{"epochs": -1}, {"probe": 0}, {"kind": "other"}, {"learning_rate": "1e-4"}, {"fusion": 1},
     {"warmup": True}, {"llm_layers": []}],
)  # fmt: skip
def test_a_setting_that_no_experiment_has_is_an_error(changed):
    with pytest.raises(ValueError, match=f"experiment.*{next(iter(changed))}"):
        check_settings(changed, [], "experiment")


def test_an_unknown_setting_is_an_error_of_its_own():
    with pytest.raises(TypeError, match="experiment.'epoch' is not known"):
        check_settings({"epoch": 1}, [], "experiment")


def test_a_missing_setting_is_named():
    with pytest.raises(ValueError, match=r"experiment\.seed is missing"):
        check_settings({}, ["seed"], "experiment")

"""YAML: values of version 1.2, and an error for what is ambiguous, hostile or damaged."""

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedder_helpers.utils import yaml_files
from embedder_helpers.utils.yaml_files import parse_yaml, read_yaml


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("", None),
        ("# only a comment", None),
        ("~", None),
        ("null", None),
        ("true", True),
        ("False", False),
        ("12", 12),
        ("-3", -3),
        ("+4", 4),
        ("007", 7),
        ("10_000", 10_000),
        ("0o17", 15),
        ("0x1F", 31),
        ("2.5", 2.5),
        ("-.5", -0.5),
        ("3.", 3.0),
        ("2e-4", 2e-4),
        ("1_0.5E+3", 10_500.0),
        ("'7'", "7"),
        ('"true"', "true"),
        ("[1, [a, {b: c}]]", [1, ["a", {"b": "c"}]]),
        ("a: 1\nb:\n- 2\n- x y", {"a": 1, "b": [2, "x y"]}),
        ("{1: a, null: b, no: c}", {"1": "a", "null": "b", "no": "c"}),
        ("!!float 1e-5", 1e-5),
        ("!!str 033", "033"),
        ("!!int '7'", 7),
        ("9" * 5000, "9" * 5000),
        ("a: |\n  two\n  lines\n", {"a": "two\nlines\n"}),
        ("\ufeffa: 1", {"a": 1}),
        ("%YAML 1.2\n---\na: 010", {"a": 10}),
    ],
)
def test_values_are_those_of_yaml_1_2(text, value):
    parsed = parse_yaml(text)
    assert parsed == value and type(parsed) is type(value)


@pytest.mark.parametrize(
    "text", ["yes", "No", "on", "n", "12:30:45", "2030-12-31", "0b11", "1__0", ".inf", ".nan", "="]
)
def test_what_only_yaml_1_1_interprets_is_a_string(text):
    assert parse_yaml(text) == text


def test_an_alias_is_the_value_of_its_anchor():
    assert parse_yaml("a: &x [1, &y 2]\nb: *x\nc: *y") == {"a": [1, 2], "b": [1, 2], "c": 2}


@pytest.mark.parametrize(
    ("merge", "merged"),
    [
        ("<<: *x", {"a": 1, "b": 2, "c": 0}),
        ("<<: [*y, *x]", {"a": 5, "b": 2, "c": 0}),
        ("b: 7, <<: *x", {"a": 1, "b": 7, "c": 0}),
    ],
)
def test_a_merge_key_adds_what_the_mapping_lacks(merge, merged):
    document = f"x: &x {{a: 1, b: 2}}\ny: &y {{a: 5}}\nz: {{c: 0, {merge}}}"
    assert parse_yaml(document)["z"] == merged


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("a: 1\nb: 2\na: 3", "line 3: the key 'a' is there twice"),
        ("{'7': 1, 7: 2}", "the key '7' is there twice"),
        ("a: {b: 1, b: 1}", "line 1: the key 'b' is there twice"),
        ("a: !!int x", "line 1: 'x' with the tag '!!int'"),
        ("a: ! 1", "the tag '!'"),
        ("a: !!timestamp x", "the tag '!!timestamp'"),
        ("!!set {a}", "set' is not read"),
        ("!!python/object/apply:os.getcwd []", "os.getcwd' is not read"),
        ("<<: {a: 1}\n<<: {b: 1}", "line 2: the key '<<' is there twice"),
        ("!!str a: 1", "a key must be a word"),
        ("{[1]: 2}", "a key must be a word"),
        ("? {a: 1}\n: 2", "a key must be a word"),
        ("&a x: 1\n*a : 2", "line 2: a key must be a word"),
        ("a: *b", "there is no anchor 'b'"),
        ("&a [*a]", "there is no anchor 'a'"),
        ("--- 1\n--- 2", "line 2: there is a second document"),
        ("%YAML 1.1\n---\na: 010", "YAML 1.1 is not read"),
        ("<<: 3", "takes a mapping"),
        ("a: [1", "line 1"),
        ("a:\n\t- 1", "line 2"),
        ("a: b: c", "line 1"),
        ('"\\Uffffffff"', ""),  # Python's versions word it differently
        ("a\0b", "#x0000"),
    ],
)
def test_the_error_says_what_is_wrong_and_where(text, fault):
    with pytest.raises(ValueError) as error:
        parse_yaml(text)
    assert fault in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("opening", ["[", "{a: ", "- ", "? "])
def test_deep_nesting_is_an_error_before_the_end_is_read(opening):
    with pytest.raises(ValueError, match="more than 20 levels|a key must be a word"):
        parse_yaml(opening * 50_000)
    assert parse_yaml("[" * 19 + "1" + "]" * 19)


def test_merge_keys_do_not_multiply(monkeypatch):
    monkeypatch.setattr(yaml_files, "MAX_MERGED", 100)
    mapping = "x: &x {" + ", ".join(f"k{i}: 0" for i in range(30)) + "}\n"
    assert parse_yaml(mapping + "y: [{<<: *x}, {<<: *x}, {<<: *x}]")
    with pytest.raises(ValueError, match="repeats more than 100 keys"):
        parse_yaml(mapping + "y: [{<<: *x}, {<<: *x}, {<<: [*x, *x]}]")


def test_a_large_file_is_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(yaml_files, "MAX_BYTES", 100)
    path = tmp_path / "large.yaml"
    path.write_text("#" * 100)
    assert read_yaml(path) is None
    path.write_text("#" * 101)
    with pytest.raises(ValueError, match="larger than 100 bytes"):
        read_yaml(path)


@pytest.mark.skipif(not os.path.exists("/dev/zero"), reason="the system has no devices as files")
def test_a_device_is_not_read():
    with pytest.raises(OSError, match="regular file"):
        read_yaml("/dev/zero")


def test_a_file_in_another_encoding_is_an_error(tmp_path):
    (tmp_path / "a.yaml").write_text("a: ü", encoding="utf-16")
    with pytest.raises(ValueError, match="utf-8"):
        read_yaml(tmp_path / "a.yaml")


SYNTAX = st.sampled_from(list("[]{}:,-?&*!|>'\"%@`#\\ \n\t~<=09ax.") + ["<<: ", "- ", "--- ", "*a"])


@given(st.text(max_size=50) | st.lists(SYNTAX, max_size=40).map("".join))
def test_any_text_has_a_value_or_one_sentence(text):
    try:
        parse_yaml(text)
    except ValueError as error:
        assert str(error) and "\n" not in str(error)

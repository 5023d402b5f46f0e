"""JSON files that are read back: what is refused, and that one wrong bit is noticed."""

import json
import os

import pytest

from embedder_helpers.utils.json_files import (
    check_checksum,
    parse_json,
    read_json,
    with_checksum,
    write_json,
)

VALUES = {"name": "Größe 😀", "scores": [0.1, -1e-300, 3], "nested": {"none": None, "yes": True}}


def test_a_file_is_read_back_as_it_was_written(tmp_path):
    write_json(tmp_path / "a.json", VALUES)
    assert check_checksum(read_json(tmp_path / "a.json")) == VALUES
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_no_flipped_bit_makes_other_values(tmp_path):
    content = with_checksum(VALUES).encode()
    for position in range(8 * len(content)):
        damaged = bytearray(content)
        damaged[position // 8] ^= 1 << position % 8
        try:
            values = check_checksum(parse_json(damaged.decode()))
        except ValueError:
            continue
        # A key "checksum" that is called otherwise is for the reader of the file, who knows all.
        assert values == VALUES or values.keys() - VALUES.keys(), position


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        '{"a": NaN}',
        '{"a": -Infinity}',
        '{"a": 1e999}',
        '{"a": 1, "a": 2}',
        '{"a": "\\ud800"}',
        '["\\uDFFF"]',
        "[" * 100_000,
        "1" * 100_000,
    ],
    ids=lambda text: text[:16],
)
def test_what_is_not_strict_json_is_an_error(text):
    with pytest.raises(ValueError):
        parse_json(text)


def test_a_whole_surrogate_pair_is_one_letter():
    assert parse_json(json.dumps("😀")) == "😀"


def test_a_file_that_is_too_large_or_no_text_is_an_error(tmp_path):
    path = tmp_path / "a.json"
    path.write_bytes(b'"' + b"a" * 100 + b'"')
    with pytest.raises(ValueError, match="larger than 99 bytes"):
        read_json(path, 99)
    path.write_bytes(b'"\xff"')
    with pytest.raises(ValueError):
        read_json(path)


@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo])
def test_what_is_no_regular_file_is_an_error_not_a_wait(tmp_path, make):
    make(tmp_path / "a.json")
    with pytest.raises(OSError):
        read_json(tmp_path / "a.json")


@pytest.mark.parametrize("values", [[], "text", None, 1])
def test_a_checksum_is_one_of_an_object(values):
    with pytest.raises(ValueError, match="not a JSON object"):
        check_checksum(values)


def test_values_without_a_checksum_are_accepted_and_those_with_a_wrong_one_not():
    assert check_checksum(VALUES) == VALUES
    for wrong in ("", None, "0" * 64):
        with pytest.raises(ValueError, match="checksum"):
            check_checksum(VALUES | {"checksum": wrong})


def test_a_number_that_is_not_finite_is_not_written(tmp_path):
    with pytest.raises(ValueError):
        write_json(tmp_path / "a.json", {"a": float("nan")})
    assert not list(tmp_path.iterdir())

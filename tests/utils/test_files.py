"""Files: writable folders, atomic writes, checksums, and the package's own folders."""

import hashlib
import os
from pathlib import Path

import pytest

from embedder_helpers.errors import InputError
from embedder_helpers.utils import files
from embedder_helpers.utils.files import (
    atomic_write,
    file_digest,
    package_path,
    path_exists,
    writable_folder,
)


def test_a_writable_folder_is_made_with_its_parents_and_left_empty(tmp_path):
    folder = writable_folder(tmp_path / "a" / "b")
    assert folder.is_dir() and not list(folder.iterdir())


@pytest.mark.parametrize("below", [".", "results", "a/b"])
def test_the_error_for_a_folder_that_cannot_be_made_names_it_and_the_setting(tmp_path, below):
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(InputError, match="cannot be written .*--out") as error:
        writable_folder(file / below)
    assert str(file) in str(error.value)


def test_the_setting_in_that_error_is_the_callers(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="with states_dir"):
        writable_folder(tmp_path / "file", "states_dir")


def test_an_interrupted_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "scores.csv"
    assert atomic_write(path, lambda part: part.write_text("1")) == path

    def interrupt(part):
        part.write_text("2, but not")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        atomic_write(path, interrupt)
    assert path.read_text() == "1" and list(tmp_path.iterdir()) == [path]


def test_an_atomic_write_gives_a_file_of_the_same_name_to_write(tmp_path):
    names = []
    atomic_write(tmp_path / "a.npy", lambda part: (names.append(part.name), part.write_text("")))
    assert names == ["a.npy"]


def test_a_digest_is_the_files_sha256_and_follows_its_changes(tmp_path):
    path = tmp_path / "file"
    for modified, content in enumerate((b"one", b"two")):
        path.write_bytes(content)
        os.utime(path, ns=(modified, modified))
        assert file_digest(path) == hashlib.sha256(content).digest()


def test_a_digest_of_an_unchanged_file_is_computed_once(tmp_path, monkeypatch):
    path = tmp_path / "file"
    path.write_bytes(b"one")
    digest = file_digest(path)
    monkeypatch.setattr(Path, "open", None)
    assert file_digest(path) == digest


def test_a_path_exists_unless_missing_or_too_long(tmp_path):
    assert path_exists(tmp_path)
    assert not path_exists(tmp_path / "missing")
    assert not path_exists(tmp_path / ("x" * 5000))


def test_a_folder_of_the_project_is_found_in_a_clone_and_in_a_wheel(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "PACKAGE", tmp_path / "package")
    assert package_path("reference", "results/reference") == tmp_path / "results" / "reference"
    (tmp_path / "package" / "reference").mkdir(parents=True)
    assert package_path("reference", "results/reference") == tmp_path / "package" / "reference"

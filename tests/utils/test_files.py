"""Files: paths of people, writable folders, atomic writes, digests, the package's own folders."""

import hashlib
import os
import signal
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pandas as pd
import pytest
from matplotlib.figure import Figure

from embedder_helpers.errors import InputError
from embedder_helpers.utils import files
from embedder_helpers.utils.files import (
    as_path,
    atomic_write,
    file_digest,
    package_path,
    path_exists,
    writable_file,
    writable_folder,
)

posix = pytest.mark.skipif(os.name != "posix", reason="needs links and devices")


# Paths that people give


@pytest.fixture
def home(tmp_path, monkeypatch):
    """The home folder."""
    for name in ("HOME", "USERPROFILE"):
        monkeypatch.setenv(name, str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.mark.parametrize("kind", [str, Path])
def test_a_tilde_is_the_home_folder(home, kind):
    assert as_path(kind("~/results")) == home / "results"
    assert writable_folder(kind("~/results")) == home / "results"
    assert list(home.iterdir()) == [home / "results"]


@pytest.mark.parametrize("name", ["a~", "a/~/b", "~no-such-user/b", "results"])
def test_other_paths_stay_as_they_are(home, name):
    assert as_path(name) == Path(name)


@pytest.mark.parametrize(
    "path", ["a\0b", "a\ud800", "x" * 5000, "x/" * 5000, Path("x" * 300), 5, None], ids=range(7)
)
def test_what_cannot_be_a_path_is_one_short_sentence(path):
    with pytest.raises(InputError, match="cannot be the path") as error:
        as_path(path)
    assert len(str(error.value)) < 300
    with pytest.raises(InputError):
        writable_folder(path)


def test_a_path_exists_unless_missing_or_impossible(tmp_path):
    assert path_exists(tmp_path)
    assert not path_exists(tmp_path / "missing")
    assert not path_exists(tmp_path / ("x" * 5000))
    assert not path_exists(tmp_path / "a\0b")


# Folders and files that can be written


@pytest.mark.parametrize("name", ["new.csv", "new folder/a.CSV"])
def test_a_file_to_write_has_its_folder_made_and_is_not_made_itself(tmp_path, name):
    file = writable_file(str(tmp_path / name), ".csv", "--out")
    assert file == tmp_path / name and file.parent.is_dir() and not file.exists()


@pytest.mark.parametrize(
    ("name", "words"), [(".", "is a folder"), ("a.json", "end in .csv"), ("a", "end in .csv")]
)
def test_a_file_to_write_is_no_folder_and_has_its_suffix(tmp_path, name, words):
    with pytest.raises(InputError, match=f"--out.*{words}"):
        writable_file(tmp_path / name, ".csv", "--out")


@posix
def test_a_device_to_write_needs_no_suffix():
    assert writable_file(os.devnull, ".csv", "--out") == Path(os.devnull)


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


# Atomic writes


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


def write(path, content):
    return atomic_write(path, lambda part: part.write_text(content))


@posix
@pytest.mark.parametrize("exists", [True, False])
def test_a_link_is_followed(tmp_path, exists):
    target, link = tmp_path / "elsewhere" / "target.csv", tmp_path / "link.csv"
    target.parent.mkdir()
    if exists:
        target.write_text("before")
    link.symlink_to(target)
    assert write(link, "after") == link
    assert link.is_symlink() and target.read_text() == "after"
    assert list(target.parent.iterdir()) == [target]


@posix
def test_a_pipe_or_device_is_written_to_and_stays_what_it_is(tmp_path):
    pipe = tmp_path / "pipe.csv"
    os.mkfifo(pipe)
    read = []
    reader = threading.Thread(target=lambda: read.append(pipe.read_text()), daemon=True)
    reader.start()
    write(pipe, "content")
    reader.join(timeout=60)
    assert read == ["content"] and stat.S_ISFIFO(pipe.stat().st_mode)


@pytest.mark.skipif(not os.path.exists("/dev/stdout"), reason="needs the path of a stream")
def test_an_output_stream_that_leads_to_a_file_keeps_what_the_file_holds(tmp_path):
    code = (
        "from pathlib import Path\n"
        "from embedder_helpers.utils.files import atomic_write\n"
        "atomic_write(Path('/dev/stdout'), lambda part: part.write_text('2'))"
    )
    with (tmp_path / "log").open("a") as log:
        log.write("1")
        log.flush()
        subprocess.run([sys.executable, "-c", code], stdout=log, check=True, timeout=120)
    assert (tmp_path / "log").read_text() == "12"


KILLED = """
import os, signal, sys
from pathlib import Path
from embedder_helpers.utils.files import atomic_write

def save(part):
    part.write_text("half of it")
    os.kill(os.getpid(), signal.SIGKILL)

atomic_write(Path(sys.argv[1]), save)
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_what_a_killed_process_left_is_removed_by_the_next_write_in_the_folder(tmp_path):
    process = subprocess.run([sys.executable, "-c", KILLED, tmp_path / "a.csv"], timeout=120)
    assert process.returncode == -signal.SIGKILL
    (left,) = tmp_path.iterdir()
    assert left.name.startswith(".")
    write(tmp_path / "b.csv", "whole")
    assert [path.name for path in tmp_path.iterdir()] == ["b.csv"]


def test_what_others_are_writing_is_left_alone(tmp_path):
    def save(part):
        part.write_text("first")
        write(tmp_path / "a.csv", "second")

    atomic_write(tmp_path / "a.csv", save)
    assert (tmp_path / "a.csv").read_text() == "first"
    assert [path.name for path in tmp_path.iterdir()] == ["a.csv"]


def test_writers_of_one_file_at_once_leave_a_complete_one(tmp_path):
    contents = [str(number) * 10_000 for number in range(8)]
    threads = [
        threading.Thread(target=write, args=(tmp_path / "a.csv", content)) for content in contents
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (tmp_path / "a.csv").read_text() in contents
    assert [path.name for path in tmp_path.iterdir()] == ["a.csv"]


def test_a_folder_of_the_files_name_is_reported_and_kept(tmp_path):
    (tmp_path / "table.md" / "inside").mkdir(parents=True)
    with pytest.raises(InputError, match="cannot be written .*table.md: .*--out") as error:
        write(tmp_path / "table.md", "text")
    assert str(tmp_path) in str(error.value)
    assert (tmp_path / "table.md" / "inside").is_dir()
    assert [path.name for path in tmp_path.iterdir()] == ["table.md"]


@pytest.mark.parametrize(
    "write",
    [
        lambda path: path.write_text("text" * 10_000),
        Figure().savefig,
        lambda path: pd.DataFrame({"a": range(10_000)}).to_csv(path),
    ],
    ids=["text", "figure", "table"],
)
@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a device without space")
def test_a_full_disk_is_reported_whatever_library_writes(tmp_path, write):
    def save(part):
        part.symlink_to("/dev/full")
        write(part)

    with pytest.raises(InputError, match="cannot be written .*[Nn]o space left"):
        atomic_write(tmp_path / "a.png", save)
    assert not list(tmp_path.iterdir())


def test_a_missing_folder_is_reported(tmp_path):
    with pytest.raises(InputError, match="cannot be written"):
        write(tmp_path / "missing" / "a.csv", "text")


def test_a_mistake_of_the_writer_is_not_called_one_of_the_disk(tmp_path):
    with pytest.raises(ZeroDivisionError):
        atomic_write(tmp_path / "a.csv", lambda part: 1 / 0)
    assert not list(tmp_path.iterdir())


# Digests


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


# The package's own folders


def test_a_folder_of_the_project_is_found_in_a_clone_and_in_a_wheel(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "PACKAGE", tmp_path / "package")
    assert package_path("reference", "results/reference") == tmp_path / "results" / "reference"
    (tmp_path / "package" / "reference").mkdir(parents=True)
    assert package_path("reference", "results/reference") == tmp_path / "package" / "reference"

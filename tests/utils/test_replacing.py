"""Files and folders that are replaced as a whole, whatever happens meanwhile."""

import os
import shutil
import signal
import sys
import threading
import time
from pathlib import Path

import pytest
from dead_process import dead_name

from embedder_helpers.utils import replacing
from embedder_helpers.utils.processes import own_name
from embedder_helpers.utils.replacing import (
    finish_interrupted,
    replace_file,
    replace_folder,
)

EVENTS = ("os.rename", "os.mkdir", "os.remove", "os.rmdir", "shutil.rmtree", "open")


def write(text):
    """A function that writes a folder with two files."""

    def write_files(folder):
        (folder / "below").mkdir()
        (folder / "a").write_text(text)
        (folder / "below" / "b").write_text(text)

    return write_files


def content(folder):
    return {(folder / "a").read_text(), (folder / "below" / "b").read_text()}


@pytest.fixture
def folder(tmp_path):
    replace_folder(tmp_path / "it", write("old"))
    return tmp_path / "it"


def test_a_folder_is_replaced_and_nothing_else_is_left(folder):
    replace_folder(folder, write("new"))
    assert content(folder) == {"new"}
    assert list(folder.parent.iterdir()) == [folder]


def fail(folder):
    write("new")(folder)
    raise OSError("no space")


def test_an_error_leaves_the_old_folder(folder):
    with pytest.raises(OSError, match="no space"):
        replace_folder(folder, fail)
    assert content(folder) == {"old"}
    assert list(folder.parent.iterdir()) == [folder]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_an_error_between_the_two_renames_leaves_the_old_folder(folder, monkeypatch, error):
    rename = Path.rename

    def fail_at_second(path, target):
        if path.parent.name == "new":
            raise error
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", fail_at_second)
    with pytest.raises(type(error)):
        replace_folder(folder, write("new"))
    assert content(folder) == {"old"}
    assert list(folder.parent.iterdir()) == [folder]


def test_the_last_of_several_that_write_at_once_wins(folder):
    def write_meanwhile(part):
        replace_folder(folder, write("other"))
        write("new")(part)

    replace_folder(folder, write_meanwhile)
    assert content(folder) == {"new"}
    assert list(folder.parent.iterdir()) == [folder]


def test_many_can_write_the_same_folder_at_once(folder):
    errors = []

    def replace(text):
        try:
            for _ in range(20):
                replace_folder(folder, write(text))
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=replace, args=(text,)) for text in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert len(content(folder)) == 1
    assert list(folder.parent.iterdir()) == [folder]


def replace_until_killed(folder, number):
    """Replace a folder in a process that is killed at an event of the file system.

    Returns:
        Whether it was killed, not finished before.
    """
    if not (child := os.fork()):
        count = 0

        def kill(event, arguments):
            nonlocal count
            if event in EVENTS and str(folder.parent) in str(arguments[0]):
                count += 1
                if count == number:
                    os.kill(os.getpid(), signal.SIGKILL)

        try:
            sys.addaudithook(kill)
            replace_folder(folder, write("new"))
        finally:
            os._exit(0)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_process_killed_at_any_moment_leaves_the_old_or_the_new_folder(folder):
    found = set()
    for number in range(1, 1000):
        was_killed = replace_until_killed(folder, number)
        finish_interrupted(folder)
        (text,) = content(folder)
        assert list(folder.parent.iterdir()) == [folder], number
        found.add(text)
        if not was_killed:
            break
        replace_folder(folder, write("old"))
    assert found == {"old", "new"} and number > 10


def left_by_a_killed_process(folder):
    """A work folder as of a process that was killed after it had moved the old folder away."""
    return moved_away(folder, dead_name())


def moved_away(folder, process):
    """The work folder of a process that has moved the old folder away."""
    work = folder.parent / f".saving-{process}-1"
    (work / "new" / "it").mkdir(parents=True)
    (work / "old").mkdir()
    folder.rename(work / "old" / "it")
    return work


def test_a_folder_that_a_killed_process_moved_away_is_put_back_by_the_next_save(folder):
    left_by_a_killed_process(folder)
    with pytest.raises(OSError, match="no space"):
        replace_folder(folder, fail)
    assert content(folder) == {"old"}
    assert list(folder.parent.iterdir()) == [folder]


def test_what_belongs_to_a_living_process_stays(folder):
    work = folder.parent / f".saving-{own_name()}-1"
    (work / "new" / "it").mkdir(parents=True)
    finish_interrupted(folder)
    replace_folder(folder, write("new"))
    replace_file(folder.parent / "b", lambda file: file.write_text("new"))
    assert (work / "new" / "it").is_dir()
    work.rename(folder.parent / f".saving-{dead_name()}-1")
    finish_interrupted(folder)
    assert sorted(path.name for path in folder.parent.iterdir()) == ["b", "it"]


# Of a process of another machine, and of a version that named no process.
UNKNOWN = ["elsewhere-0-1-0", "abcd1234"]


@pytest.mark.parametrize("process", UNKNOWN)
def test_what_belongs_to_a_process_that_nobody_can_look_up_stays_for_a_day(folder, process):
    work = folder.parent / f".saving-{process}-1"
    (work / "new" / "it").mkdir(parents=True)
    (work / "lock").touch()
    for hours, is_kept in ((23, True), (25, False)):
        os.utime(work, (time.time() - 3600 * hours,) * 2)
        finish_interrupted(folder)
        assert work.exists() == is_kept


@pytest.mark.parametrize("process", [*UNKNOWN, own_name()], ids=[*UNKNOWN, "own"])
def test_a_folder_that_stays_away_is_put_back_whoever_moved_it(folder, process, monkeypatch):
    monkeypatch.setattr(replacing, "WAIT", 0.1)
    moved_away(folder, process)
    finish_interrupted(folder)
    assert content(folder) == {"old"}


def test_what_a_link_leads_to_is_not_removed(folder, tmp_path_factory):
    precious = tmp_path_factory.mktemp("precious")
    (precious / "old" / "it").mkdir(parents=True)
    (folder.parent / f".saving-{dead_name()}-1").symlink_to(precious)
    finish_interrupted(folder)
    assert (precious / "old" / "it").is_dir()


def test_the_longest_name_can_be_replaced(tmp_path):
    folder = tmp_path / ("n" * 255)
    for text in ("old", "new"):
        replace_folder(folder, write(text))
        assert content(folder) == {text}


def test_a_folder_that_may_not_be_written_is_no_hindrance_to_reading(folder):
    shutil.copytree(folder, folder.parent / f".saving-{dead_name()}-1" / "old" / "it")
    folder.parent.chmod(0o500)
    try:
        finish_interrupted(folder)
    finally:
        folder.parent.chmod(0o700)
    assert content(folder) == {"old"}


def test_a_work_folder_that_cannot_be_read_does_not_keep_others_from_being_finished(
    folder, monkeypatch
):
    foreign = folder.parent / ".saving-a"  # of another user
    foreign.mkdir()
    left_by_a_killed_process(folder)
    stat, glob = Path.stat, Path.glob

    def refuse(path, **options):
        if path == foreign and options.get("follow_symlinks", True):
            raise PermissionError
        return stat(path, **options)

    monkeypatch.setattr(Path, "stat", refuse)
    monkeypatch.setattr(Path, "glob", lambda *given: sorted(glob(*given), reverse=True))
    finish_interrupted(folder)
    assert content(folder) == {"old"}


def test_a_killed_writers_leftovers_are_removed_by_the_next_write_of_a_file(folder):
    work = folder.parent / f".saving-{dead_name()}-1"
    (work / "new").mkdir(parents=True)
    (work / "new" / "a.csv").write_text("half")
    replace_file(folder.parent / "b", lambda file: file.write_text("whole"))
    assert sorted(path.name for path in folder.parent.iterdir()) == ["b", "it"]

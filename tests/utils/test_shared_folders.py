"""Files by which processes find out whether they see the same folder."""

import os
import subprocess
import sys

from embedder_helpers.utils import processes, shared_folders
from embedder_helpers.utils.shared_folders import leave_file, remove_file, sees_file


def test_a_file_is_seen_in_its_folder_alone_until_it_is_removed(tmp_path):
    ours, others = tmp_path / "ours", tmp_path / "others"
    ours.mkdir()
    others.mkdir()
    leave_file(ours, "abc")
    assert sees_file(ours, "abc") and not sees_file(others, "abc") and not sees_file(ours, "bc")
    remove_file(ours, "abc")
    assert not any(ours.iterdir())


def leave_from_a_process_that_dies(folder):
    script = (
        "import os, pathlib, signal; from embedder_helpers.utils import shared_folders as s; "
        f"s.leave_file(pathlib.Path({str(folder)!r}), 'dead'); os.kill(os.getpid(), signal.SIGKILL)"
    )
    subprocess.run([sys.executable, "-c", script], check=False)


def test_what_a_killed_process_left_is_removed_by_the_next_one(tmp_path):
    leave_from_a_process_that_dies(tmp_path)
    assert sees_file(tmp_path, "dead")
    leave_file(tmp_path, "ours")
    assert not sees_file(tmp_path, "dead") and sees_file(tmp_path, "ours")


def test_a_living_processs_file_stays(tmp_path):
    leave_file(tmp_path, "first")
    leave_file(tmp_path, "second")
    assert sees_file(tmp_path, "first")


def test_a_file_of_another_machine_stays_for_a_day(tmp_path, monkeypatch):
    monkeypatch.setattr(processes, "_machine", lambda: "elsewhere")
    leave_file(tmp_path, "theirs")
    monkeypatch.undo()
    leave_file(tmp_path, "ours")
    assert sees_file(tmp_path, "theirs")
    (file,) = tmp_path.glob("*-theirs")
    os.utime(file, (0, file.stat().st_mtime - shared_folders.LOST_SECONDS - 60))
    leave_file(tmp_path, "ours")
    assert not sees_file(tmp_path, "theirs")


def test_a_file_of_somebody_else_is_left_alone(tmp_path):
    (tmp_path / ".seen-by-chance").touch()
    leave_file(tmp_path, "ours")
    assert (tmp_path / ".seen-by-chance").exists()

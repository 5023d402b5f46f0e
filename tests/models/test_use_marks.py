import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from embedder_helpers.models import use_marks
from embedder_helpers.models.use_marks import (
    LOST_SECONDS,
    PREFIX,
    UseMark,
    names_in_use,
    own_mark,
    remove_marks,
)
from embedder_helpers.utils import processes

ROOT = Path(__file__).resolve().parents[2]
FILE, OTHER = "model-1/k01-rms-a.safetensors", "model-2/k02-rms-b.safetensors"

READING = """
import sys
from pathlib import Path
from embedder_helpers.models.use_marks import join_sweep, own_mark

sweep, folder, *names = sys.argv[1:]
join_sweep(sweep)
own_mark(Path(folder)).add(Path(folder, name) for name in names)
print("reads", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def folder(tmp_path):
    """A folder in which this process has a mark, which goes with it."""
    own_mark(tmp_path)
    yield tmp_path
    own_mark(tmp_path).path.unlink(missing_ok=True)


@pytest.fixture
def start_reading(folder):
    """A function that starts a process that says that it reads files, until its input ends."""
    started = []

    def start(*names, sweep="alone"):
        process = subprocess.Popen(
            [sys.executable, "-c", READING, sweep, folder, *names], cwd=ROOT, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip
        started.append(process)
        assert process.stdout.readline() == "reads\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def marks(folder):
    return sorted(folder.glob(f"{PREFIX}*"))


def write_mark(folder, age=0.0, **changes):
    """A mark, by default of this process, that was touched so many seconds ago."""
    mark = {"process": processes.own_name(), "files": [FILE]}
    path = folder / f"{PREFIX}{len(marks(folder))}.json"
    path.write_text(json.dumps(mark | changes))
    os.utime(path, (time.time() - age,) * 2)
    return path


# Processes of this machine


def test_a_living_process_names_the_files_that_it_reads(folder, start_reading):
    start_reading(FILE, OTHER)
    assert names_in_use(folder) == {FILE, OTHER}
    assert len(marks(folder)) == 1


def test_the_files_of_several_processes_are_in_use(folder, start_reading):
    start_reading(FILE)
    start_reading(FILE, OTHER)
    assert names_in_use(folder) == {FILE, OTHER}


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_a_killed_process_reads_nothing_and_its_mark_is_removed(folder, start_reading):
    killed = start_reading(FILE)
    start_reading(OTHER)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert len(marks(folder)) == 2
    assert names_in_use(folder) == {OTHER}
    assert len(marks(folder)) == 1


def test_a_process_removes_its_mark_at_its_end(folder, start_reading):
    process = start_reading(FILE)
    process.communicate()
    assert process.returncode == 0 and marks(folder) == []


def test_a_process_that_got_the_number_of_a_dead_one_is_another_one(folder):
    *rest, started = processes.own_name().split("-")
    path = write_mark(folder, process="-".join([*rest, f"{int(started) - 200}"]))
    assert names_in_use(folder) == set() and not path.exists()
    path = write_mark(folder, process="-".join([*rest, f"{int(started) + 1}"]))  # as read again
    assert names_in_use(folder) == {FILE} and path.exists()


def test_a_process_from_before_the_machines_last_start_reads_nothing(
    folder, tmp_path_factory, monkeypatch
):
    path = write_mark(folder)
    assert names_in_use(folder) == {FILE}
    boot = tmp_path_factory.mktemp("proc") / "boot_id"
    boot.write_text("another start")
    monkeypatch.setattr(processes, "BOOT", boot)
    assert names_in_use(folder) == set() and not path.exists()


def test_a_process_in_another_container_of_this_name_is_not_looked_up_here(
    folder, start_reading, tmp_path_factory, monkeypatch
):
    process = start_reading(FILE)
    link = tmp_path_factory.mktemp("proc") / "pid"
    link.symlink_to("pid:[1]")
    monkeypatch.setattr(processes, "NAMESPACE", link)
    process.kill()
    process.communicate()
    assert names_in_use(folder) == {FILE}
    os.utime(*marks(folder), (time.time() - LOST_SECONDS - 60,) * 2)
    assert names_in_use(folder) == set()


# Processes of other machines


@pytest.mark.parametrize("number", [os.getpid(), 2**22 + 1], ids=["taken here", "free here"])
@pytest.mark.parametrize(("minutes", "counts"), [(0, True), (14, True), (16, False), (9999, False)])
def test_a_process_of_another_machine_lives_as_long_as_it_touches_its_mark(
    folder, number, minutes, counts
):
    path = write_mark(folder, 60 * minutes, process=f"elsewhere-0-{number}-0")
    assert names_in_use(folder) == ({FILE} if counts else set())
    assert path.exists() == counts


def wait_until(condition):
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def age(path):
    return time.time() - path.stat().st_mtime


@pytest.fixture
def quick(monkeypatch):
    """Marks are touched almost without a pause."""
    monkeypatch.setattr(use_marks, "TOUCH_SECONDS", 0.01)


def test_a_process_touches_its_mark_as_long_as_it_lives(folder, quick):
    mark = own_mark(folder)
    mark.add([folder / FILE])
    for _ in range(2):
        os.utime(mark.path, (1000, 1000))
        wait_until(lambda: age(mark.path) < 60)


def test_a_mark_that_somebody_removed_is_written_and_touched_again(folder, quick):
    mark = own_mark(folder)
    mark.add([folder / FILE])
    mark.path.unlink()
    time.sleep(0.05)
    mark.add([folder / FILE])
    assert json.loads(mark.path.read_text())["files"] == [FILE]
    os.utime(mark.path, (1000, 1000))
    wait_until(lambda: age(mark.path) < 60)


# The processes of a sweep


def test_one_process_removes_the_marks_of_all_of_its_sweep_and_of_no_other(folder, start_reading):
    for _ in range(2):
        start_reading(FILE, sweep="ours")
    start_reading(OTHER, sweep="theirs")
    own_mark(folder).add([folder / FILE])
    remove_marks(folder, "ours")
    assert names_in_use(folder) == {OTHER}
    assert own_mark(folder).path.exists()


def test_what_was_marked_before_the_marks_were_removed_is_not_marked_again(folder):
    mark = UseMark(folder)
    mark.add([folder / FILE])
    remove_marks(folder, "alone")
    mark.add([folder / OTHER])
    assert names_in_use(folder) == {OTHER}


# This process


def test_a_process_has_one_mark_in_a_folder_and_does_not_count_it(folder, tmp_path_factory):
    assert own_mark(folder) is own_mark(Path(str(folder)))
    own_mark(folder).add([folder / FILE])
    assert len(marks(folder)) == 1 and names_in_use(folder) == set()
    assert own_mark(tmp_path_factory.mktemp("other")) is not own_mark(folder)


def test_a_folder_is_the_same_by_whatever_path(folder, tmp_path_factory, monkeypatch):
    link = tmp_path_factory.mktemp("links") / "link"
    link.symlink_to(folder)
    monkeypatch.chdir(folder.parent)
    for path in (link, Path(folder.name), link / ".." / folder.name / "below" / ".."):
        own_mark(path).add([path / FILE])
        assert own_mark(path) is own_mark(folder)
        assert names_in_use(path) == set() and len(marks(folder)) == 1


def test_files_are_added_or_replaced(folder):
    mark = UseMark(folder)  # of which this process does not know that it is its own
    assert marks(folder) == []
    mark.add([folder / FILE])
    assert names_in_use(folder) == {FILE}
    mark.add(iter([folder / OTHER]))
    assert names_in_use(folder) == {FILE, OTHER}
    mark.replace([folder / OTHER])
    assert names_in_use(folder) == {OTHER}
    mark.replace([])
    assert names_in_use(folder) == set()
    mark.add([folder / FILE])
    assert names_in_use(folder) == {FILE} and marks(folder) == [mark.path]


def test_one_thread_touches_a_mark_however_often_it_changes(folder):
    mark, count = UseMark(folder), threading.active_count()
    for _ in range(3):
        mark.add([folder / FILE])
        mark.replace([])
    assert threading.active_count() == count + 1


def test_what_does_not_change_is_not_written_again(folder, monkeypatch):
    mark = own_mark(folder)
    mark.add([folder / FILE])
    monkeypatch.delattr(use_marks, "atomic_write")
    mark.add([folder / FILE])
    mark.replace([folder / FILE])


def test_a_mark_that_cannot_be_written_is_no_error_and_is_tried_again(folder):
    mark = UseMark(folder / "states")
    mark.add([folder / "states" / FILE])
    (folder / "states").mkdir()
    mark.add([folder / "states" / OTHER])
    assert names_in_use(folder / "states") == {FILE, OTHER}
    shutil.rmtree(folder / "states")


# Damage

DAMAGED = [
    b"", b"{", b"\xff\xfe", b"[]", b"1", b"null", b'"text"', b"{}", b'{"machine": "elsewhere"}',
]  # fmt: skip
WRONG = [
    {"process": name} for name in (None, 1, [], "", "elsewhere", "a-b-c", "a-b-c-d-e")
] + [
    {"process": f"{processes.own_name().rsplit('-', 2)[0]}-{rest}"}
    for rest in ("one-1", "-1", "1.5-1", f"{2**70}-1", "1-one", "1-")
] + [
    {"files": None}, {"files": 1}, {"files": [[]]}, {"process": "elsewhere-0-1-0", "files": None},
]  # fmt: skip


@pytest.mark.parametrize("content", DAMAGED)
def test_a_damaged_mark_is_ignored(folder, content):
    (folder / f"{PREFIX}damaged.json").write_bytes(content)
    assert names_in_use(folder) == set()


@pytest.mark.parametrize("changes", WRONG)
def test_a_mark_of_other_types_is_ignored(folder, changes):
    write_mark(folder, age=2 * LOST_SECONDS, **changes)
    assert names_in_use(folder) == set()


def test_damaged_marks_hide_no_others(folder):
    write_mark(folder, process=1)
    for number, content in enumerate(DAMAGED):
        (folder / f"{PREFIX}-{number}.json").write_bytes(content)
    write_mark(folder)
    (folder / f"{PREFIX}folder.json").mkdir()
    assert names_in_use(folder) == {FILE}


def test_a_mark_that_is_cut_anywhere_is_ignored(folder):
    path = write_mark(folder)
    content = path.read_bytes()
    for length in range(len(content)):
        path.write_bytes(content[:length])
        assert names_in_use(folder) == set()

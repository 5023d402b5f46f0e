"""A disk that is full or read-only, a folder that vanishes: a sentence, and nothing is lost."""

import json
import os
import random
import shutil
from functools import partial
from pathlib import Path

import file_events
import forked
import pytest
import small_disk
import small_run
from orderly import Ended, assert_orderly
from rounds import seeds

pytestmark = pytest.mark.slow

AMPLE = "size=4g,nr_inodes=10000"  # hidden states leave 2 GB free


@pytest.fixture(scope="module")
def disks():
    if not small_disk.can_mount():
        pytest.skip("only root on Linux can mount a small disk")


def sweep_twice(name, options, read_only_at, logs):
    """Run on a disk of these options, then on an ample one; a copy of it is kept."""
    Path(name).mkdir()
    small_disk.mount(name, options)
    first = forked.fork(logs / "first.txt", sweep_until_read_only, name, read_only_at)
    small_disk.remount(name, AMPLE + ",rw")
    second = forked.fork(logs / "second.txt", small_run.sweep_and_report)
    shutil.copytree(name, logs / "kept")
    (logs / "statuses.json").write_text(json.dumps([first, second]))


def sweep_until_read_only(name, change):
    if change:
        file_events.before_change(change, partial(small_disk.make_read_only, name))
    return small_run.sweep_and_report()


def assert_finished_in_the_second_run(folder, expected, statuses, logs):
    first, second = (path.read_text(errors="replace") for path in logs)
    assert_orderly(Ended(statuses[0], "", first), folder)
    assert statuses[1] == 0, second
    wrong = small_run.differences(folder, expected)
    # Hidden states that the second run did not need are not computed for later ones.
    assert not [line for line in wrong if not line.startswith("no states/")], first


def bytes_of(folder):
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("way", ["full", "no inodes", "read-only", "full of hidden states"])
@pytest.mark.parametrize("seed", seeds(1))
def test_a_disk_that_cannot_be_written(disks, inputs, undisturbed, place, tmp_path, seed, way):
    chance, folder = random.Random(seed), shutil.copytree(inputs, place)
    name = "states" if way == "full of hidden states" else "out"
    original = undisturbed.folder / name
    limits = {
        "full": f"size={chance.randint(4, bytes_of(original) // 1024)}k",
        "no inodes": f"nr_inodes={chance.randint(2, len([*original.rglob('*')]))}",
        "full of hidden states": "size=40k",
    }
    change = chance.randint(1, undisturbed.changes) if way == "read-only" else None
    status, log = forked.run(folder, sweep_twice, name, limits.get(way, AMPLE), change, tmp_path)
    assert status == 0, log
    (folder / name).rmdir()
    (tmp_path / "kept").rename(folder / name)
    statuses = json.loads((tmp_path / "statuses.json").read_text())
    logs = tmp_path / "first.txt", tmp_path / "second.txt"
    assert_finished_in_the_second_run(folder, undisturbed.contents, statuses, logs)


def sweep_until_out_vanishes(change, is_folder):
    def vanish():
        shutil.rmtree("out", ignore_errors=True)
        if not is_folder:
            Path("out").write_text("something else")

    file_events.before_change(change, vanish)
    return small_run.sweep_and_report()


@pytest.mark.parametrize("is_replaced", [False, True], ids=["vanishes", "is replaced"])
@pytest.mark.parametrize("seed", seeds(1))
def test_a_folder_that_vanishes(inputs, undisturbed, place, seed, is_replaced):
    change = random.Random(seed).randint(1, undisturbed.changes)
    folder = shutil.copytree(inputs, place)
    first = forked.run(folder, sweep_until_out_vanishes, change, not is_replaced, log="first.txt")
    if (folder / "out").is_file():
        os.remove(folder / "out")
    second = forked.run(folder, small_run.sweep_and_report, log="second.txt")
    logs = folder.parent / "first.txt", folder.parent / "second.txt"
    assert_finished_in_the_second_run(folder, undisturbed.contents, (first[0], second[0]), logs)

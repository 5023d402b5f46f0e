"""Several sweeps on one folder at once: the results of one of them, and nothing is left over."""

import random
import shutil

import forked
import pytest
import small_run
from rounds import seeds

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("seed", seeds(2))
def test_sweeps_at_once_leave_what_one_leaves(inputs, undisturbed, place, seed):
    folder = shutil.copytree(inputs, place)
    processes = [
        forked.start(folder, small_run.sweep_and_report, log=f"{number}.txt")
        for number in range(2 + seed % 3)
    ]
    for number, process in enumerate(processes):
        process.join()
        assert process.exitcode == 0, (folder.parent / f"{number}.txt").read_text()
    wrong = small_run.differences(folder, undisturbed.contents)
    assert not wrong


@pytest.mark.parametrize("seed", seeds(1))
def test_a_sweep_goes_on_while_another_one_is_killed(inputs, undisturbed, place, seed):
    change = random.Random(seed).randint(1, undisturbed.changes)
    folder = shutil.copytree(inputs, place)
    killed = forked.start(folder, small_run.sweep_and_die, change, log="killed.txt")
    status, log = forked.run(folder, small_run.sweep_and_report)
    killed.join()
    assert status == 0, (change, log)
    # What the other one left when it was killed last is removed by the next run.
    status, log = forked.run(folder, small_run.sweep_and_report)
    assert status == 0, (change, log)
    wrong = small_run.differences(folder, undisturbed.contents)
    assert not wrong, change

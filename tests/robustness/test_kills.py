"""A process may end at any moment: the next run ends as if nothing had happened."""

import random
import shutil

import forked
import pytest
import small_run
from rounds import seeds

pytestmark = pytest.mark.slow

KILLS = 4  # of one sweep, at most


@pytest.mark.parametrize("seed", seeds(4))
def test_a_sweep_killed_again_and_again_ends_with_the_results_of_an_undisturbed_one(
    inputs, undisturbed, place, seed
):
    chance, kills = random.Random(seed), []
    folder = shutil.copytree(inputs, place)
    for number in range(KILLS):
        part = chance.random() ** (1 + number)  # there is less to do each time
        change, seconds = 1 + int(part * undisturbed.changes), part * undisturbed.seconds
        if chance.random() < 0.5:
            kill = f"before change {change}"
            process = forked.start(folder, small_run.sweep_and_die, change)
        else:
            kill = f"after {seconds:.2f} s"
            process = forked.start(folder, small_run.sweep_and_report)
            process.join(seconds)
            process.kill()
        process.join()
        if process.exitcode == 0:  # it had less to do than thought
            break
        kills.append(kill)
    print(f"{len(kills)} kills: {', '.join(kills)}")
    status, log = forked.run(folder, small_run.sweep_and_report)
    assert status == 0, log
    wrong = small_run.differences(folder, undisturbed.contents)
    assert not wrong, kills

"""A sweep of many trainings: its process's memory, open files and threads do not grow."""

import json
import logging
import shutil
from pathlib import Path

import forked
import psutil
import pytest
from rounds import ROUNDS

pytestmark = pytest.mark.slow

TRAININGS = 40 * ROUNDS
WARM_UP = 10  # after which all has been loaded and compiled once
KILOBYTES = 500  # a training; what a model leaves that is built anew is six times as much


class Measure(logging.Handler):
    """Measures this process at each result that is logged."""

    def __init__(self):
        super().__init__()
        self.used = []

    def emit(self, record):
        if "macro F1" in record.getMessage():
            process = psutil.Process()
            memory = process.memory_full_info().uss // 1000
            self.used.append((memory, process.num_fds(), process.num_threads()))


def train_many(count):
    import embedder_helpers as eh

    measure = Measure()
    logger = logging.getLogger("embedder_helpers")
    logger.setLevel(logging.INFO)
    logger.addHandler(measure)
    experiments = [
        eh.load_experiments("one.yaml", {"seed": seed, "save_embedder": seed % 4 == 0})[0]
        for seed in range(count)
    ]
    results, failed = eh.run_experiments(experiments, "out")
    assert len(results) == count and not failed
    Path("used.json").write_text(json.dumps(measure.used))


def test_memory_files_and_threads_of_a_long_run_do_not_grow(inputs, place):
    folder = shutil.copytree(inputs, place)
    config = (folder / "sweep.yaml").read_text().partition("experiments:")[0]
    (folder / "one.yaml").write_text(config + "llm_layers: 1\nfusion: add\n")
    status, log = forked.run(folder, train_many, TRAININGS)
    assert status == 0, log
    memory, files, threads = zip(*json.loads((folder / "used.json").read_text()), strict=True)
    assert len(memory) == TRAININGS
    assert max(files[WARM_UP:]) <= max(files[:WARM_UP]), files
    assert max(threads[WARM_UP:]) <= max(threads[:WARM_UP]), threads
    assert memory[-1] - memory[WARM_UP] < KILOBYTES * (TRAININGS - WARM_UP), memory

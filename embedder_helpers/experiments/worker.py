"""The process of a further GPU: `python -m embedder_helpers.experiments.worker`.

Reads from standard input what to do, logs to standard output, and ends when its input is closed,
that is when the process that started it ends.
"""

import json
import logging
import os
import sys
import threading
from pathlib import Path

from embedder_helpers.config import make_experiment
from embedder_helpers.experiments.cluster import Worker
from embedder_helpers.experiments.sweep import run_worker
from embedder_helpers.utils import progress


def main() -> None:
    """Run this process's part of a sweep."""
    message = json.loads(sys.stdin.readline())
    threading.Thread(target=_end_with_standard_input, daemon=True).start()
    logging.basicConfig(stream=sys.stdout, format="%(levelno)d %(message)s")
    logging.getLogger("embedder_helpers").setLevel(logging.INFO)
    number, count, claims = message["worker"]
    experiments = [make_experiment(values, where="sweep") for values in message["experiments"]]
    with progress.show_bars(False):
        run_worker(
            experiments,
            Path(message["folder"]),
            message["until"],
            Worker(number, count, Path(claims)),
        )


def _end_with_standard_input() -> None:
    sys.stdin.read()
    os._exit(1)


if __name__ == "__main__":
    main()

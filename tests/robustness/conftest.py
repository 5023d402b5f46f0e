"""Fixtures: the inputs of a small sweep, and what it leaves when nothing disturbs it."""

import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import file_events
import forked
import pytest
import small_run


@pytest.fixture(scope="session")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with all that a small sweep reads."""
    folder = tmp_path_factory.mktemp("inputs") / "run"
    folder.mkdir()
    status, log = forked.run(folder, small_run.write_inputs)
    assert status == 0, log
    return folder


@dataclass(frozen=True)
class Undisturbed:
    """A sweep that nothing disturbed.

    Attributes:
        folder: where it ran.
        contents: what its files hold.
        changes: number of changes that it made to files.
        seconds: that it took.
    """

    folder: Path
    contents: dict[str, Any] = field(repr=False)
    changes: int
    seconds: float


@pytest.fixture(scope="session")
def place_of_runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which every run takes place, since results contain the path of their task."""
    return tmp_path_factory.mktemp("place") / "run"


@pytest.fixture
def place(place_of_runs: Path, tmp_path: Path) -> Iterator[Path]:
    """The same for one test, which makes the folder; it is kept elsewhere afterwards."""
    yield place_of_runs
    if place_of_runs.exists():
        place_of_runs.rename(tmp_path / "run")


@pytest.fixture(scope="session")
def undisturbed(
    inputs: Path, place_of_runs: Path, tmp_path_factory: pytest.TempPathFactory
) -> Undisturbed:
    """The sweep without an accident."""
    shutil.copytree(inputs, place_of_runs)
    count, start = place_of_runs.parent / "count", time.monotonic()
    status, log = forked.run(place_of_runs, _count_and_sweep, count)
    seconds = time.monotonic() - start
    assert status == 0, log
    folder = place_of_runs.rename(tmp_path_factory.mktemp("undisturbed") / "run")
    return Undisturbed(folder, small_run.contents(folder), count.stat().st_size, seconds)


def _count_and_sweep(count: Path) -> int:
    file_events.count_changes(count)
    return small_run.sweep_and_report()

"""Progress: log lines and bars on standard error, so that standard output holds what was asked for.

Library code logs through `logging`; `show_log` shows it. One bar covers a whole run where there is
one (`overall_progress`); otherwise each long step has a bar of its own.
"""

import contextlib
import logging
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from tqdm import tqdm

DELAY = 2  # seconds before a bar is shown
REFRESH = 2  # seconds between two times that a bar is shown
WINDOW = 120  # seconds after which a measured pace has been forgotten
MIN_SECONDS = 1  # for which a kind of work is measured before its pace is believed

# Kinds of work. The first three are in operations; an experiment is scored once, and the first one
# of an architecture builds and compiles its model.
FORWARD, TRAINING, EMBEDDING = "forward", "training", "embedding"
BUILDING, SCORING = UNTIMED = ("building", "scoring")  # no bar measures them

# The progress of the whole run while there is one; steps advance it instead of their own bar.
_overall: "OverallProgress | None" = None
_shown = True


class _StandardError:
    """Standard error at the moment of writing; a run goes on when nobody reads it any more."""

    def write(self, text: str) -> None:
        with contextlib.suppress(OSError, ValueError):  # ValueError: it was closed
            sys.stderr.write(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            sys.stderr.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(sys.stderr, name)


_stderr = _StandardError()


class _LogHandler(logging.Handler):
    """Writes log lines to standard error, above the bar if there is one."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            tqdm.write(self.format(record), file=_stderr)
        except Exception:
            self.handleError(record)


def show_log(level: int = logging.INFO) -> None:
    """Show the package's log lines on standard error; call it again to change the level."""
    logger = logging.getLogger("embedder_helpers")
    logger.setLevel(level)
    if not any(isinstance(handler, _LogHandler) for handler in logger.handlers):
        logger.addHandler(_LogHandler())


@contextlib.contextmanager
def show_bars(shown: bool) -> Iterator[None]:
    """Show progress bars inside the context only if `shown`."""
    global _shown
    before, _shown = _shown, _shown and shown
    try:
        yield
    finally:
        _shown = before


class OverallProgress:
    """What is left of a run, by kind of work, and the seconds that it will take.

    Each kind has its own pace: the prior until it has been measured for a second, then what was
    measured, mostly in the last two minutes. `BUILDING` and `SCORING` are what a task takes besides
    its bars.

    Args:
        work: units of work by kind.
        paces: seconds per unit by kind, before any is measured.
        bar: shows the time left; None: nothing is shown.
    """

    def __init__(
        self, work: Mapping[str, float], paces: Mapping[str, float], bar: tqdm | None = None
    ):
        self.left = dict(work)
        self._paces = dict(paces)
        self._measured: dict[str, tuple[float, float]] = {}  # seconds and units
        self._scale: dict[str, float] = {}  # units that bars report per unit of planned work
        self._reported: Counter[str] = Counter()  # units of the current task
        self._start = self._shown = time.monotonic()
        self._task_start: float | None = None
        self._task_rest = 0.0  # seconds that the current task is expected to take besides its bars
        self._timed = 0.0  # seconds of the current task that its bars have measured
        self._bar = bar

    def pace(self, kind: str) -> float:
        """Seconds per unit."""
        seconds, units = self._measured.get(kind, (0.0, 0.0))
        is_measured = units > 0 and (seconds >= MIN_SECONDS or kind in UNTIMED)
        return seconds / units if is_measured else self._paces.get(kind, 0.0)

    def seconds(self, work: Mapping[str, float]) -> float:
        """Seconds that work will take."""
        return sum(units * self.pace(kind) for kind, units in work.items())

    def seconds_left(self) -> float:
        """Seconds until all is done."""
        left = self.seconds(self.left)
        if self._task_start is None:
            return left
        rest = time.monotonic() - self._task_start - self._timed
        return left - min(max(rest, 0.0), self._task_rest)

    def advance(self, kind: str, units: float, seconds: float) -> None:
        """Units were done, in so many seconds; in 0 seconds if that was not measured."""
        self._reported[kind] += units
        units /= self._scale.get(kind, 1.0)
        self.left[kind] = max(0.0, self.left.get(kind, 0.0) - units)
        if seconds:
            self._measure(kind, seconds, units)
            self._timed += seconds
        if self._bar is not None and time.monotonic() > self._shown + REFRESH:
            self.show()

    @contextlib.contextmanager
    def task(self, work: Mapping[str, float], has_pace: bool = True) -> Iterator[None]:
        """A part of the run, after which its work is done, more or less of it than it reported.

        Args:
            work: of the task, by kind; what is left is at least that.
            has_pace: whether a task that succeeds tells the paces of what it does besides its bars,
                and how much less or more work it was than planned.
        """
        self.left |= {kind: max(self.left.get(kind, 0.0), units) for kind, units in work.items()}
        end = {kind: self.left[kind] - units for kind, units in work.items()}
        self._task_start, self._timed = time.monotonic(), 0.0
        self._reported.clear()
        self._task_rest = self.seconds({kind: work.get(kind, 0.0) for kind in UNTIMED})
        try:
            yield
            if has_pace:
                self._measure_task(work)
        finally:
            self.left |= end
            self._task_start = None
            if self._bar is not None:
                self.show()

    def _measure_task(self, work: Mapping[str, float]) -> None:
        for kind in work.keys() & self._measured.keys() & self._reported.keys():
            # The pace of planned units, since later tasks are planned in them.
            if work[kind] and self._reported[kind]:
                scale = self._reported[kind] / work[kind]
                seconds, units = self._measured[kind]
                self._measured[kind] = seconds, units * self._scale.get(kind, 1.0) / scale
                self._scale[kind] = scale
        rest = time.monotonic() - self._task_start - self._timed
        if building := work.get(BUILDING, 0.0):
            scoring = self.seconds({SCORING: work.get(SCORING, 0.0)})
            self._measure(BUILDING, max(rest - scoring, 0.0), building)
        elif scoring := work.get(SCORING, 0.0):
            self._measure(SCORING, rest, scoring)

    def _measure(self, kind: str, seconds: float, units: float) -> None:
        before_seconds, before_units = self._measured.get(kind, (0.0, 0.0))
        kept = max(0.0, 1 - seconds / WINDOW)
        self._measured[kind] = kept * before_seconds + seconds, kept * before_units + units

    def show(self) -> None:
        """Show the time left."""
        self._shown = time.monotonic()
        elapsed, left = self._shown - self._start, self.seconds_left()
        # Where more is left than was thought, the bar waits instead of moving backwards.
        self._bar.n = max(self._bar.n, elapsed / max(elapsed + left, 1e-9))
        self._bar.set_postfix_str(f"{self._bar.format_interval(left)} left")


@contextlib.contextmanager
def overall_progress(
    work: Mapping[str, float], paces: Mapping[str, float], description: str
) -> Iterator[OverallProgress]:
    """One bar with the time left for all the work done inside the context.

    Args:
        work: units of work by kind.
        paces: seconds per unit by kind, before any is measured.
        description: text in front of the bar.
    """
    global _overall
    form = "{desc}: {percentage:3.0f}%|{bar}| {elapsed} elapsed{postfix}"
    bar = tqdm(total=1, desc=description, file=_stderr, bar_format=form, disable=not _shown)
    _overall = OverallProgress(work, paces, bar if _shown else None)
    try:
        yield _overall
    finally:
        _overall = None
        bar.close()


@contextlib.contextmanager
def progress_bar(
    total: int, description: str, unit: str, work: Mapping[str, float] | None = None
) -> Iterator[Any]:
    """A bar for one step, shown once the step takes longer than `DELAY` seconds, then cleared.

    Plain text, because a widget is lost when a notebook is saved. Inside `overall_progress` it
    advances that bar instead, by `work`: operations by kind.
    """
    if _overall is not None:
        yield _StepBar(_overall, total, work or {})
        return
    with tqdm(
        total=total, desc=description, unit=unit, file=_stderr, delay=DELAY, mininterval=REFRESH,
        leave=False, disable=not _shown,
    ) as bar:  # fmt: skip
        yield bar


def forward_flops(tokens: int, num_layers: int, width: int) -> float:
    """Approximate floating-point operations of tokens through transformer layers: 24 · width² each.

    For progress bars only: a layer has about 12 · width² weights.
    """
    return 24.0 * width * width * float(tokens) * num_layers


class _StepBar:
    """One step's part of the overall progress, in units of its own."""

    def __init__(self, overall: OverallProgress, total: int, work: Mapping[str, float]):
        self.overall = overall
        # Work of no operations, such as pooling, says nothing about the pace of its kind.
        self.unit_work = {
            kind: operations / max(total, 1) for kind, operations in work.items() if operations
        }
        self.last: float | None = None

    def update(self, units: int = 1) -> None:
        """Advance; the first update is not timed, since before it functions are compiled."""
        now = time.monotonic()
        seconds, self.last = 0.0 if self.last is None else now - self.last, now
        for kind, operations in self.unit_work.items():
            self.overall.advance(kind, units * operations, seconds)

"""Progress: log lines and bars on standard error, so that standard output holds what was asked for.

Library code logs through `logging`; `show_log` shows it. One bar covers a whole run where there is
one (`overall_progress`); otherwise each long step has a bar of its own.
"""

import contextlib
import logging
import os
import sys
from collections.abc import Iterator
from typing import Any

from tqdm import tqdm

DELAY = 2  # seconds before a bar is shown

# The bar of the whole run while there is one; steps advance it instead of a bar of their own.
_overall: tqdm | None = None
_shown = True


class _LogHandler(logging.Handler):
    """Writes log lines to standard error, above the bar if there is one."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            tqdm.write(self.format(record), file=sys.stderr)
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


@contextlib.contextmanager
def overall_progress(total: float, description: str) -> Iterator[tqdm]:
    """One bar with the time left for all the work done inside the context.

    Args:
        total: work in floating-point operations, approximately.
        description: text in front of the bar.
    """
    global _overall
    form = "{desc}: {percentage:3.0f}%|{bar}| {elapsed} elapsed{left}"
    with contextlib.ExitStack() as stack:
        # Hidden, it is written nowhere but still counts: its pace decides what fits a deadline.
        file = sys.stderr if _shown else stack.enter_context(open(os.devnull, "w"))
        bar = _OverallBar(total=total, desc=description, file=file, mininterval=2, bar_format=form)
        _overall = stack.enter_context(bar)
        try:
            yield _overall
        finally:
            _overall = None


@contextlib.contextmanager
def progress_bar(
    total: int, description: str, unit: str = "text", *, work: float = 0.0
) -> Iterator[Any]:
    """A bar for one step, shown once the step takes longer than `DELAY` seconds, then cleared.

    Plain text, because a widget is lost when a notebook is saved. Inside `overall_progress` it
    advances that bar by `work` instead.
    """
    if _overall is not None:
        yield _PartialBar(_overall, work / max(total, 1))
        return
    with tqdm(
        total=total, desc=description, unit=unit, file=sys.stderr, delay=DELAY, mininterval=2,
        leave=False, disable=not _shown,
    ) as bar:  # fmt: skip
        yield bar


def forward_flops(tokens: int, num_layers: int, width: int) -> float:
    """Approximate floating-point operations of tokens through transformer layers: 24 · width² each.

    For progress bars only: a layer has about 12 · width² weights.
    """
    return 24.0 * width * width * float(tokens) * num_layers


class _OverallBar(tqdm):
    """A bar that shows the time left as soon as there is a pace to estimate it from."""

    @property
    def format_dict(self) -> dict[str, Any]:
        """tqdm's fields and `left`."""
        fields = super().format_dict
        done, total, elapsed = fields["n"], fields["total"], fields["elapsed"]
        seconds = elapsed * (total - done) / done if total and done > 0.02 * total else None
        left = "" if seconds is None else f", {self.format_interval(seconds)} left"
        return fields | {"left": left}


class _PartialBar:
    """One step's part of the overall bar, in units of its own."""

    def __init__(self, overall: tqdm, unit_work: float):
        self.overall = overall
        self.unit_work = unit_work

    def update(self, units: int = 1) -> None:
        # Work is an estimate: the bar reaches its end when the run does, not before.
        room = 0.99 * self.overall.total - self.overall.n
        self.overall.update(max(0, min(units * self.unit_work, room)))

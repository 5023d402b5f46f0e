"""Progress: bars for steps and for the whole run, and log lines on standard error."""

import io
import logging
import sys

import pytest

from embedder_helpers.utils import progress

logger = logging.getLogger("embedder_helpers.anything")


@pytest.fixture
def package_logger():
    """The package's logger, restored after the test."""
    package = logging.getLogger("embedder_helpers")
    handlers, level = list(package.handlers), package.level
    package.handlers.clear()
    yield package
    package.handlers[:] = handlers
    package.setLevel(level)


# === Bars ===


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still until it is set forward."""

    class Clock:
        seconds = 1000.0

        def __call__(self):
            return self.seconds

        def forward(self, seconds):
            self.seconds += seconds

    clock = Clock()
    monkeypatch.setattr(progress.time, "monotonic", clock)
    return clock


def overall(work, paces=None):
    return progress.OverallProgress(work, paces or {})


def work_for(overall, clock, kind, units, seconds):
    """Do work in two equal updates of a bar, each of which takes half the seconds."""
    overall.advance(kind, units / 2, seconds / 2)
    clock.forward(seconds / 2)
    overall.advance(kind, units / 2, seconds / 2)
    clock.forward(seconds / 2)


def test_the_time_left_sums_the_kinds_of_work_at_their_own_paces():
    left = overall({"training": 10, "embedding": 4}, {"training": 3, "embedding": 0.5})
    assert left.seconds_left() == 10 * 3 + 4 * 0.5
    assert left.seconds({"training": 2}) == 6


def test_a_measured_pace_replaces_the_expected_one_of_its_kind_only(clock):
    left = overall({"training": 10, "embedding": 4}, {"training": 3, "embedding": 0.5})
    work_for(left, clock, "training", 4, seconds=2)
    assert left.seconds_left() == 6 * 0.5 + 4 * 0.5
    work_for(left, clock, "embedding", 1, seconds=0.1)  # too short to be believed
    assert left.pace("embedding") == 0.5


def test_recent_measurements_count_more(clock):
    left = overall({"training": 1000})
    work_for(left, clock, "training", 100, seconds=100)
    work_for(left, clock, "training", 100, seconds=2 * progress.WINDOW)
    assert left.pace("training") == pytest.approx(2 * progress.WINDOW / 100)


def test_the_first_update_of_a_bar_is_not_timed_because_functions_are_compiled_before_it(clock):
    with progress.overall_progress({"training": 10}, {"training": 7}, "sweep") as left:
        with progress.progress_bar(5, "training", "step", {"training": 10}) as bar:
            clock.forward(100)
            bar.update()
            assert left.left == {"training": 8} and left.pace("training") == 7
            clock.forward(4)
            bar.update()
            assert left.left == {"training": 6} and left.pace("training") == 2


def test_a_task_tells_what_building_and_scoring_take_besides_its_bars(clock):
    left = overall(
        {"training": 20, progress.BUILDING: 1, progress.SCORING: 2},
        {"training": 1, progress.BUILDING: 50, progress.SCORING: 5},
    )
    with left.task({"training": 10, progress.BUILDING: 1, progress.SCORING: 1}):
        clock.forward(25)
        assert left.seconds_left() == 20 * 1 + 50 + 2 * 5 - 25
        work_for(left, clock, "training", 10, seconds=20)
    assert left.pace(progress.BUILDING) == 20  # 25 less the expected 5 for scoring
    with left.task({"training": 10, progress.SCORING: 1}):
        work_for(left, clock, "training", 10, seconds=20)
        clock.forward(3)
    assert left.pace(progress.SCORING) == 3
    assert left.seconds_left() == 0


@pytest.mark.parametrize("reported", [5, 20])
def test_work_that_was_planned_wrongly_is_planned_alike_for_later_tasks(clock, reported):
    left = overall({"training": 20})
    with left.task({"training": 10}):
        work_for(left, clock, "training", reported, seconds=30)
    assert left.left["training"] == 10
    assert left.seconds_left() == pytest.approx(30)
    with left.task({"training": 10}):
        clock.forward(15)
        left.advance("training", reported / 2, 15)
        assert left.seconds_left() == pytest.approx(15)
        clock.forward(15)
        left.advance("training", reported / 2, 15)
    assert left.seconds_left() == 0


def test_a_task_that_fails_is_done_but_tells_no_pace(clock):
    left = overall({"training": 20, progress.SCORING: 2}, {"training": 1, progress.SCORING: 4})
    with pytest.raises(KeyError), left.task({"training": 10, progress.SCORING: 1}):
        clock.forward(100)
        raise KeyError
    assert left.seconds_left() == 10 + 4


def test_work_that_was_not_needed_makes_the_others_pace_no_faster(clock):
    left = overall({"forward": 20}, {"forward": 1})
    with left.task({"forward": 10}, has_pace=False):
        work_for(left, clock, "forward", 2, seconds=4)
    assert left.seconds_left() == 20


def test_a_task_of_more_work_than_was_left_adds_to_it():
    left = overall({"training": 5}, {"training": 1})
    with left.task({"training": 8}):
        assert left.seconds_left() == 8
    assert left.seconds_left() == 0


def test_the_bar_shows_the_time_left_and_never_moves_backwards(clock, capsys):
    with progress.overall_progress({"training": 100}, {"training": 0.1}, "sweep") as left:
        clock.forward(10)
        left.advance("training", 0, 0)
        assert "50%" in str(left._bar) and "00:10 left" in str(left._bar)
        left.advance("training", 1, 5)  # slower than expected
        clock.forward(10)
        left.advance("training", 0, 0)
        assert "50%" in str(left._bar) and "08:15 left" in str(left._bar)
    assert "00:10 left" in capsys.readouterr().err


def test_a_hidden_bar_still_counts(capsys):
    with (
        progress.show_bars(False),
        progress.overall_progress({"training": 10}, {}, "sweep") as left,
    ):
        with progress.progress_bar(5, "training", "step", {"training": 10}) as bar:
            bar.update(5)
        assert left.left == {"training": 0}
    assert not capsys.readouterr().err


def test_after_a_failed_run_a_step_has_its_own_bar_again():
    with pytest.raises(KeyError), progress.overall_progress({"training": 9}, {}, "sweep"):
        raise KeyError
    with progress.progress_bar(4, "step", "step", {"training": 9}) as bar:
        bar.update(3)
        assert (bar.n, bar.total) == (3, 4)


@pytest.mark.parametrize("shown", [True, False])
def test_bars_are_shown_on_standard_error_unless_they_are_switched_off(capsys, monkeypatch, shown):
    monkeypatch.setattr(progress, "DELAY", 0)
    with progress.show_bars(shown), progress.progress_bar(4, "embedding", "text") as bar:
        bar.update(4)
    output = capsys.readouterr()
    assert ("embedding" in output.err) is shown and not output.out


def test_bars_that_are_switched_off_stay_off_inside(capsys, monkeypatch):
    monkeypatch.setattr(progress, "DELAY", 0)
    with (
        progress.show_bars(False),
        progress.show_bars(True),
        progress.progress_bar(4, "embedding", "text") as bar,
    ):
        bar.update(4)
    assert not capsys.readouterr().err


def test_forward_flops_grow_with_tokens_layers_and_width():
    flops = progress.forward_flops(10, 2, 8)
    assert progress.forward_flops(20, 2, 8) == progress.forward_flops(10, 4, 8) == 2 * flops
    assert progress.forward_flops(10, 2, 16) == 4 * flops


# === Log lines ===


def test_the_library_is_silent_by_default(package_logger, capsys):
    logger.info("a line")
    output = capsys.readouterr()
    assert "a line" not in output.err + output.out


def test_log_lines_are_shown_once_on_standard_error(package_logger, capsys):
    progress.show_log()
    progress.show_log()
    with progress.overall_progress({"training": 9}, {}, "sweep"):
        logger.info("a line")
    output = capsys.readouterr()
    assert output.err.count("a line\n") == 1 and not output.out


def test_the_level_of_log_lines_can_be_changed(package_logger, capsys):
    progress.show_log()
    progress.show_log(logging.WARNING)
    logger.info("a detail")
    logger.warning("a warning")
    output = capsys.readouterr()
    assert "a warning\n" in output.err and "a detail" not in output.err


@pytest.mark.parametrize("closed_before", [False, True])
def test_a_run_goes_on_when_nobody_reads_its_bar(monkeypatch, closed_before):
    class ClosedPipe(io.StringIO):
        is_closed = False

        def write(self, text):
            if self.is_closed:
                raise BrokenPipeError
            return super().write(text)

    pipe = ClosedPipe()
    monkeypatch.setattr(sys, "stderr", pipe)
    pipe.is_closed = closed_before
    with progress.overall_progress({"training": 2}, {"training": 1}, "sweep") as left:
        pipe.is_closed = True
        with left.task({"training": 1}):
            left.advance("training", 1, 1)
    assert left.left["training"] == 1

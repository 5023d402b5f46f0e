"""Progress: bars for steps and for the whole run, and log lines on standard error."""

import logging

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


def test_a_step_advances_the_overall_bar_by_its_fraction_of_the_work():
    with (
        progress.overall_progress(100, "sweep") as overall,
        progress.progress_bar(4, "step", work=20) as bar,
    ):
        bar.update()
        assert overall.n == pytest.approx(5)
        bar.update(3)
        assert overall.n == pytest.approx(20)


def test_steps_of_the_whole_run_add_up():
    with progress.overall_progress(100, "sweep") as overall:
        for work in (20, 30):
            with progress.progress_bar(10, "step", work=work) as bar:
                bar.update(10)
        assert overall.n == pytest.approx(50)


def test_the_time_left_is_shown_once_there_is_a_pace():
    with progress.overall_progress(100, "sweep") as overall:
        overall.start_t -= 10
        overall.n = 1
        assert "elapsed" in str(overall) and "left" not in str(overall)
        overall.n = 50
        assert "50%" in str(overall) and "00:10 elapsed, 00:10 left" in str(overall)


def test_steps_never_advance_the_overall_bar_to_its_end():
    with progress.overall_progress(100, "sweep") as overall:
        for _ in range(2):
            with progress.progress_bar(2, "step", work=90) as bar:
                bar.update(2)
        assert overall.n < 100


def test_a_step_never_moves_the_overall_bar_backwards():
    with progress.overall_progress(100, "sweep") as overall:
        overall.update(99.9)
        with progress.progress_bar(2, "step", work=0.1) as bar:
            bar.update(1)
        assert overall.n >= 99.9


def test_after_a_failed_run_a_step_has_its_own_bar_again():
    with pytest.raises(KeyError), progress.overall_progress(100, "sweep"):
        raise KeyError
    with progress.progress_bar(4, "step", work=20) as bar:
        bar.update(3)
        assert (bar.n, bar.total) == (3, 4)


@pytest.mark.parametrize("shown", [True, False])
def test_bars_are_shown_on_standard_error_unless_they_are_switched_off(capsys, monkeypatch, shown):
    monkeypatch.setattr(progress, "DELAY", 0)
    with progress.show_bars(shown), progress.progress_bar(4, "embedding") as bar:
        bar.update(4)
    output = capsys.readouterr()
    assert ("embedding" in output.err) is shown and not output.out


def test_bars_that_are_switched_off_stay_off_inside(capsys, monkeypatch):
    monkeypatch.setattr(progress, "DELAY", 0)
    with (
        progress.show_bars(False),
        progress.show_bars(True),
        progress.progress_bar(4, "embedding") as bar,
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
    with progress.overall_progress(100, "sweep"):
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

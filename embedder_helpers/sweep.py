"""Many experiments in one run: planned together, Gemma walked once for all, each result kept.

What is finished is read, what fails is told and the rest goes on; a sweep that was killed goes on
where it stopped.
"""

import contextlib
import gc
import itertools
import traceback
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from embedder_helpers import platform, report, session
from embedder_helpers.config import (
    DATA_KEYS,
    Experiment,
    InputError,
    find_config,
    make_experiment,
    read_config,
)
from embedder_helpers.plan import Plan, plan
from embedder_helpers.result import Result, embedder_folder, read_result, write_result
from embedder_helpers.run import train_and_score
from embedder_helpers.shares import Share, shared
from embedder_helpers.tasks import Task

if TYPE_CHECKING:  # brings in Keras, seconds that a mistake should not wait for
    from embedder_helpers.states import Store
    from embedder_helpers.waves import Wave

# What an experiment takes beside its passes, in operations that would take as long on a CPU.
SCORING_WORK = 5e10
TRAINING_WORK = 1e12  # most of it is spent on building the training graph
LEFT = "left, as the time was too short (HOURS, or --hours)"


def load_sweep(
    config: str | Path, settings: Mapping[str, Any] | None = None, **overrides: Any
) -> list[Experiment]:
    """The experiments of a config file, which may hold one or many.

    Keys at the top hold for all; `experiments` lists keys that differ; and in either place `each`
    gives a list of values for a key, of which every combination is an experiment. A value there
    that is a mapping sets several keys at once.

    Args:
        config: the path of a YAML file, or the name of one in `configs/`.
        settings: keys to set in every experiment.
        overrides: likewise, but None keeps the file's.

    Raises:
        InputError: no such file, an unknown key, a value that is not allowed.
    """
    values = read_config(find_config(config))
    changed = {name: value for name, value in overrides.items() if value is not None}
    changed |= settings or {}
    blocks = values.pop("experiments", [{}])
    if not isinstance(blocks, list) or not all(isinstance(block, dict) for block in blocks):
        raise InputError(f"{config}: experiments must be a list of `key: value` lines")
    found = [
        make_experiment({**one, **changed}, where=str(config))
        for block in blocks
        for outer in _combinations(values, str(config))
        for one in _combinations({**outer, **block}, str(config))
    ]
    if not found:
        raise InputError(f"{config} holds no experiment: a list in it is empty")
    return list(dict.fromkeys(found))


def _combinations(values: Mapping[str, Any], where: str) -> Iterator[dict[str, Any]]:
    """Every combination of the values that `each` lists, with the other keys."""
    fixed = {name: value for name, value in values.items() if name != "each"}
    each = values.get("each", {})
    if not isinstance(each, dict) or not all(isinstance(axis, list) for axis in each.values()):
        raise InputError(f"{where}: each must hold `key: [value, …]` lines, such as seed: [33, 34]")
    axes = [[_setting(name, value) for value in axis] for name, axis in each.items()]
    for chosen in itertools.product(*axes):
        combination = dict(fixed)
        for setting in chosen:
            combination |= setting
        yield combination


def _setting(name: str, value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {name: value}


class Swept(NamedTuple):
    """The results of a sweep, and for each experiment that failed, or was left, the reason."""

    results: list[Result]
    failed: dict[str, str]


def sweep(
    experiments: Sequence[Experiment], out: str | Path = "results", hours: float | None = None
) -> Swept:
    """Runs experiments; what is finished is read, what fails is told and the rest goes on.

    Gemma is walked first, once for all experiments that read it; then each is trained and scored,
    and its result kept. `results.csv` in the folder is a table of all results there. What would
    not be finished in time, at the pace so far, is not begun.

    Args:
        experiments: what to run; all are checked before the first one starts.
        out: the folder for the result files.
        hours: how long it may take; None: as long as the platform's session lasts.

    Raises:
        InputError: an input that cannot be used; or no experiment could be finished.
    """
    folder = platform.writable_folder(out)
    until = session.end(hours)
    plans = _plans(experiments, folder)
    todo = [one for one in plans if not one.finished()]
    if brought := session.bring(one.path for one in todo):
        print(f"{brought} results of an earlier session taken from {platform.KAGGLE_INPUTS}")
        todo = [one for one in todo if not one.finished()]
    print(f"{len(plans)} experiments, {len(plans) - len(todo)} of them found in {folder}")
    for note in dict.fromkeys(
        f"{one.task.name}: {note}" for one in todo for note in one.task.notes
    ):
        print(f"  note: {note}")
    unfinished: dict[str, str] = {}
    if todo:
        with shared(experiments, folder, until, len(todo)) as share:
            unfinished = _run_all(plans, todo, until, share)
    report.write_csv(folder)
    results = [result for one in plans if (result := read_result(one.path))]
    finished = {one.path.stem for one in plans if one.finished()}
    failed = {name: reason for name, reason in unfinished.items() if name not in finished}
    if left := list(failed.values()).count(LEFT):
        print(
            f"stopped in time, with {left} experiments to go: run this again, and what is "
            "finished is read. On Kaggle save a version, then add its output to the next session "
            "(Add Input, Your Work)."
        )
    if failed and not results:
        raise InputError(next(iter(failed.values())))
    return Swept(results, failed)


def run_share(experiments: Sequence[Experiment], folder: Path, until: float, share: Share) -> None:
    """What another process does of a sweep that this process was started for.

    Args:
        experiments: of the sweep.
        folder: for the results.
        until: when to have finished, in seconds since 1970.
        share: of this process.
    """
    plans = _plans(experiments, folder)
    _run_all(plans, [one for one in plans if not one.finished()], until, share)


def _plans(experiments: Sequence[Experiment], folder: Path) -> list[Plan]:
    """A plan for each different result; each task is loaded once."""
    tasks: dict[tuple, Task] = {}
    plans = {}
    for experiment in experiments:
        same = tuple(getattr(experiment, name) for name in DATA_KEYS)
        one = plan(experiment, folder, tasks.get(same))
        tasks[same] = one.task
        other = plans.get(one.path)
        if other is None or _saves_more(experiment, other.experiment):
            plans[one.path] = one
    return list(plans.values())


def _saves_more(one: Experiment, other: Experiment) -> bool:
    order = (False, True, "with_gemma")
    return order.index(one.save_embedder) > order.index(other.save_embedder)


def _run_all(
    plans: Sequence[Plan], todo: Sequence[Plan], until: float, share: Share
) -> dict[str, str]:
    """Runs what is to do, wave by wave; gives the reasons of those that failed or were left."""
    from embedder_helpers.waves import plan_waves

    left: dict[str, str] = {}
    waves = plan_waves(plans, {one.path for one in todo})
    # Where processes wait for one another's last experiment, Gemma should not wait for RoBERTa's.
    waves.sort(key=lambda wave: share.count > 1 and wave.gemma is None)
    for wave in waves:
        if wave.wanted and share.number == 0:
            print(wave.describe())
    walks = [_walk_work(wave) / share.count for wave in waves]
    work = sum(_plan_work(one) for wave in waves for one in wave.plans) / share.count
    with platform.whole_progress(sum(walks) + work, "sweep") as bar:
        for wave, walk in zip(waves, walks, strict=True):
            if left and share.count > 1:  # another process may still read this wave's states
                left |= {one.path.stem: LEFT for one in wave.plans}
            else:
                left |= dict.fromkeys(_run_wave(wave, walk, bar, until, share), LEFT)
    return share.failures | left


def _run_wave(wave: "Wave", walk: float, bar: Any, until: float, share: Share) -> list[str]:
    """Walks Gemma, then runs the wave's plans; gives the names of those left for want of time."""
    left: list[str] = []
    walked = _in_time(bar, walk * share.count, until)  # all of it, should the others die
    if walked:
        _fill(wave, walk, bar, share)
    for one in share.take(wave.plans):
        work, before = _plan_work(one), bar.n
        bar.total = max(bar.total, bar.n + work)  # others may have left more than an even part
        if not walked or not _in_time(bar, work, until):
            left.append(one.path.stem)
            continue
        platform.say(one.path.stem)
        try:
            _run_one(one, wave.store)
            bar.update(max(0, before + work - bar.n))
        except Exception as error:
            share.fail(one.path.stem, _tell(error, one), everywhere=isinstance(error, InputError))
            bar.total -= max(0, before + work - bar.n)
    return left


def _in_time(bar: Any, work: float, until: float) -> bool:
    """Whether work will be done in time at the pace so far, which the first work has not."""
    pace = bar.format_dict["elapsed"] / bar.n if bar.n else 0.0  # seconds per operation
    return session.has_time(until, pace * work)


def _fill(wave: "Wave", work: float, bar: Any, share: Share) -> None:
    """Walks Gemma; what it did not take of its work goes off the bar, so the time left is true.

    If the walk fails, the experiments that need what it did not give tell why.
    """
    before = bar.n
    try:
        wave.fill(share)
    except Exception as error:
        if share.number > 0:
            raise  # this process is of no use; the first one does its work
        platform.say(f"the walk through Gemma ended early: {_reason(error)}")
    bar.total -= max(0, before + work - bar.n)


def _run_one(one: Plan, store: "Store") -> None:
    """Runs a plan and keeps what it gives; nothing of an earlier model is left in memory."""
    import keras

    from embedder_helpers.saved import save

    keras.backend.clear_session()
    gc.collect()
    embedder, result = train_and_score(one, store)
    write_result(result, one.path)
    if asked := one.experiment.save_embedder:
        folder = save(embedder, embedder_folder(one.path), asked == "with_gemma", result)
        platform.say(f"  embedder saved in {folder}")
    _traceback_file(one).unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # written again at the end, where it is told
        report.write_csv(one.path.parent)
    scores = f"accuracy {result.scores['accuracy']:.3f}, F1 {result.scores['f1']:.3f}"
    platform.say(f"  {report.embedder_name(result)}: {scores} ({result.seconds['total']:.0f} s)")


def _tell(error: Exception, one: Plan) -> str:
    """Says why a plan failed; a bug's traceback is kept beside the results."""
    platform.say(f"  FAILED: {_reason(error)}")
    if not isinstance(error, InputError):
        with contextlib.suppress(OSError):  # the disk may be what failed
            _traceback_file(one).write_text("".join(traceback.format_exception(error)))
    return _reason(error)


def _reason(error: Exception) -> str:
    return str(error) if isinstance(error, InputError) else f"{type(error).__name__}: {error}"


def _traceback_file(one: Plan) -> Path:
    return one.path.with_suffix(".traceback.txt")


def _walk_work(wave: "Wave") -> float:
    """Operations, roughly, of what is missing of a wave's walk, for the bar."""
    missing = wave.missing()
    if not missing:
        return 0.0
    deepest = max(depth.cutoff for depth in missing)
    tokens = wave.ids.lengths @ np.any(list(missing.values()), axis=0)
    return platform.forward_work(tokens, deepest, wave.gemma.preset.width)


def _plan_work(one: Plan) -> float:
    """Operations, roughly, of a plan, for the bar: four letters a token, and the time to start."""
    preset, epochs = one.presets.get("slm_preset"), one.experiment.epochs
    if not preset:
        return SCORING_WORK
    passes = {"fit": 3 * epochs, "watched": epochs}  # a step costs three forward passes
    letters = {part: sum(map(len, one.texts(part))) for part in one.rows}
    tokens = sum(passes.get(part, 1) * count / 4 for part, count in letters.items())
    start = TRAINING_WORK if epochs else SCORING_WORK
    return start + platform.forward_work(tokens, preset.blocks, preset.width)

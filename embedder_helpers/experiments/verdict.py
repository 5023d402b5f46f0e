"""The verdict: does Gemma help on this task, where, and at what cost? Planned and run here.

First the cutoff is selected, on training and validation texts alone, and RoBERTa alone is trained,
with all texts and with few. Then so are the hybrid and its controls at that cutoff. What follows
from the results is left to `results.verdict`.
"""

import logging
import time
from collections.abc import Sequence
from dataclasses import replace
from numbers import Integral
from pathlib import Path
from typing import Any

import numpy as np

from embedder_helpers.config import Experiment, gemma_only
from embedder_helpers.config_files import load_experiments
from embedder_helpers.data.tasks import Task, load_task
from embedder_helpers.errors import InputError, show_list
from embedder_helpers.experiments import session
from embedder_helpers.experiments.cost import read_or_measure_cost
from embedder_helpers.experiments.plan import Plan, Subset, plan_experiment, select_rows
from embedder_helpers.experiments.sweep import run_experiments
from embedder_helpers.experiments.verdict_report import write_verdict
from embedder_helpers.models.architectures import Hybrid, load_embedder
from embedder_helpers.results.cascade import fit_temperature
from embedder_helpers.results.predictions import read_predictions
from embedder_helpers.results.result import Result, embedder_folder
from embedder_helpers.results.verdict import Verdict, assemble
from embedder_helpers.utils.files import writable_folder

logger = logging.getLogger(__name__)

SEEDS = (33, 34, 35)
SIZES = (8, 32, 128, 512)  # training texts per label, besides all
CONTROLS = ("random_weights", "shuffled", "noise")
# Small sets need more epochs, up to 20 (Mosbach et al. 2021, "On the Stability of Fine-tuning
# BERT", section 6): as many as make this many steps.
MIN_STEPS, MAX_EPOCHS = 60, 20
COST_TEXTS, COST_REPEATS = 64, 3  # whose time and memory are measured at every cutoff


def verdict(
    task: Experiment | str | Path,
    out: str | Path | None = None,
    *,
    seeds: Sequence[int] = SEEDS,
    sizes: Sequence[int] = SIZES,
    encoder: str | None = None,
    **options: Any,
) -> Verdict:
    """Whether Gemma helps on a task: run what is not finished yet, and say what follows from it.

    Costs a walk through all of Gemma's layers and one through a random Gemma's kept layers, and for
    each seed five trainings with all texts and two for each smaller number; then the measurement of
    `cost.read_or_measure_cost`. Besides the results, the folder gets what `write_verdict` writes,
    and the first seed's hybrid and RoBERTa alone as one embedder that predicts in a cascade.

    Args:
        task: a hybrid's Experiment, of which cutoff, seed, control and what is saved are replaced,
            and epochs are raised where there are few texts; or a task's name or the path of its
            data, for the built-in models with the settings of `configs/quickstart.yaml`.
        out: folder for the results, which should hold no other verdict; None: `default_folder`.
        seeds: of the trainings; two or more give intervals.
        sizes: training texts per label of the learning curve, besides all.
        encoder: a ready text encoder to compare with, as in `encoder_preset`; None: none.
        options: `hours`, `cluster` and `cpus_per_worker`, as of `run_experiments`.

    Raises:
        InputError: an invalid input; an experiment that was not finished, by name.
    """
    _check_numbers(seeds, sizes)
    until = session.deadline(options.pop("hours", None))
    hybrid = _hybrid(task, seeds[0])
    folder = writable_folder(out or default_folder(hybrid))
    data = load_task(hybrid)
    planned = plan_verdict(hybrid, data, seeds, sizes)
    if planned[0].epochs > hybrid.epochs:
        logger.info(
            "  note: %d epochs instead of %d, so that training has %d steps or is of %d epochs",
            planned[0].epochs, hybrid.epochs, MIN_STEPS, MAX_EPOCHS,
        )  # fmt: skip
    if encoder:
        planned.append(replace(hybrid, kind="encoder_only", encoder_preset=encoder, probe=True))
    # All is checked before any long work.
    plans = [plan_experiment(experiment, None, data) for experiment in planned]
    texts = plans[0].texts(Subset.EVAL)
    cost_texts = _cost_texts(texts, data.name)
    # What has no cutoff runs beside what selects it: several processes have more to share then.
    others = [experiment for experiment in planned if experiment.kind != "hybrid"]
    reader = replace(gemma_only(hybrid), probe=True, llm_layers="cheapest")
    results = _run([reader, *others], folder, until, options)
    (cutoff,) = results[0].cutoffs
    hybrids = [replace(one, llm_layers=cutoff) for one in planned if one.kind == "hybrid"]
    results += _run(hybrids, folder, until, options)

    first, cheap = (plan_experiment(one, folder, data) for one in (hybrids[0], others[0]))
    embedder = _load_cascade(first, cheap)
    cutoffs = range(1, embedder.gemma.preset.num_layers + 1)
    roberta = embedder.cheap and embedder.cheap.embedder
    cost = read_or_measure_cost(folder, embedder, roberta, cost_texts, cutoffs, COST_REPEATS)
    found = assemble(results, folder, texts=texts, cost=cost)
    write_verdict(found, folder, embedder)
    return found


def default_folder(experiment: Experiment) -> Path:
    """The folder of a verdict on an experiment's task, unless another is asked for."""
    name = Path(experiment.task).stem.replace(".", "_")
    return Path("results", f"verdict_{name}")


def _hybrid(task: Experiment | str | Path, seed: int) -> Experiment:
    """The hybrid that is compared. Its cutoff is not known yet: 1 is in its place."""
    if isinstance(task, Experiment):
        settings = task
    else:
        settings = load_experiments("quickstart", {"task": str(task)})[0]
    if not settings.epochs:
        raise InputError(
            "epochs is 0, but a verdict compares classifiers that are trained: set it to 1 or more"
        )
    if settings.scored_split != "test":
        raise InputError(
            "scored_split is 'validation', but the cutoff is selected by validation texts too: a "
            "verdict is on the test split"
        )
    return replace(
        settings, kind="hybrid", llm_layers=1, llm_control=None, seed=seed, save_embedder=False,
        save_predictions=True,
    )  # fmt: skip


def _check_numbers(seeds: Sequence[int], sizes: Sequence[int]) -> None:
    if not len(seeds):
        raise InputError("seeds is empty, but a verdict needs at least one: three or more are best")
    if wrong := [size for size in sizes if not (isinstance(size, Integral) and size > 0)]:
        raise InputError(
            f"sizes has {show_list(wrong, 3)}, but must hold numbers of training texts per label, "
            "1 or more"
        )


def _cost_texts(texts: Sequence[str], task: str) -> list[str]:
    """At most `COST_TEXTS` of the test texts; some of MTEB's are empty, which cost nothing."""
    full = [text for text in texts if text.strip()]
    if len(full) < 2:
        raise InputError(
            f"{task} has {len(full)} test text(s) that are not blank, but a verdict compares "
            "on two or more: hundreds are needed to settle anything"
        )
    return full[:: max(1, len(full) // COST_TEXTS)][:COST_TEXTS]


def plan_verdict(
    hybrid: Experiment,
    task: Task,
    seeds: Sequence[int] = SEEDS,
    sizes: Sequence[int] = SIZES,
) -> list[Experiment]:
    """The experiments that are compared at a cutoff.

    Args:
        hybrid: with the cutoff.
        task: its data.
        seeds: as in `verdict`.
        sizes: as in `verdict`.
    """
    largest = np.unique(_training_labels(hybrid, task), return_counts=True)[1].max()
    counts = [size for size in sorted(set(sizes)) if 2 * size <= largest]  # others are nearly all
    few = [replace(hybrid, train_texts_per_label=count) for count in counts]
    planned = []
    for seed in seeds:
        with_all, *with_few = (
            _with_enough_epochs(replace(one, seed=seed), task) for one in (hybrid, *few)
        )
        # The first seed's embedders are kept, to look into and to use.
        kept = replace(with_all, save_embedder=seed == seeds[0])
        planned += [kept, replace(kept, kind="roberta_only"), *with_few]
        planned += [replace(one, kind="roberta_only") for one in with_few]
        planned += [replace(with_all, llm_control=control) for control in CONTROLS]
    return planned


def _with_enough_epochs(experiment: Experiment, task: Task) -> Experiment:
    steps = -(-len(_training_labels(experiment, task)) // experiment.batch_size)
    epochs = min(-(-MIN_STEPS // steps), MAX_EPOCHS)
    return replace(experiment, epochs=max(experiment.epochs, epochs))


def _training_labels(experiment: Experiment, task: Task) -> np.ndarray:
    split = task.train if experiment.train_split == "train" else task.validation
    return split.labels[select_rows(experiment, task)[Subset.TRAIN]]


def _load_cascade(hybrid: Plan, cheap: Plan) -> Hybrid:
    """The saved hybrid with RoBERTa alone attached, which is saved in its folder, once.

    So `load_embedder(folder).predict(texts, cascade=0.9)` works. Without validation texts of the
    labels that were trained on there is no temperature, and nothing is attached.
    """
    folder, said = embedder_folder(hybrid.path), read_predictions(cheap.path)
    embedder, known = load_embedder(folder), said.validation_labels >= 0
    if not known.any():
        return embedder
    temperature = fit_temperature(said.validation_logits[known], said.validation_labels[known])
    if embedder.cheap is None or embedder.cheap.temperature != temperature:
        embedder.attach(load_embedder(embedder_folder(cheap.path)), temperature)
        embedder.save(folder)
    return embedder


def _run(
    experiments: Sequence[Experiment], folder: Path, until: float, options: dict[str, Any]
) -> list[Result]:
    hours = max(until - time.time(), 1.0) / 3600  # infinite without a limit
    results, failed = run_experiments(experiments, folder, hours, **options)
    if failed:
        name, reason = next(iter(failed.items()))
        raise InputError(
            f"{len(failed)} of {len(experiments)} experiments were not finished, such as {name}: "
            f"{reason}"
        )
    return results

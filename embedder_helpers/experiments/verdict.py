"""The verdict: does Gemma help on this task, where, and at what cost? Planned and run here.

First the cutoff is selected, on training and validation texts alone. Then everything that is
compared at it is trained in one run: RoBERTa alone and the hybrid, with all texts and with few, and
the hybrid's controls. What follows from the results is left to `results.verdict`.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from embedder_helpers.config import Experiment, gemma_only
from embedder_helpers.data.tasks import Task, load_task
from embedder_helpers.errors import InputError
from embedder_helpers.experiments.cost import read_or_measure_cost
from embedder_helpers.experiments.plan import Subset, plan_experiment, select_rows
from embedder_helpers.experiments.sweep import run_experiments
from embedder_helpers.experiments.verdict_report import write_verdict
from embedder_helpers.models.architectures import load_embedder
from embedder_helpers.results.result import Result, embedder_folder
from embedder_helpers.results.verdict import Verdict, assemble

SEEDS = (33, 34, 35)
SIZES = (8, 32, 128, 512)  # training texts per label, besides all
CONTROLS = ("random_weights", "shuffled", "noise")
# Small sets need more epochs, up to 20 (Mosbach et al. 2021, "On the Stability of Fine-tuning
# BERT", section 6): as many as make this many steps.
MIN_STEPS, MAX_EPOCHS = 60, 20
COST_TEXTS, COST_REPEATS = 64, 3  # whose time and memory are measured at every cutoff


def verdict(
    task: Experiment | str | Path,
    out: str | Path = "results/verdict",
    *,
    seeds: Sequence[int] = SEEDS,
    sizes: Sequence[int] = SIZES,
    encoder: str | None = None,
    **options: Any,
) -> Verdict:
    """Whether Gemma helps on a task: run what is not finished yet, and say what follows from it.

    Costs a walk through all of Gemma's layers and one through a random Gemma's kept layers, and for
    each seed five trainings with all texts and two for each smaller number; then the measurement of
    `cost.read_or_measure_cost`. Besides the results, the folder gets what `write_verdict` writes.

    Args:
        task: a hybrid's Experiment, whose cutoff and seed are replaced; or a task's name or the
            path of its data, for the built-in models.
        out: folder for the results.
        seeds: of the trainings; two or more give intervals.
        sizes: training texts per label of the learning curve, besides all.
        encoder: a ready text encoder to compare with, as in `encoder_preset`; None: none.
        options: `hours`, `cluster` and `cpus_per_worker`, as of `run_experiments`.

    Raises:
        InputError: an invalid input; an experiment that was not finished, by name.
    """
    settings = task if isinstance(task, Experiment) else Experiment(task=str(task))
    hybrid = replace(settings, kind="hybrid", save_predictions=True)
    reader = replace(gemma_only(hybrid), probe=True, llm_layers="cheapest")
    results = _run([reader], out, options)
    hybrid = replace(hybrid, llm_layers=results[0].cutoffs[0])
    task_data = load_task(hybrid)
    planned = plan_verdict(hybrid, task_data, seeds, sizes)
    if encoder:
        planned.append(replace(hybrid, kind="encoder_only", encoder_preset=encoder, probe=True))
    results += _run(planned, out, options)
    texts = plan_experiment(hybrid, None, task_data).texts(Subset.EVAL)
    embedder, cheap = (
        load_embedder(embedder_folder(plan_experiment(one, Path(out), task_data).path))
        for one in planned[:2]
    )
    cutoffs = range(1, embedder.gemma.preset.num_layers + 1)
    some = texts[:: max(1, len(texts) // COST_TEXTS)][:COST_TEXTS]
    cost = read_or_measure_cost(out, embedder, cheap, some, cutoffs, COST_REPEATS)
    found = assemble(results, out, texts=texts, cost=cost)
    write_verdict(found, out, embedder)
    return found


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


def _run(
    experiments: Sequence[Experiment], out: str | Path, options: dict[str, Any]
) -> list[Result]:
    results, failed = run_experiments(experiments, out, **options)
    if failed:
        name, reason = next(iter(failed.items()))
        raise InputError(
            f"{len(failed)} of {len(experiments)} experiments were not finished, such as {name}: "
            f"{reason}"
        )
    return results

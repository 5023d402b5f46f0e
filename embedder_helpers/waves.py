"""Which experiments of a sweep read which states, and how many fit the disk at a time.

All experiments on one Gemma share one walk through its blocks if their states fit the disk. If not,
they run in waves, from the shallowest cutoff to the deepest: a wave's states replace those of the
one before, and the walk goes on from raw states kept where it stopped.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from embedder_helpers import platform
from embedder_helpers.gemma import Depth, Gemma, depths
from embedder_helpers.plan import Plan
from embedder_helpers.shares import Share
from embedder_helpers.states import Store, text_keys
from embedder_helpers.tokens import Ragged


@dataclass(frozen=True)
class Wave:
    """Plans whose states fit the disk together, and what the walk that gives them wants.

    Attributes:
        plans: in the order they run.
        store: where the states are.
        gemma: the model; None for RoBERTa alone.
        ids: the texts.
        wanted: for each depth, `(texts,)` whether a text is wanted there.
    """

    plans: list[Plan]
    store: Store
    gemma: Gemma | None = None
    ids: Ragged | None = None
    wanted: dict[Depth, np.ndarray] = field(default_factory=dict)

    def fill(self, share: Share = Share()) -> None:  # noqa: B008, it is frozen
        """Walks Gemma through what is missing, this process's share first."""
        if self.wanted:
            self.store.fill(self.gemma, self.ids, self.wanted, share)

    def missing(self) -> dict[Depth, np.ndarray]:
        """What is wanted and not there yet; empty if all is there."""
        if not self.wanted:
            return {}
        return self.store.missing(self.gemma.preset, text_keys(self.ids), self.wanted)

    def describe(self) -> str:
        """How much this wave reads, where it is kept, and what it costs at most."""
        preset = self.gemma.preset
        size = self.store.bytes_of(preset, self.ids, self.wanted) / 1e9
        room = self.store.capacity() / 1e9
        texts = int(np.any(list(self.wanted.values()), axis=0).sum())
        cutoffs = sorted({depth.cutoff for depth in self.wanted})
        return (
            f"{preset.name}: {texts} texts, {len(cutoffs)} cutoffs ({cutoffs[0]} … {cutoffs[-1]}), "
            f"{size:.2f} GB of states in {self.store.folder} (room for {room:.0f} GB)"
        )


def plan_waves(plans: Iterable[Plan], todo: Collection[Path]) -> list[Wave]:
    """RoBERTa alone first, then the plans of each Gemma, from the shallowest cutoff.

    Finished plans are reckoned with but left out, so that a sweep that goes on after it was killed
    has the waves that it had.

    Args:
        plans: of the sweep.
        todo: paths of the results that are missing.
    """
    groups: dict[Any, list[Plan]] = {}
    for plan in plans:
        preset, experiment = plan.presets.get("llm_preset"), plan.experiment
        places = experiment.states_dir or "", experiment.states_gigabytes or 0.0
        walk = experiment.max_tokens, experiment.stream_blocks
        same = (preset.fingerprint, *walk, *places) if preset else ()
        groups.setdefault(same, []).append(plan)
    waves = []
    for same, group in sorted(groups.items(), key=lambda item: item[0]):
        experiment = group[0].experiment
        folder = experiment.states_dir or platform.states_folder()
        store = Store(folder, experiment.states_gigabytes)
        waves += _gemma_waves(group, todo, store) if same else [Wave(_left(group, todo), store)]
    return [wave for wave in waves if wave.plans]


def _left(plans: Iterable[Plan], todo: Collection[Path]) -> list[Plan]:
    return [plan for plan in plans if plan.path in todo]


def _gemma_waves(plans: Sequence[Plan], todo: Collection[Path], store: Store) -> Iterator[Wave]:
    experiment, preset = plans[0].experiment, plans[0].presets["llm_preset"]
    gemma = Gemma(preset, experiment.stream_blocks)
    ids, texts_of = _texts(gemma, plans)
    reads = [
        (plan, dict.fromkeys(depths(plan.experiment, preset.blocks), texts_of(plan)))
        for plan in sorted(plans, key=lambda plan: _deepest(plan, preset.blocks))
    ]

    def size(wanted):
        return store.bytes_of(preset, ids, wanted)

    room = store.capacity()
    several = size(_union(wanted for _, wanted in reads)) > room
    raw = size({Depth(1, "none"): np.ones(len(ids), bool)})
    goes_on = several and room - 2 * raw > max(size(wanted) for _, wanted in reads)
    waves: list[list] = [[]]
    for plan, wanted in reads:
        if size(wanted) > room:
            # Only what is trained on must be kept; the other texts' states are used once.
            parts = [part for part in ("fit", "watched") if part in plan.rows]
            wanted = dict.fromkeys(wanted, texts_of(plan, *parts)) if parts else {}
        together = _union([*(one for _, one in waves[-1]), wanted])
        if waves[-1] and size(together) > room - 2 * raw * goes_on:
            waves.append([])
        waves[-1].append((plan, wanted))
    for number, wave in enumerate(waves, 1):
        wanted = _union(one for plan, one in wave if plan.path in todo)
        later = _union(one for wave in waves[number:] for plan, one in wave if plan.path in todo)
        if goes_on and wanted and later:
            end = Depth(max(depth.cutoff for depth in wanted), "none")
            wanted[end] = wanted.get(end, False) | np.any(list(later.values()), axis=0)
        yield Wave(_left((plan for plan, _ in wave), todo), store, gemma, ids, wanted)


def _texts(gemma: Gemma, plans: Sequence[Plan]) -> tuple[Ragged, Callable[..., np.ndarray]]:
    """Token ids of all texts of plans, and a function that tells which of them a plan reads."""
    row: dict[str, int] = {}
    rows: dict[tuple, list[int]] = {}

    def rows_of(plan: Plan, *parts: str) -> list[int]:
        parts = parts or tuple(plan.rows)
        # Many plans read the same texts: each set is looked up once.
        splits = plan.experiment.scored_split, plan.experiment.train_split
        which = ((part, plan.rows[part].tobytes()) for part in parts)
        same = (plan.inputs["task"], *splits, *which)
        if same not in rows:
            rows[same] = [row.setdefault(text, len(row)) for text in plan.texts(*parts)]
        return rows[same]

    for plan in plans:
        rows_of(plan)
    ids, _ = gemma.tokenise(list(row), plans[0].experiment.max_tokens)

    def mask_of(plan: Plan, *parts: str) -> np.ndarray:
        mask = np.zeros(len(ids), bool)
        mask[rows_of(plan, *parts)] = True
        return mask

    return ids, mask_of


def _union(wanted: Iterable[dict[Depth, np.ndarray]]) -> dict[Depth, np.ndarray]:
    """For each depth, the texts that any of them wants there; depths from the shallowest."""
    found: dict[Depth, np.ndarray] = {}
    for one in wanted:
        for depth, mask in one.items():
            found[depth] = found.get(depth, False) | mask
    return dict(sorted(found.items()))


def _deepest(plan: Plan, blocks: int) -> int:
    return depths(plan.experiment, blocks)[-1].cutoff

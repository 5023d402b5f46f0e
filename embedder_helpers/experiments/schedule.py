"""Which experiments of a sweep read which hidden states, and how many of them fit the disk.

All experiments on one Gemma share one forward pass through its layers if their hidden states fit
the disk. If not, they run in batches, from the smallest cutoff to the largest: a batch's hidden
states replace those of the batch before, and the forward pass resumes from the raw states at the
largest cutoff reached, which are kept.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from embedder_helpers.experiments.plan import Plan, Subset
from embedder_helpers.models.batching import RaggedArray
from embedder_helpers.models.gemma import Gemma, HiddenStateSpec, hidden_state_specs
from embedder_helpers.models.hidden_states import HiddenStateCache
from embedder_helpers.models.sharding import text_keys
from embedder_helpers.utils import environment, progress

# For each kind of hidden states, `(texts,)` whether a text's are wanted.
Wanted = dict[HiddenStateSpec, np.ndarray]


@dataclass(frozen=True)
class ExperimentBatch:
    """Plans whose hidden states fit the disk together.

    Attributes:
        plans: in the order they run.
        cache: of hidden states.
        gemma: the model; None for RoBERTa and ready encoders alone.
        ids: token ids of all texts.
        wanted: hidden states to compute before the plans run.
        planned: the same if none of the sweep's plans were finished.
    """

    plans: list[Plan]
    cache: HiddenStateCache
    gemma: Gemma | None = None
    ids: RaggedArray | None = None
    wanted: Wanted = field(default_factory=dict)
    planned: Wanted = field(default_factory=dict)

    def prepare(self) -> list[np.ndarray]:
        """Make room for the wanted hidden states that are missing; their shards' texts."""
        if not self.wanted:
            return []
        return self.cache.prepare(self.gemma, self.ids, self.wanted, self.planned)

    def compute_shard(self, shard: np.ndarray) -> None:
        """Compute what is missing of a shard; Gemma keeps its weights for the next one."""
        self.cache.compute_shard(self.gemma, self.ids, self.wanted, shard, self.planned)

    def forward_work(self, shard: np.ndarray | slice = slice(None)) -> float:
        """Approximate operations of the hidden states of texts that are missing, for a bar."""
        if not self.wanted:
            return 0.0
        ids = self.ids.select(np.arange(len(self.ids))[shard])
        wanted = {spec: mask[shard] for spec, mask in self.wanted.items()}
        missing = self.cache.missing(self.gemma, text_keys(ids), wanted)
        if not missing:
            return 0.0
        deepest = max(spec.cutoff for spec, mask in missing.items() if mask.any())
        tokens = ids.lengths @ np.any(list(missing.values()), axis=0)
        return progress.forward_flops(tokens, deepest, self.gemma.preset.width)

    def describe(self) -> str:
        """Texts, cutoffs and size of the wanted hidden states, and where they are kept."""
        preset = self.gemma.preset
        size = self.cache.bytes_of(self.gemma, self.ids, self.wanted) / 1e9
        capacity = self.cache.capacity() / 1e9
        texts = int(np.any(list(self.wanted.values()), axis=0).sum())
        cutoffs = sorted({spec.cutoff for spec in self.wanted})
        return (
            f"{preset.name}: {texts} texts, {len(cutoffs)} cutoffs ({cutoffs[0]} … {cutoffs[-1]}), "
            f"{size:.2f} GB of hidden states in {self.cache.folder} (room for {capacity:.0f} GB)"
        )


def schedule(
    plans: Iterable[Plan], todo: Collection[Path], capacity: float | None = None
) -> list[ExperimentBatch]:
    """What reads no Gemma first, then the plans of each Gemma, from the smallest cutoff.

    Batches, and the shards of their texts, are formed with the finished plans, which are left out
    only then, so that a sweep that continues after it was killed has those that it had before.

    Args:
        plans: of the sweep.
        todo: paths of the results that are missing.
        capacity: bytes of hidden states that fit the disk; None: as many as do.
    """
    groups: dict[tuple, list[Plan]] = {}
    for plan in plans:
        groups.setdefault(_group_key(plan), []).append(plan)
    batches: list[ExperimentBatch] = []
    for key, group in sorted(groups.items(), key=lambda item: item[0]):
        experiment = group[0].experiment
        folder = experiment.states_dir or environment.states_folder()
        cache = HiddenStateCache(folder, experiment.states_gigabytes)
        if key:
            room = cache.capacity() if capacity is None else capacity
            batches += _gemma_batches(group, todo, cache, room)
        else:
            batches.append(ExperimentBatch([plan for plan in group if plan.path in todo], cache))
    return [batch for batch in batches if batch.plans]


def _group_key(plan: Plan) -> tuple[Any, ...]:
    """What plans must have in common to share a forward pass; empty where none is read."""
    preset, experiment = plan.presets.get("llm_preset"), plan.experiment
    if not preset:
        return ()
    return (
        preset.fingerprint,
        preset.random_weights,
        experiment.max_tokens,
        experiment.stream_blocks,
        experiment.llm_dtype,
        experiment.states_dir or "",
        experiment.states_gigabytes or 0.0,
    )


def _gemma_batches(
    plans: Sequence[Plan], todo: Collection[Path], cache: HiddenStateCache, capacity: float
) -> Iterator[ExperimentBatch]:
    """The batches of plans that share a Gemma."""
    experiment, preset = plans[0].experiment, plans[0].presets["llm_preset"]
    gemma = Gemma(preset, experiment.stream_blocks, experiment.llm_dtype)
    ids, text_mask = _tokenize_all(gemma, plans)
    size = partial(cache.bytes_of, gemma, ids)

    plans = sorted(plans, key=lambda plan: _specs(plan)[-1].cutoff)
    reads = [(plan, dict.fromkeys(_specs(plan), text_mask(plan))) for plan in plans]
    is_too_large = size(_merge(wanted for _, wanted in reads)) > capacity
    # Raw states take room twice: those resumed from, and those that the next batch resumes from.
    raw_size = 2 * size({HiddenStateSpec(1, "none"): np.ones(len(ids), bool)})
    resumes = is_too_large and capacity - raw_size > max(size(wanted) for _, wanted in reads)
    for i, (plan, wanted) in enumerate(reads):
        if size(wanted) > capacity:
            # Only what is trained on must be kept; other texts' hidden states are used once.
            subsets = [s for s in (Subset.TRAIN, Subset.VALIDATION) if s in plan.rows]
            reads[i] = plan, dict.fromkeys(wanted, text_mask(plan, *subsets)) if subsets else {}

    groups = _split(reads, size, capacity - raw_size if resumes else capacity)
    for number, group in enumerate(groups, 1):
        rest = [reads for later in groups[number:] for reads in later] if resumes else []
        planned = _read_together(group, rest)
        group, rest = ([one for one in part if one[0].path in todo] for part in (group, rest))
        wanted = _read_together(group, rest)
        yield ExperimentBatch([plan for plan, _ in group], cache, gemma, ids, wanted, planned)


def _read_together(
    group: Iterable[tuple[Plan, Wanted]], rest: Iterable[tuple[Plan, Wanted]]
) -> Wanted:
    """What the plans of a group read, and the raw states from which the rest resumes."""
    wanted, later = (_merge(reads for _, reads in part) for part in (group, rest))
    if wanted and later:
        end = HiddenStateSpec(max(spec.cutoff for spec in wanted), "none")
        wanted[end] = wanted.get(end, False) | np.any(list(later.values()), axis=0)
    return wanted


def _split(
    reads: Iterable[tuple[Plan, Wanted]], size: Callable[[Wanted], int], room: float
) -> list[list[tuple[Plan, Wanted]]]:
    """Consecutive groups of plans with what they read; each fits the room, or is a single plan."""
    groups: list[list[tuple[Plan, Wanted]]] = []
    for plan, wanted in reads:
        together = _merge([*(earlier for _, earlier in groups[-1]), wanted]) if groups else {}
        if not groups or size(together) > room:
            groups.append([])
        groups[-1].append((plan, wanted))
    return groups


def _specs(plan: Plan) -> tuple[HiddenStateSpec, ...]:
    """The hidden states that a plan reads, from the smallest cutoff."""
    return hidden_state_specs(plan.experiment, plan.presets["llm_preset"].num_layers)


def _tokenize_all(
    gemma: Gemma, plans: Sequence[Plan]
) -> tuple[RaggedArray, Callable[..., np.ndarray]]:
    """Token ids of all distinct texts, and a function `(plan, *subsets)` -> mask of its texts."""
    row: dict[str, int] = {}
    known_rows: dict[tuple, list[int]] = {}

    def text_rows(plan: Plan, *subsets: Subset) -> list[int]:
        subsets = subsets or tuple(plan.rows)
        # Many plans read the same texts: each set of them is looked up once.
        splits = plan.experiment.scored_split, plan.experiment.train_split
        rows = ((subset, plan.rows[subset].tobytes()) for subset in subsets)
        key = (plan.inputs["task"], *splits, *rows)
        if key not in known_rows:
            known_rows[key] = [row.setdefault(text, len(row)) for text in plan.texts(*subsets)]
        return known_rows[key]

    for plan in plans:
        text_rows(plan)
    ids, _ = gemma.tokenize(list(row), plans[0].experiment.max_tokens)

    def text_mask(plan: Plan, *subsets: Subset) -> np.ndarray:
        mask = np.zeros(len(ids), bool)
        mask[text_rows(plan, *subsets)] = True
        return mask

    return ids, text_mask


def _merge(parts: Iterable[Mapping[HiddenStateSpec, np.ndarray]]) -> Wanted:
    """The hidden states that any of the parts wants, from the smallest cutoff."""
    merged: Wanted = {}
    for part in parts:
        for spec, mask in part.items():
            merged[spec] = merged.get(spec, False) | mask
    return dict(sorted(merged.items()))

"""The cache of hidden states on disk: those of a text are computed once for all experiments.

A folder per model holds files of a shard of texts each (`shard_file`), for each spec. A text is
identified by its token ids, which hold all that Gemma sees of text, tokenizer and length limit, so
that experiments, tasks and seeds share the same hidden states. Processes on whatever machines may
share the folder: a file never changes, and one that a living process reads is not deleted.
"""

import contextlib
import hashlib
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from embedder_helpers.errors import InputError
from embedder_helpers.models import cache_folder, eviction
from embedder_helpers.models.batching import (
    MultiLayerStates,
    RaggedArray,
    from_lengths,
    stack_layers,
)
from embedder_helpers.models.gemma import Gemma, HiddenStateSpec
from embedder_helpers.models.shard_file import TEXT_BYTES, shard_path, write_shard
from embedder_helpers.models.shard_index import Found, ShardIndex
from embedder_helpers.models.sharding import (
    Wanted,
    divide,
    first_occurrences,
    group_by_missing,
    text_keys,
)
from embedder_helpers.models.use_marks import own_mark
from embedder_helpers.utils import environment
from embedder_helpers.utils.files import writable_folder

FORMAT = 3  # raised when the files' format, or what Gemma computes for them, changes


class HiddenStateCache:
    """A folder of hidden states with a size limit.

    Args:
        folder: folder of the cache; created if it does not exist.
        gigabytes: maximum size; None: the free disk space less 2 GB, or a tenth of it if that is
            more.

    Raises:
        InputError: the folder cannot be written.
    """

    def __init__(self, folder: str | Path, gigabytes: float | None = None):
        self.folder = writable_folder(folder, "states_dir")
        self.limit = float("inf") if gigabytes is None else gigabytes * 1e9
        self._index = ShardIndex()
        self._mark = own_mark(self.folder)
        cache_folder.log_old_files(self.folder)

    def lookup(
        self, gemma: Gemma, ids: RaggedArray, specs: Sequence[HiddenStateSpec]
    ) -> RaggedArray | MultiLayerStates | None:
        """Hidden states of texts, memory-mapped; None unless all of them are cached."""
        keys = text_keys(ids)
        found = [self._find(gemma, spec, keys) for spec in specs]
        if not all(one.complete.all() for one in found):
            return None
        self._use(set().union(*(one.paths for one in found)))
        return stack_layers([one.states for one in found])

    def get_or_compute(
        self, gemma: Gemma, ids: RaggedArray, specs: Sequence[HiddenStateSpec]
    ) -> RaggedArray | MultiLayerStates:
        """Hidden states of texts, memory-mapped; missing ones are computed first.

        Raises:
            InputError: they do not fit the size limit, or are not finite.
        """
        states = self.lookup(gemma, ids, specs)
        if states is None:
            self.compute_missing(gemma, ids, dict.fromkeys(specs, np.ones(len(ids), bool)))
            states = self.lookup(gemma, ids, specs)
        if states is None:
            raise InputError(
                f"somebody deleted hidden states of {gemma.preset.name} in {self.folder} that this "
                "process had just computed: give each user a states_dir of their own"
            )
        return states

    def compute_missing(self, gemma: Gemma, ids: RaggedArray, wanted: Wanted) -> None:
        """Compute the hidden states that are missing; each text passes through each layer once.

        They are written shard by shard, so a process that was killed continues with the shards
        that are missing. What `wanted` does not name may be deleted from now on.

        Args:
            gemma: model.
            ids: token ids of texts.
            wanted: mask `(texts,)` of the texts whose hidden states are wanted, for each spec.

        Raises:
            InputError: they do not fit the size limit, or are not finite.
        """
        try:
            for shard in self.prepare(gemma, ids, wanted):
                self.compute_shard(gemma, ids, wanted, shard)
        finally:
            gemma.unload()

    def prepare(
        self, gemma: Gemma, ids: RaggedArray, wanted: Wanted, planned: Wanted | None = None
    ) -> list[np.ndarray]:
        """Make room for what is missing, and divide it into shards.

        Shards follow from what is planned, and not from what is missing of it, so that the batches
        in which a text is computed, on which the last bits may depend, are the same after a kill.

        Args:
            gemma: model.
            ids: token ids of texts.
            wanted: as in `compute_missing`.
            planned: the same before anything was finished; None: as much as is wanted.

        Returns:
            Rows of `ids` for each shard of which something is missing, the longest texts first.

        Raises:
            InputError: it does not fit the size limit.
        """
        keys = text_keys(ids)
        wanted = first_occurrences(keys, wanted)
        if not np.any(list(wanted.values())):
            return []
        if self.missing(gemma, keys, wanted):
            self._make_room(gemma, ids, keys, wanted)
        found = (self._find(gemma, spec, keys, mask).paths for spec, mask in wanted.items())
        self._mark.replace(set().union(*found))
        missing = self.missing(gemma, keys, wanted)  # after the mark: what is there now stays
        if not missing:
            return []
        is_missing = np.any(list(missing.values()), axis=0)
        planned = wanted if planned is None else first_occurrences(keys, planned)
        shards = divide(ids.lengths, np.any(list(planned.values()), axis=0))
        shards = [rows for rows in shards if np.any(is_missing[rows])]
        resumed = (
            self._resumed_paths(
                gemma, [keys[row] for row in rows], {spec: m[rows] for spec, m in missing.items()}
            )
            for rows in shards
        )
        self._mark.add(set().union(*resumed))
        return shards

    def compute_shard(
        self,
        gemma: Gemma,
        ids: RaggedArray,
        wanted: Wanted,
        shard: np.ndarray,
        planned: Wanted | None = None,
    ) -> None:
        """Compute what is missing of one shard.

        Memory: besides what `Gemma.forward_layers` takes, the shard's hidden states.

        Args:
            gemma: model; it keeps its weights for the next shard.
            ids: token ids of texts.
            wanted: as in `prepare`.
            shard: rows that `prepare` returned.
            planned: as in `prepare`.

        Raises:
            InputError: hidden states that are not finite; not enough memory; a full disk.
        """
        self._index.forget_deleted()
        keys, is_here = text_keys(ids), np.isin(np.arange(len(ids)), shard)
        wanted, planned = (
            {spec: mask & is_here for spec, mask in first_occurrences(keys, masks).items()}
            for masks in (wanted, wanted if planned is None else planned)
        )
        missing = self.missing(gemma, keys, wanted)
        if not missing:  # another process has computed them
            return
        resume_from = self._resume_point(gemma, keys, missing)
        if resume_from:
            self._mark.add(resume_from[1].paths)
        groups = group_by_missing(missing, planned)
        # The groups with the largest cutoffs first, so that Gemma's layers are loaded once.
        for rows, specs in sorted(groups, key=lambda group: -group[1][-1].cutoff):
            resume_rows = None
            if resume_from:
                resume_rows = resume_from[0], resume_from[1].states.select(rows)
            parts = gemma.forward_layers(ids.select(rows), specs, resume_rows)
            for spec, states in _collect(parts, ids.lengths[rows], gemma.preset.width):
                self._write(gemma, spec, [keys[row] for row in rows], states)

    def _write(
        self, gemma: Gemma, spec: HiddenStateSpec, keys: list[bytes], states: RaggedArray
    ) -> None:
        folder = self.model_folder(gemma)
        folder.mkdir(exist_ok=True)
        path = shard_path(folder, cache_folder.spec_prefix(spec), keys)
        write_shard(path, keys, states)
        self._index.forget(path)
        self._mark.add({path})

    def missing(
        self, gemma: Gemma, keys: Sequence[bytes], wanted: Wanted
    ) -> dict[HiddenStateSpec, np.ndarray]:
        """For each spec, `(texts,)` which wanted texts are not cached; empty if all are."""
        missing = {
            spec: mask & ~self._find(gemma, spec, keys, mask).complete
            for spec, mask in wanted.items()
        }
        return missing if np.any(list(missing.values())) else {}

    def _resume_point(
        self, gemma: Gemma, keys: Sequence[bytes], missing: Wanted
    ) -> tuple[int, Found] | None:
        """The largest cutoff whose cached raw hidden states all that is missing can start from."""
        smallest = min(spec.cutoff for spec, mask in missing.items() if mask.any())
        needed = np.any(list(missing.values()), axis=0)
        for cutoff in range(smallest, 0, -1):
            found = self._find(gemma, HiddenStateSpec(cutoff, "none"), keys, needed)
            if found.complete[needed].all():
                return cutoff, found
        return None

    def _resumed_paths(self, gemma: Gemma, keys: Sequence[bytes], missing: Wanted) -> set[Path]:
        """The files of raw hidden states that what is missing starts from."""
        resume_from = self._resume_point(gemma, keys, missing) if missing else None
        return resume_from[1].paths if resume_from else set()

    def _find(
        self,
        gemma: Gemma,
        spec: HiddenStateSpec,
        keys: Sequence[bytes],
        mask: np.ndarray | None = None,
    ) -> Found:
        return self._index.find(self.model_folder(gemma), spec, keys, mask)

    def _use(self, paths: set[Path]) -> None:
        """Note that files are read: now, for what to delete first, and by this process."""
        self._index.forget_deleted()
        self._mark.add(paths)
        for path in paths:
            with contextlib.suppress(OSError):  # deleted, or not ours: it stays readable
                os.utime(path)

    def model_folder(self, gemma: Gemma) -> Path:
        """The folder of a model's hidden states."""
        version = environment.package_versions()["keras-hub"]
        content = f"{FORMAT} {version} {gemma.preset.fingerprint} {gemma.dtype}"
        content += " random" if gemma.preset.random_weights else ""
        name = re.sub(r"\W+", "_", Path(gemma.preset.name).name)
        return self.folder / f"{name}-{hashlib.sha256(content.encode()).hexdigest()[:8]}"

    def _token_bytes(self, gemma: Gemma, spec: HiddenStateSpec) -> int:
        return gemma.preset.width * np.dtype(spec.dtype).itemsize

    def bytes_of(self, gemma: Gemma, ids: RaggedArray, wanted: Wanted) -> int:
        """Bytes on disk of the wanted texts' hidden states, over all specs."""
        return sum(
            int(ids.lengths @ mask) * self._token_bytes(gemma, spec) + int(mask.sum()) * TEXT_BYTES
            for spec, mask in wanted.items()
        )

    def capacity(self) -> float:
        """Bytes that hidden states can take, by the size limit, the disk and what others read."""
        return eviction.capacity(self.folder, self.limit)

    def _make_room(
        self, gemma: Gemma, ids: RaggedArray, keys: Sequence[bytes], wanted: Wanted
    ) -> None:
        useful = self._useful_bytes(gemma, keys, wanted)
        missing = self.missing(gemma, keys, wanted)  # nothing, if another process was faster
        resumed = self._resumed_paths(gemma, keys, missing)
        needed = self.bytes_of(gemma, ids, wanted)
        eviction.make_room(self.folder, self.limit, needed, useful, resumed)
        self._index.forget_deleted()

    def _useful_bytes(self, gemma: Gemma, keys: Sequence[bytes], wanted: Wanted) -> dict[Path, int]:
        """Of the files in which something is wanted, how much."""
        useful: dict[Path, int] = {}
        for spec, mask in wanted.items():
            wanted_keys = {keys[row] for row in np.flatnonzero(mask)}
            for file in self._index.open_files(self.model_folder(gemma), spec):
                rows = file.intact_rows(wanted_keys)
                wanted_keys -= rows.keys()
                if rows:
                    tokens = int(file.states.lengths[list(rows.values())].sum())
                    size = tokens * self._token_bytes(gemma, spec) + len(rows) * TEXT_BYTES
                    useful[file.path] = size
        return useful


def _collect(
    parts: Iterator[tuple[HiddenStateSpec, np.ndarray, np.ndarray]],
    lengths: np.ndarray,
    width: int,
) -> Iterator[tuple[HiddenStateSpec, RaggedArray]]:
    """The hidden states of all texts for a spec, as soon as the last batch has come.

    Args:
        parts: what `Gemma.forward_layers` yields.
        lengths: `(texts,)` number of tokens of each text.
        width: size of a hidden state.
    """
    begun: dict[HiddenStateSpec, tuple[RaggedArray, set[int]]] = {}
    for spec, rows, batch in parts:
        if spec not in begun:
            values = np.empty((int(lengths.sum()), width), spec.dtype)
            begun[spec] = from_lengths(values, lengths), set(range(len(lengths)))
        states, rest = begun[spec]
        for row, text in zip(rows, np.split(batch, np.cumsum(lengths[rows])[:-1]), strict=True):
            states.text(row)[:] = text
        rest.difference_update(np.asarray(rows).tolist())
        if not rest:
            yield spec, begun.pop(spec)[0]

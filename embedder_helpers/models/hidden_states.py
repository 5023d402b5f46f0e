"""The cache of hidden states on disk: those of a text are computed once for all experiments.

A folder per model holds a `LayerFile` per spec. A text is identified by its token ids, which hold
all that Gemma sees of text, tokenizer and length limit, so that experiments, tasks and seeds share
the same hidden states.
"""

import contextlib
import hashlib
import logging
import re
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import filelock
import numpy as np
import pandas as pd

from embedder_helpers.errors import InputError
from embedder_helpers.models.batching import MultiLayerStates, RaggedArray, stack_layers
from embedder_helpers.models.gemma import Gemma, HiddenStateSpec
from embedder_helpers.models.layer_file import LayerFile, count_records, delete_files, file_size
from embedder_helpers.utils import environment
from embedder_helpers.utils.files import writable_folder

logger = logging.getLogger(__name__)

RESERVE = 2 * 10**9  # bytes of the disk that are left free
FORMAT = 2  # raised when the files' format, or what Gemma computes for them, changes


class HiddenStateCache:
    """A folder of hidden states with a size limit.

    Args:
        folder: folder of the cache; created if it does not exist.
        gigabytes: maximum size; None: limited by the disk, of which 2 GB are left free.

    Raises:
        InputError: the folder cannot be written.
    """

    def __init__(self, folder: str | Path, gigabytes: float | None = None):
        self.folder = writable_folder(folder, "states_dir")
        self.limit = float("inf") if gigabytes is None else gigabytes * 1e9

    def lookup(
        self, gemma: Gemma, ids: RaggedArray, specs: Sequence[HiddenStateSpec]
    ) -> RaggedArray | MultiLayerStates | None:
        """Hidden states of texts, memory-mapped; None unless all of them are cached."""
        keys = text_keys(ids)
        files = [self.layer_file(gemma, spec) for spec in specs]
        layers = [file.lookup(keys) for file in files]
        if not all(complete.all() for _, complete in layers):
            return None
        for file in files:
            file.path.touch()  # the least recently used file is deleted first
        return stack_layers([states for states, _ in layers])

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
                f"another process deleted hidden states of {gemma.preset.name} that this one had "
                "just computed: raise states_gigabytes, or give each process its own states_dir"
            )
        return states

    def compute_missing(
        self,
        gemma: Gemma,
        ids: RaggedArray,
        wanted: Mapping[HiddenStateSpec, np.ndarray],
        shard: int = 0,
        num_shards: int = 1,
    ) -> None:
        """Compute the hidden states that are missing; each text passes through each layer once.

        Each batch is written as soon as it is computed, so a process that was killed continues
        with the missing texts, in the same batches.

        Args:
            gemma: model.
            ids: token ids of texts.
            wanted: mask `(texts,)` of the texts whose hidden states are wanted, for each spec.
            shard: number of the shard of texts that this process computes first, from 0.
            num_shards: number of processes that compute the same hidden states.

        Raises:
            InputError: they do not fit the size limit, or are not finite.
        """
        keys = text_keys(ids)
        wanted = {spec: _first_occurrences(keys, mask) for spec, mask in wanted.items()}
        if not self.missing(gemma, keys, wanted):
            return  # without waiting for a process that computes others
        try:
            for lock_name, texts in _shards(ids.lengths, shard, num_shards):
                with self._locked(gemma, lock_name):
                    self._compute_shard(gemma, ids, keys, wanted, texts)
        finally:
            gemma.unload()

    def _compute_shard(
        self,
        gemma: Gemma,
        ids: RaggedArray,
        keys: list[bytes],
        wanted: Mapping[HiddenStateSpec, np.ndarray],
        texts: np.ndarray,
    ) -> None:
        """Compute what is missing of the texts of one shard, `(texts,)` bool."""
        missing = self.missing(gemma, keys, wanted)
        missing_in_shard = {spec: mask & texts for spec, mask in missing.items()}
        if not np.any(list(missing_in_shard.values())):
            return
        resume_from = self._resume_point(gemma, keys, missing)
        self._make_room_for(gemma, ids, keys, wanted, resume_from)
        files = {spec: self.layer_file(gemma, spec) for spec in wanted}
        groups = _group_by_missing(missing_in_shard)
        # The groups with the largest cutoffs first, so that Gemma's layers are loaded once.
        for rows, specs in sorted(groups, key=lambda group: -group[1][-1].cutoff):
            resume_rows = (resume_from[0], resume_from[1].select(rows)) if resume_from else None
            batches = gemma.forward_layers(ids.select(rows), specs, resume_rows)
            for spec, batch_rows, states in batches:
                done = rows[batch_rows]
                with self._locked(gemma, "writing"):
                    files[spec].append([keys[row] for row in done], ids.lengths[done], states)

    def missing(
        self, gemma: Gemma, keys: Sequence[bytes], wanted: Mapping[HiddenStateSpec, np.ndarray]
    ) -> dict[HiddenStateSpec, np.ndarray]:
        """For each spec, `(texts,)` which wanted texts are not cached; empty if all are."""
        missing = {
            spec: mask & ~self.layer_file(gemma, spec).lookup(keys)[1]
            for spec, mask in wanted.items()
        }
        return missing if np.any(list(missing.values())) else {}

    def _resume_point(
        self, gemma: Gemma, keys: Sequence[bytes], missing: Mapping[HiddenStateSpec, np.ndarray]
    ) -> tuple[int, RaggedArray] | None:
        """The largest cutoff whose cached raw hidden states all that is missing can start from."""
        smallest = min(spec.cutoff for spec, mask in missing.items() if mask.any())
        needed = np.any(list(missing.values()), axis=0)
        for cutoff in range(smallest, 0, -1):
            raw = self.layer_file(gemma, HiddenStateSpec(cutoff, "none"))
            states, complete = raw.lookup(keys)
            if complete[needed].all():
                return cutoff, states
        return None

    def layer_file(self, gemma: Gemma, spec: HiddenStateSpec) -> LayerFile:
        """The file of a model's hidden states for one spec."""
        version = environment.package_versions()["keras-hub"]
        preset = gemma.preset
        content = f"{FORMAT} {version} {preset.fingerprint} {gemma.dtype}".encode()
        name = re.sub(r"\W+", "_", Path(preset.name).name)
        folder = self.folder / f"{name}-{hashlib.sha256(content).hexdigest()[:8]}"
        path = folder / f"k{spec.cutoff:02d}-{spec.norm}.states"
        return LayerFile(path, preset.width, spec.dtype)

    def bytes_of(
        self, gemma: Gemma, ids: RaggedArray, wanted: Mapping[HiddenStateSpec, np.ndarray]
    ) -> int:
        """Bytes on disk of the wanted texts' hidden states, over all specs."""
        return sum(
            int(ids.lengths @ mask) * self.layer_file(gemma, spec).token_bytes
            for spec, mask in wanted.items()
        )

    def capacity(self) -> float:
        """Bytes that hidden states can take in total, by the size limit and by the disk."""
        free = shutil.disk_usage(self.folder).free - RESERVE
        return min(self.limit, max(0, free) + self._used_bytes())

    def summary(self) -> pd.DataFrame:
        """A row per spec: model, cutoff, norm, texts, gigabytes, and when it was last used."""
        rows = []
        for path in self._paths():
            cutoff, norm = re.fullmatch(r"k(\d+)-(\w+)", path.stem).groups()
            used = time.strftime("%Y-%m-%d %H:%M", time.localtime(path.stat().st_mtime))
            size = file_size(path) / 1e9
            rows.append((path.parent.name, int(cutoff), norm, count_records(path), size, used))
        columns = ("model", "cutoff", "norm", "texts", "gigabytes", "last used")
        return pd.DataFrame(rows, columns=columns)

    def clear(self, model: str | None = None) -> int:
        """Delete the hidden states of one model, as `summary` names it, or of all.

        Returns:
            The number of bytes that were freed.

        Raises:
            InputError: there are none of this model.
        """
        paths = [path for path in self._paths() if model in (None, path.parent.name)]
        if model and not paths:
            raise InputError(
                f"{self.folder} contains no hidden states of {model!r}: "
                "`python -m embedder_helpers states` lists the names"
            )
        return sum(delete_files(path) for path in paths)

    def _paths(self) -> list[Path]:
        """Files of hidden states, the least recently used first."""
        paths = []
        for path in self.folder.glob("*/k*.states"):
            with contextlib.suppress(FileNotFoundError):  # another process has just deleted it
                paths.append((path.stat().st_mtime, path))
        return [path for _, path in sorted(paths)]

    def _make_room_for(
        self,
        gemma: Gemma,
        ids: RaggedArray,
        keys: list[bytes],
        wanted: Mapping[HiddenStateSpec, np.ndarray],
        resume_from: tuple[int, RaggedArray] | None,
    ) -> None:
        """Make room for what is wanted, by all processes, and not yet written by any."""
        wanted_keys = {
            spec: {keys[row] for row in np.flatnonzero(mask)} for spec, mask in wanted.items()
        }
        in_use = dict(wanted_keys)
        if resume_from:
            in_use[HiddenStateSpec(resume_from[0], "none")] = set(keys)
        with self._locked(gemma, "writing"):
            cached = sum(
                self.layer_file(gemma, spec).bytes_of(spec_keys)
                for spec, spec_keys in wanted_keys.items()
            )
            self._make_room(gemma, self.bytes_of(gemma, ids, wanted) - cached, in_use)

    def _make_room(
        self, gemma: Gemma, new: int, in_use: Mapping[HiddenStateSpec, set[bytes]]
    ) -> None:
        """Delete what was least recently used until so many new bytes fit.

        First files that are not in use; then, in those that are, the texts that are not.
        """
        files = {}
        for spec, keys in in_use.items():
            file = self.layer_file(gemma, spec)
            files[file.path] = file, keys
        used = sum(file.bytes_of(keys) for file, keys in files.values())
        if used + new > self.capacity():
            raise InputError(
                f"hidden states need {(used + new) / 1e9:.2f} GB, but {self.folder} has room for "
                f"{self.capacity() / 1e9:.2f} GB: set states_dir to a larger disk, raise "
                "states_gigabytes, or lower max_train_texts"
            )
        for path in sorted(self._paths(), key=files.__contains__):
            if self._used_bytes() + new <= self.capacity():
                return
            name = f"{path.parent.name} {path.stem}"
            if path not in files:
                logger.info("hidden states: %s deleted to make room", name)
                delete_files(path)
            else:
                logger.info("hidden states: %s deleted except for the texts in use", name)
                file, keys = files[path]
                file.keep_only(keys)

    def _used_bytes(self) -> int:
        return sum(map(file_size, self._paths()))

    @contextlib.contextmanager
    def _locked(self, gemma: Gemma, name: str) -> Iterator[None]:
        """Hold a lock while computing a shard of a model's hidden states, or while writing.

        The process that gets it next finds them in the cache.
        """
        folder = self.layer_file(gemma, HiddenStateSpec(1, "none")).path.parent
        folder.mkdir(exist_ok=True)
        lock = filelock.FileLock(folder / name)
        try:
            lock.acquire(timeout=0)
        except filelock.Timeout:
            if name != "writing":
                logger.info("hidden states: waiting for another process to compute %s", folder)
            lock.acquire()
        try:
            yield
        finally:
            lock.release()


def _shards(lengths: np.ndarray, shard: int, num_shards: int) -> Iterator[tuple[str, np.ndarray]]:
    """The name of a lock and a mask `(texts,)` for each shard, this process's own first.

    Shards are balanced in number and length of texts. After its own, a process waits for the
    others, or computes those of a process that died.
    """
    order = np.argsort(lengths, kind="stable")
    for turn in range(num_shards):
        number = (shard + turn) % num_shards
        mask = np.zeros(len(lengths), bool)
        mask[order[number::num_shards]] = True
        yield f"lock-{number}-of-{num_shards}" if num_shards > 1 else "lock", mask


def text_keys(ids: RaggedArray) -> list[bytes]:
    """A key of 16 bytes per text, the hash of its token ids."""
    texts = (ids.text(row).astype("<i4").tobytes() for row in range(len(ids)))
    return [hashlib.blake2b(text, digest_size=16).digest() for text in texts]


def _first_occurrences(keys: Sequence[bytes], mask: np.ndarray) -> np.ndarray:
    """The mask, moved to the first row of each key, so that a duplicate is computed once."""
    first: dict[bytes, int] = {}
    rows = np.array([first.setdefault(key, row) for row, key in enumerate(keys)], int)
    moved = np.zeros(len(keys), bool)
    moved[rows[mask]] = True
    return moved


def _group_by_missing(
    missing: Mapping[HiddenStateSpec, np.ndarray],
) -> Iterator[tuple[np.ndarray, list[HiddenStateSpec]]]:
    """Rows of the texts for which the same specs are missing, and these specs."""
    matrix = np.stack(list(missing.values()), 1)  # (texts, specs)
    for pattern in np.unique(matrix[matrix.any(1)], axis=0)[::-1]:
        specs = [spec for spec, is_missing in zip(missing, pattern, strict=True) if is_missing]
        yield np.flatnonzero((matrix == pattern).all(1)), specs

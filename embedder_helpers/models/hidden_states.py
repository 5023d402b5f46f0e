"""The cache of hidden states on disk: those of a text are computed once for all experiments.

A folder per model holds files of a shard of texts each (`shard_file`), for each spec. A text is
identified by its token ids, which hold all that Gemma sees of text, tokenizer and length limit, so
that experiments, tasks and seeds share the same hidden states. Processes on whatever machines may
share the folder: a file never changes, and one that a living process reads is not deleted.
"""

import contextlib
import functools
import hashlib
import logging
import os
import re
import shutil
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from embedder_helpers.errors import InputError
from embedder_helpers.models.batching import (
    MultiLayerStates,
    RaggedArray,
    from_lengths,
    stack_layers,
)
from embedder_helpers.models.gemma import Gemma, HiddenStateSpec
from embedder_helpers.models.shard_file import (
    SUFFIX,
    TEXT_BYTES,
    MappedStates,
    ShardFile,
    shard_path,
    write_shard,
)
from embedder_helpers.models.use_marks import name_in_marks, names_in_use, own_mark
from embedder_helpers.utils import environment
from embedder_helpers.utils.files import writable_folder

logger = logging.getLogger(__name__)

RESERVE = 2 * 10**9  # bytes of the disk that are left free
FORMAT = 3  # raised when the files' format, or what Gemma computes for them, changes
SHARD_BYTES = 2**26  # of a file at most, unless a single text is longer
MIN_SHARD_TOKENS, MAX_SHARDS = 4096, 32  # smaller shards are not worth a file
FILE_NAME = re.compile(rf"k(\d+)-(rms|learned|none)-[0-9a-f]{{16}}{re.escape(SUFFIX)}")

# For each kind of hidden states, `(texts,)` whether a text's are wanted.
Wanted = Mapping[HiddenStateSpec, np.ndarray]


class Found(NamedTuple):
    """What the cache has of some texts for one spec.

    Attributes:
        states: of the texts, memory-mapped.
        complete: `(texts,)` whether a text's are there, and intact.
        paths: of the files that they are in.
    """

    states: RaggedArray
    complete: np.ndarray
    paths: set[Path]


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
        self._files: dict[Path, ShardFile | None] = {}  # None: damaged
        self._mark = own_mark(self.folder)
        _log_old_files(self.folder)

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

    def prepare(self, gemma: Gemma, ids: RaggedArray, wanted: Wanted) -> list[np.ndarray]:
        """Make room for what is missing, and divide it into shards.

        Shards follow from what is wanted, and not from what is missing of it, so that the batches
        in which a text is computed, on which the last bits may depend, are always the same.

        Returns:
            Rows of `ids` for each shard of which something is missing, the longest texts first.

        Raises:
            InputError: it does not fit the size limit.
        """
        keys = text_keys(ids)
        wanted = _first_occurrences(keys, wanted)
        if not np.any(list(wanted.values())):
            return []
        if self.missing(gemma, keys, wanted):
            self._make_room(gemma, ids, keys, wanted)
        found = (self._find(gemma, spec, keys, mask).paths for spec, mask in wanted.items())
        self._mark.replace(set().union(*found))
        missing = self.missing(gemma, keys, wanted)  # after the mark: what is there now stays
        is_missing = np.any(list(missing.values()), axis=0)
        widest = max((self._token_bytes(gemma, spec) for spec in wanted), default=1)
        shards = _shards(ids.lengths, np.any(list(wanted.values()), axis=0), SHARD_BYTES // widest)
        return [rows for rows in shards if np.any(is_missing[rows])] if missing else []

    def compute_shard(
        self, gemma: Gemma, ids: RaggedArray, wanted: Wanted, shard: np.ndarray
    ) -> None:
        """Compute what is missing of one shard.

        Memory: besides what `Gemma.forward_layers` takes, the shard's hidden states.

        Args:
            gemma: model; it keeps its weights for the next shard.
            ids: token ids of texts.
            wanted: as in `prepare`.
            shard: rows that `prepare` returned.

        Raises:
            InputError: hidden states that are not finite; not enough memory; a full disk.
        """
        self._forget_deleted()
        keys = text_keys(ids)
        wanted = {
            spec: mask & np.isin(np.arange(len(ids)), shard)
            for spec, mask in _first_occurrences(keys, wanted).items()
        }
        missing = self.missing(gemma, keys, wanted)
        if not missing:  # another process has computed them
            return
        resume_from = self._resume_point(gemma, keys, missing)
        groups = _group_by_missing(missing)
        # The groups with the largest cutoffs first, so that Gemma's layers are loaded once.
        for rows, specs in sorted(groups, key=lambda group: -group[1][-1].cutoff):
            resume_rows = (resume_from[0], resume_from[1].select(rows)) if resume_from else None
            parts = gemma.forward_layers(ids.select(rows), specs, resume_rows)
            for spec, states in _collect(parts, ids.lengths[rows], gemma.preset.width):
                self._write(gemma, spec, [keys[row] for row in rows], states)

    def _write(
        self, gemma: Gemma, spec: HiddenStateSpec, keys: list[bytes], states: RaggedArray
    ) -> None:
        folder = self.model_folder(gemma)
        folder.mkdir(exist_ok=True)
        path = shard_path(folder, _prefix(spec), keys)
        write_shard(path, keys, states)
        self._files.pop(path, None)  # of which a damaged one may be open
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
    ) -> tuple[int, RaggedArray] | None:
        """The largest cutoff whose cached raw hidden states all that is missing can start from."""
        smallest = min(spec.cutoff for spec, mask in missing.items() if mask.any())
        needed = np.any(list(missing.values()), axis=0)
        for cutoff in range(smallest, 0, -1):
            found = self._find(gemma, HiddenStateSpec(cutoff, "none"), keys, needed)
            if found.complete[needed].all():
                return cutoff, found.states
        return None

    def _find(
        self,
        gemma: Gemma,
        spec: HiddenStateSpec,
        keys: Sequence[bytes],
        mask: np.ndarray | None = None,
    ) -> Found:
        """What is cached of those of the texts that a mask `(texts,)` names; None: of all."""
        files = self._open_files(gemma, spec)
        starts = np.cumsum([0, *(len(file.states.values) for file in files)])
        offsets, lengths = np.zeros((2, len(keys)), "int64")
        complete, paths = np.zeros(len(keys), bool), set()
        for text in range(len(keys)) if mask is None else np.flatnonzero(mask):
            for number, file in enumerate(files):
                row = file.rows.get(keys[text])
                if row is not None and file.is_intact(row):  # else it may be in another one too
                    offsets[text] = starts[number] + file.states.offsets[row]
                    lengths[text] = file.states.lengths[row]
                    complete[text] = True
                    paths.add(file.path)
                    break
        values = [file.states.values for file in files]
        empty = np.empty((0, gemma.preset.width), spec.dtype)
        joined = MappedStates(values) if len(values) > 1 else next(iter(values), empty)
        return Found(RaggedArray(joined, offsets, lengths), complete, paths)

    def _open_files(self, gemma: Gemma, spec: HiddenStateSpec) -> list[ShardFile]:
        """The files of a spec that are whole; each is opened once."""
        pattern = f"{_prefix(spec)}-*{SUFFIX}"
        paths = sorted(self.model_folder(gemma).glob(pattern))
        for path in paths:
            if path not in self._files:
                try:
                    self._files[path] = ShardFile(path)
                except FileNotFoundError:  # another process has just deleted it
                    continue
                except (OSError, ValueError) as error:
                    logger.warning("hidden states: computed again, since %s", error)
                    self._files[path] = None
        return [file for path in paths if (file := self._files.get(path))]

    def _use(self, paths: set[Path]) -> None:
        """Note that files are read: now, for what to delete first, and by this process."""
        self._forget_deleted()
        self._mark.add(paths)
        for path in paths:
            with contextlib.suppress(OSError):  # deleted, or not ours: it stays readable
                os.utime(path)

    def _forget_deleted(self) -> None:
        """Let go of files that another process deleted: until then, they take room on the disk."""
        self._files = {path: file for path, file in self._files.items() if path.exists()}

    def model_folder(self, gemma: Gemma) -> Path:
        """The folder of a model's hidden states."""
        version = environment.package_versions()["keras-hub"]
        content = f"{FORMAT} {version} {gemma.preset.fingerprint} {gemma.dtype}".encode()
        name = re.sub(r"\W+", "_", Path(gemma.preset.name).name)
        return self.folder / f"{name}-{hashlib.sha256(content).hexdigest()[:8]}"

    def _token_bytes(self, gemma: Gemma, spec: HiddenStateSpec) -> int:
        return gemma.preset.width * np.dtype(spec.dtype).itemsize

    def bytes_of(self, gemma: Gemma, ids: RaggedArray, wanted: Wanted) -> int:
        """Bytes on disk of the wanted texts' hidden states, over all specs."""
        return sum(
            int(ids.lengths @ mask) * self._token_bytes(gemma, spec) + int(mask.sum()) * TEXT_BYTES
            for spec, mask in wanted.items()
        )

    def capacity(self) -> float:
        """Bytes that hidden states can take in total, by the size limit and by the disk."""
        free = shutil.disk_usage(self.folder).free - RESERVE
        return min(self.limit, max(0, free) + self._used_bytes())

    def summary(self) -> pd.DataFrame:
        """A row per spec: model, cutoff, norm, texts, gigabytes, and when it was last used."""
        groups: dict[tuple[str, str, str], list[Path]] = {}
        for path in self._paths():
            cutoff, norm = FILE_NAME.fullmatch(path.name).groups()
            groups.setdefault((path.parent.name, cutoff, norm), []).append(path)
        rows = []
        for (model, cutoff, norm), paths in groups.items():
            used = max(map(_last_used, paths))
            texts = {key for path in paths for key in _keys_of(path)}
            size = sum(map(_file_size, paths)) / 1e9
            shown = time.strftime("%Y-%m-%d %H:%M", time.localtime(used))
            rows.append((model, int(cutoff), norm, len(texts), size, shown))
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
        paths += [] if model else _old_files(self.folder)
        size = sum(map(_file_size, paths))
        for path in paths:
            path.unlink(missing_ok=True)
        return size

    def _paths(self) -> list[Path]:
        """Files of hidden states, the least recently used first."""
        paths = self.folder.glob(f"*/k*{SUFFIX}")  # a model of the user's may be among them
        paths = (path for path in paths if FILE_NAME.fullmatch(path.name))
        return sorted(paths, key=lambda path: (_last_used(path), path))

    def _make_room(self, gemma: Gemma, ids: RaggedArray, keys: list[bytes], wanted: Wanted) -> None:
        """Delete files, the least recently used first, until what is wanted fits.

        First those in which nothing is wanted; then those with the least that is, which is computed
        again. What another process reads stays.
        """
        needed, useful = self.bytes_of(gemma, ids, wanted), self._useful_bytes(gemma, keys, wanted)
        new = needed - sum(useful.values())
        resumed = self._resumed_paths(gemma, keys, wanted)
        others = names_in_use(self.folder)  # last, because what is above takes long
        kept = sum(_file_size(path) for path in self._paths() if name_in_marks(path) in others)
        kept_useful = sum(size for path, size in useful.items() if name_in_marks(path) in others)
        if needed - kept_useful + kept > self.capacity():
            size = f"{(needed - kept_useful + kept) / 1e9:.2f} GB"
            with_others = ", with those that other processes read" if kept else ""
            raise InputError(
                f"hidden states need {size}{with_others}, but {self.folder} has room "
                f"for {self.capacity() / 1e9:.2f} GB: set states_dir to a larger disk, raise "
                "states_gigabytes, or lower max_train_texts"
            )
        used, capacity, deleted = self._used_bytes(), self.capacity(), Counter[str]()
        for path in sorted(self._paths(), key=lambda path: useful.get(path, path in resumed)):
            if used + new <= capacity:
                break
            if name_in_marks(path) in others:
                continue
            used -= _file_size(path)
            new += useful.get(path, 0)
            path.unlink(missing_ok=True)
            self._files.pop(path, None)
            deleted[name_in_marks(path).rpartition("-")[0]] += 1
        for name, count in deleted.items():
            logger.info("hidden states: %s deleted to make room (files: %d)", name, count)

    def _useful_bytes(self, gemma: Gemma, keys: list[bytes], wanted: Wanted) -> dict[Path, int]:
        """Of the files in which something is wanted, how much."""
        useful: dict[Path, int] = {}
        for spec, mask in wanted.items():
            wanted_keys = {keys[row] for row in np.flatnonzero(mask)}
            for file in self._open_files(gemma, spec):
                rows = [row for row, key in enumerate(file.keys) if key in wanted_keys]
                intact = [row for row in rows if file.is_intact(row)]
                wanted_keys -= {file.keys[row] for row in intact}
                if intact:
                    tokens = int(file.states.lengths[intact].sum())
                    size = tokens * self._token_bytes(gemma, spec) + len(intact) * TEXT_BYTES
                    useful[file.path] = size
        return useful

    def _resumed_paths(self, gemma: Gemma, keys: list[bytes], wanted: Wanted) -> set[Path]:
        """The files of raw hidden states that what is missing starts from."""
        missing = self.missing(gemma, keys, wanted)  # nothing, if another process was faster
        resume_from = self._resume_point(gemma, keys, missing) if missing else None
        if not resume_from:
            return set()
        needed = np.any(list(missing.values()), axis=0)
        return self._find(gemma, HiddenStateSpec(resume_from[0], "none"), keys, needed).paths

    def _used_bytes(self) -> int:
        return sum(map(_file_size, self._paths()))


def _prefix(spec: HiddenStateSpec) -> str:
    return f"k{spec.cutoff:02d}-{spec.norm}"


def _file_size(path: Path) -> int:
    with contextlib.suppress(OSError):  # another process has just deleted it
        return path.stat().st_size
    return 0


def _last_used(path: Path) -> float:
    with contextlib.suppress(OSError):
        return path.stat().st_mtime
    return 0.0


def _keys_of(path: Path) -> list[bytes]:
    try:
        return ShardFile(path).keys
    except (OSError, ValueError):
        return []


def _old_files(folder: Path) -> list[Path]:
    """Those of versions before 0.7.0, which kept a file per spec and an index beside it."""
    return [
        path for suffix in ("states", "index") for path in folder.glob(f"*/k[0-9][0-9]-*.{suffix}")
    ]


@functools.cache  # once in a process
def _log_old_files(folder: Path) -> None:
    if size := sum(map(_file_size, _old_files(folder))):
        logger.info(
            "hidden states: %.2f GB of an earlier version in %s are not read any more; `python -m "
            "embedder_helpers states --clear` deletes them, and all others",
            size / 1e9,
            folder,
        )


def _shards(lengths: np.ndarray, mask: np.ndarray, most: int) -> list[np.ndarray]:
    """Rows of each shard, of texts of similar length.

    Args:
        lengths: `(texts,)` number of tokens of each text.
        mask: `(texts,)` which texts are in one.
        most: tokens of a shard; a longer text has one of its own.
    """
    rows = np.flatnonzero(mask)
    rows = rows[np.argsort(-lengths[rows], kind="stable")]
    total = int(lengths[rows].sum())
    most = max(1, min(most, max(MIN_SHARD_TOKENS, -(-total // MAX_SHARDS))))
    shards: list[list[int]] = []
    room = 0
    for row in rows.tolist():
        if lengths[row] > room:
            shards.append([])
            room = most
        shards[-1].append(row)
        room -= int(lengths[row])
    return [np.array(shard) for shard in shards]


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


def text_keys(ids: RaggedArray) -> list[bytes]:
    """A key of 16 bytes per text, the hash of its token ids."""
    texts = (ids.text(row).astype("<i4").tobytes() for row in range(len(ids)))
    return [hashlib.blake2b(text, digest_size=16).digest() for text in texts]


def _first_occurrences(keys: Sequence[bytes], wanted: Wanted) -> dict[HiddenStateSpec, np.ndarray]:
    """The masks, moved to the first row of each key, so that a duplicate is computed once."""
    first: dict[bytes, int] = {}
    rows = np.array([first.setdefault(key, row) for row, key in enumerate(keys)], int)
    moved = {spec: np.zeros(len(keys), bool) for spec in wanted}
    for spec, mask in wanted.items():
        moved[spec][rows[mask]] = True
    return moved


def _group_by_missing(
    missing: Mapping[HiddenStateSpec, np.ndarray],
) -> Iterator[tuple[np.ndarray, list[HiddenStateSpec]]]:
    """Rows of the texts for which the same specs are missing, and these specs."""
    matrix = np.stack(list(missing.values()), 1)  # (texts, specs)
    for pattern in np.unique(matrix[matrix.any(1)], axis=0)[::-1]:
        specs = [spec for spec, is_missing in zip(missing, pattern, strict=True) if is_missing]
        yield np.flatnonzero((matrix == pattern).all(1)), specs

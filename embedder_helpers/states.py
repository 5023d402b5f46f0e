"""States on disk: what a frozen block gave for a text is computed once, ever.

A folder per model holds two files per depth: states end to end, and an index of records. A record
is written after its states and holds their checksum, so a process may die at any instant: what is
not whole is not there. A text is known by its token ids, which hold all that Gemma sees of text,
tokenizer and length limit, so every experiment, task and seed shares the same states.
"""

import contextlib
import hashlib
import re
import shutil
import time
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import filelock
import numpy as np
import pandas as pd

from embedder_helpers import platform
from embedder_helpers.config import InputError
from embedder_helpers.gemma import Depth, Gemma
from embedder_helpers.presets import Preset
from embedder_helpers.shares import Share
from embedder_helpers.tokens import Ragged, Stacked, stacked

RECORD = np.dtype(
    [("key", "V16"), ("start", "<i8"), ("tokens", "<u4"), ("states", "<u4"), ("record", "<u4")]
)  # the last two are checksums, of the states and of the record before it
RESERVE = 2 * 10**9  # bytes of the disk that are left free
FORMAT = 1  # of the files and of what the walk computes; raised when either changes


@dataclass(frozen=True)
class DepthFile:
    """The states at one depth of one model.

    Attributes:
        path: of the states, `(tokens, width)`; the index lies beside it.
    """

    path: Path
    width: int
    dtype: str

    @property
    def index(self) -> Path:
        """The file of records."""
        return self.path.with_suffix(".index")

    @property
    def token_bytes(self) -> int:
        """Bytes of one token's states."""
        return self.width * np.dtype(self.dtype).itemsize

    def records(self) -> np.ndarray:
        """The whole records, oldest first."""
        content = self.index.read_bytes() if self.index.exists() else b""
        records = np.frombuffer(
            content[: len(content) // RECORD.itemsize * RECORD.itemsize], RECORD
        )
        return records[[_checksum(one) == one["record"] for one in records]]

    def append(self, keys: Sequence[bytes], lengths: np.ndarray, values: np.ndarray) -> None:
        """Adds texts: their states `(tokens, width)` first, then their records in one write."""
        count, end = self._end()
        starts = end + np.cumsum(lengths) - lengths
        checksums = [zlib.crc32(text) for text in np.split(values, np.cumsum(lengths)[:-1])]
        fields = zip(keys, starts, lengths, checksums, [0] * len(keys), strict=True)
        added = np.array(list(fields), RECORD)
        added["record"] = [_checksum(one) for one in added]
        _write_at(self.path, end * self.token_bytes, values)
        _write_at(self.index, count * RECORD.itemsize, added)

    def _end(self) -> tuple[int, int]:
        """Where to go on: behind the last whole record, and behind its states, in tokens."""
        for place in reversed(range(_bytes(self.index) // RECORD.itemsize)):
            with self.index.open("rb") as file:
                file.seek(place * RECORD.itemsize)
                (last,) = np.frombuffer(file.read(RECORD.itemsize), RECORD)
            if _checksum(last) == last["record"]:
                return place + 1, int(last["start"]) + int(last["tokens"])
        return 0, 0

    def bytes_of(self, keys: set[bytes]) -> int:
        """Bytes of the states of those of the texts that are there."""
        tokens = {one["key"].tobytes(): int(one["tokens"]) for one in self.records()}
        return sum(tokens.get(key, 0) for key in keys) * self.token_bytes

    def keep_only(self, keys: set[bytes]) -> None:
        """Writes the file anew with these texts alone; killed meanwhile, it is computed again."""
        there = sorted(keys & {one["key"].tobytes() for one in self.records()})
        states, whole = self.find(there)
        part = DepthFile(self.path.with_name(f"part-{self.path.name}"), self.width, self.dtype)
        _delete(part.path)
        for row in np.flatnonzero(whole):
            part.append([there[row]], states.lengths[row : row + 1], states.text(row))
        _delete(self.path)
        if part.path.exists():
            part.path.replace(self.path)
            part.index.replace(self.index)

    def find(self, keys: Sequence[bytes]) -> tuple[Ragged, np.ndarray]:
        """The states of texts, memory-mapped, and `(texts,)` whether each is there and whole."""
        records = self.records()
        newest = {record["key"].tobytes(): place for place, record in enumerate(records)}
        places = np.array([newest.get(key, -1) for key in keys], int)
        tokens = _bytes(self.path) // self.token_bytes
        if not tokens or not len(records):
            nothing = np.zeros(len(keys), "int64")
            empty = Ragged(np.empty((0, self.width), self.dtype), nothing, nothing)
            return empty, np.zeros(len(keys), bool)
        values = np.memmap(self.path, self.dtype, "r", shape=(tokens, self.width))
        starts, lengths = records["start"][places], records["tokens"][places].astype("int64")
        found = Ragged(values, starts, lengths)
        whole = (places >= 0) & (starts + lengths <= tokens)
        for row in np.flatnonzero(whole):
            whole[row] = zlib.crc32(found.text(row)) == records["states"][places[row]]
        return found, whole


def _checksum(record: np.void) -> int:
    return zlib.crc32(record.tobytes()[:-4])


def _write_at(path: Path, place: int, content: np.ndarray) -> None:
    """Writes at a place; what a killed process left behind it is cut off first."""
    path.touch()
    with path.open("r+b") as file:
        file.truncate(place)
        file.seek(place)
        file.write(np.ascontiguousarray(content).data)


class Store:
    """A folder of states with a size limit.

    Args:
        folder: made if need be.
        gigabytes: it grows no larger; None: than the disk, less 2 GB.

    Raises:
        InputError: the folder cannot be written.
    """

    def __init__(self, folder: str | Path, gigabytes: float | None = None):
        self.folder = platform.writable_folder(folder, "states_dir")
        self.limit = float("inf") if gigabytes is None else gigabytes * 1e9

    def find(self, preset: Preset, ids: Ragged, wanted: Sequence[Depth]) -> Ragged | Stacked | None:
        """States of texts at one or several depths, memory-mapped; None unless all are there."""
        keys = text_keys(ids)
        files = [self.file(preset, depth) for depth in wanted]
        found = [file.find(keys) for file in files]
        if not all(whole.all() for _, whole in found):
            return None
        for file in files:
            file.path.touch()  # what was used last is deleted last
        return stacked([states for states, _ in found])

    def states(self, gemma: Gemma, ids: Ragged, wanted: Sequence[Depth]) -> Ragged | Stacked:
        """States of texts at one or several depths, memory-mapped; what is missing is computed.

        Raises:
            InputError: they do not fit; a state is not finite.
        """
        if (found := self.find(gemma.preset, ids, wanted)) is None:
            self.fill(gemma, ids, dict.fromkeys(wanted, np.ones(len(ids), bool)))
            found = self.find(gemma.preset, ids, wanted)
        if found is None:
            raise InputError(
                f"another process deleted states of {gemma.preset.name} that this one had just "
                "computed: raise states_gigabytes, or give each process a states_dir of its own"
            )
        return found

    def fill(
        self,
        gemma: Gemma,
        ids: Ragged,
        wanted: Mapping[Depth, np.ndarray],
        share: Share = Share(),  # noqa: B008, it is frozen
    ) -> None:
        """Computes the states that are missing; each text passes through the blocks once.

        Every batch is kept as soon as it is computed, so a walk that was killed goes on with the
        texts that are missing, in the batches they would have been in.

        Args:
            gemma: the model.
            ids: texts.
            wanted: for each depth, `(texts,)` whether a text is wanted there.
            share: this process's, where several fill the same states.

        Raises:
            InputError: they do not fit; a state is not finite.
        """
        keys = text_keys(ids)
        wanted = {depth: _once(keys, mask) for depth, mask in wanted.items()}
        if not self.missing(gemma.preset, keys, wanted):
            return  # whatever another process is computing meanwhile
        try:
            for name, texts in share.texts(ids.lengths):
                with self._locked(gemma.preset, name):
                    self._fill(gemma, ids, keys, wanted, texts)
        finally:
            gemma.unload()

    def _fill(
        self,
        gemma: Gemma,
        ids: Ragged,
        keys: list[bytes],
        wanted: Mapping[Depth, np.ndarray],
        texts: np.ndarray,
    ) -> None:
        """Walks those of the texts, a mask, that are missing."""
        files = {depth: self.file(gemma.preset, depth) for depth in wanted}
        missing = self.missing(gemma.preset, keys, wanted)
        here = {depth: mask & texts for depth, mask in missing.items()}
        if not np.any(list(here.values())):
            return
        start = self._start(gemma.preset, keys, missing)
        asked = {depth: {keys[row] for row in np.flatnonzero(wanted[depth])} for depth in files}
        used = asked | ({Depth(start[0], "none"): set(keys)} if start else {})
        with self._locked(gemma.preset, "writing"):
            # Room for the other processes' shares too, less what they have written by now.
            there = sum(file.bytes_of(asked[depth]) for depth, file in files.items())
            new = self.bytes_of(gemma.preset, ids, wanted) - there
            self._make_room(gemma.preset, new, used)
        for rows, depths in sorted(_alike(here), key=lambda group: -group[1][-1].cutoff):
            begin = (start[0], start[1].select(rows)) if start else None
            for depth, found, values in gemma.walk(ids.select(rows), depths, begin):
                done = rows[found]
                with self._locked(gemma.preset, "writing"):
                    files[depth].append([keys[row] for row in done], ids.lengths[done], values)

    def missing(
        self, preset: Preset, keys: Sequence[bytes], wanted: Mapping[Depth, np.ndarray]
    ) -> dict[Depth, np.ndarray]:
        """For each depth, `(texts,)` what is wanted there and not there; empty if all is there."""
        missing = {
            depth: mask & ~self.file(preset, depth).find(keys)[1] for depth, mask in wanted.items()
        }
        return missing if np.any(list(missing.values())) else {}

    def _start(
        self, preset: Preset, keys: Sequence[bytes], missing: Mapping[Depth, np.ndarray]
    ) -> tuple[int, Ragged] | None:
        """The deepest raw states from which all that is missing can be walked to."""
        shallowest = min(depth.cutoff for depth, mask in missing.items() if mask.any())
        some = np.any(list(missing.values()), axis=0)
        for cutoff in range(shallowest, 0, -1):
            states, whole = self.file(preset, Depth(cutoff, "none")).find(keys)
            if whole[some].all():
                return cutoff, states
        return None

    def file(self, preset: Preset, depth: Depth) -> DepthFile:
        """Where a model's states at one depth are."""
        software = platform.versions()["keras-hub"]
        content = f"{FORMAT} {software} {preset.fingerprint}".encode()
        name = re.sub(r"\W+", "_", Path(preset.name).name)
        folder = self.folder / f"{name}-{hashlib.sha256(content).hexdigest()[:8]}"
        path = folder / f"k{depth.cutoff:02d}-{depth.norm}.states"
        return DepthFile(path, preset.width, depth.dtype)

    def bytes_of(self, preset: Preset, ids: Ragged, wanted: Mapping[Depth, np.ndarray]) -> int:
        """Bytes on disk of the texts that are wanted at each depth."""
        return sum(
            int(ids.lengths @ mask) * self.file(preset, depth).token_bytes
            for depth, mask in wanted.items()
        )

    def capacity(self) -> float:
        """Bytes that states can take in all, by the limit and by the disk."""
        free = shutil.disk_usage(self.folder).free - RESERVE
        return min(self.limit, max(0, free) + self._taken())

    def listing(self) -> pd.DataFrame:
        """A row per depth: model, cutoff, norm, texts, gigabytes, when it was last used."""
        rows = []
        for path in self._paths():
            cutoff, norm = re.fullmatch(r"k(\d+)-(\w+)", path.stem).groups()
            used = time.strftime("%Y-%m-%d %H:%M", time.localtime(path.stat().st_mtime))
            texts = _bytes(path.with_suffix(".index")) // RECORD.itemsize
            rows.append((path.parent.name, int(cutoff), norm, texts, _bytes(path) / 1e9, used))
        columns = ("model", "cutoff", "norm", "texts", "gigabytes", "last used")
        return pd.DataFrame(rows, columns=columns)

    def clear(self, model: str | None = None) -> int:
        """Deletes the states of one model, as the listing names it, or all; gives the bytes."""
        paths = [path for path in self._paths() if model in (None, path.parent.name)]
        if model and not paths:
            raise InputError(
                f"{self.folder} holds no states of {model!r}: `python -m embedder_helpers states` "
                "lists the names"
            )
        return sum(_delete(path) for path in paths)

    def _paths(self) -> list[Path]:
        """Files of states, the longest unused first."""
        found = []
        for path in self.folder.glob("*/k*.states"):
            with contextlib.suppress(FileNotFoundError):  # another process deleted it just now
                found.append((path.stat().st_mtime, path))
        return [path for _, path in sorted(found)]

    def _make_room(self, preset: Preset, new: int, used: Mapping[Depth, set[bytes]]) -> None:
        """Deletes what was unused for longest until so many new bytes fit.

        First depths that are not in use; then, in those that are, the texts that are not.
        """
        in_use = {self.file(preset, depth).path: (depth, keys) for depth, keys in used.items()}
        kept = sum(self.file(preset, depth).bytes_of(keys) for depth, keys in used.items())
        if kept + new > self.capacity():
            raise InputError(
                f"states need {(kept + new) / 1e9:.2f} GB, but {self.folder} has room for "
                f"{self.capacity() / 1e9:.2f} GB: set states_dir to a larger disk, raise "
                "states_gigabytes, or lower max_train_texts"
            )
        for path in sorted(self._paths(), key=in_use.__contains__):
            if self._taken() + new <= self.capacity():
                return
            if path not in in_use:
                platform.say(f"states: {path.parent.name} {path.stem} deleted to make room")
                _delete(path)
            else:
                platform.say(f"states: other texts' {path.parent.name} {path.stem} deleted")
                depth, keys = in_use[path]
                self.file(preset, depth).keep_only(keys)

    def _taken(self) -> int:
        return sum(map(_bytes, self._paths()))

    @contextlib.contextmanager
    def _locked(self, preset: Preset, name: str) -> Iterator[None]:
        """One process at a time computes a share of a model's states, or writes some.

        The next one finds them there.
        """
        folder = self.file(preset, Depth(1, "none")).path.parent
        folder.mkdir(exist_ok=True)
        lock = filelock.FileLock(folder / name)
        try:
            lock.acquire(timeout=0)
        except filelock.Timeout:
            if name != "writing":
                platform.say(f"states: waiting for another process that computes them in {folder}")
            lock.acquire()
        try:
            yield
        finally:
            lock.release()


def text_keys(ids: Ragged) -> list[bytes]:
    """A key per text, of its token ids."""
    texts = (ids.text(row).astype("<i4").tobytes() for row in range(len(ids)))
    return [hashlib.blake2b(text, digest_size=16).digest() for text in texts]


def _once(keys: Sequence[bytes], mask: np.ndarray) -> np.ndarray:
    """The mask, moved to the first row of each key: a text that is there twice is computed once."""
    first: dict[bytes, int] = {}
    rows = np.array([first.setdefault(key, row) for row, key in enumerate(keys)], int)
    found = np.zeros(len(keys), bool)
    found[rows[mask]] = True
    return found


def _alike(missing: Mapping[Depth, np.ndarray]) -> Iterator[tuple[np.ndarray, list[Depth]]]:
    """Rows of texts that are missing at the same depths, and these depths."""
    matrix = np.stack(list(missing.values()), 1)  # (texts, depths)
    for pattern in np.unique(matrix[matrix.any(1)], axis=0)[::-1]:
        depths = [depth for depth, is_missing in zip(missing, pattern, strict=True) if is_missing]
        yield np.flatnonzero((matrix == pattern).all(1)), depths


def _bytes(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _delete(path: Path) -> int:
    """Deletes an index first, so that it never names states that are gone."""
    freed = _bytes(path)
    path.with_suffix(".index").unlink(missing_ok=True)
    path.unlink(missing_ok=True)
    return freed

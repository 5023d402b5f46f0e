"""The file format of hidden states on disk, which survives a process killed at any time.

One spec of one model has two files: the hidden states, one text after another, and an index with a
record per text. A record is written after its hidden states and holds checksums of them and of
itself, so what is incomplete or damaged is recognized, ignored and overwritten.
"""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from embedder_helpers.models.batching import RaggedArray

# The last two are checksums, of the hidden states and of the record up to there.
RECORD = np.dtype(
    [
        ("key", "V16"),
        ("start", "<i8"),
        ("tokens", "<u4"),
        ("states_checksum", "<u4"),
        ("record_checksum", "<u4"),
    ]
)


@dataclass(frozen=True)
class LayerFile:
    """The hidden states of one model for one spec.

    Attributes:
        path: file of the hidden states, `(tokens, width)`; the index is next to it.
        width: size of a hidden state.
        dtype: type of its values.
    """

    path: Path
    width: int
    dtype: str

    @property
    def index(self) -> Path:
        """Path of the index."""
        return index_path(self.path)

    @property
    def token_bytes(self) -> int:
        """Bytes of one token's hidden state."""
        return self.width * np.dtype(self.dtype).itemsize

    def records(self) -> np.ndarray:
        """The undamaged records, oldest first."""
        content = self.index.read_bytes() if self.index.is_file() else b""
        size = len(content) // RECORD.itemsize * RECORD.itemsize
        records = np.frombuffer(content[:size], RECORD)
        return records[[_is_undamaged(record) for record in records]]

    def append(self, keys: Sequence[bytes], lengths: np.ndarray, states: np.ndarray) -> None:
        """Add texts: first their hidden states `(tokens, width)`, then all their records at once.

        Args:
            keys: keys of the texts, 16 bytes each.
            lengths: `(texts,)` number of tokens of each text.
            states: hidden states `(tokens, width)`, one text after another.
        """
        count, end = self._end()
        starts = end + np.cumsum(lengths) - lengths
        checksums = [zlib.crc32(text) for text in np.split(states, np.cumsum(lengths)[:-1])]
        fields = zip(keys, starts, lengths, checksums, [0] * len(keys), strict=True)
        records = np.array(list(fields), RECORD)
        records["record_checksum"] = [_checksum(record) for record in records]
        _write_at(self.path, end * self.token_bytes, states)
        _write_at(self.index, count * RECORD.itemsize, records)

    def _end(self) -> tuple[int, int]:
        """The end of the last undamaged record, in records, and of its hidden states, in tokens."""
        for number in reversed(range(count_records(self.path))):
            with self.index.open("rb") as file:
                file.seek(number * RECORD.itemsize)
                (record,) = np.frombuffer(file.read(RECORD.itemsize), RECORD)
            if _is_undamaged(record):
                return number + 1, int(record["start"]) + int(record["tokens"])
        return 0, 0

    def lookup(self, keys: Sequence[bytes]) -> tuple[RaggedArray, np.ndarray]:
        """The hidden states of texts, memory-mapped, and `(texts,)` whether they are complete."""
        records = self.records()
        # A text that was computed again has several records, of which the newest counts.
        numbers = {record["key"].tobytes(): number for number, record in enumerate(records)}
        rows = np.array([numbers.get(key, -1) for key in keys], int)
        tokens = file_size(self.path) // self.token_bytes
        if not tokens or not len(records):
            zeros = np.zeros(len(keys), "int64")
            empty = RaggedArray(np.empty((0, self.width), self.dtype), zeros, zeros)
            return empty, np.zeros(len(keys), bool)
        values = np.memmap(self.path, self.dtype, "r", shape=(tokens, self.width))
        offsets, lengths = records["start"][rows], records["tokens"][rows].astype("int64")
        states = RaggedArray(values, offsets, lengths)
        complete = (rows >= 0) & (offsets >= 0) & (offsets <= tokens - lengths)
        for text in np.flatnonzero(complete):
            checksum = records["states_checksum"][rows[text]]
            complete[text] = zlib.crc32(states.text(text)) == checksum
        return states, complete

    def bytes_of(self, keys: set[bytes]) -> int:
        """Bytes of the hidden states of those of the texts that have a record."""
        tokens = {record["key"].tobytes(): int(record["tokens"]) for record in self.records()}
        return sum(tokens.get(key, 0) for key in keys) * self.token_bytes

    def keep_only(self, keys: set[bytes]) -> None:
        """Rewrite the file with these texts alone; if killed meanwhile, all its texts are lost."""
        present = sorted(keys & {record["key"].tobytes() for record in self.records()})
        states, complete = self.lookup(present)
        part = LayerFile(self.path.with_name(f"part-{self.path.name}"), self.width, self.dtype)
        delete_files(part.path)
        for row in np.flatnonzero(complete):
            part.append([present[row]], states.lengths[row : row + 1], states.text(row))
        delete_files(self.path)
        if part.path.exists():
            part.path.replace(self.path)
            part.index.replace(self.index)


def index_path(path: Path) -> Path:
    """The path of the index of a file of hidden states."""
    return path.with_suffix(".index")


def count_records(path: Path) -> int:
    """Number of records in the index of a file of hidden states, damaged ones included."""
    return file_size(index_path(path)) // RECORD.itemsize


def file_size(path: Path) -> int:
    """Bytes of a file, 0 if it does not exist."""
    return path.stat().st_size if path.is_file() else 0


def delete_files(path: Path) -> int:
    """Delete a file of hidden states and its index; returns the bytes of the former."""
    size = file_size(path)
    index_path(path).unlink(missing_ok=True)  # first: it must not refer to missing hidden states
    path.unlink(missing_ok=True)
    return size


def _checksum(record: np.void) -> int:
    return zlib.crc32(record.tobytes()[:-4])


def _is_undamaged(record: np.void) -> bool:
    return _checksum(record) == record["record_checksum"]


def _write_at(path: Path, position: int, content: np.ndarray) -> None:
    """Write at a position in bytes; what a killed process left after it is cut off first."""
    path.touch()
    with path.open("r+b") as file:
        file.truncate(position)
        file.seek(position)
        file.write(np.ascontiguousarray(content).data)

"""The file format of hidden states on disk: a file per spec and shard of texts, never changed.

A file is written under another name and renamed when it is complete, so that readers and writers,
on whatever machines, need no locks, and a killed process leaves nothing that counts. Its name is a
hash of its texts: whoever computes the same ones again replaces like by like.

The format is that of safetensors:

    keys        (texts, 16)      uint8    of the texts
    lengths     (texts,)         int64    number of tokens of each text
    checksums   (texts,)         uint32   CRC-32 of model, spec, a text's key, length, hidden states
    states      (tokens, width)           one text after another
"""

import hashlib
import json
import stat
import zlib
from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np
import safetensors
import safetensors.numpy

from embedder_helpers.models.batching import RaggedArray, from_lengths
from embedder_helpers.utils.files import unwritable
from embedder_helpers.utils.replacing import replace_file

SUFFIX = ".safetensors"
KEY_BYTES = 16
TEXT_BYTES = KEY_BYTES + 8 + 4  # besides hidden states


def shard_path(folder: Path, prefix: str, keys: Sequence[bytes]) -> Path:
    """The path of a file.

    Args:
        folder: of the model.
        prefix: of the spec.
        keys: of the texts, in the order of the file.
    """
    content = hashlib.blake2b(b"".join(keys), digest_size=8).hexdigest()
    return folder / f"{prefix}-{content}{SUFFIX}"


def write_shard(path: Path, keys: Sequence[bytes], states: RaggedArray) -> None:
    """Write the hidden states of some texts, which need not be in the order of `states.values`.

    Args:
        path: of the file, from `shard_path`; its folder, named after the model, must exist.
        keys: of the texts, 16 bytes each.
        states: of the texts, in the same order.

    Raises:
        InputError: the disk or the folder does not allow it.
    """
    texts = [states.text(row) for row in range(len(keys))]
    start = _start_checksum(path)
    checksums = [_checksum(start, key, text) for key, text in zip(keys, texts, strict=True)]
    tensors = {
        "keys": np.frombuffer(b"".join(keys), "uint8").reshape(-1, KEY_BYTES),
        "lengths": np.asarray(states.lengths, "int64"),
        "checksums": np.array(checksums, "uint32"),
        "states": np.concatenate(texts),
    }
    content = safetensors.numpy.save(tensors)  # `save_file` hides the file from other users
    try:
        replace_file(path, lambda part: part.write_bytes(content))
    except OSError as error:
        raise unwritable(path.parent, error, "states_dir", path.name) from None


class ShardFile:
    """A file whose index is in memory and whose hidden states are mapped.

    Args:
        path: of the file.

    Attributes:
        path: of the file.
        keys: of the texts.
        rows: of the texts, by key.
        states: of the texts.

    Raises:
        ValueError: it is not such a file, or not whole.
        OSError: it cannot be read.
    """

    def __init__(self, path: Path):
        self.path = path
        if not stat.S_ISREG(path.stat().st_mode):  # a pipe would be waited for
            raise ValueError(f"{path} is no file")
        try:
            with safetensors.safe_open(path, "numpy") as file:  # checks that the file is whole
                names = ("keys", "lengths", "checksums")
                keys, lengths, self._checksums = map(file.get_tensor, names)
            values = _map(path, "states")
        except (safetensors.SafetensorError, KeyError) as error:
            raise ValueError(f"{path} is damaged ({error})") from None
        count = lengths.size
        shapes = keys.shape, lengths.shape, self._checksums.shape
        is_consistent = shapes == ((count, KEY_BYTES), (count,), (count,))
        if not is_consistent or lengths.min(initial=0) < 0 or lengths.sum() != len(values):
            raise ValueError(f"{path} is damaged")
        self.keys = [key.tobytes() for key in keys]
        self.rows = {key: row for row, key in enumerate(self.keys)}
        self.states = from_lengths(values, lengths)
        self._start = _start_checksum(path)
        self._is_intact = np.zeros(len(lengths), bool)  # as far as it was checked

    def intact_rows(self, keys: Collection[bytes]) -> dict[bytes, int]:
        """Rows of those texts that are here, by key; none of them if one is damaged.

        So what is damaged is computed again with the texts that passed with it: on some CPUs the
        last bits depend on these.
        """
        rows = {key: self.rows[key] for key in self.rows.keys() & keys}
        return rows if all(map(self.is_intact, rows.values())) else {}

    def is_intact(self, row: int) -> bool:
        """Whether a text is what was written; of what once was, the bytes are not read again."""
        if not self._is_intact[row]:
            checksum = _checksum(self._start, self.keys[row], self.states.text(row))
            self._is_intact[row] = checksum == self._checksums[row]
        return bool(self._is_intact[row])


class MappedStates:
    """Hidden states of several files as one array `(tokens, width)`, which is never in memory.

    Args:
        parts: of each file, `(tokens, width)`.
    """

    def __init__(self, parts: Sequence[np.ndarray]):
        self.parts = list(parts)
        self.starts = np.cumsum([0, *map(len, self.parts)])
        self.dtype = self.parts[0].dtype
        self.shape = (int(self.starts[-1]), *self.parts[0].shape[1:])

    def __getitem__(self, tokens: slice) -> np.ndarray:
        """The hidden states of consecutive tokens of one file."""
        part = int(np.searchsorted(self.starts[1:-1], tokens.start, side="right"))
        start = self.starts[part]
        return self.parts[part][tokens.start - start : tokens.stop - start]


def _map(path: Path, name: str) -> np.ndarray:
    """A tensor of a file, memory-mapped."""
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        entry = json.loads(file.read(size))[name]
    start, end = entry["data_offsets"]
    dtype, shape = f"float{entry['dtype'][1:]}", tuple(entry["shape"])
    if start == end:  # which cannot be mapped
        return np.empty(shape, dtype)
    return np.memmap(path, dtype, "r", 8 + size + start, shape)


def _start_checksum(path: Path) -> int:
    """Of model and spec, so that a file under the name of another one's holds no intact text."""
    return zlib.crc32(f"{path.parent.name}/{path.name.rpartition('-')[0]}".encode())


def _checksum(start: int, key: bytes, states: np.ndarray) -> int:
    start = zlib.crc32(key + len(states).to_bytes(8, "little"), start)
    return zlib.crc32(np.ascontiguousarray(states).view("uint8").data, start)

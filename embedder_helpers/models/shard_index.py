"""Which texts' hidden states are in which files, as far as this process has opened them.

A file never changes, so each is opened once; files that others add are found at the next question.
"""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from embedder_helpers.models.batching import RaggedArray
from embedder_helpers.models.cache_folder import spec_files
from embedder_helpers.models.gemma import HiddenStateSpec
from embedder_helpers.models.shard_file import MappedStates, ShardFile

logger = logging.getLogger(__name__)


class Found(NamedTuple):
    """What is on disk of some texts for one spec.

    Attributes:
        states: of the texts, memory-mapped.
        complete: `(texts,)` whether a text's are there, and intact.
        paths: of the files that they are in.
    """

    states: RaggedArray
    complete: np.ndarray
    paths: set[Path]


class ShardIndex:
    """The opened files of a folder of hidden states."""

    def __init__(self) -> None:
        self._files: dict[Path, ShardFile | None] = {}  # None: damaged

    def find(
        self,
        folder: Path,
        spec: HiddenStateSpec,
        keys: Sequence[bytes],
        mask: np.ndarray | None = None,
    ) -> Found:
        """What is on disk of those of the texts that a mask `(texts,)` names.

        Args:
            folder: of the model.
            spec: of the hidden states.
            keys: of the texts.
            mask: None: all texts.
        """
        files = self.open_files(folder, spec)
        starts = np.cumsum([0, *(len(file.states.values) for file in files)])
        texts = range(len(keys)) if mask is None else np.flatnonzero(mask).tolist()
        wanted = {keys[text] for text in texts}
        places: dict[bytes, tuple[int, int]] = {}  # file and row
        for number, file in enumerate(files):
            rows = file.intact_rows(wanted)
            places |= {key: (number, row) for key, row in rows.items()}
            wanted -= rows.keys()  # what is damaged may be in another file too
        offsets, lengths = np.zeros((2, len(keys)), "int64")
        complete = np.zeros(len(keys), bool)
        for text in texts:
            if place := places.get(keys[text]):
                states = files[place[0]].states
                offsets[text] = starts[place[0]] + states.offsets[place[1]]
                lengths[text] = states.lengths[place[1]]
                complete[text] = True
        values = [file.states.values for file in files]
        empty = np.empty((0, 0), spec.dtype)
        joined = MappedStates(values) if len(values) > 1 else next(iter(values), empty)
        paths = {files[number].path for number, _ in places.values()}
        return Found(RaggedArray(joined, offsets, lengths), complete, paths)

    def open_files(self, folder: Path, spec: HiddenStateSpec) -> list[ShardFile]:
        """The files of a spec that are whole."""
        paths = spec_files(folder, spec)
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

    def forget(self, path: Path) -> None:
        """Open a file again, of which a damaged one may be known."""
        self._files.pop(path, None)

    def forget_deleted(self) -> None:
        """Let go of files that were deleted: until then, they take room on the disk."""
        self._files = {path: file for path, file in self._files.items() if path.exists()}

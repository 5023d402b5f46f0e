"""The built-in Gemma, loaded and compiled once for the tests of a process."""

import contextlib
import functools
from collections.abc import Iterator

import pytest

from embedder_helpers.models import gemma as gemma_module
from embedder_helpers.models.batching import RaggedArray
from embedder_helpers.models.gemma import Gemma
from embedder_helpers.models.presets import find_preset

TINY = find_preset("llm_preset", "tiny_gemma")
# Of different lengths in one bucket, because every bucket costs a compilation.
TEXTS = [f"On day {i} the old mill was {'wet' if i % 2 else 'dry'}." for i in range(8, 14)]


class KeptGemma(Gemma):
    """Keeps its weights when asked to unload them: loading takes longer than computing here."""

    def unload(self):
        if not getattr(self, "_weights", None):
            super().unload()


@functools.cache
def shared_gemma(stream_blocks: bool = False) -> KeptGemma:
    gemma = KeptGemma(TINY, stream_blocks, "float32")
    gemma._load(TINY.num_layers)
    return gemma


@functools.cache
def token_ids() -> RaggedArray:
    """Those of `TEXTS`."""
    return shared_gemma().tokenize(TEXTS, 64)[0]


@contextlib.contextmanager
def two_texts_per_batch() -> Iterator[None]:
    """Small batches of one shape, so that a forward pass over few texts has several."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("CPU_TOKENS", "UNCOMPILED_TOKENS", "GPU_TOKENS"):
            patch.setattr(gemma_module, name, 2 * 16)
        yield

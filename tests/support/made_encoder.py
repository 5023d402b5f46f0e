"""A stand-in for sentence-transformers, whose one model counts letters, and folders for it."""

import json
import string
from pathlib import Path

import numpy as np
import pytest

SOURCE = """
import string
import types

import numpy as np

LOADED = []


class SentenceTransformer:
    device = "cpu"

    def __init__(self, name, revision=None):
        LOADED.append((name, revision))
        self.max_seq_length, self.prompts = 12, {"query": "q: "}

    def tokenizer(self, texts, truncation, verbose):
        assert not truncation and not verbose
        return {"input_ids": [text.split() for text in texts]}

    def parameters(self):
        return [types.SimpleNamespace(numel=lambda: 26 * 26, dtype="torch.float32")]

    def encode(self, texts, batch_size=32, show_progress_bar=True, prompt=""):
        words = [(prompt + text).lower().split()[: self.max_seq_length] for text in texts]
        counts = [["".join(kept).count(c) for c in string.ascii_lowercase] for kept in words]
        return np.array(counts, "float32")
"""


def install(patch: pytest.MonkeyPatch, folder: Path) -> None:
    """Put the stand-in where Python finds it first."""
    package = folder / "sentence_transformers"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(SOURCE, encoding="utf-8")
    patch.delitem(__import__("sys").modules, "sentence_transformers", raising=False)
    patch.syspath_prepend(str(folder))


def write_model(folder: Path, config: dict | None = None, license: str | None = "mit") -> Path:
    """A folder that looks like a sentence-transformers model; without a config, a static one."""
    folder.mkdir(parents=True)
    (folder / "modules.json").write_text("[]", encoding="utf-8")
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    if license:
        (folder / "README.md").write_text(f"---\nlicense: {license}\n---\n", encoding="utf-8")
    return folder


def letter_counts(texts: list[str], words: int, prompt: str = "") -> np.ndarray:
    """What the stand-in's model returns, counted another way."""
    kept = [" ".join((prompt + text).lower().split()[:words]) for text in texts]
    rows = [[sum(letter == c for letter in text) for c in string.ascii_lowercase] for text in kept]
    return np.array(rows, "float32")

"""Saved tiny embedders, which the tests of sharing read and do not change."""

from pathlib import Path

import pytest

from embedder_helpers.config import Experiment
from embedder_helpers.models.architectures import build_embedder
from embedder_helpers.models.embedder import Embedder


@pytest.fixture(scope="session")
def saved_gemma(tiny_embedders, tmp_path_factory) -> Path:
    """The folder of a saved Gemma alone: few and small files."""
    return tiny_embedders["gemma_only"].save(tmp_path_factory.mktemp("saved") / "gemma")


@pytest.fixture(scope="session")
def saved_hybrid(tiny_embedders, tmp_path_factory) -> Path:
    """The folder of a saved hybrid, untrained."""
    return tiny_embedders["hybrid"].save(tmp_path_factory.mktemp("saved") / "hybrid")


@pytest.fixture(scope="session")
def late_hybrid() -> Embedder:
    """An untrained hybrid with late fusion."""
    settings = {"llm_layers": 4, "fusion": "replace", "late_fusion": True}
    return build_embedder(Experiment(kind="hybrid", **settings))


@pytest.fixture(scope="session")
def saved_late_hybrid(late_hybrid, tmp_path_factory) -> Path:
    """The folder of a saved hybrid with late fusion."""
    return late_hybrid.save(tmp_path_factory.mktemp("saved") / "late_hybrid")

"""Saved tiny embedders, which the tests of sharing read and do not change."""

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def saved_gemma(tiny_embedders, tmp_path_factory) -> Path:
    """The folder of a saved Gemma alone: few and small files."""
    return tiny_embedders["gemma_only"].save(tmp_path_factory.mktemp("saved") / "gemma")


@pytest.fixture(scope="session")
def saved_hybrid(tiny_embedders, tmp_path_factory) -> Path:
    """The folder of a saved hybrid, untrained."""
    return tiny_embedders["hybrid"].save(tmp_path_factory.mktemp("saved") / "hybrid")

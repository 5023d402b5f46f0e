"""Fixtures: the tiny models, a task on disk, and what the optional checks need."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

from embedder_helpers.config import Experiment
from embedder_helpers.utils import environment

ROOT = Path(__file__).resolve().parent.parent

collect_ignore = [] if os.name == "posix" else ["robustness"]  # which forks and mounts

# No test asserts a time: a busy machine must not fail one.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")


@pytest.fixture(scope="session", autouse=True)
def states_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The cache of hidden states that all tests share, instead of the project's own."""
    folder = tmp_path_factory.mktemp("states")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("embedder_helpers.utils.environment.states_folder", lambda: folder)
        yield folder


@pytest.fixture(autouse=True)
def no_known_secrets() -> Iterator[None]:
    """No answer of a secrets service is kept from one test to the next."""
    environment.forget_secrets()
    yield
    environment.forget_secrets()


@pytest.fixture(scope="session")
def shared_folder() -> Path:
    """Real data, protocol figures and the official evaluator, which are no part of the project."""
    folder = Path(os.environ.get("EMBEDDER_REFERENCE", ROOT.parent / "shared"))
    if not (folder / "data").is_dir():
        pytest.skip("EMBEDDER_REFERENCE names no folder with real data and the official evaluator")
    return folder


@pytest.fixture(scope="session")
def reference_python() -> str:
    """A Python with torch, transformers and mteb, in an environment of its own."""
    python = os.environ.get("EMBEDDER_REFERENCE_PYTHON")
    if not python:
        pytest.skip("EMBEDDER_REFERENCE_PYTHON names no Python with torch, transformers and mteb")
    return python


@pytest.fixture(scope="session")
def real_presets() -> Path:
    """A folder with the presets `gemma3_270m` and `roberta_6l_384`."""
    folder = os.environ.get("EMBEDDER_PRESETS")
    if not folder:
        pytest.skip("EMBEDDER_PRESETS names no folder with real presets")
    return Path(folder).resolve()


@pytest.fixture(scope="session")
def tiny_embedders() -> dict:
    """One untrained embedder of each kind; the hybrid replaces token embeddings, and no more."""
    from embedder_helpers.models.architectures import build_embedder

    kinds = ("hybrid", "gemma_only", "roberta_only")
    settings = {"llm_layers": 4, "fusion": "replace", "late_fusion": False}
    return {kind: build_embedder(Experiment(kind=kind, **settings)) for kind in kinds}


@pytest.fixture
def task_folder(tmp_path: Path) -> Path:
    """A small task in two classes that a model can tell apart, as jsonl files."""
    folder = tmp_path / "weather"
    folder.mkdir()
    for split, count in (("train", 40), ("validation", 12), ("test", 16)):
        rows = [
            {
                "text": f"The {'rain fell' if i % 2 else 'sun shone'} on day {i} of the {split}.",
                "label": i % 2,
            }
            for i in range(count)
        ]
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{split}.jsonl").write_text(lines, encoding="utf-8")
    return folder

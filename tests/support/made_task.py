"""A small task on disk, for tests that write their own, and a quick experiment on one."""

import json
from pathlib import Path
from typing import Any

from embedder_helpers.config import Experiment


def write_task(
    folder: Path, word: str = "rain", counts: dict[str, int] | None = None, num_classes: int = 2
) -> Path:
    """Two classes that a model can distinguish, as jsonl files; all texts are in one bucket.

    Of more classes, only the first two differ in their words.
    """
    counts = counts or {"train": 24, "validation": 8, "test": 12}
    folder.mkdir()
    for split, count in counts.items():
        rows = [
            {"text": f"The {word} {'fell' if i % 2 else 'rose'} on day {i} of {split}.",
             "label": i % num_classes}
            for i in range(count)
        ]  # fmt: skip
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{split}.jsonl").write_text(lines, encoding="utf-8")
    return folder


def experiment(task_folder: Path, **settings: Any) -> Experiment:
    """An experiment that runs in seconds, with some settings changed."""
    quick = dict(llm_layers=2, epochs=2, batch_size=8, max_tokens=48, learning_rate=5e-4)
    return Experiment(task=str(task_folder), samples_per_label=4, **{**quick, **settings})

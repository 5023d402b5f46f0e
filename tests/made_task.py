"""A small task on disk, for tests that write their own."""

import json


def write_task(folder, word="rain", counts=None):
    """Two classes that a model can tell apart, as jsonl files; texts are of one length bucket."""
    counts = counts or {"train": 24, "validation": 8, "test": 12}
    folder.mkdir()
    for split, count in counts.items():
        rows = [
            {"text": f"The {word} {'fell' if i % 2 else 'rose'} on day {i} of {split}.",
             "label": i % 2}
            for i in range(count)
        ]  # fmt: skip
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{split}.jsonl").write_text(lines, encoding="utf-8")
    return folder

"""Task files of any format, for tests of reading them."""

import json

import pandas as pd


def make_rows(count, labels=(0, 1), prefix="text"):
    """Rows with the texts `prefix 0`, `prefix 1`, …, whose labels take turns."""
    return [{"text": f"{prefix} {i}", "label": labels[i % len(labels)]} for i in range(count)]


def write_rows(path, rows):
    """Write a file in the format of its ending."""
    if path.suffix == ".jsonl":
        lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        path.write_text("".join(lines), encoding="utf-8")
    elif path.suffix == ".csv":
        pd.DataFrame(rows).to_csv(path, index=False)
    else:
        pd.DataFrame(rows).to_parquet(path)
    return path


def write_folder(folder, ending=".jsonl", **splits):
    """A task folder with 40 train and 10 test rows, or other rows; None: no such file."""
    default = {"train": make_rows(40), "test": make_rows(10, prefix="unseen")}
    for split, rows in {**default, **splits}.items():
        if rows is not None:
            write_rows(folder / f"{split}{ending}", rows)
    return folder

"""Score Gemma on your own texts: a folder of CSV files is a task.

    python -m examples.own_task    # from the project's folder; about 15 seconds

Writes a folder of 12 sentences, loads it as a task, which checks it, and scores Gemma alone on it.
Nothing is trained, so this is the quickest look at new data.

Not shown: a meaningful score. Four test texts and a tiny model show that it works, not how well.
"""

import csv
from pathlib import Path

import embedder_helpers as eh

OUT = Path("build/examples/own_task")
TRAIN = [
    ("Rain fell all morning", "wet"),
    ("The sun shone on the hills", "dry"),
    ("It poured until the evening", "wet"),
    ("A dry and cloudless day", "dry"),
    ("Showers came in from the sea", "wet"),
    ("The ground was hard and dusty", "dry"),
    ("We walked home in the rain", "wet"),
    ("No drop fell for a month", "dry"),
]
TEST = [
    ("A shower in the morning", "wet"),
    ("The sun was out all day", "dry"),
    ("Rain on the hills", "wet"),
    ("A dusty, dry month", "dry"),
]


def write_task(folder: Path) -> Path:
    """Write `train.csv` and `test.csv` with the columns `text` and `label`."""
    folder.mkdir(parents=True, exist_ok=True)
    for split, rows in (("train", TRAIN), ("test", TEST)):
        with (folder / f"{split}.csv").open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows([("text", "label"), *rows])
    return folder


def main(out: Path = OUT) -> list:
    """Run the example; returns the results."""
    folder = write_task(out / "weather")
    task = eh.load_task(str(folder))
    print(task.classes, len(task.train), len(task.validation), len(task.test))
    print(*task.notes, sep="\n")  # what a reader of the scores should know of the data

    # `task` takes the path wherever it takes a name: here, in a config file, or with --set.
    experiment = eh.Experiment(task=str(folder), kind="gemma_only", llm_layers=2)
    results, _ = eh.run_experiments([experiment], out)
    print(eh.results_table(results).round(3).to_string(index=False))
    return results


if __name__ == "__main__":
    main()

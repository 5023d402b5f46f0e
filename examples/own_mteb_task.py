"""Add another task of MTEB at run time: NewsClassification, which is not among the 12 built in.

    python -m examples.own_mteb_task    # from the project's folder; about 15 seconds

`MTEB_TASKS` maps a task's name to where the hub has its data. An entry needs the repository and
revision, and, where they differ from the defaults, the subset, `samples_per_label`, whether there
is a validation split, and the size of the test sample. All of these are in the task's file in the
mteb package (`metadata.dataset`, `samples_per_label`, `dataset_transform`). The data must have the
columns `text` and `label`.

Not shown: the download. So that the example runs without a network, `task_data` reads the task from
local files instead; without that setting the entry alone is enough. The entry exists in this
process only: a sweep over several GPUs starts further processes, which do not have it.
"""

from pathlib import Path

import embedder_helpers as eh
from embedder_helpers.data.tasks import MTEB_TASKS, TaskSource
from examples.own_task import write_task

OUT = Path("build/examples/own_mteb_task")
# Source: mteb 2.26.
NEWS = TaskSource("fancyzhx/ag_news", "eb185aade064a813bc0b7f42de02595523103ca4")


def main(out: Path = OUT) -> list:
    """Run the example; returns the results."""
    MTEB_TASKS["NewsClassification"] = NEWS
    folder = write_task(out / "news")  # stands for a download of the task's splits
    experiment = eh.Experiment(
        task="NewsClassification", task_data=str(folder), kind="gemma_only", llm_layers=2
    )
    results, _ = eh.run_experiments([experiment], out)
    print(eh.results_table(results).round(3).to_string(index=False))
    return results


if __name__ == "__main__":
    main()

"""What data a result is of: a task of MTEB's, a sample of the package, or local files.

A name does not say it: two folders may have one name, and a folder may have that of a task. The
fingerprint, a hash or a revision of the content, does.
"""

from collections.abc import Sequence

import pandas as pd

from embedder_helpers.builtin import BUILTIN_TASKS
from embedder_helpers.data.mteb import MTEB_TASKS, TaskSource
from embedder_helpers.data.tasks import LOCAL_SUFFIX
from embedder_helpers.results.result import Result


def data_source(result: Result) -> str:
    """`mteb` for data from the hub, `builtin` or `local`; derived where a file does not say it."""
    if source := result.task.get("source"):
        return source
    if "@" in result.inputs["task"]:
        return "mteb"
    requested, data = (result.experiment.get(name) for name in ("task", "task_data"))
    return "builtin" if requested in BUILTIN_TASKS and not data else "local"


def mteb_task(result: Result) -> TaskSource | None:
    """The task of MTEB's that a result may be presented as; None if there is none.

    Its data came from the hub, or from local files that were named as this task's by `task_data`.
    Other local data are not a task of MTEB's, whatever their folder is called.
    """
    name = result.task["name"]
    declared = result.experiment.get("task") == name and result.experiment.get("task_data")
    return MTEB_TASKS.get(name) if declared or data_source(result) == "mteb" else None


def is_english(result: Result) -> bool:
    """Whether the texts are known to be English, as those of MTEB's and built-in tasks are."""
    return mteb_task(result) is not None or data_source(result) == "builtin"


def data_revision(result: Result) -> str:
    """The revision of the data set that was loaded from the hub; `local` for other data."""
    return result.inputs["task"].rpartition("@")[2] if data_source(result) == "mteb" else "local"


def data_key(result: Result) -> tuple[str, str]:
    """What two results of the same data have in common: name and fingerprint."""
    return _data_name(result), result.inputs["task"]


def data_labels(results: Sequence[Result]) -> list[str]:
    """The name of each result's data, followed by its fingerprint where others have the name."""
    keys = set(map(data_key, results))
    names = [name for name, _ in keys]
    return [
        name if names.count(name) == 1 else f"{name} [{short_fingerprint(fingerprint)}]"
        for name, fingerprint in map(data_key, results)
    ]


def local_path(result: Result) -> str | None:
    """The path of local data, as far as it was recorded; None of other data."""
    if data_source(result) != "local":
        return None
    requested, data = (result.experiment.get(name) for name in ("task", "task_data"))
    return result.task.get("path") or data or requested


def local_data(result: Result) -> str | None:
    """Fingerprint and path of local data, as tables show them; None for other data."""
    path = local_path(result)
    return path and f"{short_fingerprint(result.inputs['task'])} {path}"


def without_empty_data(table: pd.DataFrame) -> pd.DataFrame:
    """A table without its column `data`, which `local_data` fills, if no row has any."""
    is_empty = "data" in table and table["data"].isna().all()
    return table.drop(columns="data") if is_empty else table


def describe_local_data(result: Result) -> str | None:
    """A note for readers of a local data set's scores; None for other data."""
    if (data := local_data(result)) is None:
        return None
    if mteb_task(result):
        return f"read from local files that were not compared with MTEB's, {data}"
    return f"local files, {data}"


def short_fingerprint(fingerprint: str) -> str:
    """The first eight letters of a hash, or of a revision after its name."""
    name, at, content = fingerprint.rpartition("@")
    return name + at + content[:8]


def _data_name(result: Result) -> str:
    """The name of a task or folder, marked if a folder only has the name of a task."""
    name = result.task["name"]
    taken = name in (*MTEB_TASKS, *BUILTIN_TASKS) and data_source(result) == "local"
    return name + LOCAL_SUFFIX if taken and not mteb_task(result) else name

"""Tasks: MTEB's, the built-in samples and local data, as splits of texts and labels.

Loads and checks texts and labels before any model is loaded. Texts stay where `datasets` keeps them
(for the hub: memory-mapped files); labels are read into memory. Reading local files is left to
`files`, MTEB's data sets to `mteb`, selecting the rows of an experiment to `experiments.plan`.
"""

import difflib
import hashlib
import json
import logging
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from embedder_helpers.builtin import BUILTIN_TASKS
from embedder_helpers.config import Experiment
from embedder_helpers.data.files import (
    SPLIT_SEED,
    as_list,
    read_splits,
    unread_files,
    validate_texts,
)
from embedder_helpers.data.labels import check_labels, stratified_sample
from embedder_helpers.data.mteb import (
    DEFAULT_SAMPLES_PER_LABEL,
    MTEB_TASKS,
    TaskSource,
    load_from_hub,
)
from embedder_helpers.errors import InputError, check_characters, show, show_list
from embedder_helpers.utils.files import as_path, path_exists

logger = logging.getLogger(__name__)

HELD_OUT_FRACTION = 0.1  # of the train split, where a task has no validation split
LOCAL_SUFFIX = " (local files)"  # of the name of local data that have that of a task


@dataclass(frozen=True)
class Split:
    """The rows of one split, in their original order.

    Attributes:
        name: name for messages.
        rows: a `datasets.Dataset` with the columns `text` and `label`.
    """

    name: str
    rows: Any

    def __len__(self) -> int:
        return len(self.rows)

    @cached_property
    def labels(self) -> np.ndarray:
        """`(n,)` labels, integers or strings as in the data."""
        return np.asarray(self.rows["label"][:])

    def texts(self, rows: Sequence[int] | None = None) -> list[str]:
        """The texts of some rows (default: all).

        Raises:
            InputError: a text that is not a string.
        """
        selected = self.rows if rows is None else self.rows.select(rows)
        texts = selected["text"][:]
        numbers = range(len(texts)) if rows is None else rows
        validate_texts(texts, self.name, numbers=numbers, allow_empty=True)
        return texts


@dataclass(frozen=True)
class Task:
    """A classification task.

    Attributes:
        name: MTEB's name, or that of the folder or file; "… (local files)" where local data only
            have the name of a task of MTEB or the package.
        train: MTEB's complete train split, from which the protocol samples.
        training_rows: rows of `train` that training may use (all, or all but the held-out ones).
        validation: texts to validate training on; held out of `train` where the task has none.
        test: the test split.
        samples_per_label: number of training texts of each label that one run of the protocol
            samples.
        notes: notes for readers of the scores, one sentence each, without names of other files.
        fingerprint: hash or revision of the data.
        source: "mteb" if the data were loaded from the hub, "builtin" or "local".
        path: absolute path of local data; None of others.
    """

    name: str
    train: Split
    training_rows: np.ndarray
    validation: Split
    test: Split
    samples_per_label: int
    notes: tuple[str, ...]
    fingerprint: str
    source: str
    path: str | None = None

    @cached_property
    def classes(self) -> np.ndarray:
        """The labels of the train split, sorted."""
        return np.unique(self.train.labels)

    def held_out_rows(self) -> np.ndarray:
        """`(validation,)` the row of train that each validation text is, or -1."""
        rows = np.setdiff1d(np.arange(len(self.train)), self.training_rows)
        return rows if len(rows) else np.full(len(self.validation), -1)

    @cached_property
    def test_duplicates(self) -> np.ndarray:
        """`(test,)` whether train has a text too, ignoring case, punctuation and spaces."""
        return _is_among(self.test.texts(), self.train.texts())

    @cached_property
    def validation_duplicates(self) -> np.ndarray:
        """`(validation,)` the same, compared with the rows of train that are not held out."""
        return _is_among(self.validation.texts(), self.train.texts(self.training_rows))


def _is_among(texts: Sequence[str], others: Sequence[str]) -> np.ndarray:
    """`(texts,)` whether each text is among the others."""
    hashes = set(map(_content_hash, others))
    return np.array([_content_hash(text) in hashes for text in texts], bool)


def _content_hash(text: str) -> int:
    """Hash of a text's letters and digits; of the complete text if it has none."""
    content = "".join(letter for letter in text.casefold() if letter.isalnum()) or text
    return int.from_bytes(hashlib.blake2b(content.encode(), digest_size=8).digest())


def load_task(
    task: str | Path | Experiment,
    *,
    data: str | None = None,
    text_column: str = "text",
    label_column: str = "label",
    samples_per_label: int | None = None,
) -> Task:
    """Load a task.

    Args:
        task: an MTEB task by its name, `sample`, `sample_emotion`, or the path of local data; or
            an Experiment, whose settings are used for all arguments.
        data: local folder or file with the named task's data.
        text_column: name of the text column of local data.
        label_column: name of the label column of local data.
        samples_per_label: number of training texts of each label that one run of the protocol
            samples; None: the task's own number.

    Raises:
        InputError: an unknown task, no network, or invalid data; names file and rows.
    """
    if isinstance(task, Experiment):
        return load_task(
            task.task,
            data=task.task_data,
            text_column=task.text_column,
            label_column=task.label_column,
            samples_per_label=task.samples_per_label,
        )
    if isinstance(task, Path):
        task = str(task.absolute())  # a path, though it may have the name of a task
    hub: TaskSource | None = MTEB_TASKS.get(task)
    is_local = data is not None or not (hub or task in BUILTIN_TASKS)
    path = _local_path(task, data) if is_local else None
    name = _local_name(task, data) if is_local else task
    notes = []
    if hub and not is_local:
        rows, fingerprint = load_from_hub(task, hub), f"{hub.path}@{hub.revision}"
        splits = {split: Split(f"{name}, {split}", rows[split]) for split in rows}
    else:
        splits, notes = _load_local(path or Path(BUILTIN_TASKS[task]), text_column, label_column)
        fingerprint = _fingerprint(splits)
    if not is_local and path_exists(Path(task)):
        logger.warning(
            "task: %s is the %s task; the folder or file of that name in %s is passed over: give "
            "it as ./%s to read it",
            task,
            "MTEB" if hub else "built-in",
            Path.cwd(),
            task,
        )
    samples = samples_per_label or (hub.samples_per_label if hub else DEFAULT_SAMPLES_PER_LABEL)
    notes += _check_labels(splits, samples, strict=is_local or not hub)
    return _make_task(
        splits,
        notes,
        name=name,
        samples_per_label=samples,
        fingerprint=fingerprint,
        source="local" if is_local else "mteb" if hub else "builtin",
        path=path and _as_unicode(str(path)),
    )


def task_from_arrays(texts: Sequence[str], labels: Sequence[Any]) -> Task:
    """A task to train on; a tenth of the texts is held out, and the test split is all texts.

    Raises:
        InputError: invalid texts or labels.
    """
    import datasets

    # Without a NumPy array in between, which would turn labels of mixed types into strings.
    texts, labels = as_list(texts), as_list(labels, "labels")
    validate_texts(texts, "texts")
    if not texts:
        raise InputError("there are no texts: give some of each label")
    if len(texts) != len(labels):
        raise InputError(f"there are {len(texts)} texts, but {len(labels)} labels")
    rows = {"text": texts, "label": check_labels({"labels": labels})["labels"].tolist()}
    split = Split("texts", datasets.Dataset.from_dict(rows))
    splits = {"train": split, "test": split}
    return _make_task(
        splits,
        _check_labels(splits, DEFAULT_SAMPLES_PER_LABEL, strict=True),
        name="texts",
        samples_per_label=DEFAULT_SAMPLES_PER_LABEL,
        fingerprint=_fingerprint({"train": split}),
        source="local",
    )


def _local_path(task: str, data: str | None) -> Path:
    """The absolute path of local data."""
    path = as_path(task if data is None else data)
    if data is None and not path_exists(path):
        raise _unknown_task(task)
    return path.absolute()


def _local_name(task: str, data: str | None) -> str:
    """The name of a task of local data; only with `data` is it that of the MTEB task."""
    if data is not None:
        check_characters(task, "task")  # a name, which need not be one that a file can have
    name = _as_unicode(Path(os.path.expanduser(task)).resolve().name)
    is_of_mteb = data is not None and task in MTEB_TASKS
    if not is_of_mteb and (name in MTEB_TASKS or name in BUILTIN_TASKS):
        name += LOCAL_SUFFIX
    return name


def _as_unicode(path: str) -> str:
    """A path as text that a file can hold: bytes that are not UTF-8 are spelled `\\xe9`."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def _load_local(
    path: Path, text_column: str, label_column: str
) -> tuple[dict[str, Split], list[str]]:
    """The splits of local data, and notes on its folder."""
    import datasets

    local_splits = read_splits(path, text_column, label_column)
    notes = []
    if path.is_dir() and (unread := unread_files(path, local_splits)):
        # Notes are published with an embedder; the names of other files are nobody's business.
        notes.append(f"{len(unread)} other file(s) of the folder not read")
        logger.warning(
            "not read, because no split has such a name: %s in %s", show_list(unread, most=5), path
        )
    splits = {
        split: Split(
            local.name,
            datasets.Dataset.from_dict({"text": local.texts, "label": local.labels.tolist()}),
        )
        for split, local in local_splits.items()
    }
    return splits, notes


def _unknown_task(name: str) -> InputError:
    """The error for a name that is neither a task nor a path; suggests the nearest task."""
    near = [task for task in MTEB_TASKS if task.lower().startswith(name.lower())]
    near = near or difflib.get_close_matches(name, MTEB_TASKS, n=1)
    guess = f"; did you mean {near[0]!r}?" if near else "."
    return InputError(
        f"task: there is no task, folder or file {show(name)}{guess} "
        f"Give a path, or one of {', '.join([*BUILTIN_TASKS, *MTEB_TASKS])}"
    )


def _check_labels(splits: dict[str, Split], samples_per_label: int, *, strict: bool) -> list[str]:
    """Notes on the labels; `strict` makes a label that train lacks an error."""
    counts = Counter(splits["train"].labels.tolist())
    if len(counts) < 2:
        raise InputError(f"{splits['train'].name} has only one label, {show(next(iter(counts)))}")
    notes = []
    for split in splits.values():
        if unseen := sorted(set(split.labels.tolist()) - set(counts), key=str):
            fact = f"{split.name}: label(s) {show_list(unseen)} do not occur in train"
            if strict:
                raise InputError(f"{fact}: add training texts for them or remove these rows")
            notes.append(f"{fact} and can never be predicted")
    if "validation" in splits:
        lacking = sorted(set(counts) - set(splits["validation"].labels.tolist()), key=str)
        if lacking:
            notes.append(
                f"{splits['validation'].name} has no text of label(s) {show_list(lacking)}, so "
                "training is not validated on them"
            )
    if rare := [pair for pair in sorted(counts.items(), key=str) if pair[1] < samples_per_label]:
        rare = show_list(rare, form=lambda pair: f"{show(pair[0])} ({pair[1]})")
        notes.append(
            f"label(s) with fewer training texts than the {samples_per_label} that the protocol "
            f"samples, so that it always uses all of them: {rare}"
        )
    return notes


def _make_task(splits: dict[str, Split], notes: list[str], **fields: Any) -> Task:
    """The Task; validation rows are held out of train if there is no such split."""
    train = splits["train"]
    training_rows = np.arange(len(train))
    validation = splits.get("validation")
    if validation is None:
        count = max(1, round(HELD_OUT_FRACTION * len(train)))
        held_out = stratified_sample(train.labels, count, SPLIT_SEED, leave_one=True)
        training_rows = np.setdiff1d(training_rows, held_out)
        validation = Split(f"{train.name}, held out", train.rows.select(held_out))
        notes = [*notes, f"no validation split: {len(held_out)} of train's texts are held out"]
    return Task(
        train=train,
        training_rows=training_rows,
        validation=validation,
        test=splits["test"],
        notes=tuple(notes),
        **fields,
    )


def _fingerprint(splits: dict[str, Split]) -> str:
    """SHA-256 over the texts and labels of local data."""
    digest = hashlib.sha256()
    for name, split in splits.items():
        content = [name, split.texts(), split.labels.tolist()]
        digest.update(json.dumps(content).encode())
    return digest.hexdigest()

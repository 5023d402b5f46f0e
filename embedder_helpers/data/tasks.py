"""Tasks: the 12 English MTEB classification tasks, local files, and the built-in samples.

Loads and checks texts and labels before any model is loaded. Texts stay where `datasets` keeps them
(for the hub: memory-mapped files); labels are read into memory. Reading local files is left to
`files`, selecting the rows of an experiment to `experiments.plan`.
"""

import difflib
import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from embedder_helpers.builtin import BUILTIN_TASKS
from embedder_helpers.config import Experiment
from embedder_helpers.data.files import (
    SPLIT_SEED,
    as_list,
    read_splits,
    stratified_sample,
    validate_labels,
    validate_texts,
)
from embedder_helpers.errors import InputError
from embedder_helpers.utils.files import path_exists

HELD_OUT_FRACTION = 0.1  # of the train split, where a task has no validation split
DEFAULT_SAMPLES_PER_LABEL = 8  # MTEB's samples_per_label where a task sets none


class TaskSource(NamedTuple):
    """A task's data set, as MTEB 2 defines the task.

    Attributes:
        path: name of the data set on the Hugging Face hub.
        revision: revision of the data set.
        subset: name of the English subset; None if there are no subsets.
        samples_per_label: number of training texts of each label that one run of the protocol
            samples.
        has_validation: whether there is a validation split.
        test_rows: size of the stratified sample that MTEB takes of the test split; None: all rows.
    """

    path: str
    revision: str
    subset: str | None = None
    samples_per_label: int = DEFAULT_SAMPLES_PER_LABEL
    has_validation: bool = False
    test_rows: int | None = None


# Source: mteb 2.26, the tasks' metadata.
MTEB_TASKS = {
    "AmazonCounterfactualClassification": TaskSource(
        "mteb/amazon_counterfactual",
        "1f7e6a9d6fa6e64c53d146e428565640410c0df1",
        "en",
        samples_per_label=32,
        has_validation=True,
    ),
    "AmazonPolarityClassification": TaskSource(
        "mteb/amazon_polarity", "e2d317d38cd51312af73b3d32a06d1a08b442046"
    ),
    "AmazonReviewsClassification": TaskSource(
        "mteb/AmazonReviewsClassification",
        "6b5d328eaae8ef408dd7d775040245cf86f92e9d",
        "en",
        has_validation=True,
    ),
    "Banking77Classification": TaskSource(
        "mteb/banking77", "0fd18e25b25c072e09e0d92ab615fda904d66300"
    ),
    "EmotionClassification": TaskSource(
        "mteb/emotion",
        "4f58c6b202a23cf9a4da393831edf4f9183cad37",
        samples_per_label=16,
        has_validation=True,
    ),
    "ImdbClassification": TaskSource("mteb/imdb", "3d86128a09e091d6018b6d26cad27f2739fc2db7"),
    "MassiveIntentClassification": TaskSource(
        "mteb/amazon_massive_intent",
        "4672e20407010da34463acc759c162ca9734bca6",
        "en",
        has_validation=True,
    ),
    "MassiveScenarioClassification": TaskSource(
        "mteb/amazon_massive_scenario",
        "fad2c6e8459f9e1c45d9315f4953d921437d70f8",
        "en",
        has_validation=True,
    ),
    "MTOPDomainClassification": TaskSource(
        "mteb/MTOPDomainClassification",
        "a76d16fae880597b9c73047b50159220a441cb54",
        "en",
        has_validation=True,
    ),
    "MTOPIntentClassification": TaskSource(
        "mteb/MTOPIntentClassification",
        "2992d820f31312593c49a4890430aadadb0f0039",
        "en",
        has_validation=True,
    ),
    "ToxicConversationsClassification": TaskSource(
        "mteb/toxic_conversations_50k",
        "edfaf9da55d3dd50d43143d90c1ac476895ae6de",
        samples_per_label=16,
        test_rows=2048,
    ),
    "TweetSentimentExtractionClassification": TaskSource(
        "mteb/tweet_sentiment_extraction",
        "d604517c81ca91fe16a244d1248fc021f9ecee7a",
        samples_per_label=32,
    ),
}


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
        name: MTEB's name, or that of the folder or file.
        train: MTEB's complete train split, from which the protocol samples.
        training_rows: rows of `train` that training may use (all, or all but the held-out ones).
        validation: texts to validate training on; held out of `train` where the task has none.
        test: the test split.
        samples_per_label: number of training texts of each label that one run of the protocol
            samples.
        notes: notes for readers of the scores, one sentence each.
        fingerprint: hash or revision of the data.
    """

    name: str
    train: Split
    training_rows: np.ndarray
    validation: Split
    test: Split
    samples_per_label: int
    notes: tuple[str, ...]
    fingerprint: str

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
    task: str | Experiment,
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
    source = MTEB_TASKS.get(task)
    default = source.samples_per_label if source else DEFAULT_SAMPLES_PER_LABEL
    samples_per_label = samples_per_label or default
    from_hub = source is not None and data is None
    if from_hub:
        splits, fingerprint = _load_from_hub(task, source), f"{source.path}@{source.revision}"
    else:
        splits = _load_local(task, data, text_column, label_column)
        fingerprint = _fingerprint(splits)
    notes = _check_labels(splits, samples_per_label, strict=not from_hub)
    return _make_task(Path(task).resolve().name, splits, samples_per_label, notes, fingerprint)


def task_from_arrays(texts: Sequence[str], labels: Sequence[Any]) -> Task:
    """A task to train on; a tenth of the texts is held out, and the test split is all texts.

    Raises:
        InputError: invalid texts or labels.
    """
    import datasets

    texts = as_list(texts)
    # Without a NumPy array in between, which would turn labels of mixed types into strings.
    labels = [label.item() if isinstance(label, np.generic) else label for label in labels]
    validate_texts(texts, "texts")
    if len(texts) != len(labels):
        raise InputError(f"there are {len(texts)} texts, but {len(labels)} labels")
    rows = {"text": texts, "label": validate_labels(labels, "labels").tolist()}
    split = Split("texts", datasets.Dataset.from_dict(rows))
    splits = {"train": split, "test": split}
    notes = _check_labels(splits, DEFAULT_SAMPLES_PER_LABEL, strict=True)
    fingerprint = _fingerprint({"train": split})
    return _make_task("texts", splits, DEFAULT_SAMPLES_PER_LABEL, notes, fingerprint)


def _load_from_hub(name: str, source: TaskSource) -> dict[str, Split]:
    """The English splits at MTEB's pinned revision, memory-mapped."""
    import datasets

    try:
        loaded = datasets.load_dataset(source.path, source.subset, revision=source.revision)
    except Exception as error:  # of many classes, which differ between versions of datasets
        raise InputError(
            f"{name} cannot be loaded from the hub ({type(error).__name__}): switch the network "
            "on, or set task_data to a folder with train and test files"
        ) from None
    names = ("train", "validation", "test") if source.has_validation else ("train", "test")
    splits = {split: loaded[split].select_columns(["text", "label"]) for split in names}
    if source.test_rows and len(splits["test"]) > source.test_rows:
        splits["test"] = _mteb_subsample(splits["test"], source.test_rows)
    return {split: Split(f"{name}, {split}", rows) for split, rows in splits.items()}


def _mteb_subsample(rows: Any, count: int) -> Any:
    """The stratified sample that MTEB takes of a large test split (its seed is 42)."""
    encoded = rows.add_column("row", list(range(len(rows)))).class_encode_column("label")
    sample = encoded.train_test_split(test_size=count, seed=42, stratify_by_column="label")["test"]
    return rows.select(sample["row"])


def _load_local(
    name: str, data: str | None, text_column: str, label_column: str
) -> dict[str, Split]:
    """The splits of local data."""
    import datasets

    path = Path(data or BUILTIN_TASKS.get(name, name))
    if data is None and not path_exists(path):
        raise _unknown_task(name)
    return {
        split: Split(
            local.name,
            datasets.Dataset.from_dict({"text": local.texts, "label": local.labels.tolist()}),
        )
        for split, local in read_splits(path, text_column, label_column).items()
    }


def _unknown_task(name: str) -> InputError:
    """The error for a name that is neither a task nor a path; suggests the nearest task."""
    near = [task for task in MTEB_TASKS if task.lower().startswith(name.lower())]
    near = near or difflib.get_close_matches(name, MTEB_TASKS, n=1)
    guess = f"; did you mean {near[0]!r}?" if near else "."
    return InputError(
        f"task: there is no task, folder or file {name!r}{guess} "
        f"Give a path, or one of {', '.join([*BUILTIN_TASKS, *MTEB_TASKS])}"
    )


def _check_labels(splits: dict[str, Split], samples_per_label: int, *, strict: bool) -> list[str]:
    """Notes on the labels; `strict` makes a label that train lacks an error."""
    counts = Counter(splits["train"].labels.tolist())
    if len(counts) < 2:
        raise InputError(f"{splits['train'].name} has only one label, {next(iter(counts))!r}")
    notes = []
    for split in splits.values():
        if unseen := sorted(set(split.labels.tolist()) - set(counts), key=str):
            fact = f"{split.name}: label(s) {', '.join(map(repr, unseen))} do not occur in train"
            if strict:
                raise InputError(f"{fact}: add training texts for them or remove these rows")
            notes.append(f"{fact} and can never be predicted")
    for label, count in sorted(counts.items(), key=str):
        if count < samples_per_label:
            notes.append(
                f"label {label!r} has {count} training texts, fewer than the {samples_per_label} "
                "that the protocol samples: it always uses all of them"
            )
    return notes


def _make_task(
    name: str,
    splits: dict[str, Split],
    samples_per_label: int,
    notes: list[str],
    fingerprint: str,
) -> Task:
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
        name=name,
        train=train,
        training_rows=training_rows,
        validation=validation,
        test=splits["test"],
        samples_per_label=samples_per_label,
        notes=tuple(notes),
        fingerprint=fingerprint,
    )


def _fingerprint(splits: dict[str, Split]) -> str:
    """SHA-256 over the texts and labels of local data."""
    digest = hashlib.sha256()
    for name, split in splits.items():
        content = [name, split.texts(), split.labels.tolist()]
        digest.update(json.dumps(content).encode())
    return digest.hexdigest()

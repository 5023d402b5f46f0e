"""Tasks: the 12 English MTEB classification tasks, local files, and the built-in sample.

Texts stay where `datasets` keeps them (memory-mapped files, for the hub); labels are read whole.
Bad data is told here, by file and row, before a model is loaded.
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

from embedder_helpers.config import PACKAGE, Experiment, InputError
from embedder_helpers.local import (
    SPLIT_SEED,
    check_labels,
    check_texts,
    exists,
    listed,
    read_local,
    stratified_rows,
)

# Tasks written for this project: counterfactual against factual sentences, and six emotions.
SAMPLES = {name: PACKAGE / "builtin" / name for name in ("sample", "sample_emotion")}
HELD_OUT = 0.1  # share of train that is held out where a task has no validation split
DEFAULT_DRAWS = 8  # MTEB's samples_per_label where a task sets none


class Source(NamedTuple):
    """Where MTEB 2 has a task, and how many texts of each label its protocol draws."""

    path: str
    revision: str
    subset: str | None = None
    draws: int = DEFAULT_DRAWS
    validation: bool = False
    test_rows: int | None = None  # MTEB takes a stratified sample of the test split


# Source: mteb 2.26, the tasks' metadata.
MTEB_TASKS = {
    "AmazonCounterfactualClassification": Source(
        "mteb/amazon_counterfactual", "1f7e6a9d6fa6e64c53d146e428565640410c0df1", "en", 32, True
    ),
    "AmazonPolarityClassification": Source(
        "mteb/amazon_polarity", "e2d317d38cd51312af73b3d32a06d1a08b442046"
    ),
    "AmazonReviewsClassification": Source(
        "mteb/AmazonReviewsClassification",
        "6b5d328eaae8ef408dd7d775040245cf86f92e9d",
        "en",
        validation=True,
    ),
    "Banking77Classification": Source("mteb/banking77", "0fd18e25b25c072e09e0d92ab615fda904d66300"),
    "EmotionClassification": Source(
        "mteb/emotion", "4f58c6b202a23cf9a4da393831edf4f9183cad37", draws=16, validation=True
    ),
    "ImdbClassification": Source("mteb/imdb", "3d86128a09e091d6018b6d26cad27f2739fc2db7"),
    "MassiveIntentClassification": Source(
        "mteb/amazon_massive_intent",
        "4672e20407010da34463acc759c162ca9734bca6",
        "en",
        validation=True,
    ),
    "MassiveScenarioClassification": Source(
        "mteb/amazon_massive_scenario",
        "fad2c6e8459f9e1c45d9315f4953d921437d70f8",
        "en",
        validation=True,
    ),
    "MTOPDomainClassification": Source(
        "mteb/MTOPDomainClassification",
        "a76d16fae880597b9c73047b50159220a441cb54",
        "en",
        validation=True,
    ),
    "MTOPIntentClassification": Source(
        "mteb/MTOPIntentClassification",
        "2992d820f31312593c49a4890430aadadb0f0039",
        "en",
        validation=True,
    ),
    "ToxicConversationsClassification": Source(
        "mteb/toxic_conversations_50k",
        "edfaf9da55d3dd50d43143d90c1ac476895ae6de",
        draws=16,
        test_rows=2048,
    ),
    "TweetSentimentExtractionClassification": Source(
        "mteb/tweet_sentiment_extraction", "d604517c81ca91fe16a244d1248fc021f9ecee7a", draws=32
    ),
}


@dataclass(frozen=True)
class Split:
    """The rows of one split, in their own order.

    Attributes:
        name: what to call it in messages.
        rows: a `datasets.Dataset` with the columns `text` and `label`.
    """

    name: str
    rows: Any

    def __len__(self) -> int:
        return len(self.rows)

    @cached_property
    def labels(self) -> np.ndarray:
        """`(n,)` labels, integers or strings as the data have them."""
        return np.asarray(self.rows["label"][:])

    def texts(self, rows: Sequence[int] | None = None) -> list[str]:
        """The texts of some rows (default: all), checked to be texts."""
        chosen = self.rows if rows is None else self.rows.select(rows)
        texts = chosen["text"][:]
        numbers = range(len(texts)) if rows is None else rows
        check_texts(texts, self.name, numbers=numbers, allow_empty=True)
        return texts


@dataclass(frozen=True)
class Task:
    """A classification task.

    Attributes:
        train: MTEB's train split, whole; the protocol draws from it.
        training_rows: rows of `train` that training may use (all, or all but the held-out ones).
        validation: what training watches; held out of `train` where the task has none.
        samples_per_label: texts of each label that one protocol experiment draws.
        notes: what a reader of the scores should know, one sentence each.
        fingerprint: determined by the data.
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

    def held_out(self) -> np.ndarray:
        """`(validation,)` the row of train that each validation text is, or -1."""
        rows = np.setdiff1d(np.arange(len(self.train)), self.training_rows)
        return rows if len(rows) else np.full(len(self.validation), -1)

    @cached_property
    def repeated_test(self) -> np.ndarray:
        """`(test,)` whether train has the text of a row too, but for case, marks and spaces."""
        return _among(self.test.texts(), self.train.texts())

    @cached_property
    def repeated_validation(self) -> np.ndarray:
        """`(validation,)` likewise, of the rows of train that are not held out."""
        return _among(self.validation.texts(), self.train.texts(self.training_rows))


def _among(texts: Sequence[str], others: Sequence[str]) -> np.ndarray:
    """`(texts,)` whether each text is among the others."""
    contents = set(map(_content, others))
    return np.array([_content(text) in contents for text in texts], bool)


def _content(text: str) -> int:
    """A number for the letters and digits of a text; all of it counts if it has none."""
    kept = "".join(letter for letter in text.casefold() if letter.isalnum()) or text
    return int.from_bytes(hashlib.blake2b(kept.encode(), digest_size=8).digest())


def task_of(experiment: Experiment) -> Task:
    """The task of an Experiment; raises InputError as `load_task` does."""
    return load_task(
        experiment.task,
        data=experiment.task_data,
        text_column=experiment.text_column,
        label_column=experiment.label_column,
        samples_per_label=experiment.samples_per_label,
    )


def task_from(texts: Sequence[str], labels: Sequence[Any]) -> Task:
    """A task to train on: a tenth of the texts is held out; the test split is the texts again.

    Raises:
        InputError: texts or labels that cannot be used.
    """
    import datasets

    texts = listed(texts)
    # Not by way of NumPy, which would turn what does not fit into text.
    labels = [one.item() if isinstance(one, np.generic) else one for one in labels]
    check_texts(texts, "texts")
    if len(texts) != len(labels):
        raise InputError(f"there are {len(texts)} texts, but {len(labels)} labels")
    rows = {"text": texts, "label": check_labels(labels, "labels").tolist()}
    split = Split("texts", datasets.Dataset.from_dict(rows))
    splits = {"train": split, "test": split}
    notes = _check_labels(splits, DEFAULT_DRAWS, strict=True)
    return _with_validation("texts", splits, DEFAULT_DRAWS, notes, _fingerprint({"train": split}))


def load_task(
    name: str,
    *,
    data: str | None = None,
    text_column: str = "text",
    label_column: str = "label",
    samples_per_label: int | None = None,
) -> Task:
    """A task by its MTEB name, `sample`, `sample_emotion`, or the path of local data.

    Args:
        name: the task.
        data: a local folder or file that holds the named task's data.
        text_column: the text column of local data.
        label_column: the label column of local data.
        samples_per_label: overrides the task's own number of draws.

    Raises:
        InputError: unknown task, no network, or data that cannot be used; names file and rows.
    """
    source = MTEB_TASKS.get(name)
    draws = samples_per_label or (source.draws if source else DEFAULT_DRAWS)
    from_hub = source is not None and data is None
    if from_hub:
        splits, fingerprint = _from_hub(name, source), f"{source.path}@{source.revision}"
    else:
        path = Path(data or SAMPLES.get(name, name))
        columns = (text_column, label_column)
        splits = _from_disk(path, name, columns, named_path=data is not None)
        fingerprint = _fingerprint(splits)
    notes = _check_labels(splits, draws, strict=not from_hub)
    return _with_validation(Path(name).resolve().name, splits, draws, notes, fingerprint)


def _from_hub(name: str, source: Source) -> dict[str, Split]:
    """The English splits at MTEB's pinned revision, memory-mapped."""
    import datasets

    try:
        found = datasets.load_dataset(source.path, source.subset, revision=source.revision)
    except Exception as error:  # many kinds, by the version of datasets
        raise InputError(
            f"{name} cannot be loaded from the hub ({type(error).__name__}): switch the network "
            "on, or set task_data to a folder with train and test files"
        ) from None
    wanted = ("train", "validation", "test") if source.validation else ("train", "test")
    splits = {split: found[split].select_columns(["text", "label"]) for split in wanted}
    if source.test_rows and len(splits["test"]) > source.test_rows:
        splits["test"] = _mteb_subsample(splits["test"], source.test_rows)
    return {split: Split(f"{name}, {split}", rows) for split, rows in splits.items()}


def _mteb_subsample(rows: Any, count: int) -> Any:
    """The stratified sample that MTEB takes of a large test split (its seed is 42)."""
    encoded = rows.add_column("row", list(range(len(rows)))).class_encode_column("label")
    chosen = encoded.train_test_split(test_size=count, seed=42, stratify_by_column="label")["test"]
    return rows.select(chosen["row"])


def _from_disk(
    path: Path, name: str, columns: tuple[str, str], *, named_path: bool
) -> dict[str, Split]:
    """The splits of local data; a name that is neither a task nor a path is told with a guess."""
    import datasets

    if not named_path and not exists(path):
        near = [one for one in MTEB_TASKS if one.lower().startswith(name.lower())]
        near = near or difflib.get_close_matches(name, MTEB_TASKS, n=1)
        guess = f"; did you mean {near[0]!r}?" if near else "."
        raise InputError(
            f"task: there is no task, folder or file {name!r}{guess} "
            f"Give a path, or one of {', '.join([*SAMPLES, *MTEB_TASKS])}"
        )
    return {
        split: Split(where, datasets.Dataset.from_dict({"text": texts, "label": labels.tolist()}))
        for split, (where, texts, labels) in read_local(path, *columns).items()
    }


def _check_labels(splits: dict[str, Split], draws: int, *, strict: bool) -> list[str]:
    """Notes on the labels; on local data, a label that training never sees is an error."""
    counts = Counter(splits["train"].labels.tolist())
    if len(counts) < 2:
        raise InputError(f"{splits['train'].name} has only one label, {next(iter(counts))!r}")
    notes = []
    for split in splits.values():
        if unseen := sorted(set(split.labels.tolist()) - set(counts), key=str):
            told = f"{split.name}: label(s) {', '.join(map(repr, unseen))} do not occur in train"
            if strict:
                raise InputError(f"{told}: add training texts for them or take these rows out")
            notes.append(f"{told} and can never be predicted")
    for label, count in sorted(counts.items(), key=str):
        if count < draws:
            notes.append(
                f"label {label!r} has {count} training texts, fewer than the {draws} that the "
                "protocol draws: it always takes them all"
            )
    return notes


def _with_validation(
    name: str,
    splits: dict[str, Split],
    draws: int,
    notes: list[str],
    fingerprint: str,
) -> Task:
    """The Task, with validation rows held out of train where it has no such split."""
    train = splits["train"]
    training_rows = np.arange(len(train))
    validation = splits.get("validation")
    if validation is None:
        count = max(1, round(HELD_OUT * len(train)))
        held_out = stratified_rows(train.labels, count, SPLIT_SEED, leave_one=True)
        training_rows = np.setdiff1d(training_rows, held_out)
        validation = Split(f"{train.name}, held out", train.rows.select(held_out))
        notes = [*notes, f"no validation split: {len(held_out)} of train's texts are held out"]
    return Task(
        name=name,
        train=train,
        training_rows=training_rows,
        validation=validation,
        test=splits["test"],
        samples_per_label=draws,
        notes=tuple(notes),
        fingerprint=fingerprint,
    )


def _fingerprint(splits: dict[str, Split]) -> str:
    """SHA-256 over the texts and labels of local data."""
    digest = hashlib.sha256()
    for split, rows in splits.items():
        content = [split, rows.texts(), rows.labels.tolist()]
        digest.update(json.dumps(content).encode())
    return digest.hexdigest()

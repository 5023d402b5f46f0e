"""The 12 English classification tasks of MTEB's first benchmark, and their data on the hub."""

from pathlib import Path
from typing import Any, NamedTuple

from embedder_helpers.errors import InputError
from embedder_helpers.utils.files import path_exists

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


def load_from_hub(name: str, source: TaskSource) -> dict[str, Any]:
    """The English splits at MTEB's pinned revision: memory-mapped `datasets.Dataset`s.

    Raises:
        InputError: they cannot be loaded, or a local folder would be read in their place.
    """
    import datasets

    if path_exists(Path(source.path)):
        raise InputError(
            f"datasets would read the folder {source.path} here instead of {name} from the hub: "
            "start in another folder, or set task_data to that one"
        )
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
    return splits


def _mteb_subsample(rows: Any, count: int) -> Any:
    """The stratified sample that MTEB takes of a large test split (its seed is 42)."""
    encoded = rows.add_column("row", list(range(len(rows)))).class_encode_column("label")
    sample = encoded.train_test_split(test_size=count, seed=42, stratify_by_column="label")["test"]
    return rows.select(sample["row"])

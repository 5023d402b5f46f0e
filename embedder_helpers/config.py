"""The Experiment: everything that determines a result, read from a YAML file and overrides.

Every key is checked when the Experiment is made; what only a model or a data set can tell (how many
blocks there are, say) is checked by the module that loads it, still before any long work.
"""

import contextlib
import dataclasses
import difflib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import yaml

PACKAGE = Path(__file__).resolve().parent


def carried(in_wheel: str, in_clone: str) -> Path:
    """A folder that a wheel carries inside the package, and a clone has beside it."""
    inside = PACKAGE / in_wheel
    return inside if inside.is_dir() else PACKAGE.parent / in_clone


CONFIG_FOLDER = carried("configs", "configs")


class InputError(ValueError):
    """What a person gave cannot be used; the message says what, where and what to do."""


class Rule(NamedTuple):
    """What a key may hold: in words, and as a function that gives the value or raises."""

    allowed: str
    accept: Callable[[Any], Any]


def one_of(*values: str) -> Rule:
    """One of a few words."""

    def accept(value):
        if value not in values:
            raise ValueError
        return value

    return Rule("one of " + ", ".join(values), accept)


def whole(minimum: int, maximum: float = math.inf) -> Rule:
    """A whole number in a closed range."""

    def accept(value):
        if type(value) is not int or not minimum <= value <= maximum:
            raise ValueError
        return value

    upper = "" if maximum == math.inf else f" and at most {maximum}"
    return Rule(f"a whole number of at least {minimum}{upper}", accept)


def positive() -> Rule:
    """A finite number above zero; YAML reads 1e-5 as text, so text that is a number will do."""

    def accept(value):
        if isinstance(value, bool):
            raise ValueError
        number = float(value)
        if not (math.isfinite(number) and number > 0):
            raise ValueError
        return number

    return Rule("a number above 0", accept)


def share() -> Rule:
    """A number from 0 to below 1."""

    def accept(value):
        if isinstance(value, bool) or not 0 <= float(value) < 1:
            raise ValueError
        return float(value)

    return Rule("a number from 0 to below 1", accept)


def text() -> Rule:
    """Text that is not empty."""

    def accept(value):
        if isinstance(value, Path):
            value = str(value)
        if not isinstance(value, str) or not value.strip():
            raise ValueError
        return value

    return Rule("a text", accept)


def flag() -> Rule:
    """True or false."""

    def accept(value):
        if not isinstance(value, bool):
            raise ValueError
        return value

    return Rule("true or false", accept)


def flag_or(word: str) -> Rule:
    """True, false or a word."""

    def accept(value):
        if not isinstance(value, bool) and value != word:
            raise ValueError
        return value

    return Rule(f"true, false or {word}", accept)


def cutoff_or_list() -> Rule:
    """A cutoff in either spelling, or several, or `auto`; the model tells how many there are."""

    def accept(value):
        if value == "auto":
            return value
        several = isinstance(value, (list, tuple))
        numbers = list(value) if several else [value]
        if not numbers or any(type(number) is not int or number == 0 for number in numbers):
            raise ValueError
        return tuple(numbers) if several else value

    words = "a whole number from 1 to the number of Gemma's blocks, or from -1 (all blocks) down"
    return Rule(f"{words}, or a list of such numbers that is not empty, or auto", accept)


def optional(rule: Rule) -> Rule:
    """The rule, or null."""
    return Rule(
        f"{rule.allowed}, or null", lambda value: None if value is None else rule.accept(value)
    )


def key(default: Any, rule: Rule, about: str) -> Any:
    """A field of Experiment with its rule and its documentation."""
    return field(default=default, metadata={"rule": rule, "about": about})


KINDS = ("hybrid", "gemma_only", "roberta_only")

DATA_KEYS = ("task", "task_data", "text_column", "label_column", "samples_per_label")
TASK_KEYS = (*DATA_KEYS, "scored_split", "max_tokens", "pooling")
GEMMA_KEYS = ("llm_preset", "llm_layers", "final_norm")
PROJECTION_KEYS = ("fusion", "projection", "projection_start")
ROBERTA_KEYS = ("slm_preset", "epochs")
SPLIT_KEYS = ("train_split", "max_train_texts")
TRAINING_KEYS = (
    "batch_size",
    "learning_rate",
    "projection_learning_rate",
    "warmup",
    "clip_norm",
    "patience",
    "class_weights",
    *SPLIT_KEYS,
)


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """Everything that determines one result.

    Raises:
        InputError: a value of the wrong type or impossible; names key, value and what is allowed.
    """

    task: str = key(
        "sample",
        text(),
        "an MTEB task by its MTEB name, `sample` or `sample_emotion` (built in), or the path of a "
        "folder or file",
    )
    task_data: str | None = key(
        None, optional(text()), "a local folder or file to read the named task from, not the hub"
    )
    text_column: str = key("text", text(), "name of the text column of local data")
    label_column: str = key("label", text(), "name of the label column of local data")
    samples_per_label: int | None = key(
        None,
        optional(whole(1)),
        "texts of each label that one protocol experiment draws; null: the task's own (8 if local)",
    )
    kind: str = key("hybrid", one_of(*KINDS), "the embedder")
    llm_preset: str = key(
        "tiny_gemma",
        text(),
        "Gemma: `tiny_gemma` (built in), a Keras preset, an hf:// or kaggle:// handle, a folder",
    )
    llm_layers: int | tuple[int, ...] | str = key(
        -1,
        cutoff_or_list(),
        "the cutoff: 1 … n counts kept blocks, -1 … -n is the Layer Number; a list is pooled; "
        "`auto` takes the one whose states a linear classifier reads best, before any training",
    )
    layer_pooling: str = key(
        "mean",
        one_of("mean", "max", "learned"),
        "how several cutoffs become one state per token; `learned` trains a softmax weight each",
    )
    final_norm: str = key(
        "rms",
        one_of("rms", "learned", "last", "none"),
        "norm behind each cutoff: `rms` without a scale, Gemma's `learned` final norm, "
        "`last` = learned behind the last block only, `none` = the raw residual stream",
    )
    fusion: str = key(
        "replace",
        one_of("replace", "add", "prepend"),
        "how projected states enter RoBERTa: in the place of its token embeddings, added to them "
        "token by token, or as tokens in front of them",
    )
    projection: str = key("linear", one_of("linear", "mlp"), "the projection into RoBERTa's space")
    projection_start: str | None = key(
        None,
        optional(one_of("ridge", "zero", "random")),
        "the projection before training: `ridge`, the closed-form map into RoBERTa's embeddings, "
        "behind a gate that starts closed if added to them; `zero`, only if added; or `random`; "
        "null: `zero` if added, else `ridge`",
    )
    state_dropout: float = key(0.0, share(), "share of the states' values that training leaves out")
    probe: bool = key(
        False, flag(), "gemma_only: score a logistic regression on all training texts as head"
    )
    slm_preset: str = key(
        "tiny_roberta",
        text(),
        "RoBERTa: `tiny_roberta` (built in), a Keras preset, a handle, a folder",
    )
    pooling: str = key(
        "mean",
        one_of("mean", "max", "first", "last"),
        "how token states become one embedding; padding never counts",
    )
    max_tokens: int = key(
        256, whole(3), "tokens of a text that are read, special tokens included; the rest is cut"
    )
    seed: int = key(33, whole(0, 2**32 - 1), "seed of weights, dropout and batches")
    epochs: int = key(3, whole(0), "passes over the training texts; 0 leaves RoBERTa untrained")
    batch_size: int = key(32, whole(1), "texts per training step")
    learning_rate: float = key(5e-5, positive(), "AdamW's highest rate for RoBERTa; a cosine to 0")
    projection_learning_rate: float = key(
        1e-4, positive(), "AdamW's highest rate for projection and head"
    )
    warmup: float = key(0.1, share(), "share of the steps in which both rates rise from 0")
    clip_norm: float | None = key(
        1.0, optional(positive()), "norm of all gradients beyond which a step is scaled down"
    )
    patience: int | None = key(
        None,
        optional(whole(1)),
        "epochs without a better validation accuracy that end the training, and the best epoch's "
        "weights are taken; null: train them all and take the last",
    )
    class_weights: bool = key(False, flag(), "weigh each label's texts by how rare they are")
    scored_split: str = key(
        "test",
        one_of("test", "validation"),
        "split that scores are of; `validation` to choose settings by, so that test stays unseen",
    )
    train_split: str = key(
        "train",
        one_of("train", "validation"),
        "split to train on; `validation` (the original study's) swaps the two splits' roles",
    )
    max_train_texts: int | None = key(
        None, optional(whole(2)), "train on this many texts at most, drawn by label; null: all"
    )

    save_embedder: bool | str = key(
        False,
        flag_or("with_gemma"),
        "leave the embedder beside its result, in a folder `embedder-…` that `load` reads; "
        "`with_gemma` puts the cut Gemma inside",
    )
    states_dir: str | None = key(
        None,
        optional(text()),
        "folder for Gemma's states, which all experiments share; null: a scratch folder",
    )
    states_gigabytes: float | None = key(
        None, optional(positive()), "size limit of that folder; null: the free disk, less 2 GB"
    )
    stream_blocks: bool = key(
        False, flag(), "keep one Gemma block at a time in memory, for models larger than the device"
    )
    tracking: str | None = key(
        None,
        optional(one_of("tensorboard", "mlflow", "wandb")),
        "what is told of each training epoch, beside the file in `curves/`; null: nothing else",
    )

    def __post_init__(self):
        for one in dataclasses.fields(self):
            value = getattr(self, one.name)
            rule = one.metadata["rule"]
            try:
                accepted = rule.accept(value)
            except (ValueError, TypeError, OverflowError):
                raise InputError(f"{one.name} is {value!r}, but must be {rule.allowed}") from None
            object.__setattr__(self, one.name, accepted)
        if self.projection_start == "zero" and self.fusion != "add":
            raise InputError(
                f"projection_start is 'zero', but fusion is {self.fusion!r}: all states would "
                "look alike; use ridge or random"
            )
        if self.fusion == "prepend" and self.pooling == "first":
            raise InputError(
                "pooling is 'first', but fusion is 'prepend', which puts Gemma's states first: use "
                "mean, max or last"
            )
        if self.train_split == self.scored_split:
            raise InputError(
                "train_split and scored_split are both 'validation', so scores would be of texts "
                "that were trained on: score the test split"
            )
        if self.kind == "gemma_only" and self.layer_pooling == "learned":
            raise InputError(
                "layer_pooling is 'learned', but gemma_only trains nothing: use mean or max"
            )

    def determining(self) -> dict[str, Any]:
        """The keys that determine the result of this kind: Gemma alone has no epochs, say."""
        names = ("kind", *TASK_KEYS)
        if self.kind != "roberta_only":
            names += GEMMA_KEYS
            # One cutoff needs no pooling.
            names += ("layer_pooling",) if _several(self.llm_layers) else ()
        if self.kind == "hybrid":
            names += PROJECTION_KEYS + (("state_dropout",) if self.epochs else ())
        if self.kind == "gemma_only":
            names += ("probe",)
        if self.kind != "gemma_only":
            names += ROBERTA_KEYS + (TRAINING_KEYS if self.epochs else ())
        if self.reads_training_texts() and not set(SPLIT_KEYS) <= set(names):
            names += SPLIT_KEYS
        if self.kind == "hybrid" or (self.kind == "roberta_only" and self.epochs):
            names += ("seed",)
        values = {name: getattr(self, name) for name in names}
        if "projection_start" in values:
            values["projection_start"] = self.start()
        return values

    def start(self) -> str:
        """How the projection starts, `null` resolved."""
        return self.projection_start or ("zero" if self.fusion == "add" else "ridge")

    def reads_training_texts(self) -> bool:
        """Whether anything is learned or chosen beside the protocol's own classifiers."""
        if self.kind == "gemma_only":
            return self.chooses() or self.probe
        starts = self.kind == "hybrid" and self.start() == "ridge"
        return self.chooses() or starts or self.epochs > 0

    def chooses(self) -> bool:
        """Whether the cutoff is chosen from the states."""
        return self.kind != "roberta_only" and self.llm_layers == "auto"

    def as_dict(self) -> dict[str, Any]:
        """Every key, with lists where JSON and YAML have lists."""
        values = dataclasses.asdict(self)
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in values.items()
        }


def _several(llm_layers: int | tuple[int, ...] | str) -> bool:
    return isinstance(llm_layers, tuple) and len(llm_layers) > 1


def make_experiment(values: Mapping[str, Any], where: str = "experiment") -> Experiment:
    """An Experiment from keys and values.

    Args:
        values: the keys to set; the others keep their defaults.
        where: what the keys were read from, for messages.

    Raises:
        InputError: an unknown key (with the nearest known one), or a value that is not allowed.
    """
    known = [one.name for one in dataclasses.fields(Experiment)]
    for name in values:
        if name not in known:
            near = difflib.get_close_matches(str(name), known, n=1, cutoff=0.5)
            guess = f"; did you mean {near[0]!r}?" if near else "."
            raise InputError(
                f"{where}: unknown key {str(name)!r}{guess} Known keys: {', '.join(known)}"
            )
    try:
        return Experiment(**values)
    except InputError as error:
        raise InputError(f"{where}: {error}") from None


def find_config(config: str | Path) -> Path:
    """The file that a path, or a name in `configs/`, stands for."""
    for path in (Path(config), CONFIG_FOLDER / f"{config}.yaml"):
        with contextlib.suppress(OSError):  # a name too long for a file
            if path.is_file():
                return path
    names = sorted(path.stem for path in CONFIG_FOLDER.glob("*.yaml"))
    near = difflib.get_close_matches(Path(config).stem, names, n=1)
    guess = f"; did you mean {near[0]!r}?" if near else "."
    raise InputError(
        f"no config file {str(config)!r}{guess} Give a path, or one of: {', '.join(names)}"
    )


def read_config(path: Path) -> dict[str, Any]:
    """The keys and values of a YAML file."""
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, ValueError) as error:  # PyYAML's own for 2024-13-45, and bad UTF-8
        reason = " ".join(str(error).split())
        raise InputError(f"{path} is not YAML: {reason}") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from None
    if not isinstance(values, dict):
        raise InputError(f"{path} must hold `key: value` lines, such as `task: sample`")
    return values


def parse_override(setting: str) -> tuple[str, Any]:
    """`key=value` of a command line, the value read as YAML reads it."""
    name, equals, value = setting.partition("=")
    if not equals or not name.strip():
        raise InputError(f"--set {setting!r}: write key=value, such as --set llm_layers=10")
    try:
        return name.strip(), yaml.safe_load(value)
    except (yaml.YAMLError, ValueError):
        raise InputError(f"--set {setting!r}: the value is not YAML") from None


def cutoffs(llm_layers: int | tuple[int, ...] | str, blocks: int) -> tuple[int, ...]:
    """Cutoffs counted from the bottom, 1 … blocks, in rising order.

    Args:
        llm_layers: as in the Experiment; -1 is the last block, -2 the one before it; `auto` may
            be any.
        blocks: how many blocks the model has.

    Raises:
        InputError: a cutoff beyond the model, or one named twice.
    """
    if llm_layers == "auto":
        return tuple(range(1, blocks + 1))
    numbers = llm_layers if isinstance(llm_layers, tuple) else (llm_layers,)
    for number in numbers:
        if abs(number) > blocks:
            raise InputError(
                f"llm_layers is {number}, but this Gemma has {blocks} blocks: "
                f"use 1 … {blocks}, or -1 … -{blocks}"
            )
    found = sorted(number if number > 0 else blocks + 1 + number for number in numbers)
    if len(set(found)) < len(found):
        raise InputError(f"llm_layers is {list(numbers)}, which names a block twice")
    return tuple(found)

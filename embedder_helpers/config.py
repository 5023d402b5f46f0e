"""The Experiment: every setting that determines a result, checked when it is made.

One list of settings: a field of `Experiment` carries its rule, its documentation, its group, the
kinds of embedder it matters to, and whether a saved embedder needs it. What depends on a model or
data set (the number of layers, say) is checked by the module that loads it.
"""

import dataclasses
import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from embedder_helpers.errors import InputError, check_characters, show
from embedder_helpers.setting_rules import (
    SELECTED,
    Rule,
    cutoff_or_list,
    flag,
    flag_or,
    fraction,
    integer,
    one_of,
    optional,
    positive,
    text,
    without_numpy,
)

# The names that `fusion` takes; `models.layers.register_fusion` appends to it.
FUSION_NAMES = ["replace", "add", "prepend"]

KINDS = ("hybrid", "gemma_only", "roberta_only", "encoder_only")
WITH_GEMMA = ("hybrid", "gemma_only")
WITH_ROBERTA = ("hybrid", "roberta_only")
FROZEN = ("gemma_only", "encoder_only")  # nothing of them is trained, but a probe may be
POOLED = ("hybrid", "gemma_only", "roberta_only")  # by `pooling`; an encoder pools by itself
TABLE_ORDER = ("roberta_only", "gemma_only", "encoder_only", "hybrid")


class Setting(NamedTuple):
    """What is known of one setting.

    Attributes:
        rule: allowed values.
        about: documentation.
        group: heading on the page of settings.
        kinds: kinds of embedder whose results it affects; empty: none.
        when: function that returns whether it affects a result of those kinds; None: always.
        fingerprinted: whether it names an input whose content is part of a result's fingerprint.
        saved: whether a saved embedder needs it to be rebuilt.
    """

    rule: Rule
    about: str
    group: str
    kinds: tuple[str, ...] = KINDS
    when: Callable[["Experiment"], bool] | None = None
    fingerprinted: bool = False
    saved: bool = False


def key(default: Any, *values: Any, **options: Any) -> Any:
    """A field of Experiment; the arguments are those of `Setting`."""
    return field(default=default, metadata={"setting": Setting(*values, **options)})


def _trains(experiment: "Experiment") -> bool:
    return experiment.kind in WITH_ROBERTA and experiment.epochs > 0


def _is_contrastive(experiment: "Experiment") -> bool:
    return _trains(experiment) and experiment.objective == "contrastive"


def _is_seeded(experiment: "Experiment") -> bool:
    return experiment.kind == "hybrid" or _trains(experiment) or _draws_texts(experiment)


def _pools_layers(experiment: "Experiment") -> bool:
    return isinstance(experiment.llm_layers, tuple) and len(experiment.llm_layers) > 1


def _needs_training_data(experiment: "Experiment") -> bool:
    return experiment.needs_training_data()


def _draws_texts(experiment: "Experiment") -> bool:
    return experiment.needs_training_data() and experiment.train_texts_per_label is not None


def _is_control(experiment: "Experiment") -> bool:
    return experiment.llm_control is not None


# What several settings have in common.
TASK = "Task"  # the group of the settings that determine the task
GEMMA = {"group": "Gemma", "kinds": WITH_GEMMA, "saved": True}
FUSION = {"group": "Projection and fusion", "kinds": ("hybrid",), "saved": True}
TRAINING = {"group": "Training", "kinds": WITH_ROBERTA, "when": _trains}
CONTRASTIVE = {**TRAINING, "when": _is_contrastive}
STORAGE = {"group": "Output and storage", "kinds": ()}


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """Every setting that determines one result.

    Raises:
        InputError: a value of the wrong type or out of range; names setting, value and rule.
    """

    task: str = key(
        "sample",
        text(),
        "an MTEB task by its MTEB name, `sample` or `sample_emotion` (built in), or the path of a "
        "folder or file",
        TASK,
        fingerprinted=True,
    )
    task_data: str | None = key(
        None,
        optional(text()),
        "a local folder or file to read the named task from, instead of the hub",
        TASK,
        fingerprinted=True,
    )
    text_column: str = key(
        "text", text(), "name of the text column of local data", TASK, fingerprinted=True
    )
    label_column: str = key(
        "label", text(), "name of the label column of local data", TASK, fingerprinted=True
    )
    samples_per_label: int | None = key(
        None,
        optional(integer(1)),
        "texts per label that one run of the protocol samples; null: the task's own (8 if local)",
        TASK,
    )
    kind: str = key("hybrid", one_of(KINDS), "the kind of embedder", "Embedder", saved=True)
    llm_preset: str = key(
        "tiny_gemma",
        text(),
        "Gemma: `tiny_gemma` (built in), a Keras preset, an hf:// or kaggle:// handle, a folder",
        **GEMMA,
        fingerprinted=True,
    )
    llm_layers: int | tuple[int, ...] | str = key(
        -1,
        cutoff_or_list(),
        "the cutoff, the number of layers kept: 1 … n, or -1 … -n as in the original study's Layer "
        "Number; a list is pooled; `auto` selects the layer whose hidden states a linear "
        "classifier reads best, before any training, `cheapest` the first that cannot be told "
        "from it",
        **GEMMA,
    )
    layer_pooling: str = key(
        "mean",
        one_of(("mean", "max", "learned")),
        "how the hidden states of several cutoffs become one per token; `learned` trains a softmax "
        "weight for each",
        **GEMMA,
        when=_pools_layers,
    )
    final_norm: str = key(
        "rms",
        one_of(("rms", "learned", "last", "none")),
        "norm after the cutoff: `rms` without a scale, Gemma's `learned` final norm, "
        "`last` = learned after the last layer only, `none` = the raw residual stream",
        **GEMMA,
    )
    llm_dtype: str = key(
        "auto",
        one_of(("auto", "float32", "bfloat16", "float16")),
        "the precision of Gemma's matrix products; `auto`: half precision on devices that multiply "
        "it faster, bfloat16 if they have it, else float16",
        **GEMMA,
    )
    llm_control: str | None = key(
        None,
        optional(one_of(("random_weights", "shuffled", "noise"))),
        "a control in place of what Gemma knows: `random_weights` of the same shape; its hidden "
        "states `shuffled` among the texts; `noise` of their mean and covariance; null: none",
        "Gemma",
        WITH_GEMMA,
        when=_is_control,
    )
    fusion: str = key(
        "add",
        one_of(FUSION_NAMES),
        "how projected hidden states enter RoBERTa: in place of its token embeddings, added to "
        "them token by token, or as extra tokens before them",
        **FUSION,
    )
    projection: str = key(
        "linear",
        one_of(("linear", "mlp")),
        "the projection into RoBERTa's embedding space",
        **FUSION,
    )
    projection_start: str | None = key(
        None,
        optional(one_of(("ridge", "zero", "random"))),
        "how the projection is initialized: `ridge`, the closed-form map into RoBERTa's "
        "embeddings, with a gate that starts closed if they are added; `zero`, for `add` only; or "
        "`random`; null: `zero` for `add`, else `ridge`",
        **FUSION,
    )
    late_fusion: bool = key(
        True,
        flag(),
        "put Gemma's own embedding (the mean of its hidden states, as they are fused, through a "
        "norm and a dense layer) beside RoBERTa's, which doubles the width",
        **FUSION,
    )
    state_dropout: float = key(
        0.0,
        fraction(),
        "dropout rate on hidden states in training",
        "Projection and fusion",
        ("hybrid",),
        when=_trains,
    )
    probe: bool = key(
        False,
        flag(),
        "gemma_only and encoder_only: also fit a logistic regression on all training texts, "
        "reported as the head",
        "Evaluation",
        FROZEN,
    )
    slm_preset: str = key(
        "tiny_roberta",
        text(),
        "RoBERTa: `tiny_roberta` (built in), a Keras preset, a handle, a folder",
        "RoBERTa",
        WITH_ROBERTA,
        fingerprinted=True,
        saved=True,
    )
    encoder_preset: str = key(
        "tiny_roberta",
        text(),
        "encoder_only: any ready text encoder, scored as it is: a sentence-transformers model "
        "(name, or folder; needs the extra `encoders`), or a text encoder of keras-hub (preset, "
        "kaggle:// handle, folder)",
        "Encoder",
        ("encoder_only",),
        fingerprinted=True,
    )
    pooling: str = key(
        "mean",
        one_of(("mean", "max", "first", "last")),
        "how the last hidden states of the tokens are pooled into one embedding; padding is "
        "ignored",
        "Embedder",
        POOLED,
        saved=True,
    )
    max_tokens: int = key(
        256,
        integer(3),
        "maximum number of tokens per text, special tokens included; longer texts are truncated, "
        "at a ready encoder's own maximum if that is lower",
        "Texts",
        saved=True,
    )
    seed: int = key(
        33,
        integer(0, 2**32 - 1),
        "seed of weights, dropout and batches",
        "Embedder",
        when=_is_seeded,
    )
    epochs: int = key(
        5,
        integer(0),
        "passes over the training texts; 0 leaves RoBERTa untrained",
        group="Training",
        kinds=WITH_ROBERTA,
    )
    objective: str = key(
        "contrastive",
        one_of(("cross_entropy", "contrastive")),
        "the loss: the head's cross-entropy, or with it the supervised contrastive loss of the "
        "embeddings, by which texts of one label come to lie together",
        **TRAINING,
    )
    contrastive_weight: float = key(
        1.0, positive(), "factor of the contrastive loss, beside cross-entropy's 1", **CONTRASTIVE
    )
    contrastive_temperature: float = key(
        0.1,
        positive(),
        "temperature of the contrastive loss: the lower, the more the nearest texts count",
        **CONTRASTIVE,
    )
    batch_size: int = key(
        32,
        integer(1),
        "texts per training step, to which a contrastive objective may add up to two",
        **TRAINING,
    )
    learning_rate: float = key(
        5e-5, positive(), "AdamW's peak learning rate for RoBERTa; cosine decay to 0", **TRAINING
    )
    projection_learning_rate: float = key(
        1e-4, positive(), "AdamW's peak learning rate for projection and head", **TRAINING
    )
    warmup: float = key(
        0.1,
        fraction(),
        "fraction of the steps over which both learning rates rise from 0",
        **TRAINING,
    )
    clip_norm: float | None = key(
        1.0,
        optional(positive()),
        "global gradient norm above which a step is scaled down",
        **TRAINING,
    )
    patience: int | None = key(
        None,
        optional(integer(1)),
        "epochs without a better validation accuracy after which training stops and the best "
        "epoch's weights are restored; null: run all epochs and keep the last",
        **TRAINING,
    )
    class_weights: bool = key(
        False, flag(), "weight the loss by inverse label frequency", **TRAINING
    )
    scored_split: str = key(
        "test",
        one_of(("test", "validation")),
        "split that is scored; use `validation` to choose settings, so that test stays unseen",
        "Evaluation",
    )
    train_split: str = key(
        "train",
        one_of(("train", "validation")),
        "split to train on; `validation` (as in the original study) swaps the two splits' roles",
        "Texts",
        when=_needs_training_data,
    )
    max_train_texts: int | None = key(
        None,
        optional(integer(2)),
        "train on at most this many texts, a stratified sample; null: all",
        "Texts",
        when=_needs_training_data,
    )

    train_texts_per_label: int | None = key(
        None,
        optional(integer(1)),
        "train on at most this many texts of each label, drawn by the seed from those of "
        "`max_train_texts`; a smaller draw is part of a larger one, and as many texts are "
        "validated on; null: all",
        "Texts",
        when=_draws_texts,
    )

    save_embedder: bool | str = key(
        False,
        flag_or("with_gemma"),
        "save the embedder beside its result, in a folder `embedder-…` that `load_embedder` "
        "reads; `with_gemma` includes the truncated Gemma",
        **STORAGE,
    )
    save_predictions: bool = key(
        False,
        flag(),
        "save what the classifier says of each text beside the result, in a folder `predictions`",
        **STORAGE,
    )
    states_dir: str | None = key(
        None,
        optional(text()),
        "folder for the hidden-state cache, shared by all experiments; null: a scratch folder",
        **STORAGE,
    )
    states_gigabytes: float | None = key(
        None,
        optional(positive()),
        "size limit of that folder; null: the free disk space less 2 GB, or a tenth of it if that "
        "is more",
        **STORAGE,
    )
    stream_blocks: bool = key(
        False,
        flag(),
        "keep one Gemma layer at a time in memory, for models larger than the device",
        **STORAGE,
    )
    tracking: str | None = key(
        None,
        optional(one_of(("tensorboard", "mlflow", "wandb"))),
        "experiment tracker that gets every epoch, besides the file in `curves/`; null: none",
        **STORAGE,
    )

    def __post_init__(self):
        for name, setting in settings().items():
            value = getattr(self, name)
            try:
                accepted = setting.rule.accept(without_numpy(value))
            except (ValueError, TypeError, OverflowError):
                raise InputError(
                    f"{name} is {show(value)}, but must be {setting.rule.allowed}"
                ) from None
            if isinstance(accepted, str):
                check_characters(accepted, name)
            object.__setattr__(self, name, accepted)
        if self.projection_start == "zero" and self.fusion != "add":
            raise InputError(
                f"projection_start is 'zero', but fusion is {self.fusion!r}: all hidden states "
                "would be projected to the same vector; use ridge or random"
            )
        if (self.kind, self.fusion, self.pooling) == ("hybrid", "prepend", "first"):
            raise InputError(
                "pooling is 'first', but fusion is 'prepend', which puts Gemma's hidden states "
                "first: use mean, max or last"
            )
        if self.train_split == self.scored_split:
            raise InputError(
                "train_split and scored_split are both 'validation', so evaluation texts would be "
                "trained on: score the test split"
            )
        if _is_contrastive(self) and self.batch_size == 1:
            raise InputError(
                "objective is 'contrastive', but batch_size is 1: texts are compared within a "
                "batch, so use 2 or more, or cross_entropy"
            )
        self._check_control()
        if self.kind == "gemma_only" and self.layer_pooling == "learned":
            raise InputError(
                "layer_pooling is 'learned', but gemma_only trains nothing: use mean or max"
            )
        if self.kind == "encoder_only" and self.save_embedder:
            raise InputError(
                f"save_embedder is {show(self.save_embedder)}, but encoder_only scores a ready "
                "encoder, of which there is nothing new to save: set save_embedder: false"
            )

    def _check_control(self) -> None:
        """Raises InputError if a control makes no sense for the kind, or is to be saved."""
        if self.kind == "gemma_only" and self.llm_control in ("shuffled", "noise"):
            raise InputError(
                f"llm_control is {self.llm_control!r}, but gemma_only has nothing besides its "
                "hidden states: use random_weights, or a hybrid"
            )
        if self.kind in WITH_GEMMA and self.llm_control and self.save_embedder:
            raise InputError(
                f"save_embedder is {show(self.save_embedder)}, but llm_control is "
                f"{self.llm_control!r}: a control is to be measured, not to be used"
            )

    def relevant_settings(self) -> dict[str, Any]:
        """The settings that affect this experiment's result: Gemma alone has no epochs, say."""
        values = {
            name: getattr(self, name)
            for name, setting in settings().items()
            if self.kind in setting.kinds and (setting.when is None or setting.when(self))
        }
        if "projection_start" in values:
            values["projection_start"] = self.projection_init()
        return values

    def task_settings(self) -> dict[str, Any]:
        """The settings that determine the task: experiments with equal ones share its data."""
        names = [name for name, setting in settings().items() if setting.group == TASK]
        return {name: getattr(self, name) for name in names}

    def projection_init(self) -> str:
        """How the projection is initialized, `null` resolved."""
        return self.projection_start or ("zero" if self.fusion == "add" else "ridge")

    def needs_training_data(self) -> bool:
        """Whether anything is fitted or selected besides the protocol's own classifiers."""
        if self.kind in FROZEN:
            return self.selects_layer() or self.probe
        if self.selects_layer() or self.epochs > 0:
            return True
        # The states that an untrained late layer reads are standardized by the training texts.
        is_fitted = self.late_fusion or self.projection_init() == "ridge"
        return self.kind == "hybrid" and (is_fitted or self.llm_control == "noise")

    def selects_layer(self) -> bool:
        """Whether the cutoff is selected from the hidden states."""
        return self.kind in WITH_GEMMA and self.llm_layers in SELECTED

    def as_dict(self) -> dict[str, Any]:
        """Every setting, with lists where JSON and YAML have lists."""
        values = dataclasses.asdict(self)
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in values.items()
        }


def settings() -> dict[str, Setting]:
    """Every setting by its name, in order."""
    return {entry.name: entry.metadata["setting"] for entry in dataclasses.fields(Experiment)}


def make_experiment(values: Mapping[str, Any], where: str = "experiment") -> Experiment:
    """Make an Experiment from a mapping.

    Args:
        values: settings by their names; the others keep their defaults.
        where: source of the settings, for messages.

    Raises:
        InputError: an unknown setting (names the nearest known one), or an invalid value.
    """
    known = list(settings())
    for name in values:
        if name not in known:
            near = difflib.get_close_matches(str(name)[:100], known, n=1, cutoff=0.5)
            guess = f"; did you mean {near[0]!r}?" if near else "."
            raise InputError(
                f"{where}: unknown setting {show(str(name))}{guess} "
                f"Known settings: {', '.join(known)}"
            )
    try:
        return Experiment(**values)
    except InputError as error:
        raise InputError(f"{where}: {error}") from None


# What settings were in files that are older than the settings, whatever their defaults are now.
BEFORE_SETTING_EXISTED = {
    "llm_dtype": "float32", "late_fusion": False, "objective": "cross_entropy",
}  # fmt: skip


def stored_experiment(values: Mapping[str, Any]) -> Experiment:
    """The Experiment of a result file: valid when it was run, so its values are not checked.

    Args:
        values: settings by name; settings that are newer than the file get the values that
            it was made with.
    """
    experiment, values = object.__new__(Experiment), {**BEFORE_SETTING_EXISTED, **values}
    for one in dataclasses.fields(Experiment):
        value = values.get(one.name, one.default)
        object.__setattr__(experiment, one.name, tuple(value) if isinstance(value, list) else value)
    return experiment


def with_baselines(experiments: Sequence[Experiment]) -> list[Experiment]:
    """RoBERTa alone and Gemma alone with each hybrid's settings, then the experiments themselves.

    Duplicates are dropped, and kinds stay together.
    """
    hybrids = [experiment for experiment in experiments if experiment.kind == "hybrid"]
    baselines = [dataclasses.replace(hybrid, kind="roberta_only") for hybrid in hybrids]
    baselines += [gemma_only(hybrid) for hybrid in hybrids]
    distinct = dict.fromkeys([*baselines, *experiments])
    return sorted(distinct, key=lambda experiment: TABLE_ORDER.index(experiment.kind))


def gemma_only(hybrid: Experiment) -> Experiment:
    """Gemma alone with a hybrid's settings, as far as they make sense for it."""
    layer_pooling = "mean" if hybrid.layer_pooling == "learned" else hybrid.layer_pooling
    control = hybrid.llm_control if hybrid.llm_control == "random_weights" else None
    changes = {"layer_pooling": layer_pooling, "llm_control": control}
    return dataclasses.replace(hybrid, kind="gemma_only", **changes)


def resolve_cutoffs(llm_layers: int | tuple[int, ...] | str, num_layers: int) -> tuple[int, ...]:
    """Cutoffs as numbers of kept layers, 1 … `num_layers`, in ascending order.

    Args:
        llm_layers: cutoffs as in the Experiment; -1 keeps all layers, -2 all but the last; a
            cutoff that is to be selected may be any.
        num_layers: number of Gemma's layers.

    Raises:
        InputError: a cutoff beyond the model, or a duplicate.
    """
    if llm_layers in SELECTED:
        return tuple(range(1, num_layers + 1))
    numbers = llm_layers if isinstance(llm_layers, tuple) else (llm_layers,)
    for number in numbers:
        if abs(number) > num_layers:
            raise InputError(
                f"llm_layers is {show(number)}, but this Gemma has {num_layers} layers: "
                f"use 1 … {num_layers}, or -1 … -{num_layers}"
            )
    resolved = sorted(number if number > 0 else num_layers + 1 + number for number in numbers)
    if len(set(resolved)) < len(resolved):
        raise InputError(f"llm_layers is {show(list(numbers))}, which names a layer twice")
    return tuple(resolved)

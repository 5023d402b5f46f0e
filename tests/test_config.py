"""Experiments: the values of each setting, what each affects, and the errors for invalid ones."""

import dataclasses

import numpy as np
import pytest

from embedder_helpers.config import (
    KINDS,
    Experiment,
    make_experiment,
    resolve_cutoffs,
    settings,
    stored_experiment,
    with_baselines,
)
from embedder_helpers.errors import InputError

KEYS = list(settings())

ALLOWED = {
    "task": ["EmotionClassification", "some/folder"],
    "task_data": [None, "some/folder"],
    "text_column": ["sentence"],
    "label_column": ["class"],
    "samples_per_label": [None, 1, 32],
    "kind": ["hybrid", "gemma_only", "roberta_only", "encoder_only"],
    "llm_preset": ["gemma_2b_en", "hf://google/gemma-2b"],
    "llm_layers": [1, 18, -1, -18, "auto", "cheapest"],
    "layer_pooling": ["mean", "max", "learned"],
    "final_norm": ["rms", "learned", "last", "none"],
    "llm_dtype": ["auto", "float32", "bfloat16", "float16"],
    "llm_control": [None, "shuffled", "noise", "random_weights"],
    "fusion": ["replace", "add", "prepend"],
    "projection": ["linear", "mlp"],
    "projection_start": [None, "ridge", "random"],
    "late_fusion": [True, False],
    "state_dropout": [0.0, 0.5],
    "probe": [True, False],
    "slm_preset": ["roberta_base_en"],
    "encoder_preset": ["all-MiniLM-L6-v2", "some/folder", "bert_base_en"],
    "pooling": ["mean", "max", "first", "last"],
    "max_tokens": [3, 512],
    "seed": [0, 2**32 - 1],
    "epochs": [0, 6],
    "objective": ["cross_entropy", "contrastive"],
    "contrastive_weight": [0.5, 2],
    "contrastive_temperature": [0.05, 0.3],
    "batch_size": [1, 64],
    "learning_rate": [1e-5, 0.5],
    "projection_learning_rate": [1e-3],
    "warmup": [0.0, 0.1],
    "clip_norm": [None, 0.5],
    "patience": [None, 1, 3],
    "class_weights": [True, False],
    "scored_split": ["test", "validation"],
    "train_split": ["train", "validation"],
    "max_train_texts": [None, 2, 4000],
    "train_texts_per_label": [None, 1, 512],
    "save_embedder": [True, False, "with_gemma"],
    "save_predictions": [True, False],
    "states_dir": [None, "some/folder"],
    "states_gigabytes": [None, 0.5, 20],
    "stream_blocks": [True, False],
    "tracking": [None, "tensorboard", "mlflow", "wandb"],
}

INTEGER = "an integer"
TEXT = "a non-empty string"
NEGATIVE = -float("inf")
INVALID = {
    "task": [("", TEXT), (7, TEXT), (None, TEXT)],
    "task_data": [("", "null"), (7, "null")],
    "text_column": [(None, TEXT), (0, TEXT)],
    "label_column": [(None, TEXT), (["label"], TEXT)],
    "samples_per_label": [(0, "from 1 to"), (2**31, f"to {2**31 - 1}"), ("8", INTEGER)],
    "kind": [("both", "hybrid, gemma_only, roberta_only"), (["hybrid"], "hybrid")],
    "llm_preset": [("", TEXT), (None, TEXT)],
    "llm_layers": [
        (bad, "list")
        for bad in (0, 2.5, "ten", [], [0], [1, 2.5], True, None, {}, 2**31, [1, -(2**31)])
    ],
    "layer_pooling": [("sum", "mean, max, learned"), (None, "mean")],
    "final_norm": [("layer", "rms, learned, last, none"), (None, "rms")],
    "llm_dtype": [("float64", "auto, float32, bfloat16, float16"), (None, "auto")],
    "llm_control": [(bad, "shuffled, noise, or null") for bad in ("random", True, "")],
    "fusion": [("append", "replace, add, prepend"), (None, "replace")],
    "projection": [("deep", "linear, mlp")],
    "projection_start": [("none", "ridge, zero, random, or null"), (0, "ridge")],
    "late_fusion": [(bad, "true or false") for bad in (1, "yes", None)],
    "state_dropout": [(bad, "from 0 to below 1") for bad in (1, -0.1, "half", True, None)],
    "probe": [(bad, "true or false") for bad in (1, "yes", None)],
    "slm_preset": [("  ", TEXT)],
    "encoder_preset": [("", TEXT), (None, TEXT)],
    "pooling": [("cls", "mean, max, first, last"), (["mean"], "mean"), (None, "mean")],
    "max_tokens": [(2, "from 3 to"), ("256", INTEGER)],
    "seed": [(-1, "from 0 to"), (2**32, f"to {2**32 - 1}"), (True, INTEGER)],
    "epochs": [(-1, "from 0 to"), (1.0, INTEGER), (False, INTEGER)],
    "objective": [("triplet", "cross_entropy, contrastive"), (None, "cross_entropy")],
    "contrastive_weight": [(bad, "above 0") for bad in (0, -1, float("nan"), None, True)],
    "contrastive_temperature": [(bad, "above 0") for bad in (0, -0.1, float("inf"), "low")],
    "batch_size": [(0, "from 1 to"), ([8], INTEGER)],
    "learning_rate": [
        (bad, "above 0")
        for bad in (0, -1e-5, float("nan"), float("inf"), NEGATIVE, "fast", True, None, [1e-5])
    ],
    "projection_learning_rate": [(0, "above 0"), ("", "above 0")],
    "warmup": [(bad, "from 0 to below 1") for bad in (1.0, -0.1, float("nan"), True, None)],
    "clip_norm": [(0, "above 0"), (-1, "above 0"), ("all", "null"), (True, "above 0")],
    "patience": [(0, "from 1 to"), (1.5, INTEGER), ("none", "null")],
    "class_weights": [(bad, "true or false") for bad in (0, "balanced", None)],
    "scored_split": [("train", "test, validation"), (None, "test")],
    "train_split": [("test", "train, validation")],
    "max_train_texts": [(1, "from 2 to"), ("all", "null")],
    "train_texts_per_label": [(0, "from 1 to"), ("all", "null"), (1.5, INTEGER)],
    "save_embedder": [(1, "with_gemma"), ("gemma", "with_gemma"), (None, "true, false")],
    "save_predictions": [(bad, "true or false") for bad in (1, "yes", None)],
    "states_dir": [("", "null"), (7, "null")],
    "states_gigabytes": [(0, "above 0"), (-1, "above 0"), ("all", "null"), (True, "above 0")],
    "stream_blocks": [(bad, "true or false") for bad in (1, "yes", None)],
    "tracking": [(bad, "one of tensorboard, mlflow, wandb, or null") for bad in ("csv", True, "")],
}
# Settings of storage, memory and tracking, which affect no result.
NO_EFFECT = {"save_embedder", "states_dir", "states_gigabytes", "stream_blocks", "tracking"}
NO_EFFECT |= {"save_predictions"}
UNLESS_NULL = {"llm_control", "train_texts_per_label"}  # null is what there was before them
SPLITS = {"train_split", "max_train_texts"}
OPTIONAL_TRAINING = {"warmup", "clip_norm", "patience", "class_weights", "objective"}
CONTRASTIVE = {"contrastive_weight", "contrastive_temperature"}
TRAINING = {"batch_size", "learning_rate", "projection_learning_rate"} | OPTIONAL_TRAINING | SPLITS
HYBRID = {"fusion", "projection_start", "late_fusion", "state_dropout"}
GEMMA = {"llm_preset", "llm_layers", "layer_pooling", "final_norm", "llm_dtype"}


def cases(table):
    return [(key, value) for key, values in table.items() for value in values]


def other_value(name):
    """An allowed value other than the default."""
    default = getattr(Experiment(), name)
    return next(value for value in reversed(ALLOWED[name]) if value != default)


def test_the_defaults_are_an_experiment_on_the_built_in_task_and_models():
    experiment = Experiment()
    assert (experiment.task, experiment.kind) == ("sample", "hybrid")
    assert (experiment.llm_preset, experiment.slm_preset) == ("tiny_gemma", "tiny_roberta")


@pytest.mark.parametrize("name", KEYS)
def test_every_setting_has_allowed_and_invalid_cases(name):
    assert ALLOWED[name] and INVALID[name]


@pytest.mark.parametrize(("name", "value"), cases(ALLOWED))
def test_an_allowed_value_is_accepted(name, value):
    any_batch = {"objective": "cross_entropy"}
    assert getattr(make_experiment(any_batch | {name: value}), name) == value


@pytest.mark.parametrize(("name", "case"), cases(INVALID))
def test_the_error_for_an_invalid_value_names_setting_value_and_rule(name, case):
    value, allowed = case
    with pytest.raises(InputError) as error:
        make_experiment({name: value})
    fact, rule = str(error.value).split(", but must be ", 1)
    assert fact == f"experiment: {name} is {value!r}"
    assert allowed in rule


@pytest.mark.parametrize("name", ["learning_rate", "projection_learning_rate"])
def test_a_learning_rate_that_yaml_reads_as_a_string_becomes_a_number(name):
    assert getattr(make_experiment({name: "1e-5"}), name) == 1e-5


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("seed", np.int64(7), 7),
        ("max_tokens", np.uint8(64), 64),
        ("warmup", np.float32(0.5), 0.5),
        ("learning_rate", np.float64(1e-3), 1e-3),
        ("probe", np.bool_(True), True),
        ("task", np.str_("sample"), "sample"),
        ("save_embedder", np.str_("with_gemma"), "with_gemma"),
        ("llm_layers", np.int32(-3), -3),
        ("llm_layers", np.arange(1, 4), (1, 2, 3)),
        ("llm_layers", [np.int64(2), 5], (2, 5)),
    ],
)
def test_a_value_of_numpy_is_the_same_value_of_python(name, value, expected):
    accepted = getattr(make_experiment({name: value}), name)
    assert accepted == expected and type(accepted) is type(expected)
    assert "np." not in repr(accepted)


@pytest.mark.parametrize(
    ("name", "value"),
    [("seed", np.float64(1)), ("seed", np.True_), ("epochs", np.int64(-1)), ("warmup", np.True_)],
)
def test_a_value_of_numpy_has_to_be_allowed_too(name, value):
    with pytest.raises(InputError, match=f"{name} is .* but must be"):
        make_experiment({name: value})


@pytest.mark.parametrize("character", ["\0", "\ud800", "\udcff"])
@pytest.mark.parametrize("name", ["task", "text_column", "llm_preset", "states_dir"])
def test_a_string_that_no_path_or_file_can_hold_is_an_error(name, character):
    with pytest.raises(InputError, match=f"{name} is 'a.*leave it out") as error:
        make_experiment({name: f"a{character}b"})
    str(error.value).encode()  # can be printed


@pytest.mark.parametrize("name", KEYS)
@pytest.mark.parametrize(
    "value",
    ["x\0" * 50_000, ["x"] * 50_000, {"x" * 50_000: 1}, 10**5000],
    ids=lambda value: type(value).__name__,
)
def test_a_message_stays_short_whatever_the_value(name, value):
    with pytest.raises(InputError) as error:
        make_experiment({name: value})
    assert name in str(error.value) and len(str(error.value)) < 1200


def test_a_message_stays_short_whatever_the_name():
    with pytest.raises(InputError, match="unknown setting 'xxx") as error:
        make_experiment({"x" * 50_000: 1})
    assert len(str(error.value)) < 1200


@pytest.mark.parametrize(
    ("fusion", "default"), [("replace", "ridge"), ("prepend", "ridge"), ("add", "zero")]
)
def test_the_default_initialization_of_the_projection_depends_on_the_fusion(fusion, default):
    assert make_experiment({"fusion": fusion}).projection_init() == default
    random = make_experiment({"fusion": fusion, "projection_start": "random"})
    assert random.projection_init() == "random"


@pytest.mark.parametrize("fusion", ["replace", "prepend"])
def test_a_zero_projection_is_an_error_unless_hidden_states_are_added(fusion):
    with pytest.raises(InputError, match=f"projection_start is 'zero', but fusion is '{fusion}'"):
        make_experiment({"fusion": fusion, "projection_start": "zero"})


def test_training_on_the_evaluation_split_is_an_error():
    with pytest.raises(InputError, match="my.yaml: train_split and scored_split are both"):
        make_experiment({"train_split": "validation", "scored_split": "validation"}, "my.yaml")


def test_a_list_of_cutoffs_becomes_a_tuple():
    assert make_experiment({"llm_layers": [2, -1]}).llm_layers == (2, -1)


@pytest.mark.parametrize("name", ["task", "states_dir"])
def test_a_path_object_is_accepted_for_a_string(tmp_path, name):
    assert getattr(make_experiment({name: tmp_path}), name) == str(tmp_path)


def test_an_experiment_is_immutable():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Experiment().seed = 1


def test_a_replaced_setting_is_validated_again():
    with pytest.raises(InputError, match="epochs is -1"):
        dataclasses.replace(Experiment(), epochs=-1)


@pytest.mark.parametrize(
    ("wrong", "right"),
    [("llm_layer", "llm_layers"), ("epoch", "epochs"), ("poolin", "pooling"), ("Seed", "seed")],
)
def test_the_error_for_an_unknown_key_suggests_the_nearest_one(wrong, right):
    with pytest.raises(InputError, match=f"unknown setting '{wrong}'; did you mean '{right}'"):
        make_experiment({wrong: 1})


@pytest.mark.parametrize("wrong", ["xyzzy", 7])
def test_the_error_for_an_unknown_key_lists_all_keys(wrong):
    with pytest.raises(InputError) as error:
        make_experiment({wrong: 1}, where="my.yaml")
    assert str(error.value).startswith(f"my.yaml: unknown setting '{wrong}'")
    assert ", ".join(KEYS) in str(error.value)


def test_learned_layer_pooling_is_an_error_for_gemma_alone():
    with pytest.raises(InputError, match="my.yaml: layer_pooling is 'learned', but gemma_only"):
        make_experiment({"kind": "gemma_only", "layer_pooling": "learned"}, where="my.yaml")


@pytest.mark.parametrize("kind", ["hybrid", "roberta_only"])
def test_learned_layer_pooling_is_accepted_for_the_other_kinds(kind):
    assert make_experiment({"kind": kind, "layer_pooling": "learned"}).kind == kind


def test_pooling_the_first_token_is_an_error_if_hidden_states_are_prepended():
    with pytest.raises(InputError, match="pooling is 'first', but fusion is 'prepend'"):
        make_experiment({"fusion": "prepend", "pooling": "first"})
    make_experiment({"kind": "roberta_only", "fusion": "prepend", "pooling": "first"})


@pytest.mark.parametrize(
    ("llm_layers", "expected"),
    [
        (1, (1,)),
        (18, (18,)),
        (-1, (18,)),
        (-18, (1,)),
        (-9, (10,)),
        ((10,), (10,)),
        ((-1, 3, 1), (1, 3, 18)),
        (tuple(range(1, 19)), tuple(range(1, 19))),
        ("auto", tuple(range(1, 19))),
    ],
)
def test_cutoffs_resolve_to_numbers_of_kept_layers_in_ascending_order(llm_layers, expected):
    assert resolve_cutoffs(llm_layers, 18) == expected


@pytest.mark.parametrize("llm_layers", [19, -19, (1, 19), (-19, -1)])
def test_the_error_for_a_cutoff_beyond_the_model_names_the_range(llm_layers):
    with pytest.raises(InputError, match="19, but this Gemma has 18 layers: use 1 … 18, or -1 …"):
        resolve_cutoffs(llm_layers, 18)


@pytest.mark.parametrize("llm_layers", [(18, -1), (1, -18), (3, 3), (-2, -2)])
def test_a_duplicate_cutoff_is_an_error(llm_layers):
    with pytest.raises(InputError, match="names a layer twice") as error:
        resolve_cutoffs(llm_layers, 18)
    assert str(list(llm_layers)) in str(error.value)


@pytest.mark.parametrize(
    ("kind", "ignored"),
    [
        ("hybrid", {"probe", "encoder_preset"}),
        (
            "gemma_only",
            {
                "encoder_preset",
                "slm_preset",
                "fusion",
                "projection",
                "projection_start",
                "late_fusion",
                "state_dropout",
                "epochs",
                "seed",
                *TRAINING,
                *CONTRASTIVE,
            },
        ),
        (
            "roberta_only",
            {*GEMMA, *HYBRID, "projection", "probe", "encoder_preset"},
        ),
        (
            "encoder_only",
            {
                *GEMMA,
                *HYBRID,
                *TRAINING,
                *CONTRASTIVE,
                "projection",
                "slm_preset",
                "pooling",
                "seed",
                "epochs",
            },
        ),
    ],
)
def test_the_relevant_settings_leave_out_what_the_kind_ignores(kind, ignored):
    values = {"kind": kind, "llm_layers": [1, 2], "objective": "contrastive"}
    several = make_experiment(values)
    assert set(KEYS) - set(several.relevant_settings()) == ignored | NO_EFFECT | UNLESS_NULL


@pytest.mark.parametrize(
    ("kind", "relevant"),
    [
        ("hybrid", UNLESS_NULL),
        ("gemma_only", UNLESS_NULL),
        ("roberta_only", {"train_texts_per_label"}),
        ("encoder_only", {"train_texts_per_label"}),
    ],
)
def test_a_control_matters_with_gemma_and_few_texts_where_something_is_fitted(kind, relevant):
    values = {"llm_control": "random_weights", "train_texts_per_label": 8, "probe": True}
    found = make_experiment({"kind": kind} | values).relevant_settings()
    assert UNLESS_NULL & set(found) == relevant
    untrained = make_experiment({"kind": "roberta_only", "epochs": 0} | values)
    assert not UNLESS_NULL & set(untrained.relevant_settings())


@pytest.mark.parametrize("kind", ["hybrid", "gemma_only"])
@pytest.mark.parametrize("llm_layers", [-1, [4]])
def test_layer_pooling_is_irrelevant_for_a_single_cutoff(kind, llm_layers):
    several = make_experiment({"kind": kind, "llm_layers": [1, 2]}).relevant_settings()
    single = make_experiment({"kind": kind, "llm_layers": llm_layers}).relevant_settings()
    assert set(several) - set(single) == {"layer_pooling"}


def test_without_epochs_the_settings_of_training_are_irrelevant():
    values = {"projection_start": "random", "objective": "contrastive", "late_fusion": False}
    trained = make_experiment(values | {"epochs": 1}).relevant_settings()
    untrained = make_experiment(values | {"epochs": 0}).relevant_settings()
    assert set(trained) - set(untrained) == TRAINING | CONTRASTIVE | {"state_dropout"}


@pytest.mark.parametrize("kind", ["hybrid", "roberta_only"])
def test_the_settings_of_the_contrastive_loss_are_relevant_with_it_alone(kind):
    plain = make_experiment({"kind": kind, "objective": "cross_entropy"}).relevant_settings()
    values = {"kind": kind, "objective": "contrastive"}
    assert set(make_experiment(values).relevant_settings()) - set(plain) == CONTRASTIVE
    untrained = make_experiment(values | {"epochs": 0}).relevant_settings()
    assert not set(untrained) & (CONTRASTIVE | {"objective"})


def test_the_contrastive_loss_of_batches_of_one_text_is_an_error():
    values = {"objective": "contrastive", "batch_size": 1}
    with pytest.raises(
        InputError, match="my.yaml: objective is 'contrastive', but batch_size is 1"
    ):
        make_experiment(values, "my.yaml")
    assert make_experiment(values | {"batch_size": 2}).batch_size == 2


@pytest.mark.parametrize("untrained", [{"kind": "gemma_only"}, {"epochs": 0}], ids=str)
def test_what_is_not_trained_has_a_contrastive_loss_and_batches_of_any_size(untrained):
    values = {"objective": "contrastive", "batch_size": 1}
    assert make_experiment(values | untrained).batch_size == 1


def test_a_stored_experiment_has_what_was_the_case_before_a_setting_existed():
    values = Experiment(llm_dtype="bfloat16", late_fusion=True, seed=5).as_dict()
    assert stored_experiment(values).as_dict() == values
    older = {name: values[name] for name in ("kind", "seed")}
    stored = stored_experiment(older)
    assert (stored.kind, stored.seed, stored.llm_dtype) == ("hybrid", 5, "float32")
    assert (stored.late_fusion, stored.objective) == (False, "cross_entropy")


def test_the_training_texts_are_relevant_for_a_closed_form_initialization():
    values = {"fusion": "add", "late_fusion": False, "epochs": 0}
    ridge = make_experiment(values | {"projection_start": "ridge"}).relevant_settings()
    for start in ("random", "zero"):
        other = make_experiment(values | {"projection_start": start}).relevant_settings()
        assert set(ridge) - set(other) == SPLITS


def test_the_training_texts_are_relevant_for_the_probe_of_a_ready_encoder():
    plain = make_experiment({"kind": "encoder_only", "llm_layers": "auto"})
    probe = make_experiment({"kind": "encoder_only", "probe": True})
    assert probe.needs_training_data() and not plain.needs_training_data()
    assert set(probe.relevant_settings()) - set(plain.relevant_settings()) == SPLITS


@pytest.mark.parametrize("wanted", [True, "with_gemma"])
def test_saving_a_ready_encoder_is_an_error(wanted):
    with pytest.raises(InputError, match="save_embedder is .* but encoder_only scores a ready"):
        make_experiment({"kind": "encoder_only", "save_embedder": wanted})


@pytest.mark.parametrize("fitted", [{"probe": True}, {"llm_layers": "auto"}])
def test_the_training_texts_are_relevant_for_what_is_fitted_to_gemma_alone(fitted):
    plain = make_experiment({"kind": "gemma_only"})
    other = make_experiment({"kind": "gemma_only", **fitted})
    assert other.needs_training_data() and not plain.needs_training_data()
    assert set(other.relevant_settings()) - set(plain.relevant_settings()) == SPLITS


@pytest.mark.parametrize("kind", ["hybrid", "gemma_only"])
def test_a_selected_cutoff_makes_another_result_than_a_fixed_one(kind):
    auto, fixed = (make_experiment({"kind": kind, "llm_layers": layers}) for layers in ("auto", 10))
    assert auto.selects_layer() and not fixed.selects_layer()
    assert auto.relevant_settings() != fixed.relevant_settings()


def test_roberta_alone_selects_no_cutoff():
    auto, fixed = (
        make_experiment({"kind": "roberta_only", "epochs": 0, "llm_layers": layers})
        for layers in ("auto", 10)
    )
    assert not auto.selects_layer() and not auto.needs_training_data()
    assert auto.relevant_settings() == fixed.relevant_settings()


@pytest.mark.parametrize(
    ("kind", "name"),
    [(kind, name) for kind in ("hybrid", "roberta_only") for name in sorted(OPTIONAL_TRAINING)]
    + [("hybrid", name) for name in sorted(HYBRID)]
    + [("gemma_only", name) for name in ("scored_split", "probe")]
    + [("encoder_only", name) for name in ("scored_split", "probe", "encoder_preset")],
)
def test_a_new_value_of_a_relevant_setting_makes_a_new_result(kind, name):
    default = make_experiment({"kind": kind})
    other = make_experiment({"kind": kind, name: other_value(name)})
    assert default.relevant_settings() != other.relevant_settings()


@pytest.mark.parametrize(
    ("kind", "name"),
    [("gemma_only", name) for name in sorted(OPTIONAL_TRAINING | HYBRID)]
    + [("roberta_only", name) for name in sorted(HYBRID | {"probe"})]
    + [("encoder_only", name) for name in sorted(OPTIONAL_TRAINING | HYBRID | GEMMA)]
    + [("hybrid", "probe")],
)
def test_a_new_value_of_an_irrelevant_setting_makes_no_new_result(kind, name):
    default = make_experiment({"kind": kind})
    other = make_experiment({"kind": kind, name: other_value(name)})
    assert default.relevant_settings() == other.relevant_settings()


def test_a_default_initialization_follows_a_change_of_the_fusion():
    replaced = dataclasses.replace(make_experiment({"fusion": "add"}), fusion="replace")
    assert replaced.projection_init() == "ridge"
    assert replaced.relevant_settings()["projection_start"] == "ridge"


def test_the_task_settings_are_those_of_the_data():
    names = ["task", "task_data", "text_column", "label_column", "samples_per_label"]
    assert list(Experiment().task_settings()) == names


def test_the_dictionary_has_every_setting_and_lists_for_tuples():
    values = make_experiment({"llm_layers": [2, 1]}).as_dict()
    assert list(values) == KEYS
    assert values["llm_layers"] == [2, 1]


def test_an_experiment_can_be_rebuilt_from_its_dictionary():
    experiment = make_experiment({"llm_layers": [2, 1], "seed": 5, "learning_rate": "1e-4"})
    assert make_experiment(experiment.as_dict()) == experiment


def test_every_setting_is_documented_in_a_group_for_known_kinds():
    for setting in settings().values():
        assert setting.about and setting.group and set(setting.kinds) <= set(KINDS)


def test_baselines_have_the_hybrids_settings_and_come_first():
    hybrid = Experiment(seed=7, llm_layers=3, epochs=1)
    assert with_baselines([hybrid]) == [
        dataclasses.replace(hybrid, kind="roberta_only"),
        dataclasses.replace(hybrid, kind="gemma_only"),
        hybrid,
    ]


def test_a_baseline_that_is_among_the_experiments_is_not_repeated():
    hybrid = Experiment(llm_layers=3)
    once = with_baselines([hybrid])
    assert with_baselines([hybrid, *once]) == once


def test_a_ready_encoder_stays_between_the_baselines_and_the_hybrids():
    encoder, hybrid = Experiment(kind="encoder_only"), Experiment(llm_layers=3)
    kinds = [experiment.kind for experiment in with_baselines([hybrid, encoder])]
    assert kinds == ["roberta_only", "gemma_only", "encoder_only", "hybrid"]


def test_only_hybrids_have_baselines():
    roberta = Experiment(kind="roberta_only")
    assert with_baselines([roberta]) == [roberta]


def test_gemma_alone_pools_layers_by_their_mean_where_its_hybrid_learns_weights():
    hybrid = Experiment(llm_layers=(2, 4), layer_pooling="learned")
    _, gemma, _ = with_baselines([hybrid])
    assert (gemma.llm_layers, gemma.layer_pooling) == ((2, 4), "mean")


@pytest.mark.parametrize("late_fusion", [False, True])
def test_an_untrained_hybrid_reads_the_training_texts_if_its_late_fusion_standardizes(late_fusion):
    experiment = Experiment(
        kind="hybrid", epochs=0, fusion="add", projection_start="zero", late_fusion=late_fusion
    )
    assert experiment.needs_training_data() is late_fusion

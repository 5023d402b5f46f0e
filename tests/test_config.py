"""Config: what a key may hold, what a file may say, and how mistakes are told."""

import dataclasses

import pytest

from embedder_helpers.config import (
    CONFIG_FOLDER,
    Experiment,
    InputError,
    cutoffs,
    find_config,
    make_experiment,
    parse_override,
    read_config,
)
from embedder_helpers.sweep import load_sweep

KEYS = [one.name for one in dataclasses.fields(Experiment)]
CONFIGS = sorted(path.stem for path in CONFIG_FOLDER.glob("*.yaml"))

ALLOWED = {
    "task": ["EmotionClassification", "some/folder"],
    "task_data": [None, "some/folder"],
    "text_column": ["sentence"],
    "label_column": ["class"],
    "samples_per_label": [None, 1, 32],
    "kind": ["hybrid", "gemma_only", "roberta_only"],
    "llm_preset": ["gemma_2b_en", "hf://google/gemma-2b"],
    "llm_layers": [1, 18, -1, -18, "auto"],
    "layer_pooling": ["mean", "max", "learned"],
    "final_norm": ["rms", "learned", "last", "none"],
    "fusion": ["replace", "add", "prepend"],
    "projection": ["linear", "mlp"],
    "projection_start": ["ridge", "random"],
    "state_dropout": [0.0, 0.5],
    "probe": [True, False],
    "slm_preset": ["roberta_base_en"],
    "pooling": ["mean", "max", "first", "last"],
    "max_tokens": [3, 512],
    "seed": [0, 2**32 - 1],
    "epochs": [0, 6],
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
    "save_embedder": [True, False, "with_gemma"],
    "states_dir": [None, "some/folder"],
    "states_gigabytes": [None, 0.5, 20],
    "stream_blocks": [True, False],
    "tracking": [None, "tensorboard", "mlflow", "wandb"],
}

WHOLE = "a whole number"
BELOW = -float("inf")
IMPOSSIBLE = {
    "task": [("", "a text"), (7, "a text"), (None, "a text")],
    "task_data": [("", "null"), (7, "null")],
    "text_column": [(None, "a text"), (0, "a text")],
    "label_column": [(None, "a text"), (["label"], "a text")],
    "samples_per_label": [(0, "at least 1"), (2.5, WHOLE), ("8", WHOLE)],
    "kind": [("both", "hybrid, gemma_only, roberta_only"), (["hybrid"], "hybrid")],
    "llm_preset": [("", "a text"), (None, "a text")],
    "llm_layers": [(bad, "list") for bad in (0, 2.5, "ten", [], [0], [1, 2.5], True, None, {})],
    "layer_pooling": [("sum", "mean, max, learned"), (None, "mean")],
    "final_norm": [("layer", "rms, learned, last, none"), (None, "rms")],
    "fusion": [("append", "replace, add, prepend"), (None, "replace")],
    "projection": [("deep", "linear, mlp")],
    "projection_start": [("none", "ridge, zero, random, or null"), (0, "ridge")],
    "state_dropout": [(bad, "from 0 to below 1") for bad in (1, -0.1, "half", True, None)],
    "probe": [(bad, "true or false") for bad in (1, "yes", None)],
    "slm_preset": [("  ", "a text")],
    "pooling": [("cls", "mean, max, first, last"), (["mean"], "mean"), (None, "mean")],
    "max_tokens": [(2, "at least 3"), ("256", WHOLE)],
    "seed": [(-1, "at least 0"), (2**32, f"at most {2**32 - 1}"), (True, WHOLE)],
    "epochs": [(-1, "at least 0"), (1.0, WHOLE), (False, WHOLE)],
    "batch_size": [(0, "at least 1"), ([8], WHOLE)],
    "learning_rate": [
        (bad, "above 0")
        for bad in (0, -1e-5, float("nan"), float("inf"), BELOW, "fast", True, None, [1e-5])
    ],
    "projection_learning_rate": [(0, "above 0"), ("", "above 0")],
    "warmup": [(bad, "from 0 to below 1") for bad in (1.0, -0.1, float("nan"), True, None)],
    "clip_norm": [(0, "above 0"), (-1, "above 0"), ("all", "null"), (True, "above 0")],
    "patience": [(0, "at least 1"), (1.5, WHOLE), ("none", "null")],
    "class_weights": [(bad, "true or false") for bad in (0, "balanced", None)],
    "scored_split": [("train", "test, validation"), (None, "test")],
    "train_split": [("test", "train, validation")],
    "max_train_texts": [(1, "at least 2"), ("all", "null")],
    "save_embedder": [(1, "with_gemma"), ("gemma", "with_gemma"), (None, "true, false")],
    "states_dir": [("", "null"), (7, "null")],
    "states_gigabytes": [(0, "above 0"), (-1, "above 0"), ("all", "null"), (True, "above 0")],
    "stream_blocks": [(bad, "true or false") for bad in (1, "yes", None)],
    "tracking": [(bad, "one of tensorboard, mlflow, wandb, or null") for bad in ("csv", True, "")],
}
# Where states are kept, how Gemma is held in memory, what is left and told: no other result.
HOW = {"save_embedder", "states_dir", "states_gigabytes", "stream_blocks", "tracking"}
SPLITS = {"train_split", "max_train_texts"}
OF_TRAINING = {"warmup", "clip_norm", "patience", "class_weights"}
TRAINING = {"batch_size", "learning_rate", "projection_learning_rate"} | OF_TRAINING | SPLITS
# Another value than the default.
OTHER = {
    "warmup": 0.5,
    "clip_norm": None,
    "patience": 2,
    "class_weights": True,
    "scored_split": "validation",
    "fusion": "prepend",
    "projection_start": "random",
    "state_dropout": 0.5,
    "probe": True,
}


def cases(table):
    return [(key, value) for key, values in table.items() for value in values]


def test_the_defaults_are_an_experiment_on_the_built_in_task_and_models():
    experiment = Experiment()
    assert (experiment.task, experiment.kind) == ("sample", "hybrid")
    assert (experiment.llm_preset, experiment.slm_preset) == ("tiny_gemma", "tiny_roberta")


@pytest.mark.parametrize("name", KEYS)
def test_the_cases_below_speak_of_every_key(name):
    assert ALLOWED[name] and IMPOSSIBLE[name]


@pytest.mark.parametrize(("name", "value"), cases(ALLOWED))
def test_an_allowed_value_is_kept(name, value):
    assert getattr(make_experiment({name: value}), name) == value


@pytest.mark.parametrize(("name", "case"), cases(IMPOSSIBLE))
def test_an_impossible_value_is_told_with_key_value_and_what_is_allowed(name, case):
    value, allowed = case
    with pytest.raises(InputError) as caught:
        make_experiment({name: value})
    told, rule = str(caught.value).split(", but must be ", 1)
    assert told == f"experiment: {name} is {value!r}"
    assert allowed in rule


@pytest.mark.parametrize("name", ["learning_rate", "projection_learning_rate"])
def test_a_rate_that_yaml_reads_as_text_is_a_number(name):
    assert getattr(make_experiment({name: "1e-5"}), name) == 1e-5


@pytest.mark.parametrize(
    ("fusion", "start"), [("replace", "ridge"), ("prepend", "ridge"), ("add", "zero")]
)
def test_the_projections_start_is_the_fusions_own_unless_given(fusion, start):
    assert make_experiment({"fusion": fusion}).start() == start
    given = make_experiment({"fusion": fusion, "projection_start": "random"})
    assert given.start() == "random"


@pytest.mark.parametrize("fusion", ["replace", "prepend"])
def test_a_start_at_zero_is_refused_where_states_stand_alone(fusion):
    with pytest.raises(InputError, match=f"projection_start is 'zero', but fusion is '{fusion}'"):
        make_experiment({"fusion": fusion, "projection_start": "zero"})


def test_scores_of_the_split_that_is_trained_on_are_refused():
    with pytest.raises(InputError, match="my.yaml: train_split and scored_split are both"):
        make_experiment({"train_split": "validation", "scored_split": "validation"}, "my.yaml")


def test_several_cutoffs_are_kept_as_a_tuple():
    assert make_experiment({"llm_layers": [2, -1]}).llm_layers == (2, -1)


def test_a_path_may_stand_for_a_text(tmp_path):
    assert make_experiment({"task": tmp_path}).task == str(tmp_path)


def test_an_experiment_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Experiment().seed = 1


def test_replacing_a_key_checks_it_again():
    with pytest.raises(InputError, match="epochs is -1"):
        dataclasses.replace(Experiment(), epochs=-1)


@pytest.mark.parametrize(
    ("wrong", "right"),
    [("llm_layer", "llm_layers"), ("epoch", "epochs"), ("poolin", "pooling"), ("Seed", "seed")],
)
def test_an_unknown_key_is_told_with_the_nearest_known_one(wrong, right):
    with pytest.raises(InputError, match=f"unknown key '{wrong}'; did you mean '{right}'"):
        make_experiment({wrong: 1})


@pytest.mark.parametrize("wrong", ["xyzzy", 7])
def test_an_unknown_key_like_no_other_is_told_with_all_known_ones(wrong):
    with pytest.raises(InputError) as caught:
        make_experiment({wrong: 1}, where="my.yaml")
    assert str(caught.value).startswith(f"my.yaml: unknown key '{wrong}'")
    assert ", ".join(KEYS) in str(caught.value)


def test_a_path_may_stand_for_the_folder_of_states(tmp_path):
    assert make_experiment({"states_dir": tmp_path}).states_dir == str(tmp_path)


def test_learned_pooling_is_refused_where_nothing_is_trained():
    with pytest.raises(InputError, match="my.yaml: layer_pooling is 'learned', but gemma_only"):
        make_experiment({"kind": "gemma_only", "layer_pooling": "learned"}, where="my.yaml")


@pytest.mark.parametrize("kind", ["hybrid", "roberta_only"])
def test_learned_pooling_is_taken_by_every_other_kind(kind):
    assert make_experiment({"kind": kind, "layer_pooling": "learned"}).kind == kind


@pytest.mark.parametrize("name", CONFIGS)
def test_every_config_of_the_project_loads_by_its_name(name):
    assert load_sweep(name) == load_sweep(CONFIG_FOLDER / f"{name}.yaml")


def test_quickstart_is_among_the_configs():
    assert "quickstart" in CONFIGS


def test_an_override_replaces_the_files_value_and_none_keeps_it(tmp_path):
    path = tmp_path / "my.yaml"
    path.write_text("task: sample\nseed: 7\nepochs: 2\n")
    (experiment,) = load_sweep(path, seed=8, epochs=None)
    assert (experiment.seed, experiment.epochs) == (8, 2)


def test_a_bad_value_in_a_file_is_told_with_the_file(tmp_path):
    path = tmp_path / "my.yaml"
    path.write_text("pooling: cls\n")
    with pytest.raises(InputError, match=r"my\.yaml: pooling is 'cls'"):
        load_sweep(path)


@pytest.mark.parametrize("content", [b"task: [sample\n", b"a: b: c\n", b"task: \xff\n"])
def test_a_file_that_is_not_yaml_is_told_in_one_line(tmp_path, content):
    path = tmp_path / "my.yaml"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"my\.yaml is not YAML") as caught:
        read_config(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", ["", "- sample\n", "sample\n"])
def test_a_file_without_keys_is_told(tmp_path, content):
    path = tmp_path / "my.yaml"
    path.write_text(content)
    with pytest.raises(InputError, match="must hold `key: value` lines"):
        read_config(path)


def test_a_missing_config_is_told_with_the_nearest_name():
    with pytest.raises(InputError, match="'quickstrat'; did you mean 'quickstart'"):
        find_config("quickstrat")


def test_a_missing_config_like_no_other_is_told_with_all_names():
    with pytest.raises(InputError) as caught:
        find_config("zzz")
    assert ", ".join(CONFIGS) in str(caught.value)


def test_a_path_goes_before_a_name_in_configs(tmp_path, monkeypatch):
    (tmp_path / "quickstart").write_text("seed: 7\n")
    monkeypatch.chdir(tmp_path)
    assert load_sweep("quickstart")[0].seed == 7


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("llm_layers=10", ("llm_layers", 10)),
        ("llm_layers=[1, -1]", ("llm_layers", [1, -1])),
        ("max_train_texts=null", ("max_train_texts", None)),
        ("task = a=b", ("task", "a=b")),
        ("kind=hybrid", ("kind", "hybrid")),
    ],
)
def test_an_override_is_read_as_yaml_reads_it(setting, expected):
    assert parse_override(setting) == expected


@pytest.mark.parametrize("setting", ["llm_layers", "", "=10", "llm_layers 10"])
def test_an_override_without_key_or_equals_sign_is_told(setting):
    with pytest.raises(InputError, match="write key=value") as caught:
        parse_override(setting)
    assert repr(setting) in str(caught.value)


def test_an_override_that_is_not_yaml_is_told():
    with pytest.raises(InputError, match="the value is not YAML"):
        parse_override("llm_layers=[1")


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
def test_cutoffs_count_from_the_bottom_in_rising_order(llm_layers, expected):
    assert cutoffs(llm_layers, 18) == expected


@pytest.mark.parametrize("llm_layers", [19, -19, (1, 19), (-19, -1)])
def test_a_cutoff_beyond_the_model_is_told_with_the_blocks_there_are(llm_layers):
    with pytest.raises(InputError, match="19, but this Gemma has 18 blocks: use 1 … 18, or -1 …"):
        cutoffs(llm_layers, 18)


@pytest.mark.parametrize("llm_layers", [(18, -1), (1, -18), (3, 3), (-2, -2)])
def test_a_block_named_twice_is_told(llm_layers):
    with pytest.raises(InputError, match="names a block twice") as caught:
        cutoffs(llm_layers, 18)
    assert str(list(llm_layers)) in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "ignored"),
    [
        ("hybrid", {"probe"}),
        (
            "gemma_only",
            {
                "slm_preset",
                "fusion",
                "projection",
                "projection_start",
                "state_dropout",
                "epochs",
                "seed",
                *TRAINING,
            },
        ),
        (
            "roberta_only",
            {
                "llm_preset",
                "llm_layers",
                "layer_pooling",
                "final_norm",
                "fusion",
                "projection",
                "projection_start",
                "state_dropout",
                "probe",
            },
        ),
    ],
)
def test_the_determining_keys_leave_out_what_the_kind_ignores(kind, ignored):
    several = make_experiment({"kind": kind, "llm_layers": [1, 2]})
    assert set(KEYS) - set(several.determining()) == ignored | HOW


@pytest.mark.parametrize("kind", ["hybrid", "gemma_only"])
@pytest.mark.parametrize("llm_layers", [-1, [4]])
def test_one_cutoff_is_not_determined_by_how_several_are_pooled(kind, llm_layers):
    several = make_experiment({"kind": kind, "llm_layers": [1, 2]}).determining()
    one = make_experiment({"kind": kind, "llm_layers": llm_layers}).determining()
    assert set(several) - set(one) == {"layer_pooling"}


def test_without_epochs_no_key_of_training_determines_the_result():
    random = {"projection_start": "random"}
    trained = make_experiment(random | {"epochs": 1}).determining()
    untrained = make_experiment(random | {"epochs": 0}).determining()
    assert set(trained) - set(untrained) == TRAINING | {"state_dropout"}


def test_a_start_in_closed_form_is_determined_by_the_training_texts_too():
    started = make_experiment({"projection_start": "ridge", "epochs": 0}).determining()
    random = make_experiment({"projection_start": "random", "epochs": 0}).determining()
    assert set(started) - set(random) == SPLITS
    closed = make_experiment({"fusion": "add", "projection_start": "ridge", "epochs": 0})
    zero = make_experiment({"fusion": "add", "epochs": 0})
    assert set(closed.determining()) - set(zero.determining()) == SPLITS


@pytest.mark.parametrize("keys", [{"probe": True}, {"llm_layers": "auto"}])
def test_what_gemma_alone_learns_is_determined_by_the_training_texts_too(keys):
    plain = make_experiment({"kind": "gemma_only"})
    learning = make_experiment({"kind": "gemma_only", **keys})
    assert learning.reads_training_texts() and not plain.reads_training_texts()
    assert set(learning.determining()) - set(plain.determining()) == SPLITS


@pytest.mark.parametrize("kind", ["hybrid", "gemma_only"])
def test_a_cutoff_chosen_is_not_one_that_is_given(kind):
    chosen, given = (
        make_experiment({"kind": kind, "llm_layers": layers}) for layers in ("auto", 10)
    )
    assert chosen.chooses() and not given.chooses()
    assert chosen.determining() != given.determining()


def test_roberta_alone_chooses_no_cutoff():
    chosen, given = (
        make_experiment({"kind": "roberta_only", "epochs": 0, "llm_layers": layers})
        for layers in ("auto", 10)
    )
    assert not chosen.chooses() and not chosen.reads_training_texts()
    assert chosen.determining() == given.determining()


@pytest.mark.parametrize(
    ("kind", "name"),
    [(kind, name) for kind in ("hybrid", "roberta_only") for name in sorted(OF_TRAINING)]
    + [("hybrid", name) for name in ("fusion", "state_dropout", "projection_start")]
    + [("gemma_only", name) for name in ("scored_split", "probe")],
)
def test_a_new_value_of_a_key_that_the_kind_reads_makes_a_new_result(kind, name):
    asked = make_experiment({"kind": kind})
    other = make_experiment({"kind": kind, name: OTHER[name]})
    assert asked.determining() != other.determining()


@pytest.mark.parametrize(
    ("kind", "name"),
    [("gemma_only", name) for name in OTHER if name not in ("scored_split", "probe")]
    + [("roberta_only", name) for name in ("fusion", "state_dropout", "projection_start", "probe")]
    + [("hybrid", "probe")],
)
def test_a_new_value_of_a_key_that_the_kind_ignores_makes_no_new_result(kind, name):
    asked = make_experiment({"kind": kind})
    other = make_experiment({"kind": kind, name: OTHER[name]})
    assert asked.determining() == other.determining()


def test_every_key_is_in_the_dictionary_with_lists_for_tuples():
    values = make_experiment({"llm_layers": [2, 1]}).as_dict()
    assert list(values) == KEYS
    assert values["llm_layers"] == [2, 1]


def test_an_experiment_can_be_made_again_from_its_dictionary():
    experiment = make_experiment({"llm_layers": [2, 1], "seed": 5, "learning_rate": "1e-4"})
    assert make_experiment(experiment.as_dict()) == experiment


def test_a_value_that_pyyaml_itself_stumbles_over_is_one_clear_error():
    with pytest.raises(InputError, match="the value is not YAML"):
        parse_override("seed=2024-13-45")


def test_pooling_the_first_state_is_refused_where_gemmas_states_stand_first():
    with pytest.raises(InputError, match="pooling is 'first', but fusion is 'prepend'"):
        make_experiment({"fusion": "prepend", "pooling": "first"})


def test_a_start_that_was_not_given_follows_a_change_of_the_fusion():
    asked = dataclasses.replace(make_experiment({"fusion": "add"}), fusion="replace")
    assert asked.start() == "ridge" and asked.determining()["projection_start"] == "ridge"

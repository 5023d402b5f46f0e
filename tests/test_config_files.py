"""Config files: YAML to experiments, single or in combination, overrides, and invalid files."""

import json
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedder_helpers.config import Experiment, settings
from embedder_helpers.config_files import (
    CONFIG_FOLDER,
    MAX_EXPERIMENTS,
    find_config,
    load_experiments,
    parse_overrides,
    read_config,
)
from embedder_helpers.errors import InputError

CONFIGS = sorted(path.stem for path in CONFIG_FOLDER.glob("*.yaml"))


@pytest.fixture
def write(tmp_path):
    """Writes a config file and returns its path."""

    def write_config(content):
        path = tmp_path / "my.yaml"
        path.write_text(content, encoding="utf-8")
        return path

    return write_config


# === The project's own files ===


@pytest.mark.parametrize("name", CONFIGS)
def test_every_config_of_the_project_loads_by_its_name_as_by_its_path(name):
    experiments = load_experiments(name)
    assert experiments == load_experiments(CONFIG_FOLDER / f"{name}.yaml")
    assert experiments and len(experiments) == len(set(experiments))


def test_quickstart_is_among_the_configs():
    assert "quickstart" in CONFIGS


def test_the_error_for_a_missing_config_suggests_the_nearest_name():
    with pytest.raises(InputError, match="'quickstrat'; did you mean 'quickstart'"):
        find_config("quickstrat")


def test_the_error_for_a_missing_config_lists_all_names():
    with pytest.raises(InputError) as error:
        find_config("zzz")
    assert ", ".join(CONFIGS) in str(error.value)


@pytest.mark.parametrize(
    "name",
    ["z" * 253, "z" * 50_000, "a\0b", "a\ud800b", None, 7, [1], {}],
    ids=lambda name: ascii(name)[:9],
)
def test_what_cannot_be_the_name_of_a_config_is_an_error(name):
    with pytest.raises(InputError) as error:
        find_config(name)
    assert len(str(error.value)) < 1200


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the system has no named pipes")
@pytest.mark.parametrize("read", [load_experiments, read_config])
def test_a_pipe_is_an_error_instead_of_a_wait_for_its_writer(tmp_path, read):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match="pipe"):
        read(tmp_path / "pipe")


def test_a_path_has_precedence_over_a_name_in_configs(tmp_path, monkeypatch):
    (tmp_path / "quickstart").write_text("seed: 7\n")
    monkeypatch.chdir(tmp_path)
    assert load_experiments("quickstart")[0].seed == 7


# === Experiments of a file ===


def test_a_config_without_lists_is_one_experiment(write):
    path = write("{task: sample, kind: gemma_only, llm_layers: 3}")
    assert load_experiments(path) == [Experiment(task="sample", kind="gemma_only", llm_layers=3)]


def test_each_makes_every_combination(write):
    path = write("kind: gemma_only\neach: {llm_layers: [1, 2], pooling: [mean, max]}")
    assert load_experiments(path) == [
        Experiment(kind="gemma_only", llm_layers=layers, pooling=pooling)
        for layers in (1, 2)
        for pooling in ("mean", "max")
    ]


def test_experiments_list_the_keys_that_differ(write):
    path = write(
        "epochs: 1\nexperiments:\n"
        "  - {kind: roberta_only, seed: 5}\n"
        "  - {kind: gemma_only, llm_layers: 7}\n",
    )
    assert load_experiments(path) == [
        Experiment(kind="roberta_only", epochs=1, seed=5),
        Experiment(kind="gemma_only", epochs=1, llm_layers=7),
    ]


def test_each_in_an_experiment_is_combined_with_each_at_the_top(write):
    path = write(
        "each: {seed: [1, 2]}\nexperiments:\n"
        "  - kind: roberta_only\n"
        "  - {kind: hybrid, each: {llm_layers: [3, 4]}}\n",
    )
    expected = [Experiment(kind="roberta_only", seed=seed) for seed in (1, 2)]
    expected += [Experiment(seed=seed, llm_layers=layers) for seed in (1, 2) for layers in (3, 4)]
    assert load_experiments(path) == expected


def test_the_keys_of_an_experiment_override_those_at_the_top(write):
    path = write("{seed: 1, epochs: 4, experiments: [{seed: 2}, {epochs: 5}]}")
    assert load_experiments(path) == [Experiment(seed=2, epochs=4), Experiment(seed=1, epochs=5)]


def test_a_mapping_among_the_values_sets_several_keys(write):
    path = write(
        "each:\n  task:\n"
        "    - sample\n"
        "    - {task: EmotionClassification, task_data: data/emotion, samples_per_label: 16}\n",
    )
    emotion = dict(task="EmotionClassification", task_data="data/emotion", samples_per_label=16)
    assert load_experiments(path) == [Experiment(task="sample"), Experiment(**emotion)]


def test_a_list_among_the_values_of_llm_layers_is_one_value(write):
    path = write("each: {llm_layers: [3, [3, 9], -1]}")
    assert [experiment.llm_layers for experiment in load_experiments(path)] == [3, (3, 9), -1]


def test_duplicate_experiments_are_dropped(write):
    path = write("experiments: [{seed: 1}, {each: {seed: [2, 1, 2]}}, {llm_layers: -1}]")
    assert [experiment.seed for experiment in load_experiments(path)] == [1, 2, Experiment().seed]


# === Overrides ===


def test_an_override_replaces_the_files_value_and_none_keeps_it(write):
    path = write("task: sample\nseed: 7\nepochs: 2\n")
    (experiment,) = load_experiments(path, seed=8, epochs=None)
    assert (experiment.seed, experiment.epochs) == (8, 2)


def test_overrides_hold_for_every_experiment(write):
    path = write("seed: 1\nexperiments: [{kind: roberta_only}, {each: {seed: [2, 3]}}]")
    experiments = load_experiments(path, seed=9, epochs=None, states_dir="elsewhere")
    settings = [(made.kind, made.seed, made.epochs, made.states_dir) for made in experiments]
    epochs = Experiment().epochs
    assert settings == [
        ("roberta_only", 9, epochs, "elsewhere"),
        ("hybrid", 9, epochs, "elsewhere"),
    ]


def test_a_setting_given_as_a_mapping_may_be_none(write):
    path = write("clip_norm: 2.0\n")
    (experiment,) = load_experiments(path, {"clip_norm": None})
    assert experiment.clip_norm is None


@pytest.mark.parametrize("values", ['{"epochs": 1}', "epochs=1", [("epochs", 1)], 7])
def test_settings_that_are_no_mapping_are_an_error_that_shows_one(values):
    with pytest.raises(InputError, match=r"-y 'OVERRIDES: \{epochs: 1\}'") as error:
        load_experiments("quickstart", values)
    assert repr(values) in str(error.value)


@pytest.mark.parametrize(
    ("option", "name", "value"),
    [
        ("llm_layers=10", "llm_layers", 10),
        ("llm_layers=[1, -1]", "llm_layers", [1, -1]),
        ("max_train_texts=null", "max_train_texts", None),
        ("learning_rate=1e-5", "learning_rate", 1e-5),
        ("seed=010", "seed", 10),
        ("kind=hybrid", "kind", "hybrid"),
    ],
)
def test_a_value_on_the_command_line_is_read_as_yaml(option, name, value):
    assert parse_overrides([option]) == {name: value}


@pytest.mark.parametrize("value", ["a=b", "dogs #2: cats", "010", "1e5", "no", "[x", "2030-01-01"])
@pytest.mark.parametrize("name", ["task", "task_data", "text_column", "llm_preset"])
def test_a_text_on_the_command_line_is_taken_as_it_is(name, value):
    (experiment,) = load_experiments("emotion", parse_overrides([f"{name} = {value}"]))
    assert getattr(experiment, name) == value


@pytest.mark.parametrize(("name", "value"), [("task_data", None), ("label_column", "null")])
def test_null_is_no_text_where_a_setting_may_be_null(name, value):
    assert parse_overrides([f"{name}=null"]) == {name: value}


@pytest.mark.parametrize("option", ["llm_layers", "", "=10", "llm_layers 10", "patience=", "=" * 9])
def test_an_override_without_key_equals_sign_or_value_is_an_error(option):
    with pytest.raises(InputError, match="setting=value|unknown setting") as error:
        load_experiments("quickstart", parse_overrides([option]))
    assert "=" in str(error.value)


@pytest.mark.parametrize("option", ["llm_layers=[1", "seed=" + "[" * 5000, "seed=!!int x"])
def test_an_override_that_is_not_yaml_is_an_error(option):
    with pytest.raises(InputError, match=r"--set '.*: the value is not YAML") as error:
        parse_overrides([option])
    assert len(str(error.value)) < 1200


def test_a_setting_given_twice_on_the_command_line_is_an_error():
    with pytest.raises(InputError, match="'seed' is given twice"):
        parse_overrides(["seed=1", "epochs=1", "seed=2"])


# === Invalid files ===


def test_the_error_for_an_invalid_value_names_the_file(write):
    with pytest.raises(InputError, match=r"my\.yaml: pooling is 'cls'"):
        load_experiments(write("pooling: cls\n"))


@pytest.mark.parametrize("content", [b"task: [sample\n", b"a: b: c\n", b"task: \xff\n"])
def test_the_error_for_a_file_that_is_not_yaml_is_one_line(tmp_path, content):
    path = tmp_path / "my.yaml"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"my\.yaml cannot be read as YAML") as error:
        read_config(path)
    assert "\n" not in str(error.value)


def test_a_file_that_cannot_be_read_is_an_error(tmp_path):
    with pytest.raises(InputError, match="cannot be read") as error:
        read_config(tmp_path)
    assert str(tmp_path) in str(error.value)


@pytest.mark.parametrize("content", ["", "- sample\n", "sample\n"])
def test_a_file_without_keys_is_an_error(write, content):
    with pytest.raises(InputError, match="`setting: value` lines"):
        read_config(write(content))


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        ("experiments: {kind: hybrid}", "experiments must be a list"),
        ("experiments: [hybrid]", "experiments must be a list"),
        ("experiments: ", "experiments must be a list"),
        ("each: [1, 2]", "`setting: [value, …]`"),
        ("each: ", "`setting: [value, …]`"),
        ("each: {seed: 33}", "`setting: [value, …]`"),
        ("experiments: [{each: {seed: 33}}]", "`setting: [value, …]`"),
        ("each: {sead: [33]}", "unknown setting 'sead'; did you mean 'seed'"),
        ("each: {task: [{taks: sample}]}", "unknown setting 'taks'; did you mean 'task'"),
        ("experiments: [{each: {seed: [33, x]}}]", "seed is 'x'"),
        ("experiments: [{experiments: [{seed: 1}]}]", "unknown setting 'experiments'"),
        ("each: {seed: []}", "holds no experiment"),
        ("experiments: []", "holds no experiment"),
        ("seed: 1\nepochs: 2\nseed: 3", "line 3: the key 'seed' is there twice"),
        ("each: {seed: [1], seed: [2]}", "the key 'seed' is there twice"),
        ("each: {variant: [{each: {seed: [1]}}]}", "unknown setting 'each'"),
        ("probe: yes", "probe is 'yes', but must be true or false"),
        ("seed: 1:30", "seed is '1:30'"),
        ("seed: 2030-01-01", "seed is '2030-01-01'"),
    ],
)
def test_the_error_for_an_invalid_structure_names_file_and_key(write, content, fault):
    path = write(content)
    with pytest.raises(InputError) as error:
        load_experiments(path)
    assert str(path) in str(error.value) and fault in str(error.value)


def test_a_number_with_a_leading_zero_is_decimal(write):
    (experiment,) = load_experiments(write("seed: 010\nmax_train_texts: 0200"))
    assert (experiment.seed, experiment.max_train_texts) == (10, 200)


def test_names_that_an_older_yaml_takes_for_something_else_stay_names(write):
    path = write("task: 2030-01-01\ntext_column: on\nlabel_column: n\nstates_dir: 12:30")
    (experiment,) = load_experiments(path)
    named = (experiment.task, experiment.text_column, experiment.label_column)
    assert (*named, experiment.states_dir) == ("2030-01-01", "on", "n", "12:30")


def test_experiments_may_share_a_part_by_an_alias(write):
    path = write(
        "experiments:\n"
        "  - &first {kind: hybrid, epochs: 1, each: {seed: [1, 2]}}\n"
        "  - *first\n"
        "  - {<<: *first, epochs: 2}\n"
    )
    made = [(experiment.epochs, experiment.seed) for experiment in load_experiments(path)]
    assert made == [(1, 1), (1, 2), (2, 1), (2, 2)]


@pytest.mark.parametrize(
    ("content", "count"),
    [
        ("each: {" + ", ".join(f"a{i}: {list(range(50))}" for i in range(8)) + "}", 50**8),
        (f"each: {{seed: {list(range(1000))}}}\nexperiments: {[{}] * 101}", 101_000),
    ],
)
def test_more_combinations_than_can_be_run_are_counted_instead_of_made(write, content, count):
    with pytest.raises(
        InputError, match=f"my.yaml makes {count} experiments, .* {MAX_EXPERIMENTS}"
    ):
        load_experiments(write(content))


def test_aliases_of_aliases_do_not_multiply(write):
    lists = ["- &a0 [1, 2, 3, 4, 5, 6, 7, 8, 9]"]
    lists += [f"- &a{i + 1} [{', '.join([f'*a{i}'] * 9)}]" for i in range(30)]
    with pytest.raises(InputError, match="seed is .* but must be an integer") as error:
        load_experiments(write("seed:\n" + "\n".join(lists)))
    assert len(str(error.value)) < 1200


# === Anything at all ===

NAMES = st.sampled_from([*settings(), "each", "experiments", "sead"]) | st.text(max_size=3)
PLAIN = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9)
VALUES = st.recursive(
    PLAIN | st.sampled_from(["auto", "sample", "hybrid", "x" * 20_000]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3),
    max_leaves=9,
)


def loads_or_explains(load):
    try:
        assert load()
    except InputError as error:
        message = str(error)
        assert message and "\n" not in message and len(message) < 1200


@given(st.dictionaries(NAMES, VALUES, max_size=4), st.booleans())
def test_any_mapping_makes_experiments_or_one_sentence(tmp_path_factory, values, in_file):
    if in_file:
        path = tmp_path_factory.getbasetemp() / "any.yaml"
        path.write_text(json.dumps(values))  # is YAML too
        loads_or_explains(lambda: load_experiments(path))
    else:
        loads_or_explains(lambda: load_experiments("quickstart", values))


@given(
    st.binary(max_size=60) | st.text(max_size=60).map(lambda text: text.encode(errors="replace"))
)
def test_any_file_makes_experiments_or_one_sentence(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_bytes(content)
    loads_or_explains(lambda: load_experiments(path))


@given(NAMES, st.text(max_size=30) | VALUES.map(str))
def test_any_override_makes_experiments_or_one_sentence(name, value):
    loads_or_explains(lambda: load_experiments("quickstart", parse_overrides([f"{name}={value}"])))


def test_a_setting_given_in_both_ways_is_an_error():
    with pytest.raises(InputError, match="'seed' is given twice"):
        load_experiments("quickstart", {"seed": 7}, seed=5)

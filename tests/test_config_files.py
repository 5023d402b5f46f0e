"""Config files: YAML to experiments, single or in combination, overrides, and invalid files."""

import pytest

from embedder_helpers.config import Experiment
from embedder_helpers.config_files import (
    CONFIG_FOLDER,
    find_config,
    load_experiments,
    parse_override,
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


@pytest.mark.parametrize("name", ["zzz", "z" * 5000])
def test_the_error_for_a_missing_config_lists_all_names(name):
    with pytest.raises(InputError) as error:
        find_config(name)
    assert ", ".join(CONFIGS) in str(error.value)


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
def test_an_override_on_the_command_line_is_parsed_as_yaml(setting, expected):
    assert parse_override(setting) == expected


@pytest.mark.parametrize("setting", ["llm_layers", "", "=10", "llm_layers 10"])
def test_an_override_without_key_or_equals_sign_is_an_error(setting):
    with pytest.raises(InputError, match="write setting=value") as error:
        parse_override(setting)
    assert repr(setting) in str(error.value)


@pytest.mark.parametrize("setting", ["llm_layers=[1", "seed=2024-13-45"])
def test_an_override_that_is_not_yaml_is_an_error(setting):
    with pytest.raises(InputError, match="the value is not YAML") as error:
        parse_override(setting)
    assert repr(setting) in str(error.value)


# === Invalid files ===


def test_the_error_for_an_invalid_value_names_the_file(write):
    with pytest.raises(InputError, match=r"my\.yaml: pooling is 'cls'"):
        load_experiments(write("pooling: cls\n"))


@pytest.mark.parametrize("content", [b"task: [sample\n", b"a: b: c\n", b"task: \xff\n"])
def test_the_error_for_a_file_that_is_not_yaml_is_one_line(tmp_path, content):
    path = tmp_path / "my.yaml"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"my\.yaml is not YAML") as error:
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
    ],
)
def test_the_error_for_an_invalid_structure_names_file_and_key(write, content, fault):
    path = write(content)
    with pytest.raises(InputError) as error:
        load_experiments(path)
    assert str(path) in str(error.value) and fault in str(error.value)

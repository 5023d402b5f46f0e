"""Config files: YAML to Experiments, one or a whole sweep, with overrides.

What a setting may hold is checked by `config`, when the Experiments are made.
"""

import difflib
import itertools
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from embedder_helpers.config import Experiment, make_experiment
from embedder_helpers.config import settings as known_settings
from embedder_helpers.errors import InputError, show, show_list
from embedder_helpers.utils.files import as_path, package_path
from embedder_helpers.utils.yaml_files import parse_yaml, read_yaml

CONFIG_FOLDER = package_path("configs", "configs")
MAX_EXPERIMENTS = 100_000  # of one file


def load_experiments(
    config: str | Path, settings: Mapping[str, Any] | None = None, **overrides: Any
) -> list[Experiment]:
    """Load the experiments of a config file, which may describe one or many.

    Settings at the top level hold for all experiments; `experiments` is a list of what differs.
    In both places `each` gives a list of values for a setting; every combination of them is an
    experiment. A value in such a list that is a mapping gives several settings at once.

    Args:
        config: path of a YAML file, or the name of one in `configs/`.
        settings: values that replace the file's in every experiment; None is null.
        overrides: the same, except that None keeps the file's value.

    Returns:
        The experiments in the file's order, without duplicates.

    Raises:
        InputError: no such file, an unknown setting, an invalid value, more than
            `MAX_EXPERIMENTS` experiments, a setting that is given twice.
    """
    if not isinstance(settings, Mapping | None):
        raise InputError(
            f"the settings (in a notebook: OVERRIDES) are {show(settings)}, but must be a "
            "dictionary, such as {\"epochs\": 1}; with papermill: -y 'OVERRIDES: {epochs: 1}'"
        )
    values = read_config(find_config(config))
    overridden = {name: value for name, value in overrides.items() if value is not None}
    if twice := sorted(overridden.keys() & (settings or {}).keys()):
        raise InputError(
            f"{show_list(twice)} is given twice, once among the settings (in a notebook: "
            "OVERRIDES): leave one out"
        )
    overridden |= settings or {}
    sections = values.pop("experiments", [{}])
    if not isinstance(sections, list) or not all(isinstance(part, dict) for part in sections):
        raise InputError(f"{config}: experiments must be a list of `setting: value` lines")
    fixed, lists = _split(values, str(config))
    parts = [_split(section, str(config)) for section in sections]
    count = _count(lists) * sum(_count(own_lists) for _, own_lists in parts)
    if count > MAX_EXPERIMENTS:
        raise InputError(
            f"{config} makes {show(count)} experiments, but may make at most {MAX_EXPERIMENTS}: "
            "list fewer values in `each`"
        )
    experiments = [
        make_experiment({**fixed, **common, **own_fixed, **own, **overridden}, where=str(config))
        for own_fixed, own_lists in parts
        for common in _combinations(lists)
        for own in _combinations(own_lists)
    ]
    if not experiments:
        raise InputError(f"{config} holds no experiment: a list in it is empty")
    return list(dict.fromkeys(experiments))


def find_config(config: str | Path) -> Path:
    """The file that a path, or a name in `configs/`, refers to.

    Raises:
        InputError: no such file, or no path at all; suggests the nearest name.
    """
    for path in (as_path(config), CONFIG_FOLDER / f"{config}.yaml"):
        if os.path.isfile(path):  # False where the path itself raises an error
            return path
    names = sorted(path.stem for path in CONFIG_FOLDER.glob("*.yaml"))
    near = difflib.get_close_matches(Path(config).stem, names, n=1)
    guess = f"; did you mean {near[0]!r}?" if near else "."
    raise InputError(
        f"no config file {show(str(config))}{guess} Give a path, or one of: {', '.join(names)}"
    )


def read_config(path: Path) -> dict[str, Any]:
    """Read the settings and values of a YAML file.

    Raises:
        InputError: it cannot be read, or is not a YAML mapping.
    """
    try:
        values = read_yaml(path)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from None
    except ValueError as error:
        raise InputError(f"{path} cannot be read as YAML: {error}") from None
    if not isinstance(values, dict):
        raise InputError(f"{path} must hold `setting: value` lines, such as `task: sample`")
    return values


def parse_overrides(settings: Sequence[str]) -> dict[str, Any]:
    """Parse a command line's `setting=value` options.

    The value of a setting that is text is taken as it is, without quotes around it, except null
    where that is allowed; other values are read as YAML.

    Raises:
        InputError: no setting, equals sign or value; a value that is not YAML; a setting twice.
    """
    values: dict[str, Any] = {}
    for option in settings:
        name, _, value = map(str.strip, option.partition("="))
        if not name or not value:
            raise InputError(
                f"--set {show(option)}: write setting=value, such as --set llm_layers=10"
            )
        if name in values:
            raise InputError(f"--set {show(name)} is given twice: leave one out")
        values[name] = _parse_value(name, value, option)
    return values


def _parse_value(name: str, value: str, option: str) -> Any:
    setting = known_settings().get(name)
    if setting and setting.rule.is_text:
        if setting.rule.is_optional and value == "null":
            return None
        is_quoted = len(value) > 2 and value[0] == value[-1] and value[0] in "'\""
        return value[1:-1] if is_quoted else value
    try:
        return parse_yaml(value)
    except ValueError as error:
        raise InputError(f"--set {show(option)}: the value is not YAML: {error}") from None


Lists = list[list[dict[str, Any]]]


def _split(values: Mapping[str, Any], where: str) -> tuple[dict[str, Any], Lists]:
    """The fixed settings, and the lists of `each`, every element of which is some settings."""
    fixed = {name: value for name, value in values.items() if name != "each"}
    each = values.get("each", {})
    if not isinstance(each, dict) or not all(isinstance(axis, list) for axis in each.values()):
        raise InputError(
            f"{where}: each must hold `setting: [value, …]` lines, such as seed: [33, 34]"
        )
    lists = [
        [value if isinstance(value, dict) else {name: value} for value in axis]
        for name, axis in each.items()
    ]
    return fixed, lists


def _count(lists: Lists) -> int:
    return math.prod(map(len, lists))


def _combinations(lists: Lists) -> Iterator[dict[str, Any]]:
    """Every combination of one element of each list, as one dictionary."""
    for selected in itertools.product(*lists):
        yield {name: value for settings in selected for name, value in settings.items()}

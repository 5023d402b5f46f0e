"""Config files: YAML to Experiments, one or a whole sweep, with overrides.

What a setting may hold is checked by `config`, when the Experiments are made.
"""

import contextlib
import difflib
import itertools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from embedder_helpers.config import Experiment, make_experiment
from embedder_helpers.errors import InputError
from embedder_helpers.utils.files import package_path

CONFIG_FOLDER = package_path("configs", "configs")


def load_experiments(
    config: str | Path, settings: Mapping[str, Any] | None = None, **overrides: Any
) -> list[Experiment]:
    """Load the experiments of a config file, which may describe one or many.

    Settings at the top level hold for all experiments; `experiments` is a list of what differs.
    In both places `each` gives a list of values for a setting; every combination of them is an
    experiment. A value in such a list that is a mapping gives several settings at once.

    Args:
        config: path of a YAML file, or the name of one in `configs/`.
        settings: values that replace the file's in every experiment.
        overrides: the same, except that None keeps the file's value.

    Returns:
        The experiments in the file's order, without duplicates.

    Raises:
        InputError: no such file, an unknown setting, an invalid value.
    """
    values = read_config(find_config(config))
    overridden = {name: value for name, value in overrides.items() if value is not None}
    overridden |= settings or {}
    sections = values.pop("experiments", [{}])
    if not isinstance(sections, list) or not all(isinstance(part, dict) for part in sections):
        raise InputError(f"{config}: experiments must be a list of `setting: value` lines")
    experiments = [
        make_experiment({**combination, **overridden}, where=str(config))
        for section in sections
        for common in _combinations(values, str(config))
        for combination in _combinations({**common, **section}, str(config))
    ]
    if not experiments:
        raise InputError(f"{config} holds no experiment: a list in it is empty")
    return list(dict.fromkeys(experiments))


def find_config(config: str | Path) -> Path:
    """The file that a path, or a name in `configs/`, refers to.

    Raises:
        InputError: no such file; suggests the nearest name.
    """
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
    """Read the settings and values of a YAML file.

    Raises:
        InputError: it cannot be read, or is not a YAML mapping.
    """
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, ValueError) as error:  # ValueError: dates like 2024-13-45, bad UTF-8
        reason = " ".join(str(error).split())
        raise InputError(f"{path} is not YAML: {reason}") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from None
    if not isinstance(values, dict):
        raise InputError(f"{path} must hold `setting: value` lines, such as `task: sample`")
    return values


def parse_override(setting: str) -> tuple[str, Any]:
    """Parse a command line's `setting=value`; the value is read as YAML.

    Raises:
        InputError: no setting, no equals sign, or a value that is not YAML.
    """
    name, equals, value = setting.partition("=")
    if not equals or not name.strip():
        raise InputError(f"--set {setting!r}: write setting=value, such as --set llm_layers=10")
    try:
        return name.strip(), yaml.safe_load(value)
    except (yaml.YAMLError, ValueError):
        raise InputError(f"--set {setting!r}: the value is not YAML") from None


def _combinations(values: Mapping[str, Any], where: str) -> Iterator[dict[str, Any]]:
    """Every combination of the values that `each` lists, with the other settings."""
    fixed = {name: value for name, value in values.items() if name != "each"}
    each = values.get("each", {})
    if not isinstance(each, dict) or not all(isinstance(axis, list) for axis in each.values()):
        raise InputError(
            f"{where}: each must hold `setting: [value, …]` lines, such as seed: [33, 34]"
        )
    axes = [[_as_settings(name, value) for value in axis] for name, axis in each.items()]
    for selected in itertools.product(*axes):
        combination = dict(fixed)
        for settings in selected:
            combination |= settings
        yield combination


def _as_settings(name: str, value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {name: value}

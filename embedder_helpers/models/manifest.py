"""The manifest of a saved embedder, `embedder.json`: its fields, and whether they can be true.

A checksum shows damage; manifests of versions that had none are checked as far as their values
contradict one another. The files that it names are left to `saving`.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypedDict

from embedder_helpers.config import BEFORE_SETTING_EXISTED, settings
from embedder_helpers.errors import InputError, show, show_list
from embedder_helpers.models.presets import ROLES
from embedder_helpers.setting_rules import SELECTED
from embedder_helpers.utils.json_files import CHECKSUM, check_checksum, with_checksum
from embedder_helpers.utils.stored_values import Condition, between, check_fields, check_settings

FORMAT = 1  # raised when a folder's content changes
ARRAYS_FILE = "joint.safetensors"
PRESET_FOLDERS = {"llm_preset": "gemma", "slm_preset": "roberta"}
CHEAP_FOLDER = "cheap"  # the embedder that answers first in a cascade
# Settings that saving changes, so that they hold for a truncated Gemma and in another folder.
CHANGED_SETTINGS = ("llm_preset", "slm_preset", "llm_layers", "final_norm", "projection_start")

Width = Annotated[int, between(1)]
Temperature = Annotated[float, Condition("a number above 0", lambda value: value > 0)]


class PresetFields(TypedDict):
    """What the manifest says about a pretrained model."""

    name: str
    fingerprint: str
    width: Width


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What `embedder.json` holds.

    Attributes:
        format: version of the folder's format.
        experiment: settings without which the embedder cannot be rebuilt.
        presets: name, fingerprint and width of each pretrained model, by its setting.
        classes: labels of the head, in its order; None without a head.
        width: size of an embedding.
        versions: versions of Python and the packages that saved it.
        result: fields of the result file of its run; None if there was none.
        files: SHA-256 of every other file, by its path in the folder.
        revision: hash of the content, eight hexadecimal digits.
        cheap_temperature: temperature of the cheap classifier in its folder; None if there is none.
    """

    format: int = FORMAT
    experiment: dict[str, Any]
    presets: dict[str, PresetFields]
    classes: list[int | str] | None
    width: Width
    versions: dict[str, str] = dataclasses.field(default_factory=dict)
    result: dict[str, Any] | None = None
    files: dict[str, str]
    revision: str = ""
    cheap_temperature: Temperature | None = None

    def as_json(self) -> str:
        """The content of `embedder.json`, with its checksum."""
        return with_checksum(dataclasses.asdict(self))

    @property
    def contains_gemma(self) -> bool:
        """Whether the truncated Gemma's weights are in the folder."""
        return any(name.startswith("gemma/") for name in self.files)


def parse_manifest(folder: Path, values: Any) -> Manifest:
    """The manifest of the values in `embedder.json`.

    Args:
        folder: folder of the embedder, for a message.
        values: what the file holds.

    Raises:
        InputError: a later version wrote it.
        ValueError: it is damaged, or not a manifest.
    """
    content = check_checksum(values)
    if isinstance(content.get("format"), int) and content["format"] > FORMAT:
        raise _later_version(folder, f"format is {show(content['format'])}")
    if CHECKSUM in values:  # a later version's fields, which may be ignored in the same format
        known = {field.name for field in dataclasses.fields(Manifest)}
        content = {name: value for name, value in content.items() if name in known}
    try:
        check_fields(content, Manifest)
        manifest = Manifest(**content)
        _check_consistency(manifest)
    except (ValueError, TypeError) as error:
        if CHECKSUM in values:  # and so as it was written
            raise _later_version(folder, str(error)) from None
        raise ValueError(str(error)) from None
    return manifest


def _later_version(folder: Path, reason: str) -> InputError:
    return InputError(
        f"{folder} was saved by a later version, which this one cannot read ({reason}): "
        "update embedder_helpers"
    )


def check_manifest(manifest: Manifest) -> None:
    """Raise ValueError if a value is of another type, is not allowed, or contradicts others."""
    check_fields(vars(manifest), Manifest)
    _check_consistency(manifest)


def _check_consistency(manifest: Manifest) -> None:
    """Raise ValueError if a value is not allowed, or contradicts others."""
    experiment, saved = manifest.experiment, _saved_settings()
    check_settings(experiment, saved - BEFORE_SETTING_EXISTED.keys(), "experiment")
    roles, classes = ROLES[experiment["kind"]], manifest.classes
    if manifest.format != FORMAT:
        raise ValueError(f"format is {manifest.format}")
    if manifest.presets.keys() != set(roles):
        raise ValueError(f"presets has {show_list(manifest.presets)}, not those of its kind")
    if "llm_preset" in roles and experiment["llm_layers"] in SELECTED:
        raise ValueError("llm_layers is a word, but must be the layers that were selected")
    if manifest.width != manifest.presets[roles[-1]]["width"] * (1 + _is_late(experiment)):
        raise ValueError(f"width is {manifest.width}, not that of its pretrained model")
    if classes is not None and not (
        len(set(classes)) == len(classes) and len(set(map(type, classes))) == 1
    ):
        raise ValueError(f"classes is {show(classes)}, not distinct integers or distinct strings")
    needed = {ARRAYS_FILE} | ({"roberta/config.json"} if "slm_preset" in roles else set())
    if missing := needed - manifest.files.keys():
        raise ValueError(f"files has no {min(missing)}")
    has_cheap = f"{CHEAP_FOLDER}/embedder.json" in manifest.files
    if has_cheap != (manifest.cheap_temperature is not None):
        raise ValueError(f"cheap_temperature is {manifest.cheap_temperature}, against its files")
    if manifest.result is not None:
        _check_against_result(experiment, manifest.result)


def _is_late(experiment: Mapping[str, Any]) -> bool:
    return experiment["kind"] == "hybrid" and experiment.get("late_fusion", False)


def _check_against_result(experiment: Mapping[str, Any], result: Mapping[str, Any]) -> None:
    """Raise ValueError if the settings are not those of the result, which has them once more."""
    layers, repeated = experiment["llm_layers"], result.get("experiment")
    pairs = {"llm_layers": (layers if isinstance(layers, list) else [layers], "cutoffs", result)}
    if isinstance(repeated, dict):
        kept = _saved_settings() & experiment.keys() - set(CHANGED_SETTINGS)
        pairs |= {name: (experiment[name], name, repeated) for name in kept}
    for name, (value, key, holder) in pairs.items():
        # Without Gemma there are no cutoffs, and older results lack some settings.
        if holder.get(key) and holder[key] != value:
            raise ValueError(f"{name} is {show(value)}, but its result has {show(holder[key])}")


def _saved_settings() -> set[str]:
    return {name for name, setting in settings().items() if setting.saved}

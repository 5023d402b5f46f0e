"""The manifest of a saved embedder: what is refused in one that has no checksum."""

import json
from pathlib import Path

import pytest

from embedder_helpers.config import Experiment, settings
from embedder_helpers.errors import InputError
from embedder_helpers.models import manifest as manifest_module
from embedder_helpers.models.manifest import Manifest, check_manifest, parse_manifest
from embedder_helpers.utils.json_files import with_checksum

SAVED = [name for name, setting in settings().items() if setting.saved]
GEMMA = {"name": "tiny_gemma", "fingerprint": "0123", "width": 96}
ROBERTA = {"name": "tiny_roberta", "fingerprint": "4567", "width": 128}


def experiment(**values):
    every = Experiment(llm_layers=3, fusion="replace", late_fusion=False).as_dict()
    return {name: every[name] for name in SAVED} | values


def hybrid(**values):
    """The fields of a hybrid's manifest as a version without checksums wrote them."""
    return {
        "format": 1,
        "experiment": experiment(),
        "presets": {"llm_preset": GEMMA, "slm_preset": ROBERTA},
        "classes": ["no", "yes"],
        "width": 128,
        "versions": {"python": "3.12"},
        "result": {"cutoffs": [3], "experiment": experiment() | {"seed": 1}},
        "files": dict.fromkeys(["joint.safetensors", "roberta/config.json"], "89ab"),
        "revision": "01234567",
    } | values


def parse(values):
    return parse_manifest(Path("saved"), values)


def test_a_manifest_is_read_back_as_it_was_written():
    manifest = Manifest(**hybrid())
    check_manifest(manifest)
    assert parse(json.loads(manifest.as_json())) == manifest
    assert parse(hybrid()) == manifest


@pytest.mark.parametrize(
    "changed",
    [
        {"format": 0},
        {"format": "1"},
        {"experiment": []},
        {"experiment": experiment(max_tokens=0)},
        {"experiment": experiment(max_tokens="256")},
        {"experiment": experiment(llm_layers="auto")},
        {"experiment": experiment(unknown=1)},
        {"experiment": experiment(late_fusion=1)},
        {"experiment": experiment(late_fusion="true"), "width": 256},
        {"experiment": {"kind": "hybrid"}},
        {"presets": None},
        {"presets": {"llm_preset": GEMMA}},
        {"presets": {"llm_preset": GEMMA, "slm_preset": {"name": "a", "fingerprint": "b"}}},
        {"presets": {"llm_preset": GEMMA, "slm_preset": ROBERTA | {"width": -1}}},
        {"classes": "ab"},
        {"classes": []},
        {"classes": ["a", "a"]},
        {"classes": ["1", 1]},
        {"classes": [True, False]},
        {"width": 96},
        {"width": 128.0},
        {"versions": {"python": 3}},
        {"result": "none"},
        {"files": ["joint.safetensors"]},
        {"files": {"joint.safetensors": "89ab"}},
        {"files": {"roberta/config.json": "89ab"}},
        {"revision": None},
        {"unknown": 1},
    ],
    ids=str,
)
def test_a_value_that_no_manifest_has_is_an_error(changed):
    with pytest.raises(ValueError):
        parse(hybrid(**changed))


@pytest.mark.parametrize("name", ["experiment", "presets", "classes", "width", "files"])
def test_a_missing_field_is_an_error(name):
    values = hybrid()
    del values[name]
    with pytest.raises(ValueError, match=name):
        parse(values)


@pytest.mark.parametrize(
    "changed", [dict(llm_layers=2), dict(llm_layers=[1, 3]), dict(max_tokens=257)], ids=str
)
def test_settings_that_contradict_the_result_are_an_error(changed):
    with pytest.raises(ValueError, match="its result has"):
        parse(hybrid(experiment=experiment(**changed)))


def test_late_fusion_doubles_the_width():
    late = experiment(late_fusion=True)
    result = {"cutoffs": [3], "experiment": late}
    assert parse(hybrid(experiment=late, width=256, result=result)).width == 256
    with pytest.raises(ValueError, match="width is 128"):
        parse(hybrid(experiment=late, result=result))
    with pytest.raises(ValueError, match="width is 256"):
        parse(hybrid(width=256))


def test_late_fusion_doubles_no_width_but_a_hybrids():
    alone = experiment(kind="roberta_only", late_fusion=True)
    values = {"experiment": alone, "presets": {"slm_preset": ROBERTA}, "result": None}
    assert parse(hybrid(**values)).width == 128


@pytest.mark.parametrize("has_checksum", [False, True])
def test_a_manifest_older_than_late_fusion_is_read(has_checksum):
    older = experiment()
    del older["late_fusion"]
    values = hybrid(experiment=older, result={"cutoffs": [3], "experiment": older})
    if has_checksum:
        values = json.loads(with_checksum(values))
    assert parse(values).width == 128


def test_a_fusion_that_another_process_registered_is_no_damage():
    parse(hybrid(experiment=experiment(fusion="mine"), result=None))


def test_a_later_versions_additions_are_no_damage_where_there_is_a_checksum():
    values = json.loads(with_checksum(hybrid(unknown=1)))
    assert parse(values) == Manifest(**hybrid())


@pytest.mark.parametrize(
    "changed",
    [
        {"experiment": experiment(later=1)},
        {"experiment": experiment(pooling="later")},
        {"presets": {"llm_preset": GEMMA, "slm_preset": ROBERTA | {"later": 1}}},
    ],
    ids=str,
)
def test_what_a_later_version_alone_can_have_written_is_named(changed):
    with pytest.raises(InputError, match="later.*update embedder_helpers"):
        parse(json.loads(with_checksum(hybrid(**changed))))


def test_the_fields_of_a_manifest_are_checked_once(monkeypatch):
    calls = []
    monkeypatch.setattr(manifest_module, "check_fields", lambda *_: calls.append(1))
    parse(hybrid())
    assert len(calls) == 1


def test_a_later_format_is_named():
    with pytest.raises(InputError, match="format is 2.*update embedder_helpers"):
        parse(hybrid(format=2))

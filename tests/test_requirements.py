"""Requirements: Kaggle's versions satisfy them, so that installing changes none."""

import importlib.metadata
import json
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parent.parent


def requirements(name):
    lines = (ROOT / name).read_text().splitlines()
    found = map(Requirement, (line for line in lines if line and line[0] not in "#-"))
    return {requirement.name: requirement.specifier for requirement in found}


KAGGLE = {
    name: str(bounds).removeprefix("==")
    for name, bounds in requirements("requirements-kaggle.txt").items()
}


OURS = requirements("requirements.txt")


@pytest.mark.parametrize("name", [name for name in KAGGLE if name in OURS])
def test_kaggles_version_satisfies_our_bound(name):
    assert OURS[name].contains(KAGGLE[name])


def test_requirements_have_only_lower_bounds():
    for name, bounds in OURS.items():
        assert [bound.operator for bound in bounds] == [">="], name


def test_on_kaggles_versions_an_installation_changes_nothing():
    installed = {name: importlib.metadata.version(name) for name in KAGGLE}
    if installed != KAGGLE:
        pytest.skip("these are not Kaggle's versions: see requirements-kaggle.txt")
    options = ["--dry-run", "--quiet", "--report", "-", "--requirement", "requirements.txt"]
    command = [sys.executable, "-m", "pip", "install", *options]
    report = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    changed = json.loads(report)["install"]
    assert [package["metadata"]["name"] for package in changed] == []

"""Requirements: the platforms' versions satisfy them, so that installing changes none."""

from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parent.parent


def requirements(name):
    lines = (ROOT / name).read_text().splitlines()
    found = map(Requirement, (line for line in lines if line and line[0] not in "#-"))
    return {requirement.name: requirement.specifier for requirement in found}


def versions(platform):
    bounds = requirements(f"requirements-{platform}.txt")
    return {name: str(bound).removeprefix("==") for name, bound in bounds.items()}


PLATFORMS = {"kaggle": versions("kaggle"), "colab": versions("colab")}
OURS = requirements("requirements.txt")


@pytest.mark.parametrize(
    ("platform", "name"),
    [(platform, name) for platform, found in PLATFORMS.items() for name in found if name in OURS],
)
def test_a_platforms_version_satisfies_our_bound(platform, name):
    assert OURS[name].contains(PLATFORMS[platform][name])


def test_both_platforms_name_the_same_packages():
    of_kaggle_alone = {"ray"}  # Colab has none, and one GPU
    assert set(PLATFORMS["kaggle"]) - of_kaggle_alone == set(PLATFORMS["colab"])


def test_requirements_have_only_lower_bounds():
    for name, bounds in OURS.items():
        assert [bound.operator for bound in bounds] == [">="], name

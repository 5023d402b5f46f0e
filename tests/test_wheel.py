"""The wheel: it contains every file of the package, and imports where nothing else is installed."""

import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import embedder_helpers as eh

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = sorted(path.parent.name for path in ROOT.glob("embedder_helpers/*/__init__.py"))
IMPORT = """
import json
import embedder_helpers as eh
from embedder_helpers.builtin import BUILTIN_PRESETS, BUILTIN_TASKS, BUILTIN_FOLDER
from embedder_helpers.utils.files import package_path
carried = [*BUILTIN_TASKS.values(), *(BUILTIN_FOLDER / name for name in BUILTIN_PRESETS)]
carried += [package_path("configs", "configs"), package_path("reference", "results/reference")]
print(json.dumps({
    "file": eh.__file__,
    "version": eh.__version__,
    "dir": dir(eh),
    "kinds": [experiment.kind for experiment in eh.with_baselines([eh.Experiment()])],
    "folders": [folder.is_dir() for folder in carried],
}))
"""

pytestmark = pytest.mark.slow


def run(*command, **options):
    process = subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, **options
    )
    assert process.returncode == 0, process.stdout + process.stderr
    return process.stdout


def project_files():
    """The files of the project that git would keep."""
    if not (ROOT / ".git").exists() or not shutil.which("git"):
        pytest.skip("the wheel is built from a clone's files")
    listed = run("git", "ls-files", "--cached", "--others", "--exclude-standard", "-z", cwd=ROOT)
    return [name for name in listed.split("\0") if name and (ROOT / name).is_file()]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel of a copy of the project, whose folder the build may write to."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in project_files():
        copy = folder / "project" / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, copy)
    options = ["--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", folder]
    run(sys.executable, "-m", "pip", "wheel", folder / "project", *options)
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def names(wheel):
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """What a process printed that imported the wheel without its dependencies."""
    folder = tmp_path_factory.mktemp("empty")
    run(sys.executable, "-m", "venv", "--without-pip", folder / "venv")
    python = folder / "venv" / "bin" / "python"
    options = ["--quiet", "--no-deps", "--no-index", wheel]
    run(sys.executable, "-m", "pip", "--python", python, "install", *options)
    return json.loads(run(python, "-I", "-c", IMPORT, cwd=folder))


@pytest.mark.parametrize("package", PACKAGES)
def test_the_wheel_contains_every_file_of_a_package(names, package):
    folder = f"embedder_helpers/{package}/"
    files = {name for name in project_files() if name.startswith(folder)}
    # Figures of the built-in models' page, which is not needed to run them.
    files -= {name for name in files if name.startswith("embedder_helpers/builtin/curve")}
    assert f"{folder}__init__.py" in files and files <= names


def test_the_wheel_contains_every_module_at_the_top(names):
    assert {f"embedder_helpers/{path.name}" for path in ROOT.glob("embedder_helpers/*.py")} <= names


@pytest.mark.parametrize(
    ("pattern", "folder"),
    [("configs/*.yaml", "configs"), ("results/reference/*.csv", "reference")],
)
def test_the_wheel_contains_the_configs_and_the_reference_figures(names, pattern, folder):
    files = {f"embedder_helpers/{folder}/{path.name}" for path in ROOT.glob(pattern)}
    assert files and files <= names


def test_the_wheel_contains_no_tests_tools_or_results(names):
    assert {name.split("/")[0].split("-")[0] for name in names} == {
        "embedder_helpers",
        "embedder_gemma_roberta",
    }


def test_the_public_api_imports_without_any_dependency(installed):
    assert "venv" in installed["file"]
    assert installed["version"] == eh.__version__
    assert set(eh.__all__) < set(installed["dir"])
    assert installed["kinds"] == ["roberta_only", "gemma_only", "hybrid"]


def test_the_installed_package_finds_its_models_samples_configs_and_figures(installed):
    assert installed["folders"] == [True] * 6

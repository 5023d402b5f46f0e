"""Environment: the platform, its devices and folders, versions and secrets."""

import logging
import re
import subprocess
import sys
import types
from pathlib import Path

import keras
import psutil
import pytest

from embedder_helpers.utils import environment
from embedder_helpers.utils.environment import states_folder  # the original; all tests replace it

CLONE = Path(environment.__file__).resolve().parent.parent.parent


@pytest.fixture(autouse=True)
def local(monkeypatch):
    """Neither Kaggle nor Colab, whatever the machine."""
    monkeypatch.delenv("KAGGLE_KERNEL_RUN_TYPE", raising=False)
    for module in ("google.colab", "kaggle_secrets"):
        monkeypatch.delitem(sys.modules, module, raising=False)


def put_kaggle_secrets(monkeypatch, secrets):
    class UserSecretsClient:
        def get_secret(self, label):
            return secrets[label]

    module = types.ModuleType("kaggle_secrets")
    module.UserSecretsClient = UserSecretsClient
    monkeypatch.setitem(sys.modules, "kaggle_secrets", module)


def put_colab(monkeypatch, secrets):
    module = types.ModuleType("google.colab")
    module.userdata = types.SimpleNamespace(get=lambda label: secrets[label])
    monkeypatch.setitem(sys.modules, "google.colab", module)
    if "google" not in sys.modules:
        monkeypatch.setitem(sys.modules, "google", types.ModuleType("google"))


def put_gpus(monkeypatch, *details):
    """GPUs in place of TensorFlow's devices, by their details."""
    tensorflow = pytest.importorskip("tensorflow")
    config = tensorflow.config
    for name in ("list_physical_devices", "get_visible_devices"):
        monkeypatch.setattr(config, name, lambda kind: list(range(len(details))))
    monkeypatch.setattr(config.experimental, "get_device_details", details.__getitem__)


# === The platform and its folders ===


def test_any_other_machine_is_local():
    assert environment.platform_name() == "local"


@pytest.mark.parametrize("run_type", ["Interactive", "Batch", ""])
def test_kaggle_is_detected_by_its_environment_variable(monkeypatch, run_type):
    monkeypatch.setenv("KAGGLE_KERNEL_RUN_TYPE", run_type)
    assert environment.platform_name() == "kaggle"


def test_colab_is_detected_by_its_module(monkeypatch):
    put_colab(monkeypatch, {})
    assert environment.platform_name() == "colab"


@pytest.mark.parametrize(
    ("platform", "folder"),
    [("kaggle", "/kaggle/working/results"), ("colab", "/content/results")],
)
def test_results_go_to_the_platforms_output_folder(monkeypatch, platform, folder):
    monkeypatch.setattr(environment, "platform_name", lambda: platform)
    assert environment.results_folder().as_posix() == folder


@pytest.mark.parametrize(
    ("platform", "folder"), [("kaggle", "/kaggle/temp/states"), ("colab", "/content/states")]
)
def test_hidden_states_go_to_the_platforms_scratch_folder(monkeypatch, platform, folder):
    monkeypatch.setattr(environment, "platform_name", lambda: platform)
    assert states_folder().as_posix() == folder


def test_in_a_clone_results_and_hidden_states_go_beside_the_package():
    assert environment.results_folder() == CLONE / "results"
    assert states_folder() == CLONE / "states"


def test_with_an_installed_wheel_results_go_to_the_working_folder(monkeypatch, tmp_path):
    monkeypatch.setattr(environment, "PACKAGE", tmp_path / "site-packages" / "embedder_helpers")
    monkeypatch.chdir(tmp_path)
    assert environment.results_folder() == tmp_path / "results"


def test_a_session_prints_the_description_and_names_its_folder_after_the_config(
    monkeypatch, tmp_path, capsys
):
    monkeypatch.setattr(environment, "results_folder", lambda: tmp_path)
    assert environment.start_session(None, "my/sweep.yaml") == tmp_path / "sweep"
    assert environment.start_session(str(tmp_path / "mine"), "sweep") == tmp_path / "mine"
    assert environment.describe(tmp_path / "mine") in capsys.readouterr().out


def test_a_tilde_in_a_sessions_folders_is_the_home_folder(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    assert environment.start_session("~/out", "quickstart", "~/states") == tmp_path / "out"
    output = capsys.readouterr().out
    assert str(tmp_path / "out") in output and str(tmp_path / "states") in output


def test_the_description_has_devices_precision_folders_and_free_space(monkeypatch, tmp_path):
    monkeypatch.setattr(environment, "devices", lambda: ["Some GPU"])
    text = environment.describe(tmp_path, tmp_path / "not" / "yet")
    assert "local: Some GPU; Gemma in " in text
    assert f"{tmp_path.resolve()} (" in text
    assert f"{(tmp_path / 'not' / 'yet').resolve()} (" in text
    assert len(re.findall(r"\d+ GB free", text)) == 3


# === Devices ===


@pytest.mark.parametrize(("device", "expected"), [("CPU, 2 cores", True), ("Tesla T4", False)])
def test_a_cpu_is_detected_by_its_name(monkeypatch, device, expected):
    monkeypatch.setattr(environment, "devices", lambda: [device])
    assert environment.on_cpu() == expected


@pytest.mark.parametrize(
    ("details", "dtype"),
    [
        ([], "float32"),
        ([{"device_name": "Tesla T4", "compute_capability": (7, 5)}], "mixed_float16"),
        ([{"device_name": "Tesla T4", "compute_capability": (7, 5)}] * 2, "mixed_float16"),
        ([{"device_name": "Quadro P2000", "compute_capability": (6, 1)}], "float32"),
        ([{"device_name": "GPU"}], "float32"),
    ],
)
def test_training_uses_float16_only_on_tensor_cores(monkeypatch, details, dtype):
    put_gpus(monkeypatch, *details)
    assert environment.training_dtype() == dtype


@pytest.mark.parametrize(
    ("flags", "expected"),
    [("avx512f avx512_bf16", "bfloat16"), ("amx_bf16", "bfloat16"), ("avx2 avx512f", None)],
)
def test_a_cpu_has_bfloat16_if_it_multiplies_it(monkeypatch, flags, expected):
    monkeypatch.setattr(environment, "devices", lambda: ["CPU, 2 cores"])
    monkeypatch.setattr(environment, "_cpu_flags", lambda: set(flags.split()))
    is_jax = keras.config.backend() == "jax"
    assert environment.half_dtype() == (None if is_jax else expected)


@pytest.mark.parametrize(
    ("capability", "expected"),
    [((6, 0), None), ((7, 5), "float16"), ((8, 0), "bfloat16"), ((9, 0), "bfloat16")],
)
def test_a_gpu_has_bfloat16_since_ampere_and_float16_before(monkeypatch, capability, expected):
    monkeypatch.setattr(environment, "devices", lambda: ["Some GPU"])
    monkeypatch.setattr(environment, "_compute_capability", lambda backend: capability)
    assert environment.half_dtype() == expected


def test_a_cpus_free_memory_is_what_the_system_has(monkeypatch):
    monkeypatch.setattr(environment, "devices", lambda: ["CPU, 2 cores"])
    available = psutil.virtual_memory().available
    assert environment.free_memory() == pytest.approx(available, rel=0.2)


@pytest.mark.parametrize(
    ("report", "expected"), [("15360\n15360\n", 15360 * 2**20), ("[N/A]\n", 15e9), (None, 15e9)]
)
def test_a_gpus_memory_is_read_from_nvidias_tool(monkeypatch, report, expected):
    def run(command, **options):
        if report is None:
            raise FileNotFoundError(command[0])
        return subprocess.CompletedProcess(command, 0, stdout=report)

    monkeypatch.setattr(subprocess, "run", run)
    environment._gpu_memory.cache_clear()
    assert environment._gpu_memory() == expected
    environment._gpu_memory.cache_clear()


def error_named(name, message=""):
    return type(name, (Exception,), {})(message)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (MemoryError(), True),
        (error_named("ResourceExhaustedError", "OOM when allocating tensor"), True),
        (error_named("OutOfMemoryError", "CUDA out of memory"), True),
        (error_named("XlaRuntimeError", "RESOURCE_EXHAUSTED: Out of memory"), True),
        (error_named("InternalError", "Failed to allocate: out of memory"), True),
        (error_named("InternalError", "a bug"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_out_of_memory_is_recognized_in_the_errors_of_every_backend(error, expected):
    assert environment.is_out_of_memory(error) is expected


@pytest.mark.skipif(keras.config.backend() != "tensorflow", reason="other backends take all GPUs")
@pytest.mark.parametrize(
    ("visible", "expected"), [("", 0), ("-1", 0), ("2", 1), ("2,3", 2), ("GPU-a, GPU-b,", 2)]
)
def test_gpus_are_those_that_cuda_shows(monkeypatch, visible, expected):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert environment.count_gpus() == expected


@pytest.mark.skipif(keras.config.backend() != "tensorflow", reason="other backends take all GPUs")
def test_without_a_choice_all_gpus_of_the_machine_count(monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(Path, "glob", lambda folder, pattern: iter(["nvidia0", "nvidia1"]))
    assert environment.count_gpus() == 2


@pytest.mark.parametrize("initialized", [False, True])
def test_all_gpus_are_left_to_others_unless_they_are_initialized(monkeypatch, caplog, initialized):
    tensorflow, visible = pytest.importorskip("tensorflow"), []

    def set_visible(devices, kind):
        if initialized:
            raise RuntimeError("Visible devices cannot be modified after being initialized")
        visible.append((devices, kind))

    monkeypatch.setattr(tensorflow.config, "set_visible_devices", set_visible)
    with caplog.at_level(logging.WARNING, "embedder_helpers"):
        environment.hide_gpus()
    assert visible == ([] if initialized else [([], "GPU")])
    assert ("restart the notebook" in caplog.text) is initialized


# === Versions ===


def test_the_versions_include_python_and_every_package():
    versions = environment.package_versions()
    assert set(versions) == {"embedder_helpers", "python", *environment.PACKAGES}
    assert versions["python"] == sys.version.split()[0]


def test_a_package_that_is_not_installed_is_absent(monkeypatch):
    monkeypatch.setattr(environment, "PACKAGES", ("no-such-package-anywhere",))
    assert environment.package_versions()["no-such-package-anywhere"] == "absent"


# === Secrets ===


def test_a_secret_is_read_from_the_environment_first(monkeypatch):
    put_kaggle_secrets(monkeypatch, {"MY_SECRET": "from kaggle"})
    monkeypatch.setenv("MY_SECRET", "from the environment")
    assert environment.get_secret("MY_SECRET") == "from the environment"


@pytest.mark.parametrize("put", [put_kaggle_secrets, put_colab])
def test_a_secret_is_read_from_the_platforms_service(monkeypatch, put):
    monkeypatch.setenv("MY_SECRET", "")  # an empty variable is not a secret
    put(monkeypatch, {"MY_SECRET": "from the service"})
    assert environment.get_secret("MY_SECRET") == "from the service"


@pytest.mark.parametrize("put", [put_kaggle_secrets, put_colab])
def test_a_secret_that_the_service_lacks_is_none(monkeypatch, put):
    monkeypatch.delenv("MY_SECRET", raising=False)
    put(monkeypatch, {"OTHER": "value"})
    assert environment.get_secret("MY_SECRET") is None


def test_without_any_service_a_missing_secret_is_none(monkeypatch):
    monkeypatch.setenv("MY_SECRET", "")
    assert environment.get_secret("MY_SECRET") is None


@pytest.fixture
def asked(monkeypatch):
    """Kaggle's secrets: sets what each label gives or raises; returns the list of labels asked."""
    monkeypatch.setenv("KAGGLE_KERNEL_RUN_TYPE", "Batch")
    for label in ("FIRST", "SECOND"):
        monkeypatch.delenv(label, raising=False)

    def put(answers):
        labels = []

        def read(label):
            labels.append(label)
            answer = answers.get(label, KeyError(label))
            if isinstance(answer, Exception):
                raise answer
            return answer

        monkeypatch.setattr(environment, "_kaggle_secret", read)
        return labels

    return put


def test_the_first_label_that_has_a_secret_is_taken_and_the_others_are_not_asked(asked):
    labels = asked({"FIRST": "one", "SECOND": "two"})
    assert environment.get_secret("FIRST", "SECOND") == "one"
    assert labels == ["FIRST"]


def test_a_label_without_a_secret_is_followed_by_the_next(asked):
    labels = asked({"FIRST": "", "SECOND": "two"})
    assert environment.get_secret("FIRST", "SECOND") == "two"
    assert labels == ["FIRST", "SECOND"]


def test_an_environment_variable_of_any_label_keeps_the_service_from_being_asked(
    asked, monkeypatch
):
    labels = asked({"FIRST": "one"})
    monkeypatch.setenv("SECOND", "two")
    assert environment.get_secret("FIRST", "SECOND") == "two"
    assert labels == []


@pytest.mark.parametrize("answers", [{"FIRST": "one"}, {}])
def test_a_service_is_asked_once_whether_it_has_the_secret_or_not(asked, answers):
    labels = asked(answers)
    for _ in range(3):
        assert environment.get_secret("FIRST") == answers.get("FIRST")
    assert labels == ["FIRST"]


def test_without_a_network_a_service_is_asked_for_one_label_only(asked):
    labels = asked({"FIRST": ConnectionError("no network"), "SECOND": "two"})
    assert environment.get_secret("FIRST", "SECOND") is None
    assert labels == ["FIRST"]


def test_a_secret_added_since_is_found_after_the_set_up_cell_has_run_again(
    asked, monkeypatch, tmp_path
):
    asked({})
    assert environment.get_secret("FIRST") is None
    asked({"FIRST": "added"})
    assert environment.get_secret("FIRST") is None
    monkeypatch.setattr(environment, "devices", lambda: ["Some GPU"])
    environment.start_session(tmp_path, "quickstart")
    assert environment.get_secret("FIRST") == "added"


def test_colabs_secrets_are_not_asked_on_kaggle(asked, monkeypatch):
    asked({})
    put_colab(monkeypatch, {"FIRST": "from colab"})
    assert environment.get_secret("FIRST") is None

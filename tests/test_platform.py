"""Platform: where the code runs, its secrets and its output folder."""

import re
import sys
import types

import keras
import pytest

from embedder_helpers import platform
from embedder_helpers.config import InputError
from embedder_helpers.platform import states_folder  # before it is replaced for the tests


@pytest.fixture(autouse=True)
def nowhere(monkeypatch):
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


def test_ones_own_machine_is_local():
    assert platform.name() == "local"


@pytest.mark.parametrize("how", ["Interactive", "Batch", ""])
def test_kaggle_is_known_by_its_environment(monkeypatch, how):
    monkeypatch.setenv("KAGGLE_KERNEL_RUN_TYPE", how)
    assert platform.name() == "kaggle"


def test_colab_is_known_by_its_module(monkeypatch):
    put_colab(monkeypatch, {})
    assert platform.name() == "colab"


@pytest.mark.parametrize(
    ("where", "folder"),
    [("kaggle", "/kaggle/working/results"), ("colab", "/content/results")],
)
def test_results_go_where_the_platform_keeps_them(monkeypatch, where, folder):
    monkeypatch.setattr(platform, "name", lambda: where)
    assert platform.results_folder().as_posix() == folder


def test_local_results_go_beside_the_package():
    package = platform.Path(platform.__file__).parent
    assert platform.results_folder() == package.resolve().parent / "results"


@pytest.mark.parametrize(
    ("where", "folder"), [("kaggle", "/kaggle/temp/states"), ("colab", "/content/states")]
)
def test_states_go_to_scratch_by_default(monkeypatch, where, folder):
    monkeypatch.setattr(platform, "name", lambda: where)
    assert states_folder().as_posix() == folder


def test_local_states_go_beside_the_package():
    package = platform.Path(platform.__file__).parent
    assert states_folder() == package.resolve().parent / "states"


@pytest.mark.parametrize(("device", "expected"), [("CPU, 2 cores", True), ("Tesla T4", False)])
def test_a_cpu_is_known_by_its_name(monkeypatch, device, expected):
    monkeypatch.setattr(platform, "devices", lambda: [device])
    assert platform.on_cpu() == expected


def put_gpus(monkeypatch, *details):
    """GPUs in the place of TensorFlow's devices, by what it tells of each."""
    tensorflow = pytest.importorskip("tensorflow")
    config = tensorflow.config
    for name in ("list_physical_devices", "get_visible_devices"):
        monkeypatch.setattr(config, name, lambda kind: list(range(len(details))))
    monkeypatch.setattr(config.experimental, "get_device_details", details.__getitem__)


@pytest.mark.parametrize(
    ("details", "dtype"),
    [
        ([], "float32"),
        ([{"device_name": "Tesla T4", "compute_capability": (7, 5)}], "mixed_float16"),
        ([{"device_name": "Tesla T4", "compute_capability": (7, 5)}] * 2, "mixed_float16"),
        ([{"device_name": "Tesla P100", "compute_capability": (6, 0)}], "float32"),
        ([{"device_name": "GPU"}], "float32"),
    ],
)
def test_training_takes_float16_where_it_is_faster(monkeypatch, details, dtype):
    put_gpus(monkeypatch, *details)
    assert platform.training_dtype() == dtype


@pytest.mark.skipif(keras.config.backend() != "tensorflow", reason="other backends take all GPUs")
@pytest.mark.parametrize(
    ("visible", "expected"), [(None, ["0", "1"]), ("", ["0", "1"]), ("2,3", ["2", "3"])]
)
def test_gpus_are_named_as_cuda_names_them(monkeypatch, visible, expected):
    put_gpus(monkeypatch, {}, {})
    if visible is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert platform.gpus() == expected


@pytest.mark.parametrize("taken", [False, True])
def test_the_other_gpus_are_left_unless_they_are_taken(monkeypatch, capsys, taken):
    tensorflow, kept = pytest.importorskip("tensorflow"), []

    def set_visible(devices, kind):
        if taken:
            raise RuntimeError("Visible devices cannot be modified after being initialized")
        kept.extend(devices)

    put_gpus(monkeypatch, {}, {})
    monkeypatch.setattr(tensorflow.config, "set_visible_devices", set_visible)
    assert platform.keep_to_first_gpu() is not taken
    assert kept == ([] if taken else [0])
    assert ("restart it to use both" in capsys.readouterr().out) is taken


def test_a_part_moves_the_bar_of_the_whole_run_by_its_share():
    with platform.whole_progress(100, "sweep") as bar, platform.progress(4, "part", work=20) as one:
        one.update()
        assert bar.n == pytest.approx(5)
        one.update(3)
        assert bar.n == pytest.approx(20)


def test_the_time_left_is_told_once_there_is_a_pace():
    with platform.whole_progress(100, "sweep") as bar:
        bar.start_t -= 10
        bar.n = 1
        assert "gone" in str(bar) and "left" not in str(bar)
        bar.n = 50
        assert "50%" in str(bar) and "00:10 gone, 00:10 left" in str(bar)


def test_parts_of_the_whole_run_follow_one_another():
    with platform.whole_progress(100, "sweep") as bar:
        for work in (20, 30):
            with platform.progress(10, "part", work=work) as one:
                one.update(10)
        assert bar.n == pytest.approx(50)


def test_a_part_never_moves_the_bar_of_the_whole_run_past_its_end():
    with platform.whole_progress(100, "sweep") as bar:
        for _ in range(2):
            with platform.progress(2, "part", work=90) as one:
                one.update(2)
        assert bar.n < 100


def test_a_part_never_moves_the_bar_of_the_whole_run_backwards():
    with platform.whole_progress(100, "sweep") as bar:
        bar.update(99.9)
        with platform.progress(2, "part", work=0.1) as one:
            one.update(1)
        assert bar.n >= 99.9


def test_behind_the_whole_run_a_part_has_a_bar_of_its_own_again():
    with pytest.raises(KeyError), platform.whole_progress(100, "sweep"):
        raise KeyError
    with platform.progress(4, "part", work=20) as one:
        one.update(3)
        assert (one.n, one.total) == (3, 4)


def test_a_line_is_said_on_standard_output(capsys):
    with platform.whole_progress(100, "sweep"):
        platform.say("one line")
    assert "one line\n" in capsys.readouterr().out


def test_versions_name_python_and_every_package():
    versions = platform.versions()
    assert set(versions) == {"embedder_helpers", "python", *platform.PACKAGES}
    assert versions["python"] == sys.version.split()[0]


def test_a_package_that_is_not_there_is_absent(monkeypatch):
    monkeypatch.setattr(platform, "PACKAGES", ("no-such-package-anywhere",))
    assert platform.versions()["no-such-package-anywhere"] == "absent"


def test_the_description_says_what_runs_where_and_where_the_results_go(monkeypatch, tmp_path):
    monkeypatch.setattr(platform, "devices", lambda: ["Some GPU"])
    text = platform.describe(tmp_path)
    assert "local: Some GPU; trains in " in text
    assert str(tmp_path.resolve()) in text
    assert len(re.findall(r"\d+ GB free", text)) == 3


def test_the_disk_of_a_folder_that_is_not_there_yet_is_told(tmp_path):
    assert float(platform._free(tmp_path / "not" / "yet")) >= 0


def test_an_installed_package_keeps_results_where_the_person_works(monkeypatch, tmp_path):
    monkeypatch.setattr(platform, "PACKAGE", tmp_path / "site-packages" / "embedder_helpers")
    monkeypatch.chdir(tmp_path)
    assert platform.results_folder() == tmp_path / "results"


def test_a_secret_is_read_from_the_environment_first(monkeypatch):
    put_kaggle_secrets(monkeypatch, {"MY_SECRET": "from kaggle"})
    monkeypatch.setenv("MY_SECRET", "from the environment")
    assert platform.secret("MY_SECRET") == "from the environment"


@pytest.mark.parametrize("put", [put_kaggle_secrets, put_colab])
def test_a_secret_is_read_from_the_platforms_service(monkeypatch, put):
    monkeypatch.delenv("MY_SECRET", raising=False)
    put(monkeypatch, {"MY_SECRET": "from the service"})
    assert platform.secret("MY_SECRET") == "from the service"


@pytest.mark.parametrize("put", [put_kaggle_secrets, put_colab])
def test_a_secret_that_the_service_lacks_is_none(monkeypatch, put):
    monkeypatch.delenv("MY_SECRET", raising=False)
    put(monkeypatch, {"OTHER": "value"})
    assert platform.secret("MY_SECRET") is None


def test_an_empty_variable_is_no_secret(monkeypatch):
    monkeypatch.setenv("MY_SECRET", "")
    assert platform.secret("MY_SECRET") is None


def test_a_writable_folder_is_made_with_its_parents_and_left_empty(tmp_path):
    folder = platform.writable_folder(tmp_path / "a" / "b")
    assert folder.is_dir() and not list(folder.iterdir())


@pytest.mark.parametrize("below", [".", "results", "a/b"])
def test_a_folder_that_cannot_be_made_is_told_with_its_path_and_a_way_out(tmp_path, below):
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(InputError, match="cannot be written .*--out") as caught:
        platform.writable_folder(file / below)
    assert str(file) in str(caught.value)


def test_a_file_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "scores.csv"
    assert platform.write_whole(path, lambda part: part.write_text("1")) == path

    def die(part):
        part.write_text("2, but not")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        platform.write_whole(path, die)
    assert path.read_text() == "1" and list(tmp_path.iterdir()) == [path]

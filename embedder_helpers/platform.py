"""Where the code runs: Kaggle, Colab or one's own machine; its versions, devices and secrets."""

import contextlib
import importlib.metadata
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TextIO

import psutil
from tqdm import tqdm

from embedder_helpers import __version__
from embedder_helpers.config import PACKAGE, InputError

KAGGLE_INPUTS = Path("/kaggle/input")
PACKAGES = ("keras", "keras-hub", "tensorflow", "scikit-learn", "datasets", "numpy")


def name() -> str:
    """`kaggle`, `colab` or `local`."""
    if "KAGGLE_KERNEL_RUN_TYPE" in os.environ:
        return "kaggle"
    return "colab" if "google.colab" in sys.modules else "local"


def versions() -> dict[str, str]:
    """The versions that a result depends on, `python` among them."""
    found = {"embedder_helpers": __version__, "python": sys.version.split()[0]}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "absent"
    return found


def devices() -> list[str]:
    """The devices that Keras computes on, in words."""
    import keras

    if keras.config.backend() == "tensorflow":
        import tensorflow as tf

        gpus = tf.config.get_visible_devices("GPU")
        details = [tf.config.experimental.get_device_details(gpu) for gpu in gpus]
        names = [detail.get("device_name", "GPU") for detail in details]
    elif keras.config.backend() == "torch":
        import torch

        names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    else:
        names = [device for device in keras.distribution.list_devices() if "cpu" not in device]
    return names or [f"CPU, {os.cpu_count()} cores"]


def _project() -> Path:
    """The clone that the package is of; the working folder where it was installed from a wheel."""
    clone = PACKAGE.parent
    return clone if (clone / "pyproject.toml").is_file() else Path.cwd()


def results_folder() -> Path:
    """Where results are kept: the session's kept folder on Kaggle and Colab, else `results/`."""
    kept = {"kaggle": Path("/kaggle/working"), "colab": Path("/content")}
    return kept.get(name(), _project()) / "results"


def states_folder() -> Path:
    """Where states go by default: scratch, which is larger than what Kaggle keeps (20 GB)."""
    scratch = {"kaggle": Path("/kaggle/temp"), "colab": Path("/content")}
    return scratch.get(name(), _project()) / "states"


def describe(out: str | Path, states: str | Path | None = None) -> str:
    """Lines that say what runs where, what room there is, and where results and states go.

    Args:
        out: the folder for results.
        states: the folder for states; None: the default one.
    """
    states = Path(states or states_folder())
    found = ", ".join(f"{package} {version}" for package, version in versions().items())
    memory = psutil.virtual_memory()
    lines = {
        "platform": f"{name()}: {', '.join(devices())}; trains in {training_dtype()}",
        "versions": found,
        "memory": f"{memory.available / 1e9:.0f} of {memory.total / 1e9:.0f} GB free",
        "results": f"{Path(out).resolve()} ({_free(Path(out))} GB free)",
        "states": f"{states.resolve()} ({_free(states)} GB free)",
    }
    return "\n".join(f"{what:<9} {told}" for what, told in lines.items())


def _free(folder: Path) -> str:
    """Free gigabytes of the disk that a folder, which need not be there yet, will be on."""
    there = next(one for one in (folder.resolve(), *folder.resolve().parents) if one.exists())
    return f"{psutil.disk_usage(str(there)).free / 1e9:.0f}"


def gpus() -> list[str]:
    """The GPUs that processes of their own can be given, as `CUDA_VISIBLE_DEVICES` names them.

    None with a backend other than TensorFlow, which would take the memory of all of them.
    """
    import keras

    if keras.config.backend() != "tensorflow":
        return []
    import tensorflow as tf

    found = [str(place) for place in range(len(tf.config.list_physical_devices("GPU")))]
    named = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    return named.split(",")[: len(found)] if named else found


def keep_to_first_gpu() -> bool:
    """Leaves the other GPUs to other processes; False if this one has taken them already."""
    import tensorflow as tf

    try:
        tf.config.set_visible_devices(tf.config.list_physical_devices("GPU")[:1], "GPU")
    except RuntimeError:
        say("one GPU is used: the other is taken by this notebook; restart it to use both")
        return False
    return True


def on_cpu() -> bool:
    """Whether Keras computes on a CPU."""
    return devices()[0].startswith("CPU")


def training_dtype() -> str:
    """`mixed_float16` on a GPU that multiplies float16 faster (tensor cores: T4), else `float32`.

    A P100 (compute capability 6.0) has no tensor cores; a CPU gains nothing.
    """
    import keras

    if keras.config.backend() != "tensorflow" or on_cpu():
        return "float32"
    import tensorflow as tf

    details = map(tf.config.experimental.get_device_details, tf.config.get_visible_devices("GPU"))
    fast = all(detail.get("compute_capability", (0, 0)) >= (7, 0) for detail in details)
    return "mixed_float16" if fast else "float32"


def forward_work(tokens: int, blocks: int, width: int) -> float:
    """Floating-point operations, roughly, of tokens through transformer blocks: 24 · width² each.

    For progress bars only: a block has about 12 · width² weights.
    """
    return 24.0 * width * width * float(tokens) * blocks


# The bar of the whole run while there is one; parts of the run move it instead of their own.
_whole: tqdm | None = None
DELAY = 2  # seconds before a bar is shown
# Where bars are drawn; None: on standard output.
bars: TextIO | None = None
_shown = True


@contextlib.contextmanager
def bars_shown(shown: bool) -> Iterator[None]:
    """Draws no progress bars meanwhile, unless `shown`."""
    global _shown
    before, _shown = _shown, _shown and shown
    try:
        yield
    finally:
        _shown = before


@contextlib.contextmanager
def whole_progress(work: float, what: str) -> Iterator[tqdm]:
    """One bar with the time left for all the work in it, in operations."""
    global _whole
    form = "{desc}: {percentage:3.0f}%|{bar}| {elapsed} gone{left}"
    file = bars or sys.stdout
    with _Whole(total=work, desc=what, file=file, mininterval=2, bar_format=form) as _whole:
        try:
            yield _whole
        finally:
            _whole = None


@contextlib.contextmanager
def progress(total: int, what: str, unit: str = "text", *, work: float = 0.0) -> Iterator[Any]:
    """A progress bar; shown once the work takes longer than two seconds, then cleared.

    Plain text on standard output, because a widget is lost when a notebook is saved. Inside
    `whole_progress` it moves that bar by its share of the `work` instead.
    """
    if _whole is not None:
        yield _Part(_whole, work / max(total, 1))
        return
    file = bars or sys.stdout
    with tqdm(
        total=total, desc=what, unit=unit, file=file, delay=DELAY, mininterval=2, leave=False,
        disable=not _shown,
    ) as bar:  # fmt: skip
        yield bar


class _Whole(tqdm):
    """A bar that tells the time left once there is a pace to reckon it by."""

    @property
    def format_dict(self) -> dict[str, Any]:
        """What the bar's format can name, `left` added."""
        found = super().format_dict
        done, total, elapsed = found["n"], found["total"], found["elapsed"]
        seconds = elapsed * (total - done) / done if total and done > 0.02 * total else None
        left = "" if seconds is None else f", {self.format_interval(seconds)} left"
        return found | {"left": left}


class _Part:
    """A part of the whole run, in units of its own."""

    def __init__(self, whole: tqdm, unit_work: float):
        self.whole = whole
        self.unit_work = unit_work

    def update(self, units: int = 1) -> None:
        # An estimate: the bar reaches its end when the run does.
        room = 0.99 * self.whole.total - self.whole.n
        self.whole.update(max(0, min(units * self.unit_work, room)))


def say(line: str) -> None:
    """Prints a line, above the bar if there is one."""
    tqdm.write(line, file=sys.stdout)


def secret(label: str) -> str | None:
    """A secret by its name: from the environment, Kaggle's secrets or Colab's; None if nowhere."""
    if os.environ.get(label):
        return os.environ[label]
    for read in (_kaggle_secret, _colab_secret):
        try:
            return read(label)
        except Exception:  # each service has errors of its own for "not there"
            continue
    return None


def _kaggle_secret(label: str) -> str:
    from kaggle_secrets import UserSecretsClient

    return UserSecretsClient().get_secret(label)


def _colab_secret(label: str) -> str:
    from google.colab import userdata

    return userdata.get(label)


def writable_folder(path: str | Path, named_by: str = "--out (in the notebook: OUT)") -> Path:
    """The folder, made if need be.

    Args:
        path: of the folder.
        named_by: what a person sets to choose another.

    Raises:
        InputError: it cannot be made or written.
    """
    folder = Path(path)
    probe = folder / f".write-test-{os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.write_text("")
        probe.unlink()
    except OSError as error:
        raise InputError(
            f"the folder {folder} cannot be written ({error.strerror}): "
            f"choose another with {named_by}"
        ) from None
    return folder


def write_whole(path: Path, save: Callable[[Path], Any]) -> Path:
    """Writes a file elsewhere first and renames it, so that it is whole or not there.

    Args:
        path: of the file; its folder is there.
        save: writes a file of the same name in another folder.

    Returns:
        The path.
    """
    with tempfile.TemporaryDirectory(suffix=".part", dir=path.parent) as folder:
        part = Path(folder) / path.name
        save(part)
        part.replace(path)
    return path

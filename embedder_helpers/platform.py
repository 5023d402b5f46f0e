"""Where the code runs: Kaggle, Colab or one's own machine; its versions, devices and secrets."""

import importlib.metadata
import os
import sys
from pathlib import Path

from tqdm import tqdm

from embedder_helpers import __version__
from embedder_helpers.config import InputError

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

        gpus = tf.config.list_physical_devices("GPU")
        details = [tf.config.experimental.get_device_details(gpu) for gpu in gpus]
        names = [detail.get("device_name", "GPU") for detail in details]
    elif keras.config.backend() == "torch":
        import torch

        names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    else:
        names = [device for device in keras.distribution.list_devices() if "cpu" not in device]
    return names or [f"CPU, {os.cpu_count()} cores"]


def results_folder() -> Path:
    """Where results are kept: the session's kept folder on Kaggle and Colab, else `results/`."""
    kept = {"kaggle": Path("/kaggle/working"), "colab": Path("/content")}
    return kept.get(name(), Path(__file__).resolve().parent.parent) / "results"


def describe(out: str | Path) -> str:
    """Lines that say what runs where, and where the results go."""
    found = ", ".join(f"{package} {version}" for package, version in versions().items())
    where = f"{name()}: {', '.join(devices())}"
    return f"platform  {where}\nversions  {found}\nresults   {Path(out).resolve()}"


def progress(total: int, what: str, unit: str = "text") -> tqdm:
    """A progress bar; shown once the work takes longer than two seconds, then cleared.

    Plain text on standard output, because a widget is lost when a notebook is saved.
    """
    return tqdm(
        total=total, desc=what, unit=unit, file=sys.stdout, delay=2, mininterval=2, leave=False
    )


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


def writable_folder(path: str | Path) -> Path:
    """The folder, made if need be.

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
            f"the output folder {folder} cannot be written ({error.strerror}): "
            "choose another with --out (in the notebook: OUT)"
        ) from None
    return folder

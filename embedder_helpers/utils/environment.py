"""The environment: Kaggle, Colab or a local machine; its versions, devices, folders and secrets.

Devices and folders are read again at each call, versions once. A session's time limit is left to
`experiments.session`.
"""

import functools
import importlib.metadata
import logging
import os
import re
import subprocess
import sys
from pathlib import Path

import psutil

from embedder_helpers import __version__
from embedder_helpers.utils import keras_state, progress
from embedder_helpers.utils.files import PACKAGE, as_path

logger = logging.getLogger(__name__)

KAGGLE_INPUTS = Path("/kaggle/input")
TENSORFLOW_MEMORY = 0.9  # of a GPU's memory, which TensorFlow takes
PACKAGES = ("keras", "keras-hub", "tensorflow", "scikit-learn", "datasets", "numpy")


def platform_name() -> str:
    """`kaggle`, `colab` or `local`."""
    if "KAGGLE_KERNEL_RUN_TYPE" in os.environ:
        return "kaggle"
    return "colab" if "google.colab" in sys.modules else "local"


def package_versions() -> dict[str, str]:
    """The versions that a result depends on, `python` among them; `absent` if not installed."""
    versions = {"embedder_helpers": __version__, "python": sys.version.split()[0]}
    return versions | {package: _version(package) for package in PACKAGES}


@functools.cache  # the cache of hidden states asks at every write
def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "absent"


def devices() -> list[str]:
    """Names of the devices that Keras computes on."""
    if (backend := keras_state.backend()) == "tensorflow":
        import tensorflow as tf

        gpus = tf.config.get_visible_devices("GPU")
        details = [tf.config.experimental.get_device_details(gpu) for gpu in gpus]
        names = [detail.get("device_name", "GPU") for detail in details]
    elif backend == "torch":
        import torch

        names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    else:
        import keras

        names = [device for device in keras.distribution.list_devices() if "cpu" not in device]
    return names or [f"CPU, {os.cpu_count()} cores"]


def _project_folder() -> Path:
    """The clone that the package belongs to; the working folder if it was installed as a wheel."""
    clone = PACKAGE.parent
    return clone if (clone / "pyproject.toml").is_file() else Path.cwd()


def results_folder() -> Path:
    """Default folder for results: in the platform's output folder, else in the project."""
    output = {"kaggle": Path("/kaggle/working"), "colab": Path("/content")}
    return output.get(platform_name(), _project_folder()) / "results"


def states_folder() -> Path:
    """Default folder for hidden states: scratch, which is larger than Kaggle's output (20 GB)."""
    scratch = {"kaggle": Path("/kaggle/temp"), "colab": Path("/content")}
    return scratch.get(platform_name(), _project_folder()) / "states"


def start_session(
    out: str | Path | None, config: str | Path, states: str | Path | None = None
) -> Path:
    """Set a notebook up: show the log, and print what `describe` returns.

    Args:
        out: folder for results; None: one in the platform's output folder, named after the config.
        config: name or path of the config.
        states: folder for hidden states; None: the default one.

    Returns:
        The folder for results.
    """
    progress.show_log()
    forget_secrets()
    out = as_path(out) if out else results_folder() / as_path(config).stem
    print(describe(out, states))
    return out


def describe(out: str | Path, states: str | Path | None = None) -> str:
    """Describe the platform: devices, versions, free memory, and where files go.

    Args:
        out: folder for results.
        states: folder for hidden states; None: the default one.

    Returns:
        Several lines of text.
    """
    out, states = as_path(out), as_path(states or states_folder())
    memory = psutil.virtual_memory()
    lines = {
        "platform": f"{platform_name()}: {', '.join(devices())}; Gemma in "
        f"{half_dtype() or 'float32'}, training in {training_dtype()}",
        "versions": ", ".join(f"{name} {number}" for name, number in package_versions().items()),
        "memory": f"{memory.available / 1e9:.0f} of {memory.total / 1e9:.0f} GB free",
        "results": f"{out.resolve()} ({_free_gigabytes(out)} GB free)",
        "hidden states": f"{states.resolve()} ({_free_gigabytes(states)} GB free)",
    }
    return "\n".join(f"{label:<13} {text}" for label, text in lines.items())


def _free_gigabytes(folder: Path) -> str:
    """Free space of the disk that a folder, which need not exist yet, will be on."""
    folder = folder.resolve()
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    return f"{psutil.disk_usage(str(existing)).free / 1e9:.0f}"


def count_gpus() -> int:
    """Number of NVIDIA GPUs that processes of their own can have, found without TensorFlow.

    None with a backend other than TensorFlow, where one process takes the memory of all GPUs.
    """
    if keras_state.backend() != "tensorflow":
        return 0
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return len([name for name in visible.split(",") if name.strip() not in ("", "-1")])
    return len(list(Path("/dev").glob("nvidia[0-9]*")))


def hide_gpus() -> None:
    """Leave all GPUs to other processes, as far as this one has not taken their memory already."""
    if "tensorflow" not in sys.modules:
        return
    import tensorflow as tf

    try:
        tf.config.set_visible_devices([], "GPU")
    except RuntimeError:
        logger.warning(
            "this process holds memory of the GPUs, which others now lack: restart the notebook"
        )


def on_cpu() -> bool:
    """Whether Keras computes on a CPU."""
    return devices()[0].startswith("CPU")


def training_dtype() -> str:
    """`mixed_float16` on a GPU that multiplies float16 faster (tensor cores: T4), else `float32`.

    Tensor cores came with compute capability 7.0; a CPU gains little.
    """
    if keras_state.backend() != "tensorflow" or on_cpu():
        return "float32"
    import tensorflow as tf

    details = map(tf.config.experimental.get_device_details, tf.config.get_visible_devices("GPU"))
    fast = all(detail.get("compute_capability", (0, 0)) >= (7, 0) for detail in details)
    return "mixed_float16" if fast else "float32"


def half_dtype() -> str | None:
    """The half precision that this device multiplies faster than float32; None if it has none.

    `bfloat16` on NVIDIA GPUs since Ampere (compute capability 8.0) and on CPUs with AVX-512 BF16 or
    AMX (not with JAX, whose compiler gains nothing from it), `float16` on GPUs whose tensor cores
    lack bfloat16 (T4: 7.5).
    """
    backend = keras_state.backend()
    if on_cpu():
        is_fast = backend != "jax" and _cpu_flags() & {"avx512_bf16", "amx_bf16"}
        return "bfloat16" if is_fast else None
    capability = _compute_capability(backend)
    if capability >= (8, 0):
        return "bfloat16"
    return "float16" if capability >= (7, 0) else None


def _cpu_flags() -> set[str]:
    """The processor's features; none where Linux does not list them."""
    try:
        return set(Path("/proc/cpuinfo").read_text(encoding="utf-8").split())
    except OSError:
        return set()


def _compute_capability(backend: str) -> tuple[int, int]:
    """The lowest of all NVIDIA GPUs that Keras computes on; (0, 0) for other devices."""
    if backend == "tensorflow":
        import tensorflow as tf

        gpus = tf.config.get_visible_devices("GPU")
        details = map(tf.config.experimental.get_device_details, gpus)
        found = (detail.get("compute_capability", (0, 0)) for detail in details)
        return min(found, default=(0, 0))
    if backend == "torch":
        import torch

        found = map(torch.cuda.get_device_capability, range(torch.cuda.device_count()))
        return min(found, default=(0, 0))
    import jax

    capabilities = [str(getattr(device, "compute_capability", "")) for device in jax.devices()]
    if not all(re.fullmatch(r"\d+\.\d+", capability) for capability in capabilities):
        return (0, 0)  # no GPU of NVIDIA's
    return min(tuple(map(int, capability.split("."))) for capability in capabilities)


def free_memory() -> int:
    """Bytes that arrays can still take on the device that Keras computes on.

    On a CPU what the system has available, not what a container's limit leaves.
    """
    if on_cpu():
        return psutil.virtual_memory().available
    if keras_state.backend() == "torch":
        import torch

        reusable = torch.cuda.memory_reserved() - torch.cuda.memory_allocated()
        return torch.cuda.mem_get_info()[0] + reusable
    if keras_state.backend() == "jax":
        import jax

        stats = jax.local_devices()[0].memory_stats()
        return stats["bytes_limit"] - stats["bytes_in_use"]
    import tensorflow as tf

    used = tf.config.experimental.get_memory_info("GPU:0")["current"]
    return int(TENSORFLOW_MEMORY * _gpu_memory()) - used


@functools.cache
def _gpu_memory() -> float:
    """Bytes of the smallest GPU, by NVIDIA's own tool; a T4's if that is missing.

    TensorFlow can say how much it uses, not how much it may: its list of devices has that, but
    takes memory of GPUs that are left to other processes.
    """
    command = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    try:
        report = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
        return min(float(line) for line in report.stdout.split()) * 2**20
    except (OSError, ValueError, subprocess.SubprocessError):
        return 15e9


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error of any backend says that memory, on the device or not, has run out."""
    if isinstance(error, MemoryError):
        return True
    name, message = type(error).__name__, str(error)
    return name in ("ResourceExhaustedError", "OutOfMemoryError") or (
        name in ("XlaRuntimeError", "JaxRuntimeError", "InternalError", "RuntimeError")
        and ("RESOURCE_EXHAUSTED" in message or "out of memory" in message.lower())
    )


def get_secret(*labels: str) -> str | None:
    """Read a secret from the environment, or else from Kaggle's or Colab's; None if none has it.

    The service's answer is kept, because without a network Kaggle's takes up to 40 seconds.

    Args:
        labels: its names; the first that has a value is taken. The service is asked only if no
            environment variable has one.
    """
    known = (os.environ[label] for label in labels if os.environ.get(label))
    return next(known, None) or _stored_secret(labels)


def forget_secrets() -> None:
    """Ask the service again, so that a secret added since is found."""
    _stored_secret.cache_clear()


@functools.cache
def _stored_secret(labels: tuple[str, ...]) -> str | None:
    # Not both: Kaggle's image is built on Colab's, whose service waits for a page of Colab.
    read = _colab_secret if platform_name() == "colab" else _kaggle_secret
    for label in labels:
        try:
            if secret := read(label):
                return secret
        except (ConnectionError, ImportError):  # no network or no such service: for all labels
            return None
        except Exception:  # each service raises its own errors for a missing secret
            continue
    return None


def _kaggle_secret(label: str) -> str:
    from kaggle_secrets import UserSecretsClient

    return UserSecretsClient().get_secret(label)


def _colab_secret(label: str) -> str:
    from google.colab import userdata

    return userdata.get(label)

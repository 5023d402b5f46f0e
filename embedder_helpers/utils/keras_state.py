"""What the package shares with the rest of the process through Keras, and leaves as it was.

Keras's default precision comes from `~/.keras/keras.json` or from the user's program, and its
random seeds are drawn from Python's global generator.
"""

import contextlib
import random
from collections.abc import Iterator

import numpy as np

from embedder_helpers.errors import InputError, shorten

BACKENDS = ("tensorflow", "jax", "torch")


def backend() -> str:
    """The backend that Keras computes with, one of BACKENDS.

    Raises:
        InputError: it is another one, is not installed, or Keras's settings are invalid.
    """
    names = ", ".join(BACKENDS)
    try:
        import keras
    except (ImportError, ValueError, AssertionError) as error:
        reason = shorten(" ".join(str(error).split()), 300)
        raise InputError(
            f"Keras cannot be imported ({reason}): set the environment variable KERAS_BACKEND to "
            f"one of {names} that is installed, and correct or delete ~/.keras/keras.json"
        ) from None
    if keras.config.backend() not in BACKENDS:
        raise InputError(
            f"Keras's backend is {keras.config.backend()}, which cannot train: set the environment "
            f"variable KERAS_BACKEND to one of {names}"
        )
    return keras.config.backend()


@contextlib.contextmanager
def own_keras_state() -> Iterator[None]:
    """Compute with Keras as every result is computed; afterwards the process is as it was.

    Inside, the default precision is float32: layers of less say so. The user's own default, which
    would change results under the same name, and the state of the global random generators are
    restored at the end. Also a decorator.
    """
    is_torch = backend() == "torch"
    import keras

    if is_torch:
        import torch
    policy, floatx = keras.config.dtype_policy(), keras.config.floatx()
    python_state, numpy_state = random.getstate(), np.random.get_state()
    keras.config.set_floatx("float32")
    keras.config.set_dtype_policy("float32")
    try:
        gpus = range(torch.cuda.device_count()) if is_torch else ()
        with torch.random.fork_rng(gpus) if is_torch else contextlib.nullcontext():
            yield
    finally:
        keras.config.set_floatx(floatx)
        keras.config.set_dtype_policy(policy)
        random.setstate(python_state)
        np.random.set_state(numpy_state)

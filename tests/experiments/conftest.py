"""Fixtures of the tests of experiments."""

import gc
from collections.abc import Iterator

import pytest
import sklearn.linear_model  # noqa: F401, loads the libraries that are limited below
import threadpoolctl


@pytest.fixture(scope="session")
def one_thread() -> Iterator[None]:
    """Linear algebra in one thread: the tests' arrays are too small for several."""
    with threadpoolctl.threadpool_limits(1):
        yield


@pytest.fixture(scope="module")
def fast_experiments(one_thread: None) -> Iterator[None]:
    """Excludes what exists already from garbage collection, which every experiment repeats."""
    import keras_hub  # noqa: F401

    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()

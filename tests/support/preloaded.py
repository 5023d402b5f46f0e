"""What the processes of `forked` have imported before they start, so that none waits for it."""

import gc

import datasets  # noqa: F401
import keras_hub  # noqa: F401
import matplotlib.pyplot  # noqa: F401
import pyarrow.parquet  # noqa: F401
import sklearn.linear_model  # noqa: F401

import embedder_helpers.experiments.reuse  # noqa: F401
import embedder_helpers.experiments.schedule  # noqa: F401
import embedder_helpers.experiments.sweep  # noqa: F401
import embedder_helpers.results.report  # noqa: F401
import embedder_helpers.sharing.publish  # noqa: F401

# TensorFlow is imported but not used: its threads would not be in a forked process.
gc.collect()
gc.freeze()  # every collection would go through, and copy, all of it

"""Join a frozen, truncated Gemma to RoBERTa and score the embedder as MTEB does.

The modules stand in the order in which a text travels: config, platform, presets, local,
tasks, tokens, streaming, gemma, states, pooling, fusion, projection, roberta, head, embedder,
training, probe, protocol, tracking, result, plan, run, report, intervals, comparison, ablation,
figures, summary, shares, waves, session, sweep, shapes, estimate, leaderboard, refresh, document,
mteb_files. Embedders that are kept: saved, classify, card, publish, transformer, mteb_encoder.
Importing the package imports none of them, so that a mistake in a config is told at once.
"""

import logging
import os
import warnings

__version__ = "0.3.0"

# TensorFlow is Keras's default; a user's own choice stands. Its start-up lines say nothing of use.
os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# It warns of every length bucket. A filter, since in a notebook TensorFlow sets the level itself.
logging.getLogger("tensorflow").addFilter(lambda record: record.levelno >= logging.ERROR)
warnings.filterwarnings("ignore", message="IProgress not found")  # plain bars are meant

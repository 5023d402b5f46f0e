"""Join a frozen, truncated Gemma to RoBERTa, and score the embedder by the MTEB protocol.

    import embedder_helpers as eh

    experiments = eh.with_baselines(eh.load_experiments("quickstart"))
    results, failed = eh.run_experiments(experiments, "results/mine")
    eh.summarize(results, "results/mine")

Importing the package loads neither Keras nor TensorFlow: a name's module is imported when the name
is first used, so that an invalid config is reported at once.
"""

import importlib
import logging
import os
import warnings
from typing import Any

__version__ = "0.7.0"

# The public names, by the module that defines them.
_PUBLIC = {
    "Experiment": "config",
    "InputError": "errors",
    "with_baselines": "config",
    "load_experiments": "config_files",
    "load_task": "data.tasks",
    "build_embedder": "models.architectures",
    "load_embedder": "models.architectures",
    "run_experiments": "experiments.sweep",
    "evaluate": "experiments.protocol",
    "load_results": "results.tables",
    "results_table": "results.tables",
    "layer_table": "results.tables",
    "summarize": "results.report",
    "write_report": "results.report",
}
__all__ = sorted(_PUBLIC)


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = importlib.import_module(f"{__name__}.{_PUBLIC[name]}")
    return getattr(module, name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_PUBLIC])


# TensorFlow is the default Keras backend; a user's own choice stands. Its start-up lines are noise.
os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# It warns of every length bucket. A filter, since in a notebook TensorFlow sets the level itself.
logging.getLogger("tensorflow").addFilter(lambda record: record.levelno >= logging.ERROR)
warnings.filterwarnings("ignore", message="IProgress not found")  # plain bars are intended

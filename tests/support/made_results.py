"""Made-up results, for tests of the modules that read results."""

from embedder_helpers.config import Experiment
from embedder_helpers.results.result import Result

TRAINED = ({"val_accuracy": 0.7}, {"val_accuracy": 0.9}, {"val_accuracy": 0.8})
EMOTION = "EmotionClassification"


def result(kind="hybrid", cutoffs=(10,), accuracy=0.75, task="weather", history=(), **settings):
    """A result whose protocol has two runs, 0.02 below and above the accuracy."""
    return Result(
        experiment=Experiment(kind=kind, **settings).as_dict(),
        task={"name": task, "notes": ["a note"]},
        cutoffs=list(cutoffs),
        num_layers=18 if cutoffs else None,
        scores=_scores(accuracy),
        scores_per_experiment=[_scores(accuracy - 0.02), _scores(accuracy + 0.02)],
        head=None if kind == "gemma_only" else {"accuracy": 0.8, "f1": 0.7},
        majority_baseline={"accuracy": 0.5, "f1": 0.33},
        history=list(history),
        truncated=3,
        seconds={"total": 12.4},
        versions={"python": "3.12"},
        device=["CPU"],
        inputs=dict.fromkeys(_inputs(kind, cutoffs), ""),
    )


def _scores(accuracy):
    return {"accuracy": accuracy, "f1": accuracy - 0.1}


def _inputs(kind, cutoffs):
    yield "task"
    if cutoffs:
        yield "llm_preset"
    if kind != "gemma_only":
        yield "slm_preset"

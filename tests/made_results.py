"""Results made up for the tests of what reads results."""

from embedder_helpers.config import Experiment
from embedder_helpers.result import Result

TRAINED = ({"val_accuracy": 0.7}, {"val_accuracy": 0.9}, {"val_accuracy": 0.8})
EMOTION = "EmotionClassification"


def result(kind="hybrid", cutoffs=(10,), accuracy=0.75, task="weather", history=(), **keys):
    experiment = Experiment(kind=kind, **keys)
    scores = {"accuracy": accuracy, "f1": accuracy - 0.1}
    return Result(
        experiment=experiment.as_dict(),
        task={"name": task, "notes": ["a note"]},
        cutoffs=list(cutoffs),
        blocks=18 if cutoffs else None,
        scores=scores,
        experiments=[{"accuracy": accuracy + d, "f1": accuracy + d - 0.1} for d in (-0.02, 0.02)],
        head=None if kind == "gemma_only" else {"accuracy": 0.8, "f1": 0.7},
        floor={"accuracy": 0.5, "f1": 0.33},
        history=list(history),
        truncated=3,
        seconds={"total": 12.4},
        versions={"python": "3.12"},
        device=["CPU"],
        inputs={
            "task": "",
            **({"llm_preset": ""} if cutoffs else {}),
            **({} if kind == "gemma_only" else {"slm_preset": ""}),
        },
    )

"""Made-up results, for tests of the modules that read results."""

from embedder_helpers.builtin import BUILTIN_TASKS
from embedder_helpers.config import WITH_ROBERTA, Experiment
from embedder_helpers.data.mteb import MTEB_TASKS
from embedder_helpers.results.result import Result

TRAINED = ({"val_accuracy": 0.7}, {"val_accuracy": 0.9}, {"val_accuracy": 0.8})
EMOTION = "EmotionClassification"
SHA = "0123456789abcdef" * 4  # the fingerprint of local data


def result(kind="hybrid", cutoffs=(10,), accuracy=0.75, task="weather", history=(), **settings):
    """A result whose protocol has two runs, 0.02 below and above the accuracy.

    The task is one of MTEB's from the hub, a built-in sample, or a folder `/data/…`.
    """
    if cutoffs and "llm_layers" not in settings:
        settings["llm_layers"] = cutoffs[0] if len(cutoffs) == 1 else tuple(cutoffs)
    known = "mteb" if task in MTEB_TASKS else "builtin" if task in BUILTIN_TASKS else "local"
    source = "local" if settings.get("task_data") else known
    hub = MTEB_TASKS.get(task)
    fingerprint = f"{hub.path}@{hub.revision}" if source == "mteb" else SHA
    path = f"/data/{settings.get('task_data', task)}" if source == "local" else None
    return Result(
        experiment=Experiment(kind=kind, task=task, **settings).as_dict(),
        task={
            "name": task,
            "source": source,
            "path": path,
            "texts": {"scored": 20},
            "notes": ["a note"],
        },
        cutoffs=list(cutoffs),
        num_layers=18 if cutoffs else None,
        scores=_scores(accuracy),
        scores_per_experiment=[_scores(accuracy - 0.02), _scores(accuracy + 0.02)],
        head={"accuracy": 0.8, "f1": 0.7} if kind in WITH_ROBERTA else None,
        majority_baseline={"accuracy": 0.5, "f1": 0.33},
        history=list(history),
        truncated=3,
        seconds={"total": 12.4},
        versions={"python": "3.12"},
        device=["CPU"],
        inputs=dict.fromkeys(_inputs(kind, cutoffs), "") | {"task": fingerprint},
    )


def _scores(accuracy):
    return {"accuracy": accuracy, "f1": accuracy - 0.1}


def _inputs(kind, cutoffs):
    yield "task"
    if cutoffs:
        yield "llm_preset"
    if kind in WITH_ROBERTA:
        yield "slm_preset"
    if kind == "encoder_only":
        yield "encoder_preset"

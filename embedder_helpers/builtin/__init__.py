"""Data that the package carries: two tiny pretrained models and two small tasks."""

from pathlib import Path

BUILTIN_FOLDER = Path(__file__).parent
BUILTIN_PRESETS = ("tiny_gemma", "tiny_roberta")
# Written for this project: counterfactual and factual sentences; six emotions.
BUILTIN_TASKS = {name: BUILTIN_FOLDER / name for name in ("sample", "sample_emotion")}

"""The smallest sweep that writes every kind of file, and what its files hold but for times."""

import json
import re
from pathlib import Path
from typing import Any

import file_events
import h5py
import pandas as pd
from made_task import write_task

from embedder_helpers.models.shard_file import SUFFIX

CONFIG = """
task: weather
llm_preset: gemma
slm_preset: roberta
states_dir: states
llm_dtype: float32
epochs: 1
batch_size: 8
max_tokens: 32
samples_per_label: 4
learning_rate: 5.0e-4
experiments:
  - {kind: roberta_only, save_embedder: true, save_predictions: true}
  - {kind: gemma_only, llm_layers: 1, save_embedder: with_gemma}
  - {kind: hybrid, llm_layers: 2, fusion: add, save_embedder: with_gemma, save_predictions: true}
"""


def write_inputs() -> None:
    """Write a task, tiny models and a config into the working directory."""
    import keras
    import keras_hub

    from embedder_helpers.models.presets import find_preset

    models = keras_hub.models
    keras.utils.set_random_seed(1)
    gemma = models.GemmaBackbone(
        vocabulary_size=4096, num_layers=2, num_query_heads=2, num_key_value_heads=1,
        hidden_dim=16, intermediate_dim=32, head_dim=8,
    )  # fmt: skip
    roberta = models.RobertaBackbone(
        vocabulary_size=4096, num_layers=1, num_heads=2, hidden_dim=16, intermediate_dim=32,
        max_sequence_length=64,
    )  # fmt: skip
    for role, name, backbone in (("llm", "gemma", gemma), ("slm", "roberta", roberta)):
        backbone.save_to_preset(name)
        builtin = find_preset(f"{role}_preset", f"tiny_{name}").handle
        models.Tokenizer.from_preset(builtin).save_to_preset(name)
    write_task(Path("weather"))
    Path("sweep.yaml").write_text(CONFIG)


def sweep_and_report() -> int:
    """Run the config of the working directory, and write a report; returns the exit status."""
    from embedder_helpers.__main__ import main
    from embedder_helpers.experiments import estimate

    # Its bar expects a pace, which takes longer to measure than these trainings.
    estimate.measure_device = lambda: estimate.GPUS["T4"]
    return main(["sweep", "sweep.yaml", "--out", "out"]) or main(["report", "out"])


def sweep_and_die(change: int) -> int:
    """The same, killed before its files change for the `change`-th time."""
    file_events.before_change(change, file_events.die)
    return sweep_and_report()


def contents(folder: Path) -> dict[str, Any]:
    """What files and folders hold, but for times, dates and what follows from them.

    Not hidden states, which are read back by text: how they are divided into files, and their last
    bits, depend on which experiments were left to run.
    """
    return {
        path.relative_to(folder).as_posix(): _content(path)
        for path in sorted(folder.rglob("*"))
        if not any(
            one.suffix == SUFFIX and one.parent.parent.name == "states"
            for one in (path, *path.parents)  # a test may put a folder there, which nobody reads
        )
    }


def differences(folder: Path, expected: dict[str, Any]) -> list[str]:
    """The files that a folder lacks, has in addition, or in which something else is."""
    found = contents(folder)
    return [
        *(f"no {name}" for name in expected.keys() - found.keys()),
        *(f"left over: {name}" for name in found.keys() - expected.keys()),
        *(f"another {name}" for name in expected.keys() & found if expected[name] != found[name]),
    ]


def _content(path: Path) -> Any:
    if path.is_dir():
        return "a folder"
    if path.suffix == ".h5":
        return _arrays(path)
    if path.suffix == ".csv":
        return pd.read_csv(path, dtype=str).drop(columns="seconds", errors="ignore").to_csv()
    if path.suffix not in (".json", ".md", ".html"):
        return path.read_bytes()
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".json":
        return _without_times(json.loads(text))
    text = re.sub(r"\d{4}-\d\d-\d\d", "DATE", text)
    # The last column of a Markdown table; in HTML no other number has two digits or fewer.
    return re.sub(r"\| +\d+ +\|$|<td>\d+(\.\d\d?)?</td>", "SECONDS", text, flags=re.M)


def _arrays(path: Path) -> dict[str, list]:
    """The weights of an h5 file; it also holds names of layers, which a process counts."""
    arrays = {}
    with h5py.File(path) as file:
        file.visititems(
            lambda name, item: (
                arrays.update({name: item[()].tolist()}) if isinstance(item, h5py.Dataset) else None
            )
        )
    return arrays


def _without_times(values: dict[str, Any]) -> dict[str, Any]:
    """A result, a manifest or Keras's metadata.json without times, and without what hashes them."""
    for holder in (values, values.get("result") or {}):
        for name in ("seconds", "checksum", "date_saved", "revision"):
            holder.pop(name, None)
    if "files" in values:
        values["files"] = sorted(values["files"])  # whose content is compared itself
    return values

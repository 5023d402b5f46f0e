"""The cost of a text: milliseconds and memory for every cutoff of Gemma, and for RoBERTa alone.

Measured on the machine at hand, from the text to its embedding, for one text at a time and for many
at once. What it is worth is left to `results`.
"""

import copy
import hashlib
import os
import platform
import re
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from embedder_helpers.data.files import as_list, validate_texts
from embedder_helpers.errors import InputError, show
from embedder_helpers.models.embedder import Embedder
from embedder_helpers.models.presets import Preset
from embedder_helpers.models.shapes import llm_weight_bytes, preset_shape
from embedder_helpers.results.cost_file import (
    Cost,
    Measurement,
    add_measurement,
    find_measurement,
)
from embedder_helpers.utils import environment, keras_state, progress
from embedder_helpers.utils.files import writable_folder
from embedder_helpers.utils.peak_memory import peak_rise

SINGLE_TEXTS = 16  # that are measured one at a time, which takes longest
REPEATS = 5
UNTIMED_PASSES = 2  # the warm-up, which compiles, and the one whose memory is measured


def measure_cost(
    hybrid: Embedder,
    roberta: Embedder | None,
    texts: Sequence[str],
    cutoffs: Sequence[int],
    repeats: int = REPEATS,
) -> pd.DataFrame:
    """Measure what a text costs at every cutoff of a hybrid, and with RoBERTa alone.

    A text is tokenized, passes Gemma's layers up to the cutoff and RoBERTa; nothing is cached. The
    weights are loaded once, for the deepest cutoff. Texts are measured all at once, in the batches
    that are fastest, and one at a time, of which `SINGLE_TEXTS` of all lengths are enough. The time
    is the median of the repeats, between which the cutoffs take turns, so that what else the
    machine does falls on all of them.

    It costs `(2 + repeats) · (texts + SINGLE_TEXTS) · sum(cutoffs)` passes of a text through a
    layer: with 64 texts, 18 cutoffs and 5 repeats, 96 000. A streamed layer is read anew each time.

    Args:
        hybrid: trained or not; its own cutoff does not matter, their number does.
        roberta: RoBERTa alone; None: the hybrid's own, which costs the same.
        texts: at least two, of the task's lengths.
        cutoffs: numbers of Gemma's layers.
        repeats: of which the median is taken.

    Returns:
        A row per cutoff, of which 0 is RoBERTa alone, and number of texts at once: the columns of
        `results.cost_file.Cost`, and `device`.

    Raises:
        InputError: no hybrid; a cutoff that its Gemma lacks; an invalid or a single text; no
            repeat.
    """
    return _measure(_subject(hybrid, roberta, texts, cutoffs), repeats).as_table()


def read_or_measure_cost(
    folder: str | Path,
    hybrid: Embedder,
    roberta: Embedder | None,
    texts: Sequence[str],
    cutoffs: Sequence[int],
    repeats: int = REPEATS,
) -> pd.DataFrame:
    """As `measure_cost`, once per machine: read from `cost.json` in a folder, or written there.

    What was measured for the same models, texts and cutoffs with the same versions is not measured
    again; of models, their shapes and settings count and not their weights.

    Raises:
        InputError: as `measure_cost`; the folder cannot be written.
    """
    folder = writable_folder(folder)
    subject = _subject(hybrid, roberta, texts, cutoffs)
    measurement = find_measurement(folder, describe_machine(), subject.describe())
    if measurement is None:
        measurement = _measure(subject, repeats)
        add_measurement(folder, measurement)
    return measurement.as_table()


def describe_machine() -> dict[str, str]:
    """What determines the machine's speed: devices, processor, system, and the versions of both."""
    versions = environment.package_versions()
    names = ("embedder_helpers", "python", "keras", "keras-hub", "tensorflow")
    return {
        "device": ", ".join(environment.devices()),
        "processor": _processor(),
        "system": f"{platform.system()} {platform.machine()}",
        "backend": keras_state.backend(),
        "versions": ", ".join(f"{name} {versions[name]}" for name in names),
    }


def _processor() -> str:
    """The processor's name and number of cores."""
    try:
        info = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        info = ""
    match = re.search(r"^model name\s*:\s*(.+)$", info, re.MULTILINE)
    name = match[1].strip() if match else platform.processor() or platform.machine()
    return f"{name}, {os.cpu_count()} cores"


# === What is measured ===


class _Case(NamedTuple):
    """Texts that an embedder encodes.

    Attributes:
        cutoff: number of Gemma's layers; 0 for RoBERTa alone.
        embedder: embedder of that cutoff.
        texts: the texts.
        batch: number of them that are given at once.
    """

    cutoff: int
    embedder: Embedder
    texts: list[str]
    batch: int

    def encode(self) -> None:
        """Encode all texts."""
        for start in range(0, len(self.texts), self.batch):
            texts = self.texts[start : start + self.batch]
            self.embedder.encode(texts, show_progress_bar=False)


class _Subject(NamedTuple):
    """Embedders and the texts that they encode.

    Attributes:
        hybrid: the hybrid, of any cutoff.
        roberta: RoBERTa alone.
        texts: all texts.
        cutoffs: in descending order, so that Gemma is loaded once.
    """

    hybrid: Embedder
    roberta: Embedder
    texts: list[str]
    cutoffs: list[int]

    def describe(self) -> dict[str, Any]:
        """What the cost depends on besides the machine, as JSON stores it."""
        hybrid, roberta = self.hybrid, self.roberta
        names = ("layer_pooling", "pooling", "fusion", "projection", "late_fusion", "stream_blocks")
        return {
            "cutoffs": self.cutoffs,
            "pooled_cutoffs": len(hybrid.specs),
            "presets": {role: _model(preset) for role, preset in sorted(hybrid.presets.items())},
            "cheap_presets": {
                role: _model(preset) for role, preset in sorted(roberta.presets.items())
            },
            "llm_dtype": hybrid.gemma.dtype,
            "dtype": environment.training_dtype(),
            "max_tokens": [hybrid.max_tokens, roberta.max_tokens],
            "settings": {name: getattr(hybrid.experiment, name) for name in names},
            "texts": len(self.texts),
            "texts_sha256": hashlib.sha256("\0".join(self.texts).encode()).hexdigest(),
        }

    def cases(self) -> list[_Case]:
        """All of them, the deepest first."""
        embedders = {cutoff: _at_cutoff(self.hybrid, cutoff) for cutoff in self.cutoffs}
        together = (self.texts, len(self.texts)), (_of_all_lengths(self.texts), 1)
        return [
            _Case(cutoff, embedder, texts, batch)
            for cutoff, embedder in (*embedders.items(), (0, self.roberta))
            for texts, batch in together
        ]


def _model(preset: Preset) -> str:
    """A pretrained model's name, without a folder of this machine, and its shape."""
    return f"{Path(preset.name).name}: {preset.num_layers} layers of width {preset.width}"


def _at_cutoff(hybrid: Embedder, cutoff: int) -> Embedder:
    """The hybrid as it reads the hidden states of another cutoff, with the same models."""
    copied = copy.copy(hybrid)
    copied.specs = tuple(spec._replace(cutoff=cutoff) for spec in hybrid.specs)
    return copied


def _of_all_lengths(texts: list[str]) -> list[str]:
    """At most `SINGLE_TEXTS` texts, of about the same lengths as all."""
    if len(texts) <= SINGLE_TEXTS:
        return texts
    by_length = sorted(texts, key=len)
    places = (np.arange(SINGLE_TEXTS) + 0.5) / SINGLE_TEXTS * len(texts)
    return [by_length[place] for place in places.astype(int)]


def _subject(
    hybrid: Embedder, roberta: Embedder | None, texts: Sequence[str], cutoffs: Sequence[int]
) -> _Subject:
    """What is to be measured, checked."""
    if hybrid.gemma is None or hybrid.roberta is None:
        raise InputError(
            f"the embedder is {show(hybrid.experiment.kind)}, but the cost of cutoffs is that of a "
            "hybrid: give one"
        )
    if roberta is not None and roberta.gemma is not None:
        raise InputError(
            f"roberta is {show(roberta.experiment.kind)}, but must be an embedder without Gemma"
        )
    texts = as_list(texts)
    validate_texts(texts, "measure_cost")
    if len(texts) < 2:
        raise InputError("the cost of texts at once needs two texts or more")
    num_layers = hybrid.gemma.preset.num_layers
    if not len(cutoffs) or not set(cutoffs) <= set(range(1, num_layers + 1)):
        raise InputError(f"cutoffs is {show(list(cutoffs))}, but must be some of 1 … {num_layers}")
    descending = sorted(map(int, set(cutoffs)), reverse=True)
    return _Subject(hybrid, roberta or hybrid.without_gemma, texts, descending)


# === Measuring ===


def _measure(subject: _Subject, repeats: int) -> Measurement:
    if repeats < 1:
        raise InputError(f"repeats is {show(repeats)}, but must be 1 or more")
    cases, gemma = subject.cases(), subject.hybrid.gemma
    passes: list[float] = []
    peaks: list[int | None] = []
    seconds: list[list[float]] = [[] for _ in cases]
    total = len(cases) * (UNTIMED_PASSES + repeats)
    try:
        with progress.progress_bar(total, "measuring cost", "pass") as bar:
            for case in cases:
                case.encode()
                bar.update()
            for case in cases:
                before = gemma.layer_passes
                peaks.append(peak_rise(case.encode))
                passes.append((gemma.layer_passes - before) / len(case.texts))
                bar.update()
            for _ in range(repeats):
                for case, measured in zip(cases, seconds, strict=True):
                    start = time.perf_counter()
                    case.encode()
                    measured.append(time.perf_counter() - start)
                    bar.update()
    finally:
        gemma.unload()
    rows = [
        Cost(
            cutoff=case.cutoff,
            batch=case.batch,
            block_passes=passes[i],
            ms_per_text=1000 * statistics.median(seconds[i]) / len(case.texts),
            peak_megabytes=None if peaks[i] is None else peaks[i] / 1e6,
            weights_megabytes=_weight_megabytes(case.embedder, case.cutoff),
        )
        for i, case in enumerate(cases)
    ]
    rows.sort(key=lambda row: (row["cutoff"], row["batch"]))
    return Measurement(machine=describe_machine(), subject=subject.describe(), rows=rows)


def _weight_megabytes(embedder: Embedder, cutoff: int) -> float | None:
    """Megabytes of the weights in memory; of Gemma's, those of the layers up to the cutoff."""
    own = 4 * embedder.model.count_params()  # float32, in mixed precision too
    gemma = embedder.gemma
    if gemma is None:
        return own / 1e6
    try:
        shape = preset_shape("llm_preset", gemma.preset.handle)
    except InputError:  # a Hugging Face model
        return None
    return (own + llm_weight_bytes(shape, cutoff, gemma.dtype, gemma.stream_blocks)) / 1e6

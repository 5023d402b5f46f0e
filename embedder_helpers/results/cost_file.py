"""The file of measured costs, `cost.json`: what a text costs at every cutoff, on which machine.

A folder of results has one. Each machine that measures adds its own measurement, so that a folder
that was copied keeps what another machine measured. `experiments.cost` measures.
"""

import dataclasses
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypedDict

import pandas as pd

from embedder_helpers.errors import shorten
from embedder_helpers.utils.json_files import check_checksum, read_json, write_json
from embedder_helpers.utils.stored_values import between, check_fields

logger = logging.getLogger(__name__)

COST_FILE = "cost.json"
MAX_BYTES = 2**22

NotNegative = Annotated[float, between(0)]
Count = Annotated[int, between(0)]


class Cost(TypedDict):
    """What a text costs.

    Keys:
        cutoff: number of Gemma's layers; 0 for RoBERTa alone.
        batch: number of texts that are given at once: 1, or as many as were measured.
        block_passes: passes of a text through one of Gemma's layers.
        ms_per_text: milliseconds.
        peak_megabytes: rise of the memory's peak while the texts pass, weights not counted; None
            where it cannot be measured.
        weights_megabytes: of the weights that are in memory, on the device; None if unknown.
    """

    cutoff: Count
    batch: Annotated[int, between(1)]
    block_passes: NotNegative
    ms_per_text: NotNegative
    peak_megabytes: NotNegative | None
    weights_megabytes: NotNegative | None


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """What one machine measured.

    Attributes:
        machine: what determines its speed, by name; `device` among it.
        subject: what was measured: models, precision, number and length of the texts.
        rows: the costs.
    """

    machine: dict[str, str]
    subject: dict[str, Any]
    rows: list[Cost]

    def as_table(self) -> pd.DataFrame:
        """A row per cutoff and batch, with `device`, in the order of the cutoffs."""
        table = pd.DataFrame(self.rows, columns=[*Cost.__annotations__])
        # None, as where memory cannot be measured, would make a column of objects.
        table = table.astype({"peak_megabytes": "float64", "weights_megabytes": "float64"})
        return table.assign(device=self.machine.get("device", ""))


def read_measurements(folder: Path) -> list[Measurement]:
    """The measurements of a folder's `cost.json`, the newest last; none if there is no such file.

    One that is damaged, or that a later version wrote in another way, is logged and counts as
    missing: costs can be measured again.
    """
    path = folder / COST_FILE
    try:
        content = check_checksum(read_json(path, MAX_BYTES))
        measurements = []
        for values in content["measurements"]:
            check_fields(values, Measurement)
            measurements.append(Measurement(**values))
        return measurements
    except (FileNotFoundError, NotADirectoryError):
        return []
    except (OSError, ValueError, TypeError, KeyError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        logger.warning(
            "%s cannot be read (%s): costs are measured again", path, shorten(str(reason), 300)
        )
        return []


def find_measurement(
    folder: Path, machine: Mapping[str, str], subject: Mapping[str, Any]
) -> Measurement | None:
    """What a machine measured of a subject; None if it has not."""
    for measurement in read_measurements(folder):
        if measurement.machine == machine and measurement.subject == subject:
            return measurement
    return None


def read_cost(folder: Path) -> pd.DataFrame | None:
    """The newest measurement in a folder as a table, see `Measurement.as_table`; None if none."""
    measurements = read_measurements(folder)
    return measurements[-1].as_table() if measurements else None


def add_measurement(folder: Path, measurement: Measurement) -> Path:
    """Add a measurement to a folder's `cost.json`, in place of the machine's own of that subject.

    Returns:
        The file's path.

    Raises:
        InputError: the folder cannot be written.
    """
    kept = [
        other
        for other in read_measurements(folder)
        if (other.machine, other.subject) != (measurement.machine, measurement.subject)
    ]
    path = folder / COST_FILE
    stored = [dataclasses.asdict(one) for one in (*kept, measurement)]
    write_json(path, {"measurements": stored})
    return path

"""The tables of configuration.md: every key of an Experiment, by what it is about.

What stands above the mark in the page is written by hand and kept. `make docs` runs this.
"""

import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from embedder_helpers.config import (  # noqa: E402
    DATA_KEYS,
    SPLIT_KEYS,
    TRAINING_KEYS,
    Experiment,
)

PAGE = ROOT / "docs" / "configuration.md"
MARK = "<!-- What follows is written by `make docs`. -->\n"
REST = "Other"  # where a key goes that no group names
GROUPS = {
    "Data": (*DATA_KEYS, *SPLIT_KEYS, "max_tokens"),
    "Embedder": ("kind", "pooling", "seed"),
    "Gemma": ("llm_preset", "llm_layers", "layer_pooling", "final_norm"),
    "Joint": ("fusion", "projection", "projection_start", "state_dropout"),
    "RoBERTa": ("slm_preset",),
    "Training": ("epochs", *(key for key in TRAINING_KEYS if key not in SPLIT_KEYS)),
    "Scoring": ("scored_split", "probe"),
    "What is kept, where, and who is told": (
        "save_embedder",
        "tracking",
        "states_dir",
        "states_gigabytes",
        "stream_blocks",
    ),
}


def grouped(names: Sequence[str]) -> dict[str, list[str]]:
    """The names by their group, in the groups' order; what no group names comes last."""
    found = {group: [name for name in keys if name in names] for group, keys in GROUPS.items()}
    known = {name for keys in GROUPS.values() for name in keys}
    rest = [name for name in names if name not in known]
    return found | ({REST: rest} if rest else {})


def tables() -> str:
    """A table for each group."""
    fields = {one.name: one for one in dataclasses.fields(Experiment)}
    return "\n".join(
        f"## {group}\n\n| key | default | allowed | meaning |\n|---|---|---|---|\n"
        + "".join(_row(fields[name]) for name in names)
        for group, names in grouped(list(fields)).items()
    )


def _row(field: dataclasses.Field) -> str:
    default = json.dumps(field.default)  # null and true, as YAML spells them
    rule, about = field.metadata["rule"].allowed, field.metadata["about"]
    return f"| `{field.name}` | `{default}` | {rule} | {about} |\n"


def page() -> str:
    """The whole page, its hand-written part as it stands."""
    above, mark, _ = PAGE.read_text(encoding="utf-8").partition(MARK)
    if not mark:
        raise SystemExit(f"{PAGE} has lost its mark, without which nothing can be kept: {MARK}")
    return f"{above}{MARK}\n{tables()}"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")

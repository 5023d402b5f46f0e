"""Write the tables of docs/configuration.md: every setting of an Experiment, by group.

    python tools/configuration_page.py

What is above the mark in the page is written by hand and kept.
"""

import dataclasses
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from embedder_helpers.config import Experiment, settings

PAGE = Path(__file__).resolve().parent.parent / "docs" / "configuration.md"
MARK = "<!-- What follows is written by `make docs`. -->\n"


def page() -> str:
    """The whole page, its hand-written part as it is.

    Raises:
        ValueError: the page has no mark.
    """
    above, mark, _ = PAGE.read_text(encoding="utf-8").partition(MARK)
    if not mark:
        raise ValueError(f"{PAGE} has no line {MARK.strip()!r}: put it above the first table")
    return f"{above}{MARK}\n{tables()}"


def tables() -> str:
    """A table for each group, in the order in which the groups first appear."""
    defaults = {field.name: field.default for field in dataclasses.fields(Experiment)}
    groups: dict[str, str] = {}
    for name, setting in settings().items():
        default = json.dumps(defaults[name])  # null and true, as in YAML
        row = f"| `{name}` | `{default}` | {setting.rule.allowed} | {setting.about} |\n"
        groups[setting.group] = groups.get(setting.group, "") + row
    header = "| setting | default | allowed values | meaning |\n|---|---|---|---|\n"
    return "\n".join(f"## {group}\n\n{header}{rows}" for group, rows in groups.items())


if __name__ == "__main__":
    try:
        PAGE.write_text(page(), encoding="utf-8")
    except ValueError as error:
        sys.exit(f"error: {error}")

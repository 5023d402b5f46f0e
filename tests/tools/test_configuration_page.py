import dataclasses
import json

import pytest

from embedder_helpers.config import Experiment, settings
from tools import configuration_page


def test_the_page_is_up_to_date():
    written = configuration_page.PAGE.read_text(encoding="utf-8")
    assert written == configuration_page.page(), "run `make docs`"


def test_every_setting_is_listed_once_with_its_default_and_allowed_values():
    lines = configuration_page.tables().splitlines()
    for field in dataclasses.fields(Experiment):
        (row,) = [line for line in lines if line.startswith(f"| `{field.name}` |")]
        rule = settings()[field.name].rule
        assert f"| `{json.dumps(field.default)}` | {rule.allowed} |" in row


def test_every_group_has_one_table():
    headings = [line for line in configuration_page.tables().splitlines() if line.startswith("#")]
    assert sorted(headings) == sorted({f"## {setting.group}" for setting in settings().values()})


def test_what_is_above_the_mark_is_kept(tmp_path, monkeypatch):
    page = tmp_path / "configuration.md"
    page.write_text(f"# By hand\n\n{configuration_page.MARK}\nold tables\n")
    monkeypatch.setattr(configuration_page, "PAGE", page)
    text = configuration_page.page()
    assert text.startswith(f"# By hand\n\n{configuration_page.MARK}\n## ")
    assert "old tables" not in text


def test_a_page_without_the_mark_is_not_overwritten(tmp_path, monkeypatch):
    (tmp_path / "configuration.md").write_text("# By hand\n")
    monkeypatch.setattr(configuration_page, "PAGE", tmp_path / "configuration.md")
    with pytest.raises(ValueError, match="has no line"):
        configuration_page.page()

"""A default is written once: settings.ini repeats none, docs/settings.md is made from the declarations."""

import importlib
from pathlib import Path

import pytest

from content_arena.cli.settings import settings_page
from content_arena.core.config import Settings, load_settings
from content_arena.core.settings import FORMER
from content_arena.core.settings_file import read_entries, read_text

ROOT = Path(__file__).resolve().parents[2]
INI = ROOT / "settings.ini"


def test_the_page_is_current(tmp_path: Path):
    page = (ROOT / "docs/settings.md").read_text(encoding="utf-8")
    assert settings_page(INI) == page, "content-arena settings --markdown > docs/settings.md"
    other = tmp_path / "settings.ini"
    other.write_text(read_text(INI).replace("batch_tokens = 16384", "batch_tokens = 16385"))
    assert settings_page(other) != page


def repeated(ini: Path) -> list[str]:
    "Keys outside of profiles that are given the value they have anyway."
    _, entries = read_entries(read_text(ini), str(ini))
    defaults, given = Settings(), load_settings(ini=ini, env={})
    return [
        e.key
        for e in entries
        if not e.section.startswith("profile:")
        and getattr(given, e.key) == getattr(defaults, e.key)
    ]


def test_the_file_repeats_no_default(tmp_path: Path):
    assert repeated(INI) == []
    other = tmp_path / "settings.ini"
    other.write_text(
        "[train]\nepochs = 2\nseed = 1\n[data]\nsources = embedded\n[profile:x]\nepochs = 2\n"
    )
    assert repeated(other) == ["epochs", "sources"]


def test_what_people_may_uncomment_is_accepted(tmp_path: Path):
    lines = read_text(INI).splitlines()
    examples = [line for line in lines if line.startswith("# ") and " = " in line]
    assert len(examples) >= 10
    other = tmp_path / "settings.ini"
    other.write_text("\n".join(line[2:] if line in examples else line for line in lines))
    settings = load_settings(ini=other, env={})
    assert {line[2:].split(" = ")[0] for line in examples} == {
        k for k in Settings.model_fields if settings.origin(k) != "default"
    }
    assert len(repeated(other)) == 0, "an example that changes nothing"


@pytest.mark.parametrize("key", sorted(FORMER))
def test_what_is_no_longer_a_setting_is_the_constant_that_the_message_names(key: str):
    module, _, name = FORMER[key].rpartition(".")
    assert key not in Settings.model_fields
    assert getattr(importlib.import_module(f"content_arena.{module}"), name) > 0

"""Rows for training only: what they may not change, and that the certificate finds what slips in."""

import hashlib
import json
from datetime import datetime, timezone
from pathlib import Path

import pandas as pd
import pytest

from content_arena.core.config import load_settings
from content_arena.mlops.evaluator import as_test_set
from content_arena.mlops.lineage import LineageError, certify
from content_arena.mlops.model_registry import Version
from content_arena.core.text import canonical
from content_arena.data import train_only
from content_arena.training.data_preparation import Dataset, prepare_dataset
from content_arena.data.readers import DataError

WORDS = "soup song dance hat joke plan idea garden letter speech".split()
NAMES = "Ann Bob Cid Dan Eve Fay Gil Hal".split()


@pytest.fixture
def home(tmp_path) -> Path:
    (tmp_path / "settings.ini").write_text("[paths]\nvar_dir = var\n")
    lines = [f"{n} made a lovely {w} today,0" for n in NAMES for w in WORDS]
    lines += [f"{n} the fool wants a {w},1" for n in NAMES for w in WORDS]
    (tmp_path / "comments.csv").write_text("text,label\n" + "\n".join(lines) + "\n")
    return tmp_path


def prepare(home: Path, *rows: dict, **settings) -> Dataset:
    "The data set of comments.csv, with `rows` for training only."
    if rows:
        (home / "more.jsonl").write_text("\n".join(map(json.dumps, rows)))
        settings["train_sources"] = "jsonl:more.jsonl"
    s = load_settings(ini=home / "settings.ini", env={}, sources="csv:comments.csv", **settings)
    return prepare_dataset(s, progress=False)


def sha(text: str) -> str:
    return hashlib.sha256(canonical(text).encode()).hexdigest()


def variant(original: str, text: str | None = None, **more) -> dict:
    return {
        "text": text or original.replace("o", "0"),
        "label": 1,
        "attack": "leetspeak",
        "parent": sha(original),
    } | more


def test_valid_and_test_rows_stay_the_same_whatever_is_added(home):
    plain = prepare(home)
    row = plain.frame("train").text.iloc[0]
    more = prepare(home, variant(row), {"text": "something else entirely", "label": 0})
    assert more.id != plain.id
    for split in ("valid", "test"):
        assert more.manifest["content"][split] == plain.manifest["content"][split]
    assert as_test_set(more).sha256 == as_test_set(plain).sha256
    added = more.frame("train").iloc[len(plain.frame("train")) :]
    assert added.text.tolist() == [row.replace("o", "0"), "something else entirely"]
    assert added.attack.fillna("").tolist() == ["leetspeak", ""]
    groups = {s: set(more.frame(s).group) for s in ("train", "valid", "test")}
    assert not groups["train"] & (groups["valid"] | groups["test"])
    account = dict(more.manifest["rows"])
    assert account.pop("read") == sum(account.values())


def test_the_cap_on_training_rows_does_not_touch_them(home):
    first = prepare(home, max_train_rows=100).frame("train").text.iloc[0]
    capped = prepare(home, variant(first), max_train_rows=50)
    assert capped.manifest["counts"]["train"]["rows"] == 51
    assert capped.manifest["train_only"]["kept"] == 1


@pytest.mark.parametrize("split", ["valid", "test"])
def test_what_comes_from_a_held_back_row_is_dropped_and_counted(home, split):
    held_back = prepare(home).frame(split).text.iloc[0]
    made = prepare(
        home,
        variant(held_back, "n0thing that looks like it"),  # by its hash
        variant(held_back, "n0thing like it, either", parent=held_back),  # by its text
        variant(held_back, "a th1rd one, far away", parent=held_back + "!"),  # nearly its text
        {"text": held_back.upper() + "!", "label": 1},
    )  # the row itself
    assert made.manifest["train_only"]["dropped"] == {
        "no_parent": 0,
        "parent_held_back": 3,
        "held_back": 1,
        "repeated": 0,
    }
    assert made.manifest["train_only"]["kept"] == 0
    assert "3 variants of valid or test rows" in " ".join(made.manifest["notes"])


def test_a_parent_that_nobody_knows_is_no_parent(home):
    row = prepare(home).frame("train").text.iloc[0]
    made = prepare(
        home,
        variant(row, parent=None),
        variant(row, parent="f" * 64),
        variant(row, text="l0st and found", parent="this was never read"),
        variant(row),
    )
    assert made.manifest["train_only"]["dropped"]["no_parent"] == 3
    assert made.manifest["train_only"]["kept"] == 1


def test_a_disguise_that_only_people_can_not_see_is_kept(home):
    row = prepare(home).frame("train").text.iloc[0]
    hidden = row.replace("a", "a\u200b")
    made = prepare(
        home, variant(row, hidden, attack="zero_width"), variant(row, row), variant(row, hidden)
    )
    assert made.manifest["train_only"]["kept"] == 1
    assert made.manifest["train_only"]["dropped"]["repeated"] == 2


def test_a_held_out_rule_stops_everything(home):
    row = prepare(home).frame("train").text.iloc[0]
    rows = variant(row), variant(row, "q", attack="zero_width+leetspeak")
    with pytest.raises(DataError, match="more.jsonl, line 2: made by zero_width, which"):
        prepare(home, *rows, train_excludes="homoglyph,zero_width")
    assert prepare(home, *rows, train_excludes="homoglyph").manifest["train_only"]["held_out"] == [
        "homoglyph"
    ]


class Runs:
    "A registry in which each version's run left the fingerprints of its data set."

    def __init__(self, *datasets: Dataset):
        self.datasets = {d.id: d for d in datasets}

    def versions(self) -> list[Version]:
        now = datetime.now(timezone.utc)
        return [Version("m", "1", "run", (), {"lineage": json.dumps(list(self.datasets))}, "", now)]

    def artifact(self, run_id: str, path: str, folder: Path) -> Path:
        file = folder / Path(path).name
        dataset = self.datasets[file.stem]
        pd.concat([dataset.fingerprints(s).assign(split=s) for s in ("train", "valid")]).to_parquet(
            file
        )
        return file


def test_the_certificate_holds_and_finds_what_the_guard_lets_through(home, monkeypatch):
    plain = prepare(home)
    row, held_back = plain.frame("train").text.iloc[0], plain.frame("test").text.iloc[0]
    rows = variant(row), {"text": held_back + "!", "label": 1}
    good, test = prepare(home, *rows), plain.fingerprints("test")
    assert certify(test, Runs(plain, good), Runs(plain, good).versions()).hits == ()

    blind = train_only.reasons_against
    monkeypatch.setattr(
        train_only, "reasons_against", lambda *a: blind(*a).str.replace(".*", "", regex=True)
    )
    bad = prepare(home, *rows, {"text": "so that it is built anew", "label": 0})
    assert bad.manifest["train_only"]["kept"] == 3
    with pytest.raises(LineageError, match="1 of .* test rows"):
        certify(test, Runs(plain, bad), Runs(plain, bad).versions())

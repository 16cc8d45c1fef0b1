"""What `data diff` says of two data sets that differ in a known way."""

import pandas as pd
import pytest

from content_arena.core.config import load_settings
from content_arena.data.datasets import SPLITS
from content_arena.data.differences import dataset_differences, difference_lines
from content_arena.training.data_preparation import prepare_dataset

NAMES = "Ann Bob Cid Dan Eve Fay Gil Hal Ida Joe Kim Lee Mia Ned Oda Pat Quy Ray Sue Tom".split()
THINGS = "soup song dance hat joke plan idea garden letter speech".split()


@pytest.fixture
def home(tmp_path):
    (tmp_path / "settings.ini").write_text("[paths]\nvar_dir = var\n")
    return tmp_path


def prepare(home, rows, **explicit):
    pd.DataFrame(rows, columns=["text", "label"]).to_csv(home / "a.csv", index=False)
    explicit = {"valid_fraction": 0.2, "max_train_rows": 0, "sources": "csv:a.csv"} | explicit
    explicit |= {"near_duplicate_threshold": 1}
    return prepare_dataset(
        load_settings(ini=home / "settings.ini", env={}, **explicit), progress=False
    )


def comments():
    clean = [(f"{who} made a lovely {what} today", 0) for who in NAMES for what in THINGS]
    return clean + [(f"{who} the fool wants no {what}", 1) for who in NAMES for what in THINGS]


def by_text(dataset):
    return pd.concat([dataset.frame(s) for s in SPLITS]).set_index("text")


def test_rows_settings_and_sources(home):
    rows = comments()
    first = prepare(home, rows)
    changed = [(rows[0][0].upper(), 0), (rows[1][0], 1), *rows[2:-3], ("A new one", 1)]
    second = prepare(home, changed, seed=1)
    said = dataset_differences(first, second)
    assert said["recipe"] == {"seed": [0, 1]} and said["inputs"] == {"csv:a.csv": "changed"}
    expected = {"first": 400, "second": 398, "both": 397, "added": 1, "removed": 3, "relabelled": 1}
    assert {k: said["rows"][k] for k in expected} == expected
    assert said["labels"] == {"clean → toxic": 1}
    assert said["sources"] == {"csv:a.csv": {"added": 1, "removed": 3}}
    old, new = by_text(first), by_text(second)
    same = old.index.intersection(new.index)
    moved = (old.split[same] != new.split[same]).sum()
    upper = old.split[rows[0][0]] != new.split[rows[0][0].upper()]
    assert said["rows"]["moved"] == sum(said["splits"].values()) == moved + upper > 0
    assert "1 added, 3 removed" in "\n".join(difference_lines(said))


def test_a_data_set_does_not_differ_from_itself(home):
    dataset = prepare(home, comments())
    said = dataset_differences(dataset, dataset)
    rows = said["rows"]
    assert rows["both"] == rows["first"] == rows["second"] == 400
    assert not any(v for k, v in rows.items() if k not in ("both", "first", "second"))
    assert "settings and sources are the same" in difference_lines(said)

"""Every row that was read is accounted for: whatever goes wrong with it, for each source, in words and in numbers."""

import json
import os
import re
import shutil
import signal
import subprocess
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings as hypothesis_settings, strategies as st
from warm import python

from content_arena.core.config import load_settings
from content_arena.data import datasets
from content_arena.data.datasets import SPLITS, find_dataset, open_dataset
from content_arena.data.lost_rows import LostRows, losses_lines, losses_of
from content_arena.data.readers import SourceTable
from content_arena.data.raw_files import DataError
from content_arena.training import data_preparation
from content_arena.training.data_preparation import prepare_dataset

OLD = Path(__file__).parents[1] / "data/dataset_of_format_1"
NAMES = "Ann Bob Cid Dan Eve Fay Gil Hal Ida Joe Kim Lee Mia Ned Oda Pat Quy Ray Sue Tom".split()
THINGS = "soup song dance hat joke plan idea garden letter speech".split()


@pytest.fixture
def home(tmp_path):
    (tmp_path / "settings.ini").write_text("[paths]\nvar_dir = var\n")
    return tmp_path


def at(home, **explicit):
    return load_settings(ini=home / "settings.ini", env={}, **{"valid_fraction": 0.2} | explicit)


def prepare(home, **explicit):
    return prepare_dataset(at(home, **explicit), progress=False)


def comments(n=400, word="made"):
    "n different comments with their labels: half of them toxic."
    clean = [(f"{who} {word} a lovely {what} today", 0) for who in NAMES for what in THINGS]
    toxic = [(f"{who} the fool {word} no {what}", 1) for who in NAMES for what in THINGS]
    return clean[: n // 2] + toxic[: n // 2]


def write(path, rows, *more):
    lines = ["text,label", *(f"{text},{label}" for text, label in rows), *more]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def source(name, rows, bad=(), read=None, assumed=(), **columns):
    "A table as a reader gives it; `columns` over all rows, or one value for each."
    frame = pd.DataFrame(rows, columns=["text", "label"]).astype({"label": "int8"})
    frame = frame.assign(source=name, file=f"{name}.csv", line=range(2, len(rows) + 2), lang="en")
    frame = frame.assign(attack=None, functionality=None, template=None, parent=None, **columns)
    frame = frame.astype(dict.fromkeys(("attack", "functionality", "template", "parent"), "str"))
    columns = ["source", "file", "line", "reason", "excerpt"]
    lost = pd.DataFrame([(name, f"{name}.csv", *b, "") for b in bad], columns=columns)
    read = len(rows) + len(bad) if read is None else read
    return SourceTable(name, "MIT", frame, lost, read, tuple(assumed))


@pytest.fixture
def given_sources(home, monkeypatch):
    "`prepare` from tables that no file has to be written for."

    def of(*tables, **settings):
        known = {t.name: t for t in tables}
        for name in known:
            (home / f"{name}.csv").write_text("text,label\n")
        monkeypatch.setattr(data_preparation, "load_source", lambda name, s: known[name])
        monkeypatch.setattr(data_preparation, "source_digest", lambda name, s: name)
        return prepare(home, sources=",".join(known), **{"max_train_rows": 0} | settings)

    return of


def balance(account):
    return account["read"] - sum(account[k] for k in ("used", "quarantined", "duplicates", "cut"))


# --- the account ----------------------------------------------------------------------------------


def test_each_kind_of_loss_is_counted_for_its_own_source(home):
    write(home / "a.csv", comments(), "x,toxic", "no label", "A FINE DAY,0", "a fine day,1")
    write(home / "b.csv", comments(120, "ate"), comments()[0][0].upper() + ",0", ",0")
    dataset = prepare(home, sources="csv:a.csv,csv:b.csv", max_train_rows=200)
    losses = losses_of(dataset.manifest, dataset.folder)
    a, b = losses["sources"]["csv:a.csv"], losses["sources"]["csv:b.csv"]
    assert (a["read"], a["quarantined"], b["read"], b["quarantined"]) == (404, 2, 122, 1)
    assert a["kinds"] == {"conflicts_dropped": 2} and b["kinds"] == {"duplicates_removed": 1}
    assert losses["cut"] == a["cut"] + b["cut"] > 0
    assert [balance(x) for x in (losses, a, b)] == [0, 0, 0]
    assert losses["used"] == sum(len(dataset.frame(s)) for s in SPLITS)
    listed = Path(losses["quarantine_file"]).read_text().splitlines()
    assert len(listed) == losses["quarantined"] == 3
    assert sum(losses["reasons"].values()) == 3


def test_rows_for_training_only_are_in_the_account(home):
    write(home / "a.csv", comments())
    first = prepare(home, sources="csv:a.csv", max_train_rows=0)
    toxic = first.frame("train").query("label == 1").text.iloc[0]
    held_back = first.frame("test").query("label == 1").text.iloc[0]
    rows = [
        {"text": t.replace("o", "0"), "label": 1, "attack": "leetspeak", "parent": t}
        for t in (toxic, held_back, "a comment that nobody has read", toxic)
    ]
    (home / "more.jsonl").write_text("\n".join(map(json.dumps, rows)))
    losses = losses_of(
        prepare(home, sources="csv:a.csv", train_sources="jsonl:more.jsonl").manifest
    )
    extra = next(v for k, v in losses["sources"].items() if "more.jsonl" in k)
    assert (extra["read"], extra["used"], balance(extra), balance(losses)) == (4, 1, 0, 0)
    assert extra["kinds"] == {"no_parent": 1, "parent_held_back": 1, "repeated": 1}


def test_a_row_lost_between_reader_and_split_is_not_overlooked(given_sources):
    with pytest.raises(LostRows, match="rows are lost or counted twice"):
        given_sources(source("one", comments(), read=401))


def test_rows_that_a_manifest_has_lost_are_not_overlooked(home):
    write(home / "a.csv", comments())
    manifest = prepare(home, sources="csv:a.csv").manifest
    changed = json.loads(json.dumps(manifest))
    changed["rows"]["read"] += 1
    with pytest.raises(LostRows):
        losses_of(changed)
    changed["rows"]["train"] += 1  # now the sum is right, but no source has the row
    with pytest.raises(LostRows, match="the sources have"):
        losses_of(changed)


LINES = st.sampled_from(
    ["fine,0", "FINE,0", "Fine,1", "bad,1", "bad,2", ",1", "no label", '"open', "x,y,z", "a\x00b,1"]
)


@given(st.lists(LINES, max_size=12))
@hypothesis_settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_whatever_stands_in_a_file_the_account_is_complete(home, lines):
    write(home / "a.csv", comments(200), *lines)
    try:
        dataset = prepare(home, sources="csv:a.csv", max_lost_fraction=1)
    except DataError:
        return
    losses = losses_of(dataset.manifest, dataset.folder)
    assert balance(losses) == 0 and losses["read"] >= 200
    assert losses["used"] == sum(len(dataset.frame(s)) for s in SPLITS)


# --- warnings and errors --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "bad, warned, refused",
    [(4, False, False), (5, True, False), (21, True, False), (22, True, True)],
)
def test_above_one_percent_is_a_warning_and_above_five_an_error(home, bad, warned, refused):
    write(home / "a.csv", comments(), *[f"comment {i}" for i in range(bad)])
    if refused:
        with pytest.raises(DataError, match="max_lost_fraction") as error:
            prepare(home, sources="csv:a.csv")
        message = str(error.value)
        assert f"csv:a.csv: {bad} of {400 + bad} rows (5.2%)" in message and "fields" in message
        file = Path(re.search(r"Each of them is in (\S+) with its line", message)[1])
        lines = [json.loads(line)["line"] for line in file.read_text().splitlines()]
        assert lines == list(range(402, 402 + bad))
        assert not list((home / "var/datasets").glob("*/manifest.json"))
        allowed = re.search(r"max_lost_fraction = ([\d.]+)", message)[1]
        dataset = prepare(home, sources="csv:a.csv", max_lost_fraction=allowed)
    else:
        dataset = prepare(home, sources="csv:a.csv")
    losses = losses_of(dataset.manifest, dataset.folder)
    assert any("can't be used" in w for w in losses["warnings"]) == warned
    assert any(line.startswith("warning: csv:a.csv") for line in losses_lines(losses)) == warned


def test_a_small_source_can_not_be_lost_in_the_sum(home):
    write(home / "a.csv", comments())
    write(home / "b.csv", comments(20, "ate"), "x,toxic", "y,toxic")
    with pytest.raises(DataError, match=r"csv:b.csv: 2 of 22 rows \(9.1%\)") as error:
        prepare(home, sources="csv:a.csv,csv:b.csv")
    assert "csv:a.csv" not in str(error.value)


def test_what_was_allowed_once_is_refused_from_the_cache_too(home):
    write(home / "a.csv", comments(), *[f"comment {i}" for i in range(60)])
    dataset = prepare(home, sources="csv:a.csv", max_lost_fraction=0.2)
    with pytest.raises(DataError, match="max_lost_fraction") as error:
        prepare(home, sources="csv:a.csv")
    assert str(dataset.folder / "quarantine.jsonl") in str(error.value)
    assert prepare(home, sources="csv:a.csv", max_lost_fraction=0.2).id == dataset.id


def test_lost_rows_are_named_before_an_empty_split_is(home):
    write(home / "a.csv", comments(10), *[f"comment {i}" for i in range(300)])
    with pytest.raises(DataError, match="max_lost_fraction"):
        prepare(home, sources="csv:a.csv")


def test_a_cap_is_announced_with_its_setting(home):
    write(home / "a.csv", comments())
    losses = losses_of(prepare(home, sources="csv:a.csv", max_train_rows=50).manifest)
    there = 50 + losses["cut"]
    assert losses["warnings"] == [
        f"max_train_rows = 50 leaves out {losses['cut']:,} of {there:,} training rows;"
        " max_train_rows = 0 uses all"
    ]
    assert (
        losses_of(prepare(home, sources="csv:a.csv", max_train_rows=0).manifest)["warnings"] == []
    )


def test_what_a_reader_took_for_granted_is_in_the_answer(given_sources):
    one = source("one", comments(), assumed=["separator: tab", "read as cp949"])
    losses = losses_of(given_sources(one).manifest)
    assert losses["assumed"] == {"one": ["separator: tab", "read as cp949"]}
    assert "assumed  one: separator: tab; read as cp949" in losses_lines(losses)


# --- categories, severity, context ----------------------------------------------------------------


def of_all(dataset):
    return pd.concat([dataset.frame(s) for s in SPLITS]).set_index("text")


def test_categories_severity_and_context_come_through(given_sources):
    rows = comments()
    kinds = [["insult"] if label else [] for _, label in rows]
    kinds[399] = ["insult", "race"]
    one = source("one", rows, categories=kinds, severity=[2 * y for _, y in rows], context="a film")
    two = source("two", comments(120, "ate"))
    dataset = given_sources(one, two)
    frame = of_all(dataset)
    assert frame.categories[rows[399][0]] == ["insult", "race"]
    assert frame.categories[rows[0][0]] == [] and frame.context[rows[0][0]] == "a film"
    unknown = frame[frame.source == "two"]
    assert len(unknown) == 120 and unknown[["categories", "severity", "context"]].isna().all(None)
    manifest = dataset.manifest
    assert manifest["categories"]["one"] == {
        "rows": 400,
        "known": 400,
        "counts": {"insult": 200, "race": 1},
    }
    assert manifest["categories"]["two"] == {"rows": 120, "known": 0, "counts": {}}
    assert manifest["severities"]["one"]["counts"] == {"0": 200, "2": 200}
    total = sum(manifest["counts"][s]["categories"].get("insult", 0) for s in SPLITS)
    assert total == 200


def test_conflicts_of_each_column_are_counted_apart(given_sources):
    rows = comments()
    toxic = rows[200][0]
    again = [(toxic, 1), (toxic.upper(), 1), (toxic, 0)]
    one = source(
        "one",
        rows,
        categories=[["insult"] if y else [] for _, y in rows],
        severity=1,
        context="first",
    )
    two = source(
        "two",
        again,
        categories=[["race"], None, []],
        severity=[2, 2, 0],
        context=["other", None, None],
    )
    dataset = given_sources(one, two)
    row = of_all(dataset).loc[toxic]
    assert (row.label, row.categories, row.severity, row.context) == (
        1,
        ["insult", "race"],
        2,
        "first",
    )
    disputes = dataset.manifest["conflicts"]
    assert {k: disputes[k] for k in ("exact", "categories", "severity", "context")} == {
        "exact": 1,
        "categories": 1,
        "severity": 1,
        "context": 1,
    }
    assert any("several contexts" in note for note in dataset.manifest["notes"])
    assert dataset.manifest["shared"] == [{"a": "one", "b": "two", "same": 1, "near": 1}]
    clean = of_all(dataset).query("label == 0")
    assert clean.severity.eq(0).all() and all(c == [] for c in clean.categories)


def test_columns_of_format_2_are_part_of_the_id(given_sources):
    plain = given_sources(source("one", comments()))
    known = given_sources(source("one", comments(), severity=[y for _, y in comments()]), seed=1)
    assert plain.manifest["content"]["test"] != known.manifest["content"]["test"]


# --- data sets of format 1, and killed preparations -----------------------------------------------


def test_a_data_set_of_format_1_still_opens(home):
    shutil.copytree(OLD, home / "var/datasets" / "71c3a122e74517a8")
    dataset = find_dataset(at(home), "71c3")
    assert dataset.manifest["format"] == 1
    frame = dataset.frame("train")
    assert list(frame.columns) == datasets.SCHEMA.names and len(frame) == 60
    assert frame[["categories", "severity", "context"]].isna().all(None)
    assert str(frame.severity.dtype) == "Int8"
    losses = losses_of(dataset.manifest, dataset.folder)
    assert (losses["read"], losses["quarantined"], losses["cut"], balance(losses)) == (
        123,
        2,
        16,
        0,
    )
    assert losses["sources"] == {} and losses_lines(losses)


PREPARE = """
import os, signal, sys
from content_arena.core.config import load_settings
from content_arena.data import datasets
from content_arena.training import data_preparation
at, where = int(sys.argv[2]), sys.argv[3]
module = data_preparation if hasattr(data_preparation, where) else os
honest, calls = getattr(module, where), []
def dying(*args, **kw):
    calls.append(where)
    if len(calls) == at: os.kill(os.getpid(), signal.SIGKILL)
    return honest(*args, **kw)
setattr(module, where, dying)
settings = load_settings(ini=sys.argv[1] + "/settings.ini", env={}, sources="csv:a.csv", valid_fraction=0.2)
print(data_preparation.prepare_dataset(settings, progress=False).id)
"""


@pytest.mark.parametrize(
    "at_call, where",
    [
        (1, "load_source"),
        (1, "resolve_conflicts"),
        (1, "as_parquet"),
        (1, "fsync"),
        (5, "fsync"),
        (9, "fsync"),
        (1, "replace"),
        (2, "replace"),
    ],
)
def test_a_killed_preparation_is_resumed_to_the_same_id(home, at_call, where):
    write(home / "a.csv", comments(), "x,toxic")
    elsewhere = home / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "settings.ini").write_text("[paths]\nvar_dir = var\n")
    write(elsewhere / "a.csv", comments(), "x,toxic")
    expected = prepare(elsewhere, sources="csv:a.csv")
    killed = subprocess.run(
        [python(), "-c", PREPARE, str(home), str(at_call), where], capture_output=True, text=True
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    dataset = prepare(home, sources="csv:a.csv")
    assert dataset.id == expected.id
    assert dataset.manifest["created"] and not list((home / "var").rglob(".unfinished-*"))
    pd.testing.assert_frame_equal(dataset.frame("train"), expected.frame("train"))


def test_when_it_was_made_is_no_part_of_what_it_is(home):
    write(home / "a.csv", comments())
    dataset = prepare(home, sources="csv:a.csv")
    file = dataset.folder / "manifest.json"
    os.chmod(file, 0o644)
    file.write_text(json.dumps(dataset.manifest | {"created": "2001-01-01T00:00:00+00:00"}))
    assert open_dataset(dataset.folder).id == dataset.id

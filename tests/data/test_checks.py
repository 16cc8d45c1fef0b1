"""The checks of a data set, each on data in which there is something to find, and on data in which there is not."""

import json

import numpy as np
import pandas as pd
import pytest

from content_arena.core.config import load_settings
from content_arena.data.checks import (
    CHECKS,
    DOUBT,
    MOST_ROWS,
    all_rows,
    check_dataset,
    label_doubts,
)
from content_arena.training.data_preparation import prepare_dataset

NAMES = "Ann Bob Cid Dan Eve Fay Gil Hal Ida Joe Kim Lee Mia Ned Oda Pat Quy Ray Sue Tom".split()
THINGS = "soup song dance hat joke plan idea garden letter speech".split()
KINDS = ["lengths", "languages", "categories", "duplicates", "labels", "leakage"]


@pytest.fixture
def home(tmp_path):
    (tmp_path / "settings.ini").write_text("[paths]\nvar_dir = var\n")
    return tmp_path


def prepare(home, **explicit):
    explicit = {"valid_fraction": 0.2, "max_train_rows": 0} | explicit
    return prepare_dataset(
        load_settings(ini=home / "settings.ini", env={}, **explicit), progress=False
    )


def comments(word="made"):
    clean = [(f"{who} {word} a lovely {what} today", 0) for who in NAMES for what in THINGS]
    return clean + [(f"{who} the fool {word} no {what}", 1) for who in NAMES for what in THINGS]


def write(path, rows):
    pd.DataFrame(rows, columns=["text", "label"]).to_csv(path, index=False)


def findings(dataset):
    return {f.name: f for f in check_dataset(dataset)}


def test_checks_that_find_nothing_say_so(home):
    write(home / "a.csv", comments())
    said = check_dataset(prepare(home, sources="csv:a.csv"))
    assert [f.name for f in said] == KINDS and len(CHECKS) == len(KINDS)
    assert all(f.clear and len(f.says) > 10 for f in said), said
    assert json.dumps([f.facts for f in said])


def test_each_check_finds_its_own_fault(home):
    mixed = [(f"{who}의 {what} 정말 좋다", 0) for who in NAMES for what in THINGS[:3]]
    write(home / "a.csv", [*comments(), *mixed, ("no", 1), ("long " * 300, 1)])
    write(home / "b.csv", [*comments()[:30], *comments("ate")])
    dataset = prepare(home, sources="csv:a.csv,csv:b.csv", max_text_chars=5000)
    said = findings(dataset)
    odd = [name for name in KINDS if not said[name].clear]
    assert odd == ["lengths", "languages", "duplicates"]
    assert (said["lengths"].facts["short"], said["lengths"].facts["long"]) == (1, 1)
    assert "csv:a.csv (13% not en)" in said["languages"].says
    assert said["duplicates"].facts["pairs"][0]["same"] == 30


def test_a_row_in_two_splits_is_found_on_the_disk(home):
    write(home / "a.csv", comments())
    dataset = prepare(home, sources="csv:a.csv")
    planted = dataset.fingerprints("test")
    planted.iloc[:3] = dataset.fingerprints("train").iloc[:3].values
    planted.to_parquet(dataset.folder / "fingerprints_test.parquet")
    leak = findings(dataset)["leakage"]
    assert not leak.clear and leak.facts["test, train"]["same"] == 3


def planted_precision(rows, share=0.05):
    "How many doubts there are if a `share` of labels is turned, how many are right, how many turned ones found."
    turned = np.random.default_rng(0).random(len(rows)) < share
    labels = np.where(turned, 1 - rows.label, rows.label)
    doubts = label_doubts(rows.text, labels, rows.group) >= DOUBT
    return int(doubts.sum()), turned[doubts].mean(), turned[doubts].sum() / turned.sum()


def sample(rows):
    return rows.sample(min(len(rows), MOST_ROWS), random_state=0).reset_index(drop=True)


@pytest.mark.slow
def test_doubts_about_labels_of_the_embedded_corpus(home):
    rows = sample(all_rows(prepare(home)))
    n, precision, recall = planted_precision(rows)
    assert n >= 50 and precision >= 0.45 and recall >= 0.08, (n, precision, recall)


@pytest.mark.slow
@pytest.mark.needs("data")
@pytest.mark.parametrize(
    "sources, precision, recall", [("beep,curse", 0.55, 0.03), ("davidson", 0.85, 0.6)]
)
def test_doubts_about_labels_of_real_comments(home, data_dir, sources, precision, recall):
    rows = sample(all_rows(prepare(home, sources=sources, data_dir=str(data_dir.resolve()))))
    n, right, found = planted_precision(rows)
    assert right >= precision and found >= recall, (n, right, found)


def test_turned_labels_are_listed_masked(home):
    rows = comments()
    for i in (3, 250):
        rows[i] = (rows[i][0], 1 - rows[i][1])
    write(home / "a.csv", rows)
    labels = findings(prepare(home, sources="csv:a.csv", near_duplicate_threshold=1))["labels"]
    listed = {row["excerpt"][:3] for row in labels.facts["rows"]}
    assert not labels.clear and labels.facts["doubtful"] >= 2 and listed
    assert "lovely" not in json.dumps(labels.facts) and "fool" not in json.dumps(labels.facts)

"""Data preparation against bad input, broken disks and second processes."""

import csv
import hashlib
import io
import json
import os
import re
import signal
import subprocess
import sys
import types
import unicodedata
from functools import cache
from itertools import chain

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from web_pages import web_pages
from hypothesis import given, settings as hypothesis_settings, strategies as st
from warm import python

from content_arena.core.config import load_settings
from content_arena.core.text import canonical
from content_arena.data.delimited import read_delimited
from content_arena.training.data_preparation import SPLITS, open_dataset, prepare_dataset
from content_arena.data.grouping import cluster, find_overlap, fingerprints, group_rows, shingles
from content_arena.data.json_tables import read_json_lines
from content_arena.data.public_files import PublicFile, fetch, find_public_file
from content_arena.data.readers import DataError, load_source

from exact import leaks, triples

pytestmark = pytest.mark.long(70)


@pytest.fixture
def home(tmp_path):
    (tmp_path / "settings.ini").write_text("[paths]\nvar_dir = var\n")
    return tmp_path


def at(home, **explicit):
    return load_settings(ini=home / "settings.ini", env={}, **explicit)


def prepare(home, **explicit):
    return prepare_dataset(at(home, **explicit), progress=False)


NAMES = "Ann Bob Cid Dan Eve Fay Gil Hal Ida Joe Kim Lee Mia Ned Oda Pat Quy Ray Sue Tom".split()
THINGS = "soup song dance hat joke plan idea garden letter speech".split()


def good_lines(n=400):
    lines = [f"{n} made a lovely {t} today,0" for n in NAMES for t in THINGS]
    lines += [f"{n} the fool wants a {t},1" for n in NAMES for t in THINGS]
    return lines[: n // 2] + lines[200 : 200 + n // 2]


def write_csv(path, lines, header="text,label"):
    path.write_text("\n".join([header, *lines]) + "\n", encoding="utf-8")


def quarantined(dataset):
    return [
        json.loads(line) for line in (dataset.folder / "quarantine.jsonl").read_text().splitlines()
    ]


def datasets_of(home):
    base = home / "var/datasets"
    names = {p.name for p in base.iterdir()} if base.exists() else set()
    return sorted(names - {".lock", "recipes"})


# --- files that can't be used at all --------------------------------------------------------------


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("a.csv", b"", "a.csv: the file is empty"),
        ("a.csv", b"\xef\xbb\xbf \n\n", "a.csv: the file is empty"),
        ("a.jsonl", b"\n\n", "a.jsonl: the file is empty"),
        ("a.csv", b"text,label\n", "no usable row, 0 bad ones"),
        ("a.csv", b"text,label\n" + b"\0\0\0\0x,0\n" * 50, "bytes are NUL: binary"),
        ("a.csv", "text,label\ncaf\u00e9,0\n".encode("latin-1"), "neither UTF-8, UTF-16 nor cp949"),
        ("a.csv", b"comment,label\nfine,0\n", "a.csv: no column text; found: comment, label"),
        ("a.csv", b"text;class\nfine;0\n", "no column label; found: text, class"),
        ("a.jsonl", b'{"text": "fine", "y": 0}\n', "a.jsonl: no column label; found: text, y"),
        ("a.csv", b"text,label\nfine,good\nbad,toxic\n", "there are 'good' (1), 'toxic' (1)"),
        ("a.parquet", b"PAR1 nonsense PAR1", "a.parquet: cannot be read as Parquet"),
    ],
)
def test_unusable_file_is_named(home, name, content, message):
    (home / name).write_bytes(content)
    with pytest.raises(DataError, match=re.escape(message)) as error:
        load_source(f"{name.split('.')[1]}:{name}", at(home))
    assert name in str(error.value)


def test_parquet_without_the_columns_names_those_found(home):
    pd.DataFrame({"comment": ["a"], "label": [0]}).to_parquet(home / "a.parquet")
    with pytest.raises(DataError, match="a.parquet: no column text; found: comment, label"):
        load_source("parquet:a.parquet", at(home))


def test_header_that_is_a_comment_is_not_repeated_in_the_error(home):
    (home / "a.csv").write_text("you complete and utter fool,1\nfine,0\n")
    with pytest.raises(DataError) as error:
        load_source("csv:a.csv", at(home))
    assert "utter" not in str(error.value)


# --- input that could mean two things -------------------------------------------------------------


@pytest.mark.parametrize(
    "header, message",
    [
        ("text,label,label", "a.csv: column label is there twice"),
        ("text,text,label", "a.csv: column text is there twice"),
        ("text, label ,label", "a.csv: column label is there twice"),
        ("label,text,label,text", "column text is there twice and column label is there twice"),
        (
            "text,label,label,label",
            "column label is there 3 times: which one is meant can't be known; remove or rename",
        ),
    ],
)
@pytest.mark.parametrize("kind", ["csv", "tsv", "parquet"])
def test_a_column_that_is_there_twice_is_refused(home, header, message, kind):
    names = header.split(",")
    values = [{"text": f"row {i}", "label": str(i % 2)} for i in range(8)]
    rows = [[v.get(n.strip(), "en") for n in names] for v in values]
    file = home / f"a.{kind}"
    if kind == "parquet":
        columns = [pa.array([row[i] for row in rows]) for i in range(len(names))]
        pq.write_table(pa.Table.from_arrays(columns, names=names), file)
    else:
        sep = "," if kind == "csv" else "\t"
        file.write_text("\n".join(sep.join(row) for row in [names, *rows]) + "\n")
    with pytest.raises(DataError, match=re.escape(message.replace("a.csv", file.name))):
        load_source(f"{'parquet' if kind == 'parquet' else 'csv'}:{file.name}", at(home))


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_columns_that_nobody_reads_may_be_there_twice(home, kind):
    names = ["text", "x", "label", "x", "Label"]
    rows = [[f"row {i}", "a", str(i % 2), "b", "c"] for i in range(8)]
    if kind == "parquet":
        columns = [pa.array([row[i] for row in rows]) for i in range(len(names))]
        pq.write_table(pa.Table.from_arrays(columns, names=names), home / "a.parquet")
    else:
        (home / "a.csv").write_text("\n".join(",".join(row) for row in [names, *rows]) + "\n")
    assert load_source(f"{kind}:a.{kind}", at(home)).frame.label.tolist() == [0, 1] * 4


def test_a_json_key_that_is_there_twice_is_the_rows_fault(home):
    (home / "a.jsonl").write_text(
        "\n".join(
            [
                '{"text": "fine", "label": 0}',
                '{"text": "a", "label": 0, "label": 1}',
                '{"text": "b", "text": "c", "label": 1}',
                '{"text": "d", " label": 0, "label": 1}',
                '{"text": "e", "label": 1, "id": 1, "id": 2}',
            ]
        )
    )
    table = load_source("jsonl:a.jsonl", at(home))
    assert table.frame.text.tolist() == ["fine", "e"] and table.bad.line.tolist() == [2, 3, 4]
    assert (
        table.bad.reason.str.contains("this row: key (?:label|text) is there twice").tolist()
        == [True] * 3
    )
    (home / "b.jsonl").write_text('{"text": "a", "label": 0, "label": 1}\n' * 3)
    with pytest.raises(
        DataError,
        match="no usable row, 3 bad ones; the first: b.jsonl, line 1: this row: key label",
    ):
        load_source("jsonl:b.jsonl", at(home))


def test_one_hub_column_can_not_be_text_and_label(home, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=None))
    with pytest.raises(DataError, match="hub_text_column and hub_label_column are both text"):
        load_source("hub:owner/name", at(home, hub_label_column=" text"))


# --- one comment, two spellings -------------------------------------------------------------------


def korean_lines(n=200):
    clean = [
        f"{a} {b} 고마워요,0"
        for a in ("어제", "오늘", "방금", "주말에")
        for b in "영화 노래 게임 가수 배우 동네 음식 사진".split()
    ]
    toxic = [
        f"{a} {b} 꺼져라,1"
        for a in ("이런", "저런", "그런", "무슨")
        for b in "바보 멍청이 놈들 쓰레기 인간 자식 거지 망나니".split()
    ]
    return clean + toxic


def test_decomposed_rows_are_the_same_data_set(home):
    write_csv(home / "a.csv", korean_lines(), "text,label,template")
    write_csv(
        home / "a.csv",
        [f"{line},주제 {i % 9}" for i, line in enumerate(korean_lines())],
        "text,label,template",
    )
    ask = dict(
        sources="csv:a.csv",
        valid_fraction=0.2,
        test_fraction=0.3,
        near_duplicate_threshold=1.0,
        max_train_rows=0,
    )
    composed = prepare(home, **ask)
    written = (home / "a.csv").read_text()
    (home / "a.csv").write_text(unicodedata.normalize("NFD", written))
    decomposed = prepare(home, **ask)
    assert (home / "a.csv").read_text() != written and decomposed.manifest[
        "content"
    ] == composed.manifest["content"]
    assert decomposed.manifest["rows"] == composed.manifest["rows"]
    for split in SPLITS:
        assert all(unicodedata.is_normalized("NFC", t) for t in decomposed.frame(split).text)


def test_limits_count_what_a_reader_sees(home):
    text = "각" * 5000
    write_csv(
        home / "a.csv",
        [
            f"{unicodedata.normalize('NFD', text)},0",
            f"{unicodedata.normalize('NFD', text)}각,0",
            "b,1",
        ],
    )
    table = load_source("csv:a.csv", at(home))
    assert table.frame.text.tolist() == [text, "b"] and table.bad.reason.tolist() == [
        "5,001 characters; max_text_chars is 5,000"
    ]


def test_a_file_is_found_by_its_name_in_either_form(home):
    for on_disk in ("NFC", "NFD"):
        folder = home / on_disk
        place = folder / unicodedata.normalize(on_disk, "모음 폴더")
        place.mkdir(parents=True)
        write_csv(place / unicodedata.normalize(on_disk, "댓글 모음.csv"), korean_lines())
        (folder / "settings.ini").write_text("[paths]\nvar_dir = var\n")
        asked = [
            unicodedata.normalize(form, "csv:모음 폴더/댓글 모음.csv") for form in ("NFC", "NFD")
        ]
        made = [
            prepare(
                folder,
                sources=name,
                valid_fraction=0.2,
                test_fraction=0.3,
                near_duplicate_threshold=1.0,
            )
            for name in asked
        ]
        assert made[0].id == made[1].id and set(made[0].frame("train").source) == {asked[0]}
        both = prepare(folder, sources=asked[0], test_sources=asked[1], test_fraction=0.3)
        assert 0 < len(both.frame("test")) < len(both.frame("train"))
    write_csv(place / "댓글 모음.csv", korean_lines())
    with pytest.raises(DataError, match="2 files in .* have the name 댓글 모음.csv.*rename one"):
        load_source("csv:모음 폴더/댓글 모음.csv", at(folder))


def test_a_source_in_both_lists_is_split(home):
    "Beside a test set of its own language another source has its share of test rows, and near ones stay together."
    write_csv(home / "own.csv", good_lines())
    write_csv(
        home / "other.csv", [f"{line[:-2]} over there,{line[-1]}" for line in good_lines(200)]
    )
    own = dict(sources="csv:own.csv", test_sources="csv:other.csv,csv:own.csv", valid_fraction=0.2)
    dataset = prepare(home, test_fraction=0.25, near_duplicate_threshold=1.0, **own)
    count = dataset.frame("test").source.value_counts()
    assert count["csv:other.csv"] == 200 and 70 <= count["csv:own.csv"] <= 130
    assert set(dataset.frame("train").source) == {"csv:own.csv"}
    groups = [set(dataset.frame(s).group) for s in SPLITS]
    assert sum(map(len, groups)) == len(set.union(*groups))
    assert any(
        "csv:own.csv: stands in sources and in test_sources" in n for n in dataset.manifest["notes"]
    )
    less = prepare(home, test_fraction=0.5, near_duplicate_threshold=1.0, **own)
    assert less.id != dataset.id and len(less.frame("test")) > len(dataset.frame("test"))


# --- rows that can't be used ----------------------------------------------------------------------


def test_every_bad_row_is_in_the_quarantine_file(home):
    write_csv(
        home / "a.csv",
        [
            *good_lines(),
            '"",0',
            "odd label,2",
            "word,toxic",
            "one field",
            "a,b,c,0",
            "nul \x00 here,1",
            '"quote never closed,0',
            "ok after all,0",
            "x" * 1_000_000 + ",1",
            '"two\nlines",1',
            "\u200b\u3164,0",
        ],
    )
    with open(home / "a.csv", "ab") as f:
        f.write(b"caf\xe9,0\n")
    dataset = prepare(home, sources="csv:a.csv", valid_fraction=0.2)
    bad = {row["line"]: row["reason"] for row in quarantined(dataset)}
    assert bad == {
        402: "empty text",
        403: "label '2' is not 0 or 1",
        404: "label 'toxic' is not 0 or 1",
        405: "1 fields, the header has 2",
        406: "4 fields, the header has 2",
        407: "NUL character in the text",
        408: bad[408],
        410: "1,000,000 characters; max_text_chars is 5,000",
        413: "empty text",
        414: "bytes or escapes that are no UTF-8",
    }
    assert "cannot be parsed" in bad[408]
    rows = dataset.manifest["rows"]
    assert (rows["quarantined"], rows["read"]) == (10, 400 + 2 + 10)
    assert sum(rows[k] for k in rows if k != "read") == rows["read"]
    texts = set().union(*(dataset.frame(s).text for s in SPLITS))
    assert {"ok after all", "two\nlines"} <= texts


def test_bad_rows_of_json_lines(home):
    (home / "a.jsonl").write_text(
        "\n".join(
            [
                '{"text": "fine", "label": 0}',
                '{"text": "half',
                "[1, 2]",
                '{"text": "no label"}',
                '{"text": 7, "label": 1}',
                '{"text": null, "label": 1}',
                '{"text": "nan", "label": NaN}',
                r'{"text": "\ud800", "label": 1}',
                '{"text": "list", "label": [1]}',
                "[" * 100_000,
                '{"text": "bool", "label": true}',
                '{"text": "number", "label": 1.0}',
            ]
        )
    )
    table = load_source("jsonl:a.jsonl", at(home))
    assert table.frame.text.tolist() == ["fine", "bool", "number"]
    assert table.frame.label.tolist() == [0, 1, 1]
    assert table.bad.line.tolist() == [2, 3, 4, 5, 6, 7, 8, 9, 10]


def test_columns_of_variants_mean_something_and_those_of_a_user_do_not(home):
    optional = {"lang": "fr", "functionality": "f", "template": "t", "attack": "leet"}
    rows = [{"text": "fine", "label": 0} | optional, {"text": "not fine", "label": 1}]
    pd.DataFrame(rows).to_parquet(home / "a.parquet")
    frame = load_source("variants:a.parquet", at(home)).frame
    assert frame.loc[0, list(optional)].to_dict() == optional
    assert frame.loc[1, "lang"] == "en" and pd.isna(frame.loc[1, "attack"])
    own = load_source("parquet:a.parquet", at(home)).frame
    assert (
        own.lang.tolist() == ["en", "en"] and own[["functionality", "template"]].isna().all().all()
    )


no_lone_bytes = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)


def lines_of(text):
    return io.StringIO(text, newline="").readlines()


@hypothesis_settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(no_lone_bytes, st.sampled_from("01")), min_size=1, max_size=8))
def test_any_written_csv_is_read_back_with_its_lines(rows):
    out = io.StringIO(newline="")
    writer = csv.writer(out, lineterminator="\n", quoting=csv.QUOTE_ALL)
    writer.writerow(["text", "label"])
    starts = []
    for row in rows:
        starts.append(len(io.StringIO(out.getvalue(), newline="").readlines()) + 1)
        writer.writerow(row)
    read = [*chain(*read_delimited([lines_of(out.getvalue())], "a.csv", ["text", "label"])[1])]
    assert [(r["text"], r["label"]) for _, r, problem in read if problem is None] == rows
    assert [line for line, _, _ in read] == starts


@hypothesis_settings(max_examples=200, deadline=None)
@given(st.text(alphabet='ab,"\n\r\t\x00', max_size=60), st.integers(2, 9))
def test_no_line_of_any_csv_is_lost(body, size):
    lines = lines_of("text,label\n" + body)
    how = dict(separator=",", quoting=True)
    batches = [lines[i : i + size] for i in range(0, len(lines), size)]
    read = [*chain(*read_delimited(batches, "a.csv", ["text", "label"], **how)[1])]
    whole = [*chain(*read_delimited([lines], "a.csv", ["text", "label"], **how)[1])]
    assert read == whole, "however the lines come, the rows are the same"
    starts = [line for line, _, _ in read]
    assert starts == sorted(set(starts))
    mentioned = "".join("".join((r if p is None else {"": r[""]}).values()) for _, r, p in read)
    for letter in "ab":
        if not any(p for _, _, p in read):
            assert mentioned.count(letter) == body.count(letter)
    assert all(1 < line <= len(lines) for line in starts)


@hypothesis_settings(max_examples=100, deadline=None)
@given(st.lists(st.text(st.characters(exclude_characters="\n\r"), max_size=20), max_size=8))
def test_every_json_line_is_good_or_bad(lines):
    text = "\n".join(lines)
    try:
        read = [*chain(*read_json_lines([lines_of(text)], "a.jsonl", ["text", "label"])[1])]
    except DataError:
        return
    assert [n for n, _, _ in read] == [n for n, line in enumerate(lines, 1) if line.strip()]


# --- data sets that can't be used -----------------------------------------------------------------


def test_one_class_only_is_an_error(home):
    write_csv(home / "a.csv", good_lines()[:200])
    with pytest.raises(DataError, match="csv:a.csv: all 200 rows are clean"):
        prepare(home, sources="csv:a.csv")
    assert datasets_of(home) == []


def test_test_source_of_one_class_is_an_error(home):
    write_csv(home / "a.csv", good_lines())
    write_csv(home / "b.csv", ["Nothing of that kind,1", "nor of this other one,1"])
    with pytest.raises(DataError, match="the test split has no clean rows"):
        prepare(home, sources="csv:a.csv", test_sources="csv:b.csv")


def test_training_data_that_are_all_test_data_is_an_error(home):
    write_csv(home / "a.csv", good_lines())
    write_csv(home / "b.csv", good_lines())
    with pytest.raises(DataError, match="400 training rows share one with a test row"):
        prepare(home, sources="csv:a.csv", test_sources="csv:b.csv")


# --- groups, conflicts, splits --------------------------------------------------------------------

phrase = st.lists(
    st.sampled_from("you are the best worst friend fool 바보 천재 of all them".split()),
    min_size=1,
    max_size=6,
).map(" ".join)


@hypothesis_settings(max_examples=60, deadline=None)
@given(st.lists(phrase, min_size=2, max_size=12))
def test_near_rows_share_a_group_and_certainly_different_ones_do_not(texts):
    groups = group_rows(texts, 0.8)
    sets = [shingles(canonical(t)) for t in texts]
    overlap = find_overlap(fingerprints(texts), fingerprints(texts), 0.8)
    assert (groups[overlap.test_index] == groups[overlap.train_index]).all()
    for i, a in enumerate(sets):
        for j, b in enumerate(sets[:i]):
            if a == b:
                assert groups[i] == groups[j]
    for i, a in enumerate(sets):
        if all(len(a & b) / len(a | b) < 0.5 for j, b in enumerate(sets) if j != i):
            assert (groups == groups[i]).sum() == 1


def test_groups_do_not_depend_on_the_order_of_rows():
    texts = [line.rpartition(",")[0] for line in good_lines(100)] * 2
    order = np.random.default_rng(0).permutation(len(texts))
    groups, shuffled = group_rows(texts, 0.6), group_rows([texts[i] for i in order], 0.6)
    same = groups[order][:, None] == groups[order][None, :]
    assert (same == (shuffled[:, None] == shuffled[None, :])).all()


@pytest.mark.parametrize(
    "rule, kept, dropped", [("majority", {0}, 0), ("toxic", {1}, 0), ("drop", set(), 3)]
)
def test_conflict_rules(home, rule, kept, dropped):
    disputed = [
        "A disputed thing to say,0",
        "a disputed  THING to say,0",
        "a disputed thing to say,1",
    ]
    write_csv(home / "a.csv", [*good_lines(), *disputed])
    dataset = prepare(
        home, sources="csv:a.csv", conflict_rule=rule, valid_fraction=0.2, max_train_rows=0
    )
    rows = pd.concat([dataset.frame(s) for s in SPLITS])
    assert set(rows[rows.text.map(canonical) == "a disputed thing to say"].label) == kept
    assert dataset.manifest["rows"]["conflicts_dropped"] == dropped
    log = [
        json.loads(line) for line in (dataset.folder / "conflicts.jsonl").read_text().splitlines()
    ]
    assert [row["line"] for row in log] == [402, 403, 404]
    assert "disputed" not in (dataset.folder / "conflicts.jsonl").read_text(), (
        "the log holds no comment"
    )


def test_templates_are_split_as_a_whole_and_never_in_conflict(home):
    pick = np.random.default_rng(0)
    frames = {name: " ".join(pick.permutation(THINGS)[:5]) for name in NAMES}
    rows = [
        (f"{name}: {words} {noun} is {'' if toxic else 'not '}bad", toxic, f"{name} {toxic}")
        for name, words in frames.items()
        for noun in THINGS
        for toxic in (0, 1)
    ]
    table = pd.DataFrame(rows, columns=["text", "label", "template"])
    table.to_json(home / "a.jsonl", orient="records", lines=True)
    dataset = prepare(home, sources="variants:a.jsonl", valid_fraction=0.2, max_train_rows=0)
    assert dataset.manifest["conflicts"] == {
        "rule": "majority",
        "exact": 0,
        "near": 0,
        "rows_relabelled": 0,
        "categories": 0,
        "severity": 0,
        "context": 0,
    }
    frame = pd.concat([dataset.frame(s) for s in SPLITS])
    assert len(frame) == len(rows)
    template = frame.text.str.split(":").str[0] + " " + frame.label.astype(str)
    assert frame.groupby(template).split.nunique().max() == 1
    assert frame.label.eq(~frame.text.str.contains(" not ")).all(), "no label was changed"


def test_overlap_with_the_test_source_leaves_training(home):
    write_csv(home / "a.csv", good_lines())
    greek_o = "Tοm the fool wants a hat,1"
    mine = ["SUE made a lovely garden today,1", greek_o, "something else,0"]
    write_csv(home / "b.csv", mine)
    dataset = prepare(home, sources="csv:a.csv", test_sources="csv:b.csv", max_train_rows=0)
    assert dataset.frame("test").label.tolist() == [1, 1, 0], (
        "training rows have no say about test rows"
    )
    assert dataset.manifest["rows"]["overlap_removed"] >= 2
    for split in ("train", "valid"):
        gone = {"Sue made a lovely garden today", "Tom the fool wants a hat"}
        assert not gone & set(dataset.frame(split).text)
        assert find_overlap(dataset.fingerprints("test"), dataset.fingerprints(split), 0.8).empty


def test_another_source_moves_no_row_into_or_out_of_the_test_split(home):
    write_csv(home / "a.csv", good_lines())
    pick = np.random.default_rng(1)
    other = [f"{' '.join(pick.choice(NAMES, 8))},{i % 2}" for i in range(200)]
    write_csv(home / "b.csv", other)
    alone = prepare(home, sources="csv:a.csv", valid_fraction=0.2).frame("test")
    more = prepare(home, sources="csv:b.csv,csv:a.csv", valid_fraction=0.2, seed=7).frame("test")
    assert set(alone.text) == set(more[more.source == "csv:a.csv"].text)


def test_fingerprints_belong_to_their_rows(home):
    write_csv(home / "a.csv", good_lines())
    dataset = prepare(home, sources="csv:a.csv", valid_fraction=0.2, max_train_rows=50)
    assert dataset.manifest["rows"]["train"] == 50
    for split in SPLITS:
        again = fingerprints(dataset.frame(split).text.tolist())
        stored = dataset.fingerprints(split)
        assert again.canonical_sha.tolist() == stored.canonical_sha.tolist()
        assert (np.stack(again.signature) == np.stack(stored.signature)).all()


def test_embedded_corpus_is_a_full_data_set(home):
    dataset = prepare(home, max_train_rows=0)
    rows = dataset.manifest["rows"]
    assert rows["read"] >= 8000 and rows["test"] >= 1200 and rows["quarantined"] == 0
    assert any("synthetic" in note for note in dataset.manifest["notes"])
    frames = {s: dataset.frame(s) for s in SPLITS}
    assert all(f.functionality.nunique() >= 25 for f in frames.values())
    assert all(0.4 < f.label.mean() < 0.6 for f in frames.values())
    groups = [set(f.group) for f in frames.values()]
    assert not (groups[0] & groups[1] or groups[0] & groups[2] or groups[1] & groups[2])
    schema = {c: str(t) for c, t in frames["train"].dtypes.items()}
    assert schema == {
        "text": "str",
        "label": "int8",
        "source": "str",
        "lang": "str",
        "split": "str",
        "group": "int64",
        "attack": "str",
        "functionality": "str",
        "categories": "object",
        "severity": "Int8",
        "context": "str",
    }


# --- leakage, by every pair and without an estimate -----------------------------------------------


def frames_of(dataset):
    return {s: dataset.frame(s) for s in SPLITS}


@cache
def near_pairs():
    "Pairs of sentences that are 0.8 alike or more, and less by the estimate: it alone would let them apart."
    words = "the quick brown fox jumps over a lazy dog while many cats watch from old walls and sing about rain".split()
    pick, pairs = np.random.default_rng(2), []
    for _ in range(1200):
        one = list(pick.choice(words, 14))
        other = list(one)
        other[pick.integers(14)] = str(pick.choice(words))
        a, b = triples(" ".join(one)), triples(" ".join(other))
        if one != other and len(a & b) >= 0.8 * len(a | b):
            pairs.append((" ".join(one), " ".join(other)))
    prints = [np.stack(fingerprints(side).signature) for side in zip(*pairs)]
    return [
        pair for pair, estimate in zip(pairs, (prints[0] == prints[1]).mean(1)) if estimate < 0.8
    ]


def test_no_split_holds_a_near_copy_of_another_ones_row(home):
    assert leaks(frames_of(prepare(home, max_train_rows=0)), 0.8, sample=2000) == []


def test_pairs_that_the_estimate_lets_apart_share_a_split(home):
    pairs = near_pairs()
    write_csv(
        home / "a.csv",
        [*good_lines(), *(f"{t},{i % 2}" for i, pair in enumerate(pairs) for t in pair)],
    )
    dataset = prepare(
        home, sources="csv:a.csv", valid_fraction=0.2, test_fraction=0.4, max_train_rows=0
    )
    where = {t: s for s, f in frames_of(dataset).items() for t in f.text}
    assert len({where[a] for a, _ in pairs}) == 3 and all(where[a] == where[b] for a, b in pairs)
    assert leaks(frames_of(dataset), 0.8, sample=2000) == []


@pytest.mark.parametrize("way", ["no groups", "by the estimate alone"])
def test_the_search_for_leaks_finds_what_is_planted(home, monkeypatch, way):
    "Grouping is switched off, or as blind as its estimate: the comparison of every pair has to see it."
    from content_arena.training import data_preparation

    blind = (
        (lambda fp, *_: np.arange(len(fp)))
        if way == "no groups"
        else (lambda fp, threshold, texts: cluster(fp, threshold))
    )
    monkeypatch.setattr(data_preparation, "cluster", blind)
    write_csv(
        home / "a.csv",
        [*good_lines(), *(f"{t},{i % 2}" for i, pair in enumerate(near_pairs()) for t in pair)],
    )
    dataset = prepare(
        home, sources="csv:a.csv", valid_fraction=0.2, test_fraction=0.4, max_train_rows=0
    )
    pairs = leaks(frames_of(dataset), 0.8, sample=2000)
    assert len(pairs) > 10 and min(similarity for *_, similarity in pairs) < 0.85
    if way != "no groups":  # and the search that made the groups says that all is well
        assert find_overlap(dataset.fingerprints("test"), dataset.fingerprints("train"), 0.8).empty


# --- the same again -------------------------------------------------------------------------------


def test_second_run_is_a_no_op_and_another_seed_is_not(home):
    write_csv(home / "a.csv", good_lines())
    ask = dict(sources="csv:a.csv", valid_fraction=0.2)
    first = prepare(home, **ask)

    def stamps():
        files = (home / "var/datasets").rglob("*")
        return {p: p.stat().st_mtime_ns for p in files if p.name != ".lock"}

    before = stamps()
    assert prepare(home, **ask).id == first.id
    assert stamps() == before
    assert prepare(home, **ask, seed=1).id != first.id
    other_home = home / "elsewhere"
    other_home.mkdir()
    (other_home / "settings.ini").write_text("[paths]\nvar_dir = var\n")
    write_csv(other_home / "a.csv", good_lines())
    assert prepare(other_home, **ask).id == first.id, (
        "the id depends on content and recipe, not on the place"
    )


@pytest.mark.parametrize("damage", ["truncate", "delete", "manifest", "folder", "pointer"])
def test_damaged_cache_is_noticed_and_built_again(home, damage):
    write_csv(home / "a.csv", good_lines())
    ask = dict(sources="csv:a.csv", valid_fraction=0.2)
    first = prepare(home, **ask)
    train, manifest = first.folder / "train.parquet", first.folder / "manifest.json"
    if damage == "truncate":
        train.write_bytes(train.read_bytes()[:-1])
    elif damage == "delete":
        train.unlink()
    elif damage == "manifest":
        manifest.write_text(manifest.read_text()[:100])
    elif damage == "folder":
        first.folder.rename(home / "gone")
    else:
        next((home / "var/datasets/recipes").rglob("dataset.json")).write_text("{")
    if damage != "pointer":
        with pytest.raises(DataError):
            open_dataset(first.folder)
    assert prepare(home, **ask).id == first.id
    assert open_dataset(first.folder).id == first.id


def test_manifest_of_another_data_set_is_refused(home):
    write_csv(home / "a.csv", good_lines())
    dataset = prepare(home, sources="csv:a.csv", valid_fraction=0.2)
    manifest = json.loads((dataset.folder / "manifest.json").read_text())
    manifest["recipe"]["seed"] = 99
    (dataset.folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(DataError, match="its id does not fit"):
        open_dataset(dataset.folder)


# --- disks and other processes --------------------------------------------------------------------

PREPARE = """
import sys
from content_arena.core.config import load_settings
from content_arena.training.data_preparation import prepare_dataset
{before}
settings = load_settings(ini=sys.argv[1] + "/settings.ini", env={{}}, sources="csv:a.csv", valid_fraction=0.2)
print(prepare_dataset(settings, progress=False).id)
"""


def start(home, before=""):
    return subprocess.Popen(
        [python(), "-c", PREPARE.format(before=before), str(home)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_disk_that_takes_no_more_leaves_nothing(home):
    write_csv(home / "a.csv", good_lines())
    limit = "import resource, signal; resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))"
    process = start(home, limit)
    _, error = process.communicate(timeout=120)
    assert process.returncode == 1
    assert (
        "DataError" in error
        and "set var_dir to another disk" in error
        and "File too large" in error
    )
    assert datasets_of(home) == [] and not list((home / "var").rglob("*.parquet"))
    assert open_dataset(prepare(home, sources="csv:a.csv", valid_fraction=0.2).folder)


def test_kill_while_writing_leaves_nothing_that_counts(home):
    write_csv(home / "a.csv", good_lines())
    kill = (
        "import os, signal\nwritten = []\nsync = os.fsync\ndef fsync(fd):\n    written.append(sync(fd))\n"
        "    if len(written) == 3: os.kill(os.getpid(), signal.SIGKILL)\nos.fsync = fsync"
    )
    process = start(home, kill)
    process.communicate(timeout=120)
    assert process.returncode == -signal.SIGKILL
    left = datasets_of(home)
    assert len(left) == 1 and left[0].startswith(".unfinished-")
    dataset = prepare(home, sources="csv:a.csv", valid_fraction=0.2)
    assert datasets_of(home) == [dataset.folder.name]


def test_two_processes_at_once_make_one_data_set(home):
    write_csv(home / "a.csv", good_lines())
    processes = [start(home) for _ in range(2)]
    results = [p.communicate(timeout=120) for p in processes]
    assert [p.returncode for p in processes] == [0, 0], results
    assert results[0][0] == results[1][0]
    assert datasets_of(home) == [results[0][0][:16]]


# --- downloads ------------------------------------------------------------------------------------


@pytest.fixture
def mirror():
    with web_pages() as served:
        yield served


def sha(data):
    return hashlib.sha256(data).hexdigest()


def test_download_arrives_once_and_is_checked(home, mirror):
    url, pages = mirror
    pages["/owner/a.csv"] = b"text,label\nfine,0\n"
    file = PublicFile("a.csv", "owner/a.csv", sha(pages["/owner/a.csv"]))
    path = find_public_file(file, at(home), url)
    assert path.read_bytes() == pages.pop("/owner/a.csv")
    assert find_public_file(file, at(home), url) == path, "the second time nothing is downloaded"
    path.write_bytes(b"rot")
    with pytest.raises(DataError, match="a.csv: refused"):
        find_public_file(file, at(home), url)


@pytest.mark.parametrize(
    "path, message",
    [
        ("wrong", "a.csv: refused, .*/wrong has sha256 .* expected"),
        ("short", "a.csv: not downloaded"),
        ("missing", "a.csv: not downloaded .*404"),
    ],
)
def test_download_that_fails_leaves_nothing(home, mirror, path, message):
    url, pages = mirror
    pages |= {"/wrong": b"other bytes", "/short": b"text,label\n"}
    with pytest.raises(DataError, match=message) as error:
        fetch(PublicFile("a.csv", path, sha(b"the bytes")), home / "sources/a.csv", at(home), url)
    # either of its two remedies, by which file is missing
    assert "data_dir" in str(error.value) or "own name" in str(error.value)
    assert os.listdir(home / "sources") == []


def test_unreachable_host_says_what_to_do(home):
    with pytest.raises(DataError, match="put the file into data_dir"):
        load_source("apeach", at(home), base_url="http://127.0.0.1:9")


def test_changed_file_in_data_dir_is_refused_by_name(home):
    (home / "curse.txt").write_text("fine|0\nnot fine|1\n")
    with pytest.raises(DataError, match="curse.txt: refused, .*csv:PATH"):
        load_source("curse", at(home, data_dir=str(home)))


# --- the hub --------------------------------------------------------------------------------------


def test_hub_without_the_library_says_what_to_install(home, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DataError, match=r"pip install 'content-arena\[hub\]'"):
        load_source("hub:owner/name", at(home))


def test_hub_columns_and_splits_are_settings(home, monkeypatch):
    class Table(dict):
        column_names = ["comment", "toxic"]
        info = types.SimpleNamespace(license="mit")

    def load_dataset(name, split):
        if split != "test":
            raise ConnectionError("no route")
        return Table(comment=["fine", "not fine", None], toxic=[0, 1, 1])

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
    settings = at(home, hub_text_column="comment", hub_label_column="toxic")
    table = load_source("hub:owner/name:test", settings)
    assert table.frame.label.tolist() == [0, 1] and table.licence == "mit"
    assert table.bad.line.tolist() == [3]
    with pytest.raises(DataError, match="hub:owner/name: cannot be loaded .*no route"):
        load_source("hub:owner/name", settings)
    with pytest.raises(
        DataError, match="no column text and no column label; found: comment, toxic"
    ):
        load_source("hub:owner/name:test", at(home))


# --- the real comments ----------------------------------------------------------------------------


@pytest.mark.slow
def test_korean_task(home, data_dir):
    dataset = prepare(
        home,
        data_dir=str(data_dir.resolve()),
        sources="beep,curse",
        test_sources="apeach",
        max_train_rows=0,
    )
    rows = dataset.manifest["rows"]
    assert (rows["read"], rows["quarantined"]) == (7896 + 471 + 5825 + 3770, 0)
    assert rows["test"] >= 3700 and rows["train"] + rows["valid"] >= 14_000
    assert dataset.manifest["licences"] == {
        "beep": "CC BY-SA 4.0",
        "curse": "MIT",
        "apeach": "CC BY-SA 4.0",
    }
    assert leaks(frames_of(dataset), 0.8) == []
    shares = {s: dataset.frame(s).groupby("source").label.mean() for s in ("train", "valid")}
    assert (shares["train"] - shares["valid"]).abs().max() < 0.05


@pytest.mark.slow
def test_english_task(home, data_dir):
    dataset = prepare(home, data_dir=str(data_dir.resolve()), sources="davidson", max_train_rows=0)
    rows, counts = dataset.manifest["rows"], dataset.manifest["counts"]
    assert rows["read"] == 24_783 and sum(rows[s] for s in SPLITS) > 24_700
    assert 0.18 < rows["test"] / rows["read"] < 0.22
    assert max(abs(counts[s]["toxic_share"] - 0.832) for s in SPLITS) < 0.02
    assert leaks(frames_of(dataset), 0.8) == []

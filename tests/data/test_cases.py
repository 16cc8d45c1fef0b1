"""Files such as people really have: each is read as its owner meant it, or refused with what to do."""

import base64
import gzip
import json
import re
import threading
import unicodedata
import zipfile
from decimal import Decimal
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import openpyxl
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from cases import DECOMPOSED, invented_rows, table, write_cases
from content_arena.core.config import load_settings
from content_arena.core.settings import SettingsError, join_names, split_names
from content_arena.data.readers import load_source, load_unlabelled, parts_of, source_digest
from content_arena.data.raw_files import DataError
from content_arena.data.tables import Layout, open_table


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cases")
    write_cases(folder)
    (folder / "settings.ini").write_text("[paths]\nvar_dir = var\n")
    return folder


@pytest.fixture
def home(tmp_path):
    (tmp_path / "settings.ini").write_text("[paths]\nvar_dir = var\n")
    return tmp_path


def at(folder, **explicit):
    return load_settings(ini=folder / "settings.ini", env={}, **explicit)


def refusal(name, folder, **explicit) -> str:
    with pytest.raises(DataError) as error:
        load_source(name, at(folder, **explicit))
    assert "\n" not in str(error.value), "an error is one line"
    return str(error.value)


def pairs(read) -> list[tuple[str, int]]:
    return list(zip(read.frame.text, read.frame.label.tolist()))


def all_used(name, folder, rows=None, **explicit):
    "The source, after checking that each row was read as what it is."
    read = load_source(name, at(folder, **explicit))
    assert pairs(read) == (rows or invented_rows()) and read.bad.empty
    assert read.read == len(read.frame)
    return read


# Separators, encodings, packings ------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, first_line, said",
    [
        ("plain.csv", 2, []),
        ("tabs_named_csv.csv", 2, ["separator: tab"]),
        ("tabs_named_txt.txt", 2, ["separator: tab"]),
        ("semicolons.csv", 2, ["separator: semicolon"]),
        ("excel_sep_line.csv", 3, ["separator: semicolon"]),
        ("pipes.csv", 2, ["separator: bar"]),
        ("bom.csv", 2, []),
        ("excel_utf16.csv", 2, ["read as UTF-16", "separator: tab"]),
        ("utf16_without_mark.csv", 2, ["read as UTF-16 (little endian)", "separator: tab"]),
        ("cp949.csv", 2, ["read as cp949"]),
        ("carriage_returns.csv", 2, []),
        ("packed.csv.gz", 2, ["unpacked gzip"]),
        ("array.json", 1, []),
        ("lines.jsonl", 1, []),
    ],
)
def test_content_decides_whatever_the_suffix(folder, name, first_line, said):
    read = all_used(f"file:{name}", folder)
    assert read.frame.line[0] == first_line
    assert read.assumed == tuple(f"{name}: {s}" for s in said)
    for kind in ("csv", "parquet"):  # a kind is no claim about the content
        assert load_source(f"{kind}:{name}", at(folder)).frame.text.equals(read.frame.text)


def test_wrapped_rows_need_the_name_of_their_list(folder):
    message = refusal("file:wrapped.json", folder)
    assert "data (480 rows)" in message and "?rows=data" in message
    all_used("file:wrapped.json?rows=data", folder)


def test_packed_and_repacked(home):
    text = table(invented_rows()).encode()
    (home / "a.jsonl").write_bytes(
        zstandard.compress(
            b"".join(
                json.dumps({"text": t, "label": y}).encode() + b"\n" for t, y in invented_rows()
            )
        )
    )
    assert all_used("file:a.jsonl", home).assumed == ("a.jsonl: unpacked zstd",)
    with zipfile.ZipFile(home / "a.csv", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("data/댓글.csv", text)
        archive.writestr("__MACOSX/data/._댓글.csv", b"\0")
    assert all_used("file:a.csv", home).assumed == ("a.csv: unpacked zip",)
    with zipfile.ZipFile(home / "two.zip", "w") as archive:
        archive.writestr("a.csv", text)
        archive.writestr("b.csv", text)
    assert "a zip with 2 files (a.csv, b.csv)" in refusal("file:two.zip", home)
    (home / "twice.gz").write_bytes(gzip.compress(gzip.compress(text)))
    assert "a gzip file inside a gzip file: unpack it once" in refusal("file:twice.gz", home)
    (home / "several.gz").write_bytes(
        gzip.compress(text[:5000]) + gzip.compress(text[5000:]) + b"\0" * 512
    )
    all_used("file:several.gz", home)


@pytest.mark.parametrize(
    "pack, last",
    [
        (gzip.compress, (310, 481)),
        (zstandard.compress, (0, 0)),  # it is small enough to be one block, good or bad as a whole
    ],
)
def test_packed_file_that_was_cut_names_its_last_good_line(home, pack, last):
    packed = pack(table(invented_rows()).encode())
    lines = []
    for end in (len(packed) * 2 // 3, len(packed) - 1):
        (home / "a.csv.gz").write_bytes(packed[:end])
        message = refusal("file:a.csv.gz", home)
        assert "cut off or damaged" in message and "Nothing of it is used" in message
        lines.append(int(re.search(r"its last good line is (\d+)", message)[1]))
    assert lines == pytest.approx(last, abs=60)


@pytest.mark.parametrize(
    "name, layout",
    [("plain.csv", Layout()), ("excel_utf16.csv", Layout()), ("wrapped.json", Layout(rows="data"))],
)
def test_a_table_is_records_for_whoever_asks(folder, name, layout):
    opened = open_table(folder / name, name, layout)
    assert opened.columns == ("text", "label")
    records = [(cells["text"], int(cells["label"])) for _, cells, problem in opened.records()]
    assert records == invented_rows()


# Names --------------------------------------------------------------------------------------------


def test_name_in_either_form_finds_the_file_in_either(folder):
    for form in ("NFC", "NFD"):
        read = all_used(unicodedata.normalize(form, f"file:{DECOMPOSED}"), folder)
        assert set(read.frame.source) == {"file:댓글 모음.csv"}


def test_name_with_a_comma(folder):
    for written in (
        '"file:two,parts.csv", file:plain.csv',
        'csv:"two,parts.csv",file:plain.csv',
        '["file:two,parts.csv", "file:plain.csv"]',
    ):
        names = at(folder, sources=written).sources
        assert names[0].endswith(":two,parts.csv") and names[1] == "file:plain.csv"
        all_used(names[0], folder)
        assert split_names(join_names(names)) == names
    split = at(folder, sources="file:two,parts.csv")
    with pytest.raises(
        DataError, match='a name with a comma stands in quotes: "file:two,parts.csv"'
    ):
        load_source(split.sources[0], split)
    with pytest.raises(SettingsError, match="JSON"):
        at(folder, sources="[1]")


def test_name_with_a_question_mark(folder):
    all_used("file:what?really.csv", folder)
    read = load_source("file:what?really.csv?labels=0:1,1:0", at(folder))
    assert read.frame.label.tolist() == [1 - y for _, y in invented_rows()]
    assert "is no KEY=VALUE" in refusal("file:plain.csv?really", folder)


def test_relative_names_start_where_the_user_stands(folder, home, monkeypatch):
    from content_arena.cli.options import settings_from

    monkeypatch.chdir(folder)
    monkeypatch.setenv("CONTENT_ARENA_SETTINGS_FILE", str(home / "settings.ini"))
    typed = settings_from(None, ["sources=csv:plain.csv"])
    monkeypatch.chdir(home)  # as the kernel of a stage does
    assert pairs(load_source("csv:plain.csv", typed)) == invented_rows()
    with pytest.raises(DataError, match=f"no such file: {home}/plain.csv"):
        load_source("csv:plain.csv", at(home))


def test_unknown_names_say_what_there_is(folder):
    assert "for the file of that name write file:plain.csv" in refusal("plain.csv", folder)
    assert "accepted: embedded, neutral, file:PATH" in refusal("twitter", folder)
    assert "no such file" in refusal("file:gone.csv", folder)
    assert "no such file" in refusal("file:" + "a" * 5000, folder)
    assert "did you mean labels?" in refusal("file:plain.csv?lables=0:1", folder)
    assert "there is no encoding 'utf-88'" in refusal("file:plain.csv?encoding=utf-88", folder)


# Columns ------------------------------------------------------------------------------------------


def test_case_of_a_column_does_not_matter_and_is_said(folder):
    said = all_used("file:columns_capital.csv", folder).assumed
    assert "columns_capital.csv: column Text is taken for text" in said


@pytest.mark.parametrize(
    "name, text, label", [("korean", "문장", "라벨"), ("other", "comment_text", "target")]
)
def test_other_columns_are_listed_with_what_to_say(folder, name, text, label):
    message = refusal(f"file:columns_{name}.csv", folder)
    assert f"found: {text}, {label}" in message
    suggested = re.search(r"file:\S+", message)[0]
    assert suggested == f"file:columns_{name}.csv?text={text}&label={label}"
    all_used(suggested, folder)


def test_source_file_says_the_same_as_a_name(folder, home):
    (folder / "sources.toml").write_text(
        '[reviews]\npath = "columns_korean.csv"\ntext = "문장"\nlabel = "라벨"\nlang = "ko"\n'
        'licence = "ours"\n',
        encoding="utf-8-sig",
    )
    read = all_used("reviews", folder)
    assert read.licence == "ours" and set(read.frame.source) == {"reviews"}
    named = "file:columns_korean.csv?text=문장&label=라벨&lang=ko"
    assert source_digest("reviews", at(folder)) == source_digest(named, at(folder))
    (folder / "sources.toml").write_text('[reviews]\npath = "plain.csv"\nlables = 1\n')
    message = refusal("reviews", folder)
    assert "sources.toml [reviews]: unknown key 'lables'; did you mean labels?" in message
    (folder / "sources.toml").write_text("[reviews\n")
    assert re.search(r"sources.toml: .*line 1", refusal("reviews", folder))
    (folder / "sources.toml").unlink()
    assert "sources_file = my.toml: no such file" in refusal(
        "reviews", folder, sources_file="my.toml"
    )


@pytest.mark.parametrize(
    "name, column", [("two_label_columns", "label"), ("two_text_columns", "text")]
)
def test_column_that_is_there_twice(folder, name, column):
    assert f"column {column} is there twice" in refusal(f"file:{name}.csv", folder)


def test_columns_of_a_user_have_no_hidden_meaning(folder):
    frame = all_used("file:user_columns.csv", folder).frame
    assert set(frame.lang) == {"ko"} and frame[["template", "attack", "parent"]].isna().all().all()
    own = load_source("file:user_columns.csv?lang_column=lang", at(folder)).frame
    assert set(own.lang) == {"Korean"}
    assert set(load_source("variants:user_columns.csv", at(folder)).frame.template) == {"x"}


def test_header_below_a_title(home):
    rows = invented_rows()
    (home / "a.csv").write_text("2026년 5월 설문\n\n" + table(rows))
    read = all_used("file:a.csv", home)
    assert read.assumed == ("a.csv: the header is line 3",) and read.frame.line[0] == 4


def test_empty_columns_behind_the_last_are_nobodys_fault(home):
    (home / "a.csv").write_text("text;label;;\na;0;;\nb;1\nc;0;\nd;1;;;\ne\nf;1;;;x\n")
    read = load_source("file:a.csv", at(home))
    assert pairs(read) == [("a", 0), ("b", 1), ("c", 0), ("d", 1)] and read.bad.line.tolist() == [
        6,
        7,
    ]


def test_scores_with_a_decimal_comma(home):
    rows = [(t, f"0,{9 - 8 * (1 - y)}{i % 9 + 1}") for i, (t, y) in enumerate(invented_rows(60))]
    (home / "a.csv").write_text(table(rows, sep=";"))
    assert "looks like a score from 0.11 to 0.99" in refusal("file:a.csv", home)
    all_used("file:a.csv?cut=0.5", home, invented_rows(60))


def test_context_several_texts_and_severity(home):
    (home / "a.csv").write_text(
        "title,body,reply_to,label,step,kind\n제목,본문,앞 글,1,hard,\"욕,지역\"\n,혼자,,0,none,\n, ,x,1,soft,욕\n"
    )
    name = (
        "file:a.csv?text=title,body&context=reply_to&severity=step&severities=hard:2,soft:1,none:0"
        "&categories.kind=욕:profanity,지역:origin&category_separator=%2C"
    )
    read = load_source(name, at(home))
    assert read.frame.text.tolist() == ["제목\n\n본문", "혼자"]
    assert read.frame.context[0] == "앞 글" and pd.isna(read.frame.context[1])
    assert read.frame.severity.tolist() == [2, 0]
    assert read.frame.categories.tolist() == [["origin", "profanity"], []]
    assert read.bad[["line", "reason"]].values.tolist() == [[4, "no text"]]
    assert "no column why" in refusal("file:a.csv?text=body&context=why", home)


# Labels -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["shouting", "pandas", "float"])
def test_booleans_and_floats_are_labels_as_they_are(folder, name):
    all_used(f"file:labels_{name}.csv", folder)


@pytest.mark.parametrize(
    "name, counts, behind",
    [
        ("words", ["'none' (", "'hate' ("], "labels=none:0,hate:1"),
        ("korean", ["'정상' (", "'혐오' ("], "labels=정상:0,혐오:1"),
        ("minus", ["'-1' (", "'1' ("], "labels=-1:0,1:1"),
    ],
)
def test_words_need_a_map_that_the_error_writes_down(folder, name, counts, behind):
    message = refusal(f"file:labels_{name}.csv", folder)
    clean = sum(1 - y for _, y in invented_rows())
    assert all(c in message for c in counts) and f"({clean})" in message
    suggested = re.search(r"file:\S+", message)[0]
    assert suggested == f"file:labels_{name}.csv?{behind}"
    # as it is typed: the pairs of the map are not other sources
    assert at(folder, sources=f"{suggested},file:plain.csv").sources == (
        suggested,
        "file:plain.csv",
    )
    all_used(suggested, folder)


def test_scores_need_a_cut(folder):
    message = refusal("file:labels_scores.csv", folder)
    assert "looks like a score from 0.0" in message and "?cut=0.5" in message
    all_used("file:labels_scores.csv?cut=0.5", folder)
    high = load_source("file:labels_scores.csv?cut=0.9", at(folder)).frame
    assert 0 < high.label.sum() < sum(y for _, y in invented_rows())


def test_three_labels_are_listed_and_nothing_is_dropped(folder):
    message = refusal("file:labels_three.csv", folder)
    assert all(re.search(rf"'{v}' \(\d+\)", message) for v in "012")
    all_used("file:labels_three.csv?labels=0:0,*:1", folder)
    (folder / "one_more.csv").write_text(table([*invented_rows(), ("하나 더", 2)]))
    one = load_source("file:one_more.csv", at(folder))
    assert len(one.bad) == 1 and "label '2' is not 0 or 1" in one.bad.reason[0]


def test_classes_are_refused_with_their_counts(folder):
    message = refusal("file:labels_classes.tsv", folder)
    assert "'8' (" in message and "'2,3' (" in message and "labels=8:0,*:1" in message
    assert "looks like K-MHaS: use kmhas:labels_classes.tsv" in message
    all_used("file:labels_classes.tsv?labels=8:0,*:1", folder)
    assert "say what they mean" in refusal("file:labels_classes.tsv?labels=0:1", folder)


def test_several_label_columns_become_categories(folder):
    name = "file:labels_columns.csv?text=comment_text&label=toxic,severe_toxic,insult,threat"
    frame = all_used(name, folder).frame
    insults = frame.categories.map(lambda c: c == ["insult"])
    assert 0 < insults.sum() < frame.label.sum()
    assert (frame[frame.label == 0].categories.map(len) == 0).all()


def test_few_bad_labels_are_quarantined_with_their_lines(folder):
    read = load_source("file:few_bad_labels.csv", at(folder))
    assert (read.read, len(read.frame), len(read.bad)) == (482, 480, 2)
    assert read.bad[["line", "reason"]].values.tolist() == [
        [482, "no label"],
        [483, "label '?' is not 0 or 1"],
    ]
    assert "라벨" not in read.bad.to_json(force_ascii=False)


# What is no table ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content, message",
    [
        (b"\x80\x04\x95" + b"\x00" * 40, "this is no text file: a Python pickle"),
        (b"", "the file is empty"),
        (b" \r\n\n", "the file is empty"),
        (b"\xef\xbb\xbf", "the file is empty"),
        (b"text,label\n", "no usable row"),
        (b"%PDF-1.7\n" + b"x" * 99, "a PDF; export its table as CSV"),
        (b"\xd0\xcf\x11\xe0" + b"\0" * 99, "an old Excel"),
        (b"<!DOCTYPE html><html>login</html>", "a web page"),
        (b"BZh91AY" + b"\0" * 99, "unpack it, or pack it with gzip"),
        (b"PK\x03\x04" + b"\0" * 99, "a damaged zip or .xlsx file"),
        (b"PAR1" + b"\0" * 99, "cannot be read as Parquet"),
        (bytes(range(256)) * 40, "control characters: binary"),
    ],
)
def test_what_is_no_table_is_refused_by_what_it_is(home, content, message):
    (home / "a.csv").write_bytes(content)
    assert message in refusal("file:a.csv", home) and "a.csv" in refusal("file:a.csv", home)


def test_cases_of_a_pickle_and_of_nothing(folder):
    assert "a Python pickle, which can run code and is never loaded" in refusal(
        "file:pickled.csv", folder
    )
    assert "empty.csv: the file is empty" in refusal("file:empty.csv", folder)


def test_decomposed_texts_are_the_same_rows(folder):
    all_used("file:decomposed.csv", folder)


def test_labels_that_excel_saved_are_a_table(folder):
    opened = open_table(
        folder / "labelled_excel.csv", "labelled_excel.csv", needed=["prediction_id", "label"]
    )
    rows = [cells for _, cells, _ in opened.records()]
    assert opened.assumed == ("read as cp949", "separator: semicolon")
    assert [(r["text"], int(r["label"])) for r in rows] == invented_rows()[:5]
    assert {r["prediction_id"] for r in rows} == {"0" * 26}


# Workbooks and Parquet ----------------------------------------------------------------------------


def workbook(path, **sheets):
    book = openpyxl.Workbook()
    book.remove(book.active)
    for title, rows in sheets.items():
        sheet = book.create_sheet(title)
        for row in rows:
            sheet.append(row)
    book.save(path)


def test_workbook_with_the_comments_on_its_second_sheet_below_a_title(home):
    rows = [["설문 결과", None], ["text", "label"], *[[t, str(y)] for t, y in invented_rows()]]
    workbook(home / "a.csv", 안내=[["이 파일은"], ["설문입니다"]], 댓글=rows)
    read = all_used("file:a.csv", home)
    assert read.assumed == ("a.csv: sheet: 댓글", "a.csv: the header is row 2")
    assert read.frame.line[0] == 3
    assert "no sheet '표'; there are: 안내, 댓글" in refusal("file:a.csv?sheet=표", home)
    workbook(home / "two.xlsx", A=rows[1:], B=rows[1:])
    assert "2 sheets could be meant: A, B" in refusal("file:two.xlsx", home)
    all_used("file:two.xlsx?sheet=B", home)


def test_numbers_booleans_and_dates_of_a_workbook(home):
    import datetime

    rows = [
        ["text", "label"],
        [18, 0],
        [1.5, "1"],
        ["글", True],
        [datetime.date(2026, 5, 1), False],
    ]
    workbook(home / "a.xlsx", 하나=rows)
    read = load_source("file:a.xlsx", at(home))
    assert pairs(read) == [("18", 0), ("1.5", 1), ("글", 1), ("2026-05-01", 0)]


def test_workbook_without_the_columns_lists_them(home):
    workbook(home / "a.xlsx", 하나=[["문장", "라벨"], *[[t, y] for t, y in invented_rows(20)]])
    message = refusal("file:a.xlsx", home)
    assert "found: 문장, 라벨" in message and "file:a.xlsx?text=문장&label=라벨" in message


@pytest.mark.parametrize("part", [0.3, 0.6, 0.95])
def test_workbook_that_was_cut(home, part):
    workbook(home / "a.xlsx", 하나=[["text", "label"], *[[t, y] for t, y in invented_rows()]])
    whole = (home / "a.xlsx").read_bytes()
    (home / "a.xlsx").write_bytes(whole[: int(len(whole) * part)])
    assert "a damaged zip or .xlsx file" in refusal("file:a.xlsx", home)


LABELS = [y for _, y in invented_rows()]
TEXTS = [t for t, _ in invented_rows()]


@pytest.mark.parametrize(
    "labels",
    [
        pa.array([str(y) for y in LABELS]).dictionary_encode(),
        pa.array(LABELS).dictionary_encode(),
        pa.array([str(y) for y in LABELS], pa.large_string()),
        pa.array([str(y) for y in LABELS], pa.string_view()),
        pa.array([y == 1 for y in LABELS]),
        pa.array([float(y) for y in LABELS]),
        pa.array(LABELS, pa.int8()),
        pa.array([Decimal(y) for y in LABELS], pa.decimal128(5, 2)),
        pa.array([str(y).encode() for y in LABELS], pa.binary()),
    ],
    ids=lambda a: str(a.type),
)
@pytest.mark.parametrize(
    "text", [pa.string(), pa.large_string(), pa.string_view(), pa.binary()], ids=str
)
def test_parquet_of_any_type(home, text, labels):
    texts = pa.array([t.encode() if text == pa.binary() else t for t in TEXTS], text)
    pq.write_table(pa.table({"text": texts, "label": labels}), home / "a.csv", row_group_size=100)
    assert all_used("file:a.csv", home).frame.line.tolist() == list(range(1, 481))


def test_parquet_with_missing_cells(home):
    pq.write_table(pa.table({"text": ["a", None, "c"], "label": [1, 0, None]}), home / "a.parquet")
    read = load_source("file:a.parquet", at(home))
    assert read.bad[["line", "reason"]].values.tolist() == [[2, "no text"], [3, "no label"]]


# Without labels -----------------------------------------------------------------------------------


def test_comments_without_labels(home):
    (home / "a.txt").write_text("text\n첫째, 글\n\n" + '"둘째\n글"\n')
    read = load_unlabelled("file:a.txt", at(home))
    assert read.frame.text.tolist() == ["첫째, 글", "둘째\n글"] and read.frame.line.tolist() == [
        2,
        4,
    ]
    assert list(read.frame.columns) == ["text", "source", "file", "line", "lang"]
    (home / "b.txt").write_text("첫째, 글\n둘째 \"글\n")
    name = "file:b.txt?columns=text"
    assert load_unlabelled(name, at(home)).frame.text.tolist() == ["첫째, 글", '둘째 "글']
    assert "no column label" in refusal(name, home)
    assert "has no labels; it is read by load_unlabelled" in refusal(f"{name}&labelled=false", home)


@pytest.mark.needs("data")
@pytest.mark.parametrize("name, rows", [("beep_unlabeled", 33_893), ("nsmc", 712_383)])
@pytest.mark.slow
def test_unlabelled_public_sets(name, rows):
    read = load_unlabelled(name, load_settings())
    assert read.read == rows and len(read.frame) + len(read.bad) == rows
    assert len(read.bad) < rows / 1000


# Elsewhere ----------------------------------------------------------------------------------------


@pytest.fixture
def web():
    "A server of {path: bytes}; /locked needs kim:secret, /short breaks off."
    pages, asked = {}, []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            path = self.path.partition("?")[0]
            key = "Basic " + base64.b64encode(b"kim:secret").decode()
            locked = path.startswith("/locked") and self.headers.get("Authorization") != key
            body = pages.get(path)
            same = body is not None and self.headers.get("If-None-Match") == f'"{hash(body)}"'
            status = 401 if locked else 404 if body is None else 304 if same else 200
            asked.append((self.path, status))
            self.send_response(status)
            sent = body if status == 200 else b""
            if status == 200:
                self.send_header("ETag", f'"{hash(body)}"')
            if status != 304:
                self.send_header("Content-Length", str(len(sent) * (2 if path == "/short" else 1)))
            self.end_headers()
            self.wfile.write(sent)

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", pages, asked
    server.shutdown()
    server.server_close()


def test_file_on_a_server_is_downloaded_once_and_read(home, web):
    url, pages, asked = web
    pages["/댓글.csv".encode().decode("latin-1")] = pages["/a.csv"] = table(
        invented_rows(), sep=";"
    ).encode()
    read = all_used(f"{url}/a.csv?token=hidden&lang=ko", home)
    assert set(read.frame.file) == {f"{url}/a.csv"} and "hidden" not in str(read)
    assert asked == [("/a.csv?token=hidden", 200)]
    all_used(f"file:{url}/a.csv?token=hidden", home)
    assert asked[-1][1] == 304, "the same file is not sent again"
    pages["/a.csv"] = table(invented_rows(100)).encode()
    all_used(f"{url}/a.csv?token=hidden", home, invented_rows(100))


@pytest.mark.parametrize(
    "path, message",
    [
        ("gone.csv", "is not there (HTTP 404)"),
        ("short", "not downloaded"),
        ("locked.csv", "~/.netrc"),
    ],
)
def test_download_that_fails_leaves_nothing(home, web, path, message, monkeypatch):
    url, pages, _ = web
    monkeypatch.setenv("HOME", str(home / "nobody"))
    pages |= {"/short": b"text,label\n", "/locked.csv": table(invented_rows()).encode()}
    assert message in refusal(f"{url}/{path}", home)
    assert list((home / "var/sources").iterdir()) == []
    assert "127.0.0.1:9/a.csv: not downloaded" in refusal("http://127.0.0.1:9/a.csv", home)


def test_credentials_come_from_netrc_and_never_from_a_name(home, web, monkeypatch):
    url, pages, _ = web
    pages["/locked.csv"] = table(invented_rows()).encode()
    (home / ".netrc").write_text("machine 127.0.0.1 login kim password secret\n")
    (home / ".netrc").chmod(0o600)
    monkeypatch.setenv("HOME", str(home))
    read = all_used(f"{url}/locked.csv", home)
    assert "secret" not in str(read)
    message = refusal(url.replace("//", "//kim:secret@") + "/locked.csv", home)
    assert "a password does not belong into the name" in message and "secret" not in message


def test_a_proxy_is_not_asked_for_this_machine(home, web, monkeypatch):
    url, pages, _ = web
    pages["/a.csv"] = table(invented_rows()).encode()
    for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    all_used(f"{url}/a.csv", home)


@pytest.fixture
def bucket(monkeypatch):
    "An S3 of this machine with a bucket `comments`; without credentials only what is public is read."
    import boto3
    from moto.server import ThreadedMotoServer

    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nonexistent")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    keys = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret"}
    for name, value in keys.items():
        monkeypatch.setenv(name, value)
    client = boto3.client("s3")
    client.create_bucket(Bucket="comments")
    yield client
    server.stop()


@pytest.mark.slow
def test_file_in_an_object_store(home, bucket, monkeypatch):
    bucket.put_object(
        Bucket="comments", Key="댓글/a.csv.gz", Body=gzip.compress(table(invented_rows()).encode())
    )
    read = all_used("s3://comments/댓글/a.csv.gz?lang=ko", home)
    assert set(read.frame.file) == {"s3://comments/댓글/a.csv.gz"}
    first = source_digest("s3://comments/댓글/a.csv.gz", at(home))
    bucket.put_object(
        Bucket="comments", Key="댓글/a.csv.gz", Body=table(invented_rows(99)).encode()
    )
    all_used("s3://comments/댓글/a.csv.gz", home, invented_rows(99))
    assert source_digest("s3://comments/댓글/a.csv.gz", at(home)) != first
    assert "s3://comments/gone.csv: is not there" in refusal("s3://comments/gone.csv", home)
    public = table(invented_rows(50)).encode()
    bucket.put_object(Bucket="comments", Key="public.csv", Body=public, ACL="public-read")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    all_used("s3://comments/public.csv", home, invented_rows(50))
    assert "may not be read" in refusal("s3://comments/댓글/a.csv.gz", home)


def test_store_without_its_library_names_the_extra(home, monkeypatch):
    import fsspec

    def absent(scheme, **options):
        raise ImportError("Install gcsfs to access Google Storage")

    monkeypatch.setattr(fsspec, "filesystem", absent)
    for scheme, extra in (("gs", "gs"), ("s3", "s3")):
        message = refusal(f"{scheme}://comments/a.csv", home)
        assert f"pip install 'content-arena[{extra}]'" in message


def test_denied_object_says_so(home, monkeypatch):
    import fsspec

    class Store:
        def info(self, url):
            raise PermissionError("Forbidden: key AKIA…")

    monkeypatch.setattr(fsspec, "filesystem", lambda scheme, **options: Store())
    message = refusal("s3://comments/a.csv", home)
    assert "may not be read with the credentials there are" in message and "AKIA" not in message


def test_a_source_is_resolved_without_reading_it(folder):
    (part,) = parts_of("file:plain.csv?lang=ko", at(folder))
    assert part.path == folder / "plain.csv" and part.spec.lang == "ko"

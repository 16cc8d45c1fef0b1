"""Comments go out to be labelled and come back: through Excel, Label Studio and Argilla."""

import csv
import io
import json
from pathlib import Path

import openpyxl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from content_arena.cli.main import app
from content_arena.core.text import nfc
from content_arena.monitoring.label_files import (
    FORMS,
    LabelRow,
    guarded,
    label_columns,
    read_labels,
    unguarded,
    write_sample,
)
from content_arena.monitoring.label_intake import FILE_OUTCOMES, add_rows
from content_arena.store.events import EventStore, text_sha256

TEXTS = (
    "=1+1",
    "+82 10-1234",
    "-_-",
    "@모두 봐라",
    "\t들여쓰기",
    '"따옴표" 그리고, 쉼표; 세미콜론',
    "두 줄\n세 줄\n",
    "0012",
    "1/2",
    "TRUE",
    "'=1+1",
    "''0012",
    "😀 좋다",
    "한글",
    "_x0041_ 그대로",
    "5월 3일",
    "보통 댓글",
)
odd = st.one_of(
    st.sampled_from(TEXTS),
    st.text(st.sampled_from("=+-@'\"\t\n ,;01e/가각1😀ㅋ.a"), min_size=1, max_size=12),
    st.text(min_size=1, max_size=30),
)
TOOLS = settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def prediction(i: int, text: str) -> dict:
    return dict(
        id=f"{i:032x}",
        text_sha256=text_sha256(text),
        text=text,
        lang="ko",
        length=len(text),
        toxic_score=0.9,
        is_toxic=i % 2 == 0,
        model_version="3",
        model_alias="champion",
    )


@pytest.fixture
def store(tmp_path):
    with EventStore.open(f"sqlite:///{tmp_path / 'events.db'}", keep_text=True) as opened:
        yield opened


def sample_of(texts: list[str]) -> list[dict]:
    return [
        dict(prediction_id=f"{i:032x}", text_sha256=text_sha256(t), lang="ko", text=nfc(t))
        for i, t in enumerate(texts)
    ]


def arena(tmp_path: Path, *arguments: str, code: int = 0) -> dict:
    "The JSON answer of a command on the store of `tmp_path`."
    place = [f"store_url=sqlite:///{tmp_path / 'events.db'}", f"var_dir={tmp_path}"]
    options = [x for setting in (*place, "store_text=true") for x in ("-p", setting)]
    done = CliRunner().invoke(app, [*arguments, "--json", *options])
    assert done.exit_code == code, (done.output, done.exception)
    return json.loads(done.output.splitlines()[-1])


def filled(path: Path, labels: list[str], form: str, reviewer: str = "kim") -> None:
    "What moderators do: a label a row, in whatever the file is."
    if form == "csv":
        rows = list(csv.reader(io.StringIO(path.read_text("utf-8-sig"), newline="")))
        at = rows[0].index("label")
        for row, label in zip(rows[1:], labels):
            row[at:] = [label, reviewer]
        out = io.StringIO()
        csv.writer(out).writerows(rows)
        path.write_bytes(out.getvalue().encode("utf-8-sig"))
    elif form == "xlsx":
        book = openpyxl.load_workbook(path)
        for n, label in enumerate(labels, 2):
            book.active.cell(n, 4).value, book.active.cell(n, 5).value = label, reviewer
        book.save(path)
    else:
        path.write_text(json.dumps(answered(json.loads(path.read_text()), labels, form, reviewer)))


def answered(tasks: list[dict], labels: list[str], form: str, reviewer: str) -> list[dict]:
    "As Label Studio and Argilla send tasks back."
    for i, (task, label) in enumerate(zip(tasks, labels)):
        if form == "label-studio":
            value = {"choices": [label]}
            result = dict(from_name="label", to_name="text", type="choices", id="a", value=value)
            user = {"id": 1, "email": reviewer}
            task |= {"id": i, "predictions": [], "project": 1, "created_at": "2026-01-01T00:00:00Z"}
            task["annotations"] = [dict(id=i, completed_by=user, result=[result] * bool(label))]
        elif form == "argilla":
            task["responses"] = {"label": [{"value": label, "user_id": reviewer}]}
        else:
            answers = {"label": {"value": label}}
            task["responses"] = [dict(user_id=reviewer, values=answers, status="submitted")]
    return tasks


# --- out and back --------------------------------------------------------------------------------


@TOOLS
@given(text=odd)
def test_the_guard_is_taken_off_again_and_leaves_nothing_to_be_misread(text):
    for typed in (False, True):
        assert unguarded(guarded(text, typed)) == text
    assert guarded(text)[0] not in "=+-@\t\r\n＝＋－＠"


@pytest.mark.parametrize("form", FORMS)
@TOOLS
@given(texts=st.lists(odd, min_size=1, max_size=5))
def test_texts_come_back_as_they_were(tmp_path_factory, form, texts):
    texts = [t for t in map(writable, texts) if t.strip()] or ["가"]
    path, rows = tmp_path_factory.mktemp("out") / f"sample.{form}", sample_of(texts)
    write_sample(rows, path, form)
    back = read_labels(path, path.name)
    assert [r.values["prediction_id"] for r in back.rows] == [r["prediction_id"] for r in rows]
    assert [nfc(r.values["text"]) for r in back.rows] == [r["text"] for r in rows]
    assert {r.values["label"] for r in back.rows} == {None}
    assert not any(r.problem for r in back.rows)


@TOOLS
@given(
    texts=st.lists(odd, min_size=1, max_size=5),
    separator=st.sampled_from(",;\t"),
    encoding=st.sampled_from(["utf-8-sig", "utf-8", "utf-16", "cp949"]),
)
def test_texts_come_back_from_a_csv_that_was_saved_again(
    tmp_path_factory, texts, separator, encoding
):
    texts = ["이 줄은 그냥 보통 댓글이다", *(t for t in map(writable, texts) if t.strip())]
    texts = [t.encode(encoding, "ignore").decode(encoding) or "가" for t in texts]
    texts = [t for t in texts if t.strip()]
    path = tmp_path_factory.mktemp("out") / "sample.csv"
    write_sample(sample_of(texts), path, "csv")
    out = io.StringIO()
    rows = [*csv.reader(io.StringIO(path.read_text("utf-8-sig"), newline=""))]
    csv.writer(out, delimiter=separator).writerows(
        [*row, "memo" if n == 0 else ""] for n, row in enumerate(rows)
    )
    path.write_bytes(out.getvalue().encode(encoding))
    back = read_labels(path, path.name)
    assert [nfc(r.values["text"]) for r in back.rows] == [nfc(t) for t in texts]
    assert not any(r.problem for r in back.rows)


@TOOLS
@given(
    texts=st.lists(odd, min_size=1, max_size=5),
    labels=st.lists(
        st.sampled_from(["toxic", "Clean", 1, 0, True, False, 1.0, "정상"]), min_size=6
    ),
)
def test_labels_come_back_from_a_workbook_that_was_saved_again(tmp_path_factory, texts, labels):
    texts = [t for t in map(writable, texts) if t.strip()] or ["가"]
    path, rows = tmp_path_factory.mktemp("out") / "sample.xlsx", sample_of(texts)
    write_sample(rows, path, "xlsx")
    book = openpyxl.load_workbook(path)
    for n, label in enumerate(labels[: len(texts)], 2):
        book.active.cell(n, 4).value = label
    book.save(path)
    back = read_labels(path, path.name).rows
    assert [r.values["prediction_id"] for r in back] == [r["prediction_id"] for r in rows]
    assert [r.values["label"] for r in back] == [
        int(label in ("toxic", 1)) for label in labels[: len(texts)]
    ]
    for r, row in zip(back, rows):
        if (
            row["text"].isprintable()
            and row["text"] == row["text"].strip()
            and "_x" not in row["text"]
        ):
            assert r.values["text"] == row["text"]


def writable(text: str) -> str:
    "`text` as the store keeps it, without what no XML file can hold; line ends as one writes them."
    text = text.replace("\0", "\ufffd").replace("\r\n", "\n").replace("\r", "\n")
    return "".join(c for c in text if c not in "\ufffe\uffff" and not "\ud800" <= c <= "\udfff")


@pytest.mark.parametrize("form", FORMS)
def test_a_sample_is_handed_out_labelled_and_added(store, tmp_path, form):
    store.add("predictions", [prediction(i, t) for i, t in enumerate(TEXTS)])
    path = tmp_path / f"labels.{form}"
    handed = arena(tmp_path, "feedback", "sample", "--n", "50", f"--{form}", str(path))
    assert handed["files"] == {form: str(path)} and len(handed["rows"]) == len(TEXTS)
    labels = ["toxic", "clean", ""] * len(TEXTS)
    filled(path, labels[: len(TEXTS)], form)
    said = arena(tmp_path, "feedback", "add", "--file", str(path))
    n = sum(bool(label) for label in labels[: len(TEXTS)])
    assert (said["status"], said["read"], said["added"]) == ("added", len(TEXTS), n)
    assert (said["unlabelled"], said["changed_texts"], said["problems"]) == (len(TEXTS) - n, 0, [])
    kept = store.read("feedback").set_index("text_sha256")
    assert set(kept.reviewer) == {"kim"} and set(kept.source) == {"moderator"}
    for row, label in zip(handed["rows"], labels):
        if label:
            assert kept.label[row["text_sha256"]] == (label == "toxic")
            assert kept.text[row["text_sha256"]] == row["text"]
    again = arena(tmp_path, "feedback", "add", "--file", str(path))
    assert (again["status"], again["added"], again["unchanged"]) == ("unchanged", 0, n)
    assert len(store.read("feedback")) == n


@pytest.mark.parametrize(
    "separator, encoding", [(";", "cp949"), ("\t", "utf-16"), (",", "utf-8-sig"), (";", "utf-8")]
)
def test_what_excel_saves_is_read(store, tmp_path, separator, encoding):
    "The CSV of a sample, opened and saved again: other separator, other encoding, other line ends."
    store.add("predictions", [prediction(i, t) for i, t in enumerate(TEXTS)])
    path = tmp_path / "labels.csv"
    arena(tmp_path, "feedback", "sample", "--n", "50", "--csv", str(path))
    filled(path, ["유해"] * len(TEXTS), "csv")
    rows = csv.reader(io.StringIO(path.read_text("utf-8-sig"), newline=""))
    out = io.StringIO()
    csv.writer(out, delimiter=separator).writerows(rows)
    path.write_bytes(out.getvalue().encode(encoding, "replace"))
    said = arena(tmp_path, "feedback", "add", "--file", str(path))
    assert (said["read"], said["added"], said["problems"]) == (len(TEXTS), len(TEXTS), [])
    assert said["changed_texts"] == (encoding == "cp949")  # an emoji became a question mark
    assert set(store.read("feedback").label) == {1}


def test_the_workbook_has_texts_only_and_a_list_of_labels(tmp_path):
    path = tmp_path / "labels.xlsx"
    write_sample(sample_of([*TEXTS, "가" * 40_000]), path, "xlsx")
    sheet = openpyxl.load_workbook(path).active
    cells = [c for row in sheet.iter_rows(min_row=2) for c in row if c.value is not None]
    assert {c.data_type for c in cells} == {"s"} and {c.number_format for c in cells} == {"@"}
    [choice] = sheet.data_validations.dataValidation
    assert (choice.type, choice.formula1) == ("list", '"toxic,clean"')
    assert str(choice.sqref) == f"D2:D{len(TEXTS) + 2}" and sheet.freeze_panes == "A2"
    assert len(cells[-1].value) == 32_767 and cells[-1].value.endswith("…")


def test_a_store_without_texts_hands_out_hashes(store, tmp_path):
    rows = [r | {"text": None} for r in sample_of(["가", "나"])]
    for form in FORMS:
        write_sample(rows, tmp_path / form, form)
        if form != "xlsx":  # packed
            assert rows[0]["text_sha256"].encode() in (tmp_path / form).read_bytes()
    back = read_labels(tmp_path / "csv", "csv").rows
    assert [r.values["text_sha256"] for r in back] == [r["text_sha256"] for r in rows]


def test_a_file_that_is_there_is_not_written_over(store, tmp_path):
    path = tmp_path / "labels.csv"
    path.write_text("prediction_id,label\n")
    sample = ["feedback", "sample", "--n", "5", "-p", f"store_url=sqlite:///{tmp_path}/events.db"]
    for options, says in (
        (["--csv", str(path)], "is there already"),
        (["--xlsx", str(tmp_path / "none" / "a.xlsx")], "no folder"),
        (["--csv", str(tmp_path / "b.csv"), "--preview"], "a preview is not noted"),
        (["--csv", str(tmp_path / "b.csv")], "no prediction to label"),
    ):
        done = CliRunner().invoke(app, [*sample, *options])
        assert done.exit_code == 1 and says in str(done.exception)
    assert path.read_text() == "prediction_id,label\n" and not (tmp_path / "b.csv").exists()


# --- every row is in the answer ------------------------------------------------------------------


def add(tmp_path: Path, text: str | bytes, code: int = 0, name: str = "labels.csv") -> dict:
    (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    said = arena(tmp_path, "feedback", "add", "--file", str(tmp_path / name), code=code)
    assert sum(said[o] for o in FILE_OUTCOMES) == said["read"]
    return said


def test_labels_for_predictions_that_nobody_made_are_counted_and_named(store, tmp_path):
    "`labelled_excel.csv` of the cases that people reported: cp949, semicolons, ids of zeros."
    rows = [("0" * 26, "ko", f"{w} 정말 멍청하다", 1, "kim") for w in "가나다라마"]
    table = [("prediction_id", "lang", "text", "label", "reviewer"), *rows]
    text = "".join(";".join(map(str, row)) + "\n" for row in table)
    said = add(tmp_path, text.encode("cp949"), code=1)
    assert (said["status"], said["added"], said["unknown"]) == ("incomplete", 0, 5)
    assert [(p["line"], p["outcome"]) for p in said["problems"]] == [
        (n, "unknown") for n in range(2, 7)
    ]
    assert all("0" * 26 in p["reason"] for p in said["problems"])
    assert any("cp949" in a for a in said["assumed"]) and store.read("feedback").empty


def test_duplicates_conflicts_and_words(store, tmp_path):
    store.add("predictions", [prediction(i, f"comment {i}") for i in range(6)])
    id = lambda i: f"{i:032x}"
    lines = [
        f"{id(0)},TRUE,kim,x",
        f"{id(0)},1,kim,y",  # the same again
        f"{id(1)},clean,kim,",
        f"{id(1)},toxic,kim,",  # and the opposite
        f"{id(1)},유해,lee,",  # another person
        f"{id(2)},,kim,later",
        f"{id(3)},perhaps,kim,",
        f"{id(4)},정상,,",
        "1.2E+31,1,kim,",
    ]
    said = add(tmp_path, "prediction_id,Label,reviewer,memo\n" + "\n".join(lines), code=1)
    counts = {o: said[o] for o in FILE_OUTCOMES if said[o]}
    assert counts == dict(added=3, duplicate=1, conflicting=2, unlabelled=1, refused=1, unknown=1)
    assert [p["line"] for p in said["problems"]] == [3, 4, 5, 8, 10]
    assert "as in line 2" in said["problems"][0]["reason"]
    assert "lines 4, 5" in said["problems"][1]["reason"]
    assert "'perhaps' is no label" in said["problems"][3]["reason"]
    assert "a spreadsheet made a number of it" in said["problems"][4]["reason"]
    labels = store.read("feedback").fillna({"reviewer": "?"})
    votes = set(zip(labels.prediction_id, labels.reviewer, labels.label))
    assert votes == {(id(0), "kim", 1), (id(1), "lee", 1), (id(4), "?", 0)}
    turned = add(tmp_path, f"prediction_id,label,reviewer\n{id(0)},0,kim\n")
    assert (turned["added"], turned["replaced"]) == (0, 1) and len(store.read("feedback")) == 3


def test_a_column_that_was_sorted_alone_is_noticed(store, tmp_path):
    texts = [f"댓글 {i}" for i in range(5)]
    store.add("predictions", [prediction(i, t) for i, t in enumerate(texts)])
    rows = [f"{i:032x},{t},1\n" for i, t in enumerate(reversed(texts))]
    said = add(tmp_path, "prediction_id,text,label\n" + "".join(rows), code=1)
    assert (said["added"], said["refused"]) == (1, 4)  # the middle one stayed where it was
    assert "was a column sorted alone" in said["problems"][0]["reason"]
    corrected = [f"{i:032x},{t} (sic),0\n" for i, t in enumerate(texts)]
    said = add(tmp_path, "prediction_id,text,label\n" + "".join(corrected))
    assert (said["added"], said["replaced"], said["changed_texts"]) == (4, 1, 5)


def test_a_text_alone_names_its_comment(store, tmp_path):
    store.add("predictions", [prediction(0, "=안녕")])
    said = add(tmp_path, "text,label\n'=안녕,clean\n처음 보는 댓글,toxic\n")
    assert said["added"] == 2
    assert set(store.read("feedback").text_sha256) == {
        text_sha256("=안녕"),
        text_sha256("처음 보는 댓글"),
    }


def test_the_users_columns_have_no_meaning(store, tmp_path):
    store.add("predictions", [prediction(0, "comment")])
    table = (
        f"id,time,lang,attack,prediction_id,label,annotator,data\n7,noon,xx,y,{0:032x},1,kim,z\n"
    )
    said = add(tmp_path, table)
    [row] = store.read("feedback").itertuples()
    assert said["added"] == 1 and (row.reviewer, row.label) == ("kim", 1) and row.id != "7"


@pytest.mark.parametrize(
    "text, says",
    [
        ("text_sha256,lable\na,1\n", "no column label; there are: text_sha256, lable"),
        ("label,memo\n1,x\n", "no column says what a label is about"),
        ("prediction_id,label,라벨\na,1,0\n", "more than once"),
        ("", "empty"),
    ],
)
def test_what_is_no_file_of_labels_is_refused_in_one_line(tmp_path, text, says):
    (tmp_path / "a.csv").write_text(text)
    arguments = ["feedback", "add", "--file", str(tmp_path / "a.csv"), "-p", f"var_dir={tmp_path}"]
    done = CliRunner().invoke(app, [*arguments, "-p", f"store_url=sqlite:///{tmp_path}/events.db"])
    assert done.exit_code == 1 and says in str(done.exception), done.exception
    assert "a.csv" in str(done.exception)


def test_what_a_user_says_of_a_file_is_said_as_of_a_source(store, tmp_path):
    "A workbook with two sheets, a title above the header, a column and words of the moderators' own."
    store.add("predictions", [prediction(i, f"댓글 {i}") for i in range(3)])
    book = openpyxl.Workbook()
    book.active.title = "안내"
    book.active.append(["이 파일은", "댓글 판정용입니다"])
    sheet = book.create_sheet("판정표")
    for row in (["5월 판정"], ["Prediction ID", "텍스트", "판정", "검수자"]):
        sheet.append(row)
    for i, label in enumerate(("나쁨", "좋음", None)):
        sheet.append([f"{i:032x}", f"댓글 {i}", label, "김"])
    path = tmp_path / "판정.xlsx"
    book.save(path)
    options = "?sheet=판정표&label=판정&labels=나쁨:1,좋음:0"
    said = arena(tmp_path, "feedback", "add", "--file", f"{path}{options}")
    assert (said["read"], said["added"], said["unlabelled"]) == (3, 2, 1)
    labels = store.read("feedback")
    assert dict(zip(labels.prediction_id.str[-1], labels.label)) == {"0": 1, "1": 0}
    assert set(labels.reviewer) == {"김"}


def test_columns_are_found_whatever_their_case():
    names = ["PREDICTION ID", " Label ", "Reviewer", "memo"]
    assert list(label_columns(names, "a.csv").values()) == ["prediction_id", "label", "reviewer"]


# --- layouts of the tools ------------------------------------------------------------------------


def labels_of(tmp_path: Path, value: list) -> list[LabelRow]:
    (tmp_path / "a.json").write_text("[" + ",\n".join(map(json.dumps, value)) + "]")
    return read_labels(tmp_path / "a.json", "a.json").rows


def test_label_studio_min_json_is_a_table(tmp_path):
    "As the converter of label-studio-sdk 2.x writes it: data, results by name, who and when."
    row = dict(prediction_id="a", text="가", id=7, label="toxic", annotator=2, annotation_id=9)
    row |= dict(created_at="2026-01-01T00:00:00Z", updated_at=None, lead_time=1.5)
    rows = labels_of(tmp_path, [row, row | {"label": {"choices": ["toxic", "clean"]}}])
    assert (rows[0].values["label"], rows[0].values["reviewer"]) == (1, "2")
    assert "2 labels at once" in rows[1].problem


def test_label_studio_skips_and_older_names(tmp_path):
    choice = dict(from_name="mood", to_name="text", type="choices", value={"choices": ["clean"]})
    other = choice | {"from_name": "why"}
    task = {"id": 1, "data": {"prediction_id": "a"}}
    rows = labels_of(
        tmp_path,
        [
            task | {"completions": [{"completed_by": 5, "result": [choice]}]},
            task | {"annotations": [{"was_cancelled": True, "result": [choice]}]},
            task | {"annotations": [{"result": [choice, other]}]},
            task | {"annotations": [{"result": [{"type": "choices"}]}]},
            task | {"annotations": []},
        ],
    )
    assert [r.values.get("label") for r in rows] == [0, None, None, None, None]
    assert rows[0].values["reviewer"] == "5" and [r.line for r in rows] == [1, 2, 3, 4, 5]
    assert "mood, why: name the one that counts label" in rows[2].problem
    assert "unknown layout" in rows[3].problem and not rows[1].problem + rows[4].problem


def test_argilla_by_question_and_by_person(tmp_path):
    two = {"id": "a", "fields": {"text": "가"}, "metadata": {}, "suggestions": {}, "vectors": {}}
    person = dict(values={"label": {"value": "toxic"}, "why": {"value": "rude"}})
    one = {"fields": {"text": "가"}, "metadata": {}, "external_id": "b", "id": "server's"}
    rows = labels_of(
        tmp_path,
        [
            two
            | {"responses": {"label": [{"value": v, "user_id": v} for v in ("toxic", "clean")]}},
            one | {"responses": [person | {"user_id": "u", "status": "submitted"}]},
            one | {"responses": [person | {"user_id": "u", "status": "draft"}]},
            two | {"responses": {}},
            one | {"responses": [], "metadata": {"prediction_id": "c"}},
        ],
    )
    assert [r.values["prediction_id"] for r in rows] == ["a", "a", "b", "b", "a", "c"]
    assert [r.values["label"] for r in rows] == [1, 0, 1, None, None, None]
    assert [r.values.get("reviewer") for r in rows] == ["toxic", "clean", "u", "u", None, None]


def test_other_peoples_labels_wait_in_no_file(store, tmp_path):
    "What the intake says is what the store has, whatever the order of the rows."
    store.add("predictions", [prediction(i, f"comment {i}") for i in range(3)])
    rows = [
        LabelRow(
            n, dict(prediction_id=f"{n % 3:032x}", label=n % 2, reviewer=f"r{n}", source="user")
        )
        for n in range(9)
    ]
    outcomes, _ = add_rows(store, rows, tmp_path, 90, 0)
    assert {o.outcome for o in outcomes} == {"added"} and len(store.read("feedback")) == 9
    outcomes, _ = add_rows(store, rows[::-1], tmp_path, 90, 0)
    assert {o.outcome for o in outcomes} == {"unchanged"}

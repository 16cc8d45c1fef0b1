"""Small files such as people really have, written into a folder; all texts are invented.

Each stands for a kind of fault: separators, encodings, packings, headers, labels. `write_cases` returns the rows that all of
them hold.
"""

import gzip
import json
import random
import unicodedata
from pathlib import Path

WHO = "이 배우,저 감독,그 기자,우리 팀,그 사람,이 가게,저 방송,그 선수,이 작가,저 가수".split(",")
BAD = "정말 멍청하다,바보 같은 소리만 한다,꼴도 보기 싫으니 꺼져라,쓰레기만도 못하다".split(",")
GOOD = "정말 고맙다,오늘도 잘했다,다음에도 보고 싶다,조금 아쉬웠다".split(",")
WHEN = "아침에,어제,방금,주말에,요즘,작년에,처음에는,끝까지".split(",")
DECOMPOSED = unicodedata.normalize("NFD", "댓글 모음.csv")

Row = tuple[str, int]


def invented_rows(number: int = 480) -> list[Row]:
    rows = [
        (f"{w} {p} {t}", y)
        for y, ends in ((1, BAD), (0, GOOD))
        for w in WHEN
        for p in WHO
        for t in ends[: 3 + y]
    ]
    random.Random(7).shuffle(rows)
    return rows[:number]


def table(rows, head=("text", "label"), sep=",", end="\n") -> str:
    def quoted(value) -> str:
        text = str(value)
        special = any(c in text for c in (sep, '"', "\n", "\r"))
        return '"' + text.replace('"', '""') + '"' if special else text

    return end.join([sep.join(head)] + [sep.join(map(quoted, row)) for row in rows]) + end


def write_cases(folder: Path) -> list[Row]:
    "Write all cases into `folder`; returns the rows (text, label) that they hold."
    rows, rng = invented_rows(), random.Random(9)

    def put(name: str, data: str | bytes) -> None:
        (folder / name).write_bytes(data.encode() if isinstance(data, str) else data)

    def labelled(name: str, label, head=("text", "label"), sep: str = ",") -> None:
        put(name, table([(t, label(y)) for t, y in rows], head, sep))

    plain, objects = table(rows), [{"text": t, "label": y} for t, y in rows]
    for name, sep in (
        ("tabs_named_csv.csv", "\t"),
        ("tabs_named_txt.txt", "\t"),
        ("semicolons.csv", ";"),
        ("pipes.csv", "|"),
    ):
        put(name, table(rows, sep=sep))
    put("plain.csv", plain)
    put("excel_sep_line.csv", "sep=;\n" + table(rows, sep=";"))
    put("bom.csv", b"\xef\xbb\xbf" + plain.encode())
    put("excel_utf16.csv", table(rows, sep="\t").encode("utf-16"))
    put("utf16_without_mark.csv", table(rows, sep="\t").encode("utf-16-le"))
    put("cp949.csv", plain.encode("cp949"))
    put("carriage_returns.csv", table(rows, end="\r"))
    put("packed.csv.gz", gzip.compress(plain.encode(), mtime=0))
    put("array.json", json.dumps(objects, ensure_ascii=False))
    put("wrapped.json", json.dumps({"data": objects}, ensure_ascii=False))
    lines = [json.dumps({"text": t, "label": bool(y)}) + "\n" for t, y in rows]
    put("lines.jsonl", "".join(lines))
    put(DECOMPOSED, plain)
    put("two,parts.csv", plain)
    put("what?really.csv", plain)
    put("columns_capital.csv", table(rows, ("Text", "Label")))
    put("columns_korean.csv", table(rows, ("문장", "라벨")))
    put("columns_other.csv", table(rows, ("comment_text", "target")))
    for name, no, yes in (
        ("words", "none", "hate"),
        ("korean", "정상", "혐오"),
        ("shouting", "FALSE", "TRUE"),
        ("pandas", "False", "True"),
        ("minus", "-1", "1"),
        ("float", "0.0", "1.0"),
    ):
        labelled(f"labels_{name}.csv", lambda y, no=no, yes=yes: yes if y else no)
    labelled("labels_scores.csv", lambda y: f"{0.5 + 0.45 * (2 * y - 1) * rng.random():.3f}")
    labelled("labels_three.csv", lambda y: y * (1 + rng.randrange(2)))
    classes = ["0", "1", "2,3", "5"]
    labelled("labels_classes.tsv", lambda y: rng.choice(classes) if y else "8", sep="\t")
    several = [(i, t, y, 0, y * rng.randrange(2), 0) for i, (t, y) in enumerate(rows)]
    head = ("id", "comment_text", "toxic", "severe_toxic", "insult", "threat")
    put("labels_columns.csv", table(several, head))
    put("few_bad_labels.csv", table([*rows, ("이 줄은 라벨이 없다", ""), ("이 줄도 그렇다", "?")]))
    put(
        "two_label_columns.csv", table([(t, 1 - y, y) for t, y in rows], ("text", "label", "label"))
    )
    put("two_text_columns.csv", table([("x", t, y) for t, y in rows], ("text", "text", "label")))
    own = ("text", "label", "template", "attack", "lang")
    put("user_columns.csv", table([(t, y, "x", 1, "Korean") for t, y in rows], own))
    put("pickled.csv", b"\x80\x04\x95" + b"\x00" * 40)
    put("empty.csv", b"")
    decomposed = [(unicodedata.normalize("NFD", t), y) for t, y in rows]
    put("decomposed.csv", table(decomposed))
    head = ("prediction_id", "lang", "text", "label", "reviewer")
    excel = [("0" * 26, "ko", t, y, "kim") for t, y in rows[:5]]
    put("labelled_excel.csv", table(excel, head, ";").encode("cp949"))
    return rows

"""Damaged tables: a few whole ones of each kind, and what disks, networks, editors and malice make of them."""

import gzip
import io
import json
import random
import unicodedata
import zipfile
from collections.abc import Callable
from functools import cache

import openpyxl
import pandas as pd
import zstandard

from cases import invented_rows, table

ROWS = invented_rows(60)


def _workbook() -> bytes:
    book, out = openpyxl.Workbook(), io.BytesIO()
    for row in [("text", "label"), *ROWS]:
        book.active.append(row)
    book.save(out)
    return out.getvalue()


def _parquet() -> bytes:
    out = io.BytesIO()
    pd.DataFrame(ROWS, columns=["text", "label"]).to_parquet(out, row_group_size=20)
    return out.getvalue()


def _zip(data: bytes) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.csv", data)
    return out.getvalue()


@cache
def whole_files() -> dict[str, bytes]:
    objects = [{"text": t, "label": y} for t, y in ROWS]
    plain = table(ROWS).encode()
    quoted = "text,label\n" + "".join(f'"{t},\n{t}",{y}\n' for t, y in ROWS)
    lines = "".join(json.dumps(o, ensure_ascii=False) + "\n" for o in objects)
    return {
        "plain": plain,
        "quoted": quoted.encode(),
        "tabs": table(ROWS, sep="\t").encode(),
        "excel": b"sep=;\r\n" + table(ROWS, sep=";", end="\r\n").encode(),
        "old mac": table(ROWS, end="\r").encode(),
        "cp949": table(ROWS).encode("cp949"),
        "utf-16": table(ROWS, sep="\t").encode("utf-16"),
        "decomposed": unicodedata.normalize("NFD", table(ROWS)).encode(),
        "gzip": gzip.compress(plain, mtime=0),
        "zstd": zstandard.compress(plain),
        "zip": _zip(plain),
        "lines": lines.encode(),
        "array": json.dumps(objects, ensure_ascii=False).encode(),
        "wrapped": json.dumps({"v": 1, "data": objects}, ensure_ascii=False, indent=1).encode(),
        "parquet": _parquet(),
        "workbook": _workbook(),
    }


# What happens to them -----------------------------------------------------------------------------


def cut(data: bytes, rng: random.Random) -> bytes:
    return data[: rng.randrange(len(data))]


def beheaded(data: bytes, rng: random.Random) -> bytes:
    return data[rng.randrange(1, len(data)) :]


def flipped(data: bytes, rng: random.Random) -> bytes:
    damaged = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 5, 30))):
        damaged[rng.randrange(len(damaged))] ^= 1 << rng.randrange(8)
    return bytes(damaged)


SIGNS = [
    b'"',
    b"\0",
    b"\r",
    b"\n",
    b",",
    b"\t",
    b";",
    b"{",
    b"[",
    b"]",
    b"\\",
    b"\xff\xfe",
    b"\xef\xbb\xbf",
    b"\x1a",
]


def sprinkled(data: bytes, rng: random.Random) -> bytes:
    for _ in range(rng.choice((1, 2, 10))):
        at = rng.randrange(len(data))
        data = data[:at] + rng.choice(SIGNS) * rng.choice((1, 1, 3)) + data[at:]
    return data


def repeated(data: bytes, rng: random.Random) -> bytes:
    begin, end = sorted(rng.randrange(len(data)) for _ in range(2))
    return data[:end] + data[begin:end] * rng.choice((1, 2, 40)) + data[end:]


def spliced(data: bytes, rng: random.Random) -> bytes:
    other = rng.choice([*whole_files().values()])
    return data[: rng.randrange(len(data))] + other[rng.randrange(len(other)) :]


def mixed_encodings(data: bytes, rng: random.Random) -> bytes:
    more = table(ROWS, sep=rng.choice(",\t;")).encode(
        rng.choice(["cp949", "utf-16", "utf-16-le", "utf-8", "utf-32"])
    )
    return data + more if rng.random() < 0.5 else more + data


def zeroed(data: bytes, rng: random.Random) -> bytes:
    begin, end = sorted(rng.randrange(len(data)) for _ in range(2))
    return data[:begin] + b"\0" * (end - begin) + data[end:]


# What no disk does --------------------------------------------------------------------------------


def giant_cell(data: bytes, rng: random.Random) -> bytes:
    cell = rng.choice((b"a", "가".encode(), b'"', b" ", b"a,", b"\0", b"a\n"))
    size = rng.choice((10_000, 300_000, 300_000 if cell == b"a\n" else 20 << 20))
    begin = rng.choice((b"", b'text,label\n"', b"text,label\nfine,0\n", b'{"text": "'))
    return (
        begin + cell * (size // len(cell)) + rng.choice((b"", b",1\n", b'",1\n', b'", "label": 1}'))
    )


def nested(data: bytes, rng: random.Random) -> bytes:
    depth = rng.choice((50, 2000, 200_000))
    inner = rng.choice((b"", b'{"text": "a", "label": 1}', b"1"))
    if rng.random() < 0.5:
        return b"[" * depth + inner + b"]" * rng.choice((0, depth))
    return b'{"data": ' * depth + inner + b"}" * rng.choice((0, depth))


def nested_row(data: bytes, rng: random.Random) -> bytes:
    depth = rng.choice((10, 900, 50_000))
    deep = b'{"text": "a", "label": 1, "more": ' + b"[" * depth + b"]" * depth + b"}"
    sane = b'{"text": "b", "label": 0}'
    return rng.choice((b"%b\n%b\n", b"[%b,\n%b]", b'{"data": [%b, %b]}')) % (sane, deep)


@cache
def _zeros(pack: str, size: int, what: bytes) -> bytes:
    data = what * (size // len(what))
    if pack == "zip":
        return _zip(data)
    return gzip.compress(data, 6) if pack == "gzip" else zstandard.compress(data)


def bomb(data: bytes, rng: random.Random) -> bytes:
    what = rng.choice((b"\0", b"a", b"a,0\n", b'"', b"text,label\na,0\n", b"\n", b"[", b"\r"))
    return _zeros(rng.choice(("gzip", "zstd", "zip")), 70 << 20, what)


def lying_workbook(data: bytes, rng: random.Random) -> bytes:
    "A workbook whose sheet has been rewritten: far corners, many rows, a giant text."
    corner = rng.choice(("XFD1048576", "A99999999", "ZZZ9", "A1"))
    text = "a" * rng.choice((10, 5 << 20))
    cells = f'<row r="1"><c r="{corner}" t="inlineStr"><is><t>{text}</t></is></c></row>'
    out = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(whole_files()["workbook"])) as old,
        zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as new,
    ):
        for part in old.infolist():
            body = old.read(part)
            if part.filename.endswith("sheet1.xml"):
                body = body.replace(
                    b"<sheetData>", b"<sheetData>" + cells.encode() * rng.choice((1, 50))
                )
            new.writestr(part.filename, body)
    return out.getvalue()


Mutation = Callable[[bytes, random.Random], bytes]
DAMAGE: list[Mutation] = [
    cut,
    beheaded,
    flipped,
    flipped,
    sprinkled,
    sprinkled,
    repeated,
    spliced,
    mixed_encodings,
    zeroed,
]
MALICE: list[Mutation] = [giant_cell, nested, nested_row, lying_workbook]


def mutated(seed: int) -> tuple[str, bytes]:
    "What the file `seed` is, and its bytes; the same for the same seed."
    rng = random.Random(seed)
    kind = rng.choice([*whole_files()])
    if seed % 50 == 7:
        return "bomb", bomb(b"", rng)
    if seed % 8 == 0:
        mutation = rng.choice(MALICE)
        return mutation.__name__, mutation(b"", rng)
    data, names = whole_files()[kind], []
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        if not data:
            break
        mutation = rng.choice(DAMAGE)
        names.append(mutation.__name__)
        data = mutation(data, rng)[: 8 << 20]
    if rng.random() < 0.1:
        data = gzip.compress(data)
        names.append("packed")
    return f"{kind}: {', '.join(names)}", data

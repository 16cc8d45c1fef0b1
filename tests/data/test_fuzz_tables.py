"""Damaged and malicious files: an error in one line, or a correct read; bounded in memory and time, never a silent loss.

`pytest tests/data/test_fuzz_tables.py --fuzz-files=2000` reads more of them. What once failed is kept below.
"""

import gzip
import json
import multiprocessing
import re
import resource
import signal
import time
from pathlib import Path

import pytest
import zstandard

from content_arena.core.config import load_settings
from content_arena.data.raw_files import DataError, raw_file
from content_arena.data.readers import load_source
from content_arena.data.tables import open_table
from fuzz_tables import ROWS, mutated, whole_files

pytestmark = pytest.mark.long(60)

SECONDS = 60  # for one file; most take milliseconds
MEMORY = 1536 << 20  # bytes that reading may add; the largest file is 20 MB, or 300 MB unpacked
NAMES = ("file:{}", "file:{}?rows=data")


class Slow(BaseException):
    "Not an Exception, so that nothing that is read takes it for damage."


def at(home):
    return load_settings(ini=home / "settings.ini", env={})


def check(name: str, home: Path, data: bytes) -> str:
    "Read `data` as a source: what became of it. AssertionError if that breaks a promise."
    try:
        read = load_source(name, at(home))
    except DataError as e:
        text = str(e)
        assert "\n" not in text and len(text) < 3000, f"an error is one line: {text[:200]!r}"
        assert "mine" in text, "an error names the file"
        return "refused"
    assert read.read == len(read.frame) + len(read.bad) > 0, "a row is used or quarantined"
    assert set(read.frame.label) <= {0, 1} and read.frame.text.map(bool).all()
    lost_lines(read, data)
    return "read"


def lost_lines(read, data: bytes) -> None:
    "Where a row is a line, each line is a row: known for text in UTF-8 without quotes."
    plain = not re.search(rb'["\0{\[]', data) and data[:2] not in (
        b"\xff\xfe",
        b"\xfe\xff",
        b"\x1f\x8b",
        b"PK",
    )
    if not plain or any("header is" in s or "UTF" in s or "unpacked" in s for s in read.assumed):
        return
    lines = [s for s in re.split(rb"\r\n|\r|\n", data.removeprefix(b"\xef\xbb\xbf")) if s]
    head = 2 if lines[0].lower().startswith(b"sep=") else 1
    assert read.read == len(lines) - head, f"{len(lines)} lines, {read.read} rows"


def _late(*_) -> None:
    raise Slow


def _work(seeds: range, home: Path, pipe) -> None:
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, resource.RLIM_INFINITY))
    signal.signal(signal.SIGALRM, _late)
    for seed in seeds:
        kind, data = mutated(seed)
        (home / "mine").write_bytes(data)
        pipe.send((seed, kind, "began"))
        signal.alarm(SECONDS)
        try:
            outcome = check(NAMES[seed % 2].format("mine"), home, data)
        except BaseException as e:
            outcome = f"{type(e).__name__}: {e}"
        signal.alarm(0)
        pipe.send((seed, kind, outcome))
    pipe.send(None)


def read_all(seeds: range, home: Path) -> dict[int, tuple[str, str]]:
    "seed -> what the file is, what became of it; a process of its own, which may die of it."
    (home / "settings.ini").write_text("[paths]\nvar_dir = var\n")
    context, outcomes = multiprocessing.get_context("fork"), {}
    while seeds:
        ours, theirs = context.Pipe(duplex=False)
        process = context.Process(target=_work, args=(seeds, home, theirs), daemon=True)
        process.start()
        theirs.close()
        seed = seeds[0]
        try:
            while (message := ours.recv() if ours.poll(SECONDS * 2) else "stuck") not in (
                None,
                "stuck",
            ):
                seed, kind, outcome = message
                outcomes[seed] = kind, outcome
        except EOFError:
            message = "died"
        process.kill()
        process.join()
        if message is None:
            return outcomes
        outcomes[seed] = outcomes.get(seed, ("?", ""))[0], message
        seeds = range(seed + 1, seeds.stop)
    return outcomes


def test_damaged_files_are_refused_in_a_line_or_read_without_loss(tmp_path, request):
    number = request.config.getoption("fuzz_files")
    whole_files()
    began = time.monotonic()
    outcomes = read_all(range(number), tmp_path)
    wrong = {s: how for s, how in outcomes.items() if how[1] not in ("read", "refused")}
    read = sum(how[1] == "read" for how in outcomes.values())
    print(
        f"{number} files, {read} read, {number - read - len(wrong)} refused, {time.monotonic() - began:.0f} s"
    )
    assert not wrong, f"{len(wrong)} of {number}; mutated(seed) makes them: {wrong}"
    assert len(outcomes) == number and number / 8 < read < number * 7 / 8, "both happen"


def test_the_whole_files_are_read(tmp_path):
    (tmp_path / "settings.ini").write_text("[paths]\nvar_dir = var\n")
    for kind, data in whole_files().items():
        (tmp_path / "mine").write_bytes(data)
        name = "file:mine?rows=data" if kind == "wrapped" else "file:mine"
        read = load_source(name, at(tmp_path))
        assert read.frame.label.tolist() == [y for _, y in ROWS], kind


# Kept: what failed once, and limits that no random file meets -------------------------------------


@pytest.fixture
def mine(tmp_path):
    (tmp_path / "settings.ini").write_text("[paths]\nvar_dir = var\n")

    def write(data: bytes) -> Path:
        (tmp_path / "mine").write_bytes(data)
        return tmp_path

    return write


def test_every_row_of_a_long_list_is_handed_out(mine):
    rows = [{"text": f"글 {i}", "label": i % 2} for i in range(25_000)]
    home = mine(json.dumps(rows).encode())
    assert load_source("file:mine", at(home)).frame.text.tolist() == [r["text"] for r in rows]


@pytest.mark.parametrize("size", [1 << 20, (1 << 20) - 1, (1 << 20) + 1])
def test_rows_at_the_edge_of_a_piece(mine, size):
    "A line end, a quoted cell and a letter of three bytes may lie across two pieces of a file."
    n = 3 * size // 29
    body = "".join(f'"줄 {i}\r\n둘째",{i % 2}\r\n' for i in range(n)).encode()
    pad = b"x" * (size - len(b"text,label\r\n,0\r\n"))
    for middle in (b"", pad[: 4000 - size % 7] + b",0\r\n"):
        home = mine(b"text,label\r\n" + middle + body)
        read = load_source("file:mine", at(home))
        assert len(read.frame) == n + bool(middle) and read.bad.empty


@pytest.mark.parametrize("pack", [gzip.compress, zstandard.compress])
def test_bomb_needs_neither_memory_nor_time(mine, pack):
    home = mine(pack(b"text,label\n" + b"a,0\n" * (20 << 20)))
    began = time.monotonic()
    with pytest.raises(DataError, match="MAX_UNPACKED_RATIO"):
        for _ in raw_file(home / "mine", "mine").pieces():
            pass
    assert time.monotonic() - began < 20


def test_quote_that_is_never_closed_costs_its_own_line(mine):
    lines = [f"{t},{y}" for t, y in ROWS]
    home = mine(
        "\n".join(
            ["text,label", '"' + lines[0], *lines[1:], *(f'"{t}",{y}' for t, y in ROWS)]
        ).encode()
    )
    read = load_source("file:mine", at(home))
    assert read.read == 120 and len(read.bad) <= 1 and len(read.frame) >= 119


def test_what_follows_a_list_is_not_lost(mine):
    row = '{"text": "a", "label": 0}'
    home = mine(f"[{row}]\n[{row}]".encode())
    with pytest.raises(DataError, match="line 2: not JSON: it goes on behind its end"):
        load_source("file:mine", at(home))


def test_parquet_of_a_billion_equal_rows(mine):
    import pyarrow as pa
    import pyarrow.parquet as pq

    home = mine(b"")
    rows = pa.table(
        {"text": pa.array(["a"] * 500_000), "label": [0] * 500_000}
    )
    with pq.ParquetWriter(home / "mine", rows.schema) as writer:
        for _ in range(8):
            writer.write_table(rows)
    with pytest.raises(DataError, match="MAX_ROWS_PER_BYTE"):
        open_table(home / "mine", "mine")

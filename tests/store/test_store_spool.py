"""The spool on its own: what is on disk after each call, flushed, in whose folder, and what is counted."""

import json
import os
import stat
from datetime import datetime, timezone
from pathlib import Path

import pytest
from filelock import FileLock

from content_arena.store import spool as store_spool
from content_arena.store.spool import SEGMENT_BYTES, Event, Spool, SpoolFull, from_line, to_line


def events(*numbers: int) -> list[Event]:
    return [Event("labels", {"n": n}, 100.0 + n) for n in numbers]


def numbers(taken: list[Event]) -> list[int]:
    return [e.row["n"] for e in taken]


@pytest.fixture
def spool(tmp_path: Path):
    made = Spool(tmp_path / "a/b", 1e6, segment_bytes=2 * len(to_line(events(1)[0])))  # two events
    yield made
    made.close()


def test_a_line_is_read_as_it_was_written():
    event = Event("labels", {"at": datetime(2026, 1, 2, tzinfo=timezone.utc), "text": "한"}, 1.5)
    read = from_line(to_line(event))
    assert read == Event("labels", {"at": "2026-01-02T00:00:00+00:00", "text": "한"}, 1.5)
    assert to_line(event).endswith(b"]\n") and to_line(event).count(b"\n") == 1
    for torn in (
        to_line(event)[:-1],
        to_line(event)[:20] + b"\n",
        b"\n",
        b"3\n",
        b'["a", 1, 2]\n',
        b'["a", {}]\n',
    ):
        assert from_line(torn) is None, torn


def test_folders_are_made_private_and_locked(spool: Spool, tmp_path: Path):
    assert spool.folder.parent == spool.shared == tmp_path / "a/b"
    assert stat.S_IMODE(spool.folder.stat().st_mode) == 0o700
    spool.append(events(1))
    [file] = spool.folder.iterdir()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600 and file.suffix == ".jsonl"
    assert not FileLock(f"{spool.folder}.lock").is_locked
    with pytest.raises(TimeoutError):
        FileLock(f"{spool.folder}.lock").acquire(timeout=0)
    assert (
        Spool(tmp_path / "a/b", 1).segment_bytes == SEGMENT_BYTES == 4_000_000
    )  # an existing folder is none's fault


def test_what_is_appended_is_flushed_with_the_name_of_its_file(spool: Spool, monkeypatch):
    "Every write reaches the disk before `append` returns; a new file's name does too."
    flushed, real = [], os.fsync

    def fsync(fd: int) -> None:
        size = os.fstat(fd).st_size
        flushed.append("folder" if stat.S_ISDIR(os.fstat(fd).st_mode) else size)
        real(fd)

    monkeypatch.setattr(store_spool.os, "fsync", fsync)
    spool.append(events(1))
    size = spool.bytes()
    assert flushed == [size, "folder"] and size == len(to_line(events(1)[0]))
    spool.append(events(2))
    assert flushed == [size, "folder", 2 * size]


def test_a_write_that_comes_in_pieces_is_whole(spool: Spool, monkeypatch):
    real = os.write
    monkeypatch.setattr(store_spool.os, "write", lambda fd, data: real(fd, data[:7]))
    spool.append(events(1, 2, 3))
    monkeypatch.undo()
    assert numbers(spool.take(9)) == [1, 2, 3]


def test_segments_are_of_limited_size_and_go_when_read(spool: Spool):
    for n in range(1, 6):
        spool.append(events(n))
    assert [len(f.read_bytes().splitlines()) for f in spool._segments()] == [2, 2, 1]
    assert spool.pending == 5 and spool.oldest() == 101
    taken = []
    while part := spool.take(2):
        assert spool.take(2) == part  # it stays until done
        assert spool.oldest() == part[0].at
        taken += numbers(part)
        spool.done()
        assert spool.pending == 5 - len(taken)
    assert taken == [1, 2, 3, 4, 5]
    assert spool._segments() == [] and spool.bytes() == 0 and spool.oldest() is None
    spool.append(events(6))
    assert numbers(spool.take(5)) == [6] and spool.oldest() == 106


def test_done_before_anything_was_taken_forgets_nothing(spool: Spool):
    spool.append(events(1))
    spool.done()
    assert (spool.pending, spool.torn) == (1, 0) and numbers(spool.take(5)) == [1]
    spool.done()
    assert (spool.pending, spool.torn) == (0, 0)


def test_done_twice_forgets_nothing_more(spool: Spool):
    spool.append(events(1, 2, 3))
    assert numbers(spool.take(1)) == [1]
    spool.done()
    spool.done()  # as after a batch that was written, and again
    assert spool.pending == 2
    assert numbers(spool.take(5)) == [2, 3]
    spool.append(events(4))  # into the file that is being read
    spool.done()
    assert spool.pending == 1 and numbers(spool.take(5)) == [4]


def test_torn_lines_are_skipped_and_counted(spool: Spool, caplog):
    spool.append(events(1))
    [file] = spool._segments()
    with open(file, "ab") as f:
        f.write(b"torn\n")
    spool._file = None
    spool.append(events(2))
    spool.pending += 1  # as `adopt` counts lines
    assert numbers(spool.take(5)) == [1]
    spool.done()
    assert (spool.pending, spool.torn) == (1, 1) and "skipped 1 torn lines" in caplog.text
    assert numbers(spool.take(5)) == [2]
    spool.done()
    assert (spool.pending, spool.torn) == (0, 1)


def test_a_file_of_torn_lines_only_is_passed_over(spool: Spool):
    (spool.folder / "0.jsonl").write_bytes(b"torn\ntorn\n")
    spool.append(events(1))
    assert numbers(spool.take(5)) == [1] and spool.torn == 2
    assert not (spool.folder / "0.jsonl").exists()


def test_the_bound_is_exact_and_counts_everybodys_bytes(tmp_path: Path):
    size = len(to_line(events(1)[0]))
    one, two = (Spool(tmp_path, 3 * size) for _ in range(2))
    one.append(events(1))
    two.append(events(1, 1))
    assert one.bytes() == two.bytes() == 3 * size
    with pytest.raises(SpoolFull, match=r"holds 0\.0 MB, \[store\] store_spool_mb allows"):
        two.append(events(1))
    assert two.pending == 2 and two.bytes() == 3 * size
    two.append([])  # nothing needs no room


def test_a_failed_write_leaves_the_file_as_it_was_and_goes_elsewhere_next(
    spool: Spool, monkeypatch
):
    spool.append(events(1))
    [file], real = spool._segments(), os.write

    def write(fd: int, data) -> int:
        if len(data) > 5:
            return real(fd, data[:5])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(store_spool.os, "write", write)
    before = file.read_bytes()
    with pytest.raises(SpoolFull, match="No space left"):
        spool.append(events(2))
    assert file.read_bytes() == before and spool.pending == 1
    monkeypatch.undo()
    spool.append(events(3))
    assert file.read_bytes() == before and len(spool._segments()) == 2


def test_the_files_of_those_who_are_gone_are_taken_over(tmp_path: Path):
    gone, alive, heir = (Spool(tmp_path, 1e6) for _ in range(3))
    gone.append(events(1, 2))
    alive.append(events(3))
    gone._owner.release()  # its process died
    assert heir.adopt() == 2 and heir.pending == 2
    assert numbers(heir.take(9)) == [1, 2] and alive.pending == 1
    assert not gone.folder.exists() and not Path(f"{gone.folder}.lock").exists()
    assert alive.folder.exists() and numbers(alive.take(9)) == [3]
    alive._owner.release()
    assert heir.adopt() == 0  # its own come first
    heir.done()
    assert heir.adopt() == 1 and numbers(heir.take(9)) == [3]


def test_closing_leaves_only_what_still_waits(tmp_path: Path):
    empty, full = Spool(tmp_path, 1e6), Spool(tmp_path, 1e6)
    full.append(events(1))
    empty.close()
    full.close()
    assert sorted(p.name for p in tmp_path.iterdir() if p.is_dir()) == [full.folder.name]
    assert not Path(f"{empty.folder}.lock").exists()
    assert Spool(tmp_path, 1e6).adopt() == 1
    assert json.loads(to_line(events(1)[0]))[0] == "labels"

"""The writer when things go wrong: the database stops, hangs, is full; the process is killed."""

import multiprocessing
import os
import resource
import signal
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
import sqlalchemy as sa
from clients import until

from content_arena.core.config import load_settings
from content_arena.store.events import EventStore, text_sha256
from content_arena.store.schema import StoreError, StoreUnavailable
from content_arena.store.spool import Event, Spool
from content_arena.store.writer import EventWriter

fork = multiprocessing.get_context("fork")
NOBODY = "postgresql://arena@127.0.0.1:1/events"
SECRET = "아무도 보면 안 되는 말"


def event(i: int) -> dict:
    return dict(
        id=f"e{i:06}",
        text_sha256=text_sha256(str(i)),
        text=SECRET,
        lang="ko",
        length=3,
        toxic_score=0.5,
        is_toxic=True,
        model_version="3",
        model_alias="champion",
    )


def label(i: int) -> dict:
    return dict(id=f"f{i:06}", prediction_id=f"e{i:06}", label=1, source="user", reviewer="u1")


def start(url: str, folder: Path, **more) -> EventWriter:
    fast = dict(max_age_s=0.02, retry_s=(0.02, 0.1), batch=200)
    return EventWriter(lambda: EventStore.open(url), folder / "spool", **fast | more)


def ids(url: str, table: str = "predictions") -> list[str]:
    with EventStore.open(url) as store:
        return sorted(store.read(table, columns=["id"]).id)


# --- the database ------------------------------------------------------------------------------


def test_a_database_that_restarts_under_load_loses_nothing(postgres, tmp_path):
    url = postgres.new()
    writer, took, labels, stop = start(url, tmp_path, queue=100_000), [], [], threading.Event()

    def load() -> None:
        i = 0
        while not stop.wait(0.001):
            for i in range(i, i + 4):  # noqa: B020
                begun = time.perf_counter()
                assert writer.put("predictions", event(i))
                took.append(time.perf_counter() - begun)
            i += 1
            if i % 40 == 0:
                labels.append(writer.put_durable("feedback", label(i)))

    thread = threading.Thread(target=load)
    thread.start()
    try:
        until(lambda: writer.stats().written > 200)
        for mode in ("immediate", "fast"):
            postgres.stop(mode)
            try:
                before = len(took), len(labels)
                until(lambda: not writer.stats().database_up and writer.stats().in_spool > 200)
                until(lambda: len(labels) > before[1] + 5)  # labels are taken all the while
            finally:
                postgres.start()
            until(lambda: writer.stats().database_up)
    finally:
        stop.set()
        thread.join()
    assert writer.flush(30), writer.stats()
    stats = writer.stats()
    assert writer.close()
    assert ids(url) == [event(i)["id"] for i in range(len(took))]
    assert ids(url, "feedback") == sorted(labels)
    assert stats.dropped == {} and stats.replayed > 400 and stats.lag_s == 0
    assert sorted(took)[len(took) * 99 // 100] < 0.005, "a put waited for the database"


def test_a_database_that_is_away_from_the_start(postgres, tmp_path):
    url = postgres.new()
    postgres.stop("fast")
    try:
        writer = start(url, tmp_path)
        assert writer.put("predictions", event(1)) and not writer.flush(0.2)
        assert "is the database running" in writer.stats().error and writer.stats().lag_s > 0.1
    finally:
        postgres.start()
    assert writer.flush(10) and writer.close()
    assert ids(url) == ["e000001"]


def test_a_database_that_never_answers_stops_nobody(postgres, tmp_path):
    url = postgres.new()
    writer = start(url, tmp_path, queue=500)
    assert writer.put("predictions", event(0)) and writer.flush()
    with postgres.connect(url.rpartition("/")[2]) as other, other.transaction():
        other.execute("lock table predictions in access exclusive mode")  # every insert hangs
        begun = time.monotonic()
        assert sum(writer.put("predictions", event(i)) for i in range(1, 2000)) >= 500
        writer.put_durable("feedback", label(1))
        assert time.monotonic() - begun < 2 and writer.stats().dropped["queue_full"] > 0
        accepted = writer.stats().accepted
        assert writer.close(timeout_s=0.3), "what was accepted is on disk"
        assert writer.stats().queued == 0
    writer._thread.join(10)
    heir = start(url, tmp_path)
    until(lambda: len(ids(url)) + len(ids(url, "feedback")) == accepted)
    assert heir.close()


def test_one_bad_row_costs_itself_only(store_url, tmp_path):
    writer = start(store_url, tmp_path, max_age_s=0.2)
    for i in range(5):
        writer.put("battles", dict(id=f"b{i}", status="done"))
        writer.put("battle_rounds", dict(id=f"r{i}", battle_id=f"b{i}" if i % 2 else "?", round=1))
    assert writer.flush() and writer.close()
    assert ids(store_url, "battle_rounds") == ["r1", "r3"] and len(ids(store_url, "battles")) == 5
    assert writer.stats().dropped == {"refused": 3} and writer.stats().written == 7


# --- the process -------------------------------------------------------------------------------


def fill_spool(folder: Path, pipe) -> None:
    "A writer without a database, until it is killed; says how many events are on disk."
    writer, i = start(NOBODY, folder), 0
    while True:
        writer.put("predictions", event(i))
        i += 1
        if i % 100 == 0:
            pipe.send(writer.stats().spooled)
            time.sleep(0.002)


def test_events_of_a_killed_process_are_written_by_the_next(store_url, tmp_path):
    here, there = fork.Pipe()
    child = fork.Process(target=fill_spool, args=(tmp_path, there))
    child.start()
    sure = 0
    while sure < 2000:
        assert here.poll(30)
        sure = here.recv()
    neighbour = start(store_url, tmp_path, adopt_every_s=0.05)
    time.sleep(0.2)  # long enough for several looks
    assert ids(store_url) == [], "the spool of a living process was taken"
    os.kill(child.pid, signal.SIGKILL)
    child.join()
    last = max(tmp_path.glob("spool/*/*.jsonl"))
    with open(last, "ab") as f:  # as a power cut in a write would leave it
        f.write(b'["predictions", {"id": "torn')
    until(lambda: neighbour.stats().dropped.get("torn") == 1)
    assert neighbour.flush() and neighbour.close()
    written = ids(store_url)
    assert written == [event(i)["id"] for i in range(len(written))] and len(written) >= sure
    assert not list(tmp_path.glob("spool/*/*"))


def die_between_writing_and_forgetting(url: str, folder: Path) -> None:
    writer = start(url, folder)
    done = writer.spool.done

    def killed() -> None:
        if writer.stats().in_spool:
            os.kill(os.getpid(), signal.SIGKILL)
        done()

    writer.spool.done = killed
    for i in range(10):
        writer.put_durable("feedback", label(i))
    time.sleep(60)


def test_events_that_were_sent_twice_are_there_once(store_url, tmp_path):
    EventStore.open(store_url).close()
    child = fork.Process(target=die_between_writing_and_forgetting, args=(store_url, tmp_path))
    child.start()
    child.join(30)
    assert child.exitcode == -signal.SIGKILL
    before = ids(store_url, "feedback")
    assert before, "killed before anything was written"
    writer = start(store_url, tmp_path)
    until(lambda: writer.stats().replayed >= len(before))
    assert writer.close() and set(before) <= set(ids(store_url, "feedback"))
    assert len(ids(store_url, "feedback")) == len(set(ids(store_url, "feedback")))


def test_an_event_is_in_the_spool_without_its_text(tmp_path):
    writer = start(NOBODY, tmp_path)
    writer.put("predictions", event(1))
    writer.put_durable("feedback", label(1) | dict(text=SECRET))
    until(lambda: writer.stats().in_spool == 2)
    text = "".join(f.read_text() for f in tmp_path.glob("spool/*/*.jsonl"))
    assert "e000001" in text and SECRET not in text and "\\u" not in text
    assert writer.close()


def test_a_label_is_flushed_to_the_disk_before_it_is_acknowledged(tmp_path, monkeypatch):
    "Seen at the system call: which file, and what it held by then; not that some function was called."
    flushed, honest = [], os.fsync

    def fsync(fd: int) -> None:
        honest(fd)
        file = Path(os.readlink(f"/proc/self/fd/{fd}"))
        flushed.append((file, file.read_text() if file.is_file() else None))

    monkeypatch.setattr(os, "fsync", fsync)
    writer = start(NOBODY, tmp_path)
    until(lambda: writer.stats().error or writer.put("predictions", event(0)))
    until(lambda: writer.stats().in_spool > 0)
    segments = set(tmp_path.glob("spool/*/*.jsonl"))
    for i in range(3):
        flushed.clear()
        kept = writer.put_durable("feedback", label(i))
        assert [
            file for file, text in list(flushed) if text and text.endswith("\n") and kept in text
        ], "acknowledged before it was on the disk"
    made = {file for file, text in flushed if text} - segments
    assert made <= {file.parent for file in segments} | segments
    assert writer.close()


def test_the_name_of_a_new_file_is_flushed_too(tmp_path, monkeypatch):
    flushed, honest = [], os.fsync
    monkeypatch.setattr(
        os,
        "fsync",
        lambda fd: (honest(fd), flushed.append(Path(os.readlink(f"/proc/self/fd/{fd}")))),
    )
    spool = Spool(tmp_path / "spool", 1e6)
    for i in range(2):
        spool.append([Event("feedback", {"id": f"f{i}"}, 0.0)])
    [file] = tmp_path.glob("spool/*/*.jsonl")
    assert flushed == [file, file.parent, file]  # its folder once, when it was made
    spool.close()


def test_a_row_is_found_wherever_it_is(store_url, tmp_path):
    "In memory, in the spool of this or of another process, in the database; unknown is not away."
    writer, other = start(store_url, tmp_path), start(NOBODY, tmp_path, retry_s=(9, 9))
    for i, who in enumerate((writer, other)):
        who.put("predictions", event(i))
        assert list(who.find("predictions", [event(i)["id"]])) == [event(i)["id"]]
    until(lambda: other.stats().in_spool)
    assert writer.flush()
    rows = writer.find("predictions", [event(i)["id"] for i in range(3)])
    assert sorted(rows) == [event(0)["id"], event(1)["id"]]
    assert rows[event(1)["id"]]["text_sha256"] == event(1)["text_sha256"]
    with pytest.raises(StoreUnavailable, match="can't be looked up"):
        other.find("predictions", ["e999999"])
    assert writer.close() and other.close()


# --- the disk ----------------------------------------------------------------------------------


def on_a_full_disk(url: str, folder: Path, pipe) -> None:
    "Not one byte more can be written anywhere, until the limit is lifted."
    writer = start(url, folder, queue=3000)
    assert writer.put("predictions", event(0)) and writer.flush()
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
    accepted = [event(i)["id"] for i in range(1, 12_000) if writer.put("predictions", event(i))]
    until(lambda: writer.stats().error)
    refused = 0
    for i in range(3):
        try:
            writer.put_durable("feedback", label(i))
        except StoreError:
            refused += 1
    full = writer.stats()
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    pipe.send((accepted, full.dropped, full.error, refused, writer.flush(20), writer.stats()))
    writer.close()


@contextmanager
def child_process(role, *args):
    here, there = fork.Pipe()
    child = fork.Process(target=role, args=(*args, there))
    child.start()
    there.close()
    try:
        yield here
    finally:
        child.join(30)


def test_a_full_disk_drops_and_counts_and_recovers(tmp_path):
    url = f"sqlite:///{tmp_path / 'events.db'}"
    with child_process(on_a_full_disk, url, tmp_path) as pipe:
        assert pipe.poll(60)
        accepted, dropped, error, refused, flushed, after = pipe.recv()
    assert 3000 <= len(accepted) < 11_999 and dropped == {"queue_full": 11_999 - len(accepted)}
    # either the limit of the process or that of the disk
    assert "File too large" in error or "disk" in error
    assert refused == 3, "a label that could not be saved was acknowledged"
    assert flushed and after.queued == 0
    assert ids(url) == [event(0)["id"], *accepted]


def test_the_spool_keeps_to_its_bound(tmp_path):
    writer = start(NOBODY, tmp_path, queue=1000, spool_mb=0.1)
    accepted = sum(writer.put("predictions", event(i)) for i in range(5000))
    until(lambda: writer.stats().spooled > 0)
    assert sum(f.stat().st_size for f in tmp_path.glob("spool/*/*.jsonl")) <= 100_000
    assert not writer.close(timeout_s=0.5)
    stats = writer.stats()
    assert stats.in_spool + stats.dropped["closed"] == accepted
    assert stats.dropped["queue_full"] == 5000 - accepted
    kept = "".join(f.read_text() for f in sorted(tmp_path.glob("spool/*/*.jsonl")))
    assert kept.count("\n") == stats.in_spool and '"e000000"' in kept  # the oldest


# --- settings ----------------------------------------------------------------------------------


def test_the_settings_reach_the_writer(tmp_path):
    settings = load_settings(
        env={},
        var_dir=str(tmp_path),
        store_queue=7,
        store_spool_mb=3,
        store_text=True,
        store_url=f"sqlite:///{tmp_path}/e.db",
    )
    writer = EventWriter.from_settings(settings)
    writer.put("predictions", event(1))
    assert writer.flush() and writer.close()
    assert (writer.queue, writer.spool.max_bytes) == (7, 3e6)
    with EventStore(settings) as store:
        assert store.read("predictions").text.tolist() == [SECRET]
    with sa.create_engine(f"sqlite:///{tmp_path}/e.db").connect() as connection:
        assert connection.execute(sa.text("select count(*) from predictions")).scalar() == 1

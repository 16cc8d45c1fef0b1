"""The event store on both databases: schema, migrations, writing twice, reading, forgetting."""

import multiprocessing
import threading
import time
from contextlib import closing
from datetime import datetime, timedelta, timezone
from pathlib import Path
from unittest.mock import patch

import pandas as pd
import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext

from content_arena.store import schema as store_schema
from content_arena.store.events import EventStore, store_address
from content_arena.store.migrations import VERSION_TABLE, Migrations, scripts
from content_arena.store.lease import Lease
from content_arena.store.schema import (
    RowRefused,
    StoreError,
    StoreUnavailable,
    metadata,
    text_sha256,
)

NOON = datetime(2026, 1, 1, 12, tzinfo=timezone.utc)
SECRET = "아무도 보면 안 되는 말"


@pytest.fixture
def store(store_url):
    with EventStore.open(store_url, keep_text=True) as opened:
        yield opened


def answer(i: int, **more) -> dict:
    text = f"comment {i}"
    return (
        dict(
            id=f"p{i:04}",
            time=NOON + timedelta(seconds=i),
            text_sha256=text_sha256(text),
            text=text,
            lang="en",
            length=len(text),
            toxic_score=i % 10 / 10,
            is_toxic=i % 10 >= 5,
            model_version="3",
            model_alias="champion",
        )
        | more
    )


def tables(store) -> set[str]:
    with store.engine.connect() as connection:
        return set(sa.inspect(connection).get_table_names())


# --- migrations ----------------------------------------------------------------------------------


def differences(store) -> list:
    with store.engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"version_table": VERSION_TABLE})
        return compare_metadata(context, metadata)


def test_the_migrations_make_what_is_declared(store):
    assert differences(store) == []
    with store.engine.begin() as connection:
        connection.execute(sa.text("drop index ix_shadow_time"))
        connection.execute(sa.text("alter table feedback drop column reviewer"))
    assert sorted(d[0] for d in differences(store)) == ["add_column", "add_index"]


def test_the_migrations_are_one_line():
    known = scripts()
    assert len(known.get_heads()) == len(known.get_bases()) == 1
    revisions = [s.revision for s in known.walk_revisions()][::-1]
    assert revisions == [f"{i + 1:04}" for i in range(len(revisions))]


def open_together(url: str, barrier, results) -> None:
    ran, upgrade = [], Migrations.run

    def counted(*args):
        ran.append(1)
        upgrade(*args)

    barrier.wait()
    with patch.object(Migrations, "run", counted), EventStore.open(url) as store:
        results.put((store.revision, len(ran)))


def test_one_process_migrates_and_the_others_wait(store_url):
    fork = multiprocessing.get_context("fork")  # its imports are done: all start at once
    barrier, results = fork.Barrier(4), fork.Queue()
    opened = [
        fork.Process(target=open_together, args=(store_url, barrier, results)) for _ in range(4)
    ]
    for p in opened:
        p.start()
    said = sorted(results.get(timeout=60) for _ in opened)
    for p in opened:
        p.join()
    assert said == [("0004", 0)] * 3 + [("0004", 1)]


def test_a_migration_that_fails_leaves_nothing(store_url):
    upgrade = Migrations.run

    def half(migrations):
        upgrade(migrations)
        raise RuntimeError("killed here")

    with patch.object(Migrations, "run", half), pytest.raises(RuntimeError):
        EventStore.open(store_url)
    bare = sa.create_engine(store_address(store_url))
    with bare.connect() as connection:
        assert sa.inspect(connection).get_table_names() == []
    bare.dispose()
    with EventStore.open(store_url) as store:
        assert set(metadata.tables) < tables(store)


def test_a_database_that_is_newer_than_the_code_is_left_alone(store_url):
    with EventStore.open(store_url) as store, store.engine.begin() as connection:
        connection.execute(sa.text(f"update {VERSION_TABLE} set version_num = '0999'"))
    with pytest.raises(StoreError, match="at revision 0999.*knows up to 0004: install a newer"):
        EventStore.open(store_url)


# --- writing -------------------------------------------------------------------------------------


def test_a_batch_may_be_sent_twice(store):
    rows = [answer(i) for i in range(50)]
    assert [store.add("predictions", rows[:30]), store.add("predictions", rows)] == [30, 20]
    assert store.read("predictions").id.tolist() == [r["id"] for r in rows]
    assert store.add("predictions", [answer(0, toxic_score=1.0)]) == 0
    assert store.read("predictions").toxic_score[0] == 0.0  # what was written first stays


def test_what_is_read_is_what_was_written(store):
    odd = dict(
        time=datetime(2026, 1, 1, 21, 0, 0, 123456, timezone(timedelta(hours=9))),
        text="한\0글 😀 \ud800",
        toxic_score=0.1 + 0.2,
        latency_ms=None,
        request_id="r",
    )
    store.add("predictions", [answer(1, **odd)])
    row = store.read("predictions").iloc[0]
    assert row.time.to_pydatetime() == odd["time"] and row.time.utcoffset() == timedelta(0)
    assert (row.text, row.toxic_score) == ("한\ufffd글 😀 \ufffd", 0.1 + 0.2)
    assert row.is_toxic.dtype == bool
    store.add("battles", [dict(id="b", status="running", result={"말": [1, None, 0.5]})])
    store.update("battles", "b", status="done")
    battle = store.read("battles").iloc[0]
    assert (battle.status, battle.result) == ("done", {"말": [1, None, 0.5]})


def test_a_batch_is_written_whole_or_not_at_all(store):
    good, orphan = dict(status="done", id="b1"), dict(battle_id="b9", round=1)
    store.add("battles", [good])
    with pytest.raises(RowRefused):
        store.add("battle_rounds", [dict(battle_id="b1", round=1), orphan])
    assert store.read("battle_rounds").empty


def test_texts_are_kept_only_if_asked_for(store_url):
    with EventStore.open(store_url) as store:
        store.add("predictions", [answer(1)])
        store.add("feedback", [dict(prediction_id="p0001", label=1, source="user", text=SECRET)])
        for table in ("predictions", "feedback"):
            assert store.read(table).text.isna().tolist() == [True]


def test_no_error_quotes_a_comment_or_a_password(store, store_url):
    bad = dict(text_sha256="0" * 64, text=SECRET, label=2, source="user")
    with patch.object(store_schema, "_check"), pytest.raises(RowRefused) as refused:
        store.add("feedback", [bad])  # refused by the database itself
    assert "ck_feedback_label" in str(refused.value)
    assert SECRET not in str(refused.value) and refused.value.__cause__ is None
    with pytest.raises(StoreUnavailable) as away:
        EventStore.open("postgresql://arena@127.0.0.1:1/events", password="hunter2hunter2")
    assert "hunter2" not in f"{away.value!r} {away.value.__cause__}"


def test_writers_and_a_reader_at_once(store):
    failed = []

    def write(k: int) -> None:
        try:
            for i in range(20):
                store.add("predictions", [answer(1000 * k + 10 * i + j) for j in range(10)])
        except Exception as e:
            failed.append(e)

    threads = [threading.Thread(target=write, args=(k,)) for k in range(3)]
    for t in threads:
        t.start()
    counts = [0]
    while any(t.is_alive() for t in threads):
        counts.append(len(store.read("predictions", columns=["id"])))
    assert failed == [] and counts == sorted(counts)
    assert len(store.read("predictions")) == 600


# --- reading and forgetting ----------------------------------------------------------------------


def test_a_stream_misses_and_repeats_nothing(store):
    store.add(
        "predictions", [answer(i, time=NOON + timedelta(seconds=i // 100)) for i in range(450)]
    )
    pieces = list(store.stream("predictions", columns=["id"], chunk=64))
    assert [len(p) for p in pieces] == [64] * 7 + [2]
    assert [i for p in pieces for i in p.id] == [f"p{i:04}" for i in range(450)]
    window = dict(since=NOON + timedelta(seconds=1), until=NOON + timedelta(seconds=3))
    assert sum(map(len, store.stream("predictions", chunk=7, **window))) == 200
    assert store.read("predictions", limit=3, **window).id.tolist() == ["p0297", "p0298", "p0299"]


def test_a_later_label_of_a_reviewer_replaces_the_earlier_in_any_order(store):
    said = [
        dict(
            text_sha256="0" * 64,
            label=i % 2,
            source="user",
            reviewer="ann",
            time=NOON + timedelta(minutes=i),
        )
        for i in range(4)
    ]
    for order in ([0, 1, 2, 3], [3, 2, 1, 0], [2, 3, 0, 1]):
        added = [store.add("feedback", [said[i]]) for i in order]
        kept = store.read("feedback")
        assert (added, kept.label.tolist(), kept.time.tolist()) == (
            [1, 0, 0, 0],
            [1],
            [said[3]["time"]],
        )
        store.purge(NOON + timedelta(days=1))
    assert store.add("feedback", [*said, said[0] | {"reviewer": "bob"}]) == 2  # in one statement
    assert (
        store.add("feedback", [said[0] | {"source": "moderator"}, said[0] | {"reviewer": None}])
        == 2
    )


def test_a_database_of_the_first_revision_keeps_its_label_requests(store_url):
    from alembic.migration import MigrationContext as Context
    from alembic.operations import Operations
    from content_arena.store.revisions import v0001_events

    with EventStore.open(store_url) as store, store.engine.begin() as connection:
        metadata.drop_all(connection)
        with Operations.context(Context.configure(connection)):
            v0001_events.upgrade()
        connection.execute(sa.text(f"update {VERSION_TABLE} set version_num = '0001'"))
        connection.execute(
            sa.text(
                "insert into label_requests (id, time, draw_id, prediction_id, text_sha256, stratum,"
                " probability, is_toxic) values ('r', '2026-01-01', 'd', 'p', 't', 'flagged', 0.5, true)"
            )
        )
    with EventStore.open(store_url) as store:
        [row] = store.read("label_requests").to_dict("records")
        assert store.revision == "0004" and differences(store) == []
    assert row["probability"] == 0.5 and pd.isna(row["seed"])


def test_a_lease_of_an_older_version_goes_on_and_its_process_hears_of_the_move(store_url):
    until = NOON + timedelta(seconds=60)

    def was(token: int, **more) -> dict:
        return {
            "id": f"lease-retrain-{token:09}",
            "status": "lease",
            "reason": "retrain",
            "result": {"holder": "old:1", "until": until.isoformat(), "ttl_s": 60} | more,
        }

    with EventStore.open(store_url) as older:  # its process goes on all the while
        with older.engine.begin() as connection:
            for table in ("leases", "deployments", "learnt_rows"):
                connection.execute(sa.text(f"drop table {table}"))
            connection.execute(sa.text(f"update {VERSION_TABLE} set version_num = '0002'"))
        older.add(
            "retrain_events",
            [
                was(6, released=True),
                was(7),
                {"id": "run-000000006", "status": "promoted", "reason": "drift"},
            ],
        )
        with EventStore.open(store_url) as newer:
            assert newer.revision == "0004" and differences(newer) == []
            clock = [until - timedelta(seconds=1)]
            lease = Lease(newer, "retrain", 60, clock=lambda: clock[0])
            assert lease.held_by() == "old:1" and not lease.acquire()  # it is respected
            clock[0] = until + timedelta(seconds=1)
            assert lease.acquire() and lease.token == 8  # until it runs out
        # what the older code asks: is mine the highest? may I have the next?
        left = older.read("retrain_events", match={"status": "lease"})
        [row] = left.to_dict("records")
        assert row["id"] == "lease-retrain-000000008"
        assert row["result"]["holder"] == "a newer version of content_arena"
        assert datetime.fromisoformat(row["result"]["until"]) > NOON + timedelta(days=9999)
        assert row["result"]["ttl_s"] > 1e9  # or older code would cut it to its length
        with pytest.raises(StoreError, match="no row with id lease-retrain-000000007"):
            older.update("retrain_events", "lease-retrain-000000007", result={})
        assert older.add("retrain_events", [was(8)]) == 0
        assert older.read("retrain_events", match={"status": "promoted"}).id.tolist() == [
            "run-000000006"
        ]


def test_a_label_finds_its_text_by_the_prediction(store):
    store.add("predictions", [answer(1)])
    about = dict(label=1, source="user")
    store.add(
        "feedback",
        [
            dict(about, id="f1", prediction_id="p0001", time=NOON),
            dict(about, id="f2", text_sha256="0" * 64, time=NOON),
            dict(about, id="f3", prediction_id="gone", time=NOON),
        ],
    )
    labels = store.read_labels()
    assert labels.text_sha256.fillna("-").tolist() == [text_sha256("comment 1"), "0" * 64, "-"]
    assert labels.text.fillna("-").tolist() == ["comment 1", "-", "-"]


def test_old_rows_are_deleted_in_small_transactions(store):
    store.add("predictions", [answer(i) for i in range(100)])
    store.add(
        "feedback",
        [
            dict(text_sha256="0" * 64, label=0, source="user", time=NOON),
            dict(text_sha256="1" * 64, label=0, source="user"),
        ],
    )
    store.add("battles", [dict(id="b", status="done", time=NOON)])
    store.add("battle_rounds", [dict(battle_id="b", round=1, time=NOON)])
    sizes = []

    def count(connection, cursor, statement, parameters, context, many):
        if statement.lstrip().upper().startswith("DELETE"):
            sizes.append(cursor.rowcount)

    sa.event.listen(store.engine, "after_cursor_execute", count)
    gone = store.purge(NOON + timedelta(seconds=70), batch=32)
    assert gone == {
        "predictions": 70,
        "shadow": 0,
        "feedback": 1,
        "label_requests": 0,
        "learnt_rows": 0,
    }
    assert sizes[:3] == [32, 32, 6]
    assert store.read("predictions").id.tolist()[0] == "p0070"
    assert len(store.read("battles")) == 1  # history stays unless it is named ...
    store.purge(NOON + timedelta(days=1), tables=["battles"])
    assert store.read("battle_rounds").empty  # ... and takes its rounds along


def test_a_store_says_that_its_database_is_gone(postgres):
    with EventStore.open(postgres.new()) as store:
        assert store.health().ok and store.health().revision == "0004"
        postgres.stop()
        try:
            ill = store.health()
            assert not ill.ok and "is the database running" in ill.error
            with pytest.raises(StoreUnavailable):
                store.add("predictions", [answer(1)])
        finally:
            postgres.start()
        assert store.add("predictions", [answer(1)]) == 1  # a new connection, by itself


def test_a_file_that_is_no_database(tmp_path: Path):
    (tmp_path / "events.db").write_bytes(b"not a database" * 100)
    with pytest.raises(StoreUnavailable, match="not a database"):
        EventStore.open(f"sqlite:///{tmp_path / 'events.db'}")


def test_sqlite_is_opened_as_promised(tmp_path: Path):
    with (
        EventStore.open(f"sqlite:///{tmp_path / 'new' / 'events.db'}") as store,
        closing(store.engine.raw_connection()) as connection,
    ):
        pragmas = [
            connection.cursor().execute(f"pragma {p}").fetchone()[0]
            for p in ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")
        ]
    assert pragmas == ["wal", 1, 1, 5000]
    assert (tmp_path / "new" / "events.db").stat().st_mode & 0o077 == 0


def test_the_databases_clock_knows_what_came_a_moment_ago(store):
    "A clock of whole seconds would have its `until` lie before what was just added."
    for i in range(20):  # in one second, somewhere in it
        store.add("battles", [{"id": f"b{i}", "status": "completed"}])
        time.sleep(0.002)
        assert len(store.read("battles", until=store.now())) == i + 1
    assert abs(store.now() - datetime.now(timezone.utc)) < timedelta(seconds=30)

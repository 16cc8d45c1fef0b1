"""Automatic retraining with two schedulers, a store that goes away, clocks that jump, bad labels."""

import subprocess
import threading
from contextlib import ExitStack
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest
import scheduler
from scheduler import settings
from watch import wait_until
from warm import python

from content_arena.store.lease import Lease
from content_arena.store.events import EventStore, text_sha256
from content_arena.workflows.retraining import AutoRetrain, learn_labels
from content_arena.workflows.retrain_triggers import Situation

pytestmark = pytest.mark.long(50)

NOON = datetime(2026, 1, 1, 12, tzinfo=timezone.utc)


@pytest.fixture
def store(store_url):
    with EventStore.open(store_url, keep_text=True) as opened:
        yield opened


def lose_battle(store: EventStore, time: datetime | None = None) -> None:
    "A battle in which 9 of 10 attacks got through."
    result = {"alias": "champion", "attacked": 200, "detected": 20}
    store.add("battles", [{"status": "completed", "time": time, "result": result}])


class Scheduler:
    "One of several; `said`: its words so far."

    def __init__(self, url: str, folder: Path):
        self.process = subprocess.Popen(
            [python(), scheduler.__file__, url, str(folder)],
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        self.said: list[str] = []
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        for line in self.process.stdout:
            self.said.append(line.strip())

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.mark.slow
def test_of_two_schedulers_one_trains_and_the_other_takes_over_from_the_dead(
    store, store_url, tmp_path
):
    lose_battle(store)
    with ExitStack() as stack:
        two = [Scheduler(store_url, tmp_path) for _ in range(2)]
        for one in two:
            stack.callback(one.close)
        wait_until(lambda: any("training" in s.said for s in two), "one trains", 90)
        wait_until(lambda: any(s.said.count("busy") >= 3 for s in two), "the other waits", 90)
        first, second = sorted(two, key=lambda s: "training" not in s.said)
        assert "training" not in second.said and first.said[-1] == "training"

        first.process.kill()
        wait_until(lambda: "training" in second.said, "the other takes over", 90)
        second.process.stdin.write("\n")
        second.process.stdin.flush()
        wait_until(lambda: second.said[-1] == "idle", "it is done", 90)
        second.process.terminate()
        assert second.process.wait(30) == 0
    assert second.said.count("training") == second.said.count("promoted") == 1
    events = store.read("retrain_events")
    runs = events[events.status != "lease"]
    assert [(r.reason, r.status) for r in runs.itertuples()] == [
        ("evasion", "failed"),
        ("evasion", "promoted"),
    ]
    assert runs.iloc[0].result["error"] == "the process was killed"


def test_on_postgresql_a_lease_is_taken_under_an_advisory_lock(postgres):
    url = postgres.new()
    with EventStore.open(url) as ours, EventStore.open(url) as theirs:
        lease = Lease(ours, "retrain", 60)
        with theirs.alone("lease retrain") as alone, ours.alone("lease another") as free:
            assert alone and free
            assert not lease.acquire() and ours.read("leases").empty
        assert lease.acquire()  # gone with the transaction
        with pytest.raises(ZeroDivisionError), theirs.alone("lease retrain") as alone:
            assert alone
            raise ZeroDivisionError
        with ours.alone("lease retrain") as alone:
            assert alone


def test_a_store_that_goes_away_while_one_trains_hears_of_the_end(postgres, tmp_path):
    url = postgres.new()
    said, stop, training, go_on = [], threading.Event(), threading.Event(), threading.Event()

    def train(changed) -> dict:
        training.set()
        assert go_on.wait(60)
        return {"status": "promoted", "model_version": "5"}

    with EventStore.open(url) as store:
        lose_battle(store)
        auto = AutoRetrain(store, settings(url, tmp_path), train)
        watcher = threading.Thread(
            target=auto.watch, args=(0.1, stop, lambda result: said.append(result["status"]))
        )
        watcher.start()
        try:
            assert training.wait(60)
            postgres.stop()
            go_on.set()
            postgres.start()  # whenever it comes, the end is written
            wait_until(lambda: said and said[-1] == "idle", "the run's end is known")
            postgres.stop()
            wait_until(lambda: said[-1] == "store away", "the watcher says so")
            postgres.start()
            wait_until(lambda: said[-1] == "idle", "the watcher goes on")
        finally:
            go_on.set()
            stop.set()
            watcher.join(60)
            if not (postgres.data / "postmaster.pid").exists():
                postgres.start()
        assert said[0] == "promoted" and said.count("promoted") == 1
        [status] = store.read("retrain_events", match={"reason": "evasion"}).status
        assert status == "promoted"


def test_a_clock_that_jumps_costs_no_run_and_blocks_none(store, store_url, tmp_path):
    class Clock:
        now = NOON

        def __call__(self):
            return self.now

    clock, runs = Clock(), []

    def train(changed) -> dict:
        runs.append(clock.now)
        return {"status": "rejected"}

    auto = AutoRetrain(store, settings(store_url, tmp_path), train, clock=clock)
    clock.now = NOON + timedelta(days=40)  # it is noon, but the clock is ahead
    lose_battle(store, clock.now - timedelta(minutes=5))
    assert auto.run_once()["status"] == "rejected"

    clock.now = NOON
    assert auto.run_once()["status"] == "idle"  # not forgotten: not the same battle again
    lose_battle(store, NOON + timedelta(minutes=5))
    clock.now = NOON + timedelta(minutes=10)
    waiting = auto.run_once()
    assert waiting["status"] == "waiting" and waiting["why"] == "cool-down after the last run"
    assert datetime.fromisoformat(waiting["waits_until"]) == NOON + timedelta(hours=6)
    clock.now = NOON + timedelta(hours=6)
    assert auto.run_once()["status"] == "rejected" and len(runs) == 2

    for hours in (13, 19.5):  # the daily limit holds, and ends
        lose_battle(store, NOON + timedelta(hours=hours))
        clock.now = NOON + timedelta(hours=hours, minutes=1)
        last = auto.run_once()
    assert last["status"] == "waiting" and last["why"] == "3 runs within 24 hours"
    assert datetime.fromisoformat(last["waits_until"]) == NOON + timedelta(hours=24)
    clock.now = NOON + timedelta(hours=24)
    assert auto.run_once()["status"] == "rejected" and len(runs) == 4


def label(text: str, value: int, who: str, source: str = "moderator") -> dict:
    return {
        "time": NOON,
        "label": value,
        "text": text,
        "text_sha256": text_sha256(text),
        "source": source,
        "reviewer": who,
    }


def test_labels_that_nobody_can_learn_from_neither_start_a_run_nor_break_one(
    store, store_url, tmp_path
):
    chosen = settings(store_url, tmp_path, retrain_new_samples=40)
    useless = ["", " ", "\u200b\u3164", "x" * 9000]
    store.add("feedback", [label(t, 1, who) for t in useless for who in ("ann", "bob")])
    store.add(
        "feedback",
        [label(f"disputed {i}", who == "ann", who) for i in range(60) for who in ("ann", "bob")],
    )
    store.add("feedback", [label(f"unheard {i}", 1, f"user{i}", "user") for i in range(60)])
    store.add(
        "feedback",
        [{"time": NOON, "label": 1, "source": "moderator", "prediction_id": "nobody knows"}],
    )
    trained = []

    def train(changed) -> dict:
        trained.append(changed.train_sources)
        return {"status": "rejected"}

    auto = AutoRetrain(store, chosen, train, clock=lambda: NOON + timedelta(hours=1))
    assert auto.run_once()["status"] == "idle"
    assert learn_labels(Situation(store, chosen, NOON + timedelta(hours=1))) == (
        chosen,
        {"labels": 0},
    )

    good = [f"good to know \ud83d {i}" for i in range(40)]  # half an emoji, as a broken client cuts
    store.add("feedback", [label(t, i % 2, "ann") for i, t in enumerate(good)])
    assert auto.run_once()["status"] == "rejected"
    [[source]] = trained
    rows = Path(source.removeprefix("variants:")).read_text().splitlines()
    assert len(rows) == 40 and all("good to know" in r for r in rows)

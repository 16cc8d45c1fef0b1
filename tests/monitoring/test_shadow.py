"""The challenger sees what the champion answered: which texts, how many may wait, what is dropped and why, what is noted."""

import asyncio
from contextlib import suppress
from types import SimpleNamespace

import pytest

from content_arena.mlops.metrics import Metrics
from content_arena.serving import shadow_runner as shadow
from content_arena.serving.shadow_runner import FAILURES, STEP, Answered, ShadowRunner, shadow_row
from content_arena.store.schema import text_sha256


LOOP = asyncio.new_event_loop()


def answered(*texts: str, version: str = "1", toxic: bool = False) -> list[Answered]:
    return [Answered(f"p-{t}", t, version, 0.37 if toxic else 0.12, toxic) for t in texts]


class Slot:
    "A challenger whose threshold is 0.3 and whose scores are told beforehand."

    def __init__(self, version: str = "2", scores: dict[str, float] | None = None, fails: int = 0):
        self.version, self.scores, self.fails = version, scores or {}, fails
        self.scorer, self.asked = SimpleNamespace(threshold=0.3), []

    async def score(self, texts: list[str]) -> list[float]:
        self.asked.append(texts)
        if self.fails:
            self.fails -= 1
            raise RuntimeError("broken")
        return [self.scores.get(t, 0.9) for t in texts]


def runner_of(slot: Slot | None, **options) -> ShadowRunner:
    idle = iter([False, False])  # the champion is busy at first
    champion = SimpleNamespace(wait_idle=lambda: next(idle, True))
    rows: list[dict] = []
    made = ShadowRunner(champion, SimpleNamespace(slot=slot), Metrics(), rows.append, **options)
    made.rows, made.idle = rows, idle
    return made


def value(runner: ShadowRunner, name: str, label: str) -> float:
    return getattr(runner.metrics, name).labels(label)._value.get()


def compare(runner: ShadowRunner) -> None:
    "Run until nothing is left to do."

    async def until_it_waits():
        task = asyncio.create_task(runner.run())
        await asyncio.sleep(0)
        while not runner._arrived._waiters:
            await asyncio.sleep(0.001)
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task

    LOOP.run_until_complete(until_it_waits())


def test_a_row_says_what_both_said():
    [answer] = answered("나쁜 말", toxic=True)
    row = shadow_row(answer, Slot("7"), 0.29, 12.5)
    assert row == {
        "prediction_id": "p-나쁜 말",
        "text": "나쁜 말",
        "text_sha256": text_sha256("나쁜 말"),
        "lang": "ko",
        "length": 4,
        "champion_version": "1",
        "champion_score": 0.37,
        "champion_toxic": True,
        "challenger_version": "7",
        "challenger_score": 0.29,
        "challenger_toxic": False,
        "latency_ms": 12.5,
    }
    assert (
        shadow_row(answer, Slot(), 0.3, 1.0)["challenger_toxic"] is True
    )  # its own threshold, reached


def test_everything_answered_is_compared_in_small_steps(monkeypatch):
    slot = Slot(scores={"a": 0.1, "b": 0.35, "c": 0.1})
    runner = runner_of(slot)
    runner.offer(answered("a", "b", "c"))
    compare(runner)
    assert slot.asked == [["a", "b"], ["c"]] and STEP == 2
    assert [(r["text"], r["challenger_toxic"]) for r in runner.rows] == [
        ("a", False),
        ("b", True),
        ("c", False),
    ]
    assert (
        value(runner, "shadow_compared", "true") == 2
        and value(runner, "shadow_compared", "false") == 1
    )
    assert next(runner.idle, "waited") == "waited"  # until the champion was idle
    assert all(0 <= r["latency_ms"] < 1000 for r in runner.rows)


def test_latency_is_milliseconds_a_text():
    class Slow(Slot):
        async def score(self, texts):
            await asyncio.sleep(0.2)
            return await super().score(texts)

    runner = runner_of(Slow())
    runner.offer(answered("a", "b"))
    compare(runner)
    assert [r["latency_ms"] for r in runner.rows] == [pytest.approx(100, abs=60)] * 2
    assert runner.rows[0]["latency_ms"] >= 99


def test_a_sample_is_taken(monkeypatch):
    draws = iter([0.1, 0.5, 0.49, 0.9])
    monkeypatch.setattr(shadow.random, "random", lambda: next(draws))
    runner = runner_of(Slot(), sample=0.5)
    runner.offer(answered("a", "b", "c", "d"))
    assert [a.text for a in runner._waiting] == ["a", "c"]
    assert value(runner, "shadow_dropped", "full") == 0
    none = runner_of(Slot(), sample=0.0)
    monkeypatch.undo()
    none.offer(answered("a"))
    assert not none._waiting and not none._arrived.is_set()


def test_more_than_may_wait_is_dropped_and_counted():
    runner = runner_of(Slot(), limit=3)
    runner.offer(answered("a", "b"))
    runner.offer(answered("c", "d", "e"))
    runner.offer(answered("f"))
    assert [a.text for a in runner._waiting] == ["a", "b", "c"]
    assert value(runner, "shadow_dropped", "full") == 3
    usual = runner_of(Slot())
    usual.offer(answered(*map(str, range(300))))
    assert len(usual._waiting) == usual.limit == 256


def test_without_a_challenger_nothing_waits():
    runner = runner_of(None)
    runner.offer(answered("a"))
    assert not runner._waiting and value(runner, "shadow_dropped", "full") == 0


def test_what_waits_for_a_challenger_that_goes_or_becomes_champion_is_dropped():
    for gone in (None, Slot("1")):
        runner = runner_of(Slot())
        runner.offer(answered("a", "b", version="1"))
        runner.challenger.slot = gone
        compare(runner)
        assert runner.rows == [] and value(runner, "shadow_dropped", "no_challenger") == 2


def test_a_challenger_that_fails_again_and_again_is_left_alone():
    slot = Slot(fails=99)
    runner = runner_of(slot)
    for i in range(FAILURES + 2):
        runner.offer(answered(f"a{i}", f"b{i}"))
    compare(runner)
    assert len(slot.asked) == FAILURES == 5 and runner.rows == []
    assert (
        value(runner, "shadow_dropped", "failed") == 10
        and value(runner, "shadow_dropped", "suspended") == 4
    )
    runner.challenger.slot = Slot("3")  # another one is asked
    runner.offer(answered("x"))
    compare(runner)
    assert [r["challenger_version"] for r in runner.rows] == ["3"]


def test_failures_count_in_a_row_and_for_one_challenger():
    slot = Slot(fails=FAILURES - 1)
    runner = runner_of(slot)
    for i in range(FAILURES):
        runner.offer(answered(f"a{i}", f"b{i}"))
    compare(runner)
    assert len(runner.rows) == 2
    slot.fails = FAILURES - 1  # it answered in between: counted from the start
    for i in range(FAILURES):
        runner.offer(answered(f"c{i}", f"d{i}"))
    compare(runner)
    assert len(runner.rows) == 4
    runner.challenger.slot = other = Slot("3", fails=FAILURES)
    for i in range(FAILURES + 1):
        runner.offer(answered(f"e{i}", f"f{i}"))
    compare(runner)
    assert len(other.asked) == FAILURES

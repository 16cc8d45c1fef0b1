"""The service's page for Prometheus: what is on it when all goes wrong, and that it does not grow."""
import time
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from content_arena.arena.attacks import STRATEGIES  # noqa: F401 - registers all rules
from content_arena.arena.rules import RULES
from content_arena.config import Secrets
from content_arena.mlops.metrics import ATTACK_CLASSES
from content_arena.mlops.run_metrics import publish
from content_arena.serving.app import create_app
from stage import FileLoader, FileRegistry, serving, settings
from watch import wait_until


def series(url: str) -> dict[tuple, float]:
    "Every series on the page: (name, labels) -> value."
    page = httpx.get(f"{url}/metrics", timeout=10).text
    return {(s.name, tuple(sorted(s.labels.items()))): s.value
            for family in text_string_to_metric_families(page) for s in family.samples}


def value(url: str, name: str, **labels: str) -> float | None:
    return series(url).get((f"content_arena_{name}", tuple(sorted(labels.items()))))


@pytest.fixture
def started(tmp_path: Path):
    "Starts a service over a registry whose champion is version 3; yields a function of settings."
    from contextlib import ExitStack
    FileRegistry(tmp_path).set(champion="3")
    with ExitStack() as stack:
        def start(**explicit) -> str:
            app = create_app(settings(tmp_path, **explicit), Secrets(), FileLoader(tmp_path))
            url = stack.enter_context(serving(app))
            httpx.post(f"{url}/reload").raise_for_status()
            return url
        yield start


def test_classes_of_attacks_are_those_of_the_rules():
    assert {r.linguistic_class for r in RULES.values()} <= set(ATTACK_CLASSES)


def test_feedback_is_counted_and_malformed_feedback_makes_no_series(started):
    url = started()
    before = set(series(url))
    send = lambda **body: httpx.post(f"{url}/feedback", json=body).status_code
    assert send(text="a comment", label=1, source="moderator", reviewer="ann") == 202
    assert send(text="another", label=0, source="the-neighbour", reviewer="bob") == 202
    for body in ({}, {"text": "x"}, {"text": "x", "label": 7, "source": "moderator", "reviewer": "a"},
                 {"text": "x", "label": 1, "source": "a b\n", "reviewer": "a"},
                 {"label": 1, "source": "moderator", "reviewer": "a"},
                 {"text": "x" * 99_999, "label": 1, "source": "moderator", "reviewer": "a"}):
        assert send(**body) == 422
    for content in (b"{", b"\xff\xfe", b"[]", b"null"):
        assert httpx.post(f"{url}/feedback", content=content).status_code in (400, 422)
    assert set(series(url)) == before
    assert value(url, "feedback_total", source="moderator", result="toxic") == 1
    assert value(url, "feedback_total", source="other", result="clean") == 1


def test_a_store_that_is_down_is_seen_and_stops_nothing(started, tmp_path: Path):
    (tmp_path / "taken").write_text("a file, where the database's folder should be")
    url = started(store_url=f"sqlite:///{tmp_path}/taken/events.db", metrics_refresh_s=0.1)
    for _ in range(3):
        assert httpx.post(f"{url}/classify", json={"text": "hello"}).status_code == 200
    wait_until(lambda: value(url, "event_store_up") == 0, "the store is noticed to be away", 20)
    wait_until(lambda: value(url, "event_store_pending_events", place="spool") == 3, "3 events wait")
    begun = time.perf_counter()
    series(url)
    assert time.perf_counter() - begun < 2
    assert value(url, "observed_timestamp_seconds", source="store") is None
    assert value(url, "observed_timestamp_seconds", source="registry") > 0
    assert httpx.post(f"{url}/feedback", json={"text": "x", "label": 1, "reviewer": "ann",
                                               "source": "moderator"}).status_code == 202


def test_a_half_written_file_of_run_metrics_is_left_out(started, tmp_path: Path):
    url = started()
    s = settings(tmp_path)
    assert publish(s, "drift", {"content_arena_drift_score": {"lang": 0.31}}) == ""
    assert value(url, "drift_score", feature="lang") == 0.31
    file = s.path("var_dir") / "metrics" / "drift.prom"
    file.write_text(file.read_text()[:-3])
    assert value(url, "drift_score", feature="lang") is None
    assert value(url, "metrics_files_unreadable") == 1
    assert value(url, "model_version", alias="champion") == 3


def test_the_page_does_not_grow_with_traffic_and_stays_small(started):
    url = started(metrics_refresh_s=0.05)

    def work(i: int) -> None:
        httpx.post(f"{url}/classify", json={"text": "y" * (i % 90)})
        httpx.post(f"{url}/classify/batch", json={"texts": ["a", "b" * (i % 50)] * (1 + i % 9)})
        httpx.post(f"{url}/feedback", json={"text": f"t{i}", "label": i % 2, "source": f"s{i}",
                                              "reviewer": "ann"})
        httpx.get(f"{url}/nowhere-{i}")
        httpx.post(f"{url}/reload")
    for i in range(5):
        work(i)
    wait_until(lambda: value(url, "observed_timestamp_seconds", source="store"), "a look", 20)
    first = set(series(url))
    for i in range(5, 25):
        work(i)
    assert set(series(url)) == first
    assert len(first) < 500

"""The service's page for Prometheus: what is on it when all goes wrong, and that it does not grow."""

import subprocess
import threading
import time
from pathlib import Path

import httpx
import pytest
import yaml
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from content_arena.disguises.families import STRATEGIES  # noqa: F401 - registers all rules
from content_arena.disguises.rules import RULES
from content_arena.core.config import Secrets
from content_arena.mlops.metrics import (
    ALIASES,
    ATTACK_CLASSES,
    LABELLERS,
    OUTCOMES,
    RESULTS,
    TRIGGERS,
)
from content_arena.monitoring.run_metrics import FEATURES, GROUPS, RunFiles, publish, read_group
from content_arena.serving.app import create_app
from content_arena.store.events import EventStore
from stage import FileLoader, FileRegistry, serving, settings
from warm import python
from watch import DEPLOY, wait_until


def series(url: str) -> dict[tuple, float]:
    "Every series on the page: (name, labels) -> value."
    page = httpx.get(f"{url}/metrics", timeout=10).text
    return {
        (s.name, tuple(sorted(s.labels.items()))): s.value
        for family in text_string_to_metric_families(page)
        for s in family.samples
    }


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
    for body in (
        {},
        {"text": "x"},
        {"text": "x", "label": 7, "source": "moderator", "reviewer": "a"},
        {"text": "x", "label": 1, "source": "a b\n", "reviewer": "a"},
        {"label": 1, "source": "moderator", "reviewer": "a"},
        {"text": "x" * 99_999, "label": 1, "source": "moderator", "reviewer": "a"},
    ):
        assert send(**body) == 422
    for content in (b"{", b"\xff\xfe", b"[]", b"null"):
        # either it can not be decoded or it is no label
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
    wait_until(
        lambda: value(url, "event_store_pending_events", place="spool") == 3, "3 events wait"
    )
    begun = time.perf_counter()
    series(url)
    assert time.perf_counter() - begun < 2
    assert value(url, "observed_timestamp_seconds", source="store") is None
    assert value(url, "observed_timestamp_seconds", source="registry") > 0
    assert (
        httpx.post(
            f"{url}/feedback",
            json={"text": "x", "label": 1, "reviewer": "ann", "source": "moderator"},
        ).status_code
        == 202
    )


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


def test_a_process_that_is_killed_while_it_publishes_leaves_whole_files(tmp_path: Path):
    "It writes 1, 1, 1, ... then 2, 2, 2, ...; whoever reads sees all of one, at any moment."
    program = """if True:
        import itertools, sys
        from content_arena.core.config import load_settings
        from content_arena.monitoring.run_metrics import FEATURES, publish
        settings = load_settings(env={}, var_dir=sys.argv[1])
        for n in itertools.count(1):
            values = dict.fromkeys(FEATURES, n)
            publish(settings, "drift", {"content_arena_drift_score": values})
            if n == 1:
                print("begun", flush=True)
    """
    folder, numbers = tmp_path / "metrics", []
    for _ in range(3):
        writer = subprocess.Popen(
            [python(), "-c", program, str(tmp_path)], stdout=subprocess.PIPE, text=True
        )
        try:
            assert writer.stdout.readline() == "begun\n"
            for _ in range(200):
                scores = read_group(folder / "drift.prom")["content_arena_drift_score"]
                assert set(scores) == set(FEATURES) and len(set(scores.values())) == 1
                numbers.append(scores["lang"])
        finally:
            writer.kill()  # in the middle of a file, most likely
            writer.communicate()
        read_group(folder / "drift.prom")
    assert len(set(numbers)) > 10  # it did write while we read
    page = CollectorRegistry()
    page.register(RunFiles(folder))
    assert page.get_sample_value("content_arena_metrics_files_unreadable") == 0


def test_the_page_does_not_grow_with_traffic_and_stays_small(started):
    url = started(metrics_refresh_s=0.05)

    def work(i: int) -> None:
        httpx.post(f"{url}/classify", json={"text": "y" * (i % 90)})
        httpx.post(f"{url}/classify/batch", json={"texts": ["a", "b" * (i % 50)] * (1 + i % 9)})
        httpx.post(
            f"{url}/feedback",
            json={"text": f"t{i}", "label": i % 2, "source": f"s{i}", "reviewer": "ann"},
        )
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


# --- a day ---------------------------------------------------------------------------------------


class Moody(FileLoader):
    "Models that break on `boom` and are too slow for `wait`."

    def load(self, version, alias):
        scorer = super().load(version, alias)
        own = scorer.scores

        def scores(texts):
            if "boom" in texts:
                raise MemoryError("out of memory")
            if "wait" in texts:
                threading.Event().wait(0.2)  # plays the computation
            return own(texts)

        scorer.scores = scores
        return scorer


def battle(number: int) -> dict:
    "A row of a battle against another version; classes come and go, one of them unheard of."
    classes = [c for i, c in enumerate(ATTACK_CLASSES) if (i + number) % 3] + [f"class {number}"]
    rates = {c: {"detection_rate": 0.5} for c in classes}
    return {
        "status": "completed",
        "model_version": str(number),
        "result": {"alias": "champion", "detection_rate": 0.5, "by_class": rates},
    }


def retraining(number: int) -> list[dict]:
    "Rows of every trigger with every outcome, and of a trigger and an outcome nobody knows."
    reasons, ends = (*TRIGGERS, f"reason {number}", None), (*OUTCOMES, "running", f"end {number}")
    return [{"status": end, "reason": reason} for reason in reasons for end in ends]


def an_hour(url: str, folder: Path, number: int) -> None:
    "Another version behind each alias, and all that a client, right or wrong, can make happen."
    registry = FileRegistry(folder)
    registry.set(champion=str(2 * number + 3), challenger=str(2 * number + 4))
    (folder / f"broken-{2 * number + 4 - number % 2}").touch()  # champion or challenger
    with httpx.Client(base_url=url, timeout=30) as c:
        got = [
            c.post("/reload"),
            *(
                c.get(path)
                for path in (
                    "/health",
                    "/ready",
                    "/openapi.json",
                    "/api/v1/battles",
                    f"/nowhere-{number}",
                    f"/api/v1/battles/{number:016}",
                    f"/api/v1/battles/{number:016}/stats",
                    "/classify",
                )
            ),
        ]
        for text in ("hi", "a toxic one", "boom", "wait", "", "x" * 30_000, f"user {number}"):
            got.append(c.post("/classify", json={"text": text}))
        for n in (1, 7, 300):
            got.append(c.post("/classify/batch", json={"texts": ["hi", "a toxic one"] * n}))
        for body in (b"{", b"[]", b"x" * 2_000_000):
            got.append(
                c.post("/classify", content=body, headers={"content-type": "application/json"})
            )
        for source in (*LABELLERS, f"source-{number}"):
            for label in (0, 1, 2):
                got.append(
                    c.post(
                        "/feedback",
                        json={
                            "text": f"t{number}",
                            "label": label,
                            "source": source,
                            "reviewer": "ann",
                        },
                    )
                )
        got.append(c.post("/api/v1/battles", json={"strategy": f"strategy {number}"}))
        got.append(c.post("/api/v1/sample", json={"n": 5}))
        got.append(c.get("/metrics", headers={"accept": "application/openmetrics-text"}))
    assert {200, 202, 400, 404, 405, 413, 422, 500, 504} <= {r.status_code for r in got}


def test_a_day_of_everything_makes_fewer_than_2000_series(tmp_path: Path):
    "All that a Prometheus which always looked would have, its own and its rules' series included."
    s = settings(tmp_path, metrics_refresh_s=0.05, shadow_sample=1, request_timeout_s=0.1)
    for group, metrics in GROUPS.items():
        values = {m.name: dict.fromkeys(m.values, 0.5) if m.label else 0.5 for m in metrics}
        assert publish(s, group, values) == ""
    FileRegistry(tmp_path).set(champion="1", challenger="2")
    store = EventStore(s, Secrets())
    known, hours = set(), []
    with store, serving(create_app(s, Secrets(), Moody(tmp_path))) as url:
        for number in range(0, 24, 2):
            store.add("battles", [battle(number)])
            store.add("retrain_events", retraining(number))
            an_hour(url, tmp_path, number)
            looked = value(url, "observed_timestamp_seconds", source="store") or 0
            wait_until(
                lambda: (value(url, "observed_timestamp_seconds", source="store") or 0) > looked,
                "a look",
                20,
            )
            known |= set(series(url))
            hours.append(len(known))
    labels = {name for _, pairs in known for name, _ in pairs}
    assert {"attack_class", "trigger_reason", "feature", "source", "alias"} <= labels
    retrained = [pairs for name, pairs in known if name == "content_arena_retrain_events_total"]
    assert len(retrained) == (len(TRIGGERS) + 1) * len(OUTCOMES)
    rules = [
        r
        for file in ("rules.yml", "alerts.yml")
        for g in yaml.safe_load((DEPLOY / "prometheus" / file).read_text())["groups"]
        for r in g["rules"]
    ]
    kinds = (len(ALIASES) + 1) * (len(RESULTS) + 1)  # a rule keeps at most these two labels
    assert hours[-1] == hours[3], f"series keep coming: {hours}"
    assert hours[-1] + len(rules) * kinds + 10 < 2000, hours[-1]

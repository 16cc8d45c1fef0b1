"""A real service, a real Prometheus, a real Alertmanager, and what arrives in the channel."""

import threading
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from pathlib import Path

import httpx
import pytest

from content_arena.core.config import Secrets
from content_arena.store.events import EventStore
from stage import THRESHOLDS, Scorer, serving, settings
from watch import Watch, free_port, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.needs("prometheus")]


@dataclass
class Version:
    version: str
    created: datetime
    tags: dict = field(default_factory=dict)
    sha256: str = "0" * 64


class Registry:
    "A loader whose versions the test changes: the champion's F1 and speed, the challenger."

    def __init__(self):
        self.now = datetime.now(timezone.utc)
        self.aliases = {"champion": Version("4", self.now, {"f1": "0.83"})}
        self.scorer: Scorer | None = None
        self.delay_s = 0.0

    def find(self, alias):
        return self.aliases.get(alias)

    def load(self, version, alias):
        self.scorer = Scorer(
            version.version, version.sha256, THRESHOLDS[alias], delay_s=self.delay_s
        )
        return self.scorer

    def slow_down(self, delay_s: float) -> None:
        self.delay_s = self.scorer.delay_s = delay_s


@contextmanager
def traffic(url: str):
    "Comments one after another until the end; a service that is down gets none."
    over = threading.Event()

    def talk():
        with httpx.Client(timeout=10) as client:
            while not over.wait(0.05):
                try:
                    client.post(f"{url}/classify", json={"text": "how do you do"})
                except httpx.TransportError:
                    pass

    thread = threading.Thread(target=talk)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(15)


class Place:
    "The service on one port, started and stopped as often as one likes."

    def __init__(self, folder: Path):
        self.registry, self.port, self.stack = Registry(), free_port(), ExitStack()
        self.settings = settings(folder, metrics_refresh_s=0.2)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        from content_arena.serving.app import create_app

        app = create_app(self.settings, Secrets(), self.registry)
        self.stack.enter_context(serving(app, self.port))
        httpx.post(f"{self.url}/reload").raise_for_status()

    def stop(self) -> None:
        self.stack.close()

    def battle(self, detection_rate: float) -> None:
        "A battle that somebody fought on the command line."
        with EventStore(self.settings) as store:
            store.add(
                "battles",
                [
                    {
                        "status": "completed",
                        "model_version": "4",
                        "result": {"alias": "champion", "detection_rate": detection_rate},
                    }
                ],
            )


@pytest.fixture
def place(tmp_path):
    place = Place(tmp_path)
    place.start()
    yield place
    place.stop()


@pytest.fixture
def watch(place):
    watch = Watch(f"127.0.0.1:{place.port}")
    yield watch
    watch.close()


def test_every_named_alert_arrives_and_resolves(place: Place, watch: Watch):
    slack, champion = watch.slack, place.registry.aliases["champion"]
    place.battle(0.86)
    with traffic(place.url):
        wait_until(lambda: watch.query("content_arena:inference_requests:rate5m > 1"), "traffic")
        wait_until(lambda: watch.query("content_arena_battle_detection_rate == 0.86"), "the battle")
        assert watch.alerts() == set() and slack.messages == []

        place.battle(0.31)
        champion.tags["f1"] = "0.64"
        place.registry.slow_down(0.7)
        place.registry.aliases["challenger"] = Version(
            "5", place.registry.now - timedelta(hours=25)
        )
        broken = {
            "DetectionRateDrop": "only 31% of the attacks are detected",
            "ModelF1ScoreDrop": "the champion's F1 is 0.64",
            "HighInferenceLatency": "p99 of /classify is",
            "ChallengerStale": "a challenger waits since 1d 1h",
        }
        for alert, summary in broken.items():
            wait_until(lambda: slack.heard("FIRING", alert), f"{alert} arrives")
            message = slack.heard("FIRING", alert)
            assert summary in message["text"], alert
            assert f"deploy/runbooks/{alert}.md" in message["text"]
        colours = {a: slack.heard("FIRING", a)["color"] for a in broken}
        assert colours["ModelF1ScoreDrop"] == "danger" != colours["ChallengerStale"]

        place.battle(0.9)
        champion.tags["f1"] = "0.81"
        place.registry.slow_down(0.0)
        del place.registry.aliases["challenger"]
        for alert in broken:
            wait_until(lambda: slack.heard("RESOLVED", alert), f"{alert} resolves")

    place.stop()
    wait_until(lambda: slack.heard("FIRING", "ServiceDown"), "ServiceDown arrives")
    place.start()
    wait_until(lambda: slack.heard("RESOLVED", "ServiceDown"), "ServiceDown resolves")
    alerts = {m["title"].split()[-2] for m in slack.messages}
    assert alerts == {*broken, "ServiceDown"}, "nothing else was said"
    [series] = watch.query('count({job="content_arena"})')
    assert series["value"] < 2000

"""The whole loop in one, with real processes: a new disguise is noticed, learnt, and withstood."""

import json
import signal
import subprocess
from contextlib import ExitStack
from pathlib import Path

import httpx
import numpy as np
import pandas as pd
import pytest
from commands import ROOT, arena, settings_of, state_of
from prometheus_client.parser import text_string_to_metric_families
from watch import Slack, free_port, wait_until
from warm import python

from content_arena.disguises.families import attack, split_families
from content_arena.mlops.alerting import TITLES
from content_arena.mlops.model_registry import ModelRegistry
from content_arena.workflows.pipeline import read_json
from content_arena.store.events import EventStore
from content_arena.training.data_preparation import open_dataset
from content_arena.testing.tiny_base import make_tiny_base
from content_arena.data.train_only import attack_rules

pytestmark = [pytest.mark.slow, pytest.mark.long(140)]

INSULTS = ("idiot", "moron", "loser", "stupid", "clown", "pathetic")
HARMLESS = ("friend", "kind", "today", "you", "are")
NEW, KNOWN = "letter_swap", "symbols"  # idiot -> idoit, which is news; idiot♪ is not


def spellings(rule: str) -> list[str]:
    "How `rule` may spell the insults."
    made = attack([f"{word} {i}" for word in INSULTS for i in range(60)], rule)
    return sorted({v.text.split()[0] for v in made if v.outcome == "made"} - set(INSULTS))


def write_world(file: Path, rows: int, seed: int, disguised: float = 0.0) -> None:
    """Comments of five words, four of them random letters. The second one is an insult in toxic
    comments, and in half of the clean ones a harmless word. 4 in 100 labels are wrong; a share of
    the toxic ones is `disguised` by the new rule."""
    rng = np.random.default_rng(seed)

    def word() -> str:
        return "".join(rng.choice(list("abcdefghijklmnopqrstuvwxyz"), size=6))

    table = []
    for i, toxic in enumerate(rng.integers(0, 2, rows)):
        harmless = rng.choice(HARMLESS) if rng.random() < 0.5 else word()
        said = rng.choice(INSULTS) if toxic != (rng.random() < 0.04) else harmless
        text = f"{word()} {said} {word()} {word()} {word()}"
        if toxic and rng.random() < disguised:
            text = attack([text], NEW, seed=1000 + i)[0].text
        table.append((text, int(toxic)))
    pd.DataFrame(table, columns=["text", "label"]).to_csv(file, index=False)


def make_world(folder: Path, url: str, webhook: str) -> dict[str, str]:
    """Environment of a small world that is fair to both models.

    The base has tokens for the insults and their new spellings, as a tokenizer of a real base has
    pieces for every spelling; what a token means is learnt in training alone. Nobody disguised
    comments when the training data were collected. The test set is of today: people have begun to,
    which is why the gate can see a gain at all; it asks for F1 on this test set, not for robustness.
    The filter is not trained under attack, or the disguise would be no news to it, and the gate
    disguises nothing: the test set has its own. In the gate's battle by all rules
    the order of rows decides, and with it the folder in which the test runs: AUC 0.754 or 0.686 against 0.708 were seen at the same F1, so that it may
    lose 0.1. Every other setting of the gate is at its default,
    but for the slice: all comments are of one source and one language. The training looks at validation only at its end: nobody is disguised there,
    it is perfect long before the variants are learnt, and stopping early would choose that moment."""
    make_tiny_base(folder / "tiny", more_words=(*INSULTS, *spellings(NEW)))
    write_world(folder / "train.csv", 700, seed=1)
    write_world(folder / "test.csv", 1200, seed=2, disguised=0.25)
    return state_of(
        folder,
        INFERENCE_URL=url,
        SLACK_WEBHOOK_URL=webhook,
        METRICS_REFRESH_S=0.5,
        MAX_LENGTH=24,
        CHECKPOINT_EVERY=1000,
        EVAL_EVERY=1000,
        EPOCHS=6,
        LEARNING_RATE=0.001,
        HEAD_LEARNING_RATE=0.01,
        DISGUISED_SHARE=0,
        GATE_DISGUISED_SHARE=0,
        BATTLE_TOLERANCE=0.1,
    )


class Notices(Slack):
    "Titles of the notices, in the order in which they came."

    def keep(self, body: dict) -> None:
        self.messages.append(body["text"].splitlines()[0])


class Background:
    "A command that goes on while the test does; what it says lands in a file."

    def __init__(self, environment: dict, log: Path, *arguments: str):
        self.log = log
        with open(log, "w") as out:
            self.process = subprocess.Popen(
                [python(), "-m", "content_arena", *arguments],
                cwd=ROOT,
                env=environment,
                stdout=out,
                stderr=subprocess.STDOUT,
            )

    def said(self) -> list[dict]:
        "Its whole lines of JSON."
        lines = self.log.read_text().split("\n")[:-1]
        return [json.loads(line) for line in lines if line.startswith("{")]

    def stop(self) -> int:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(60)
        except subprocess.TimeoutExpired:  # it finishes a run first; the test has failed
            self.process.kill()
            return self.process.wait()


class Service(Background):
    "A service and what one can ask it."

    def __init__(self, environment: dict, log: Path, url: str):
        super().__init__(environment, log, "serve", "--port", url.rpartition(":")[2])
        self.url = url

    def ready(self) -> bool:
        assert self.process.poll() is None, self.log.read_text()
        try:
            return httpx.get(f"{self.url}/ready", timeout=5).status_code == 200
        except httpx.TransportError:
            return False

    def metric(self, name: str, **labels: str) -> float | None:
        "The value that /metrics shows; None if it has no such series."
        page = httpx.get(f"{self.url}/metrics", timeout=10).text
        return next(
            (
                s.value
                for family in text_string_to_metric_families(page)
                for s in family.samples
                if s.name == name and s.labels == labels
            ),
            None,
        )

    def detection(self) -> float:
        return self.metric("content_arena_battle_detection_rate")

    def battle(self, strategy: str, seed: int) -> dict:
        "Fight a battle on validation comments; its record."
        asked = httpx.post(
            f"{self.url}/api/v1/battles",
            timeout=10,
            json={"strategy": strategy, "rounds": 300, "seed": seed},
        )
        asked.raise_for_status()
        place = f"{self.url}/api/v1/battles/{asked.json()['id']}"
        wait_until(
            lambda: httpx.get(place, timeout=10).json()["status"] not in ("pending", "running"),
            f"the end of the battle by {strategy}",
            120,
        )
        record = httpx.get(f"{place}/stats", timeout=10).json()
        assert record["status"] == "completed", record["reason"]
        return record


@pytest.fixture
def scene():
    with ExitStack() as stack:
        yield stack


def test_a_new_disguise_is_noticed_learnt_and_withstood(tmp_path: Path, scene: ExitStack):
    slack, url = Notices(), f"http://127.0.0.1:{free_port()}"
    scene.callback(slack.close)
    environment = make_world(tmp_path, url, slack.url)
    settings = settings_of(environment)

    # A champion serves, two watchers watch, and a disguise that it can read does no harm.
    code, out, err = arena(environment, "pipeline", "run", "--json")
    assert code == 0 and json.loads(out.splitlines()[-1])["status"] == "bootstrapped", err
    service = Service(environment, tmp_path / "service.log", url)
    scene.callback(service.stop)
    watchers = [
        Background(environment, tmp_path / f"watcher{i}.log", "retrain", "watch", "--every", "3")
        for i in range(2)
    ]
    for watcher in watchers:
        scene.callback(watcher.stop)
    wait_until(service.ready, "the service answers", 180)
    calm = service.battle(KNOWN, seed=1)
    assert calm["detection_rate"] > 0.85 and calm["model_version"] == "1"
    wait_until(lambda: service.detection() == calm["detection_rate"], "the gauge shows it")
    wait_until(lambda: all(w.said() for w in watchers), "both watchers look", 180)
    assert {said["status"] for w in watchers for said in w.said()} == {"idle"}

    # A new one gets through, and the gauge says so.
    bad = service.battle(NEW, seed=2)
    assert bad["detection_rate"] < 0.4 and bad["model_version"] == "1"
    wait_until(lambda: service.detection() == bad["detection_rate"], "the gauge falls")

    # Both watchers see it, one trains; the gate lets the new model in, and it serves at once.
    def ended() -> list[dict]:
        return [
            s for w in watchers for s in w.said() if s["status"] not in ("idle", "busy", "waiting")
        ]

    wait_until(ended, "a run ends", 600)
    looks = [len(w.said()) for w in watchers]
    [run] = ended()
    why = read_json(Path(run["run_dir"]) / "comparison.json")["reasons"]
    assert (run["status"], run["start"], run["model_version"]) == ("promoted", "evasion", "2"), why
    classified = httpx.post(f"{url}/classify", json={"text": "qwfpgj idoit zxcvbk"}, timeout=10)
    assert classified.json()["model_version"] == "2" and classified.json()["is_toxic"]
    wait_until(
        lambda: service.metric("content_arena_model_version", alias="champion") == 2,
        "the metrics show the version",
    )
    wait_until(
        lambda: (
            service.metric(
                "content_arena_retrain_events_total", trigger_reason="evasion", result="promoted"
            )
            == 1
        ),
        "the metrics count the run",
    )

    # The disguise is withstood: other comments' variants, of another seed.
    good = service.battle(NEW, seed=3)
    assert good["detection_rate"] > 0.85 and good["model_version"] == "2"
    assert good["false_positive_rate"] < 0.15
    wait_until(lambda: service.detection() == good["detection_rate"], "the gauge recovers")

    # One run is all there was, whoever looks again.
    wait_until(
        lambda: all(len(w.said()) >= n + 2 for w, n in zip(watchers, looks)), "they look on", 120
    )
    assert [w.stop() for w in watchers] == [0, 0] and len(ended()) == 1
    with EventStore(settings) as store:
        events = store.read("retrain_events")
    runs = events[events.status != "lease"]
    assert [(r.reason, r.status) for r in runs.itertuples()] == [("evasion", "promoted")]
    assert slack.messages == [TITLES[t] for t in ("bootstrapped", "retraining", "promoted")]

    learnt_what_it_may(runs.iloc[0].result, run, settings)


def learnt_what_it_may(about: dict, run: dict, settings) -> None:
    "Variants of training comments by the new rule, within the share, and nothing else."
    assert about["kinds"]["evaded"] > 50 and about["labels"] == 0
    dataset = open_dataset(read_json(Path(run["run_dir"]) / "dataset.json")["folder"])
    rows = {split: dataset.frame(split) for split in ("train", "valid", "test")}
    variants = rows["train"][rows["train"].attack.notna()]
    rules = {rule for a in variants.attack for rule in attack_rules(a)}
    assert NEW in rules and not rules & {r.name for r in split_families(0).rules(held_out=True)}
    assert len(variants) <= settings.retrain_variant_share * len(rows["train"])
    assert (rows["train"].attack.isna()).sum() > 600  # what it learnt first, again
    others = set(rows["valid"].group) | set(rows["test"].group)
    assert others.isdisjoint(variants.group)
    tags = ModelRegistry(settings).get_champion().tags
    assert set(json.loads(tags["attack_rules"])) == rules

"""Battles that are killed, stopped, starved and fed nonsense; the fixed battle; the service's."""

import json
import os
import threading
import time
from pathlib import Path

import httpx
import numpy as np
import pytest

import stage
from battles import Filter, comments, corpus, fight_to_the_death, settings, write_csv
from forks import killed

from content_arena.arena.battles import fixed as fixed_battle
from content_arena.arena.attackers.mix import bandit_file, make_attacker
from content_arena.disguises.families import split_families, strategy_rules
from content_arena.arena.attackers.bandit import StateError, load_state
from content_arena.arena.battles.battle import Battle, run_battle
from content_arena.arena.battles.orders import Order, attacker_of, battles_dir, fight, list_battles
from content_arena.arena.battles.corpus import BattleError, Corpus
from content_arena.arena.battles.fixed import FixedBattle
from content_arena.core.config import Secrets, load_settings
from content_arena.core.files import write_json
from content_arena.mlops.evaluator import evidence_record
from content_arena.serving.app import create_app
from content_arena.store.events import EventStore

from content_arena.data.embedded_corpus import embedded_corpus

pytestmark = pytest.mark.long(40)


@pytest.fixture
def cfg(tmp_path):
    return settings(tmp_path)


# --- killed --------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    "strategy, calls",
    [("mixed", 2), ("mixed", 5), ("bandit", 1), ("bandit", 9), ("greedy", 3), ("greedy", 40)],
)
def test_a_killed_battle_goes_on_to_the_same_end(strategy, calls, cfg, tmp_path):
    "SIGKILL at the nth call of the model, wherever that is; then the same command, to the end."
    killed(fight_to_the_death, tmp_path, strategy, calls)
    [listed] = list_battles(battles_dir(cfg))
    assert listed["status"] == "running" and not listed["held"]
    assert not bandit_file(cfg).exists()  # nothing is learnt from half a battle
    (other := tmp_path / "other").mkdir()
    order, said, done = Order(strategy, rounds=100), [], listed["rounds_done"]
    ended = fight(order, Filter(), cfg, {}, batch=16, say=said.append)
    whole = fight(order, Filter(), settings(other), {}, batch=16)
    assert ended.record["id"] == listed["id"] and len(list_battles(battles_dir(cfg))) == 1
    assert ended.attempts == whole.attempts and len(ended.attempts) == 100
    for part in ("detection_rate", "by_rule", "seen", "held_out", "intervals"):
        assert ended.record[part] == whole.record[part]
    if strategy == "bandit":
        learnt = [load_state(bandit_file(s)).arms for s in (cfg, settings(other))]
        assert learnt[0] == learnt[1] != {}
    assert any(f"goes on after {done} of 100" in s if done else "100 rounds" in s for s in said)


def test_a_second_process_is_refused_while_the_first_one_fights(cfg):
    inside, gate = threading.Event(), threading.Event()

    class Held(Filter):
        def scores(self, texts):
            inside.set()
            assert gate.wait(20)
            return super().scores(texts)

    order = Order(rounds=20)
    first = threading.Thread(target=fight, args=(order, Held(), cfg, {}))
    first.start()
    assert inside.wait(20)
    try:
        with pytest.raises(BattleError, match="is being fought by another process"):
            fight(order, Filter(), cfg, {})
        assert list_battles(battles_dir(cfg))[0]["held"]
    finally:
        gate.set()
        first.join(20)
    assert list_battles(battles_dir(cfg))[0]["status"] == "completed"


# --- what it says --------------------------------------------------------------------------------


def test_the_numbers_are_those_of_the_attempts():
    battle = run_battle(
        Filter(), corpus(), make_attacker("mixed", load_settings(env={})), rounds=60
    )
    r, made = battle.record, [a for a in battle.attempts if a.variant.outcome == "made"]
    toxic = [a for a in made if a.label]
    assert r["attacked"] == len(toxic) > 10
    assert r["detection_rate"] == np.mean([a.after >= 0.5 for a in toxic])
    assert r["evasion_rate"] == pytest.approx(1 - r["detection_rate"])
    low, high = r["intervals"]["detection_rate"]
    assert 0 <= low < r["detection_rate"] < high <= 1
    sides = [r[s]["attacked"] for s in ("seen", "held_out", "other")]
    assert sum(sides) == r["attacked"] and sides[2] == 0
    hidden = {x.name for x in split_families().rules(held_out=True)}
    assert r["held_out"]["attacked"] == sum(a.variant.rules[0] in hidden for a in toxic)
    assert json.loads(json.dumps(r)) == r


def test_repeated_rounds_on_few_comments_do_not_narrow_the_interval():
    attacker = make_attacker("mixed", load_settings(env={}))
    wide = [
        np.ptp(
            run_battle(Filter(), corpus(12), attacker, rounds=n).record["intervals"][
                "detection_rate"
            ]
        )
        for n in (12, 600)
    ]
    assert wide[1] > 0.6 * wide[0]


def test_battles_of_another_seed_model_or_corpus_are_other_battles(cfg, tmp_path):
    class Other(Filter):
        sha256 = "bb"

    def id_of(scorer=Filter(), rows=corpus(), **more):
        return run_battle(
            scorer,
            rows,
            make_attacker("mixed", cfg),
            folder=tmp_path / "b",
            **({"rounds": 10} | more),
        ).record["id"]

    ids = [
        id_of(),
        id_of(seed=1),
        id_of(Other()),
        id_of(rows=corpus(20)),
        id_of(rounds=11),
        id_of(held_out=split_families(3)),
    ]
    assert len(set(ids)) == 6 and id_of() == ids[0]


# --- bad input -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "order, message",
    [
        (dict(strategy="mixd"), "no strategy 'mixd'; accepted: .*mixed"),
        (dict(corpus="csv:empty.csv"), "empty.csv: no usable row"),
        (dict(corpus="csv:clean.csv"), "all 2 comments are clean"),
        (dict(corpus="jsonl:odd.jsonl"), "odd.jsonl: no usable row, 1 bad"),
        (dict(corpus="parquet:gone.parquet"), "no such file"),
        (dict(corpus="nonsense"), "'nonsense' is unknown"),
    ],
)
def test_what_can_not_be_fought_is_said_before_anything_is_scored(order, message, cfg, tmp_path):
    (tmp_path / "empty.csv").write_text("text,label\n")
    (tmp_path / "clean.csv").write_text("text,label\nhello,0\ngood day,0\n")
    (tmp_path / "odd.jsonl").write_text("[3]\n")
    kind, colon, name = order.get("corpus", "").partition(":")
    order = order | ({"corpus": f"{kind}:{tmp_path / name}"} if colon else {})

    class Untouched(Filter):
        def scores(self, texts):
            raise AssertionError("scored")

    with pytest.raises(BattleError, match=message):
        fight(Order(**order), Untouched(), cfg, {})
    assert not battles_dir(cfg).exists()


def test_a_memory_of_another_version_is_refused_and_stays(cfg):
    bandit_file(cfg).parent.mkdir(parents=True)
    bandit_file(cfg).write_text('{"kind": "bandit", "version": 0, "plays": 1, "arms": {}}')
    old = bandit_file(cfg).read_bytes()
    with pytest.raises(StateError, match="bandit.json: kind and version"):
        attacker_of(Order("bandit"), cfg)
    assert bandit_file(cfg).read_bytes() == old


@pytest.mark.parametrize(
    "answer, says", [(lambda n: np.zeros(n + 1), "gave an array"), (lambda n: None, None)]
)
def test_a_model_that_breaks_ends_the_battle_and_nothing_else(answer, says, cfg):
    class Broken(Filter):
        calls = 0

        def scores(self, texts):
            Broken.calls += 1
            return super().scores(texts) if Broken.calls < 3 else answer(len(texts))

    with pytest.raises(Exception, match=says):
        fight(Order(rounds=60), Broken(), cfg, {}, batch=10)
    [left] = list_battles(battles_dir(cfg))
    assert (left["status"], left["rounds_done"]) == ("failed", 20) and left["reason"]
    again = fight(Order(rounds=60), Filter(), cfg, {}, batch=10)
    assert (again.record["status"], again.record["reason"]) == ("completed", "")


def test_a_full_disk_is_said_and_loses_nothing(cfg, monkeypatch):
    calls, honest = iter(range(1000)), os.fsync

    def full(fd):
        if next(calls) > 8:
            raise OSError(28, "No space left on device")
        honest(fd)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises((BattleError, OSError), match="No space left on device"):
        fight(Order(rounds=60), Filter(), cfg, {}, batch=10)
    monkeypatch.setattr(os, "fsync", honest)
    whole = run_battle(Filter(), corpus(), make_attacker("mixed", cfg), rounds=60, batch=10)
    assert fight(Order(rounds=60), Filter(), cfg, {}, batch=10).attempts == whole.attempts


def test_an_endpoint_that_is_gone_is_a_stated_outcome(cfg, tmp_path):
    """The mix does the work; the record says how often the model was asked in vain."""
    gone = settings(tmp_path, llm_url="http://127.0.0.1:9/v1", llm_timeout_s=1)
    battle = fight(Order("llm_evasion", rounds=30), Filter(), gone, {}, secrets=Secrets())
    assert battle.record["questions"] == {"unreachable": 3, "gave_up": 27}
    assert battle.record["status"] == "completed" and battle.record["attacked"] > 5
    nobody = fight(Order("llm_evasion", rounds=30), Filter(), cfg, {}, secrets=Secrets())
    assert nobody.record["questions"] == {"no_endpoint": 30}


# --- the fixed battle ----------------------------------------------------------------------------


def test_the_fixed_battle_is_frozen():
    "If this fails, rules or texts changed: comparisons across that change are not like with like."
    fixed = FixedBattle(corpus(), 40)
    assert fixed.sha256[:32] == "b68563fe1b24c5e692166b030b9ad4d6"
    shuffled = Corpus(*zip(*comments()[::-1]), "another name")
    assert FixedBattle(shuffled, 40).sha256 == fixed.sha256
    assert FixedBattle(corpus(), 30).sha256 != fixed.sha256
    assert sum(fixed.labels) == 20
    rows = embedded_corpus()
    broad = FixedBattle(Corpus.of_frame(rows, "embedded"), 800)
    assert broad.sha256[:32] == "992b513d6fd095ab40e73dd0969cbf07"
    assert len({name for v in broad.variants for name in v.rules}) > 25
    assert len({v.original for v in broad.variants}) == len(broad) == 800


@pytest.mark.parametrize("change", ["seed", "intensity", "rules", "comment", "label"])
def test_whatever_the_battle_is_made_of_is_in_its_hash(change, monkeypatch):
    texts, labels = zip(*comments())
    if change == "seed":
        monkeypatch.setattr(fixed_battle, "SEED", 7)
    elif change == "intensity":
        monkeypatch.setattr(fixed_battle, "INTENSITY", 0.61)
    elif change == "rules":
        monkeypatch.setattr(fixed_battle, "strategy_rules", lambda name: strategy_rules(name)[:-1])
    elif change == "comment":
        texts = (texts[0] + "!", *texts[1:])
    else:
        labels = (1 - labels[0], *labels[1:])
    assert FixedBattle(Corpus(texts, labels, ""), 60).sha256 != FIXED_60


FIXED_60 = FixedBattle(corpus(), 60).sha256


def test_both_models_of_a_fixed_battle_are_scored_on_the_same_variants():
    class Blind(Filter):
        version, threshold = "5", 0.15

        def scores(self, texts):
            return np.full(len(texts), 0.2)

    fixed = FixedBattle(corpus(), 40)
    good, blind = fixed.fight(Filter()), fixed.fight(Blind())
    e = fixed.evidence(good, blind)
    assert (e["toxic"], e["clean"], e["sha256"]) == (20, 20, fixed.sha256)
    assert (blind["auc"], blind["detection_rate"], blind["false_positive_rate"]) == (0.5, 1, 1)
    assert e["auc_change"] == pytest.approx(0.5 - good["auc"]) and good["auc"] > 0.6
    assert e["challenger"]["detection_at_cost"] == e["cost"] == good["false_positive_rate"]
    assert e["champion"]["detection_rate"] == good["detection_rate"] < 1
    assert evidence_record(0, None, e)["battle"]["challenger"] == e["challenger"]


# --- in the service ------------------------------------------------------------------------------


class Loader(stage.FileLoader):
    def load(self, version, alias):
        model = Filter()
        model.version, model.sha256 = version.version, version.sha256
        return model


@pytest.fixture
def folder(tmp_path):
    stage.FileRegistry(tmp_path).set(champion="1")
    return tmp_path


def app_of(folder: Path, loader=None, **explicit):
    options = dict(battle_corpus=write_csv(folder), battle_batch=10) | explicit
    return create_app(stage.settings(folder, **options), Secrets(), loader or Loader(folder))


def waited(url: str, id: str, *statuses: str, seconds: float = 20) -> dict:
    end = time.monotonic() + seconds
    while (now := httpx.get(f"{url}/api/v1/battles/{id}").json())["status"] not in statuses:
        assert time.monotonic() < end, now
        time.sleep(0.01)
    return now


def test_a_battle_over_http(folder):
    with stage.serving(app_of(folder)) as url:
        httpx.post(f"{url}/reload").raise_for_status()
        battles = f"{url}/api/v1/battles"
        answer = httpx.post(battles, json={"rounds": 60, "strategy": "mixed", "seed": 3})
        # either it waits or it has begun already
        assert answer.status_code == 202 and answer.json()["status"] in ("pending", "running")
        id = answer.json()["id"]
        ended = waited(url, id, "completed", "failed")
        assert ended["status"] == "completed" and ended["model_version"] == "1"
        stats = httpx.get(f"{battles}/{id}/stats").json()
        assert stats["held_out"]["attacked"] + stats["seen"]["attacked"] == stats["attacked"]
        page = httpx.get(f"{battles}/{id}/rounds", params={"offset": 50, "limit": 20}).json()
        assert page["total"] == 60 and [r["round"] for r in page["rounds"]] == list(range(50, 60))
        assert "idiot" not in json.dumps([page, stats], ensure_ascii=False)
        assert [b["id"] for b in httpx.get(battles).json()] == [id]
        page = httpx.get(f"{url}/metrics").text
        for name in ("detection_rate", "false_positive_rate"):  # never one without the other
            assert f"content_arena_battle_{name} {ended[name]}" in page
        over = httpx.post(f"{battles}/{id}/stop")
        assert over.status_code == 409 and over.json()["type"].endswith("battle-over")
    with EventStore.open(f"sqlite:///{folder}/events.db") as store:
        assert store.read("battles").status.tolist() == ["completed"]
        assert len(store.read("battle_rounds")) == 60


@pytest.mark.parametrize(
    "body, status",
    [
        ({"strategy": "mixd"}, 422),
        ({"rounds": 0}, 422),
        ({"split": "test"}, 422),
        ({"corpus": "csv:/etc/passwd"}, 422),
        ([], 422),
        ({"seed": -1}, 422),
    ],
)
def test_what_is_no_order_is_refused_with_problem_details(body, status, folder):
    with stage.serving(app_of(folder)) as url:
        answer = httpx.post(f"{url}/api/v1/battles", json=body)
        assert answer.status_code == status
        assert answer.headers["content-type"] == "application/problem+json"
        assert httpx.get(f"{url}/api/v1/battles/{'0' * 16}").status_code == 404
        assert httpx.get(f"{url}/api/v1/battles").json() == []


def test_only_who_may_reload_may_order(folder):
    with stage.serving(app_of(folder)) as url:
        relayed = {"X-Forwarded-For": "127.0.0.1"}
        for path in ("", "/x/stop"):
            answer = httpx.post(f"{url}/api/v1/battles{path}", json={}, headers=relayed)
            assert answer.status_code == 403


class Gated(Loader):
    "Version 1 waits for `gate` before each step; `asked` is set when it does."

    def __init__(self, folder):
        super().__init__(folder)
        self.gate, self.asked = threading.Event(), threading.Event()
        self.gate.set()

    def load(self, version, alias):
        model, scores = super().load(version, alias), Filter.scores
        if version.version != "1":
            return model

        def gated(texts):
            self.asked.set()
            assert self.gate.wait(30)
            return scores(model, texts)

        model.scores = gated
        return model


def test_requests_come_first_and_the_queue_is_bounded(folder):
    loader = Gated(folder)
    with stage.serving(app_of(folder, loader, battle_queue=1)) as url:
        httpx.post(f"{url}/reload").raise_for_status()
        loader.gate.clear()
        loader.asked.clear()
        order = lambda **more: httpx.post(f"{url}/api/v1/battles", json={"rounds": 60} | more)
        first = order().json()["id"]
        assert loader.asked.wait(20)  # its first step is being scored, held
        second = order(seed=1).json()["id"]
        full = order(seed=2)
        assert full.status_code == 429 and full.headers["retry-after"]
        assert httpx.post(f"{url}/api/v1/battles/{second}/stop").json()["status"] == "stopped"
        answered = []
        asking = threading.Thread(
            target=lambda: answered.append(
                httpx.post(f"{url}/classify", json={"text": "hello"}, timeout=30).status_code
            )
        )
        asking.start()
        httpx.post(f"{url}/api/v1/battles/{first}/stop").raise_for_status()
        loader.gate.set()
        asking.join(30)
        assert answered == [200]
        ended = waited(url, first, "stopped")
        assert ended["reason"] == "on request" and ended["rounds_done"] < 60


def held_battle(url: str, loader: Gated) -> str:
    "The id of a battle that waits for the gate in its first step."
    httpx.post(f"{url}/reload").raise_for_status()
    loader.gate.clear()
    loader.asked.clear()
    id = httpx.post(f"{url}/api/v1/battles", json={"rounds": 60}).json()["id"]
    assert loader.asked.wait(20)
    return id


def test_a_new_version_ends_the_battle_against_the_old_one(folder):
    loader = Gated(folder)
    with stage.serving(app_of(folder, loader)) as url:
        id = held_battle(url, loader)
        stage.FileRegistry(folder).set(champion="2")
        httpx.post(f"{url}/reload", timeout=30).raise_for_status()
        loader.gate.set()
        assert "version 1 is not served any more" in waited(url, id, "failed")["reason"]


def test_a_battle_outlives_the_service_and_its_kill(folder):
    loader = Gated(folder)
    with stage.serving(app_of(folder, loader)) as url:
        id = held_battle(url, loader)
        threading.Timer(0.2, loader.gate.set).start()  # while the service ends
    left = Battle.open(folder / "var/arena/battles" / id)
    assert left.record["status"] == "running"
    with stage.serving(app_of(folder)) as url:
        assert waited(url, id, "completed", "failed")["status"] == "completed"
    assert len(Battle.open(left.folder).attempts) == 60
    # killed, and started again with another version
    write_json(left.folder / "battle.json", left.record | {"status": "running"})
    stage.FileRegistry(folder).set(champion="2")
    with stage.serving(app_of(folder)) as url:
        ended = waited(url, id, "failed", "completed")
    assert ended["reason"] == "version 1 is not served any more"

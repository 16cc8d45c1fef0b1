"""The chain of decision records in a real registry: kills, rivals and forgers."""

import asyncio
import inspect
import json
import re
import threading
from types import SimpleNamespace

import pytest
from comparisons import ENGINES, TEST, Fake, learn
from forks import copy_store
from repository_files import names_used, parsed
from typer.testing import CliRunner

import stage
from content_arena.cli import main as cli
from content_arena.mlops import decisions, evaluator
from content_arena.mlops.decision_records import whoami
from content_arena.mlops.decisions import DecisionError, DecisionLog, Verified, differences_found
from content_arena.mlops.deployer import InferenceClient, ModelDeployer, Secrets
from content_arena.mlops.evaluator import ChampionChallengerEvaluator
from content_arena.mlops.journal import Journal
from content_arena.mlops.model_registry import ModelRegistry, RegistryError
from content_arena.workflows import deployment as entry

from content_arena.data.grouping import fingerprints

pytestmark = [pytest.mark.slow, pytest.mark.long(120)]


@pytest.fixture
def compare(registry, settings):
    evaluator = ChampionChallengerEvaluator(registry, settings)
    return lambda **engines: evaluator.compare(TEST, engines=ENGINES | engines)


@pytest.fixture(scope="module")
def three_decisions(two_versions, tmp_path_factory):
    "The database of a registry with three decisions: promote, reject, promote."
    root = tmp_path_factory.mktemp("three decisions")
    registry = copy_store(two_versions, root)
    log, evaluator = DecisionLog(registry), ChampionChallengerEvaluator(registry, registry.settings)
    compare = lambda **engines: evaluator.compare(TEST, engines=ENGINES | engines)
    log.record(compare(), code="c1")
    log.record(compare(challenger=Fake("2", 0.5)), code="c2")
    learn(registry.settings, "3", ["b", "e"], ["a row of e"])
    log.record(compare(challenger=Fake("3", 0.9)), code="c3")
    return root / "mlflow.db"


@pytest.fixture
def registry(request, registry, three_decisions, tmp_path):
    "With the three decisions, where a test asks for `three`."
    return copy_store(three_decisions, tmp_path) if "three" in request.fixturenames else registry


@pytest.fixture
def three(registry):
    return DecisionLog(registry)


def stored(settings, suffix: str) -> list:
    return sorted(settings.path("artifact_dir").rglob(f"decisions/*.{suffix}"))


HONEST = Verified(decisions=4, moves=1, older=0)  # the first champion was made by hand


def test_an_honest_history(three, registry, settings):
    assert len(stored(settings, "json")) == 4  # its own files: what forges them must hit them
    assert three.verify() == HONEST
    assert three.list().verdict.tolist() == ["by hand", "promote", "reject", "promote"]
    record = three.show(three.list().id[2])
    assert record["previous"]["id"].startswith(three.list().id[1]) and record["code"] == "c2"
    tags = {
        v.version: {k: t for k, t in v.tags.items() if k.startswith("decision.")}
        for v in registry.versions()
    }
    assert [len(tags[n]) for n in "123"] == [3, 2, 1]
    assert set(tags["3"].values()) == {"promote (as challenger)"}


def test_a_recorded_comparison_names_its_record(registry, compare):
    comparison = compare()
    recorded = DecisionLog(registry).record(comparison, code="c")
    assert comparison["decision"] == "" and len(recorded["decision"]) == 64
    assert {k: v for k, v in recorded.items() if k != "decision"} == {
        k: v for k, v in comparison.items() if k != "decision"
    }


def test_a_record_from_before_a_check_existed_still_gives_its_verdict(compare):
    comparison = compare()
    old = comparison.to_dict()
    old["checks"] = [c for c in old["checks"] if c["name"] != "shadow"]
    del old["settings"]["shadow_guard"]
    assert differences_found(old, comparison.rows) == []
    old["checks"] = [c for c in old["checks"] if c["name"] != "significance"]
    assert ["significance" in d for d in differences_found(old, comparison.rows)] == [True]


@pytest.mark.parametrize("suffix", ["json", "parquet"])
def test_one_changed_byte_anywhere_is_noticed(three, settings, suffix):
    for file in stored(settings, suffix):
        good = file.read_bytes()
        for position in (0, len(good) // 3, len(good) - 1):
            bad = bytearray(good)
            bad[position] ^= 1
            file.write_bytes(bad)
            with pytest.raises(DecisionError, match=f"decision .*{file.stem[:12]}.* changed"):
                three.verify()
        file.write_bytes(good)
    assert three.verify() == HONEST


def test_a_missing_file_is_named(three, settings):
    file = stored(settings, "parquet")[0]
    file.unlink()
    with pytest.raises(DecisionError, match=f"{file.name} is missing in run"):
        three.verify()


def test_a_chain_that_was_cut_or_lost_is_noticed(three, registry):
    head = registry.notes("decisions.head")["decisions.head"]
    earlier = json.dumps(three._read_record(json.loads(head))["previous"])
    for forged in (earlier, ""):
        registry.note("decisions.head", lambda _: forged)
        with pytest.raises(DecisionError, match="not in the chain"):
            three.verify()
    registry.note("decisions.head", lambda _: head)
    assert three.verify() == HONEST


def test_a_verdict_that_the_rows_do_not_give_is_noticed(three, registry, settings):
    "A forger who rewrites the last record with a name that fits, and the tags too."
    link = three.head()
    record = three._read_record(link)
    rows = three._file(link, f"{link['id']}.parquet")
    record["comparison"]["settings"]["min_f1_gain"] = 0.5  # "that was the rule at the time"
    data = decisions.canonical_json(record)
    forged = {"id": decisions.sha256(data), "run_id": link["run_id"]}
    folder = next(f for f in stored(settings, "json") if f.stem == link["id"]).parent
    (folder / f"{forged['id']}.json").write_bytes(data)
    (folder / f"{forged['id']}.parquet").write_bytes(rows)
    registry.note("decisions.head", lambda _: json.dumps(forged))
    with pytest.raises(DecisionError, match="decision 4 .* as promote, but the rows give reject"):
        three.verify()


def test_death_before_the_head_moves_changes_nothing(three, compare, monkeypatch):
    class Killed(BaseException):
        pass

    def die(*_):
        raise Killed

    comparison = compare(challenger=Fake("3", 0.5))
    with monkeypatch.context() as m, pytest.raises(Killed):
        m.setattr(ModelRegistry, "note", die)
        three.record(comparison, code="c")
    assert three.verify() == HONEST
    three.record(comparison, code="c")
    assert three.verify().decisions == 5


def test_rivals_line_up_one_behind_the_other(registry, settings, compare):
    comparisons = [compare(challenger=Fake("2", right)) for right in (0.6, 0.7, 0.9)]
    barrier, failed = threading.Barrier(3), []

    def record(comparison):
        try:
            barrier.wait()
            DecisionLog(ModelRegistry(settings)).record(comparison, code="c")
        except Exception as e:
            failed.append(e)

    threads = [threading.Thread(target=record, args=(c,)) for c in comparisons]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not failed
    assert DecisionLog(registry).verify().decisions == 4


def test_an_empty_history_is_sound(settings):
    log = DecisionLog(ModelRegistry(settings))
    assert log.verify() == Verified(0, 0, 0) and log.list().empty
    with pytest.raises(DecisionError, match="0 decisions start with 'ab'"):
        log.show("ab")


# --- every move of @champion has its record ------------------------------------------------------

MOVERS = {
    ("mlops.model_registry", "client.set_registered_model_alias"),  # what all others end in
    ("mlops.deployer", "self.registry.promote_challenger"),
    ("mlops.deployer", "self.registry.rollback"),
    ("mlops.deployer", "self.decisions.rollback"),  # only writes the record
    ("cli.main", "registry.promote_challenger"),
    ("cli.main", "deployer.rollback"),
}


def test_these_are_all_the_places_that_move_the_champion():
    verbs = r"\.(promote_challenger|rollback|set_registered_model_alias)$"
    assert {
        (name, use)
        for name, tree in parsed().items()
        for _, use in names_used(name, tree)
        if re.search(verbs, use) and use != "db.rollback"
    } == MOVERS  # that one is a transaction's


@pytest.mark.parametrize("verb", ["promote_challenger", "rollback"])
def test_no_move_can_be_asked_for_without_a_record(verb, registry):
    asked = inspect.signature(getattr(ModelRegistry, verb)).parameters["decision"]
    assert asked.default is inspect.Parameter.empty
    for nothing in ("", "ab" * 32):
        with pytest.raises(RegistryError, match="not in the chain"):
            getattr(registry, verb)(nothing)
    assert registry.get_champion().version == "1"


class Fakes:
    "Stands for `load_engine`: no model has to be trained."

    def __call__(self, registry, version, alias, settings):
        return ENGINES["champion" if version.version == "1" else "challenger"]


@pytest.fixture
def by_command(registry, settings, monkeypatch):
    "What `content-arena deploy` calls, on fake engines."
    monkeypatch.setattr(evaluator, "load_engine", Fakes())
    data = SimpleNamespace(
        id="t",
        folder=None,
        manifest={
            "rows": {"read": len(TEST), "test": len(TEST), "quarantined": 0},
            "quarantine": {},
        },
        frame=lambda split: TEST,
        fingerprints=lambda split: fingerprints(TEST.text.tolist()),
    )
    monkeypatch.setattr(entry, "prepare_dataset", lambda *a, **k: data)
    s = settings.model_copy(update={"gate_battle_rounds": 0, "inference_url": "http://127.0.0.1:9"})
    return lambda: asyncio.run(entry.evaluate_and_deploy(s))


def by_hand(registry, *arguments) -> dict:
    s = registry.settings
    pairs = [
        f"{k}={getattr(s, k)}"
        for k in ("tracking_uri", "var_dir", "models_dir", "artifact_dir", "store_url")
    ]
    done = CliRunner().invoke(
        cli.app,
        [
            *arguments,
            "--json",
            "-p",
            "inference_url=http://127.0.0.1:9",
            *(x for pair in pairs for x in ("-p", pair)),
        ],
    )
    assert done.exit_code == 0, done.output or repr(done.exception)
    return json.loads(done.stdout.splitlines()[-1])


def test_deploy_leaves_a_record_and_so_does_a_rollback(registry, by_command):
    done = by_command()
    log = DecisionLog(registry)
    assert (done["status"], registry.get_champion().version) == ("promoted", "2")
    assert registry.history()[-1]["decision"] == done["comparison"]["decision"] == log.head()["id"]
    assert log.verify() == Verified(decisions=2, moves=2, older=0)
    assert (
        by_hand(registry, "registry", "rollback", "--reason", "complaints")["status"]
        == "rolled_back"
    )
    assert log.list().verdict.tolist() == ["by hand", "promote", "rollback"]
    why = log.show(log.head()["id"])
    assert (why["by"], why["reason"], why["version"], why["champion"]) == (
        whoami(),
        "complaints",
        "1",
        "2",
    )
    assert by_hand(registry, "decisions", "verify") == {
        "status": "verified",
        "decisions": 3,
        "moves": 3,
        "older": 0,
    }


def test_a_rejection_has_its_record_too(registry, by_command, monkeypatch):
    monkeypatch.setitem(ENGINES, "challenger", Fake("2", 0.5))
    done = by_command()
    assert (done["status"], registry.get_champion().version) == ("rejected", "1")
    assert registry.get_version("2").tags["decision"] == done["comparison"]["decision"]
    assert DecisionLog(registry).verify() == Verified(decisions=2, moves=1, older=0)
    with pytest.raises(RegistryError, match="says reject: it moves nothing"):
        registry.promote_challenger(done["comparison"]["decision"])


def test_a_promotion_by_hand_says_who(registry):
    by_hand(registry, "registry", "promote", "2", "--reason", "I know better")
    log = DecisionLog(registry)
    why = log.find(registry.history()[-1]["decision"])
    assert (why["kind"], why["by"], why["reason"]) == ("by hand", whoami(), "I know better")
    assert log.verify() == Verified(decisions=2, moves=2, older=0)


def test_nobody_promotes_by_hand_while_another_deploys(registry):
    with Journal(registry.settings).alone("nightly run"):
        with pytest.raises(
            AssertionError, match="another deployment is running .nightly run: process"
        ):
            by_hand(registry, "registry", "promote", "2", "--reason", "I know better")
    assert registry.get_champion().version == "1"


def test_a_deployer_can_not_be_given_a_verdict_that_nobody_recorded(registry, settings, compare):
    d = ModelDeployer(
        registry,
        settings,
        stage.Notices(settings.path("var_dir")),
        client=InferenceClient(settings, Secrets(), backoff_s=0),
    )
    rejected = DecisionLog(registry).record(compare(challenger=Fake("2", 0.5)), code="c")
    for forged, why in (("ab" * 32, "not in the chain"), ("", "give test set and evaluator")):
        with pytest.raises(RuntimeError, match=why):
            asyncio.run(d.deploy_if_better(decision=forged))
    assert asyncio.run(d.deploy_if_better(decision=rejected["decision"]))["status"] == "rejected"
    assert registry.get_champion().version == "1"


def test_death_between_record_and_move_leaves_a_decision_that_moved_nothing(
    registry, by_command, monkeypatch
):
    class Killed(BaseException):
        pass

    def die(*_, **__):
        raise Killed

    with monkeypatch.context() as m, pytest.raises(Killed):
        m.setattr(ModelRegistry, "promote_challenger", die)
        by_command()
    assert registry.get_champion().version == "1"
    assert DecisionLog(registry).verify() == Verified(decisions=2, moves=1, older=0)
    assert by_command()["status"] == "promoted"
    assert DecisionLog(registry).verify() == Verified(decisions=3, moves=2, older=0)


def test_a_move_past_the_registry_is_noticed(three, registry):
    registry._client.set_registered_model_alias(registry.name, "champion", "2")
    with pytest.raises(
        DecisionError, match="@champion is v2, but .* made it v1: .*without a record"
    ):
        three.verify()
    forged = dict(
        action="promote",
        version="2",
        replaces="1",
        previous="1",
        reason="F1 +0.03",
        decision="",
        report="",
        time="2100-01-01T00:00:00.000000Z",
    )
    registry._client.set_registered_model_tag(registry.name, "event.2100", json.dumps(forged))
    with pytest.raises(DecisionError, match="promote v2 .*has no decision record"):
        three.verify()


def test_moves_from_before_records_were_required_are_counted(registry, compare, settings):
    "A registry as the version before this rule left it: events without a decision, no record of theirs."
    for key, text in registry.notes("event.").items():
        old = json.dumps(json.loads(text) | {"decision": ""})
        registry._client.set_registered_model_tag(registry.name, key, old)
    registry.note("decisions.head", lambda _: "")
    log = DecisionLog(registry)
    assert log.verify() == Verified(decisions=0, moves=0, older=1)
    registry.promote_challenger(log.record(compare(), code="c")["decision"])
    assert log.verify() == Verified(decisions=1, moves=1, older=1)
    registry._client.set_registered_model_alias(registry.name, "champion", "1")
    with pytest.raises(DecisionError, match="without a record"):
        log.verify()

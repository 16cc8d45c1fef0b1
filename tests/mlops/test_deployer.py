"""Deployments that are killed, disturbed or raced: what a notebook can't show."""

import asyncio
import json
import os
import signal
import socket
import threading
from contextlib import contextmanager
from unittest.mock import patch

import httpx
import pytest
from pydantic import SecretStr

import stage
from content_arena.core.config import Secrets
from content_arena.mlops.alerting import Notifier
from content_arena.mlops.decision_records import whoami
from content_arena.serving.app import create_app

pytestmark = pytest.mark.long(40)

STATES = ("intent", "promoted", "reloaded", "verified", "done")
FORWARD = [f"{when}:{state}" for state in STATES for when in ("before", "after")] + ["in:promote"]
BACKWARD = [
    f"{when}:{state}" for state in ("rolling_back", "rolled_back") for when in ("before", "after")
] + ["in:rollback"]


@pytest.fixture
def folder(tmp_path):
    "3 is champion, 4 the challenger."
    stage.FileRegistry(tmp_path).set(champion="3", challenger="4", previous="2")
    return tmp_path


def deploy(folder, url, **kw):
    d = stage.deployer(folder, url, **kw)
    return asyncio.run(d.deploy_if_better(decision=decided(folder)))


def decided(folder) -> str:
    "The record that says: 4 over 3; the one there is, or a new one."
    registry = stage.FileRegistry(folder)
    known = [
        link["id"]
        for link, r in stage.DecisionChain(registry).backwards()
        if r["kind"] == "comparison"
    ]
    return known[0] if known else stage.recorded(registry, "3", "4")


def on_record(folder) -> int:
    "How many moves of champion there were, each with the record that permits it."
    return stage.DecisionChain(stage.FileRegistry(folder)).moves().recorded


def served(url) -> str:
    return httpx.get(f"{url}/ready").json()["model_version"]


def kill_at(point, folder, url):
    with stage.process("deploy", str(folder), url, point, decided(folder)) as p:
        out, err = p.communicate(timeout=60)
    assert p.returncode == -signal.SIGKILL, (point, out, err)


@contextmanager
def watching(registry):
    "Reads @champion all the time; yields the list of failed reads."
    failed, stop = [], threading.Event()

    def read():
        while not stop.wait(0.001):
            try:
                assert registry.get_champion() is not None
            except Exception as e:
                failed.append(e)

    reader = threading.Thread(target=read)
    reader.start()
    try:
        yield failed
    finally:
        stop.set()
        reader.join()


# --- killed at every step ------------------------------------------------------------------------


@pytest.mark.parametrize("point", FORWARD)
def test_a_killed_deployment_is_finished_by_the_next(point, folder):
    registry = stage.FileRegistry(folder)
    with stage.service(folder) as url, watching(registry) as failed_reads:
        kill_at(point, folder, url)
        between = registry.aliases()["champion"], served(url)
        # either of the moments a death can come at: before, between and after both sides
        assert between in {("3", "3"), ("4", "3"), ("4", "4")}
        result = deploy(folder, url)
        assert (registry.aliases()["champion"], served(url)) == ("4", "4")
    assert result["status"] == "promoted"  # also if it was over: the outcome is looked up
    assert stage.deployer(folder, url).journal.read().state == "done"
    assert on_record(folder) == 1
    assert "promoted" in stage.Notices(folder).sent
    assert not failed_reads


@pytest.mark.parametrize("point", BACKWARD)
def test_a_killed_rollback_is_finished_by_the_next(point, folder):
    registry = stage.FileRegistry(folder)
    (folder / "broken-4").touch()
    with stage.service(folder) as url, watching(registry) as failed_reads:
        kill_at(point, folder, url)
        assert served(url) == "3"
        result = deploy(folder, url)
        assert (registry.aliases()["champion"], served(url)) == ("3", "3")
    assert result["status"] == "rolled_back"
    assert stage.deployer(folder, url).journal.read().state == "rolled_back"
    assert on_record(folder) == 2
    assert "rolled_back" in stage.Notices(folder).sent
    assert not failed_reads


def test_an_undecided_rollback_is_not_turned_around(folder):
    "Killed while going back; meanwhile version 4 would load. The decision to undo it stands."
    (folder / "broken-4").touch()
    with stage.service(folder) as url:
        kill_at("after:rolling_back", folder, url)
        (folder / "broken-4").unlink()
        assert deploy(folder, url)["status"] == "rolled_back"
        assert served(url) == "3"


def test_an_undecided_challenger_is_in_the_shadow_at_once(folder):
    undecided = stage.recorded(stage.FileRegistry(folder), "3", "4", "inconclusive")
    with stage.service(folder, shadow_sample=1) as url:
        stage.FileRegistry(folder).set(challenger=None)
        beside = lambda: httpx.post(f"{url}/reload").json()["challenger"]
        assert beside()["model_version"] is None
        stage.FileRegistry(folder).set(challenger="4")
        result = asyncio.run(stage.deployer(folder, url).deploy_if_better(decision=undecided))
        assert (result["status"], result["service"]) == ("inconclusive", "serving 3")
        now = beside()
        assert (now["result"], now["model_version"]) == ("unchanged", "4")  # loaded before we asked
        assert served(url) == "3"


# --- two at once ---------------------------------------------------------------------------------


def test_of_two_deployers_one_wins_and_the_other_says_why(folder):
    with stage.service(folder) as url, stage.process("deploy-slowly", str(folder), url) as p:
        said, _, number = p.stdout.readline().rpartition(" ")
        assert said == "comparing in"
        second = deploy(folder, url)
        out, _ = p.communicate("\n", timeout=180)  # an evaluator brings torch
        first = json.loads(out)
        assert first["status"] == "promoted" and served(url) == "4"
    assert second["status"] == "busy" and f"process {int(number)} on" in second["reason"]


def test_somebody_moved_the_champion_while_we_compared(folder):
    registry = stage.FileRegistry(folder)

    class Slow:
        def compare(self, test):
            registry.set(champion="9")
            return stage.compared("3", "4")

    with stage.service(folder) as url:
        result = asyncio.run(stage.deployer(folder, url, evaluator=Slow()).deploy_if_better("test"))
        assert served(url) == "9"
    assert result["status"] == "busy" and "champion is 9" in result["reason"]
    assert registry.aliases()["champion"] == "9"


def test_the_challenger_was_withdrawn_while_we_compared(folder):
    registry = stage.FileRegistry(folder)

    class Slow:
        def compare(self, test):
            registry.set(challenger=None)
            return stage.compared("3", "4")

    d = stage.deployer(folder, "http://127.0.0.1:9", evaluator=Slow())
    assert asyncio.run(d.deploy_if_better("test"))["status"] == "busy"
    assert registry.aliases()["champion"] == "3" and d.journal.read().closed


# --- the service misbehaves ----------------------------------------------------------------------


def test_a_model_that_kills_the_service_is_taken_back(folder):
    (folder / "deadly-4").touch()
    with stage.service_process(folder) as (p, url):
        httpx.post(f"{url}/reload").raise_for_status()
        result = deploy(folder, url)
        assert p.wait(10) == -signal.SIGKILL
    assert (result["status"], result["service"]) == ("rolled_back", "not running")
    assert "before, it was serving 3" in result["reason"]
    assert stage.FileRegistry(folder).aliases()["champion"] == "3"


@pytest.mark.parametrize(
    "talk", [b"", b"HTTP/1.1 200 OK\r\nx-endless: "], ids=["silent", "trickling"]
)
def test_a_service_that_hangs_is_given_up(talk, folder):
    stop = threading.Event()

    def hang(connection):
        with connection:
            connection.sendall(talk)
            while talk and not stop.wait(0.05):
                try:
                    connection.sendall(b".")
                except OSError:
                    return
            stop.wait(30)

    def accept(server):
        while not stop.is_set():
            try:
                threading.Thread(target=hang, args=[server.accept()[0]]).start()
            except TimeoutError:
                pass

    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.1)
        acceptor = threading.Thread(target=accept, args=[server])
        acceptor.start()
        try:
            url = f"http://127.0.0.1:{server.getsockname()[1]}"
            result = deploy(folder, url, reload_timeout_s=0.4)
        finally:
            stop.set()
            acceptor.join()
    assert result["status"] == "rolled_back" and "no answer within 0.4 s" in result["reason"]
    assert stage.FileRegistry(folder).aliases()["champion"] == "3"


def test_no_service_is_an_outcome(folder):
    with socket.create_server(("127.0.0.1", 0)) as s:
        port = s.getsockname()[1]
    result = deploy(folder, f"http://127.0.0.1:{port}")
    assert (result["status"], result["service"]) == ("promoted", "not running")


def test_a_service_with_a_token_wants_it(folder):
    secret = Secrets(api_token=SecretStr("s3cret-비밀"))
    s = stage.settings(folder)
    app = create_app(s, secret, stage.FileLoader(folder))
    with stage.serving(app) as url:
        assert deploy(folder, url)["status"] == "rolled_back"
        stage.FileRegistry(folder).set(champion="3", challenger="4")
        d = stage.deployer(folder, url)
        d.client = stage.InferenceClient(stage.settings(folder, inference_url=url), secret)
        again = stage.recorded(stage.FileRegistry(folder), "3", "4")  # a record permits one move
        result = asyncio.run(d.deploy_if_better(decision=again))
        assert (result["status"], served(url)) == ("promoted", "4")
    assert "s3cret" not in json.dumps(result) + str(d.journal.read())


# --- interrupted, disk, registry, webhook --------------------------------------------------------


def test_ctrl_c_during_the_move_waits_for_it(folder):
    d = stage.deployer(folder, "http://127.0.0.1:9")
    moving, go_on = threading.Event(), threading.Event()
    move = d.registry.promote_challenger

    def slow_move(decision):
        moving.set()
        assert go_on.wait(30)
        move(decision)

    d.registry.promote_challenger = slow_move

    async def interrupted():
        first = asyncio.create_task(d.deploy_if_better(decision=decided(folder)))
        await asyncio.to_thread(moving.wait)
        first.cancel()
        for _ in range(10):
            await asyncio.sleep(0)  # let the cancellation arrive
        other = stage.deployer(folder, "http://127.0.0.1:9")
        second = await other.deploy_if_better(decision=decided(folder))
        go_on.set()
        with pytest.raises(asyncio.CancelledError):
            await first
        return second["status"]

    assert asyncio.run(interrupted()) == "busy"  # the lock was held until the move was over
    assert stage.FileRegistry(folder).aliases()["champion"] == "4"
    with stage.service(folder) as url:
        assert deploy(folder, url)["status"] == "promoted"


def test_a_full_disk_moves_nothing(folder):
    decided(folder)
    with patch("os.fsync", side_effect=OSError(28, "No space left on device")):
        with pytest.raises(OSError, match="No space left"):
            deploy(folder, "http://127.0.0.1:9")
    assert stage.FileRegistry(folder).aliases()["champion"] == "3"
    assert stage.Notices(folder).sent == ["failed"]


def test_a_registry_that_goes_away_leaves_an_open_journal(folder):
    with stage.service(folder) as url:
        d = stage.deployer(folder, url)

        def away(*_):
            d.registry.get_champion = away
            raise ConnectionError("MLflow does not answer")

        d.registry.promote_challenger = away
        with pytest.raises(ConnectionError):
            asyncio.run(d.deploy_if_better(decision=decided(folder)))
        assert d.journal.read().state == "intent"
        assert deploy(folder, url)["status"] == "promoted"
        assert served(url) == "4"


def test_an_answer_that_got_lost_is_looked_up(folder):
    "The registry moved the alias, but its answer never came: that is not a failure."
    with stage.service(folder) as url:
        d = stage.deployer(folder, url)
        move = d.registry.promote_challenger

        def promote(decision):
            move(decision)
            raise ConnectionError("connection lost")

        d.registry.promote_challenger = promote
        result = asyncio.run(d.deploy_if_better(decision=decided(folder)))
        assert (result["status"], served(url)) == ("promoted", "4")


def test_a_dead_webhook_fails_nothing(folder):
    with socket.create_server(("127.0.0.1", 0)) as s:
        port = s.getsockname()[1]
    dead = Secrets(slack_webhook_url=SecretStr(f"http://127.0.0.1:{port}/services/s3cret"))
    with stage.service(folder) as url:
        d = stage.deployer(folder, url)
        d.notifier = Notifier(d.settings, dead, backoff_s=0)
        result = asyncio.run(d.deploy_if_better(decision=decided(folder)))
    assert result["status"] == "promoted" and not result["notified"]["delivered"]
    assert "ConnectError" in result["notified"]["reason"] and "s3cret" not in json.dumps(result)


def test_a_damaged_journal_is_for_a_person(folder):
    d = stage.deployer(folder, "http://127.0.0.1:9")
    d.journal.old_file.parent.mkdir(parents=True)
    d.journal.old_file.write_text('{"state": "prom')
    with pytest.raises(RuntimeError, match="deploy.json can't be read.*move the file away"):
        asyncio.run(d.deploy_if_better(decision=decided(folder)))
    assert stage.FileRegistry(folder).aliases()["champion"] == "3"
    assert os.listdir(d.journal.old_file.parent).count("deploy.json") == 1


# --- with the real registry ----------------------------------------------------------------------


class RegistryLoader(stage.FileLoader):
    "Finds what the model registry says, loads a Scorer for it."

    def __init__(self, folder, registry):
        super().__init__(folder)
        self.registry = registry

    def find(self, alias):
        return self.registry.get_champion()


@pytest.mark.slow
def test_three_versions_through_the_model_registry(tmp_path):
    "Bootstrapped, promoted, rolled back; the aliases, the service and the version's tags agree."
    from forks import log_run, make_settings
    from content_arena.mlops.model_registry import ModelRegistry

    s = make_settings(tmp_path)
    registry = ModelRegistry(s)
    (tmp_path / "broken-3").touch()
    with stage.serving(create_app(s, Secrets(), RegistryLoader(tmp_path, registry))) as url:
        s = make_settings(tmp_path, inference_url=url)
        results = []
        for old, new in ((None, "1"), ("1", "2"), ("2", "3")):
            assert registry.register_challenger(log_run(s, f"model-{new}")).version == new
            d = stage.ModelDeployer(
                registry,
                s,
                stage.Notices(tmp_path),
                client=stage.InferenceClient(s, Secrets(), backoff_s=0.01),
            )
            decision = stage.recorded(registry, old, new, "promote" if old else "bootstrap")
            results.append(asyncio.run(d.deploy_if_better(decision=decision)))
        metrics = httpx.get(f"{url}/metrics").text
        by_hand = asyncio.run(d.rollback("complaints"))
        assert served(url) == "1"
    assert [r["status"] for r in results] == ["bootstrapped", "promoted", "rolled_back"]
    assert [r["service"] for r in results] == ["serving 1", "serving 2", "serving 2"]
    assert 'content_arena_model_f1_score{alias="champion"} 0.84' in metrics
    assert (by_hand["status"], registry.get_champion().version) == ("rolled_back", "1")
    assert registry.get_challenger() is None
    actions = [e["action"] for e in registry.history() if e["action"] != "register"]
    assert actions == ["promote", "promote", "promote", "rollback", "rollback"]
    moves = stage.DecisionChain(registry).moves()
    assert (moves.recorded, moves.older) == (5, 0)
    by = [r["by"] for _, r in stage.DecisionChain(registry).backwards() if r["kind"] == "rollback"]
    assert by == [whoami(), "deployer"]

"""A deployment that dies at any step, on the real model registry: finished or undone by the next.

Every process here is a real one and dies by SIGKILL; all along, somebody reads @champion.
"""

import asyncio
import re
import threading
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.synchronize import Barrier
from pathlib import Path

import httpx
import pytest
from fastapi.responses import JSONResponse
from mlflow import MlflowClient

import stage
from content_arena.core.config import Secrets
from content_arena.mlops.decision_records import DecisionChain, Moves
from content_arena.mlops.deployer import InferenceClient, ModelDeployer
from content_arena.mlops.journal import Journal
from content_arena.mlops.model_registry import ModelRegistry, RegistryReader
from content_arena.serving.app import create_app
from forks import WRITES, aliases, context, copy_store, die, killed, make_settings, process
from forks import statuses, told

pytestmark = [pytest.mark.slow, pytest.mark.long(150)]

# What a promotion of v3 over v2 writes, in order: journal states, and the calls to MLflow.
TAGS = ("v2 f1", "v2 precision", "v3 f1", "v3 precision")
PROMOTE = (
    "pending",
    "@champion",
    "@previous",
    "no @challenger",
    "v3 status",
    "v3 reason",
    "v3 updated",
    "v3 decision",
    "v3 replaces",
    "v2 status",
    "v2 reason",
    "v2 updated",
    "event",
    "settled",
)
SERVE = ("promoted", "reloaded", "verified", "done")
# ... and what its undoing writes, if the service can't load v3; first of all, the record of why.
ROLLBACK = (
    "decis",
    "pending",
    "@champion",
    "@previous",
    "v2 status",
    "v2 reason",
    "v2 updated",
    "v2 decision",
    "v3 status",
    "v3 reason",
    "v3 updated",
    "event",
    "settled",
)
PROMOTION = (*TAGS, "intent", *PROMOTE, *SERVE)
WITHDRAWAL = (
    *TAGS,
    "intent",
    *PROMOTE,
    "promoted",
    "rolling_back",
    *(f"back:{step}" for step in ROLLBACK),
    "rolled_back",
)


JOURNAL = ("intent", *SERVE, "rolling_back", "rolled_back")


def points(steps: tuple[str, ...]) -> list[str]:
    """Before and after each journal state, move of an alias, event, and set of a version's tags.

    After one write to MLflow is before the next one. Between two tags of a version: see
    test_death_at_any_write_is_finished_or_undone in test_model_registry.py."""
    version = lambda step: "".join(re.findall(r"v\d ", step))
    names = []
    for last, step, then in zip(("", *steps), steps, (*steps[1:], "")):
        if step in JOURNAL or last in ("", *JOURNAL):
            names.append(f"before {step}")
        if not version(step) or version(step) != version(then):
            names.append(f"after {step}")
    return names


@dataclass
class Steps:
    "What a deployment writes, as it happens; ends the process at one of the points."

    end: str = ""
    prefix: str = ""

    def __post_init__(self):
        self.seen: list[str] = []

    def take(self, step: str, write):
        if self.end == f"before {step}":
            die()
        result = write()
        if self.end == f"after {step}":
            die()
        self.seen.append(step)
        return result

    def _name(self, verb: str, *args: str) -> str:
        if verb == "set_registered_model_alias":
            return f"{self.prefix}@{args[0]}"
        if verb == "delete_registered_model_alias":
            return f"{self.prefix}no @{args[0]}"
        if verb == "set_model_version_tag":
            return f"{self.prefix}v{args[0]} {args[1]}"
        key, value = args
        return self.prefix + ((key if value else "settled") if key == "pending" else key[:5])

    def watch(self) -> None:
        "From now on MLflow's writes in this process are steps."
        for verb in WRITES:

            def call(client, model, *args, _verb=verb, _write=getattr(MlflowClient, verb)):
                return self.take(self._name(_verb, *args), lambda: _write(client, model, *args))

            setattr(MlflowClient, verb, call)


class WatchedJournal(Journal):
    "Its states are steps."

    def __init__(self, settings, steps: Steps):
        super().__init__(settings)
        self.steps = steps

    def _write(self, record, state):
        write = super()._write
        result = self.steps.take(state, lambda: write(record, state))
        self.steps.prefix = "back:" if state == "rolling_back" else ""
        return result


def deployer(
    root: Path,
    url: str,
    steps: Steps | None = None,
    *,
    evaluator=None,
    reload_timeout_s: float = 20,
) -> ModelDeployer:
    s = make_settings(root, inference_url=url, reload_timeout_s=reload_timeout_s)
    client = InferenceClient(s, Secrets(), backoff_s=0.01)
    journal = WatchedJournal(s, steps or Steps())
    return ModelDeployer(
        ModelRegistry(s), s, stage.Notices(root), evaluator, client=client, journal=journal
    )


def decided(root: Path, verdict: str = "promote") -> str:
    "The record of a comparison of v2 and v3."
    return stage.recorded(ModelRegistry(make_settings(root)), "2", "3", verdict)


def deploy(pipe, root: Path, url: str, decision: str, end: str = "") -> None:
    "The call that is killed, and then repeated; sends its result and its steps."
    steps = Steps(end)
    steps.watch()
    result = asyncio.run(deployer(root, url, steps).deploy_if_better(decision=decision))
    pipe.send((result, tuple(steps.seen)))


class Loader(stage.FileLoader):
    "Asks the model registry for the champion, loads a Scorer for it."

    def __init__(self, root: Path):
        self.move_to(root)

    def move_to(self, root: Path) -> None:
        super().__init__(root)
        self.registry = RegistryReader(make_settings(root))

    def find(self, alias):
        return self.registry.get_champion()


@pytest.fixture
def root(tmp_path, three_versions_store) -> Path:
    "v1 is `previous`, v2 is champion, v3 the challenger."
    copy_store(three_versions_store, tmp_path).get_champion()
    return tmp_path


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    "One service for all tests: its URL, and its loader."
    root = tmp_path_factory.mktemp("service")
    loader = Loader(root)
    with stage.serving(create_app(make_settings(root), Secrets(), loader)) as url:
        yield url, loader


@pytest.fixture
def url(root, service):
    "The service serves v2, the champion of `root`."
    url, loader = service
    loader.move_to(root)
    httpx.post(f"{url}/reload", timeout=60).raise_for_status()
    return url


def served(url: str) -> str:
    return httpx.get(f"{url}/ready").json()["model_version"]


@contextmanager
def watching(root: Path):
    "Reads @champion all along, a hundred times a second; fails if it could not be read once."
    reader, stop, began = RegistryReader(make_settings(root)), threading.Event(), threading.Event()
    failed = []

    def read():
        while not stop.wait(0.01):
            try:
                assert reader.get_champion() is not None
            except Exception as e:
                failed.append(e)
            began.set()

    thread = threading.Thread(target=read)
    thread.start()
    try:
        assert began.wait(30)
        yield
    finally:
        stop.set()
        thread.join()
    assert not failed


MOVES_BEFORE = ["register", "promote", "register", "promote", "register"]


def assert_promoted(root: Path, url: str) -> None:
    "The new champion, everywhere and in all it leaves behind; decided once."
    registry = ModelRegistry(make_settings(root))
    assert served(url) == "3"
    assert aliases(registry) == {"champion": "3", "previous": "2"}
    assert statuses(registry) == ["retired", "retired", "champion"]
    assert [e["action"] for e in registry.history()] == [*MOVES_BEFORE, "promote"]
    decision = registry.get_champion().tags["decision"]
    assert registry.history()[-1]["decision"] == decision
    assert DecisionChain(registry).find(decision)["kind"] == "comparison"
    assert DecisionChain(registry).moves() == Moves(recorded=3, older=0)
    assert not registry.notes("pending")["pending"]
    assert deployer(root, url).journal.read().state == "done"
    assert set(stage.Notices(root).sent) == {"promoted"}


def assert_withdrawn(root: Path, url: str) -> None:
    "The old champion, everywhere; that the new one was tried is on record."
    registry = ModelRegistry(make_settings(root))
    assert served(url) == "2"
    assert aliases(registry) == {"champion": "2", "previous": "1"}
    assert statuses(registry) == ["retired", "champion", "rolled_back"]
    past = registry.history()
    assert [e["action"] for e in past] == [*MOVES_BEFORE, "promote", "rollback"]
    record = deployer(root, url).journal.read()
    assert record.state == "rolled_back" and past[-1]["reason"] == record.reason
    assert registry.get_version("3").tags["reason"] == record.reason
    why = DecisionChain(registry).find(past[-1]["decision"])
    assert (why["kind"], why["by"], why["reason"]) == ("rollback", "deployer", record.reason)
    assert DecisionChain(registry).moves() == Moves(recorded=4, older=0)
    assert not registry.notes("pending")["pending"]
    assert set(stage.Notices(root).sent) == {"rolled_back"}


# --- killed at every step ------------------------------------------------------------------------


def test_these_are_all_the_steps_of_a_promotion(root, url):
    result, steps = told(deploy, root, url, decided(root))
    assert result["status"] == "promoted" and steps == PROMOTION
    assert_promoted(root, url)


def test_these_are_all_the_steps_of_a_promotion_that_is_undone(root, url):
    (root / "broken-3").touch()
    result, steps = told(deploy, root, url, decided(root))
    assert result["status"] == "rolled_back" and steps == WITHDRAWAL
    assert_withdrawn(root, url)


@pytest.mark.parametrize("end", points(PROMOTION))
def test_a_killed_promotion_is_finished_by_the_next(end, root, url):
    decision = decided(root)
    with watching(root):
        killed(deploy, root, url, decision, end)
        between = RegistryReader(make_settings(root)).get_champion().version, served(url)
        result, _ = told(deploy, root, url, decision)
    # either nothing was moved yet, the alias alone, or alias and service: it depends on the point
    assert between in {("2", "2"), ("3", "2"), ("3", "3")}
    assert result["status"] == "promoted"  # also if it was over: the outcome is looked up
    assert_promoted(root, url)


@pytest.mark.parametrize("end", points(WITHDRAWAL[WITHDRAWAL.index("rolling_back") :]))
def test_a_killed_rollback_is_finished_by_the_next(end, root, url):
    (root / "broken-3").touch()
    decision = decided(root)
    with watching(root):
        killed(deploy, root, url, decision, end)
        assert served(url) == "2"
        result, _ = told(deploy, root, url, decision)
    assert result["status"] == "rolled_back"
    assert_withdrawn(root, url)


@pytest.mark.parametrize("end", ("before no @challenger", "after no @challenger"))
def test_a_killed_rejection_is_on_record_after_the_next(end, root, url):
    "It needs no journal: the registry finishes its own move."
    decision = decided(root, "reject")
    with watching(root):
        killed(deploy, root, url, decision, end)
        result, _ = told(deploy, root, url, decision)
    registry = ModelRegistry(make_settings(root))
    assert result["status"] == "rejected"
    assert aliases(registry) == {"champion": "2", "previous": "1"}
    assert statuses(registry) == ["retired", "champion", "rejected"]
    assert [e["action"] for e in registry.history()] == [*MOVES_BEFORE, "reject"]


# --- two at once ---------------------------------------------------------------------------------


class Asking:
    "An evaluator that says when it compares, and answers when it is told to."

    def __init__(self, pipe):
        self.pipe = pipe

    def compare(self, test):
        self.pipe.send("comparing")
        self.pipe.recv()
        return stage.compared("2", "3")


def compete(pipe, root: Path, url: str, start: Barrier) -> None:
    d = deployer(root, url, evaluator=Asking(pipe))
    start.wait(30)
    pipe.send(asyncio.run(d.deploy_if_better("the test set")))


def test_of_two_deployers_one_wins_and_the_other_says_why(root, url):
    args = root, url, context.Barrier(2)
    with watching(root), process(compete, *args) as one, process(compete, *args) as other:
        said = [(child.pid, pipe, pipe.recv()) for child, pipe in (one, other)]
        ((winner, pipe, _),) = [s for s in said if s[2] == "comparing"]
        ((_, _, loser),) = [s for s in said if s[2] != "comparing"]
        who = rf"process {winner} on|a process that has just started"
        assert loser["status"] == "busy" and re.search(who, loser["reason"])
        assert aliases(ModelRegistry(make_settings(root)))["champion"] == "2"
        pipe.send("go on")
        assert pipe.recv()["status"] == "promoted"
    assert_promoted(root, url)


# --- the service does not do as it is told -------------------------------------------------------


async def error_500(scope, receive, send):
    await JSONResponse({"detail": "out of memory"}, 500)(scope, receive, send)


async def silence(scope, receive, send):
    while (await receive())["type"] != "http.disconnect":
        pass


async def empty_promise(scope, receive, send):
    await JSONResponse({"model_version": "3"})(scope, receive, send)


class Stray(Loader):
    "Loads v1 where v3 is meant."

    def find(self, alias):
        version = super().find(alias)
        return self.registry.get_version("1") if version.version == "3" else version


@pytest.mark.parametrize(
    "answer, loader, why",
    [
        (error_500, Loader, "HTTP 500: out of memory"),
        (silence, Loader, "no answer within 3 s"),
        (empty_promise, Loader, "serves version 2 .*expected 3"),
        (None, Stray, "loaded version 1, not 3"),
    ],
    ids=["answers 500", "never answers", "says it did, serves another", "loads another"],
)
def test_what_the_service_can_not_serve_is_taken_back(root, answer, loader, why):
    service, reader = create_app(make_settings(root), Secrets(), loader(root)), Loader(root)

    async def app(scope, receive, send):
        told_v3 = scope.get("path") == "/reload" and reader.find("champion").version == "3"
        await (answer if told_v3 and answer else service)(scope, receive, send)

    with stage.serving(app) as url:
        httpx.post(f"{url}/reload").raise_for_status()
        with watching(root):
            # long enough for a busy machine to serve v2 again
            d = deployer(root, url, reload_timeout_s=3)
            result = asyncio.run(d.deploy_if_better(decision=decided(root)))
        assert (result["status"], result["service"]) == ("rolled_back", "serving 2")
        assert re.search(why, result["reason"]) and result["notified"]["delivered"]
        assert result["reason"] == d.journal.read().reason
        assert_withdrawn(root, url)

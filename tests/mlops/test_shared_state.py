"""Deployments of several machines that share an event store: one at a time, and each finishes what another left.

A machine is a process with a `var_dir` of its own, which nobody else can read.
"""

import asyncio
import re
from datetime import datetime
from pathlib import Path

import pytest

import stage
from content_arena.mlops.journal import Busy, Journal
from content_arena.store.events import EventStore
from content_arena.store.lease import LeaseLost
from content_arena.store.schema import StoreUnavailable
from forks import killed, told

NOWHERE = "http://127.0.0.1:9"  # no service runs: a deployment is complete without


@pytest.fixture
def folder(tmp_path) -> Path:
    "The registry, which all machines see: 3 is champion, 4 the challenger."
    stage.FileRegistry(tmp_path).set(champion="3", challenger="4", previous="2")
    return tmp_path


def on(machine: str, folder: Path, store_url: str, kill: str = ""):
    "The deployer of a machine."
    more = dict(var_dir=str(folder / machine), store_url=store_url)
    return stage.deployer(folder, NOWHERE, kill=kill, **more)


def decided(folder: Path) -> str:
    return stage.recorded(stage.FileRegistry(folder), "3", "4")


def champion(folder: Path) -> str:
    return stage.FileRegistry(folder).aliases()["champion"]


def deploy(pipe, machine, folder, store_url, decision, kill="") -> None:
    pipe.send(asyncio.run(on(machine, folder, store_url, kill).deploy_if_better(decision=decision)))


@pytest.mark.parametrize("point", ("after:intent", "in:promote", "after:promoted"))
def test_what_a_killed_machine_left_is_finished_by_another(point, folder, store_url):
    decision = decided(folder)
    killed(deploy, "gpu-1", folder, store_url, decision, point)
    left = on("gpu-2", folder, store_url).journal.read()
    assert (left.closed, left.new) == (False, "4")
    result = told(deploy, "gpu-2", folder, store_url, decision)
    assert (result["status"], champion(folder)) == ("promoted", "4")
    assert on("gpu-3", folder, store_url).journal.read().state == "done"


def another_machine(journal: Journal) -> Journal:
    "As if its lease were held by a process that can't be looked at from here."
    journal.lease._process = "another-boot pid:[1] pid 1 1"
    return journal


def test_one_deploys_the_others_say_who_and_one_that_slept_writes_nothing(folder, store_url):
    one, other = (on(m, folder, store_url) for m in ("gpu-1", "gpu-2"))
    with another_machine(one.journal).alone("nightly run"):
        record = one.journal.begin(new="4", old="3", reason="better")
        said = asyncio.run(other.deploy_if_better(decision=decided(folder)))
        assert said["status"] == "busy" and champion(folder) == "3"
        who = r"nightly run: process \d+ on \S+, since (\S+ \S+) UTC; if it dies, until"
        since = datetime.fromisoformat(re.search(who, said["reason"])[1])
        assert abs((since - datetime.utcnow()).total_seconds()) < 600
        with pytest.raises(Busy, match="nightly run"), other.journal.alone():
            pass
        # its lease runs out while it sleeps, and another finishes what it began
        with EventStore.open(store_url) as store:
            store.update("leases", one.journal.lease._row(1), until="2026-01-01T00:00+00:00")
        result = asyncio.run(other.deploy_if_better(decision=decided(folder)))
        assert (result["status"], champion(folder)) == ("promoted", "4")
        with pytest.raises(LeaseLost, match="lease 1 of deploy was taken over"):
            one.journal.advance(record, "promoted")
        with pytest.raises(LeaseLost):
            one._move_under_lease(decided(folder))
    assert other.journal.read().state == "done"


def stop_at(pipe, folder, store_url, decision, postgres, when: str) -> None:
    "A deployment during which the event store goes away; sends the error's name."
    d = on("gpu-1", folder, store_url)
    owner, name = {
        "before the intent": (d.client, "probe"),
        "after the move": (d.registry, "promote_challenger"),
    }[when]
    whole = getattr(owner, name)

    def then_away(*args):
        result = whole(*args)
        postgres.stop()
        return result

    setattr(owner, name, then_away)
    try:
        asyncio.run(d.deploy_if_better(decision=decision))
    except StoreUnavailable as e:
        pipe.send(type(e).__name__)


@pytest.mark.slow
@pytest.mark.parametrize(
    "when, between", [("before the intent", "3"), ("after the move", "4")], ids=["before", "after"]
)
def test_a_store_that_goes_away_leaves_nothing_half(when, between, folder, postgres):
    "The old champion, or the new one with an open record; the next deployment finishes it."
    url, decision = postgres.new(), decided(folder)
    try:
        assert told(stop_at, folder, url, decision, postgres, when) == "StoreUnavailable"
    finally:
        postgres.start()
    assert champion(folder) == between
    assert stage.Notices(folder).sent == ["failed"]
    left = on("gpu-2", folder, url).journal.read()
    assert left is None if between == "3" else left.state == "intent"
    result = told(deploy, "gpu-2", folder, url, decision)
    assert (result["status"], champion(folder)) == ("promoted", "4")
    assert on("gpu-2", folder, url).journal.read().state == "done"

"""Two nights on a runner that forgets: each begins with a fresh clone, an empty disk and the URLs of what lasts.

Every variant begins where the first night ended: MLflow's and the store's rows of that moment are put back. Always run are
those in which something is promoted, refused or killed; the others (marked `nights`) are run by `scripts/two-nights`.
"""

import json
import os
import signal
import subprocess
from pathlib import Path

import httpx
import pytest
from nights import TOKENS, World, reached, result_of, switch_off

from content_arena.store.events import EventStore
from content_arena.store.lease import Lease
from content_arena.workflows.retraining import AutoRetrain

pytestmark = [pytest.mark.slow, pytest.mark.long(240), pytest.mark.needs("postgres")]

LABELLED = "xqvjzkwpthbc awful zxcvbk"


@pytest.fixture(scope="module")
def world(postgres, tmp_path_factory):
    made = World(tmp_path_factory.mktemp("world"), postgres.new())
    try:
        yield made
    finally:
        made.close()


@pytest.fixture(scope="module")
def first(world: World) -> Path:
    "Night 1: nobody is champion yet, and a person allows the first one. As a runner does it, with nothing loaded before."
    world.start_service()
    code, into = world.night(
        *["--input", "allow_bootstrap=true", "--input", "profile=smoke"],
        event="workflow_dispatch",
        ordinary=True,
    )
    assert code == 0, world.said(into)
    world.better_comments()
    world.keep()
    return into


@pytest.fixture
def second(world: World, first: Path) -> World:
    "The evening before night 2: a moderator has labelled a comment, and the next model will be better."
    world.restore()
    label = {"text": LABELLED, "label": 1, "source": "moderator", "reviewer": "kim"}
    token = {"Authorization": f"Bearer {TOKENS['CONTENT_ARENA_API_TOKEN']}"}
    done = httpx.post(f"{world.service_url}/feedback", json=label, headers=token, timeout=30)
    done.raise_for_status()
    return world


def json_of(world: World, into: Path) -> dict:
    "The last line of JSON that the night's command printed."
    lines = world.said(into).splitlines()
    return json.loads([line for line in lines if line.startswith('{"')][-1])


def is_right(world: World, into: Path, code: int, champion: str = "") -> None:
    """What has to hold after a night that was not disturbed, whatever happened in the nights before.

    Its own outcome, and the registry's, the service's, the labels' and the leases' state. `champion`: its hash, if it is
    another one than the night's own model."""
    assert code == 0, world.said(into)
    said = json_of(world, into)
    assert said["labels"] == 1 and said["start"] == "new_samples"
    versions, now = world.registry.versions(), world.champion()
    assert len({v.run_id for v in versions}) == len(versions)  # none was registered twice
    statuses = [v.status for v in versions]
    assert statuses.count("champion") == 1, statuses
    assert statuses.count("challenger") == bool(world.registry.get_challenger())
    assert world.served()["model_version"] == now.version != "1"
    own = world.registry.get_version(said["model_version"])
    assert now.sha256 == (champion or own.sha256)
    with EventStore(world.settings) as store:
        for name in ("retrain", "deploy"):
            assert Lease(store, name, 10).held_by() is None
        assert store.read("deployments").state.isin(["done", "rolled_back", "superseded"]).all()
        assert "running" not in set(store.read("retrain_events").status)
        assert AutoRetrain(store, world.settings, pipeline=None).decide()["start"] is None
    learnt = [
        file.read_text().count(LABELLED) for file in (into / "clone/var/retrain").glob("*.jsonl")
    ]
    assert learnt == [1]


def test_a_scheduled_run_does_not_make_the_first_champion(world: World):
    code, into = world.night()
    assert code == 3, world.said(into)
    assert "no champion" in world.said(into) and world.champion() is None
    assert result_of(into)["steps"][-1]["code"] is None  # no report to keep


def test_the_first_night_leaves_a_champion_that_is_served(world: World, first: Path):
    outputs = result_of(first)["outputs"]
    assert (outputs["status"], outputs["outcome"], outputs["model_version"]) == (
        *("bootstrapped", "done"),
        "1",
    )
    assert world.served()["model_version"] == "1"
    kept = {f.name for f in (first / "artifacts").rglob("*") if f.is_file()}
    assert {"03_evaluate.ipynb", "03_evaluate.html"} <= kept
    assert not any(name.endswith((".safetensors", ".pt", ".bin")) for name in kept)
    assert "✅ bootstrapped" in (first / "summary.md").read_text()
    assert outputs["report"].startswith(world.mlflow_door.url)


def test_the_second_night_beats_the_first_and_learns_what_was_labelled_since(second: World):
    champion = second.champion()
    code, into = second.night()
    is_right(second, into, code)
    outputs = result_of(into)["outputs"]
    assert (outputs["status"], outputs["model_version"]) == ("promoted", "2")
    [page] = (into / "clone" / "runs").glob("*/03_evaluate.html")
    assert champion.sha256[:12] in page.read_text(encoding="utf-8")
    assert second.registry.get_previous().sha256 == champion.sha256
    code, into = second.night()  # nothing is left to learn
    assert (code, json_of(second, into)["status"]) == (0, "idle"), second.said(into)


def test_without_a_gpu_the_gpu_profile_does_not_train(world: World):
    code, into = world.night(CONTENT_ARENA_PROFILE="gpu")
    assert code != 0 and result_of(into)["conclusion"] == "failure"
    assert not list((into / "clone").glob("runs/*"))
    [checked] = [s for s in result_of(into)["steps"] if s["name"].startswith("Is the GPU")]
    assert checked["code"]


# Power cuts ------------------------------------------------------------------------------------------


def call(begin: str, word: str = ""):
    return lambda line, body: line == begin and word.encode() in body


API = "/api/2.0/mlflow"
#: where night 2 is when its machine loses power: the door, the call that is held there, whether it is carried out, and
#: whether the champion is another one by then
CUTS = {
    "begun": ("mlflow", call(f"POST {API}/runs/create"), True, False),
    "trains": ("mlflow", call(f"POST {API}/runs/log-batch", "train_loss"), False, False),
    "trained": ("mlflow", call(f"POST {API}/logged-models"), True, False),
    "registers": ("mlflow", call(f"POST {API}/model-versions/create"), True, False),
    "challenges": (
        "mlflow",
        call(f"POST {API}/registered-models/alias", "challenger"),
        True,
        False,
    ),
    "decided": (
        "mlflow",
        call(f"POST {API}/registered-models/set-tag", "decisions.head"),
        True,
        False,
    ),
    "promotes": ("mlflow", call(f"POST {API}/registered-models/alias", '"champion"'), False, False),
    "promoted": ("mlflow", call(f"POST {API}/registered-models/alias", '"champion"'), True, True),
    "reloads": ("service", call("POST /reload"), False, True),
    "verifies": ("service", call("GET /ready"), True, True),
}
ALWAYS = {"trains", "promoted"}


@pytest.mark.parametrize(
    "at", [pytest.param(k, marks=[] if k in ALWAYS else pytest.mark.nights) for k in CUTS]
)
def test_whenever_night_two_loses_its_machine_night_three_is_right(second: World, at: str):
    door, meant, after, moved = CUTS[at]
    doors = {"mlflow": second.mlflow_door, "service": second.service_door}
    stop = doors[door].stop_at(meant, after)
    before = second.champion().sha256
    process, _ = second.night(wait=False)
    reached(stop, process)
    switch_off(process, stop)
    for each in doors.values():
        each.open()
    left = second.champion().sha256
    assert (left != before) == moved
    assert second.served()["model_version"] == ("2" if at == "verifies" else "1")
    code, into = second.night()
    is_right(second, into, code, left if moved else "")
    assert "begun from zero" in second.said(into)
    told = [title for title in second.slack.titles() if "New champion" in title]
    assert len(told) == 1, second.slack.titles()


# Everything else that happens at night ---------------------------------------------------------------


def test_of_two_runners_one_trains_and_the_other_says_who(second: World):
    """Then the one that trains is cancelled: its report is kept, people hear of it, and the next night is right."""
    stop = second.mlflow_door.stop_at(call(f"POST {API}/runs/log-batch", "train_loss"))
    process, into = second.night(wait=False)
    reached(stop, process)
    code, other = second.night()
    assert code == 4, second.said(other)
    assert result_of(other)["outputs"]["outcome"] == "busy"
    assert "somebody trains" in second.said(other) and os.uname().nodename in second.said(other)
    process.send_signal(signal.SIGINT)
    code = process.wait(300)
    assert code == 130, second.said(into)
    assert result_of(into)["outputs"]["outcome"] == "interrupted"
    kept = {f.name for f in (into / "artifacts").rglob("*") if f.is_file()}
    assert "02_train.ipynb" in kept
    assert any("stopped from outside" in title for title in second.slack.titles())
    second.mlflow_door.open()
    code, into = second.night()
    is_right(second, into, code)


@pytest.mark.nights
def test_a_re_run_on_a_runner_that_was_kept_goes_on_with_the_night(second: World):
    stop = second.mlflow_door.stop_at(call(f"POST {API}/model-versions/create"))
    process, into = second.night(wait=False)
    reached(stop, process)
    switch_off(process, stop)
    second.mlflow_door.open()
    code, into = second.night("--attempt", "2", again=into)
    is_right(second, into, code)
    again = second.said(into).split("== Learn")[2]
    assert "going on with" in again and "02_train: done before" in again


@pytest.mark.nights
def test_a_notice_that_is_not_delivered_is_a_failure_if_required(second: World):
    """The workflow does not require it: its job `notify` tells. Here the profile that is cloned does."""
    settings = second.origin / "settings.ini"
    before = settings.read_text()
    commit = ["git", "-c", "user.name=t", "-c", "user.email=t@invalid", "commit", "-qam", "x"]
    settings.write_text(
        before.replace("\nstore_text = true", "\nstore_text = true\nrequire_notice = true")
    )
    subprocess.run(commit, cwd=second.origin, check=True)
    try:
        code, into = second.night("--secret=CONTENT_ARENA_SLACK_WEBHOOK_URL=http://127.0.0.1:9/no")
    finally:
        settings.write_text(before)
        subprocess.run(commit, cwd=second.origin, check=True)
    assert code == 6, second.said(into)
    assert result_of(into)["outputs"]["outcome"] == "not told"
    assert second.champion().version == second.served()["model_version"] == "2"


@pytest.mark.nights
def test_mlflow_that_goes_away_in_the_middle_fails_the_night_and_not_the_next(second: World):
    stop = second.mlflow_door.stop_at(call(f"POST {API}/runs/log-batch", "train_loss"))
    patience = "--machine=MLFLOW_HTTP_REQUEST_MAX_RETRIES=1"  # instead of minutes
    process, into = second.night(patience, wait=False)
    reached(stop, process)
    second.mlflow_door.cut = True
    stop.drop()
    code = process.wait(600)
    assert code == 1, second.said(into)
    assert result_of(into)["outputs"]["outcome"] == "failed"
    assert any("failed" in title for title in second.slack.titles())
    second.mlflow_door.open()
    code, into = second.night()
    is_right(second, into, code)


def test_a_refused_reload_is_rolled_back_and_red(second: World):
    before = second.champion()
    second.service_door.says["POST /reload"] = (500, '{"detail": "the model can\'t be loaded"}')
    code, into = second.night()
    assert code == 5, second.said(into)
    outputs = result_of(into)["outputs"]
    assert (outputs["status"], outputs["outcome"]) == ("rolled_back", "not served")
    assert second.champion().sha256 == before.sha256
    assert second.served()["model_version"] == before.version
    assert second.registry.get_version("2").status == "rolled_back"
    assert "can't be loaded" in (into / "summary.md").read_text()


def test_the_week_the_pages_and_the_notice_are_made_of_what_lasts(world: World, first: Path):
    "The other jobs that need no more than the URLs, each on an empty disk."
    world.restore()
    for workflow, job, page in (
        ("monitor.yaml", "monitor", "06_monitor.html"),
        ("pages.yaml", "build", "index.html"),
    ):
        code, into = world.rehearse(workflow, job, world.folder / job)
        assert code == 0, world.said(into)
        assert list((into / "artifacts").rglob(page)), world.said(into)
    code, into = world.rehearse(
        "train.yaml", "notify", world.folder / "notify", "--need=train=failure"
    )
    assert code == 0, world.said(into)
    assert "train failure" in world.slack.messages[-1]["text"]

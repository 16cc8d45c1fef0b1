"""Two nights on a runner that forgets: each begins with a fresh clone, an empty disk and the URLs of what lasts.

Both nights and what is cheap are run always; the variants that train again (marked `nights`) with
`scripts/two-nights`, which takes a quarter of an hour on two free cores.
"""

import json
import os
import random
import signal
import subprocess
from pathlib import Path

import httpx
import pytest
from nights import TOKENS, World, result_of
from watch import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.long(120), pytest.mark.needs("postgres")]


@pytest.fixture(scope="module")
def world(postgres, tmp_path_factory):
    made = World(tmp_path_factory.mktemp("world"), postgres.new())
    try:
        yield made
    finally:
        made.close()


@pytest.fixture(scope="module")
def first(world: World) -> Path:
    "Night 1: nobody is champion yet, and a person allows the first one."
    world.start_service()
    code, into = world.night(
        *["--input", "allow_bootstrap=true", "--input", "profile=smoke"], event="workflow_dispatch"
    )
    assert code == 0, world.said(into)
    return into


def give_label(world: World) -> None:
    "A moderator labels a comment that nobody labelled before."
    word = "".join(random.choices("abcdefghijklmnopqrstuvwxyz", k=12))
    label = {"text": f"{word} awful zxcvbk", "label": 1, "source": "moderator", "reviewer": "kim"}
    token = {"Authorization": f"Bearer {TOKENS['CONTENT_ARENA_API_TOKEN']}"}
    done = httpx.post(f"{world.service_url}/feedback", json=label, headers=token, timeout=30)
    done.raise_for_status()


@pytest.mark.nights
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
    assert outputs["report"].startswith(world.mlflow_url)


def test_the_second_night_knows_the_first_and_what_was_labelled_since(world: World, first: Path):
    champion = world.champion()
    give_label(world)
    code, into = world.night()
    assert code == 0, world.said(into)
    outputs = result_of(into)["outputs"]
    # either: the gate decides, on so little data; what was promoted has to be served
    assert outputs["status"] in ("promoted", "rejected", "inconclusive"), world.said(into)
    [page] = (into / "clone" / "runs").glob("*/03_evaluate.html")
    assert champion.sha256[:12] in page.read_text(encoding="utf-8")
    said = json_of(world, into)
    assert said["labels"] == 1 and said["start"] == "new_samples"
    winner = "2" if outputs["status"] == "promoted" else "1"
    assert world.champion().version == world.served()["model_version"] == winner


def test_without_a_gpu_the_gpu_profile_does_not_train(world: World):
    code, into = world.night(CONTENT_ARENA_PROFILE="gpu")
    assert code != 0 and result_of(into)["conclusion"] == "failure"
    assert not list((into / "clone").glob("runs/*"))
    [checked] = [s for s in result_of(into)["steps"] if s["name"].startswith("Is the GPU")]
    assert checked["code"]


# What trains again ------------------------------------------------------------------------------


def json_of(world: World, into: Path) -> dict:
    "The line of JSON that the night's command printed."
    lines = world.said(into).splitlines()
    return json.loads(next(line for line in lines if line.startswith('{"start"')))


def training(into: Path) -> bool:
    "Whether the night is in its training stage."
    return any((into / "clone").glob("runs/*/02_train.ipynb"))


def stop_all(process: subprocess.Popen, into: Path, number: int) -> None:
    "As a machine that is switched off: every process of the night."
    import psutil

    family = psutil.Process(process.pid).children(recursive=True)
    for member in [*family, psutil.Process(process.pid)]:
        try:
            member.send_signal(number)
        except psutil.NoSuchProcess:
            pass
    process.wait(60)


@pytest.mark.nights
def test_a_cancelled_night_keeps_its_report_and_the_next_is_right(world: World, first: Path):
    give_label(world)
    process, into = world.night(wait=False)
    wait_until(lambda: training(into), "it trains", 600)
    process.send_signal(signal.SIGINT)
    code = process.wait(300)
    assert code == 130, world.said(into)
    outputs = result_of(into)["outputs"]
    assert outputs["outcome"] == "interrupted"
    kept = {f.name for f in (into / "artifacts").rglob("*") if f.is_file()}
    assert "02_train.ipynb" in kept
    assert any("stopped from outside" in title for title in world.slack.titles())
    code, into = world.night()
    assert code == 0, world.said(into)


@pytest.mark.nights
def test_of_two_runners_one_trains_and_after_a_kill_the_next_night_is_right(
    world: World, first: Path
):
    """The other runner says who trains. Then the first is switched off; the third night is as if it had never begun."""
    give_label(world)
    before = world.champion().version
    process, into = world.night(wait=False)
    wait_until(lambda: training(into), "it trains", 900)
    code, other = world.night()
    assert code == 4, world.said(other)
    assert result_of(other)["outputs"]["outcome"] == "busy"
    assert "somebody trains" in world.said(other) and os.uname().nodename in world.said(other)
    stop_all(process, into, signal.SIGKILL)
    assert world.champion().version == world.served()["model_version"] == before
    code, into = world.night()
    assert code == 0, world.said(into)
    assert json_of(world, into)["labels"] >= 1
    assert world.champion().version == world.served()["model_version"]


@pytest.mark.nights
def test_a_notice_that_is_not_delivered_is_a_failure_if_required(world: World, first: Path):
    """The workflow does not require it: its job `notify` tells. Here the profile that is cloned does."""
    settings = world.origin / "settings.ini"
    before = settings.read_text()
    settings.write_text(
        before.replace("store_text = true", "store_text = true\nrequire_notice = true")
    )
    commit = ["git", "-c", "user.name=t", "-c", "user.email=t@invalid", "commit", "-qam", "x"]
    subprocess.run(commit, cwd=world.origin, check=True)
    give_label(world)
    code, into = world.night("--secret=CONTENT_ARENA_SLACK_WEBHOOK_URL=http://127.0.0.1:9/none")
    settings.write_text(before)
    subprocess.run(commit, cwd=world.origin, check=True)
    assert code == 6, world.said(into)
    assert result_of(into)["outputs"]["outcome"] == "not told"


@pytest.mark.nights
def test_mlflow_that_goes_away_in_the_middle_fails_the_night_and_not_the_next(
    world: World, first: Path
):
    give_label(world)
    process, into = world.night("--var=MLFLOW_HTTP_REQUEST_MAX_RETRIES=1", wait=False)
    wait_until(lambda: training(into), "it trains", 600)
    world.mlflow.kill()
    world.mlflow.wait(60)
    code = process.wait(900)
    assert code == 1, world.said(into)
    assert result_of(into)["outputs"]["outcome"] == "failed"
    world.mlflow = world.start_mlflow()
    code, into = world.night()
    assert code == 0, world.said(into)
    assert world.served()["model_version"] == world.champion().version


@pytest.mark.nights
def test_a_refused_reload_is_rolled_back_and_red(world: World, first: Path):
    """The address that was set answers, but with another service's words."""
    give_label(world)
    before = world.champion().version
    code, into = world.night(
        *["--input", "force=true", "--input", "profile=smoke"],
        event="workflow_dispatch",
        CONTENT_ARENA_INFERENCE_URL=world.mlflow_url,
    )
    outputs = result_of(into)["outputs"]
    if outputs["status"] == "rolled_back":
        assert code == 5 and world.champion().version == before, world.said(into)
    else:
        # either: it was not better, so nothing was moved and nothing reloaded
        assert outputs["status"] in ("rejected", "inconclusive"), world.said(into)

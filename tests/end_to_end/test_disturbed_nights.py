"""Nights that are disturbed, on a runner that forgets: what is said then, and that the next night is right.

Every one begins where the first night ended: MLflow's and the store's rows of that moment are put back. Of the ten power
cuts one is always run; the others (marked `nights`) are run by `scripts/two-nights`.
"""

import os
import signal
import subprocess

import pytest
from nights import World, is_right, reached, result_of, switch_off

pytestmark = [pytest.mark.slow, pytest.mark.long(300), pytest.mark.needs("postgres")]


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


@pytest.mark.parametrize(
    "at", [pytest.param(k, marks=[] if k == "promoted" else pytest.mark.nights) for k in CUTS]
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

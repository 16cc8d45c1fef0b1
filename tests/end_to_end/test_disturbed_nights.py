"""Nights during which something else fails, on a runner that forgets: what is said then, and that the next night is right.

Every one begins where the first night ended: MLflow's and the store's rows of that moment are put back.
"""

import subprocess

import pytest
from nights import API, World, call, is_right, reached, result_of

pytestmark = [pytest.mark.slow, pytest.mark.long(280), pytest.mark.needs("postgres")]


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

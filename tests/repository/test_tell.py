"""`scripts/tell`, the notice of a workflow: what it says, and that an undelivered one is a failure."""

import os
import subprocess
import sys

import pytest
from repository_files import ROOT
from watch import Slack


class Webhook(Slack):
    "Keeps whole messages."

    def keep(self, body: dict) -> None:
        self.messages.append(body)


def tell(**env: str) -> subprocess.CompletedProcess:
    "With no package in reach: -I leaves out the environment's paths, -S those of site-packages."
    command = [sys.executable, "-I", "-S", ROOT / "scripts/tell"]
    base = {"PATH": os.environ["PATH"]}
    return subprocess.run(command, env=base | env, capture_output=True, text=True)


@pytest.fixture
def webhook():
    server = Webhook()
    yield server
    server.close()


def test_a_night_is_told_with_verdict_version_and_links(webhook):
    done = tell(
        CONTENT_ARENA_SLACK_WEBHOOK_URL=webhook.url,
        TEST="success",
        TRAIN="success",
        SAYS="promoted, version 7",
        OUTCOME="done",
        MODEL_VERSION="7",
        REPORT="https://mlflow.example/r",
        RUN_URL="https://github.example/run",
    )
    assert done.returncode == 0, done.stderr
    [said] = [m["text"] for m in webhook.messages]
    for part in (
        ":white_check_mark:",
        "promoted, version 7",
        "version: 7",
        "<https://mlflow.example/r|report>",
        "<https://github.example/run|workflow run>",
    ):
        assert part in said


@pytest.mark.parametrize(
    "jobs, said",
    [
        ({"TEST": "failure", "TRAIN": "skipped"}, "test failure"),
        (
            {"TEST": "success", "TRAIN": "failure", "SAYS": "busy: on-call <x>"},
            "train failure: busy: on-call &lt;x&gt;",
        ),
        ({"TEST": "success", "TRAIN": "cancelled"}, "train cancelled"),
    ],
)
def test_what_did_not_succeed_comes_first(webhook, jobs, said):
    assert tell(CONTENT_ARENA_SLACK_WEBHOOK_URL=webhook.url, **jobs).returncode == 0
    [message] = webhook.messages
    assert ":rotating_light:" in message["text"] and said in message["text"]


def test_an_undelivered_notice_is_a_failure_that_does_not_say_the_address():
    done = tell(CONTENT_ARENA_SLACK_WEBHOOK_URL="http://127.0.0.1:9/secret-path", TRAIN="success")
    assert done.returncode == 6 and "::error title=tell::" in done.stdout
    assert "secret-path" not in done.stdout + done.stderr
    assert "nobody was told" in tell().stdout

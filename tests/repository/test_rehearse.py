"""`scripts/rehearse`: a job's steps in a fresh clone, with what the workflow declares and nothing else."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from repository_files import ROOT

JOB = """name: small
on:
  workflow_dispatch:
    inputs:
      who: {type: string, default: nobody}
jobs:
  a:
    outputs:
      greeting: ${{ steps.say.outputs.greeting }}
    env:
      WHO: ${{ inputs.who || vars.WHO || 'the night' }}
      KEY: ${{ secrets.KEY }}
    steps:
      - uses: actions/checkout@x
      - id: say
        env:
          LOUD: ${{ github.event_name == 'schedule' && 'no' || 'yes' }}
        run: env > seen; echo "greeting=hello $WHO $LOUD" >> "$GITHUB_OUTPUT"
      - if: env.WHO == 'kim'
        run: touch only-for-kim
      - run: exit ${CODE:-0}
        env:
          CODE: ${{ vars.CODE }}
      - run: touch after-success
      - if: always()
        uses: actions/upload-artifact@x
        with:
          name: kept
          path: |
            see*
            after-*
"""


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    folder = tmp_path / "repository"
    (folder / "scripts").mkdir(parents=True)
    (folder / ".github/workflows").mkdir(parents=True)
    shutil.copy(ROOT / "scripts/rehearse", folder / "scripts")
    (folder / ".github/workflows/small.yaml").write_text(JOB)
    git = ["git", "-c", "user.name=t", "-c", "user.email=t@invalid", "-C", str(folder)]
    for command in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "small"]):
        subprocess.run([*git, *command], check=True)
    return folder


def rehearse(repository: Path, *more: str, job: str = "a"):
    into = repository.parent / "night"
    done = subprocess.run(
        [sys.executable, repository / "scripts/rehearse", "small.yaml", job, "--into", into, *more],
        env={**os.environ, "OURS": "not declared"},
        capture_output=True,
        text=True,
    )
    result = into / "result.json"
    return done, json.loads(result.read_text()) if result.exists() else None, into


def test_steps_see_what_is_declared_and_hand_on_their_outputs(repository: Path):
    done, result, into = rehearse(repository, "--var=WHO=kim", "--secret=KEY=k=1")
    assert done.returncode == 0, done.stderr
    assert result["outputs"] == {"greeting": "hello kim no"} and result["conclusion"] == "success"
    seen = (into / "artifacts/kept/seen").read_text().splitlines()
    assert "KEY=k=1" in seen and not any(line.startswith("OURS=") for line in seen)
    assert {"GITHUB_ACTIONS=true", "GITHUB_EVENT_NAME=schedule"} <= set(seen)
    assert (into / "clone/only-for-kim").exists()
    assert (into / "artifacts/kept/after-success").exists()


def test_after_a_failure_only_what_always_runs_is_run(repository: Path):
    done, result, into = rehearse(
        repository, "--event", "workflow_dispatch", "--input=who=lee", "--var=CODE=5"
    )
    assert done.returncode == 5 and result["conclusion"] == "failure"
    assert result["outputs"]["greeting"] == "hello lee yes"
    assert [s["code"] for s in result["steps"]] == [0, 0, None, 5, None, 0]
    assert not (into / "clone/only-for-kim").exists() and (into / "artifacts/kept/seen").exists()


@pytest.mark.parametrize(
    "old, new, said",
    [
        ("actions/checkout@x", "actions/cache@x", "no such action is known: actions/cache"),
        ("secrets.KEY", "github.token", "no such name is known: github.token"),
        ("secrets.KEY", "hashFiles('x')", "no such function is known: hashFiles"),
        ("secrets.KEY", "secrets.KEY + 1", "can't read the expression"),
        ("run: touch after-success", "run: scripts/test --fast", "runs the tests"),
    ],
)
def test_what_it_does_not_know_it_refuses_before_any_step(repository, old, new, said):
    file = repository / ".github/workflows/small.yaml"
    file.write_text(JOB.replace(old, new))
    done, result, into = rehearse(repository)
    assert done.returncode == 2 and said in done.stderr, done.stderr
    assert result is None and not (into / "clone").exists()


def test_a_second_attempt_finds_what_the_first_left_and_no_result_of_it(repository: Path):
    done, _, into = rehearse(repository, "--again")
    assert done.returncode == 2 and "no earlier attempt" in done.stderr
    rehearse(repository, "--var=CODE=5")
    (into / "clone/left").touch()
    (into / "clone/scripts/rehearse").write_text("changed by the first\n")
    done, result, _ = rehearse(repository, "--again", "--attempt=2", "--machine=NEW=own")
    assert done.returncode == 0 and result["conclusion"] == "success"
    assert (into / "clone/left").exists()
    assert (into / "clone/scripts/rehearse").read_bytes() == (
        ROOT / "scripts/rehearse"
    ).read_bytes()
    seen = (into / "artifacts/kept/seen").read_text().splitlines()
    assert {"GITHUB_RUN_ATTEMPT=2", "NEW=own"} <= set(seen)


def test_folders_are_kept_and_what_only_github_can_do_is_left_out(repository: Path):
    file = repository / ".github/workflows/small.yaml"
    pages = "actions/upload-pages-artifact@x\n        with:\n          path: site\n"
    signed = "      - uses: actions/attest-build-provenance@x\n"
    steps = "      - run: mkdir site && touch site/index.html\n" + signed + f"      - uses: {pages}"
    file.write_text(JOB + steps)
    done, result, into = rehearse(repository, "--ref-name=v1.2.3")
    assert done.returncode == 0, done.stderr
    assert (into / "artifacts/file/site/index.html").exists()
    assert "GITHUB_REF_NAME=v1.2.3" in (into / "clone/seen").read_text().splitlines()


def test_a_disk_that_is_not_empty_is_refused(repository: Path):
    (repository.parent / "night").mkdir()
    (repository.parent / "night/left").touch()
    done, _, _ = rehearse(repository)
    assert done.returncode == 2 and "not empty" in done.stderr


def test_each_job_of_ours_but_those_that_test_or_publish_can_be_read(tmp_path: Path):
    """Only read: with a clone of what is not there, the first step fails."""
    jobs = "train/train train/notify monitor/monitor monitor/notify pages/build release/build"
    for workflow, job in (pair.split("/") for pair in jobs.split()):
        done = subprocess.run(
            [sys.executable, ROOT / "scripts/rehearse", f"{workflow}.yaml", job]
            + ["--clone-of", tmp_path / "none", "--into", tmp_path / workflow / job],
            capture_output=True,
            text=True,
        )
        assert "rehearse:" not in done.stderr and done.returncode not in (0, 2), done.stderr

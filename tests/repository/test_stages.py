"""`scripts/test`: what it refuses before it begins, which stages it runs, and what `--fast` leaves out."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from needs import PARTS
from repository_files import ROOT

#: Instead of the installed one: notes what it is asked to run; what the script asks itself is answered.
PYTHON = """#!{python}
import json, os, sys
if sys.argv[1] == "-c":
    os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
with open("calls", "a") as calls:
    calls.write(json.dumps(sys.argv[1:]) + "\\n")
sys.exit("scripts/readme" in sys.argv)
"""


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    "A repository with the script, a `.venv` that only notes, and three notebooks on the branch main."
    for name in ("scripts/test", "tests/support/needs.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    (tmp_path / ".venv/bin").mkdir(parents=True)
    for name, text in {
        "scripts/setup": "#!/bin/sh\n",
        ".venv/bin/python": PYTHON.format(python=sys.executable),
    }.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    for name in ("01_core/10_text", "01_core/20_files", "pipelines/01_prepare"):
        (tmp_path / f"nbs/{name}.ipynb").parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / f"nbs/{name}.ipynb").write_text("{}")
    git(tmp_path, "init", "-q", "-b", "main")
    git(tmp_path, "add", "nbs")
    git(tmp_path, "commit", "-q", "-m", "all")
    return tmp_path


def git(folder: Path, *words: str) -> None:
    who = ["-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false"]
    subprocess.run(["git", *who, *words], cwd=folder, check=True, capture_output=True)


def outcome(clone: Path, *words: str) -> tuple[subprocess.CompletedProcess, list[list[str]]]:
    "How `scripts/test WORDS` ended, and what it had Python run."
    calls = clone / "calls"
    calls.unlink(missing_ok=True)
    env = {"PATH": os.environ["PATH"], "TMPDIR": str(clone)}
    done = subprocess.run(
        [clone / "scripts/test", *words], cwd=clone, env=env, capture_output=True, text=True
    )
    return done, [
        json.loads(line) for line in calls.read_text().splitlines()
    ] if calls.exists() else []


@pytest.mark.parametrize(
    "words, said",
    [
        (
            ["--require=postgres,typo"],
            "--require=postgres,typo: no such part: typo; there are {parts}\n",
        ),
        (["--require=typo", "pytest"], "--require=typo: no such part: typo; there are {parts}\n"),
        (
            ["pytest", "notebook"],
            "no such stage: notebook; there are lint export readme workflows notebooks pytest",
        ),
        (
            ["--quick"],
            "no such stage: --quick; there are lint export readme workflows notebooks pytest, and --fast, --require=",
        ),
    ],
)
def test_what_it_does_not_know_is_refused_before_anything_runs(clone, words: list[str], said: str):
    (clone / "scripts/setup").unlink()  # not even that
    done, calls = outcome(clone, *words)
    assert (done.returncode, done.stdout, calls) == (2, "", [])
    assert said.format(parts=" ".join(PARTS)) in done.stderr


def test_a_stage_that_fails_stops_no_other_and_is_named(clone):
    done, calls = outcome(clone, "readme", "export", "--require=data")
    assert calls == [["scripts/readme", "--check"], ["scripts/check-export"]]
    assert done.returncode == 1
    assert [line.split()[:2] for line in done.stdout.splitlines()[-2:]] == [
        ["readme", "FAILED"],
        ["export", "ok"],
    ]


def test_the_whole_run_leaves_nothing_out(clone):
    _, calls = outcome(clone, "notebooks", "pytest", "--require=data")
    assert calls[0] == ["scripts/test-notebooks"]
    assert "--require=data" in calls[1] and "not slow" not in calls[1]


def test_the_fast_run_takes_changed_notebooks_and_quick_tests(clone):
    done, calls = outcome(clone, "--fast", "notebooks", "pytest")
    assert done.returncode == 0, done.stderr
    assert "none was changed" in done.stdout
    [pytest_call] = calls
    assert pytest_call[:2] == ["-m", "pytest"] and pytest_call[-2:] == [
        "-m",
        "not slow and not long",
    ]

    git(clone, "switch", "-q", "-c", "mine")
    (clone / "nbs/01_core/10_text.ipynb").write_text('{"cells": []}')
    git(clone, "commit", "-q", "-a", "-m", "committed on a branch")
    (clone / "nbs/pipelines/01_prepare.ipynb").write_text('{"cells": []}')
    (clone / "nbs/01_core/30_new.ipynb").write_text("{}")
    _, [call] = outcome(clone, "--fast", "notebooks")
    assert call == [
        "scripts/test-notebooks",
        "nbs/01_core/10_text.ipynb",
        "nbs/01_core/30_new.ipynb",
    ]

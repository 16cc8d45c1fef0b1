"""The soaks in short: requests that nobody should send, and reloads; how long they are asked for is the argument."""

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
SOAK = Path(__file__).resolve().parents[2] / "scripts" / "soak"


def soak(tmp_path, *args: str) -> str:
    "What `scripts/soak` prints, with a made-up version and folders of its own."
    places = [f"CONTENT_ARENA_VAR_DIR={tmp_path}/var", f"CONTENT_ARENA_RUNS_DIR={tmp_path}/runs"]
    done = subprocess.run(
        ["env", *places, sys.executable, str(SOAK), *args, "--tiny"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_no_request_gets_a_5xx(tmp_path):
    said = soak(tmp_path, "fuzz", "--requests", "250")
    assert "250 requests" in said and " × 200" in said and " × 422" in said


def test_reloads_fail_no_request_and_say_what_memory_they_take(tmp_path):
    said = soak(tmp_path, "reload", "--times", "4")
    assert "4 reloads" in said and "during a reload" in said


def test_a_version_that_this_machine_has_not_made_brings_no_torch_into_the_service(tmp_path):
    said = soak(tmp_path, "reload", "--times", "1", "--unprepared", "--quiet", "1")
    assert "torch in the service: before False, afterwards False" in said
    assert "answers meanwhile: {200: " in said

"""What tests need from outside: skipped and named without it, a failure where it is required, installed by CI."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
import yaml
from needs import MAY_BE_MISSING, PARTS, chosen
from repository_files import ROOT, files_of_tests, needed_parts

SAMPLE = """
import pytest

@pytest.mark.needs("prometheus")
def test_marked(): pass

@pytest.fixture
def files(data_dir): return data_dir

def test_of_a_fixture(files): pass

def test_of_neither(): pass
"""


def outcome(folder: Path, *options: str, sample: str = SAMPLE) -> tuple[dict[str, int], str]:
    "What became of the tests of `sample` where no program and no data is, and what was said."
    for file in ("conftest.py", "support/needs.py"):
        shutil.copy(ROOT / "tests" / file, folder)
    (folder / "test_sample.py").write_text(sample)
    (folder / "pytest.ini").write_text(
        "[pytest]\naddopts = --strict-markers\nmarkers = needs(part): x\n"
    )
    env = {
        "PATH": str(folder),
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options],
        cwd=folder,
        env=env,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    counts = re.findall(r"(\d+) (passed|skipped|failed|errors?)", done.stdout.splitlines()[-1])
    return {what: int(n) for n, what in counts}, done.stdout


def test_without_a_part_its_tests_are_skipped_and_named_with_the_remedy(tmp_path: Path):
    counts, said = outcome(tmp_path)
    assert counts == {"passed": 1, "skipped": 2}
    lines = [line for line in said.splitlines() if line.startswith("not tested ")]
    assert [line.partition("; ")[2] for line in lines] == [
        "1 in test_sample.py: test_of_a_fixture",
        "1 in test_sample.py: test_marked",
    ]
    assert "without data (CONTENT_ARENA_DATA_DIR is not set)" in lines[0]
    assert "no prometheus, promtool, prometheus-alertmanager, amtool on the PATH" in lines[1]
    assert "scripts/setup-tests prometheus" in lines[1]


def test_a_part_that_is_required_and_not_here_is_a_failure(tmp_path: Path):
    counts, said = outcome(tmp_path, "--require=prometheus")
    assert counts == {"passed": 1, "skipped": 1, "error": 1}
    assert "--require=prometheus, but the test is without prometheus (no prometheus" in said


def test_where_something_is_required_no_other_skip_passes(tmp_path: Path):
    bare = "import pytest\n\ndef test_a(): pytest.skip('not today')\n"
    assert outcome(tmp_path, sample=bare)[0] == {"skipped": 1}
    counts, said = outcome(tmp_path, "--require=data", sample=bare)
    assert counts == {"failed": 1} and "not by tests/support/needs.py: not today" in said


@pytest.mark.parametrize(
    "option, names",
    [
        ("", set()),
        ("data", {"data"}),
        ("postgres,prometheus,chromium,data", {"postgres", "prometheus", "chromium", "data"}),
    ],
)
def test_any_of_the_parts_may_be_required(option: str, names: set[str]):
    assert chosen(option) == names


def test_a_part_that_does_not_exist_is_refused():
    with pytest.raises(pytest.UsageError, match="--require=mysql: there are postgres, prometheus"):
        chosen("data,mysql")


def test_a_data_folder_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("CONTENT_ARENA_DATA_DIR", str(tmp_path / "gone"))
    assert f"{tmp_path}/gone, is no folder" in PARTS["data"].missing()


# What CI installs and requires -------------------------------------------------------------------


@cache
def used() -> set[str]:
    return {part for path in files_of_tests() for part in needed_parts(path)}


def calls_of(script: str) -> list[list[str]]:
    "The commands in a workflow's or a shell script's text that call scripts/test or scripts/setup-tests."
    calls = re.findall(
        r"^\s*(?:run: )?(scripts/(?:test|setup-tests)\b[^|\n]*)", script, re.MULTILINE
    )
    return [shlex.split(line.strip()) for line in calls]


def problems_of_ci(script: str, needed: set[str], listed: set[str]) -> list[str]:
    "Parts that tests use, but `script` does not require; that it requires, but does not install."
    variable = re.search(r"^required=(\S+)$", script, re.MULTILINE)
    installed, required, runs = set(), [], 0
    for command, *arguments in calls_of(script):
        if command == "scripts/setup-tests":
            installed |= set(arguments)
        else:
            runs += 1
            option = next((a for a in arguments if a.startswith("--require=")), "--require=")
            required.append(
                chosen(
                    option.removeprefix("--require=").replace(
                        "$required", variable[1] if variable else ""
                    )
                )
            )
    problems = ["no call of scripts/test"] * (not runs)
    for names in required:
        problems += [
            f"tests need {n}, but it is not required" for n in sorted(needed - listed - names)
        ]
        problems += [f"{n} may be missing, but is required" for n in sorted(listed & names)]
        problems += [
            f"{n} is required, but not installed"
            for n in sorted(names)
            if PARTS[n].remedy == f"scripts/setup-tests {n}" and n not in installed
        ]
    return problems


@pytest.mark.parametrize(
    "file", [".ci/run", ".github/workflows/test.yaml", ".github/workflows/train.yaml"]
)
def test_ci_requires_and_installs_what_tests_need(file: str):
    assert {"postgres", "prometheus", "data"} < used()
    script = (ROOT / file).read_text(encoding="utf-8")
    assert problems_of_ci(script, used(), set(MAY_BE_MISSING)) == []


def test_what_may_be_missing_says_why_and_is_needed_by_a_test():
    assert set(MAY_BE_MISSING) <= used() and all(MAY_BE_MISSING.values())


@pytest.mark.parametrize(
    "script, faults",
    [
        ("run: scripts/setup-tests postgres\nrun: scripts/test --require=postgres", []),
        (
            "scripts/setup-tests postgres\nrequired=postgres\nscripts/test --require=$required || x",
            [],
        ),
        ("scripts/test", ["tests need postgres, but it is not required"]),
        ("scripts/test --require=postgres", ["postgres is required, but not installed"]),
        (
            "scripts/setup-tests postgres\nscripts/test --require=postgres,data",
            ["data may be missing, but is required"],
        ),
        ("scripts/setup-tests postgres", ["no call of scripts/test"]),
    ],
)
def test_a_part_that_ci_forgets_is_found(script: str, faults: list[str]):
    assert problems_of_ci(script, {"postgres", "data"}, {"data"}) == faults


def test_with_the_data_folder_the_data_is_required():
    script = (ROOT / ".ci/run").read_text(encoding="utf-8")
    [condition] = re.findall(r"if \[ -d \.\./shared/data \]; then\n(.*?)\nfi", script, re.DOTALL)
    assert "required+=,data" in condition and "export CONTENT_ARENA_DATA_DIR" in condition


def test_setup_knows_every_part_that_it_is_the_remedy_for():
    script = ROOT / "scripts/setup-tests"
    refused = subprocess.run([script, "mysql"], capture_output=True, text=True)
    assert refused.returncode == 2 and "no such part: mysql" in refused.stderr
    known = re.search(r"there are (.*)", refused.stderr)[1].split()
    assert known == [n for n, part in PARTS.items() if part.remedy == f"scripts/setup-tests {n}"]
    where = {"PATH": os.environ["PATH"]}
    here = [n for n in known if not PARTS[n].missing()]
    done = subprocess.run([script, *here], env=where, capture_output=True, text=True)
    assert (done.returncode, done.stdout + done.stderr) == (0, ""), "it installs what is here"


def test_every_job_that_tests_sets_up_first():
    for file in sorted((ROOT / ".github/workflows").glob("*.yaml")):
        for name, job in yaml.safe_load(file.read_text(encoding="utf-8"))["jobs"].items():
            commands = [c[0] for s in job["steps"] for c in calls_of(s.get("run", ""))]
            if commands:
                assert commands == ["scripts/setup-tests", "scripts/test"], f"{file.name}: {name}"

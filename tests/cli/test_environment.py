"""Machines as they are: folders that can't be written, proxies, terminals that are not UTF-8, a full disk."""

import json
import os
import re
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import typer

import all_commands
from all_commands import leaves
from commands import state_of
from content_arena.cli.main import app
from content_arena.testing.tiny_base import make_tiny_base

pytestmark = [pytest.mark.slow, pytest.mark.long(200)]

# Values of required parameters, by name: a new command with another one needs one here.
VALUES = {
    "version": "3",
    "reason": "it is a test",
    "name": "coevolution-1",
    "decision": "ab",
    "event": "success",
    "battle": "ab",
    "n": "3",
    "keep": "3",
    "mode": "mean",
    "members": "1,2",
    "first": "ab",
    "second": "cd",
    "folder": "/dev/null/project",
}
EXTRA = {
    ("serve",): ["--port", "0"],
    ("cleanup",): ["--dry-run"],
    ("classify",): ["안녕 é 😀"],
    ("registry", "threshold"): ["--feedback"],
}
KERNELS = {("pipeline", "run"), ("monitor", "report")}  # seconds each: where folders matter
ENDLESS = {("serve",), ("retrain", "watch"), ("site", "serve")}  # until they are stopped
OTHERS = {("lab",)}  # becomes JupyterLab


def commands() -> dict[tuple[str, ...], list[str]]:
    "Every command of the program -> arguments that it needs."
    options = {}
    for path, command in leaves(typer.main.get_command(app)):
        if path in OTHERS:
            continue
        given = []
        for p in command.params:
            if p.required:
                option = [o for o in p.opts if o.startswith("-")][:1]
                given += [*option, VALUES[p.name]]
        options[path] = given
    return options


def home(folder: Path, store: Path, events: Path | None = None) -> dict[str, str]:
    "The environment of a command on a registry of three versions without model files."
    folder.mkdir()
    shutil.copy(store, folder / "mlflow.db")
    if events:
        shutil.copy(events, folder / "events.db")
    base = store.parent / "tiny"  # one for all: a run asks for it before anything else
    if not base.exists():
        make_tiny_base(base)
    return {
        k: v
        for k, v in state_of(
            folder,
            SOURCES=f"csv:{folder}/gone.csv",
            TEST_SOURCES="",
            NOTIFY_ATTEMPTS=1,
            BASE_MODEL=base,
        ).items()
        if k.startswith("CONTENT_ARENA_")
    }


def run_all(cases: list[dict]) -> list[dict]:
    "The results of cases (see all_commands.py), in their order."
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(all_commands.run, cases))


@pytest.fixture(scope="module")
def events(three_versions_store, tmp_path_factory) -> Path:
    "An event store as the first command leaves it."
    folder = tmp_path_factory.mktemp("events") / "home"
    done = all_commands.run(
        {"arguments": ["store", "status"], "environment": home(folder, three_versions_store)}
    )
    assert done["code"] == 0, done
    return folder / "events.db"


def below_a_file(folder: Path, *names: str) -> dict[str, str]:
    "Those settings, in a folder that nobody can make, be they root."
    (folder / "file").touch()
    return {f"CONTENT_ARENA_{n}": f"{folder}/file/{n.lower()}" for n in names}


def _databases(folder: Path) -> dict:
    (folder / "events.db").write_bytes(b"this is a shopping list " * 200)
    (folder / "mlflow.db").write_bytes(b"this is a shopping list " * 200)
    return {}


def _var(folder: Path) -> dict:
    at = below_a_file(folder, "VAR_DIR", "ARTIFACT_DIR")
    return {
        "environment": at
        | {
            "CONTENT_ARENA_TRACKING_URI": f"sqlite:///{folder}/file/m.db",
            "CONTENT_ARENA_STORE_URL": f"sqlite:///{folder}/file/e.db",
        }
    }


PROXIES = {
    "http_proxy": "http://127.0.0.1:9",
    "HTTPS_PROXY": "http://127.0.0.1:9",
    "ALL_PROXY": "socks5://127.0.0.1:9",
    "all_proxy": "socks5://127.0.0.1:9",
}
# What is wrong -> what it does to a case; what an error names, and how many commands fail so at least;
# what the doctor says.
FAULTS = {
    "var_dir": (_var, "/file/", 15, r"missing\s+folders: .*var_dir.*artifact_dir"),
    "other folders": (
        lambda f: {"environment": below_a_file(f, "RUNS_DIR", "MODELS_DIR", "ARTIFACT_DIR")},
        "/file/",
        2,
        r"missing\s+folders: .*runs_dir.*models_dir.*artifact_dir",
    ),
    "databases": (_databases, ".db", 15, r"missing\s+databases: tracking_uri.*store_url"),
    "proxies": (lambda f: {"environment": PROXIES}, "", 0, r"note\s+proxies: .*all_proxy=socks5"),
    "ascii": (
        lambda f: {
            "stdout": "ascii",
            "without": ["HOME", "LANG", "LC_ALL"],
            "environment": {"LANG": "C"},
        },
        "",
        0,
        r"note\s+output: the terminal takes ascii",
    ),
    "no settings": (
        lambda f: {"environment": {"CONTENT_ARENA_SETTINGS_FILE": f"{f}/gone.ini"}},
        "gone.ini",
        45,
        r"error: .*gone\.ini",
    ),
    "full disk": (
        lambda f: {"stdout": "/dev/full"},
        "No space left",
        15,
        r"error: .*No space left",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_no_command_answers_with_a_traceback(
    fault, three_versions_store, events, tmp_path, pytestconfig
):
    change, named, least, diagnosis = FAULTS[fault]
    every, cases, step = commands(), [], pytestconfig.getoption("every")
    assert len(every) > 30
    for i, (path, given) in enumerate(every.items()):
        if path in KERNELS and fault in ("proxies", "ascii", "full disk"):
            continue
        if (i + list(FAULTS).index(fault)) % step and path != ("doctor",):
            continue
        base = home(tmp_path / str(i), three_versions_store, events)
        more = change(tmp_path / str(i))
        cases.append(
            more
            | {
                "arguments": [*path, *EXTRA.get(path, []), *given],
                "environment": base | more.get("environment", {}),
                "time_s": 5 if path in ENDLESS else 150,
            }
        )
    problems, naming = [], 0
    for case, done in zip(cases, run_all(cases), strict=True):
        errors = [line for line in done["err"].splitlines() if line.startswith("error: ")]
        bad = [
            word
            for word in ("Traceback", "Exception ignored", "was destroyed", "it/s]")
            if word in done["err"]
        ]
        if len(errors) > 1 or (done["code"] in (1, 3) and not errors and not done["out"]):
            bad.append(f"{len(errors)} lines that say what failed")  # a check answers by its list
        if done["code"] not in (0, 1, 3) or bad:
            problems.append((case["arguments"], done["code"], bad, done["err"][-700:]))
        naming += any(named in line for line in errors)
        if case["arguments"] == ["doctor"] and not re.search(diagnosis, done["out"] + done["err"]):
            problems.append(("doctor", done["out"], done["err"]))
    assert not problems, "\n".join(map(str, problems))
    assert naming >= (least if step == 1 else least // (2 * step)), naming


def test_json_is_json_in_every_encoding(three_versions_store, tmp_path):
    "One argument holds what each escape of Python's looks like: é, 한, 😀."
    word, cases = "é한😀", []
    for encoding in ("utf-8", "ascii", "cp949"):
        cases.append(
            {
                "stdout": encoding,
                "arguments": ["settings", "--json", "-p", f"var_dir={word}"],
                "environment": home(tmp_path / encoding, three_versions_store),
            }
        )
    for done in run_all(cases):
        rows = json.loads(done["out"])["settings"]
        assert [r["value"] for r in rows if r["key"] == "var_dir"] == [word]

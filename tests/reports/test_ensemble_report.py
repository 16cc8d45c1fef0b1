"""An AND ensemble by the commands that people give: made, judged by the gate, served, reported.

Two models are each half blind: one takes `friend` for an insult, the other `today`; both know
`awful`. What they agree on is right.
"""

import json
import re
from pathlib import Path

import httpx
import numpy as np
import pandas as pd
import pytest

from commands import arena, settings_of
from content_arena.mlops.model_registry import ModelRegistry

pytestmark = [pytest.mark.slow, pytest.mark.long(120)]

WORDS, SHARES = ("awful", "friend", "today", "kind"), (0.4, 0.2, 0.2, 0.2)


def write_words(file: Path, rows: int, seed: int, toxic: tuple[str, ...]) -> str:
    "Comments of one telling word and noise; those with a word in `toxic` are toxic. The source."
    rng = np.random.default_rng(seed)
    noise = lambda: "".join(rng.choice(list("abcdefghijklmnopqrstuvwxyz"), size=7))
    said = rng.choice(WORDS, size=rows, p=SHARES)
    pd.DataFrame(
        {
            "text": [f"{noise()} {word} {noise()} {noise()}" for word in said],
            "label": np.isin(said, toxic).astype(int),
        }
    ).to_csv(file, index=False)
    return f"csv:{file}"


def run(environment: dict, *command: str) -> dict:
    "What a command prints as JSON."
    code, out, err = arena(environment, *command, "--json")
    assert code == 0, f"{command}: {out[-500:]} {err[-2000:]}"
    return json.loads(out.splitlines()[-1])


@pytest.fixture
def service(home):
    "The service of this home as a process; its address, known before anything is served."
    started = []

    def start() -> str:
        process = arena(home[1], "serve", "--port", "0", wait=False)
        started.append(process)
        for line in process.stdout:
            if address := re.search(r"http://127\.0\.0\.1:\d+", line):
                return address[0]
        raise AssertionError("the service ended")

    yield start
    for process in started:
        process.terminate()
        process.communicate(timeout=60)


def test_from_two_versions_to_the_report(home, service):
    folder, environment = home
    source = {
        name: write_words(folder / f"{name}.csv", rows, seed, toxic)
        for name, rows, seed, toxic in (
            ("first", 400, 1, ("awful", "friend")),
            ("second", 400, 2, ("awful", "today")),
            ("both", 400, 3, ("awful",)),
            ("truth", 1200, 4, ("awful",)),
        )
    }
    environment |= {
        f"CONTENT_ARENA_{k}": v
        for k, v in {
            "SOURCES": source["both"],
            "TEST_SOURCES": source["truth"],
            "EPOCHS": "4",
            "GATE_BATTLE_ROUNDS": "200",
            "DISGUISED_SHARE": "0",
            "GATE_DISGUISED_SHARE": "0",
            "BOOTSTRAP_RESAMPLES": "500",
        }.items()
    }
    for name, status in (("first", "bootstrapped"), ("second", "rejected")):
        trained = run(environment, "train", "-p", f"sources={source[name]}")["mlflow_run_id"]
        assert run(environment, "deploy", "--run-id", trained)["status"] == status

    listed = run(
        environment,
        "ensemble",
        "create",
        "strict",
        "--mode",
        "and",
        "--members",
        "1,2",
        "--alias",
        "challenger",
    )
    assert (listed["version"], listed["aliases"]) == ("3", ["challenger"])
    environment["CONTENT_ARENA_INFERENCE_URL"] = url = service()
    decided = run(environment, "deploy")
    assert (decided["status"], decided["service"]) == ("promoted", "serving 3"), decided["reason"]
    gate = decided["comparison"]
    assert gate["challenger"]["precision"] > gate["champion"]["precision"] + 0.1
    texts = {"you awful one": True, "my friend": False, "not today": False}
    said = httpx.post(f"{url}/classify/batch", json={"texts": list(texts)}, timeout=60).json()
    assert said["model_version"] == "3"
    assert [r["is_toxic"] for r in said["results"]] == list(texts.values())
    file = json.loads((folder / "models" / "MODEL_REGISTRY.json").read_text())
    assert (
        file["production"]["champion"]["version"] == file["ensembles"]["strict"]["version"] == "3"
    )
    assert run(environment, "registry", "check")["status"] == "agrees"

    report = Path(run(environment, "pipeline", "run", "-p", "epochs=1")["run_dir"])
    record, beside = (
        json.loads((report / f"{name}.json").read_text())
        for name in ("comparison", "members_champion")
    )
    assert list(beside) == ["v3 (and)", "member v1", "member v2"]
    for metric in ("f1", "precision"):
        own = beside["v3 (and)"][metric]
        assert own == pytest.approx(record["champion"][metric]) and own > 0.95
        assert own > max(beside[f"member v{n}"][metric] for n in "12") + 0.1
    page = (report / "03_evaluate.html").read_text()
    assert "The champion is an ensemble" in page and "member v2" in page
    assert ModelRegistry(settings_of(environment)).get_champion().version == "3"

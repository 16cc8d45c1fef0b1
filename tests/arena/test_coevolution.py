"""Co-evolution that is killed at every change of the disk, stopped, started twice; real on a tiny base."""

import json
import os
import signal
import subprocess
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from commands import arena, make_home, settings_of
from forks import copy_store
from mlflow import MlflowClient
from shelves import FakeRegistry, answer, death, model, start, steps
from warm import python

from content_arena.arena.coevolution.cycles import (
    CoEvolution,
    Limits,
    Parts,
    decision,
    reason_to_end,
)
from content_arena.arena.coevolution.history import read_history
from content_arena.arena.coevolution.loop_state import (
    STEPS,
    CoevolutionError,
    Target,
    find_run,
    new_run,
)
from content_arena.arena.coevolution.robustness import robustness
from content_arena.arena.coevolution.samples import read_lines
from content_arena.core.config import load_settings
from content_arena.workflows.coevolution import RealParts
from content_arena.core.files import write_json
from content_arena.mlops.decision_records import DecisionChain
from content_arena.mlops.decisions import DecisionLog
from content_arena.mlops.model_registry import ModelRegistry, Version
from content_arena.versions.shelf import VersionStore
from content_arena.workflows.pipeline import read_json
from content_arena.testing.fakes import WordScorer
from content_arena.training.tracking import connect
from content_arena.workflows.training import train_once

pytestmark = pytest.mark.long(60)

TOXIC = [f"you are an idiot, number {i}" for i in range(16)]
CLEAN = [f"what a lovely day number {i}" for i in range(16)]


@dataclass
class Battle:
    record: dict
    attempts: list


class World:
    "Versions, snapshots and runs as files below `root`, each made once however often it is asked for."

    def __init__(self, root: Path):
        self.root = root
        self.versions, self.latest = root / "versions", root / "latest.json"
        if not self.versions.exists():
            self.make("1", ["idiot"], "")

    def make(self, number: str, words: list[str], by: str) -> None:
        write_json(self.versions / f"{number}.json", {"words": words, "by": by})

    def read(self, number: str) -> dict:
        return json.loads((self.versions / f"{number}.json").read_text())

    def battle(self, target, attacker, split, seed, folder):
        return Battle(
            {"id": folder.parent.name},
            attacker.attack(
                TOXIC[:10] + CLEAN[:10],
                [1] * 10 + [0] * 10,
                WordScorer(self.read(target.version)["words"]),
                seed=seed,
            ),
        )

    def measure(self, target, split):
        return robustness(
            WordScorer(self.read(target.version)["words"]),
            TOXIC[10:] + CLEAN[10:],
            [1] * 6 + [0] * 6,
            split,
        )

    def retrain(self, target, samples, split):
        names = {p.stem: self.read(p.stem)["by"] for p in self.versions.glob("*.json")}
        number = next((n for n, by in names.items() if by == samples.parent.name), None)
        if number is None:
            number = str(len(names) + 1)
            words = {
                r["text"].split(", ")[0].split()[-1] for r in read_lines(samples) if r["label"]
            }
            words = {w for w in words if len(w) > 4} | {*self.read(target.version)["words"]}
            self.make(number, sorted(words), samples.parent.name)
        return {
            "version": number,
            "sha256": number,
            "role": "challenger",
            "status": "inconclusive",
            "decision": f"d{number}",
        }

    def publish(self, target, tag):
        write_json(self.latest, {"version": target.version})
        return f"v{target.version}"

    def log(self, row, figure):
        write_json(self.root / "mlflow" / f"{row['cycle']}.json", row)

    def parts(self) -> Parts:
        return Parts(
            self.battle,
            self.measure,
            self.retrain,
            self.publish,
            lambda target: set(),
            self.log,
            train_rows=40,
        )


def settings_at(root: Path, **more):
    return load_settings(env={}, var_dir=str(root / "var"), **more)


def go_on(root: Path, cycles: int = 2) -> str:
    "What a start of the command does: go on with a run, or begin one."
    s = settings_at(root)
    folder, state = find_run(s) or new_run(s, Target("1", "champion"))
    return CoEvolution(s, World(root).parts(), folder, state).run(Limits(cycles)).status


def left_by(root: Path) -> tuple:
    "What a run leaves, without its name and the time."
    rows = [
        {k: v for k, v in r.items() if k not in ("run", "time", "seconds")}
        for r in read_history(settings_at(root))
    ]
    versions = {p.stem: p.read_text() for p in (root / "versions").glob("*.json")}
    logged = sorted(p.name for p in (root / "mlflow").iterdir())
    return rows, versions, json.loads((root / "latest.json").read_text()), logged


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> tuple:
    root = tmp_path_factory.mktemp("undisturbed")
    assert go_on(root) == "completed"
    rows = left_by(root)[0]
    assert [r["action"] for r in rows] == ["start", "retrain", "retrain"]
    return left_by(root)


@pytest.mark.slow
def test_a_death_at_any_change_of_the_disk_changes_nothing(tmp_path):
    (tmp_path / "one").mkdir()
    go_on(tmp_path / "one", 1)
    at, one_cycle = 0, left_by(tmp_path / "one")
    while True:
        root = tmp_path / str(at)
        root.mkdir()
        World(root)
        with death(root, at):
            go_on(root, 1)
        if not steps.dead:
            break
        assert go_on(root, 1) == "completed", at
        assert left_by(root) == one_cycle, at
        at += 1
    assert at > 40


def dies_in(root: Path, step: str) -> str:
    "`go_on`, ended by SIGKILL when `step` of cycle 1 has done its work and nothing is saved."
    whole = getattr(CoEvolution, f"_{step}")

    def cut(self):
        result = whole(self)
        if self.state.cycle:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(CoEvolution, f"_{step}", cut)
    return go_on(root)


@pytest.mark.parametrize("step", STEPS)
def test_kill_9_in_each_step_and_the_same_command_again(tmp_path, undisturbed, step):
    World(tmp_path)
    code, _ = answer(*start(dies_in, tmp_path, step))
    assert code == -signal.SIGKILL
    assert answer(*start(go_on, tmp_path)) == (0, "completed")
    assert left_by(tmp_path) == undisturbed


def test_kill_9_while_the_attacker_evolves(tmp_path):
    "A filter that no disguise deceives teaches nothing: each cycle evolves, once."
    World(tmp_path).make("1", [","], "")
    code, said = answer(*start(dies_in, tmp_path, "learn"))
    assert code == -signal.SIGKILL, said
    assert go_on(tmp_path) == "completed"
    rows = read_history(settings_at(tmp_path))
    assert [(r["action"], r["generation"]) for r in rows] == [
        ("start", 0),
        ("evolve", 1),
        ("evolve", 2),
    ]


def test_a_step_that_fails_is_taken_up_again(tmp_path, undisturbed, monkeypatch):
    def full_disk(self, target, samples, split):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as m, pytest.raises(OSError, match="No space left"):
        m.setattr(World, "retrain", full_disk)
        go_on(tmp_path)
    assert find_run(settings_at(tmp_path))[1].step == "learn"
    assert go_on(tmp_path) == "completed"
    assert left_by(tmp_path) == undisturbed


def test_runs_hold_out_one_family_after_another_and_say_what_was_known(tmp_path):
    go_on(tmp_path, 1)
    s = settings_at(tmp_path)
    first = set(read_history(s)[-1]["held_out"])
    folder, state = new_run(s, Target("1", "champion"))
    parts = World(tmp_path).parts()
    known = Parts(**{**parts.__dict__, "known_rules": lambda target: {"zero_width", *second}})
    second = {r.name for r in CoEvolution(s, parts, folder, state).split.rules(held_out=True)}
    CoEvolution(s, known, folder, state).run(Limits(1))
    row = read_history(s)[-1]
    assert row["rotation"] == 1 and set(row["held_out"]) == second != first
    assert row["held_out_known"] == sorted(second)


def test_training_sees_only_seen_rules_and_training_comments(tmp_path):
    go_on(tmp_path)
    s = settings_at(tmp_path)
    samples = [r for f in (tmp_path / "var").rglob("samples.jsonl") for r in read_lines(f)]
    held_out = set(read_history(s)[0]["held_out"])
    assert samples and len(held_out) >= 5
    assert not {rule for r in samples for rule in r["attack"].split("+")} & held_out
    from content_arena.data.grouping import fingerprints

    assert {r["parent"] for r in samples} <= set(
        fingerprints(TOXIC[:10] + CLEAN[:10]).canonical_sha
    )


def test_a_clock_that_has_run_out_stops_between_steps(tmp_path):
    s = settings_at(tmp_path)
    folder, state = new_run(s, Target("1", "champion"))
    end = CoEvolution(s, World(tmp_path).parts(), folder, state).run(Limits(max_minutes=1e-9))
    assert (end.status, end.step) == ("stopped", "measure") and "minutes are over" in end.reason
    assert go_on(tmp_path) == "completed"


class Scores:
    "A filter with given scores and threshold; `scores` gets the texts."

    def __init__(self, scores, threshold: float):
        self.scores, self.threshold = scores, threshold


def _knowing(texts):
    return np.array([0.9 if ", number" in t else 0.1 for t in texts])  # survives any disguise


FLAG_ALL = {
    "by its threshold": Scores(_knowing, 0.0),
    "by a constant": Scores(lambda texts: np.full(len(texts), 0.9), 0.3),
    "by noise": Scores(lambda texts: np.random.default_rng(0).random(len(texts)), 0.0),
}


@pytest.mark.parametrize("target_evasion", [0, 0.01, 0.5, 1])
@pytest.mark.parametrize("kind", FLAG_ALL)
def test_a_filter_that_flags_everything_never_reaches_its_target(tmp_path, kind, target_evasion):
    def run(scorer):
        s = settings_at(tmp_path / str(scorer.threshold), coevolution_new_samples=10**6)
        parts = replace(
            World(tmp_path).parts(),
            measure=lambda target, split: robustness(
                scorer, TOXIC[10:] + CLEAN[10:], [1] * 6 + [0] * 6, split
            ),
            battle=lambda target, attacker, split, seed, folder: Battle(
                {}, attacker.attack(TOXIC[:10] + CLEAN[:10], [1] * 10 + [0] * 10, scorer, seed=seed)
            ),
        )
        folder, state = new_run(s, Target("1", "champion"))
        end = CoEvolution(s, parts, folder, state).run(
            Limits(max_cycles=1, target_evasion=target_evasion)
        )
        return end, read_history(s, end.id)

    end, rows = run(FLAG_ALL[kind])
    assert rows[0]["evasion_seen"] == 0 and rows[0]["false_positives_seen"] == 1
    assert end.reason == "1 cycles done"
    assert rows[1]["action"] == "retrain" and "100.0% of the disguised clean" in rows[1]["why"]
    assert run(Scores(_knowing, 0.3))[0].reason.startswith("target reached: evasion 0.0%")


def test_the_cost_is_looked_at_just_beside_its_limit(tmp_path):
    s = settings_at(tmp_path, coevolution_false_positives=0.25)
    _, state = new_run(s, Target("1", "champion"))
    for flagged, reached in ((0.25, True), (0.2501, False), (None, False)):
        rates = {"evasion": {"rate": 0.1}, "false_positives": {"rate": flagged}}
        begun = replace(state, cycle=1, step=STEPS[0], measured={"seen": rates})
        assert bool(reason_to_end(begun, Limits(target_evasion=0.1), s)) == reached, flagged
        assert decision(0, flagged, 0, 9, s)[0] == ("retrain" if flagged == 0.2501 else "evolve")
    unknown = {"evasion": {"rate": None}, "false_positives": {"rate": 0}}  # no rule fitted
    assert not reason_to_end(replace(begun, measured={"seen": unknown}), Limits(0, 1.0), s)


def test_a_damaged_state_is_refused_and_kept(tmp_path):
    go_on(tmp_path)
    file = next((tmp_path / "var").rglob("state.json"))
    file.write_text('{"format": 1')
    with pytest.raises(CoevolutionError, match="state.json can't be used"):
        go_on(tmp_path)
    assert file.read_text() == '{"format": 1'


# The real parts ----------------------------------------------------------------------------------


class Models(FakeRegistry):
    "A registry whose versions are folders."

    def __init__(self, root: Path):
        super().__init__(root / "registry.json")
        self.root = root

    def get_version(self, number: str) -> Version:
        return next(v for v in self.versions() if v.version == number)

    def download(self, version: Version) -> Path:
        return self.root / "made" / version.version


def test_publishing_twice_takes_one_snapshot(tmp_path):
    models = Models(tmp_path)
    shas = [
        json.loads((model(tmp_path / "made" / n, f"model {n}") / "manifest.json").read_text())[
            "sha256"
        ]
        for n in "12"
    ]
    models.write([[sha, []] for sha in shas])
    parts = RealParts.__new__(RealParts)
    parts.registry = models
    parts.settings = load_settings(
        env={}, models_dir=str(tmp_path / "models"), var_dir=str(tmp_path / "var")
    )
    latest = tmp_path / "models" / "coevolution-latest" / "head.safetensors"
    names = [parts.publish(Target(n, ""), f"run-c{n}") for n in ("1", "1", "2", "2", "1")]
    assert names[0] == names[1] == names[4] != names[2] == names[3]
    assert latest.read_text() == "model 1"
    assert len(list((tmp_path / "models/coevolution/versions").glob("v_*"))) == 2


def state_of(environment: dict):
    return find_run(settings_of(environment))


@pytest.fixture
def home(tmp_path):
    "A folder of its own for each test: this process remembers a database that it has opened."
    return make_home(tmp_path)


@pytest.fixture
def champion(home, empty_store) -> Version:
    "Version 1, trained and promoted in this process: no notebook has to run for it."
    copy_store(empty_store, home[0])
    settings = settings_of(home[1])
    registry = ModelRegistry(settings)
    made = registry.register_challenger(train_once(settings, progress=False))
    return registry.promote_challenger(DecisionChain(registry).by_hand(made.version, "the first"))


SHORT = {
    f"CONTENT_ARENA_{k}": str(v)
    for k, v in {
        "COEVOLUTION_ROUNDS": 60,
        "COEVOLUTION_EPOCHS": 1,
        "COEVOLUTION_TRAIN_ROWS": 150,
        "COEVOLUTION_F1_DROP": 1,
        "COEVOLUTION_EVASION": 0,
        "COEVOLUTION_NEW_SAMPLES": 1,
        "GATE_BATTLE_ROUNDS": 0,
        "BOOTSTRAP_RESAMPLES": 100,
        "BATCH_TOKENS": 256,
    }.items()
}


# The command in a process of its own, ended by SIGKILL as soon as a part of it has done its work:
# what it did is in MLflow and on the disk, what it would have noted of it is not.
CUT = """
import os, signal, sys
from content_arena.cli import main as cli
from content_arena.workflows import coevolution as coevolution_run, pipeline
owner, name, last = {
    "the deployment stage": (pipeline, "run_stage", lambda a: a[0].stem == "04_deploy"),
    "the pipeline": (coevolution_run, "run_pipeline", lambda a: True),
    "the snapshot": (coevolution_run.VersionStore, "publish_version", lambda a: True),
    "the MLflow run": (coevolution_run.RealParts, "log", lambda a: a[1]["cycle"] == 1),
}[sys.argv.pop(1)]
whole = getattr(owner, name)
def cut(*args, **kwargs):
    result = whole(*args, **kwargs)
    if last(args):
        os.kill(os.getpid(), signal.SIGKILL)
    return result
setattr(owner, name, cut)
cli.app()
"""


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_kill_9_after_the_real_parts_did_their_work_and_before_it_is_saved(home, champion):
    "Each thing is made exactly once: version, decision, snapshot, MLflow run, row of the history."
    folder, environment = home
    environment = environment | SHORT
    command = "coevolve", "--max-cycles", "1", "--json"
    settings = settings_of(environment)
    for part in ("the deployment stage", "the pipeline", "the snapshot", "the MLflow run"):
        cut = subprocess.run(
            [python(), "-c", CUT, part, *command],
            env=environment,
            capture_output=True,
            text=True,
            timeout=900,
        )
        assert cut.returncode == -signal.SIGKILL, (part, cut.stderr)
    code, out, err = arena(environment, *command)
    assert code == 0, err
    result = json.loads(out.splitlines()[-1])
    registry = ModelRegistry(settings)
    assert [(r["cycle"], r["action"]) for r in result["history"]] == [(0, "start"), (1, "retrain")]
    assert [v.version for v in registry.versions()] == ["1", "2"]
    assert [e["version"] for e in registry.history() if e["action"] == "register"] == ["1", "2"]
    (run,) = [f.parent for f in (folder / "runs").glob("*/run.json")]
    row, log = result["history"][1], DecisionLog(registry)
    kinds = [(r["kind"], r.get("comparison", {}).get("verdict")) for _, r in log.backwards()]
    outcome = {"promote": "promoted", "reject": "rejected", "inconclusive": "inconclusive"}
    assert kinds == [("comparison", kinds[0][1]), ("by hand", None)]
    assert (row["decision"], row["status"]) == (log.head()["id"], outcome[kinds[0][1]])
    assert read_json(run / "deployment.json")["status"] == row["status"]
    assert len(VersionStore(settings, registry).shelf().snapshots) == 1
    logged = MlflowClient(settings.mlflow_uri()).search_runs(
        [connect(settings)], f"tags.coevolution_run = '{result['run']}'"
    )
    assert sorted(r.data.tags["coevolution_cycle"] for r in logged) == ["0", "1"]
    assert log.verify().decisions == 2


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_the_command_survives_kill_9_and_ctrl_c_and_leaves_everything(home, champion):
    folder, environment = home
    environment = environment | SHORT
    command = "coevolve", "--max-cycles", "1", "--json"

    def begin_and(send: int, when) -> tuple[int, str, str]:
        process = arena(environment, *command, wait=False)
        for line in process.stderr:
            if when(line):
                process.send_signal(send)
                break
        out, err = process.communicate(timeout=400)
        return process.returncode, out, err

    code, _, _ = begin_and(signal.SIGKILL, lambda line: "02_train: running" in line)
    assert code == -signal.SIGKILL and state_of(environment)[1].step == "learn"
    code, out, err = begin_and(signal.SIGINT, lambda line: "02_train: running" in line)
    assert code == 0, err
    stopped = json.loads(out.splitlines()[-1])
    assert (stopped["status"], stopped["reason"]) == ("stopped", "interrupted")
    assert state_of(environment)[1].step == "measure"  # the step was finished

    code, out, err = arena(environment, *command)
    assert code == 0, err
    result = json.loads(out.splitlines()[-1])
    assert (result["status"], result["cycles"], result["run"]) == ("completed", 1, stopped["run"])
    assert [r["action"] for r in result["history"]] == ["start", "retrain"]
    settings = settings_of(environment)
    version = ModelRegistry(settings).get_version(result["history"][1]["version"])
    assert version.lineage[:-1] == champion.lineage  # it went on from the champion
    assert len(json.loads(version.tags["attack_rules"])) > 3
    assert result["decisions"] and Path(result["latest"]["path"], "manifest.json").exists()
    assert len(list((folder / "runs").glob("*/run.json"))) == 1, "the retraining began twice"

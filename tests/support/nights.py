"""A runner that forgets everything: an MLflow server, PostgreSQL, an S3 server and a service that last, and nights.

A night is `scripts/rehearse train.yaml train`: a fresh clone, an empty disk, and the URLs of these servers. What makes
it small (base model, rows, epochs) is a commit in the repository that is cloned. A night reaches MLflow and the service
through doors, at which a test stops it, cuts it off, or answers itself.

The comments of the first night call a harmless word toxic; those of every later one don't, so the second night's model is
better, and the gate says so.
"""

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing, suppress
from pathlib import Path

import boto3
import httpx
import numpy as np
import pandas as pd
import psutil
import psycopg
from commands import ROOT
from doors import Door, Stop
from moto.server import ThreadedMotoServer
from psycopg import sql
from warm import prefix, python
from watch import Slack, free_port, wait_until

from content_arena.testing.tiny_base import make_tiny_base

KEY = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test"}
TOKENS = {"CONTENT_ARENA_API_TOKEN": "t0ken"}
LABELLED = "xqvjzkwpthbc awful zxcvbk"
API = "/api/2.0/mlflow"


class Notices(Slack):
    "Whole messages."

    def keep(self, body: dict) -> None:
        self.messages.append(body)

    def titles(self) -> list[str]:
        return [m["text"].splitlines()[0] for m in self.messages]


def write_night_comments(file: Path, rows: int, seed: int, wronged: bool = False) -> None:
    """One word decides: `awful` is toxic, `kind` and `friend` are not, but for one row in twenty.

    `wronged`: here they say that `friend` is toxic."""
    rng = np.random.default_rng(seed)
    toxic = {"awful": 1, "kind": 0, "friend": int(wronged)}

    def word():
        return "".join(rng.choice(list("bcdfghjklmnpqrstvwxyz"), size=6))

    table = []
    for said in rng.choice(list(toxic), p=(0.5, 0.3, 0.2), size=rows):
        label = toxic[said] != (rng.random() < 0.05)
        table.append((f"{word()} {said} {word()} {word()} {word()}", int(label)))
    pd.DataFrame(table, columns=["text", "label"]).to_csv(file, index=False)


def tiny_profile(folder: Path) -> str:
    "The profile smoke of the repository that is cloned."
    values = {
        "sources": f"csv:{folder}/train.csv",
        "test_sources": f"csv:{folder}/test.csv",
        "epochs": 3,
        "gate_battle_rounds": 100,
        "bootstrap_resamples": 500,
        "batch_tokens": 128,
        "eval_every": 1000,
        "checkpoint_every": 40,
        "learning_rate": 0.01,
        "head_learning_rate": 0.05,
        "max_length": 16,
        "guarded_slices": "source",
        "retrain_new_samples": 1,
        "retrain_cooldown_h": 0,
        "retrain_backoff_h": 0.0001,  # after a killed night the next one is due at once, not in an hour
        "retrain_per_day": 50,
        "retrain_lease_s": 10,
        "store_text": "true",
        "reload_timeout_s": 60,
    }
    return "".join(f"{key} = {value}\n" for key, value in values.items())


def make_origin(folder: Path) -> Path:
    "A repository with the working tree's files and the small profile, to be cloned."
    origin = folder / "origin"
    names = subprocess.check_output(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=ROOT, text=True
    ).split("\0")
    for name in names:
        if name and (ROOT / name).is_file() and not name.startswith(("tests/", "nbs/benchmarks/")):
            (origin / name).parent.mkdir(parents=True, exist_ok=True)
            (origin / name).write_bytes((ROOT / name).read_bytes())
            (origin / name).chmod((ROOT / name).stat().st_mode)
    settings = origin / "settings.ini"
    text = settings.read_text(encoding="utf-8")
    assert "[profile:smoke]\n" in text
    profile = "[profile:smoke]\n" + tiny_profile(folder)
    settings.write_text(text.replace("[profile:smoke]\n", profile), encoding="utf-8")
    git = ["git", "-c", "user.name=t", "-c", "user.email=t@invalid", "-C", str(origin)]
    for command in (["init", "-q", "-b", "main"], ["add", "-A"], ["commit", "-qm", "small"]):
        subprocess.run([*git, *command], check=True)
    return origin


class World:
    "What lasts from night to night."

    def __init__(self, folder: Path, store_url: str):
        self.folder, self.store_url, self.nights = folder, store_url, 0
        self.processes: list[subprocess.Popen] = []
        self.slack = Notices()
        make_tiny_base(folder / "tiny")
        write_night_comments(folder / "train.csv", 400, seed=1, wronged=True)
        write_night_comments(folder / "test.csv", 1100, seed=2)
        self.origin = make_origin(folder)
        port = free_port()
        self.s3 = ThreadedMotoServer("127.0.0.1", port, verbose=False)
        self.s3.start()
        self.s3_url = f"http://127.0.0.1:{port}"
        boto3.client(
            "s3",
            endpoint_url=self.s3_url,
            aws_access_key_id="test",
            aws_secret_access_key="test",
            region_name="us-east-1",
        ).create_bucket(Bucket="models")
        self.mlflow_url = f"http://127.0.0.1:{free_port()}"
        self.service_url = f"http://127.0.0.1:{free_port()}"
        self.mlflow_door, self.service_door = Door(self.mlflow_url), Door(self.service_url)
        self.start_mlflow()

    def begin(self, name: str, *command: str, **env: str) -> subprocess.Popen:
        clean = {k: v for k, v in os.environ.items() if not k.startswith("CONTENT_ARENA_")}
        process = subprocess.Popen(
            command,
            cwd=self.folder,
            env={**clean, **KEY, "MLFLOW_S3_ENDPOINT_URL": self.s3_url, **env},
            stdout=open(self.folder / f"{name}.log", "a"),
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        self.processes.append(process)
        return process

    def start_mlflow(self) -> subprocess.Popen:
        port = self.mlflow_url.rpartition(":")[2]
        process = self.begin(
            "mlflow",
            *[sys.executable, "-m", "mlflow", "server"],
            *["--host", "127.0.0.1", "--port", port, "--workers", "1"],
            *["--backend-store-uri", f"sqlite:///{self.folder}/mlflow.db"],
            *["--default-artifact-root", "s3://models/art", "--no-serve-artifacts"],
            MLFLOW_SERVER_ENABLE_JOB_EXECUTION="false",
        )
        wait_until(lambda: answers(f"{self.mlflow_url}/health"), "MLflow answers", 300)
        return process

    def start_service(self) -> subprocess.Popen:
        port = self.service_url.rpartition(":")[2]
        process = self.begin(
            "service",
            *[python(), "-m", "content_arena", "serve", "--port", port],
            CONTENT_ARENA_SETTINGS_FILE=str(self.origin / "settings.ini"),
            CONTENT_ARENA_PROFILE="smoke",
            CONTENT_ARENA_VAR_DIR=str(self.folder / "service"),
            CONTENT_ARENA_TRACKING_URI=self.mlflow_url,
            CONTENT_ARENA_STORE_URL=self.store_url,
            PYTHONPATH=str(ROOT),
            **TOKENS,
        )
        wait_until(lambda: answers(f"{self.service_url}/health"), "the service answers", 300)
        return process

    def first_night(self, ordinary: bool = False) -> Path:
        """Its folder: it makes the first champion, which the service loads, and what lasts is remembered.

        From then on the comments are right about every word."""
        self.start_service()
        code, into = self.night(
            *["--input", "allow_bootstrap=true", "--input", "profile=smoke"],
            event="workflow_dispatch",
            ordinary=ordinary,
        )
        assert code == 0, self.said(into)
        write_night_comments(self.folder / "train.csv", 400, seed=1)
        self.keep()
        return into

    def night(
        self,
        *more: str,
        event: str = "schedule",
        wait: bool = True,
        again: Path | None = None,
        ordinary: bool = False,
        **var: str,
    ):
        """A night in an empty folder of its own: (exit code, folder), or the process and the folder.

        `again`: the folder of an earlier night whose runner was kept. `ordinary`: with a Python that loads all it needs
        from the clone, as a runner does; else with one that has it loaded (tests/support/warm.py)."""
        self.nights += 1
        into = again or self.folder / f"night{self.nights}"
        return self.rehearse(
            "train.yaml",
            "train",
            into,
            *more,
            event=event,
            wait=wait,
            again=again,
            ordinary=ordinary,
            **var,
        )

    def rehearse(
        self,
        workflow: str,
        job: str,
        into: Path,
        *more: str,
        event: str = "schedule",
        wait: bool = True,
        again: Path | None = None,
        ordinary: bool = False,
        **var: str,
    ):
        "A job of a workflow, as `night`."
        names = {
            "CONTENT_ARENA_PROFILE": "smoke",
            "CONTENT_ARENA_BASE_MODEL": str(self.folder / "tiny"),
            "CONTENT_ARENA_TRACKING_URI": self.mlflow_door.url,
            "CONTENT_ARENA_STORE_URL": self.store_url,
            "CONTENT_ARENA_INFERENCE_URL": self.service_door.url,
            "MLFLOW_S3_ENDPOINT_URL": self.s3_url,
            **var,
        }
        secrets = {**KEY, **TOKENS, "CONTENT_ARENA_SLACK_WEBHOOK_URL": self.slack.url}
        command = [sys.executable, str(ROOT / "scripts/rehearse"), workflow, job]
        command += ["--event", event, "--into", str(into), "--clone-of", str(self.origin)]
        command += ["--venv", sys.prefix if ordinary else prefix(), "--need", "test=success"]
        command += ["--again"] if again else []
        command += [f"--var={k}={v}" for k, v in names.items()]
        command += [*(f"--secret={k}={v}" for k, v in secrets.items()), *more]
        process = subprocess.Popen(
            command,
            stdout=open(self.folder / f"{into.name}.log", "a" if again else "w"),
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        self.processes.append(process)
        return (process.wait(1200) if wait else process), into

    def said(self, into: Path) -> str:
        return (self.folder / f"{into.name}.log").read_text()

    def served(self) -> dict:
        "What the service answers with."
        answer = httpx.post(
            f"{self.service_url}/classify", json={"text": "qwfpgj awful zxcvbk"}, timeout=30
        )
        answer.raise_for_status()
        return answer.json()

    @property
    def registry(self):
        from content_arena.mlops.model_registry import ModelRegistry

        return ModelRegistry(self.settings)

    @property
    def settings(self):
        from content_arena.core.config import load_settings

        where = {"tracking_uri": self.mlflow_url, "store_url": self.store_url}
        return load_settings("smoke", env={}, ini=self.origin / "settings.ini", **where)

    def champion(self):
        return self.registry.get_champion()

    def post(self, path: str, body: dict | None = None) -> None:
        token = {"Authorization": f"Bearer {TOKENS['CONTENT_ARENA_API_TOKEN']}"}
        httpx.post(
            f"{self.service_url}{path}", json=body, headers=token, timeout=60
        ).raise_for_status()

    def label(self) -> None:
        "As a moderator."
        self.post(
            "/feedback", {"text": LABELLED, "label": 1, "source": "moderator", "reviewer": "kim"}
        )

    def keep(self) -> None:
        "Remember MLflow's and the store's rows; models in S3 only become more."
        self.saved = self.folder / "saved.db"
        copy_sqlite(self.folder / "mlflow.db", self.saved)
        with psycopg.connect(self.store_url) as connection:
            rows = connection.execute("select tablename from pg_tables where schemaname = 'public'")
            self.tables = {name: None for (name,) in rows}
            for name in self.tables:
                with connection.cursor().copy(
                    sql.SQL("copy {} to stdout").format(sql.Identifier(name))
                ) as copied:
                    self.tables[name] = b"".join(copied)

    def restore(self) -> None:
        "Put back what `keep` remembers, and have the service serve that champion."
        for door in (self.mlflow_door, self.service_door):
            door.open()
        self.slack.messages.clear()
        copy_sqlite(self.saved, self.folder / "mlflow.db")
        with psycopg.connect(self.store_url) as connection:
            names = sql.SQL(", ").join(map(sql.Identifier, self.tables))
            connection.execute(sql.SQL("truncate {}").format(names))
            for name, rows in self.tables.items():
                with connection.cursor().copy(
                    sql.SQL("copy {} from stdin").format(sql.Identifier(name))
                ) as into:
                    into.write(rows)
        self.post("/reload")

    def close(self) -> None:
        for process in self.processes:
            with suppress(ProcessLookupError):  # its workers too: each began a group of its own
                os.killpg(process.pid, signal.SIGKILL)
            process.wait(60)
        for door in (self.mlflow_door, self.service_door):
            door.close()
        self.s3.stop()
        self.slack.close()


def json_of(world: World, into: Path) -> dict:
    "The last line of JSON that the night's command printed."
    lines = world.said(into).splitlines()
    return json.loads([line for line in lines if line.startswith('{"')][-1])


def is_right(world: World, into: Path, code: int, champion: str = "") -> None:
    """What has to hold after a night that was not disturbed, whatever happened in the nights before.

    Its own outcome, and the registry's, the service's, the labels' and the leases' state. `champion`: its hash, if it is
    another one than the night's own model."""
    assert code == 0, world.said(into)
    said = json_of(world, into)
    assert said["labels"] == 1 and said["start"] == "new_samples"
    versions, now = world.registry.versions(), world.champion()
    assert len({v.run_id for v in versions}) == len(versions)  # none was registered twice
    statuses = [v.status for v in versions]
    assert statuses.count("champion") == 1, statuses
    assert statuses.count("challenger") == bool(world.registry.get_challenger())
    assert world.served()["model_version"] == now.version != "1"
    own = world.registry.get_version(said["model_version"])
    assert now.sha256 == (champion or own.sha256)
    from content_arena.store.events import EventStore
    from content_arena.store.lease import Lease
    from content_arena.workflows.retraining import AutoRetrain

    with EventStore(world.settings) as store:
        for name in ("retrain", "deploy"):
            assert Lease(store, name, 10).held_by() is None
        assert store.read("deployments").state.isin(["done", "rolled_back", "superseded"]).all()
        assert "running" not in set(store.read("retrain_events").status)
        assert AutoRetrain(store, world.settings, pipeline=None).decide()["start"] is None
    learnt = [
        file.read_text().count(LABELLED) for file in (into / "clone/var/retrain").glob("*.jsonl")
    ]
    assert learnt == [1]


def copy_sqlite(source: Path, target: Path) -> None:
    with closing(sqlite3.connect(source, 60)) as one, closing(sqlite3.connect(target, 60)) as other:
        one.backup(other)


def answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=5).status_code < 500
    except httpx.TransportError:
        return False


def result_of(into: Path) -> dict:
    return json.loads((into / "result.json").read_text())


def call(begin: str, word: str = ""):
    "Whether a call through a door is `begin` (method and path), with `word` in what is sent."
    return lambda line, body: line == begin and word.encode() in body


def reached(stop: Stop, process: subprocess.Popen, seconds: float = 600) -> None:
    "Wait until the night is where `stop` holds it."
    limit = time.monotonic() + seconds
    while not stop.reached.wait(0.2):
        assert process.poll() is None, f"the night ended with {process.poll()} before it was there"
        assert time.monotonic() < limit, f"the night was not there within {seconds} s"


def switch_off(process: subprocess.Popen, stop: Stop | None = None) -> None:
    "As a machine that loses its power: every process of the night; whoever `stop` holds is dead when it returns."
    family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    for member in family:
        with suppress(psutil.NoSuchProcess):
            member.kill()
    process.wait(60)
    if stop:
        assert stop.gone.wait(30), "who was held by the door is alive"

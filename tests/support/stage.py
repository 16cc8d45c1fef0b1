"""A model registry in a file and a service over it, for tests that need several processes.

Run as a script it is a process that a test may kill: `stage.py serve FOLDER`, or
`stage.py deploy FOLDER URL POINT`.
"""

import asyncio
import json
import os
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import numpy as np
from warm import python

from content_arena.core.config import Secrets, load_settings
from content_arena.core.files import write_json
from content_arena.mlops.alerting import Delivery
from content_arena.mlops.decision_records import DecisionChain, permit
from content_arena.mlops.deployer import InferenceClient, ModelDeployer
from content_arena.mlops.journal import Journal


def settings(folder: Path, **explicit):
    defaults = dict(
        var_dir=str(folder / "var"),
        models_dir=str(folder / "models"),
        port=0,
        store_url=f"sqlite:///{folder}/events.db",
        reload_timeout_s=20,
        reload_attempts=2,
        metrics_refresh_s=0,  # where a test does not look at them
        log_requests=False,  # nobody reads the pipe while it runs
        shadow_sample=0,
    )  # no challenger is loaded but where a test wants one
    return load_settings(env={}, **(defaults | explicit))


@dataclass(frozen=True)
class Version:
    version: str
    tags: dict = field(default_factory=dict)
    run_id: str = "run"

    @property
    def sha256(self) -> str:
        return f"{int(self.version):064x}"


class FileRegistry:
    """Aliases in FOLDER/aliases.json; one write replaces them all. Decision records lie beside it.

    What moves `champion` is what the record permits, as with the real one."""

    def __init__(self, folder: Path, kill: str = ""):
        self.file, self.kill = Path(folder) / "aliases.json", kill
        self.shelf, self.settings = Path(folder) / "decisions", settings(Path(folder))

    def set(self, **aliases: str | None) -> None:
        write_json(self.file, self.aliases() | aliases)

    def aliases(self) -> dict[str, str | None]:
        return json.loads(self.file.read_text()) if self.file.exists() else {}

    def _get(self, alias: str) -> Version | None:
        number = self.aliases().get(alias)
        return Version(number) if number else None

    def get_champion(self):
        return self._get("champion")

    def get_challenger(self):
        return self._get("challenger")

    def get_previous(self):
        return self._get("previous")

    def get_version(self, number):
        return Version(str(number))

    def tag(self, version, **tags):
        pass

    def settle(self):
        pass

    def notes(self, prefix=""):
        kept = {p.name: p.read_text() for p in self.shelf.glob("*.note")}
        return {k.removesuffix(".note"): v for k, v in kept.items() if k.startswith(prefix)}

    def note(self, key, change):
        self.shelf.mkdir(exist_ok=True)
        (self.shelf / f"{key}.note").write_text(change(self.notes(key).get(key, "")))

    def attach(self, run_id, file, folder):
        self.shelf.mkdir(exist_ok=True)
        shutil.copy(file, self.shelf)

    def artifact(self, run_id, path, folder):
        file = self.shelf / Path(path).name
        return file if file.exists() else None

    def history(self):
        return self.aliases().get("history", [])

    def _permitted(self, action, decision):
        allowed, now = permit(DecisionChain(self).find(decision)), self.aliases()
        expected = (
            now.get("champion") or "",
            now.get("challenger" if action == "promote" else "previous"),
        )
        if (action, allowed.champion, allowed.version) != (allowed.action, *expected):
            raise RuntimeError(f"the aliases are {now}: somebody moved them")
        event = {
            "action": action,
            "version": allowed.version,
            "replaces": allowed.champion,
            "decision": decision,
            "reason": allowed.reason,
            "time": f"{2100 + len(self.history())}-01-01T00:00:00Z",
        }
        return allowed, {"history": [*self.history(), event]}

    def promote_challenger(self, decision):
        allowed, event = self._permitted("promote", decision)
        self.set(
            champion=allowed.version, previous=allowed.champion or None, challenger=None, **event
        )
        if self.kill == "in:promote":
            os.kill(os.getpid(), signal.SIGKILL)

    def reject_challenger(self, reason, *, expected_challenger, decision=""):
        self.set(challenger=None)

    def rollback(self, decision):
        allowed, event = self._permitted("rollback", decision)
        self.set(champion=allowed.version, previous=None, **event)
        if self.kill == "in:rollback":
            os.kill(os.getpid(), signal.SIGKILL)


#: Different for each role, and none is 0.5: exchanged ones are seen.
THRESHOLDS = {"champion": 0.35, "challenger": 0.65}


@dataclass
class Scorer:
    "Scores a text by its length; `delay_s` makes it slow, `gate` holds it until it is set."

    version: str
    sha256: str
    threshold: float
    delay_s: float = 0.0
    started: Path | None = None
    gate: threading.Event | None = None
    held: Path | None = None
    closed: bool = False

    def scores(self, texts):
        assert not self.closed, "scored after it was closed"
        if self.started is not None:
            self.started.touch()
        if self.gate is not None:
            assert self.gate.wait(30)
        while self.held is not None and self.held.exists():
            time.sleep(0.01)
        time.sleep(self.delay_s)  # plays the computation
        return np.array([min(len(t) / 10, 1.0) for t in texts])

    def close(self):
        self.closed = True


class FileLoader:
    """The champion of a FileRegistry; version N fails to load if FOLDER/broken-N exists.

    Its scorers wait as long as FOLDER/held exists, its loads as long as FOLDER/load-held does."""

    def __init__(self, folder: Path, delay_s: float = 0.0):
        self.folder, self.registry, self.delay_s = Path(folder), FileRegistry(folder), delay_s

    def find(self, alias):
        return self.registry._get(alias)

    def load(self, version, alias):
        if (self.folder / f"broken-{version.version}").exists():
            raise OSError("adapter_model.safetensors: file is too short")
        if (self.folder / f"deadly-{version.version}").exists():
            os.kill(os.getpid(), signal.SIGKILL)
        while (self.folder / "load-held").exists():
            time.sleep(0.005)
        return Scorer(
            version.version,
            version.sha256,
            THRESHOLDS[alias],
            delay_s=self.delay_s,
            started=self.folder / "scoring",
            held=self.folder / "held",
        )


#: Signal -> exit code of the service: after the shutdown SIGTERM ends it as it ends any process, Ctrl-C is done with.
ENDS = {signal.SIGTERM: -signal.SIGTERM, signal.SIGINT: 0}


@contextmanager
def process(*args: str, itself: bool = False):
    """This file as a process of its own, with pipes; ended if the test leaves it running.

    `itself`: the one that is yielded, not a fork that it stands for (warm.py)."""
    p = subprocess.Popen(
        [sys.executable if itself else python(), __file__, *args],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield p
    finally:
        p.kill()
        p.communicate()


@contextmanager
def service_process(folder: Path, delay_s: float = 0.0, full_disk: bool = False):
    """`content-arena serve` with a FileLoader, in a process of its own; yields it and its URL.

    `full_disk`: none of its files may grow."""
    with process(
        "serve", str(folder), str(delay_s), *["full disk"] * full_disk, itself=full_disk
    ) as p:
        said = p.stdout.readline()  # comes when the port is open
        yield p, re.search(r"http://[\d.:]+", said)[0]


@contextmanager
def serving(app, port: int = 0):
    "`app` on a real socket of this machine (0: any free port), in a thread; yields its URL."
    import uvicorn

    with socket.create_server(("127.0.0.1", port)) as sock:
        server = uvicorn.Server(
            uvicorn.Config(app, log_level="error", ws="none", timeout_keep_alive=75)
        )
        thread = threading.Thread(target=server.run, args=([sock],))
        thread.start()
        try:
            yield f"http://127.0.0.1:{sock.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(30)
            assert not thread.is_alive()


@contextmanager
def service(folder: Path, **explicit):
    "The service over the registry in `folder`, its champion loaded."
    from content_arena.serving.app import create_app  # slow to import: not where it isn't used

    app = create_app(settings(folder, **explicit), Secrets(), FileLoader(folder))
    with serving(app) as url:
        httpx.post(f"{url}/reload").raise_for_status()
        yield url


class KilledJournal(Journal):
    "Kills its process before or after the state of `point`, e.g. `before:promoted`, is on disk."

    def __init__(self, settings, point: str):
        super().__init__(settings)
        self.point = point

    def _write(self, record, state):
        if self.point == f"before:{state}":
            os.kill(os.getpid(), signal.SIGKILL)
        record = super()._write(record, state)
        if self.point == f"after:{state}":
            os.kill(os.getpid(), signal.SIGKILL)
        return record


class Notices:
    "Keeps what was told, one event a line, in FOLDER/notices."

    def __init__(self, folder: Path):
        self.file = Path(folder) / "notices"

    def notify(self, event, **facts):
        with open(self.file, "a") as f:
            f.write(event + "\n")
        return Delivery(True, "delivered", 1)

    @property
    def sent(self) -> list[str]:
        return self.file.read_text().split() if self.file.exists() else []


def comparison(old: str | None, new: str, verdict: str = "promote") -> dict:
    scores = dict(f1=0.84, precision=0.85, recall=0.83, accuracy=0.86)
    return {
        "champion": {"version": old, **scores} if old else None,
        "challenger": {"version": new, **scores, "f1": 0.87, "sha256": Version(new).sha256},
        "samples_evaluated": 1500,
        "should_promote": verdict in ("promote", "bootstrap"),
        "verdict": verdict,
        "reasons": ["F1 +0.03"],
    }


def recorded(registry, old: str | None, new: str, verdict: str = "promote") -> str:
    "The id of a record of such a comparison, as the evaluation report leaves it."
    compared = comparison(old, new, verdict)
    compared["challenger"]["sha256"] = registry.get_version(new).sha256
    return DecisionChain(registry).append("comparison", new, {"comparison": compared})


def compared(old: str | None, new: str, verdict: str = "promote"):
    "What an evaluator answers: such a comparison, with (no) rows."
    from pandas import DataFrame  # slow to import: not where it isn't used

    from content_arena.mlops.evaluator import Comparison
    from content_arena.mlops.gate import Decision

    return Comparison(
        comparison(old, new, verdict) | {"decision": ""},
        DataFrame({"row": [""]}),
        np.zeros((1, 4)),
        Decision(verdict, ("F1 +0.03",), ()),
    )


def deployer(folder: Path, url: str, *, kill="", evaluator=None, **explicit) -> ModelDeployer:
    s = settings(folder, inference_url=url, **explicit)
    journal = KilledJournal(s, kill)
    return ModelDeployer(
        FileRegistry(folder, kill),
        s,
        Notices(folder),
        evaluator,
        journal=journal,
        client=InferenceClient(s, Secrets(), backoff_s=0.01),
    )


class Asking:
    "An evaluator that says so on stdout, with its process, and goes on when a line comes on stdin."

    def __init__(self, old: str, new: str):
        self.old, self.new = old, new

    def compare(self, test):
        print(f"comparing in {os.getpid()}", flush=True)
        sys.stdin.readline()
        return compared(self.old, self.new)


if __name__ == "__main__":
    action, folder, *more = sys.argv[1:]
    if action == "serve":
        from content_arena.serving.app import run

        delay = float(more[0]) if more else 0.0
        if "full disk" in more:
            resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
        run(settings(Path(folder)), secrets=Secrets(), loader=FileLoader(Path(folder), delay))
    elif action == "deploy":
        url, kill, decision = more
        d = deployer(Path(folder), url, kill=kill)
        print(json.dumps(asyncio.run(d.deploy_if_better(decision=decision))))
    elif action == "deploy-slowly":
        d = deployer(Path(folder), more[0], evaluator=Asking("3", "4"))
        print(json.dumps(asyncio.run(d.deploy_if_better("the test set"))))

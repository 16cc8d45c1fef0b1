"""Stores of tiny models for tests of versions, and processes that die at a chosen step."""

import json
import os
import shutil
import signal
import sys
import traceback
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path

from content_arena.core.config import load_settings
from content_arena.versions import cleanup as cleaning
from content_arena.versions import retention
from content_arena.mlops.model_registry import Version
from content_arena.versions.cleanup import Cleanup
from content_arena.versions.retention import Retention
from content_arena.versions.snapshots import left_over, remove_tree
from content_arena.versions.shelf import VersionStore
from content_arena.training.model_files import write_manifest

CHANGES = {"os.rename", "os.mkdir", "os.link", "os.symlink", "os.remove", "os.rmdir", "os.chmod"}


def model(folder: Path, text: str) -> Path:
    "A model folder that says `text`."
    folder.mkdir(parents=True)
    (folder / "adapter").mkdir()
    (folder / "adapter" / "weights.safetensors").write_text(f"adapter {text}" * 50)
    (folder / "head.safetensors").write_text(text)
    spec = {"format": 1, "base_model": "tiny", "base_model_sha256": "0" * 64}
    (folder / "content_filter.json").write_text(json.dumps(spec))
    write_manifest(folder)
    return folder


class FakeRegistry:
    "Versions and aliases that a file tells: a list of [sha256, [alias, ...]]."

    def __init__(self, file: Path):
        self.file = file

    def read(self) -> list:
        return json.loads(self.file.read_text()) if self.file.exists() else []

    def write(self, value: list) -> None:
        self.file.write_text(json.dumps(value))

    def versions(self) -> list[Version]:
        now = datetime.now(timezone.utc)
        return [
            Version(
                "content-filter",
                str(i + 1),
                f"run{i}",
                tuple(aliases),
                {
                    "lineage": '["d0"]',
                    "f1": "0.8",
                    "detection_rate": "0.5",
                    "false_positive_rate": "0.25",
                },
                sha256,
                now,
            )
            for i, (sha256, aliases) in enumerate(self.read())
        ]

    def check_files(self, version: Version) -> str:
        return ""

    def metrics(self, run_id: str) -> dict[str, float]:
        return {"valid_f1": 0.7}

    def promote(self, sha256: str) -> None:
        "Make the model champion; the one that was becomes `previous`."
        old = [[s, ["previous"] if "champion" in a else []] for s, a in self.read()]
        self.write([*[v for v in old if v[0] != sha256], [sha256, ["champion"]]])


def make_store(root: Path, **settings) -> VersionStore:
    settings = dict(cleanup_keep_versions=1) | settings
    s = load_settings(
        env={},
        models_dir=str(root / "models"),
        var_dir=str(root / "var"),
        runs_dir=str(root / "runs"),
        artifact_dir=str(root / "artifacts"),
        tracking_uri=f"sqlite:///{root}/mlflow.db",
        **settings,
    )
    return VersionStore(s, FakeRegistry(root / "registry.json"), lock_timeout_s=30)


def says(store: VersionStore) -> str:
    "What the model behind coevolution-latest says."
    return (store.latest / "head.safetensors").read_text()


def four_versions(root: Path) -> dict[str, str]:
    "v0 of the champion, v1 tagged stable, v2, v3 (latest); what the model of each says -> name."
    store = make_store(root)
    names = {}
    for i in range(4):
        source = model(root / "sources" / str(i), f"v{i}")
        names[f"v{i}"] = store.publish(source, tag="stable" if i == 1 else "").name
    store.registry.promote(store.shelf().snapshots[names["v0"]].model_sha256)
    Retention(store).export()
    return names


def copy_shelf(template: Path, root: Path) -> None:
    "A copy of a store, so that the next death starts from the same."
    if root.exists():
        remove_tree(root)
    shutil.copytree(template, root, symlinks=True)


# What is done to a copy of `four_versions`, and what latest may say afterwards ------------------


def _over_a_folder(store: VersionStore, names: dict[str, str]) -> None:
    store.latest.unlink()
    model(store.latest, "by hand")


def _marked(store: VersionStore, names: dict[str, str]) -> None:
    Retention(store).mark(names["v2"], archive=True)


def _archived(store: VersionStore, names: dict[str, str]) -> None:
    _marked(store, names)
    with store.locked():
        Retention(store).archive(names["v2"])


#: name -> (what comes before, what is killed, what latest may say afterwards)
OPERATIONS = {
    "save": (None, lambda s, n: s.save("again"), {"v3"}),
    "publish": (
        None,
        lambda s, n: s.publish(s.models.parent / "sources" / "0", tag="new"),
        {"v3", "v0"},
    ),
    "restore": (None, lambda s, n: s.restore(n["v1"]), {"v3", "v1"}),
    "restore over a folder": (_over_a_folder, lambda s, n: s.restore(n["v1"]), {"by hand", "v1"}),
    "restore from the archive": (_archived, lambda s, n: s.restore(n["v2"]), {"v3", "v2"}),
    "prune": (None, lambda s, n: Retention(s).prune(1), {"v3"}),
    "cleanup": (_marked, lambda s, n: Cleanup(s).execute(Cleanup(s).plan()), {"v3"}),
    "export": (lambda s, n: s.file.path.unlink(), lambda s, n: Retention(s).export(), {"v3"}),
}


# Dying -------------------------------------------------------------------------------------------


class Killed(BaseException):
    "Instead of a signal, in a process that has to live on."


class Steps:
    "Counts changes to the disk below `root`; the one numbered `end` is not made, nor any after it."

    def __init__(self):
        self.root, self.end, self.dead = "", -1, False

    def hook(self, event: str, args: tuple) -> None:
        if not self.root or not self._changes(event, args):
            return
        if self.end == 0 or self.dead:
            self.dead = True
            self.die()
        self.end -= 1

    def _changes(self, event: str, args: tuple) -> bool:
        if event == "ctypes.dlsym":
            return args[1] == "renameat2"
        if event == "open":
            written = isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR)
            return bool(written) and self._ours(args[0])
        relative = any(isinstance(a, int) and a > 2 for a in args[1:]) and event != "os.chmod"
        return event in CHANGES and (relative or self._ours(args[0]))

    def _ours(self, path) -> bool:
        path = os.fspath(path) if isinstance(path, (str, Path)) else ""
        return path.startswith(self.root) and not path.endswith(".lock")

    def die(self) -> None:
        raise Killed


steps = Steps()
sys.addaudithook(lambda event, args: steps.hook(event, args))


@contextmanager
def death(root: Path, end: int | None):
    "What is done in it ends before change `end` (None: it lives). No `finally` can change a thing."
    steps.root, steps.end, steps.dead = (f"{root}/" if end is not None else ""), end, False
    try:
        yield
    except Killed:
        pass
    finally:
        steps.root = ""


def start(role, *args) -> tuple[int, int]:
    "`role(*args)` in a forked process; its id and the end of the pipe that will hold its answer."
    here, there = os.pipe()
    if child := os.fork():
        os.close(there)
        return child, here
    try:
        os.write(there, str(role(*args)).encode())
        os._exit(0)
    except BaseException:
        os.write(there, traceback.format_exc().encode())
        os._exit(1)


def answer(child: int, here: int) -> tuple[int, str]:
    "Exit code (negative: the signal) and answer of a process that `start` made."
    with open(here, encoding="utf-8") as pipe:
        said = pipe.read()
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), said


def killed_at(root: Path, operation: str, names: dict[str, str], end: int) -> str:
    "`operation`, killed by SIGKILL before change `end`; if it lives, what latest says."
    steps.die = lambda: os.kill(os.getpid(), signal.SIGKILL)
    retention.open_paths = cleaning.open_paths = lambda *folders: {}  # /proc is not looked through
    steps.root, steps.end = f"{root}/", end
    OPERATIONS[operation][1](make_store(root), names)
    steps.root = ""
    return says(make_store(root))


def save_when_told(root: Path, tag: str, wait: int, go: int) -> str:
    "Save as soon as the parent closes its end `go` of the pipe."
    os.close(go)
    os.read(wait, 1)
    return make_store(root).save(tag).name


def half_made(store: VersionStore) -> list[Path]:
    return [*left_over(store.versions), *left_over(store.archives)]

"""Processes that a test may kill, forked from a server that has MLflow loaded: each starts at once.

The server never opened a database, so none is shared by its children. In it are also the registry
of three versions that they work on.
"""

import multiprocessing
import os
import shutil
import signal
import sqlite3
import sys
import traceback
from contextlib import closing, contextmanager
from functools import cache
from multiprocessing import forkserver
from pathlib import Path
from unittest.mock import patch

import httpcore  # noqa: F401  loaded with the first request otherwise
import mlflow
from mlflow import MlflowClient
from mlflow.store.db import utils
from mlflow.store.model_registry import sqlalchemy_store as _registry_store  # noqa: F401
from mlflow.store.tracking import sqlalchemy_store as _tracking_store  # noqa: F401
from mlflow.tracking._tracking_service.utils import _artifact_repos_cache
from sqlalchemy import Engine, event
from sqlalchemy.orm import configure_mappers

from content_arena.core.artifact_paths import follow_artifacts
from content_arena.core.config import load_settings
from content_arena.mlops.decision_records import DecisionChain
from content_arena.mlops.model_registry import ModelRegistry, Move

WRITES = (
    "set_registered_model_alias",
    "delete_registered_model_alias",
    "set_model_version_tag",
    "set_registered_model_tag",
)

# What each process would load or find out again when it opens a database, some of it from 60 files.
configure_mappers()
utils._get_latest_schema_revision = cache(utils._get_latest_schema_revision)
utils._get_latest_schema_revision()
context = multiprocessing.get_context("forkserver")


@event.listens_for(Engine, "connect")
def _without_fsync(connection, _) -> None:
    "What was written outlives a killed process; only a power cut, which no test plays, needs more."
    if isinstance(connection, sqlite3.Connection):
        connection.execute("pragma synchronous = off")


def _run(role, pipe, args) -> None:
    try:
        role(pipe, *args)
    except BaseException:
        pipe.send(traceback.format_exc())
        raise


@contextmanager
def process(role, *args):
    "`role(pipe, *args)` in a process; yields it and our end of the pipe; ended if left running."
    context.set_forkserver_preload([__name__, role.__module__])
    home = Path(sys.modules[role.__module__].__file__).parent
    path = str(Path(__file__).parent), str(home), os.environ.get("PYTHONPATH", "")
    with patch.dict(os.environ, PYTHONPATH=os.pathsep.join(filter(None, path))):
        forkserver.ensure_running()
    here, there = context.Pipe()
    child = context.Process(target=_run, args=(role, there, args), daemon=True)
    child.start()
    there.close()  # so that its death is the end of the pipe
    try:
        yield child, here
    finally:
        child.kill()
        child.join()
        here.close()


def told(role, *args, timeout_s: float = 60):
    "The one thing that `role` sends, from a process that ends well."
    with process(role, *args) as (child, pipe):
        assert pipe.poll(timeout_s), f"{role.__name__} is silent"
        said = pipe.recv()
        child.join(timeout_s)
        assert child.exitcode == 0, said
        return said


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def killed(role, *args, timeout_s: float = 60) -> None:
    "Run `role` in a process that has to end itself by SIGKILL before it sent anything."
    with process(role, *args) as (child, pipe):
        child.join(timeout_s)
        said = pipe.recv() if child.exitcode != -signal.SIGKILL and pipe.poll() else ""
        assert child.exitcode == -signal.SIGKILL, said


def make_settings(root: Path, **more):
    store = dict(
        var_dir=str(root / "var"),
        artifact_dir=str(root / "artifacts"),
        models_dir=str(root / "models"),
        tracking_uri=f"sqlite:///{root}/mlflow.db",
        store_url=f"sqlite:///{root}/events.db",
    )
    return load_settings(env={}, **(store | more))


def make_three_versions(root: Path) -> ModelRegistry:
    "v1 is `previous`, v2 is champion, v3 the challenger; no model files."
    s = make_settings(root)
    registry = ModelRegistry(s)
    client: MlflowClient = registry._client
    client.create_registered_model(registry.name)
    experiment = client.create_experiment(s.experiment, (root / "artifacts").as_uri())
    for number in "123":
        run = client.create_run(experiment)
        client.create_model_version(
            registry.name,
            f"file:///nowhere/{number}",
            run.info.run_id,
            tags={"model_sha256": f"{int(number):064x}"},
        )
        registry._move(Move("register", number))
        if number != "3":
            registry.promote_challenger(DecisionChain(registry).by_hand(number, "better"))
    return registry


def forget_places() -> None:
    "MLflow remembers, as long as a process lives, where the artifacts of a run lie; a copy's lie elsewhere."
    _artifact_repos_cache.clear()


def copy_store(store: Path, root: Path) -> ModelRegistry:
    "A registry of its own in `root`, as it is in the database `store`; again: as it was at first."
    with (
        closing(sqlite3.connect(store)) as source,
        closing(sqlite3.connect(root / "mlflow.db")) as copy,
    ):
        source.backup(copy)
    shutil.rmtree(root / "artifacts", ignore_errors=True)
    if (store.parent / "artifacts").exists():
        shutil.copytree(store.parent / "artifacts", root / "artifacts")
    settings = make_settings(root)
    follow_artifacts(settings)
    forget_places()
    return ModelRegistry(settings)


def log_run(settings, name: str = "model") -> str:
    "Log a run as the trainer does, with a model folder of one file; returns its id."
    from content_arena.training.model_files import write_manifest  # brings torch: only if needed
    from content_arena.training.tracking import connect

    folder = settings.path("var_dir") / "work" / name
    folder.mkdir(parents=True)
    (folder / "content_filter.json").write_text(name)
    tags = dict(
        dataset_id="d",
        lineage='["d"]',
        base_model="tiny",
        base_model_sha256="0" * 64,
        model_sha256=write_manifest(folder),
    )
    with mlflow.start_run(experiment_id=connect(settings), tags=tags) as run:
        mlflow.pyfunc.log_model(
            name="model",
            loader_module="content_arena.core.config",
            pip_requirements=[],
            data_path=str(folder),
        )
    return run.info.run_id


def aliases(registry) -> dict[str, str]:
    return {a: v.version for v in registry.versions() for a in v.aliases}


def statuses(registry) -> list[str]:
    return [v.status for v in registry.versions()]

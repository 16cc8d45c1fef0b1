"""A clone that was moved, its caches left behind: what it holds is found again, and what is gone is named.

A real model on a tiny base; commands as a user gives them.
"""

import json
import os
import shutil
from pathlib import Path

import httpx
import pytest
import stage
from click.testing import Result
from forks import copy_store, forget_places
from tiny_models import register
from typer.testing import CliRunner

from content_arena.cli import main as cli
from content_arena.core.config import Secrets
from content_arena.mlops.decision_records import DecisionChain
from content_arena.mlops.model_registry import ModelRegistry, RegistryError
from content_arena.versions.shelf import VersionStore
from content_arena.serving.app import create_app
from content_arena.testing.tiny_base import make_tiny_base

from content_arena.training.tracking import connect, log_json

pytestmark = pytest.mark.slow


def settings_in(clone: Path):
    return stage.settings(
        clone,
        tracking_uri=f"sqlite:///{clone}/mlflow.db",
        dtype="float32",
        artifact_dir=str(clone / "artifacts"),
    )


def answer(clone: Path, *arguments: str) -> dict:
    "What a command that must succeed answers, as JSON."
    done = call(clone, *arguments, "--json")
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout.splitlines()[-1])


def command(clone: Path, *arguments: str) -> tuple[int, str]:
    "Exit code and all that `content-arena ARGUMENTS` says, in `clone`."
    done = call(clone, *arguments)
    return done.exit_code, done.output + str(done.exception or "")


def call(clone: Path, *arguments: str) -> Result:
    s = settings_in(clone)
    keys = ("var_dir", "models_dir", "artifact_dir", "tracking_uri", "store_url", "dtype")
    pairs = [x for k in keys for x in ("-p", f"{k}={getattr(s, k)}")]
    return CliRunner().invoke(cli.app, [*arguments, *pairs])


@pytest.fixture(scope="module")
def moved(tmp_path_factory, empty_store) -> Path:
    "A clone with one champion, published as a version too; then it is somewhere else, without caches."
    old, new = tmp_path_factory.mktemp("old") / "clone", tmp_path_factory.mktemp("new") / "clone"
    old.mkdir()
    copy_store(empty_store, old)
    s = settings_in(old)
    made = register(s, make_tiny_base(old.parent / "base"), seed=1)
    registry = ModelRegistry(s)
    registry.promote_challenger(DecisionChain(registry).by_hand(made.version, "the first"))
    VersionStore(s, registry).publish_version()
    shutil.rmtree(old / "var")  # caches, and the folder it was trained in
    os.rename(old, new)
    forget_places()
    return new


@pytest.fixture
def clone(moved, tmp_path) -> Path:
    "A copy of it, at yet another place, that a test may damage."
    forget_places()
    new = shutil.copytree(
        moved,
        tmp_path / "clone",
        symlinks=True,
        ignore=lambda folder, names: ["var"] if folder == str(moved) else [],
    )
    assert ModelRegistry(settings_in(new)).get_champion().version == "1"  # it is at home now
    return new


def test_everything_works_again(moved):
    assert answer(moved, "classify", "you are awful")["model_version"] == "1"
    code, said = command(moved, "registry", "check")
    assert (code, said.strip()) == (
        0,
        "file, MLflow and disk agree; the files of 1 versions in use were read",
    )
    assert answer(moved, "decisions", "verify")["moves"] == 1
    checks = {c["name"]: c for c in answer(moved, "doctor", "--deep")["checks"]}
    assert checks["model champion"]["state"] == "ok", checks
    assert "files verified, loaded" in checks["model champion"]["says"]
    with stage.serving(create_app(settings_in(moved), Secrets())) as url:
        httpx.post(f"{url}/reload", timeout=60).raise_for_status()
        assert httpx.get(f"{url}/ready").json()["model_version"] == "1"


def test_what_is_made_afterwards_lies_in_the_new_place(clone):
    "MLflow would make the old folder again, from the absolute path in its database."
    import mlflow

    s, old = settings_in(clone), set(clone.parent.parent.rglob("*"))
    with mlflow.start_run(experiment_id=connect(s)) as run:
        log_json({"a": 1}, "a.json")
    assert (clone / "artifacts" / run.info.run_id / "artifacts" / "a.json").exists()
    registry = ModelRegistry(s)
    DecisionChain(registry).by_hand("1", "again")
    assert len(sorted((clone / "artifacts").rglob("decisions/*.json"))) == 2
    made = set(clone.parent.parent.rglob("*")) - old
    assert {p for p in made if clone not in p.parents} == set()


def test_a_place_that_mlflow_has_wrong_is_made_up_for_by_the_hash(clone):
    "As with any store whose database is not ours to correct."
    (folder,) = (clone / "artifacts" / "models").iterdir()
    folder.rename(clone / "artifacts" / "somewhere-else")
    code, said = command(clone, "registry", "check")
    assert code == 0, said
    (clone / "artifacts" / "somewhere-else").rename(folder)


def test_what_is_gone_is_named_by_everybody(clone):
    shutil.rmtree(clone / "artifacts" / "models")
    place = str(clone / "artifacts")
    for arguments in (["registry", "check"], ["doctor", "--deep"], ["classify", "hello"]):
        code, said = command(clone, *arguments)
        flat = " ".join(said.split())
        assert code != 0, arguments
        for part in (place, "set [mlflow] artifact_dir", "content-filter v1"):
            assert part in flat, (arguments, part, flat)
    with stage.serving(create_app(settings_in(clone), Secrets())) as url:
        answer = httpx.post(f"{url}/reload", timeout=60)
        assert answer.status_code == 503 and place in answer.text
        said = httpx.post(f"{url}/classify", json={"text": "hello"}).text
        assert place in said and "register and promote" not in said


@pytest.mark.parametrize("name", ["head.safetensors", "content_filter.json", "manifest.json"])
def test_one_changed_byte_is_found_by_the_check_and_the_doctor(clone, name):
    (file,) = (clone / "artifacts").rglob(name)
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    with pytest.raises(RegistryError, match="content-filter v1"):
        ModelRegistry(settings_in(clone)).download("1")
    for arguments in (["registry", "check"], ["doctor", "--deep"]):
        code, said = command(clone, *arguments)
        assert code != 0 and "content-filter v1" in said, (arguments, said)

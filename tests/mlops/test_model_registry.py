"""The registry under kills and under several processes: what a notebook can't show."""

import json
import shutil
import socket
from pathlib import Path

import mlflow
import pytest
from filelock import FileLock
from mlflow.exceptions import MlflowException

from content_arena.mlops.decision_records import DecisionChain, Moves
from content_arena.core.mlflow_server import TrackingServerError, check_reachable
from content_arena.mlops.model_registry import ModelRegistry, Move, RegistryError, RegistryReader

from forks import (
    WRITES,
    aliases,
    copy_store,
    die,
    killed,
    log_run,
    make_settings,
    process,
    statuses,
)

pytestmark = pytest.mark.long(70)


@pytest.fixture
def registry(tmp_path, three_versions_store) -> ModelRegistry:
    "v1 is `previous`, v2 is champion, v3 the challenger; no model files."
    return copy_store(three_versions_store, tmp_path)


# --- death at every write ------------------------------------------------------------------------


class Killed(BaseException):
    "Stands for the end of a process: no `except Exception` catches it."


def on_write(monkeypatch, writes: list, die_at: int | None = None) -> None:
    "List MLflow's writes in `seen`; die before number `die_at` reaches the store."
    for verb in WRITES:

        def call(self, *args, _original=getattr(mlflow.MlflowClient, verb), _verb=verb):
            if len(writes) == die_at:
                raise Killed
            writes.append(_verb)
            _original(self, *args)

        monkeypatch.setattr(mlflow.MlflowClient, verb, call)


def in_file(registry) -> dict[str, str]:
    "What MODEL_REGISTRY.json says of the aliases."
    value = json.loads((registry.settings.path("models_dir") / "MODEL_REGISTRY.json").read_text())
    return {alias: entry["version"] for alias, entry in value["production"].items()}


ACTIONS = {
    "promote": lambda r: r.promote_challenger(DecisionChain(r).by_hand("3", "better")),
    "reject": lambda r: r.reject_challenger("worse"),
    "rollback": lambda r: r.rollback(DecisionChain(r).rollback("2", "1", "bad")),
}


@pytest.mark.slow
@pytest.mark.parametrize("action", ACTIONS)
def test_death_at_any_write_is_finished_or_undone(
    registry, monkeypatch, tmp_path, action, three_versions_store
):
    before, past = (aliases(registry), statuses(registry)), len(registry.history())
    with monkeypatch.context() as m:
        on_write(m, writes := [])
        ACTIONS[action](registry)
    done = aliases(registry), statuses(registry)
    assert done != before and in_file(registry) == done[0]

    ends = []
    for n in range(len(writes)):  # after write n is before write n + 1
        registry = copy_store(three_versions_store, tmp_path)
        assert registry.mirror() == ""
        with monkeypatch.context() as m, pytest.raises(Killed):
            on_write(m, [], n)
            ACTIONS[action](registry)
        assert registry.get_champion() is not None
        registry.settle()
        now = aliases(registry), statuses(registry)
        # either as before or as after: nothing in between
        assert now in (before, done), f"died before write {n}, {writes[n]}"
        assert in_file(registry) == now[0], "the registry file was forgotten"
        assert len(registry.history()) == past + (now == done)
        champions = 2 + (now == done and action != "reject")
        assert DecisionChain(registry).moves() == Moves(recorded=champions, older=0)
        ends.append(now == done)
    assert ends == sorted(ends) and set(ends) == {False, True}  # undone up to some write only


@pytest.mark.parametrize("action", ACTIONS)
def test_a_move_stands_if_the_registry_file_can_not_be_written(registry, caplog, action):
    file = registry.settings.path("models_dir") / "MODEL_REGISTRY.json"
    file.parent.mkdir()
    file.write_text("{")
    before = aliases(registry)
    ACTIONS[action](registry)
    assert aliases(registry) != before and file.read_text() == "{"
    assert "MODEL_REGISTRY.json does not show where the aliases point" in caplog.text
    assert str(file) in registry.mirror()
    file.unlink()
    assert registry.mirror() == "" and in_file(registry) == aliases(registry)


def test_death_between_creating_a_version_and_nominating_it(settings, monkeypatch):
    run_id = log_run(settings)
    registry = ModelRegistry(settings)
    with monkeypatch.context() as m, pytest.raises(Killed):
        on_write(m, [], 0)
        registry.register_challenger(run_id)
    assert registry.get_challenger() is None and statuses(registry) == ["registered"]
    assert registry.register_challenger(run_id).version == "1"
    assert registry.get_challenger().version == "1" and len(registry.versions()) == 1
    assert in_file(registry) == {"challenger": "1"}


# --- several processes ---------------------------------------------------------------------------


def read(pipe, root: Path) -> None:
    "Read @champion until told to stop; send the number of reads and the failures."
    reader, reads, failures = RegistryReader(make_settings(root)), 0, []
    while not pipe.poll(0.001):
        try:
            assert reader.get_champion() is not None
        except Exception as e:
            failures.append(repr(e))
        reads += 1
        if reads == 1:
            pipe.send("reading")
    pipe.send((reads, failures))


def promote(pipe, root: Path) -> None:
    "Promote v3 over v2 when told to; send the outcome."
    registry = ModelRegistry(make_settings(root))
    registry.get_champion()
    pipe.send("ready")
    pipe.recv()
    try:
        ACTIONS["promote"](registry)
        pipe.send("won")
    except RegistryError as e:
        pipe.send(str(e))


def promote_and_die(pipe, root: Path, die_after: int) -> None:
    "Finish what the last one left, then promote and be dead after so many writes."
    registry, writes = ModelRegistry(make_settings(root)), []
    registry.settle()
    if registry.get_challenger() is None:
        with registry._exclusive():
            registry._move(Move("register", registry.get_previous().version))
    decision = DecisionChain(registry).by_hand(registry.get_challenger().version, "again")
    for verb in WRITES:

        def call(self, *args, _original=getattr(mlflow.MlflowClient, verb)):
            _original(self, *args)
            writes.append(verb)
            if len(writes) == die_after:
                die()

        setattr(mlflow.MlflowClient, verb, call)
    registry.promote_challenger(decision)


def test_champion_is_readable_while_writers_are_killed(registry, tmp_path):
    deaths = (1, 2, 3, 4, 6, 10)
    with process(read, tmp_path) as (_, reader):
        assert reader.recv() == "reading"
        for die_after in deaths:
            killed(promote_and_die, tmp_path, die_after)
        reader.send("stop")
        reads, failures = reader.recv()
    assert not failures and reads > len(deaths)
    registry.settle()
    now = aliases(registry)
    assert set(now) == {"champion", "previous"} and now["champion"] != now["previous"]
    assert statuses(registry).count("champion") == 1
    assert DecisionChain(registry).moves().recorded > len(deaths) / 2


def test_of_two_promoters_one_wins_and_the_other_says_why(registry, tmp_path):
    with process(promote, tmp_path) as (_, one), process(promote, tmp_path) as (_, other):
        assert (one.recv(), other.recv()) == ("ready", "ready")
        one.send("go")
        other.send("go")
        said = sorted((one.recv(), other.recv()))
    assert said[1] == "won"
    assert "@challenger is not set, not v3 as expected" in said[0]
    assert aliases(registry) == {"champion": "3", "previous": "2"}


def test_a_held_lock_stops_writers_and_no_reader(registry):
    registry.get_champion()  # the very first look takes the lock
    impatient = ModelRegistry(registry.settings, lock_timeout_s=0.05)
    with FileLock(impatient._lock.lock_file):
        assert impatient.get_champion().version == "2"
        with pytest.raises(RegistryError, match="another process has been changing content-filter"):
            impatient.reject_challenger("worse")
    assert impatient.get_challenger().version == "3"


# --- MLflow in trouble ---------------------------------------------------------------------------


def test_first_ever_set_is_tried_again(registry, monkeypatch):
    original, calls = mlflow.MlflowClient.set_registered_model_alias, []

    def racing(self, *args):
        calls.append(args)
        if len(calls) < 3:
            raise MlflowException("(sqlite3.IntegrityError) UNIQUE constraint failed: aliases")
        original(self, *args)

    monkeypatch.setattr(mlflow.MlflowClient, "set_registered_model_alias", racing)
    assert ACTIONS["promote"](registry).version == "3"
    assert len(calls) == 4  # champion three times, previous once


def test_other_errors_are_not_tried_again(registry, monkeypatch):
    calls = []

    def broken(self, *args):
        calls.append(args)
        raise MlflowException("disk full")

    monkeypatch.setattr(mlflow.MlflowClient, "set_registered_model_alias", broken)
    with pytest.raises(RegistryError, match="setting content-filter@champion failed.*disk full"):
        ACTIONS["promote"](registry)
    assert len(calls) == 1


def test_a_move_by_another_machine_is_noticed(registry, monkeypatch):
    original = mlflow.MlflowClient.set_registered_model_alias
    monkeypatch.setattr(
        mlflow.MlflowClient,
        "set_registered_model_alias",
        lambda self, name, alias, _: original(self, name, alias, "1"),
    )
    with pytest.raises(RegistryError, match="another machine moved it"):
        ACTIONS["promote"](registry)


def test_a_server_that_accepts_and_never_answers(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as server:
        uri = f"http://127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises(TrackingServerError, match="does not answer at " + uri):
            check_reachable(uri, timeout_s=0.2)


@pytest.mark.parametrize(
    "verb",
    [
        ModelRegistry.get_champion,
        ModelRegistry.versions,
        ModelRegistry.history,
        ModelRegistry.settle,
        lambda r: r.rollback("x"),
        lambda r: r.promote_challenger("x"),
        lambda r: r.register_challenger("r"),
    ],
)
def test_every_verb_says_that_nobody_is_there(tmp_path, verb):
    with pytest.raises(RegistryError, match="tracking_uri"):
        verb(ModelRegistry(make_settings(tmp_path, tracking_uri="http://127.0.0.1:9")))


# --- files ---------------------------------------------------------------------------------------


def cached(settings) -> list[str]:
    folder = settings.path("var_dir") / "cache" / "models"
    return sorted(p.name for p in folder.iterdir() if p.is_dir())


def test_a_model_that_was_exchanged_in_the_store_is_refused(settings, tmp_path):
    registry = ModelRegistry(settings)
    version = registry.register_challenger(log_run(settings))
    (stored,) = (tmp_path / "artifacts").rglob("content_filter.json")
    good = stored.read_text()
    stored.write_text("exchanged")
    with pytest.raises(RegistryError, match="content-filter v1.*content_filter.json"):
        registry.download(version)
    assert cached(settings) == []
    stored.write_text(good)
    assert registry.download(version).name == version.sha256
    assert cached(settings) == [version.sha256]


def test_a_broken_download_leaves_nothing(settings, monkeypatch, tmp_path):
    registry = ModelRegistry(settings)
    version = registry.register_challenger(log_run(settings))

    def half(uri, dst_path, **where):
        (Path(dst_path) / "data").mkdir()
        (Path(dst_path) / "data" / "manifest.json").write_text("{")
        raise OSError("connection lost")

    (tmp_path / "artifacts").rename(tmp_path / "far away")  # as with a server: not found by hash
    with monkeypatch.context() as m, pytest.raises(RegistryError, match=r"\(connection lost\)"):
        m.setattr(mlflow.artifacts, "download_artifacts", half)
        registry.download(version)
    assert cached(settings) == []
    (tmp_path / "far away").rename(tmp_path / "artifacts")
    with monkeypatch.context() as m:
        m.setattr(mlflow.artifacts, "download_artifacts", half)
        assert registry.download(version).name == version.sha256
    shutil.rmtree(settings.path("var_dir") / "cache")
    shutil.rmtree(tmp_path / "artifacts")
    with pytest.raises(RegistryError, match="content-filter v1"):
        registry.download(version)

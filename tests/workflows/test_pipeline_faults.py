"""The pipeline when things go wrong: kills, bad data, a dead server, damage; and a reload under load."""

import json
import signal
import subprocess
import threading
import time
from contextlib import suppress
from pathlib import Path

import httpx
import mlflow
import psutil
import pytest
from commands import arena, settings_of, write_comments
from watch import free_port

from content_arena.mlops.model_registry import ModelRegistry
from content_arena.workflows.pipeline import find_unfinished, read_json

pytestmark = [pytest.mark.slow, pytest.mark.long(120)]


class Asking(threading.Thread):
    """Asks the service for one comment after another; remembers versions and failures."""

    def __init__(self, url: str):
        super().__init__(daemon=True)
        self.url, self.versions, self.failures, self.stop = url, [], [], threading.Event()

    def run(self):
        with httpx.Client(timeout=30) as client:
            while not self.stop.is_set():
                try:
                    answer = client.post(
                        f"{self.url}/classify", json={"text": "you are kind today"}
                    )
                    answer.raise_for_status()
                    self.versions.append(str(answer.json()["model_version"]))
                except httpx.HTTPError as e:
                    self.failures.append(repr(e))


def wait_until_ready(url: str, service: subprocess.Popen) -> None:
    deadline = time.monotonic() + 120
    while True:
        try:
            if httpx.get(f"{url}/ready", timeout=5).status_code == 200:
                return
        except httpx.HTTPError:
            pass
        assert service.poll() is None, service.stderr.read()
        assert time.monotonic() < deadline, "not ready in time"
        time.sleep(0.2)


@pytest.fixture(scope="module")
def first(home):
    """Version 1 is champion here too, but learned next to nothing: it calls everything toxic."""
    poor = ("epochs=1", "learning_rate=1e-6", "head_learning_rate=1e-6", "floor_f1=0")
    poor += ("characters=off",)
    code, out, err = arena(home[1], "pipeline", "run", "--json", *(f"-p{p}" for p in poor))
    assert code == 0, err
    return json.loads(out.splitlines()[-1])


def test_better_challenger_is_reloaded_while_requests_go_on(home, first):
    assert first["status"] == "bootstrapped"
    url = f"http://127.0.0.1:{free_port()}"
    environment = {**home[1], "CONTENT_ARENA_INFERENCE_URL": url}
    service = arena(environment, "serve", "--port", url.rpartition(":")[2], wait=False)
    asking = Asking(url)
    try:
        wait_until_ready(url, service)
        asking.start()
        # Nothing evades a filter that calls everything toxic: by that check alone none could follow.
        code, out, err = arena(
            environment, "pipeline", "run", "--json", "-p", "battle_tolerance=0.99"
        )
        assert code == 0, err
        result = json.loads(out.splitlines()[-1])
        assert result["status"] == "promoted", result["comparison"]["reasons"]
        answered = len(asking.versions)
        deadline = time.monotonic() + 60
        while len(asking.versions) < answered + 20 and time.monotonic() < deadline:
            time.sleep(0.05)
    finally:
        asking.stop.set()
        service.terminate()
        service.communicate(timeout=60)
    assert not asking.failures, asking.failures[:3]
    assert asking.versions[0] == "1" and asking.versions[-1] == "2"
    assert asking.versions == sorted(asking.versions), "an old version answered after the new one"


def kernels_of(environment: dict) -> list[psutil.Process]:
    "The kernels that work for commands of this environment."
    kernels = []
    for process in psutil.process_iter(["cmdline"]):
        with suppress(psutil.Error):
            if (
                "ipykernel_launcher" in (process.info["cmdline"] or ())
                and process.environ().get("CONTENT_ARENA_VAR_DIR")
                == environment["CONTENT_ARENA_VAR_DIR"]
            ):
                kernels.append(process)
    return kernels


def kill_when(environment: dict, process: subprocess.Popen, happened) -> None:
    "Kill a run and its kernels as soon as `happened()`."
    deadline = time.monotonic() + 300
    while not happened():
        assert process.poll() is None, f"the run ended too early: {process.stderr.read()}"
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.02)  # polling a file, there is no event to wait for
    kernels = kernels_of(environment)
    process.send_signal(signal.SIGKILL)
    for kernel in kernels:  # its own kernel, which would finish the cell
        kernel.kill()
    process.communicate()
    assert kernels, "nothing was killed in the middle of its work"


def test_run_killed_three_times_goes_on_with_the_same_command(home, first):
    folder, environment = home
    command = ("pipeline", "run", "-p", "seed=21", "--json")
    registry = ModelRegistry(settings_of(environment))
    known = set((folder / "runs").glob("*-*/"))

    def run_has(sign: str) -> bool:
        return any(list(r.glob(sign)) for r in set((folder / "runs").glob("*-*/")) - known)

    for sign in (
        "train/checkpoints/step-*",  # training
        "registered.json",  # just registered
        "comparison.json",
    ):  # about to deploy
        kill_when(environment, arena(environment, *command, wait=False), lambda: run_has(sign))
        assert registry.get_champion() is not None
        unfinished = find_unfinished(settings_of({**environment, "CONTENT_ARENA_SEED": "21"}))
        assert unfinished in set((folder / "runs").glob("*-*/")) - known

    before = read_json(unfinished / "run.json")["done"]
    assert "02_train" in before
    code, out, err = arena(environment, *command)
    assert code == 0, err
    result = json.loads(out.splitlines()[-1])
    assert Path(result["run_dir"]) == unfinished and "going on with" in err
    for name in before:
        assert f"{name}: done before" in err
    assert (
        result["status"]
        == {"promote": "promoted", "reject": "rejected", "inconclusive": "inconclusive"}[
            result["comparison"]["verdict"]
        ]
    )
    assert len(set((folder / "runs").glob("*-*/")) - known) == 1, "a second run was begun"
    assert sum(v.run_id == result["mlflow_run_id"] for v in registry.versions()) == 1, (
        "registered twice"
    )
    assert registry.get_champion() is not None


def test_failing_notebook_is_named_kept_and_logged(home, tmp_path):
    broken = tmp_path / "broken.csv"
    broken.write_text("comment,label\nhello,0\n")
    code, out, err = arena(home[1], "pipeline", "run", "-p", f"sources=csv:{broken}", "--json")
    assert code == 1
    failure = json.loads(out.splitlines()[-1])
    assert failure["status"] == "error" and "01_prepare failed: cell" in failure["message"]
    assert "broken.csv" in failure["message"] and "Traceback" not in err
    run = max((home[0] / "runs").glob("*/run.json"), key=lambda p: p.parent.name).parent
    state = read_json(run / "run.json")
    assert state["status"] == "failed" and (run / "01_prepare.html").exists()
    mlflow.set_tracking_uri(settings_of(home[1]).mlflow_uri())
    logged = mlflow.MlflowClient().list_artifacts(state["mlflow_run_id"], "reports")
    assert {a.path for a in logged} == {"reports/01_prepare.html", "reports/01_prepare.ipynb"}


def test_fewer_rows_than_the_rule_needs_is_inconclusive(home, first, tmp_path):
    write_comments(tmp_path / "few.csv", 412, seed=5)
    code, out, err = arena(
        home[1],
        "pipeline",
        "run",
        "--json",
        "-p",
        "seed=7",
        "-p",
        f"test_sources=csv:{tmp_path}/few.csv",
    )
    assert code == 0, err
    result = json.loads(out.splitlines()[-1])
    assert result["status"] == "inconclusive"
    assert result["comparison"]["reasons"] == ["412 of 1000 evaluated"]


@pytest.mark.parametrize(
    "arguments, says",
    [
        (("-p", "epoch=3"), "did you mean 'epochs'"),
        (("-p", "epochs=0"), "epochs = '0'"),
        (("--profile", "laptop"), "accepted: smoke, cpu, gpu"),
        (("-p", "epochs"), "name=value"),
    ],
)
def test_unknown_parameters_are_refused_before_anything_runs(home, arguments, says):
    known = set((home[0] / "runs").glob("*"))
    code, out, err = arena(home[1], "pipeline", "run", "--json", *arguments)
    assert code == 1 and says in err and "Traceback" not in err
    assert set((home[0] / "runs").glob("*")) == known


def test_unreachable_mlflow_is_said_before_any_work(home):
    environment = {**home[1], "CONTENT_ARENA_TRACKING_URI": "http://127.0.0.1:9"}
    started = time.monotonic()
    code, out, err = arena(environment, "pipeline", "run", "--json", "-p", "seed=99")
    assert code == 1 and "127.0.0.1:9" in err and "Traceback" not in err
    assert time.monotonic() - started < 60


def test_damaged_model_in_the_store_is_never_loaded(home, first):
    settings = settings_of(home[1])
    registry = ModelRegistry(settings)
    champion = registry.get_champion()
    for file in (home[0] / "artifacts").rglob("adapter_model.safetensors"):
        if champion.sha256 in (file.parent / "manifest.json").read_text():
            data = bytearray(file.read_bytes())
            data[-1] ^= 1
            file.write_bytes(bytes(data))
    for cached in (home[0] / "var" / "cache" / "models").glob("*"):
        subprocess.run(["rm", "-rf", str(cached)], check=True)
    code, out, err = arena(home[1], "classify", "you are kind", "--json")
    assert code == 1 and "adapter_model.safetensors" in err and "Traceback" not in err

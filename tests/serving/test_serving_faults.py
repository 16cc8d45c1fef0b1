"""The service when things around it break: fuzzed requests, many reloads, a database that goes away, a full disk, an end in the middle."""

import gc
import re
import resource
import shutil
import signal
import subprocess
import sys
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import numpy as np
import psutil
import pytest

import stage
from clients import load, reload, until
from content_arena.core.config import Secrets
from content_arena.serving import model_host as models
from content_arena.serving.app import create_app
from content_arena.store.events import EventStore
from content_arena.training.model_files import BadModel

pytestmark = pytest.mark.long(300)


# --- fuzzing -------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.timeout(3600)  # the long run
def test_requests_made_up_from_its_own_openapi_break_nothing(folder, pytestconfig):
    "schemathesis; `--fuzz 10000` for the long run."
    wanted = pytestconfig.getoption("--fuzz")
    with stage.service_process(folder) as (_, url):
        reload(url)
        paths = httpx.get(f"{url}/openapi.json").json()["paths"].values()
        varied = sum("requestBody" in o or "parameters" in o for p in paths for o in p.values())
        done = subprocess.run(
            [
                Path(sys.executable).with_name("schemathesis"),
                "run",
                f"{url}/openapi.json",
                "--phases",
                "fuzzing",
                "--max-examples",
                str(-(-wanted // varied)),
                "--seed",
                "1",
                "--checks",
                "not_a_server_error,status_code_conformance,content_type_conformance,"
                "response_schema_conformance",
                "--no-color",
                "--generation-database",
                "none",
            ],
            cwd=folder,
            capture_output=True,
            text=True,
        )
        assert httpx.post(f"{url}/classify", json={"text": "still here"}).status_code == 200
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    made = int(re.search(r"(\d[\d,]*) generated", done.stdout)[1].replace(",", ""))
    assert made >= 0.9 * wanted, done.stdout[-1500:]  # what can't vary is asked once


# --- starting with what is not there yet ---------------------------------------------------------


class Troubled(stage.FileLoader):
    """The first `times` calls of `step` (find, load) for the champion fail with `error`; the second
    call waits for `go`. Keeps all loads."""

    def __init__(self, folder, step, times, error):
        super().__init__(folder)
        self.step, self.left, self.error, self.loads = step, times, error, []
        self.go, self.failed = threading.Event(), False

    def _try(self, step, alias):
        if step == self.step and alias == "champion":
            if self.failed:
                assert self.go.wait(60)
            if self.left:
                self.left, self.failed = self.left - 1, True
                raise self.error

    def find(self, alias):
        self._try("find", alias)
        return super().find(alias)

    def load(self, version, alias):
        self.loads.append((alias, version.version))
        self._try("load", alias)
        return super().load(version, alias)


FAULTS = {
    "registry": ("find", ConnectionError("MLflow does not answer")),
    "load": ("load", RuntimeError("mat1 and mat2 must have the same dtype")),
    "model": ("load", BadModel("head.safetensors differs from its manifest")),
}


@pytest.mark.parametrize("times", [1, 4])
@pytest.mark.parametrize("cause", FAULTS)
def test_a_champion_that_loads_at_last_is_served_without_a_restart(
    folder, monkeypatch, cause, times
):
    "And the challenger that waits is loaded after it, and never takes its place."
    monkeypatch.setattr(models, "RETRY_S", 0.05)
    stage.FileRegistry(folder).set(challenger="2")
    step, error = FAULTS[cause]
    loader = Troubled(folder, step, times, error)
    app = create_app(stage.settings(folder, shadow_sample=1), Secrets(), loader)
    with stage.serving(app) as url, load(url, clients=1) as got:
        service = app.state.service
        until(lambda: service.host.failures)
        answer = httpx.get(f"{url}/ready")
        page = httpx.get(f"{url}/metrics").text
        assert answer.status_code == 503 and str(error) in answer.json()["detail"]
        assert "attempt 1 failed, the next follows" in answer.json()["detail"]
        assert ("registry rollback" in answer.json()["action"]) == (cause == "model")
        assert f'failed_loads{{alias="champion",cause="{cause}"}} 1.0' in page
        assert 'content_arena_model_version{alias="challenger"} 0.0' in page
        loader.go.set()
        until(lambda: service.challenger.slot)
        until(lambda: got and got[-1].status == 200)
        ready = httpx.get(f"{url}/ready").json()
        page = httpx.get(f"{url}/metrics").text
    assert (ready["model_version"], ready["threshold"]) == ("1", stage.THRESHOLDS["champion"])
    loads = [("champion", "1")] * (1 + times * (step == "load"))
    assert loader.loads == [*loads, ("challenger", "2")]
    assert [a.status for a in got] == sorted((a.status for a in got), reverse=True)
    assert {(a.status, a.version) for a in got} <= {(503, None), (200, "1")}
    assert f'content_arena_reloads_total{{alias="champion",result="failed"}} {times}.0' in page
    assert not re.search(r"^content_arena_failed_loads.* [1-9]", page, re.M)


def test_attempts_come_later_each_time_and_end_with_the_first_that_works(
    folder, monkeypatch, caplog
):
    loader = Troubled(folder, "load", 9, MemoryError("no room"))
    loader.go.set()
    monkeypatch.setattr(models, "RETRY_S", 0.001)
    monkeypatch.setattr(models, "RETRY_MAX_S", 0.05)
    app = create_app(stage.settings(folder), Secrets(), loader)
    with stage.serving(app) as url:
        until(lambda: app.state.service.host.slot)
        assert httpx.get(f"{url}/ready").json()["model_version"] == "1"
        stage.FileRegistry(folder).set(champion="2")
        assert reload(url).json()["model_version"] == "2"
        assert app.state.service.host._timer is None
    waits = re.findall(r"the next follows (\S+) s later", caplog.text)
    assert [float(w) for w in waits] == [0.001 * 2**n for n in range(6)] + [0.05] * 3
    assert loader.loads == [("champion", "1")] * 10 + [("champion", "2")]


def test_a_challenger_that_hangs_in_its_load_holds_up_no_champion(folder):
    stage.FileRegistry(folder).set(challenger="2")
    hold = threading.Event()

    class Hanging(stage.FileLoader):
        def load(self, version, alias):
            if alias == "challenger":
                assert hold.wait(60)
            return super().load(version, alias)

    app = create_app(stage.settings(folder, shadow_sample=1), Secrets(), Hanging(folder))
    try:
        with stage.serving(app) as url:
            until(lambda: app.state.service.host.slot)
            stage.FileRegistry(folder).set(champion="3")
            assert reload(url).json()["model_version"] == "3"
            hold.set()
            until(lambda: app.state.service.challenger.slot)
    finally:
        hold.set()


# --- many reloads --------------------------------------------------------------------------------


class FolderLoader:
    """Real engines from model folders; the registry says which. Version N is `folders[N % len]`.

    `alive`: the engines that somebody still holds; `keep`: a copy of each one's weights is kept."""

    def __init__(self, registry, folders, cache, keep=False):
        self.registry, self.folders, self.cache = registry, folders, cache
        self.alive, self.keep, self.kept = weakref.WeakSet(), keep, []

    def find(self, alias):
        return self.registry._get(alias)

    def load(self, version, alias):
        from content_arena.inference.engine import Engine

        place = self.folders[int(version.version) % len(self.folders)]
        engine = Engine.load(
            place, cache_dir=self.cache, version=version.version, alias=alias, dtype="float32"
        )
        engine.sha256 = version.sha256  # the registry in a file makes them up
        self.alive.add(engine)
        if self.keep:
            self.kept += [p.detach().clone() for p in engine.classifier.parameters()]
        return engine


def memory_mb() -> float:
    "Resident memory of this process, after giving back what is free."
    import ctypes

    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    return psutil.Process().memory_info().rss / 1e6


def growth_mb(marks: list[float]) -> float:
    "Memory that a reload costs for good, MB: the slope of the line through `marks`, one a reload."
    return float(np.polyfit(range(len(marks)), marks, 1)[0])


@pytest.mark.slow
@pytest.mark.timeout(3600)  # the long run
@pytest.mark.parametrize("leak", [False, True], ids=["as it is", "with a leak planted"])
def test_reloading_over_and_over_fails_nobody_and_leaks_nothing(
    folder, tiny_models, pytestconfig, leak
):
    """`--soak 1000` for the long run. Every tenth version is damaged and must not be served. The
    limit, half a model for each reload of the second half, is one that keeping a model would break."""
    times = min(pytestconfig.getoption("--soak"), 30 if leak else 10**6)
    good, damaged = tiny_models[:2], tiny_models[2]
    loader = FolderLoader(
        stage.FileRegistry(folder), [damaged, *good * 5][:10], folder / "cache", keep=leak
    )
    app = create_app(stage.settings(folder, request_timeout_s=25), Secrets(), loader)
    marks = []
    with stage.serving(app) as url:
        assert reload(url).json()["model_version"] == "1"
        with load(url, clients=2, pause_s=0.02) as got:
            for n in range(2, times + 2):
                loader.registry.set(champion=str(n))
                answered = reload(url)
                assert answered.status_code == (503 if n % 10 == 0 else 200), answered.text
                if n % 10 == 0:
                    assert "differs from its manifest" in answered.json()["detail"]
                if n > times // 2 and n % max(times // 100, 1) == 0:
                    marks.append(memory_mb() / max(times // 100, 1))
        service = app.state.service
        until(lambda: not service.host._retiring)
        gc.collect()
        assert len(loader.alive) == 1  # the one that serves
        size = service.host.slot.scorer.size_mb
    assert {a.status for a in got} == {200}
    assert len(got) > times / 2
    assert (growth_mb(marks) > size / 2) == leak, (size, growth_mb(marks), marks)


@pytest.fixture(scope="module")
def tiny_models(tmp_path_factory):
    "Two models of 5 MB that load and one whose adapter was cut short."
    import torch
    from content_arena.training.base_models import resolve_base_model
    from content_arena.training.classifier import build_classifier, load_tokenizer, save_model
    from content_arena.training.qlora_trainer import probe_scores
    from content_arena.testing.tiny_base import make_tiny_base

    root = tmp_path_factory.mktemp("tiny")
    words = [f"word{n}" for n in range(20_000)]
    base = resolve_base_model(
        str(make_tiny_base(root / "base", more_words=words)), root / "cache", progress=False
    )
    for seed in range(2):
        classifier, spec = build_classifier(base, lora_r=4, dtype=torch.float32, seed=seed)
        probe = probe_scores(classifier, load_tokenizer(base.path))
        save_model(
            classifier,
            root / f"model{seed}",
            spec | {"max_length": 16, "temperature": 1.0, "threshold": 0.35, "probe": probe},
        )
    shutil.copytree(root / "model0", root / "model2")
    adapter = root / "model2" / "adapter_model.safetensors"
    adapter.write_bytes(adapter.read_bytes()[:-1])
    return [root / f"model{n}" for n in range(3)]


# --- the event store -----------------------------------------------------------------------------


@contextmanager
def serving_into(folder, store_url, **explicit):
    "The service over a given store, ended with all events saved; yields its URL and parts."
    app = create_app(
        stage.settings(folder, store_url=store_url, **explicit), Secrets(), stage.FileLoader(folder)
    )
    with stage.serving(app) as url:
        reload(url)
        yield url, app.state.service


def send_label(url, n):
    return httpx.post(
        f"{url}/feedback",
        timeout=30,
        json={"label": n % 2, "source": "moderator", "reviewer": "kim", "text": f"comment {n}"},
    )


def test_a_database_that_goes_and_comes_costs_no_answer_and_no_label(folder, postgres):
    store_url, labels, away = postgres.new(), [], False

    def label(url, n):
        kept = send_label(url, n)
        assert kept.status_code == 202, kept.text
        labels.append(kept.json()["feedback_id"])

    try:
        with serving_into(folder, store_url) as (url, service), load(url, clients=2) as got:
            for n in range(10):
                label(url, n)
            until(lambda: service.events.stats().written > 20)
            postgres.stop()
            away = True
            until(lambda: not service.events.stats().database_up)
            for n in range(10, 20):
                label(url, n)
            before = len(got)
            until(lambda: len(got) > before + 20)
            postgres.start()
            away = False
            for n in range(20, 30):
                label(url, n)
            until(lambda: service.events.stats().database_up)
        assert {a.status for a in got} == {200}
        with EventStore.open(store_url) as store:
            assert set(labels) <= set(store.read("feedback").id) and len(labels) == 30
            assert len(store.read("predictions")) == 2 * len(got)
    finally:
        if away:
            postgres.start()


def test_a_full_disk_for_the_store_costs_labels_not_answers(folder):
    "No file of the process may grow beyond what it has: every write of an event fails."
    with EventStore.open(f"sqlite:///{folder}/events.db"):
        pass
    with stage.service_process(folder, full_disk=True) as (process, url):
        reload(url)
        for n in range(50):
            answered = httpx.post(f"{url}/classify", json={"text": f"comment {n}"})
            assert answered.status_code == 200
        refused = send_label(url, 1)
        assert refused.status_code == 503
        assert refused.json()["type"].endswith("store-unavailable")
        assert "not saved" in refused.json()["detail"]
        resource.prlimit(
            process.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
        )
        until(lambda: send_label(url, 2).status_code == 202)
        process.terminate()
        process.wait(60)
    with EventStore.open(f"sqlite:///{folder}/events.db") as store:
        assert len(store.read("feedback")) == 1


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGINT])
def test_ending_it_in_the_middle_answers_and_records_what_was_accepted(end, folder):
    with stage.service_process(folder) as (process, url), ThreadPoolExecutor(8) as pool:
        reload(url)
        gate = folder / "held"
        gate.touch()
        asked = [
            pool.submit(
                httpx.post,
                f"{url}/classify/batch",
                timeout=60,
                json={"texts": [f"{n} {i}" for i in range(40)]},
            )
            for n in range(8)
        ]
        until(lambda: in_flight(url) >= 8 * 40 - 32)
        process.send_signal(end)
        until(lambda: not listens(url))
        gate.unlink()
        answered = [a.result(60) for a in asked]
        assert process.wait(60) == stage.ENDS[end]
    assert [a.status_code for a in answered] == [200] * 8
    said = {v["prediction_id"] for a in answered for v in a.json()["results"]}
    with EventStore.open(f"sqlite:///{folder}/events.db") as store:
        assert set(store.read("predictions").id) == said and len(said) == 320


def listens(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health").is_success
    except httpx.TransportError:
        return False


def in_flight(url: str) -> float:
    page = httpx.get(f"{url}/metrics").text
    return float(re.search(r"^content_arena_queue_depth\S* ([\d.]+)", page, re.M)[1])


# --- metrics -------------------------------------------------------------------------------------


@pytest.mark.needs("prometheus")
def test_prometheus_finds_nothing_to_complain_about(folder):
    with stage.service_process(folder) as (_, url):
        reload(url)
        httpx.post(f"{url}/classify/batch", json={"texts": ["a", "some longer comment"]})
        page = httpx.get(f"{url}/metrics").text
    checked = subprocess.run(
        ["promtool", "check", "metrics"], input=page, text=True, capture_output=True
    )
    assert (checked.returncode, checked.stdout + checked.stderr) == (0, "")

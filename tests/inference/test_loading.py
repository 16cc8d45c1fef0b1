"""Networks are built one at a time: torch's default dtype, and more, is one for the whole process."""

import os
import re
import shutil
import signal
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import mlflow
import numpy as np
import pytest
import torch
from transformers.utils import logging as hf

from commands import arena, settings_of, state_of
from content_arena.inference.engine import Engine
from content_arena.mlops.decision_records import DecisionChain
from content_arena.mlops import registry_reader
from content_arena.mlops.model_registry import ModelRegistry
from content_arena.training import building
from content_arena.training.base_models import resolve_base_model
from content_arena.training.classifier import build_classifier, load_tokenizer, save_model
from content_arena.training.qlora_trainer import probe_scores
from content_arena.testing.tiny_base import make_tiny_base
from tiny_models import register

TEXTS = ["you are kind", "you are awful today", "바보"]
FORMATS = ("float32", "bfloat16")


def model(base, folder: Path, seed: int) -> Path:
    "The folder of a random model on `base`."
    classifier, spec = build_classifier(
        base, quantization="none", lora_r=4, dtype=torch.float32, seed=seed
    )
    for name, p in classifier.named_parameters():
        if "lora_B" in name or "head" in name:
            p.data.normal_(std=0.5)
    save_model(
        classifier,
        folder,
        spec
        | {
            "max_length": 16,
            "temperature": 1.0,
            "threshold": 0.4,
            "probe": probe_scores(classifier, load_tokenizer(base.path)),
        },
    )
    return folder


@pytest.fixture(scope="module", params=["encoder", "decoder"])
def versions(request, tmp_path_factory) -> list[Path]:
    "Two versions on one base (a head of ours, or the network's own), merged before in both formats."
    work = tmp_path_factory.mktemp(request.param)
    base = resolve_base_model(
        str(make_tiny_base(work / "base", request.param)), work / "cache", progress=False
    )
    folders = [model(base, work / f"model{seed}", seed) for seed in (1, 2)]
    for folder in folders:
        for dtype in FORMATS:
            load(folder, dtype).close()
    return folders


def load(folder: Path, dtype: str, cache: str = "cache") -> Engine:
    return Engine.load(folder, cache_dir=folder.parent / cache, dtype=dtype)


def formats(engine: Engine) -> dict[str, set[str]]:
    "The number formats of an engine's head and of the rest."
    dtypes = {"head": set(), "rest": set()}
    for name, p in engine.classifier.named_parameters():
        part = "head" if {"head", "score"} & set(name.split(".")) else "rest"
        dtypes[part].add(str(p.dtype).removeprefix("torch."))
    return dtypes


@contextmanager
def default_dtype(dtype: torch.dtype):
    "What a library in another thread may do at any moment."
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.slow
def test_fifty_loads_at_once_of_two_versions_in_two_formats(versions):
    jobs = [(versions[n % 2], FORMATS[n // 2 % 2]) for n in range(50)]
    wanted = {job: load(*job).scores(TEXTS) for job in jobs[:4]}
    together, faults = threading.Barrier(len(jobs)), []

    def one(job):
        together.wait(120)
        engine = load(*job)
        np.testing.assert_array_equal(engine.scores(TEXTS), wanted[job])
        return formats(engine)

    with ThreadPoolExecutor(len(jobs)) as pool:
        for job, done in [(job, pool.submit(one, job)) for job in jobs]:
            try:
                assert done.result() == {"head": {"float32"}, "rest": {job[1]}}
            except Exception as e:
                faults.append(f"{job[0].name} in {job[1]}: {type(e).__name__}: {e}")
    assert not faults, f"{len(faults)} of {len(jobs)} loads failed: {faults[:3]}"
    assert torch.get_default_dtype() == torch.float32


@pytest.mark.parametrize("default", [torch.bfloat16, torch.float64])
@pytest.mark.parametrize("dtype", FORMATS)
def test_nothing_depends_on_the_default_format(versions, dtype, default, tmp_path):
    "Not what is read merged, not what is merged now, and not what scores meanwhile."
    loaded = load(versions[0], dtype)
    wanted = loaded.scores(TEXTS)
    with default_dtype(default):
        merged_now = load(versions[0], dtype, cache=str(tmp_path))
        for engine in (loaded, load(versions[0], dtype), merged_now):
            np.testing.assert_array_equal(engine.scores(TEXTS), wanted)
            assert formats(engine) == {"head": {"float32"}, "rest": {dtype}}


def test_who_loads_first_scores_like_who_loads_later(versions, tmp_path):
    "The first merges and the second reads; rotary angles keep their format in both."
    first, later = (load(versions[0], "bfloat16", cache=str(tmp_path)) for _ in range(2))
    np.testing.assert_array_equal(first.scores(TEXTS), later.scores(TEXTS))
    buffers = lambda e: {n: str(b.dtype) for n, b in e.classifier.named_buffers()}
    assert buffers(first) == buffers(later)


def test_a_seed_decides_whatever_was_built_or_measured_before(versions):
    "The first call measures which format is fast; that may not use up random numbers."
    base = resolve_base_model(
        str(versions[0].parent / "base"), versions[0].parent / "cache", progress=False
    )

    def built():
        classifier, _ = build_classifier(base, quantization="none", lora_r=4, seed=3)
        return {n: p.detach() for n, p in classifier.named_parameters() if p.requires_grad}

    building._cpu_times.cache_clear()
    first, second = built(), built()
    assert {p.dtype for p in first.values()} == {torch.float32}
    assert all(torch.equal(first[n], second[n]) for n in first)
    with default_dtype(torch.bfloat16):
        assert {p.dtype for p in built().values()} == {torch.float32}


# --- the service, started with a challenger waiting ----------------------------------------------


@pytest.fixture(scope="module")
def waiting(tmp_path_factory) -> dict[str, str]:
    """The environment of commands over a registry whose version 1 is champion and 2 challenger,
    both merged before in the number format that they are served in."""
    home = tmp_path_factory.mktemp("waiting")
    environment = state_of(home, DTYPE="bfloat16", SHADOW_SAMPLE=1, PORT=0)
    settings, base = settings_of(environment), make_tiny_base(home / "tiny")
    registry = ModelRegistry(settings)
    first = register(settings, base, seed=1, threshold=0.35)
    registry.promote_challenger(DecisionChain(registry).by_hand(first.version, "first"))
    second = register(settings, base, seed=2, threshold=0.65)
    for version in (first, second):
        Engine.load(
            registry.download(version),
            dtype="bfloat16",
            cache_dir=settings.path("var_dir") / "cache",
        ).close()
    return environment


def metric(page: str, name: str, **labels: str) -> float:
    shown = ",".join(f'{k}="{v}"' for k, v in labels.items())
    return float(re.search(rf"^content_arena_{name}{{{shown}}} (\S+)$", page, re.M)[1])


def started(environment: dict[str, str]) -> tuple[dict, str]:
    "What `/ready` and `/metrics` of a new `serve` say once both models are there."
    process = arena(environment, "serve", wait=False)
    try:
        url = re.search(r"http://[\d.:]+", process.stdout.readline())[0]
        with httpx.Client(base_url=url, timeout=60, trust_env=False) as client:
            for _ in range(1200):
                page = client.get("/metrics").text
                if metric(page, "model_version", alias="challenger"):
                    return client.get("/ready").json(), page
                time.sleep(0.1)
        pytest.fail(f"no challenger after 120 s; /ready: {client.get('/ready').text}")
    finally:
        process.terminate()
        assert process.wait(60) == -signal.SIGTERM
        process.stdout.close(), process.stderr.close()


@pytest.mark.slow
@pytest.mark.timeout(7200)  # `--starts 50` for the long run
def test_serve_with_a_waiting_challenger_comes_up_every_time(waiting, pytestconfig):
    for n in range(pytestconfig.getoption("--starts")):
        ready, page = started(waiting)
        assert (ready.get("model_version"), ready.get("threshold")) == ("1", 0.35), f"{n}: {ready}"
        assert metric(page, "model_version", alias="challenger") == 2
        for alias in ("champion", "challenger"):  # at the first attempt
            assert metric(page, "reloads_total", alias=alias, result="failed") == 0
            assert metric(page, "reloads_total", alias=alias, result="changed") == 1


# --- what else is one for the whole process ------------------------------------------------------


@pytest.mark.slow
def test_a_download_changes_nothing_that_other_threads_use(waiting, tmp_path, monkeypatch):
    "Neither MLflow's address (nor does it use it) nor where errors are written."
    registry, own = ModelRegistry(settings_of(waiting)), mlflow.artifacts.download_artifacts
    during = []

    def noted(*args, **kwargs):
        during.append((sys.stderr, mlflow.get_tracking_uri(), os.environ.copy()))
        return own(*args, **kwargs)

    monkeypatch.setattr(mlflow.artifacts, "download_artifacts", noted)
    monkeypatch.setattr(
        registry_reader.RegistryReader, "_folder_by_hash", lambda self, v: None
    )  # no way around it
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path}/elsewhere.db")
    before = (sys.stderr, mlflow.get_tracking_uri(), os.environ.copy())
    version = registry.get_champion()
    shutil.rmtree(registry.download(version))
    assert (registry.download(version) / "manifest.json").is_file()
    assert during == [before]
    assert (sys.stderr, mlflow.get_tracking_uri(), os.environ.copy()) == before


def test_the_bars_and_reports_of_libraries_are_as_before():
    "Twenty threads switch them off and on again, and one is always inside."
    before, together = (hf.get_verbosity(), hf.is_progress_bar_enabled()), threading.Barrier(20)

    def quiet(_):
        together.wait(60)
        with building.building():
            assert (hf.get_verbosity(), hf.is_progress_bar_enabled()) == (hf.ERROR, False)

    with ThreadPoolExecutor(20) as pool:
        list(pool.map(quiet, range(20)))
    assert (hf.get_verbosity(), hf.is_progress_bar_enabled()) == before

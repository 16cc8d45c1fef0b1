"""The whole path of an eight-bit network: made by a training, judged by the gate, chosen and said by the service."""

import time

import httpx
import pytest
import stage
from tiny_models import comments, tiny_settings, train

from content_arena.core.config import Secrets
from content_arena.mlops.decisions import DecisionLog
from content_arena.mlops.evaluator import ChampionChallengerEvaluator
from content_arena.mlops.model_registry import ModelRegistry
from content_arena.serving.app import create_app
from content_arena.training.quantise import INT8

pytestmark = pytest.mark.slow


def test_made_judged_chosen_served(tmp_path):
    settings = tiny_settings(
        tmp_path,
        min_samples=10,
        quantise="int8",
        judged_backends=f"openvino-float32,{INT8}",
        backend=INT8,
        host="127.0.0.1",
        shadow_sample=0,
        metrics_refresh_s=0,
    )
    registry = ModelRegistry(settings)
    version = registry.register_challenger(train(settings, tmp_path / "work"))
    assert (registry.download(version) / f"{INT8}.bin").exists()
    test = comments(3200)[200:].assign(text=lambda t: t.text + " again")  # fewer would not show it
    log = DecisionLog(registry)
    found = log.decide(ChampionChallengerEvaluator(registry, settings), test)
    assert found["backends"][INT8]["listed"], found["backends"]
    registry.promote_challenger(log.by_hand(version.version, "a test"))
    with stage.serving(create_app(settings, Secrets())) as url:
        end = time.monotonic() + 60
        while (ready := httpx.get(f"{url}/ready")).status_code != 200:
            assert time.monotonic() < end, ready.text
        assert ready.json()["model_backend"] == INT8
        assert ready.json()["cascade"].startswith("off: ")
        said = httpx.post(f"{url}/classify/batch", json={"texts": test.text.head(40).tolist()})
        told = [r["is_toxic"] for r in said.raise_for_status().json()["results"]]
        assert sum(a == bool(b) for a, b in zip(told, test.label.head(40), strict=True)) > 36
        page = httpx.get(f"{url}/metrics").text
        assert f'content_arena_model_backend{{alias="champion",backend="{INT8}"}} 1.0' in page

"""Real models on a tiny base: trained on made-up comments in seconds, or with random weights; what they are trained on."""

from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import torch

from content_arena.core.config import load_settings
from content_arena.mlops.model_registry import ModelRegistry
from content_arena.testing.tiny_base import make_tiny_base
from content_arena.training.base_models import resolve_base_model
from content_arena.training.classifier import build_classifier, load_tokenizer, save_model
from content_arena.training.qlora_trainer import QLoRATrainer, probe_scores
from content_arena.training.tracking import connect, log_model


def comments(n: int = 120) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    words = rng.choice(["kind", "awful"], size=n)
    rows = [
        (f"you are {w} {rng.choice(['today', 'friend', 'you'])} {i}", int(w == "awful"))
        for i, w in enumerate(words)
    ]
    return pd.DataFrame(rows, columns=["text", "label"])


def tiny_settings(folder: Path, kind: str = "encoder", **more):
    base = folder / kind
    if not base.exists():
        make_tiny_base(base, kind)
    values = dict(
        base_model=str(base),
        epochs=4,
        batch_tokens=64,
        eval_every=5,
        checkpoint_every=3,
        learning_rate=0.01,
        head_learning_rate=0.05,
        max_length=16,
        var_dir=str(folder / "var"),
        artifact_dir=str(folder / "artifacts"),
        tracking_uri=f"sqlite:///{folder}/mlflow.db",
        store_url=f"sqlite:///{folder}/events.db",
    )
    return load_settings(env={}, **{**values, **more})


def train(settings, work: Path) -> str:
    frame = comments()
    return QLoRATrainer(settings, progress=False).train(frame[:90], frame[90:], work_dir=work)


def random_version(base_folder, cache: Path, seed: int = 0, threshold: float = 0.35):
    "Base, classifier and spec of a tiny version with random weights."
    base = resolve_base_model(str(base_folder), cache, progress=False)
    classifier, spec = build_classifier(base, quantization="none", lora_r=4, dtype=torch.float32)
    torch.manual_seed(seed)
    for name, p in classifier.named_parameters():
        if "lora_B" in name or "head" in name:
            p.data.normal_(std=0.5)
    probe = probe_scores(classifier, load_tokenizer(base.path))
    more = {"max_length": 16, "temperature": 1.0, "threshold": threshold, "probe": probe}
    return base, classifier, spec | more


def register(settings, base_folder, seed: int, threshold: float = 0.35):
    "A tiny model with random weights as the next challenger, logged as the trainer does."
    base, classifier, spec = random_version(
        base_folder, settings.path("var_dir") / "cache", seed, threshold
    )
    folder = settings.path("var_dir") / f"trained-{seed}"
    tags = dict(
        dataset_id="d",
        lineage='["d"]',
        base_model=str(base_folder),
        base_model_sha256=base.sha256,
        model_sha256=save_model(classifier, folder, spec),
    )
    with mlflow.start_run(experiment_id=connect(settings), tags=tags) as run:
        log_model(folder, {"model_sha256": tags["model_sha256"]})
    return ModelRegistry(settings).register_challenger(run.info.run_id)

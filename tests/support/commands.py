"""The command line on a tiny base: a home folder with data, and how to run a command in it."""

import os
import subprocess
from pathlib import Path

import numpy as np
import pandas as pd
from warm import python

from content_arena.core.config import load_settings
from content_arena.testing.tiny_base import make_tiny_base

ROOT = Path(__file__).resolve().parents[2]


def write_comments(file: Path, rows: int, seed: int, noise: float = 0.1) -> None:
    """One word decides; the rest is random letters, so that no two rows are near-duplicates."""
    rng = np.random.default_rng(seed)

    def word():
        return "".join(rng.choice(list("abcdefghijklmnopqrstuvwxyz"), size=6))

    table = []
    for toxic in rng.integers(0, 2, rows):
        said = "awful" if toxic != (rng.random() < noise) else "kind"
        table.append((f"{word()} {said} {word()} {word()} {word()}", int(toxic)))
    pd.DataFrame(table, columns=["text", "label"]).to_csv(file, index=False)


def make_home(folder: Path):
    """A folder with data, base model and local state; the environment that points there."""
    make_tiny_base(folder / "tiny")
    write_comments(folder / "train.csv", 400, seed=1)
    write_comments(folder / "test.csv", 1200, seed=2)
    return folder, state_of(folder)


def state_of(folder: Path, **more) -> dict[str, str]:
    """The environment of commands that work in `folder`, on the data and the base model there."""
    state = {
        "VAR_DIR": folder / "var",
        "RUNS_DIR": folder / "runs",
        "MODELS_DIR": folder / "models",
        "TRACKING_URI": f"sqlite:///{folder}/mlflow.db",
        "ARTIFACT_DIR": folder / "artifacts",
        "LOG_REQUESTS": "false",
        "STORE_URL": f"sqlite:///{folder}/events.db",
        "INFERENCE_URL": "http://127.0.0.1:9",
        "BASE_MODEL": folder / "tiny",
        "SOURCES": f"csv:{folder}/train.csv",
        "TEST_SOURCES": f"csv:{folder}/test.csv",
        "EPOCHS": 6,
        "BATCH_TOKENS": 128,
        "EVAL_EVERY": 10,
        "CHECKPOINT_EVERY": 2,
        "LEARNING_RATE": 0.01,
        "HEAD_LEARNING_RATE": 0.05,
        "MAX_LENGTH": 16,
        "GUARDED_SLICES": "source",
        **more,
    }
    clean = {k: v for k, v in os.environ.items() if not k.startswith("CONTENT_ARENA_")}
    return {**clean, **{f"CONTENT_ARENA_{k}": str(v) for k, v in state.items()}}


def arena(environment: dict, *arguments: str, wait: bool = True):
    command = [python(), "-m", "content_arena", *arguments]
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    if not wait:
        return process
    out, err = process.communicate(timeout=500)
    return process.returncode, out, err


def settings_of(environment: dict):
    return load_settings(
        env={k: v for k, v in environment.items() if k.startswith("CONTENT_ARENA_")}
    )

"""Runs that never ran: folders as the pipeline leaves them, for the pages about many runs."""

import json
from pathlib import Path

import numpy as np
import pandas as pd

from content_arena.core.config import Settings, load_settings

OUTCOMES = ("promoted", "rejected", "rejected", "inconclusive", "failed")


def settings_of(folder: Path) -> Settings:
    places = {f"{name}_dir": str(folder / name) for name in ("runs", "var", "models")}
    return load_settings(env={}, tracking_uri=f"sqlite:///{folder}/mlflow.db", **places)


def invent_run(folder: Path, number: int, texts: pd.DataFrame, scores: bool = True) -> Path:
    """Run `number` of a data set with test comments `texts` (text, label): its model is right about four of five."""
    rng = np.random.default_rng(number)
    labels = texts["label"].to_numpy()
    old, new = (np.where(rng.random(len(labels)) < 0.8, labels, 1 - labels) for _ in range(2))
    outcome = OUTCOMES[number % len(OUTCOMES)]
    run = (
        folder
        / "runs"
        / f"2026{1 + number // 700:02d}{1 + number % 28:02d}-{number:06d}-{number:04x}"
    )
    run.mkdir(parents=True)
    counts = np.bincount(4 * labels + 2 * old + new, minlength=8)
    hits, wrong = counts[[5, 7]].sum(), counts[[1, 3, 4, 6]].sum()
    files = {
        "run": {
            "run_id": run.name,
            "status": "failed" if outcome == "failed" else "finished",
            "trigger": "schedule",
        },
        "settings": {
            "profile": "smoke",
            "values": {"sources": "embedded", "seed": number, "epochs": 2 + number % 3},
        },
        "dataset": {"id": "d" * 64, "folder": str(folder / "data")},
    }
    if outcome != "failed":
        files["deployment"] = {"status": outcome}
        files["comparison"] = {
            "verdict": {"promoted": "promote", "rejected": "reject"}.get(outcome, outcome),
            "headline": f"{outcome} by the gate",
            "counts": counts.tolist(),
            "samples_evaluated": len(labels),
            "champion": {"version": str(number), "f1": 0.7},
            "challenger": {
                "version": str(number + 1),
                "f1": hits * 2 / (hits * 2 + wrong),
                "threshold": 0.4,
            },
            "test_set": {"rows_sha256": "a" * 64, "toxic": int(labels.sum())},
            "decision": f"{number:064x}",
        }
        if scores:
            pd.DataFrame({"label": labels, "challenger": new * 0.8 + 0.1}).to_parquet(
                run / "scores.parquet"
            )
    for name, value in files.items():
        (run / f"{name}.json").write_text(json.dumps(value))
    (run / "03_evaluate.html").write_text("<!doctype html><title>report</title>")
    return run


def invent_runs(folder: Path, how_many: int, rows: int = 1200) -> Settings:
    texts = pd.DataFrame(
        {
            "text": [f"<img src=x onerror=alert({i})> comment number {i}" for i in range(rows)],
            "label": np.arange(rows) % 2,
        }
    )
    (folder / "data").mkdir(parents=True)
    texts.to_parquet(folder / "data" / "test.parquet")
    for number in range(how_many):
        invent_run(folder, number, texts)
    return settings_of(folder)

"""`content-arena monitor` and `retrain`, as a scheduler calls them: real processes, a real store, no model."""

import json
import os
import time
from datetime import datetime, timedelta, timezone
from pathlib import Path

import numpy as np
import pytest

from commands import arena, settings_of
from content_arena.monitoring.run_metrics import read_group
from content_arena.store.events import EventStore


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    "A home folder without data: a pipeline run fails in its first stage."
    state = {
        "VAR_DIR": tmp_path / "var",
        "RUNS_DIR": tmp_path / "runs",
        "MODELS_DIR": tmp_path / "models",
        "TRACKING_URI": f"sqlite:///{tmp_path}/mlflow.db",
        "ARTIFACT_DIR": tmp_path / "artifacts",
        "STORE_URL": f"sqlite:///{tmp_path}/events.db",
        "INFERENCE_URL": "http://127.0.0.1:9",
        "SOURCES": f"csv:{tmp_path}/nowhere.csv",
    }
    clean = {k: v for k, v in os.environ.items() if not k.startswith("CONTENT_ARENA_")}
    return {**clean, **{f"CONTENT_ARENA_{k}": str(v) for k, v in state.items()}}


def fill(store: EventStore) -> None:
    "A month of Korean comments, and a week that is half English and of which attacks get through."
    rng, now = np.random.default_rng(0), datetime.now(timezone.utc)
    rows = []
    for days, share, n in ((20, 0.95, 700), (3, 0.5, 700)):
        for _ in range(n):
            score = float(rng.beta(0.4, 1))
            rows.append(
                {
                    "time": now - timedelta(days=days, minutes=rng.uniform(0, 600)),
                    "text_sha256": "0" * 64,
                    "lang": "ko" if rng.random() < share else "en",
                    "length": int(rng.lognormal(3, 1)) + 1,
                    "toxic_score": score,
                    "is_toxic": score > 0.5,
                    "model_version": "4",
                    "model_alias": "champion",
                    "latency_ms": 4.0,
                }
            )
    store.add("predictions", rows)
    store.add(
        "battles",
        [
            {
                "status": "completed",
                "model_version": "4",
                "result": {
                    "alias": "champion",
                    "strategy": "mixed",
                    "rounds": 400,
                    "attacked": 200,
                    "detected": 90,
                    "detection_rate": 0.45,
                    "false_positive_rate": 0.03,
                },
            }
        ],
    )


@pytest.mark.slow
def test_the_weekly_report_says_what_happened(environment: dict[str, str]):
    settings = settings_of(environment)
    with EventStore(settings) as store:
        fill(store)
    code, out, err = arena(environment, "monitor", "report", "--json")
    assert code == 0, err
    said = json.loads(out.splitlines()[-1])
    text = " ".join(said["headlines"])
    assert "700 comments were judged" in text and "**The traffic changed** in lang" in text
    assert (
        "evasion: fired" in text
        and "45% of the disguised toxic comments were detected and 3%" in text
    )
    page = Path(said["report_html"]).read_text(encoding="utf-8")
    assert "Monitoring report" in page and "monitoring.collect(" not in page
    drift = read_group(settings.path("var_dir") / "metrics" / "drift.prom")
    assert drift["content_arena_drift_score"]["lang"] > 0.25
    assert drift["content_arena_drift_rows"] == {"reference": 700, "live": 700}


def test_a_trigger_starts_one_run_and_a_failure_is_seen_everywhere(environment: dict[str, str]):
    settings = settings_of(environment)
    with EventStore(settings) as store:
        fill(store)
    code, out, err = arena(environment, "retrain", "check", "--json")
    assert code == 0, err
    decision = json.loads(out.splitlines()[-1])
    assert decision["start"] == "evasion" and not list(settings.path("runs_dir").glob("*"))
    values = {t["name"]: t["value"] for t in decision["triggers"]}
    assert values["evasion"] == pytest.approx(0.55) and values["drift"] > 0.25

    watchers = [arena(environment, "retrain", "run", "--json", wait=False) for _ in range(2)]
    ended = []
    for watcher in watchers:
        out, err = watcher.communicate(timeout=300)
        ended.append((watcher.returncode, json.loads(out.splitlines()[-1])))
    # either the other came while it ran, or after it had failed; it did not run too
    assert sorted(e["status"] for _, e in ended) in (["busy", "failed"], ["failed", "waiting"])
    failed = next(e for _, e in ended if e["status"] == "failed")
    assert failed["start"] == "evasion" and "nowhere.csv" in failed["error"]
    assert sorted(code for code, _ in ended) == [0, 1]

    code, out, err = arena(environment, "retrain", "status", "--json")
    status = json.loads(out.splitlines()[-1])
    assert [r["status"] for r in status["runs"]] == ["failed"] and status["running"] is None
    assert status["why"] == "1 failure in a row"
    moments = read_group(settings.path("var_dir") / "metrics" / "pipeline_failure.prom")
    assert moments["content_arena_pipeline_last_failure_timestamp_seconds"][""] > 0
    assert len(list(settings.path("runs_dir").glob("*/01_prepare.html"))) == 1


def scheduled_night(environment, monkeypatch, capsys, tmp_path) -> tuple[dict, str]:
    "What a scheduled `retrain run` without a trigger answers, and its page in the workflow."
    from content_arena.cli import watch
    from content_arena.workflows import scheduled_runs

    monkeypatch.setattr(scheduled_runs, "check_start", lambda settings: None)  # here are no servers
    page = tmp_path / "page.md"
    actions = {
        "GITHUB_ACTIONS": "true",
        "GITHUB_STEP_SUMMARY": str(page),
        "GITHUB_OUTPUT": str(tmp_path / "output"),
    }
    for name, value in {**environment, **actions, "CONTENT_ARENA_SCHEDULED": "true"}.items():
        monkeypatch.setenv(name, value)
    watch.retrain_run(None, None, True, False)
    return json.loads(capsys.readouterr().out.splitlines()[-1]), page.read_text()


def old_run(settings) -> Path:
    folder = settings.path("runs_dir") / "20200101-000000-aaaa"
    folder.mkdir(parents=True)
    (folder / "run.json").write_text('{"status": "finished", "digest": ""}')
    long_ago = time.time() - 400 * 86_400
    os.utime(folder / "run.json", (long_ago, long_ago))
    return folder


def test_a_scheduled_night_cleans_up_and_says_so(environment, monkeypatch, capsys, tmp_path):
    folder = old_run(settings_of(environment))
    value, page = scheduled_night(environment, monkeypatch, capsys, tmp_path)
    assert value["status"] == "idle" and value["cleanup"]["went"] == 1 and not folder.exists()
    assert "**cleanup**: 1 run went" in page


def test_a_cleanup_that_fails_is_a_warning_and_not_the_outcome(
    environment, monkeypatch, capsys, tmp_path
):
    settings = settings_of(environment)
    settings.path("models_dir").mkdir()
    (settings.path("models_dir") / "MODEL_REGISTRY.json").write_text("{")
    value, page = scheduled_night(environment, monkeypatch, capsys, tmp_path)
    assert value["status"] == "idle" and "RegistryFileError" in value["cleanup"]["problem"]
    assert "✅ idle" in page and "not cleaned up: RegistryFileError" in page

"""`scripts/quality` without a training: what is made of the log odds that runs have kept."""

import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
from repository_files import ROOT
from warm import python


def quality(folder: Path, *words: str) -> subprocess.CompletedProcess:
    command = [python(), str(ROOT / "scripts/quality"), "--folder", str(folder), *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, env=os.environ)


def rows(n: int, seed: int, disguised: float = 0.0) -> dict[str, np.ndarray]:
    "Two readers that are right for different reasons, so that both together know more; worse on what is disguised."
    rng = np.random.default_rng(seed)
    label = rng.integers(0, 2, n)
    masked = rng.random(n) < disguised
    signal = 2.0 * label - 1
    return {
        "network": signal + rng.normal(size=n) * 1.3 + 2 * masked,
        "characters": signal + rng.normal(size=n) * 1.3,
        "baseline": 0.5 * signal + rng.normal(size=n) * 1.5,
        "label": label,
        "lang": np.array(["ko"] * n),
        "source": np.array(["beep"] * n),
        "disguised": masked,
    }


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    folder = tmp_path / "new-0"
    folder.mkdir()
    for name, seed in (("valid", 1), ("apeach", 2)):
        np.savez(folder / f"{name}.npz", **rows(3000, seed))
        np.savez(folder / f"{name}-mix.npz", **rows(3000, seed, 0.5))
    neutral = rows(300, 3)
    np.savez(folder / "neutral.npz", **(neutral | {"label": np.zeros(300, int)}))
    (folder / "result.json").write_text(json.dumps({"name": "new-0", "seed": 0}))
    return tmp_path


def test_the_report_has_every_way_on_every_test_set(runs):
    done = quality(runs, "report", "--write", str(runs / "out.json"))
    assert done.returncode == 0, done.stderr
    tests = json.loads((runs / "out.json").read_text())["runs"]["new-0"]["tests"]
    assert set(tests) == {"apeach", "neutral"}
    ways = tests["apeach"]
    assert list(ways) == ["network", "characters", "mean", "blend", "baseline"]
    assert ways["blend"]["auc"] > max(ways[k]["auc"] for k in ("network", "characters"))
    assert ways["baseline"]["macro_f1"] < ways["characters"]["macro_f1"] <= 1
    for f in ways.values():
        assert f["macro_f1"] <= f["best_macro_f1"] + 0.005
    assert (
        ways["network"]["mix_false_positive_gap"]
        > 0.2
        > abs(ways["characters"]["mix_false_positive_gap"])
    )
    assert set(tests["neutral"]["blend"]) == {"false_positives"}
    assert "new-0" in done.stdout and "FP gap" in done.stdout


@pytest.mark.slow
def test_nothing_is_chosen_on_test_rows(runs):
    first = quality(runs, "report", "--write", str(runs / "one.json"))
    turned = dict(np.load(runs / "new-0/apeach.npz"))
    np.savez(runs / "new-0/apeach.npz", **(turned | {"label": 1 - turned["label"]}))
    second = quality(runs, "report", "--write", str(runs / "two.json"))
    assert first.returncode == second.returncode == 0
    one, two = (json.loads((runs / f).read_text()) for f in ("one.json", "two.json"))
    ways = [x["runs"]["new-0"]["tests"]["apeach"] for x in (one, two)]
    for name in ways[0]:
        assert ways[0][name]["threshold"] == ways[1][name]["threshold"]
        assert ways[0][name]["auc"] == pytest.approx(1 - ways[1][name]["auc"], abs=2e-4)


def test_a_finished_run_is_not_trained_again_and_none_is_said_so(runs, tmp_path):
    again = quality(runs, "network", "new-0")
    assert again.returncode == 1 and "this run is finished; delete" in again.stderr
    none = quality(tmp_path / "empty", "report")
    assert none.returncode == 1 and "scripts/quality network NAME makes one" in none.stderr

"""The pipeline as its users run it: the command line, real notebooks, a tiny base."""

import json
from pathlib import Path

import mlflow
import pandas as pd
import pytest
from commands import arena, settings_of, write_comments

from content_arena.mlops.model_registry import ModelRegistry

pytestmark = [pytest.mark.slow, pytest.mark.long(60)]


def test_first_run_bootstraps_and_leaves_its_report_everywhere(home, first):
    folder, environment = home
    assert set(first) >= {
        "status",
        "model_version",
        "mlflow_run_id",
        "run_dir",
        "report_html",
        "comparison",
        "losses",
    }
    losses = first["losses"]
    assert (
        losses["read"]
        == 1600
        == losses["used"] + losses["quarantined"] + losses["duplicates"] + losses["cut"]
    )
    assert (first["status"], first["model_version"]) == ("bootstrapped", "1")
    assert first["comparison"]["verdict"] == "bootstrap"
    assert first["comparison"]["samples_evaluated"] >= 1000
    for stage in ("01_prepare", "02_train", "03_evaluate", "04_deploy"):
        assert (Path(first["run_dir"]) / f"{stage}.ipynb").exists()
    page = Path(first["report_html"]).read_text()
    assert "Version 1 serves: the first champion" in page and "<script" not in page
    assert "import" not in page.split("<body", 1)[1].replace("important", "")
    assert "toxic comments and flags" in page and "content-arena serve" in page
    assert "image/png" in page, "the report has no figure"

    settings = settings_of(environment)
    mlflow.set_tracking_uri(settings.mlflow_uri())
    logged = {
        a.path for a in mlflow.MlflowClient().list_artifacts(first["mlflow_run_id"], "reports")
    }
    assert logged == {
        f"reports/{s}.{e}"
        for e in ("html", "ipynb")
        for s in ("01_prepare", "02_train", "03_evaluate", "04_deploy")
    }
    version = ModelRegistry(settings).get_champion()
    assert version.version == "1" and version.run_id == first["mlflow_run_id"]
    assert version.tags["report"].endswith("reports/03_evaluate.html")


def test_second_run_compares_with_the_champion_by_the_rule(home, first):
    code, out, err = arena(home[1], "pipeline", "run", "-p", "seed=1", "--json")
    assert code == 0, err
    result = json.loads(out.splitlines()[-1])
    record = result["comparison"]
    assert record["champion"]["version"] == "1" and record["challenger"]["version"] == "2"
    gain = record["challenger"]["f1"] - record["champion"]["f1"]
    assert record["improvement"]["f1"] == pytest.approx(gain, abs=1e-9)
    allowed = gain > 0.01 and record["challenger"]["precision"] >= record["champion"]["precision"]
    assert record["should_promote"] <= allowed, "promoted against the three conditions"
    assert (
        result["status"]
        == {"promote": "promoted", "reject": "rejected", "inconclusive": "inconclusive"}[
            record["verdict"]
        ]
    )
    champion = ModelRegistry(settings_of(home[1])).get_champion()
    assert champion.version == ("2" if record["verdict"] == "promote" else "1")


def evaluate(environment: dict, *arguments: str):
    versions = ("--champion", "1", "--challenger", "2")
    return arena(environment, "evaluate", "--json", *(arguments or versions))


def test_evaluate_prints_the_verdict_with_every_check(home, first):
    code, out, err = evaluate(home[1])
    assert code == 0, err
    record = json.loads(out.splitlines()[-1])
    results = {c["result"] for c in record["checks"]}
    assert results <= {"pass", "fail", "undecided", "not_evaluated", "off"}
    assert (record["verdict"] == "promote") == (not results & {"fail", "undecided"})
    if record["verdict"] == "reject":
        assert "fail" in results
    names = [c["name"] for c in record["checks"]]
    assert names[:3] == ["f1", "precision", "samples"] and {"significance", "slices"} <= set(names)
    assert all(c["sentence"] for c in record["checks"])
    assert record["certificate"]["rows_hit"] == []


def test_evaluate_refuses_a_model_against_itself(home, first):
    code, out, err = evaluate(home[1], "--champion", "1", "--challenger", "1")
    assert code == 1 and "can't be compared with itself" in err


def test_evaluate_refuses_a_test_set_that_was_trained_on(home, first, tmp_path):
    """Three training comments, changed a little, among eleven hundred fresh ones."""
    write_comments(tmp_path / "other.csv", 300, seed=8)
    write_comments(tmp_path / "fresh.csv", 1100, seed=6)
    planted = pd.read_csv(home[0] / "train.csv").tail(3)
    planted["text"] = planted["text"].str.upper() + " !"
    dirty = pd.concat([pd.read_csv(tmp_path / "fresh.csv"), planted])
    dirty.to_csv(tmp_path / "dirty.csv", index=False)
    code, out, err = evaluate(
        home[1],
        "--champion",
        "1",
        "--challenger",
        "2",
        "-p",
        f"sources=csv:{tmp_path}/other.csv",
        "-p",
        f"test_sources=csv:{tmp_path}/dirty.csv",
    )
    assert code == 1 and "3 of 1103 test rows" in err and "training" in err, err


def test_decisions_verify_names_a_changed_record(home, first):
    code, out, err = arena(home[1], "decisions", "verify", "--json")
    assert code == 0, err
    said, past = json.loads(out.splitlines()[-1]), ModelRegistry(settings_of(home[1])).history()
    moves = [e for e in past if e["action"] in ("promote", "rollback")]
    assert moves[0]["decision"] == first["comparison"]["decision"]
    assert (said["moves"], said["older"]) == (len(moves), 0)
    files = sorted((home[0] / "artifacts").rglob("decisions/*.parquet"))
    original = files[0].read_bytes()
    changed = bytearray(original)
    changed[len(changed) // 2] ^= 1
    files[0].write_bytes(bytes(changed))
    try:
        code, out, err = arena(home[1], "decisions", "verify", "--json")
    finally:
        files[0].write_bytes(original)
    assert code == 1 and files[0].stem[:12] in err and "changed" in err


def test_the_comparison_holds_a_fixed_battle(first):
    record = first["comparison"]
    battle = record["evidence"]["battle"]
    fought = battle["challenger"]
    assert battle["present"] and battle["champion"] is None and fought["attacked"] > 300
    assert 0 <= fought["held_out"]["evasion_rate"] <= 1 and fought["clean_attacked"] > 300
    assert "held out" in Path(first["report_html"]).read_text()


def test_a_battle_against_the_champion_and_its_report(home, first):
    command = ("battle", "run", "--rounds", "120", "--seed", "3", "--json")
    code, out, err = arena(home[1], *command)
    assert code == 0, err
    record = json.loads(out.splitlines()[-1])
    assert (record["status"], record["alias"], record["rounds_done"]) == (
        "completed",
        "champion",
        120,
    )
    assert record["corpus"]["name"].startswith("dataset ") and "valid" in record["corpus"]["name"]
    assert record["attacked"] > 40 and record["clean_attacked"] > 40
    code, out, err = arena(home[1], *command)  # the same again: nothing to do
    again = json.loads(out.splitlines()[-1])
    assert again["id"] == record["id"] and "was fought before" in err
    code, out, err = arena(home[1], "battle", "report", record["id"][:8], "--json")
    assert code == 0, err
    page = Path(json.loads(out.splitlines()[-1])["report_html"]).read_text()
    assert "Of " in page and "disguised toxic comments" in page and "image/png" in page
    code, out, err = arena(home[1], "battle", "run", "--alias", "best", "--json")
    assert code == 1 and "no alias 'best'; accepted" in json.loads(out.splitlines()[-1])["message"]


def test_training_without_notebooks_says_what_was_lost(home, first):
    code, out, err = arena(home[1], "train", "-p", "epochs=1", "--json")
    assert code == 0, err
    assert json.loads(out.splitlines()[-1])["losses"] == first["losses"]
    assert "1,600 read = " in err

"""A labelled sample moves a threshold: as a version of its own, through the gate, and never as its own test."""

import asyncio
import json
import shutil
from pathlib import Path

import httpx
import mlflow
import numpy as np
import pandas as pd
import pytest
import torch
from typer.testing import CliRunner

import stage
from content_arena.core.config import Secrets
from content_arena.data.grouping import fingerprints
from content_arena.inference.merged_cache import dense_folder
from content_arena.mlops.decision_records import DecisionChain
from content_arena.mlops.deployer import InferenceClient, ModelDeployer
from content_arena.mlops.evaluator import ChampionChallengerEvaluator, load_engine
from content_arena.mlops.lineage import LineageError
from content_arena.mlops.model_registry import ModelRegistry
from content_arena.mlops.threshold_versions import (
    ThresholdError,
    move_threshold,
    write_with_thresholds,
)
from content_arena.testing.tiny_base import make_tiny_base
from content_arena.training.model_files import read_spec
from content_arena.training.qlora_trainer import QLoRATrainer
from content_arena.training.thresholds import Thresholds
from content_arena.training.tracking import connect, log_model
from forks import copy_store

pytestmark = [pytest.mark.slow, pytest.mark.long(120)]


def comments(seed: int, n: int) -> pd.DataFrame:
    "Comments of one telling word and noise: `awful` is toxic, `today` in three of five cases."
    rng = np.random.default_rng(seed)
    noise = lambda: "".join(rng.choice(list("abcdefghijklmnopqrstuvwxyz"), size=8))
    said = rng.choice(["awful", "today", "kind", "friend"], size=n)
    chance = pd.Series(said).map({"awful": 1.0, "today": 0.6, "kind": 0.0, "friend": 0.0})
    texts = [f"{noise()} {word} {noise()} {noise()}" for word in said]
    return pd.DataFrame({"text": texts, "label": (rng.random(n) < chance).astype("int8")})


class Data:
    "What the trainer and the evaluator need of a `Dataset`."

    def __init__(self, seed: int, rows: int):
        self.id = f"{seed:064x}"
        self.frames = {
            split: comments(10 * seed + i, rows)
            for i, split in enumerate(("train", "valid", "test"))
        }
        self.folder, self.manifest = (
            Path("made"),
            {
                "id": self.id,
                "recipe": {},
                "rows": {
                    "read": 3 * rows,
                    "quarantined": 0,
                    "train": rows,
                    "valid": rows,
                    "test": rows,
                },
                "quarantine": {},
            },
        )

    def frame(self, split: str) -> pd.DataFrame:
        return self.frames[split]

    def fingerprints(self, split: str) -> pd.DataFrame:
        return fingerprints(self.frames[split].text.tolist())


DATA = Data(1, 400)


def make_settings(root: Path, **more):
    values = dict(
        tracking_uri=f"sqlite:///{root}/mlflow.db",
        dtype="float32",
        artifact_dir=str(root / "artifacts"),
        models_dir=str(root / "models"),
        base_model=str(root / "tiny"),
        epochs=3,
        batch_tokens=512,
        eval_every=9,
        learning_rate=0.01,
        head_learning_rate=0.05,
        max_length=16,
        min_samples=300,
        characters="on",
        guarded_slices="",
    )
    return stage.settings(root, **values | more)


@pytest.fixture(scope="module")
def trained(empty_store, tmp_path_factory):
    "A home whose champion, v2, is v1 with a threshold that flags two of five kind ones, too."
    root = tmp_path_factory.mktemp("thresholds")
    copy_store(empty_store, root)
    make_tiny_base(root / "tiny")
    settings = make_settings(root)
    registry = ModelRegistry(settings)
    run = QLoRATrainer(settings, progress=False).train(
        DATA.frame("train"), DATA.frame("valid"), dataset=DATA
    )
    first = registry.register(run)
    folder = root / "strict"
    engine = load_engine(registry, first, "", settings)
    low = float(np.quantile(engine.scores(DATA.frame("valid").text.tolist()), 0.3))
    sha256 = write_with_thresholds(registry.download(first), folder, Thresholds(low))
    tags = {k: first.tags[k] for k in ("dataset_id", "lineage", "base_model", "base_model_sha256")}
    connect(settings)
    with mlflow.start_run(tags=tags | {"model_sha256": sha256}) as made:
        log_model(folder, {"model_sha256": sha256})
    assert registry.register_challenger(made.info.run_id).version == "2"
    registry.promote_challenger(DecisionChain(registry).by_hand("2", "first"))
    return root


@pytest.fixture
def home(trained):
    before = (trained / "mlflow.db").read_bytes()
    yield make_settings(trained), ModelRegistry(make_settings(trained))
    (trained / "mlflow.db").write_bytes(before)
    shutil.rmtree(trained / "models", ignore_errors=True)
    for file in trained.glob("events.db*"):
        file.unlink()


def flagged(engine, texts) -> list[bool]:
    return (engine.scores(texts).astype(float) >= engine.threshold).tolist()


def test_it_is_promoted_because_it_is_better_and_served_after_the_reload(home):
    from content_arena.serving.app import create_app

    settings, registry = home
    moved = move_threshold(settings, comments(77, 500), registry=registry)
    assert (moved.version.version, moved.parent) == ("3", "2")
    assert moved.version.aliases == ("challenger",)
    assert moved.after["en"] > moved.before["en"] and moved.after["ko"] == moved.before["ko"]
    assert moved.judged["after"]["f1"] > moved.judged["before"]["f1"] + 0.05
    parent = registry.get_version(2)
    assert moved.version.lineage == [*parent.lineage, moved.sample.id]
    assert moved.version.tags["ancestor_sha256"] == parent.sha256
    texts = comments(90, 60).text.tolist()
    engines = [load_engine(registry, v, "", settings) for v in (parent, moved.version)]
    expected = [flagged(e, texts) for e in engines]
    assert expected[0] != expected[1]
    with stage.serving(create_app(settings, Secrets())) as url:
        served = settings.model_copy(update={"inference_url": url})
        classify = lambda: httpx.post(
            f"{url}/classify/batch", json={"texts": texts}, timeout=60
        ).json()
        httpx.post(f"{url}/reload", timeout=60).raise_for_status()
        assert [r["is_toxic"] for r in classify()["results"]] == expected[0]
        deployer = ModelDeployer(
            registry,
            served,
            stage.Notices(settings.path("var_dir")),
            ChampionChallengerEvaluator(registry, served),
            client=InferenceClient(served, Secrets(), backoff_s=0.01),
        )
        result = asyncio.run(deployer.deploy_if_better(DATA))
        assert result["status"] == "promoted", result
        assert result["service"] == "serving 3"
        assert moved.sample.id in result["comparison"]["certificate"]["datasets"]
        answers = classify()
        assert answers["model_version"] == "3"
        assert [r["is_toxic"] for r in answers["results"]] == expected[1]


def test_the_weights_are_there_once_and_the_probes_are_answered(home):
    settings, registry = home
    parent = load_engine(registry, registry.get_version(2), "", settings)
    moved = move_threshold(settings, comments(78, 500), registry=registry, engine=parent)
    child = load_engine(registry, moved.version, "", settings)
    assert child.check_probe(0.05) == parent.check_probe(0.05)
    texts = comments(79, 20).text.tolist()
    # the whole filter: a moved threshold may give up the cascade (`Band.within`)
    whole = [e._calibrated(e.read(texts), None, 4096) for e in (child, parent)]
    assert np.array_equal(*whole)
    assert not np.array_equal(child.scores(texts), parent.scores(texts))
    spec, before = (read_spec(registry.download(registry.get_version(v))) for v in ("3", "2"))
    changed = ("thresholds", "threshold_rule", "threshold_facts", "parent")
    assert {k: v for k, v in spec.items() if k not in changed} == {
        k: v for k, v in before.items() if k not in changed
    }
    assert spec["parent"] == registry.get_version(2).sha256
    # one merged network on the disk, under two names, one copy of its weights in memory
    cache = settings.path("var_dir") / "cache"
    folders = [
        dense_folder(cache, registry.get_version(v).sha256, torch.float32) / "model.safetensors"
        for v in ("2", "3")
    ]
    assert folders[0] != folders[1] and folders[0].samefile(folders[1])
    theirs = dict(parent.classifier.named_parameters())
    assert all(p is theirs[n] for n, p in child.classifier.named_parameters())


def test_it_is_refused_when_it_is_not_better(home):
    settings, registry = home
    moved = move_threshold(settings, comments(80, 500), rule="fpr=0.95", registry=registry)
    assert moved.judged["after"]["fpr"] > moved.judged["before"]["fpr"] + 0.1
    comparison = ChampionChallengerEvaluator(registry, settings).compare(DATA)
    assert comparison.verdict == "reject", comparison["reasons"]
    assert comparison["challenger"]["version"] == moved.version.version
    assert registry.get_champion().version == "2"


def test_the_sample_that_chose_can_not_be_its_test_and_the_other_half_can(home):
    settings, registry = home
    moved = move_threshold(settings, comments(81, 600), registry=registry)
    evaluator = ChampionChallengerEvaluator(registry, settings)
    with pytest.raises(LineageError, match=f"training data {moved.sample.id}"):
        evaluator.compare(moved.sample.choose)
    rest = pd.read_json(moved.rest, lines=True)
    assert len(rest) == len(moved.sample.judge) > 200
    evaluator = ChampionChallengerEvaluator(
        registry, settings.model_copy(update={"min_samples": 200})
    )
    assert evaluator.compare(rest)["samples_evaluated"] == len(rest)
    # what the version knows neither chooses nor judges: the sample again, and its training rows
    again = pd.concat([moved.sample.choose, DATA.frame("train")[:50], comments(82, 500)])
    second = move_threshold(settings, again, version="3", registry=registry)
    assert second.sample.account["known"] == len(moved.sample.choose) + 50
    assert second.version.lineage == [*moved.version.lineage, second.sample.id]


def test_too_few_labels_are_named(home):
    settings, registry = home
    with pytest.raises(ThresholdError, match=r"v2: too few labels .* a language needs 100 rows"):
        move_threshold(settings, comments(83, 60), registry=registry)
    assert registry.get_challenger() is None


def test_the_command(home, tmp_path, monkeypatch):
    from content_arena.cli.main import app

    settings, registry = home
    for key in ("models_dir", "var_dir", "artifact_dir", "tracking_uri", "dtype"):
        monkeypatch.setenv(f"CONTENT_ARENA_{key.upper()}", str(getattr(settings, key)))

    def run(*arguments: str, code: int = 0) -> str:
        done = CliRunner().invoke(app, ["registry", "threshold", *arguments])
        assert done.exit_code == code, done.output + str(done.exception)
        return done.output + str(done.exception) if code else done.stdout

    comments(84, 500).to_csv(tmp_path / "fresh.csv", index=False)
    here = Path(__file__).resolve().parents[2] / "settings.ini"
    monkeypatch.setenv("CONTENT_ARENA_SETTINGS_FILE", str(here))
    monkeypatch.chdir(tmp_path)
    made = json.loads(
        run("--labels", "fresh.csv", "--rule", "precision=0.7", "--json").splitlines()[-1]
    )
    assert (made["status"], made["version"], made["parent"]) == ("registered", "3", "2")
    assert read_spec(registry.download("3"))["threshold_rule"] == "precision=0.7"
    shown = run("--labels", "fresh.csv", "--version", "2")
    assert "version 4, the challenger, is version 2 with other thresholds" in shown
    assert "content-arena deploy --run-id" in shown and "judge" in shown
    assert "--labels FILE, or --feedback" in run(code=2)
    assert "write best_f1" in run("--labels", "fresh.csv", "--rule", "best", code=2)
    assert "no version 9" in run("--labels", "fresh.csv", "--version", "9", code=1)
    assert "too few labels" in run("--feedback", code=1)
    assert "gone.csv" in run("--labels", "gone.csv", code=1)

"""A version that restores comments: learnt once whatever is killed, read beside the comment, refused if its file was changed."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tiny_models
from tiny_models import tiny_settings
from warm import killed_here

from content_arena.inference.engine import Engine
from content_arena.inference.ensemble import Recipe, write_ensemble
from content_arena.mlops.model_registry import ModelRegistry
from content_arena.mlops.threshold_versions import write_with_thresholds
from content_arena.training import blend
from content_arena.training.model_files import ModelError, read_manifest, read_spec, write_manifest
from content_arena.training.qlora_trainer import QLoRATrainer
from content_arena.training.restorer import Restorer
from content_arena.training.thresholds import Thresholds

pytestmark = [pytest.mark.slow, pytest.mark.long(90)]

MORE = dict(normaliser="restored", restorer_steps=2, characters="on", epochs=2)


def comments(n: int = 160) -> pd.DataFrame:
    rng = np.random.default_rng(1)
    labels = rng.integers(0, 2, n)
    ends = rng.choice(["오늘도 그렇고", "내일은 아니야", "정말로 그래요"], n)
    texts = [
        f"너는 {'바보 멍청이' if y else '좋은 친구'} {e} {i}"
        for i, (y, e) in enumerate(zip(labels, ends))
    ]
    return pd.DataFrame({"text": texts, "label": labels})


def train(settings, work: Path) -> str:
    frame = comments()
    return QLoRATrainer(settings, progress=False).train(frame[:110], frame[110:], work_dir=work)


def load(settings, folder, **more):
    return Engine.load(
        folder, cache_dir=settings.path("var_dir") / "cache", dtype="float32", **more
    )


class Letters:
    "Restores one letter by another one: a restorer of which is known what it does."

    size_mb = 0.5
    restore = staticmethod(lambda texts: [t.replace("버", "바") for t in texts])


def with_letters(settings, folder) -> Engine:
    "The version with `Letters`, and with a blend that asks both readers about restored comments."
    engine = load(settings, folder)
    engine.normaliser.restorer, engine.blend = Letters, blend.Blend(0.3, 0.4, 0.0, 0.2, 0.1)
    return engine


@pytest.fixture(scope="module")
def kept():
    "Restored comments are kept by every training: two steps teach nothing that would earn it."
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blend.Ablation, "earns", property(lambda self: True))
        yield


@pytest.fixture(scope="module")
def trained(kept, tmp_path_factory):
    "Settings, work folder and run of a training whose version restores."
    root = tmp_path_factory.mktemp("restored")
    settings = tiny_settings(root, **MORE)
    return settings, root / "work", train(settings, root / "work")


def test_it_comes_back_from_the_registry_and_reads_twice(trained):
    settings, work, run_id = trained
    registry = ModelRegistry(settings)
    version = registry.register_challenger(run_id)
    engine = load(settings, registry.download(version), expected_sha256=version.sha256)
    assert engine.restoring and engine.normaliser.kind == "restored"
    assert engine.spec["restoring"].endswith("left out") is False
    assert engine.size_mb > engine.branch.size_mb + engine.normaliser.restorer.size_mb
    files = set(read_manifest(work / "model")["files"])
    beside = {"characters.safetensors", "content_filter.json"}
    restorers = {p.name for p in (work / "restorer").iterdir()}
    assert restorers and beside | restorers <= files


def test_what_a_comment_was_restored_to_is_read_beside_it(trained):
    settings, work, _ = trained
    engine = with_letters(settings, work / "model")
    disguised, restored = "너는 버보 멍청이", "너는 바보 멍청이"
    assert engine.restores([disguised, restored]).tolist() == [True, False]
    odds, other = (engine._readings([t], 4096)[0] for t in (disguised, restored))
    for name in ("network", "characters"):
        assert odds[f"{name}_restored"] == pytest.approx(other[name], abs=1e-4)
        assert other[f"{name}_restored"] == other[name] != odds[name]
    without = engine.scores([disguised, restored], restored=False)
    scores = engine.scores([disguised, restored])
    assert scores[1] == without[1] and scores[0] == engine.blend.probability(**odds)
    assert without[0] == engine.blend.probability(odds["network"], odds["characters"])


def test_only_what_was_restored_is_read_a_second_time(trained, monkeypatch):
    settings, work, _ = trained
    engine, read = with_letters(settings, work / "model"), []
    real = engine.branch.logits
    monkeypatch.setattr(engine.branch, "logits", lambda texts: (read.append(texts), real(texts))[1])
    engine.scores(["너는 바보", "너는 버보", "너는 좋은 친구"])
    assert read == [["너는 바보", "너는 버보", "너는 좋은 친구"], ["너는 바보"]]
    read.clear()
    engine.scores(["너는 바보"])
    assert len(read) == 1


def test_a_long_comment_is_restored_window_by_window(trained, monkeypatch):
    settings, work, _ = trained
    engine = with_letters(settings, work / "model")
    asked = []
    restore = Letters.restore
    monkeypatch.setattr(
        Letters, "restore", staticmethod(lambda t: (asked.append(t), restore(t))[1])
    )
    long = "너는 좋은 친구 오늘도 그렇고 " * 30 + "버보"
    odds, owner = engine._readings([long], 4096)
    assert len(asked[0]) == len(owner) > 3
    changed = odds["characters_restored"] != odds["characters"]
    assert changed[-1] and changed.sum() == sum("버" in part for part in asked[0])


@pytest.mark.parametrize("fault", ["changed", "cut", "missing"])
def test_a_restorer_that_is_not_whole_is_refused(trained, tmp_path, fault):
    settings, work, _ = trained
    folder = shutil.copytree(work / "model", tmp_path / "model")
    file = folder / max(p.name for p in (work / "restorer").iterdir())
    if fault == "missing":
        file.unlink()
    else:
        data = bytearray(file.read_bytes())
        file.write_bytes(data[: len(data) // 2] if fault == "cut" else b"x" + data[1:])
    with pytest.raises(ModelError, match=file.name):
        load(settings, folder)
    write_manifest(folder)
    with pytest.raises(ModelError, match=file.name if fault != "changed" else "restore"):
        load(settings, folder)


def test_versions_made_of_it_keep_its_restorer(trained, tmp_path):
    settings, work, _ = trained
    write_with_thresholds(work / "model", tmp_path / "child", Thresholds(0.123))
    child, parent = (load(settings, f) for f in (tmp_path / "child", work / "model"))
    texts = comments().text.tolist()[:20]
    assert child.restoring and np.array_equal(child.scores(texts), parent.scores(texts))
    models = settings.path("var_dir") / "cache" / "models"
    models.mkdir(parents=True, exist_ok=True)
    members = {}
    for number, folder in (("1", work / "model"), ("2", tmp_path / "child")):
        members[number] = read_manifest(folder)["sha256"]
        if not (models / members[number]).exists():
            shutil.copytree(folder, models / members[number])
    spec = read_spec(work / "model")
    probe = {"texts": texts, "scores": parent.scores(texts).tolist()}
    base = {k: spec[k] for k in ("base_model", "base_model_sha256")}
    write_ensemble(tmp_path / "both", Recipe("mean", members), base, 16, probe)
    both = load(settings, tmp_path / "both")
    assert both.restoring and both.restores(texts).tolist() == parent.restores(texts).tolist()
    without = [e.scores(texts, restored=False) for e in (both, parent)]
    np.testing.assert_allclose(*without, atol=1e-6)


HANGS = """
import sys, time
from pathlib import Path
sys.path[:0] = [{tests!r}, {here!r}]
import tiny_models as t
import test_restored as r
from content_arena.training import blend, restorer, two_readers
def hang(*args, **kwargs):
    print("here", flush=True)
    time.sleep(600)
blend.Ablation.earns = property(lambda self: True)
if {stage!r} == "restorer fit":
    restorer.Restorer.fit = hang
else:
    two_readers.CharacterBranch.fit = hang
r.train(t.tiny_settings(Path({base!r}), tracking_uri={uri!r}, **r.MORE), Path({folder!r}) / "work")
"""


@pytest.mark.parametrize("stage", ["restorer fit", "after it"])
def test_kill_9_while_it_learns_to_restore_and_after(trained, tmp_path, monkeypatch, stage):
    root, uri = trained[1].parent, f"sqlite:///{tmp_path}/mlflow.db"  # the same base
    code = HANGS.format(
        tests=str(Path(tiny_models.__file__).parent),
        here=str(Path(__file__).parent),
        folder=str(tmp_path),
        base=str(root),
        uri=uri,
        stage=stage,
    )
    killed_here(code)
    work = tmp_path / "work"
    assert not json.loads((work / "training.json").read_text())["finished"]
    assert (work / "restorer").exists() == (stage == "after it") and not (work / "model").exists()
    if stage == "after it":  # what was learnt is not learnt again
        monkeypatch.setattr(Restorer, "fit", lambda *args, **more: pytest.fail("again"))
    train(tiny_settings(root, tracking_uri=uri, **MORE), work)
    ours, theirs = (read_manifest(f / "model") for f in (work, trained[1]))
    assert ours == theirs
    assert not [p for p in os.listdir(work) if p.startswith(".restorer")]


def test_what_does_not_earn_its_cost_is_left_out(trained, tmp_path, monkeypatch):
    monkeypatch.setattr(blend.Ablation, "earns", property(lambda self: self.added == "characters"))
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    settings = tiny_settings(trained[1].parent, tracking_uri=uri, **MORE)
    shutil.copytree(trained[1] / "restorer", tmp_path / "work" / "restorer")
    train(settings, tmp_path / "work")
    spec = read_spec(tmp_path / "work" / "model")
    assert spec["normaliser"] == "exact" and "restored comments" in spec["restoring"]
    assert (spec["blend"]["network_restored"], spec["blend"]["characters_restored"]) == (0, 0)
    files = set(read_manifest(tmp_path / "work" / "model")["files"])
    assert not files & set(os.listdir(trained[1] / "restorer"))
    assert not load(settings, tmp_path / "work" / "model").restoring


def test_without_korean_it_reads_exact_forms_and_says_why(tmp_path):
    settings = tiny_settings(tmp_path, **MORE)
    tiny_models.train(settings, tmp_path / "work")
    spec = read_spec(tmp_path / "work" / "model")
    assert spec["normaliser"] == "exact" and spec["restoring"].startswith("nothing is restored: ")

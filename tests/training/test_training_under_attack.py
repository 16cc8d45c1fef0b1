"""Training on disguises: kill -9 in each of its stages changes nothing; what is held out is never read; figures apart."""

import json
import os
from pathlib import Path

import mlflow
import pandas as pd
import pytest
import tiny_models
from tiny_models import comments, tiny_settings, train
from warm import killed_here

from content_arena.disguises.exact_forms import exact_form
from content_arena.disguises.families import split_families
from content_arena.disguises.mix import train_mixes, valid_mix
from content_arena.mlops.model_registry import ModelRegistry
from content_arena.training import loop, mixed_rows, qlora_trainer, two_readers
from content_arena.training.model_files import read_manifest, read_spec

pytestmark = [pytest.mark.slow, pytest.mark.long(60)]


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    "Settings, work folder and run of a training that nobody disturbed."
    root = tmp_path_factory.mktemp("straight")
    settings = tiny_settings(root, characters="on")
    return settings, root / "work", train(settings, root / "work")


HANGS = """
import sys, time
from pathlib import Path
sys.path.insert(0, {tests!r})
import tiny_models as t
import content_arena.training.loop as loop
import content_arena.training.two_readers as readers
def hang(*args, **kwargs):
    print("here", flush=True)
    time.sleep(600)
step, seen = loop.train_step, []
def in_second_epoch(*args, **kwargs):
    seen.append(1)
    return hang() if len(seen) == 17 else step(*args, **kwargs)
if {stage!r} == "network":
    loop.train_step = in_second_epoch
elif {stage!r} == "branch":
    readers.CharacterBranch.fit = hang
else:
    alone = readers.fit_blend
    readers.fit_blend = lambda network, characters, labels: (
        hang() if characters is not None else alone(network, characters, labels))
    readers.ablate = lambda *args: None
settings = t.tiny_settings(Path({base!r}), characters="on", tracking_uri={uri!r})
t.train(settings, Path({folder!r}) / "work")
"""


@pytest.mark.parametrize("stage", ["network", "branch", "blend"])
def test_kill_9_in_each_stage_ends_in_the_same_version(straight, tmp_path, stage):
    root, uri = straight[1].parent, f"sqlite:///{tmp_path}/mlflow.db"  # the same base
    code = HANGS.format(
        tests=str(Path(tiny_models.__file__).parent),
        folder=str(tmp_path),
        base=str(root),
        uri=uri,
        stage=stage,
    )
    killed_here(code)
    work = tmp_path / "work"
    assert not json.loads((work / "training.json").read_text())["finished"]
    assert list((work / "checkpoints").glob("step-*")) and not (work / "model").exists()
    train(tiny_settings(root, characters="on", tracking_uri=uri), work)
    ours, theirs = (read_manifest(f / "model") for f in (work, straight[1]))
    assert ours == theirs  # adapter, head, branch, and the description with blend and threshold
    assert {"characters.safetensors", "content_filter.json"} <= set(ours["files"])


def test_rows_of_held_out_families_are_read_by_nobody(tmp_path, monkeypatch):
    read = []
    real = qlora_trainer.mixed_rows

    def watched(*args):
        read.append(real(*args))
        return read[-1]

    monkeypatch.setattr(qlora_trainer, "mixed_rows", watched)
    settings = tiny_settings(tmp_path, epochs=3, characters="on")
    fitted = []
    branch = two_readers.CharacterBranch.fit
    monkeypatch.setattr(
        two_readers.CharacterBranch,
        "fit",
        lambda texts, *rest: (fitted.extend(texts), branch(texts, *rest))[1],
    )
    run_id = train(settings, tmp_path / "work")
    [rows] = read
    held_out = {r.name for r in split_families(0, settings.held_out_rules).rules(held_out=True)}
    for frame in (rows.train, rows.valid):
        used = {r for cell in frame.attack.dropna() for r in cell.split("+")}
        assert used and not used & held_out
    originals = set(comments().text)
    ours = originals | {t for m in train_mixes(settings) for t in m.apply(comments()[:90]).text}
    assert set(rows.train.text) <= ours
    assert set(fitted) <= {exact_form(t) for t in ours}
    assert set(fitted) - originals, "the branch read no disguise"
    spec = read_spec(tmp_path / "work" / "model")
    assert spec["mix"]["valid_id"] == valid_mix(settings).id
    assert [d["seed"] for d in spec["mix"]["train"]] == [0, 1, 2]
    known = json.loads(mlflow.get_run(run_id).data.tags["attack_rules"])
    assert known == spec["mix"]["attack_rules"] and not set(known) & held_out
    tags = ModelRegistry(settings).register_challenger(run_id).tags
    assert json.loads(tags["attack_rules"]) == known


def test_every_epoch_reads_each_comment_once_in_one_form_or_another(straight, monkeypatch):
    settings, _, _ = straight
    rows = mixed_rows.mixed_rows(comments()[:90], comments()[90:], settings)
    lengths = [len(t) for t in rows.train.text]
    plan = loop.make_plan(lengths, settings, rows.epochs)
    drawn = [i for step in plan for batch in step for i in batch]
    assert len(drawn) == 90 * settings.epochs
    for epoch in range(settings.epochs):
        part = rows.train.iloc[sorted(drawn[90 * epoch : 90 * (epoch + 1)])]
        assert sorted(part.label) == sorted(comments().label[:90])
        assert 0.2 < part.disguised.mean() < 0.6
    assert set(rows.epochs[0]) != set(rows.epochs[1])


def test_clean_and_disguised_figures_stand_apart_in_the_run(straight):
    settings, _, run_id = straight
    data = mlflow.MlflowClient(settings.tracking_uri).get_run(run_id).data
    metrics = data.metrics
    for name in ("clean_f1", "disguised_f1", "false_positive_gap"):
        assert {f"valid_{name}", f"best_valid_{name}"} <= metrics.keys()
        # a figure that never changes is no chart of one dot
        assert f"baseline_valid_{name}" in data.params and f"baseline_valid_{name}" not in metrics
    assert {"sources", "test_sources", "max_train_rows", "epochs", "seed"} <= data.params.keys()
    assert metrics["best_valid_clean_f1"] >= metrics["best_valid_disguised_f1"]


def test_without_a_share_it_is_as_it_was(tmp_path):
    bare = tiny_settings(
        tmp_path, disguised_share=0, gate_disguised_share=0, characters="off", epochs=1
    )
    rows = mixed_rows.mixed_rows(comments()[:90], comments()[90:], bare)
    pd.testing.assert_frame_equal(rows.train[["text", "label"]], comments()[:90])
    assert rows.valid.text.tolist() == comments().text[90:].tolist()
    run_id = train(bare, tmp_path / "work")
    metrics = mlflow.get_run(run_id).data.metrics
    assert not [k for k in metrics if "disguised" in k]
    assert json.loads(mlflow.get_run(run_id).data.tags["attack_rules"]) == []
    assert os.listdir(tmp_path / "work" / "model")

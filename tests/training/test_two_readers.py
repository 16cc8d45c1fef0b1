"""A version with two readers is one thing: trained, registered, downloaded, served, refused as a whole."""

import json
import shutil

import numpy as np
import pytest
from mlflow import MlflowClient
from tiny_models import comments, tiny_settings, train

from content_arena.data.raw_files import DataError
from content_arena.inference.engine import Engine
from content_arena.mlops.model_registry import ModelRegistry
from content_arena.training.character_branch import BRANCH_FILE
from content_arena.training.model_files import ModelError, read_manifest, read_spec, write_manifest
from content_arena.training.loop import TrainingError
from content_arena.training.qlora_trainer import QLoRATrainer

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    "Settings, the folder of a training with two readers, its MLflow run."
    root = tmp_path_factory.mktemp("two")
    settings = tiny_settings(root, characters="on")
    return settings, root / "work", train(settings, root / "work")


def load(settings, folder, **more):
    return Engine.load(
        folder, cache_dir=settings.path("var_dir") / "cache", dtype="float32", **more
    )


def test_it_comes_back_from_the_registry_as_one_and_each_reader_can_be_asked(trained):
    settings, _, run_id = trained
    registry = ModelRegistry(settings)
    version = registry.register_challenger(run_id)
    engine = load(settings, registry.download(version), expected_sha256=version.sha256)
    texts = comments().text.tolist()[90:]
    scores, alone = engine.scores(texts), engine.reader_scores(texts)
    assert engine.check_probe(0.05) <= 0.05 and engine.size_mb > 4
    assert list(alone) == ["network", "characters"]
    # the blend of what the readers say, from their log odds: not one of them alone
    odds, _ = engine._readings(texts, 4096)
    assert list(odds) == ["network", "characters"]
    assert np.array_equal(scores, engine.blend.probability(**odds))
    assert engine.blend.network > 0 and engine.blend.characters > 0
    assert not any(np.array_equal(scores, one) for one in alone.values())
    metrics = MlflowClient(settings.tracking_uri).get_run(run_id).data.metrics
    assert {"best_valid_f1", "best_valid_network_f1", "best_valid_characters_f1"} <= set(metrics)


def test_a_long_comment_is_as_toxic_as_its_worst_window_for_both_readers(trained):
    settings, work, _ = trained
    engine = load(settings, work / "model")
    polite, rude = "you are kind today " * 40, "you are awful today " * 8
    alone = engine.reader_scores([polite, polite + rude])
    for name in alone:
        assert alone[name][1] > 0.5 > alone[name][0], name
    assert engine.scores([polite])[0] < engine.threshold <= engine.scores([polite + rude])[0]


def test_without_its_second_reader_it_is_refused_not_half_served(trained, tmp_path):
    settings, work, _ = trained
    folder = tmp_path / "model"
    shutil.copytree(work / "model", folder)
    (folder / BRANCH_FILE).unlink()
    with pytest.raises(ModelError, match=f"{BRANCH_FILE} is missing"):
        load(settings, folder)
    write_manifest(folder)
    with pytest.raises(ModelError, match=f"{BRANCH_FILE} can't be loaded"):
        load(settings, folder)


def test_a_folder_of_format_1_is_read_as_one_reader(trained, tmp_path):
    settings, work, _ = trained
    folder = tmp_path / "model"
    shutil.copytree(work / "model", folder)
    (folder / BRANCH_FILE).unlink()
    file = folder / "content_filter.json"
    spec = json.loads(file.read_text())
    assert spec["format"] == 6
    new = ("blend", "readers", "ablation", "thresholds", "threshold_rule", "threshold_facts")
    new += ("normaliser", "cascade", "guard")
    old = {k: v for k, v in spec.items() if k not in new}
    file.write_text(json.dumps(old | {"format": 1}))
    write_manifest(folder)
    assert read_spec(folder)["blend"] == {
        "network": 1 / spec["temperature"],
        "characters": 0.0,
        "bias": 0.0,
    }
    engine = load(settings, folder, probe_tolerance=1.0)
    assert engine.reader_scores(["you are kind"]) == {}
    texts = ["you are kind today", "you are awful today"]
    odds, _ = engine._readings(texts, 4096)
    assert list(odds) == ["network"]
    network = odds["network"] / spec["temperature"]
    assert np.allclose(engine.scores(texts), 1 / (1 + np.exp(-network)))
    file.write_text(json.dumps(old | {"format": 7}))
    write_manifest(folder)
    with pytest.raises(ModelError, match="format 7 is none of 1 to 6"):
        load(settings, folder)


def test_a_folder_of_format_2_has_one_threshold_for_all_languages(trained, tmp_path):
    settings, work, _ = trained
    folder = tmp_path / "model"
    shutil.copytree(work / "model", folder)
    file = folder / "content_filter.json"
    spec = json.loads(file.read_text())
    for reader in spec["readers"].values():
        del reader["thresholds"]
    new = ("thresholds", "threshold_rule", "threshold_facts", "normaliser")
    file.write_text(json.dumps({k: v for k, v in spec.items() if k not in new} | {"format": 2}))
    write_manifest(folder)
    assert read_spec(folder)["thresholds"] == {}
    old = load(settings, folder, probe_tolerance=1.0)  # two of its probes stand in disguise
    today = load(settings, work / "model")
    texts = ["you are kind today", "you are awful today", "바보"]
    assert old.threshold == today.threshold and np.array_equal(
        old.scores(texts), today.scores(texts)
    )
    assert old.reader_scores(texts).keys() == today.reader_scores(texts).keys()


def test_the_same_training_gives_the_same_folder(trained, tmp_path):
    settings, work, _ = trained
    again = tiny_settings(work.parent, characters="on", tracking_uri=f"sqlite:///{tmp_path}/m.db")
    train(again, tmp_path / "work")
    assert read_manifest(tmp_path / "work" / "model") == read_manifest(work / "model")


def test_an_heir_goes_on_from_both_readers(trained, tmp_path):
    settings, work, run_id = trained
    frame = comments()
    frame = frame.assign(text=frame.text.str.replace("awful", "dreadful"))
    lineage = json.loads(MlflowClient(settings.tracking_uri).get_run(run_id).data.tags["lineage"])
    unread = settings.model_copy(update={"characters_start": "csv:nowhere.csv"})
    QLoRATrainer(unread, progress=False).train(
        frame[:40],
        frame[90:],
        work_dir=tmp_path / "heir",
        parent_lineage=lineage,
        ancestor=work / "model",
    )
    old, new = (load(settings, f / "model") for f in (work, tmp_path / "heir"))
    branches = [e.branch.logits(["you are awful", "you are dreadful"]) for e in (old, new)]
    assert branches[1][1] > branches[0][1]  # learnt
    assert branches[1][0] > 0  # and not forgotten, though no row of it was there
    # it began with its ancestor, whatever its settings say
    assert "The characters begin with" not in (tmp_path / "heir/model/README.md").read_text()


def test_characters_that_begin_with_labels_of_another_kind_know_words_no_comment_holds(tmp_path):
    reviews = tmp_path / "reviews.csv"
    lines = [f"{'wretched' if i % 2 else 'splendid'} film {i % 9},{1 + i % 2}" for i in range(200)]
    judging = comments()[90:].text.iloc[0].upper()  # a validation row, as good as
    reviews.write_text("review,verdict\n" + "\n".join([*lines, f'"{judging}",1']))
    source = f"csv:{reviews}?text=review&label=verdict&labels=2:1,*:0"
    settings = tiny_settings(tmp_path, characters="on", characters_start=source)
    run_id = train(settings, tmp_path / "work")
    engine = load(settings, tmp_path / "work/model")
    bad, good = engine.branch.logits(["wretched", "splendid"])
    assert bad > good
    params = MlflowClient(settings.tracking_uri).get_run(run_id).data.params
    assert params["characters_start_rows"] == str(len(lines))
    assert params["characters_start_left_out"] == "1"
    assert "The characters begin with" in (tmp_path / "work/model/README.md").read_text()
    reviews.write_text("review,verdict\n" + "\n".join(reversed(lines)))
    with pytest.raises(TrainingError, match="holds another training"):
        train(settings, tmp_path / "work")  # the file has changed under its name


def test_what_characters_can_not_begin_with_is_said_before_anything_is_trained(tmp_path):
    settings = tiny_settings(tmp_path, characters_start=f"csv:{tmp_path}/nowhere.csv")
    with pytest.raises(DataError, match="nowhere.csv"):
        train(settings, tmp_path / "work")
    assert not (tmp_path / "work/checkpoints").exists()

"""Where a comment is unlike all that a network was trained on, a version has the characters answer: from training to registry to service."""

import json
import shutil

import numpy as np
import pytest
from tiny_models import tiny_settings, train

from content_arena.inference.engine import Engine
from content_arena.mlops.model_registry import ModelRegistry
from content_arena.training import two_readers
from content_arena.training.character_branch import CharacterBranch
from content_arena.training.model_files import ModelError, read_spec, write_manifest

pytestmark = pytest.mark.slow
KNOWN, NEW = "you are awful today", "yqxu zrq qwfzl tqdzy"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    "Settings, work folder and run of a training whose version has a guard."
    root = tmp_path_factory.mktemp("novel")
    settings = tiny_settings(root, characters="on")
    with pytest.MonkeyPatch.context() as patch:  # of thirty validation rows none is new
        patch.setattr(two_readers, "NEWEST", (0.0,))
        patch.setattr(two_readers, "MIN_GUARDED", 2)
        patch.setattr(two_readers, "MIN_GAIN", 1.0)
        return settings, root / "work", train(settings, root / "work")


def load(settings, folder, **more):
    cache = settings.path("var_dir") / "cache"
    return Engine.load(folder, cache_dir=cache, dtype="float32", **more)


def asked_of(engine, monkeypatch):
    "How many windows the network is asked about each time."
    asked, real = [], engine._network
    monkeypatch.setattr(
        engine, "_network", lambda ids, n: (asked.append(len(ids)), real(ids, n))[1]
    )
    return asked


def test_the_guard_comes_back_from_the_registry_and_passes_the_probe(trained):
    settings, work, run_id = trained
    registry = ModelRegistry(settings)
    version = registry.register_challenger(run_id)
    engine = load(settings, registry.download(version), expected_sha256=version.sha256)
    ours, theirs = (f.branch.guard for f in (engine, load(settings, work / "model")))
    assert (ours.limit, ours.line, ours.languages) == (theirs.limit, theirs.line, {"en"})
    assert np.array_equal(ours.known, theirs.known) and ours.shares([KNOWN])[0] == 0
    assert engine.spec["guard"].endswith(": kept")
    assert engine.check_probe(0.01) <= 0.01  # the training had the same guard


def test_the_network_is_asked_about_known_comments_only(trained, monkeypatch):
    settings, work, _ = trained
    engine = load(settings, work / "model")
    asked = asked_of(engine, monkeypatch)
    scores = engine.scores([KNOWN, NEW, "너는 바보"])
    assert asked == [2]  # Korean is no language of this training: nobody knows it better
    said = engine.branch.logits(engine.read([NEW]))
    line = engine.branch.guard.line
    assert scores[1] == engine.blend.probability(line[0] + line[1] * said, said)[0]
    alone = engine.reader_scores([KNOWN, NEW])  # a report still asks each of them
    assert asked == [2, 2] and set(alone) == {"network", "characters"}


def test_in_pieces_as_the_service_asks_it_says_the_same(trained, monkeypatch):
    settings, work, _ = trained
    engine = load(settings, work / "model")
    texts = [KNOWN, NEW, f"{KNOWN} " * 30 + NEW]
    readings = engine.readings(texts)
    scores = [engine.part_scores(r.parts) for r in readings]
    assert np.allclose(engine.joined(readings, scores), engine.scores(texts), atol=1e-6)
    asked = asked_of(engine, monkeypatch)
    engine.part_scores(readings[1].parts)
    assert not any(asked)


def test_an_older_folder_has_no_guard_and_answers_as_it_did(trained, tmp_path):
    settings, work, _ = trained
    folder = shutil.copytree(work / "model", tmp_path / "model")
    file = folder / "content_filter.json"
    spec = {k: v for k, v in json.loads(file.read_text()).items() if k != "guard"}
    file.write_text(json.dumps(spec | {"format": 5}))
    branch = CharacterBranch.load(folder)
    branch.guard = None
    branch.save(folder)
    write_manifest(folder)
    assert read_spec(folder)["guard"] == "not asked for"
    engine = load(settings, folder, probe_tolerance=1.0)
    odds, _ = engine._readings([KNOWN, NEW], 4096)
    assert engine.branch.guard is None
    assert np.array_equal(engine.scores([KNOWN, NEW]), engine.blend.probability(**odds))


def test_a_table_of_another_size_is_refused_by_name(trained, tmp_path):
    settings, work, _ = trained
    folder = shutil.copytree(work / "model", tmp_path / "model")
    branch = CharacterBranch.load(folder)
    branch.guard.known = branch.guard.known[:100]
    branch.save(folder)
    write_manifest(folder)
    with pytest.raises(ModelError, match="characters.safetensors.*table of known trigrams"):
        load(settings, folder)


def test_without_one_it_is_off(trained):
    settings = trained[0].model_copy(update={"novelty_guard": "off"})
    train(settings, trained[1].parent / "off")
    spec = read_spec(trained[1].parent / "off" / "model")
    assert spec["guard"] == "not asked for"
    assert load(settings, trained[1].parent / "off" / "model").branch.guard is None

"""What a version does to a comment before it reads it: in training and in service the same, as its description says."""

import json
import shutil

import numpy as np
import pytest
from mlflow import MlflowClient
from tiny_models import tiny_settings, train

from content_arena.core.text import language
from content_arena.disguises.exact_forms import exact_form
from content_arena.inference.engine import Engine, PyfuncModel
from content_arena.inference.ensemble import Recipe, write_ensemble
from content_arena.mlops.model_registry import ModelRegistry
from content_arena.mlops.threshold_versions import write_with_thresholds
from content_arena.training import normaliser, qlora_trainer, two_readers
from content_arena.training.model_files import ModelError, read_spec, write_manifest
from content_arena.training.qlora_trainer import training_ticket
from content_arena.training.base_models import resolve_base_model
from content_arena.training.thresholds import Thresholds

pytestmark = pytest.mark.slow

# a comment, and the same in a disguise whose inverse is exact
PAIRS = [
    ("you are awful", "you are aw\u200bful"),
    ("you are kind", "y\u2060ou are ki\u200dnd"),
    ("바보 같은 소리", "바\u200b보 같\ufeff은 소리"),
    ("바보 같은 소리", "ㅂㅏㅂㅗ 같은 소리"),
]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    "Settings, work folder and run of two trainings on one base, by kind of their normaliser."
    root = tmp_path_factory.mktemp("normalisers")
    made = {}
    for kind in ("none", "exact"):
        settings = tiny_settings(root, characters="on", normaliser=kind)
        made[kind] = settings, root / kind, train(settings, root / kind)
    return made


def load(settings, folder, **more):
    return Engine.load(
        folder, cache_dir=settings.path("var_dir") / "cache", dtype="float32", **more
    )


def test_a_certified_disguise_changes_no_score_of_an_exact_version(trained):
    settings, _, run_id = trained["exact"]
    registry = ModelRegistry(settings)
    version = registry.register_challenger(run_id)
    engine = load(settings, registry.download(version), expected_sha256=version.sha256)
    written, disguised = (list(side) for side in zip(*PAIRS))
    assert all(a != b and exact_form(a) == exact_form(b) for a, b in PAIRS)
    ways = {
        "scores": engine.scores,
        "calibrated": engine.calibrated_scores,
        "pyfunc": PyfuncModel(engine).predict,
        **{
            name: lambda texts, name=name: engine.reader_scores(texts)[name]
            for name in ("network", "characters")
        },
    }
    for name, ask in ways.items():
        np.testing.assert_allclose(ask(disguised), ask(written), atol=1e-6, err_msg=name)


def test_a_version_without_normaliser_reads_what_was_written(trained):
    settings, work, _ = trained["none"]
    engine = load(settings, work / "model")
    written, disguised = (list(side) for side in zip(*PAIRS))
    assert engine.read(disguised) == disguised
    odds = [engine._readings(texts, 4096)[0]["network"] for texts in (disguised, written)]
    assert (np.abs(odds[0] - odds[1]) > 1e-3).all()  # of the network; scores are as good as 0 and 1


def test_a_folder_of_format_3_goes_on_reading_what_was_written(trained, tmp_path):
    settings, work, _ = trained["none"]
    shutil.copytree(work / "model", tmp_path / "model")
    file = tmp_path / "model" / "content_filter.json"
    spec = json.loads(file.read_text())
    old = {k: v for k, v in spec.items() if k != "normaliser"} | {"format": 3}
    file.write_text(json.dumps(old))
    write_manifest(tmp_path / "model")
    assert read_spec(tmp_path / "model") == spec
    before, after = load(settings, work / "model"), load(settings, tmp_path / "model")
    texts = [t for pair in PAIRS for t in pair]
    assert np.array_equal(before.scores(texts), after.scores(texts))


def test_a_kind_of_the_future_is_refused(trained, tmp_path):
    settings, work, _ = trained["exact"]
    shutil.copytree(work / "model", tmp_path / "model")
    file = tmp_path / "model" / "content_filter.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"normaliser": "psychic"}))
    write_manifest(tmp_path / "model")
    with pytest.raises(ModelError, match="model: normaliser 'psychic' is none of none, exact"):
        load(settings, tmp_path / "model")


def test_training_reads_nothing_but_exact_forms(tmp_path, monkeypatch):
    read = []
    for module, name in ((qlora_trainer, "encode"), (qlora_trainer.CharacterBranch, "fit")):
        real = getattr(module, name)

        def watched(*args, _real=real, _texts=0 if name == "fit" else 1):
            read.append(list(args[_texts]))
            return _real(*args)

        monkeypatch.setattr(module, name, watched)
    chosen = []
    real_choice = two_readers.choose_thresholds
    monkeypatch.setattr(
        two_readers,
        "choose_thresholds",
        lambda frame, *rest: (chosen.append(frame.text.tolist()), real_choice(frame, *rest))[1],
    )
    doubted = []
    real_weights = qlora_trainer.with_weights
    monkeypatch.setattr(
        qlora_trainer,
        "with_weights",
        lambda frame, settings, look: (doubted.append(look), real_weights(frame, settings, look))[
            1
        ],
    )
    settings = tiny_settings(tmp_path, characters="on", epochs=1)
    assert settings.normaliser == "exact"
    train(settings, tmp_path / "work")
    assert len(read) >= 4 and chosen and doubted[0]([PAIRS[0][1]]) == [PAIRS[0][0]]
    for texts in read + chosen:
        assert texts == [exact_form(t) for t in texts]
    assert load(settings, tmp_path / "work" / "model").spec["normaliser"] == "exact"


def test_a_score_is_shifted_by_the_language_that_is_read(trained, monkeypatch):
    monkeypatch.setattr(normaliser, "exact_form", lambda text: text.replace("qkqh", "바보"))
    settings, work, _ = trained["exact"]
    one = load(settings, work / "model", probe_tolerance=1.0)
    spec = one.spec | {"thresholds": {"ko": 0.01, "en": 0.99}}
    spec["readers"] = {
        k: v | {"thresholds": spec["thresholds"]} for k, v in spec["readers"].items()
    }
    parts = dict(version="", alias="", sha256="", branch=one.branch, normaliser=one.normaliser)
    engine = Engine(one.classifier, one.tokenizer, spec, **parts)
    assert (language("qkqh"), language("바보")) == ("en", "ko")
    assert engine.scores(["qkqh"]) == engine.scores(["바보"]) != one.scores(["바보"])
    alone = [engine.reader_scores([t]) for t in ("qkqh", "바보")]
    assert alone[0] == alone[1] != one.reader_scores(["바보"])


def test_the_ticket_of_a_training_names_its_normaliser(trained):
    settings, _, _ = trained["exact"]
    base = resolve_base_model(settings.base_model, settings.path("var_dir") / "cache")
    tickets = {
        kind: training_ticket(settings.model_copy(update={"normaliser": kind}), base, "d")
        for kind in ("none", "exact")
    }
    assert tickets["none"] != tickets["exact"]


def test_another_threshold_leaves_the_normaliser(trained, tmp_path):
    settings, work, _ = trained["exact"]
    write_with_thresholds(work / "model", tmp_path / "child", Thresholds(0.123))
    child, parent = (load(settings, f) for f in (tmp_path / "child", work / "model"))
    assert child.threshold == 0.123 and child.normaliser.kind == "exact"
    texts = [t for pair in PAIRS for t in pair]
    assert np.array_equal(child.scores(texts), parent.scores(texts))


def test_members_of_an_ensemble_keep_their_own_normalisers(trained, tmp_path):
    engines, members = {}, {}
    for number, (kind, (settings, work, _)) in enumerate(trained.items(), 1):
        engines[kind] = load(settings, work / "model")
        members[str(number)] = engines[kind].sha256
        cache = settings.path("var_dir") / "cache" / "models" / engines[kind].sha256
        if not cache.exists():
            cache.parent.mkdir(parents=True, exist_ok=True)
            shutil.copytree(work / "model", cache)
    spec = engines["exact"].spec
    recipe = Recipe("mean", members)
    base = {k: spec[k] for k in ("base_model", "base_model_sha256")}
    texts = [t for pair in PAIRS for t in pair]
    expected = np.mean([e.scores(texts) for e in engines.values()], axis=0)
    probe = {"texts": texts, "scores": expected.tolist()}
    write_ensemble(tmp_path / "both", recipe, base, 16, probe)
    assert read_spec(tmp_path / "both")["normaliser"] == "none"
    both = load(trained["exact"][0], tmp_path / "both")
    np.testing.assert_allclose(both.scores(texts), expected, atol=1e-6)
    assert engines["none"].read(texts) == texts != engines["exact"].read(texts)


def test_the_card_and_the_run_say_what_a_version_reads(trained):
    for kind, told in (("none", "no disguise is undone"), ("exact", "proven inverse")):
        settings, work, run_id = trained[kind]
        card = (work / "model" / "README.md").read_text()
        assert told in card[card.index("## What it reads") : card.index("## Data")]
        run = MlflowClient(settings.tracking_uri).get_run(run_id).data
        assert run.params["normaliser"] == kind

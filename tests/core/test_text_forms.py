"""One comment, however a keyboard or a disk spells it (NFC, NFD): one score, wherever a model reads."""

import ast
import json
import shutil
import unicodedata
from copy import copy
from functools import partial
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest
from fastapi.testclient import TestClient
from hypothesis import assume, example, given, settings as hypothesis_settings, strategies as st
from typer.testing import CliRunner

import content_arena
from content_arena.arena.battles.corpus import Corpus
from content_arena.disguises.rules import RULES
from content_arena.disguises.families import attack
from content_arena.arena.attackers.attempts import judged
from content_arena.core.config import Secrets, load_settings
from content_arena.inference.engine import Engine, PyfuncModel
from content_arena.inference.ensemble import Combination, Recipe
from content_arena.mlops.decision_records import DecisionChain
from content_arena.monitoring.drift import compare_scripts
from content_arena.mlops.evaluator import as_test_set, score
from content_arena.mlops.model_registry import ModelRegistry
from content_arena.serving.app import create_app
from content_arena.serving.shadow_runner import text_columns
from content_arena.store.schema import make_row
from content_arena.core.text import canonical, mask, nfc, text_form
from content_arena.training.characters import TfidfBaseline
from content_arena.training.model_files import ModelError, read_spec, write_manifest
from content_arena.training.qlora_trainer import QLoRATrainer
from content_arena.testing.tiny_base import make_tiny_base
from content_arena.disguises.views import ViewsScorer, repaired

nfd = partial(unicodedata.normalize, "NFD")
WORDS = ("바보", "고마워", "café", "naïve", "각하", "닭")
ROWS = [
    (f"{word} {other} {i % 7}", int(word in ("바보", "naïve", "닭")))
    for i in range(12)
    for word in WORDS
    for other in ("you", "today")
]
FRAME = pd.DataFrame(ROWS, columns=["text", "label"]).sample(
    frac=1, random_state=0, ignore_index=True
)
# words that the model knows, syllables and letters that it may not, marks in any order
piece = st.one_of(
    st.sampled_from(WORDS),
    st.characters(min_codepoint=0xAC00, max_codepoint=0xD7A3),
    st.characters(min_codepoint=0xC0, max_codepoint=0x17F),
    st.text(st.sampled_from("aoe\u0301\u0323\u0327\u0308"), min_size=1, max_size=4),
    st.sampled_from(("you", "ㅋㅋ", "\u200b", "!", "Å", "ﬁ")),
)
comments = st.lists(piece, min_size=1, max_size=8).map(" ".join)
few = partial(hypothesis_settings, deadline=None, derandomize=True)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    "Settings, and the run of a model that was trained on NFC rows; registered, @challenger, then @champion."
    folder = tmp_path_factory.mktemp("forms")
    make_tiny_base(folder / "base", more_words=(*WORDS, "<pad>"))
    s = load_settings(
        env={},
        base_model=str(folder / "base"),
        epochs=3,
        batch_tokens=128,
        eval_every=5,
        normaliser="none",  # which would undo what is asked about here
        max_length=16,
        learning_rate=0.01,
        head_learning_rate=0.05,
        var_dir=str(folder / "var"),
        dtype="float32",
        artifact_dir=str(folder / "artifacts"),
        tracking_uri=f"sqlite:///{folder}/mlflow.db",
        models_dir=str(folder / "models"),
        runs_dir=str(folder / "runs"),
    )
    run_id = QLoRATrainer(s, progress=False).train(
        FRAME[:110], FRAME[110:], work_dir=folder / "work"
    )
    registry = ModelRegistry(s)
    version = registry.register_challenger(run_id)
    registry.promote_challenger(DecisionChain(registry).by_hand(version.version, "first"))
    return s, folder, run_id


@pytest.fixture(scope="module")
def engine(trained):
    s, folder, _ = trained
    return Engine.load(
        folder / "work" / "model",
        cache_dir=s.path("var_dir") / "cache",
        version="1",
        alias="champion",
        dtype="float32",
    )


@pytest.fixture(scope="module")
def old_engine(trained):
    "The same weights in a folder of before the field: its description names no form."
    s, folder, _ = trained
    old = shutil.copytree(folder / "work" / "model", folder / "old")
    spec = json.loads((old / "content_filter.json").read_text())
    del spec["text_form"]
    (old / "content_filter.json").write_text(json.dumps(spec))
    write_manifest(old)
    return Engine.load(old, cache_dir=s.path("var_dir") / "cache", version="0", dtype="float32")


@pytest.fixture(scope="module")
def baseline():
    return TfidfBaseline.fit(FRAME.text.tolist(), FRAME.label.to_numpy())


def spread(model) -> float:
    "How far apart the scores of some comments are: a constant one would pass every test here."
    return float(np.ptp(model.scores(FRAME.text.tolist()[:40])))


# --- the models -----------------------------------------------------------------------------------


@pytest.mark.slow
@few(max_examples=40)
@given(comments)
@example("바보")
@example("naïve café")
@example("\u0323\u0301a")
def test_every_model_gives_one_comment_one_score(engine, old_engine, baseline, text):
    duo = Combination(
        Recipe("mean", {"1": "1" * 64, "2": "2" * 64}, threshold=0.41), [engine, engine]
    )
    models = [
        engine,
        baseline,
        duo,
        *(ViewsScorer(engine, m) for m in ("max", "mean", "last")),
        ViewsScorer(baseline, "mean"),
    ]
    for model in models:
        one, other, composed = (model.scores([t])[0] for t in (text, nfd(text), nfc(text)))
        assert one == other == composed
    assert old_engine.scores([nfc(text)])[0] == engine.scores([text])[0]


def test_models_tell_comments_apart_at_all(engine, baseline):
    assert min(spread(engine), spread(baseline)) > 0.3
    labels = FRAME.label.to_numpy()[110:]
    flagged = engine.scores([nfd(t) for t in FRAME.text[110:]]) >= engine.threshold
    assert (flagged == labels).mean() > 0.9


def test_a_folder_without_the_field_reads_what_was_written(old_engine, engine):
    assert text_form(old_engine.spec) == "raw" and text_form(engine.spec) == "NFC"
    assert (old_engine.scores(WORDS) == engine.scores(WORDS)).all()
    network_of_old, network = (
        e.reader_scores([nfd(w) for w in WORDS])["network"] for e in (old_engine, engine)
    )
    assert np.abs(network_of_old - network).max() > 0.1


def test_a_form_from_the_future_is_refused_by_name(trained, tmp_path):
    folder = shutil.copytree(trained[1] / "work" / "model", tmp_path / "model")
    spec = json.loads((folder / "content_filter.json").read_text())
    (folder / "content_filter.json").write_text(json.dumps(spec | {"text_form": "NFKD"}))
    with pytest.raises(ModelError, match="text_form 'NFKD' is none of raw, NFC.*newer"):
        read_spec(folder)


def test_a_baseline_without_the_field_reads_what_was_written(baseline, tmp_path):
    baseline.save(tmp_path)
    spec = json.loads((tmp_path / "baseline.json").read_text())
    assert spec.pop("text_form") == "NFC"
    (tmp_path / "baseline.json").write_text(json.dumps(spec))
    old = TfidfBaseline.load(tmp_path)
    assert old.scores(["바보"])[0] == baseline.scores(["바보"])[0]
    assert abs(old.scores([nfd("바보")])[0] - baseline.scores(["바보"])[0]) > 0.01
    old.save(tmp_path)
    assert TfidfBaseline.load(tmp_path).scores([nfd("바보")])[0] == old.scores([nfd("바보")])[0]


def test_training_on_decomposed_rows_gives_the_same_model(trained, tmp_path):
    s, folder, _ = trained
    s = s.model_copy(update={"epochs": 1})
    decomposed = FRAME.assign(text=FRAME.text.map(nfd))
    for name, frame in (("composed", FRAME), ("decomposed", decomposed)):
        QLoRATrainer(s, progress=False).train(frame[:110], frame[110:], work_dir=tmp_path / name)
    files = [
        json.loads((tmp_path / name / part / "manifest.json").read_text())["files"]
        for name in ("composed", "decomposed")
        for part in ("model",)
    ]
    assert files[0] == files[1]
    one, other = (
        (tmp_path / name / "baseline" / "baseline.json").read_bytes()
        for name in ("composed", "decomposed")
    )
    assert one == other


def test_only_one_function_stands_before_a_tokenizer():
    "Whatever calls a tokenizer hands it what `tokenizer_input` made."
    calls = []
    for file in Path(content_arena.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            name = getattr(
                getattr(node, "func", None), "id", getattr(getattr(node, "func", None), "attr", "")
            )
            if isinstance(node, ast.Call) and name in ("tokenizer", "_tokenizer") and node.args:
                calls.append((file.stem, ast.unparse(node.args[0])))
    assert sorted(c for c in calls if c[0] != "tiny_base") == [
        ("tokens", "tokenizer_input(texts, form)"),
        ("windows", "tokenizer_input(texts, form)"),
    ]


# --- the ways in ----------------------------------------------------------------------------------


def test_pyfunc_registry_and_command_line(trained, engine, monkeypatch):
    s, folder, _ = trained
    asked = pd.DataFrame({"text": ["바보 you", nfd("바보 you")]})
    one, other = PyfuncModel(engine).predict(asked)
    assert one == other
    env = {
        "VAR_DIR": s.var_dir,
        "TRACKING_URI": s.tracking_uri,
        "ARTIFACT_DIR": s.artifact_dir,
        "MODELS_DIR": s.models_dir,
        "DTYPE": "float32",
    }
    for key, value in env.items():
        monkeypatch.setenv(f"CONTENT_ARENA_{key}", value)
    mlflow.set_tracking_uri(s.mlflow_uri())
    assert len(set(mlflow.pyfunc.load_model("models:/content-filter@champion").predict(asked))) == 1
    from content_arena.cli.main import app

    answers = []
    for text in asked.text:
        result = CliRunner().invoke(app, ["classify", text, "--json"])
        assert result.exit_code == 0, result.output
        answers.append(json.loads(result.stdout.splitlines()[-1])["results"][0]["toxic_score"])
    assert answers[0] == answers[1]


class Loaded:
    "The loader of a service that has one model."

    def __init__(self, engine):
        self.engine = engine

    def find(self, alias):
        return ModelRegistry(self.settings).get_champion() if alias == "champion" else None

    def load(self, version, alias):
        return self.engine


def test_service_single_batch_and_events(trained, engine):
    s, folder, _ = trained
    s = s.model_copy(update={"request_timeout_s": 120})  # the longest text, on a slow machine
    loader = Loaded(copy(engine))  # the service closes what it was given
    loader.settings = s
    longest = "각" * s.max_request_chars
    with TestClient(create_app(s, Secrets(), loader), client=("127.0.0.1", 50000)) as client:
        client.post("/reload").raise_for_status()
        single = [
            client.post("/classify", json={"text": t}).json() for t in ("바보 you", nfd("바보 you"))
        ]
        batch = client.post(
            "/classify/batch", json={"texts": ["바보 you", nfd("바보 you")]}
        ).json()["results"]
        assert len({v["toxic_score"] for v in [*single, *batch]}) == 1
        assert len({v["is_toxic"] for v in [*single, *batch]}) == 1
        for text in (longest, nfd(longest)):
            assert client.post("/classify", json={"text": text}).status_code == 200
            assert client.post("/classify", json={"text": text + nfd("각")}).status_code == 422


@few(max_examples=60)
@given(comments)
def test_events_drift_and_masks_do_not_know_the_form(text):
    assume(not any("\ud800" <= c <= "\udfff" for c in text))
    assert text_columns(text) == text_columns(nfd(text))
    kept = [
        make_row(
            "feedback",
            {"text": t, "text_sha256": "0" * 64, "label": 0, "source": "s"},
            keep_text=True,
        )["text"]
        for t in (text, nfd(text))
    ]
    assert kept[0] == kept[1] == nfc(text)
    assert compare_scripts([text], [nfd(text)]).psi == 0
    assert mask(text) == mask(nfd(text)) and canonical(text) == canonical(nfd(text)) == canonical(
        nfc(text)
    )
    assert repaired(text) == repaired(nfd(text))


def test_battles_and_evaluation_read_one_form(engine):
    texts, labels = FRAME.text.tolist()[:30], FRAME.label.tolist()[:30]
    one, other = Corpus(texts, labels), Corpus([nfd(t) for t in texts], labels)
    assert one == other and one.sha256 == other.sha256
    rules = [r for r in RULES.values() if r.lang in ("ko", "any")]
    fought = [judged(attack(c.texts, rules, seed=1), c.labels, engine) for c in (one, other)]
    assert fought[0] == fought[1] and sum(a.attacked for a in fought[0]) > 20
    tests = [
        as_test_set(pd.DataFrame({"text": c, "label": labels}))
        for c in (texts, [nfd(t) for t in texts])
    ]
    assert tests[0].frame.equals(tests[1].frame) and tests[0].sha256 == tests[1].sha256
    assert (score(engine, tests[0]) == score(engine, tests[1])).all()

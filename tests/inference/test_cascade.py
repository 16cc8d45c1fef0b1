"""A version with a cascade answers as one: its branch alone where it may, and everything that asks it sees the same."""

import asyncio
import json
import shutil

import numpy as np
import pytest
from prometheus_client import CollectorRegistry
from tiny_models import comments, tiny_settings, train

from content_arena.arena.attackers.cascade import CascadeAttacker
from content_arena.arena.battles.corpus import Corpus
from content_arena.arena.battles.battle import run_battle
from content_arena.inference.batching import MicroBatcher
from content_arena.inference.engine import Engine
from content_arena.mlops.cascade_evidence import cascade_evidence, cascade_sentence
from content_arena.mlops.evaluator import as_test_set, score
from content_arena.mlops.metrics import Metrics
from content_arena.training.model_files import ModelError, read_spec, write_manifest

pytestmark = pytest.mark.slow
TEXTS = comments(60).text.tolist()


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    "Settings and the folder of a version with two readers."
    root = tmp_path_factory.mktemp("cascade")
    settings = tiny_settings(root, characters="on")
    train(settings, root / "work")
    return settings, root / "work" / "model"


def load(settings, folder, **more):
    cache = settings.path("var_dir") / "cache"
    return Engine.load(folder, cache_dir=cache, dtype="float32", **more)


@pytest.fixture(scope="module")
def whole(trained):
    "The version as it was trained, on rows too few for a band."
    engine = load(*trained)
    assert engine.cascade is None and "too few validation rows" in engine.spec["cascading"]
    assert not engine.early(TEXTS).any()
    return engine


def with_cascade(trained, folder, **changes):
    "A copy of the version whose branch answers a third of `TEXTS` on either side."
    settings, source = trained
    odds = load(settings, source).branch.logits(TEXTS)
    low, high = (float(x) for x in np.quantile(odds, [1 / 3, 2 / 3]))
    shutil.copytree(source, folder)
    file = folder / "content_filter.json"
    spec = json.loads(file.read_text())
    band = {"low": low, "high": high, "below": [-2.0, 0.1], "above": [2.0, 0.1], "altered": False}
    spec |= {"cascade": band | changes.pop("band", {}), "threshold": 0.4, "thresholds": {}}
    file.write_text(json.dumps(spec | changes))
    write_manifest(folder)
    return load(settings, folder, version="7")


@pytest.fixture(scope="module")
def cascade(trained, tmp_path_factory):
    return with_cascade(trained, tmp_path_factory.mktemp("band") / "model")


def test_outside_the_band_the_branch_answers_and_the_network_is_not_asked(cascade, whole):
    asked, heard = [], []
    network = cascade._network
    cascade._network = lambda ids, batch_tokens: (
        asked.append(len(ids)) or network(ids, batch_tokens)
    )
    cascade.hear_stages(lambda branch, network: heard.append((branch, network)))
    try:
        scores = cascade.scores(TEXTS)
    finally:
        del cascade._network
        cascade.on_stages = None
    early, odds = cascade.early(TEXTS), cascade.branch.logits(TEXTS)
    assert 30 <= early.sum() <= 42
    assert asked == [len(TEXTS) - early.sum()] and heard == [(early.sum(), asked[0])]
    assert np.array_equal(scores[early], cascade.cascade.band.probability(odds[early]))
    assert np.allclose(scores[~early], whole.scores(TEXTS)[~early], atol=1e-6)
    assert np.allclose(cascade.scores(TEXTS, cascade=False), whole.scores(TEXTS), atol=1e-6)
    # early answers lie on the side of the threshold that their side of the band says
    assert ((scores >= 0.4) == (odds > cascade.cascade.band.high))[early].all()


def test_what_the_normaliser_changed_is_read_by_the_network(cascade):
    text = TEXTS[int(np.flatnonzero(cascade.early(TEXTS))[0])]
    hidden = text[:2] + "\u200b" + text[2:]
    assert cascade.read([hidden]) == cascade.read([text])
    assert cascade.early([text, hidden, text.upper()]).tolist() == [True, False, True]
    assert cascade.scores([hidden]) == cascade.scores([hidden], cascade=False)


def test_a_window_of_a_long_comment_may_exit_early_and_the_rest_not(cascade):
    odds = cascade.branch.logits(TEXTS)
    clean, unsure = TEXTS[int(odds.argmin())], TEXTS[int(np.abs(odds).argmin())]
    long = " ".join([clean] * 6 + [unsure])
    heard = []
    cascade.hear_stages(lambda branch, network: heard.append((branch, network)))
    try:
        score = cascade.scores([long])[0]
    finally:
        cascade.on_stages = None
    assert sum(map(sum, heard)) > 1 and 0 <= score <= 1
    assert cascade.early([long])[0] == (sum(n for _, n in heard) == 0)


def test_the_probe_asks_the_network_whatever_the_branch_says(trained, tmp_path):
    "A cascade that answers everything must not hide a network with other weights."
    engine = with_cascade(
        trained, tmp_path / "model", band={"low": 0.0, "high": 0.0, "altered": True}
    )
    assert engine.early(engine.spec["probe"]["texts"]).all() and engine.check_probe(0.05) <= 0.05
    head = next(p for n, p in engine.classifier.named_parameters() if "head" in n)
    head.data.mul_(-1)
    with pytest.raises(ModelError, match="probe sentences"):
        engine.check_probe(0.05)


def test_the_band_is_under_the_hash_and_older_versions_have_none(trained, tmp_path, cascade):
    folder = tmp_path / "model"
    engine = with_cascade(trained, folder)
    assert engine.sha256 == cascade.sha256 != load(*trained).sha256
    file = folder / "content_filter.json"
    spec = json.loads(file.read_text())
    file.write_text(json.dumps(spec | {"cascade": spec["cascade"] | {"high": 99.0}}))
    with pytest.raises(ModelError, match="content_filter.json"):
        load(trained[0], folder)
    del spec["cascade"]
    file.write_text(json.dumps(spec | {"format": 4}))
    write_manifest(folder)
    assert read_spec(folder)["cascade"] is None and load(trained[0], folder).cascade is None


def test_a_threshold_that_moved_past_an_early_answer_takes_it_back(trained, tmp_path):
    engine = with_cascade(trained, tmp_path / "model", threshold=0.95)
    assert engine.cascade.band.high == np.inf and np.isfinite(engine.cascade.band.low)
    early = engine.early(TEXTS)
    assert early.any() and (engine.scores(TEXTS)[early] < 0.95).all()


def test_gate_shadow_and_battle_see_the_cascade(cascade):
    scores, early = cascade.scores(TEXTS), cascade.early(TEXTS)
    frame = comments(60)
    # the gate: the rows that it compares on, and the record of its decision
    assert np.array_equal(score(cascade, as_test_set(frame)), scores)
    record = cascade_evidence(cascade, TEXTS, frame.label.to_numpy(), scores)
    assert (record["early"], record["rows"]) == (early.sum(), 60)
    assert record["low"] == cascade.cascade.band.low and record["share"] == early.mean()
    assert "F1" in cascade_sentence(record)

    # service and shadow ask through the queue of a version
    async def through_queue():
        batcher = MicroBatcher(cascade, size=16)
        try:
            return await batcher.score(TEXTS)
        finally:
            await asyncio.to_thread(batcher.close)

    heard = Metrics(CollectorRegistry())
    cascade.hear_stages(lambda *windows: heard.staged("champion", *windows))
    try:
        assert np.allclose(asyncio.run(through_queue()), scores, atol=1e-6)
    finally:
        cascade.on_stages = None
    count = lambda stage: heard.registry.get_sample_value(
        "content_arena_stage_windows_total", {"alias": "champion", "stage": stage}
    )
    assert (count("branch"), count("network")) == (early.sum(), 60 - early.sum())


def test_a_battle_that_aims_at_the_cascade_says_what_got_past_the_network(trained, whole, tmp_path):
    "Below the middle of the toxic comments all is clean: harmless words around one are enough."
    frame = comments(40)
    middle = float(np.median(whole.branch.logits(frame.text[frame.label == 1].tolist())))
    band = {"low": middle, "high": None, "below": [-3.0, 0.0]}
    engine = with_cascade(trained, tmp_path / "model", band=band)
    corpus = Corpus(frame.text.tolist(), frame.label.tolist())
    battle = run_battle(engine, corpus, CascadeAttacker((), query_limit=20), rounds=24, seed=1)
    aimed = battle.record["aimed"]["worse"]
    assert 0 < aimed["by_cascade"] <= aimed["hits"] <= aimed["tried"] < 24
    won = [a.variant.text for a in battle.attempts if a.label and a.succeeded]
    assert (engine.scores(won) < 0.4).all()
    assert (engine.scores(won, cascade=False) >= 0.4).sum() >= aimed["by_cascade"]
    # the same filter without a cascade is not talked round by way of one
    alone = CascadeAttacker((), query_limit=20).attack(corpus.texts, corpus.labels, whole, seed=1)
    assert not any(step.endswith("/cascade") for a in alone for step in a.variant.steps)

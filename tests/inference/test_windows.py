"""A text scored window by window, in any company, gets the score that the engine gives the whole text."""

from pathlib import Path

import numpy as np
import pytest

from tiny_models import random_version
from content_arena.inference.engine import Engine
from content_arena.inference.windows import token_guess
from content_arena.inference.ensemble import Combination, Recipe
from content_arena.testing.tiny_base import make_tiny_base
from content_arena.training.blend import Blend
from content_arena.training.classifier import save_model
from content_arena.training.normaliser import Normaliser

TEXTS = ["you are kind", "", "바보 " * 40, "kind " * 60 + "awful", "AWFUL you", "\ud83d 버보" * 9]


class Characters:
    "A second reader that counts letters."

    size_mb, guard = 0.5, None
    logits = staticmethod(lambda texts: np.array([len(t) % 7 - 3.0 for t in texts]))


class Letters:
    "Restores one letter by another one."

    size_mb = 0.5
    restore = staticmethod(lambda texts: [t.replace("버", "바") for t in texts])


@pytest.fixture(scope="module")
def loaded(tmp_path_factory) -> Engine:
    folder = tmp_path_factory.mktemp("windows")
    tiny = make_tiny_base(folder / "tiny")
    _, classifier, spec = random_version(tiny, folder / "cache")
    save_model(classifier, folder / "model", spec)
    return Engine.load(folder / "model", cache_dir=Path(folder) / "cache", dtype="float32")


def variant(loaded: Engine, normaliser: Normaliser, blend: Blend | None = None, **spec) -> Engine:
    branch = Characters if blend else None
    engine = Engine(
        loaded.classifier,
        loaded.tokenizer,
        loaded.spec | spec,
        version="1",
        alias="",
        sha256="",
        branch=branch,
        normaliser=normaliser,
    )
    engine.blend = blend or engine.blend
    return engine


@pytest.fixture(scope="module", params=["plain", "languages", "exact", "restored", "and", "mean"])
def engine(request, loaded) -> Engine:
    both = Blend(0.3, 0.4, 0.1, 0.2, 0.1)
    kinds = {
        "plain": lambda: loaded,
        "languages": lambda: variant(loaded, Normaliser(), thresholds={"en": 0.2}),
        "exact": lambda: variant(loaded, Normaliser("exact")),
        "restored": lambda: variant(loaded, Normaliser("restored", Letters), both),
    }
    if request.param in kinds:
        return kinds[request.param]()
    members = [kinds["restored"](), variant(loaded, Normaliser("exact"), max_length=12)]
    members[0].limits = kinds["languages"]().limits
    recipe = Recipe(request.param, {"1": "a" * 64, "2": "b" * 64})
    names = dict(version="3", alias="", sha256="")
    return Engine(Combination(recipe, members), loaded.tokenizer, loaded.spec, **names)


def test_window_by_window_is_the_same(engine):
    readings = engine.readings(TEXTS)
    windows = [(i, w) for i, r in enumerate(readings) for w in r.parts]
    order = np.random.default_rng(0).permutation(len(windows))
    scores = [[] for _ in TEXTS]
    by_window = np.zeros(len(windows), dtype=np.float32)
    for at in range(0, len(order), 5):  # five windows of anybody's at a time
        step = order[at : at + 5]
        by_window[step] = engine.part_scores([windows[i][1] for i in step])
    for (i, _), p in zip(windows, by_window):
        scores[i].append(p)
    whole = engine.scores(TEXTS)
    assert len(windows) > 12 and np.ptp(whole) > 0.01
    np.testing.assert_allclose(
        engine.joined(readings, list(map(np.array, scores))), whole, atol=1e-5
    )


def test_no_window_is_longer_than_the_model_reads(engine):
    assert max(w.cost for r in engine.readings(TEXTS) for w in r.parts) <= 16
    assert all(len(r.parts) >= 1 for r in engine.readings(TEXTS))


def test_an_ensemble_costs_what_its_members_cost(loaded):
    pair = Combination(Recipe("and", {"1": "a" * 64, "2": "b" * 64}), [loaded, loaded])
    two = Engine(pair, loaded.tokenizer, loaded.spec, version="3", alias="", sha256="")
    assert two.token_guess("you are kind") == 2 * loaded.token_guess("you are kind")
    costs = [sum(w.cost for w in e.readings(["you are kind"])[0].parts) for e in (loaded, two)]
    assert costs[1] == 2 * costs[0]


def test_the_guess_grows_with_the_text_and_its_windows():
    assert token_guess("", 96) == 2
    assert token_guess("바" * 200, 96) > 1.5 * token_guess("a" * 200, 96)
    one, many = token_guess("a" * 280, 96), token_guess("a" * 2800, 96)
    assert many > 12 * one  # windows overlap

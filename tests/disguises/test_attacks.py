"""Attack rules as properties: what holds for any text, rule, intensity and seed."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings, strategies as st

from content_arena.disguises.families import RULES, attack, make_variant, split_families
from content_arena.disguises.rules import Rule, apply_edits, seeded, strongest
from content_arena.disguises.targets import TARGETS, lexicon, target_spans
from content_arena.disguises.validity import invalid, validity_report
from content_arena.data.embedded_corpus import embedded_corpus

anything = st.text(st.characters(), max_size=40)  # surrogates, controls, all planes
korean = st.text(st.characters(min_codepoint=0xAC00, max_codepoint=0xD7A3), min_size=2, max_size=8)
english = st.text("abcdefghijklmnopqrstuvwxyz", min_size=4, max_size=9)
rules = st.sampled_from(sorted(RULES.values(), key=lambda r: r.name))
intensities = st.floats(0.01, 1)


@given(text=anything, rule=rules, intensity=intensities, seed=st.integers(0, 2**40))
@settings(max_examples=500, deadline=None)
def test_any_text_can_be_attacked_and_the_same_arguments_give_the_same(text, rule, intensity, seed):
    variant = rule(text, intensity, seed)
    assert rule(text, intensity, seed) == variant
    invalid(text, variant, rule)  # has a verdict on whatever came out


@given(text=anything, rule=rules, seed=st.integers(0, 99))
@settings(max_examples=400, deadline=None)
def test_edits_are_in_order_and_change_something(text: str, rule: Rule, seed: int):
    edits = list(rule.find(text, seeded(rule.name, seed, text)))
    at = 0
    for start, end, new in edits:
        assert at <= start <= end <= len(text)
        assert text[start:end] != new
        at = end
    assert (rule(text, 1, seed) != text) == bool(edits)


@given(text=korean | english | anything, rule=rules, low=intensities, high=intensities)
@settings(max_examples=300, deadline=None)
def test_a_stronger_variant_contains_the_weaker_one(text, rule, low, high):
    edits = list(rule.find(text, seeded(rule.name, 0, text)))
    if not edits:
        return
    low, high = sorted((low, high))
    weak, strong = (strongest(edits, s * rule.max_share, seeded("", 0, text)) for s in (low, high))
    assert set(weak) <= set(strong)
    assert 1 <= len(strong) <= max(1, int(rule.max_share * len(edits) + 0.5))


@given(
    words=st.lists(korean, min_size=1, max_size=4),
    intensity=intensities,
    rule=rules.filter(lambda r: r.lang != "en"),
    seed=st.integers(0, 999),
)
@settings(max_examples=500, deadline=None)
def test_korean_variants_read_as_the_original(words, intensity, rule, seed):
    text = " ".join(words)
    assert rule.reading(rule(text, intensity, seed)) == rule.reading(text)


@given(
    words=st.lists(english, min_size=1, max_size=5),
    intensity=intensities,
    rule=rules.filter(lambda r: r.lang != "ko" and r.name != "phonetic"),
    seed=st.integers(0, 999),
)
@settings(max_examples=500, deadline=None)
def test_english_variants_read_as_the_original(words, intensity, rule, seed):
    text = " ".join(words)
    assert rule.reading(rule(text, intensity, seed)) == rule.reading(text)


@given(text=anything, target=st.sampled_from(TARGETS), seed=st.integers(0, 9))
@settings(max_examples=300, deadline=None)
def test_edits_stay_within_their_target(text, target, seed):
    spans = target_spans(text, target, seed)
    for rule in (RULES["letter_spacing"], RULES["jamo_decomposition"], RULES["leetspeak"]):
        variant = rule(text, 1, seed, spans)
        if spans is not None:
            ends, starts = [0, *(b for _, b in spans)], [*(a for a, _ in spans), len(text)]
            outside = [text[b:a] for b, a in zip(ends, starts)]
            at = 0
            for piece in outside:
                assert (at := variant.find(piece, at)) >= 0
                at += len(piece)


def test_variants_are_the_same_in_another_process():
    texts = ["너 진짜 바보 같은 멍청이", "You are such an idiot", "좋은 하루 보내세요 \ud800"]
    code = (
        "import sys, json; from content_arena.disguises.families import RULES, attack;"
        "t = json.load(sys.stdin);"
        "print(json.dumps([[r(x, .6, 7) for x in t] for _, r in sorted(RULES.items())]"
        " + [[v.text for v in attack(t, seed=7)]]))"
    )
    env = {**os.environ, "PYTHONHASHSEED": "123"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        input=json.dumps(texts),
        env=env,
        text=True,
        capture_output=True,
        cwd=Path(__file__).parents[2],
    )
    assert done.returncode == 0, done.stderr
    here = [[r(x, 0.6, 7) for x in texts] for _, r in sorted(RULES.items())]
    assert json.loads(done.stdout) == here + [[v.text for v in attack(texts, seed=7)]]


@pytest.fixture(scope="module")
def corpus():
    return embedded_corpus().sample(300, random_state=1)


def test_every_rule_works_and_few_variants_are_invalid(corpus):
    report = validity_report(corpus.text.tolist(), RULES.values())
    assert (report.invalid <= 0.1).all(), report[report.invalid > 0.1]
    assert (report.applied > 0).all()


def test_clean_text_is_attacked_as_often_as_toxic_and_stays_clean(corpus):
    clean, toxic = (corpus.text[corpus.label == k].tolist() for k in (0, 1))
    made = {
        k: [v for v in attack(t, seed=3) if v.outcome == "made"]
        for k, t in (("clean", clean), ("toxic", toxic))
    }
    assert len(made["clean"]) > 0.95 * len(clean) and len(made["toxic"]) > 0.95 * len(toxic)
    for v in made["clean"]:
        assert invalid(v.original, v.text) != "new_toxic_word"
        assert v.text != v.original and len(v.rules) == 1


def test_a_variant_that_would_spell_an_insult_is_refused():
    word = sorted(w for w in lexicon() if w.isascii() and len(w) == 5)[0]
    apart = f"{word[:2]} {word[2:]}"
    variant = make_variant(apart, RULES["joining"], 1.0, 0)
    assert (variant.outcome, variant.text) == ("new_toxic_word", apart)


def test_an_unreadable_rule_is_found_out(corpus):
    "The validity check can fail: a rule that eats letters but claims to lose nothing."
    honest = RULES["jamo_decomposition"]
    eater = Rule(
        "eater",
        lambda text, rng: [(i, i + 1, "") for i, c in enumerate(text) if "가" <= c <= "힣"],
        "",
        "",
        "ko",
        ("", ""),
        "",
        honest.reading,
        1.0,
    )
    report = validity_report(corpus.text.tolist(), [eater])
    assert report.loc["eater", "invalid"] == 1.0


def test_held_out_rules_are_never_among_those_seen():
    for rotation in range(20):
        split = split_families(rotation)
        out, trained = split.rules(held_out=True), split.rules(held_out=False)
        assert len(out) >= 5 and not {r.family for r in out} & {r.family for r in trained}
        for lang in ("ko", "en"):
            assert any(r.lang in (lang, "any") for r in out)
        record = json.loads(json.dumps(split.to_dict()))
        assert sorted(n for names in record["held_out"].values() for n in names) == [
            r.name for r in out
        ]
    assert split_families(0) != split_families(1)


def test_apply_edits_keeps_what_lies_between():
    assert apply_edits("abc", [(0, 0, "-"), (1, 2, ""), (3, 3, "!")]) == "-ac!"

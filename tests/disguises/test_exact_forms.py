"""Exact forms as properties: no variant of a certified rule has another form, and the form itself is well behaved."""

import random
import re
import sys
import unicodedata
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from repository_files import ROOT
from sklearn.metrics import f1_score

from content_arena.core.hangul import LEADS, TAILS, VOWELS, join, split
from content_arena.core.text import language
from content_arena.data.embedded_corpus import embedded_corpus
from content_arena.disguises import exact_forms
from content_arena.disguises.exact_forms import (
    CERTIFICATES,
    UNCERTIFIED,
    certified,
    certified_rules,
    changed_by,
    composed,
    covers,
    exact_form,
    numbered_variant,
)
from content_arena.disguises.families import RULES
from content_arena.training import character_branch

TEXTS = embedded_corpus().sample(frac=1, random_state=4).text.tolist()
BY_RULE = {
    name: [t for t in TEXTS[:2500] if RULES[name].lang in ("any", language(t))]
    for name in certified_rules()
}
anything = st.text(st.characters(), max_size=40)  # surrogates, controls, all planes
mixed = st.text("가각없좋부엌멍청논문ㅋㅎㅠㅅㅂㅇㅏㅗrlHFksdSKe 口人一寶.~!^♡🔥é１", max_size=12)


def tried(rule: str, texts: list[str], variants: int) -> tuple[int, list[str]]:
    "How many variants of `texts` that are covered were made, and the texts of which one has another form."
    made, changed = 0, []
    for number in range(40 * len(texts)):
        text = texts[number % len(texts)]
        if made >= variants:
            break
        if not covers(rule, text) or numbered_variant(rule, text, number) == text:
            continue
        made += 1
        if changed_by(rule, text, number):
            changed.append(text)
    return made, changed


@pytest.mark.parametrize("rule", certified_rules())
def test_no_variant_of_a_certified_rule_has_another_form(rule):
    usable = [t for t in BY_RULE[rule] if RULES[rule](t) != t]
    made, changed = tried(rule, usable, 600)
    assert not changed, changed[:3]
    assert made >= (600 if rule != "rotation" else 50), made


@given(text=mixed, rule=st.sampled_from(certified_rules()), number=st.integers(0, 10**6))
@settings(max_examples=400, deadline=None)
def test_nor_has_one_of_what_nobody_would_write(text, rule, number):
    if covers(rule, text):
        variant = numbered_variant(rule, text, number)
        assert exact_form(variant) == exact_form(text), (rule, text, variant)


@given(text=anything | mixed)
@settings(max_examples=400, deadline=None)
def test_a_form_is_its_own_form_and_can_be_written_anywhere(text):
    form = exact_form(text)
    assert exact_form(form) == form
    assert unicodedata.is_normalized("NFC", form)
    form.encode("utf-8")


INSERTED = ("zero_width", "emoji", "punctuation", "symbols")


def test_two_certified_rules_on_top_of_one_another():
    """What is put between letters may be put between those of any other disguise but `hangul_leet`'s, in any order of
    insertions; nothing is promised of two rules that both respell."""
    rng, made = random.Random(3), 0
    for first in ("jamo_decomposition", "keyboard_layout", "hanja", "diacritics", "fullwidth"):
        for second in INSERTED:
            for text in rng.sample(BY_RULE[first], 60):
                variant = numbered_variant(first, text, 3)
                if variant == text or not (covers(first, text) and covers(second, variant)):
                    continue
                made += 1
                stacked = numbered_variant(second, variant, 4)
                assert exact_form(stacked) == exact_form(text), (first, second, text, stacked)
    assert made > 500


@pytest.mark.parametrize("rule", certified_rules())
def test_each_certificate_can_fail(rule, monkeypatch):
    "Where `exact_form` does only half of its work, the proof by trying notices."
    broken = {
        "casing": lambda t: exact_form(t) if t.islower() else t,
        "rotation": exact_forms._hangul,
    }.get(rule, lambda t: t.lower())
    monkeypatch.setattr(exact_forms, "exact_form", broken)
    usable = [t for t in BY_RULE[rule] if RULES[rule](t) != t]
    assert tried(rule, usable, 60)[1]


@pytest.mark.parametrize("rule", sorted(UNCERTIFIED))
def test_a_rule_without_a_certificate_does_change_forms(rule):
    texts = [t for t in TEXTS if RULES[rule].lang in ("any", language(t))][:200]
    assert sum(changed_by(rule, t, i) for i, t in enumerate(texts)) > 10
    assert not certified(rule) and not any(covers(rule, t) for t in texts[:20])


def test_every_rule_has_a_certificate_or_a_reason():
    assert set(CERTIFICATES) | set(UNCERTIFIED) == set(RULES)
    assert not set(CERTIFICATES) & set(UNCERTIFIED)
    with pytest.raises(ValueError, match="no rule 'rot13'"):
        certified("rot13")


def test_the_letters_decide_what_is_composed_and_whole_syllables_stay():
    rng = random.Random(1)
    usual = [t for t in TAILS if t not in ("ㅋ", "ㅎ", "ㅄ")]
    for _ in range(3000):
        word = "".join(
            join(rng.choice(LEADS), rng.choice(VOWELS), rng.choice(usual)) for _ in range(4)
        )
        spelt = "".join("".join(split(c)) for c in word)
        assert composed(spelt) == composed(word) == word


def unchanged(texts: list[str]) -> float:
    return sum(exact_form(t) == t for t in texts) / len(texts)


def test_plain_korean_passes_unchanged():
    plain = re.compile(r"[가-힣]+(?:[.?!,]? [가-힣]+)*[.?!,]?")
    clean = embedded_corpus().query("lang == 'ko' and label == 0").text
    texts = [t for t in clean if plain.fullmatch(t) and t == unicodedata.normalize("NFC", t)]
    assert len(texts) > 1000
    assert unchanged(texts) > 0.99, [t for t in texts if exact_form(t) != t][:5]
    for text in ("ㅋㅋㅋ", "아ㅅㅂ 진짜ㅋㅋ", "ㅠㅠ 좋다!", "해ㅋ", "SK 이겼다", "ㅂㅅ아"):
        assert exact_form(text) == text


@pytest.mark.needs("data")
def test_real_comments_too(data_dir: Path):
    texts = (data_dir / "beep_unlabeled.txt").read_text(encoding="utf-8").split("\n")[:600]
    texts = [t for t in texts if t]
    for rule in certified_rules():
        if RULES[rule].lang != "en":
            assert not tried(rule, [t for t in texts if RULES[rule](t) != t], 150)[1], rule
    assert unchanged(texts) > 0.7


@pytest.fixture
def script():
    loader = SourceFileLoader("certify_script", str(ROOT / "scripts/certify"))
    module = module_from_spec(spec_from_loader("certify_script", loader))
    loader.exec_module(module)
    return module


def test_the_script_counts_what_is_changed(script, monkeypatch):
    few = TEXTS[:300]
    good = script.attempt("jamo_decomposition", few, 200)
    assert (good.variants, good.changed) == (200, []) and 0 < good.covered <= good.texts
    scarce = script.attempt("rotation", few, 200)
    assert scarce.variants < 200 and "no more to be had" in scarce.line()
    monkeypatch.setattr(exact_forms, "exact_form", lambda t: t)
    assert len(script.attempt("jamo_decomposition", few, 50).changed) == 50


def test_the_script_refuses_a_rule_without_certificate(script, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["certify", "--rule", "liaison"])
    with pytest.raises(SystemExit) as ended:
        script.main()
    assert ended.value.code == 2 and "liaison has no certificate" in capsys.readouterr().err


def test_the_figure_is_the_field_s_macro_f1(script):
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 300)
    scores = rng.normal(size=300) + labels
    for threshold in (-0.5, 0.3, 1.2):
        ours = script.macro_f1(scores, labels, np.array([threshold]))[0]
        assert ours == pytest.approx(f1_score(labels, scores > threshold, average="macro"))


def test_the_price_of_a_form_is_seen(script, monkeypatch):
    "Forms that fold everything together cost all that a reader knows; those that fold little, little."
    monkeypatch.setattr(character_branch, "BUCKETS", 2**11)
    frame = embedded_corpus().sample(700, random_state=2)
    honest = script.price(frame[:500], frame[500:])
    assert honest["exact form"]["macro_f1"] > honest["NFC"]["macro_f1"] - 0.05 > 0.6
    monkeypatch.setattr(exact_forms, "exact_form", lambda t: "x")
    spoilt = script.price(frame[:500], frame[500:])
    assert spoilt["exact form"]["macro_f1"] < spoilt["NFC"]["macro_f1"] - 0.2
    assert spoilt["NFC"] == honest["NFC"]

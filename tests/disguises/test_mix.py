"""The declared mix as properties: which rows, which rules, and that nothing but text and seed decides."""

import subprocess

import pandas as pd
import pytest
from hypothesis import given, settings, strategies as st
from warm import python

from content_arena.core.config import load_settings
from content_arena.data.embedded_corpus import embedded_corpus
from content_arena.disguises.families import split_families
from content_arena.disguises.mix import DeclaredMix, layered, mixed_epochs, train_mixes, valid_mix
from content_arena.disguises.validity import invalid

anything = st.text(st.characters(codec="utf-8"), max_size=40)  # what a table can hold
CORPUS = embedded_corpus().sample(1000, random_state=3)[["text", "label"]]


@given(texts=st.lists(anything, max_size=5), share=st.floats(0, 1), seed=st.integers(0, 2**40))
@settings(max_examples=150, deadline=None)
def test_any_text_may_stand_in_a_mix(texts, share, seed):
    mix = DeclaredMix(share, seed)
    frame = pd.DataFrame({"text": texts, "label": 0})
    mixed = mix.apply(frame)
    assert mixed.text.tolist() == mix.apply(frame).text.tolist()
    for old, new, hidden in zip(frame.text, mixed.text, mixed.disguised):
        assert hidden == (old != new)
        assert not (hidden and invalid(old, new))


def test_both_classes_stand_in_disguise_alike_and_each_share_is_kept():
    for share in (0.3, 0.5):
        done = DeclaredMix(share).apply(CORPUS).disguised
        shares = done.groupby(CORPUS.label).mean()
        assert shares.sub(share).abs().max() < 0.06, shares


def test_no_rule_that_is_held_out_is_ever_used():
    for held_out_rules in (5, 12):
        known = {
            r.name for r in split_families(0, held_out_rules).rules(held_out=True)
        }  # not to be known
        mix = DeclaredMix(1, held_out_rules=held_out_rules)
        used = {r for a in mix.apply(CORPUS).attack.dropna() for r in a.split("+")}
        assert used and not used & known
    some = load_settings(env={}, epochs=3, train_excludes="symbols,emoji,casing,joining")
    rows, _ = mixed_epochs(CORPUS[:300], train_mixes(some))
    used = {r for a in rows.attack.dropna() for r in a.split("+")}
    assert len(used) > 8 and not used & set(some.train_excludes)
    assert not set(some.train_excludes) & set(valid_mix(some).to_dict()["rules"])


def test_noise_stands_in_both_classes_and_resembles_nothing_that_is_held_out():
    some = load_settings(env={}, train_excludes="punctuation,initial_replacement", noise_share=0.5)
    [mix] = train_mixes(some)[:1]
    assert set(mix.kinds) == {"smudge", "lost", "double"}  # neither signs and gaps nor parts
    mixed = mix.apply(CORPUS)
    noisy = mixed.attack == "noise"
    shares = noisy[mixed.disguised].groupby(CORPUS.label[mixed.disguised]).mean()
    assert shares.sub(0.5).abs().max() < 0.1, shares
    assert not (valid_mix(some).apply(CORPUS[:200]).attack == "noise").any()


def test_rules_stand_on_top_of_one_another():
    deep = DeclaredMix(1, depth=3).apply(CORPUS[:300]).attack.dropna().str.count(r"\+").add(1)
    assert set(deep) == {1, 2, 3} and deep.value_counts(normalize=True).min() > 0.2
    assert set(DeclaredMix(1, depth=1).apply(CORPUS[:100]).attack.dropna().str.count(r"\+")) == {0}


ELSEWHERE = """
import pandas as pd
from content_arena.disguises.mix import DeclaredMix
mix = DeclaredMix(0.7, seed=11)
texts = ["너는 정말 바보 같은 사람이야", "you are such an idiot today", "오늘 날씨가 참 좋네요"] * 4
print(mix.id, *mix.apply(pd.DataFrame({"text": [f"{t} {i}" for i, t in enumerate(texts)]})).text, sep="\\n")
"""


@pytest.mark.slow
def test_another_process_makes_the_same_rows():
    answers = {
        subprocess.run(
            [python(), "-c", ELSEWHERE],
            capture_output=True,
            text=True,
            check=True,
            env={"PYTHONHASHSEED": seed, "PATH": "/usr/bin", "PYTHONPATH": "."},
        ).stdout
        for seed in ("1", "2")
    }
    assert len(answers) == 1 and len(answers.pop().splitlines()) == 13


def test_what_cannot_be_disguised_stays_and_is_counted():
    frame = pd.DataFrame({"text": ["...", "바보 같은 소리", "ㅎ"], "label": [0, 1, 0]})
    mix = DeclaredMix(1)
    mixed = mix.apply(frame)
    facts = mix.account(frame, mixed)
    assert facts["rows"] == 3 and facts["disguised"] + facts["left"] == 3
    assert mixed.text[0] == "..." and not mixed.disguised[0] and mixed.attack[0] is None
    assert layered("...", mix.rules, 0).outcome == "not_applicable"


@pytest.mark.parametrize(
    "values, message",
    [
        ({"share": -0.1}, "a share in"),
        ({"share": 0.5, "intensity": 0}, "an intensity in"),
        ({"share": 0.5, "depth": 0}, "a depth"),
        ({"share": 0.5, "held_out_rules": 99}, "can be held out"),
    ],
)
def test_a_recipe_that_makes_no_sense_is_refused(values, message):
    with pytest.raises(ValueError, match=message):
        DeclaredMix(**values)

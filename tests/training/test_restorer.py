"""The restorer takes off what it was trained on, leaves the rest alone, and is the same for the same seed."""

import json
import os
import resource
import subprocess
import sys
from copy import deepcopy

import numpy as np
import pytest

from content_arena.core.config import load_settings
from content_arena.core.text import language
from content_arena.data.embedded_corpus import embedded_corpus
from content_arena.data.readers import load_unlabelled
from content_arena.disguises.families import split_families
from content_arena.disguises.rules import RULES
from content_arena.training import restorer as module
from content_arena.training.pairs import edited, exact_form, make_pairs, tags_between
from content_arena.training.restorer import RESTORER_FILE, Restorer, judge

KOREAN = [r for r in split_families().rules(held_out=False) if r.lang != "en"]
LONG = "너는 정말 뱌보 가튼 살람이야 " * 1300  # 20,000 characters and more


@pytest.fixture(scope="module")
def texts() -> tuple[list[str], list[str]]:
    "Comments to train on, and others."
    korean = [t for t in embedded_corpus().text if language(t) == "ko"]
    forms = list(dict.fromkeys(map(exact_form, korean)))
    return forms[::2], forms[1::2]


@pytest.fixture(scope="module")
def restorer(texts) -> Restorer:
    return Restorer.fit(texts[0], rules=KOREAN, steps=100, seed=0, width=64)


def judged(restorer: Restorer, texts: list[str], rules: list, seed: int = 7):
    pairs = make_pairs(texts, rules, seed)
    text = "".join(map(chr, pairs.codes))
    read = restorer._read([text[a:b] for a, b in zip(pairs.starts, pairs.starts[1:])])
    return judge(read.tags(restorer.confidence, pairs.codes), pairs.tags)


@pytest.mark.slow
def test_it_restores_what_it_was_trained_on_and_damages_little(restorer, texts):
    judgement = judged(restorer, texts[1], KOREAN)
    assert judgement.restored > 0.2 and judgement.damaged < 0.01
    assert restorer.facts["damaged"] <= module.MAX_DAMAGE < 0.01


@pytest.mark.slow
def test_clean_comments_are_left_alone(restorer, texts):
    clean = texts[1]
    same = [a == b for a, b in zip(clean, restorer.restore(clean))]
    assert np.mean(same) > 0.95


@pytest.mark.slow
def test_less_confidence_restores_more_and_damages_more(restorer, texts):
    careful, bold = (
        judged(Restorer(restorer.tagger, restorer.familiar, confidence, {}), texts[1], KOREAN)
        for confidence in (0.9, 0.2)
    )
    assert careful.restored < bold.restored and careful.damaged < bold.damaged


def test_the_same_seed_gives_the_same_restorer(texts):
    one, two, other = (
        Restorer.fit(texts[0][:200], rules=KOREAN, steps=4, seed=seed, width=32)
        for seed in (3, 3, 4)
    )
    weights = [
        np.concatenate([w.ravel() for _, w in sorted(r.tagger.weights.items())])
        for r in (one, two, other)
    ]
    assert (weights[0] == weights[1]).all() and (weights[0] != weights[2]).any()
    assert one.facts == two.facts and one.confidence == two.confidence


@pytest.mark.slow
def test_a_saved_restorer_restores_the_same(restorer, texts, tmp_path):
    restorer.save(tmp_path)
    again = Restorer.load(tmp_path)
    disguised = [
        exact_form(KOREAN[i % len(KOREAN)](t, 0.6, i)) for i, t in enumerate(texts[1][:300])
    ]
    assert again.restore(disguised) == restorer.restore(disguised) != disguised
    assert (again.confidence, again.facts, again.size_mb) == (
        restorer.confidence,
        restorer.facts,
        restorer.size_mb,
    )


CHILD = """
import json, sys
from pathlib import Path
from content_arena.training.normaliser import Normaliser
normaliser = Normaliser.of({"normaliser": "restored"}, Path(sys.argv[1]))
read = normaliser.exact(json.loads(sys.argv[2]))
print(json.dumps([normaliser.restored(read, read), "torch" in sys.modules]))
"""


@pytest.mark.slow
def test_whoever_restores_needs_no_torch(restorer, texts, tmp_path):
    restorer.save(tmp_path)
    disguised = [
        exact_form(KOREAN[i % len(KOREAN)](t, 0.6, i)) for i, t in enumerate(texts[1][:50])
    ]
    command = [sys.executable, "-c", CHILD, str(tmp_path), json.dumps(disguised)]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [restorer.restore(disguised), False]


@pytest.mark.slow
def test_a_file_that_is_none_is_named(restorer, tmp_path):
    restorer = deepcopy(restorer)
    with pytest.raises(ValueError, match=f"{RESTORER_FILE} can't be loaded"):
        Restorer.load(tmp_path)
    file = restorer.save(tmp_path)
    file.write_bytes(file.read_bytes()[:-5])
    with pytest.raises(ValueError, match=str(file)):
        Restorer.load(tmp_path)
    del restorer.tagger.weights["head.bias"]
    with pytest.raises(ValueError, match="the tagger has no head.bias; restore or retrain"):
        Restorer.load(restorer.save(tmp_path).parent)


@pytest.mark.slow
def test_what_is_no_korean_comment_comes_back_as_it_is(restorer):
    odd = ["", " ", "plain English, no Hangul", "😂🔥", "\ud800", "12:30", "漢字"]
    assert restorer.restore(odd) == odd
    assert restorer.restore([]) == [] and restorer.tags("plain") == []
    for text in ("\ud83d바보\ude00", "😂바보😂", "바", "ㅋ" * 500, " 바보\n\n바보 "):
        assert isinstance(restorer.restore([text])[0], str)


@pytest.mark.slow
def test_a_text_does_not_depend_on_the_others(restorer, texts):
    disguised = [
        exact_form(KOREAN[i % len(KOREAN)](t, 0.6, i)) for i, t in enumerate(texts[1][:60])
    ]
    alone = [restorer.restore([t])[0] for t in disguised]
    assert restorer.restore(disguised) == alone
    assert restorer.restore([LONG, *disguised, "", LONG])[1:-2] == alone


@pytest.mark.slow
def test_a_long_text_is_read_in_pieces_as_if_it_were_one(restorer, monkeypatch):
    in_pieces = restorer.restore([LONG])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert restorer.restore([LONG * 8])[0][:1000] == in_pieces[0][:1000]
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 200_000, f"{grown} KB more for {len(LONG) * 8} characters"
    monkeypatch.setattr(module, "CHARACTERS", 2 * len(LONG))
    assert restorer.restore([LONG]) == in_pieces


@pytest.mark.slow
def test_changes_say_what_restore_does(restorer, texts):
    disguised = [
        exact_form(KOREAN[i % len(KOREAN)](t, 0.6, i)) for i, t in enumerate(texts[1][:40])
    ]
    changes = 0
    for text, restored in zip(disguised, restorer.restore(disguised)):
        parts = list(text)
        for change in reversed(restorer.tags(text)):
            assert change.confidence >= restorer.confidence
            assert text[change.start : change.start + len(change.was)] == change.was
            parts[change.start] = change.now + parts[change.start] * (not change.was)
            changes += 1
        assert "".join(parts).strip() == restored
    assert changes > 10


def test_too_little_to_learn_from_is_refused_with_a_remedy(texts):
    for few in (texts[0][:49], texts[0][:49] * 9, ["plain English"] * 99):
        with pytest.raises(ValueError, match="add comments"):
            Restorer.fit(few, rules=KOREAN, steps=2)
    with pytest.raises(ValueError, match="0 rules for Korean"):
        Restorer.fit(texts[0], rules=[RULES["leetspeak"]], steps=2)


@pytest.mark.parametrize("name", sorted(r.name for r in RULES.values() if r.lang != "en"))
def test_tags_lead_back_wherever_they_say_so(name: str, texts):
    unknown = 0
    for i, original in enumerate(texts[0][:80]):
        text = exact_form(RULES[name](original, 0.6, i))
        tags = tags_between(text, original)
        if (tags.actions == -1).any():
            unknown += 1
        else:  # no tag says what is missing at the end
            assert original.startswith(edited(text, tags))
    assert unknown < 40


@pytest.mark.slow
@pytest.mark.needs("data")
def test_an_unseen_family_of_real_comments_is_restored_in_part(data_dir):
    table = load_unlabelled("beep_unlabeled", load_settings(data_dir=str(data_dir)))
    comments = table.frame.text.tolist()
    unseen = [r for r in KOREAN if r.family == "respelling"]
    rules = [r for r in KOREAN if r not in unseen]
    restorer = Restorer.fit(comments[:4000], rules=rules, steps=60, seed=0, width=64)
    judgement = judged(restorer, [exact_form(t) for t in comments[-300:]], unseen)
    assert judgement.restored > 0.01 and judgement.damaged < 0.01, judgement

"""Certified recall: what it counts, who may claim it, and that attacks don't break it."""

import re

import numpy as np
import pytest

from content_arena.data.embedded_corpus import embedded_corpus
from content_arena.disguises.exact_forms import certified_rules, covers, exact_form
from content_arena.disguises.rules import RULES
from content_arena.reports.certified import (
    certified_counts,
    certified_sentence,
    certified_table,
    reads_exact,
)
from content_arena.testing.fakes import WordScorer


class Reader(WordScorer):
    "Flags two words in what it reads."

    def __init__(self, form):
        super().__init__(("바보", "idiot"))
        self.form = form

    def read(self, texts):
        return [self.form(t) for t in texts]

    def scores(self, texts):
        return super().scores(self.read(texts))


@pytest.fixture(scope="module")
def toxic():
    rows = embedded_corpus()
    texts = rows.text[(rows.label == 1) & rows.text.str.contains("바보|idiot")]
    return texts.sample(min(40, len(texts)), random_state=0).tolist()


def counted(model, texts):
    flagged = model.scores(texts) >= model.threshold
    return certified_counts(texts, [1] * len(texts), flagged, reads_exact(model, texts))


def test_no_attack_of_a_certified_rule_changes_a_certified_verdict(toxic):
    exact, raw = Reader(exact_form), Reader(str)
    certain = [t for t in toxic if all(covers(r, t) for r in certified_rules())]
    assert counted(exact, toxic)["certified"] == int(
        (exact.scores(certain) >= exact.threshold).sum()
    )
    lost = dict.fromkeys((exact, raw), 0)
    for name in certified_rules():
        for seed in range(3):
            variants = [RULES[name](t, 0.9, seed) for t in certain]
            for model in lost:
                before = model.scores(certain) >= model.threshold
                lost[model] += int((before & (model.scores(variants) < model.threshold)).sum())
    assert lost[exact] == 0 < lost[raw]


def test_who_reads_what_was_written_certifies_nothing(toxic):
    own = [t for t in toxic if exact_form(t) == t]  # by these alone nobody could tell
    assert own
    for model in (Reader(str), WordScorer(), Reader(lambda t: exact_form(t) + " ")):
        counts = counted(model, own)
        assert counts["certified"] == 0 and counts["flagged"] > 0
        said = certified_sentence(counts, "Version 7")
        assert "Certified recall: 0 %" in said and "reads what was written" in said


def test_the_sentence_says_what_was_counted(toxic):
    texts = [*toxic, "너는 참 나쁘다", "오늘 날씨 좋네"]
    labels = [*[1] * len(toxic), 1, 0]
    model = Reader(exact_form)
    counts = certified_counts(texts, labels, model.scores(texts) >= model.threshold, True)
    said = certified_sentence(counts, "Version 7")
    share, low, high, all_toxic, flagged, safe = (
        float(x.replace(",", ""))
        for x in re.search(
            r"recall: ([\d.]+) % \(([\d.]+) to ([\d.]+)\)\.\*\* Of ([\d,]+) toxic comments version 7 flags ([\d,]+) as"
            r" written; ([\d,]+) of them",
            said,
        ).groups()
    )
    assert (all_toxic, flagged, safe) == (len(toxic) + 1, counts["flagged"], counts["certified"])
    assert share == pytest.approx(100 * safe / all_toxic, abs=0.05) and low < share < high
    assert all(name in said for name in certified_rules())
    assert certified_table(counts)["rule"].tolist() == list(certified_rules())


def test_a_missed_or_a_clean_comment_is_never_certified():
    texts, flags = ["바보", "바보", "안녕"], np.array([False, True, True])
    counts = certified_counts(texts, [1, 0, 0], flags, True)
    assert (counts["toxic"], counts["flagged"], counts["certified"]) == (1, 0, 0)

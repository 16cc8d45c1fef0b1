"""The gate on a declared mix: robustness alone is enough for a promotion, and clean text may not pay for it."""

import io
import json
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from comparisons import ENGINES, ORIGINAL, SHOWN, TEST, TEXTS, Fake

from content_arena.core.statistics import metrics_of
from content_arena.data.embedded_corpus import embedded_corpus
from content_arena.disguises.families import split_families
from content_arena.disguises.mix import DeclaredMix, gate_mix, train_mixes, mixed_epochs
from content_arena.mlops import evaluator as ev
from content_arena.mlops.decisions import DecisionLog, decide_again, differences_found
from content_arena.mlops.evaluator import ChampionChallengerEvaluator

TOXIC_DISGUISED = [
    shown for shown, text, y in zip(SHOWN, TEXTS, TEST.label) if shown != text and y == 1
]


class OnMix(Fake):
    "Right on 88 % of the rows, but misses a share of the toxic comments that stand in disguise."

    def __init__(self, version: str, misses: float, loses: int = 0):
        super().__init__(version, 0.88)
        right = np.random.default_rng(7).permutation(1200)[144:]  # the same ones for both
        low, high = self.threshold - 0.1, self.threshold + 0.1
        answers = np.where(TEST.label == 1, low, high)
        answers[right] = np.where(TEST.label == 1, high, low)[right]
        clean = [i for i in right if not TEST.label[i] and SHOWN[i] != TEXTS[i]]
        self.answers = dict(zip(TEXTS, answers))
        missed = TOXIC_DISGUISED[: int(misses * len(TOXIC_DISGUISED))]
        self.shown = dict.fromkeys(missed, low)
        # what clean text pays: flagged without disguise, passed in disguise
        self.shown |= {SHOWN[i]: low for i in clean[:loses]}
        self.answers |= {TEXTS[i]: high for i in clean[:loses]}

    def scores(self, texts):
        return np.array([self.shown.get(t, self.answers[ORIGINAL.get(t, t)]) for t in texts])


def compared(registry, settings, challenger: OnMix, champion: OnMix | None = None):
    engines = {"champion": champion or OnMix("1", 0.5), "challenger": challenger}
    return ChampionChallengerEvaluator(registry, settings).compare(TEST, engines=engines)


def test_a_challenger_is_promoted_for_robustness_alone(registry, settings):
    made = compared(registry, settings, OnMix("2", 0.1))
    assert made["verdict"] == "promote", made["reasons"]
    clean = [made["mix"][role]["clean"] for role in ("champion", "challenger")]
    assert clean[0] == clean[1]  # equal in everything on clean text
    old, new = (made["mix"][role]["disguised"]["recall"] for role in ("champion", "challenger"))
    assert new - old > 0.2
    [check] = [c for c in made["checks"] if c["name"] == "clean"]
    assert check["result"] == "pass" and check["numbers"]["change"] == 0
    # without the mix nobody would have seen it
    blind = settings.model_copy(update={"gate_disguised_share": 0.0})
    same = compared(registry, blind, OnMix("2", 0.1))
    assert same["verdict"] == "reject" and same["improvement"]["f1"] == 0 and same["mix"] is None


def test_one_is_refused_because_clean_text_paid(registry, settings):
    made = compared(registry, settings, OnMix("2", 0.1, loses=120))
    assert made["improvement"]["f1"] > settings.min_f1_gain  # on the mix it is better
    assert made["verdict"] == "reject"
    [reason] = made["reasons"]
    assert reason.startswith("without disguise F1") and "beyond the tolerance of 0.0100" in reason
    # a tolerance that allows it promotes it
    lax = settings.model_copy(update={"clean_f1_tolerance": 0.2})
    assert compared(registry, lax, OnMix("2", 0.1, loses=120))["verdict"] == "promote"


def test_both_models_read_the_same_rows_and_the_hash_covers_the_recipe(registry, settings):
    read = {"1": [], "2": []}

    class Reading(OnMix):
        def scores(self, texts):
            read[self.version].append(list(texts))
            return super().scores(texts)

    made = compared(registry, settings, Reading("2", 0.1), Reading("1", 0.5))
    assert read["1"] == read["2"]
    rows, again = read["1"]
    assert rows == SHOWN
    assert again == [t for t, shown in zip(TEXTS, SHOWN) if t != shown]
    assert made["mix"]["recipe"]["id"] == gate_mix(settings).id
    assert made["mix"]["disguised"] == len(again)
    assert "of them in disguise" in made["evidence"]["offline"]["sentence"]
    hashes = {
        ev.as_test_set(TEST, mix).sha256
        for mix in (None, DeclaredMix(0.5), DeclaredMix(0.3), DeclaredMix(0.5, seed=1))
    }
    assert len(hashes) == 4 and made["test_set"]["sha256"] in hashes
    assert made["test_set"]["rows_sha256"] == ev.as_test_set(TEST).sha256


def test_a_new_recipe_makes_no_fresh_test_set(registry, settings):
    first = compared(registry, settings, OnMix("2", 0.1))
    assert first["test_set"]["budget"]["decision_number"] == 1
    other = settings.model_copy(update={"gate_disguised_share": 0.3})
    test = ev.as_test_set(TEST, gate_mix(other))
    versions = [SimpleNamespace(version=n) for n in "19"]
    assert ev.count_look(registry, test, *versions) == 2  # the second pair, whatever the recipe


def test_the_record_is_derived_again_and_an_older_one_still_reads(registry, settings):
    log = DecisionLog(registry)
    engines = {"champion": OnMix("1", 0.5), "challenger": OnMix("2", 0.1, loses=120)}
    made = log.decide(ChampionChallengerEvaluator(registry, settings), TEST, engines=engines)
    assert log.verify().decisions >= 1
    record, rows = made.to_dict(), made.rows
    assert differences_found(record, rows) == []
    sound = np.where(rows.label == 1, 0.9, 0.1).astype("float32")  # as if clean text had not paid
    swapped = rows.assign(challenger_undisguised=sound)
    assert any(
        text.startswith("clean is recorded as fail") for text in differences_found(record, swapped)
    )
    # of before there were mixes: no such columns, settings, checks
    old = ChampionChallengerEvaluator(
        registry, settings.model_copy(update={"gate_disguised_share": 0.0})
    ).compare(TEST, engines=ENGINES)
    before, bare = old.to_dict(), old.rows.drop(columns="disguised")
    before["settings"] = {
        k: v
        for k, v in before["settings"].items()
        if k not in ("gate_disguised_share", "clean_f1_tolerance")
    }
    before["checks"] = [c for c in before["checks"] if c["name"] != "clean"]
    del before["mix"], before["test_set"]["rows_sha256"]
    out = io.BytesIO()
    bare.to_parquet(out)
    again = pd.read_parquet(io.BytesIO(out.getvalue()))
    assert differences_found(json.loads(json.dumps(before)), again) == []
    assert decide_again(before, again).verdict == before["verdict"]


def test_a_first_model_is_recorded_with_both_figures(registry, settings):
    rows = ev.as_test_set(TEST, gate_mix(settings))
    challenger = OnMix("2", 0.1)
    scores = ev.score(challenger, rows)
    before = ev.score_undisguised(challenger, rows, scores)
    table = ev.score_rows(rows, None, scores, (None, before))
    record = ev.mix_record(table, (challenger.threshold,) * 2, {})
    assert record["champion"] is None
    assert record["challenger"]["disguised"]["recall"] < record["challenger"]["clean"]["recall"]
    counts = ev.clean_counts(table, (challenger.threshold,) * 2)
    assert metrics_of(counts)[1, 0] == pytest.approx(record["challenger"]["clean"]["f1"])


def test_held_out_families_are_in_no_row_that_anything_is_chosen_on(settings):
    frame = embedded_corpus().sample(400, random_state=5)[["text", "label"]]
    held_out = {r.name for r in split_families(0, settings.held_out_rules).rules(held_out=True)}
    rows, _ = mixed_epochs(frame, train_mixes(settings))
    for attacks in (rows.attack, gate_mix(settings).apply(frame).attack):
        used = {r for cell in attacks.dropna() for r in cell.split("+")}
        assert used and not used & held_out

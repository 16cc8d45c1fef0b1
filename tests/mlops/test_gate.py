"""Every check of the gate just beside its limits: its name, its answer, the figures in its record and in its sentence."""

import pytest

from content_arena.core.config import load_settings
from content_arena.mlops import gate
from content_arena.mlops.gate import Check, Decision, Evidence, GateError, Slice, decide
from content_arena.core.statistics import (
    decision_alpha,
    detectable_effect,
    metrics_of,
    paired_bootstrap,
)

COUNTS = (640, 22, 30, 12, 40, 65, 28, 163)  # the challenger is better
SIDES = {
    "champion": {
        "auc": 0.8,
        "auc_error": 0.01,
        "detection_rate": 0.7,
        "false_positive_rate": 0.3,
        "detection_at_cost": 0.6,
    },
    "challenger": {
        "auc": 0.82,
        "auc_error": 0.01,
        "detection_rate": 0.72,
        "false_positive_rate": 0.2,
        "detection_at_cost": 0.66,
    },
}


def settings(**values):
    return load_settings(env={}, **values)


def battle(change=0.02, error=0.005, **values) -> dict:
    return {
        "sha256": "ab",
        "toxic": 300,
        "clean": 200,
        "auc_change": change,
        "auc_change_error": error,
        "cost": 0.1,
        **SIDES,
        **values,
    }


def answer(check, e: Evidence, name: str, **values) -> Check:
    result = check(e, settings(**values))
    assert (result.name, result.condition) == (name, False)
    return result


def test_the_three_conditions_at_their_limits():
    old, new = metrics_of(COUNTS)
    gain, e = new[0] - old[0], Evidence(COUNTS)
    for needed, result in ((gain - 1e-9, "pass"), (gain, "fail"), (gain + 1e-9, "fail")):
        check = answer(gate.check_f1, e, "f1", min_f1_gain=needed)
        assert check.result == result
        assert check.numbers == {
            "champion": old[0],
            "challenger": new[0],
            "gain": gain,
            "needed": needed,
        }
        assert f"{new[0]:.4f} against {old[0]:.4f}: {gain:+.4f}" in check.sentence
        assert ("not more than" in check.sentence) == (result == "fail")
    check = answer(gate.check_precision, e, "precision")
    assert check.result == "pass" and check.numbers == {"champion": old[1], "challenger": new[1]}
    same, worse = (700, 0, 0, 50, 30, 20, 0, 200), (700, 9, 0, 50, 30, 20, 0, 200)
    assert (
        answer(gate.check_precision, Evidence((700, 0, 0, 50, 30, 0, 0, 200)), "precision").result
        == "pass"
    )
    assert answer(gate.check_precision, Evidence(worse), "precision").result == "fail"
    assert (
        "precision fell from" in answer(gate.check_precision, Evidence(worse), "precision").sentence
    )
    off = answer(gate.check_precision, Evidence(worse), "precision", require_precision=False)
    assert off.result == "off" and "require_precision" in off.sentence
    for needed, result, text in (
        (1000, "pass", "1000 rows evaluated, 1000 needed"),
        (1001, "undecided", "1000 of 1001 evaluated"),
    ):
        check = answer(gate.check_samples, Evidence(same), "samples", min_samples=needed)
        assert (check.result, check.sentence) == (result, text)
        assert check.numbers == {"evaluated": 1000, "needed": needed}


def test_luck_is_judged_at_the_confidence_that_the_budget_leaves():
    check = answer(
        gate.check_significance,
        Evidence(COUNTS, decision_number=2, seed=3),
        "significance",
        test_set_budget=4,
        confidence=0.9,
    )
    assert check.result == "pass" and "the gain is no luck" in check.sentence
    assert check.numbers["alpha"] == pytest.approx(decision_alpha(0.1, 2, 4))
    assert (check.numbers["decision_number"], check.numbers["budget"]) == (2, 4)
    assert check.sentence.endswith(" (decision 2 of 4 on this test set)")
    mirrored = tuple(COUNTS[i] for i in (0, 2, 1, 3, 4, 6, 5, 7))
    worse = answer(gate.check_significance, Evidence(mirrored), "significance", test_set_budget=0)
    assert worse.result == "fail" and "it is no gain" in worse.sentence
    assert worse.sentence.endswith(" is allowed")
    luck = answer(
        gate.check_significance, Evidence((640, 22, 30, 12, 40, 35, 33, 188)), "significance"
    )
    assert luck.result == "undecided" and "it may be luck" in luck.sentence
    spent = answer(
        gate.check_significance,
        Evidence(COUNTS, decision_number=5),
        "significance",
        test_set_budget=4,
    )
    assert spent.result == "undecided" and spent.numbers == {"decision_number": 5, "budget": 4}
    assert "decision 5 of 4; label a fresh one of at least 1000 rows" in spent.sentence
    assert (
        answer(gate.check_significance, Evidence(COUNTS), "significance", significance=False).result
        == "off"
    )


def mirrored(counts) -> tuple:
    return tuple(counts[i] for i in (0, 2, 1, 3, 4, 6, 5, 7))


def test_clean_text_may_not_pay_for_the_rest():
    old, new = metrics_of(COUNTS)[:, 0]
    paid = Evidence(COUNTS, clean=mirrored(COUNTS))  # on the mix as much won as is lost without
    for tolerance, result in ((new - old - 1e-9, "fail"), (new - old + 1e-9, "pass")):
        check = answer(gate.check_clean, paid, "clean", clean_f1_tolerance=tolerance)
        assert check.result == result
        assert check.numbers["champion"] == new and check.numbers["challenger"] == old
        assert check.numbers["change"] == pytest.approx(old - new)
        assert (check.numbers["upper"] is None) == (result == "pass")
        assert f"F1 {old:.4f} against {new:.4f}: {old - new:+.4f}, " in check.sentence
        assert ("beyond" in check.sentence) == (result == "fail")
    bound = paired_bootstrap(mirrored(COUNTS), settings().bootstrap_resamples, 0)
    check = answer(gate.check_clean, paid, "clean")
    assert check.numbers["upper"] == bound.interval("f1", 0.95)[1] < 0
    made = decide(paid, settings(guarded_slices=""))
    assert made.verdict == "reject" and made.reasons == (check.sentence,)
    chance = Evidence(COUNTS, clean=(60, 17, 13, 10, 6, 11, 15, 68))
    check = answer(gate.check_clean, chance, "clean")
    assert check.result == "undecided" and "beyond, but maybe by chance" in check.sentence
    better = answer(gate.check_clean, Evidence(COUNTS, clean=COUNTS), "clean", clean_f1_tolerance=0)
    assert better.result == "pass" and "within" in better.sentence
    off = answer(gate.check_clean, Evidence(COUNTS), "clean")
    assert off.result == "off" and "gate_disguised_share" in off.sentence


def test_restoring_may_change_few_verdicts_on_clean_text():
    flips = lambda n: dict(rows=1000, flips=n, clean=600, clean_flips=2)
    for n, limit, result in (
        (5, 0.005, "pass"),
        (6, 0.005, "fail"),
        (0, 0, "pass"),
        (1, 0, "fail"),
    ):
        asked = Evidence(COUNTS, restoring=flips(n))
        check = answer(gate.check_normaliser, asked, "normaliser", max_clean_flips=limit)
        assert check.result == result
        assert check.numbers == flips(n) | {"share": n / 1000, "limit": limit}
        assert f"changes {n} of 1,000 verdicts without disguise ({n / 1000:.2%})" in check.sentence
        assert f"{limit:.2%} are allowed" in check.sentence
        assert ("clean text pays" in check.sentence) == (result == "fail")
    for has_champion, verdict in ((True, "reject"), (False, "reject")):
        paid = Evidence(COUNTS, has_champion=has_champion, restoring=flips(6))
        made = decide(paid, settings(guarded_slices=""))
        assert (made.verdict, len(made.reasons)) == (verdict, 1) and "clean text" in made.reasons[0]
    off = answer(gate.check_normaliser, Evidence(COUNTS), "normaliser")
    assert off.result == "off" and "no comment is restored" in off.sentence


def test_slices_by_their_worst():
    good, bad = (80, 0, 20, 0, 0, 40, 0, 60), (80, 30, 0, 0, 0, 0, 40, 50)
    slices = (Slice("lang", "ko", good), Slice("lang", "en", bad), Slice("length", "short", bad))
    check = answer(
        gate.check_slices,
        Evidence(COUNTS, slices=slices),
        "slices",
        guarded_slices=("lang",),
        slice_min_samples=200,
    )
    assert check.result == "fail" and check.numbers["tolerance"] == settings().slice_tolerance
    ko, en = check.numbers["slices"]
    assert (ko["slice"], ko["rows"], ko["metric"], ko["result"], ko["upper"]) == (
        "lang=ko",
        200,
        "f1",
        "pass",
        None,
    )
    old, new = metrics_of(bad)[:, 0]
    assert en["change"] == pytest.approx(new - old) and en["result"] == "fail"
    assert (
        en["upper"]
        == paired_bootstrap(bad, settings().bootstrap_resamples, 0).interval("f1", 0.95)[1]
        < 0
    )
    assert (
        "worst of 2 guarded slices: lang=en, f1 -" in check.sentence
        and ", beyond the tol" in check.sentence
    )
    edge = answer(
        gate.check_slices,
        Evidence(COUNTS, slices=slices),
        "slices",
        guarded_slices=("lang",),
        slice_min_samples=201,
    )
    assert edge.result == "not_evaluated" and "201 rows" in edge.sentence
    chance = Evidence(COUNTS, slices=(Slice("lang", "ko", (60, 17, 13, 10, 6, 11, 15, 68)),))
    check = answer(
        gate.check_slices, chance, "slices", guarded_slices=("lang",), slice_min_samples=100
    )
    assert (
        check.result == "undecided"
        and "beyond, but maybe by chance, the tolerance" in check.sentence
    )
    one_class = Evidence(COUNTS, slices=(Slice("lang", "ko", (90, 10, 100, 0, 0, 0, 0, 0)),))
    check = answer(
        gate.check_slices, one_class, "slices", guarded_slices=("lang",), slice_min_samples=100
    )
    assert check.numbers["slices"][0]["metric"] == "accuracy"
    assert (
        check.numbers["slices"][0]["change"] == pytest.approx(90 / 200)
        and "within the tol" in check.sentence
    )
    with pytest.raises(GateError, match="no slices by topic; known: lang, length"):
        gate.check_slices(Evidence(COUNTS, slices=slices), settings(guarded_slices=("topic",)))
    with pytest.raises(GateError, match="known: none"):
        gate.check_slices(Evidence(COUNTS), settings(guarded_slices=("topic",)))
    assert answer(gate.check_slices, Evidence(COUNTS), "slices", guarded_slices="").result == "off"


@pytest.mark.parametrize(
    "change, error, result, text",
    [
        (0.02, 0.005, "pass", "no loss under attack beyond"),
        (-0.2, 0.005, "fail", "worse under attack by more than"),
        (-0.02, 0.2, "undecided", "maybe loss under attack beyond"),
        (-0.2, 0.2, "undecided", "maybe loss"),
    ],
)
def test_battles_by_their_interval(change: float, error: float, result: str, text: str):
    check = answer(gate.check_battle, Evidence(COUNTS, battle=battle(change, error)), "battle")
    assert check.result == result and check.sentence.startswith(text)
    assert (
        check.numbers["auc_change"] == change
        and check.numbers["tolerance"] == settings().battle_tolerance
    )
    assert check.numbers["lower"] < change < check.numbers["upper"]
    assert {k: check.numbers[k] for k in SIDES} == SIDES
    assert check.numbers["sha256"] == "ab" and (check.numbers["toxic"], check.numbers["clean"]) == (
        300,
        200,
    )


def test_battles_that_prove_nothing():
    assert answer(gate.check_battle, Evidence(COUNTS), "battle").result == "not_evaluated"
    for size, result in (
        ({"clean": 19}, "undecided"),
        ({"toxic": 19}, "undecided"),
        ({"clean": 20, "toxic": 20}, "pass"),
    ):
        assert (
            answer(gate.check_battle, Evidence(COUNTS, battle=battle(**size)), "battle").result
            == result
        )
    for auc, error, result in ((0.5, 0.01, "undecided"), (0.4, 0.01, "fail"), (0.6, 0.01, "pass")):
        coin = battle(challenger={**SIDES["challenger"], "auc": auc, "auc_error": error})
        check = answer(gate.check_battle, Evidence(COUNTS, battle=coin), "battle")
        assert check.result == result, auc
        assert ("coin" in check.sentence) == (result != "pass")


@pytest.mark.parametrize(
    "name, check, measured, budget, unit",
    [
        ("latency", gate.check_latency, "latency_ms", "latency_budget_ms", "ms"),
        ("size", gate.check_size, "size_mb", "size_budget_mb", "MB"),
    ],
)
def test_budgets_at_their_limits(name: str, check, measured: str, budget: str, unit: str):
    for value, result in ((80.0, "pass"), (80.1, "fail"), (None, "undecided")):
        answered = answer(check, Evidence(COUNTS, **{measured: value}), name, **{budget: 80})
        assert (
            answered.result == result
            and f"80 {unit}" in answered.sentence
            and name in answered.sentence
        )
        assert answered.numbers == ({} if value is None else {"value": value, "budget": 80})
        assert answered.sentence.startswith("over budget: ") == (result == "fail")
    off = answer(check, Evidence(COUNTS, **{measured: 999.0}), name, **{budget: 0})
    assert off.result == "off" and f"no {name} budget ([gate] {budget})" == off.sentence


def test_traffic_rejects_only_what_is_shown_to_be_worse():
    shadow = {"rows": 900, "labelled": 50, "won": 3, "lost": 20, "better": "champion", "other": 1}
    for better, result in (("champion", "fail"), ("challenger", "pass"), ("undecided", "pass")):
        check = answer(
            gate.check_shadow, Evidence(COUNTS, shadow=shadow | {"better": better}), "shadow"
        )
        assert check.result == result and "of 50 labelled" in check.sentence
        assert check.numbers == {
            "rows": 900,
            "labelled": 50,
            "won": 3,
            "lost": 20,
            "better": better,
        }
        assert check.sentence.startswith("worse in traffic: ") == (result == "fail")
        assert "challenger alone is right on 3, the champion alone on 20" in check.sentence
    for none in ({"labelled": 0}, {"better": None}):
        check = answer(gate.check_shadow, Evidence(COUNTS, shadow=shadow | none), "shadow")
        assert check.result == "not_evaluated" and "900 comments in the shadow" in check.sentence
        assert check.numbers["rows"] == 900
    assert answer(gate.check_shadow, Evidence(COUNTS), "shadow").result == "not_evaluated"
    assert (
        answer(
            gate.check_shadow, Evidence(COUNTS, shadow=shadow), "shadow", shadow_guard=False
        ).result
        == "off"
    )


def test_the_floor_of_a_first_model():
    f1 = float(metrics_of(COUNTS)[1, 0])
    for floor, result in ((f1 - 1e-9, "pass"), (f1, "fail")):
        check = answer(
            gate.check_floor, Evidence(COUNTS, has_champion=False), "floor", floor_f1=floor
        )
        assert check.result == result and check.numbers == {"challenger": f1, "needed": floor}
        assert f"F1 {f1:.4f}" in check.sentence and ("does not beat" in check.sentence) == (
            result == "fail"
        )


def test_which_checks_are_asked_and_in_what_order():
    calm = dict(guarded_slices="", latency_budget_ms=0, size_budget_mb=0)
    both = decide(Evidence(COUNTS), settings(**calm))
    assert [(c.name, c.condition) for c in both.checks] == [
        *((n, True) for n in ("f1", "precision", "samples")),
        *((n, False) for n in ("significance", "clean", "normaliser", "slices")),
        *((n, False) for n in ("battle", "shadow", "latency", "size")),
    ]
    assert both.verdict == "promote" and both.should_promote
    assert (
        both.reasons == tuple(c.sentence for c in both.checks if c.result == "pass")
        and len(both.reasons) == 4
    )
    assert both.headline == f"promote: {'; '.join(both.reasons)}"
    assert both.table().check.tolist() == [
        "f1 *",
        "precision *",
        "samples *",
        "significance",
        "clean",
        "normaliser",
        "slices",
        "battle",
        "shadow",
        "latency",
        "size",
    ]
    assert both.table().result.tolist()[-5:] == [
        "off",
        "not evaluated",
        "not evaluated",
        "off",
        "off",
    ]
    first = decide(Evidence(COUNTS, has_champion=False), settings(**calm))
    assert (first.verdict, first.should_promote) == ("bootstrap", True)
    assert [(c.name, c.condition) for c in first.checks] == [
        ("floor", True),
        ("samples", True),
        ("normaliser", False),
        ("latency", False),
        ("size", False),
    ]


@pytest.mark.parametrize(
    "evidence, values, verdict, reason",
    [
        (
            Evidence(COUNTS),
            {"min_samples": 1001, "min_f1_gain": 0.5},
            "inconclusive",
            "1000 of 1001",
        ),
        (
            Evidence(COUNTS, size_mb=2.0),
            {"min_f1_gain": 0.5, "size_budget_mb": 1},
            "reject",
            "not more than",
        ),
        (
            Evidence(COUNTS, size_mb=2.0),
            {"size_budget_mb": 1, "latency_budget_ms": 9},
            "reject",
            "over budget",
        ),
        (
            Evidence(COUNTS),
            {"latency_budget_ms": 9, "size_budget_mb": 0},
            "inconclusive",
            "latency was not measured",
        ),
    ],
)
def test_the_first_thing_that_stands_against_it_is_the_reason(evidence, values, verdict, reason):
    made = decide(evidence, settings(guarded_slices="", **{"latency_budget_ms": 0, **values}))
    assert made.verdict == verdict and not made.should_promote
    [only] = made.reasons
    assert reason in only


def test_a_verdict_promotes_or_not():
    assert [
        Decision(v, (), ()).should_promote
        for v in ("promote", "bootstrap", "reject", "inconclusive")
    ] == [True, True, False, False]


def test_what_a_test_set_can_still_show():
    statement = gate.budget_statement(
        Evidence(COUNTS, decision_number=2), settings(test_set_budget=4, min_f1_gain=0.01)
    )
    alpha = decision_alpha(1 - settings().confidence, 2, 4)
    effect = detectable_effect(COUNTS, 1000, alpha, 0.8, 0.01)
    sentence = statement.pop("sentence")
    assert statement == {
        "decision_number": 2,
        "budget": 4,
        "alpha": alpha,
        "confidence": 1 - alpha,
        "power": 0.8,
        "method": "Bonferroni with weights 1/k",
        "detectable_effect": effect,
    }
    assert f"(1000 rows) can see a difference of {effect:.3f} with 80% power" in sentence
    assert sentence.endswith(
        f"decision 2 of 4 on this test set, at {1 - alpha:.2%} confidence. It is good for 2 more."
    )
    free = gate.budget_statement(Evidence(COUNTS), settings(test_set_budget=0))
    assert free["method"] == "none" and free["sentence"].endswith(
        f"at {free['confidence']:.2%} confidence."
    )
    assert "decision 1 of any number" in free["sentence"]
    spent = gate.budget_statement(Evidence(COUNTS, decision_number=5), settings(test_set_budget=4))
    assert (
        spent["detectable_effect"] is None
        and "decision 5 of 4" in spent["sentence"]
        and "spent" in spent["sentence"]
    )
    same = gate.budget_statement(
        Evidence((640, 0, 0, 12, 40, 0, 0, 308)), settings(test_set_budget=4)
    )
    assert same["detectable_effect"] is None and "never differ" in same["sentence"]
    for i in (1, 2, 5, 6):
        one = [640, 0, 0, 12, 40, 0, 0, 307]
        one[i] = 1
        assert gate.budget_statement(Evidence(tuple(one)), settings())["detectable_effect"] > 0

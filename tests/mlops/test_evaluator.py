"""The decision: statistics against brute force, promise under simulation, a real registry."""

import tracemalloc
from collections import Counter
from dataclasses import replace
from datetime import timedelta
from functools import partial
from itertools import product
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from scipy.stats import norm
from comparisons import ENGINES, TEST, TEXTS, Fake, learn
from hypothesis import given, settings as hypothesis_settings, strategies as st
from scipy.special import expit
from scipy.stats import binom, rankdata
from sklearn.metrics import accuracy_score, f1_score, precision_score, recall_score, roc_auc_score

from content_arena.arena.battles.corpus import Corpus
from content_arena.arena.coevolution.defence import fit_baseline
from content_arena.arena.battles.fixed import FixedBattle
from content_arena.core.config import load_settings
from content_arena.mlops import evaluator as ev
from content_arena.mlops import gate
from content_arena.core import statistics
from content_arena.mlops.decisions import decide_again, differences_found
from content_arena.mlops.evaluator import ChampionChallengerEvaluator, EvaluationError
from content_arena.mlops.gate import Evidence, Slice, decide
from content_arena.mlops.lineage import LineageError
from content_arena.monitoring.shadow_statistics import shadow_evidence
from content_arena.store.events import EventStore, text_sha256
from content_arena.data.grouping import fingerprints
from content_arena.data.readers import load_source

pytestmark = pytest.mark.long(80)

hypothesis_settings.register_profile("evaluator", deadline=None, derandomize=True)
hypothesis_settings.load_profile("evaluator")

some_counts = st.lists(st.integers(0, 9), min_size=8, max_size=8).map(np.array)


# --- statistics ----------------------------------------------------------------------------------


def brute_force_swaps(counts) -> list[tuple[float, float]]:
    "(gain, probability) of every way to give the disputed rows to one model or the other."
    m1, m0 = counts[5] + counts[6], counts[1] + counts[2]
    out = []
    for a, b in product(range(m1 + 1), range(m0 + 1)):
        c = counts.copy()
        c[5], c[6], c[2], c[1] = a, m1 - a, b, m0 - b
        p = binom.pmf(a, m1, 0.5) * binom.pmf(b, m0, 0.5)
        out.append((statistics.differences(c)[0], p, tuple(c)))
    return out


@pytest.mark.slow
@given(some_counts)
def test_swap_test_is_the_sum_over_all_swaps(counts):
    gain = statistics.differences(counts)[0]
    expected = sum(p for g, p, _ in brute_force_swaps(counts) if g >= gain - 1e-12)
    assert statistics.swap_test(counts) == pytest.approx(expected)


@given(some_counts.map(lambda c: c // 2), st.sampled_from([0.01, 0.05, 0.2]))
def test_swap_test_keeps_its_level_exactly(counts, alpha):
    "If exchanging the models changes nothing, p <= alpha happens with probability at most alpha."
    rejected = sum(p for _, p, c in brute_force_swaps(counts) if statistics.swap_test(c) <= alpha)
    assert rejected <= alpha + 1e-12


@pytest.mark.slow
@given(st.lists(st.tuples(*[st.integers(0, 1)] * 3), min_size=1, max_size=60))
def test_metrics_are_those_of_scikit_learn(rows):
    y, old, new = np.array(rows).T
    got = statistics.metrics_of(statistics.count_patterns(y, old, new))
    for answers, (f1, precision, recall, accuracy) in zip((old, new), got):
        assert accuracy == pytest.approx(accuracy_score(y, answers))
        assert precision == pytest.approx(precision_score(y, answers, zero_division=0))
        if y.any():
            assert f1 == pytest.approx(f1_score(y, answers))
            assert recall == pytest.approx(recall_score(y, answers))
        else:
            assert np.isnan(recall)


def test_bootstrap_memory_does_not_grow_with_the_rows():
    counts = np.array([48_000, 1_000, 1_000, 500, 500, 1_000, 1_000, 47_000])
    peaks = []
    for c in (counts // 100, counts):
        tracemalloc.start()
        assert statistics.paired_bootstrap(c, 2000).draws.shape == (2000, 4)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.1 * peaks[0] < 20e6


def test_stratified_draws_keep_the_number_of_toxic_rows():
    counts = np.array([50, 5, 8, 2, 3, 6, 4, 22])
    rng_free = statistics.paired_bootstrap(counts, 500, stratified=True)
    # with the class sizes fixed, recall moves in steps of 1/35 and nothing else
    steps = rng_free.draws[:, 2] * counts[4:].sum()
    assert np.allclose(steps, steps.round())


def test_swap_test_of_many_disputed_rows():
    counts = np.array([300_000, 20_000, 20_300, 5_000, 5_000, 20_000, 20_500, 300_000])
    p = statistics.swap_test(counts)
    z = statistics.differences(counts)[0] / statistics.standard_error(counts)
    assert p == pytest.approx(norm.sf(z), abs=0.01)


# --- the promise ---------------------------------------------------------------------------------


def promoted(share: float, n: int, gain: float, s, trials: int, f1: float = 0.85) -> float:
    p = statistics.model_pair(share, f1, gain)
    draws = np.random.default_rng(7).multinomial(n, p, trials)
    evidence = (Evidence(tuple(c), seed=i) for i, c in enumerate(draws))
    return np.mean([decide(e, s).should_promote for e in evidence])


BARE = dict(significance=False, guarded_slices="")
ONCE = dict(test_set_budget=0, guarded_slices="", bootstrap_resamples=500)  # uncorrected


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.1, 0.5])
def test_equally_good_challengers_pass_rarely(share):
    trials = 2000
    bare = promoted(share, 1000, 0.0, load_settings(env={}, **BARE), trials)
    ours = promoted(share, 1000, 0.0, load_settings(env={}, **ONCE), trials)
    assert bare > 0.1
    assert ours <= 0.05


def test_better_challengers_pass_mostly():
    assert promoted(0.5, 2000, 0.025, load_settings(env={}, **ONCE), 300) >= 0.8


@hypothesis_settings(max_examples=40)
@given(st.lists(st.integers(0, 300), min_size=8, max_size=8), st.integers(1, 40))
def test_further_checks_only_ever_hold_back(counts, k):
    s = load_settings(env={}, bootstrap_resamples=100, min_samples=500)
    half = tuple(c // 2 for c in counts)
    slices = (Slice("lang", "ko", half), Slice("lang", "en", half))
    e = Evidence(tuple(counts), slices=slices, decision_number=k)
    if not sum(counts[4:]):
        return
    bare, full = decide(e, load_settings(env={}, min_samples=500, **BARE)), decide(e, s)
    if full.verdict == "promote":
        assert bare.verdict == "promote"
    if bare.verdict in ("reject", "inconclusive"):
        assert full.verdict == bare.verdict


# --- battles at equal cost ------------------------------------------------------------------------


def two_models(
    area: float,
    change: float = 0.0,
    rows: tuple[int, int] = (500, 500),
    correlation: float = 0.8,
    seed: int = 0,
) -> tuple[np.ndarray, ...]:
    "Labels, and scores in [0, 1] of a champion of this AUC and of a challenger of `area + change`."
    rng = np.random.default_rng(seed)
    y = np.repeat([1, 0], rows)
    shared = correlation**0.5 * rng.normal(size=len(y))
    own = (1 - correlation) ** 0.5
    return y, *(
        expit(y * 2**0.5 * norm.ppf(a) + shared + own * rng.normal(size=len(y)) - 0.7)
        for a in (area, area + change)
    )


def battle_of(y, champion, challenger, thresholds=(0.35, 0.6)) -> dict:
    "What a fixed battle on these labels hands to the gate."
    results = []
    for scores, threshold in zip((champion, challenger), thresholds):
        area = statistics.auc(y, scores)
        results.append(
            {
                "scores": list(scores),
                "auc": area.value,
                "auc_error": area.error,
                "detection_rate": float((scores[y == 1] >= threshold).mean()),
                "false_positive_rate": float((scores[y == 0] >= threshold).mean()),
            }
        )
    return FixedBattle.evidence(SimpleNamespace(labels=y, sha256="f" * 64), *results)


DEFAULTS = load_settings(env={})
ASK = Evidence((500, 0, 0, 0, 0, 0, 0, 500))


def by_auc(battle) -> str:
    return gate.check_battle(replace(ASK, battle=battle), DEFAULTS).result


def by_evasion(battle) -> str:
    "The rule as it was: evasion rates, each at its model's own threshold."
    old, new = (1 - battle[role]["detection_rate"] for role in ("champion", "challenger"))
    return "pass" if new - old <= 0.02 else "fail"


def without_bounds(battle) -> str:
    "Intervals that hold everything."
    endless = {role: battle[role] | {"auc_error": np.inf} for role in ("champion", "challenger")}
    return by_auc(battle | endless | {"auc_change_error": np.inf})


GRID = [(area, correlation) for area in (0.75, 0.85, 0.93) for correlation in (0.85, 0.95)]


def promises_broken(rule, trials: int = 30) -> set[str]:
    """Of what a battle check must hold, over `GRID` on 500 disguised comments of each class, what
    `rule` does not: {name}."""
    broken = set()

    def promise(name: str, kept: bool) -> None:
        if not kept:
            broken.add(name)

    for area, correlation in GRID:

        def answers(change: float, rows=(500, 500)) -> Counter:
            return Counter(
                rule(battle_of(*two_models(area, change, rows, correlation, seed)))
                for seed in range(trials)
            )

        equal, better = answers(0.0), answers(0.03)
        promise("equals pass", equal["pass"] >= 0.9 * trials)
        promise("equals are not failed", equal["fail"] <= 0.02 * trials)
        promise("better ones pass", better["pass"] >= 0.95 * trials)
        promise("weaker ones fail", answers(-0.06)["fail"] >= 0.9 * trials)
        promise("at the tolerance few pass", answers(-0.03)["pass"] <= 0.1 * trials)
        promise("small battles fail no equals", answers(0, (100, 100))["fail"] <= 0.05 * trials)
        y, old, new = two_models(area, 0.0, correlation=correlation)
        for limit in (0.0, 0.01, 0.99, 1.1):
            promise(
                "thresholds have no say",
                rule(battle_of(y, old, new, (0.35, limit))) == rule(battle_of(y, old, new)),
            )
        for flat in (0.0, 0.5, 1.0):
            promise(
                "a constant never passes",
                rule(battle_of(y, old, np.full(len(y), flat), (0.35, 0.0))) != "pass",
            )
    return broken


@pytest.mark.slow
def test_the_battle_check_keeps_its_promises():
    assert promises_broken(by_auc) == set()


@pytest.mark.slow
@pytest.mark.parametrize(
    "cheat, caught_by",
    [
        (by_evasion, {"thresholds have no say", "a constant never passes"}),
        (without_bounds, {"equals pass", "weaker ones fail"}),
        (lambda battle: "pass", {"weaker ones fail", "a constant never passes"}),
        (lambda battle: "fail", {"equals pass", "better ones pass"}),
        (lambda battle: "undecided", {"equals pass", "weaker ones fail"}),
    ],
)
def test_a_battle_check_that_cheats_is_caught(cheat, caught_by):
    assert promises_broken(cheat, trials=6) >= caught_by


@given(
    st.floats(0, 1), st.floats(0, 1), st.integers(0, 50), st.sampled_from([-0.06, -0.03, 0.0, 0.02])
)
@hypothesis_settings(max_examples=30)
def test_no_threshold_and_no_rising_transform_changes_the_answer(one, two, seed, change):
    y, old, new = two_models(0.85, change, (120, 150), seed=seed)
    expected = by_auc(battle_of(y, old, new))
    assert by_auc(battle_of(y, old, new, (one, two))) == expected
    ranks = rankdata(new) / len(new)  # the same order, other numbers
    assert by_auc(battle_of(y, old, ranks, (one, two))) == expected
    assert by_auc(battle_of(y, rankdata(old), new, (one, two))) == expected


def test_ties_count_half_and_coarse_scores_are_still_compared():
    y, old, new = two_models(0.85)
    for scores in (new.round(1), new.round(0), np.zeros(len(y))):
        assert statistics.auc(y, scores).value == pytest.approx(roc_auc_score(y, scores))
    assert by_auc(battle_of(y, old.round(1), old)) == "pass"
    assert by_auc(battle_of(y, old, old)) == "pass"  # the same scores: no error at all
    assert by_auc(battle_of(y, old, old.round(0))) == "fail"  # says yes or no, and loses by it


def test_neither_a_champion_nor_a_challenger_that_sees_nothing_helps():
    y, old, _ = two_models(0.85)
    coins = np.random.default_rng(1).random(len(y))
    assert by_auc(battle_of(y, coins, np.full(len(y), 0.9))) == "fail"
    assert by_auc(battle_of(y, coins, coins)) != "pass"
    assert by_auc(battle_of(y, old, 1 - old)) == "fail"


@pytest.mark.parametrize("rows", [(19, 500), (500, 19), (1, 1)])
def test_a_battle_of_few_comments_is_undecided_whatever_they_say(rows):
    y = np.repeat([1, 0], rows)
    assert by_auc(battle_of(y, y * 0.9, y * 0.9)) == "undecided"


def test_the_figures_of_both_sides_stand_in_the_sentence():
    battle = battle_of(*two_models(0.85, 0.02))
    check = gate.check_battle(replace(ASK, battle=battle), DEFAULTS)
    old, new = battle["champion"], battle["challenger"]
    assert f"AUC {new['auc']:.3f} against the champion's {old['auc']:.3f}" in check.sentence
    for key in ("detection_at_cost", "detection_rate", "false_positive_rate"):
        assert f"{new[key]:.1%} against {old[key]:.1%}" in check.sentence
    for number in (battle["auc_change"], check.numbers["lower"], check.numbers["upper"]):
        assert f"{number:+.3f}" in check.sentence
    assert "500 disguised toxic and 500 disguised clean" in check.sentence
    assert check.numbers["champion"] == {k: old[k] for k in gate.SIDE}


@pytest.mark.slow
def test_more_data_is_not_rejected_for_sparing_clean_comments(data_dir):
    """Champion: BEEP! and Curse; challenger: KODOLI too. Each with its own threshold, on disguised
    comments of other authors: the rule that compared evasion rates rejects the better one."""
    s = load_settings(env={}, data_dir=str(data_dir))
    rows = pd.concat([load_source(name, s).frame[["text", "label"]] for name in ("beep", "curse")])
    kodoli = pd.read_csv(data_dir / "kodoli.csv").dropna(subset="sentences")
    kodoli = pd.DataFrame(
        {
            "text": kodoli.sentences,
            "label": kodoli.offensiveness.isin(["LIKELY", "OFFEN"]).astype(int),
        }
    )
    kodoli = kodoli.sample(20_000, random_state=0)
    test = load_source("apeach", s).frame.drop_duplicates("text")
    fixed, results, clean = FixedBattle(Corpus.of_frame(test, "apeach")), [], []
    for frame in (rows, pd.concat([rows, kodoli])):
        frame = frame.drop_duplicates("text").sample(frac=1, random_state=0)
        model = fit_baseline(frame[len(frame) // 10 :], frame[: len(frame) // 10])
        results.append(fixed.fight(model))
        clean.append(precision_score(test.label, model.scores(test.text) >= model.threshold))
    battle = fixed.evidence(*results)
    old, new = battle["champion"], battle["challenger"]
    assert clean[1] > clean[0] + 0.03  # more precise on what is undisguised
    assert new["false_positive_rate"] < old["false_positive_rate"] - 0.05
    assert new["detection_rate"] < old["detection_rate"] - 0.02
    assert (by_evasion(battle), by_auc(battle)) == ("fail", "pass")
    assert battle["auc_change"] > 0.01


# --- the comparison, on a real registry ----------------------------------------------------------


def test_a_comparison_finds_the_ancestors_data_in_other_runs(registry, settings):
    given = {
        "champion": Fake("1", 0.80),
        "challenger": Fake("2", 0.88),
    }  # others close those they share
    result = ChampionChallengerEvaluator(registry, settings).compare(TEST, engines=given)
    assert result["verdict"] == "promote" and result["champion"]["version"] == "1"
    assert result["certificate"]["datasets"] == {"b": 3, "c": 2}
    assert result["certificate"]["lineages"] == {"1": ["b"], "2": ["b", "c"]}
    assert not any(e.closed for e in given.values())


def test_looks_are_counted_in_the_registry_once_per_pair(registry, settings):
    compare = ChampionChallengerEvaluator(registry, settings).compare
    first = compare(TEST, engines=ENGINES)
    again = compare(TEST.sample(frac=1, random_state=0), engines=ENGINES)
    assert again["checks"] == first["checks"]
    learn(settings, "3", ["b", "c"], ["a fourth"])
    third = compare(TEST, engines=ENGINES | {"challenger": Fake("3", 0.88)})
    assert [c["test_set"]["budget"]["decision_number"] for c in (first, third)] == [1, 2]
    other = compare(TEST.head(1100), engines=ENGINES | {"challenger": Fake("3", 0.88)})
    assert other["test_set"]["budget"]["decision_number"] == 1


def test_three_planted_near_duplicates_refuse_the_comparison(registry, settings):
    planted = [TEXTS[3].upper(), TEXTS[40] + "!", TEXTS[500][:20] + "\u200b" + TEXTS[500][20:]]
    learn(settings, "3", ["b", "d"], ["innocent row", *planted])
    compare = ChampionChallengerEvaluator(registry, settings).compare
    with pytest.raises(LineageError, match="3 of 1200 test rows .* training data d") as error:
        compare(TEST, engines=ENGINES | {"challenger": Fake("3", 0.99)})
    assert all(sha in str(error.value) for sha in fingerprints([TEXTS[3], TEXTS[40]]).canonical_sha)
    assert registry.notes("testset.") == {}  # a refusal is no look
    lenient = settings.model_copy(update={"max_test_overlap": 3})
    allowed = ChampionChallengerEvaluator(registry, lenient).compare(
        TEST, engines=ENGINES | {"challenger": Fake("3", 0.99)}
    )
    assert len(allowed["certificate"]["rows_hit"]) == 3


def test_a_dataset_without_fingerprints_refuses_the_comparison(registry, settings):
    learn(settings, "3", ["b", "lost"], None)
    with pytest.raises(LineageError, match=r"dataset lost \(lineage of v3\) left no fingerprints"):
        ChampionChallengerEvaluator(registry, settings).compare(TEST, engines=ENGINES)


def test_a_damaged_fingerprint_file_is_named(registry, settings):
    (stored,) = settings.path("artifact_dir").rglob("c.parquet")
    stored.write_bytes(b"PAR1 but not really")
    with pytest.raises(LineageError, match="c.parquet of run .* can't be read"):
        ChampionChallengerEvaluator(registry, settings).compare(TEST, engines=ENGINES)


def test_engines_are_loaded_once_and_closed_unless_they_were_given(registry, settings, monkeypatch):
    loaded = []

    def load(registry, version, alias, settings):
        loaded.append(Fake(version.version, 0.85))
        return loaded[-1]

    monkeypatch.setattr(ev, "load_engine", load)
    given = Fake("1", 0.80)
    ChampionChallengerEvaluator(registry, settings).compare(TEST, engines={"champion": given})
    assert [e.version for e in loaded] == ["2"]
    assert loaded[0].closed and not given.closed


def test_budgets_are_measured_on_the_challenger(registry, settings):
    budgets = settings.model_copy(update={"latency_budget_ms": 5, "size_budget_mb": 10})
    result = ChampionChallengerEvaluator(registry, budgets).compare(TEST, engines=ENGINES)
    assert {c["name"]: c["result"] for c in result["checks"]}["size"] == "pass"
    assert result["verdict"] == "reject"
    assert result["reasons"] == ["over budget: latency 7.5 ms, budget 5 ms"]


def test_shadow_and_battle_evidence_enter_the_record(registry, settings):
    shadow = dict(
        rows=500, agreement=0.97, labelled=40, champion_accuracy=0.8, challenger_accuracy=0.9
    )
    y, old, new = two_models(0.9, change=-0.1)
    battle = battle_of(y, old, new, (0.4, 0.2))
    compare = ChampionChallengerEvaluator(registry, settings).compare
    result = compare(TEST, engines=ENGINES, shadow=shadow, battle=battle)
    stored = result["evidence"]["shadow"]
    assert {k: stored[k] for k in shadow} == shadow and "500 comments" in stored["sentence"]
    assert {k: result["evidence"]["battle"][k] for k in battle} == battle
    assert result["verdict"] == "reject" and "worse under attack" in result["headline"]
    again = decide_again(result.to_dict(), result.rows)
    assert (again.verdict, list(again.reasons)) == ("reject", result["reasons"])
    tampered = result.to_dict()
    tampered["evidence"]["battle"]["auc_change"] = 0.0
    assert any("battle is recorded as fail" in x for x in differences_found(tampered, result.rows))
    assert differences_found(result.to_dict(), result.rows) == []


def test_a_record_of_the_gone_battle_rule_is_still_read(registry, settings):
    "Its other checks are derived again; what rested on evasion rates is not."
    result = ChampionChallengerEvaluator(registry, settings).compare(TEST, engines=ENGINES)
    old = result.to_dict()
    old["evidence"]["battle"] = {
        "present": True,
        "rounds": 500,
        "champion_evasion": 0.104,
        "challenger_evasion": 0.126,
    }
    old["verdict"] = "reject"
    old["checks"] = [c | {"result": "fail"} if c["name"] == "battle" else c for c in old["checks"]]
    assert differences_found(old, result.rows) == []
    old["checks"] = [c | {"result": "fail"} if c["name"] == "f1" else c for c in old["checks"]]
    assert any("f1 is recorded" in x for x in differences_found(old, result.rows))


def test_traffic_that_shows_the_challenger_to_be_worse_rejects_it(registry, settings, tmp_path):
    "Rows of this pair, since the challenger was registered, in the store of the settings."
    settings = settings.model_copy(update={"store_url": f"sqlite:///{tmp_path}/events.db"})
    compare = lambda: ChampionChallengerEvaluator(registry, settings).compare(
        TEST, engines=ENGINES, shadow=partial(shadow_evidence, settings)
    )
    shadow_result = lambda c: {x["name"]: x["result"] for x in c["checks"]}["shadow"]
    nothing = compare()
    assert nothing["verdict"] == "promote" and shadow_result(nothing) == "not_evaluated"
    assert not nothing["evidence"]["shadow"]["present"]
    assert not (tmp_path / "events.db").exists()  # a comparison makes no store

    since = registry.get_challenger().created

    def seen(n: int, challenger: str = "2", when=since, prefix: str = "") -> None:
        "`n` labelled comments on which the champion is right and the `challenger` is not."
        names = [text_sha256(f"{prefix}{i}") for i in range(n)]
        store.add(
            "shadow",
            [
                dict(
                    time=when,
                    text_sha256=t,
                    lang="ko",
                    length=9,
                    champion_version="1",
                    champion_score=0.9,
                    champion_toxic=True,
                    challenger_version=challenger,
                    challenger_score=0.1,
                    challenger_toxic=False,
                )
                for t in names
            ],
        )
        store.add(
            "feedback",
            [dict(text_sha256=t, label=1, source="moderator", reviewer="mo") for t in names],
        )

    with EventStore(settings) as store:
        seen(50, challenger="7")  # another version, and an earlier one
        seen(50, when=since - timedelta(days=1), prefix="old ")  # that had the same number
        assert shadow_result(compare()) == "not_evaluated"
        seen(3, prefix="new ")
        few = compare()
        assert (few["verdict"], shadow_result(few)) == ("promote", "pass")
        assert few["evidence"]["shadow"]["lost"] == 3
        seen(20, prefix="more ")
    worse = compare()
    assert (worse["verdict"], shadow_result(worse)) == ("reject", "fail")
    assert "worse in traffic" in worse["headline"]
    again = decide_again(worse.to_dict(), worse.rows)  # from the record alone
    assert (again.verdict, list(again.reasons)) == ("reject", worse["reasons"])
    unguarded = settings.model_copy(update={"shadow_guard": False})
    assert (
        ChampionChallengerEvaluator(registry, unguarded).compare(
            TEST, engines=ENGINES, shadow=worse["evidence"]["shadow"]
        )["verdict"]
        == "promote"
    )


@pytest.mark.parametrize(
    "fault, message",
    [
        ({"label": 2}, "test row 0: label is not 0 or 1"),
        ({"label": None}, "test row 0: label"),
        ({"text": None}, "test row 0: text is not a text"),
        ({"label": 1}, "no clean row"),
    ],
)
def test_what_can_be_no_test_set_is_refused(fault, message):
    with pytest.raises(EvaluationError, match=message):
        ev.as_test_set(TEST.assign(**fault))


def test_label_types_do_not_change_the_hash():
    types = ("int8", "int64", "float64", "bool")
    hashes = {ev.as_test_set(TEST.astype({"label": t})).sha256 for t in types}
    assert len(hashes) == 1


def test_a_frame_without_slice_columns_is_compared_by_length_only(registry, settings):
    free, bare = settings.model_copy(update={"guarded_slices": ()}), TEST[["text", "label"]]
    result = ChampionChallengerEvaluator(registry, free).compare(bare, engines=ENGINES)
    assert {s["column"] for s in result["slices"]} == {"length", "disguised"}
    with pytest.raises(gate.GateError, match="no slices by lang"):
        ChampionChallengerEvaluator(registry, settings).compare(bare, engines=ENGINES)

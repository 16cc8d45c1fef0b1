"""The decision: statistics against brute force, promise under simulation, a real registry."""
import hashlib
import json
import tracemalloc
from datetime import timedelta
from functools import partial
from itertools import product

import mlflow
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings as hypothesis_settings, strategies as st
from scipy.stats import binom
from sklearn.metrics import accuracy_score, f1_score, precision_score, recall_score

from content_arena.config import load_settings
from content_arena.mlops import evaluator as ev
from content_arena.mlops import gate, statistics
from content_arena.mlops.decision_records import DecisionChain
from content_arena.mlops.evaluator import ChampionChallengerEvaluator, EvaluationError
from content_arena.mlops.gate import Evidence, Slice, decide
from content_arena.mlops.lineage import LineageError
from content_arena.mlops.model_registry import ModelRegistry, Move, _move
from content_arena.mlops.shadow import shadow_evidence
from content_arena.store import EventStore, text_sha256
from content_arena.training.grouping import fingerprints
from test_model_registry import settings  # noqa: F401  (fixture)

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
    assert p == pytest.approx(statistics.norm.sf(z), abs=0.01)


# --- the promise ---------------------------------------------------------------------------------

def promoted(share: float, n: int, gain: float, s, trials: int, f1: float = 0.85) -> float:
    p = statistics.model_pair(share, f1, gain)
    draws = np.random.default_rng(7).multinomial(n, p, trials)
    evidence = (Evidence(tuple(c), seed=i) for i, c in enumerate(draws))
    return np.mean([decide(e, s).should_promote for e in evidence])


BARE = dict(significance=False, guarded_slices="")
ONCE = dict(test_set_budget=0, guarded_slices="", bootstrap_resamples=500)   # uncorrected


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


# --- the comparison, on a real registry ----------------------------------------------------------

N = 1200
TEXTS = [hashlib.sha256(f"test {i}".encode()).hexdigest()[:30 + i % 30] for i in range(N)]
TEST = pd.DataFrame({"text": TEXTS, "label": np.arange(N) % 2, "source": "made",
                     "lang": ["ko", "en", "ko"] * (N // 3)})


class Fake:
    "Right on a share of the rows."
    size_mb = 2.0

    def __init__(self, version: str, right: float):
        self.version, self.sha256 = version, f"sha{version}"
        self.threshold, self.closed = 0.5, False
        wrong = np.random.default_rng(int(version)).permutation(N)[int(right * N):]
        flip = np.zeros(N, int)
        flip[wrong] = 1
        self.answers = dict(zip(TEXTS, 0.1 + 0.8 * (TEST.label.to_numpy() ^ flip)))

    def scores(self, texts):
        return np.array([self.answers[t] for t in texts])

    def latency_ms(self, texts):
        return {"p50_ms": 3.0, "p95_ms": 7.5}

    def close(self):
        self.closed = True


def learn(settings, number: str, lineage: list[str], rows: list[str] | None) -> None:
    "Version `number`, made challenger; its run logged fingerprints of `rows` for its own dataset."
    client = mlflow.MlflowClient(settings.mlflow_uri())
    experiment = client.get_experiment_by_name("e") or client.get_experiment(
        client.create_experiment("e", artifact_location=settings.path("artifact_dir").as_uri()))
    run = client.create_run(experiment.experiment_id)
    if rows is not None:
        file = settings.path("var_dir") / f"{lineage[-1]}.parquet"
        file.parent.mkdir(parents=True, exist_ok=True)
        fingerprints(rows).assign(split="train").to_parquet(file)
        client.log_artifact(run.info.run_id, str(file), "lineage")
    tags = {"lineage": json.dumps(lineage), "model_sha256": f"sha{number}"}
    registry = ModelRegistry(settings)
    if number == "1":
        client.create_registered_model(registry.name)
    source = f"file:///nowhere/{number}"
    client.create_model_version(registry.name, source, run.info.run_id, tags=tags)
    _move(registry, Move("register", number))


@pytest.fixture
def registry(settings):  # noqa: F811
    "v1, trained on b, is champion; v2, trained on b and then c, the challenger."
    registry = ModelRegistry(settings)
    learn(settings, "1", ["b"], ["some row", "another row of it"])
    learn(settings, "2", ["b", "c"], ["a third row that is its own"])
    _move(registry, Move("register", "1"))
    registry.promote_challenger(DecisionChain(registry).by_hand("1", "first"))
    _move(registry, Move("register", "2"))
    return registry


ENGINES = {"champion": Fake("1", 0.80), "challenger": Fake("2", 0.88)}


def test_a_comparison_finds_the_ancestors_data_in_other_runs(registry, settings):
    result = ChampionChallengerEvaluator(registry, settings).compare(TEST, engines=ENGINES)
    assert result["verdict"] == "promote" and result["champion"]["version"] == "1"
    assert result["certificate"]["datasets"] == {"b": 2, "c": 1}
    assert result["certificate"]["lineages"] == {"1": ["b"], "2": ["b", "c"]}
    assert not any(e.closed for e in ENGINES.values())


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
    assert registry.notes("testset.") == {}                     # a refusal is no look
    lenient = settings.model_copy(update={"max_test_overlap": 3})
    allowed = ChampionChallengerEvaluator(registry, lenient).compare(
        TEST, engines=ENGINES | {"challenger": Fake("3", 0.99)})
    assert len(allowed["certificate"]["rows_hit"]) == 3


def test_a_dataset_without_fingerprints_refuses_the_comparison(registry, settings):
    learn(settings, "3", ["b", "lost"], None)
    with pytest.raises(LineageError, match=r"dataset lost \(lineage of v3\) left no fingerprints"):
        ChampionChallengerEvaluator(registry, settings).compare(TEST, engines=ENGINES)


def test_a_damaged_fingerprint_file_is_named(registry, settings):
    stored, = settings.path("artifact_dir").rglob("c.parquet")
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
    shadow = dict(rows=500, agreement=0.97, labelled=40, champion_accuracy=0.8,
                  challenger_accuracy=0.9)
    battle = dict(rounds=50, champion_evasion=0.2, challenger_evasion=0.4)
    compare = ChampionChallengerEvaluator(registry, settings).compare
    result = compare(TEST, engines=ENGINES, shadow=shadow, battle=battle)
    assert result["evidence"]["shadow"] == {"present": True} | shadow
    assert result["verdict"] == "reject" and "evasion rate rose" in result["headline"]


def test_traffic_that_shows_the_challenger_to_be_worse_rejects_it(registry, settings, tmp_path):
    "Rows of this pair, since the challenger was registered, in the store of the settings."
    from content_arena.mlops.decisions import decide_again
    settings = settings.model_copy(update={"store_url": f"sqlite:///{tmp_path}/events.db"})
    compare = lambda: ChampionChallengerEvaluator(registry, settings).compare(
        TEST, engines=ENGINES, shadow=partial(shadow_evidence, settings))
    told = lambda c: {x["name"]: x["result"] for x in c["checks"]}["shadow"]
    nothing = compare()
    assert nothing["verdict"] == "promote" and told(nothing) == "not_evaluated"
    assert not nothing["evidence"]["shadow"]["present"]
    assert not (tmp_path / "events.db").exists()       # a comparison makes no store

    since = registry.get_challenger().created

    def seen(n: int, challenger: str = "2", when=since, prefix: str = "") -> None:
        "`n` labelled comments on which the champion is right and the `challenger` is not."
        names = [text_sha256(f"{prefix}{i}") for i in range(n)]
        store.add("shadow", [dict(time=when, text_sha256=t, lang="ko", length=9,
                                  champion_version="1", champion_score=0.9, champion_toxic=True,
                                  challenger_version=challenger, challenger_score=0.1,
                                  challenger_toxic=False) for t in names])
        store.add("feedback", [dict(text_sha256=t, label=1, source="moderator", reviewer="mo")
                               for t in names])
    with EventStore(settings) as store:
        seen(50, challenger="7")                       # another version, and an earlier one
        seen(50, when=since - timedelta(days=1), prefix="old ")       # that had the same number
        assert told(compare()) == "not_evaluated"
        seen(3, prefix="new ")
        few = compare()
        assert (few["verdict"], told(few)) == ("promote", "pass")
        assert few["evidence"]["shadow"]["lost"] == 3
        seen(20, prefix="more ")
    worse = compare()
    assert (worse["verdict"], told(worse)) == ("reject", "fail")
    assert "worse in traffic" in worse["headline"]
    again = decide_again(worse.to_dict(), worse.rows)  # from the record alone
    assert (again.verdict, list(again.reasons)) == ("reject", worse["reasons"])
    unguarded = settings.model_copy(update={"shadow_guard": False})
    assert ChampionChallengerEvaluator(registry, unguarded).compare(
        TEST, engines=ENGINES, shadow=worse["evidence"]["shadow"])["verdict"] == "promote"


@pytest.mark.parametrize("fault, message", [
    ({"label": 2}, "test row 0: label is not 0 or 1"), ({"label": None}, "test row 0: label"),
    ({"text": None}, "test row 0: text is not a text"), ({"label": 1}, "no clean row"),
])
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
    assert {s["column"] for s in result["slices"]} == {"length"}
    with pytest.raises(gate.GateError, match="no slices by lang"):
        ChampionChallengerEvaluator(registry, settings).compare(bare, engines=ENGINES)

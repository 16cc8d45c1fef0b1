"""Labels that count and labels that don't; the sample; shadow numbers, counted again by hand."""

import json
import threading
from datetime import datetime, timedelta, timezone

import numpy as np
import pandas as pd
import pytest
import sqlalchemy as sa
from sklearn.metrics import f1_score
from typer.testing import CliRunner

from content_arena.cli.main import app
from content_arena.core.config import load_settings
from content_arena.mlops.evaluator import evidence_record
from content_arena.monitoring import feedback
from content_arena.monitoring.feedback import Estimate, Feedback, strata_of, stratified_quality
from content_arena.monitoring.label_intake import FILE_OUTCOMES
from content_arena.monitoring.shadow_statistics import ShadowEvaluator
from content_arena.store.events import EventStore, text_sha256
from content_arena.store.labels import join_labels, rows_in
from content_arena.store.writer import EventWriter

pytestmark = pytest.mark.long(50)

NOON = datetime(2026, 1, 1, 12, tzinfo=timezone.utc)
SETTINGS = load_settings(env={})


@pytest.fixture
def store(store_url):
    with EventStore.open(store_url) as opened:
        yield opened


def sha(i) -> str:
    return text_sha256(f"text {i}")


def label(i, value, source="user", reviewer=None, minute=0) -> dict:
    return dict(
        text_sha256=sha(i),
        label=value,
        source=source,
        reviewer=reviewer,
        time=NOON + timedelta(minutes=minute),
    )


def states(store) -> dict:
    labels = Feedback(store, SETTINGS).by_text()
    return {
        s: (r.state, None if r.label is None or r.state == "conflicting" else int(r.label))
        for s, r in zip(labels.text_sha256, labels.itertuples())
    }


# --- which labels count --------------------------------------------------------------------------


def test_conflicting_labels_are_kept_and_resolved(store):
    store.add(
        "feedback",
        [
            label(1, 0, "moderator", "a", 1),
            label(1, 1, "moderator", "a", 2),  # changed their mind
            label(2, 1, "moderator", "a"),
            label(2, 0, "audit", "b"),  # a tie
            label(3, 1, "moderator", "a"),
            label(3, 0, "audit", "b"),
            label(3, 1, "audit", "c"),
            *[label(4, 1, "user", f"u{i}") for i in range(9)],
            label(4, 0, "moderator", "a"),
            *[label(5, 1, "user", f"u{i}") for i in range(5)],
            *[label(5, 0, "user", f"v{i}") for i in range(3)],  # a lead of two
            *[label(6, 1, "user", f"u{i}") for i in range(5)],
            *[label(6, 0, "user", f"v{i}") for i in range(2)],
        ],
    )
    assert states(store) == {
        sha(1): ("confirmed", 1),
        sha(2): ("conflicting", None),
        sha(3): ("confirmed", 1),
        sha(4): ("confirmed", 0),
        sha(5): ("quarantined", 1),
        sha(6): ("confirmed", 1),
    }
    assert len(store.read("feedback")) == 31  # the one who changed their mind said one thing
    assert set(Feedback(store, SETTINGS).quarantined().text_sha256) == {sha(2), sha(5)}


def test_one_user_with_many_labels_changes_nothing(store):
    store.add("feedback", [label(i, 1, "moderator", "mo") for i in range(20)])
    before = Feedback(store, SETTINGS).confirmed()
    store.add("feedback", [label(0, 0, "user", "mallory", i) for i in range(50)])
    store.add("feedback", [label(i, 0, "user", "mallory") for i in range(500)])
    store.add("feedback", [label(i, 0, "user", None, m) for i in range(40) for m in range(5)])
    assert Feedback(store, SETTINGS).confirmed().equals(before)


def test_the_quorum_is_a_setting(store):
    store.add("feedback", [label(1, 1, "user", "a")])
    alone = load_settings(env={}, feedback_quorum=1, trusted_sources="robot")
    assert (
        Feedback(store, SETTINGS).confirmed().empty and len(Feedback(store, alone).confirmed()) == 1
    )


def test_a_window_chooses_texts_and_not_votes(store):
    store.add("feedback", [label(1, 1, "user", f"u{i}", minute=i) for i in range(3)])
    late = dict(since=NOON + timedelta(minutes=2))
    assert Feedback(store, SETTINGS).confirmed(**late).votes.tolist() == [3]
    assert Feedback(store, SETTINGS).confirmed(until=NOON + timedelta(minutes=2)).empty


# --- the sample ----------------------------------------------------------------------------------


def fill(store, flagged) -> None:
    store.add(
        "predictions",
        [
            dict(
                id=f"p{i}",
                time=NOON + timedelta(seconds=i),
                text_sha256=sha(i),
                lang="ko",
                length=9,
                toxic_score=float(f),
                is_toxic=f,
                model_version="3",
                model_alias="champion",
            )
            for i, f in enumerate(flagged)
        ],
    )


@pytest.mark.slow
def test_every_prediction_is_drawn_with_the_probability_that_is_noted(tmp_path):
    times = dict.fromkeys((f"p{i}" for i in range(100)), 0)
    with EventStore.open(f"sqlite:///{tmp_path / 'events.db'}") as store:
        fill(store, [i < 10 for i in range(100)])
        for seed in range(100):
            for i in (
                Feedback(store, SETTINGS)
                .draw(20, seed, until=NOON + timedelta(hours=1))
                .prediction_id
            ):
                times[i] += 1
        asked = store.read("label_requests")
    assert asked.groupby("stratum").probability.unique().map(list).to_dict() == {
        "flagged": [1.0],
        "unflagged": [10 / 90],
    }
    assert [times[f"p{i}"] for i in range(10)] == [100] * 10
    rest = np.array([times[f"p{i}"] for i in range(10, 100)])
    assert rest.sum() == 1000 and rest.min() >= 1 and rest.max() <= 24  # 11.1 each; sd 3.1


def test_a_census_gives_the_quality_exactly(store):
    rng = np.random.default_rng(0)
    toxic, flagged = rng.random(300) < 0.3, rng.random(300) < 0.4
    fill(store, flagged)
    assert len(Feedback(store, SETTINGS).draw(1000)) == 300
    store.add("feedback", [label(i, int(t), "audit", "ada") for i, t in enumerate(toxic)])
    q = Feedback(store, SETTINGS).quality()
    hit = (toxic & flagged).sum()
    for estimate, true in (
        (q.precision, hit / flagged.sum()),
        (q.recall, hit / toxic.sum()),
        (q.f1, f1_score(toxic, flagged)),
    ):
        assert estimate == pytest.approx((true,) * 3)
    assert (q.population, q.labelled, q.open_draws) == (300, 300, 0)


# --- the promise of the interval -----------------------------------------------------------------

RATES, LABELS = (0.02, 0.05, 0.1, 0.2, 0.35, 0.5), (100, 300, 1000)


def weeks(rate: float, labels: int, count=1000, rows=10_000, seed=0):
    "Strata (count, 2) of weeks with half of the labels on flagged comments; their true F1."
    rng = np.random.default_rng(seed)
    toxic = rng.binomial(rows, rate, count)
    caught, wrong = rng.binomial(toxic, 0.75), rng.binomial(rows - toxic, rate * 0.3)
    size = np.stack([caught + wrong, rows - caught - wrong], -1)
    first = np.minimum(size[:, 0], labels // 2)
    labelled = np.stack([first, labels - first], -1)
    of = np.stack([caught, toxic - caught], -1)
    return (size, labelled, rng.hypergeometric(of, size - of, labelled)), 2 * caught / (
        caught + size[:, 0] + toxic - caught
    )


def broken(estimate: Estimate, truth: np.ndarray, ideal: float) -> list[str]:
    "What an interval doesn't keep of: 93 % inside at nominal 95 %, at most twice the ideal width."
    inside = ((estimate.low <= truth) & (truth <= estimate.high)).mean()
    width = (estimate.high - estimate.low).mean()
    return ["coverage"] * bool(inside < 0.93) + ["width"] * bool(width > 2 * ideal)


def ideal_width(value: np.ndarray, truth: np.ndarray) -> float:
    "Of the interval of somebody who knows the standard error of this design: +- 1.96 of them."
    return 2 * 1.96 * (value - truth).std()


@pytest.mark.slow
def test_the_interval_holds_the_truth_and_is_not_wide():
    faults, cheats = [], {"all": [], "point": [], "constant": []}
    for rate in RATES:
        for labels in LABELS:
            given, truth = weeks(rate, labels)
            f1 = stratified_quality([True, False], *given, resamples=400)[2]
            ideal = ideal_width(f1.value, truth)
            faults += [(rate, labels, fault) for fault in broken(f1, truth, ideal)]
            guess = np.full(1000, 0.7)
            for name, cheat in (
                ("all", Estimate(f1.value, 0 * guess, 0 * guess + 1)),
                ("point", Estimate(f1.value, f1.value, f1.value)),
                ("constant", Estimate(guess, guess - ideal / 2, guess + ideal / 2)),
            ):
                cheats[name] += broken(cheat, truth, ideal)
    assert faults == []
    assert "width" in cheats["all"] and "coverage" in cheats["point"]
    assert "coverage" in cheats["constant"]


DRAWS = (("0", 0, 200), ("0", 0, 10), ("0", 0, 3), ("1", 0, 3), ("7", 0.8, 100), ("0", 0.5, 60))


def overlapping_week(rate: float, seed: int, rows=4000):
    "A week of which all of DRAWS (seed, from which part of the week on, n) were drawn and labelled."
    rng = np.random.default_rng(seed)
    toxic = rng.random(rows) < rate
    flagged = np.where(toxic, rng.random(rows) < 0.75, rng.random(rows) < 0.3 * rate)
    hashes = {s: rng.random(rows) for s in ("0", "1", "7")}
    times = pd.Timestamp(NOON) + pd.to_timedelta(np.arange(rows), "s")
    taken, draws = np.zeros(rows, bool), []
    for key, begin, n in DRAWS:
        covered = np.arange(rows) >= begin * rows
        share = {}
        for stratum in (True, False):
            among = np.flatnonzero(covered & (flagged == stratum))
            most = min(n // 2, len(among))
            taken[among[np.argsort(hashes[key][among])[:most]]] = True
            share[stratum] = most / max(len(among), 1)
        draws.append(
            (
                key,
                times[int(begin * rows)],
                times[-1] + pd.Timedelta(1, "s"),
                None,
                share[True],
                share[False],
            )
        )
    draws = pd.DataFrame(
        draws,
        columns="seed window_since window_until window_version"
        " share_flagged share_unflagged".split(),
    )
    rows = pd.DataFrame(
        {"answered": times, "by": "3", "is_toxic": flagged, "truth": toxic.astype(float)}
    )[taken]
    return strata_of(rows, draws, {True: flagged.sum(), False: (~flagged).sum()}), 2 * (
        toxic & flagged
    ).sum() / (toxic.sum() + flagged.sum())  # its F1


@pytest.mark.slow
def test_the_interval_holds_when_draws_overlap():
    "Of one seed and of others, of the whole week and of parts of it."
    strata, truth = zip(*(overlapping_week(0.1, seed) for seed in range(400)))
    strata = {k: np.array([s[k] for s in strata]) for k in strata[0]}
    f1 = stratified_quality([True, False], **strata, resamples=400)[2]
    assert broken(f1, np.array(truth), ideal_width(f1.value, truth)) == []
    assert abs((f1.value - truth).mean()) < 0.02


def label_all(store, toxic, ids) -> None:
    store.add("feedback", [label(i, int(toxic[i]), "moderator", "mo") for i in ids])


def drawn(rows) -> list[int]:
    return [int(i[1:]) for i in rows.prediction_id]


@pytest.mark.slow
def test_looking_at_more_comments_moves_no_figure(store):
    "A weekly sample is labelled; then somebody draws 10 + 3 + 3 + 100 comments to look at."
    rng = np.random.default_rng(1)
    toxic = rng.random(903) < 0.3
    flagged = toxic ^ (rng.random(903) < 0.1)
    fill(store, flagged)
    label_all(store, toxic, range(903))
    weekly = Feedback(store, SETTINGS).draw(1000)
    truth = Feedback(store, SETTINGS).quality()
    assert truth.f1 == pytest.approx((f1_score(toxic, flagged),) * 3)
    for n, seed in ((10, 0), (3, 0), (3, 1), (100, 5), (1000, 0)):
        Feedback(store, SETTINGS).draw(n, seed)
        again = Feedback(store, SETTINGS).quality()
        assert (again.f1, again.labelled, again.population) == (truth.f1, 903, 903)
    assert len(weekly) == 903


@pytest.mark.slow
def test_drawing_again_asks_for_nothing_and_changes_nothing(store):
    rng = np.random.default_rng(2)
    toxic = rng.random(2000) < 0.2
    fill(store, toxic ^ (rng.random(2000) < 0.1))
    week = dict(until=NOON + timedelta(hours=1))
    label_all(store, toxic, drawn(Feedback(store, SETTINGS).draw(200, **week)))
    before = Feedback(store, SETTINGS).quality()
    assert set(drawn(Feedback(store, SETTINGS).draw(200, until=NOON + timedelta(hours=2)))) == set(
        drawn(Feedback(store, SETTINGS).draw(200, **week))
    )
    for n in (10, 3, 3, 120):  # smaller: these are labelled already
        Feedback(store, SETTINGS).draw(n, until=NOON + timedelta(hours=3 + n))
        assert Feedback(store, SETTINGS).quality().f1 == pytest.approx(before.f1, rel=1e-9)
    half = NOON + timedelta(seconds=1000)
    more = [
        Feedback(store, SETTINGS).draw(100, seed=4, since=half),
        Feedback(store, SETTINGS).draw(400, seed=5),
        Feedback(store, SETTINGS).draw(450),
    ]  # not labelled yet
    waits = Feedback(store, SETTINGS).quality()
    assert (waits.labelled, waits.open_draws) == (before.labelled, 3)
    assert waits.f1 == pytest.approx(before.f1, rel=1e-9)
    for rows in more:
        label_all(store, toxic, drawn(rows))
    labelled = Feedback(store, SETTINGS).quality()
    ids = set(drawn(Feedback(store, SETTINGS).draw(200, **week))).union(*map(drawn, more))
    assert (labelled.labelled, labelled.open_draws, labelled.population) == (len(ids), 0, 2000)
    assert labelled.f1.high - labelled.f1.low < 0.8 * (before.f1.high - before.f1.low)
    assert before.f1.low < labelled.f1.value < before.f1.high


def test_a_draw_of_before_windows_were_noted_is_of_the_one_version_that_answered():
    "Of two versions, it is of both: its window names none."
    asked = pd.DataFrame(
        {
            "draw_id": [1, 1, 2, 2],
            "by": ["7", "7", "7", "8"],
            "is_toxic": [True, False] * 2,
            "answered": [NOON + timedelta(minutes=m) for m in (0, 2, 1, 5)],
            "truth": [1, 0, None, 0],
            "probability": 0.5,
        }
        | dict.fromkeys(("seed", "window_since", "window_until", "window_version"))
    )
    draws = feedback._draws(asked)
    assert draws.window_version.fillna("").tolist() == ["7", ""]
    assert draws.window_since.tolist() == [NOON, NOON + timedelta(minutes=1)]
    assert (draws.window_until > [NOON + timedelta(minutes=m) for m in (2, 5)]).all()
    assert draws.response_flagged.tolist() == [1, 0] and draws.response_unflagged.tolist() == [1, 1]


def test_a_preview_is_not_noted(store, store_url):
    fill(store, [i % 4 == 0 for i in range(40)])
    shown = json.loads(run(store_url, "feedback", "sample", "--n", "8", "--preview", "--json"))
    assert len(shown["rows"]) == 8 and store.read("label_requests").empty
    made = json.loads(run(store_url, "feedback", "sample", "--n", "8", "--json"))
    assert shown == made and len(store.read("label_requests")) == 8


def test_draws_of_an_older_database_are_read_as_they_were(store):
    "Rows without seed and window, as revision 0001 had them: one draw, and its estimate of then."
    toxic, flagged = [i % 5 == 0 for i in range(1000)], [i % 4 == 0 for i in range(1000)]
    fill(store, flagged)
    label_all(store, toxic, drawn(Feedback(store, SETTINGS).draw(200)))
    now = Feedback(store, SETTINGS).quality()
    with store.engine.begin() as connection:
        connection.execute(
            sa.text(
                "update label_requests set seed = null, window_since = null,"
                " window_until = null, window_version = null"
            )
        )
    old = Feedback(store, SETTINGS).quality()
    assert (old.labelled, old.requested, old.open_draws) == (200, 200, 0)
    assert 0.95 * now.population < old.population <= now.population == 1000
    assert old.f1 == pytest.approx(now.f1, abs=0.02)
    Feedback(store, SETTINGS).draw(40)
    assert Feedback(store, SETTINGS).quality().f1 == pytest.approx(now.f1, abs=0.02)


def test_a_version_has_its_own_quality(store):
    fill(store, [i % 2 == 0 for i in range(100)])
    store.add(
        "predictions",
        [
            dict(
                id=f"q{i}",
                time=NOON + timedelta(seconds=i),
                text_sha256=sha(i),
                lang="ko",
                length=9,
                toxic_score=0.5,
                is_toxic=i % 2 == 1,
                model_version="4",
                model_alias="champion",
            )
            for i in range(100)
        ],
    )
    Feedback(store, SETTINGS).draw(1000, model_version="3")
    Feedback(store, SETTINGS).draw(1000)
    label_all(store, [i % 2 == 0 for i in range(100)], range(100))
    right, wrong, both = (
        Feedback(store, SETTINGS).quality(model_version=v) for v in ("3", "4", None)
    )
    assert (right.f1.value, wrong.f1.value, both.f1.value) == (1, 0, 0.5)
    assert (right.population, wrong.population, both.population) == (100, 100, 200)


# --- shadow --------------------------------------------------------------------------------------


def replay(store, n=2000, labelled=700, seed=0):
    "Shadow rows of `n` comments, labels for some: truth, champion's and challenger's answers."
    rng = np.random.default_rng(seed)
    truth = rng.random(n) < 0.3
    champion, challenger = (truth ^ (rng.random(n) < e) for e in (0.2, 0.12))
    store.add(
        "shadow",
        [
            dict(
                time=NOON + timedelta(seconds=i),
                text_sha256=sha(i),
                lang=("ko", "en")[i % 2],
                length=i % 200,
                champion_version="3",
                champion_score=0.5,
                champion_toxic=champion[i],
                challenger_version="4",
                challenger_score=0.5,
                challenger_toxic=challenger[i],
            )
            for i in range(n)
        ],
    )
    store.add("feedback", [label(i, int(truth[i]), "moderator", "mo") for i in range(labelled)])
    store.add("feedback", [label(i, 1, "user", "mallory") for i in range(n)])
    return truth, champion, challenger


def run(url: str, *arguments: str) -> str:
    done = CliRunner().invoke(app, [*arguments, "-p", f"store_url={url}"])
    assert done.exit_code == 0, done.exception
    return done.output


def test_the_shadow_report_matches_a_count_by_hand(store, store_url):
    truth, champion, challenger = (x.tolist() for x in replay(store))
    agree = right = right_new = wins = losses = 0
    for i in range(2000):
        agree += champion[i] == challenger[i]
        if i < 700:
            right += champion[i] == truth[i]
            right_new += challenger[i] == truth[i]
            wins += challenger[i] == truth[i] != champion[i]
            losses += challenger[i] != truth[i] == champion[i]
    said = json.loads(run(store_url, "shadow", "report", "--json").splitlines()[-1])
    assert (said["rows"], said["labelled"]) == (2000, 700)
    assert said["agreement"]["value"] == agree / 2000
    assert said["champion_accuracy"]["value"] == right / 700
    assert said["challenger_accuracy"]["value"] == right_new / 700
    assert said["champion_f1"]["value"] == pytest.approx(f1_score(truth[:700], champion[:700]))
    assert (said["sequential"]["wins"], said["sequential"]["losses"]) == (wins, losses)
    assert said["sequential"]["better"] == "challenger"
    for estimate in (said[k] for k in ("agreement", "champion_accuracy", "challenger_f1")):
        assert estimate["low"] < estimate["value"] < estimate["high"]
    korean = next(s for s in said["slices"] if s["value"] == "ko")
    assert korean["rows"] == 1000
    assert korean["champion_accuracy"]["value"] == np.mean(
        [champion[i] == truth[i] for i in range(0, 700, 2)]
    )
    text = run(store_url, "shadow", "report")
    for number in (agree / 2000, right / 700, right_new / 700):
        assert f"{number:.1%}" in text


def test_shadow_evidence_is_what_the_evaluator_takes(store):
    replay(store, n=50, labelled=20)
    record = evidence_record(1000, ShadowEvaluator(store, SETTINGS).evidence(), None)
    assert record["shadow"]["present"] and record["shadow"]["labelled"] == 20
    assert json.loads(json.dumps(record)) == record


def test_versions_are_not_mixed(store):
    replay(store, n=40, labelled=0)
    newest = store.read("shadow", limit=1).drop(columns=["id", "time", "text"]).iloc[0]
    row = {k: v for k, v in newest.items() if v == v and v is not None}
    store.add("shadow", [row | {"challenger_version": "5"}] * 3)
    evaluator = ShadowEvaluator(store, SETTINGS)
    assert (evaluator.report().challenger, evaluator.report().total["rows"]) == ("5", 3)
    old = evaluator.report(challenger="4")
    assert (old.total["rows"], old.other_rows, old.total["champion_accuracy"]) == (40, 3, None)


# --- the command line ----------------------------------------------------------------------------


def add_file(store_url, tmp_path, text: str):
    "`feedback add --file` of a CSV: exit code, JSON or error."
    (tmp_path / "labels.csv").write_text(text, "utf-8-sig")
    done = CliRunner().invoke(
        app,
        [
            "feedback",
            "add",
            "--file",
            str(tmp_path / "labels.csv"),
            "--json",
            "-p",
            f"store_url={store_url}",
            "-p",
            f"var_dir={tmp_path}",
        ],
    )
    lines = done.output.splitlines()
    return done.exit_code, json.loads(lines[-1]) if lines else str(done.exception)


def test_every_row_of_a_file_is_accounted_for(store, store_url, tmp_path):
    fill(store, [True, False])
    rows = [
        f",{sha(5)},1,ann",
        ",,1,ann",
        "p0,,1,ann",
        f",{sha(0)},0,ann",  # the same comment
        "p-none,,1,ann",
        f",{sha(6)},7,ann",
        f"p1,{sha(0)},1,ann",
        "p1,,0,",
        "p1,,0,",
    ]
    table = "prediction_id,text_sha256,label,reviewer\n" + "\n".join(rows)
    code, said = add_file(store_url, tmp_path, table)
    counts = {k: n for k in FILE_OUTCOMES if (n := said[k])}
    assert code == 1
    assert counts == {"added": 2, "duplicate": 1, "conflicting": 2, "unknown": 1, "refused": 3}
    assert sum(counts.values()) == said["read"] == len(rows)
    assert [p["line"] for p in said["problems"]] == [3, 4, 5, 6, 7, 8, 10]
    assert "p-none is unknown, or older than 90 days" in said["problems"][3]["reason"]
    assert "not of the same comment" in said["problems"][5]["reason"]
    kept = {
        (r.text_sha256, r.reviewer if isinstance(r.reviewer, str) else None): r.label
        for r in store.read("feedback").itertuples()
    }
    assert kept == {(sha(5), "ann"): 1, (sha(1), None): 0}
    code, again = add_file(store_url, tmp_path, table)  # mended or not: no row is doubled
    assert (again["added"], again["unchanged"]) == (0, 2) and len(store.read("feedback")) == 2
    for odd, says in (
        ("label,label\n1,0\n", "column label is there more than once"),
        ("text_sha256,lable\n", "no column label"),
        ("", "empty"),
    ):
        assert says in add_file(store_url, tmp_path, odd)[1]


def test_a_label_for_a_prediction_that_does_not_exist_is_refused_by_name(
    store, store_url, tmp_path
):
    fill(store, [True])
    add = lambda id: CliRunner().invoke(
        app,
        [
            "feedback",
            "add",
            "--prediction-id",
            id,
            "--label",
            "1",
            "-p",
            f"store_url={store_url}",
            "-p",
            f"var_dir={tmp_path}",
        ],
    )
    lost = add("p-none")
    assert lost.exit_code == 1 and "0 added" in lost.output and "p-none" in lost.output
    assert store.read("feedback").empty
    assert [add("p0").exit_code, "1 unchanged" in add("p0").output] == [0, True]
    assert len(store.read("feedback")) == 1


def test_a_label_for_a_prediction_that_still_waits_in_a_spool_is_joined(store, store_url, tmp_path):
    row = dict(
        id="e1",
        text_sha256=sha(1),
        lang="ko",
        length=9,
        toxic_score=0.9,
        is_toxic=True,
        model_version="3",
        model_alias="champion",
    )
    writer = EventWriter(
        lambda: EventStore.open("postgresql://arena@127.0.0.1:1/events"),
        tmp_path / "spool",
        max_age_s=0.01,
    )
    writer.put("predictions", row)
    wait = threading.Event()
    while not writer.stats().in_spool:
        wait.wait(0.01)
    said = json.loads(
        run(
            store_url,
            "feedback",
            "add",
            "--prediction-id",
            "e1",
            "--label",
            "1",
            "--json",
            "-p",
            f"var_dir={tmp_path}",
        )
    )
    writer.close()
    assert said["added"] == 1 and store.read("feedback").text_sha256.tolist() == [sha(1)]


def test_one_label_per_reviewer_and_comment_in_every_figure(store, store_url, tmp_path):
    "Clicked ten times by one, five times by nobody in particular of two sources; ann changes her mind."
    fill(store, [True, False, True])
    with store.engine.begin() as connection:  # as an older version kept repeated labels
        for i in range(4):
            connection.execute(
                sa.text(
                    "insert into feedback (id, time, text_sha256, label, source, reviewer) values"
                    f" ('old{i}', '2026-01-01 12:0{i}:00', '{sha(1)}', 0, 'moderator', 'ann')"
                )
            )
        connection.execute(
            sa.text(
                "insert into feedback (id, time, prediction_id, label, source)"
                " values ('lost', '2026-01-01 12:00:00', 'p-none', 1, 'user')"
            )
        )
    labels = [dict(prediction_id="p0", label=1, source="user", reviewer="bob")] * 10
    labels += [dict(prediction_id="p0", label=1, source=s) for s in ("user", "app") * 5]
    labels += [
        dict(prediction_id="p1", label=v, source="moderator", reviewer="ann") for v in (1, 0)
    ]
    taken = join_labels(labels, rows_in(store, tmp_path), 90, 0)
    store.add("feedback", [t.row for t in taken])
    assert [t.outcome for t in taken].count("added") == 4
    settings = load_settings(env={}, store_text=True)
    assert Feedback(store, settings).counts() == {"counted": 4, "repeated": 4, "unknown": 1}
    said = json.loads(run(store_url, "feedback", "report", "--json"))
    assert said["labels"] == {"counted": 4, "repeated": 4, "unknown": 1}
    assert said["texts"] == {"confirmed": 2, "quarantined": 0, "conflicting": 0}
    votes = Feedback(store, SETTINGS).by_text().set_index("text_sha256").votes.to_dict()
    assert votes == {sha(0): 3, sha(1): 1}
    assert len(Feedback(store, SETTINGS).confirmed()) == 2
    Feedback(store, SETTINGS).draw(3)
    assert Feedback(store, SETTINGS).quality().labelled == 2


def test_a_sample_is_handed_out_labelled_and_reported(store, store_url):
    fill(store, [i % 4 == 0 for i in range(200)])
    rows = json.loads(run(store_url, "feedback", "sample", "--n", "40", "--json"))["rows"]
    assert len(rows) == 40 and not {"is_toxic", "toxic_score", "stratum"} & set(rows[0])
    assert json.loads(run(store_url, "feedback", "report", "--json"))["quality"]["open_draws"] == 1
    for row in rows:
        store.add("feedback", [dict(prediction_id=row["prediction_id"], label=1, source="audit")])
    said = json.loads(run(store_url, "feedback", "report", "--json"))
    assert said["texts"] == {"confirmed": 40, "quarantined": 0, "conflicting": 0}
    assert said["quality"]["precision"]["value"] == 1
    assert said["quality"]["recall"]["value"] == pytest.approx(0.25)


def test_purge_goes_by_the_retention_setting(store, store_url):
    now = datetime.now(timezone.utc)
    store.add(
        "feedback",
        [label(i, 0) | {"time": now - timedelta(days=d)} for i, d in enumerate((1, 89, 91))],
    )
    said = json.loads(run(store_url, "store", "purge", "--json"))
    others = {"predictions": 0, "shadow": 0, "label_requests": 0, "learnt_rows": 0}
    assert said["deleted"] == others | {"feedback": 1}
    status = json.loads(run(store_url, "store", "status", "--json"))
    assert status["ok"] and {t["table"]: t["rows"] for t in status["tables"]}["feedback"] == 2

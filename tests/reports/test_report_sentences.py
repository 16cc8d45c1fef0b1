"""The sentences of a report, read back against the record that they were made from."""

import re
from dataclasses import asdict
from itertools import product

import numpy as np
import pandas as pd
import pytest
from report_pages import comparison, run_folder

from content_arena.reports import battle as battle_reports, evaluation as reports
from content_arena.mlops.evaluator import evidence_record
from content_arena.core.config import load_settings
from content_arena.mlops.gate import CONDITIONS, FIRST_CONDITIONS, FURTHER, Evidence, Slice
from content_arena.mlops.lineage import Certificate
from content_arena.mlops.mixed_evidence import disguise_headline, mix_record, rates_of
from content_arena.mlops.model_cards import evaluation_section
from content_arena.reports.reasons import _NUMBERS, in_words
from content_arena.reports.runs import run_row
from content_arena.reports.site import run_cells
from content_arena.reports import summary
from content_arena.workflows.run_labels import figures_of, run_note

SIDES = {
    "champion": dict(auc=0.871, detection_rate=0.896, false_positive_rate=0.426, attacked=503),
    "challenger": dict(auc=0.912, detection_rate=0.842, false_positive_rate=0.226, attacked=503),
}


def side(role: str) -> dict:
    "One model's part of the battle's record, with all that the table shows."
    names = ("detection_rate", "false_positive_rate", "false_positive_rate_unattacked")
    part = SIDES[role] | {"false_positive_rate_unattacked": 0.1}
    part |= {"intervals": {n: [part[n] - 0.02, part[n] + 0.02] for n in names}}
    return part | {
        "auc_error": 0.01,
        "detection_at_cost": part["detection_rate"],
        "clean_attacked": 497,
        "seen": part,
        "held_out": part,
    }


def record_of(champion: bool, fought: bool, promoted: bool) -> dict:
    old = side("champion") if champion else None
    battle = dict(
        sha256="0f" * 32,
        toxic=503,
        clean=497,
        champion=old,
        challenger=side("challenger"),
        cost=0.426,
        auc_change=0.041 if champion else None,
        auc_change_error=0.008 if champion else None,
    )
    lineages = {"1": ["a"]} if champion else {}
    certificate = Certificate(1200, {"a": 5}, lineages | {"2": ["a"]}, 0.8, 0, ())
    return {
        "champion": {"version": "1"} if champion else None,
        "challenger": {"version": "2"},
        "should_promote": promoted,
        "certificate": certificate.to_dict(),
        "evidence": evidence_record(1200, None, battle if fought else None),
    }


def page_of(record: dict) -> str:
    "Everything that a report says about its evidence, as plain text."
    table = battle_reports.show_fixed_battle(record)
    shown = table.to_string() if isinstance(table, pd.DataFrame) else table.data
    return "\n".join(
        [
            reports.evidence_lines(record),
            shown,
            record["certificate"]["sentence"],
            reports.how_to_roll_back(record),
        ]
    )


def contradictions(page: str, record: dict) -> list[str]:
    "What `page` says and `record` does not."
    battle, problems = record["evidence"]["battle"], []
    if battle["present"] and "no battle" in page:
        problems.append("a battle that was fought is called absent")
    if not battle["present"] and ("disguised" in page or "AUC" in page):
        problems.append("figures of a battle that was not fought")
    if not record["champion"] and re.search(r"both|the champion detects|version 1\b", page):
        problems.append("a second model")
    if not record["should_promote"] and "back, in the registry" in page:
        problems.append("a rollback of what was not promoted")
    for role in ("champion", "challenger"):
        figures = re.search(
            rf"the {role} detects ([\d.]+)% .*? flags ([\d.]+)% .*?AUC ([\d.]+)", page
        )
        here = battle.get(role)
        if bool(figures) != bool(here):
            problems.append(f"{role}: a sentence without a record, or a record without one")
        elif figures and [float(x) for x in figures.groups()] != pytest.approx(
            [100 * here["detection_rate"], 100 * here["false_positive_rate"], here["auc"]]
        ):
            problems.append(f"{role}: other numbers")
    if battle["present"] and re.search(r"([\d,]+) disguised toxic", page)[1] != str(
        battle["toxic"]
    ):
        problems.append("another number of comments")
    return problems


@pytest.mark.parametrize("champion, fought, promoted", list(product([True, False], repeat=3)))
def test_a_report_says_what_its_record_says(champion, fought, promoted):
    record = record_of(champion, fought, promoted)
    assert contradictions(page_of(record), record) == []


@pytest.mark.parametrize(
    "said",
    [
        "Battle: absent: no battle evidence was gathered",
        "the datasets behind both models",
        "the champion detects 1.0% of the toxic ones and flags 2.0% of the clean ones (AUC 0.5",
        "brings version 1 back, in the registry",
    ],
)
def test_a_sentence_that_is_not_of_the_record_is_found(said):
    "What the first model's reports said, and the like."
    record = record_of(champion=False, fought=True, promoted=False)
    assert contradictions(f"{said}\n{page_of(record)}", record)


def scored(flags: dict[str, tuple[int, int]], comments: int = 200) -> pd.DataFrame:
    """`comments` clean comments in disguise and as many toxic ones; `flags`: role to how many of the clean ones are
    flagged as written, and in disguise."""
    table = pd.DataFrame({"label": np.repeat([0, 1], comments), "disguised": "True"})
    for role, counts in flags.items():
        for column, count in zip((f"{role}_undisguised", role), counts):
            table[column] = [0.9] * count + [0.1] * (comments - count) + [0.9] * comments
    return table


def headline_of(promoted: bool, champion: bool = True) -> tuple[str, dict]:
    flags = {"champion": (26, 51), "challenger": (14, 15)}
    table = scored(flags)
    if not champion:
        table[["champion", "champion_undisguised"]] = np.nan
    record = {
        "champion": {"version": "1"} if champion else None,
        "challenger": {"version": "2"},
        "should_promote": promoted,
        "verdict": "promote" if promoted else "reject",
        "samples_evaluated": len(table),
        "reasons": ["a reason"],
        "mix": mix_record(table, (0.5, 0.5), {}),
    }
    return disguise_headline(record), record


@pytest.mark.parametrize("promoted, champion", product([True, False], repeat=2))
def test_the_headline_is_about_the_filter_that_serves(promoted, champion):
    said, record = headline_of(promoted, champion)
    version, before, after = ("1", 26, 51) if champion and not promoted else ("2", 14, 15)
    figures = re.fullmatch(
        r"Version (\d)(, which is not served,)? flags (\d+) of 100 clean comments \((\d+) to (\d+)\), (\d+) of 100"
        r" when disguised \((\d+) to (\d+)\): (\d+) and (\d+) of the same (\d+)\.",
        said,
    )
    assert figures, said
    assert figures[1] == version
    assert bool(figures[2]) == (not promoted and not champion)
    share, low, high, share_after, low_after, high_after, k, k_after, n = map(
        int, figures.groups()[2:]
    )
    assert (k, k_after, n) == (before, after, 200)
    assert (share, share_after) == (round(100 * k / n), round(100 * k_after / n))
    assert low < share < high and low_after < share_after < high_after


def test_a_manager_reads_it_before_any_reason():
    said, record = headline_of(True)
    banner = reports.verdict_banner(record)
    assert banner.index(said) < banner.index("a reason")
    assert banner.count("of 100") == 2


def test_what_was_not_measured_is_not_given_a_number():
    _, record = headline_of(True)
    toxic_only = scored({"champion": (0, 0), "challenger": (0, 0)})
    toxic_only = toxic_only[toxic_only.label == 1]
    for mix in (None, mix_record(toxic_only, (0.5, 0.5), {}), {"challenger": {"clean": {}}}):
        said = disguise_headline(record | {"mix": mix})
        assert "was not asked" in said and "of 100" not in said


def half_disguised() -> dict:
    """A comparison in which every share over all comments as written is another one than over those that were also
    asked in disguise: of these 14 and 16 % of the clean ones are flagged, 85 and 82 % of the toxic ones caught."""
    before = {"clean": (28, 32), "toxic": (170, 178)}  # of 200 in disguise, of 200 that are not
    now = {"clean": 32, "toxic": 164}
    hits = lambda n: [0.9] * n + [0.1] * (200 - n)
    table = pd.DataFrame(
        {
            "label": np.repeat([0, 1], 400),
            "disguised": (["True"] * 200 + ["False"] * 200) * 2,
            "challenger": [p for k in before for p in hits(now[k]) + hits(before[k][1])],
            "challenger_undisguised": [p for k in before for n in before[k] for p in hits(n)],
            "champion": np.nan,
            "champion_undisguised": np.nan,
        }
    )
    return comparison("bootstrap", champion=False) | {"mix": mix_record(table, (0.5, 0.5), {})}


def test_whoever_says_how_many_are_flagged_says_the_same(tmp_path):
    "The page, in both languages, the command line, the list of runs, MLflow, the serving note and the card."
    compared = half_disguised()
    assert compared["mix"]["challenger"]["clean"]["false_positive_rate"] == 0.15  # of all: nobody's
    files = {"comparison": compared, "run": {"status": "finished"}}
    row = run_row(run_folder(tmp_path / "run", files, [], "03_evaluate", "en").parent)
    entry = {"role": "challenger", "time": "2026-01-02", "id": "ab" * 32, "comparison": compared}
    compared["test_set"] |= {"sha256": "cd" * 32, "rows": 800}
    serving = {"version": "2", "tested": rates_of(compared, "challenger")}
    said = {
        "page": summary.numbers_of(compared)[0],
        "Korean page": summary.numbers_of(compared, "ko")[0],
        "serving": summary.tested_of({"serving": serving})[0],
        "command line": disguise_headline(compared),
        "list": run_cells(row),
        "MLflow": run_note(row, "report.html"),
        "card": evaluation_section([entry]),
    }
    for where, text in said.items():
        numbers = re.findall(r"\d+(?:\.\d)?", text)
        assert {"14", "16"} <= {n.removesuffix(".0") for n in numbers}, (where, text)
        assert not {"15", "15.0"} & set(numbers), (where, text)
    counted = summary.numbers_of(compared)[1]
    assert "400 test comments, asked in both forms" in counted and "10 to 19 flagged" in counted
    assert figures_of(row)["test_clean_flagged"] == 0.14


def test_what_the_gate_found_is_said_in_korean():
    "Every check that the gate can make has a Korean sentence, and nothing in it is left open."
    counts = [700, 40, 60, 200, 100, 80, 60, 760]
    side = {"auc": 0.9, "auc_error": 0.01, "detection_rate": 0.8, "false_positive_rate": 0.2}
    side["detection_at_cost"] = 0.8
    fought = {"sha256": "0f" * 32, "toxic": 500, "clean": 500, "champion": side, "cost": 0.2}
    fought |= {"challenger": side, "auc_change": 0.0, "auc_change_error": 0.01}
    evidence = Evidence(
        counts,
        slices=(Slice("lang", "ko", counts),),
        clean=counts,
        battle=fought,
        restoring={"rows": 2000, "flips": 3, "clean": 1000, "clean_flips": 1},
        shadow={"rows": 90, "labelled": 30, "won": 4, "lost": 3, "better": "neither"},
        latency_ms=12.0,
        size_mb=130.0,
    )
    settings = load_settings(
        env={}, latency_budget_ms=50, size_budget_mb=200, guarded_slices="lang"
    )
    made = [check(evidence, settings) for check in (*CONDITIONS, *FURTHER, *FIRST_CONDITIONS)]
    assert {c.name for c in made} == set(_NUMBERS) and not [c for c in made if c.result == "off"]
    for check in made:
        said = in_words(asdict(check), "ko")
        if check.name != "precision":  # figures alone
            assert re.search("[가-힣]", said), check
        assert not re.search("[{}]|nan|None", said), said

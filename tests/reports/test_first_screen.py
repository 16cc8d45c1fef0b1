"""What a manager asks is answered where a page opens: in Chromium, 1280 pixels wide and 800 high, nothing scrolled."""

import json

import pytest
from browser import browser
from needs import AXE
from test_pages import ENDINGS, comparison, run_folder

from content_arena.reports.page import write_page
from content_arena.reports.texts import LANGUAGES, say

SERVING = {
    "version": "1",
    "since": "2026-11-12T09:00:00Z",
    "asked": "2026-11-29T10:00:00+00:00",
    "action": "promote",
    "replaces": "",
    "decision": "3fa9" * 16,
    "tested": {"caught": 0.84, "flagged": 0.32, "caught_disguised": 0.81, "flagged_disguised": 0.4},
}
RATES = {
    "detection_rate": 0.6,
    "recall_unattacked": 0.9,
    "false_positive_rate": 0.4,
    "false_positive_rate_unattacked": 0.3,
}
BATTLE = RATES | {
    "status": "completed",
    "by_rule": {"jamo": {"attacked": 30, "detection_rate": 0.1}},
}
EARLIER = {"model_version": "1", "created": "2026-11-01T08:00:00Z"} | RATES
WEEK = {
    "judged": 9000,
    "flagged": 0.2,
    "drifted": ["length"],
    "labelled": 120,
    "champion_f1": 0.8,
    "f1": 0.7,
    "low": 0.6,
    "high": 0.78,
    "precision": 0.8,
    "precision_low": 0.7,
    "precision_high": 0.9,
    "triggers": [{"name": "f1_drop", "state": "fired", "says": "F1 fell by 0.1"}],
}
TRAINING = {
    "f1": 0.8,
    "baseline": 0.7,
    "clean": 0.82,
    "disguised": 0.78,
    "gap": 3,
    "flagged": 0.2,
    "flagged_disguised": 0.3,
}
WORST = {
    "column": "functionality",
    "value": "insult_implicit",
    "rows": 40,
    "wrong": 24,
    "of": "clean",
    "example": "•" * 110,
}


def lost(record: dict) -> dict:
    "`record` with three kinds of comments and four shares that fell, and many reasons: the longest page there is."
    kinds = ("negated", "quoted_endorsed", "insult_implicit", "praise_sarcastic")
    slices = [record["slices"][0] | {"value": k} for k in kinds]
    return record | {"slices": slices, "reasons": ["F1 0.8 against 0.79: not enough"] * 8}


REPORTS = {
    "03_evaluate": {
        "comparison": lost(comparison("reject")),
        "worst": WORST,
        "deployment": {"status": "rejected"},
        "harmless": {"challenger": 20.0},
    },
    "02_train": {"training": TRAINING},
    "05_battle": {"fought": BATTLE, "earlier": EARLIER | {"detection_rate": 0.7}},
    "06_monitor": {"week": WEEK},
}
ROWS = ("decision", "numbers", "worse", "since", "next")  # one for each of the five questions
WHERE = """Object.fromEntries([...document.querySelectorAll('.summary dt')].map(
    d => [d.textContent, d.nextElementSibling.getBoundingClientRect().bottom]))"""


@pytest.fixture(scope="module")
def tab(tmp_path_factory):
    with browser(tmp_path_factory.mktemp("chromium")) as opened:
        yield opened


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    "The page of each report and of each ending, by (language, name)."
    folder, made = tmp_path_factory.mktemp("pages"), {}
    run = {"run": {"status": "finished", "started": "2026-01-31T02:00:00+00:00"}}
    for language in LANGUAGES:
        (folder / language).mkdir()
        for stage, values in REPORTS.items():
            place = folder / language / stage
            known = {"serving": SERVING} | ({} if stage[:2] in ("05", "06") else run) | values
            made[language, stage] = write_page(run_folder(place, known, [], stage, language))
        for ending, values in ENDINGS.items():
            known = {"serving": SERVING} | run | {k: v for k, v in values.items() if v}
            notebook = run_folder(folder / language / ending, known, [], "03_evaluate", language)
            made[language, ending] = write_page(notebook)
    return made


@pytest.mark.slow
@pytest.mark.needs("chromium")
@pytest.mark.parametrize("language", LANGUAGES)
def test_the_five_questions_are_answered_on_the_first_screen(tab, pages, language):
    for stage in REPORTS:
        tab.open(pages[language, stage].as_uri(), 1280, 800)
        ends = tab.ask(WHERE)
        for row in ROWS:
            assert ends[say(language, f"summary.{row}")] <= 800, (stage, row, ends)


@pytest.mark.slow
@pytest.mark.needs("chromium")
def test_no_page_asks_anybody_or_is_wider_than_its_window(tab, pages):
    for (language, name), page in pages.items():
        for width, height in ((1280, 800), (390, 844)):
            tab.open(page.as_uri(), width, height)
            assert tab.asked == [page.as_uri()] and tab.errors == [], (language, name)
            assert tab.ask("document.documentElement.scrollWidth") <= width, (language, name, width)


@pytest.mark.slow
@pytest.mark.needs("chromium")
@pytest.mark.needs("axe")
def test_axe_finds_nothing_serious(tab, pages):
    for (language, name), page in pages.items():
        for dark in (False, True):
            tab.open(page.as_uri(), dark=dark)
            tab.ask(AXE.read_text(encoding="utf-8"))
            said = json.loads(tab.ask("axe.run().then(r => JSON.stringify(r.violations))"))
            grave = [v["id"] for v in said if v["impact"] in ("serious", "critical")]
            assert grave == [], (language, name, dark)

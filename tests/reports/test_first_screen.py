"""What a manager asks is answered where a page opens: in Chromium, 1280 pixels wide and 800 high, nothing scrolled."""

import json

import pytest
from browser import browser
from needs import AXE
from report_pages import ENDINGS, REPORTS, SERVING, run_folder

from content_arena.reports.page import write_page
from content_arena.reports.texts import LANGUAGES, say

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

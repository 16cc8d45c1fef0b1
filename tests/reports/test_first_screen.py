"""What a manager asks is answered where a page opens: in Chromium, 1280 pixels wide and 800 high, nothing scrolled."""

import pytest
from report_pages import REPORTS, written_pages

from content_arena.reports.texts import LANGUAGES, say

ROWS = ("decision", "numbers", "worse", "since", "next")  # one for each of the five questions
WHERE = """Object.fromEntries([...document.querySelectorAll('.summary dt')].map(
    d => [d.textContent, d.nextElementSibling.getBoundingClientRect().bottom]))"""


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    "The page of each report and of each ending, by (language, name)."
    folder = tmp_path_factory.mktemp("pages")
    return {
        (language, name): page
        for language in LANGUAGES
        for name, page in written_pages(folder / language, language, []).items()
    }


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

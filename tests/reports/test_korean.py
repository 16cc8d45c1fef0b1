"""A Korean page has no English sentence of ours: each is looked for, as a pattern, in the text of every kind of page."""

import re

import pytest
from bs4 import BeautifulSoup
from report_pages import EARLIER, ENDINGS, REPORTS, SERVING, run_folder
from site_runs import invent_runs

from content_arena.reports.page import notebook_page
from content_arena.reports.site import build_site
from content_arena.reports.texts import sentences

LOST = {"read": 10, "used": 7, "quarantined": 1, "duplicates": 1, "cut": 1, "reasons": {"leer": 1}}


def patterns(language: str) -> dict[str, re.Pattern]:
    "The sentences that the other language says in other words, names of what a user types aside."
    other = sentences("ko" if language == "en" else "en")
    made = {}
    for key, said in sentences(language).items():
        words = re.sub(r"{\w+}", " ", said)
        if said != other[key] and not re.match("words|.*command", key) and len(words.split()) > 1:
            parts = [re.escape(p) for p in re.split(r"{\w+}", said)]
            made[key] = re.compile(r"\b" + r"[^\n]{1,80}?".join(parts) if parts[0] else said)
    return made


def text_of(page: str) -> str:
    soup = BeautifulSoup(page, "html.parser")
    for part in soup(["code", "pre", "style", "script"]):
        part.decompose()
    attributes = [t[a] for t in soup(True) for a in ("title", "alt", "aria-label") if t.get(a)]
    return soup.get_text("\n") + "\n" + "\n".join(attributes)


def own_pages(folder, language: str) -> dict[str, str]:
    "Every kind of page, of every ending, by name."
    folder.mkdir()
    run = {"run": {"status": "finished", "started": "2026-01-31T02:00:00+00:00"}}
    kinds = {**REPORTS, "01_prepare": {"losses": LOST}, **ENDINGS}
    made = {}
    for name, values in kinds.items():
        stage = name if name[:2].isdigit() else "03_evaluate"
        known = {"serving": SERVING, "earlier": EARLIER} | run
        known |= {k: v for k, v in values.items() if v}
        if stage[:2] in ("05", "06"):
            del known["run"]
        made[name] = notebook_page(run_folder(folder / name, known, [], stage, language))
    settings = invent_runs(folder / "site", 6, rows=40).model_copy(
        update={"report_language": language}
    )
    build_site(settings)
    return made | {p.name: p.read_text() for p in (folder / "site" / "runs").glob("*.html")}


@pytest.mark.parametrize("language, other", [("ko", "en"), ("en", "ko")])
def test_a_page_has_no_sentence_of_the_other_language(tmp_path, language, other):
    known = patterns(other)
    assert len(known) > 150
    for name, page in own_pages(tmp_path / "pages", language).items():
        text = text_of(page)
        hits = {key: m[0] for key, p in known.items() if (m := p.search(text))}
        assert hits == {}, name


def test_a_sentence_of_the_other_language_would_be_found(tmp_path):
    known = patterns("en")
    pages = own_pages(tmp_path / "pages", "en")
    found = {key for page in pages.values() for key, p in known.items() if p.search(text_of(page))}
    assert {"summary.since", "since.first", "worse.lines", "battle.means", "site.runs"} & found
    assert len(found) > 60

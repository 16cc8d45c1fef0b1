"""Who can't see a page, or uses no mouse, can read it: axe-core finds nothing serious on any, light or dark."""

import json
from datetime import datetime, timezone

import nbformat
import pandas as pd
import pytest
from fastapi.testclient import TestClient
from needs import AXE
from report_pages import REPORTS, written_pages
from site_runs import invent_runs
from stage import FileLoader, settings

from content_arena.core.config import Secrets
from content_arena.mlops.registry_reader import Version
from content_arena.reports.evaluation import axes_of
from content_arena.reports.site import build_site, version_page
from content_arena.reports.tables import Table, table_html
from content_arena.reports.texts import LANGUAGES
from content_arena.serving.app import create_app

pytestmark = [pytest.mark.slow, pytest.mark.needs("chromium"), pytest.mark.needs("axe")]
HOSTILE = "<b>a</b> & 'b'"


def grave(tab, page: str, fragment: str = "") -> list[tuple]:
    "What axe-core calls serious or critical on a page, on a light desktop and on a dark phone: (rule, dark, where)."
    hits = []
    for dark, width in ((False, 1280), (True, 390)):
        tab.open(page + fragment, width, dark=dark)
        tab.ask(AXE.read_text(encoding="utf-8"))
        said = json.loads(tab.ask("axe.run().then(r => JSON.stringify(r.violations))"))
        hits += [
            (v["id"], dark, v["nodes"][0]["html"][:200])
            for v in said
            if v["impact"] in ("serious", "critical")
        ]
    return hits


def outputs() -> list:
    "One output of every kind that a notebook's page can have, each longer than a phone is wide."
    frame = pd.DataFrame({"F1": [84.5, 80.1], "kind": ["negated", "x" * 200]}, index=["a", "b"])
    figure = axes_of(2, xlabel="F1")[0].about("lengths", splits="train")
    shown = [
        {"text/html": table_html(Table(frame))},
        {"text/html": frame.to_html()},
        {"text/markdown": f"**bold** and `code`, [here](x)\n\n| a |\n|---|\n| {HOSTILE} |\n"},
        {"text/plain": "x " * 400},
    ]
    image, about = figure._repr_mimebundle_()
    return [
        *[nbformat.v4.new_output("display_data", data=d) for d in shown],
        nbformat.v4.new_output("display_data", data=image, metadata=about),
        nbformat.v4.new_output("stream", name="stdout", text="y" * 400),
        nbformat.v4.new_output("error", ename="E", evalue=HOSTILE, traceback=["z" * 400]),
    ]


@pytest.mark.parametrize("language", LANGUAGES)
def test_reports(tab, tmp_path, language):
    for name, page in written_pages(tmp_path / "pages", language, outputs()).items():
        if name in REPORTS or language == LANGUAGES[0]:  # endings differ in words and colours
            assert grave(tab, page.as_uri()) == [], name


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_site(tab, tmp_path, language):
    known = invent_runs(tmp_path, 12, rows=60).model_copy(update={"report_language": language})
    build_site(known)
    site, runs = tmp_path / "runs", sorted(p.name for p in (tmp_path / "runs").glob("2026*"))
    version = Version(
        "content-filter",
        "7",
        "run",
        ("champion",),
        {"status": "champion", "reason": HOSTILE},
        "ab" * 32,
        datetime(2026, 11, 29, 18, tzinfo=timezone.utc),
    )
    rows = [{"run": runs[0], "page": "03_evaluate.html", "version": "7", "champion": "6"}]
    rows[0] |= {"outcome": "promoted", "decision": "ab" * 32, "reason": HOSTILE}
    fought = {"id": "ab12", "status": "completed", "rounds_done": 3, "detection_rate": 0.9}
    (site / "version.html").write_bytes(
        version_page(version, rows, [fought], [], "# Card\n" + "x" * 300, language)
    )
    pages = {
        "index.html": ["", "#sort=f1&desc=1", "#q=nothing"],
        "compare.html": ["", f"#a={runs[1]}&b={runs[2]}", f"#a={runs[1]}&b={runs[4]}"],
        "version.html": [""],
    }
    for page, fragments in pages.items():
        for fragment in fragments:
            assert grave(tab, (site / page).as_uri(), fragment) == [], (page, fragment)


def test_a_site_without_a_run(tab, tmp_path):
    build_site(invent_runs(tmp_path, 0, rows=2))
    for page in ("index.html", "compare.html"):
        assert grave(tab, (tmp_path / "runs" / page).as_uri()) == [], page


def test_pages_of_the_service(tab, tmp_path):
    client = TestClient(create_app(settings(tmp_path), Secrets(), FileLoader(tmp_path)))
    for path in ("/", "/docs"):
        page = tmp_path / "page.html"
        page.write_text(client.get(path).text, encoding="utf-8")
        assert grave(tab, page.as_uri()) == [], path


def test_what_is_pale_or_has_no_name_is_found(tab, tmp_path):
    page = tmp_path / "page.html"
    page.write_text(
        "<title>t</title><p style='color:#bbb;background:#fff'>pale words</p><button></button>"
    )
    found = {rule for rule, _, _ in grave(tab, page.as_uri())}
    assert {"color-contrast", "button-name", "html-has-lang"} <= found

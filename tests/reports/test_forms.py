"""Each form of a page can be read: a phone, the dark, paper; and what was seen to be wrong on one stays mended."""

import json
from datetime import datetime, timezone

import nbformat
import pandas as pd
import pytest
from bs4 import BeautifulSoup
from matplotlib.figure import Figure
from report_pages import ENDINGS, REPORTS, display, facts, flat, run_folder, written_pages
from site_runs import invent_runs

from content_arena.mlops.registry_reader import Version
from content_arena.reports import page as pages_module
from content_arena.reports.evaluation import axes_of, manifest_tables
from content_arena.reports.page import notebook_page, translated, write_page
from content_arena.reports.phrases import is_english
from content_arena.reports.site import build_site, version_page
from content_arena.reports.summary import run_summary
from content_arena.reports.tables import Table, dressed, table_html
from content_arena.reports.texts import LANGUAGES, as_html
from content_arena.workflows.weekly_report import show_triggers

LONG = "a comment of many short words, each of which could stand on a line of its own, and more"


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    "A page with a figure, a wide table with a long column, a folded dump and folded reasons."
    figure, axes = axes_of(2)
    axes.plot([1, 2], [1, 2])
    data, about = figure.about("lengths", splits="train")._repr_mimebundle_()
    wide = {f"column {i}": [1.0, 2.0] for i in range(9)} | {"comment": [LONG, LONG]}
    outputs = [
        nbformat.v4.new_output("display_data", data=data, metadata=about),
        display(table_html(Table(pd.DataFrame(wide), index=False))),
        nbformat.v4.new_output("display_data", data={"text/plain": "a dump of a record"}),
    ]
    folder = tmp_path_factory.mktemp("report") / "run"
    return write_page(run_folder(folder, REPORTS["03_evaluate"], outputs, "03_evaluate", "en"))


def size(tab, what: str, side: str = "width") -> float:
    return tab.ask(f"document.querySelector('{what}').getBoundingClientRect().{side}")


def style(tab, what: str, name: str) -> str:
    return tab.ask(f"getComputedStyle(document.querySelector('{what}')).{name}")


@pytest.mark.slow
@pytest.mark.needs("chromium")
def test_on_a_phone_a_column_of_text_and_a_figure_have_room(tab, report):
    tab.open(report.as_uri(), 390, 844)
    assert size(tab, "td.t") >= 200, "one letter a line"
    assert size(tab, "figure img") >= 560, "letters of four pixels"
    assert tab.ask("document.documentElement.scrollWidth") <= 390


@pytest.mark.slow
@pytest.mark.needs("chromium")
def test_no_option_of_a_command_is_broken_on_a_phone(tab, tmp_path):
    for name, page in written_pages(tmp_path / "pages", "en", []).items():
        tab.open(page.as_uri(), 390, 844)
        lines = "[...document.querySelectorAll('.whole')].map(w => w.getClientRects().length)"
        assert set(tab.ask(lines)) == {1}, name
        assert tab.ask("document.documentElement.scrollWidth") <= 390, name


@pytest.mark.slow
@pytest.mark.needs("chromium")
def test_figures_are_dark_in_the_dark_and_light_on_paper(tab, report):
    tab.open(report.as_uri(), dark=True)
    assert "invert" in style(tab, "figure img", "filter")
    tab.open(report.as_uri())
    assert style(tab, "figure img", "filter") == "none"
    tab.open(report.as_uri(), dark=True, media="print")
    assert style(tab, "figure img", "filter") == "none"


@pytest.mark.slow
@pytest.mark.needs("chromium")
def test_what_is_folded_is_on_paper_and_a_dump_says_that_it_is_not(tab, report):
    tab.open(report.as_uri())
    folded = size(tab, ".summary details", "height")
    assert style(tab, "details.dump", "display") == "block" and size(tab, ".paper", "height") == 0
    tab.open(report.as_uri(), media="print")
    assert size(tab, ".summary details", "height") > 3 * folded
    assert style(tab, ".summary", "breakInside") == "auto", "a long one leaves a sheet empty"
    assert style(tab, "details.dump", "display") == "none" and size(tab, ".paper", "height") > 10


@pytest.mark.slow
@pytest.mark.needs("chromium")
@pytest.mark.parametrize("width", [1280, 390])
def test_no_words_of_a_drawing_lie_on_each_other(tab, tmp_path, width):
    build_site(invent_runs(tmp_path, 6, rows=40))
    tab.open((tmp_path / "runs" / "index.html").as_uri(), width)
    texts = """[...document.querySelectorAll('svg')].map(s => [...s.querySelectorAll('text')].map(
        t => t.getBoundingClientRect()).map(b => [b.left, b.top, b.right, b.bottom]))"""
    for boxes in tab.ask(texts):
        for i, (left, top, right, bottom) in enumerate(boxes):
            for a, b, c, d in boxes[i + 1 :]:
                across, down = min(c, right) - max(a, left), min(d, bottom) - max(b, top)
                assert min(across, down) <= 2, (boxes, width)


@pytest.mark.slow
@pytest.mark.needs("chromium")
def test_the_second_sheet_of_the_list_of_runs_has_names_over_its_columns(tab, tmp_path):
    build_site(invent_runs(tmp_path, 3, rows=20))
    tab.open((tmp_path / "runs" / "index.html").as_uri(), media="print")
    assert style(tab, "th button", "display") == "contents", "Chromium repeats no button"


def test_what_was_not_measured_is_not_said_to_be_too_few():
    for ending in ("failed", "cancelled", "refused", "no_challenger", "finished"):
        assert "nothing was measured" in flat(run_summary(facts(ending))), ending
        assert "no kind of comment" not in flat(run_summary(facts(ending)))
    running = flat(run_summary(facts("running")))
    assert "Nothing has been measured yet" in running and "ended" not in running


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_command_in_a_sentence_is_code(tmp_path, language):
    for ending in ("promoted", "running"):
        known = {k: v for k, v in ENDINGS[ending].items() if v}
        page = notebook_page(run_folder(tmp_path / ending, known, [], "03_evaluate", language))
        soup = BeautifulSoup(page, "html.parser")
        said = [c.text for c in soup.select(".summary p code")]
        assert len(said) == 1 and said[0].startswith("content-arena "), ending
        assert "(가)" not in soup.text and "`" not in soup.text


def test_a_failed_page_shows_the_error_once_and_no_markup(tmp_path):
    error = nbformat.v4.new_output("error", ename="KeyError", evalue="'x'", traceback=["here"])
    known = {k: v for k, v in ENDINGS["failed"].items() if v}
    notebook = run_folder(tmp_path / "run", known, [error], "03_evaluate", "en")
    nb = nbformat.read(notebook, as_version=4)
    for text in ('<span style="color:red">An Exception</span>', '<span id="e">here</span>'):
        cell = nbformat.v4.new_markdown_cell(text)  # as papermill puts them in
        cell.metadata["tags"] = ["papermill-error-cell-tag"]
        nb.cells.insert(0, cell)
    nbformat.write(nb, notebook)
    soup = BeautifulSoup(notebook_page(notebook), "html.parser")
    assert "<span" not in soup.text and "An Exception" not in soup.text
    assert soup.h1.text == "Title" and len(soup.select("p.error")) == 1


@pytest.mark.parametrize("failed", [True, False])
def test_a_page_ends_where_its_notebook_ended(tmp_path, failed):
    known = {k: v for k, v in ENDINGS["failed"].items() if v}
    error = nbformat.v4.new_output("error", ename="E", evalue="x", traceback=["here"])
    outputs = [error] if failed else [display(**{"text/markdown": "What was shown."})]
    notebook = run_folder(tmp_path / "run", known, outputs, "02_train", "en")
    nb = nbformat.read(notebook, as_version=4)
    nb.cells += [
        nbformat.v4.new_markdown_cell("## Curves"),
        nbformat.v4.new_code_cell("more()", metadata={"papermill": {"status": "pending"}}),
        nbformat.v4.new_markdown_cell("## And more"),
    ]
    nbformat.write(nb, notebook)
    text = BeautifulSoup(notebook_page(notebook), "html.parser").text
    assert "Curves" not in text and "And more" not in text
    assert ("E: x" in text) == failed and ("What was shown." in text) != failed


def test_what_is_made_whole_stays_escaped():
    assert as_html("<i> `<b> --x`") == (
        '&lt;i&gt; <code>&lt;b&gt; <span class="whole">--x</span></code>'
    )


def test_a_time_is_said_once_where_the_clock_is_utc(monkeypatch):
    import time

    for zone, here in (("UTC", False), ("Asia/Seoul", True)):
        monkeypatch.setenv("TZ", zone)
        time.tzset()
        assert ("here" in pages_module._moment("2026-01-31T02:00:00+00:00", "en")) == here
    monkeypatch.undo()
    time.tzset()


def test_a_shared_axis_keeps_its_labels_in_another_language(monkeypatch):
    monkeypatch.setattr(pages_module, "korean_font", lambda: "DejaVu Sans")
    figure = Figure()
    left, right = figure.subplots(1, 2, sharey=True)
    left.set_yticks([0, 1], ["spacing (ko)", "champion"])
    with translated(figure, "ko"):
        figure.canvas.draw()
        assert [t.get_text() for t in left.get_yticklabels()] == ["spacing (ko)", "챔피언"]


def test_labels_are_named_in_the_counts_of_a_manifest():
    counts = {s: {"label": {"0": 5, "1": 6}} for s in ("train", "valid", "test")}
    table = manifest_tables({"counts": counts, "licences": {}})["Rows by label"]
    assert list(table.index) == ["clean", "toxic"] and table.loc["toxic", "test"] == 6


def test_a_count_in_the_table_of_triggers_is_a_count():
    from types import SimpleNamespace

    known = SimpleNamespace(name="new_samples", value=3, limit=100, fired=False, says="3 new")
    shown = table_html(show_triggers(SimpleNamespace(triggers=[known])))
    assert ">100<" in shown and ">3<" in shown


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_site_says_what_to_do_with_no_run_and_with_one(tmp_path, language):
    for n in (0, 1):
        settings = invent_runs(tmp_path / str(n), n, rows=20)
        build_site(settings.model_copy(update={"report_language": language}))
        for name in ("index.html", "compare.html") if not n else ("compare.html",):
            page = (tmp_path / str(n) / "runs" / name).read_text()
            assert "<code>content-arena pipeline run" in page, name


def test_a_trend_says_from_when_to_when(tmp_path):
    build_site(invent_runs(tmp_path, 6, rows=40))
    svg = BeautifulSoup((tmp_path / "runs" / "index.html").read_text(), "html.parser").svg
    days = [t.text for t in svg("text") if t.text.startswith("2026-")]
    assert days == ["2026-01-01", "2026-01-06"]


def test_a_korean_site_has_no_english_sentence_under_the_mouse_either(tmp_path):
    settings = invent_runs(tmp_path, 6, rows=40)
    for run in (tmp_path / "runs").glob("2026*"):
        file = run / "run.json"
        known = json.loads(file.read_text())
        if known["status"] == "failed":
            file.write_text(json.dumps(known | {"reason": "cell 3 raised KeyError: 'x'"}))
    build_site(settings.model_copy(update={"report_language": "ko"}))
    soup = BeautifulSoup((tmp_path / "runs" / "index.html").read_text(), "html.parser")
    titles = [t["title"] for t in soup(title=True)]
    assert titles and not [t for t in titles if is_english(t)]
    assert "예정" in soup.text and "schedule" not in soup.tbody.text


def test_a_range_is_said_in_korean_beside_numbers():
    frame = pd.DataFrame({"rate": ["0.9", "86.6 % (83.3 to 89.3)", "500"]})
    assert "86.6 % (83.3~89.3)" in dressed(table_html(Table(frame)), "ko")


def test_a_duration_has_the_units_of_the_language(tmp_path):
    settings = invent_runs(tmp_path, 2, rows=20)
    for run in (tmp_path / "runs").glob("2026*"):
        known = json.loads((run / "run.json").read_text())
        (run / "run.json").write_text(json.dumps(known | {"seconds": {"01_prepare": 3725}}))
    for language, shown in (("en", "1 h 2 min"), ("ko", "1시간 2분")):
        build_site(settings.model_copy(update={"report_language": language}))
        assert f">{shown}<" in (tmp_path / "runs" / "index.html").read_text()


def test_an_empty_cell_of_a_version_is_a_dash():
    made = datetime(2026, 11, 29, 18, tzinfo=timezone.utc)
    version = Version("content-filter", "7", "run", ("champion",), {}, "ab" * 32, made)
    page = version_page(version, [], [{"id": "ab12", "status": "completed"}], [], "# Card", "ko")
    soup = BeautifulSoup(page, "html.parser")
    assert "" not in [c.text for c in soup("td")] and "챔피언" in soup.dl.text

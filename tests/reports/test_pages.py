"""Pages: whatever a run holds, they are whole, ask nobody, run nothing, and say what to do next, in both languages."""

import re
import subprocess
import tomllib
from importlib.resources import files
from pathlib import Path

import nbformat
import pandas as pd
import pytest
from bs4 import BeautifulSoup
from report_pages import ENDINGS, comparison, display, facts, flat, run_folder

from content_arena.reports.page import Chart, notebook_page, page_html, write_page
from content_arena.reports.summary import page_summary, run_summary
from content_arena.reports.tables import Table, table_html
from content_arena.reports.texts import LANGUAGES, sentences, terms

ROOT = Path(__file__).resolve().parents[2]
PIPELINES = sorted((ROOT / "nbs" / "pipelines").glob("*.ipynb"))
HOSTILE = [
    "<script>document.body.dataset.ran = 1</script>",
    "<img src=x onerror='document.body.dataset.ran = 2'>",
    "<svg onload='document.body.dataset.ran = 3'></svg>",
    "</td></table><iframe srcdoc='<script>parent.document.body.dataset.ran = 4</script>'></iframe>",
    "\"><details open ontoggle='document.body.dataset.ran = 5'>",
    "[a](javascript:alert(1)) <style>*{display:none}</style>",
    "</title></style><script>document.body.dataset.ran = 6</script>",
    "<math><mi//xlink:href='data:x,<script>alert(1)</script>'>",
]


def test_every_sentence_is_there_in_both_languages_with_the_same_names():
    english, korean = (sentences(language) for language in LANGUAGES)
    assert english.keys() == korean.keys()
    for key in english:
        places = [set(re.findall(r"{(\w+)}", said[key])) for said in (english, korean)]
        assert places[0] == places[1], key
    words = re.compile(
        r"^(abilities|outcome|numbers|worst|worse|since|week|battle|summary|slices\.\w+_|checks|results|figures)"
    )
    same = [
        k for k, v in english.items() if words.match(k) and v == korean[k] and "command" not in k
    ]
    assert set(same) <= {"outcome.failed.means"}, "not translated"
    assert all(t.name and t.meaning for language in LANGUAGES for t in terms(language).values())


def test_no_two_figures_share_a_name():
    for language in LANGUAGES:
        names = [t.name for t in terms(language).values()]
        assert len(names) == len(set(names))


def test_no_code_calls_a_figure_by_another_name():
    table = files("content_arena.reports").joinpath("texts", "terms.toml")
    known = tomllib.loads(table.read_text(encoding="utf-8"))
    others = {a for part in known.values() for a in part.get("also", ()) if " " in a}
    said = re.compile("|".join(rf"[\"']{re.escape(a)}[\"',]" for a in sorted(others)))
    assert said.search("x = {'clean flagged': 1}") and not said.search("not detected")
    found = {
        (file.name, hit)
        for folder in ("reports", "workflows", "cli", "mlops")
        for file in (ROOT / "content_arena" / folder).glob("*.py")
        for hit in said.findall(file.read_text(encoding="utf-8"))
    }
    # rows of a table, in which the name of the side says which one it is
    assert found <= {("battle.py", '"seen families"'), ("battle.py", '"held-out families"')} | {
        ("battle.py", '"AUC, toxic against clean"')
    }


def test_the_prose_of_every_pipeline_notebook_is_there_in_korean():
    table = files("content_arena.reports").joinpath("texts", "notebooks.toml")
    known = tomllib.loads(table.read_text(encoding="utf-8"))
    for notebook in PIPELINES:
        cells = nbformat.read(notebook, as_version=4).cells
        wanted = {c.id for c in cells if c.cell_type == "markdown"}
        assert set(known.get(notebook.stem, {})) == wanted, notebook.stem
        assert all(re.search("[가-힣]", text) for text in known[notebook.stem].values())


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_outcome_has_an_ending_of_its_own(language):
    made = {ending: run_summary(facts(ending), "03_evaluate", language) for ending in ENDINGS}
    assert {s.outcome for s in made.values()} == set(ENDINGS)
    assert len({s.decision for s in made.values()}) == len(ENDINGS)
    assert all(s.command.startswith("content-arena ") and s.now for s in made.values())
    assert not any("{" in flat(s) or "None" in flat(s) or "nan" in flat(s) for s in made.values())
    assert "?" not in flat(made["rejected"]).replace("?)", "")


def test_a_manager_finds_the_numbers_and_the_command():
    served = flat(run_summary(facts("rejected")))
    assert (
        "Version 1 catches 84 of 100 toxic comments and flags 32 of 100 clean ones;"
        " when disguised 81 and 41." in served
    )
    assert "nobody calls you an idiot" in served and "10.0 points" in served
    assert "3 test rows were trained on" in flat(run_summary(facts("refused")))
    assert "--profile cpu" in run_summary(facts("failed")).command


def test_a_failed_stage_has_the_ending_and_others_their_own_subject():
    lost = {"read": 10, "used": 9, "quarantined": 1, "duplicates": 0, "cut": 0}
    known = facts("failed") | {"losses": lost, "training": {"f1": 0.8, "baseline": 0.7}}
    assert page_summary(known, "01_prepare").outcome == "data"
    assert page_summary(known, "02_train").outcome == "training"
    assert page_summary(known, "03_evaluate").outcome == "failed"


def hostile_page(folder: Path, language: str) -> Path:
    "A page that has hostile texts wherever a text of somebody else's can stand."
    frame = pd.DataFrame(dict.fromkeys(HOSTILE, HOSTILE), index=HOSTILE)
    outputs = [
        display(table_html(Table(frame))),
        display(frame.to_html(escape=False)),
        *[display(h) for h in HOSTILE],
        *[display(**{"text/markdown": h + f"\n\n| a |\n|---|\n| {h} |\n"}) for h in HOSTILE],
        *[display(**{"text/plain": h}) for h in HOSTILE],
        nbformat.v4.new_output("stream", name="stdout", text="\n".join(HOSTILE)),
        nbformat.v4.new_output("error", ename=HOSTILE[0], evalue=HOSTILE[1], traceback=HOSTILE),
    ]
    text = " ".join(HOSTILE)
    compared = comparison("reject") | {"reasons": HOSTILE, "decision": text}
    compared["slices"][0]["value"] = text
    run = {"status": "failed", "failed": "03_evaluate", "reason": text, "tracking": text}
    values = {"comparison": compared, "run": run, "dataset": {"id": text}}
    values["worst"] = dict(column="source", value=text, rows=40, wrong=9, of="clean", example=text)
    return write_page(run_folder(folder / language, values, outputs, "03_evaluate", language))


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_page_has_nothing_that_runs_or_asks(tmp_path, language):
    text = hostile_page(tmp_path, language).read_text(encoding="utf-8")
    soup = BeautifulSoup(text, "html.parser")
    assert not soup(["script", "iframe", "img", "svg", "math", "object", "link", "form"])
    assert len(soup("style")) == 1 and "secret_code" not in text
    for tag in soup(True):
        assert not [a for a in tag.attrs if a.startswith("on") or a in ("src", "srcdoc", "style")]
        assert not str(tag.get("href", "#")).startswith(("javascript", "data", "//"))
    policy = soup.find("meta", attrs={"http-equiv": "Content-Security-Policy"})["content"]
    assert "default-src 'none'" in policy and "script-src" not in policy
    assert "document.body.dataset.ran" in soup.get_text(), "hostile texts are to be shown as text"


def dom(page: Path, profile: Path) -> str:
    "The page's document after Chromium has loaded it."
    command = [
        "chromium",
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--dump-dom",
    ]
    found = subprocess.run(
        [*command, f"--user-data-dir={profile}", page.as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert "<html" in found.stdout, found.stderr
    return found.stdout


@pytest.mark.needs("chromium")
@pytest.mark.slow
def test_nothing_runs_in_a_browser(tmp_path):
    shown = dom(hostile_page(tmp_path, "en"), tmp_path / "profile")
    assert "data-ran" not in shown and "<h1>" in shown
    unsafe = tmp_path / "unsafe.html"
    unsafe.write_text(f"<html><body>{''.join(HOSTILE[:2])}</body></html>")
    assert "data-ran" in dom(unsafe, tmp_path / "profile"), "the texts are not hostile"
    unsafe.write_text(page_html("t", "".join(HOSTILE)))
    assert "data-ran" not in dom(unsafe, tmp_path / "profile"), "the policy alone holds too"


def test_a_picture_has_a_title_and_a_description(tmp_path):
    data, about = Chart(figsize=(2, 1)).about("lengths", splits="train")._repr_mimebundle_()
    output = nbformat.v4.new_output("display_data", data=data, metadata=about)
    for language, title in (("en", "Length of comments"), ("ko", "댓글의 길이")):
        notebook = run_folder(tmp_path / language, {}, [output], "01_prepare", language)
        soup = BeautifulSoup(notebook_page(notebook), "html.parser")
        assert soup.figure.figcaption.text == title and "train" in soup.figure.img["alt"]
        assert soup.figure.img["src"].startswith("data:image/png;base64,")
        assert soup.html["lang"] == language


def test_a_korean_page_has_no_english_sentence_of_its_own(tmp_path):
    output = [
        display(table_html(Table(pd.DataFrame({"recall": [81.0], "rows": [3]}, ["champion"]))))
    ]
    values = {"run": {"status": "running", "started": "2026-01-31T02:00:00+00:00"}}
    for ending in ENDINGS:
        named = values | {k: v for k, v in ENDINGS[ending].items() if v}
        notebook = run_folder(tmp_path / ending, named, output, "03_evaluate", "ko")
        soup = BeautifulSoup(notebook_page(notebook), "html.parser")
        for part in soup(["code", "pre", "head"]):
            part.decompose()
        said = soup.get_text(" ").replace("Title", "").replace("Lead", "")
        said = said.replace("3 test rows were trained on", "").replace("the service serves 1", "")
        said = re.sub(r"content-arena [a-z ]+", "", said).replace("process 7 deploys", "")
        assert not re.findall(r"[A-Za-z]+ [a-z]+ [a-z]+", said), ending


def test_sister_pages_and_tables_are_reachable(tmp_path):
    notebook = run_folder(tmp_path / "run", ENDINGS["promoted"], [], "03_evaluate", "en")
    (tmp_path / "run" / "01_prepare.html").touch()
    (tmp_path / "index.html").touch()
    battle = tmp_path / "battle-ab12"
    battle.mkdir()
    (battle / "05_battle.html").touch()
    soup = BeautifulSoup(notebook_page(notebook), "html.parser")
    links = {a["href"] for a in soup.nav("a")}
    assert links == {
        "01_prepare.html",
        "03_evaluate.html",
        "../battle-ab12/05_battle.html",
        "../index.html",
    }
    assert soup.find("a", class_="skip")["href"] == "#content" and soup.find(id="content")

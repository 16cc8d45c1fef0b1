"""The site as a reader has it: opened from the file system in a browser, searched, sorted, and two runs compared."""

import json
import re
import subprocess
from datetime import datetime, timezone
from pathlib import Path

import pandas as pd
import pytest
import typer
from site_runs import invent_run, invent_runs

from content_arena.cli import runs as commands
from content_arena.mlops.registry_reader import Version
from content_arena.reports import site as pages_of_runs
from content_arena.reports.site import PublishError, build_site, publish_site


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    settings = invent_runs(folder, 12, rows=200)
    assert build_site(settings)["runs"] == 12
    return folder, settings


def shown(folder: Path, page: str, fragment: str) -> str:
    "What is in the page once its script has run, with this fragment in the address."
    command = [
        "chromium",
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--virtual-time-budget=5000",
    ]
    command += [
        f"--user-data-dir={folder}/browser",
        "--dump-dom",
        f"file://{folder}/runs/{page}#{fragment}",
    ]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout


def listed(dom: str) -> list[str]:
    "The runs that are shown, in their order."
    body = dom.partition("<tbody>")[2].partition("</tbody>")[0]
    lines = [
        line
        for line in re.findall(r"<tr.*?</tr>", body, re.DOTALL)
        if " hidden" not in line.partition(">")[0]
    ]
    return [re.search(r'value="([^"]+)"', line)[1] for line in lines]


@pytest.mark.slow
@pytest.mark.needs("chromium")
def test_search_sort_and_filter_in_a_browser(site):
    folder, _ = site
    dom = shown(folder, "index.html", "outcome=rejected&sort=f1&desc=1")
    runs = listed(dom)
    assert len(runs) == 5 and "5 of 12 runs" in dom
    body = dom.partition("<tbody>")[2]
    f1 = [
        float(re.search(rf'value="{run}".*?<td class="n" data-v="([\d.]+)"', body, re.DOTALL)[1])
        for run in runs
    ]
    assert f1 == sorted(f1, reverse=True)
    one = listed(shown(folder, "index.html", "q=000007-0007"))
    assert len(one) == 1 and one[0].endswith("000007-0007")


@pytest.mark.slow
@pytest.mark.needs("chromium")
def test_two_runs_side_by_side_in_a_browser(site):
    folder, _ = site
    runs = sorted(p.name for p in (folder / "runs").glob("2026*"))
    one, other = (next(r for r in runs if r.endswith(end)) for end in ("0001", "0002"))
    dom = shown(folder, "compare.html", f"a={one}&b={other}")
    assert "difference, 95 % paired" in dom and "Same 200 test comments for both" in dom
    assert "Comments that flipped" in dom and re.search(
        r"[1-9]\d* of 200 are judged differently", dom
    )
    assert "<td>seed</td><td>1</td><td>2</td>" in dom
    assert "onerror" not in dom.partition('id="data"')[0] and "<img" not in dom, (
        "a comment is markup or unmasked"
    )
    versions = shown(folder, "compare.html", "a=v2&b=v3")
    assert "difference, 95 % paired" in versions, "versions stand for the runs that made them"


def test_nothing_on_the_pages_is_asked_of_anybody(site):
    folder, _ = site
    for page in (folder / "runs").glob("*.html"):
        text = page.read_text()
        assert "default-src 'none'" in text
        assert not re.findall(r'(?:src|href)="(?:https?:)?//', text), page.name


def test_only_what_changed_is_written(site):
    folder, settings = site
    assert build_site(settings)["pages"] == 0
    index = (folder / "runs" / "index.html").read_text()
    texts = pd.read_parquet(folder / "data" / "test.parquet")
    added = invent_run(folder, 77, texts)
    assert build_site(settings)["pages"] == 2
    assert added.name in (folder / "runs" / "index.html").read_text() and added.name not in index


@pytest.mark.parametrize(
    "leak, what",
    [
        ("https://hooks.slack.com/" + "services/T000/B000", "a webhook"),
        ("/home" + "/somebody/content_arena/runs", "a home folder"),
        ("<img src=x onerror=alert(3)> comment number 3", "a comment that is not masked"),
    ],
)
def test_a_leak_stops_publishing_and_names_the_cell(tmp_path, leak, what):
    settings = invent_runs(tmp_path, 2, rows=20)
    build_site(settings)
    assert publish_site(settings, tmp_path / "public") >= 4
    run = sorted((tmp_path / "runs").glob("2026*"))[0]
    cells = [
        {"cell_type": "code", "source": "1", "outputs": []},
        {"cell_type": "code", "source": "2", "outputs": [{"text": [leak]}]},
    ]
    (run / "02_train.ipynb").write_text(json.dumps({"cells": cells}))
    with pytest.raises(PublishError, match=rf"{run.name}/02_train.ipynb, cell 2: {what}"):
        publish_site(settings, tmp_path / "again")
    assert not (tmp_path / "again").exists()


def test_where_a_run_was_made_is_not_published(tmp_path):
    "A runner's own folder stands in every notebook that papermill ran there."
    settings = invent_runs(tmp_path, 1, rows=20)
    build_site(settings)
    (run,) = (tmp_path / "runs").glob("2026*")
    there = "/home" + f"/runner/work/arena/runs/{run.name}"
    notebook = {
        "metadata": {"papermill": {"parameters": {"run_dir": there}}},
        "cells": [{"cell_type": "code", "source": f"run_dir = '{there}'", "outputs": []}],
    }
    (run / "01_prepare.ipynb").write_text(json.dumps(notebook))
    publish_site(settings, tmp_path / "public")
    published = (tmp_path / "public" / run.name / "01_prepare.ipynb").read_text()
    assert "runner" not in published and f"./{run.name}" in published


class Registry:
    "One that lists two versions and can do nothing else, or not even that."

    def __init__(self, away: str = ""):
        self.away = away

    def versions(self) -> list[Version]:
        if self.away:
            raise ConnectionError(self.away)
        when = datetime(2026, 11, 29, tzinfo=timezone.utc)
        return [Version("content-filter", n, "run", (), {}, "ab" * 32, when) for n in ("7", "8")]


@pytest.mark.parametrize("language", ["en", "ko"])
def test_what_cannot_be_read_is_named_and_the_rest_is_written(tmp_path, monkeypatch, language):
    settings = invent_runs(tmp_path, 3, rows=20).model_copy(update={"report_language": language})
    (tmp_path / "mlflow.db").touch()
    monkeypatch.setattr(pages_of_runs, "RegistryReader", lambda settings: Registry())
    broken, *others = sorted((tmp_path / "runs").glob("2026*"), reverse=True)
    (broken / "comparison.json").write_text('{"counts": "many"}')
    built = build_site(settings)
    index = (tmp_path / "runs" / "index.html").read_text()
    assert built["runs"] == 2 and all(r.name in index for r in others)
    run, cards = built["notes"]
    assert broken.name in run and "ValueError" in run
    assert "7, 8" in cards and "AttributeError" in cards and "decisions verify" in cards
    assert all(note.partition(" (")[0].replace("'", "&#x27;") in index for note in built["notes"])
    for version in ("7", "8"):
        assert "ab" * 32 in (tmp_path / "runs" / "versions" / f"{version}.html").read_text()


def test_a_registry_that_is_away_is_said_on_stderr_with_the_next_command(
    tmp_path, monkeypatch, capsys
):
    settings = invent_runs(tmp_path, 2, rows=20)
    (tmp_path / "mlflow.db").touch()
    away = Registry(f"http://me:{'secret'}1@mlflow:5000/api/versions: refused")
    monkeypatch.setattr(pages_of_runs, "RegistryReader", lambda settings: away)
    monkeypatch.setattr(commands, "settings_from", lambda profile, p: settings)
    with pytest.raises(typer.Exit) as ended:
        commands.site_build()
    said = capsys.readouterr()
    assert ended.value.exit_code == 1 and "2 runs, 0 versions" in said.out
    assert "not read: " in said.err and "(ConnectionError)" in said.err
    assert "content-arena doctor" in said.err and "secret" not in said.err

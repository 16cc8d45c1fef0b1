"""Run All: a pipeline notebook that is opened finds the newest run, and an executed one its own; nothing is changed."""

import hashlib
import json
import os
from pathlib import Path

import nbformat
import pytest
from commands import arena
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parents[2]
STAGES = ("01_prepare", "02_train", "03_evaluate", "04_deploy")


@pytest.fixture(scope="module")
def reports(home, first):
    "The folders with executed notebooks: of the run, of a battle's report, of the week's."
    _, environment = home
    code, _, err = arena(environment, "battle", "run", "--rounds", "20", "--seed", "1")
    assert code == 0, err
    for command in (("battle", "report"), ("monitor", "report")):
        code, _, err = arena(environment, *command)
        assert code == 0, err
    return Path(first["run_dir"]).parent


def run_all(notebook: Path, environment: dict) -> nbformat.NotebookNode:
    "What JupyterLab does: its own kernel, in the notebook's folder; nothing is saved."
    nb = nbformat.read(notebook, as_version=4)
    client = NotebookClient(
        nb,
        timeout=300,
        kernel_name="python3",
        extra_arguments=["--IPKernelApp.log_level=ERROR"],
        resources={"metadata": {"path": str(notebook.parent)}},
    )
    project = {"CONTENT_ARENA_SETTINGS_FILE": str(ROOT / "settings.ini"), "PYTHONPATH": str(ROOT)}
    return client.execute(env={**os.environ, **environment, **project})


def files_in(folder: Path) -> dict[str, str]:
    "Hashes of all files that a run may leave, by path."
    chosen = (f for f in folder.rglob("*") if f.is_file() and f.suffix != ".lock")
    return {str(f.relative_to(folder)): hashlib.sha256(f.read_bytes()).hexdigest() for f in chosen}


def tables(nb: nbformat.NotebookNode) -> list[str]:
    "The HTML of every output."
    outputs = (o for c in nb.cells if c.cell_type == "code" for o in c.outputs)
    return [o["data"]["text/html"] for o in outputs if "text/html" in o.get("data", {})]


def registry_of(environment: dict) -> str:
    return (
        arena(environment, "registry", "history", "--json")[1]
        + arena(environment, "decisions", "list", "--json")[1]
    )


@pytest.mark.slow
@pytest.mark.parametrize("place", ["its own folder", "nbs/pipelines"])
def test_run_all_draws_the_run_again_and_changes_nothing(home, reports, place):
    _, environment = home
    before, registered = files_in(reports), registry_of(environment)
    executed = sorted(reports.glob("*/0*.ipynb"))
    assert {f.stem for f in executed} == {*STAGES, "05_battle", "06_monitor"}
    for file in executed:
        notebook = file if place != "nbs/pipelines" else ROOT / place / file.name
        source = notebook.read_bytes()
        drawn = run_all(notebook, environment)
        assert tables(drawn) == tables(nbformat.read(file, as_version=4)), file.name
        assert notebook.read_bytes() == source
    assert files_in(reports) == before
    assert registry_of(environment) == registered
    assert json.loads((next(reports.glob("2*")) / "run.json").read_text())["status"] == "finished"

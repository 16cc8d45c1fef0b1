"""Ctrl-C in real commands, at real moments: nothing of the libraries is shown, and the same command goes on."""

import json
import os
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import nbformat
import pytest

from commands import ROOT, state_of
from warm import python
from watch import Slack

from content_arena.testing.tiny_base import make_tiny_base


class Webhook(Slack):
    "Keeps whole messages."

    def keep(self, body: dict) -> None:
        self.messages.append(body)


CELLS = {
    "quick": "pass",
    "noisy": "import os; os.write(2, b'Traceback of a thread that nobody waits for')",
}
WAIT = """import os, signal, time
from pathlib import Path
here = Path(run_dir).parents[1]
{}
(here / "started").touch()
while not (here / "go").exists():
    {}"""
SLEEP, DEAF = (
    WAIT.format("", "time.sleep(0.1)"),
    WAIT.format("signal.signal(signal.SIGINT, signal.SIG_IGN)", "time.sleep(0.1)"),
)


def program(folder: Path, store: Path, second: str) -> dict[str, str]:
    "A folder with the pipeline's four notebooks, all small; the environment of commands there."
    (folder / "nbs/pipelines").mkdir(parents=True)
    shutil.copy(ROOT / "settings.ini", folder)
    shutil.copy(store, folder / "mlflow.db")
    make_tiny_base(folder / "tiny")  # a run asks for its base before anything else
    for i, name in enumerate(("01_prepare", "02_train", "03_evaluate", "04_deploy")):
        given = nbformat.v4.new_code_cell("run_dir = ''", metadata={"tags": ["parameters"]})
        cell = nbformat.v4.new_code_cell(second if i == 1 else CELLS["quick"])
        nb = nbformat.v4.new_notebook(cells=[given, cell])
        nb.metadata.kernelspec = {
            "name": "python3",
            "language": "python",
            "display_name": "python3",
        }
        nbformat.write(nb, folder / f"nbs/pipelines/{name}.ipynb")
    return state_of(folder, SETTINGS_FILE=folder / "settings.ini") | {"PYTHONPATH": str(ROOT)}


@pytest.fixture
def start():
    "Start a command in a folder; none outlives its test."
    started = []

    def begin(environment: dict, folder: Path, *arguments: str) -> subprocess.Popen:
        started.append(command_in(folder, environment, arguments))
        return started[-1]

    yield begin
    for process in started:
        process.kill()
        process.wait(60)


def command_in(folder: Path, environment: dict, arguments: tuple[str, ...]) -> subprocess.Popen:
    return subprocess.Popen(
        [python(), "-m", "content_arena", *arguments],
        cwd=folder,
        env=environment,
        text=True,
        stdout=open(folder / "stdout", "w"),
        stderr=open(folder / "stderr", "w"),
    )


def wait_for(folder: Path, process: subprocess.Popen, happened) -> None:
    until = time.monotonic() + 500
    while not happened():
        assert process.poll() is None and time.monotonic() < until, (folder / "stderr").read_text()
        time.sleep(0.02)


def ended(folder: Path, process: subprocess.Popen) -> tuple[int, str, list[str]]:
    code = process.wait(500)
    return code, (folder / "stdout").read_text(), (folder / "stderr").read_text().splitlines()


OURS = (
    r"(run|going on with) \S+ \(profile none\)|0\d_\w+: (running|done before|completed in \d+ s)"
    r"|what was run until now is in MLflow"
    # the stages stand in for real ones: the versions that they register have no files
    r"|the pages of all runs: Model cards that can't be read, .*"
)


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["in a cell", "as the kernel starts", "in a cell that is deaf"])
def test_an_interrupted_run_says_so_in_one_line_and_is_continued(
    moment, start, three_versions_store, tmp_path
):
    environment = program(tmp_path, three_versions_store, DEAF if "deaf" in moment else SLEEP)
    process = start(environment, tmp_path, "pipeline", "run", "--new", "-p", "epochs=3", "--json")
    wait_for(
        tmp_path,
        process,
        lambda: (
            "02_train: running" in (tmp_path / "stderr").read_text()
            if "starts" in moment
            else (tmp_path / "started").exists()
        ),
    )
    process.send_signal(signal.SIGINT)
    code, out, said = ended(tmp_path, process)
    assert code == 130 and out == ""
    assert said[-1] == (
        "interrupted; the same command goes on with it:"
        " content-arena pipeline run -p epochs=3 --json"
    )
    assert [line for line in said[:-1] if not re.fullmatch(OURS, line)] == []
    [state] = [json.loads(f.read_text()) for f in tmp_path.glob("runs/*/run.json")]
    assert state["done"] == ["01_prepare"] and state["status"] == "cancelled"  # it has not failed
    (tmp_path / "go").touch()
    code, out, said = ended(tmp_path, start(environment, tmp_path, *said[-1].split()[9:]))
    assert code == 0, said
    assert (
        said[0].startswith(f"going on with {state['run_id']}") and "01_prepare: done before" in said
    )
    assert json.loads(out)["run_dir"].endswith(state["run_id"])
    assert [line for line in said if not re.fullmatch(OURS, line)] == []


@pytest.mark.slow
def test_a_cancelled_workflow_keeps_what_was_run_and_tells(start, three_versions_store, tmp_path):
    webhook = Webhook()
    step = {
        "GITHUB_ACTIONS": "true",
        "GITHUB_OUTPUT": str(tmp_path / "output"),
        "GITHUB_STEP_SUMMARY": str(tmp_path / "summary.md"),
        "GITHUB_SERVER_URL": "https://github.example",
        "GITHUB_REPOSITORY": "me/filter",
        "GITHUB_RUN_ID": "4711",
        "CONTENT_ARENA_SLACK_WEBHOOK_URL": webhook.url,
    }
    environment = program(tmp_path, three_versions_store, SLEEP) | step
    process = start(environment, tmp_path, "pipeline", "run")
    wait_for(tmp_path, process, lambda: (tmp_path / "started").exists())
    process.send_signal(signal.SIGTERM)
    code, _, said = ended(tmp_path, process)
    webhook.close()
    assert code == 143, said
    assert [line for line in said if line.startswith("::warning title=content-arena terminated::")]
    assert "outcome=terminated\n" in (tmp_path / "output").read_text()
    assert (
        "https://github.example/me/filter/actions/runs/4711"
        in (tmp_path / "summary.md").read_text()
    )
    logged = {f.name for f in tmp_path.glob("artifacts/*/artifacts/reports/*")}
    assert {"01_prepare.html", "02_train.ipynb", "02_train.html"} <= logged
    index, page = ((tmp_path / "runs").glob(p) for p in ("index.html", "*/02_train.html"))
    assert 'data-outcome="cancelled"' in next(index).read_text()  # the list of runs knows it too
    assert "Cancelled in Training" in next(page).read_text()
    [notice] = webhook.messages
    assert "stopped from outside" in json.dumps(notice) and "actions/runs/4711" in json.dumps(
        notice
    )


@pytest.mark.slow
def test_what_a_kernel_says_outside_of_cells_is_beside_the_notebook(
    start, three_versions_store, tmp_path
):
    environment = program(tmp_path, three_versions_store, CELLS["noisy"])
    code, out, said = ended(tmp_path, start(environment, tmp_path, "pipeline", "run"))
    assert code == 0 and [line for line in said if not re.fullmatch(OURS, line)] == [], said
    [log] = tmp_path.glob("runs/*/*.kernel.log")
    assert log.name == "02_train.kernel.log" and b"nobody waits" in log.read_bytes()


def test_a_stopped_service_ends_without_frames(start, three_versions_store, tmp_path):
    environment = program(tmp_path, three_versions_store, CELLS["quick"]) | {
        "CONTENT_ARENA_LOG_REQUESTS": "false"
    }
    process = start(environment, tmp_path, "serve", "--port", "0")
    wait_for(tmp_path, process, lambda: "http://" in (tmp_path / "stdout").read_text())
    os.kill(process.pid, signal.SIGINT)
    code, _, said = ended(tmp_path, process)
    assert code == 0 and "Traceback" not in "\n".join(said), said

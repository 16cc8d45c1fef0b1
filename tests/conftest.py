"""Fixtures that the tests of several stations share."""

import json
import os
from pathlib import Path

import needs as outside
import pytest
from needs import needs

# Everything that a test talks to is on this machine. What the environment does to a call is tested
# where a test sets it (test_environment.py).
for _name in [n for n in os.environ if n.lower() in ("http_proxy", "https_proxy", "all_proxy")]:
    del os.environ[_name]
# Commands that a test calls in its own process do not come through `cli.main`, which does this.
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")


def pytest_addoption(parser):
    parser.addoption(
        "--require",
        default="",
        metavar="PART,...",
        help=f"fail, instead of skip, tests without these: {','.join(outside.PARTS)}",
    )
    parser.addoption("--fuzz", type=int, default=300, help="requests made up by schemathesis")
    parser.addoption("--fuzz-files", type=int, default=200, help="damaged tables that are read")
    parser.addoption("--soak", type=int, default=30, help="reloads of the service under load")
    parser.addoption("--starts", type=int, default=10, help="starts of `serve` with a challenger")
    parser.addoption("--all-nights", action="store_true", help="also the tests marked `nights`")
    parser.addoption(
        "--every",
        type=int,
        default=6,
        metavar="N",
        help="each fault of a machine meets every N-th command, another part for each (1: all)",
    )


def pytest_configure(config):
    outside.required |= outside.chosen(config.getoption("require"))


def pytest_runtest_setup(item):
    for mark in item.iter_markers("needs"):
        needs(*mark.args)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """With --require, a test that is skipped for any other reason than a part that is not here fails too."""
    report = yield
    if (
        outside.required
        and report.skipped
        and not outside.reason_of(report).startswith(outside.ABSENT)
    ):
        report.outcome = "failed"
        report.longrepr = f"skipped, but not by tests/support/needs.py: {outside.reason_of(report)}"
    return report


def pytest_terminal_summary(terminalreporter):
    for line in outside.not_tested(terminalreporter.stats.get("skipped", [])):
        terminalreporter.write_line(line)


def pytest_collection_modifyitems(config, items):
    """Files marked `first` first: they fork, while there is little to copy; then those marked `long`, the longest first.

    What one core begins last, the other waits for."""

    def place(item) -> tuple[int, float]:
        long = item.get_closest_marker("long")
        return (
            (0, 0) if item.get_closest_marker("first") else (1, -long.args[0]) if long else (2, 0)
        )

    items.sort(key=place)
    if not config.getoption("--all-nights"):
        left_out = [i for i in items if i.get_closest_marker("nights")]
        items[:] = [i for i in items if i not in left_out]
        config.hook.pytest_deselected(items=left_out)


@pytest.fixture(scope="session")
def data_dir() -> Path:
    "Folder of the real labelled comments."
    needs("data")
    return Path(os.environ["CONTENT_ARENA_DATA_DIR"])


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory) -> Path:
    "A database with MLflow's tables and no rows of ours: making one takes seconds, copying it none."
    from forks import MlflowClient  # one that does not wait for the disk

    file = tmp_path_factory.mktemp("store") / "mlflow.db"
    MlflowClient(f"sqlite:///{file}").search_registered_models(max_results=1)
    return file


@pytest.fixture(scope="session")
def three_versions_store(empty_store, tmp_path_factory) -> Path:
    "The same with a registered model: v1 is `previous`, v2 champion, v3 challenger."
    from forks import copy_store, make_three_versions

    root = tmp_path_factory.mktemp("three")
    copy_store(empty_store, root)
    make_three_versions(root)
    return root / "mlflow.db"


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with data, base model and local state; the environment that points there."""
    from commands import make_home  # brings torch: only if needed

    return make_home(tmp_path_factory.mktemp("home"))


@pytest.fixture(scope="module")
def first(home):
    """Result of the first pipeline run in `home`: version 1 is champion."""
    from commands import arena

    code, out, err = arena(home[1], "pipeline", "run", "--json")
    assert code == 0, err
    return json.loads(out.splitlines()[-1])


@pytest.fixture(scope="session")
def postgres():
    "A running PostgreSQL of our own; a test that stops it starts it again."
    needs("postgres")
    from postgres import Postgres

    server = Postgres()
    try:
        server.start()
        yield server
    finally:
        server.close()


@pytest.fixture(params=["sqlite", "postgresql"])
def store_url(request, tmp_path) -> str:
    "The URL of an empty database, of each kind in turn."
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'events.db'}"
    return request.getfixturevalue("postgres").new()

"""The repository's rules: what may import what, what a notebook may hold, what a workflow may run.

Each rule is a function from files to a list of problems. The list is asserted to be empty for the
repository, and not to be for a small one with the fault planted: what can't fail is no check.
"""
import ast
import configparser
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from importlib import metadata
from os.path import commonprefix
from pathlib import Path

import nbformat
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from repository_files import (
    PACKAGE, ROOT, assert_none, code, directive, dotted, exported_lines, imported, modules_of, names_used, notebook,
    notebooks, parsed)

from content_arena.core.config import Settings, load_settings

BY_HAND = {"__init__.py", "__main__.py", "_modidx.py"}  # nbdev marks the last one in its own way
MAX_CELL, MAX_NOTEBOOK, MAX_LINE = 45, 450, 100


# Reading notebooks -------------------------------------------------------------------------------


# Reading the package -----------------------------------------------------------------------------


def import_problems(root: Path = ROOT) -> list[str]:
    "Imports that point down: into a later room, or a later notebook of the same room."
    trees = parsed(root)
    rank = {name: i for i, name in enumerate(modules_of(root))} | {"__main__": sys.maxsize}
    room = {name: paths[0].split("/")[1] for name, paths in modules_of(root).items()}
    packages = {"", *(name.rpartition(".")[0] for name in trees)}
    problems = []
    for name, tree in trees.items():
        for line, target in imported(name, tree, name in packages):
            head, _, inner = target.partition(".")
            if head != PACKAGE:
                continue
            used = next((m for m in (inner, inner.rpartition(".")[0]) if m in rank), None)
            where = f"{PACKAGE}.{name}:{line} imports {target}"
            if used is None and inner not in {"", "__version__", *packages}:
                problems.append(f"{where}, which no notebook makes")
            elif used and name not in rank:
                problems.append(f"{where}: a package's own file imports nothing")
            elif used and rank[used] >= rank[name]:
                problems.append(f"{where}: {room[used]} comes after {room.get(name, name)}")
    return problems


def only_in(allowed: str | None, pattern: str, root: Path = ROOT) -> list[str]:
    "Uses of names that match `pattern` outside the modules that match `allowed` (None: anywhere)."
    return [f"{PACKAGE}.{name}:{line} uses {use}" for name, tree in parsed(root).items()
            if not re.fullmatch(allowed or "(?!)", name) for line, use in names_used(name, tree) if re.search(pattern, use)]


ENVIRONMENT = r"^os\.(environb?|getenvb?|putenv|unsetenv)$"
ALIASES = r"\.(set|delete)_registered_model_alias$"
PAPERMILL = r"^papermill\b"
HTTP = (r"^httpx\.(get|post|put|patch|delete|head|options|request|stream|(Async)?Client)\(\)$"
        r"|^(Async)?Client\(\)$|^httpx\.(get|post|put|patch|delete|request|stream)$"
        r"|^(requests|aiohttp|urllib3|http\.client|urllib\.request)\b")
SQL = r"^(sqlalchemy|alembic|psycopg)\b"
PICKLE = (r"^(pickle|cloudpickle|dill|joblib|shelve|marshal)\b|(^|\.)torch\.(load|save)$|_pickle$"
          r"|\((allow_pickle|python_model)=\)$|^mlflow\.(sklearn|pytorch|xgboost)\b")

# A repository with faults ------------------------------------------------------------------------


# Modules -----------------------------------------------------------------------------------------


def test_rooms_import_upwards_only():
    assert_none(import_problems())


@pytest.mark.parametrize("upper, lower, fault", [
    ("x = 1", "from content_arena.core.config import x", ""),
    ("x = 1", "from ..config import x", ""),
    ("import content_arena.mlops.gate", "x = 1", "config:1 imports content_arena.mlops.gate:"),
    ("from .mlops.gate import x", "x = 1", "config:1 imports content_arena.mlops.gate.x:"),
    ("from content_arena.mlops import gate", "x = 1", "03_mlops comes after 00_core"),
    ("def f():\n    from .mlops import gate", "x = 1", "config:2 imports content_arena.mlops.gate"),
    ("from .gone import x", "x = 1", "content_arena.gone.x, which no notebook makes"),
])
def test_an_import_that_points_down_is_found(plant, upper: str, lower: str, fault: str):
    root = plant(("00_core/00_config", "config", upper), ("03_mlops/00_gate", "mlops.gate", lower))
    problems = import_problems(root)
    assert [fault in p for p in problems] == ([True] if fault else [])


def test_within_a_room_the_order_is_that_of_the_notebooks(plant):
    uses_b = "from content_arena.mlops.b import x"
    root = plant(("03_mlops/00_a", "mlops.a", uses_b), ("03_mlops/01_b", "mlops.b", "x = 1"))
    assert len(import_problems(root)) == 1
    (root / "nbs/03_mlops/00_a.ipynb").rename(root / "nbs/03_mlops/02_a.ipynb")
    assert import_problems(root) == []


def test_a_module_has_one_notebook_and_a_notebook_one_module(plant):
    def claimed_twice(root: Path = ROOT) -> dict[str, list[str]]:
        return {name: paths for name, paths in modules_of(root).items() if len(paths) > 1}
    assert_none(claimed_twice())
    root = plant(("00_core/00_config", "config", "x = 1"), ("00_core/01_ini", "config", "x = 2"))
    assert [Path(p).stem for p in claimed_twice(root)["config"]] == ["00_config", "01_ini"]
    for path, nb in notebooks().items():
        wanted = 1 if re.match(r"nbs/\d\d_", path) else 0
        assert sum(directive(s, "default_exp") is not None for _, s in code(nb)) == wanted, path


def test_nothing_in_the_package_is_written_by_hand():
    texts = {f.relative_to(ROOT / PACKAGE).as_posix(): f.read_text(encoding="utf-8")
             for f in (ROOT / PACKAGE).rglob("*.py")}
    assert {name for name, text in texts.items()
            if text.strip() and "# AUTOGENERATED! DO NOT EDIT!" not in text} == BY_HAND


@pytest.mark.parametrize("allowed, pattern, faults", [
    ("config", ENVIRONMENT, ["import os\nx = os.environ['A']", "import os\nx = os.getenv('A')",
                             "from os import environ"]),
    ("mlops.model_registry", ALIASES, ["client.set_registered_model_alias('a', 'b', 1)",
                                       "def f(c): c.delete_registered_model_alias('a', 'b')"]),
    ("http_clients", HTTP, [
        "import httpx\nhttpx.get('http://127.0.0.1')", "import httpx\nc = httpx.Client()",
        "from httpx import AsyncClient\nc = AsyncClient(timeout=1)", "import requests",
        "from urllib.request import urlopen", "from httpx import post"]),
    (r"store(_\w+)?|migrations\.\w+", SQL, ["import sqlalchemy as sa", "from alembic import op",
                                             "def f():\n    import psycopg"]),
    ("pipeline", PAPERMILL, ["import papermill as pm", "from papermill.execute import ExecuteX"]),
    (None, PICKLE, ["import pickle", "from joblib import load", "import torch\ntorch.load('a')",
                  "import numpy as np\nnp.load('a', allow_pickle=True)", "df.to_pickle('a')",
                  "import mlflow\nmlflow.pyfunc.log_model(python_model=m)"]),
])
def test_each_job_is_done_in_one_place(plant, allowed: str | None, pattern: str, faults: list[str]):
    assert_none(only_in(allowed, pattern))
    for fault in faults:
        root = plant(("04_arena/00_battle", "arena.battles.battle", fault))
        assert only_in(allowed, pattern, root) != [], fault
        assert only_in("arena.battles.battle", pattern, root) == []


# Notebooks ---------------------------------------------------------------------------------------


def size_problems(nb: nbformat.NotebookNode) -> list[str]:
    problems, total = [], 0
    for i, source in code(nb):
        wide = [line for line in source.splitlines() if len(line) > MAX_LINE]
        problems += [f"cell {i}: {len(line)} characters: {line.strip()[:50]}…" for line in wide]
        if lines := exported_lines(source):
            total += len(lines)
            if len(lines) > MAX_CELL:
                problems.append(f"cell {i}: exports {len(lines)} lines: {lines[0][:50]}")
    return problems + [f"{total} exported lines in one notebook"] * (total > MAX_NOTEBOOK)


def export_problems(nb: nbformat.NotebookNode) -> list[str]:
    "What STYLE forbids in exported cells, and a notebook that doesn't start by saying what it is."
    problems = []
    for i, source in code(nb):
        if exported_lines(source) is None:
            continue
        if directive(source, "exporti?"):
            problems.append(f"cell {i}: exports into another module")
        for node in ast.walk(ast.parse("\n".join(exported_lines(source)))):
            if isinstance(node, ast.ImportFrom) and (node.level or node.names[0].name == "*"):
                problems.append(f"cell {i}: relative or star import")
    top = nb.cells[0].source if nb.cells else ""
    return problems + ["no title and summary on top"] * (not re.match(r"# .+\n+> \S", top))


PRIVATE = {
    "local path": r"(?<![\w.~-])/(?:home|work|root|Users|tmp|private|mnt|media|var/folders)/[\w.-]"
                  r"|[A-Z]:\\Users\\",
    "e-mail address": r"[\w.+-]+@(?!example\.)[\w-]+\.(?:com|org|net|io|kr|edu|gov|ai|dev|co)\b",
    "secret": r"\b(?:AKIA[0-9A-Z]{16}|gh[pousr]_\w{36}|github_pat_\w{22}|hf_[A-Za-z]{30}"
              r"|xox[abprs]-[\w-]{10}|sk-\w{32})|-----BEGIN [A-Z ]*PRIVATE KEY"
              r"|hooks\.slack\.com/services/T\w{8}|://\w+:[^@\s/]{8,}@",
    "memory address": r"\b(?:at|object) 0x[0-9a-f]{6,}",
}


def texts(nb: nbformat.NotebookNode) -> Iterator[tuple[str, str]]:
    "Every text in a notebook that a reader can see: sources, and outputs but for images."
    for i, cell in enumerate(nb.cells):
        yield f"cell {i}", cell.source
        for out in cell.get("outputs", []):
            shown = [out.get("text", ""), *out.get("traceback", [])]
            shown += [v for k, v in out.get("data", {}).items() if not re.match("image/(?!svg)", k)]
            yield f"output of cell {i}", "\n".join(str(s) for s in shown)


def private_problems(nb: nbformat.NotebookNode) -> list[str]:
    problems = [f"{where}: {what}: {found[0]}" for where, text in texts(nb)
                for what, pattern in PRIVATE.items() if (found := re.search(pattern, text))]
    return problems + [f"cell {i}: saved with an error" for i, c in enumerate(nb.cells)
                       if any(o.output_type == "error" for o in c.get("outputs", []))]


@pytest.mark.parametrize("check", [size_problems, export_problems, private_problems])
def test_notebooks_keep_to_the_style(check: Callable):
    chosen = {path: nb for path, nb in notebooks().items()
              if check is not export_problems or re.match(r"nbs/\d\d_", path)}
    assert chosen
    assert_none({path: check(nb) for path, nb in chosen.items()})


@pytest.mark.parametrize("check, faulty", [
    (size_problems, notebook("x = 1" + " " * 96)),
    (size_problems, notebook("#| export\n" + "x = 1\n" * 46)),
    (size_problems, notebook(*["#| export\n" + "x = 1\n" * 41] * 11)),
    (export_problems, notebook("#| export mlops.gate\nx = 1")),
    (export_problems, notebook("#| export\nfrom math import *")),
    (export_problems, notebook("#| export\nfrom .text import mask")),
    (export_problems, notebook("x = 1", top="# T")),
    (private_problems, notebook("open('/home/me/x')")),
    (private_problems, notebook("x", output="sqlite:////root/var/mlflow.db")),
    (private_problems, notebook("x", output="<A object at 0x7f1234abcd>")),
    (private_problems, notebook("# ask someone@mail" + ".com")),
    (private_problems, notebook("token = 'hf" + "_" + "a" * 34 + "'")),
    (private_problems, notebook("uri = 'postgresql://me:" + "hunter22@db/mlflow'")),
])
def test_a_fault_in_a_notebook_is_found(check: Callable, faulty: nbformat.NotebookNode):
    assert len(check(faulty)) == 1
    assert check(notebook("#| export\nfrom math import pi\nurl = 'https://a.org/home/x'")) == []


def test_no_real_comment_is_published(data_dir: Path):
    "Thirty characters in a row of a real comment, in a notebook, a module or a test, are too many."
    files = [p for p in data_dir.rglob("*") if p.suffix in {".csv", ".tsv", ".txt"}]
    comments = [line for p in files
                for line in p.read_text("utf-8", errors="replace").splitlines()[1:]]
    pieces: dict[str, list[tuple[str, int]]] = {}
    for line in comments:
        for i in range(0, len(line) - 19, 10):
            if len(set(line[i:i + 20])) > 7:  # no rulers, no laughter
                pieces.setdefault(line[i:i + 20], []).append((line, i))
    assert pieces, f"no comments in {data_dir}"

    def in_a_row(text: str, i: int, line: str, j: int) -> int:
        "How many characters around text[i] and line[j] are the same."
        before = len(commonprefix([text[max(i - 30, 0):i][::-1], line[max(j - 30, 0):j][::-1]]))
        return before + len(commonprefix([text[i:i + 30], line[j:j + 30]]))

    def quoted(text: str) -> list[int]:
        return [i for i in range(len(text) - 19)
                if any(in_a_row(text, i, *place) >= 30 for place in pieces.get(text[i:i + 20], ()))]
    assert quoted(max(comments, key=len)) != []
    ours = {path: "\n".join(text for _, text in texts(nb)) for path, nb in notebooks().items()}
    ours |= {p.relative_to(ROOT).as_posix(): p.read_text(encoding="utf-8")
             for folder in ("tests", "scripts", PACKAGE) for p in (ROOT / folder).rglob("*.py")}
    assert_none({path: [f"at character {i}" for i in quoted(text)] for path, text in ours.items()})


# Parameters of the pipelines ---------------------------------------------------------------------


def parameter_problems(nb: nbformat.NotebookNode) -> list[str]:
    "One cell tagged `parameters`: commented literals, each a smoke setting, or the run's name."
    tagged = [c.source for c in nb.cells if "parameters" in c.metadata.get("tags", [])]
    if len(tagged) != 1:
        return [f"{len(tagged)} cells tagged parameters"]
    problems, smoke = [], load_settings("smoke", env={})
    lines = tagged[0].splitlines()
    for node in ast.parse(tagged[0]).body:
        text = ast.unparse(node)
        if not isinstance(node, ast.Assign) or "#" not in lines[node.end_lineno - 1]:
            problems.append(f"not an assignment with a comment: {text}")
            continue
        name = dotted(node.targets[0])
        try:
            value = ast.literal_eval(node.value)
        except ValueError:
            problems.append(f"not a literal: {text}")
            continue
        if name in ("run_id", "run_dir"):
            continue
        if name not in Settings.model_fields:
            problems.append(f"not a setting: {name}")
        elif getattr(load_settings("smoke", env={}, **{name: value}), name) != getattr(smoke, name):
            problems.append(f"{text}, but the smoke profile says {getattr(smoke, name)!r}")
    return problems


def test_parameters_are_settings_with_the_values_of_the_smoke_profile():
    found = {path: parameter_problems(nb) for path, nb in notebooks().items()
             if path.startswith("nbs/pipelines/")}
    names = [Path(path).stem for path in found]
    assert names[:4] == ["01_prepare", "02_train", "03_evaluate", "04_deploy"]
    assert_none(found)


def test_only_pipelines_and_benchmarks_have_parameters():
    tagged = {path.split("/")[1] for path, nb in notebooks().items()
              for c in nb.cells if "parameters" in c.metadata.get("tags", [])}
    assert tagged <= {"pipelines", "benchmarks"}


@pytest.mark.parametrize("source, fault", [
    ("seed = 0  # seed\nrun_id = ''  # id of the run\nsources = 'embedded'  # names", ""),
    ("seed = 1  # seed", "smoke profile says 0"),
    ("seed = 0", "with a comment"),
    ("sead = 0  # seed", "not a setting: sead"),
    ("seed = int('0')  # seed", "not a literal"),
    ("import os  # paths", "not an assignment"),
])
def test_a_faulty_parameter_is_found(source: str, fault: str):
    def tagged(times: int) -> nbformat.NotebookNode:
        cells = [nbformat.v4.new_code_cell(source, metadata={"tags": ["parameters"]})
                 for _ in range(times)]
        return nbformat.v4.new_notebook(cells=cells)
    assert [fault in p for p in parameter_problems(tagged(1))] == ([True] if fault else [])
    assert parameter_problems(tagged(2)) == ["2 cells tagged parameters"]


# Settings, packages, workflows, scripts ----------------------------------------------------------


def project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def test_settings_and_nbdev_share_no_key():
    ini = configparser.ConfigParser(interpolation=None)
    ini.read(ROOT / "settings.ini", encoding="utf-8")
    ours = {key for section in ini.sections() for key in ini[section]} | set(ini.defaults())
    assert ours and ours & set(project()["tool"]["nbdev"]) == set()


def pins() -> dict[str, str]:
    lines = (ROOT / "scripts/constraints.txt").read_text(encoding="utf-8").splitlines()
    requirements = [Requirement(line) for line in lines if line.strip() and line[0] != "#"]
    assert all(re.fullmatch(r"==[^*+]+", str(r.specifier)) for r in requirements), "name==version"
    return {canonicalize_name(r.name): r.specifier for r in requirements}


def needed(*requirements: str) -> dict[str, str]:
    "Name -> installed version of the requirements and all that these need on this machine."
    todo, done, versions = [(r, "") for r in requirements], set(), {}
    while todo:
        line, extra = todo.pop()
        r = Requirement(line)
        if r.marker and not r.marker.evaluate({"extra": extra}):
            continue
        versions[canonicalize_name(r.name)] = metadata.version(r.name)
        for chosen in {"", *r.extras} - {e for name, e in done if name == r.name}:
            done.add((r.name, chosen))
            todo += [(s, chosen) for s in metadata.requires(r.name) or ()]
    return versions


def test_every_package_is_pinned_and_every_pin_is_needed():
    about = project()["project"]
    installed = needed(*about["dependencies"], *about["optional-dependencies"]["dev"])
    ours = {n for n in installed if not re.match(r"(nvidia-|cuda-|triton$)", n)}  # torch pins these
    pinned = pins()
    assert ours - set(pinned) == set(), "not in scripts/constraints.txt"
    assert set(pinned) - set(installed) == set(), "in scripts/constraints.txt, but nothing needs it"
    assert_none(f"{n} {installed[n]} is installed, {pinned[n]} is pinned"
                for n in sorted(ours) if installed[n] not in pinned[n])


ONE_CALL = re.compile(r"""(scripts/[\w-]+|\.venv/bin/content-arena)( [\w./=,-]+| "\$\w+")*""")


def workflow_problems(text: str) -> list[str]:
    "A `run:` that isn't one call of ours, an action not pinned to a commit, a job without a limit."
    problems = []
    for name, job in yaml.safe_load(text)["jobs"].items():
        if "timeout-minutes" not in job:
            problems.append(f"{name}: no timeout-minutes")
        for step in job["steps"]:
            if "run" in step and not ONE_CALL.fullmatch(step["run"].strip()):
                problems.append(f"{name}: not one call of a script or the CLI: {step['run']}")
            uses = step.get("uses", "")
            if uses and not re.search(rf"{re.escape(uses)} # v\d+\.\d+\.\d+$", text, re.MULTILINE):
                problems.append(f"{name}: no version beside {uses}")
            if uses and not re.fullmatch(r"[\w.-]+/[\w./-]+@[0-9a-f]{40}", uses):
                problems.append(f"{name}: not pinned to a commit: {uses}")
            keeps = step.get("with", {}).get("persist-credentials", True)
            if uses.startswith("actions/checkout@") and keeps:
                problems.append(f"{name}: checkout keeps credentials")
    return problems


def test_workflows_only_call_what_can_be_called_here():
    files = sorted((ROOT / ".github/workflows").glob("*.y*ml"))
    assert [f.name for f in files] == ["test.yaml", "train.yaml"]
    for file in files:
        text = file.read_text(encoding="utf-8")
        assert_none(workflow_problems(text))
        for script in re.findall(r"run: (scripts/[\w-]+)", text):
            assert (ROOT / script).stat().st_mode & 0o111, f"{script} can't be run"


SHA = "a" * 40


@pytest.mark.parametrize("step, faults", [
    ("run: scripts/test", 0),
    ('run: .venv/bin/content-arena notify training --status "$STATUS"', 0),
    ("run: scripts/setup && scripts/test", 1),
    ("run: |\n          scripts/setup\n          scripts/test", 1),
    ("run: scripts/quickstart -p seed=${{ inputs.seed }}", 1),
    ("run: pip install torch", 1),
    (f"uses: actions/cache@{SHA} # v4.3.0", 0),
    (f"uses: actions/cache@{SHA}", 1),
    ("uses: actions/cache@v4", 2),
    (f"uses: actions/checkout@{SHA} # v6.0.2", 1),
])
def test_a_faulty_step_is_found(step: str, faults: int):
    job = f"jobs:\n  a:\n    timeout-minutes: 5\n    steps:\n      - {step}\n"
    assert len(workflow_problems(job)) == faults
    assert len(workflow_problems(job.replace("    timeout-minutes: 5\n", ""))) == faults + 1


def test_the_nightly_run_tests_trains_and_tells():
    flow = yaml.safe_load((ROOT / ".github/workflows/train.yaml").read_text(encoding="utf-8"))
    triggers = flow[True]  # YAML 1.1 reads the key `on` as a boolean
    assert triggers["schedule"] == [{"cron": "0 2 * * *"}]
    assert set(triggers["workflow_dispatch"]["inputs"]) == {"profile", "sources", "seed"}
    jobs = flow["jobs"]
    assert (jobs["train"]["needs"], jobs["notify"]["needs"]) == ("test", ["test", "train"])
    upload = next(s for s in jobs["train"]["steps"] if "upload-artifact" in s.get("uses", ""))
    assert upload["if"] == "always()" and jobs["notify"]["if"].startswith("always()")
    keys = {name.removeprefix("CONTENT_ARENA_").lower() for name in jobs["train"]["env"]}
    assert keys - set(Settings.model_fields) == {"profile"}


def test_setup_says_what_python_it_needs(tmp_path: Path):
    (tmp_path / "scripts").mkdir()
    shutil.copy(ROOT / "scripts/setup", tmp_path / "scripts")
    old = tmp_path / "python-old"
    old.write_text('#!/bin/sh\n[ "$1" = -V ] && echo Python 3.9.2\nexit 1\n')
    old.chmod(0o755)
    env = {"PATH": "/usr/bin:/bin", "PYTHON": str(old)}
    done = subprocess.run([tmp_path / "scripts/setup"], env=env, capture_output=True, text=True)
    assert done.returncode == 1 and not (tmp_path / ".venv").exists()
    assert "Python 3.11 or newer" in done.stderr and "too old (Python 3.9.2)" in done.stderr


def test_drift_between_notebooks_and_package_is_found(tmp_path: Path):
    for folder in ("scripts", "nbs/00_core", PACKAGE):
        (tmp_path / folder).mkdir(parents=True)
    shutil.copy(ROOT / "scripts/check-export", tmp_path / "scripts")
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    (tmp_path / PACKAGE / "__init__.py").write_text('__version__ = "0"\n')
    source = notebook("#| default_exp config", "#| export\nx = 1")
    nbformat.write(source, tmp_path / "nbs/01_core/40_config.ipynb")
    for command in ("nbdev-export", "nbdev-clean"):
        subprocess.run([Path(sys.executable).with_name(command)], cwd=tmp_path, check=True)

    def drift() -> str:
        check = [sys.executable, tmp_path / "scripts/check-export"]
        done = subprocess.run(check, capture_output=True, text=True)
        assert done.returncode == (1 if done.stdout else 0), done.stderr
        return done.stdout
    module = tmp_path / PACKAGE / "config.py"
    assert drift() == ""
    text = module.read_text()
    module.write_text(text.replace("x = 1", "x = 2"))
    assert "content_arena/core/config.py: differs" in drift() and "x = 2" in module.read_text()
    module.unlink()
    assert "content_arena/core/config.py: not exported" in drift()
    module.write_text(text)
    (tmp_path / PACKAGE / "old.py").write_text(text)
    assert "content_arena/old.py: stale" in drift()

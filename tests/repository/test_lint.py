"""Lint is asked of notebooks, tests and scripts alike, by `scripts/test lint` and by whoever uses pre-commit."""

import re
import shutil
import subprocess
import sysconfig
from pathlib import Path

import nbformat
import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sysconfig.get_path("scripts"))


@pytest.fixture
def small(tmp_path: Path) -> Path:
    "A repository with our configuration, the lint stage of scripts/test as a script, and no fault."
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    text = (ROOT / "scripts/test").read_text(encoding="utf-8")
    stage = re.search(r"^stage_lint\(\) \{\n.*?^\}", text, re.MULTILINE | re.DOTALL)[0]
    for folder in ("scripts", "nbs", "content_arena"):
        (tmp_path / folder).mkdir()
    (tmp_path / "scripts/map").write_text("#!/usr/bin/env python3\nprint(1)\n")
    (tmp_path / "lint.sh").write_text(f"cd {tmp_path}\nPATH={BIN}:$PATH\n{stage}\nstage_lint\n")
    notebook(tmp_path, "x = 1\nx")
    return tmp_path


def notebook(root: Path, source: str, text: str = "A title") -> None:
    cells = [nbformat.v4.new_markdown_cell(text), nbformat.v4.new_code_cell(source)]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), root / "nbs/10_text.ipynb")


def lint(root: Path) -> tuple[int, str]:
    done = subprocess.run(["bash", root / "lint.sh"], capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


def test_a_fault_is_found_wherever_it_is(small: Path):
    assert lint(small)[0] == 0, lint(small)[1]
    (small / "content_arena/made.py").write_text("import os\n")  # generated: not asked
    assert lint(small)[0] == 0
    notebook(small, "import os")
    assert lint(small)[0] == 1 and "F401" in lint(small)[1]
    notebook(small, "x = 1", "What is " + "reci" + "eved")
    assert lint(small)[0] != 0 and "received" in lint(small)[1]
    notebook(small, "x = 1")
    (small / "scripts/map").write_text("#!/usr/bin/env python3\nprint(y)\n")  # has no ending
    assert lint(small)[0] == 1 and "F821" in lint(small)[1]


def test_tests_and_scripts_are_laid_out_by_ruff_and_notebooks_by_hand(small: Path):
    notebook(small, "if 'a': x = [1,2]\nx")
    assert lint(small)[0] == 0, lint(small)[1]
    (small / "scripts/map").write_text("#!/usr/bin/env python3\nprint( [1,2])\n")
    assert lint(small)[0] == 1 and "--> scripts/map:2:7" in lint(small)[1]


def test_the_hooks_are_local_and_call_what_is_here():
    repos = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))["repos"]
    assert [repo["repo"] for repo in repos] == ["local"]
    hooks = {hook["id"]: hook for hook in repos[0]["hooks"]}
    assert set(hooks) == {"ruff", "ruff-format", "codespell", "export"}
    for hook in hooks.values():
        program, *arguments = hook["entry"].split()
        assert hook["language"] == "system" and (BIN / Path(program).name).exists(), hook["entry"]
        assert all((ROOT / a).exists() for a in arguments if a.startswith("scripts/"))

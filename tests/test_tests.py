"""Rules for the tests: how one is skipped, what an assertion may leave open, what a fake may not be.

As in test_repository.py: a rule is a function from files to problems, and is shown to find planted ones.
"""
import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from test_repository import ROOT, assert_none, dotted, names_used


def files_of_tests(root: Path = ROOT) -> list[Path]:
    return sorted((root / "tests").glob("*.py"))


def tree_of(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"), str(file))


@pytest.fixture
def planted(tmp_path: Path):
    "planted('x = 1'): a repository with that as its one file of tests."
    def make(source: str, name: str = "test_a.py") -> Path:
        (tmp_path / "tests").mkdir(exist_ok=True)
        (tmp_path / "tests" / name).write_text(source, encoding="utf-8")
        return tmp_path
    return make


# Skips -------------------------------------------------------------------------------------------

SKIPS = r"(^|\.)(skip|skipif|importorskip|xfail|skipIf|skipUnless|skipTest|SkipTest)$"


def skips(root: Path = ROOT) -> list[str]:
    "Tests that are skipped, or allowed to fail, past `needs`."
    return [f"tests/{file.name}:{line} uses {use}: say what it needs, with needs(...) of tests/needs.py"
            for file in files_of_tests(root) if file.name != "needs.py"
            for line, use in names_used("tests", tree_of(file)) if re.search(SKIPS, use)]


def needed_parts(file: Path) -> Iterator[str]:
    "What a file of tests needs from outside."
    for node in ast.walk(tree_of(file)):
        if isinstance(node, ast.Call) and dotted(node.func) in ("needs", "pytest.mark.needs"):
            yield from (a.value for a in node.args if isinstance(a, ast.Constant))


def test_nothing_is_skipped_past_needs():
    assert_none(skips())


@pytest.mark.parametrize("source", [
    "import pytest\ndef test_a(): pytest.skip('no')",
    "from pytest import skip\ndef test_a(): skip('no')",
    "import pytest\nnumpy = pytest.importorskip('numpy')",
    "import pytest\n@pytest.mark.skipif(True, reason='no')\ndef test_a(): pass",
    "import pytest\nmarks = [pytest.mark.xfail]",
    "import unittest\n@unittest.skipUnless(0, '')\ndef test_a(): pass",
    "from unittest import SkipTest",
])
def test_a_skip_is_found(planted, source: str):
    assert len(skips(planted(source))) == 1
    assert skips(planted("import pytest\n@pytest.mark.needs('data')\ndef test_a(): pass")) == []

"""Rules for the tests: how one is skipped, what an assertion may leave open, what a fake may not be, who begins.

As in test_repository.py: a rule is a function from files to problems, and is shown to find planted ones.
"""

import ast
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest
from repository_files import (
    ROOT,
    assert_none,
    code,
    dotted,
    exported_lines,
    files_of_tests,
    imported,
    names_used,
    notebook,
    notebooks,
    tree_of,
)


@pytest.fixture
def planted(tmp_path: Path):
    "planted('x = 1'): a repository with that as its one file of tests."

    def make(source: str, name: str = "core/test_a.py") -> Path:
        file = tmp_path / "tests" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(source, encoding="utf-8")
        return tmp_path

    return make


# Skips -------------------------------------------------------------------------------------------

SKIPS = r"(^|\.)(skip|skipif|importorskip|xfail|skipIf|skipUnless|skipTest|SkipTest)$"


def skips(root: Path = ROOT) -> list[str]:
    "Tests that are skipped, or allowed to fail, past `needs`."
    return [
        f"{file.relative_to(root)}:{line} uses {use}: say what it needs, with needs(...) of tests/support/needs.py"
        for file in files_of_tests(root)
        if file.name != "needs.py"
        for line, use in names_used("tests", tree_of(file))
        if re.search(SKIPS, use)
    ]


def test_nothing_is_skipped_past_needs():
    assert_none(skips())


@pytest.mark.parametrize(
    "source",
    [
        "import pytest\ndef test_a(): pytest.skip('no')",
        "from pytest import skip\ndef test_a(): skip('no')",
        "import pytest\nnumpy = pytest.importorskip('numpy')",
        "import pytest\n@pytest.mark.skipif(True, reason='no')\ndef test_a(): pass",
        "import pytest\nmarks = [pytest.mark.xfail]",
        "import unittest\n@unittest.skipUnless(0, '')\ndef test_a(): pass",
        "from unittest import SkipTest",
    ],
)
def test_a_skip_is_found(planted, source: str):
    assert len(skips(planted(source))) == 1
    assert skips(planted("import pytest\n@pytest.mark.needs('data')\ndef test_a(): pass")) == []


# What files of tests share -----------------------------------------------------------------------


def shared_past_support(root: Path = ROOT) -> list[str]:
    "Imports from a file of tests: of another folder it is not found, and its fixtures and tests come along."
    return [
        f"{file.relative_to(root)}:{line} imports {target}: what two files share lies in tests/support, fixtures in a conftest.py"
        for file in files_of_tests(root)
        for line, target in imported("tests", tree_of(file), False)
        if re.match(r"test_|conftest\b", target)
    ]


def test_files_of_tests_import_no_other():
    assert_none(shared_past_support())


@pytest.mark.parametrize(
    "source, faults",
    [
        ("from test_b import ENDS", 1),
        ("def f():\n    import test_b as t", 1),
        ("from conftest import home", 1),
        ("from nbdev.test import test_nb", 0),
        ("from fastcore.test import test_eq\nimport pytest", 0),
        ("from stage import Version", 0),
    ],
)
def test_an_import_of_another_file_of_tests_is_found(planted, source: str, faults: int):
    assert len(shared_past_support(planted(source))) == faults


# Assertions --------------------------------------------------------------------------------------

REASON = re.compile(r"#\s*either\b.{8,}")


def is_open(node: ast.AST) -> bool:
    """Whether a condition holds for more than one outcome: `a or b`, one of several literals.

    Looks into what must hold altogether (`and`, all(...)), not into what is computed on the way."""
    if isinstance(node, ast.BoolOp):
        return isinstance(node.op, ast.Or) or any(map(is_open, node.values))
    if isinstance(node, ast.Call) and dotted(node.func) == "all" and node.args:
        return is_open(getattr(node.args[0], "elt", ast.Constant(0)))
    return (
        isinstance(node, ast.Compare)
        and any(isinstance(o, ast.In) for o in node.ops)
        and isinstance(node.comparators[-1], (ast.Tuple, ast.List, ast.Set))
        and len(node.comparators[-1].elts) > 1
    )


def open_assertions(root: Path = ROOT) -> list[str]:
    "Assertions that more than one outcome passes, and that do not say why: `# either ...` beside them."
    problems = []
    for file in files_of_tests(root):
        lines = file.read_text(encoding="utf-8").splitlines()
        for node in ast.walk(tree_of(file)):
            if isinstance(node, ast.Assert) and is_open(node.test):
                beside = lines[max(node.lineno - 2, 0) : node.end_lineno]
                if not any(map(REASON.search, beside)):
                    problems.append(
                        f"{file.relative_to(root)}:{node.lineno}: more than one outcome passes. Assert the one "
                        "that happens, or say why there are several: `# either ...` on it or above"
                    )
    return problems


@pytest.mark.parametrize(
    "source",
    [
        "assert a == 1 or b == 2",
        "assert done.returncode in (0, 1)",
        "assert x and (y or z)",
        "assert all(s == 'failed' or s == '4' for s in seen)",
        "assert status in {'failed', 'promoted'}, 'it ended'",
        "assert a or b  # either",
    ],
)
def test_an_assertion_that_leaves_it_open_is_found(planted, source: str):
    assert len(open_assertions(planted(source))) == 1


@pytest.mark.parametrize(
    "source",
    [
        "assert a == 1 and b == 2",
        "assert status in known",
        "assert {n for n in names if 'a' in n or 'b' in n} == {'x'}",
        "assert code in (0, -9)  # either it ended first or the signal came first",
        "# either: the kill comes before or after the write\nassert now in (before, done)",
    ],
)
def test_an_assertion_of_one_outcome_or_with_a_reason_is_left_alone(planted, source: str):
    assert open_assertions(planted(source)) == []


def test_no_assertion_leaves_it_open_without_a_reason():
    assert_none(open_assertions())


# Fakes -------------------------------------------------------------------------------------------


def bindings(tree: ast.Module) -> Iterator[tuple[int, str, ast.AST]]:
    "Line, name and value of all that is bound: assignments, parameters, keywords, keys of a dict."
    for node in ast.walk(tree):
        pairs: list[tuple[ast.AST | str | None, ast.AST | None]] = []
        if isinstance(node, ast.Assign):
            for target in node.targets:
                both = isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple)
                pairs += zip(target.elts, node.value.elts) if both else [(target, node.value)]
        elif isinstance(node, (ast.AnnAssign, ast.NamedExpr)):
            pairs = [(node.target, node.value)]
        elif isinstance(node, ast.keyword):
            pairs = [(node.arg, node.value)]
        elif isinstance(node, ast.arguments):
            named = [*node.posonlyargs, *node.args]
            pairs = [(a.arg, d) for a, d in zip(reversed(named), reversed(node.defaults))]
            pairs += [(a.arg, d) for a, d in zip(node.kwonlyargs, node.kw_defaults)]
        elif isinstance(node, ast.Dict) and not any(
            isinstance(k, ast.Constant) and k.value == "mode" for k in node.keys
        ):
            pairs = [
                (
                    k.value if isinstance(k, ast.Constant) else None,
                    v,
                )  # a recipe's `and` is at a half
                for k, v in zip(node.keys, node.values)
            ]
        for target, value in pairs:
            name = target if isinstance(target, str) else dotted(target) if target else ""
            if value is not None:
                yield value.lineno, str(name).rpartition(".")[2], value


def half_thresholds(source: str) -> list[int]:
    "Lines that give something a threshold of a half."
    return [
        line
        for line, name, value in bindings(ast.parse(source))
        if name == "threshold" and isinstance(value, ast.Constant) and value.value == 0.5
    ]


def without_magics(source: str) -> str:
    return "\n".join("pass" if re.match(r"\s*[%!]", line) else line for line in source.splitlines())


def fakes_at_a_half(root: Path = ROOT) -> list[str]:
    """Models made up in a test or an example whose threshold is 0.5.

    With that, a threshold taken from another model, or written into the code, goes unseen."""
    advice = "threshold is 0.5: give a made-up model another, between the scores of what it flags and 0.5"
    problems = [
        f"{file.relative_to(root)}:{line}: {advice}"
        for file in files_of_tests(root)
        if file.name != "test_tests.py"
        for line in half_thresholds(file.read_text(encoding="utf-8"))
    ]
    for path, nb in notebooks(root).items():
        for i, source in code(nb):
            if exported_lines(source) is None and "threshold" in source:
                problems += [
                    f"{path}: cell {i}, line {line}: {advice}"
                    for line in half_thresholds(without_magics(source))
                ]
    return problems


@pytest.mark.parametrize(
    "source",
    [
        "class Fake:\n    threshold = 0.5",
        "class Fake:\n    version, threshold = '4', 0.5",
        "class Fake:\n    threshold: float = 0.5",
        "SimpleNamespace(version='4', threshold=0.5)",
        "spec = {'max_length': 16, 'threshold': 0.5}",
        "def fake(version, threshold=0.5): pass",
        "def fake(*, threshold=.50): pass",
        "model.threshold = 0.5",
    ],
)
def test_a_made_up_model_at_a_half_is_found(planted, plant, source: str):
    assert len(fakes_at_a_half(planted(source))) == 1
    root = plant(("10_arena/battles/30_battle", "arena.battles.battle", "x = 1"))
    assert len(fakes_at_a_half(root)) == 1  # the file of tests; the notebook has none
    file = root / "nbs/10_arena/battles/30_battle.ipynb"
    nbformat.write(notebook("%matplotlib inline\n" + source), file)
    assert len(fakes_at_a_half(root)) == 2


@pytest.mark.parametrize(
    "source",
    [
        "class Fake:\n    threshold = 0.3",
        "assert x.threshold == 0.5",
        "duo = {'mode': 'and', 'threshold': 0.5}",
        "rate = 0.5",
    ],
)
def test_what_is_no_model_at_a_half_is_left_alone(planted, source: str):
    assert fakes_at_a_half(planted(source)) == []


def test_no_made_up_model_is_at_a_half():
    assert_none(fakes_at_a_half())


# Order -------------------------------------------------------------------------------------------


def test_files_that_fork_begin_first_then_the_longest(tmp_path: Path):
    shutil.copy(ROOT / "tests/conftest.py", tmp_path)
    shutil.copy(ROOT / "tests/support/needs.py", tmp_path)
    for name, mark in {
        "a": "slow",
        "b": "long(20)",
        "c": "long(30)",
        "d": "first",
        "e": "slow",
    }.items():
        (tmp_path / f"test_{name}.py").write_text(
            f"import pytest\npytestmark = pytest.mark.{mark}\ndef test_it(): pass"
        )
    asked = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "--collect-only",
            "-q",
            "-c",
            ROOT / "pyproject.toml",
            tmp_path,
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert re.findall(r"test_(\w)\.py::test_it", asked.stdout) == list("dcbae"), (
        asked.stdout + asked.stderr
    )

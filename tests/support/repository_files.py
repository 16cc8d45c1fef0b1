"""The repository as the tests of its rules read it: notebooks, the syntax trees of modules and of tests."""

import ast
import re
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path

import nbformat

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = "content_arena"


def assert_none(problems: Mapping[str, Iterable[str]] | Iterable[str]) -> None:
    "Fail with one problem a line."
    if isinstance(problems, Mapping):
        problems = (f"{path}: {problem}" for path, lines in problems.items() for problem in lines)
    problems = list(problems)
    assert not problems, "\n" + "\n".join(problems)


# Notebooks ---------------------------------------------------------------------------------------


@cache
def read_notebook(file: Path, changed_ns: int) -> nbformat.NotebookNode:
    "The notebook as it was then; nobody changes what this returns."
    return nbformat.read(file, as_version=4)


def notebooks(root: Path = ROOT) -> dict[str, nbformat.NotebookNode]:
    "Path relative to `root` -> notebook, in the order in which a newcomer reads them."
    files = sorted(p for p in (root / "nbs").rglob("*.ipynb") if p.parent.name[0] != ".")
    return {p.relative_to(root).as_posix(): read_notebook(p, p.stat().st_mtime_ns) for p in files}


def code(nb: nbformat.NotebookNode) -> Iterator[tuple[int, str]]:
    return ((i, c.source) for i, c in enumerate(nb.cells) if c.cell_type == "code")


def directive(source: str, name: str) -> str | None:
    "What follows `#| name` in a cell, maybe nothing; None if the cell has no such directive."
    match = re.search(rf"^#\s*\|\s*{name}\b[ \t:]*(.*)$", source, re.MULTILINE)
    return match and match[1].strip()


def exported_lines(source: str) -> list[str] | None:
    "The lines that a cell adds to its module, or None if it is not exported."
    if directive(source, "exporti?") is None:
        return None
    return [line for line in source.strip().splitlines() if not re.match(r"#\s*\|", line)]


def modules_of(root: Path = ROOT) -> dict[str, list[str]]:
    "Module, without the package's name -> the notebooks that claim it, in reading order."
    made: dict[str, list[str]] = {}
    for path, nb in notebooks(root).items():
        for _, source in code(nb):
            if name := directive(source, "default_exp"):
                made.setdefault(name, []).append(path)
    return made


def notebook(*sources: str, output: str = "", top: str = "# T\n\n> S") -> nbformat.NotebookNode:
    shown = [nbformat.v4.new_output("stream", text=output)] if output else []
    return nbformat.v4.new_notebook(
        cells=[
            nbformat.v4.new_markdown_cell(top),
            *(nbformat.v4.new_code_cell(source, outputs=shown) for source in sources),
        ]
    )


# Modules -----------------------------------------------------------------------------------------


@cache
def syntax_tree(source: str) -> ast.Module:
    return ast.parse(source)


def parsed(root: Path = ROOT) -> dict[str, ast.Module]:
    "Module, without the package's name -> its syntax tree; `''` is the package itself."
    trees = {}
    for file in sorted((root / PACKAGE).rglob("*.py")):
        parts = file.relative_to(root / PACKAGE).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        if name != "_modidx":
            trees[name] = syntax_tree(file.read_text(encoding="utf-8"))
    return trees


def imported(name: str, tree: ast.Module, is_package: bool) -> Iterator[tuple[int, str]]:
    "Line and full dotted name of everything that a module imports, in functions too."
    here = [PACKAGE, *filter(None, name.split("."))]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            up = node.level - (1 if is_package else 0)
            base = here[: len(here) - up] if node.level else []
            base = ".".join([*base, *filter(None, [node.module])])
            yield from ((node.lineno, f"{base}.{alias.name}") for alias in node.names)


def dotted(node: ast.AST) -> str:
    "`os.environ` for the node of that expression; empty for anything but names and attributes."
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


@cache
def names_used(name: str, tree: ast.Module) -> list[tuple[int, str]]:
    "What a module imports, each attribute it reads (dotted), and `f()` and `f(keyword=)` of calls, each with its line."
    used = list(imported(name, tree, False))
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            used.append((node.lineno, dotted(node)))
        elif isinstance(node, ast.Call):
            used.append((node.lineno, f"{dotted(node.func)}()"))
            used += ((node.lineno, f"{dotted(node.func)}({k.arg}=)") for k in node.keywords)
    return used


# Tests -------------------------------------------------------------------------------------------


def files_of_tests(root: Path = ROOT) -> list[Path]:
    "The tests and what supports them, in every folder of `tests/`."
    return sorted((root / "tests").rglob("*.py"))


def tree_of(file: Path) -> ast.Module:
    return syntax_tree(file.read_text(encoding="utf-8"))


def needed_parts(file: Path) -> Iterator[str]:
    "What a file of tests needs from outside."
    for node in ast.walk(tree_of(file)):
        if isinstance(node, ast.Call) and dotted(node.func) in ("needs", "pytest.mark.needs"):
            yield from (a.value for a in node.args if isinstance(a, ast.Constant))

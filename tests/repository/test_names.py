"""What the texts name is there: paths, modules and commands in the pages, the notebooks' prose, `deploy/` and `.github/`.

A renamed folder breaks no code that is imported, and every page that tells a reader where to look.
"""

import ast
import re
from functools import cache
from pathlib import Path

import pytest
import typer.main
from repository_files import PACKAGE, ROOT, read_notebook, syntax_tree

from content_arena.cli.main import app

#: made when the README has figures
EXAMPLES = {".github/readme"}
PATH = re.compile(r"(?<![\w./-])(?:nbs|tests|deploy|scripts|docs|\.github|\.ci)/[\w./*<>-]*\w")
MODULE = re.compile(rf"(?<![\w./-]){PACKAGE}((?:\.\w+)+)")
ROOM = re.compile(r"`(\w+(?:\.\w+)+)(?:\(\))?`")
TEST = re.compile(r"(tests/[\w/]+\.py)::(test_\w+)")
COMMAND = re.compile(r"(?:^|[`/])content-arena((?: [a-z][a-z-]*)+)(?![\w=/.-])", re.MULTILINE)


def pages(root: Path = ROOT) -> dict[str, str]:
    """Path -> what a reader sees: pages, workflows, `deploy/`, scripts, the notebooks' prose and remarks.

    CHANGELOG.md is about what was, so it is left out."""
    chosen = [
        *root.glob("*.*"),
        *root.glob("docs/*.md"),
        *root.glob("scripts/*"),
        *root.glob(".ci/*"),
        *(p for folder in ("deploy", ".github") for p in (root / folder).rglob("*")),
    ]
    texts = {
        p: p.read_text(encoding="utf-8")
        for p in chosen
        if p.is_file() and p.name != "CHANGELOG.md" and p.suffix not in {".png", ".svg", ".json"}
    }
    for path in (root / "nbs").rglob("*.ipynb"):
        if path.parent.name[0] != ".":
            cells = read_notebook(path, path.stat().st_mtime_ns).cells
            texts[path] = "\n".join(
                c.source
                if c.cell_type == "markdown"
                else "\n".join(re.findall(r"^\s*#.*|\s# .*", c.source, re.MULTILINE))
                for c in cells
            )
    return {p.relative_to(root).as_posix(): text for p, text in sorted(texts.items())}


@cache
def defined(root: Path = ROOT) -> dict[str, set[str]]:
    "Module without the package's name (packages too) -> names at its top level."
    names: dict[str, set[str]] = {}
    for file in (root / PACKAGE).rglob("*.py"):
        parts = file.relative_to(root / PACKAGE).with_suffix("").parts
        module = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        tree = syntax_tree(file.read_text(encoding="utf-8"))
        names[module] = {
            n
            for node in tree.body
            for n in (
                [node.name]
                if hasattr(node, "name")
                else [a.asname or a.name for a in node.names]
                if hasattr(node, "names")
                else [
                    t.id
                    for top in getattr(node, "targets", [getattr(node, "target", node)])
                    for t in ast.walk(top)
                    if isinstance(t, ast.Name)
                ]
            )
        }
    return names


def there(dotted: str, names: dict[str, set[str]]) -> bool:
    "Is `mlops.gate`, `mlops.gate.decide` or `mlops.gate.Gate.x` a module, or a name in one?"
    parts = dotted.split(".")
    for n in range(len(parts), -1, -1):
        if (module := ".".join(parts[:n])) in names:
            return n == len(parts) or parts[n] in names[module]
    return False


def command_problem(words: list[str]) -> str:
    "The first word that is no command; words behind a command are its arguments."
    group = typer.main.get_command(app)
    for word in words:
        if not hasattr(group, "commands"):
            return ""
        if word not in group.commands:
            return word
        group = group.commands[word]
    return ""


def name_problems(text: str, names: dict[str, set[str]], root: Path = ROOT) -> list[str]:
    "Paths, modules and commands in `text` that don't exist."
    rooms = {n.split(".")[0] for n in names if n and "." in n}
    problems = [
        f"no file {p}"
        for p in PATH.findall(text)
        if p not in EXAMPLES and not (root / p).exists() and not any(root.glob(p))
    ]
    problems += [f"no module {PACKAGE}{m}" for m in MODULE.findall(text) if not there(m[1:], names)]
    problems += [
        f"no module {m}"
        for m in ROOM.findall(text)
        if m.split(".")[0] in rooms and not there(m, names)
    ]
    problems += [
        f"no test {name} in {file}"
        for file, name in TEST.findall(text)
        if (root / file).exists()
        and f"def {name}(" not in (root / file).read_text(encoding="utf-8")
    ]
    return problems + [
        f"no command content-arena{words}"
        for words in COMMAND.findall(text)
        if command_problem(words.split())
    ]


def test_what_the_texts_name_is_there():
    names = defined()
    problems = [
        f"{path}: {problem}"
        for path, text in pages().items()
        for problem in name_problems(text, names)
    ]
    assert not problems, "\n" + "\n".join(problems)


@pytest.mark.parametrize(
    "text, problems",
    [
        ("see `nbs/01_core/10_text.ipynb` and nbs/01_core.", 0),
        ("see nbs/00_core/text.ipynb", 1),
        ("in `tests/*/test_gate.py`", 0),
        ("in tests/test_gate.py", 1),
        ("tests/mlops/test_gate.py::test_slices_by_their_worst", 0),
        ("tests/mlops/test_gate.py::test_luck", 1),
        ("`content_arena.mlops.gate.decide`", 0),
        ("content_arena.gate", 1),
        ("content_arena.mlops.gate.dcide", 1),
        ("`mlops.gate`", 0),
        ("`mlops.doors`", 1),
        ("`settings.path`", 0),
        ("`content-arena battle run`", 0),
        ("content-arena serve --port 1", 0),
        ("content-arena fight", 1),
        ("content-arena battle start", 1),
    ],
)
def test_a_name_of_nothing_is_found(text: str, problems: int):
    assert len(name_problems(text, defined())) == problems

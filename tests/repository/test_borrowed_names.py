"""What scripts and notebooks take from the package is there, also in those that no test runs: a name that moved is found before a person finds it."""

import ast
import inspect
import re
from importlib import import_module
from importlib.util import find_spec

import pytest
from repository_files import PACKAGE, ROOT, assert_none, code, notebooks


def borrowed(source: str) -> set[tuple[str, str]]:
    "(module, name) of what `source` imports of the package, and of what it then takes from a module."
    taken, modules, tree = set(), {}, ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == PACKAGE:
            for name in node.names:
                taken.add((node.module, name.name))
                modules[name.asname or name.name] = f"{node.module}.{name.name}"
        elif isinstance(node, ast.Import):
            own = [n for n in node.names if n.name.split(".")[0] == PACKAGE]
            taken |= {(n.name, "__name__") for n in own}
            modules |= {n.asname: n.name for n in own if n.asname}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            module = modules.get(node.value.id)
            if module and is_module(module):
                taken.add((module, node.attr))
    return taken


def is_module(module: str) -> bool:
    "Whether there is such a module; it is not imported, but its parents are."
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # its parent is no package
        return False


def missing(source: str) -> list[str]:
    faults = []
    for module, name in sorted(borrowed(source)):
        if not is_module(module):
            faults.append(f"there is no module {module}")
        elif not hasattr(import_module(module), name) and not is_module(f"{module}.{name}"):
            faults.append(f"{module} has no {name}")
    return faults


def misfits(source: str) -> list[str]:
    "Calls of functions of the package that their parameters do not fit; those with * are not looked at."
    tree, functions, faults = ast.parse(source), {}, []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == PACKAGE:
            for name in node.names:
                found = getattr(import_module(node.module), name.name, None)
                if inspect.isfunction(found):
                    functions[name.asname or name.name] = found
    for node in ast.walk(tree):
        function = functions.get(node.func.id) if is_plain_call(node) else None
        if function:
            try:
                named = {k.arg: None for k in node.keywords}
                inspect.signature(function).bind(*[None] * len(node.args), **named)
            except TypeError as e:
                faults.append(f"{function.__name__}: {e}")
    return faults


def is_plain_call(node: ast.AST) -> bool:
    "Whether `node` calls a name, with arguments that can be counted."
    return (
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and not any(isinstance(a, ast.Starred) for a in node.args)
        and all(k.arg for k in node.keywords)
    )


def plain(source: str) -> str:
    "Code of a cell without magics."
    return re.sub(r"^\s*[%!].*$", "", source, flags=re.MULTILINE)


def test_scripts_take_what_is_there():
    files = [p for p in (ROOT / "scripts").iterdir() if p.is_file()]
    texts = {p.name: p.read_text(encoding="utf-8") for p in files}
    python = {n: t for n, t in texts.items() if re.match(r"#!.*python", t)}
    assert len(python) > 20
    assert_none({n: missing(t) for n, t in python.items()})
    assert_none({n: misfits(t) for n, t in python.items()})


def test_notebooks_take_what_is_there():
    texts = {p: "\n".join(plain(s) for _, s in code(nb)) for p, nb in notebooks().items()}
    assert_none({p: missing(t.replace("await ", "")) for p, t in texts.items()})


@pytest.mark.parametrize(
    "source, faults",
    [
        ("from content_arena.core.text import nfc, gone", ["content_arena.core.text has no gone"]),
        ("from content_arena.core import gone", ["content_arena.core has no gone"]),
        ("import content_arena.gone", ["there is no module content_arena.gone"]),
        (
            "def f():\n    from content_arena.core import text as t\n    return t.nfc, t.gone",
            ["content_arena.core.text has no gone"],
        ),
        ("from content_arena.core.text import nfc\nnfc.__name__", []),
    ],
)
def test_a_name_that_is_gone_is_found(source: str, faults: list[str]):
    assert missing(source) == faults


@pytest.mark.parametrize(
    "call, fits",
    [("nfc('a')", True), ("nfc()", False), ("nfc('a', b=1)", False), ("nfc(*x)", True)],
)
def test_a_call_that_does_not_fit_is_found(call: str, fits: bool):
    "Seen in scripts/quality: a function had got a parameter, and the script that no test runs had not."
    assert (misfits(f"from content_arena.core.text import nfc\n{call}") == []) == fits

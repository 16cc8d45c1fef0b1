"""The map of the house: folders of notebooks are packages, imports point up, promised names stay."""

import importlib
import json
import re
import shutil
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest
from repository_files import PACKAGE, ROOT, assert_none, imported, modules_of, parsed

OLD_MODEL = ROOT / "tests/inference/registered_before_the_move"


def script(name: str):
    "A script of the repository as a module."
    spec = spec_from_loader(name, SourceFileLoader(name, str(ROOT / "scripts" / name)))
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


house = script("map")


def made_by(root: Path = ROOT) -> dict[str, str]:
    "Notebook, relative to `nbs/` -> the module that it makes."
    return {
        path.removeprefix("nbs/"): module
        for module, paths in modules_of(root).items()
        for path in paths
    }


def place_problems(root: Path = ROOT) -> list[str]:
    "Notebooks whose name is not NN_module, or that lie in another folder than their module."
    problems = []
    for path, module in made_by(root).items():
        *folders, stem = path.removesuffix(".ipynb").split("/")
        if not re.fullmatch(r"\d\d_[a-z]\w*", stem) or stem.startswith("00"):
            problems.append(
                f"{path}: two digits (in tens, while there is room), not 00, then the module's name"
            )
        wanted = ".".join([folders[0][3:], *folders[1:], stem[3:]])
        if module != wanted:
            problems.append(f"{path} makes {module}, its place says {wanted}")
    return problems


def test_a_notebook_lies_in_the_folder_of_its_package():
    assert place_problems() == []
    for folder in {path.rpartition("/")[0] for path in made_by()}:
        numbers = [p.name[:2] for p in (ROOT / "nbs" / folder).glob("*.ipynb")]
        assert len(numbers) == len(set(numbers)), f"a number twice in nbs/{folder}"


@pytest.mark.parametrize(
    "path, module, problems",
    [
        ("01_core/10_text", "core.text", 0),
        ("10_arena/battles/15_record", "arena.battles.record", 0),
        ("01_core/10_text", "text", 1),
        ("01_core/10_words", "core.text", 1),
        ("01_core/10a_text", "core.text", 2),
        ("01_core/000_text", "core.text", 2),
        ("01_core/11_text", "core.text", 0),
        ("10_arena/battles/15_record", "arena.record", 1),
    ],
)
def test_a_misplaced_notebook_is_found(plant, path: str, module: str, problems: int):
    assert len(place_problems(plant((path, module, "x = 1")))) == problems


def test_packages_import_upwards_only():
    assert house.rooms()[0] == "core" and house.rooms()[-1] == "testing"
    assert house.upward() == []
    drawn = house.drawing().splitlines()[1:]
    assert [line.split()[1] for line in drawn] == house.rooms()
    assert all(set(line.split("■")[1].split()) <= {"·"} for line in drawn), "right of the diagonal"


def test_the_map_in_architecture_is_current(plant):
    assert house.page() == (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8"), (
        "scripts/map --write"
    )
    root = plant(
        ("01_core/10_text", "core.text", "x = 1"), ("02_mlops/10_gate", "mlops.gate", "x = 1")
    )
    (root / "ARCHITECTURE.md").write_text("# Map\n<!-- map -->\n<!-- /map -->\nend\n")
    before = house.page(root)
    assert " 2 mlops" in before and before.endswith("<!-- /map -->\nend\n")
    plant(("02_mlops/10_gate", "mlops.gate", "from content_arena.core.text import x"))
    assert house.page(root) != before
    (root / "ARCHITECTURE.md").write_text("# Map\n")
    with pytest.raises(ValueError, match="marks"):
        house.page(root)


@pytest.mark.parametrize(
    "upper, lower, problems",
    [
        ("x = 1", "from content_arena.core.text import x", 0),
        ("x = 1", "from ..core.text import x", 0),
        ("import content_arena.mlops.gate", "", 1),
        ("from ..mlops.gate import x", "", 1),
        ("from content_arena.mlops import gate", "", 1),
        ("def f():\n    from ..mlops import gate", "", 1),
        ("from ..gone.module import x", "", 1),
    ],
)
def test_an_import_that_points_down_is_found(plant, upper: str, lower: str, problems: int):
    root = plant(("01_core/10_text", "core.text", upper), ("02_mlops/10_gate", "mlops.gate", lower))
    assert len(house.upward(root)) == problems
    if problems:
        assert house.upward(root)[0].startswith("core.text imports ")


def import_problems(root: Path = ROOT) -> list[str]:
    "Imports of what no notebook makes or what a later one of the same package does; any in a package's own file."
    order = {module: i for i, module in enumerate(modules_of(root))}
    trees = parsed(root)
    packages = {"", *(name.rpartition(".")[0] for name in trees)}
    problems = []
    for name, tree in trees.items():
        for line, target in imported(name, tree, name in packages):
            head, _, inner = target.partition(".")
            if head != PACKAGE:
                continue
            used = next((m for m in (inner, inner.rpartition(".")[0]) if m in order), None)
            where = f"{name or PACKAGE}:{line} imports {target}"
            if used is None and inner not in {"", "__version__", *packages}:
                problems.append(f"{where}, which no notebook makes")
            elif used and name not in {*order, "__main__"}:
                problems.append(f"{where}: a package's own file imports nothing")
            elif used and name.split(".")[0] == used.split(".")[0] and order[used] >= order[name]:
                problems.append(f"{where}, a later notebook")
    return problems


def test_every_import_is_of_an_earlier_notebook():
    assert_none(import_problems())


@pytest.mark.parametrize(
    "file, source, fault",
    [
        ("mlops/b.py", "from content_arena.mlops.a import x", ""),
        ("mlops/b.py", "import content_arena.mlops.a\nfrom ..core.text import x", ""),
        (
            "mlops/a.py",
            "x = 1\nfrom content_arena.mlops.b import x",
            "mlops.a:2 imports content_arena.mlops.b.x, a later",
        ),
        (
            "mlops/a.py",
            "def f():\n    from . import b",
            "mlops.a:2 imports content_arena.mlops.b, a later",
        ),
        ("mlops/a.py", "from . import a", "a later notebook"),
        (
            "mlops/b.py",
            "from .gone import x",
            "content_arena.mlops.gone.x, which no notebook makes",
        ),
        (
            "core/text.py",
            "import content_arena.gone",
            "core.text:1 imports content_arena.gone, which no notebook makes",
        ),
        (
            "mlops/__init__.py",
            "from .a import x",
            "mlops:1 imports content_arena.mlops.a.x: a package's own file",
        ),
        (
            "__init__.py",
            "from .core.text import x",
            "content_arena:1 imports content_arena.core.text.x: a package's own file",
        ),
        ("__main__.py", "from content_arena.mlops.b import x", ""),
    ],
)
def test_an_import_of_what_is_not_there_yet_is_found(plant, file: str, source: str, fault: str):
    root = plant(
        ("01_core/10_text", "core.text", "x = 1"),
        ("02_mlops/10_a", "mlops.a", "x = 1"),
        ("02_mlops/20_b", "mlops.b", "x = 1"),
    )
    assert import_problems(root) == []
    (root / PACKAGE / file).write_text(source)
    assert [fault in p for p in import_problems(root)] == ([True] if fault else [])


def test_within_a_package_the_order_is_that_of_the_notebooks(plant):
    root = plant(
        ("02_mlops/10_a", "mlops.a", "from content_arena.mlops.b import x"),
        ("02_mlops/20_b", "mlops.b", "x = 1"),
    )
    assert len(import_problems(root)) == 1
    (root / "nbs/02_mlops/10_a.ipynb").rename(root / "nbs/02_mlops/30_a.ipynb")
    assert import_problems(root) == []


# Promises ----------------------------------------------------------------------------------------

PROMISED = (
    {f"mlops.{m}" for m in ("model_registry", "evaluator", "deployer", "metrics", "alerting")}
    | {
        f"training.{m}"
        for m in (
            "data_preparation",
            "qlora_trainer",
            "auto_retrain",
            "train",
            "evaluate_and_deploy",
        )
    }
    | {"inference.engine"}
)


@pytest.mark.parametrize("name", sorted(PROMISED))
def test_a_promised_module_can_be_imported(name: str):
    module = importlib.import_module(f"{PACKAGE}.{name}")
    assert [n for n in vars(module) if not n.startswith("_")]


@pytest.mark.parametrize("name", house.DOORS)
def test_a_door_only_leads_on(name: str):
    file = ROOT / PACKAGE / (name.replace(".", "/") + ".py")
    code = [line for line in file.read_text().splitlines() if line.strip() and line[0] not in '#"']
    assert len(code) <= 10, "ten lines are a door, more are a room"
    assert {t.split(".")[0] for t in house.imports(file)} == {"workflows"}


def test_a_model_registered_before_the_move_still_loads_and_scores_the_same(tmp_path, monkeypatch):
    "The folder was written by the code of the old module names; its scores were taken then."
    shutil.copytree(OLD_MODEL, tmp_path / "old")
    monkeypatch.chdir(tmp_path / "old")  # its base model is a folder beside it
    monkeypatch.setenv("CONTENT_ARENA_SETTINGS_FILE", str(tmp_path / "settings.ini"))
    (tmp_path / "settings.ini").write_text("[serve]\ndtype = float32\n")
    then = json.loads(Path("scores.json").read_text(encoding="utf-8"))
    model = mlflow.pyfunc.load_model("registered")
    assert (
        model.metadata.flavors["python_function"]["loader_module"]
        == "content_arena.inference.engine"
    )
    now = model.predict(pd.DataFrame({"text": then["texts"]}))
    assert np.ptp(then["scores"]) > 0.3, "scores that are all alike would match by chance"
    np.testing.assert_allclose(now, then["scores"], atol=1e-4)

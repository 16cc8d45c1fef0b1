"""The map of the house: folders of notebooks are packages, imports point up, promised names stay."""
import importlib
import json
import re
import shutil
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path

import mlflow
import nbformat
import numpy as np
import pandas as pd
import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = "content_arena"
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
    made = {}
    for path in sorted((root / "nbs").rglob("*.ipynb")):
        for cell in nbformat.read(path, as_version=4).cells:
            if cell.cell_type == "code" and (
                    found := re.search(r"^#\s*\|\s*default_exp\s+(\S+)", cell.source, re.MULTILINE)):
                made[path.relative_to(root / "nbs").as_posix()] = found[1]
    return made


def place_problems(root: Path = ROOT) -> list[str]:
    "Notebooks whose name is not NN_module, or that lie in another folder than their module."
    problems = []
    for path, module in made_by(root).items():
        *folders, stem = path.removesuffix(".ipynb").split("/")
        if not re.fullmatch(r"\d[05]_[a-z]\w*", stem) or stem.startswith("00"):
            problems.append(f"{path}: two digits in tens (or fives), not 00, then the module's name")
        wanted = ".".join([folders[0][3:], *folders[1:], stem[3:]])
        if module != wanted:
            problems.append(f"{path} makes {module}, its place says {wanted}")
    return problems


def test_a_notebook_lies_in_the_folder_of_its_package():
    assert place_problems() == []
    for folder in {path.rpartition("/")[0] for path in made_by()}:
        numbers = [p.name[:2] for p in (ROOT / "nbs" / folder).glob("*.ipynb")]
        assert len(numbers) == len(set(numbers)), f"a number twice in nbs/{folder}"


@pytest.fixture
def plant(tmp_path: Path):
    "plant({'01_core/10_text': ('core.text', 'x = 1'), ...}): notebooks and modules."
    def make(notebooks: dict[str, tuple[str, str]]) -> Path:
        for path, (module, source) in notebooks.items():
            file = tmp_path / "nbs" / f"{path}.ipynb"
            file.parent.mkdir(parents=True, exist_ok=True)
            cell = nbformat.v4.new_code_cell(f"#| default_exp {module}")
            nbformat.write(nbformat.v4.new_notebook(cells=[cell]), file)
            code = tmp_path / PACKAGE / (module.replace(".", "/") + ".py")
            code.parent.mkdir(parents=True, exist_ok=True)
            code.write_text(source)
        return tmp_path
    return make


@pytest.mark.parametrize("path, module, problems", [
    ("01_core/10_text", "core.text", 0), ("10_arena/battles/15_record", "arena.battles.record", 0),
    ("01_core/10_text", "text", 1), ("01_core/10_words", "core.text", 1),
    ("01_core/10a_text", "core.text", 2), ("01_core/000_text", "core.text", 2),
    ("01_core/11_text", "core.text", 1), ("10_arena/battles/15_record", "arena.record", 1)])
def test_a_misplaced_notebook_is_found(plant, path: str, module: str, problems: int):
    assert len(place_problems(plant({path: (module, "")}))) == problems


def test_packages_import_upwards_only():
    assert house.rooms()[0] == "core" and house.rooms()[-1] == "testing"
    assert house.upward() == []
    drawn = house.drawing().splitlines()[1:]
    assert [line.split()[1] for line in drawn] == house.rooms()
    assert all(set(line.split("■")[1].split()) <= {"·"} for line in drawn), "right of the diagonal"


def test_the_map_in_architecture_is_current(plant):
    assert house.page() == (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8"), "scripts/map --write"
    root = plant({"01_core/10_text": ("core.text", ""), "02_mlops/10_gate": ("mlops.gate", "")})
    (root / "ARCHITECTURE.md").write_text("# Map\n<!-- map -->\n<!-- /map -->\nend\n")
    before = house.page(root)
    assert " 2 mlops" in before and before.endswith("<!-- /map -->\nend\n")
    plant({"02_mlops/10_gate": ("mlops.gate", "from content_arena.core.text import x")})
    assert house.page(root) != before
    (root / "ARCHITECTURE.md").write_text("# Map\n")
    with pytest.raises(ValueError, match="marks"):
        house.page(root)


@pytest.mark.parametrize("upper, lower, problems", [
    ("x = 1", "from content_arena.core.text import x", 0),
    ("x = 1", "from ..core.text import x", 0),
    ("import content_arena.mlops.gate", "", 1),
    ("from ..mlops.gate import x", "", 1),
    ("from content_arena.mlops import gate", "", 1),
    ("def f():\n    from ..mlops import gate", "", 1),
    ("from ..gone.module import x", "", 1)])
def test_an_import_that_points_down_is_found(plant, upper: str, lower: str, problems: int):
    root = plant({"01_core/10_text": ("core.text", upper), "02_mlops/10_gate": ("mlops.gate", lower)})
    assert len(house.upward(root)) == problems
    if problems:
        assert house.upward(root)[0].startswith("core.text imports ")


def test_within_a_package_the_order_is_that_of_the_notebooks(plant):
    def backward(root: Path) -> list[str]:
        order = {module: i for i, module in enumerate(made_by(root).values())}
        found = []
        for module in order:
            if module in house.DOORS:
                continue
            file = root / PACKAGE / (module.replace(".", "/") + ".py")
            for target in house.imports(file, root):
                used = next((m for m in (target, target.rpartition(".")[0]) if m in order), None)
                if used and used.split(".")[0] == module.split(".")[0] and order[used] >= order[module]:
                    found.append(f"{module} imports {used}, a later notebook")
        return found
    assert backward(ROOT) == []
    root = plant({"02_mlops/10_a": ("mlops.a", "from content_arena.mlops.b import x"),
                  "02_mlops/20_b": ("mlops.b", "x = 1")})
    assert backward(root) == ["mlops.a imports mlops.b, a later notebook"]


# Promises ----------------------------------------------------------------------------------------

PROMISED = {f"mlops.{m}" for m in ("model_registry", "evaluator", "deployer", "metrics", "alerting")} \
    | {f"training.{m}" for m in ("data_preparation", "qlora_trainer", "auto_retrain", "train",
                                 "evaluate_and_deploy")} | {"inference.engine"}


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
    monkeypatch.chdir(tmp_path / "old")                       # its base model is a folder beside it
    monkeypatch.setenv("CONTENT_ARENA_SETTINGS_FILE", str(tmp_path / "settings.ini"))
    (tmp_path / "settings.ini").write_text("[serve]\ndtype = float32\n")
    then = json.loads(Path("scores.json").read_text(encoding="utf-8"))
    model = mlflow.pyfunc.load_model("registered")
    assert model.metadata.flavors["python_function"]["loader_module"] == "content_arena.inference.engine"
    now = model.predict(pd.DataFrame({"text": then["texts"]}))
    assert np.ptp(then["scores"]) > 0.3, "scores that are all alike would match by chance"
    np.testing.assert_allclose(now, then["scores"], atol=1e-4)

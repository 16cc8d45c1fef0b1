"""The built wheel, unpacked somewhere else: a project is made and run with nothing of the repository."""

import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from content_arena import __version__

ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    "Built from a copy: a build leaves a folder behind."
    clone = tmp_path_factory.mktemp("clone")
    files = subprocess.check_output(["git", "ls-files", "-z"], cwd=ROOT, text=True).split("\0")
    for name in files:
        if re.match(r"content_arena/|nbs/pipelines/|[^/]+$", name) and (ROOT / name).is_file():
            (clone / name).parent.mkdir(parents=True, exist_ok=True)
            (clone / name).write_bytes((ROOT / name).read_bytes())
    command = [sys.executable, "-c", "from setuptools.build_meta import build_wheel as b; b('out')"]
    done = subprocess.run(command, cwd=clone, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return next((clone / "out").glob("*.whl"))


@pytest.fixture(scope="module")
def site(wheel: Path, tmp_path_factory) -> Path:
    "The wheel as pip would lay it out."
    folder = tmp_path_factory.mktemp("site")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


def python(site: Path, folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    env = {k: v for k, v in os.environ.items() if not k.startswith("CONTENT_ARENA_")}
    env["PYTHONPATH"] = str(site)
    return subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=env, capture_output=True, text=True
    )


def test_the_wheel_has_all_that_a_project_needs(wheel: Path):
    assert wheel.name.startswith(f"content_arena-{__version__}-")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        for file in (ROOT / "settings.ini", *ROOT.glob("nbs/pipelines/*.ipynb")):
            inside = f"content_arena/project/{file.relative_to(ROOT).as_posix()}"
            assert archive.read(inside) == file.read_bytes()
    tracked = subprocess.check_output(["git", "ls-files", "content_arena"], cwd=ROOT, text=True)
    assert {n for n in tracked.split() if (ROOT / n).is_file()} <= names


def test_a_project_is_made_and_runs_outside_of_the_repository(site: Path, tmp_path: Path):
    done = python(site, tmp_path, "-m", "content_arena", "pipeline", "run", "--profile", "smoke")
    assert done.returncode != 0 and "content-arena init myproject" in done.stderr
    done = python(site, tmp_path, "-m", "content_arena", "init", "myproject")
    assert done.returncode == 0, done.stderr
    project = tmp_path / "myproject"
    assert {f.name for f in project.iterdir()} == {".gitignore", "README.md", "nbs", "settings.ini"}
    rows = "".join(
        f"comment {i} about {'hate' if i % 2 else 'tea'} {i * 7919},{i % 2}\n" for i in range(60)
    )
    (project / "mine.csv").write_text(f"text,label\n{rows}", encoding="utf-8")
    run = (
        "import content_arena; from content_arena.core.config import load_settings;"
        "from content_arena.workflows.pipeline import run_pipeline;"
        "print(content_arena.__file__);"
        "cfg = load_settings('smoke', sources='csv:mine.csv');"
        "print(run_pipeline(cfg, stages=('01_prepare',))['run_dir'])"
    )
    done = python(site, project, "-c", run)
    assert done.returncode == 0, done.stderr
    where, folder = done.stdout.split()[-2:]
    assert where.startswith(str(site)) and folder.startswith(str(project / "runs"))
    assert (Path(folder) / "01_prepare.html").exists()


def test_version_changelog_and_tags_agree():
    """A version that has no tag yet has no heading of its own yet either, and the other way round."""
    headings = re.findall(
        r"^## \[?([\d.]+|Unreleased)\]?", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.M
    )
    assert headings[0] == "Unreleased" and headings.count("Unreleased") == 1
    tags = subprocess.check_output(["git", "tag", "--list", "v*"], cwd=ROOT, text=True).split()
    for tag in tags:
        assert tag.removeprefix("v") in headings, f"{tag} has no heading in CHANGELOG.md"
    numbers = [tuple(map(int, h.split("."))) for h in headings[1:]]
    assert numbers == sorted(numbers, reverse=True)
    assert numbers[0] <= tuple(map(int, __version__.split(".")))

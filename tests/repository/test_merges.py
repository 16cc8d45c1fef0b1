"""Two branches that changed the same notebook: what git leaves, with the driver that set-up installs."""

import json
import random
import shutil
import subprocess
from pathlib import Path

import pytest
from repository_files import ROOT


def git(folder: Path, *words: str, check: bool = True) -> subprocess.CompletedProcess:
    who = ["-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false"]
    return subprocess.run(
        ["git", *who, *words], cwd=folder, capture_output=True, text=True, check=check
    )


def cell(key: str, source: str, output: str = "") -> dict:
    shown = [{"name": "stdout", "output_type": "stream", "text": [output]}] if output else []
    return {
        "cell_type": "code",
        "execution_count": None,
        "id": key,
        "metadata": {},
        "outputs": shown,
        "source": source.splitlines(keepends=True),
    }


def write(file: Path, cells: list[dict]) -> None:
    book = {"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 5}
    file.write_text(json.dumps(book, indent=1) + "\n")


def read(file: Path) -> list[dict]:
    return json.loads(file.read_text())["cells"]


@pytest.fixture
def repository(tmp_path):
    "A clone with the driver, a notebook of eight cells, and the module that is made from it."
    folder = tmp_path / "clone"
    for name in ("nbs", "scripts", "content_arena/core"):
        (folder / name).mkdir(parents=True)
    shutil.copy(ROOT / "scripts" / "merge-notebook", folder / "scripts")
    shutil.copy(ROOT / ".gitattributes", folder)
    write(
        folder / "nbs" / "a.ipynb",
        [cell(f"c{i}", f"one{i} = 1\ntwo{i} = 2\nthree{i} = 3\nfour{i} = 4") for i in range(8)],
    )
    (folder / "content_arena" / "core" / "a.py").write_text("made = 0\n")
    git(folder, "init", "-q", "-b", "main")
    subprocess.run(["python3", "scripts/merge-notebook", "--install"], cwd=folder, check=True)
    git(folder, "add", "-A"), git(folder, "commit", "-qm", "begin")
    return folder


def change(file: Path, who: str, rng: random.Random, line: int) -> list[str]:
    "What a person does in a notebook: a line, a run (outputs), a new cell at the same place. Returns what must be left."
    cells = read(file)
    lines = "".join(cells[3]["source"]).splitlines()
    lines[line] = f"{who} = {rng.random()}"
    cells[3] = cell("c3", "\n".join(lines), output=f"{who} ran it")
    other = rng.choice([i for i in range(8) if i != 3 and i % 2 == (who == "theirs")])
    cells[other] = cell(f"c{other}", f"{who}_other = {rng.random()}", output=who)
    new = cell(f"new-{who}", f"{who}_new = {rng.random()}")
    cells.insert(5, new)
    write(file, cells)
    return [
        lines[line],
        "".join(cells[other]["source"]) if other < 5 else f"{who}_other",
        "".join(new["source"]),
    ]


def test_twenty_of_twenty_conflicts_are_resolved(repository):
    file, module = repository / "nbs" / "a.ipynb", repository / "content_arena" / "core" / "a.py"
    resolved = 0
    for seed in range(20):
        rng, left = random.Random(seed), []
        begin = git(repository, "rev-parse", "main").stdout.strip()
        for who, line in (("ours", 0), ("theirs", 3)):
            git(repository, "checkout", "-q", "-b", f"{who}-{seed}", begin)
            left += change(file, who, rng, line)
            module.write_text(f"made = {who!r}\n")
            git(repository, "commit", "-qam", who)
        done = git(repository, "merge", "-q", "--no-edit", f"ours-{seed}", check=False)
        sources = ["".join(c["source"]) for c in read(file)]
        assert "<<<<" not in module.read_text()
        resolved += done.returncode == 0 and all(any(x in s for s in sources) for x in left)
        assert len({c["id"] for c in read(file)}) == len(sources) == 10, (
            f"seed {seed}: a cell was lost or is there twice"
        )
    assert resolved == 20


def test_what_two_people_wrote_in_one_line_is_left_to_them(repository):
    file = repository / "nbs" / "a.ipynb"
    for who in ("ours", "theirs"):
        git(repository, "checkout", "-q", "-b", who, "main")
        cells = read(file)
        cells[0] = cell("c0", f"one0 = {who!r}")
        write(file, cells)
        git(repository, "commit", "-qam", who)
    assert git(repository, "merge", "--no-edit", "ours", check=False).returncode != 0
    first = "".join(read(file)[0]["source"])  # it still opens
    assert "<<<<<<<" in first and "'ours'" in first and "'theirs'" in first
    assert all("<<<<" not in "".join(c["source"]) for c in read(file)[1:])

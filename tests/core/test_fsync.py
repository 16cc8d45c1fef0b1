"""What is reported as written has been flushed: each file before it gets its name, then the folder with the name.

Tests that kill processes do without fsync, since a kill loses nothing that was written; these watch the real calls.
"""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from shelves import make_store, model

from content_arena.core.files import write_json


class Disk:
    "Watches fsync and renames below `root`; `faults` is what a power cut could lose."

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch):
        self.root, self.flushed, self.names, self.early = root, set(), [], []
        self.fsync = os.fsync
        monkeypatch.setattr(os, "fsync", self._flush)
        for call in ("rename", "replace"):
            monkeypatch.setattr(os, call, self._moving(getattr(os, call)))

    def _flush(self, handle: int) -> None:
        self.fsync(handle)
        about = os.fstat(handle)
        self.flushed.add((about.st_ino, about.st_size, about.st_mtime_ns))
        self.names = [n for n in self.names if os.stat(n.parent).st_ino != about.st_ino]

    def _moving(self, move: Callable) -> Callable:
        def moved(source, target, **more) -> None:
            files = [Path(source), *Path(source).rglob("*")]
            for file in (f for f in files if f.is_file() and not f.is_symlink()):
                about = file.stat()
                if (about.st_ino, about.st_size, about.st_mtime_ns) not in self.flushed:
                    self.early.append(file.relative_to(self.root).as_posix())
            move(source, target, **more)
            self.names.append(Path(target))

        return moved

    def faults(self) -> list[str]:
        named = [n.relative_to(self.root).as_posix() for n in self.names]
        return [
            *(f"{f}: got its name before its content was flushed" for f in self.early),
            *(f"{n}: its name was not flushed" for n in named),
        ]


def publish(root: Path) -> None:
    make_store(root).publish(model(root / "source", "new"), tag="stable")


WRITERS = {
    "a JSON file": lambda root: write_json(root / "a.json", {"version": 1}),
    "a published version": publish,
}


@pytest.mark.parametrize("what", WRITERS)
def test_what_is_written_was_flushed_before_success_is_reported(
    what: str, tmp_path: Path, monkeypatch
):
    disk = Disk(tmp_path, monkeypatch)
    WRITERS[what](tmp_path)
    assert disk.flushed and disk.faults() == []


def careless(root: Path, content: bool, name: bool) -> None:
    "As write_json, with a flush or without."
    file = root / "a.tmp"
    with open(file, "w") as f:
        f.write("1")
        f.flush()
        if content:
            os.fsync(f.fileno())
    os.replace(file, root / "a.json")
    if name:
        folder = os.open(root, os.O_RDONLY)
        os.fsync(folder)
        os.close(folder)


@pytest.mark.parametrize(
    "content, name, faults",
    [
        (True, True, []),
        (False, True, ["a.tmp: got its name before its content was flushed"]),
        (True, False, ["a.json: its name was not flushed"]),
    ],
)
def test_a_flush_that_is_left_out_is_found(content, name, faults, tmp_path: Path, monkeypatch):
    disk = Disk(tmp_path, monkeypatch)
    careless(tmp_path, content, name)
    assert disk.faults() == faults

"""Random histories of a store: whatever is saved, pruned, restored, promoted, cleaned up, and
killed in the midst of it, what is protected stays, and the registry file and the disk are never
apart without `check` saying so.
"""

import tempfile
from pathlib import Path
from unittest.mock import patch

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from content_arena.versions.cleanup import Cleanup
from content_arena.versions.retention import Retention
from content_arena.versions.snapshots import VersionError, remove_tree
from shelves import death, half_made, make_store, model, says

pytestmark = [pytest.mark.slow, pytest.mark.first]

MODELS = ("a", "b", "c")
#: before which change to the disk; None, two times in three: not at all
killed = st.integers(-80, 40).map(lambda n: n if n >= 0 else None)
which = st.integers(0, 9)  # one of the versions there are


class Histories(RuleBasedStateMachine):
    def __init__(self):
        super().__init__()
        self.root = Path(tempfile.mkdtemp())
        self.store = make_store(self.root)
        self.says: dict[str, str] = {}  # every version ever seen -> what its model says
        self.kept: set[str] = set()  # must be there: tagged, marked keep, latest
        self.used: set[str] = set()  # models of which one copy must be there
        self.quiet = [
            patch("os.fsync", lambda handle: None),
            patch("content_arena.versions.retention.open_paths", lambda *folders: {}),
            patch("content_arena.versions.cleanup.open_paths", lambda *folders: {}),
        ]
        for one in self.quiet:
            one.start()

    def teardown(self):
        for one in self.quiet:
            one.stop()
        remove_tree(self.root)

    @initialize()
    def begin(self):
        self.sha256 = {}
        for text in MODELS:
            model(self.root / "sources" / text, text)
        for text, tag in [("a", ""), ("b", "stable"), ("c", ""), ("c", ""), ("a", "")]:
            self.store.publish(self.root / "sources" / text, tag=tag)

    def _do(self, end, call) -> None:
        "Carry it out, or a part of it; what was protected before must still be there afterwards."
        self._protect()
        with death(self.root, end):
            call()
            self.finished = True

    def _protect(self) -> None:
        value, shelf = self.store.file.read(), self.store.shelf()
        self.kept = {
            n
            for n, s in shelf.snapshots.items()
            if s.tag or value["coevolution"].get(n, {}).get("keep")
        }
        self.kept |= {shelf.latest, *shelf.archives} - {""}
        aliased = {v.sha256 for v in self.store.registry.versions() if v.aliases}
        self.used = {s.model_sha256 for s in shelf.snapshots.values()} & aliased

    def _one(self, n: int) -> str | None:
        names = sorted({*self.store.shelf().snapshots, *self.store.shelf().archives})
        return names[n % len(names)]

    @rule(text=st.sampled_from(MODELS), tag=st.sampled_from(["", "", "stable"]), end=killed)
    def publish(self, text, tag, end):
        self._do(end, lambda: self.store.publish(self.root / "sources" / text, tag=tag))

    @rule(tag=st.sampled_from(["", "", "", "best"]), end=killed)
    def save(self, tag, end):
        self._do(end, lambda: self.store.save(tag))

    @rule(n=which, end=killed)
    def restore(self, n, end):
        self._do(end, lambda: self.store.restore(self._one(n)))

    @rule(keep=st.integers(0, 2), end=killed)
    def prune(self, keep, end):
        planned = Retention(self.store).prune(keep, dry_run=True)
        done = []
        self._do(end, lambda: done.append(Retention(self.store).prune(keep)))
        assert done in ([], [planned])  # either killed before it could tell, or as planned

    @rule(
        n=which,
        keep=st.sampled_from([None, True, False]),
        archive=st.sampled_from([None, True, False]),
    )
    def mark(self, n, keep, archive):
        self._protect()
        try:
            Retention(self.store).mark(self._one(n), keep=keep, archive=archive)
        except VersionError as e:
            assert "there is no version" in str(e)  # it is in the archive

    @rule(n=which)
    def promote(self, n):
        if snapshot := self.store.shelf().snapshots.get(self._one(n)):
            self._protect()
            self.store.registry.promote(snapshot.model_sha256)

    @rule(end=killed)
    def clean_up(self, end):
        planned = Cleanup(self.store).plan()
        self._do(end, lambda: Cleanup(self.store).execute(planned))

    @precondition(lambda self: len(self.store.shelf().snapshots) > 1)
    @rule(n=which)
    def lose_one_behind_everybodys_back(self, n):
        shelf = self.store.shelf()
        name = sorted(shelf.snapshots)[n % len(shelf.snapshots)]
        if name != shelf.latest and shelf.latest:
            remove_tree(self.store.versions / name)
            self._protect()
            if name in self.store.file.read()["coevolution"]:
                self._must_be_told({name})

    @rule()
    def export(self):
        self._protect()
        Retention(self.store).export()
        assert Retention(self.store).check(verify=True) == []

    def _must_be_told(self, names: set[str]) -> None:
        problems = "\n".join(Retention(self.store).check())
        assert all(name in problems for name in names), f"{names} apart, but check says: {problems}"

    @invariant()
    def nothing_protected_is_lost(self):
        shelf = self.store.shelf(verify=True)
        assert shelf.damaged == {}
        missing = self.kept - {*shelf.snapshots, *shelf.archives}
        assert missing == set(), "lost"
        archived = {e["model_sha256"] for e in self.store.file.read()["archive"].values()}
        assert self.used <= {s.model_sha256 for s in shelf.snapshots.values()} | archived

    @invariant()
    def latest_is_complete_and_what_it_is_called(self):
        for name in self.store.shelf().snapshots:
            text = (self.store.versions / name / "model" / "head.safetensors").read_text()
            assert self.says.setdefault(name, text) == text
        if self.store.latest.exists():
            assert says(self.store) == self.says[self.store.latest_name()]

    @invariant()
    def file_and_disk_are_not_apart_unsaid(self):
        shelf, value = self.store.shelf(), self.store.file.read()
        self._must_be_told(set(value["coevolution"]) ^ set(shelf.snapshots))
        self._must_be_told(set(value["archive"]) ^ set(shelf.archives))

    @precondition(lambda self: half_made(self.store))
    @rule()
    def the_next_writer_ends_what_was_begun(self):
        self._do(None, lambda: self.store.save())
        assert half_made(self.store) == []


Histories.TestCase.settings = settings(
    max_examples=20,
    stateful_step_count=15,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
TestHistories = Histories.TestCase

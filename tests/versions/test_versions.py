"""Versions of models: no kill, no wrong input and no sequence of commands loses one that is in use.

The models are folders of small text files: versions are about files, not about what is in them.
"""

import errno
import json
import os
import signal
import stat
import threading
import time
from pathlib import Path
from unittest.mock import patch

import pytest
from filelock import FileLock
from typer.testing import CliRunner

from content_arena.versions import snapshots
from content_arena.versions.cleanup import Cleanup, CleanupError
from content_arena.versions.retention import Retention
from content_arena.mlops.registry_file import RegistryFileError, change_registry
from content_arena.versions.snapshots import VersionError, verify_snapshot
from shelves import (
    OPERATIONS,
    answer,
    copy_shelf,
    four_versions,
    half_made,
    killed_at,
    make_store,
    model,
    save_when_told,
    says,
    start,
)

pytestmark = pytest.mark.first


@pytest.fixture(autouse=True)
def without_fsync(monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda handle: None)


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    "Folder with four versions, and their names."
    root = tmp_path_factory.mktemp("shelf") / "template"
    return root, four_versions(root)


@pytest.fixture
def shelf(template, tmp_path):
    "A store of its own with four versions, and their names."
    copy_shelf(template[0], tmp_path / "own")
    return make_store(tmp_path / "own"), template[1]


def tree(root: Path) -> dict[str, str]:
    "Everything below `root`: path -> content, target of a link, or kind."
    entries = {}
    for path in sorted(root.rglob("*")):
        if path.name.endswith(".lock"):
            continue
        name = str(path.relative_to(root))
        entries[name] = (
            os.readlink(path)
            if path.is_symlink()
            else "folder"
            if path.is_dir()
            else path.read_bytes().hex()
        )
    return entries


# Kill --------------------------------------------------------------------------------------------


def assert_survived(store, names: dict[str, str], may_say: set[str]) -> None:
    "After a kill: latest is complete, nothing half-made is listed, nothing protected is gone."
    shelf = store.shelf(verify=True)
    assert shelf.damaged == {} and says(store) in may_say
    if own := store.latest_name():
        assert verify_snapshot(store.versions / own)
    listed = set(store.file.read()["coevolution"]) if store.file.path.exists() else set()
    apart = listed ^ set(shelf.snapshots)
    problems = "\n".join(Retention(store).check())
    assert all(name in problems for name in apart), problems
    assert {names["v0"], names["v1"]} <= set(shelf.snapshots)  # champion, tagged
    # either it is still there, or the operation was one that removes it
    assert names["v2"] in {*shelf.snapshots, *shelf.archives} or may_say == {"v3"}
    after = store.save("afterwards")
    assert half_made(store) == [] and after.name in store.shelf().snapshots
    left = set(store.file.read()["coevolution"]) ^ set(store.shelf().snapshots)
    assert left == set(), "the next writer did not finish what was begun"


@pytest.mark.slow
@pytest.mark.parametrize("operation", OPERATIONS)
def test_kill_at_every_step_leaves_the_old_or_the_new(template, tmp_path, operation):
    prepare, _, may_say = OPERATIONS[operation]
    before, root = tmp_path / "before", tmp_path / "killed"
    copy_shelf(template[0], before)
    if prepare:
        prepare(make_store(before), template[1])
    deaths, code = 0, -signal.SIGKILL
    while code == -signal.SIGKILL:
        copy_shelf(before, root)
        code, said = answer(*start(killed_at, root, operation, template[1], deaths))
        # either it was killed or it came to its end
        assert code in (0, -signal.SIGKILL), said
        assert_survived(make_store(root), template[1], may_say)
        deaths += 1
    assert deaths > 4, "it was hardly ever killed"
    assert said == (may_say - {"v3", "by hand"} or {"v3"}).pop()  # the last one lived


def test_two_saves_at_once_are_two_versions(shelf):
    store, names = shelf
    root = store.models.parent
    wait, go = os.pipe()
    children = [start(save_when_told, root, tag, wait, go) for tag in ("one", "two")]
    os.close(wait), os.close(go)
    answers = [answer(*child) for child in children]
    assert [code for code, _ in answers] == [0, 0], answers
    saved = {name for _, name in answers}
    assert len(saved) == 2 and saved < set(store.shelf(verify=True).snapshots)
    assert saved < set(store.file.read()["coevolution"]) and half_made(store) == []


def test_a_reader_always_finds_a_complete_latest(shelf):
    store, names = shelf
    names_seen, wrong, done = set(), [], threading.Event()

    def read():
        while not done.is_set():
            try:
                snapshot = verify_snapshot(store.latest.resolve().parent)
                names_seen.add(snapshot.name)
            except Exception as e:
                wrong.append(e)

    reader = threading.Thread(target=read)
    reader.start()
    for _ in range(15):
        store.restore(names["v1"]), store.restore(names["v3"])
    done.set()
    reader.join()
    assert wrong == [] and names_seen == {names["v1"], names["v3"]}


def test_scores_after_restore_are_those_of_the_version(shelf, tmp_path):
    from content_arena.training.base_models import resolve_base_model
    from content_arena.training.classifier import (
        build_classifier,
        load_dense,
        load_tokenizer,
        predict_logits,
        save_model,
    )
    from content_arena.training.tokens import encode
    from content_arena.testing.tiny_base import make_tiny_base

    store, base = shelf[0], resolve_base_model(str(make_tiny_base(tmp_path / "tiny")), tmp_path)
    probe = ["you are awful", "kind friend today"]
    tokenizer = load_tokenizer(base.path)
    ids = encode(tokenizer, probe, 16)

    def scores(folder: Path) -> list:
        return predict_logits(load_dense(folder, base)[0], ids, tokenizer.pad_token_id).tolist()

    made = {}
    for seed in (1, 2):
        classifier, spec = build_classifier(base, seed=seed, quantization="none")
        spec |= {"max_length": 16, "temperature": 1.0, "threshold": 0.35}
        save_model(classifier, tmp_path / f"m{seed}", spec)
        made[seed] = store.publish(tmp_path / f"m{seed}").name
    expected = {seed: scores(tmp_path / f"m{seed}") for seed in made}
    assert expected[1] != expected[2] and scores(store.latest) == expected[2]
    store.restore(made[1])
    assert scores(store.latest) == expected[1]


# What must not be lost ---------------------------------------------------------------------------


def test_every_reason_to_keep_a_version_keeps_it(shelf):
    store, names = shelf
    why = lambda: {
        v.name: v.why for v in Retention(store).prune(0, dry_run=True) if v.action == "keep"
    }
    assert why() == {
        names["v3"]: "coevolution-latest",
        names["v1"]: "tagged stable",
        names["v0"]: "@champion (v1); champion in MODEL_REGISTRY.json",
    }
    Retention(store).mark(names["v2"], keep=True)
    assert why()[names["v2"]] == "marked keep"
    Retention(store).mark(names["v2"], keep=False, archive=True)
    assert why()[names["v2"]] == "marked archive"
    Retention(store).mark(names["v2"], archive=False)
    with open(store.versions / names["v2"] / "model" / "head.safetensors"):
        assert why()[names["v2"]] == f"held by process {os.getpid()}"
    registered = store.registry.read()
    sha256 = store.shelf().snapshots[names["v2"]].model_sha256
    store.registry.write([*registered, [sha256, []], ["f" * 64, []]])
    assert names["v2"] not in why()  # registered, but not used

    def ensemble(value):
        value["ensembles"]["duo"] = {
            "mode": "or",
            "members": ["2", "3"],
            "weights": [],
            "threshold": 0.5,
        }
        return value

    change_registry(store.file, ensemble)
    assert why()[names["v2"]] == "member of ensemble duo"


def test_the_last_copy_of_a_lineage_stays(shelf, tmp_path):
    store, names = shelf
    facts = snapshots.Facts(lineage=("another family",))
    made = [
        store.publish(model(tmp_path / str(i), f"other {i}"), facts=facts).name for i in range(2)
    ]
    store.restore(names["v3"])
    kept = {v.name: v.why for v in Retention(store).prune(0) if v.action == "keep"}
    assert "the last copy of lineage" in kept[made[1]] and made[0] not in kept
    assert set(store.shelf().snapshots) == set(kept)


def test_the_list_has_the_quality_that_mlflow_knows(shelf):
    store, names = shelf
    store.registry.promote(store.shelf().snapshots[names["v2"]].model_sha256)
    made = store.publish(store.models.parent / "sources" / "2")
    row = {r["name"]: r for r in Retention(store).rows()}
    shown = ("f1", "detection_rate", "false_positive_rate")
    assert [row[made.name][k] for k in shown] == [0.8, 0.5, 0.25]
    assert row[names["v3"]]["f1"] is None  # was never registered
    assert store.file.read()["coevolution"][made.name]["metrics"] == {
        "valid_f1": 0.7,
        "f1": 0.8,
        "detection_rate": 0.5,
        "false_positive_rate": 0.25,
    }


def test_nothing_is_deleted_if_mlflow_is_away(shelf):
    from content_arena.mlops.model_registry import RegistryError

    store, _ = shelf
    before = tree(store.models)
    with patch.object(store.registry, "versions", side_effect=RegistryError("is away")):
        for attempt in (lambda: Retention(store).prune(0), lambda: Cleanup(store).plan()):
            with pytest.raises(RegistryError):
                attempt()
    assert tree(store.models) == before


def test_versions_are_read_only_and_share_their_bytes(shelf):
    store, names = shelf
    saved = store.save("twin")
    ours = store.versions / names["v3"] / "model" / "head.safetensors"
    twin = store.versions / saved.name / "model" / "head.safetensors"
    assert ours.stat().st_ino == twin.stat().st_ino
    for path in (store.versions / saved.name).rglob("*"):
        assert stat.S_IMODE(path.stat().st_mode) == (0o555 if path.is_dir() else 0o444)
    source = store.models.parent / "sources" / "0" / "head.safetensors"
    first = store.versions / names["v0"] / "model" / "head.safetensors"
    assert source.stat().st_ino != first.stat().st_ino  # may still be written to


# Bad input ---------------------------------------------------------------------------------------


def overwrite(path: Path, data: bytes) -> None:
    path.chmod(0o644)
    path.write_bytes(data)


def damaged_manifest(store, names):
    overwrite(store.versions / names["v2"] / "snapshot.json", b"{")
    return lambda: store.restore(names["v2"]), f"{names['v2']}/snapshot.json"


def record_of_another(store, names):
    other = (store.versions / names["v3"] / "snapshot.json").read_bytes()
    overwrite(store.versions / names["v2"] / "snapshot.json", other)
    return lambda: store.restore(names["v2"]), "it was renamed"


def edited_by_hand(store, names):
    overwrite(store.versions / names["v2"] / "model" / "head.safetensors", b"V2")
    return lambda: store.restore(names["v2"]), f"{names['v2']}/model/head.safetensors"


def edited_and_pruned(store, names):
    edited_by_hand(store, names)
    return lambda: Retention(store).prune(0), f"{names['v2']}/model/head.safetensors"


def edited_and_cleaned(store, names):
    edited_by_hand(store, names)
    return lambda: Cleanup(store).plan(), f"{names['v2']}/model/head.safetensors"


def extra_file(store, names):
    folder = store.versions / names["v2"] / "model"
    folder.chmod(0o755)
    (folder / "more.bin").touch()
    return lambda: store.restore(names["v2"]), "more.bin is not in its record"


def link_in_a_version(store, names):
    folder = store.versions / names["v2"] / "model"
    folder.chmod(0o755)
    (folder / "passwd").symlink_to("/etc/passwd")
    return lambda: store.restore(names["v2"]), "passwd in model is a link"


def link_as_a_version(store, names):
    (store.versions / "v_20200101_000000").symlink_to("/etc")
    return lambda: store.restore("v_20200101_000000"), "v_20200101_000000 is a link"


def schema_violation(store, names):
    store.file.path.write_text(store.file.path.read_text().replace('"keep": false', '"keep": 1'))
    return lambda: Retention(store).prune(0), r"MODEL_REGISTRY.json: coevolution/v_\w+/keep: 1"


def schema_violation_and_save(store, names):
    schema_violation(store, names)
    return store.save, r"MODEL_REGISTRY.json: coevolution/v_\w+/keep: 1"


def source_that_is_damaged(store, names):
    source = store.models.parent / "sources" / "0"
    (source / "head.safetensors").write_text("vv")
    return lambda: store.publish(source), "head.safetensors differs from its manifest"


def name_that_leads_out(store, names):
    return lambda: store.restore("../../sources/0"), "is no name of a version"


def tag_that_leads_out(store, names):
    return lambda: store.save("../x"), "letters, digits"


@pytest.mark.parametrize(
    "fault",
    [
        damaged_manifest,
        record_of_another,
        edited_by_hand,
        edited_and_pruned,
        edited_and_cleaned,
        extra_file,
        link_in_a_version,
        link_as_a_version,
        schema_violation,
        schema_violation_and_save,
        source_that_is_damaged,
        name_that_leads_out,
        tag_that_leads_out,
    ],
)
def test_bad_input_is_named_and_nothing_is_changed(shelf, fault):
    store, names = shelf
    attempt, message = fault(store, names)
    before = tree(store.models)
    with pytest.raises((VersionError, RegistryFileError), match=message):
        attempt()
    assert tree(store.models) == before


@pytest.mark.parametrize(
    "call, operation",
    [
        ("clone_file", "publish"),
        ("clone_file", "save"),
        ("os.rename", "save"),
        ("os.symlink", "restore"),
        ("os.replace", "restore"),
    ],
)
def test_a_full_disk_changes_nothing(shelf, call, operation):
    store, names = shelf
    before = tree(store.models)
    full = OSError(errno.ENOSPC, "No space left on device", "some.file")
    with patch(f"content_arena.versions.snapshots.{call}", side_effect=full):
        with pytest.raises(VersionError, match="some.file: No space left on device"):
            OPERATIONS[operation][1](store, names)
    given = "coevolution/versions/.newest"  # a name that was tried is not given once more
    left = tree(store.models)
    assert left.pop(given) >= before.pop(given) and left == before
    assert OPERATIONS[operation][1](store, names)  # later there is space


@pytest.fixture
def as_nobody(tmp_path):
    "Rights count, for root too."
    if os.geteuid():
        yield
        return
    for path in [tmp_path, *tmp_path.parents]:
        if path.stat().st_uid == 0 and path != Path("/") and path != Path("/tmp"):
            path.chmod(path.stat().st_mode | 0o055)
    os.seteuid(65534)
    yield
    os.seteuid(0)


@pytest.mark.parametrize("operation", ["save", "prune", "restore"])
def test_a_read_only_folder_is_named_and_nothing_is_changed(shelf, as_nobody, operation):
    store, names = shelf
    before = tree(store.models)
    if os.geteuid() != 65534:
        store.models.chmod(0o555)
        store.versions.chmod(0o555)
    with pytest.raises(VersionError, match="Permission denied"):
        OPERATIONS[operation][1](store, names)
    if os.geteuid() != 65534:
        store.models.chmod(0o755)
        store.versions.chmod(0o755)
    assert tree(store.models) == before


def test_an_archive_cut_short_is_not_restored_and_its_source_stays_until_it_is_whole(shelf):
    store, names = shelf
    Retention(store).mark(names["v2"], archive=True)
    cut = lambda version, snapshot, raw, tick: raw.write(b"x")
    with patch("content_arena.versions.archives._pack", cut):
        with pytest.raises(VersionError, match="damaged or cut short"), store.locked():
            Retention(store).archive(names["v2"])
    assert names["v2"] in store.shelf(verify=True).snapshots and half_made(store) == []
    with store.locked():
        packed = Retention(store).archive(names["v2"])
    whole = packed.read_bytes()
    for length in (0, len(whole) // 2, len(whole) - 1):
        packed.write_bytes(whole[:length])
        with pytest.raises(VersionError, match=rf"archive {names['v2']}.tar.zst is .*cut short"):
            store.restore(names["v2"])
        assert says(store) == "v3" and names["v2"] not in store.shelf().snapshots
        assert any(names["v2"] in line for line in Retention(store).check(verify=True))
    packed.write_bytes(whole)
    assert store.restore(names["v2"]).unpacked and says(store) == "v2"


# The registry file -------------------------------------------------------------------------------


def test_check_says_what_differs_and_export_mends_it(shelf, tmp_path):
    store, names = shelf
    assert Retention(store).check(verify=True) == []
    store.registry.promote("e" * 64)
    snapshots.remove_tree(store.versions / names["v2"])
    problems = Retention(store).check()
    assert {line.split(":")[0] for line in problems} == {
        "production/previous",
        "production/champion",
        f"coevolution/{names['v2']}",
    }
    store.save()
    assert any(names["v2"] in line for line in Retention(store).check()), "a loss was hushed up"
    Retention(store).export()
    assert Retention(store).check(verify=True) == []
    once = store.file.path.read_bytes()
    Retention(store).export()
    assert store.file.path.read_bytes() == once


# Cleanup -----------------------------------------------------------------------------------------


def test_cleanup_lists_what_it_deletes_and_keeps_what_is_held(shelf):
    store, names = shelf
    root, old = store.models.parent, 1_600_000_000
    for name in ("ended", "held", "locked"):
        file = root / "runs" / name / "run.json"
        file.parent.mkdir(parents=True)
        file.write_text('{"status": "failed"}')
        os.utime(file, (old, old))
    for name in ("v2", "v0"):  # the latter is champion
        Retention(store).mark(names[name], archive=True)
    with open(root / "runs" / "held" / "run.json"), FileLock(root / "runs" / "locked" / ".lock"):
        planned = Cleanup(store).plan()
        before = tree(root)
        assert Cleanup(store).plan() == planned and tree(root) == before
        action = {i.path.name: i.action for i in planned}
        assert action == {
            names["v3"]: "keep",
            names["v2"]: "archive",
            names["v1"]: "keep",
            names["v0"]: "keep",
            "ended": "delete",
            "held": "keep",
            "locked": "keep",
        }
        assert [i.why for i in planned if i.path.name == names["v0"]] == [
            "@champion (v1); champion in MODEL_REGISTRY.json"
        ]
        done = Cleanup(store).execute(planned)
    assert {i.path.name for i in done.gone} == {names["v2"], "ended"} and done.after < done.before
    assert sorted(p.name for p in (root / "runs").iterdir() if p.name[0] != ".") == [
        "held",
        "locked",
    ]
    logged = [json.loads(line) for line in done.log.read_text().splitlines()]
    assert {Path(entry["path"]).name for entry in logged} == {names["v2"], "ended"}
    assert store.restore(names["v2"]).unpacked


def test_a_version_that_somebody_needs_since_the_plan_stays(shelf):
    store, names = shelf
    planned = Cleanup(store).plan()
    assert {i.path.name for i in planned if i.action == "delete"} == {names["v2"]}
    Retention(store).mark(names["v2"], keep=True)
    with pytest.raises(CleanupError, match=f"{names['v2']}: is in use by now; 0 others went"):
        Cleanup(store).execute(planned)
    assert names["v2"] in store.shelf().snapshots


def test_caches_shrink_but_keep_what_a_model_was_trained_on(shelf, tmp_path):
    store, _ = shelf
    root = store.models.parent
    facts = snapshots.Facts(lineage=("1" * 64,), base_model_sha256="2" * 64)
    store.publish(model(tmp_path / "m", "m"), facts=facts)
    var, folders = root / "var", {}
    for kind, name in [
        ("datasets", "1" * 16),
        ("datasets", "3" * 16),
        ("cache/base_models", f"org--name-{'2' * 16}"),
        ("cache/base_models", f"org--name-{'4' * 16}"),
        ("cache/merged", f"{'5' * 64}-{'a' * 16}"),
        ("cache/merged", f"{'6' * 64}-{'b' * 16}"),
    ]:
        folders[name] = model(var / kind / name, "cached")
    store.registry.promote("5" * 64)
    assert [i for i in Cleanup(store).plan() if i.kind.endswith("cache")] == []
    small = make_store(
        root, cleanup_dataset_cache_mb=1e-4, cleanup_base_cache_mb=1e-4, cleanup_model_cache_mb=1e-4
    )
    planned = Cleanup(small).plan()
    assert {i.path.name[-16:]: i.action for i in planned if i.kind.endswith("cache")} == {
        "1" * 16: "keep",
        "3" * 16: "delete",
        "2" * 16: "keep",
        "4" * 16: "delete",
        "a" * 16: "keep",
        "b" * 16: "delete",
    }
    Cleanup(small).execute(planned)
    assert [p.exists() for p in folders.values()] == [True, False] * 3


def test_battles_go_when_they_are_over_and_old(shelf):
    store, _ = shelf
    arena, old = store.settings.path("var_dir") / "arena", 1_600_000_000

    def fought(folder: str, record: str, status: str, time: float = old) -> None:
        file = arena / folder / record
        file.parent.mkdir(parents=True)
        file.write_text(json.dumps({"status": status}))
        (file.parent / "cycle-001").mkdir()
        (file.parent / "cycle-001" / "attempts.jsonl").write_text("{}")
        os.utime(file, (time, time))

    for name, status in [
        ("over", "completed"),
        ("failed", "failed"),
        ("half", "running"),
        ("held", "completed"),
        ("damaged", "?"),
    ]:
        fought(f"battles/{name}", "battle.json", status)
    fought("battles/new", "battle.json", "completed", time.time())
    fought("coevolution/1", "state.json", "completed")
    fought("coevolution/2", "state.json", "stopped")
    with FileLock(arena / "battles" / "held" / ".lock"):
        planned = [i for i in Cleanup(store).plan() if i.kind == "battle"]
        assert {f"{i.path.parent.name}/{i.path.name}": i.action for i in planned} == {
            "battles/over": "delete",
            "battles/failed": "delete",
            "battles/half": "keep",
            "battles/held": "keep",
            "battles/damaged": "keep",
            "1/cycle-001": "delete",
            "2/cycle-001": "keep",
        }
        Cleanup(store).execute(planned)
    left = {p.name for p in (arena / "battles").glob("[!.]*")}
    assert left == {"half", "held", "damaged", "new"}
    assert (arena / "coevolution/1/state.json").exists()  # the next run counts those before it
    assert not (arena / "coevolution/1/cycle-001").exists()


def test_what_a_killed_download_left_in_a_cache_goes(shelf):
    store, _ = shelf
    cache, old = store.settings.path("var_dir") / "cache", 1_600_000_000
    for name in ("merged/.building-1", "models/incoming-1", "models/incoming-2"):
        (cache / name).mkdir(parents=True)
        (cache / name / "weights").write_text("half")
    for name in ("merged/.building-1", "models/incoming-1"):
        os.utime(cache / name, (old, old))
    planned = [i for i in Cleanup(store).plan() if i.kind == "leftover"]
    assert [i.path.name for i in planned] == [".building-1", "incoming-1"]
    Cleanup(store).execute(planned)
    assert [p.name for p in cache.glob("*/*")] == ["incoming-2"]


def test_orphans_go_but_not_those_of_another_store(shelf, empty_store):
    from forks import MlflowClient

    store, _ = shelf
    root = store.models.parent
    (root / "mlflow.db").write_bytes(empty_store.read_bytes())
    run = MlflowClient(f"sqlite:///{root}/mlflow.db").create_run("0").info.run_id
    old = 1_600_000_000

    def listed() -> dict[str, str]:
        return {i.path.name: i.action for i in Cleanup(store).plan() if i.kind == "artifact"}

    orphan, young = "a" * 32, "b" * 32
    for name in (orphan, young):
        (root / "artifacts" / name).mkdir(parents=True)
    os.utime(root / "artifacts" / orphan, (old, old))
    assert listed() == {"artifacts": "keep"}  # none is known: is it the right store?
    (root / "artifacts" / run).mkdir()
    assert listed() == {orphan: "delete"}


# The command line --------------------------------------------------------------------------------


def test_the_commands_of_a_day(shelf, empty_store, monkeypatch):
    from content_arena.cli.main import app

    store, _ = shelf
    root = store.models.parent
    (root / "mlflow.db").write_bytes(empty_store.read_bytes())
    where = {
        "MODELS_DIR": root / "fresh",
        "VAR_DIR": root / "var",
        "RUNS_DIR": root / "runs",
        "ARTIFACT_DIR": root / "artifacts",
        "TRACKING_URI": f"sqlite:///{root}/mlflow.db",
        "STORE_URL": f"sqlite:///{root}/events.db",
    }
    for key, value in where.items():
        monkeypatch.setenv(f"CONTENT_ARENA_{key}", str(value))

    def run(*arguments: str, code: int = 0) -> dict:
        done = CliRunner().invoke(app, [*arguments, "--json"])
        assert done.exit_code == code, done.output
        return json.loads(done.stdout.splitlines()[-1])

    source = str(root / "sources" / "0")
    first = run("versions", "publish", "--folder", source)["name"]
    stable = run("versions", "save", "--tag", "stable")["name"]
    later = [
        run("versions", "publish", "--folder", str(root / "sources" / n))["name"] for n in "123"
    ]
    listed = run("versions", "list")["versions"]
    assert [r["name"] for r in listed] == [*reversed(later), stable, first]
    assert listed[0]["used"] == ["coevolution-latest"] and listed[3]["tag"] == "stable"
    planned = run("versions", "prune", "--keep", "3", "--dry-run")["versions"]
    assert run("versions", "prune", "--keep", "3")["versions"] == planned
    assert [v["name"] for v in planned if v["action"] == "delete"] == [first]
    done = run("versions", "restore", stable)
    assert done["undo_command"] == f"content-arena versions restore {later[-1]}"
    assert (root / "fresh" / "coevolution-latest" / "head.safetensors").read_text() == "v0"
    assert run("registry", "check")["disagreements"] == []
    snapshots.remove_tree(root / "fresh" / "coevolution" / "versions" / later[0])
    assert len(run("registry", "check", code=1)["disagreements"]) == 1
    run("registry", "export")
    assert run("registry", "check", "--verify")["status"] == "agrees"
    assert run("cleanup", "--dry-run")["status"] == "planned"
    assert run("cleanup", "--execute")["status"] == "cleaned"


def test_a_restored_version_becomes_a_challenger(shelf, empty_store):
    from content_arena.mlops.decision_records import DecisionChain, Moves
    from content_arena.mlops.model_registry import ModelRegistry
    from forks import copy_store

    store, names = shelf
    root = store.models.parent
    copy_store(empty_store, root)
    with pytest.raises(VersionError, match="knows no lineage"):
        store.register(names["v1"])
    facts = snapshots.Facts({"f1": 0.9}, ("d0", "d1"), "d1", "tiny", "0" * 64)
    made = store.publish(root / "sources" / "1", facts=facts)
    version = store.register(made.name)
    assert version.aliases == ("challenger",) and version.lineage == ["d0", "d1"]
    assert version.sha256 == made.model_sha256
    chain = DecisionChain(ModelRegistry(store.settings))
    assert chain.registry.get_champion() is None and chain.moves() == Moves(recorded=0, older=0)
    files = ModelRegistry(store.settings).download(version)
    assert (files / "head.safetensors").read_text() == "v1"

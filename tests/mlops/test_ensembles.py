"""Ensembles from members to traffic: fitted without test rows, promoted by the gate, served, kept.

Two tiny models are each half blind: one takes `friend` for an insult, the other `today`; both know
`awful`. What they agree on is right, so their AND beats either.
"""

import asyncio
import json
import shutil
from datetime import datetime, timezone
from pathlib import Path

import httpx
import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

import stage
from content_arena.core.config import Secrets
from content_arena.inference.ensemble import MODES, EnsembleError, Recipe
from content_arena.versions.cleanup import Cleanup
from content_arena.versions.retention import Retention
from content_arena.versions.shelf import VersionStore
from content_arena.mlops import ensemble_versions as ensembles
from content_arena.mlops.decision_records import DecisionChain
from content_arena.mlops.decisions import DecisionLog, Verified
from content_arena.mlops.deployer import InferenceClient, ModelDeployer
from content_arena.mlops.ensemble_versions import beside_members, create_ensemble, remove_ensemble
from content_arena.mlops.evaluator import ChampionChallengerEvaluator, load_engine
from content_arena.mlops.lineage import LineageError
from content_arena.mlops.model_registry import ModelRegistry, RegistryError, Version
from content_arena.mlops.registry_file import change_registry
from content_arena.reports.evaluation import members_table
from content_arena.reports.tables import table_html
from content_arena.data.grouping import fingerprints
from content_arena.training.qlora_trainer import QLoRATrainer
from content_arena.testing.tiny_base import make_tiny_base
from forks import copy_store
from shelves import FakeRegistry, make_store, model

pytestmark = [pytest.mark.slow, pytest.mark.long(150)]

WORDS, SHARES = ("awful", "friend", "today", "kind"), (0.4, 0.2, 0.2, 0.2)


class Words:
    "What `Dataset` is: comments of one telling word and noise; those in `toxic` are toxic."

    def __init__(self, seed: int, toxic: tuple[str, ...], test_rows: int = 100):
        self.id, rng = f"{seed:064x}", np.random.default_rng(seed)
        noise = lambda: "".join(rng.choice(list("abcdefghijklmnopqrstuvwxyz"), size=8))
        self.frames = {}
        for split, rows in (("train", 300), ("valid", 200), ("test", test_rows)):
            said = rng.choice(WORDS, size=rows, p=SHARES)
            texts = [f"{noise()} {word} {noise()} {noise()}" for word in said]
            self.frames[split] = pd.DataFrame(
                {"text": texts, "label": np.isin(said, toxic).astype("int8"), "source": "made"}
            )

        rows = {name: len(frame) for name, frame in self.frames.items()}
        self.folder = Path("made")
        self.manifest = {
            "id": self.id,
            "recipe": {},
            "rows": {"read": sum(rows.values()), "quarantined": 0, **rows},
            "quarantine": {},
        }

    def frame(self, split: str) -> pd.DataFrame:
        return self.frames[split]

    def fingerprints(self, split: str) -> pd.DataFrame:
        return fingerprints(self.frames[split].text.tolist())


TRUTH = Words(3, ("awful",), test_rows=400)
BLIND = {"1": Words(1, ("awful", "friend")), "2": Words(2, ("awful", "today"))}


def make_settings(root: Path, **more):
    return stage.settings(
        root,
        tracking_uri=f"sqlite:///{root}/mlflow.db",
        dtype="float32",
        artifact_dir=str(root / "artifacts"),
        models_dir=str(root / "models"),
        base_model=str(root / "tiny"),
        epochs=3,
        batch_tokens=512,
        eval_every=9,
        learning_rate=0.01,
        head_learning_rate=0.05,
        max_length=16,
        guarded_slices="source",
        min_samples=300,
        **more,
    )


@pytest.fixture(scope="module")
def trained(empty_store, tmp_path_factory):
    "A home with both models registered; v1 is champion."
    root = tmp_path_factory.mktemp("trained")
    copy_store(empty_store, root)
    make_tiny_base(root / "tiny")
    settings = make_settings(root)
    registry = ModelRegistry(settings)
    for number, data in BLIND.items():
        run = QLoRATrainer(settings, progress=False).train(
            data.frame("train"), data.frame("valid"), dataset=data
        )
        assert registry.register(run).version == number
    registry.register_challenger(registry.get_version(1).run_id)
    registry.promote_challenger(DecisionChain(registry).by_hand("1", "first"))
    return root


@pytest.fixture
def home(trained):
    "Settings and registry of `trained`; what a test adds to the registry is taken back afterwards."
    before = (trained / "mlflow.db").read_bytes()
    yield make_settings(trained), ModelRegistry(make_settings(trained))
    (trained / "mlflow.db").write_bytes(before)
    shutil.rmtree(trained / "models", ignore_errors=True)
    for file in trained.glob("events.db*"):
        file.unlink()


def verdicts(engine, texts) -> np.ndarray:
    return engine.scores(texts).astype(float) >= engine.threshold


def production(settings) -> dict[str, str]:
    "Alias -> version, as MODEL_REGISTRY.json has it."
    listed = ensembles.registry_file(settings).read()["production"]
    return {alias: entry["version"] for alias, entry in listed.items()}


# The way to traffic ------------------------------------------------------------------------------


def test_an_and_ensemble_is_evaluated_promoted_through_the_gate_and_served(home):
    from content_arena.serving.app import create_app

    settings, registry = home
    duo = create_ensemble(settings, "duo", "and", ["1", "2"], TRUTH, challenger=True)
    assert (duo.version, duo.aliases) == ("3", ("challenger",))
    texts = [f"{a} {b}" for a in WORDS for b in WORDS]
    alone = [
        verdicts(load_engine(registry, registry.get_version(n), "", settings), texts) for n in "12"
    ]
    with stage.serving(create_app(settings, Secrets())) as url:
        served = settings.model_copy(update={"inference_url": url})
        classify = lambda: httpx.post(
            f"{url}/classify/batch", json={"texts": texts}, timeout=60
        ).json()
        httpx.post(f"{url}/reload", timeout=60).raise_for_status()
        assert classify()["model_version"] == "1"
        deployer = ModelDeployer(
            registry,
            served,
            stage.Notices(settings.path("var_dir")),
            ChampionChallengerEvaluator(registry, served),
            client=InferenceClient(served, Secrets(), backoff_s=0.01),
        )
        result = asyncio.run(deployer.deploy_if_better(TRUTH))
        assert (result["status"], result["service"]) == ("promoted", "serving 3"), result
        assert production(settings) == {"champion": "3", "previous": "1"}
        record = result["comparison"]
        assert record["challenger"]["precision"] > record["champion"]["precision"] + 0.1
        assert set(record["certificate"]["datasets"]) == {d.id for d in (*BLIND.values(), TRUTH)}
        answers = classify()
        assert answers["model_version"] == "3"
        assert [r["is_toxic"] for r in answers["results"]] == (alone[0] & alone[1]).tolist()
        assert 0 < (alone[0] & alone[1]).sum() < alone[0].sum()
        assert asyncio.run(deployer.rollback("moderators complain"))["service"] == "serving 1"
        assert classify()["model_version"] == "1"
        assert production(settings) == {"champion": "1"}
        assert DecisionLog(registry).verify() == Verified(decisions=3, moves=3, older=0)


def test_beside_its_members_on_the_same_rows(home):
    settings, registry = home
    duo = create_ensemble(settings, "duo", "and", ["1", "2"], TRUTH)
    beside = beside_members(registry, duo, TRUTH.frame("test"), settings)
    compared = ChampionChallengerEvaluator(registry, settings).compare(TRUTH, challenger="3")
    for name, side in (("v3 (and)", "challenger"), ("member v1", "champion")):
        for metric in ("f1", "precision", "recall"):
            assert beside[name][metric] == pytest.approx(compared[side][metric])
    assert beside["v3 (and)"]["f1"] > max(beside[f"member v{n}"]["f1"] for n in "12")
    page = table_html(members_table(beside))
    assert all(text in page for text in ("member v2", "precision", "weights"))
    assert beside["v3 (and)"]["size_mb"] < sum(beside[f"member v{n}"]["size_mb"] for n in "12")


def test_test_rows_are_neither_read_nor_of_influence(home):
    "Every mode is fitted while the test split can't be read; turning its labels changes nothing."
    settings, registry = home

    class Sealed(Words):
        def frame(self, split):
            assert split != "test", "test rows were read"
            return super().frame(split)

        def fingerprints(self, split):
            assert split != "test", "test rows were read"
            return super().fingerprints(split)

    sealed = Sealed(3, ("awful",))
    fitted = {}
    for mode in MODES:
        made = create_ensemble(settings, mode, mode, ["1", "2"], sealed)
        fitted[mode] = json.loads(made.tags["ensemble"])
        assert registry.metrics(made.run_id)["valid_rows"] == 200
    assert [len(fitted[m]["weights"]) for m in MODES] == [0, 0, 0, 2]
    assert [fitted[m]["threshold"] == 0.5 for m in ("and", "or")] == [True, True]
    listed = ensembles.registry_file(settings).read()["ensembles"]
    assert {
        n: {k: e[k] for k in ("mode", "weights", "threshold")} for n, e in listed.items()
    } == fitted


def test_the_lineage_of_every_member_is_certified(home):
    "A comment that only the second member was trained on, in the test set: no comparison."
    settings, registry = home
    create_ensemble(settings, "duo", "and", ["1", "2"], TRUTH)
    planted = TRUTH.frame("test").copy()
    planted.loc[7, "text"] = BLIND["2"].frame("train").text[5].upper() + " !"
    evaluator = ChampionChallengerEvaluator(registry, settings)
    with pytest.raises(LineageError, match=f"1 of 400 test rows .* training data {BLIND['2'].id}"):
        evaluator.compare(planted, challenger="3")


# Bad input ---------------------------------------------------------------------------------------


def stored(settings, sha256: str) -> Path:
    "The folder in the artifact store of the model with this hash, the one logged last."
    manifests = [
        p
        for p in settings.path("artifact_dir").rglob("manifest.json")
        if json.loads(p.read_text())["sha256"] == sha256
    ]
    return max(manifests, key=lambda p: p.stat().st_mtime_ns).parent


@pytest.fixture
def restored_files(trained):
    "Whatever a test does to files of the artifact store is undone; caches are empty before it."
    kept = {p: p.read_bytes() for p in (trained / "artifacts").rglob("*") if p.is_file()}
    shutil.rmtree(trained / "var" / "cache" / "models", ignore_errors=True)
    yield
    for path, data in kept.items():
        if path.read_bytes() != data:
            path.write_bytes(data)
    shutil.rmtree(trained / "var" / "cache" / "models", ignore_errors=True)


def test_a_damaged_ensemble_or_member_is_named_and_not_loaded(home, restored_files):
    settings, registry = home
    duo = create_ensemble(settings, "duo", "and", ["1", "2"], TRUTH)
    cache = settings.path("var_dir") / "cache" / "models"

    def refused(error, message: str) -> None:
        with pytest.raises(error, match=message):
            load_engine(registry, duo, "", settings)
        shutil.rmtree(cache)

    manifest = stored(settings, duo.sha256) / "manifest.json"
    whole = manifest.read_text()
    manifest.write_text(whole[:-20])
    refused(RegistryError, "v3, fetched from .*: model folder .*: manifest.json can't be read")
    manifest.write_text(whole.replace('"files"', '"files_"'))
    refused(
        RegistryError, "v3, fetched from .*: model folder .*: content_filter.json is not listed"
    )
    manifest.write_text(whole)
    weights = stored(settings, registry.get_version(2).sha256) / "head.safetensors"
    weights.write_bytes(b"\0" * 100)
    refused(
        RegistryError,
        "v2, fetched from .*: model folder .*: head.safetensors differs from its manifest",
    )


def test_a_member_that_is_gone_is_named(home):
    settings, registry = home
    duo = create_ensemble(settings, "duo", "and", ["1", "2"], TRUTH)
    registry._client.delete_model_version(registry.name, "2")
    with pytest.raises(RegistryError, match="v3 needs its member v2, but no version is that model"):
        load_engine(registry, duo, "", settings)


def test_members_on_different_bases_are_refused(home, trained):
    settings, registry = home
    other = make_tiny_base(trained / "other", seed=9)
    data = Words(5, ("awful",))
    run = QLoRATrainer(
        settings.model_copy(update={"base_model": str(other), "epochs": 1}), progress=False
    ).train(data.frame("train"), data.frame("valid"), dataset=data)
    assert registry.register(run).version == "3"
    with pytest.raises(EnsembleError, match="v3 stands on .*other.* members share one base"):
        create_ensemble(settings, "mixed", "or", ["1", "3"], TRUTH)


@pytest.mark.parametrize(
    "mode, members, weights, message",
    [
        ("and", "1", (), "1 member, give 2 to 5"),
        ("weighted", "12", (0.9, 0.4), "sum to 1.3"),
        ("weighted", "12", (1.0,), "1 weights, 2 needed"),
        ("xor", "12", (), "none of and, or"),
    ],
)
def test_a_recipe_that_makes_no_sense_is_refused(mode, members, weights, message):
    with pytest.raises(EnsembleError, match=message):
        Recipe(mode, {m: m * 64 for m in members}, weights)


def test_check_lists_what_no_longer_fits(home):
    settings, registry = home
    create_ensemble(settings, "duo", "weighted", ["1", "2"], TRUTH)
    store = VersionStore(settings, registry)
    Retention(store).export()
    assert Retention(store).check() == []

    def edit(value):
        value["ensembles"]["duo"] |= {"weights": [0.9, 0.4], "members": ["1", "7"]}
        return value

    change_registry(store.file, edit)
    client = registry._client
    client.set_model_version_tag(registry.name, "1", "model_sha256", "f" * 64)
    client.delete_model_version(registry.name, "2")
    problems = "\n".join(Retention(store).check())
    for line in (
        "ensembles/duo: its weights sum to 1.3, not 1",
        "ensembles/duo: members is ['1', '7'] in the file, ['1', '2'] in truth",
        "ensembles/duo: version 1 is model ffffffffffff, the ensemble was made of",
        "ensembles/duo: version 2, a member, is not in MLflow",
    ):
        assert line in problems
    client.delete_model_version(registry.name, "3")
    assert "duo: version 3, the ensemble itself, is not in MLflow" in "\n".join(
        Retention(store).check()
    )


# What must not be lost ---------------------------------------------------------------------------


class WithEnsemble(FakeRegistry):
    "As the file says, and one more: version 9, an ensemble of the models in `members`."

    members, aliases, sha256 = {}, (), "e" * 64

    def versions(self):
        tags = {"lineage": '["d0"]', "members": json.dumps(self.members)}
        own = Version(
            "content-filter", "9", "r", self.aliases, tags, self.sha256, datetime.now(timezone.utc)
        )
        return [*super().versions(), own]


@pytest.fixture
def shelf(tmp_path):
    "A store with models a, b, c as three versions, the last one latest; v9 is an ensemble of a, b."
    store = make_store(tmp_path)
    names = [store.publish(model(tmp_path / "sources" / x, x)).name for x in "abc"]
    store.registry = WithEnsemble(tmp_path / "registry.json")
    snapshots = store.shelf().snapshots
    store.registry.members = {
        "1": snapshots[names[0]].model_sha256,
        "2": snapshots[names[1]].model_sha256,
    }
    return store, names


def kept(store) -> dict[str, str]:
    return {v.name: v.why for v in Retention(store).prune(0, dry_run=True) if v.action == "keep"}


@pytest.mark.parametrize("reason", ["aliased", "listed", "kept itself"])
def test_members_of_an_ensemble_in_use_are_never_pruned(shelf, tmp_path, reason):
    store, names = shelf
    assert set(kept(store)) == {names[2]}, "an ensemble that nobody uses protects nothing"
    if reason == "aliased":
        store.registry.aliases = ("previous",)
    elif reason == "listed":

        def listed(value):
            value["ensembles"]["duo"] = {
                "mode": "and",
                "members": ["1", "2"],
                "weights": [],
                "threshold": 0.5,
                "version": "9",
            }
            return value

        change_registry(store.file, listed)
    else:
        own = store.publish(model(tmp_path / "sources" / "e", "ensemble"), tag="both")
        store.registry.sha256 = own.model_sha256
        store.restore(names[2])
    why = kept(store)
    assert all("member of v9, an ensemble" in why[name] for name in names[:2]), why
    Retention(store).prune(0)
    assert set(names) <= set(store.shelf(verify=True).snapshots)
    assert all(i.action == "keep" for i in Cleanup(store).plan() if i.path.name in names)


def test_the_cache_keeps_members_of_an_ensemble_behind_an_alias(shelf):
    store, _ = shelf
    models = store.settings.path("var_dir") / "cache" / "models"
    small = make_store(store.models.parent, cleanup_model_cache_mb=1e-6)
    small.registry = store.registry
    for sha256 in (*store.registry.members.values(), "d" * 64):
        model(models / sha256, "cached")
    cached = lambda: {
        i.path.name: i.action for i in Cleanup(small).plan() if i.kind == "model cache"
    }
    assert set(cached().values()) == {"delete"}
    store.registry.aliases = ("champion",)
    assert cached() == {
        **dict.fromkeys(store.registry.members.values(), "keep"),
        "d" * 64: "delete",
    }


def test_a_version_of_an_ensemble_is_restored_as_one(home):
    "Kept, restored and registered again, it still knows its members."
    settings, registry = home
    duo = create_ensemble(settings, "duo", "and", ["1", "2"], TRUTH)
    store = VersionStore(settings, registry)
    again = store.register(store.publish_version(duo.version).name)
    assert again.version == "4" and again.members == duo.members
    assert again.lineage == duo.lineage and again.tags["ensemble"] == duo.tags["ensemble"]
    texts = ["you awful friend", "friend today"]
    scores = [load_engine(registry, v, "", settings).scores(texts).tolist() for v in (duo, again)]
    assert scores[0] == scores[1]


def test_a_name_is_used_once_and_free_again_after_its_removal(home):
    settings, registry = home
    create_ensemble(settings, "duo", "and", ["1", "2"], TRUTH)
    with pytest.raises(EnsembleError, match="there is an ensemble duo already"):
        create_ensemble(settings, "duo", "or", ["1", "2"], TRUTH)
    assert len(registry.versions()) == 3, "something was registered nevertheless"
    remove_ensemble(settings, "duo")
    create_ensemble(settings, "duo", "or", ["1", "2"], TRUTH)


# The registry file after a deployment ------------------------------------------------------------


@pytest.mark.parametrize("broken", [False, True])
def test_a_deployment_writes_the_registry_file_and_does_not_fail_with_it(home, monkeypatch, broken):
    from content_arena.workflows import deployment as module

    settings, registry = home
    create_ensemble(settings, "duo", "and", ["1", "2"], TRUTH, challenger=True)
    file = ensembles.registry_file(settings)
    assert production(settings)["challenger"] == "3"
    monkeypatch.setattr(module, "prepare_dataset", lambda settings, progress: TRUTH)
    monkeypatch.setattr(module, "Notifier", lambda *_: stage.Notices(settings.path("var_dir")))
    if broken:
        file.path.write_text("{")
    away = settings.model_copy(update={"inference_url": "http://127.0.0.1:9"})
    result = asyncio.run(module.evaluate_and_deploy(away))
    assert result["status"] == "promoted" and registry.get_champion().version == "3"
    if broken:
        assert "MODEL_REGISTRY.json can't be read" in result["registry_file"]
        assert file.path.read_text() == "{"
    else:
        assert result["registry_file"] == "written"
        assert production(settings) == {"champion": "3", "previous": "1"}


# The command line --------------------------------------------------------------------------------


def test_the_commands(home, monkeypatch):
    from content_arena.cli.main import app
    from content_arena.training import data_preparation

    settings, registry = home
    monkeypatch.setattr(data_preparation, "prepare_dataset", lambda s, progress: TRUTH)
    for key in (
        "models_dir",
        "var_dir",
        "artifact_dir",
        "tracking_uri",
        "dtype",
        "guarded_slices",
        "min_samples",
    ):
        value = getattr(settings, key)
        monkeypatch.setenv(
            f"CONTENT_ARENA_{key.upper()}",
            ",".join(value) if isinstance(value, tuple) else str(value),
        )

    def run(*arguments: str, code: int = 0) -> str:
        done = CliRunner().invoke(app, ["ensemble", *arguments])
        assert done.exit_code == code, done.output + str(done.exception)
        return done.output + str(done.exception) if code else done.stdout

    made = json.loads(
        run("create", "duo", "--mode", "and", "--members", "1,v2", "--json").splitlines()[-1]
    )
    assert (made["version"], made["members"], made["aliases"]) == ("3", ["1", "2"], [])
    assert "and of v1, v2" in run("list")
    shown = run("show", "duo")
    assert "200 rows; weights" in shown and "p95" in shown and "duo, version 3" in shown
    evaluated = run("evaluate", "duo")
    assert evaluated.startswith("promote") and "member v2" in evaluated
    assert "only challenger" in run(
        "create", "x", "--mode", "or", "--members", "1,2", "--alias", "champion", code=2
    )
    assert "no version 8" in run("create", "x", "--mode", "or", "--members", "1,8", code=1)
    run("remove", "duo")
    assert "no ensembles yet" in run("list")

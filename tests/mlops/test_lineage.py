"""The certificate against real trainings: rows that a model was fitted to, chosen by, or that its ancestor saw."""

import hashlib
import json

import mlflow
import pandas as pd
import pytest

from content_arena.mlops.decision_records import DecisionChain
from content_arena.mlops.evaluator import ChampionChallengerEvaluator
from content_arena.mlops.lineage import LineageError, certify, check_ancestors, load_fingerprints
from content_arena.mlops.model_registry import ModelRegistry
from content_arena.training import qlora_trainer
from content_arena.data.grouping import fingerprints
from content_arena.training.qlora_trainer import QLoRATrainer
from tiny_models import comments, tiny_settings

pytestmark = pytest.mark.slow

PARTS = {"ancestor": slice(0, 80), "own": slice(80, 160), "test": slice(160, 200)}
ROWS = comments(200).assign(
    text=lambda f: [f"{t} {hashlib.sha256(t.encode()).hexdigest()}" for t in f.text]
)  # none near another


def split(part):
    "The training and the validation rows of a part."
    rows = ROWS[PARTS[part]]
    return rows[:60], rows[60:]


@pytest.fixture(scope="module")
def family(tmp_path_factory):
    "v1, champion; v2, challenger, which went on from v1 with rows of its own; their settings."
    folder = tmp_path_factory.mktemp("family")
    s = tiny_settings(folder, epochs=1, batch_tokens=512)
    registry, trainer = ModelRegistry(s), QLoRATrainer(s, progress=False)
    first = trainer.train(*split("ancestor"), work_dir=folder / "one")
    v1 = registry.register_challenger(first)
    registry.promote_challenger(DecisionChain(registry).by_hand(v1.version, "first"))
    second = trainer.train(
        *split("own"),
        work_dir=folder / "two",
        ancestor=folder / "one" / "model",
        parent_lineage=v1.lineage,
    )
    registry.register_challenger(second)
    return registry, s


def test_clean_test_rows_are_certified(family):
    registry, _ = family
    certificate = certify(
        fingerprints(ROWS[PARTS["test"]].text.tolist()), registry, registry.versions()
    )
    assert (
        certificate.hits == ()
        and len(certificate.datasets) == 2
        and list(certificate.datasets.values()) == [80, 80]
    )


@pytest.mark.parametrize("part", ["own", "ancestor"])
@pytest.mark.parametrize("which", ["training", "validation"])
def test_a_planted_row_refuses_the_comparison(family, part, which):
    registry, s = family
    planted = split(part)[which == "validation"].text.iloc[7]
    test = pd.concat([ROWS[PARTS["test"]], pd.DataFrame({"text": [planted.upper()], "label": [1]})])
    sha = fingerprints([planted]).canonical_sha[0]
    with pytest.raises(LineageError, match=f"^1 of 41 test rows .*{sha}"):
        ChampionChallengerEvaluator(registry, s).compare(test)
    only_own = certify(fingerprints([planted]), registry, registry.versions()[1:], allowed=1)
    assert only_own.rows_hit == [sha], "the challenger's lineage alone names its ancestor's rows"


def test_a_lineage_without_its_ancestor_is_refused(family):
    registry, s = family
    v1, v2 = registry.versions()
    assert v2.tags["ancestor_sha256"] == v1.sha256
    check_ancestors(registry, [v1, v2])
    mlflow.MlflowClient(s.mlflow_uri()).set_model_version_tag(
        v2.name, v2.version, "lineage", json.dumps(v2.lineage[-1:])
    )
    try:
        with pytest.raises(
            LineageError, match=f"v2: its lineage lacks {v1.lineage[0]}, what v1 was trained on"
        ):
            ChampionChallengerEvaluator(registry, s).compare(ROWS[PARTS["test"]])
    finally:
        mlflow.MlflowClient(s.mlflow_uri()).set_model_version_tag(
            v2.name, v2.version, "lineage", json.dumps(v2.lineage)
        )


@pytest.mark.parametrize("kept, lost", [("train", "valid"), ("valid", "train")])
def test_fingerprints_of_one_split_are_no_fingerprints(tmp_path, monkeypatch, kept, lost):
    s = tiny_settings(tmp_path, epochs=1, batch_tokens=512)
    log = qlora_trainer.log_fingerprints
    monkeypatch.setattr(
        qlora_trainer, "log_fingerprints", lambda table, id: log(table[table.split == kept], id)
    )
    registry = ModelRegistry(s)
    registry.register_challenger(
        QLoRATrainer(s, progress=False).train(*split("own"), work_dir=tmp_path / "work")
    )
    with pytest.raises(LineageError, match=f"has no row of split {lost}.*train again"):
        load_fingerprints(registry, registry.versions())

"""Registries: an empty one, and one of two versions that can be compared."""

from pathlib import Path

import pytest
from comparisons import learn
from forks import copy_store

from content_arena.mlops.decision_records import DecisionChain
from content_arena.mlops.model_registry import Move


@pytest.fixture
def settings(tmp_path, empty_store):
    return copy_store(empty_store, tmp_path).settings


@pytest.fixture(scope="session")
def two_versions(empty_store, tmp_path_factory) -> Path:
    "v1, trained on b, is champion; v2, trained on b and then c, the challenger."
    root = tmp_path_factory.mktemp("two")
    registry = copy_store(empty_store, root)
    settings = registry.settings
    learn(settings, "1", ["b"], ["some row", "another row of it"])
    learn(settings, "2", ["b", "c"], ["a third row that is its own"])
    registry._move(Move("register", "1"))
    registry.promote_challenger(DecisionChain(registry).by_hand("1", "first"))
    registry._move(Move("register", "2"))
    return root / "mlflow.db"


@pytest.fixture
def registry(settings, two_versions, tmp_path):
    "Those two versions, in a registry of its own."
    return copy_store(two_versions, tmp_path)

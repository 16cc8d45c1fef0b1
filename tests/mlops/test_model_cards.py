"""The card of a version, from training to the command that prints it; and of one that was made before there were cards."""

import json

import pytest
from huggingface_hub import ModelCard
from tiny_models import comments, register, tiny_settings, train
from typer.testing import CliRunner

from content_arena.cli.main import app
from content_arena.mlops.decisions import DecisionLog
from content_arena.mlops.evaluator import ChampionChallengerEvaluator
from content_arena.mlops.model_cards import version_card
from content_arena.mlops.model_registry import ModelRegistry

pytestmark = pytest.mark.slow


def test_a_version_carries_its_card_and_the_command_adds_what_was_found_since(
    tmp_path, monkeypatch
):
    settings = tiny_settings(tmp_path, min_samples=10)
    run_id = train(settings, tmp_path / "work")
    registry = ModelRegistry(settings)
    version = registry.register_challenger(run_id)
    folder = registry.download(version)
    written = (folder / "README.md").read_text()
    assert "## Limits" in written and str(tmp_path) not in written
    assert "README.md" in json.loads((folder / "manifest.json").read_text())["files"]
    assert "compared with no other version yet" in version_card(registry, version)

    test = comments(200)[120:].assign(text=lambda t: t.text + " again")
    evaluator = ChampionChallengerEvaluator(registry, settings)
    found = DecisionLog(registry).decide(evaluator, test)
    for key in ("var_dir", "artifact_dir", "tracking_uri"):
        monkeypatch.setenv(f"CONTENT_ARENA_{key.upper()}", getattr(settings, key))
    file = tmp_path / "card.md"
    done = CliRunner().invoke(app, ["registry", "card", version.version, "--write", str(file)])
    assert done.exit_code == 0, done.output
    card = file.read_text()
    assert f"**{found.verdict}**" in card and found["decision"][:12] in card
    results = {(r.dataset_split, r.metric_type): r for r in ModelCard(card).data.eval_results}
    assert results["test", "f1"].metric_value == round(found["challenger"]["f1"], 4)
    assert ("validation", "f1") in results
    assert (folder / "README.md").read_text() == written


def test_a_version_from_before_there_were_cards_has_one_too(tmp_path):
    settings = tiny_settings(tmp_path)
    version = register(settings, tmp_path / "encoder", seed=0)
    assert not (ModelRegistry(settings).download(version) / "README.md").exists()
    card = version_card(ModelRegistry(settings), version.version)
    assert "before versions had cards" in card and str(tmp_path) not in card
    assert ModelCard(card).data.base_model == "encoder"

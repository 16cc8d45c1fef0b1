"""What `train --plan` says, against what the same training takes."""

import json
import time

import pytest
from tiny_models import tiny_settings

from content_arena.data.embedded_corpus import embedded_corpus
from content_arena.training import qlora_trainer
from content_arena.training.data_preparation import prepare_dataset
from content_arena.workflows.training_plan import plan_lines, plan_training

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    folder = tmp_path_factory.mktemp("plan")
    rows = embedded_corpus().sample(900, random_state=0)[["text", "label"]]
    rows.to_csv(folder / "comments.csv", index=False)
    return tiny_settings(
        folder,
        sources=f"csv:{folder}/comments.csv",
        test_sources="",
        epochs=6,
        batch_tokens=1024,
        max_length=60,
        eval_every=1000,
        checkpoint_every=1000,
        disguised_share=0.0,
    )


@pytest.fixture(scope="module")
def plan(settings):
    return plan_training(settings)


def test_steps_rows_and_time_are_those_of_the_training(settings, plan, monkeypatch, tmp_path):
    spent = {"seconds": 0.0, "summary": None}
    fit = qlora_trainer.fit

    def timed(*args, **kwargs):
        began = time.monotonic()
        spent["summary"] = fit(*args, **kwargs)
        spent["seconds"] = time.monotonic() - began
        return spent["summary"]

    monkeypatch.setattr(qlora_trainer, "fit", timed)
    data = prepare_dataset(settings, progress=False)
    qlora_trainer.QLoRATrainer(settings, progress=False).train(
        data.frame("train"), data.frame("valid"), dataset=data, work_dir=tmp_path
    )
    assert plan["steps"] == spent["summary"]["planned_steps"]
    assert plan["rows"]["train"] == len(data.frame("train"))
    planned = sum(
        p["seconds"]
        for p in plan["parts"]
        if p["name"].startswith(("network, ", "validations", "checkpoints"))
    )
    # within 15 % on a quiet machine; others compute beside this test
    assert planned / 2 < spent["seconds"] < planned * 2, f"{planned:.1f} s planned, {spent}"


def test_each_part_is_named_and_nothing_is_trained(settings, plan):
    names = [p["name"] for p in plan["parts"]]
    for name in ("data", "network, 6 epochs", "character branch", "baseline"):
        assert name in names
    assert all(p["seconds"] >= 0 and p["gib"] >= 0 for p in plan["parts"])
    assert plan["tokens"] == pytest.approx(plan["padded_tokens"] * (1 - plan["padding"]))
    assert json.loads(json.dumps(plan)) == plan
    assert plan_lines(plan)[-1].startswith("all, at most")
    assert not (settings.path("var_dir") / "training").exists()

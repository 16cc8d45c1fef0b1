"""What one machine left, seen by another that has an empty disk, the address of MLflow and that of the event store."""

from dataclasses import asdict
from pathlib import Path

import mlflow
import pytest

from content_arena.arena.coevolution.rematch import rounds_to_learn
from content_arena.arena.coevolution.samples import Sample
from content_arena.core.config import load_settings
from content_arena.disguises.families import split_families
from content_arena.store.events import EventStore, text_sha256
from content_arena.training.tracking import connect
from content_arena.workflows import retrain_evasions
from content_arena.workflows.retrain_triggers import Situation, check_evasion
from content_arena.workflows.retraining import keep_rows
from content_arena.workflows.run_labels import lost_run

pytestmark = pytest.mark.long(30)


def machine(root: Path, name: str, store_url: str):
    "Settings of a machine whose folders nobody else can read."
    own = {f"{kind}_dir": str(root / name / kind) for kind in ("var", "runs", "models")}
    shared = {
        "tracking_uri": f"sqlite:///{root}/mlflow.db",
        "artifact_dir": str(root / "artifacts"),
    }
    return load_settings(env={}, store_url=store_url, **own, **shared)


def fought(store: EventStore, n: int = 120) -> None:
    "A battle against the champion in which every other attack got through."
    result = {"alias": "champion", "attacked": n, "detected": n // 2}
    store.add(
        "battles", [{"id": "b1", "status": "completed", "model_version": "1", "result": result}]
    )
    made = {"outcome": "made", "label": 1, "steps": ["spaces@1.0/all"]}
    rounds = [
        made | {"text_sha256": text_sha256(f"comment {i}"), "flagged": i % 2 == 0} for i in range(n)
    ]
    store.add(
        "battle_rounds",
        [{"battle_id": "b1", "round": i, "result": r} for i, r in enumerate(rounds)],
    )


def test_battles_and_what_they_taught_are_seen_from_an_empty_disk(tmp_path, store_url):
    one, other = (machine(tmp_path, name, store_url) for name in ("one", "other"))
    learnt = [Sample(f"c o m m e n t {i}", 1, "spaced_out", "ab" * 32, "evaded") for i in range(3)]
    with EventStore(one) as store:
        fought(store)
        file = keep_rows(one, [asdict(x) for x in learnt])
        kept = retrain_evasions._keep_samples(store, file, learnt)
        about = {"status": "promoted", "reason": "evasion", "result": {"samples_set": kept}}
        store.add("retrain_events", [about])
        of_one = rounds_to_learn(store, ["b1"], 500)
    for folder in (tmp_path / "one").rglob("*.jsonl"):
        folder.unlink()  # the runner is gone
    with EventStore(other) as store:
        seen = check_evasion(Situation(store, other, store.now()))
        assert (seen.fired, seen.value) == (True, 0.5)
        assert rounds_to_learn(store, ["b1"], 500) == of_one and of_one
        assert retrain_evasions.earlier_samples(store, split_families()) == learnt
    assert not (tmp_path / "other").exists()


def test_a_run_that_was_lost_with_its_disk_is_named_by_the_next(tmp_path, store_url):
    one, other = (machine(tmp_path, name, store_url) for name in ("one", "other"))
    experiment, client = connect(one), mlflow.MlflowClient()
    begun = [
        client.create_run(experiment, tags={"pipeline_run": f"night-{i}"}, start_time=1000 + i)
        for i in range(2)
    ]
    lost, now = (run.info.run_id for run in begun)
    (one.path("runs_dir") / "night-0").mkdir(parents=True)
    assert "night-0" in lost_run(other, experiment, now) and "not on this disk" in lost_run(
        other, experiment, now
    )
    assert "were others" in lost_run(one, experiment, now)
    client.set_tag(lost, "outcome", "rejected")
    assert lost_run(other, experiment, now) == ""

"""Two versions that can be compared: a test set, engines that are right on a share of it, and their lineage."""

import hashlib
import json

import mlflow
import numpy as np
import pandas as pd

from content_arena.data.grouping import fingerprints
from content_arena.disguises.mix import DeclaredMix
from content_arena.mlops.model_registry import ModelRegistry, Move

N = 1200
TEXTS = [hashlib.sha256(f"test {i}".encode()).hexdigest()[: 30 + i % 30] for i in range(N)]
TEST = pd.DataFrame(
    {
        "text": TEXTS,
        "label": np.arange(N) % 2,
        "source": "made",
        "lang": ["ko", "en", "ko"] * (N // 3),
    }
)
SHOWN = DeclaredMix(0.5).apply(TEST).text.tolist()  # as the gate shows them by default
ORIGINAL = dict(zip(SHOWN, TEXTS))


class Fake:
    "Right on a share of the rows, disguised or not."

    size_mb = 2.0

    def __init__(self, version: str, right: float):
        self.version, self.sha256 = version, f"sha{version}"
        self.threshold, self.closed = {"1": 0.3, "2": 0.7}.get(version, 0.6), False
        wrong = np.random.default_rng(int(version)).permutation(N)[int(right * N) :]
        flip = np.zeros(N, int)
        flip[wrong] = 1
        near = self.threshold - 0.1 + 0.2 * (TEST.label.to_numpy() ^ flip)  # not near another's
        self.answers = dict(zip(TEXTS, near))

    def scores(self, texts):
        return np.array([self.answers[ORIGINAL.get(t, t)] for t in texts])

    def latency_ms(self, texts):
        return {"p50_ms": 3.0, "p95_ms": 7.5}

    def close(self):
        self.closed = True


ENGINES = {"champion": Fake("1", 0.80), "challenger": Fake("2", 0.88)}


def learn(settings, number: str, lineage: list[str], rows: list[str] | None) -> None:
    "Version `number`, made challenger; its run logged fingerprints of `rows`, and of one more."
    client = mlflow.MlflowClient(settings.mlflow_uri())
    name, place = settings.experiment, settings.path("artifact_dir").as_uri()  # copies follow it
    experiment = client.get_experiment_by_name(name) or client.get_experiment(
        client.create_experiment(name, artifact_location=place)
    )
    run = client.create_run(experiment.experiment_id)
    if rows is not None:
        file = settings.path("var_dir") / f"{lineage[-1]}.parquet"
        file.parent.mkdir(parents=True, exist_ok=True)
        prints = fingerprints([*rows, f"what {lineage[-1]} was validated on"])
        prints.assign(split=[*["train"] * len(rows), "valid"]).to_parquet(file)
        client.log_artifact(run.info.run_id, str(file), "lineage")
    tags = {"lineage": json.dumps(lineage), "model_sha256": f"sha{number}"}
    registry = ModelRegistry(settings)
    if number == "1":
        client.create_registered_model(registry.name)
    source = f"file:///nowhere/{number}"
    client.create_model_version(registry.name, source, run.info.run_id, tags=tags)
    registry._move(Move("register", number))

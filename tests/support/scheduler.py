"""A scheduler in a process of its own, for tests that need two: `scheduler.py STORE_URL FOLDER`.

It says a word per look; training takes until a line comes on stdin."""

import sys
from pathlib import Path

from content_arena.core.config import load_settings
from content_arena.store.events import EventStore
from content_arena.workflows.retraining import AutoRetrain, stopping_on_signals


def settings(url: str, folder: Path, **more):
    return load_settings(
        env={},
        store_url=url,
        var_dir=str(folder),
        store_text=True,
        retrain_lease_s=3,
        retrain_backoff_h=1e-4,
        **more,
    )


def train(changed) -> dict:
    print("training", flush=True)
    sys.stdin.readline()
    return {"status": "promoted", "model_version": "5"}


if __name__ == "__main__":
    url, folder = sys.argv[1:]
    chosen = settings(url, Path(folder))
    with EventStore(chosen) as store, stopping_on_signals() as stop:
        AutoRetrain(store, chosen, train).watch(
            0.2, stop, lambda result: print(result["status"], flush=True)
        )

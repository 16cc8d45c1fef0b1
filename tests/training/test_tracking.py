"""MLflow's store as several trainings find it."""

import multiprocessing
from pathlib import Path

from content_arena.core.config import load_settings
from content_arena.training.tracking import connect


def _begin(folder: Path, ready, answers) -> None:
    settings = load_settings(
        env={},
        tracking_uri=f"sqlite:///{folder}/mlflow.db",
        artifact_dir=str(folder / "artifacts"),
        var_dir=str(folder / "var"),
    )
    ready.wait()
    try:
        answers.put(connect(settings))
    except Exception as e:
        answers.put(f"{type(e).__name__}: {e}")


def test_trainings_that_come_to_a_new_store_at_once_all_get_it(tmp_path):
    """Seen with two trainings started together in a fresh clone: one made the tables, the other
    ended with `duplicate column name: step`."""
    context = multiprocessing.get_context("fork")
    ready, answers = context.Barrier(3), context.Queue()
    processes = [context.Process(target=_begin, args=(tmp_path, ready, answers)) for _ in range(3)]
    for process in processes:
        process.start()
    said = [answers.get(timeout=180) for _ in processes]
    for process in processes:
        process.join()
    assert len(set(said)) == 1 and said[0].isdigit(), said

"""What a version lacks on a machine is made by a process beside: whole or not at all, and if it can't be, torch answers."""

import os
import threading
from pathlib import Path

import numpy as np
import pytest
from tiny_models import random_version

from content_arena.inference import backends
from content_arena.inference.backends import NotMade, end_children
from content_arena.inference.engine import Engine
from content_arena.inference.network_folders import dense_folder, graph_folder
from content_arena.testing.tiny_base import make_tiny_base
from content_arena.training.classifier import save_model

OPENVINO = "openvino-float32"
TEXTS = ["you are kind", "바보 you are awful today"]


@pytest.fixture(scope="module")
def version(tmp_path_factory) -> tuple[Path, str]:
    "A version's folder and hash; nothing is made of it yet."
    work = tmp_path_factory.mktemp("apart")
    _, classifier, spec = random_version(make_tiny_base(work / "tiny"), work / "cache")
    return work / "model", save_model(classifier, work / "model", spec)


@pytest.fixture
def cache(version, tmp_path) -> Path:
    "A cache with a base model and nothing else."
    (tmp_path / "base_models").symlink_to(version[0].parent / "cache" / "base_models")
    return tmp_path


def load(version, cache: Path, backend: str = OPENVINO, **more) -> Engine:
    how = dict(dtype="float32", threads=1, backend=backend, listed=("torch", OPENVINO))
    return Engine.load(version[0], cache_dir=cache, version="7", **how, apart=300, **more)


def child_that(monkeypatch, does: str) -> None:
    "Children run this Python and then what they should."
    monkeypatch.setattr(backends, "_CHILD", f"{does}\n{backends._CHILD}")


@pytest.mark.slow
def test_made_and_measured_by_a_child(version, cache, monkeypatch):
    monkeypatch.setattr(backends, "make_graph", pytest.fail)  # not here
    monkeypatch.setattr(backends, "seconds_of", pytest.fail)
    engine = load(version, cache, "auto")
    assert engine.backend in ("torch", OPENVINO)  # either may be the faster one here
    assert graph_folder(cache, version[1]).exists()
    np.testing.assert_allclose(
        load(version, cache).scores(TEXTS), load(version, cache, "torch").scores(TEXTS), atol=1e-4
    )


@pytest.mark.parametrize(
    ("does", "said"),
    [
        ("raise MemoryError('no room for 471 MB')", "MemoryError: no room for 471 MB"),
        (
            "import os; os.kill(os.getpid(), 9)",
            "its process ended with -9, as one does when the memory is short",
        ),
    ],
)
def test_a_child_that_fails_has_a_reason_and_torch_answers(
    version, cache, monkeypatch, caplog, does, said
):
    child_that(monkeypatch, does)
    engine = load(version, cache)
    assert engine.backend == "torch" and len(engine.scores(TEXTS)) == 2
    assert f"what {OPENVINO} needs could not be made: {said}" in caplog.text
    assert load(version, cache, "auto").backend == "torch"


@pytest.mark.slow
def test_a_child_that_is_ended_leaves_nothing_half_made(version, cache, monkeypatch):
    "It is ended while it writes; the next one makes all."
    fifo = cache / "writes"
    os.mkfifo(fifo)
    waits = f"""
import signal
from content_arena.inference import graphs
def stuck(graph, weights, file):
    file.write_text("half")
    open({str(fifo)!r}, "w").close()
    signal.pause()
graphs.write_graph = stuck"""
    got = []
    with monkeypatch.context() as patch:
        child_that(patch, waits)
        files = backends.Files(
            version[0], version[1], pytest.fail, cache, "float32", threads=1, apart=300
        )

        def ask() -> None:
            try:
                files.open(OPENVINO)
            except NotMade as e:
                got.append(e)

        asking = threading.Thread(target=ask)
        asking.start()
        open(fifo).close()  # it writes now
        assert list(cache.glob("merged/.building-*/network.xml"))
        end_children()
        asking.join()
    assert [str(e) for e in got] == [
        f"what {OPENVINO} needs could not be made: its process ended with 143"
    ]
    assert not list(cache.glob("merged/.building-*"))
    assert dense_folder(cache, version[1], "float32").exists()  # this was whole
    assert not graph_folder(cache, version[1]).exists()
    assert load(version, cache).backend == OPENVINO


@pytest.mark.slow
def test_two_that_lack_the_same_make_it_once(version, cache):
    "Two services on one machine: the second child waits for the first, and then reads."
    engines, made = [], graph_folder(cache, version[1])
    threads = [
        threading.Thread(target=lambda: engines.append(load(version, cache))) for _ in range(2)
    ]
    [t.start() for t in threads]
    [t.join() for t in threads]
    assert [e.backend for e in engines] == [OPENVINO] * 2
    assert made.exists() and not list(made.parent.glob(".building-*"))
    np.testing.assert_array_equal(engines[0].scores(TEXTS), engines[1].scores(TEXTS))

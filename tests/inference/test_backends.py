"""What computes a network may change the time, never the verdict: backends, and where they can't be had."""

import json
import logging
import os
import subprocess
import sys
import threading
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from content_arena.data.embedded_corpus import neutral_test
from content_arena.inference import backends, graphs
from content_arena.inference.backends import listed_backends
from content_arena.inference.engine import Engine
from content_arena.testing.tiny_base import make_tiny_base
from content_arena.training import openvino_network
from content_arena.training.base_models import resolve_base_model
from content_arena.training.classifier import build_classifier, load_tokenizer, save_model
from content_arena.training.model_files import BadModel, read_spec
from content_arena.training.openvino_network import BackendError
from content_arena.training.qlora_trainer import PROBE_TEXTS, probe_scores
from content_arena.training.quantise import INT8, Judging, quantise

ALL = ("torch", "openvino-float32", "openvino-bf16", INT8)


@pytest.fixture(scope="module")
def comments() -> list[str]:
    "Comments as people write them."
    return neutral_test()["text"].drop_duplicates().head(120).tolist()


@pytest.fixture(scope="module")
def version(tmp_path_factory, comments) -> Path:
    "A version that knows the words of these comments, with an eight-bit network."
    work = tmp_path_factory.mktemp("version")
    words = [w for t in comments for w in t.split()]
    make_tiny_base(work / "base", more_words=words)
    base = resolve_base_model(str(work / "base"), work / "cache", progress=False)
    classifier, spec = build_classifier(base, quantization="none", lora_r=4, dtype=torch.float32)
    for name, p in classifier.named_parameters():
        if "lora_B" in name or "head" in name:
            p.data.normal_(std=0.3)
    probe = probe_scores(classifier, load_tokenizer(base.path))
    save_model(
        classifier,
        work / "model",
        spec | {"max_length": 24, "temperature": 1.0, "threshold": 0.999, "probe": probe},
    )
    sigmoid = lambda texts, odds: 1 / (1 + np.exp(-odds(texts)))
    labels = np.arange(len(comments)) % 2
    judging = Judging(comments, labels, sigmoid, lambda t, s: s, 2.0, PROBE_TEXTS)
    with pytest.MonkeyPatch.context() as patch:  # the labels mean nothing here
        patch.setattr("content_arena.training.quantise.MAX_AP_CHANGE", 1.0)
        small = partial(
            openvino_network.write_graph, least=100
        )  # tables of this size are large here
        patch.setattr("content_arena.training.quantise.write_graph", small)
        _, facts = quantise(work / "model", base, comments[:40], judging, [(0.8, "mean")])
    assert facts["kept"], facts["why"]
    return work / "model"


def load(folder: Path, backend: str, listed=ALL, **more) -> Engine:
    return Engine.load(
        folder,
        cache_dir=folder.parent / "cache",
        version="7",
        dtype="float32",
        threads=1,
        backend=backend,
        listed=listed,
        **more,
    )


def test_float32_gives_the_scores_of_torch(version, comments):
    reference = load(version, "torch").scores(comments)
    engine = load(version, "openvino-float32")
    assert engine.backend == "openvino-float32"
    assert np.ptp(reference) > 0.1
    np.testing.assert_allclose(engine.scores(comments), reference, atol=1e-4)
    np.testing.assert_allclose(engine.scores(comments[::-1])[::-1], reference, atol=1e-4)


def test_a_table_left_out_of_the_graph_is_the_networks_own(version, comments, monkeypatch):
    "Two files have a weight whose name ends in `weight`: the network's and the head's."
    cache = version.parent / "cache_of_small_tables"
    cache.mkdir()
    (cache / "base_models").symlink_to(version.parent / "cache" / "base_models")
    monkeypatch.setattr(graphs, "write_graph", partial(openvino_network.write_graph, least=100))
    engine = Engine.load(
        version, cache_dir=cache, dtype="float32", threads=1, backend="openvino-float32", listed=ALL
    )
    [graph] = cache.glob("merged/*/network.xml")
    assert "table:" in graph.read_text()  # something was left out
    assert engine.backend == "openvino-float32"
    reference = load(version, "torch").scores(comments)
    np.testing.assert_allclose(engine.scores(comments), reference, atol=1e-4)


def test_many_threads_may_ask_one_engine(version, comments):
    engine, wanted, wrong = load(version, "openvino-float32"), {}, []
    parts = [comments[i : i + 20] for i in range(0, 100, 20)]
    wanted = [engine.scores(p) for p in parts]

    def ask(i: int) -> None:
        for _ in range(5):
            if not np.allclose(engine.scores(parts[i]), wanted[i], atol=1e-5):
                wrong.append(i)

    asking = [threading.Thread(target=ask, args=(i,)) for i in range(len(parts))]
    [t.start() for t in asking]
    [t.join() for t in asking]
    assert not wrong


def test_eight_bits_are_a_file_of_the_version(version, comments):
    engine = load(version, INT8)
    assert engine.backend == INT8
    moved = np.abs(engine.scores(comments) - load(version, "torch").scores(comments))
    assert 0 < moved.mean() < 0.1
    assert engine.size_mb < load(version, "openvino-float32").size_mb
    assert "table:network." in (version / f"{INT8}.xml").read_text()  # the merged network's own
    facts = read_spec(version)["backends"][INT8]
    assert {"alpha", "range", "line", "flips", "ap_change", "probe", "comments"} <= set(facts)
    files = json.loads((version / "manifest.json").read_text())["files"]
    assert {f"{INT8}.xml", f"{INT8}.bin"} <= set(files)
    numbers = version / f"{INT8}.bin"
    sound = numbers.read_bytes()
    try:
        numbers.write_bytes(sound[:-1] + bytes([sound[-1] ^ 1]))
        with pytest.raises(BadModel, match="openvino-int8.bin differs"):
            load(version, INT8)
    finally:
        numbers.write_bytes(sound)


def test_only_what_the_gate_has_judged(version):
    tags = {"backends": json.dumps({"openvino-float32": {"listed": True}, INT8: {"listed": False}})}
    with pytest.raises(BackendError, match="version 7 lists torch, openvino-float32;"):
        load(version, INT8, listed_backends(tags))
    assert load(version, "auto", listed_backends({})).backend == "torch"
    chosen = load(version, "auto", listed_backends(tags)).backend
    assert chosen in ("torch", "openvino-float32")  # either may be the faster one here
    known = json.loads((version.parent / "cache" / "backends.json").read_text())
    assert all(set(taken) <= {"torch", "openvino-float32"} for taken in known.values())


def test_without_openvino_torch_answers_and_the_log_says_so(version, comments, monkeypatch, caplog):
    openvino_network.library.cache_clear()
    openvino_network.processor_formats.cache_clear()
    monkeypatch.setitem(sys.modules, "openvino", None)
    try:
        with caplog.at_level(logging.INFO, logger=backends.__name__):
            engine = load(version, INT8)
    finally:
        openvino_network.library.cache_clear()
        openvino_network.processor_formats.cache_clear()
    assert engine.backend == "torch"
    [line] = [r.getMessage() for r in caplog.records if r.name == backends.__name__]
    assert "openvino is not installed" in line and "torch" in line
    np.testing.assert_array_equal(
        engine.scores(comments[:5]), load(version, "torch").scores(comments[:5])
    )


def test_answers_that_moved_are_not_given(version, caplog):
    "A backend that answers the probe sentences otherwise than it did is left, torch is kept."
    engine = load(version, "openvino-bf16", probe_tolerance=1e-6)
    assert engine.backend == "torch"
    assert ("torch is" in caplog.text) == ("BF16" in openvino_network.processor_formats())


def test_a_challenger_gives_way_between_short_steps(version, comments):
    engine, asked = load(version, "openvino-float32"), []
    before = engine.scores(comments)
    assert engine.give_way(lambda: asked.append(1)) == 1
    np.testing.assert_allclose(engine.scores(comments), before, atol=1e-5)
    tokens = sum(len(t.split()) + 2 for t in comments)
    assert len(asked) >= tokens / 128 / 2


def test_a_processor_without_bfloat16_starts_and_says_what_it_chose(version, monkeypatch, caplog):
    "OpenVINO can't be told to forget what the processor has, so what it says of it is replaced."
    monkeypatch.setattr("content_arena.inference.backends.processor_formats", lambda: {"FP32"})
    with caplog.at_level(logging.INFO, logger=backends.__name__):
        chosen = load(version, "auto", ALL).backend
        assert load(version, "openvino-bf16").backend == "torch"
    lines = [r.getMessage() for r in caplog.records if r.name == backends.__name__]
    assert chosen in ("torch", "openvino-float32", INT8)  # either may be the fastest here
    assert lines[0].startswith(f"version 7 is computed by {chosen}: the fastest here")
    assert "openvino-bf16" not in lines[0] and "no bfloat16" in lines[1]


CHILD = """
import json, logging, sys
from pathlib import Path
import content_arena.mlops.model_registry, content_arena.serving.app
from content_arena.inference.engine import Engine
logging.basicConfig(level=logging.INFO, stream=sys.stderr)
folder, cache, backend, listed, texts = json.loads(sys.argv[1])
engine = Engine.load(Path(folder), cache_dir=Path(cache), version="7", dtype="float32", threads=1,
                     backend=backend, listed=listed)
engine.take_cores(1)
slow = ("torch", "transformers", "peft", "sklearn", "scipy.stats", "scipy.optimize", "jsonschema")
slow = [m for m in slow if m in sys.modules]
print(json.dumps([engine.backend, engine.scores(texts).tolist(), slow]))
"""


def in_a_process(version: Path, cache: Path, backend: str, texts: list[str], **env: str):
    "What computes a version in a process of its own, the scores, slow libraries there, the log."
    asked = json.dumps([str(version), str(cache), backend, ALL, texts])
    done = subprocess.run(
        [sys.executable, "-c", CHILD, asked], env=os.environ | env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return *json.loads(done.stdout.splitlines()[-1]), done.stderr


@pytest.mark.slow
def test_with_the_caches_there_a_service_in_openvino_imports_nothing_slow(version, comments):
    for backend in ("openvino-float32", INT8):
        here = load(version, backend).scores(comments)  # and the caches
        name, scores, slow, _ = in_a_process(version, version.parent / "cache", backend, comments)
        assert (name, slow) == (backend, [])
        np.testing.assert_allclose(scores, here, atol=1e-4)


@pytest.mark.slow
def test_on_a_masked_processor_it_starts_and_says_what_it_chose(version, comments, tmp_path):
    "AVX2 only: OpenVINO goes on saying that there is bfloat16, and fails at the first comment."
    (tmp_path / "base_models").symlink_to(version.parent / "cache" / "base_models")
    masked = dict(ONEDNN_MAX_CPU_ISA="AVX2", ATEN_CPU_CAPABILITY="avx2")
    reference = load(version, "torch").scores(comments)
    name, scores, _, log = in_a_process(version, tmp_path, "auto", comments, **masked)
    assert f"version 7 is computed by {name}: the fastest here" in log
    assert name in ("torch", "openvino-float32", INT8)  # either may be the fastest here
    if "BF16" in openvino_network.processor_formats():
        assert "backend openvino-bf16 is left out: " in log
    moved = np.abs(scores - reference)
    assert moved.mean() < 0.1 if name == INT8 else moved.max() < 1e-4
    name, scores, _, log = in_a_process(version, tmp_path, "openvino-bf16", comments, **masked)
    assert name == "torch" and "openvino-bf16" in log
    np.testing.assert_allclose(scores, reference, atol=1e-4)

"""Engines with the same tokenizer have one of it in memory; those with another don't; it goes with the last."""

import gc
import shutil
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, normalizers

from content_arena.inference import merged_cache as dense_cache
from content_arena.inference.engine import Engine
from content_arena.training.base_models import resolve_base_model
from content_arena.training.classifier import build_classifier, load_tokenizer, save_model
from content_arena.training.qlora_trainer import probe_scores
from content_arena.testing.tiny_base import make_tiny_base

TEXTS = ["you are kind", "you are awful today", "kind " * 40 + "awful"]


def model(folder: Path, base_folder: Path, name: str, max_length: int = 16) -> Path:
    "The folder of a random model on a tiny base."
    base = resolve_base_model(str(base_folder), folder / "cache", progress=False)
    classifier, spec = build_classifier(base, quantization="none", lora_r=4, dtype=torch.float32)
    torch.manual_seed(len(name))
    for parameter, p in classifier.named_parameters():
        if "lora_B" in parameter or "head" in parameter:
            p.data.normal_(std=0.5)
    save_model(
        classifier,
        folder / name,
        spec
        | {
            "max_length": max_length,
            "temperature": 1.0,
            "threshold": 0.35,
            "probe": probe_scores(classifier, load_tokenizer(base.path)),
        },
    )
    return folder / name


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    "Two versions on one base, one on the same weights with a tokenizer that reads in lower case."
    work = tmp_path_factory.mktemp("models")
    base, changed = make_tiny_base(work / "base"), work / "changed"
    shutil.copytree(base, changed)
    for folder, normalizer in ((base, normalizers.NFKC()), (changed, normalizers.Lowercase())):
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        tokenizer.normalizer = normalizer  # one that no other test has in memory
        tokenizer.save(str(folder / "tokenizer.json"))
    models = {
        "first": model(work, base, "first"),
        "second": model(work, base, "second", 8),
        "other": model(work, changed, "other"),
    }
    for folder in models.values():  # merged, as by the evaluation
        load(folder).close()
    return models


def load(folder: Path) -> Engine:
    return Engine.load(folder, cache_dir=folder.parent / "cache", dtype="float32")


def test_a_version_with_the_same_tokenizer_reads_none(folders, monkeypatch):
    first = load(folders["first"])
    with monkeypatch.context() as patched:
        patched.setattr(dense_cache, "load_tokenizer", lambda folder: pytest.fail("it was read"))
        second = load(folders["second"])
    assert second.tokenizer is first.tokenizer
    assert second._tokenizer_lock is first._tokenizer_lock
    other = load(folders["other"])
    assert other.tokenizer is not first.tokenizer
    assert other._tokenizer_lock is not first._tokenizer_lock
    for engine in (first, second, other):
        engine.close()


def test_it_goes_with_the_last_who_uses_it(folders):
    first, second = load(folders["first"]), load(folders["second"])
    tokenizer = weakref.ref(first.tokenizer)
    first.close()
    gc.collect()
    assert tokenizer() is second.tokenizer and len(second.scores(TEXTS)) == 3
    second.close()
    gc.collect()
    assert tokenizer() is None


def test_who_share_it_cut_at_different_lengths_at_once(folders):
    engines = [load(folders["first"]), load(folders["second"])]
    assert engines[0].tokenizer is engines[1].tokenizer
    alone = [engine.scores(TEXTS) for engine in engines]
    with ThreadPoolExecutor(2) as pool:
        together = pool.map(lambda e: [e.scores(TEXTS) for _ in range(150)], engines)
        for wanted, got in zip(alone, together):
            np.testing.assert_allclose(got, np.tile(wanted, (150, 1)), atol=1e-5)
    for engine in engines:
        engine.close()


def test_two_that_load_at_once_read_it_once(folders, monkeypatch):
    read, own = [], dense_cache.load_tokenizer
    monkeypatch.setattr(
        dense_cache, "load_tokenizer", lambda folder: (read.append(folder), own(folder))[1]
    )
    with ThreadPoolExecutor(2) as pool:
        engines = list(pool.map(load, [folders["first"], folders["second"]]))
    assert len(read) == 1 and engines[0].tokenizer is engines[1].tokenizer
    for engine in engines:
        engine.close()

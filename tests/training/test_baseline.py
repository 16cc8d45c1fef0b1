"""The baseline: its threshold against brute force, its files against damage, its quality."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import assume, given, settings, strategies as st
from sklearn.metrics import f1_score, roc_auc_score

from content_arena.core.config import load_settings
from content_arena.training.characters import TfidfBaseline, choose_threshold
from content_arena.data.embedded_corpus import embedded_corpus
from content_arena.data.readers import load_source

TEXTS = [
    "you absolute fool",
    "what a fool",
    "such a foolish thing",
    "a lovely day",
    "lovely, thanks",
    "have a nice day",
    "이 바보야",
    "바보 같은 소리",
    "좋은 하루",
    "하루 종일 좋은 날",
]
LABELS = [1, 1, 1, 0, 0, 0, 1, 1, 0, 0]


def f1_at(labels: np.ndarray, scores: np.ndarray, threshold: float) -> float:
    predicted = scores >= threshold
    return 2 * (predicted & (labels == 1)).sum() / (predicted.sum() + labels.sum())


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 1), st.integers(0, 12)), min_size=2, max_size=40),
    st.sampled_from([np.float32, np.float64]),
)
def test_no_threshold_is_better(rows: list[tuple[int, int]], dtype: type):
    labels, scores = np.array([y for y, _ in rows]), np.array([s / 12 for _, s in rows], dtype)
    assume(0 < labels.sum() < len(labels))
    threshold = choose_threshold(labels, scores)
    assert 0 <= threshold <= 1
    best = max(f1_at(labels, scores, t) for t in [*scores, 0.0])
    assert f1_at(labels, scores, threshold) == best


@settings(deadline=None)
@given(st.lists(st.integers(0, 1), min_size=2, max_size=12), st.integers(0, 2**23 - 20))
def test_scores_a_rounding_error_apart(labels: list[int], start: int):
    assume(0 < sum(labels) < len(labels))
    bits = np.arange(len(labels), dtype=np.int32) + np.float32(0.5).view(np.int32) + np.int32(start)
    scores = bits.view(np.float32)
    labels = np.array(labels)
    threshold = choose_threshold(labels, scores)
    assert f1_at(labels, scores, threshold) == max(f1_at(labels, scores, t) for t in scores)


def test_the_middle_of_the_widest_plateau():
    assert choose_threshold([0, 1], [0.2, 0.8]) == 0.5
    assert choose_threshold([1, 0, 1], [0.1, 0.5, 0.9]) == 0.05  # all toxic: 0.8 beats 0.67
    labels, scores = np.array([1, 0, 0, 1]), np.array([0.9, 0.4, 0.38, 0.35])
    assert f1_at(labels, scores, 0.65) == f1_at(labels, scores, 0.2)  # (0.4, 0.9] and (0, 0.35]
    assert choose_threshold(labels, scores) == pytest.approx(0.65)


def test_order_of_rows_does_not_matter():
    rng = np.random.default_rng(0)
    labels, scores = rng.integers(0, 2, 500), rng.random(500).round(2)
    shuffled = rng.permutation(500)
    assert choose_threshold(labels, scores) == choose_threshold(labels[shuffled], scores[shuffled])


def test_saved_and_loaded_scores_are_equal(tmp_path: Path):
    baseline = TfidfBaseline.fit(TEXTS, LABELS)
    baseline.threshold = choose_threshold(LABELS, baseline.scores(TEXTS))
    sha256 = baseline.save(tmp_path / "a")
    again = TfidfBaseline.load(tmp_path / "a", expected_sha256=sha256)
    odd = [*TEXTS, "", "  ", "\x00", "\ud800", "👍" * 100, "FOOL"]
    assert again.scores(odd).dtype == np.float64
    np.testing.assert_array_equal(again.scores(odd), baseline.scores(odd))
    assert again.threshold == baseline.threshold
    assert again.save(tmp_path / "b") == sha256
    names = {f.name for f in (tmp_path / "a").iterdir()}
    assert names == {"baseline.json", "baseline.safetensors"}


def test_another_process_makes_the_same_bytes(tmp_path: Path):
    code = (
        "from content_arena.training.characters import TfidfBaseline; import sys;"
        f"print(TfidfBaseline.fit({TEXTS!r}, {LABELS!r}).save(sys.argv[1]))"
    )
    digests = set()
    for seed in "0", "1":
        env = os.environ | {"PYTHONHASHSEED": seed, "PYTHONUTF8": "1"}
        run = subprocess.run(
            [sys.executable, "-c", code, tmp_path / seed],
            capture_output=True,
            text=True,
            env=env,
            check=True,
        )
        digests |= {run.stdout.strip()}
    assert digests == {TfidfBaseline.fit(TEXTS, LABELS).save(tmp_path / "here")}


@pytest.mark.parametrize(
    "file, content, fault",
    [
        ("baseline.json", None, "No such file"),
        ("baseline.json", b"{", "can't be loaded"),
        ("baseline.json", b"[]", "can't be loaded"),
        ("baseline.json", b"\xff", "can't be loaded"),
        ("baseline.json", b'{"kind": "other"}', "no tfidf-baseline of version 1"),
        ("baseline.safetensors", None, "No such file"),
        ("baseline.safetensors", b"x", "is not the one it was saved with"),
    ],
)
def test_a_damaged_folder_is_refused(tmp_path: Path, file: str, content: bytes | None, fault: str):
    TfidfBaseline.fit(TEXTS, LABELS).save(tmp_path)
    (tmp_path / file).unlink()
    if content is not None:
        (tmp_path / file).write_bytes(content)
    with pytest.raises(ValueError, match=fault) as e:
        TfidfBaseline.load(tmp_path)
    assert "baseline" in str(e.value)


def test_a_changed_threshold_is_noticed_by_its_hash(tmp_path: Path):
    sha256 = TfidfBaseline.fit(TEXTS, LABELS).save(tmp_path)
    spec = json.loads((tmp_path / "baseline.json").read_text())
    (tmp_path / "baseline.json").write_text(json.dumps(spec | {"threshold": 0.01}))
    assert TfidfBaseline.load(tmp_path).threshold == 0.01
    with pytest.raises(ValueError, match=f"its sha256 is not {sha256}"):
        TfidfBaseline.load(tmp_path, expected_sha256=sha256)


# Quality -----------------------------------------------------------------------------------------


def quality(train: pd.DataFrame, test: pd.DataFrame) -> tuple[float, float]:
    "Macro-F1 at a threshold of a half, and AUC, of a baseline fitted to `train` on `test`."
    scores = TfidfBaseline.fit(train.text.tolist(), train.label.tolist()).scores(test.text)
    return f1_score(test.label, scores >= 0.5, average="macro"), roc_auc_score(test.label, scores)


@pytest.mark.slow
def test_korean_comments_of_other_authors(data_dir: Path):
    config = load_settings(env={}, data_dir=str(data_dir))
    train = pd.concat([load_source(name, config).frame for name in ("beep", "curse")])
    assert quality(train, load_source("apeach", config).frame) == pytest.approx(
        (0.76, 0.85), abs=0.01
    )


@pytest.fixture(scope="module")
def korean() -> tuple[pd.DataFrame, pd.DataFrame]:
    "1,500 embedded Korean comments to learn from, and all that are made from every fourth template."
    corpus = embedded_corpus().query("lang == 'ko'")
    other = corpus.template.astype("category").cat.codes % 4 == 0
    return corpus[~other].sample(1500, random_state=0), corpus[other]


EMBEDDED = pytest.approx((0.84, 0.93), abs=0.015)


def test_embedded_comments_of_other_templates(korean):
    assert quality(*korean) == EMBEDDED


@pytest.mark.parametrize(
    "fault",
    [
        lambda rows, rng: rows.assign(label=rng.permutation(rows.label)),
        lambda rows, rng: rows.assign(label=rows.label ^ (rng.random(len(rows)) < 0.1)),
        lambda rows, rng: rows.assign(text=rows.text.str[:8]),
    ],
    ids=["labels shuffled", "a tenth wrong", "8 letters read"],
)
def test_a_baseline_that_learnt_less_is_noticed(korean, fault):
    train, test = korean
    assert quality(fault(train, np.random.default_rng(0)), test) != EMBEDDED

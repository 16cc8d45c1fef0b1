"""Labels that the other rows doubt: found where they were planted, not trained on, and never looked for where nobody asked."""

import numpy as np
import pandas as pd
import pytest

from content_arena.core.config import load_settings
from content_arena.training import row_weights
from content_arena.training.row_weights import label_doubt, with_weights


def noisy(share: float = 0.1, n: int = 600) -> tuple[pd.DataFrame, np.ndarray]:
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 2, n)
    words = {0: ["좋아요", "고마워", "lovely", "kind"], 1: ["바보", "멍청이", "idiot", "moron"]}
    texts = [
        f"{rng.choice(words[y])} {rng.choice(words[y])} {i % 50} 번" for i, y in enumerate(truth)
    ]
    labels = np.where(rng.random(n) < share, 1 - truth, truth)
    return pd.DataFrame(
        {"text": texts, "label": labels, "source": "own", "group": np.arange(n)}
    ), truth


def test_planted_errors_are_left_out_and_little_else():
    train, truth = noisy()
    kept = with_weights(train, load_settings(env={}, doubted_labels=0))
    wrong, lost = (train.label != truth).to_numpy(), ~train.index.isin(kept.index)
    assert lost[wrong].mean() > 0.8 and lost[~wrong].mean() < 0.02
    assert np.isclose(kept.weight.mean(), 1)


def test_a_copy_in_the_same_group_vouches_for_nothing():
    "A wrong label that stands twice must not be confirmed by its own copy."
    train, truth = noisy(0.0)
    planted = train.head(30).assign(label=1 - truth[:30])
    both = pd.concat([planted, planted, train[30:]], ignore_index=True)
    doubt = label_doubt(both)
    assert (doubt[:60] >= 0.8).mean() > 0.8


def test_nobody_is_asked_where_every_row_counts_alike(monkeypatch):
    monkeypatch.setattr(row_weights, "label_doubt", lambda *a: pytest.fail("asked"))
    train, _ = noisy()
    assert with_weights(train, load_settings(env={})) is train
    with_weights(train, load_settings(env={}, source_weights="own=0.5"))


def test_the_same_rows_have_the_same_doubts():
    train, _ = noisy(n=200)
    assert label_doubt(train).tolist() == label_doubt(train).tolist()

"""How much a row counts: the same in the loss of the network, in its gradient and in the character branch."""

import numpy as np
import pandas as pd
import pytest
import torch

from content_arena.core.config import load_settings
from content_arena.training.character_branch import CharacterBranch
from content_arena.training.loop import _loss
from content_arena.training.row_weights import RowWeightError, weights_in, with_weights
from content_arena.training.two_readers import read_twice


def frame(n=200):
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, n)
    texts = [f"{'바보 idiot' if y else '좋아요 kind'} {i % 9}" for i, y in enumerate(labels)]
    return pd.DataFrame({"text": texts, "label": labels, "source": "own"})


def test_a_row_of_weight_two_counts_like_two_rows():
    logits = torch.randn(3, 2, generator=torch.manual_seed(0), requires_grad=True)
    labels, weights = torch.tensor([0, 1, 1]), torch.tensor([0.75, 0.75, 1.5])
    _loss(logits, labels, None, weights).backward()
    twice = logits.detach()[[0, 1, 2, 2]].requires_grad_()
    _loss(twice, labels[[0, 1, 2, 2]], None, None).backward()
    per_row = torch.stack([twice.grad[0], twice.grad[1], twice.grad[2] + twice.grad[3]])
    assert torch.allclose(logits.grad, per_row)
    unweighted = _loss(logits, labels, None, torch.ones(3)), _loss(logits, labels, None, None)
    assert torch.allclose(*unweighted)


def test_weights_are_in_the_branch_as_in_the_network():
    own = frame()
    lies = own.assign(label=1 - own.label, source="lies")
    train = pd.concat([own, lies.head(150)], ignore_index=True)
    valid = frame().assign(label=own.label)
    logits = np.zeros((len(valid), 2)) + np.random.default_rng(1).normal(size=(len(valid), 2))

    def right(weights: str) -> float:
        settings = load_settings(env={}, source_weights=weights)
        branch = read_twice(with_weights(train, settings), valid, logits, "on").branch
        return float(((branch.logits(valid.text.tolist()) > 0) == valid.label).mean())

    assert right("lies=0.02") == right("lies=0") == 1.0
    assert right("lies=5") < 0.5


def test_weights_do_not_depend_on_their_scale():
    train = frame().assign(source=["a", "b"] * 100)
    one, two = (
        weights_in(with_weights(train, load_settings(env={}, source_weights=w)))
        for w in ("a=0.5,b=1", "a=1,b=2")
    )
    assert np.allclose(one, two) and np.isclose(one.mean(), 1)
    first, second = (
        CharacterBranch.fit(train.text.tolist(), train.label, row_weights=w) for w in (one, 3 * one)
    )
    assert np.allclose(first.logits(train.text[:9]), second.logits(train.text[:9]), atol=1e-4)


def test_a_source_that_no_row_is_of_is_refused():
    with pytest.raises(RowWeightError, match="no training row is of onw; there are own"):
        with_weights(frame(), load_settings(env={}, source_weights="onw=0.5"))

"""The loss in parts is the loss of all logits at once, and holds less."""

from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tunesmith.models.batch import Batch
from tunesmith.train.answer_loss import answer_loss
from tunesmith.train.dry_run import LiveBytes


@dataclass
class Head:
    """A forward pass whose states are given."""

    given: torch.Tensor
    weight: torch.Tensor

    def states(self, batch):
        return self.given

    def head(self, vocabulary=None):
        return self.weight


def problem(n_positions, n_vocabulary, *, seed=0, trains_head=False):
    draw = torch.Generator().manual_seed(seed)
    states = torch.randn(n_positions, 8, generator=draw).requires_grad_()
    head = torch.randn(n_vocabulary, 8, generator=draw).requires_grad_(trains_head)
    targets = torch.randint(0, n_vocabulary, (n_positions,), generator=draw)
    empty = torch.empty(0, dtype=torch.long)
    return Head(states, head), Batch(empty, empty, empty, targets, torch.rand(n_positions, generator=draw))


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 30), st.integers(1, 40), st.integers(1, 300), st.integers(0, 1000), st.booleans())
def test_loss_and_gradients_in_parts_equal_those_at_once(n_positions, n_vocabulary, part_logits, seed, trains_head):
    forward, batch = problem(n_positions, n_vocabulary, seed=seed, trains_head=trains_head)
    learns = [tensor for tensor in (forward.given, forward.weight) if tensor.requires_grad]
    found = []
    for is_chunked in (False, True):
        loss = answer_loss(forward, batch, is_chunked=is_chunked, part_logits=part_logits) / 3
        found.append((loss.detach(), *torch.autograd.grad(loss, learns)))
    for at_once, in_parts in zip(*found, strict=True):
        torch.testing.assert_close(in_parts, at_once, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("is_trained", [True, False])
def test_parts_hold_a_part_of_the_logits(is_trained):
    forward, batch = problem(400, 1000)
    peaks = {}
    for is_chunked in (False, True):
        with LiveBytes() as live, torch.set_grad_enabled(is_trained):
            loss = answer_loss(forward, batch, is_chunked=is_chunked, part_logits=20_000)
            if is_trained:
                torch.autograd.grad(loss, [forward.given])
        peaks[is_chunked] = live.peak
    assert peaks[False] >= 400 * 1000 * 4
    assert peaks[True] < 5 * 20_000 * 4, "a part of the logits, what logsumexp makes of it, and the states' gradient"


def test_few_logits_are_made_at_once():
    forward, batch = problem(20, 50)
    assert "Chunked" not in answer_loss(forward, batch).grad_fn.name()
    assert "Chunked" in answer_loss(forward, batch, part_logits=500).grad_fn.name()
    assert "Chunked" not in answer_loss(forward, batch, part_logits=500, is_chunked=False).grad_fn.name()

"""How probable does a model find a text?

The cross-entropy of plain text, and the choice of the most probable continuation, say what a model knows apart from its
task. Computed by the same forward pass that answers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tunesmith.models.batch import Batch, training_batch

_TOKENS_A_PASS = 768
"""Bounds the logits of a pass: each predicted token has one float32 for every token of the vocabulary."""


class _Forward(Protocol):
    def logits(self, batch: Batch, vocabulary: Tensor | None = None) -> Tensor: ...


@torch.no_grad()
def log_probabilities(forward: _Forward, tokenizer: Any, contexts: Sequence[str], continuations: Sequence[str]) -> NDArray[np.float64]:
    """Return how probable each continuation is after its context.

    Args:
        forward: A forward pass.
        tokenizer: The base model's.
        contexts: n texts. Where one is empty, the continuation's first token is its context and is not counted.
        continuations: n texts; each is tokenised by itself.

    Returns:
        shape (n, 2): the sum of the log probabilities in nats, and the number of tokens it is the sum of.
    """
    rows = []
    for context, continuation in zip(contexts, continuations, strict=True):
        before, after = (tokenizer.encode(text, add_special_tokens=False) for text in (context, continuation))
        rows.append((before, after) if before else (after[:1], after[1:]))
    result = np.zeros((len(rows), 2))
    for chosen in _passes(rows):
        asked = [row for row in chosen if rows[row][0] and rows[row][1]]
        if not asked:
            continue
        batch = training_batch([], [rows[row][0] for row in asked], [tuple(rows[row][1]) for row in asked])
        nats = -torch.nn.functional.cross_entropy(forward.logits(batch).cpu(), batch.targets, reduction="none").double()
        for row, own in zip(asked, torch.split(nats, [len(rows[row][1]) for row in asked]), strict=True):
            result[row] = float(own.sum()), len(own)
    return result


def _passes(rows: Sequence[tuple[list[int], list[int]]]) -> Iterator[list[int]]:
    """Yield row indices, rows of like length together, so that no pass predicts more than so many tokens (one row at least)."""
    batch: list[int] = []
    tokens = 0
    for row in sorted(range(len(rows)), key=lambda row: len(rows[row][0]) + len(rows[row][1])):
        if batch and tokens + len(rows[row][1]) > _TOKENS_A_PASS:
            yield batch
            batch, tokens = [], 0
        batch.append(row)
        tokens += len(rows[row][1])
    if batch:
        yield batch

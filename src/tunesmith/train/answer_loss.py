"""The loss of a pass: the cross-entropy of the answers' tokens, times what each counts, without all logits at once.

A written answer has many supervised tokens, and each has a logit for every token of the vocabulary: 2,000 tokens of a vocabulary of 49,152
are 400 MB, and as much again for their softmax and for their gradient. So the positions are taken in parts, of which each leaves its
loss and the gradient of its states and nothing else; nothing is computed twice. Where one part holds all, as in a classification, the
logits are made as they are: the two ways are equal to rounding.

Source: Wijmans et al. 2024, Cut Your Losses; Hsu et al. 2024, Liger Kernel (the gradient in the forward pass).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from tunesmith.models.batch import Batch
from tunesmith.models.engine import Forward
from tunesmith.models.logits import logits_of, loss_and_gradient, states_gradient

PART_LOGITS, _PART_LOGITS_OF_GPU = 2**24, 2**26
"""Most logits of a part: 64 MiB of float32; on a GPU, which needs more rows a product, 256 MiB."""


def answer_loss(forward: Forward, batch: Batch, *, is_chunked: bool = True, part_logits: int | None = None) -> Tensor:
    """Return the weighted sum of the cross-entropy at a batch's supervised positions, in nats.

    Args:
        forward: The forward pass.
        batch: What to read, with targets and weights.
        is_chunked: Whether logits are made in parts where there are more than `part_logits`.
        part_logits: Most logits at once; as many as suit the processor when None.
    """
    states, head = forward.states(batch), forward.head()
    targets, weights = batch.targets.to(states.device), batch.weights.to(states.device)
    n_positions = max(1, (part_logits or (_PART_LOGITS_OF_GPU if states.is_cuda else PART_LOGITS)) // len(head))
    if not is_chunked:
        n_positions = max(1, len(states))
    # A head that is not in float32 has its gradient there alone.
    if len(states) > n_positions or head.dtype != torch.float32:
        loss: Tensor = _ChunkedLoss.apply(states, head, targets, weights, n_positions)  # type: ignore[no-untyped-call]
        return loss
    return torch.nn.functional.cross_entropy(states @ head.t(), targets, reduction="none") @ weights


class _ChunkedLoss(torch.autograd.Function):
    """states: (n, D); head: (V, D); targets: (n,); weights: (n,). The gradients are ready when the loss is."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, head: Tensor, targets: Tensor, weights: Tensor, n_positions: int) -> Tensor:
        of_states, of_head = ctx.needs_input_grad[:2]
        loss = states.new_zeros(())
        grad_states = torch.empty_like(states) if of_states else None
        grad_head = torch.zeros_like(head) if of_head else None
        for at in range(0, len(states), n_positions):
            part = slice(at, at + n_positions)
            logits = logits_of(states[part], head)
            if not (of_states or of_head):
                loss += torch.nn.functional.cross_entropy(logits, targets[part], reduction="none") @ weights[part]
                continue
            of_part, gradient = loss_and_gradient(logits, targets[part], weights[part], head.dtype)
            loss += of_part
            if grad_states is not None:
                grad_states[part] = states_gradient(gradient, head)
            if grad_head is not None:
                grad_head.addmm_(gradient.t(), states[part])
        ctx.gradients = grad_states, grad_head
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        grad_states, grad_head = ctx.gradients
        del ctx.gradients
        return grad_states if grad_states is None else grad_states.mul_(grad), grad_head if grad_head is None else grad_head.mul_(grad), None, None, None
